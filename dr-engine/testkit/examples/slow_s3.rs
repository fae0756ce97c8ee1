//! A store behind the S3 protocol that answers every request late, as one far away does; for the
//! benchmark. Prints its endpoint and serves until its input ends.
//!
//! `slow_s3 BUCKET MILLISECONDS`

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measuring program"
)]

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use dr_testkit::S3Server;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bucket, milliseconds] = arguments.as_slice() else {
        anyhow::bail!("slow_s3 BUCKET MILLISECONDS");
    };
    let latency = milliseconds.parse().context("MILLISECONDS is a number")?;
    let server = S3Server::start_late(bucket, Duration::from_millis(latency))?;
    println!("{}", server.endpoint());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

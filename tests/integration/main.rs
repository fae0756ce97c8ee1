//! Backup and restore of whole workloads, end to end: the binary, real servers, PostgreSQL's own tools as
//! judges.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on says so and ends"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod archive_limit;
mod debian_cluster;
mod delta;
mod folders_and_streams;
mod increment_files;
mod increments;
mod judged;
mod keys;
mod outages;
mod receive;
mod refused;
mod retention;
mod s3;
mod stream;
mod targets;
mod wal;
mod wal_exits;

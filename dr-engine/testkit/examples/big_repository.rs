//! A repository with many restore points and chunks, for the benchmark.
//!
//! `big_repository FOLDER POINTS CHUNKS` adds restore points, one for each hour until now, to the
//! repository that `dr init` made in FOLDER (`repository`, `key`) for workload `data`. Each has its own
//! share of the chunks and refers to half of the share before.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measuring program"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use dr_model::{Clock, SystemClock, WorkloadName};
use dr_store::{Cutting, LocalBackend, Repository, RepositoryKey, WriteOptions};
use dr_testkit::{files_point, meta};

/// What a chunk holds: enough for no two to be alike.
const CHUNK_BYTES: usize = 200;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, points, chunks] = arguments.as_slice() else {
        bail!("big_repository FOLDER POINTS CHUNKS");
    };
    let folder = Path::new(folder);
    let key = RepositoryKey::parse(&std::fs::read_to_string(folder.join("key"))?)?;
    let place = LocalBackend::new(&folder.join("repository"));
    let repository = Repository::open(Arc::new(place), &key)?;
    add_points(&repository, points.parse()?, chunks.parse()?)
}

fn add_points(repository: &Repository, points: usize, chunks: usize) -> anyhow::Result<()> {
    let workload: WorkloadName = "data".parse()?;
    let share = chunks.div_ceil(points.max(1));
    let now = SystemClock.now();
    for number in 0..points {
        let writer = repository.begin(&workload, WriteOptions::default())?;
        let former = number.saturating_sub(1) * share + share / 2;
        for file in former.min(number * share)..(number + 1) * share {
            let content = content(file);
            let meta = meta(&format!("{file:08}"));
            writer.add_file(meta, &mut content.as_slice(), Cutting::Content)?;
        }
        let hours = u64::try_from(points - number)?;
        let point = files_point("data", now - Duration::from_secs(3600 * hours));
        writer.finish(point, serde_json::Value::Null)?;
    }
    Ok(())
}

/// The same for the same number, and different for every other.
fn content(file: usize) -> Vec<u8> {
    let mut state = (file as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..CHUNK_BYTES / 8).flat_map(|_| step()).collect()
}

//! How long prune takes, and how much memory, for many restore points and chunks.
//!
//! ```text
//! cargo run --release -p dr-store --features testing --bin prune-figures -- build FOLDER CHUNKS POINTS
//! cargo run --release -p dr-store --features testing --bin prune-figures -- run FOLDER
//! ```
//!
//! `build` makes a repository in a folder that is not there yet: each restore point has as many new files
//! of one small chunk as the next one still has of it. `run` removes every second restore point and what
//! only it needed, and prints one line of JSON. `scripts/prune-figures.sh` does both for several sizes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measuring program"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use dr_model::{
    ByteCount, Condition, FilesPosition, Position, RestorePoint, RestorePointId, Silent,
    WorkloadName,
};
use dr_store::{
    CheckOptions, Cutting, EntryMeta, LocalBackend, PruneRequest, Repository, RepositoryKey,
    WriteOptions,
};

fn workload() -> WorkloadName {
    "erp".parse().unwrap()
}

fn key_file(folder: &Path) -> PathBuf {
    folder.with_extension("key")
}

/// Some bytes for a number, different for each.
fn content(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (place, part) in bytes.chunks_exact_mut(8).enumerate() {
        let mixed = (number * 4 + place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        part.copy_from_slice(&(mixed ^ (mixed >> 29)).to_le_bytes());
    }
    bytes
}

fn point_at(moment: DateTime<Utc>) -> RestorePoint {
    RestorePoint {
        id: RestorePointId::new(&workload(), moment),
        workload: workload(),
        tier: "gold".parse().unwrap(),
        started: moment,
        finished: moment,
        moment,
        position: Position::Files(FilesPosition { entries: 0 }),
        files: 0,
        bytes_source: ByteCount(0),
        bytes_added: ByteCount(0),
        condition: Condition::Whole,
    }
}

fn meta(path: String) -> EntryMeta {
    EntryMeta {
        path,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_ns: 0,
        changed_ns: 0,
        inode: 0,
    }
}

fn build(folder: &Path, chunks: u64, points: u64) {
    let key = RepositoryKey::generate();
    std::fs::write(key_file(folder), key.to_text().unwrap().as_bytes()).unwrap();
    let repository = Repository::create(Arc::new(LocalBackend::new(folder)), &key).unwrap();
    let each = chunks / points;
    let began = Instant::now();
    for point in 0..points {
        let writer = repository
            .begin(&workload(), WriteOptions::default())
            .unwrap();
        let first = point.saturating_sub(1) * each;
        for number in first..(point + 1) * each {
            let body = content(number);
            let meta = meta(format!("f{number}"));
            writer
                .add_file(meta, &mut body.as_slice(), Cutting::Content)
                .unwrap();
        }
        let at = DateTime::from_timestamp(i64::try_from(point).unwrap() * 3600, 0).unwrap();
        writer
            .finish(point_at(at), serde_json::Value::Null)
            .unwrap();
    }
    println!("built in {:.1} s", began.elapsed().as_secs_f64());
}

/// The most memory this process ever had, in MiB (proc(5), VmHWM).
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}

fn run(folder: &Path) {
    let key = RepositoryKey::parse(&std::fs::read_to_string(key_file(folder)).unwrap()).unwrap();
    let repository = Repository::open(Arc::new(LocalBackend::new(folder)), &key).unwrap();
    let points = repository.points(None).unwrap();
    let every_second = points.iter().step_by(2);
    let request = PruneRequest {
        decided_at: repository.anchors().unwrap(),
        points: every_second
            .map(|point| (workload(), point.id.clone()))
            .collect(),
        ..PruneRequest::default()
    };
    let began = Instant::now();
    let plan = repository.plan_prune(&request, &Silent).unwrap();
    let planned = began.elapsed();
    let report = repository.prune(&plan, &Silent).unwrap();
    let done = began.elapsed();
    let peak = peak_memory_mib();
    let check = repository.check(CheckOptions::default(), &Silent).unwrap();
    println!(
        "{}",
        serde_json::json!({
            "points": points.len(),
            "points_removed": report.points.len(),
            "plan_seconds": planned.as_secs_f64(),
            "total_seconds": done.as_secs_f64(),
            "peak_memory_mib": peak,
            "packs_deleted": report.packs_deleted,
            "packs_rewritten": report.packs_rewritten,
            "indexes_merged": report.indexes_merged,
            "bytes_won": report.bytes_won.0,
            "problems": check.problems.len(),
        })
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[1..] {
        ["build", folder, chunks, points] => build(
            Path::new(folder),
            chunks.parse().unwrap(),
            points.parse().unwrap(),
        ),
        ["run", folder] => run(Path::new(folder)),
        _ => panic!("build FOLDER CHUNKS POINTS, or run FOLDER"),
    }
}

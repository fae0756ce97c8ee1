//! A process that dies at any step leaves a repository that is whole, and loses nothing that was
//! acknowledged, even when the power goes with it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use chrono::DateTime;
use dr_model::{Silent, WorkloadName};
use dr_store::{
    CheckOptions, Cutting, LocalBackend, Repository, RepositoryKey, WalPut, WriteOptions,
};
use dr_testkit::{TempRepository, drop_unsynced, files_point, meta};

const FOLDER: &str = "DR_STORE_CRASH_FOLDER";
const KEY: &str = "DR_STORE_CRASH_KEY";
const LOG: &str = "DR_STORE_CRASH_LOG";

fn erp() -> WorkloadName {
    "erp".parse().unwrap()
}

fn body(number: u8) -> Vec<u8> {
    vec![number; 300_000]
}

fn segment(number: u8) -> dr_model::WalFileName {
    format!("0000000100000000000000{number:02X}")
        .parse()
        .unwrap()
}

/// What the dying process does; it acknowledges each thing done by a line in its log.
fn work(repository: &Repository, log: &Path) {
    let acknowledge = |line: String| {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        log.write_all(format!("{line}\n").as_bytes()).unwrap();
    };
    for number in 1..=3u8 {
        repository
            .put_wal(
                &erp(),
                &segment(number),
                &body(number),
                DateTime::UNIX_EPOCH,
            )
            .unwrap();
        acknowledge(format!("wal {number}"));
        let writer = repository.begin(&erp(), WriteOptions::default()).unwrap();
        writer
            .add_file(meta("f"), &mut body(number).as_slice(), Cutting::Pages)
            .unwrap();
        let at = DateTime::from_timestamp(i64::from(number), 0).unwrap();
        let point = writer
            .finish(files_point("erp", at), serde_json::Value::Null)
            .unwrap();
        acknowledge(format!("point {number} {}", point.id));
    }
}

/// Not a test by itself: the other tests start this program again with this name.
#[test]
fn child_that_dies() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let key = RepositoryKey::parse(&std::env::var(KEY).unwrap()).unwrap();
    let backend = Arc::new(LocalBackend::new(Path::new(&folder)));
    let repository = Repository::open(backend, &key).unwrap();
    work(&repository, Path::new(&std::env::var_os(LOG).unwrap()));
}

/// Checks that everything acknowledged is there and everything listed is whole.
fn verify(place: &TempRepository, log: &str, why: &str) {
    let repository = place.reopen();
    let report = repository
        .check(CheckOptions { read_data: true }, &Silent)
        .unwrap();
    assert_eq!(report.problems, [], "{why}");
    let points = repository.points(None).unwrap();
    for line in log.lines() {
        let mut words = line.split(' ');
        let (kind, number) = (
            words.next().unwrap(),
            words.next().unwrap().parse().unwrap(),
        );
        if kind == "wal" {
            let stored = repository.get_wal(&erp(), &segment(number)).unwrap();
            assert!(
                stored == Some(body(number)),
                "{why}: WAL {number} was acknowledged"
            );
        } else {
            let id = words.next().unwrap();
            assert!(
                points.iter().any(|point| point.id.as_str() == id),
                "{why}: {id} is lost"
            );
        }
    }
    for point in points {
        let stored = repository.point(&point.id).unwrap().unwrap();
        for entry in repository.entries(&stored).unwrap() {
            repository
                .read_file(&stored, &entry, &mut std::io::sink())
                .unwrap();
        }
    }
}

#[test]
fn a_crash_at_any_step_with_the_power_cut_loses_nothing_acknowledged() {
    let steps = [
        "store.local.after-write",
        "store.local.after-fsync",
        "store.local.after-rename",
        "store.wal.before-put",
        "store.wal.after-put",
        "store.before-pack",
        "store.after-pack",
        "store.after-index",
        "store.before-point",
        "store.after-point",
    ];
    let mut died = 0;
    for step in steps {
        for times in [1, 2, 6] {
            let place = TempRepository::new();
            let outside = tempfile::tempdir().unwrap();
            let (log, journal) = (outside.path().join("log"), outside.path().join("journal"));
            std::fs::write(&log, "").unwrap();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_dies", "--quiet"])
                .env(FOLDER, place.path())
                .env(KEY, place.key.to_text().unwrap().as_str())
                .env(LOG, &log)
                .env("DR_TEST_KILL_AT", format!("{step}:{times}"))
                .env("DR_TEST_FS_JOURNAL", &journal)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            died += usize::from(!status.success());
            drop_unsynced(&journal, &place.path()).unwrap();
            let log = std::fs::read_to_string(&log).unwrap();
            let why = format!("killed at {step}, time {times}");
            verify(&place, &log, &why);
            // It goes on as if nothing had been.
            let repository = place.reopen();
            let again = repository
                .put_wal(&erp(), &segment(1), &body(1), DateTime::UNIX_EPOCH)
                .unwrap();
            assert!(log.is_empty() || again == WalPut::AlreadyThere, "{why}");
            work(&repository, &outside.path().join("second-log"));
            let second = std::fs::read_to_string(outside.path().join("second-log")).unwrap();
            verify(&place, &second, &why);
        }
    }
    // The three steps of every file are passed six times and more, the seven others three times.
    assert_eq!(died, 3 * 3 + 7 * 2, "processes that died where they should");
}

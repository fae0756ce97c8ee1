//! What a check finds is mended: from a copy, from what is here, or it is told exactly what is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{
    Lsn, Position, PostgresPosition, RestorePoint, Silent, SystemId, Timeline, WalFileName,
    WorkloadName,
};
use dr_store::{
    Backend, CheckOptions, Cutting, EntryKind, LocalBackend, RepairOptions, RepairReport,
    Repository, RepositoryKey, WriteOptions,
};
use dr_testkit::{TempRepository, files_point, meta};

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap()
}

fn erp() -> WorkloadName {
    "erp".parse().unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    dr_model::random::fill(&mut data);
    data
}

fn segment(number: u64) -> WalFileName {
    WalFileName::of_number(number, Timeline(1), 16 << 20)
}

fn base_backup(seconds: i64) -> RestorePoint {
    let position = PostgresPosition {
        system_id: SystemId(7),
        timeline: Timeline(1),
        start_lsn: Lsn(3 << 24),
        stop_lsn: Lsn((4 << 24) + 100),
        start_segment: segment(3),
        stop_segment: segment(4),
        wal_segment_bytes: 16 << 20,
        server_version_num: 150_018,
        page_checksums: false,
    };
    RestorePoint {
        position: Position::Postgres(position),
        ..files_point("erp", at(seconds))
    }
}

/// A repository with one of everything.
fn filled() -> TempRepository {
    let place = TempRepository::new();
    for number in 0..2 {
        add(&place.repository, base_backup(number), &noise(200_000));
    }
    for number in 3..=6 {
        let body = noise(5000);
        place
            .repository
            .put_wal(&erp(), &segment(number), &body, at(9))
            .unwrap();
    }
    place
        .repository
        .put_record("evidence", "run-1", b"{\"probe\": 1}")
        .unwrap();
    place
}

fn add(repository: &Repository, point: RestorePoint, body: &[u8]) -> RestorePoint {
    let writer = repository.begin(&erp(), WriteOptions::default()).unwrap();
    writer
        .add_file(meta("own"), &mut &body[..], Cutting::Content)
        .unwrap();
    writer
        .add_file(meta("small"), &mut &b"small"[..], Cutting::Content)
        .unwrap();
    writer.finish(point, serde_json::Value::Null).unwrap()
}

fn copy_of(place: &TempRepository) -> (tempfile::TempDir, RepositoryKey) {
    let folder = tempfile::tempdir().unwrap();
    let key = RepositoryKey::generate();
    let backend = Arc::new(LocalBackend::new(&folder.path().join("c")));
    let copy = place.repository.create_copy(backend, &key).unwrap();
    place.repository.sync_to(&copy, &Silent).unwrap();
    (folder, key)
}

fn open(path: &Path, key: &RepositoryKey) -> Repository {
    Repository::open(Arc::new(LocalBackend::new(path)), key).unwrap()
}

fn options(preview: bool) -> RepairOptions {
    static REPAIRS: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(100);
    let now = REPAIRS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    RepairOptions {
        preview,
        now: at(now),
        by: "test".to_owned(),
    }
}

fn repair(place: &TempRepository, others: &[(String, Repository)]) -> RepairReport {
    place
        .reopen()
        .repair(others, &options(false), &Silent)
        .unwrap()
}

fn problems(repository: &Repository) -> Vec<dr_store::CheckProblem> {
    let options = CheckOptions { read_data: true };
    repository.check(options, &Silent).unwrap().problems
}

fn objects(path: &Path) -> Vec<String> {
    let own = ["repository", "keys/slot/", "sessions/", "condemned/"];
    LocalBackend::new(path)
        .list("")
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| !own.iter().any(|own| name.starts_with(own)))
        .collect()
}

fn flip(path: &Path) {
    let mut data = fs::read(path).unwrap();
    let middle = data.len() / 2;
    data[middle] ^= 0x20;
    fs::write(path, data).unwrap();
}

#[test]
fn a_flipped_byte_or_a_loss_in_every_kind_of_object_is_mended_from_the_copy() {
    let place = filled();
    let (folder, key) = copy_of(&place);
    let copy = open(&folder.path().join("c"), &key);
    let others = vec![("east".to_owned(), copy)];
    for name in objects(&place.path()) {
        let path = place.path().join(&name);
        let whole = fs::read(&path).unwrap();
        for lose in [false, true] {
            match lose {
                true => fs::remove_file(&path).unwrap(),
                false => flip(&path),
            }
            let what = format!("{name}, lost: {lose}");
            let preview = place.reopen().repair(&others, &options(true), &Silent);
            let preview = preview.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!preview.repaired.is_empty(), "{what}: nothing seen");
            assert_eq!(path.exists(), !lose, "a preview changes nothing");
            let report = repair(&place, &others);
            assert_eq!(report.remaining, [], "{what}");
            assert_eq!(report.damaged_points, [], "{what}");
            assert_eq!(problems(&place.reopen()), [], "{what}");
            // A lost index may come back as a new one, made from the packs.
            if !(lose && name.starts_with("index/")) {
                assert!(fs::read(&path).unwrap() == whole, "{what}");
            }
        }
    }
}

#[test]
fn a_lost_index_is_made_again_from_the_packs() {
    let place = filled();
    for index in objects(&place.path()) {
        if !index.starts_with("index/") {
            continue;
        }
        flip(&place.path().join(&index));
        assert!(!problems(&place.reopen()).is_empty());
        let report = repair(&place, &[]);
        assert_eq!(report.remaining, []);
        assert!(!place.path().join(&index).exists());
        assert_eq!(problems(&place.reopen()), []);
    }
}

#[test]
fn a_damaged_newest_list_is_made_again_and_lists_every_complete_point() {
    let place = filled();
    let before = place.repository.points(None).unwrap();
    let newest = objects(&place.path())
        .into_iter()
        .filter(|name| name.starts_with("chain/"))
        .max()
        .unwrap();
    flip(&place.path().join(&newest));
    let report = repair(&place, &[]);
    assert_eq!(report.remaining, []);
    assert_eq!(report.repaired.len(), 1);
    assert_eq!(place.reopen().points(None).unwrap(), before);
    assert_eq!(problems(&place.reopen()), []);
    add(&place.reopen(), base_backup(50), &noise(1000));
    assert_eq!(place.reopen().points(None).unwrap().len(), 3);
}

#[test]
fn what_is_nowhere_whole_is_told_by_point_and_file_and_marked() {
    let place = filled();
    let points = place.repository.points(None).unwrap();
    let pack = objects(&place.path())
        .into_iter()
        .filter(|name| name.starts_with("data/"))
        .max_by_key(|name| fs::metadata(place.path().join(name)).unwrap().len())
        .unwrap();
    let path = place.path().join(&pack);
    let whole = fs::read(&path).unwrap();
    // Inside the first chunk of the large file.
    let mut changed = whole.clone();
    changed[5000] ^= 1;
    fs::write(&path, &changed).unwrap();
    let report = repair(&place, &[]);
    assert_eq!(report.remaining.len(), 1);
    assert_eq!(report.remaining[0].object, pack);
    assert_eq!(report.damaged_points.len(), 1, "{report:?}");
    let lost = &report.damaged_points[0];
    assert_eq!(lost.lost, ["own"]);
    assert!(points.iter().any(|point| point.id == lost.point));
    let marked = place.reopen().damaged_points().unwrap();
    assert_eq!(marked.keys().collect::<Vec<_>>(), [&lost.point]);
    // Mended after all: the mark goes.
    fs::write(&path, &whole).unwrap();
    assert_eq!(repair(&place, &[]).remaining, []);
    assert!(place.reopen().damaged_points().unwrap().is_empty());
    let place_name = place.repository.describe();
    assert!(place.reopen().known_damage(&place_name).unwrap().is_empty());
}

#[test]
fn a_repository_that_went_back_comes_forward_from_the_copy() {
    let place = filled();
    let old = tempfile::tempdir().unwrap();
    copy_folder(&place.path(), &old.path().join("old"));
    add(&place.repository, base_backup(20), &noise(50_000));
    let points = place.repository.points(None).unwrap();
    let (folder, key) = copy_of(&place);
    fs::remove_dir_all(place.path()).unwrap();
    copy_folder(&old.path().join("old"), &place.path());
    assert_eq!(place.reopen().points(None).unwrap().len(), 2);
    let copy = open(&folder.path().join("c"), &key);
    let report = repair(&place, &[("east".to_owned(), copy.clone())]);
    assert_eq!(report.remaining, [], "{report:?}");
    assert_eq!(place.reopen().points(None).unwrap(), points);
    assert_eq!(problems(&place.reopen()), []);
    assert_eq!(place.reopen().sync_to(&copy, &Silent).unwrap().problems, []);
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

const PLACE: &str = "DR_STORE_REPAIR_PLACE";
const COPY: &str = "DR_STORE_REPAIR_COPY";
const KEYS: &str = "DR_STORE_REPAIR_KEYS";

/// Not a test by itself: started again by the one below.
#[test]
fn child_that_repairs() {
    let Some(place) = std::env::var_os(PLACE) else {
        return;
    };
    let keys = std::env::var(KEYS).unwrap();
    let (place_key, copy_key) = keys.split_once('|').unwrap();
    let key = |text: &str| RepositoryKey::parse(text).unwrap();
    let here = open(Path::new(&place), &key(place_key));
    let copy = std::env::var_os(COPY).unwrap();
    let copy = open(Path::new(&copy), &key(copy_key));
    here.repair(&[("east".to_owned(), copy)], &options(false), &Silent)
        .unwrap();
}

#[test]
fn a_repair_killed_at_any_step_is_finished_by_the_next() {
    for step in ["store.repair.after-delete", "store.repair.after-put"] {
        for times in [1, 3] {
            let place = filled();
            let (folder, key) = copy_of(&place);
            let kinds = ["data/", "points/", "wal/", "keys/workload/"];
            for kind in kinds {
                let name = objects(&place.path())
                    .into_iter()
                    .find(|name| name.starts_with(kind))
                    .unwrap();
                flip(&place.path().join(name));
            }
            let keys = format!(
                "{}|{}",
                place.key.to_text().unwrap().as_str(),
                key.to_text().unwrap().as_str()
            );
            let path = folder.path().join("c");
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_repairs", "--quiet"])
                .env(PLACE, place.path())
                .env(COPY, &path)
                .env(KEYS, keys)
                .env("DR_TEST_KILL_AT", format!("{step}:{times}"))
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            assert!(!status.success(), "{step} {times} was not reached");
            let others = [("east".to_owned(), open(&path, &key))];
            assert_eq!(repair(&place, &others).remaining, [], "{step} {times}");
            assert_eq!(problems(&place.reopen()), []);
            for point in place.reopen().points(None).unwrap() {
                let repository = place.reopen();
                let stored = repository.point(&point.id).unwrap().unwrap();
                for entry in repository.entries(&stored).unwrap() {
                    if entry.kind == EntryKind::File {
                        let mut out = std::io::sink();
                        repository.read_file(&stored, &entry, &mut out).unwrap();
                    }
                }
            }
        }
    }
}

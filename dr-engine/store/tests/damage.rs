//! A changed byte anywhere is found, named, and charged to the restore points that need it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{
    Lsn, Position, PostgresPosition, RestorePoint, RestorePointId, Silent, SystemId, Timeline,
    WalFileName, WorkloadName,
};
use dr_store::{
    CheckOptions, CheckReport, Cutting, EntryKind, LocalBackend, Repository, RepositoryKey,
    StoreError, WriteOptions,
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

/// A repository with one of everything; the second point shares a file with the first.
fn filled() -> (TempRepository, RestorePointId, RestorePointId) {
    let place = TempRepository::new();
    let shared = noise(300_000);
    let mut ids = Vec::new();
    for number in 0..2 {
        let writer = place
            .repository
            .begin(&erp(), WriteOptions::default())
            .unwrap();
        writer
            .add_file(meta("shared"), &mut shared.as_slice(), Cutting::Pages)
            .unwrap();
        writer
            .add_file(
                meta("own"),
                &mut noise(200_000).as_slice(),
                Cutting::Content,
            )
            .unwrap();
        let point = writer
            .finish(base_backup(number), serde_json::Value::Null)
            .unwrap();
        ids.push(point.id);
    }
    for number in 3..=5 {
        place
            .repository
            .put_wal(&erp(), &segment(number), &noise(5000), at(9))
            .unwrap();
    }
    place
        .repository
        .put_record("evidence", "run-1", b"{\"probe\": 1}")
        .unwrap();
    let second = ids.pop().unwrap();
    (place, ids.pop().unwrap(), second)
}

fn check(repository: &Repository, read_data: bool) -> CheckReport {
    repository
        .check(CheckOptions { read_data }, &Silent)
        .unwrap()
}

fn open(place: &TempRepository) -> Result<Repository, StoreError> {
    Repository::open(Arc::new(LocalBackend::new(&place.path())), &place.key)
}

fn object_names(repository: &Repository, place: &TempRepository) -> Vec<(String, PathBuf)> {
    use dr_store::Backend;
    let _ = repository;
    let backend = LocalBackend::new(&place.path());
    let listed = backend.list("").unwrap();
    listed
        .into_iter()
        .map(|entry| (entry.name.clone(), place.path().join(entry.name)))
        .collect()
}

/// Reads all that can be read, as a restore would.
fn read_everything(place: &TempRepository) -> Result<(), StoreError> {
    let repository = open(place)?;
    for point in repository.points(None)? {
        let stored = repository.point(&point.id)?.unwrap();
        for entry in repository.entries(&stored)? {
            if entry.kind == EntryKind::File {
                repository.read_file(&stored, &entry, &mut std::io::sink())?;
            }
        }
    }
    for name in repository.list_wal(&erp())? {
        repository.get_wal(&erp(), &name)?.unwrap();
    }
    repository.get_record("evidence", "run-1")?;
    Ok(())
}

#[test]
fn a_whole_repository_has_no_problems() {
    let (place, ..) = filled();
    let report = check(&place.repository, true);
    assert_eq!(report.problems, []);
    assert_eq!((report.points, report.wal_segments), (2, 3));
    assert_eq!(report.objects, 2 + 1 + 2 + 2 + 2 + 2 + 3 + 1, "{report:?}");
    assert_eq!(check(&place.repository, false).problems, []);
    read_everything(&place).unwrap();
}

#[test]
fn a_flipped_byte_in_any_object_is_found_by_check_and_by_reading() {
    let (place, first, second) = filled();
    let opened = place.reopen();
    for (name, path) in object_names(&opened, &place) {
        let whole = fs::read(&path).unwrap();
        let last = whole.len() - 1;
        for position in [
            0,
            8,
            9,
            12,
            20,
            40,
            66,
            90,
            100,
            130,
            last / 2,
            last - 20,
            last - 1,
            last,
        ] {
            let mut changed = whole.clone();
            changed[position.min(last)] ^= 0x20;
            fs::write(&path, &changed).unwrap();
            let report = check(&opened, true);
            let problem = report
                .problems
                .iter()
                .find(|problem| problem.object == name);
            let problem = problem.unwrap_or_else(|| {
                panic!(
                    "check misses byte {position} of {name}: {:?}",
                    report.problems
                )
            });
            let affected = [&first, &second]
                .into_iter()
                .filter(|id| problem.affects.contains(id));
            let affected = affected.count();
            // A pack's table of contents is not needed to restore.
            let tail = name.starts_with("data/") && position > last - 400;
            if !tail {
                let expected = match name.split('/').next().unwrap() {
                    "repository" | "records" => 0,
                    "keys" if name.contains("workload") => 2,
                    "keys" => 0,
                    // The list can be made again from the points: nothing is lost with it.
                    "chain" => 0,
                    "wal" if name.ends_with("05") => 0,
                    "wal" => 2,
                    _ => 1,
                };
                assert!(
                    affected >= expected,
                    "{name} byte {position}: {report:?} {first} {second}"
                );
                if name.starts_with("chain/") {
                    read_everything(&place).unwrap();
                    continue;
                }
                let error = read_everything(&place).expect_err(&format!("{name} byte {position}"));
                let text = error.to_string();
                // An index that is gone is noticed by what it lacks only when it is absent.
                assert!(text.contains(&name), "{name} byte {position}: {text}");
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(check(&opened, true).problems, []);
}

#[test]
fn damage_is_charged_to_the_points_that_need_it_and_to_no_other() {
    let (place, first, second) = filled();
    let opened = place.reopen();
    let packs: Vec<_> = object_names(&opened, &place)
        .into_iter()
        .filter(|(name, _)| name.starts_with("data/"))
        .collect();
    let mut charged = Vec::new();
    for (name, path) in &packs {
        let whole = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        let report = check(&opened, false);
        let problem = report
            .problems
            .iter()
            .find(|problem| problem.object == *name)
            .unwrap();
        assert_eq!(problem.what, "it is missing");
        charged.push(problem.affects.clone());
        fs::write(path, whole).unwrap();
    }
    // The second backup reused what the first one's pack holds, never the other way.
    charged.sort_by_key(Vec::len);
    assert_eq!(
        charged,
        [vec![second.clone()], {
            let mut both = vec![first, second];
            both.sort();
            both
        }]
    );
}

#[test]
fn a_lost_pack_is_not_reused_and_what_is_stored_again_is_readable() {
    let (place, ..) = filled();
    let opened = place.reopen();
    for (_, path) in object_names(&opened, &place)
        .into_iter()
        .filter(|(name, _)| name.starts_with("data/"))
    {
        fs::remove_file(path).unwrap();
    }
    let body = noise(400_000);
    let store = |seconds| {
        let writer = opened.begin(&erp(), WriteOptions::default()).unwrap();
        writer
            .add_file(meta("f"), &mut body.as_slice(), Cutting::Pages)
            .unwrap();
        writer
            .finish(files_point("erp", at(seconds)), serde_json::Value::Null)
            .unwrap()
    };
    let lost = store(10);
    for (_, path) in object_names(&opened, &place)
        .into_iter()
        .filter(|(name, _)| name.starts_with("data/"))
    {
        fs::remove_file(path).unwrap();
    }
    let again = store(11);
    assert!(
        again.bytes_added.0 > 400_000,
        "a chunk of a lost pack was reused"
    );
    // The same chunks exist again in another pack: both points read.
    for point in [lost, again] {
        let other = place.reopen();
        let stored = other.point(&point.id).unwrap().unwrap();
        let entries = other.entries(&stored);
        if point.moment == at(11) {
            let mut out = Vec::new();
            other
                .read_file(&stored, &entries.unwrap()[0], &mut out)
                .unwrap();
            assert!(out == body);
        }
    }
}

#[test]
fn wal_that_a_base_backup_cannot_start_without_is_missed() {
    let (place, first, second) = filled();
    let path = place
        .path()
        .join("wal/erp/00000001")
        .join(segment(4).to_string());
    fs::remove_file(path).unwrap();
    let report = check(&place.repository, false);
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].affects.len(), 2);
    assert!(report.problems[0].affects.contains(&first));
    assert!(report.problems[0].affects.contains(&second));
}

#[test]
fn another_key_opens_nothing() {
    let (place, ..) = filled();
    let backend = || Arc::new(LocalBackend::new(&place.path()));
    let error = Repository::open(backend(), &RepositoryKey::generate()).unwrap_err();
    assert!(matches!(error, StoreError::WrongKey { .. }), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_missing_folder_is_never_an_empty_repository() {
    let (place, ..) = filled();
    let opened = place.reopen();
    let away = place.path().with_extension("away");
    fs::rename(place.path(), &away).unwrap();
    let missing = |error: StoreError| match error {
        StoreError::Backend { source, .. } => {
            assert!(
                source.to_string().starts_with("repository folder missing"),
                "{source}"
            );
        }
        other => panic!("{other}"),
    };
    missing(open(&place).unwrap_err());
    for round in 0..2 {
        if round == 1 {
            // The mount point without the disk.
            fs::create_dir(place.path()).unwrap();
            assert!(matches!(open(&place), Err(StoreError::Missing { .. })));
        }
        missing(opened.points(None).unwrap_err());
        missing(opened.get_wal(&erp(), &segment(9)).unwrap_err());
        missing(
            opened
                .put_wal(&erp(), &segment(9), b"x", at(0))
                .unwrap_err(),
        );
        missing(opened.begin(&erp(), WriteOptions::default()).unwrap_err());
        missing(opened.get_record("evidence", "none").unwrap_err());
    }
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        0,
        "something was created"
    );
}

#[test]
fn a_foreign_folder_is_left_alone() {
    for name in ["letters.txt", ".hidden"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), "dear").unwrap();
        let backend = Arc::new(LocalBackend::new(folder.path()));
        let error = Repository::create(backend, &RepositoryKey::generate()).unwrap_err();
        assert!(matches!(error, StoreError::NotEmpty { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

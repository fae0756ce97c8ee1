//! Copies: written beside the first place, read in its stead, brought up when they lag, and never listing
//! what they cannot restore.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{RestorePoint, Silent, Timeline, WalFileName, WorkloadName};
use dr_store::{
    Backend, CheckOptions, CopyPlace, Cutting, EntryKind, LocalBackend, PutOutcome, Repository,
    RepositoryKey, StoreError, WriteOptions,
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

/// A repository and one copy of it.
struct Two {
    first: TempRepository,
    folder: tempfile::TempDir,
    key: Arc<RepositoryKey>,
}

fn open_copy(path: &Path, key: &RepositoryKey) -> Result<Repository, StoreError> {
    Repository::open(Arc::new(LocalBackend::new(path)), key)
}

impl Two {
    fn new() -> Self {
        let first = TempRepository::new();
        let folder = tempfile::tempdir().unwrap();
        let key = Arc::new(RepositoryKey::generate());
        let two = Self { first, folder, key };
        let backend = Arc::new(LocalBackend::new(&two.copy_path()));
        two.first.repository.create_copy(backend, &two.key).unwrap();
        two
    }

    fn copy_path(&self) -> PathBuf {
        self.folder.path().join("copy")
    }

    fn place(&self) -> CopyPlace {
        let (path, key) = (self.copy_path(), Arc::clone(&self.key));
        CopyPlace {
            name: "east".to_owned(),
            place: path.display().to_string(),
            open: Arc::new(move || Ok(open_copy(&path, &key)?)),
        }
    }

    fn both(&self) -> Repository {
        self.first.reopen().with_copies(vec![self.place()])
    }

    fn copy(&self) -> Repository {
        open_copy(&self.copy_path(), &self.key).unwrap()
    }

    fn sync(&self) -> dr_store::SyncReport {
        self.first.reopen().sync_to(&self.copy(), &Silent).unwrap()
    }
}

fn store(repository: &Repository, seconds: i64, body: &[u8]) -> (RestorePoint, Option<String>) {
    let writer = repository.begin(&erp(), WriteOptions::default()).unwrap();
    writer
        .add_file(meta("f"), &mut &body[..], Cutting::Content)
        .unwrap();
    let copies = writer.copies();
    let point = writer
        .finish(files_point("erp", at(seconds)), serde_json::Value::Null)
        .unwrap();
    let behind = copies.states().pop().and_then(|state| state.behind);
    (point, behind)
}

fn read(repository: &Repository, point: &RestorePoint) -> Result<Vec<u8>, StoreError> {
    let stored = repository.point(&point.id)?.unwrap();
    let entries = repository.entries(&stored)?;
    let file = entries.iter().find(|e| e.kind == EntryKind::File).unwrap();
    let mut out = Vec::new();
    repository.read_file(&stored, file, &mut out)?;
    Ok(out)
}

fn is_whole(repository: &Repository) {
    let options = CheckOptions { read_data: true };
    let report = repository.check(options, &Silent).unwrap();
    assert_eq!(report.problems, [], "{}", repository.describe());
}

/// What both places must hold alike.
fn shared_objects(path: &Path) -> Vec<(String, Vec<u8>)> {
    let backend = LocalBackend::new(path);
    let own = ["repository", "keys/slot/", "sessions/", "condemned/"];
    backend
        .list("")
        .unwrap()
        .into_iter()
        .filter(|entry| !own.iter().any(|own| entry.name.starts_with(own)))
        .map(|entry| {
            let data = fs::read(path.join(&entry.name)).unwrap();
            (entry.name, data)
        })
        .collect()
}

fn are_alike(two: &Two) {
    let (first, copy) = (
        shared_objects(&two.first.path()),
        shared_objects(&two.copy_path()),
    );
    let names = |objects: &[(String, Vec<u8>)]| -> Vec<String> {
        objects.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(&first), names(&copy));
    assert!(first == copy, "an object differs");
}

#[test]
fn every_object_of_a_backup_is_written_to_the_copy_in_the_same_pass() {
    let two = Two::new();
    let both = two.both();
    let (point, behind) = store(&both, 1, &noise(400_000));
    assert_eq!(behind, None);
    both.put_wal(&erp(), &segment(3), &noise(5000), at(2))
        .unwrap();
    both.put_record("evidence", "run-1", b"{}").unwrap();
    are_alike(&two);
    is_whole(&two.copy());
    assert_eq!(two.copy().points(None).unwrap(), [point]);
    assert!(
        two.first
            .reopen()
            .lag_of(&two.copy(), &erp())
            .unwrap()
            .in_step()
    );
}

#[test]
fn with_the_first_place_gone_everything_is_read_from_the_copy() {
    let two = Two::new();
    let both = two.both();
    let body = noise(700_000);
    let (point, _) = store(&both, 1, &body);
    both.put_wal(&erp(), &segment(3), b"wal", at(2)).unwrap();
    fs::remove_dir_all(two.first.path()).unwrap();
    let alone = two.copy().standing_in_for("main", Vec::new());
    assert!(read(&alone, &point).unwrap() == body);
    assert_eq!(alone.get_wal(&erp(), &segment(3)).unwrap().unwrap(), b"wal");
    // What a copy lacks may be where nobody answers: that is no "absent".
    let error = alone.get_wal(&erp(), &segment(4)).unwrap_err();
    assert!(
        matches!(error, StoreError::FirstPlaceAway { .. }),
        "{error}"
    );
    let error = alone.begin(&erp(), WriteOptions::default()).unwrap_err();
    assert!(
        matches!(error, StoreError::FirstPlaceAway { .. }),
        "{error}"
    );
    // Opened before it went away, the rest is read from the copy as well.
    assert!(both.get_wal(&erp(), &segment(3)).unwrap().is_some());
}

#[test]
fn what_the_first_place_lost_or_damaged_is_read_from_the_copy() {
    let two = Two::new();
    let body = noise(900_000);
    let (point, _) = store(&two.both(), 1, &body);
    let names: Vec<String> = shared_objects(&two.first.path())
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with("chain/"))
        .collect();
    for name in names {
        let path = two.first.path().join(&name);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 0x20;
        fs::write(&path, &changed).unwrap();
        assert!(read(&two.both(), &point).unwrap() == body, "changed {name}");
        fs::remove_file(&path).unwrap();
        // An index that is not there is not listed, so nobody asks a copy for it: that is for repair.
        if !name.starts_with("index/") {
            assert!(read(&two.both(), &point).unwrap() == body, "lost {name}");
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_copy_that_is_away_fails_no_backup_and_lists_nothing_it_lacks() {
    let two = Two::new();
    let (first, _) = store(&two.both(), 1, &noise(300_000));
    let away = two.copy_path().with_extension("away");
    fs::rename(two.copy_path(), &away).unwrap();
    let body = noise(300_000);
    let both = two.both();
    let (second, behind) = store(&both, 2, &body);
    assert!(behind.unwrap().contains("missing"), "it says why");
    both.put_wal(&erp(), &segment(3), b"wal", at(2)).unwrap();
    fs::rename(&away, two.copy_path()).unwrap();
    // The next backup reuses chunks that the copy does not have.
    let (third, behind) = store(&both, 3, &body);
    assert!(behind.unwrap().contains("lacks"));
    let listed = two.copy().points(None).unwrap();
    assert_eq!(listed, std::slice::from_ref(&first));
    is_whole(&two.copy());
    let lag = two.first.reopen().lag_of(&two.copy(), &erp()).unwrap();
    assert_eq!((lag.lists, lag.wal), (2, 1));
    let report = two.sync();
    assert_eq!(report.problems, []);
    are_alike(&two);
    is_whole(&two.copy());
    assert_eq!(
        two.copy().points(None).unwrap(),
        [first, second, third.clone()]
    );
    assert!(read(&two.copy(), &third).unwrap() == body);
    assert_eq!(two.sync().copied, 0, "nothing is left to do");
    let (_, behind) = store(&two.both(), 4, &body);
    assert_eq!(behind, None, "it keeps up again");
}

#[test]
fn a_new_copy_of_an_old_repository_is_filled_by_sync() {
    let first = TempRepository::new();
    let body = noise(2_000_000);
    let (point, _) = store(&first.repository, 1, &body);
    let folder = tempfile::tempdir().unwrap();
    let key = RepositoryKey::generate();
    let backend = || Arc::new(LocalBackend::new(&folder.path().join("c")));
    let copy = first.repository.create_copy(backend(), &key).unwrap();
    assert_eq!(copy.id(), first.repository.id());
    first.repository.sync_to(&copy, &Silent).unwrap();
    assert!(read(&copy, &point).unwrap() == body);
    let other = TempRepository::new();
    let error = other.repository.create_copy(backend(), &key).unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    let error = other.repository.sync_to(&copy, &Silent).unwrap_err();
    assert!(
        matches!(error, StoreError::OtherRepository { .. }),
        "{error}"
    );
}

#[test]
fn a_first_place_that_went_back_or_is_empty_changes_no_copy() {
    let two = Two::new();
    store(&two.both(), 1, &noise(100_000));
    let old = tempfile::tempdir().unwrap();
    copy_folder(&two.first.path(), &old.path().join("old"));
    store(&two.both(), 2, &noise(100_000));
    let before = shared_objects(&two.copy_path());
    fs::remove_dir_all(two.first.path()).unwrap();
    copy_folder(&old.path().join("old"), &two.first.path());
    let refused = || {
        let error = two
            .first
            .reopen()
            .sync_to(&two.copy(), &Silent)
            .unwrap_err();
        assert!(matches!(error, StoreError::WentBack { .. }), "{error}");
        assert!(shared_objects(&two.copy_path()) == before);
    };
    refused();
    // It goes on from the old state: its list is another one now.
    store(&two.first.reopen(), 3, &noise(1000));
    refused();
    fs::remove_dir_all(two.first.path().join("chain")).unwrap();
    refused();
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

#[test]
fn what_the_first_place_lost_is_not_removed_from_the_copy() {
    let two = Two::new();
    store(&two.both(), 1, &noise(300_000));
    let objects = shared_objects(&two.copy_path());
    for (name, _) in &objects {
        let lost = ["data/", "index/", "points/", "keys/workload/"];
        if lost.iter().any(|kind| name.starts_with(kind)) {
            let path = two.first.path().join(name);
            let whole = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            // What cannot be copied or compared is an error or in the report; the copy stays.
            let _ = two.first.reopen().sync_to(&two.copy(), &Silent);
            fs::write(&path, whole).unwrap();
            assert!(shared_objects(&two.copy_path()) == objects, "{name}");
        }
    }
    // An unneeded pack that only the copy has goes.
    let backend = LocalBackend::new(&two.copy_path());
    let (pack, data) = objects
        .iter()
        .find(|(n, _)| n.starts_with("data/"))
        .unwrap();
    let stray = format!("{}{}", &pack[..pack.len() - 4], "0000");
    assert_eq!(backend.put_new(&stray, data).unwrap(), PutOutcome::Stored);
    assert_eq!(two.sync().removed, 1);
    are_alike(&two);
}

#[test]
fn damage_in_the_first_place_is_not_copied() {
    let two = Two::new();
    let (_, _) = store(&two.first.repository, 1, &noise(300_000));
    let objects = shared_objects(&two.first.path());
    let (name, whole) = objects
        .iter()
        .find(|(n, _)| n.starts_with("data/"))
        .unwrap();
    let mut changed = whole.clone();
    changed[100] ^= 1;
    fs::write(two.first.path().join(name), &changed).unwrap();
    let report = two.sync();
    assert!(
        report
            .problems
            .iter()
            .any(|problem| problem.object == *name)
    );
    assert_eq!(two.copy().points(None).unwrap(), [], "nothing is listed");
    fs::write(two.first.path().join(name), whole).unwrap();
    assert_eq!(two.sync().problems, []);
    is_whole(&two.copy());
}

const FIRST: &str = "DR_STORE_COPY_FIRST";
const COPY: &str = "DR_STORE_COPY_SECOND";
const KEYS: &str = "DR_STORE_COPY_KEYS";

/// Not a test by itself: started again by the one below.
#[test]
fn child_that_copies() {
    let Some(first) = std::env::var_os(FIRST) else {
        return;
    };
    let keys = std::env::var(KEYS).unwrap();
    let (first_key, copy_key) = keys.split_once('|').unwrap();
    let key = |text: &str| RepositoryKey::parse(text).unwrap();
    let first = open_copy(Path::new(&first), &key(first_key)).unwrap();
    let path = PathBuf::from(std::env::var_os(COPY).unwrap());
    let copy_key = key(copy_key);
    let copy = open_copy(&path, &copy_key).unwrap();
    first.sync_to(&copy, &Silent).unwrap();
    let place = CopyPlace {
        name: "east".to_owned(),
        place: path.display().to_string(),
        open: Arc::new(move || Ok(open_copy(&path, &copy_key)?)),
    };
    store(&first.with_copies(vec![place]), 9, &noise(200_000));
}

#[test]
fn a_sync_or_backup_killed_at_any_step_leaves_a_copy_that_is_whole_and_goes_on() {
    let steps = [
        "store.sync.after-object",
        "store.sync.after-objects",
        "store.sync.before-chain",
        "store.sync.before-removal",
        "store.sync.after-removal",
        "store.copy.before-point",
        "store.copy.before-chain",
        "store.copy.after-chain",
    ];
    for step in steps {
        for times in [1, 3] {
            let two = Two::new();
            let body = noise(300_000);
            store(&two.both(), 1, &body);
            for number in 2..=4 {
                store(&two.first.repository, number, &noise(150_000));
            }
            let objects = shared_objects(&two.copy_path());
            let (pack, data) = objects
                .iter()
                .find(|(n, _)| n.starts_with("data/"))
                .unwrap();
            let stray = format!("{}{}", &pack[..pack.len() - 4], "0000");
            LocalBackend::new(&two.copy_path())
                .put_new(&stray, data)
                .unwrap();
            let keys = format!(
                "{}|{}",
                two.first.key.to_text().unwrap().as_str(),
                two.key.to_text().unwrap().as_str()
            );
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_copies", "--quiet"])
                .env(FIRST, two.first.path())
                .env(COPY, two.copy_path())
                .env(KEYS, keys)
                .env("DR_TEST_KILL_AT", format!("{step}:{times}"))
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            assert!(times == 3 || !status.success(), "{step} was not reached");
            let copy = two.copy();
            for point in copy.points(None).unwrap() {
                read(&copy, &point).unwrap_or_else(|error| panic!("{step}: {error}"));
            }
            assert_eq!(two.sync().problems, [], "{step}");
            are_alike(&two);
            is_whole(&copy);
        }
    }
}

#[test]
fn a_pack_that_is_known_to_be_damaged_is_not_relied_on() {
    let first = TempRepository::new();
    let body = noise(300_000);
    let (old, _) = store(&first.repository, 1, &body);
    let objects = shared_objects(&first.path());
    let (name, whole) = objects
        .iter()
        .find(|(n, _)| n.starts_with("data/"))
        .unwrap();
    let mut changed = whole.clone();
    changed[1000] ^= 1;
    fs::write(first.path().join(name), &changed).unwrap();
    let (again, _) = store(&first.reopen(), 2, &body);
    assert!(again.bytes_added.0 < 100_000, "unknown damage is not seen");
    assert!(read(&first.reopen(), &old).is_err());
    let found = dr_store::DamageRecord {
        event: dr_store::DamageEvent::Found,
        place: first.repository.describe(),
        at: at(3),
        by: "test".to_owned(),
        objects: vec![dr_store::DamagedObject {
            object: name.clone(),
            what: "changed".to_owned(),
        }],
    };
    first.repository.remember_damage(&found).unwrap();
    let (again, _) = store(&first.reopen(), 4, &body);
    assert!(again.bytes_added.0 > 300_000, "it was relied on");
    // The same chunks are whole elsewhere now: the old point is whole again.
    assert!(read(&first.reopen(), &old).unwrap() == body);
}

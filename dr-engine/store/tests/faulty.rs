//! The decorator that the fault suite stands on does what it says, and a store that fails open is
//! recognised and gets no repository.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dr_store::{
    Backend, BackendError, LocalBackend, PutOptions, PutOutcome, Repository, RepositoryKey,
    StoreError,
};
use dr_testkit::{Failure, Fault, FaultyBackend, Operation, When};

struct Place {
    _folder: tempfile::TempDir,
    inner: Arc<LocalBackend>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inner = Arc::new(LocalBackend::new(folder.path()));
        inner.prepare().unwrap();
        inner.put_new("repository", b"x").unwrap();
        Self {
            _folder: folder,
            inner,
        }
    }

    fn faulty(&self) -> FaultyBackend {
        FaultyBackend::new(Arc::clone(&self.inner) as Arc<dyn Backend>)
    }
}

#[test]
fn every_operation_is_recorded_in_order() {
    let place = Place::new();
    let faulty = place.faulty();
    faulty.put_new("a/x", b"123").unwrap();
    faulty.get("a/x").unwrap();
    faulty.list("a/").unwrap();
    faulty.delete("a/x").unwrap();
    let seen: Vec<_> = faulty
        .record()
        .into_iter()
        .map(|r| (r.number, r.operation, r.name, r.bytes))
        .collect();
    let expected = [
        (1, Operation::Put, "a/x".to_owned(), 3),
        (2, Operation::Get, "a/x".to_owned(), 0),
        (3, Operation::List, "a/".to_owned(), 0),
        (4, Operation::Delete, "a/x".to_owned(), 0),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_process_dies_before_or_after_and_stays_dead() {
    for (fault, there) in [(Fault::DieBefore, false), (Fault::DieAfter, true)] {
        let place = Place::new();
        let faulty = place.faulty().with(When::Number(2), fault);
        faulty.put_new("a/x", b"1").unwrap();
        faulty.put_new("a/y", b"2").unwrap_err();
        assert!(faulty.is_dead());
        faulty.get("a/x").unwrap_err();
        faulty.put_new("a/z", b"3").unwrap_err();
        assert_eq!(
            place.inner.get("a/y").unwrap().is_some(),
            there,
            "{fault:?}"
        );
        assert_eq!(place.inner.get("a/z").unwrap(), None);
        assert_eq!(
            faulty.record().len(),
            2,
            "what a dead process asks is no operation"
        );
        faulty.revive();
        assert_eq!(faulty.get("a/x").unwrap().unwrap(), b"1");
    }
}

#[test]
fn an_operation_fails_once_as_chosen_or_is_done_and_not_heard_of() {
    let place = Place::new();
    let nth = |operation, prefix: &str, nth| When::Nth {
        operation,
        prefix: prefix.to_owned(),
        nth,
    };
    let faulty = place
        .faulty()
        .with(nth(Operation::Put, "data/", 2), Fault::Fail(Failure::Full))
        .with(nth(Operation::Put, "index/", 1), Fault::LoseAnswer);
    faulty.put_new("data/a", b"1").unwrap();
    faulty.put_new("wal/a", b"1").unwrap();
    let full = faulty.put_new("data/b", b"1").unwrap_err();
    assert!(matches!(full, BackendError::Full { .. }), "{full:?}");
    assert_eq!(place.inner.get("data/b").unwrap(), None);
    assert_eq!(faulty.put_new("data/b", b"1").unwrap(), PutOutcome::Stored);
    let lost = faulty.put_new("index/a", b"1").unwrap_err();
    assert!(matches!(lost, BackendError::Unreachable { .. }), "{lost:?}");
    assert_eq!(place.inner.get("index/a").unwrap().unwrap(), b"1");
    let faults = faulty.record().into_iter().filter(|r| r.fault.is_some());
    assert_eq!(faults.count(), 2);
}

#[test]
fn a_late_listing_lacks_the_newest_objects_and_reading_finds_them() {
    let place = Place::new();
    let faulty = place.faulty().listing_late(2);
    for name in ["a/3", "a/1", "b/2"] {
        faulty.put_new(name, b"x").unwrap();
    }
    let names: Vec<String> = faulty
        .list("a/")
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["a/3"]);
    assert!(faulty.get("a/1").unwrap().is_some());
}

#[test]
fn a_far_store_takes_its_time() {
    let place = Place::new();
    let faulty = place.faulty().with_latency(Duration::from_millis(20));
    let began = Instant::now();
    for _ in 0..5 {
        faulty.get("repository").unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_store_that_ignores_what_it_is_asked_is_named_and_gets_no_repository() {
    let folder = tempfile::tempdir().unwrap();
    let inner = Arc::new(LocalBackend::new(folder.path()));
    let garage = Arc::new(FaultyBackend::new(inner).failing_open());
    let error = Repository::create(garage.clone(), &RepositoryKey::generate()).unwrap_err();
    assert!(matches!(error, StoreError::Unfit { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("ignores If-None-Match"), "{text}");
    assert!(
        text.contains("two writers of one name could overwrite each other"),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("honours If-None-Match"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    let tried = garage.prepare().unwrap();
    assert!(!tried.put_if_absent && !tried.put_if_absent_raced && !tried.object_lock);
    // It takes the lock without a word, and the object goes all the same.
    let locked = PutOptions {
        retain_until: Some(chrono::Utc::now() + chrono::TimeDelta::hours(1)),
        ..PutOptions::default()
    };
    garage
        .put_new_with("a/b", Bytes::from_static(b"x"), &locked)
        .unwrap();
    garage.delete("a/b").unwrap();
    assert_eq!(garage.get("a/b").unwrap(), None);
    let said = tried.sentences();
    assert!(
        said.iter()
            .any(|line| line.starts_with("ignores If-None-Match")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("ignores its headers")),
        "{said:?}"
    );
}

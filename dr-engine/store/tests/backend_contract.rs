//! The contract of a backend, run on every implementation.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::sync::Arc;

use dr_store::{
    Backend, BackendError, Cutting, LocalBackend, PutOutcome, Repository, RepositoryKey, S3Backend,
    S3Location, StoreError, WriteOptions,
};
use dr_testkit::{ACCESS_KEY, S3Server, SECRET_KEY, files_point, meta};

const BUCKET: &str = "acme-dr";

fn location(server: &S3Server, prefix: &str) -> S3Location {
    S3Location {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(server.endpoint()),
    }
}

fn s3(server: &S3Server, prefix: &str) -> S3Backend {
    S3Backend::connect_as(&location(server, prefix), ACCESS_KEY, SECRET_KEY).unwrap()
}

/// Runs a part of the contract on every kind of place.
fn on_each_place(contract: fn(&dyn Backend)) {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalBackend::new(&folder.path().join("new/repository"));
    local.prepare().unwrap();
    contract(&local);
    let server = S3Server::start(BUCKET).unwrap();
    for prefix in ["", "erp/one"] {
        let backend = s3(&server, prefix);
        assert!(backend.prepare().unwrap().put_if_absent);
        contract(&backend);
        for entry in backend.list("").unwrap() {
            backend.delete(&entry.name).unwrap();
        }
    }
}

fn names(backend: &dyn Backend, prefix: &str) -> Vec<String> {
    backend
        .list(prefix)
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect()
}

#[test]
fn an_object_is_written_once_and_comes_back() {
    on_each_place(|backend| {
        assert_eq!(
            backend.put_new("data/aa/x", b"first").unwrap(),
            PutOutcome::Stored
        );
        assert_eq!(
            backend.put_new("data/aa/x", b"other").unwrap(),
            PutOutcome::Exists
        );
        assert_eq!(backend.get("data/aa/x").unwrap().unwrap(), b"first");
        assert_eq!(backend.get("data/aa/y").unwrap(), None);
        assert_eq!(backend.get("data/bb/y").unwrap(), None);
        assert_eq!(backend.get_range("data/bb/y", 0, 4).unwrap(), None);
        assert_eq!(backend.put_new("empty", b"").unwrap(), PutOutcome::Stored);
        assert_eq!(backend.get("empty").unwrap().unwrap(), b"");
    });
}

#[test]
fn a_range_is_short_where_the_object_ends() {
    on_each_place(|backend| {
        backend.put_new("a/b", b"0123456789").unwrap();
        let range = |offset, length| backend.get_range("a/b", offset, length).unwrap().unwrap();
        assert_eq!(range(0, 4), b"0123");
        assert_eq!(range(8, 40), b"89");
        assert_eq!(range(10, 4), b"");
        assert_eq!(range(99, 4), b"");
        assert_eq!(range(3, 0), b"");
    });
}

#[test]
fn a_listing_is_whole_and_sorted() {
    on_each_place(|backend| {
        for name in [
            "wal/erp-2/x",
            "wal/erp/b",
            "wal/erp/a",
            "points/rp-1",
            "repository",
        ] {
            backend.put_new(name, name.as_bytes()).unwrap();
        }
        assert_eq!(names(backend, "wal/erp/"), ["wal/erp/a", "wal/erp/b"]);
        assert_eq!(
            names(backend, "wal/erp"),
            ["wal/erp-2/x", "wal/erp/a", "wal/erp/b"]
        );
        assert_eq!(names(backend, "nothing/"), Vec::<String>::new());
        assert_eq!(names(backend, "points/rp-"), ["points/rp-1"]);
        assert_eq!(names(backend, "").len(), 5);
        assert_eq!(backend.list("points/").unwrap()[0].size, 11);
    });
}

#[test]
fn deleting_is_done_once_and_asked_twice() {
    on_each_place(|backend| {
        backend.put_new("repository", b"x").unwrap();
        backend.put_new("a/b", b"x").unwrap();
        backend.delete("a/b").unwrap();
        backend.delete("a/b").unwrap();
        assert_eq!(backend.get("a/b").unwrap(), None);
        assert_eq!(
            backend.put_new("a/b", b"again").unwrap(),
            PutOutcome::Stored
        );
    });
}

#[test]
fn names_that_could_leave_the_place_are_refused() {
    on_each_place(|backend| {
        for bad in [
            "", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a b", "a\\b", "ä",
        ] {
            assert!(
                matches!(backend.put_new(bad, b""), Err(BackendError::BadName { .. })),
                "{bad:?} was accepted"
            );
            assert!(backend.get(bad).is_err(), "{bad:?} was read");
        }
    });
}

#[test]
fn a_large_object_is_whole() {
    on_each_place(|backend| {
        let mut body = vec![0; 17 << 20];
        dr_model::random::fill(&mut body);
        backend.put_new("data/00/large", &body).unwrap();
        assert!(backend.get("data/00/large").unwrap().unwrap() == body);
        assert!(
            backend
                .get_range("data/00/large", 16 << 20, 100)
                .unwrap()
                .unwrap()
                == body[16 << 20..][..100]
        );
    });
}

#[test]
fn a_repository_lives_on_each_place() {
    let server = S3Server::start(BUCKET).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let places: [Arc<dyn Backend>; 2] = [
        Arc::new(s3(&server, "erp")),
        Arc::new(LocalBackend::new(&folder.path().join("r"))),
    ];
    for backend in places {
        let key = RepositoryKey::generate();
        assert!(!Repository::exists(backend.as_ref()).unwrap());
        let missing = Repository::open(Arc::clone(&backend), &key);
        assert!(missing.is_err());
        let repository = Repository::create(Arc::clone(&backend), &key).unwrap();
        let again = Repository::create(Arc::clone(&backend), &RepositoryKey::generate());
        assert!(matches!(again, Err(StoreError::AlreadyExists { .. })));
        let workload = "erp".parse().unwrap();
        let writer = repository
            .begin(&workload, WriteOptions::default())
            .unwrap();
        let body = b"some lines of text\n".repeat(100_000);
        writer
            .add_file(meta("a"), &mut body.as_slice(), Cutting::Content)
            .unwrap();
        let at = chrono::DateTime::UNIX_EPOCH;
        let point = writer
            .finish(files_point("erp", at), serde_json::Value::Null)
            .unwrap();
        let segment = "000000010000000000000001".parse().unwrap();
        repository.put_wal(&workload, &segment, &body, at).unwrap();
        repository.put_wal(&workload, &segment, &body, at).unwrap();

        let other = Repository::open(backend, &key).unwrap();
        let stored = other.point(&point.id).unwrap().unwrap();
        let mut out = Vec::new();
        other
            .read_file(&stored, &other.entries(&stored).unwrap()[0], &mut out)
            .unwrap();
        assert!(out == body);
        assert!(other.get_wal(&workload, &segment).unwrap().unwrap() == body);
        let report = other
            .check(
                dr_store::CheckOptions { read_data: true },
                &dr_model::Silent,
            )
            .unwrap();
        assert_eq!(report.problems, []);
    }
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_apart() {
    let server = S3Server::start(BUCKET).unwrap();
    let key = RepositoryKey::generate();
    let create = |backend: S3Backend| match Repository::create(Arc::new(backend), &key).unwrap_err()
    {
        StoreError::Backend { source, .. } => source,
        other => panic!("{other}"),
    };
    let nowhere = S3Location {
        bucket: "no-such-bucket".to_owned(),
        ..location(&server, "")
    };
    let error = create(S3Backend::connect_as(&nowhere, ACCESS_KEY, SECRET_KEY).unwrap());
    assert!(
        matches!(error, BackendError::BucketMissing { .. }),
        "{error:?}"
    );
    let error = create(S3Backend::connect_as(&location(&server, ""), ACCESS_KEY, "wrong").unwrap());
    assert!(matches!(error, BackendError::Refused { .. }), "{error:?}");
    let away = location(&server, "");
    drop(server);
    let error = create(S3Backend::connect_as(&away, ACCESS_KEY, SECRET_KEY).unwrap());
    assert!(
        matches!(error, BackendError::Unreachable { .. }),
        "{error:?}"
    );
    for text in [error.to_string(), error.hint().unwrap()] {
        assert!(!text.contains(SECRET_KEY));
    }
}

#[test]
fn a_store_may_be_called_from_another_runtimes_blocking_thread() {
    let server = S3Server::start(BUCKET).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let backend = Arc::new(s3(&server, ""));
        let used = Arc::clone(&backend);
        tokio::task::spawn_blocking(move || used.put_new("a", b"1").unwrap())
            .await
            .unwrap();
        // Dropped within a runtime, where a runtime must not be dropped.
        drop(backend);
    });
}

#[test]
fn of_racing_writers_of_one_name_exactly_one_wins_on_a_local_folder() {
    let folder = tempfile::tempdir().unwrap();
    let backend = LocalBackend::new(folder.path());
    backend.prepare().unwrap();
    for round in 0..20 {
        let name = format!("race/{round}");
        let wins: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..16u8)
                .map(|writer| {
                    let (backend, name) = (&backend, &name);
                    scope.spawn(move || (writer, backend.put_new(name, &[writer]).unwrap()))
                })
                .collect();
            let outcomes = writers.into_iter().map(|writer| writer.join().unwrap());
            outcomes
                .filter(|(_, o)| *o == PutOutcome::Stored)
                .map(|(writer, _)| writer)
                .collect()
        });
        assert_eq!(wins.len(), 1, "{wins:?}");
        assert_eq!(backend.get(&name).unwrap().unwrap(), wins);
    }
    assert_eq!(
        backend.list("").unwrap().len(),
        20,
        "temporary files are shown"
    );
}

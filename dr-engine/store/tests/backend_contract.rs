//! The contract of a backend, run on every implementation: a folder, S3 within the process, every
//! decorator, and a real S3 server if the environment names one (`make test-s3`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test"
)]

use std::sync::Arc;

use bytes::Bytes;
use dr_store::{
    Backend, BackendError, Bandwidth, Cutting, LimitedBackend, LocalBackend, Patience, PutOptions,
    PutOutcome, Repository, RepositoryKey, S3Backend, S3Location, StoreError, WriteOptions,
};
use dr_testkit::{ACCESS_KEY, RealS3, S3Server, SECRET_KEY, files_point, meta};

const BUCKET: &str = "acme-dr";

fn location(server: &S3Server, prefix: &str) -> S3Location {
    S3Location {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        region: "us-east-1".to_owned(),
        endpoint: Some(server.endpoint()),
        ..S3Location::default()
    }
}

fn s3(server: &S3Server, prefix: &str) -> S3Backend {
    S3Backend::connect_as(&location(server, prefix), ACCESS_KEY, SECRET_KEY).unwrap()
}

/// Places of every kind, with what keeps them alive.
struct Places {
    _folder: tempfile::TempDir,
    _server: S3Server,
    all: Vec<(&'static str, Arc<dyn Backend>)>,
}

impl Places {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Arc::new(LocalBackend::new(&folder.path().join(name)));
        let server = S3Server::start(BUCKET).unwrap();
        let fast = Bandwidth {
            write: Some(1 << 40),
            read: Some(1 << 40),
        };
        let mut all: Vec<(&'static str, Arc<dyn Backend>)> = vec![
            ("folder", at("new/repository")),
            (
                "limited folder",
                Arc::new(LimitedBackend::new(at("limited"), fast)),
            ),
            ("s3", Arc::new(s3(&server, ""))),
            ("s3 with a prefix", Arc::new(s3(&server, "erp/one"))),
            (
                "limited s3",
                Arc::new(LimitedBackend::new(Arc::new(s3(&server, "limited")), fast)),
            ),
        ];
        if let Some(real) = RealS3::from_environment() {
            for (kind, lock) in [("real s3", false), ("real s3 with locks", true)] {
                let bucket = real.new_bucket(lock).unwrap();
                let prefix = if lock { "" } else { "erp/one" };
                let place = real.connect(&real.location(&bucket, prefix), Patience::default());
                all.push((kind, Arc::new(place)));
            }
        }
        Self {
            _folder: folder,
            _server: server,
            all,
        }
    }
}

/// Runs a part of the contract on every kind of place.
fn on_each_place(contract: fn(&dyn Backend)) {
    for (kind, place) in &Places::new().all {
        println!("on {kind}: {}", place.describe());
        let capabilities = place.prepare().unwrap();
        if capabilities.versions && capabilities.unfit().is_some() {
            // Ceph 16 ignores If-None-Match in a bucket that keeps versions; it gets no repository.
            println!("left out: {}", capabilities.unfit().unwrap());
            continue;
        }
        assert_eq!(capabilities.unfit(), None);
        contract(place.as_ref());
        for entry in place.list("").unwrap() {
            place.delete(&entry.name).unwrap();
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
        let part = backend.get_range("data/00/large", 16 << 20, 100).unwrap();
        assert!(part.unwrap() == body[16 << 20..][..100]);
    });
}

/// Above 64 MiB an object is written in parts, of which the last is short here.
#[test]
fn a_huge_object_is_written_in_parts_and_once() {
    let places = Places::new();
    for (kind, place) in &places.all {
        if kind.contains("limited") || kind.contains("prefix") {
            continue;
        }
        println!("on {kind}: {}", place.describe());
        if place.prepare().unwrap().unfit().is_some() {
            continue;
        }
        place.put_new("repository", b"x").unwrap();
        let name = "wal/erp/huge";
        let size = (64 << 20) + 5;
        let mut body = vec![0; size];
        dr_model::random::fill(&mut body);
        assert_eq!(place.put_new(name, &body).unwrap(), PutOutcome::Stored);
        assert!(place.get(name).unwrap().unwrap() == body);
        assert_eq!(place.list(name).unwrap()[0].size, size as u64);
        let end = place.get_range(name, 64 << 20, 100).unwrap().unwrap();
        assert_eq!(end, body[64 << 20..]);
        body[size / 2] ^= 1;
        assert_eq!(place.put_new(name, &body).unwrap(), PutOutcome::Exists);
        body[size / 2] ^= 1;
        assert!(place.get(name).unwrap().unwrap() == body);
        assert_eq!(
            place.sweep(std::time::Duration::ZERO).unwrap(),
            0,
            "parts are left"
        );
    }
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
fn of_racing_writers_of_one_name_exactly_one_wins() {
    on_each_place(|backend| {
        backend.put_new("repository", b"x").unwrap();
        for round in 0..10 {
            let name = format!("race/{round}");
            let wins: Vec<u8> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..16u8)
                    .map(|writer| {
                        let name = &name;
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
            backend.list("race/").unwrap().len(),
            10,
            "temporary files are shown"
        );
    });
}

#[test]
fn the_places_clock_is_that_of_its_listings() {
    on_each_place(|backend| {
        let before = backend.now().unwrap();
        backend.put_new("a/b", b"x").unwrap();
        let after = backend.now().unwrap();
        let modified = backend.list("a/").unwrap()[0].modified;
        assert!(
            before <= modified && modified <= after,
            "{before} {modified} {after}"
        );
        assert_eq!(
            backend.list("trial-").unwrap(),
            [],
            "the trial leaves something in sight"
        );
    });
}

#[test]
fn what_a_place_cannot_do_it_refuses() {
    on_each_place(|backend| {
        backend.put_new("repository", b"x").unwrap();
        let until = backend.now().unwrap() + chrono::TimeDelta::hours(1);
        let locked = PutOptions {
            retain_until: Some(until),
            ..PutOptions::default()
        };
        let capabilities = backend.probe_capabilities().unwrap();
        if !capabilities.object_lock {
            for refused in [
                backend
                    .put_new_with("a/locked", Bytes::from_static(b"x"), &locked)
                    .map(drop),
                backend.extend_lock("repository", until),
            ] {
                assert!(
                    matches!(refused, Err(BackendError::NotSupported { .. })),
                    "{refused:?}"
                );
            }
            assert_eq!(backend.get("a/locked").unwrap(), None);
            assert_eq!(backend.lock_of("repository").unwrap(), None);
        }
        if !capabilities.versions {
            backend.put_new("a/b", b"x").unwrap();
            assert_eq!(backend.delete_all_versions("a/b").unwrap(), 1);
            assert_eq!(backend.get("a/b").unwrap(), None);
        }
    });
}

#[test]
fn sixteen_requests_are_under_way_at_once() {
    use std::time::{Duration, Instant};
    let server = S3Server::start(BUCKET).unwrap();
    let proxy = dr_testkit::FaultyProxy::start(&server.endpoint()).unwrap();
    let near = S3Location {
        endpoint: Some(proxy.endpoint()),
        ..location(&server, "")
    };
    let backend = S3Backend::connect_as(&near, ACCESS_KEY, SECRET_KEY).unwrap();
    backend.put_new("a/b", b"x").unwrap();
    proxy.set_latency(Duration::from_millis(200));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| backend.get("a/b").unwrap().unwrap());
        }
    });
    let took = began.elapsed();
    assert!(
        took < Duration::from_millis(1000),
        "sixteen reads of 200 ms took {took:?}"
    );
}

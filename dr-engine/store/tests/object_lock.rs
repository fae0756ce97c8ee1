//! Versions and Object Lock, on a real S3 server: `make test-s3`. Without one these tests are quiet;
//! no server within the process has either.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test"
)]

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use dr_store::{
    Backend, BackendError, Capabilities, LockMode, Patience, PutOptions, PutOutcome, S3Backend,
    S3Location,
};
use dr_testkit::RealS3;

/// A bucket with Object Lock and one client that was told so; `None` without a server.
fn place(mode: LockMode) -> Option<(RealS3, S3Location, S3Backend)> {
    let real = RealS3::from_environment()?;
    let bucket = real.new_bucket(true).unwrap();
    let location = S3Location {
        lock_mode: mode,
        ..real.location(&bucket, "erp")
    };
    let backend = real.connect(&location, Patience::default());
    let capabilities = backend.prepare().unwrap();
    assert!(
        capabilities.object_lock && capabilities.versions,
        "{capabilities:?}"
    );
    Some((real, location, backend))
}

fn until(backend: &dyn Backend, hours: i64) -> DateTime<Utc> {
    let at = backend.now().unwrap() + TimeDelta::hours(hours);
    DateTime::from_timestamp(at.timestamp(), 0).unwrap()
}

fn locked(until: DateTime<Utc>) -> PutOptions {
    PutOptions {
        retain_until: Some(until),
        ..PutOptions::default()
    }
}

fn is_locked(answer: Result<impl Sized, BackendError>, end: DateTime<Utc>) -> bool {
    matches!(answer, Err(BackendError::Locked { until: Some(told), .. }) if told == end)
}

#[test]
fn a_locked_object_is_deleted_by_nobody_and_its_lock_only_grows() {
    for mode in [LockMode::Governance, LockMode::Compliance] {
        let Some((real, location, backend)) = place(mode) else {
            return;
        };
        let (first, later) = (until(&backend, 1), until(&backend, 48));
        let put = backend
            .put_new_with("data/aa/x", Bytes::from_static(b"kept"), &locked(first))
            .unwrap();
        assert_eq!(put, PutOutcome::Stored);
        let lock = backend.lock_of("data/aa/x").unwrap().unwrap();
        assert_eq!((lock.mode, lock.until), (mode, first));
        assert!(is_locked(backend.delete("data/aa/x"), first));
        assert!(is_locked(backend.delete_all_versions("data/aa/x"), first));
        backend.extend_lock("data/aa/x", later).unwrap();
        assert_eq!(backend.lock_of("data/aa/x").unwrap().unwrap().until, later);
        // Asking for less is no error: it is locked long enough.
        backend.extend_lock("data/aa/x", first).unwrap();
        assert_eq!(backend.lock_of("data/aa/x").unwrap().unwrap().until, later);
        assert!(is_locked(backend.delete("data/aa/x"), later));
        assert_eq!(backend.get("data/aa/x").unwrap().unwrap(), b"kept");
        // One who was not told that the place has locks, and asks for no lock before deleting.
        let blunt = real.connect(&location, Patience::default());
        assert!(is_locked(blunt.delete_all_versions("data/aa/x"), later));
        // An object without a lock gets one.
        backend.put_new("data/aa/y", b"free").unwrap();
        assert_eq!(backend.lock_of("data/aa/y").unwrap(), None);
        backend.extend_lock("data/aa/y", first).unwrap();
        assert!(is_locked(backend.delete("data/aa/y"), first));
    }
}

#[test]
fn the_store_itself_refuses_to_shorten_a_compliance_lock_and_to_delete_the_version() {
    let Some((real, location, backend)) = place(LockMode::Compliance) else {
        return;
    };
    let end = until(&backend, 2);
    backend
        .put_new_with("data/aa/x", Bytes::from_static(b"kept"), &locked(end))
        .unwrap();
    let version = backend.versions("data/aa/x").unwrap()[0].version.clone();
    let raw = real.raw(&location);
    assert!(!raw.lock_until("data/aa/x", "COMPLIANCE", end - TimeDelta::hours(1)));
    assert!(!raw.lock_until("data/aa/x", "GOVERNANCE", end + TimeDelta::hours(1)));
    assert!(!raw.delete_version("data/aa/x", &version));
    assert_eq!(backend.lock_of("data/aa/x").unwrap().unwrap().until, end);
    assert_eq!(backend.get("data/aa/x").unwrap().unwrap(), b"kept");
}

#[test]
fn a_marker_hides_a_locked_object_and_taking_it_away_brings_it_back() {
    let Some((real, location, backend)) = place(LockMode::Governance) else {
        return;
    };
    let end = until(&backend, 1);
    backend
        .put_new_with("points/rp-1", Bytes::from_static(b"kept"), &locked(end))
        .unwrap();
    backend
        .put_new("points/rp-10", b"another of a longer name")
        .unwrap();
    // Whoever holds the credentials can still hide it: a plain deletion, twice.
    let blunt = real.connect(&location, Patience::default());
    blunt.delete("points/rp-1").unwrap();
    blunt.delete("points/rp-1").unwrap();
    assert_eq!(backend.get("points/rp-1").unwrap(), None);
    let listed: Vec<String> = backend
        .list("points/")
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(listed, ["points/rp-10"]);

    let versions = backend.versions("points/rp-1").unwrap();
    let of_it: Vec<_> = versions
        .iter()
        .filter(|entry| entry.name == "points/rp-1")
        .collect();
    let markers = of_it.iter().filter(|entry| entry.is_delete_marker).count();
    assert!(of_it[0].is_latest && of_it[0].is_delete_marker, "{of_it:?}");
    assert_eq!(of_it.len() - markers, 1, "{of_it:?}");
    let kept = of_it.iter().find(|entry| !entry.is_delete_marker).unwrap();
    assert_eq!(kept.size, 4);
    let body = backend.get_version("points/rp-1", &kept.version).unwrap();
    assert_eq!(body.unwrap(), b"kept");

    assert!(backend.undelete("points/rp-1").unwrap());
    assert_eq!(backend.get("points/rp-1").unwrap().unwrap(), b"kept");
    assert_eq!(backend.list("points/").unwrap().len(), 2);
    // Nothing to take away, and nothing to bring back.
    assert!(backend.undelete("points/rp-1").unwrap());
    assert!(!backend.undelete("points/none").unwrap());
    assert!(is_locked(backend.delete("points/rp-1"), end));
}

#[test]
fn what_is_deleted_with_all_versions_does_not_come_back() {
    let Some((_, _, backend)) = place(LockMode::Governance) else {
        return;
    };
    backend.put_new("keys/tenant/erp/aa", b"secret").unwrap();
    backend.delete("keys/tenant/erp/aa").unwrap();
    let before = backend.versions("keys/tenant/").unwrap();
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!(
        backend.delete_all_versions("keys/tenant/erp/aa").unwrap(),
        2
    );
    assert_eq!(backend.versions("keys/tenant/").unwrap(), []);
    assert!(!backend.undelete("keys/tenant/erp/aa").unwrap());
    for gone in before {
        assert_eq!(
            backend.get_version(&gone.name, &gone.version).unwrap(),
            None
        );
    }
}

#[test]
fn more_versions_than_a_page_holds_are_all_listed() {
    let Some((_, _, backend)) = place(LockMode::Governance) else {
        return;
    };
    const OBJECTS: usize = 1100;
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let backend = &backend;
            scope.spawn(move || {
                for number in (worker..OBJECTS).step_by(8) {
                    backend
                        .put_new(&format!("data/aa/{number:04}"), b"x")
                        .unwrap();
                }
            });
        }
    });
    let versions = backend.versions("data/").unwrap();
    assert_eq!(versions.len(), OBJECTS);
    assert!(versions.windows(2).all(|two| two[0].name < two[1].name));
    assert_eq!(backend.list("data/").unwrap().len(), OBJECTS);
}

#[test]
fn a_bucket_without_locks_is_recognised() {
    let Some(real) = RealS3::from_environment() else {
        return;
    };
    let bucket = real.new_bucket(false).unwrap();
    let backend = real.connect(&real.location(&bucket, ""), Patience::default());
    let tried = backend.prepare().unwrap();
    println!("{tried:?}");
    let expected = Capabilities {
        put_if_absent: true,
        put_if_absent_raced: true,
        checksum_md5: true,
        etag_is_md5: true,
        ..tried
    };
    assert_eq!(tried, expected);
    assert!(!tried.object_lock && !tried.versions);
    assert_eq!(tried.unfit(), None);
    let asked = backend.put_new_with(
        "data/aa/x",
        Bytes::from_static(b"x"),
        &locked(Utc::now() + TimeDelta::hours(1)),
    );
    assert!(
        matches!(asked, Err(BackendError::NotSupported { .. })),
        "{asked:?}"
    );
    assert_eq!(backend.lock_of("data/aa/x").unwrap(), None);
}

/// The same place for a single writer: Ceph 16 ignores `If-None-Match` in a bucket with versions, so that
/// no repository is kept there; with one writer, asking before writing is enough.
#[derive(Debug)]
struct Alone(S3Backend);

impl Backend for Alone {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        match self.0.get(name)? {
            Some(_) => Ok(PutOutcome::Exists),
            None => self.0.put_new_with(name, body, options),
        }
    }
    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.0.now()
    }
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.0.get(name)
    }
    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        self.0.get_range(name, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<dr_store::ObjectEntry>, BackendError> {
        self.0.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), BackendError> {
        self.0.delete(name)
    }
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        let found = self.0.prepare()?;
        Ok(Capabilities {
            put_if_absent: true,
            put_if_absent_raced: true,
            ..found
        })
    }
    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.prepare()
    }
    fn assume(&self, capabilities: Capabilities) {
        self.0.assume(capabilities);
    }
    fn lock_of(&self, name: &str) -> Result<Option<dr_store::Lock>, BackendError> {
        self.0.lock_of(name)
    }
    fn extend_lock(&self, name: &str, until: DateTime<Utc>) -> Result<(), BackendError> {
        self.0.extend_lock(name, until)
    }
}

#[test]
fn a_restore_point_is_locked_with_all_it_needs_and_a_newer_one_extends_what_it_shares() {
    use dr_store::{Cutting, Repository, RepositoryKey, WriteOptions};
    let Some((real, location, _)) = place(LockMode::Governance) else {
        return;
    };
    let location = S3Location {
        prefix: "locked".to_owned(),
        ..location
    };
    let connect = || std::sync::Arc::new(Alone(real.connect(&location, Patience::default())));
    let key = RepositoryKey::generate();
    let repository = Repository::create(connect(), &key).unwrap();
    let erp: dr_model::WorkloadName = "erp".parse().unwrap();
    let back_up = |seconds: i64, hours: u64| {
        let options = WriteOptions {
            lock: Some(std::time::Duration::from_secs(hours * 3600)),
            ..WriteOptions::default()
        };
        let writer = repository.begin(&erp, options).unwrap();
        let mut noise = vec![0; 300_000];
        for (place, byte) in noise.iter_mut().enumerate() {
            *byte = u8::try_from(place * place % 251).unwrap();
        }
        for (path, shift) in [("shared", 0), ("own", usize::try_from(seconds).unwrap())] {
            let content = noise[shift..].to_vec();
            let meta = dr_testkit::meta(path);
            writer
                .add_file(meta, &mut content.as_slice(), Cutting::Pages)
                .unwrap();
        }
        let at = DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap();
        let point = dr_testkit::files_point("erp", at);
        writer.finish(point, serde_json::Value::Null).unwrap()
    };
    let backend = connect();
    let lock_of = |name: &str| backend.lock_of(name).unwrap().map(|lock| lock.until);
    let names = |prefix: &str| -> Vec<String> {
        let listed = backend.list(prefix).unwrap();
        listed.into_iter().map(|entry| entry.name).collect()
    };
    // As whoever opens the repository is told.
    backend.assume(repository.capabilities());
    let now = backend.now().unwrap();
    let first = back_up(1, 10);
    let old_packs = names("data/");
    for name in ["data/", "index/", "points/", "chain/", "keys/"]
        .iter()
        .flat_map(|prefix| names(prefix))
        .chain(["repository".to_owned()])
    {
        let ends = lock_of(&name).unwrap_or_else(|| panic!("{name} is not locked"));
        assert!(ends >= now + TimeDelta::hours(10), "{name}: {ends}");
        assert!(ends <= now + TimeDelta::hours(13), "{name}: {ends}");
    }
    back_up(2, 100);
    for name in &old_packs {
        let ends = lock_of(name).unwrap();
        assert!(
            ends >= now + TimeDelta::hours(100),
            "{name} is shared and its lock was not extended: {ends}"
        );
    }
    let manifest = format!("points/{}", first.id);
    let own = lock_of(&manifest).unwrap();
    assert!(own <= now + TimeDelta::hours(13), "nobody needs it longer");
    // Within one step nothing is asked for again: one record for each of the two periods.
    back_up(3, 100);
    assert_eq!(names("locks/erp/").len(), 3);
    assert!(matches!(
        backend.delete(&old_packs[0]),
        Err(BackendError::Locked { .. })
    ));
}

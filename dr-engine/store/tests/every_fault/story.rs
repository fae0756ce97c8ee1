//! A run that does everything a repository is for, step by step, and what must hold after it ended
//! anywhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{RestorePointId, Silent, WalFileName, WorkloadName};
use dr_store::{
    Backend, CheckOptions, CheckReport, Cutting, Domain, EntryKind, LocalBackend, Repository,
    RepositoryKey, StoreError, WriteOptions,
};
use dr_testkit::{files_point, meta};

/// What was acknowledged, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    Point(RestorePointId, u64),
    Wal(u64),
    Record(u64),
}

pub(crate) fn erp() -> WorkloadName {
    "erp".parse().unwrap()
}

pub(crate) fn at(seconds: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + i64::try_from(seconds).unwrap(), 0).unwrap()
}

pub(crate) fn segment(number: u64) -> WalFileName {
    WalFileName::of_number(number, dr_model::Timeline(1), 16 << 20)
}

/// The same bytes each time for one seed, and nothing that compresses.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(length);
    data
}

/// The files of the point that is made in step `number`: one that all points share, one of its own, one
/// of a tenant, an empty one.
pub(crate) fn files(number: u64) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("shared".to_owned(), noise(1, 300_000)),
        ("own".to_owned(), noise(100 + number, 40_000)),
        ("tenants/acme/settings".to_owned(), noise(7, 5_000)),
        ("empty".to_owned(), Vec::new()),
    ])
}

/// One thread each, so that a run is the same each time.
pub(crate) fn options() -> WriteOptions {
    WriteOptions {
        workers: 1,
        uploads: Some(1),
        ..WriteOptions::default()
    }
}

pub(crate) fn back_up(repository: &Repository, number: u64) -> Result<RestorePointId, StoreError> {
    let writer = repository.begin(&erp(), options())?;
    for (path, content) in files(number) {
        let domain = match path.starts_with("tenants/") {
            true => Domain::Tenant("acme".to_owned()),
            false => Domain::Workload,
        };
        let cutting = Cutting::Pages;
        writer.add_file_of(&domain, meta(&path), &mut content.as_slice(), cutting)?;
    }
    writer.add_entry(meta("tenants"), EntryKind::Folder)?;
    let point = files_point("erp", at(number));
    writer
        .finish(point, serde_json::json!({ "step": number }))
        .map(|point| point.id)
}

/// Runs until something fails. `done` hears of each step as soon as it was acknowledged.
pub(crate) fn run(repository: &Repository, done: &mut dyn FnMut(Done)) -> Result<(), StoreError> {
    for number in 1..=2 {
        repository.put_wal(
            &erp(),
            &segment(number),
            &noise(50 + number, 9_000),
            at(number),
        )?;
        done(Done::Wal(number));
        let id = back_up(repository, number)?;
        done(Done::Point(id, number));
        repository.put_record("evidence", &format!("run-{number}"), b"{}")?;
        done(Done::Record(number));
    }
    Ok(())
}

pub(crate) fn open(folder: &Path, key: &RepositoryKey) -> Repository {
    Repository::open(Arc::new(LocalBackend::new(folder)), key).unwrap()
}

pub(crate) fn open_in(
    backend: Arc<dyn Backend>,
    key: &RepositoryKey,
) -> Result<Repository, StoreError> {
    Repository::open(backend, key)
}

/// Every file of a restore point; the first that cannot be read is the error.
pub(crate) fn read_point(
    repository: &Repository,
    id: &RestorePointId,
) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let stored = repository
        .point(id)?
        .ok_or_else(|| StoreError::ObjectMissing {
            object: id.to_string(),
            place: repository.describe(),
        })?;
    let reader = repository.reader(&stored)?;
    let mut found = BTreeMap::new();
    for entry in reader.entries()? {
        if entry.kind == EntryKind::File {
            let mut content = Vec::new();
            reader.read_file(&entry, &mut content)?;
            found.insert(entry.meta.path, content);
        }
    }
    Ok(found)
}

pub(crate) fn check(repository: &Repository) -> CheckReport {
    let options = CheckOptions {
        read_data: true,
        ..CheckOptions::default()
    };
    repository.check(options, &Silent).unwrap()
}

/// The step that made a point, as it was stored with it.
pub(crate) fn step_of(repository: &Repository, id: &RestorePointId) -> u64 {
    let stored = repository.point(id).unwrap().unwrap();
    stored.details["step"].as_u64().unwrap()
}

/// What must hold however the run ended. `case` names it in a failure.
pub(crate) fn holds(repository: &Repository, done: &[Done], case: &str) {
    let listed: Vec<RestorePointId> = repository
        .points(Some(&erp()))
        .unwrap()
        .into_iter()
        .map(|point| point.id)
        .collect();
    for step in done {
        match step {
            Done::Point(id, _) => assert!(listed.contains(id), "{case}: {id} is gone"),
            Done::Wal(number) => {
                let found = repository.get_wal(&erp(), &segment(*number)).unwrap();
                let expected = noise(50 + number, 9_000);
                assert!(found == Some(expected), "{case}: WAL {number} is gone");
            }
            Done::Record(number) => {
                let found = repository
                    .get_record("evidence", &format!("run-{number}"))
                    .unwrap();
                assert!(found.is_some(), "{case}: record {number} is gone");
            }
        }
    }
    for id in &listed {
        let found = read_point(repository, id)
            .unwrap_or_else(|error| panic!("{case}: {id} is listed and does not restore: {error}"));
        let expected = files(step_of(repository, id));
        assert!(found == expected, "{case}: {id} restores something else");
    }
    let problems = check(repository).problems;
    assert!(problems.is_empty(), "{case}: {problems:?}");
}

/// The next run needs no help, and nothing of what was there is lost by it.
pub(crate) fn goes_on(repository: &Repository, done: &[Done], case: &str) {
    let id = back_up(repository, 9).unwrap_or_else(|error| panic!("{case}: next backup: {error}"));
    let mut done = done.to_vec();
    done.push(Done::Point(id, 9));
    holds(repository, &done, case);
}

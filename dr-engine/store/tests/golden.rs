//! Repositories that were made by earlier programs and are never edited: today's opens them, restores
//! everything, and goes on in them. They lie in `tests/compat`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dr_model::{WalFileName, WorkloadName};
use dr_store::{
    CheckOptions, Cutting, EntryKind, KeyCommand, LocalBackend, Repository, RepositoryKey,
    StoreError, WriteOptions,
};
use dr_testkit::{files_point, meta};
use serde_json::Value;

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/compat")
        .join(version)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(golden("v1").join(name)).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&text("expected.json")).unwrap()
}

fn workload() -> WorkloadName {
    "docs".parse().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy that may be written to.
fn copied(version: &str) -> (tempfile::TempDir, Arc<LocalBackend>) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("repository");
    copy(&golden(version).join("repository"), &place);
    (folder, Arc::new(LocalBackend::new(&place)))
}

fn key() -> RepositoryKey {
    RepositoryKey::parse(&text("repository.key")).unwrap()
}

fn open(backend: &Arc<LocalBackend>) -> Repository {
    Repository::open(Arc::<LocalBackend>::clone(backend), &key()).unwrap()
}

fn digest(body: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(body))
}

/// Compares a restore point with what is expected of it.
fn assert_holds(repository: &Repository, id: &str, holds: &serde_json::Map<String, Value>) {
    let stored = repository.point(&id.parse().unwrap()).unwrap().unwrap();
    let reader = repository.reader(&stored).unwrap();
    let destroyed = expected()["destroyed"][0].clone();
    let mut seen = BTreeMap::new();
    for entry in reader.entries().unwrap() {
        let path = entry.meta.path.clone();
        assert_eq!(entry.meta.modified_ns, 1_764_000_000_123_456_789, "{path}");
        let found = match &entry.kind {
            EntryKind::Folder => Value::from("folder"),
            EntryKind::Link { target } => serde_json::json!({"link": target}),
            EntryKind::File => {
                let mut body = Vec::new();
                let read = reader.read_file(&entry, &mut body);
                if destroyed == path.as_str() {
                    let error = read.unwrap_err();
                    assert!(matches!(error, StoreError::Shredded { .. }), "{error:?}");
                    holds[&path].clone()
                } else {
                    read.unwrap();
                    serde_json::json!({"bytes": body.len(), "sha256": digest(&body)})
                }
            }
        };
        seen.insert(path, found);
    }
    let holds: BTreeMap<String, Value> = holds.clone().into_iter().collect();
    assert_eq!(seen, holds, "{id}");
}

#[test]
fn every_slot_of_version_1_opens() {
    let (_folder, backend) = copied("v1");
    let command = KeyCommand {
        wrap: vec!["base64".to_owned(), "-w0".to_owned()],
        unwrap: vec!["base64".to_owned(), "-d".to_owned()],
    };
    for key in [
        key(),
        RepositoryKey::parse(&text("second.key")).unwrap(),
        RepositoryKey::passphrase(&text("passphrase.txt")).unwrap(),
        RepositoryKey::age_identity(&text("age-identity.txt")).unwrap(),
        RepositoryKey::command(command),
    ] {
        let kind = key.kind();
        let opened = Repository::open(Arc::<LocalBackend>::clone(&backend), &key);
        let slots = opened.unwrap().key_slots().unwrap();
        assert_eq!(slots.len(), 5, "{kind}");
        assert!(slots.iter().all(|slot| slot.problem.is_none()), "{slots:?}");
    }
}

#[test]
fn everything_in_version_1_comes_back() {
    let (_folder, backend) = copied("v1");
    let repository = open(&backend);
    let expected = expected();
    let points = repository.points(Some(&workload())).unwrap();
    let ids: Vec<Value> = points
        .iter()
        .map(|point| point.id.as_str().into())
        .collect();
    assert_eq!(Value::from(ids), expected["order"]);
    for (id, holds) in expected["points"].as_object().unwrap() {
        assert_holds(&repository, id, holds.as_object().unwrap());
    }
    let removed = expected["removed"].as_str().unwrap().parse().unwrap();
    assert_eq!(repository.point(&removed).unwrap(), None);
    for (name, sha256) in expected["wal"].as_object().unwrap() {
        let file: WalFileName = name.parse().unwrap();
        let body = repository.get_wal(&workload(), &file).unwrap().unwrap();
        assert_eq!(Value::from(digest(&body)), *sha256, "{name}");
    }
    let listed = repository.list_wal(&workload()).unwrap();
    assert_eq!(listed.len(), expected["wal"].as_object().unwrap().len());
    for (name, body) in expected["records"].as_object().unwrap() {
        let (kind, name) = name.split_once('/').unwrap();
        let read = repository.get_record(kind, name).unwrap().unwrap();
        assert_eq!(body.as_str().unwrap().as_bytes(), read);
    }
    let tenants: Vec<String> = repository
        .tenant_keys(&workload())
        .unwrap()
        .into_iter()
        .map(|key| key.tenant)
        .collect();
    assert_eq!(tenants, ["acme"]);
}

#[test]
fn a_backup_goes_on_in_a_repository_of_version_1() {
    let (_folder, backend) = copied("v1");
    let repository = open(&backend);
    let expected = expected();
    let order = expected["order"].as_array().unwrap();
    let last: dr_model::RestorePointId = order.last().unwrap().as_str().unwrap().parse().unwrap();
    let stored = repository.point(&last).unwrap().unwrap();
    let large = repository
        .entries(&stored)
        .unwrap()
        .into_iter()
        .find(|entry| entry.meta.path == "large.bin")
        .unwrap();
    let mut body = Vec::new();
    repository.read_file(&stored, &large, &mut body).unwrap();
    let writer = repository
        .begin(&workload(), WriteOptions::default())
        .unwrap();
    writer
        .add_file(meta("large.bin"), &mut body.as_slice(), Cutting::Pages)
        .unwrap();
    writer
        .add_file(meta("new"), &mut b"new".as_slice(), Cutting::Content)
        .unwrap();
    let moment = stored.point.moment + chrono::TimeDelta::hours(1);
    let point = writer
        .finish(files_point("docs", moment), Value::Null)
        .unwrap();
    assert!(
        point.bytes_added.0 < 2000,
        "the large file was stored again: {point:?}"
    );
    let again = open(&backend);
    assert_eq!(again.points(Some(&workload())).unwrap().len(), 3);
    for (id, holds) in expected["points"].as_object().unwrap() {
        assert_holds(&again, id, holds.as_object().unwrap());
    }
    let report = again
        .check(CheckOptions { read_data: true }, &dr_model::Silent)
        .unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn a_repository_of_version_2_is_refused_by_its_version() {
    let (_folder, backend) = copied("v2");
    let error = Repository::open(backend, &key()).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::UnsupportedVersion {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("version 2"), "{error}");
}

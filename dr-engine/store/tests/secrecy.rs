//! What the place that keeps a repository can learn from it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::HashSet;
use std::sync::Arc;

use chrono::DateTime;
use dr_store::{
    Backend, Cutting, LocalBackend, Repository, RepositoryKey, StoreError, WriteOptions,
};
use dr_testkit::{TempRepository, files_point, meta};

fn objects(place: &TempRepository) -> Vec<(String, Vec<u8>)> {
    let backend = LocalBackend::new(&place.path());
    let listed = backend.list("").unwrap();
    listed
        .into_iter()
        .map(|entry| {
            (
                entry.name.clone(),
                backend.get(&entry.name).unwrap().unwrap(),
            )
        })
        .collect()
}

fn store(body: &[u8]) -> TempRepository {
    let place = TempRepository::new();
    let workload = "erp".parse().unwrap();
    let writer = place
        .repository
        .begin(&workload, WriteOptions::default())
        .unwrap();
    writer
        .add_file(meta("secret/document"), &mut &*body, Cutting::Content)
        .unwrap();
    writer
        .add_file(meta("secret/pages"), &mut &*body, Cutting::Pages)
        .unwrap();
    let at = DateTime::UNIX_EPOCH;
    writer
        .finish(
            files_point("erp", at),
            serde_json::json!({"seen": "secret"}),
        )
        .unwrap();
    let segment = "000000010000000000000001".parse().unwrap();
    place
        .repository
        .put_wal(&workload, &segment, body, at)
        .unwrap();
    place
        .repository
        .put_record("evidence", "run", body)
        .unwrap();
    place
}

#[test]
fn no_sixteen_bytes_of_a_stored_document_occur_in_the_repository() {
    let mut body = vec![0u8; 1 << 20];
    dr_model::random::fill(&mut body);
    let place = store(&body);
    let windows: HashSet<&[u8]> = body.windows(16).collect();
    let mut looked_at = 0;
    for (name, data) in objects(&place) {
        looked_at += data.len();
        for window in data.windows(16) {
            assert!(!windows.contains(window), "{name} holds plaintext");
        }
        for secret in [b"secret/document".as_slice(), b"\"seen\""] {
            assert!(
                !data.windows(secret.len()).any(|window| window == secret),
                "{name}"
            );
        }
    }
    assert!(looked_at > 3 << 20, "only {looked_at} bytes were looked at");
}

#[test]
fn two_repositories_of_the_same_data_share_neither_names_nor_blocks() {
    let body = b"the same document in both, line after line\n".repeat(20_000);
    let (left, right) = (store(&body), store(&body));
    let (left, right) = (objects(&left), objects(&right));
    // Names that say where things are by design: a workload's key, its WAL, its records, its lists.
    let by_design = ["repository", "keys/workload/", "wal/", "records/", "chain/"];
    let named_by_content = |name: &str| !by_design.iter().any(|prefix| name.starts_with(prefix));
    let names: HashSet<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
    for (name, _) in right.iter().filter(|(name, _)| named_by_content(name)) {
        assert!(!names.contains(name.as_str()), "both have {name}");
    }
    let blocks: HashSet<&[u8]> = left.iter().flat_map(|(_, data)| data.windows(64)).collect();
    // `repository` is in the clear and says of both what their place can do.
    for (name, data) in right.iter().filter(|(name, _)| name != "repository") {
        assert!(
            !data.windows(64).any(|block| blocks.contains(block)),
            "{name} shares a block"
        );
    }
}

#[test]
fn a_key_with_one_changed_bit_opens_nothing() {
    let place = store(b"something");
    let text = place.key.to_text().unwrap();
    let mut opened = 0;
    for index in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.as_bytes().to_vec();
            bytes[index] ^= 1 << bit;
            let Ok(changed) = String::from_utf8(bytes) else {
                continue;
            };
            match RepositoryKey::parse(&changed) {
                Err(error) => assert!(matches!(error, StoreError::InvalidKey { .. })),
                Ok(key) => {
                    let backend = Arc::new(LocalBackend::new(&place.path()));
                    opened += usize::from(Repository::open(backend, &key).is_ok());
                }
            }
        }
    }
    assert_eq!(opened, 0);
}

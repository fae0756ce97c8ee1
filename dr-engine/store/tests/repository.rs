//! What a repository promises, on a local folder.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Utc};
use dr_model::{WalFileName, WorkloadName};
use dr_store::{
    Backend, Cutting, EntryKind, LocalBackend, Repository, StoreError, WalPut, WriteOptions,
};
use dr_testkit::{FaultyBackend, Operation, TempRepository, files_point, meta};

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

fn read(repository: &Repository, id: &dr_model::RestorePointId) -> HashMap<String, Vec<u8>> {
    let point = repository.point(id).unwrap().unwrap();
    let mut found = HashMap::new();
    for entry in repository.entries(&point).unwrap() {
        if entry.kind == EntryKind::File {
            let mut body = Vec::new();
            repository.read_file(&point, &entry, &mut body).unwrap();
            found.insert(entry.meta.path, body);
        }
    }
    found
}

#[test]
fn what_was_stored_comes_back_to_another_process() {
    let place = TempRepository::new();
    let writer = place
        .repository
        .begin(&erp(), WriteOptions::default())
        .unwrap();
    let page_file = noise(1_000_001);
    let text = b"the same line again and again\n".repeat(40_000);
    writer
        .add_file(
            meta("data/base/1"),
            &mut page_file.as_slice(),
            Cutting::Pages,
        )
        .unwrap();
    writer
        .add_file(meta("etc/text"), &mut text.as_slice(), Cutting::Content)
        .unwrap();
    writer
        .add_file(meta("empty"), &mut std::io::empty(), Cutting::Pages)
        .unwrap();
    writer.add_entry(meta("etc"), EntryKind::Folder).unwrap();
    writer
        .add_entry(
            meta("link"),
            EntryKind::Link {
                target: "../x y".to_owned(),
            },
        )
        .unwrap();
    let details = serde_json::json!({"origin": "/etc/postgresql"});
    let point = writer
        .finish(files_point("erp", at(0)), details.clone())
        .unwrap();
    assert_eq!(point.files, 3);
    assert_eq!(point.bytes_source.0, (page_file.len() + text.len()) as u64);
    assert!(
        point.bytes_added.0 > 1_000_000 && point.bytes_added.0 < 1_500_000,
        "{point:?}"
    );

    let other = place.reopen();
    assert_eq!(
        other.points(Some(&erp())).unwrap(),
        std::slice::from_ref(&point)
    );
    let stored = other.point(&point.id).unwrap().unwrap();
    assert_eq!(stored.details, details);
    let paths: Vec<_> = other
        .entries(&stored)
        .unwrap()
        .into_iter()
        .map(|entry| entry.meta.path)
        .collect();
    assert_eq!(paths, ["data/base/1", "empty", "etc", "etc/text", "link"]);
    let found = read(&other, &point.id);
    assert_eq!(found["data/base/1"], page_file);
    assert_eq!(found["etc/text"], text);
    assert_eq!(found["empty"], b"");
}

#[test]
fn several_threads_fill_one_restore_point() {
    let place = TempRepository::new();
    let options = WriteOptions {
        storage_class: None,
        compression_level: 1,
        workers: 3,
        uploads: Some(1),
        lock: None,
    };
    let writer = place.repository.begin(&erp(), options).unwrap();
    let bodies: Vec<Vec<u8>> = (0..4).map(|_| noise(12_000_000)).collect();
    std::thread::scope(|scope| {
        for (number, body) in bodies.iter().enumerate() {
            let writer = &writer;
            scope.spawn(move || {
                let path = format!("file{number}");
                writer
                    .add_file(meta(&path), &mut body.as_slice(), Cutting::Pages)
                    .unwrap();
            });
        }
    });
    let point = writer
        .finish(files_point("erp", at(0)), serde_json::Value::Null)
        .unwrap();
    let found = read(&place.reopen(), &point.id);
    for (number, body) in bodies.iter().enumerate() {
        assert!(
            found[&format!("file{number}")] == *body,
            "file{number} differs"
        );
    }
}

#[test]
fn wal_is_written_once_and_a_repeated_push_is_recognised() {
    let place = TempRepository::new();
    let name: WalFileName = "000000010000000000000003".parse().unwrap();
    let segment = noise(1 << 20);
    let repository = &place.repository;
    assert_eq!(repository.get_wal(&erp(), &name).unwrap(), None);
    assert_eq!(repository.wal_info(&erp(), &name).unwrap(), None);
    assert_eq!(
        repository.put_wal(&erp(), &name, &segment, at(1)).unwrap(),
        WalPut::Stored
    );
    let other = place.reopen();
    assert_eq!(
        other.put_wal(&erp(), &name, &segment, at(2)).unwrap(),
        WalPut::AlreadyThere
    );
    let mut changed = segment.clone();
    changed[77] ^= 1;
    let error = other.put_wal(&erp(), &name, &changed, at(3)).unwrap_err();
    assert!(matches!(error, StoreError::WalConflict { .. }), "{error}");
    assert_eq!(other.get_wal(&erp(), &name).unwrap().unwrap(), segment);
    let info = other.wal_info(&erp(), &name).unwrap().unwrap();
    assert_eq!((info.pushed_at, info.bytes), (at(1), 1 << 20));
    let history: WalFileName = "00000002.history".parse().unwrap();
    other
        .put_wal(
            &erp(),
            &history,
            b"1\t0/3000000\tno recovery target\n",
            at(4),
        )
        .unwrap();
    assert_eq!(other.list_wal(&erp()).unwrap(), [name, history]);
    assert_eq!(other.list_wal(&"erp-2".parse().unwrap()).unwrap(), []);
}

#[test]
fn records_are_written_once() {
    let place = TempRepository::new();
    let repository = &place.repository;
    repository.put_record("binding", "erp", b"{}").unwrap();
    repository.put_record("binding", "erp", b"{}").unwrap();
    let error = repository.put_record("binding", "erp", b"{ }").unwrap_err();
    assert!(
        matches!(error, StoreError::RecordConflict { .. }),
        "{error}"
    );
    repository
        .put_record("evidence", "run-1/probe.jsonl", b"x")
        .unwrap();
    assert_eq!(
        repository.list_records("evidence").unwrap(),
        ["run-1/probe.jsonl"]
    );
    assert_eq!(
        place
            .reopen()
            .get_record("binding", "erp")
            .unwrap()
            .unwrap(),
        b"{}"
    );
    assert_eq!(repository.get_record("binding", "crm").unwrap(), None);
    for bad in ["../x", "a b", "", ".x"] {
        assert!(
            repository.put_record("binding", bad, b"").is_err(),
            "{bad:?}"
        );
    }
}

/// A restore point of these files.
fn point_with<'a>(
    place: &TempRepository,
    cutting: Cutting,
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> dr_model::RestorePointId {
    let options = WriteOptions::default();
    let writer = place.repository.begin(&erp(), options).unwrap();
    for (path, mut content) in files {
        writer.add_file(meta(path), &mut content, cutting).unwrap();
    }
    let point = files_point("erp", at(0));
    let id = point.id.clone();
    writer.finish(point, serde_json::Value::Null).unwrap();
    id
}

/// A repository on a place that records what is asked of it.
fn recorded(place: &TempRepository) -> (Arc<FaultyBackend>, Repository) {
    let backend = Arc::new(FaultyBackend::new(Arc::new(LocalBackend::new(
        &place.path(),
    ))));
    let repository = Repository::open(Arc::clone(&backend) as Arc<dyn Backend>, &place.key);
    (backend, repository.unwrap())
}

#[test]
fn files_side_by_side_are_read_with_few_requests() {
    const FILES: usize = 1000;
    let place = TempRepository::new();
    let contents: Vec<Vec<u8>> = (0..FILES).map(|_| noise(10_000)).collect();
    let names: Vec<String> = (0..FILES).map(|number| format!("{number:04}")).collect();
    let files = names
        .iter()
        .map(String::as_str)
        .zip(contents.iter().map(Vec::as_slice));
    let id = point_with(&place, Cutting::Content, files);

    let (backend, repository) = recorded(&place);
    let point = repository.point(&id).unwrap().unwrap();
    let reader = repository.reader(&point).unwrap();
    let entries = reader.entries().unwrap();
    backend.forget();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut body = Vec::new();
                    reader.read_file(entry, &mut body).unwrap();
                    let number: usize = entry.meta.path.parse().unwrap();
                    assert!(body == contents[number], "{number} is not what was stored");
                }
            });
        }
    });
    assert_eq!(entries.len(), FILES);
    let requests = backend.record();
    let reads = requests.iter().filter(|request| {
        matches!(request.operation, Operation::Get | Operation::GetRange)
            && request.name.starts_with("data/")
    });
    let reads = reads.count();
    // 10 MB come in stretches of 4 MiB; each pack's table of contents and first chunks come beside them.
    assert!((3..=30).contains(&reads), "{reads} requests: {requests:?}");
}

/// As a restore does with the files that several threads captured side by side, whose chunks lie in turns.
#[test]
fn of_large_files_that_share_packs_each_byte_is_fetched_about_once() {
    const BYTES: usize = 12_000_000;
    let place = TempRepository::new();
    let contents: Vec<Vec<u8>> = (0..4).map(|_| noise(BYTES)).collect();
    let writer = place
        .repository
        .begin(&erp(), WriteOptions::default())
        .unwrap();
    std::thread::scope(|scope| {
        for (number, content) in contents.iter().enumerate() {
            let writer = &writer;
            scope.spawn(move || {
                let mut content = content.as_slice();
                let meta = meta(&number.to_string());
                writer.add_file(meta, &mut content, Cutting::Pages).unwrap();
            });
        }
    });
    let point = files_point("erp", at(0));
    let id = point.id.clone();
    writer.finish(point, serde_json::Value::Null).unwrap();

    let (backend, repository) = recorded(&place);
    let point = repository.point(&id).unwrap().unwrap();
    let reader = repository.reader(&point).unwrap();
    let entries = reader.entries().unwrap();
    backend.forget();
    for (entry, content) in entries.iter().zip(&contents) {
        let mut body = Vec::new();
        reader.read_file(entry, &mut body).unwrap();
        assert!(
            body == *content,
            "{} is not what was stored",
            entry.meta.path
        );
    }
    let requests = backend.record();
    let reads = requests.iter().filter(|request| {
        request.operation == Operation::GetRange && request.name.starts_with("data/")
    });
    let fetched: u64 = reads.map(|request| request.bytes).sum();
    let stored = 4 * BYTES as u64;
    assert!(fetched < stored + stored / 4, "{fetched} for {stored}");
}

#[test]
fn any_part_of_a_file_can_be_read_with_few_requests() {
    let place = TempRepository::new();
    // Enough chunks of 256 KiB for a list of them.
    let content = noise(20_000_003);
    let id = point_with(&place, Cutting::Pages, [("large", content.as_slice())]);

    let (backend, repository) = recorded(&place);
    let point = repository.point(&id).unwrap().unwrap();
    let reader = repository.reader(&point).unwrap();
    let entries = reader.entries().unwrap();
    let mut parts = vec![
        (0, 0),
        (0, 1),
        (262_143, 2),
        (19_999_000, 5_000),
        (20_000_003, 10),
        (u64::MAX, 10),
        (0, u64::MAX),
    ];
    let mut random = [0; 16];
    for _ in 0..50 {
        dr_model::random::fill(&mut random);
        let (offset, length) = random.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().unwrap()) % 20_000_003;
        let length = u64::from_le_bytes(length.try_into().unwrap()) % 700_000;
        parts.push((offset, length));
    }
    for (offset, length) in parts {
        let mut part = Vec::new();
        reader
            .read_range(&entries[0], offset, length, &mut part)
            .unwrap();
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.len());
        let to = usize::try_from(offset.saturating_add(length))
            .unwrap_or(usize::MAX)
            .min(content.len());
        assert!(
            part == content[from..to],
            "{length} bytes from {offset} are not what was stored"
        );
    }

    // A fresh reader fetches the list, the chunk, and what says where they lie: not the file.
    let reader = repository.reader(&point).unwrap();
    backend.forget();
    let mut part = Vec::new();
    reader
        .read_range(&entries[0], 10_000_000, 100, &mut part)
        .unwrap();
    let requests = backend.record();
    assert!(requests.len() <= 10, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|request| request.operation == Operation::GetRange),
        "{requests:?}"
    );
}

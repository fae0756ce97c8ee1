//! What only a local folder can do wrong: owners, rights, leftovers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use chrono::DateTime;
use dr_store::{Backend, BackendError, Cutting, LocalBackend, StoreError, WriteOptions};
use dr_testkit::{TempRepository, files_point, meta};

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn what_root_makes_belongs_to_the_owner_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    fs::create_dir(&root).unwrap();
    let (uid, gid) = if is_root() {
        (65_534, 65_533)
    } else {
        (
            fs::metadata(&root).unwrap().uid(),
            fs::metadata(&root).unwrap().gid(),
        )
    };
    if is_root() {
        std::os::unix::fs::chown(&root, Some(uid), Some(gid)).unwrap();
    }
    let backend = LocalBackend::new(&root);
    backend.prepare().unwrap();
    backend.put_new("data/aa/pack", b"x").unwrap();
    for name in ["data", "data/aa", "data/aa/pack"] {
        let made = fs::metadata(root.join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (uid, gid), "{name}");
        assert_eq!(made.mode() & 0o077, 0, "others may read {name}");
    }
}

#[test]
fn a_folder_that_is_not_writable_is_named_with_what_to_try() {
    if is_root() {
        // Root may write everywhere; as a plain user this test says something.
        return;
    }
    let place = TempRepository::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = place
        .repository
        .put_record("evidence", "x", b"x")
        .unwrap_err();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let StoreError::Backend { source, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        matches!(source, BackendError::NotPermitted { .. }),
        "{source}"
    );
    assert!(
        source
            .to_string()
            .contains(&place.path().display().to_string()),
        "{source}"
    );
    assert!(error.hint().unwrap().contains("sudo -u"));
}

#[test]
fn leftovers_of_crashed_writers_are_not_objects_and_are_removed_when_old() {
    let place = TempRepository::new();
    place.repository.put_record("evidence", "x", b"x").unwrap();
    let folder = place.path().join("records/evidence");
    let (old, young) = (folder.join(".tmp-1-aa"), folder.join(".tmp-2-bb"));
    for path in [&old, &young] {
        fs::write(path, b"half").unwrap();
    }
    let yesterday = SystemTime::now() - Duration::from_secs(25 * 3600);
    fs::File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(yesterday)
        .unwrap();
    assert_eq!(place.repository.list_records("evidence").unwrap(), ["x"]);
    drop(
        place
            .repository
            .begin(&"erp".parse().unwrap(), WriteOptions::default())
            .unwrap(),
    );
    assert!(!old.exists());
    assert!(young.exists(), "it may be another process's, at work");
}

#[test]
fn a_backup_that_cannot_store_a_pack_lists_no_restore_point() {
    let place = TempRepository::new();
    let workload = "erp".parse().unwrap();
    let writer = place
        .repository
        .begin(&workload, WriteOptions::default())
        .unwrap();
    // A file where the folder of packs must be: like a broken disk, it stops every pack.
    fs::write(place.path().join("data"), b"").unwrap();
    writer
        .add_file(meta("a"), &mut &[1u8; 1000][..], Cutting::Pages)
        .unwrap();
    let at = DateTime::UNIX_EPOCH;
    assert!(
        writer
            .finish(files_point("erp", at), serde_json::Value::Null)
            .is_err()
    );
    fs::remove_file(place.path().join("data")).unwrap();
    assert_eq!(place.repository.points(None).unwrap(), []);
}

#[test]
fn a_source_that_fails_and_a_path_given_twice_are_errors() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("bad sector"))
        }
    }
    let place = TempRepository::new();
    let writer = place
        .repository
        .begin(&"erp".parse().unwrap(), WriteOptions::default())
        .unwrap();
    for cutting in [Cutting::Pages, Cutting::Content] {
        let error = writer
            .add_file(meta("bad"), &mut Broken, cutting)
            .unwrap_err();
        assert!(matches!(error, StoreError::Source { .. }), "{error}");
    }
    assert!(
        writer
            .add_file(meta("../x"), &mut std::io::empty(), Cutting::Pages)
            .is_err()
    );
    for _ in 0..2 {
        writer
            .add_file(meta("same"), &mut std::io::empty(), Cutting::Pages)
            .unwrap();
    }
    let at = DateTime::UNIX_EPOCH;
    let error = writer
        .finish(files_point("erp", at), serde_json::Value::Null)
        .unwrap_err();
    assert!(matches!(error, StoreError::DuplicatePath { .. }), "{error}");
    assert_eq!(place.repository.points(None).unwrap(), []);
}

#[test]
fn what_is_stored_twice_costs_once() {
    let place = TempRepository::new();
    let mut body = vec![0u8; 3_000_000];
    dr_model::random::fill(&mut body);
    let store = |seconds, body: &[u8], cutting| {
        let writer = place
            .repository
            .begin(&"erp".parse().unwrap(), WriteOptions::default())
            .unwrap();
        writer.add_file(meta("f"), &mut &*body, cutting).unwrap();
        let at = DateTime::from_timestamp(seconds, 0).unwrap();
        writer
            .finish(files_point("erp", at), serde_json::Value::Null)
            .unwrap()
            .bytes_added
            .0
    };
    assert!(store(1, &body, Cutting::Pages) > 3_000_000);
    assert!(store(2, &body, Cutting::Pages) < 10_000);
    body[1_000_000] ^= 1;
    let one_page_changed = store(3, &body, Cutting::Pages);
    assert!(
        (262_144..280_000).contains(&one_page_changed),
        "{one_page_changed}"
    );
    store(4, &body, Cutting::Content);
    body.insert(100, 7);
    let one_byte_inserted = store(5, &body, Cutting::Content);
    assert!(one_byte_inserted < 2_500_000, "{one_byte_inserted}");
}

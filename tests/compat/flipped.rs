//! One changed byte in one object of each kind: the independent reader refuses it and names the object.

use std::collections::BTreeMap;
use std::path::Path;

use crate::reader::{Kept, files};

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(&file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), target).unwrap();
    }
}

/// The largest object of each kind: of what lies in one folder of a workload, or under `keys`.
fn one_of_each_kind(folder: &Path) -> BTreeMap<String, (u64, String)> {
    let mut found: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for name in files(folder) {
        let mut parts = name.split('/');
        let first = parts.next().unwrap();
        let kind = match first {
            "keys" => format!("keys/{}", parts.next().unwrap()),
            _ => first.to_owned(),
        };
        let size = std::fs::metadata(folder.join(&name)).unwrap().len();
        let kept = found.entry(kind).or_default();
        if size > kept.0 {
            *kept = (size, name);
        }
    }
    found
}

/// Positions all over an object: in what lies in the clear, in frames, in what ends it.
fn positions(size: usize) -> [usize; 5] {
    [9, 20, size / 2, size - 40, size - 1]
}

#[track_caller]
fn every_flip_is_named(kept: &Kept, kinds: usize) {
    let objects = one_of_each_kind(&kept.folder);
    assert_eq!(objects.len(), kinds, "{objects:?}");
    kept.read(&["verify", "objects"]);
    for (_, name) in objects.into_values() {
        let path = kept.folder.join(&name);
        let whole = std::fs::read(&path).unwrap();
        for position in positions(whole.len()) {
            let mut changed = whole.clone();
            changed[position] ^= 0x20;
            std::fs::write(&path, &changed).unwrap();
            let said = kept.refuses(&["verify", "objects"]);
            assert!(said.contains(&name), "byte {position} of {name}: {said}");
        }
        std::fs::write(&path, &whole).unwrap();
    }
    kept.read(&["verify", "objects"]);
}

#[test]
fn another_program_names_every_flipped_byte() {
    let golden = Kept::golden("v1");
    let folder = tempfile::tempdir().unwrap();
    copy(&golden.folder, folder.path());
    let kept = Kept {
        folder: folder.path().to_owned(),
        key: golden.key,
    };
    // Slots, both kinds of data keys, repository, packs, indexes, points, chains, sessions, condemned
    // lists, locks, WAL files and records.
    every_flip_is_named(&kept, 13);
}

/// Extracting says so, too, and hands out nothing that is wrong.
#[test]
fn another_program_extracts_nothing_from_a_damaged_pack() {
    let golden = Kept::golden("v1");
    let folder = tempfile::tempdir().unwrap();
    copy(&golden.folder, folder.path());
    let point = golden.lines(&["points"]).remove(0);
    let packs: Vec<String> = files(&golden.folder)
        .into_iter()
        .filter(|name| name.starts_with("data/"))
        .collect();
    for pack in &packs {
        let path = folder.path().join(pack);
        let mut data = std::fs::read(&path).unwrap();
        // The first chunk's bytes, in every pack.
        data[70] ^= 1;
        std::fs::write(&path, data).unwrap();
    }
    let kept = Kept {
        folder: folder.path().to_owned(),
        key: golden.key,
    };
    let said = kept.refuses(&["verify"]);
    let named = packs.iter().filter(|pack| said.contains(*pack)).count();
    // What the destroyed key of a tenant sealed, nobody can verify.
    assert_eq!(named, packs.len() - 1, "{said}");
    assert!(said.contains(&point), "{said}");
}

//! Folders are captured, put back and compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "files/live.rs"]
mod live;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use dr_model::Silent;
use dr_sources::files::{
    self, Difference, DifferenceKind, Expected, FolderWriter, capture, crc32c_of_file, differences,
};
use dr_sources::{ContentKind, Item, ItemKind, ItemSink, SinkError, SourceError};
use tokio_util::sync::CancellationToken;

type OnFile = Box<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Kept {
    entries: Mutex<BTreeMap<String, (Item, Vec<u8>)>>,
    /// Called with each file's path while it is handed over.
    on_file: Option<OnFile>,
}

impl ItemSink for Kept {
    fn file(&self, item: &Item, content: &mut dyn Read, _: ContentKind) -> Result<(), SinkError> {
        if let Some(on_file) = &self.on_file {
            on_file(&item.path);
        }
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.keep(item, bytes)
    }

    fn entry(&self, item: &Item) -> Result<(), SinkError> {
        self.keep(item, Vec::new())
    }
}

impl Kept {
    fn keep(&self, item: &Item, bytes: Vec<u8>) -> Result<(), SinkError> {
        let entry = (item.clone(), bytes);
        let before = self
            .entries
            .lock()
            .unwrap()
            .insert(item.path.clone(), entry);
        if before.is_some() {
            Err(format!("{} came twice", item.path).into())
        } else {
            Ok(())
        }
    }

    fn paths(&self) -> Vec<String> {
        self.entries.lock().unwrap().keys().cloned().collect()
    }

    fn put_back(&self, into: &Path) -> Result<(), SourceError> {
        let writer = FolderWriter::open(into)?;
        for (item, bytes) in self.entries.lock().unwrap().values() {
            match item.kind {
                ItemKind::File => {
                    writer.file(item, &mut |out| Ok(out.write_all(bytes)?))?;
                }
                ItemKind::Folder | ItemKind::Link { .. } => writer.entry(item)?,
            }
        }
        writer.finish()
    }

    fn expected(&self) -> Vec<Expected> {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let entries = self.entries.lock().unwrap();
        entries
            .values()
            .map(|(item, bytes)| {
                fs::write(scratch.path(), bytes).unwrap();
                let content = matches!(item.kind, ItemKind::File)
                    .then(|| crc32c_of_file(scratch.path()).unwrap());
                Expected {
                    item: item.clone(),
                    content,
                }
            })
            .collect()
    }
}

fn captured(root: &Path) -> Kept {
    let kept = Kept::default();
    capture(root, &kept, &Silent, &CancellationToken::new()).unwrap();
    kept
}

/// Mode, owner, group, seconds and nanoseconds of the modification, content or link target.
type Described = (u32, u32, u32, i64, i64, Vec<u8>);

/// Everything stat(2) tells of a tree that a restore promises to bring back.
fn described(root: &Path) -> BTreeMap<String, Described> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let m = &metadata;
            found.insert(
                name,
                (
                    m.mode(),
                    m.uid(),
                    m.gid(),
                    m.mtime(),
                    m.mtime_nsec(),
                    content,
                ),
            );
        }
    }
    found
}

fn sample() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir_all(path("a/b/c")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("a/plain.txt"), "hello").unwrap();
    fs::write(path("a/b/nothing"), "").unwrap();
    fs::write(path("a/b/c/grüße \n odd"), [0_u8, 255, 7]).unwrap();
    fs::write(path("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(path("a/plain.txt"), fs::Permissions::from_mode(0o400)).unwrap();
    symlink("a/plain.txt", path("link")).unwrap();
    symlink("/does/not/exist", path("dangling")).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(path("run.sh"), Some(1234), Some(2345)).unwrap();
        std::os::unix::fs::lchown(path("link"), Some(1234), Some(2345)).unwrap();
        std::os::unix::fs::lchown(path("empty"), Some(1234), Some(2345)).unwrap();
    }
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["a/plain.txt", "a/b/c", "a", "empty"] {
        fs::File::open(path(name))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    }
    fs::set_permissions(path("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
    root
}

#[test]
fn what_is_put_back_is_what_was_captured() {
    let source = sample();
    let kept = captured(source.path());
    let target = tempfile::tempdir().unwrap();
    kept.put_back(target.path()).unwrap();
    assert_eq!(described(target.path()), described(source.path()));
    assert_eq!(
        differences(target.path(), &kept.expected(), &|_| true).unwrap(),
        []
    );
    // And over an existing tree.
    fs::remove_file(target.path().join("link")).unwrap();
    fs::write(target.path().join("link"), "a file now").unwrap();
    fs::write(target.path().join("run.sh"), "other").unwrap();
    kept.put_back(target.path()).unwrap();
    assert_eq!(described(target.path()), described(source.path()));
    // A plain user could not empty a folder without `w`.
    for root in [source.path(), target.path()] {
        fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn every_kind_of_difference_is_told() {
    let source = sample();
    let kept = captured(source.path());
    let path = |name: &str| source.path().join(name);
    fs::remove_file(path("dangling")).unwrap();
    fs::write(path("new"), "").unwrap();
    fs::set_permissions(path("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(path("link")).unwrap();
    symlink("elsewhere", path("link")).unwrap();
    fs::remove_dir(path("empty")).unwrap();
    fs::write(path("empty"), "").unwrap();
    let content = path("a/plain.txt");
    fs::set_permissions(&content, fs::Permissions::from_mode(0o600)).unwrap();
    let modified = fs::metadata(&content).unwrap().modified().unwrap();
    fs::write(&content, "jello").unwrap();
    fs::File::open(&content)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    let found = differences(source.path(), &kept.expected(), &|_| true).unwrap();
    let difference = |path: &str, kind| Difference {
        path: path.to_owned(),
        kind,
    };
    assert_eq!(
        found,
        [
            difference("a/plain.txt", DifferenceKind::Content),
            difference("dangling", DifferenceKind::Missing),
            difference("empty", DifferenceKind::OtherKind),
            difference("link", DifferenceKind::Content),
            difference("new", DifferenceKind::Extra),
            difference("run.sh", DifferenceKind::Mode),
        ]
    );
    let only_a = differences(source.path(), &kept.expected(), &|path| {
        path.starts_with("a/")
    });
    assert_eq!(
        only_a.unwrap(),
        [difference("a/plain.txt", DifferenceKind::Content)]
    );
    fs::set_permissions(path("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn nothing_is_written_outside_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    symlink(outside.path(), target.path().join("door")).unwrap();
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    symlink(outside.path().join("victim"), target.path().join("file")).unwrap();
    let item = |path: &str| Item {
        path: path.to_owned(),
        kind: ItemKind::File,
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        modified_ns: 0,
        changed_ns: 0,
        inode: 0,
    };
    let folder = |path: &str| Item {
        kind: ItemKind::Folder,
        ..item(path)
    };
    let writer = FolderWriter::open(target.path()).unwrap();
    let mut content = |out: &mut dyn Write| -> Result<(), SinkError> { Ok(out.write_all(b"x")?) };
    for bad in [
        "door/new",
        "../new",
        "/new",
        "a/../../new",
        "door/../new",
        "",
        "a//b",
        "./a",
    ] {
        assert!(
            writer.file(&item(bad), &mut content).is_err(),
            "{bad:?} was written"
        );
        assert!(
            writer.remove(bad).is_err() || bad.is_empty(),
            "{bad:?} was removed"
        );
    }
    assert!(writer.entry(&folder("door")).is_err());
    assert!(writer.remove("door/victim").is_err());
    // A link in a file's place is replaced, not written through.
    writer.file(&item("file"), &mut content).unwrap();
    writer.finish().unwrap();
    assert!(
        fs::symlink_metadata(target.path().join("file"))
            .unwrap()
            .is_file()
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(outside.path().join("victim")).unwrap(),
        "untouched"
    );
}

#[test]
fn a_failed_write_leaves_the_former_file_and_nothing_beside_it() {
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("f"), "former").unwrap();
    let kept = captured(target.path());
    let item = kept.entries.lock().unwrap()["f"].0.clone();
    let writer = FolderWriter::open(target.path()).unwrap();
    let failed = writer.file(&item, &mut |out| {
        out.write_all(&[0; 100_000])?;
        Err("the repository is away".into())
    });
    assert!(
        matches!(failed, Err(SourceError::Sink { .. })),
        "{failed:?}"
    );
    assert_eq!(
        fs::read_to_string(target.path().join("f")).unwrap(),
        "former"
    );
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
}

#[test]
fn what_has_no_content_is_left_out_with_a_note() {
    let root = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    let status = std::process::Command::new("mkfifo")
        .arg(root.path().join("pipe"))
        .status();
    assert!(status.unwrap().success());
    fs::write(root.path().join("file"), "kept").unwrap();
    let kept = Kept::default();
    let summary = capture(root.path(), &kept, &Silent, &CancellationToken::new()).unwrap();
    assert_eq!(kept.paths(), ["file"]);
    assert_eq!(summary.notes.len(), 2, "{:?}", summary.notes);
    assert_eq!((summary.entries, summary.files, summary.bytes), (1, 1, 4));
}

#[test]
fn a_name_that_cannot_be_written_back_ends_the_capture() {
    let root = tempfile::tempdir().unwrap();
    fs::write(
        root.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")),
        "",
    )
    .unwrap();
    let error = capture(
        root.path(),
        &Kept::default(),
        &Silent,
        &CancellationToken::new(),
    );
    assert!(error.unwrap_err().to_string().contains("caf\\xE9"));
}

#[test]
fn a_file_that_vanishes_is_left_out_and_the_rest_is_kept() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(root.path().join(name), name).unwrap();
    }
    let doomed = root.path().join("b");
    let kept = Kept::default();
    // Asked between the file's listing and its opening.
    let only = |path: &str| {
        if path == "b" {
            fs::remove_file(&doomed).unwrap();
        }
        true
    };
    let cancel = CancellationToken::new();
    let summary = files::capture_selected(root.path(), &only, &kept, &Silent, &cancel).unwrap();
    assert_eq!(kept.paths(), ["a", "c"]);
    assert_eq!(summary.notes, ["b: vanished before it was read"]);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_told() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log");
    // Larger than what is read at once, so that the sink sees it while it grows.
    fs::write(&path, vec![7; (16 << 20) + 1]).unwrap();
    let growing = path.clone();
    let kept = Kept {
        on_file: Some(Box::new(move |_| {
            let mut file = fs::OpenOptions::new().append(true).open(&growing).unwrap();
            file.write_all(b"more").unwrap();
        })),
        ..Kept::default()
    };
    let summary = capture(root.path(), &kept, &Silent, &CancellationToken::new()).unwrap();
    assert_eq!(summary.changing, ["log"]);
}

#[test]
fn a_file_that_never_stands_still_is_told() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("state");
    fs::write(&path, "").unwrap();
    let stop = CancellationToken::new();
    let writer = std::thread::spawn({
        let (path, stop) = (path.clone(), stop.clone());
        move || {
            let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
            while !stop.is_cancelled() {
                file.write_all(b"x").unwrap();
                std::thread::yield_now();
            }
        }
    });
    // The writer itself may stand still for a while on a busy machine.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let told = std::iter::repeat_with(|| {
        capture(
            root.path(),
            &Kept::default(),
            &Silent,
            &CancellationToken::new(),
        )
        .unwrap()
    })
    .take_while(|_| std::time::Instant::now() < deadline)
    .any(|summary| summary.changing == ["state"]);
    stop.cancel();
    writer.join().unwrap();
    assert!(told, "a file that grew all the time was taken for whole");
    // Now it stands still, and soon is taken as it is.
    let summary = capture(
        root.path(),
        &Kept::default(),
        &Silent,
        &CancellationToken::new(),
    );
    assert_eq!(summary.unwrap().changing, [""; 0]);
}

#[test]
fn a_selection_and_a_cancellation_are_obeyed() {
    let source = sample();
    let kept = Kept::default();
    let only = |path: &str| path.starts_with("a/b");
    let cancel = CancellationToken::new();
    files::capture_selected(source.path(), &only, &kept, &Silent, &cancel).unwrap();
    assert_eq!(
        kept.paths(),
        ["a/b", "a/b/c", "a/b/c/grüße \n odd", "a/b/nothing"]
    );
    cancel.cancel();
    let cancelled = capture(source.path(), &Kept::default(), &Silent, &cancel);
    assert!(
        matches!(cancelled, Err(SourceError::Cancelled { .. })),
        "{cancelled:?}"
    );
    let missing = capture(
        Path::new("/nonexistent"),
        &kept,
        &Silent,
        &CancellationToken::new(),
    );
    assert!(missing.unwrap_err().to_string().contains("/nonexistent"));
    fs::set_permissions(source.path().join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
}

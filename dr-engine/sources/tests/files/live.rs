//! Folders that live on while they are captured, and from one capture to the next.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dr_model::Silent;
use dr_sources::files::{CaptureSummary, FolderWriter, capture, capture_selected};
use dr_sources::{ContentKind, Item, ItemKind, ItemSink, SinkError, SourceError};
use tokio_util::sync::CancellationToken;

use crate::{Kept, captured};

/// Longer than an entry's times are distrusted.
const SETTLED: Duration = Duration::from_millis(1100);

/// Knows what the capture before saw, as a repository does.
#[derive(Default)]
struct Remembering {
    before: BTreeMap<String, (Item, u64)>,
    now: Mutex<BTreeMap<String, (Item, u64)>>,
    read: Mutex<Vec<String>>,
}

impl ItemSink for Remembering {
    fn file(&self, item: &Item, content: &mut dyn Read, _: ContentKind) -> Result<(), SinkError> {
        let size = std::io::copy(content, &mut std::io::sink())?;
        self.read.lock().unwrap().push(item.path.clone());
        let entry = (item.clone(), size);
        self.now.lock().unwrap().insert(item.path.clone(), entry);
        Ok(())
    }

    fn entry(&self, _: &Item) -> Result<(), SinkError> {
        Ok(())
    }

    fn unchanged(&self, item: &Item, size: u64) -> Result<bool, SinkError> {
        let same = self.before.get(&item.path).is_some_and(|(known, length)| {
            (known.modified_ns, known.changed_ns, known.inode, *length)
                == (item.modified_ns, item.changed_ns, item.inode, size)
        });
        if same {
            let entry = (item.clone(), size);
            self.now.lock().unwrap().insert(item.path.clone(), entry);
        }
        Ok(same)
    }
}

impl Remembering {
    /// Captures `root`; returns what had to be read, and the sink for the next capture.
    fn capture(self, root: &Path) -> (Vec<String>, CaptureSummary, Self) {
        let summary = capture(root, &self, &Silent, &CancellationToken::new()).unwrap();
        let mut read = self.read.into_inner().unwrap();
        read.sort();
        let next = Self {
            before: self.now.into_inner().unwrap(),
            ..Self::default()
        };
        (read, summary, next)
    }
}

#[test]
fn a_file_is_read_again_only_when_it_changed_even_with_its_time_set_back() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(root.path().join(name), "first").unwrap();
    }
    std::thread::sleep(SETTLED);
    let (read, summary, sink) = Remembering::default().capture(root.path());
    assert_eq!(read, ["a", "b", "c"]);
    assert_eq!(summary.unchanged, 0);
    let (read, summary, sink) = sink.capture(root.path());
    assert_eq!(read, [""; 0]);
    assert_eq!(
        (summary.files, summary.unchanged, summary.bytes),
        (3, 3, 15)
    );

    let path = root.path().join("b");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "later").unwrap();
    let set = fs::File::options().write(true).open(&path).unwrap();
    set.set_modified(modified).unwrap();
    drop(set);
    // Another file of the same size and time in its place.
    let other = root.path().join("c.new");
    fs::write(&other, "other").unwrap();
    let modified = fs::metadata(root.path().join("c")).unwrap().modified();
    let set = fs::File::options().write(true).open(&other).unwrap();
    set.set_modified(modified.unwrap()).unwrap();
    fs::rename(&other, root.path().join("c")).unwrap();
    std::thread::sleep(SETTLED);
    let (read, summary, _) = sink.capture(root.path());
    assert_eq!(read, ["b", "c"]);
    assert_eq!(summary.unchanged, 1);
}

#[test]
fn a_file_that_was_fresh_when_it_was_captured_is_read_again() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("old"), "settled").unwrap();
    std::thread::sleep(SETTLED);
    // In the same second, so that on a coarse file system another change would bear the same time.
    fs::write(root.path().join("new"), "fresh").unwrap();
    let (_, _, sink) = Remembering::default().capture(root.path());
    assert_eq!(sink.before["new"].0.changed_ns, 0);
    assert!(sink.before["new"].0.modified_ns > 0);
    let (read, _, sink) = sink.capture(root.path());
    assert_eq!(read, ["new"], "captured at once again");
    std::thread::sleep(SETTLED);
    let (read, _, sink) = sink.capture(root.path());
    assert_eq!(read, ["new"], "settled, but it was fresh when it was read");
    let (read, _, sink) = sink.capture(root.path());
    assert_eq!(read, [""; 0]);
    // A time in the future tells nothing either.
    let file = fs::File::options()
        .write(true)
        .open(root.path().join("old"));
    let future = std::time::SystemTime::now() + Duration::from_secs(3600);
    file.unwrap().set_modified(future).unwrap();
    std::thread::sleep(SETTLED);
    let (_, _, sink) = sink.capture(root.path());
    let (read, _, _) = sink.capture(root.path());
    assert_eq!(read, ["old"]);
}

#[test]
fn a_large_file_that_changes_once_is_read_again_and_kept_whole() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("log");
    fs::write(&path, vec![7; 5 << 20]).unwrap();
    let calls = AtomicU32::new(0);
    let growing = path.clone();
    let kept = Kept {
        on_file: Some(Box::new(move |_| {
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                let mut file = fs::OpenOptions::new().append(true).open(&growing).unwrap();
                file.write_all(b"more").unwrap();
            }
        })),
        ..Kept::default()
    };
    let summary = capture(root.path(), &kept, &Silent, &CancellationToken::new()).unwrap();
    assert_eq!(summary.changing, [""; 0]);
    assert_eq!((summary.files, summary.bytes), (1, (5 << 20) + 4));
    let entries = kept.entries.lock().unwrap();
    assert!(entries["log"].1.ends_with(b"\x07more"));
}

#[test]
fn a_very_large_file_is_read_once_and_told_when_it_changed() {
    struct Counting<'a>(&'a Path, AtomicU32);
    impl ItemSink for Counting<'_> {
        fn file(&self, _: &Item, content: &mut dyn Read, _: ContentKind) -> Result<(), SinkError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let mut file = fs::OpenOptions::new().append(true).open(self.0)?;
            file.write_all(b"more")?;
            std::io::copy(content, &mut std::io::sink())?;
            Ok(())
        }
        fn entry(&self, _: &Item) -> Result<(), SinkError> {
            Ok(())
        }
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("disk");
    // A hole: it takes no space.
    let file = fs::File::create(&path).unwrap();
    file.set_len((256 << 20) + 1).unwrap();
    let sink = Counting(&path, AtomicU32::new(0));
    let summary = capture(root.path(), &sink, &Silent, &CancellationToken::new()).unwrap();
    assert_eq!(summary.changing, ["disk"]);
    assert_eq!(sink.1.load(Ordering::Relaxed), 1);
}

#[test]
fn a_folder_that_is_replaced_by_a_link_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "not ours").unwrap();
    let root = tempfile::tempdir().unwrap();
    let door = root.path().join("door");
    fs::create_dir(&door).unwrap();
    fs::write(root.path().join("file"), "ours").unwrap();
    // Asked between looking at the folder and listing it.
    let only = |path: &str| {
        if path == "door" {
            fs::remove_dir(&door).unwrap();
            symlink(outside.path(), &door).unwrap();
        }
        true
    };
    let kept = Kept::default();
    let cancel = CancellationToken::new();
    let summary = capture_selected(root.path(), &only, &kept, &Silent, &cancel).unwrap();
    assert_eq!(kept.paths(), ["door", "file"]);
    assert_eq!(
        summary.notes,
        ["door: was replaced by something that is no folder"]
    );
}

/// Folders of very different sizes.
fn crowd() -> (tempfile::TempDir, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for folder in 0..16 {
        let name = format!("f{folder:02}/a/b");
        fs::create_dir_all(root.path().join(&name)).unwrap();
        paths.extend([name[..3].to_owned(), name[..5].to_owned(), name.clone()]);
        for file in 0..(folder * folder) {
            let path = format!("{name}/{file:05}");
            fs::write(root.path().join(&path), path.as_bytes()).unwrap();
            paths.push(path);
        }
    }
    paths.sort();
    (root, paths)
}

#[test]
fn everything_is_captured_once_by_whichever_thread() {
    let (root, paths) = crowd();
    let kept = captured(root.path());
    assert_eq!(kept.paths(), paths);
    for (path, (item, content)) in &*kept.entries.lock().unwrap() {
        if item.kind == ItemKind::File {
            assert_eq!(content, path.as_bytes());
        }
    }
}

#[test]
fn the_first_failure_of_the_sink_ends_the_capture() {
    struct Refusing(AtomicU32);
    impl ItemSink for Refusing {
        fn file(&self, _: &Item, _: &mut dyn Read, _: ContentKind) -> Result<(), SinkError> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                100 => Err("the repository is full".into()),
                _ => Ok(()),
            }
        }
        fn entry(&self, _: &Item) -> Result<(), SinkError> {
            Ok(())
        }
    }
    let (root, _) = crowd();
    let sink = Refusing(AtomicU32::new(0));
    let error = capture(root.path(), &sink, &Silent, &CancellationToken::new()).unwrap_err();
    assert!(matches!(error, SourceError::Sink { .. }), "{error:?}");
    let taken = sink.0.load(Ordering::Relaxed);
    assert!(taken < 1000, "{taken} files were handed over");
}

#[test]
fn a_cancellation_ends_the_reading_of_a_large_file() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("large"), vec![1; 4 << 20]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let kept = Kept {
        on_file: Some(Box::new(move |_| stop.cancel())),
        ..Kept::default()
    };
    let cancelled = capture(root.path(), &kept, &Silent, &cancel);
    assert!(
        matches!(cancelled, Err(SourceError::Cancelled { .. })),
        "{cancelled:?}"
    );
    assert_eq!(kept.paths(), [""; 0]);
}

#[test]
fn several_threads_put_a_tree_back() {
    let (root, _) = crowd();
    let kept = captured(root.path());
    let target = tempfile::tempdir().unwrap();
    let writer = FolderWriter::open(target.path()).unwrap();
    let entries = kept.entries.lock().unwrap();
    let (files, folders): (Vec<_>, Vec<_>) = entries
        .values()
        .partition(|(item, _)| item.kind == ItemKind::File);
    for (item, _) in folders {
        writer.entry(item).unwrap();
    }
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (files, writer) = (&files, &writer);
            scope.spawn(move || {
                for (item, bytes) in files.iter().skip(part).step_by(4) {
                    let put = writer.file(item, &mut |out| Ok(out.write_all(bytes)?));
                    put.unwrap();
                }
            });
        }
    });
    writer.finish().unwrap();
    assert_eq!(
        crate::described(target.path()),
        crate::described(root.path())
    );
}

#[test]
fn a_folder_that_is_removed_and_made_again_is_written_into() {
    let target = tempfile::tempdir().unwrap();
    let kept = {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("a")).unwrap();
        fs::write(source.path().join("a/b"), "content").unwrap();
        captured(source.path())
    };
    let entries = kept.entries.lock().unwrap();
    let writer = FolderWriter::open(target.path()).unwrap();
    for _ in 0..2 {
        writer.entry(&entries["a"].0).unwrap();
        let put = |out: &mut dyn Write| -> Result<(), SinkError> { Ok(out.write_all(b"content")?) };
        writer.file(&entries["a/b"].0, &mut { put }).unwrap();
        writer.remove("a/b").unwrap();
        writer.remove("a").unwrap();
    }
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

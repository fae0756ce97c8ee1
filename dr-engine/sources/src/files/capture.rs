//! Reading a live folder.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::{Clock, Progress, SystemClock};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::{ContentKind, Item, ItemKind, ItemSink, SinkError, SourceError};

/// How often a file that changes while it is read is tried before it is taken as it is.
pub const ATTEMPTS: u32 = 4;
/// Longer than the tick of any kernel (10 ms at 100 Hz).
const FRESH: Duration = Duration::from_millis(20);
/// How deep folders may be nested: far beyond what people make, and well below what a path holds.
const DEPTH_MAX: usize = 200;
/// Files up to this size are read whole before the sink sees them, so that one that changes meanwhile
/// can be read again. It bounds the memory a capture needs.
const BUFFERED_BYTES_MAX: u64 = 16 << 20;

/// What a capture found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureSummary {
    /// Files, folders and links handed over.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// What was left out, and why; one line each.
    pub notes: Vec<String>,
    /// Files that kept changing while they were read: their stored content may be a mixture.
    pub changing: Vec<String>,
}

struct Walk<'a> {
    root: &'a Path,
    sink: &'a dyn ItemSink,
    only: &'a dyn Fn(&str) -> bool,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
    summary: CaptureSummary,
}

/// Captures everything below `root`; `root` itself is not an item. Blocks.
///
/// # Errors
/// When something that is there cannot be read, a name is not UTF-8, the sink refuses, or `cancel`
/// is triggered.
pub fn capture(
    root: &Path,
    sink: &dyn ItemSink,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<CaptureSummary, SourceError> {
    capture_selected(root, &|_| true, sink, progress, cancel)
}

/// Captures those entries below `root` for whose path `only` holds. Folders are walked whether it
/// holds for them or not. Blocks.
///
/// # Errors
/// As [`capture`].
pub fn capture_selected(
    root: &Path,
    only: &dyn Fn(&str) -> bool,
    sink: &dyn ItemSink,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<CaptureSummary, SourceError> {
    let metadata = fs::metadata(root).map_err(SourceError::file("read", root))?;
    if !metadata.is_dir() {
        return Err(SourceError::Refused(format!(
            "{} is not a folder",
            root.display()
        )));
    }
    progress.phase("reading the folder", None);
    let summary = CaptureSummary::default();
    let mut walk = Walk {
        root,
        sink,
        only,
        progress,
        cancel,
        summary,
    };
    walk.folder("", 0)?;
    Ok(walk.summary)
}

impl Walk<'_> {
    fn folder(&mut self, relative: &str, depth: usize) -> Result<(), SourceError> {
        let path = self.root.join(relative);
        if depth > DEPTH_MAX {
            return Err(SourceError::Refused(format!(
                "{} is nested more than {DEPTH_MAX} folders deep",
                path.display()
            )));
        }
        let listing = match fs::read_dir(&path) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !relative.is_empty() => {
                self.note(format!("{relative}: vanished while the folder was read"));
                return Ok(());
            }
            Err(error) => return Err(SourceError::file("list", &path)(error)),
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(SourceError::file("list", &path))?;
            names.push(entry.file_name().into_string().map_err(|name| {
                SourceError::Refused(format!(
                    "{} has an entry whose name is not UTF-8: {:?}; rename it, because it could \
                     not be restored under its own name",
                    path.display(),
                    name
                ))
            })?);
        }
        // The same order each time keeps what is stored comparable.
        names.sort_unstable();
        for name in names {
            if self.cancel.is_cancelled() {
                return Err(SourceError::Cancelled {
                    what: "reading a folder",
                });
            }
            let child = if relative.is_empty() {
                name
            } else {
                format!("{relative}/{name}")
            };
            self.entry(child, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, relative: String, depth: usize) -> Result<(), SourceError> {
        let path = self.root.join(&relative);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.note(format!("{relative}: vanished before it was read"));
                return Ok(());
            }
            Err(error) => return Err(SourceError::file("examine", &path)(error)),
        };
        let kind = metadata.file_type();
        let wanted = (self.only)(&relative);
        if kind.is_dir() {
            if wanted {
                self.hand_over(&Item::from_metadata(
                    relative.clone(),
                    ItemKind::Folder,
                    &metadata,
                ))?;
            }
            self.folder(&relative, depth + 1)
        } else if !wanted {
            Ok(())
        } else if kind.is_file() {
            self.file(relative, &path)
        } else if kind.is_symlink() {
            self.link(relative, &path, &metadata)
        } else {
            let what = if kind.is_socket() {
                "a socket"
            } else if kind.is_fifo() {
                "a named pipe"
            } else {
                "a device"
            };
            self.note(format!(
                "{relative}: is {what}, which has no content to keep"
            ));
            Ok(())
        }
    }

    fn link(
        &mut self,
        relative: String,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), SourceError> {
        let target = match fs::read_link(path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.note(format!("{relative}: vanished before it was read"));
                return Ok(());
            }
            Err(error) => return Err(SourceError::file("read the link", path)(error)),
        };
        let target = target.into_os_string().into_string().map_err(|target| {
            SourceError::Refused(format!(
                "{} points to a name that is not UTF-8: {target:?}; it could not be restored",
                path.display()
            ))
        })?;
        self.hand_over(&Item::from_metadata(
            relative,
            ItemKind::Link { target },
            metadata,
        ))
    }

    fn file(&mut self, relative: String, path: &Path) -> Result<(), SourceError> {
        for attempt in 1..=ATTEMPTS {
            let Some(mut file) = self.open(&relative, path)? else {
                return Ok(());
            };
            let began = SystemClock.now();
            let before = file
                .metadata()
                .map_err(SourceError::file("examine", path))?;
            if !before.is_file() {
                self.note(format!(
                    "{relative}: was replaced by something that is no file"
                ));
                return Ok(());
            }
            if before.len() > BUFFERED_BYTES_MAX {
                return self.large_file(relative, path, file, &before);
            }
            let mut content = Vec::new();
            (&mut file)
                .take(BUFFERED_BYTES_MAX + 1)
                .read_to_end(&mut content)
                .map_err(SourceError::file("read", path))?;
            let after = file
                .metadata()
                .map_err(SourceError::file("examine", path))?;
            let still = state_of(&before) == state_of(&after)
                && u64::try_from(content.len()).is_ok_and(|length| length == after.len())
                && !is_fresh(&before, began);
            if !still && attempt < ATTEMPTS {
                // Until a change would show in the file's times again.
                std::thread::sleep(FRESH);
                continue;
            }
            if !still {
                self.summary.changing.push(relative.clone());
            }
            let item = Item::from_metadata(relative, ItemKind::File, &before);
            return self.hand_over_file(&item, &mut content.as_slice());
        }
        Ok(())
    }

    /// A file that is too large to be kept in memory goes to the sink as it is read. A sink takes
    /// each path once, so there is no second attempt; a change is told.
    fn large_file(
        &mut self,
        relative: String,
        path: &Path,
        file: File,
        before: &Metadata,
    ) -> Result<(), SourceError> {
        let item = Item::from_metadata(relative, ItemKind::File, before);
        let mut content = file;
        self.hand_over_file(&item, &mut content)?;
        let after = content
            .metadata()
            .map_err(SourceError::file("examine", path))?;
        if state_of(before) != state_of(&after) {
            self.summary.changing.push(item.path);
        }
        Ok(())
    }

    fn open(&mut self, relative: &str, path: &Path) -> Result<Option<File>, SourceError> {
        // Without O_NONBLOCK, a pipe that took the file's place would block us for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => {
                self.note(format!("{relative}: vanished before it was read"));
                Ok(None)
            }
            Err(Errno::LOOP | Errno::NXIO) => {
                self.note(format!(
                    "{relative}: was replaced by something that is no file"
                ));
                Ok(None)
            }
            Err(error) => Err(SourceError::file("read", path)(error.into())),
        }
    }

    fn hand_over_file(&mut self, item: &Item, content: &mut dyn Read) -> Result<(), SourceError> {
        let mut counting = Counting {
            content,
            bytes: 0,
            progress: self.progress,
            cancel: self.cancel,
        };
        let taken = self.sink.file(item, &mut counting, ContentKind::Other);
        let bytes = counting.bytes;
        taken.map_err(|source| self.sink_failed(item, source))?;
        self.summary.files += 1;
        self.summary.entries += 1;
        self.summary.bytes += bytes;
        Ok(())
    }

    fn hand_over(&mut self, item: &Item) -> Result<(), SourceError> {
        self.sink
            .entry(item)
            .map_err(|source| self.sink_failed(item, source))?;
        self.summary.entries += 1;
        Ok(())
    }

    fn sink_failed(&self, item: &Item, source: SinkError) -> SourceError {
        if self.cancel.is_cancelled() {
            SourceError::Cancelled {
                what: "reading a folder",
            }
        } else {
            SourceError::Sink {
                item: item.path.clone(),
                source,
            }
        }
    }

    fn note(&mut self, text: String) {
        self.progress.note(&text);
        self.summary.notes.push(text);
    }
}

/// Whether a file was changed so shortly before its reading began that another change meanwhile may
/// bear the same time: kernels stamp files with the time of their last tick.
fn is_fresh(metadata: &Metadata, began: DateTime<Utc>) -> bool {
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    DateTime::from_timestamp(metadata.ctime(), nanoseconds).is_some_and(|changed| {
        let age = began.signed_duration_since(changed);
        age.abs().to_std().is_ok_and(|age| age < FRESH)
    })
}

/// What changes when a file's content does. The change time cannot be set back by a program, the
/// modification time can.
fn state_of(metadata: &Metadata) -> (u64, u64, i64, i64, i64, i64) {
    (
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

/// Counts what is read, and ends the reading when the work is cancelled.
struct Counting<'a> {
    content: &'a mut dyn Read,
    bytes: u64,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.content.read(buffer)?;
        let bytes = u64::try_from(count).unwrap_or(0);
        self.bytes += bytes;
        self.progress.advance(bytes);
        Ok(count)
    }
}

//! One thread's part of the tree.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dr_model::Progress;
use rustix::fs::{AtFlags, FileType, RawDir, Stat};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::CaptureSummary;
use super::queue::{Listed, Queue, Task, Unlisted};
use super::read::Buffer;
use crate::files::below::open_folder;
use crate::item::nanoseconds;
use crate::{Item, ItemKind, ItemSink, SinkError, SourceError};

/// How deep folders may be nested: far beyond what people make.
const DEPTH_MAX: usize = 200;
/// Some thousand names come with one call.
const LISTING_BYTES: usize = 64 << 10;

/// What all threads of a capture share.
pub(super) struct Shared<'a> {
    pub(super) root: &'a Path,
    pub(super) folder: OwnedFd,
    pub(super) only: &'a (dyn Fn(&str) -> bool + Sync),
    pub(super) sink: &'a dyn ItemSink,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a CancellationToken,
    /// An entry that changed then or later may change again and bear the same time.
    pub(super) racy_from_ns: i64,
    pub(super) queue: Queue,
}

/// One thread.
pub(super) struct Worker<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) summary: CaptureSummary,
    pub(super) buffer: Buffer,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared<'a>) -> Self {
        Self {
            shared,
            summary: CaptureSummary::default(),
            buffer: Buffer::default(),
        }
    }

    /// Works until nothing is left. A failure stops the other threads as well.
    pub(super) fn run(mut self) -> Result<CaptureSummary, SourceError> {
        while let Some((task, _working)) = self.shared.queue.next() {
            let done = match task {
                Task::List(folder) => self.list(folder),
                Task::Capture { folder, from, to } => self.names(&folder, from, to),
            };
            if let Err(error) = done {
                self.shared.queue.stop();
                return Err(error);
            }
        }
        Ok(self.summary)
    }

    fn refuse_cancelled(&self) -> Result<(), SourceError> {
        if self.shared.cancel.is_cancelled() {
            return Err(SourceError::Cancelled {
                what: "reading a folder",
            });
        }
        Ok(())
    }

    fn list(&mut self, unlisted: Unlisted) -> Result<(), SourceError> {
        self.refuse_cancelled()?;
        let path = self.shared.root.join(&unlisted.path);
        if unlisted.depth > DEPTH_MAX {
            return Err(SourceError::Refused(format!(
                "{} is nested more than {DEPTH_MAX} folders deep",
                path.display()
            )));
        }
        let folder = match open_folder(self.shared.folder.as_fd(), &unlisted.path) {
            Ok(folder) => folder,
            Err(Errno::NOENT) if unlisted.depth > 0 => {
                self.note(format!(
                    "{}: vanished while the folder was read",
                    unlisted.path
                ));
                return Ok(());
            }
            Err(Errno::NOTDIR | Errno::LOOP) if unlisted.depth > 0 => {
                self.note(format!(
                    "{}: was replaced by something that is no folder",
                    unlisted.path
                ));
                return Ok(());
            }
            Err(error) => return Err(SourceError::file("list", &path)(error.into())),
        };
        let names = names_of(&folder, &path)?;
        self.shared.queue.add_names(Listed {
            path: unlisted.path,
            depth: unlisted.depth,
            folder,
            names,
        });
        Ok(())
    }

    fn names(&mut self, folder: &Listed, from: usize, to: usize) -> Result<(), SourceError> {
        for name in folder.names.get(from..to).unwrap_or_default() {
            self.refuse_cancelled()?;
            if self.shared.queue.is_stopped() {
                break;
            }
            let child = if folder.path.is_empty() {
                name.clone()
            } else {
                format!("{}/{name}", folder.path)
            };
            self.entry(folder, name, child)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Listed, name: &str, child: String) -> Result<(), SourceError> {
        let stat = match rustix::fs::statat(&folder.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.note(format!("{child}: vanished before it was read"));
                return Ok(());
            }
            Err(error) => return Err(self.failed("examine", &child, error)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let wanted = (self.shared.only)(&child);
        match kind {
            FileType::Directory => {
                if wanted {
                    self.hand_over(&self.item(child.clone(), ItemKind::Folder, &stat))?;
                }
                self.shared.queue.add_folder(Unlisted {
                    path: child,
                    depth: folder.depth + 1,
                });
                Ok(())
            }
            _ if !wanted => Ok(()),
            FileType::RegularFile => self.file(&folder.folder, name, child, &stat),
            FileType::Symlink => self.link(folder, name, child, &stat),
            other => {
                let what = match other {
                    FileType::Socket => "a socket",
                    FileType::Fifo => "a named pipe",
                    _ => "a device",
                };
                self.note(format!("{child}: is {what}, which has no content to keep"));
                Ok(())
            }
        }
    }

    fn link(
        &mut self,
        folder: &Listed,
        name: &str,
        child: String,
        stat: &Stat,
    ) -> Result<(), SourceError> {
        let target = match rustix::fs::readlinkat(&folder.folder, name, Vec::new()) {
            Ok(target) => target,
            Err(Errno::NOENT) => {
                self.note(format!("{child}: vanished before it was read"));
                return Ok(());
            }
            Err(error) => return Err(self.failed("read the link", &child, error)),
        };
        let target = target.into_string().map_err(|error| {
            SourceError::Refused(format!(
                "{} points to a name that is not UTF-8: {:?}; it could not be restored",
                self.path(&child).display(),
                error.into_cstring()
            ))
        })?;
        let item = self.item(child, ItemKind::Link { target }, stat);
        self.hand_over(&item)
    }

    fn hand_over(&mut self, item: &Item) -> Result<(), SourceError> {
        self.shared
            .sink
            .entry(item)
            .map_err(|source| self.sink_failed(item, source))?;
        self.summary.entries += 1;
        Ok(())
    }

    /// Describes an entry. What may change again without that its times tell has no change time.
    pub(super) fn item(&self, path: String, kind: ItemKind, stat: &Stat) -> Item {
        let modified_ns = modified_ns(stat);
        let changed_ns = changed_ns(stat);
        let racy = modified_ns.max(changed_ns) >= self.shared.racy_from_ns;
        Item {
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified_ns,
            changed_ns: if racy { 0 } else { changed_ns },
            inode: stat.st_ino,
        }
    }

    pub(super) fn path(&self, child: &str) -> PathBuf {
        self.shared.root.join(child)
    }

    pub(super) fn failed(&self, action: &'static str, child: &str, error: Errno) -> SourceError {
        SourceError::file(action, &self.path(child))(error.into())
    }

    pub(super) fn sink_failed(&self, item: &Item, source: SinkError) -> SourceError {
        if self.shared.cancel.is_cancelled() {
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

    pub(super) fn note(&mut self, text: String) {
        self.shared.progress.note(&text);
        self.summary.notes.push(text);
    }
}

/// The names in a folder. In the same order each time, which keeps neighbours together in what is
/// stored; without the repetitions that some file systems give while a folder changes.
fn names_of(folder: &OwnedFd, path: &Path) -> Result<Vec<String>, SourceError> {
    let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
    let mut listing = RawDir::new(folder, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(|error| SourceError::file("list", path)(error.into()))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = name.to_str().map_err(|_| {
            SourceError::Refused(format!(
                "{} has an entry whose name is not UTF-8: {:?}; rename it, because it could not be \
                 restored under its own name",
                path.display(),
                std::ffi::OsStr::from_bytes(name.to_bytes())
            ))
        })?;
        names.push(name.to_owned());
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

pub(super) fn modified_ns(stat: &Stat) -> i64 {
    nanoseconds(
        stat.st_mtime,
        i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}

pub(super) fn changed_ns(stat: &Stat) -> i64 {
    nanoseconds(
        stat.st_ctime,
        i64::try_from(stat.st_ctime_nsec).unwrap_or(0),
    )
}

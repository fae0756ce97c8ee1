//! Files that may change while they are read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use dr_model::{Clock, Progress, SystemClock};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::ATTEMPTS;
use super::walk::{Worker, changed_ns, modified_ns};
use crate::{ContentKind, Item, ItemKind, SourceError};

/// Longer than the tick of any kernel (10 ms at 100 Hz).
const FRESH: Duration = Duration::from_millis(20);
/// Files up to this size are read whole before the sink sees them, so that the sink has no work with
/// one that changes meanwhile.
pub(super) const BUFFERED_BYTES_MAX: usize = 1 << 20;
/// Larger files are not read again: what is that large and changes is a log, a disk image or a
/// database, and would have changed again by the time it was read.
const READ_AGAIN_BYTES_MAX: u64 = 256 << 20;

/// Where small files are read into. Made once, and only if it is needed.
#[derive(Debug, Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// One byte more than a buffered file may have: so that growing shows.
    fn get(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; BUFFERED_BYTES_MAX + 1];
        }
        &mut self.0
    }
}

impl Worker<'_> {
    pub(super) fn file(
        &mut self,
        folder: &OwnedFd,
        name: &str,
        child: String,
        stat: &Stat,
    ) -> Result<(), SourceError> {
        let item = self.item(child, ItemKind::File, stat);
        if item.changed_ns != 0 && item.inode != 0 {
            let size = size(stat);
            let unchanged = self.shared.sink.unchanged(&item, size);
            if unchanged.map_err(|source| self.sink_failed(&item, source))? {
                self.summary.unchanged += 1;
                self.shared.progress.advance(size);
                self.count(size);
                return Ok(());
            }
        }
        self.read(folder, name, item.path)
    }

    /// Reads a file until it stands still, or for the last time.
    fn read(&mut self, folder: &OwnedFd, name: &str, child: String) -> Result<(), SourceError> {
        let mut told = 0;
        let mut attempt = 1;
        loop {
            let Some(file) = self.open(folder, name, &child)? else {
                return Ok(());
            };
            let began = SystemClock.now().timestamp_nanos_opt().unwrap_or(0);
            let before = self.stat(&file, &child)?;
            if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
                self.note(format!(
                    "{child}: was replaced by something that is no file"
                ));
                return Ok(());
            }
            let fresh = is_fresh(&before, began);
            let last = attempt >= ATTEMPTS;
            if !fresh || last {
                let item = self.item(child.clone(), ItemKind::File, &before);
                let taken = if size(&before) > BUFFERED_BYTES_MAX as u64 {
                    self.large(&item, &file, &before, last, &mut told)?
                } else {
                    self.small(&item, &file, &before, last)?
                };
                match taken {
                    Taken::Whole(bytes) if !fresh => {
                        self.count(bytes);
                        return Ok(());
                    }
                    Taken::Whole(bytes) | Taken::Changing(bytes) => {
                        self.count(bytes);
                        self.summary.changing.push(child);
                        return Ok(());
                    }
                    Taken::Not => {}
                }
            }
            // Until a change would show in the file's times again.
            std::thread::sleep(FRESH);
            attempt += 1;
        }
    }

    fn small(
        &mut self,
        item: &Item,
        file: &File,
        before: &Stat,
        last: bool,
    ) -> Result<Taken, SourceError> {
        let expected = size(before);
        let length = fill(file, self.buffer.get(), expected)
            .map_err(SourceError::file("read", &self.path(&item.path)))?;
        let after = self.stat(file, &item.path)?;
        let bytes = length as u64;
        let still = state_of(before) == state_of(&after) && bytes == expected;
        if !still && !last {
            return Ok(Taken::Not);
        }
        let mut content = self.buffer.get().get(..length).unwrap_or_default();
        let taken = self
            .shared
            .sink
            .file(item, &mut content, ContentKind::Other);
        taken.map_err(|source| self.sink_failed(item, source))?;
        self.shared.progress.advance(bytes);
        Ok(if still {
            Taken::Whole(bytes)
        } else {
            Taken::Changing(bytes)
        })
    }

    /// A file that is too large to be kept in memory goes to the sink as it is read.
    fn large(
        &mut self,
        item: &Item,
        file: &File,
        before: &Stat,
        last: bool,
        told: &mut u64,
    ) -> Result<Taken, SourceError> {
        let mut content = Steady {
            file,
            before: state_of(before),
            as_it_is: last || size(before) > READ_AGAIN_BYTES_MAX,
            changed: false,
            bytes: 0,
            told,
            progress: self.shared.progress,
            cancel: self.shared.cancel,
        };
        let taken = self
            .shared
            .sink
            .file(item, &mut content, ContentKind::Other);
        let (bytes, changed, as_it_is) = (content.bytes, content.changed, content.as_it_is);
        match taken {
            Err(_) if changed && !as_it_is => Ok(Taken::Not),
            Err(source) => Err(self.sink_failed(item, source)),
            Ok(()) if changed => Ok(Taken::Changing(bytes)),
            Ok(()) => Ok(Taken::Whole(bytes)),
        }
    }

    fn open(
        &mut self,
        folder: &OwnedFd,
        name: &str,
        child: &str,
    ) -> Result<Option<File>, SourceError> {
        // Without O_NONBLOCK, a pipe that took the file's place would block us for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => {
                self.note(format!("{child}: vanished before it was read"));
                Ok(None)
            }
            Err(Errno::LOOP | Errno::NXIO) => {
                self.note(format!(
                    "{child}: was replaced by something that is no file"
                ));
                Ok(None)
            }
            Err(error) => Err(self.failed("read", child, error)),
        }
    }

    fn stat(&self, file: &File, child: &str) -> Result<Stat, SourceError> {
        rustix::fs::fstat(file).map_err(|error| self.failed("examine", child, error))
    }

    fn count(&mut self, bytes: u64) {
        self.summary.files += 1;
        self.summary.entries += 1;
        self.summary.bytes += bytes;
    }
}

/// What became of an attempt.
enum Taken {
    /// The file has this many bytes and did not change.
    Whole(u64),
    /// It changed and was taken all the same.
    Changing(u64),
    /// It changed; the sink does not have it.
    Not,
}

/// Reads to the end of a file that should have `expected` bytes. The attempt to read one more is
/// spared: the caller asks for the file's size again anyway.
fn fill(mut file: &File, buffer: &mut [u8], expected: u64) -> io::Result<usize> {
    let mut length = 0;
    loop {
        let free = buffer.get_mut(length..).unwrap_or_default();
        if free.is_empty() {
            return Ok(length);
        }
        match file.read(free) {
            Ok(0) => return Ok(length),
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if length as u64 == expected {
            return Ok(length);
        }
    }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Whether a file was changed so shortly before its reading began that another change meanwhile may
/// bear the same time: kernels stamp files with the time of their last tick.
fn is_fresh(stat: &Stat, began_ns: i64) -> bool {
    let age = Duration::from_nanos(began_ns.abs_diff(changed_ns(stat)));
    age < FRESH
}

/// What changes when a file's content does. The change time cannot be set back by a program, the
/// modification time can.
type FileState = (u64, u64, i64, i64);

fn state_of(stat: &Stat) -> FileState {
    (stat.st_ino, size(stat), modified_ns(stat), changed_ns(stat))
}

/// The content of a large file. Ends in an error when the file changed while it was read, unless it is
/// to be taken as it is, or when the work is cancelled.
struct Steady<'a> {
    file: &'a File,
    before: FileState,
    as_it_is: bool,
    changed: bool,
    bytes: u64,
    /// Bytes told as progress, of all attempts.
    told: &'a mut u64,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
}

impl Read for Steady<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.file.read(buffer)?;
        let bytes = count as u64;
        self.bytes += bytes;
        if self.bytes > *self.told {
            self.progress.advance(self.bytes - *self.told);
            *self.told = self.bytes;
        }
        if count == 0 && !buffer.is_empty() {
            let after = rustix::fs::fstat(self.file)?;
            self.changed = state_of(&after) != self.before || self.bytes != size(&after);
            if self.changed && !self.as_it_is {
                return Err(io::Error::other("the file changed while it was read"));
            }
        }
        Ok(count)
    }
}

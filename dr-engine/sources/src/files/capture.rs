//! Reading a live folder, with several threads.
//!
//! **Work** is shared through one queue ([`queue`]). A thread that has nothing to do takes names of a
//! folder that was listed already, and only when there are none, a folder to list. So at most one
//! folder per thread is open for its names, however many files and folders there are, and a folder of
//! a million files keeps every thread busy as well as a million folders of one file.
//!
//! **Memory** is bounded by the names of those folders, the paths of folders not listed yet, and
//! [`read::BUFFERED_BYTES_MAX`] for each thread.
//!
//! **Order** is left to chance; a sink that wants one sorts by path. What the summary lists is sorted.
//!
//! **Files that change** while they are read are read again: small ones before the sink sees them,
//! larger ones by ending the sink's reader in an error, upon which it forgets the file.
//!
//! **Unchanged files** are offered to the sink by what lstat(2) says of them. A change that comes so
//! soon after a reading that it bears the same time would never be found that way. Therefore an entry
//! that changed less than [`RACY`] before its capture began, or after, is handed over without its
//! change time, as one that no later capture may take for unchanged (git's index has the same rule).
//! What this cannot see is a program that goes on writing through a memory map for more than that: the
//! kernel gives a page a new time only at the first write after the page went to disk.

mod queue;
mod read;
mod walk;

use std::num::NonZero;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dr_model::{Clock, Progress, SystemClock};
use rustix::fs::{Mode, OFlags};
use tokio_util::sync::CancellationToken;

use self::queue::Queue;
use self::walk::{Shared, Worker};
use crate::{ItemSink, SourceError};

/// How often a file that changes while it is read is tried before it is taken as it is.
pub const ATTEMPTS: u32 = 4;
/// Longer than the resolution of change times of any file system worth a backup.
const RACY: Duration = Duration::from_secs(1);
/// Two, because one waits for the disk while another computes.
const THREADS_MIN: usize = 2;
/// More threads only wait for each other in the kernel's locks of one folder.
const THREADS_MAX: usize = 8;

/// What a capture found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureSummary {
    /// Files, folders and links handed over.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Files among them that the sink had already: they were not read.
    pub unchanged: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// What was left out, and why; one line each.
    pub notes: Vec<String>,
    /// Files that kept changing while they were read: their stored content may be a mixture.
    pub changing: Vec<String>,
}

impl CaptureSummary {
    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.files += other.files;
        self.unchanged += other.unchanged;
        self.bytes += other.bytes;
        self.notes.extend(other.notes);
        self.changing.extend(other.changing);
    }
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
    only: &(dyn Fn(&str) -> bool + Sync),
    sink: &dyn ItemSink,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<CaptureSummary, SourceError> {
    let metadata = std::fs::metadata(root).map_err(SourceError::file("read", root))?;
    if !metadata.is_dir() {
        return Err(SourceError::Refused(format!(
            "{} is not a folder",
            root.display()
        )));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|error| SourceError::file("read", root)(error.into()))?;
    let threads = threads();
    let shared = Shared {
        root,
        folder,
        only,
        sink,
        progress,
        cancel,
        racy_from_ns: racy_from_ns(),
        queue: Queue::new(threads),
    };
    run(&shared, threads)
}

fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(THREADS_MIN, NonZero::get)
        .clamp(THREADS_MIN, THREADS_MAX)
}

/// What changed at this moment or later may change again and bear the same time.
fn racy_from_ns() -> i64 {
    let racy = i64::try_from(RACY.as_nanos()).unwrap_or(i64::MAX);
    let now = SystemClock.now().timestamp_nanos_opt();
    now.map_or(i64::MIN, |now| now.saturating_sub(racy))
}

fn run(shared: &Shared<'_>, threads: usize) -> Result<CaptureSummary, SourceError> {
    let result = Mutex::new(Ok(CaptureSummary::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let done = Worker::new(shared).run();
                let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                match (done, result.as_mut()) {
                    (Ok(part), Ok(whole)) => whole.add(part),
                    (Err(error), Ok(_)) => *result = Err(error),
                    // The first failure is the one that is told.
                    (_, Err(_)) => {}
                }
            });
        }
    });
    let mut summary = result
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)?;
    summary.notes.sort_unstable();
    summary.changing.sort_unstable();
    Ok(summary)
}

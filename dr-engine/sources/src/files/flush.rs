//! Making many files durable at once.
//!
//! An fsync(2) for each of many small files waits for the disk as many times. syncfs(2) writes
//! everything a file system has not written yet and waits once. It is as good as the many only when
//! three things hold, and each is asked for before anything is written:
//!
//! * The kernel tells its errors: Linux does so since 5.8, of everything that failed after the
//!   descriptor used was opened. So the descriptors are opened first.
//! * The call is not filtered.
//! * The file system itself ends up on its disk by it. Network file systems and those in user space
//!   may only hand their data on; they are not in [`WHOLE`].
//!
//! Where one does not hold, each file is flushed by itself. An error of syncfs(2) is an error, never
//! the occasion to try fsync(2): after a failed write the kernel may hold the pages for clean.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::SourceError;

/// File systems of this host's own disks and memory (statfs(2)): ext2 to ext4, XFS, Btrfs, tmpfs,
/// overlayfs, F2FS, ZFS, bcachefs.
const WHOLE: [u64; 8] = [
    0xEF53,
    0x5846_5342,
    0x9123_683E,
    0x0102_1994,
    0x794C_7630,
    0xF2F5_2010,
    0x2FC1_2FC1,
    0xCA45_1A4E,
];
/// The first release whose syncfs(2) tells of failed writes.
const RELEASE_TELLING: (u32, u32) = (5, 8);

/// The file systems that something is written to. Made before the first write.
#[derive(Debug, Default)]
pub struct Flush {
    systems: Mutex<Vec<System>>,
}

#[derive(Debug)]
struct System {
    device: u64,
    /// A descriptor for syncfs(2), and a path to name in an error; none where each file has to be
    /// flushed by itself.
    whole: Option<(OwnedFd, PathBuf)>,
}

impl Flush {
    /// Includes the file system of `folder`, into which nothing was written yet. Says whether
    /// [`Self::flush`] will make durable what is written there; else each file has to be.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn include(&self, folder: BorrowedFd<'_>, path: &Path) -> Result<bool, SourceError> {
        let failed = |error: Errno| SourceError::file("examine", path)(error.into());
        let device = rustix::fs::fstat(folder).map_err(failed)?.st_dev;
        let mut systems = self.systems.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = systems.iter().find(|system| system.device == device) {
            return Ok(known.whole.is_some());
        }
        let kind = rustix::fs::fstatfs(folder).map_err(failed)?.f_type;
        let whole = if WHOLE.contains(&u64::try_from(kind).unwrap_or(0)) && kernel_tells() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(folder, ".", flags, Mode::empty()).map_err(failed)?;
            Some((opened, path.to_owned()))
        } else {
            None
        };
        let is_whole = whole.is_some();
        systems.push(System { device, whole });
        Ok(is_whole)
    }

    /// As [`Self::include`], by path.
    ///
    /// # Errors
    /// When it is no folder or cannot be examined.
    pub fn include_path(&self, folder: &Path) -> Result<bool, SourceError> {
        let opened = std::fs::File::open(folder).map_err(SourceError::file("open", folder))?;
        self.include(opened.as_fd(), folder)
    }

    /// Makes everything durable that was written to the file systems included as a whole.
    ///
    /// # Errors
    /// When anything was not written. It is lost then, and writing it again is the only remedy.
    pub fn flush(&self) -> Result<(), SourceError> {
        let systems = self.systems.lock().unwrap_or_else(PoisonError::into_inner);
        for (folder, path) in systems.iter().filter_map(|system| system.whole.as_ref()) {
            rustix::fs::syncfs(folder).map_err(|error| {
                SourceError::file("flush the file system of", path)(error.into())
            })?;
        }
        Ok(())
    }
}

/// Whether syncfs(2) can be called and tells of failed writes.
fn kernel_tells() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let uname = rustix::system::uname();
        let release = uname.release().to_str().ok().and_then(release_of);
        release.is_some_and(|release| release >= RELEASE_TELLING) && can_be_called()
    })
}

/// A descriptor that stands for a path only is refused with `EBADF` (open(2), `O_PATH`), unless a
/// filter refuses the call before that.
fn can_be_called() -> bool {
    rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .is_ok_and(|folder| rustix::fs::syncfs(folder) == Err(Errno::BADF))
}

/// The first two numbers of a kernel's release.
fn release_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_hides_failed_writes_is_not_relied_upon() {
        assert_eq!(release_of("5.7.19-rc1"), Some((5, 7)));
        assert_eq!(release_of("6.18.44-generic"), Some((6, 18)));
        assert_eq!(release_of("unknown"), None);
        assert!((5, 7) < RELEASE_TELLING && (5, 10) >= RELEASE_TELLING);
    }

    #[test]
    fn a_file_system_in_user_space_is_flushed_file_by_file() {
        const FUSE: u64 = 0x6573_5546;
        const NFS: u64 = 0x6969;
        assert!(!WHOLE.contains(&FUSE) && !WHOLE.contains(&NFS));
        // The kernel's own information, which nothing makes durable.
        let flush = Flush::default();
        assert!(!flush.include_path(Path::new("/proc")).unwrap());
        flush.flush().unwrap();
    }

    #[test]
    fn each_file_system_is_included_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        let flush = Flush::default();
        let whole = flush.include_path(folder.path()).unwrap();
        assert_eq!(flush.include_path(&folder.path().join("a")).unwrap(), whole);
        assert_eq!(flush.systems.lock().unwrap().len(), 1);
        flush.flush().unwrap();
    }
}

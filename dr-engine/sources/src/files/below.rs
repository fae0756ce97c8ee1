//! Opening what lies below a folder, through no link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How folders are opened: a link or a file of that name is refused.
pub(super) const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens the folder `relative` below `root`; `root` itself when it is empty. No component may be a
/// link: then it is `ENOTDIR` or `ELOOP`, whichever the kernel likes.
pub(super) fn open_folder(root: BorrowedFd<'_>, relative: &str) -> Result<OwnedFd, Errno> {
    if relative.is_empty() {
        // Opened anew: a duplicate would share its place in the listing.
        return rustix::fs::openat(root, ".", FOLDER_FLAGS, Mode::empty());
    }
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(root, relative, FOLDER_FLAGS, Mode::empty(), resolve) {
        // Before Linux 5.6, under a filter of system calls, or when the path is longer than one call
        // takes.
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::AGAIN | Errno::NAMETOOLONG) => {
            step_by_step(root, relative)
        }
        other => other,
    }
}

fn step_by_step(root: BorrowedFd<'_>, relative: &str) -> Result<OwnedFd, Errno> {
    let mut folder = None::<OwnedFd>;
    for part in relative.split('/') {
        if matches!(part, "" | "." | "..") {
            return Err(Errno::INVAL);
        }
        let from = folder.as_ref().map_or(root, AsFd::as_fd);
        folder = Some(rustix::fs::openat(from, part, FOLDER_FLAGS, Mode::empty())?);
    }
    folder.ok_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_followed_whichever_way_a_folder_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::create_dir(outside.path().join("b")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("door")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let at = std::fs::File::open(root.path()).unwrap();
        for open in [open_folder, step_by_step] {
            assert!(open(at.as_fd(), "a/b").is_ok());
            for bad in ["door", "door/b", "file", "a/../door", "..", "a/../.."] {
                assert!(open(at.as_fd(), bad).is_err(), "{bad} was opened");
            }
            assert_eq!(open(at.as_fd(), "a/c").err(), Some(Errno::NOENT));
        }
        // Deeper than one path may be long.
        let name = "d".repeat(250);
        let mut folder = open_folder(at.as_fd(), "a").unwrap();
        for _ in 0..20 {
            rustix::fs::mkdirat(&folder, &*name, Mode::from_raw_mode(0o700)).unwrap();
            folder = rustix::fs::openat(&folder, &*name, FOLDER_FLAGS, Mode::empty()).unwrap();
        }
        let deep = format!("a/{}", vec![name; 20].join("/"));
        assert!(open_folder(at.as_fd(), &deep).is_ok());
    }
}

//! Writing entries below one folder, and nowhere else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::{Item, ItemKind, SinkError, SourceError};

const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Writes, replaces and removes entries below one folder. Blocks. Call [`Self::finish`] at the end:
/// only then are the folders' own modes, owners and times right, and everything is durable.
#[derive(Debug)]
pub struct FolderWriter {
    root: PathBuf,
    folder: OwnedFd,
    /// Owners are put back only by root; anyone else's files are their own.
    as_root: bool,
    folders: Vec<Item>,
}

/// Checks that a stored path is relative and stays below the folder it is put into.
///
/// # Errors
/// A sentence naming the path.
pub fn safe_path(path: &str) -> Result<(), SourceError> {
    let bad = path.is_empty()
        || path.contains('\0')
        || path
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..");
    if bad {
        return Err(SourceError::Refused(format!(
            "the stored path {path:?} does not stay inside the folder it is put into"
        )));
    }
    Ok(())
}

impl FolderWriter {
    /// Begins writing below `root`, which must exist.
    ///
    /// # Errors
    /// When it is not a folder that can be opened.
    pub fn open(root: &Path) -> Result<Self, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|error| SourceError::file("open", root)(error.into()))?;
        let as_root = rustix::process::geteuid().is_root();
        Ok(Self {
            root: root.to_owned(),
            folder,
            as_root,
            folders: Vec::new(),
        })
    }

    /// Writes a regular file with what `content` produces. Whatever file or link had its name is
    /// replaced at once, when the new one is complete and durable.
    ///
    /// # Errors
    /// When a folder above it is missing or a link, when `content` fails, or when it cannot be
    /// written; the former file is untouched then.
    pub fn file(
        &self,
        item: &Item,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), SinkError>,
    ) -> Result<(), SourceError> {
        let (parent, name) = self.parent(&item.path)?;
        let temporary = format!(".dr-part-{}", dr_model::random::hex(8));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.root.join(&item.path);
        let file = rustix::fs::openat(
            &parent,
            temporary.as_str(),
            flags,
            Mode::from_raw_mode(0o600),
        )
        .map_err(|error| SourceError::file("write", &path)(error.into()))?;
        let written = self
            .fill(File::from(file), item, content)
            .and_then(|()| {
                rustix::fs::renameat(&parent, temporary.as_str(), &parent, name)
                    .map_err(|error| SourceError::file("replace", &path)(error.into()))
            })
            .and_then(|()| sync(parent.as_fd(), &path));
        if written.is_err() {
            // After a successful rename there is nothing of this name any more.
            let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
        }
        written
    }

    fn fill(
        &self,
        mut file: File,
        item: &Item,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), SinkError>,
    ) -> Result<(), SourceError> {
        let path = self.root.join(&item.path);
        let mut buffered = io::BufWriter::with_capacity(1 << 16, &mut file);
        content(&mut buffered).map_err(|source| SourceError::Sink {
            item: item.path.clone(),
            source,
        })?;
        buffered
            .flush()
            .map_err(SourceError::file("write", &path))?;
        drop(buffered);
        self.describe(file.as_fd(), item)?;
        file.sync_all().map_err(SourceError::file("flush", &path))
    }

    /// Makes a folder or a link. An existing folder is kept with its content; an existing file or
    /// link gives way to a link, nothing else gives way to anything.
    ///
    /// # Errors
    /// When a folder above it is missing or a link, something else has its name, or it cannot be
    /// made.
    pub fn entry(&mut self, item: &Item) -> Result<(), SourceError> {
        match &item.kind {
            ItemKind::Folder => self.make_folder(item),
            ItemKind::Link { target } => self.make_link(item, target),
            ItemKind::File => Err(SourceError::Refused(format!(
                "`{}` is a file and comes with content",
                item.path
            ))),
        }
    }

    fn make_folder(&mut self, item: &Item) -> Result<(), SourceError> {
        let (parent, name) = self.parent(&item.path)?;
        let path = self.root.join(&item.path);
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => sync(parent.as_fd(), &path)?,
            Err(Errno::EXIST) => {
                // Opened without following: a link of this name is refused here.
                let folder = open_folder(parent.as_fd(), name, &path)?;
                self.let_us_write(folder.as_fd(), &path)?;
            }
            Err(error) => return Err(SourceError::file("make the folder", &path)(error.into())),
        }
        self.folders.push(item.clone());
        Ok(())
    }

    /// A folder without `w` would keep its own owner from writing into it; root is not kept. Its mode
    /// is put on by [`Self::finish`].
    fn let_us_write(&self, folder: BorrowedFd<'_>, path: &Path) -> Result<(), SourceError> {
        let failed = |error: Errno| SourceError::file("examine", path)(error.into());
        let mode = rustix::fs::fstat(folder).map_err(failed)?.st_mode & 0o7777;
        if !self.as_root && mode & 0o700 != 0o700 {
            // Of a folder that is someone else's, the writing itself tells whether it may be done.
            let _ = rustix::fs::fchmod(folder, Mode::from_raw_mode(mode | 0o700));
        }
        Ok(())
    }

    fn make_link(&self, item: &Item, target: &str) -> Result<(), SourceError> {
        let (parent, name) = self.parent(&item.path)?;
        let path = self.root.join(&item.path);
        let failed = |error: Errno| SourceError::file("make the link", &path)(error.into());
        let temporary = format!(".dr-part-{}", dr_model::random::hex(8));
        rustix::fs::symlinkat(target, &parent, temporary.as_str()).map_err(failed)?;
        let made = (|| {
            if self.as_root {
                let (uid, gid) = owner(item);
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&parent, temporary.as_str(), uid, gid, flags)?;
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(&parent, temporary.as_str(), &times(item), flags)?;
            rustix::fs::renameat(&parent, temporary.as_str(), &parent, name)
        })();
        if made.is_err() {
            let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
        }
        made.map_err(failed)?;
        sync(parent.as_fd(), &path)
    }

    /// Removes a file, a link or an empty folder; what is already gone is fine.
    ///
    /// # Errors
    /// When a folder above it is a link, a folder is not empty, or it cannot be removed.
    pub fn remove(&self, relative: &str) -> Result<(), SourceError> {
        let path = self.root.join(relative);
        let (parent, name) = match self.parent(relative) {
            Err(SourceError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            other => other?,
        };
        let removed = match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match removed {
            Ok(()) => sync(parent.as_fd(), &path),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(SourceError::file("remove", &path)(error.into())),
        }
    }

    /// Puts mode, owner and time on the folders written, innermost first, and makes them durable.
    ///
    /// # Errors
    /// When one of them cannot be changed or flushed.
    pub fn finish(mut self) -> Result<(), SourceError> {
        let mut folders = std::mem::take(&mut self.folders);
        folders.sort_by(|a, b| b.path.cmp(&a.path));
        for item in &folders {
            let (parent, name) = self.parent(&item.path)?;
            let path = self.root.join(&item.path);
            let folder = open_folder(parent.as_fd(), name, &path)?;
            self.describe(folder.as_fd(), item)?;
            sync(folder.as_fd(), &path)?;
        }
        sync(self.folder.as_fd(), &self.root)
    }

    /// Opens the folder an entry lies in, one component after the other, following no link.
    fn parent<'p>(&self, relative: &'p str) -> Result<(OwnedFd, &'p str), SourceError> {
        safe_path(relative)?;
        let mut folder = self
            .folder
            .try_clone()
            .map_err(SourceError::file("open", &self.root))?;
        let mut path = self.root.clone();
        let (above, name) = relative.rsplit_once('/').unwrap_or(("", relative));
        for part in above.split('/').filter(|part| !part.is_empty()) {
            path.push(part);
            folder = open_folder(folder.as_fd(), part, &path)?;
        }
        Ok((folder, name))
    }

    fn describe(&self, entry: BorrowedFd<'_>, item: &Item) -> Result<(), SourceError> {
        let path = self.root.join(&item.path);
        let set = || {
            if self.as_root {
                let (uid, gid) = owner(item);
                rustix::fs::fchown(entry, uid, gid)?;
            }
            // After the owner: changing it clears the set-user-id bits.
            rustix::fs::fchmod(entry, Mode::from_raw_mode(item.mode & 0o7777))?;
            rustix::fs::futimens(entry, &times(item))
        };
        set().map_err(|error: Errno| {
            SourceError::file("set mode, owner and time of", &path)(error.into())
        })
    }
}

fn open_folder(parent: BorrowedFd<'_>, name: &str, path: &Path) -> Result<OwnedFd, SourceError> {
    rustix::fs::openat(parent, name, FOLDER_FLAGS, Mode::empty()).map_err(|error| match error {
        // Linux says ENOTDIR for a link with O_DIRECTORY|O_NOFOLLOW, others ELOOP (open(2)).
        Errno::NOTDIR | Errno::LOOP => SourceError::Refused(format!(
            "{} is not a folder (a link or a file has its place); nothing was written through it",
            path.display()
        )),
        other => SourceError::file("open", path)(other.into()),
    })
}

fn sync(folder: BorrowedFd<'_>, path: &Path) -> Result<(), SourceError> {
    rustix::fs::fsync(folder).map_err(|error| SourceError::file("flush", path)(error.into()))
}

fn owner(item: &Item) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(item.uid)), Some(Gid::from_raw(item.gid)))
}

fn times(item: &Item) -> Timestamps {
    let at = Timespec {
        tv_sec: item.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: item.modified_ns.rem_euclid(1_000_000_000),
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}

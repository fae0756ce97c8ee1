//! Writing entries below one folder, and nowhere else.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::below::{FOLDER_FLAGS, open_folder};
use super::early::EarlyWrites;
use super::flush::Flush;
use crate::{Item, ItemKind, SinkError, SourceError};

/// Up to so many entries are flushed one by one all the same: a whole file system may have to write what
/// others left unwritten, gigabytes of it, before it says that our few are there.
const FEW_MAX: usize = 64;
/// Folders kept open: one for each thread that writes, and as many again for changing over.
const FOLDERS_OPEN_MAX: usize = 16;

/// Writes, replaces and removes entries below one folder. Blocks. May be used by several threads at
/// once; a folder has to be made before what is in it. Call [`Self::finish`] at the end: only then are
/// the folders' own modes, owners and times right, and everything is durable.
#[derive(Debug)]
pub struct FolderWriter {
    root: PathBuf,
    folder: OwnedFd,
    /// Owners are put back only by root; anyone else's files are their own.
    as_root: bool,
    flush: Flush,
    folders: Mutex<Vec<Item>>,
    unflushed: Mutex<Unflushed>,
    /// The folders used last.
    open: Mutex<VecDeque<Arc<Parent>>>,
    /// Temporary names are this and a number.
    temporary: String,
    next: AtomicU64,
}

/// What is not durable yet.
#[derive(Debug)]
enum Unflushed {
    /// These files, if they are files, and the folders they are in.
    Few(Vec<(Option<File>, Arc<Parent>)>),
    Many,
}

impl Unflushed {
    fn add(&mut self, file: Option<File>, parent: &Arc<Parent>) {
        match self {
            Self::Few(few) if few.len() < FEW_MAX => few.push((file, Arc::clone(parent))),
            Self::Few(_) => *self = Self::Many,
            Self::Many => {}
        }
    }
}

/// The folder of an entry.
#[derive(Debug)]
struct Parent {
    path: String,
    folder: OwnedFd,
    /// Flushed at the end, with everything else there.
    whole: bool,
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
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
        let flush = Flush::default();
        flush.include(folder.as_fd(), root)?;
        Ok(Self {
            root: root.to_owned(),
            folder,
            as_root: rustix::process::geteuid().is_root(),
            flush,
            folders: Mutex::default(),
            unflushed: Mutex::new(Unflushed::Few(Vec::new())),
            open: Mutex::default(),
            temporary: format!(".dr-part-{}", dr_model::random::hex(8)),
            next: AtomicU64::new(0),
        })
    }

    /// Writes a regular file with what `content` produces. Whatever file or link had its name is
    /// replaced at once, when the new one is complete and durable. Where nothing had its name, it gets
    /// it when it is complete, and [`Self::finish`] makes it durable.
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
        let temporary = self.temporary_name();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.root.join(&item.path);
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&parent, temporary.as_str(), flags, mode)
            .map_err(|error| SourceError::file("write", &path)(error.into()))?;
        let mut file = File::from(file);
        let written = self
            .fill(&mut file, item, content)
            .and_then(|()| self.name_file(file, &parent, &temporary, name, &path));
        if written.is_err() {
            // After a successful rename there is nothing of this name any more.
            let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
        }
        written
    }

    fn fill(
        &self,
        file: &mut File,
        item: &Item,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), SinkError>,
    ) -> Result<(), SourceError> {
        let path = self.root.join(&item.path);
        let mut buffered = io::BufWriter::with_capacity(1 << 16, EarlyWrites::to(file));
        content(&mut buffered).map_err(|source| SourceError::Sink {
            item: item.path.clone(),
            source,
        })?;
        buffered
            .flush()
            .map_err(SourceError::file("write", &path))?;
        drop(buffered);
        self.describe(file.as_fd(), item)
    }

    /// Gives a complete file its name. What it replaces was durable, so it has to be durable first.
    fn name_file(
        &self,
        file: File,
        parent: &Arc<Parent>,
        temporary: &str,
        name: &str,
        path: &Path,
    ) -> Result<(), SourceError> {
        let new = RenameFlags::NOREPLACE;
        if parent.whole && rustix::fs::renameat_with(parent, temporary, parent, name, new) == Ok(())
        {
            self.unflushed().add(Some(file), parent);
            return Ok(());
        }
        // The name is taken, or the file system cannot tell, or it is not flushed as a whole.
        file.sync_all().map_err(SourceError::file("flush", path))?;
        rustix::fs::renameat(parent, temporary, parent, name)
            .map_err(|error| SourceError::file("replace", path)(error.into()))?;
        sync(parent.as_fd(), path)
    }

    /// A name was made in `parent`.
    fn made(&self, parent: &Arc<Parent>, path: &Path) -> Result<(), SourceError> {
        if parent.whole {
            self.unflushed().add(None, parent);
            return Ok(());
        }
        sync(parent.as_fd(), path)
    }

    fn unflushed(&self) -> MutexGuard<'_, Unflushed> {
        self.unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary_name(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.temporary)
    }

    /// Makes a folder or a link. An existing folder is kept with its content; an existing file or
    /// link gives way to a link, nothing else gives way to anything.
    ///
    /// # Errors
    /// When a folder above it is missing or a link, something else has its name, or it cannot be
    /// made.
    pub fn entry(&self, item: &Item) -> Result<(), SourceError> {
        match &item.kind {
            ItemKind::Folder => self.make_folder(item),
            ItemKind::Link { target } => self.make_link(item, target),
            ItemKind::File => Err(SourceError::Refused(format!(
                "`{}` is a file and comes with content",
                item.path
            ))),
        }
    }

    fn make_folder(&self, item: &Item) -> Result<(), SourceError> {
        let (parent, name) = self.parent(&item.path)?;
        let path = self.root.join(&item.path);
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => self.made(&parent, &path)?,
            Err(Errno::EXIST) => {
                // Opened without following: a link of this name is refused here.
                let folder = rustix::fs::openat(&parent, name, FOLDER_FLAGS, Mode::empty())
                    .map_err(|error| cannot_open(error, &path))?;
                self.let_us_write(folder.as_fd(), &path)?;
            }
            Err(error) => return Err(SourceError::file("make the folder", &path)(error.into())),
        }
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        folders.push(item.clone());
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
        let temporary = self.temporary_name();
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
        self.made(&parent, &path)
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
            Err(Errno::ISDIR) => {
                // It may be among those kept open, and be made again.
                let open = &mut *self.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.clear();
                rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
            }
            other => other,
        };
        match removed {
            Ok(()) => sync(parent.as_fd(), &path),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(SourceError::file("remove", &path)(error.into())),
        }
    }

    /// Puts mode, owner and time on the folders written, innermost first, and makes everything
    /// durable.
    ///
    /// # Errors
    /// When one of them cannot be changed or anything cannot be flushed.
    pub fn finish(mut self) -> Result<(), SourceError> {
        let folders = self.folders.get_mut();
        let mut folders = std::mem::take(folders.unwrap_or_else(PoisonError::into_inner));
        folders.sort_by(|a, b| b.path.cmp(&a.path));
        let none = Unflushed::Few(Vec::new());
        let unflushed = std::mem::replace(&mut *self.unflushed(), none);
        let is_few = matches!(unflushed, Unflushed::Few(_));
        for item in &folders {
            let path = self.root.join(&item.path);
            let folder = self.open_folder(&item.path)?;
            self.describe(folder.as_fd(), item)?;
            if is_few || !folder.whole {
                sync(folder.as_fd(), &path)?;
            }
        }
        let Unflushed::Few(few) = unflushed else {
            return self.flush.flush();
        };
        for (file, parent) in &few {
            let path = self.root.join(&parent.path);
            if let Some(file) = file {
                file.sync_all().map_err(SourceError::file("flush", &path))?;
            }
            sync(parent.as_fd(), &path)?;
        }
        Ok(())
    }

    /// Opens the folder an entry lies in, following no link.
    fn parent<'p>(&self, relative: &'p str) -> Result<(Arc<Parent>, &'p str), SourceError> {
        safe_path(relative)?;
        let (above, name) = relative.rsplit_once('/').unwrap_or(("", relative));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parent) = open.iter().find(|parent| parent.path == above) {
            return Ok((Arc::clone(parent), name));
        }
        drop(open);
        let parent = Arc::new(self.open_folder(above)?);
        open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.truncate(FOLDERS_OPEN_MAX - 1);
        open.push_front(Arc::clone(&parent));
        Ok((parent, name))
    }

    fn open_folder(&self, relative: &str) -> Result<Parent, SourceError> {
        let path = self.root.join(relative);
        let folder = open_folder(self.folder.as_fd(), relative)
            .map_err(|error| cannot_open(error, &path))?;
        let whole = self.flush.include(folder.as_fd(), &path)?;
        Ok(Parent {
            path: relative.to_owned(),
            folder,
            whole,
        })
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

fn cannot_open(error: Errno, path: &Path) -> SourceError {
    match error {
        // Linux says ENOTDIR for a link with O_DIRECTORY|O_NOFOLLOW, others ELOOP (open(2)).
        Errno::NOTDIR | Errno::LOOP => SourceError::Refused(format!(
            "{} is not a folder (a link or a file has its place); nothing was written through it",
            path.display()
        )),
        other => SourceError::file("open", path)(other.into()),
    }
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

//! Objects as files in a folder.
//!
//! An object is written to a temporary file in its own folder, fsynced, renamed to its name without
//! replacing anything, and its folder fsynced. A folder that this process has not yet made sure of is
//! fsynced in its parent, up to the root: whoever made it may have died before doing so. The same
//! holds when an object is found to exist already: only then is "it is there" as good as "stored".
//!
//! A crash leaves temporary files (names beginning with `.tmp-`), which no listing shows and
//! [`Backend::sweep`] removes when old. A failed fsync is an error for good: the kernel may have
//! dropped the pages, so that a second fsync would succeed and mean nothing.
//!
//! The folder must hold the `repository` object. Without it an absent object proves nothing: the disk
//! may not be mounted.

use std::collections::HashSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::{CWD, RenameFlags};

use super::{
    Backend, BackendError, Capabilities, ObjectEntry, PutOptions, PutOutcome, check_name,
    try_capabilities,
};
use crate::format::repository;
use crate::testing::kill_point;

const TEMPORARY: &str = ".tmp-";
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// A repository in a folder.
#[derive(Debug)]
pub struct LocalBackend {
    root: PathBuf,
    /// Set by `prepare`: the `repository` object is about to be written.
    being_made: AtomicBool,
    /// Folders whose entries, up to the root, are known to be durable.
    durable: Mutex<HashSet<PathBuf>>,
}

fn note(_operation: &str, _paths: &[&Path]) {
    #[cfg(feature = "testing")]
    crate::testing::note(_operation, _paths);
}

/// Puts a file system's answer in an operator's words.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackendError {
    let place = path.display().to_string();
    move |source| match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => BackendError::NotPermitted {
            action,
            place,
            user: format!("user {}", rustix::process::geteuid().as_raw()),
            source,
        },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BackendError::Full {
            action,
            place,
            source,
        },
        _ => BackendError::Io {
            action,
            place,
            source,
        },
    }
}

fn fsync_folder(path: &Path) -> Result<(), BackendError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("fsync folder", path))?;
    note("fsync-folder", &[path]);
    Ok(())
}

/// Started as root, what is made here belongs to whom its folder belongs to: else the service's own
/// user could not read it.
fn give_to_owner_of(folder: &Metadata, path: &Path) -> Result<(), BackendError> {
    if rustix::process::geteuid().is_root() && (folder.uid() != 0 || folder.gid() != 0) {
        std::os::unix::fs::lchown(path, Some(folder.uid()), Some(folder.gid()))
            .map_err(failed("set the owner of", path))?;
    }
    Ok(())
}

/// Removes a temporary file on every way out but the good one.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // What stays behind is ignored by everyone and swept later.
            let _ = fs::remove_file(path);
        }
    }
}

impl LocalBackend {
    /// The repository in this folder. Nothing is touched yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            being_made: AtomicBool::new(false),
            durable: Mutex::new(HashSet::new()),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, BackendError> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    /// An error unless the folder is there and is a repository (or becomes one).
    fn is_there(&self) -> Result<(), BackendError> {
        let marker = self.root.join(repository::NAME);
        let probed = if self.being_made.load(Ordering::Relaxed) {
            &self.root
        } else {
            &marker
        };
        match fs::symlink_metadata(probed) {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Err(BackendError::FolderMissing {
                    place: self.describe(),
                })
            }
            Err(error) => Err(failed("look at", probed)(error)),
        }
    }

    /// `None` for an absent object, if absence means anything here.
    fn absent<T>(&self, name: &str) -> Result<Option<T>, BackendError> {
        if name == repository::NAME {
            let root = fs::metadata(&self.root);
            return match root {
                Ok(found) if found.is_dir() => Ok(None),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    Err(failed("look at", &self.root)(error))
                }
                _ => Err(BackendError::FolderMissing {
                    place: self.describe(),
                }),
            };
        }
        self.is_there().map(|()| None)
    }

    /// Makes the folders down to `folder` and makes sure that their entries are durable.
    fn make_folder(&self, folder: &Path) -> Result<(), BackendError> {
        let known = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(folder) {
            return Ok(());
        }
        if folder != self.root {
            let parent = folder.parent().unwrap_or(&self.root);
            self.make_folder(parent)?;
            create_folder(folder, parent)?;
            fsync_folder(parent)?;
        }
        known().insert(folder.to_owned());
        Ok(())
    }

    fn write_new(
        &self,
        path: &Path,
        folder: &Path,
        body: &[u8],
    ) -> Result<PutOutcome, BackendError> {
        let owner = fs::metadata(folder).map_err(failed("look at", folder))?;
        let temporary = folder.join(format!(
            "{TEMPORARY}{}-{}",
            std::process::id(),
            dr_model::random::hex(8)
        ));
        note("create", &[&temporary]);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&temporary)
            .map_err(failed("create a file in", folder))?;
        let mut cleanup = Temporary(Some(temporary.clone()));
        file.write_all(body).map_err(failed("write", path))?;
        give_to_owner_of(&owner, &temporary)?;
        kill_point("store.local.after-write");
        file.sync_all().map_err(failed("fsync", path))?;
        note("fsync-file", &[&temporary]);
        drop(file);
        kill_point("store.local.after-fsync");
        note("rename", &[&temporary, path]);
        let outcome = rename_new(&temporary, path)?;
        if outcome == PutOutcome::Stored {
            cleanup.0 = None;
        }
        kill_point("store.local.after-rename");
        fsync_folder(folder)?;
        Ok(outcome)
    }

    /// Refuses a folder that holds anything but what an unfinished attempt left (or a file system's
    /// own `lost+found`): hidden files and empty folders, which no listing shows, are someone's too.
    fn is_free(&self) -> Result<(), BackendError> {
        for entry in fs::read_dir(&self.root).map_err(failed("list", &self.root))? {
            let name = entry.map_err(failed("list", &self.root))?.file_name();
            let name = name.to_string_lossy();
            let ours = ["keys", "lost+found", repository::NAME].contains(&name.as_ref());
            if !ours && !name.starts_with(TEMPORARY) {
                return Err(BackendError::NotEmpty {
                    place: self.describe(),
                    example: name.into_owned(),
                });
            }
        }
        Ok(())
    }

    fn walk(
        &self,
        folder: &Path,
        prefix: &str,
        out: &mut Vec<ObjectEntry>,
    ) -> Result<(), BackendError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            // A folder comes with its first object.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", folder)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("list", folder))?;
            let path = entry.path();
            let Some(name) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) else {
                continue;
            };
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let found = match entry.metadata() {
                Ok(found) => found,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("look at", &path)(error)),
            };
            if found.is_dir() {
                let below = format!("{name}/");
                if below.starts_with(prefix) || prefix.starts_with(&below) {
                    self.walk(&path, prefix, out)?;
                }
            } else if name.starts_with(prefix) {
                out.push(ObjectEntry {
                    name: name.to_owned(),
                    size: found.len(),
                    modified: modified(&found),
                });
            }
        }
        Ok(())
    }

    fn sweep_folder(&self, folder: &Path, age: Duration) -> Result<u64, BackendError> {
        let mut removed = 0;
        for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
            let entry = entry.map_err(failed("list", folder))?;
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.is_dir() {
                removed += self.sweep_folder(&entry.path(), age)?;
            } else if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                let old = found.modified().ok().and_then(|at| at.elapsed().ok());
                if old.is_some_and(|old| old >= age) && fs::remove_file(entry.path()).is_ok() {
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// A file's modification time, which is the file server's own where the folder is mounted from one.
fn modified(metadata: &Metadata) -> DateTime<Utc> {
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    DateTime::from_timestamp(metadata.mtime(), nanoseconds).unwrap_or_default()
}

fn create_folder(folder: &Path, parent: &Path) -> Result<(), BackendError> {
    if folder.is_dir() {
        return Ok(());
    }
    note("mkdir", &[folder]);
    match fs::DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Ok(()) => {
            let owner = fs::metadata(parent).map_err(failed("look at", parent))?;
            give_to_owner_of(&owner, folder)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("create folder", folder)(error)),
    }
}

/// Renames unless the target exists; by a hard link where the file system lacks the flag.
fn rename_new(from: &Path, to: &Path) -> Result<PutOutcome, BackendError> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(PutOutcome::Stored),
        Err(Errno::EXIST) => return Ok(PutOutcome::Exists),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
        Err(error) => return Err(failed("rename into place", to)(error.into())),
    }
    match fs::hard_link(from, to) {
        Ok(()) => {
            fs::remove_file(from).map_err(failed("remove", from))?;
            Ok(PutOutcome::Stored)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(PutOutcome::Exists),
        Err(error) => Err(failed("link into place", to)(error)),
    }
}

impl Backend for LocalBackend {
    fn describe(&self) -> String {
        self.root.display().to_string()
    }

    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        let path = self.path(name)?;
        if options.retain_until.is_some() {
            return Err(self.not_supported("lock an object of"));
        }
        if options.storage_class.is_some() {
            return Err(self.not_supported("choose the storage class of an object of"));
        }
        self.is_there()?;
        let folder = path.parent().unwrap_or(&self.root);
        self.make_folder(folder)?;
        if fs::symlink_metadata(&path).is_ok() {
            fsync_folder(folder)?;
            return Ok(PutOutcome::Exists);
        }
        self.write_new(&path, folder, &body)
    }

    /// One that writes and one that waits for the disk.
    fn requests_at_once(&self) -> usize {
        2
    }

    /// The time that a new file gets.
    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.is_there()?;
        let path = self.root.join(format!(
            "{TEMPORARY}{}-{}",
            std::process::id(),
            dr_model::random::hex(8)
        ));
        let _cleanup = Temporary(Some(path.clone()));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)
            .and_then(|file| file.metadata())
            .map(|metadata| modified(&metadata))
            .map_err(failed("read the clock of", &self.root))
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let path = self.path(name)?;
        match fs::read(&path) {
            Ok(body) => Ok(Some(body)),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                self.absent(name)
            }
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let path = self.path(name)?;
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return self.absent(name);
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let read = || {
            // Grown while it is read, megabytes would be moved again and again.
            let left = file.metadata()?.len().saturating_sub(offset);
            let room = usize::try_from(length.min(left)).unwrap_or_default();
            let mut body = Vec::with_capacity(room);
            file.seek(SeekFrom::Start(offset))?;
            file.take(length).read_to_end(&mut body)?;
            Ok(body)
        };
        read().map(Some).map_err(failed("read", &path))
    }

    fn expect(&self, name: &str, offset: u64, length: u64) {
        if let Ok(path) = self.path(name)
            && let Ok(file) = File::open(path)
        {
            let length = std::num::NonZero::new(length);
            let _ = rustix::fs::fadvise(file, offset, length, rustix::fs::Advice::WillNeed);
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        self.is_there()?;
        // From the deepest folder that the prefix names.
        let folder = match prefix.rsplit_once('/') {
            Some((folder, _)) => self.path(folder)?,
            None => self.root.clone(),
        };
        let mut found = Vec::new();
        self.walk(&folder, prefix, &mut found)?;
        // Unmounted meanwhile, the listing would be short.
        self.is_there()?;
        found.sort();
        Ok(found)
    }

    fn delete(&self, name: &str) -> Result<(), BackendError> {
        let path = self.path(name)?;
        note("delete", &[&path]);
        match fs::remove_file(&path) {
            Ok(()) => fsync_folder(path.parent().unwrap_or(&self.root)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.absent::<()>(name).map(|_| ())
            }
            Err(error) => Err(failed("delete", &path)(error)),
        }
    }

    /// Makes the folder if its parent is there or can be made.
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        let mut missing: Vec<&Path> = Vec::new();
        let mut above = Some(self.root.as_path());
        while let Some(folder) = above.filter(|folder| !folder.as_os_str().is_empty()) {
            if folder.is_dir() {
                break;
            }
            missing.push(folder);
            above = folder.parent();
        }
        for folder in missing.into_iter().rev() {
            let parent = match folder.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            create_folder(folder, parent)?;
            fsync_folder(parent)?;
        }
        self.is_free()?;
        self.being_made.store(true, Ordering::Relaxed);
        self.probe_capabilities()
    }

    /// A rename that does not replace is atomic on every file system that we know of; it is tried all
    /// the same. Nothing is sent over a network of ours and there are no parts.
    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        let tried = try_capabilities(self)?;
        Ok(Capabilities {
            put_if_absent_multipart: tried.put_if_absent,
            checksum_md5: true,
            checksum_sha256: true,
            etag_is_md5: true,
            ..tried
        })
    }

    fn assume(&self, _capabilities: Capabilities) {
        self.being_made.store(false, Ordering::Relaxed);
    }

    fn sweep(&self, age: Duration) -> Result<u64, BackendError> {
        self.is_there()?;
        self.sweep_folder(&self.root, age)
    }
}

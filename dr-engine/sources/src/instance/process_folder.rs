//! Folders that go with the process that made them: removed when their handle is dropped, however that ends; those
//! of a process that was killed, by the next one that looks for them.
//!
//! Whether a process is dead, its number does not say: another process may have it by now, and one in another
//! container is not to be seen. So a folder holds a file that is locked (flock) for as long as its process lives;
//! the kernel lets go of it, however that ends. A folder whose lock can be taken is dead. The standard library opens
//! files so that programs do not inherit them: a server that outlives its process does not keep the lock.
//!
//! A folder must not be seen by others before its lock is held. So it is made under another name, and gets its
//! own by a rename when the file in it is locked: a lock belongs to the open file, not to its name. What a process
//! leaves that is killed before the rename holds nothing yet; it goes when it is older than [`UNBORN_MAX`].
//! (Should somebody stop for that long just there, the rename fails and nothing was begun.) Programs of before wrote
//! their number only: theirs are still judged by that.
//!
//! Clearing may be killed as well. A server below the folder is stopped first, and the lock stays taken until all is
//! gone; a folder that lost its owner file on the way is judged by its age, as one that was not begun.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::postgres::{PostgresInstance, StopMode};
use super::process::is_alive;
use super::run_as::{RunAs, give};
use crate::SourceError;

/// Behind the name of a folder that is being made.
const UNBORN: &str = ".new";
/// Locked while its process lives; says which that is.
const OWNER_FILE: &str = "owner";
/// What the owner file begins with where the lock decides. Programs of before take it for no number, and leave
/// the folder alone.
const LOCKED: &str = "locked by ";
/// Making a folder takes no time that people could measure.
const UNBORN_MAX: Duration = Duration::from_secs(3600);

/// Which folders are meant, and what goes with one.
#[derive(Debug, Clone, Copy)]
pub struct FolderKind {
    /// Of every folder's name, before its id.
    pub prefix: &'static str,
    /// Whether what stands behind the prefix can be an id; anything else is somebody else's folder.
    pub is_id: fn(&str) -> bool,
    /// Where in it a PostgreSQL server may serve a data directory, or a link to one: it is stopped before the folder
    /// of a dead process goes.
    pub server: Option<&'static str>,
    /// The folder that goes with the one of this name, if there is any; whoever wants it makes it.
    pub elsewhere: fn(&str) -> Option<PathBuf>,
}

/// A folder that goes with its handle.
#[derive(Debug)]
pub struct ProcessFolder {
    path: PathBuf,
    elsewhere: Option<PathBuf>,
    /// Let go of when the folder is gone.
    _lock: Option<File>,
}

impl ProcessFolder {
    /// Makes the folder with this id below `parent`, which has to exist. Nobody but `run_as` may enter it, or
    /// without one this process's own user. The file in it stays this process's.
    ///
    /// # Errors
    /// When it cannot be made, locked or given away; nothing is left behind.
    pub fn create(
        kind: &FolderKind,
        parent: &Path,
        id: &str,
        run_as: Option<&RunAs>,
    ) -> Result<Self, SourceError> {
        let name = format!("{}{id}", kind.prefix);
        let unborn = parent.join(format!("{name}{UNBORN}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&unborn)
            .map_err(SourceError::file("create", &unborn))?;
        // From here on it goes with the handle.
        let mut folder = Self {
            path: unborn.clone(),
            elsewhere: None,
            _lock: None,
        };
        let owner = unborn.join(OWNER_FILE);
        let mut options = OpenOptions::new();
        // For whoever may enter the folder: its user clears it away too.
        let options = options.write(true).create_new(true).mode(0o644);
        let mut file = options
            .open(&owner)
            .map_err(SourceError::file("create", &owner))?;
        file.try_lock()
            .map_err(std::io::Error::from)
            .map_err(SourceError::file("lock", &owner))?;
        write!(file, "{LOCKED}{}", std::process::id())
            .map_err(SourceError::file("write", &owner))?;
        folder._lock = Some(file);
        give(&unborn, run_as)?;
        let path = parent.join(&name);
        std::fs::rename(&unborn, &path).map_err(SourceError::file("rename", &unborn))?;
        folder.path = path;
        folder.elsewhere = (kind.elsewhere)(&name);
        Ok(folder)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Clears away what dead processes left below `parent`, a running server first. What cannot be cleared away is
    /// left for the next time.
    pub fn clear_left_behind(kind: &FolderKind, parent: &Path) {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let name = name.strip_suffix(UNBORN).unwrap_or(name);
            if name.strip_prefix(kind.prefix).is_some_and(kind.is_id) {
                clear(kind, entry.path(), name);
            }
        }
    }
}

impl Drop for ProcessFolder {
    fn drop(&mut self) {
        for path in std::iter::once(&self.path).chain(&self.elsewhere) {
            if let Err(error) = std::fs::remove_dir_all(path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a folder could not be removed");
            }
        }
    }
}

fn clear(kind: &FolderKind, path: PathBuf, name: &str) {
    let Verdict::Dead(lock) = judge(&path) else {
        return;
    };
    let elsewhere = (kind.elsewhere)(name);
    if let Some(server) = kind.server
        && let Err(error) = stop(&path, server, elsewhere.as_deref())
    {
        tracing::warn!(path = %path.display(), %error, "a server left behind does not stop");
        return;
    }
    drop(ProcessFolder {
        path,
        elsewhere,
        _lock: lock,
    });
}

/// Stops the server that a dead process left, if it runs: the one whose sockets are in its folder, or where they go
/// with it. What is reached by a link may have been started by somebody else since, to be used.
fn stop(path: &Path, server: &str, elsewhere: Option<&Path>) -> Result<(), SourceError> {
    let data = path.join(server);
    // In a place where anybody may make folders, a link in one must not end somebody else's server.
    let owner = |path: &Path| std::fs::metadata(path).map(|found| found.uid()).ok();
    if owner(path) != owner(&data) {
        return Ok(());
    }
    match PostgresInstance::attach(&data) {
        Ok(running) => {
            let mut own = std::iter::once(path).chain(elsewhere);
            match own.any(|folder| running.listens_below(folder)) {
                true => running.stop(StopMode::Immediate),
                // Its handle would stop it when it goes.
                false => {
                    running.leave_running();
                    Ok(())
                }
            }
        }
        Err(_) => Ok(()),
    }
}

enum Verdict {
    /// Or it may: then it is left alone.
    Lives,
    /// With its lock, where it has one. It stays taken until the folder is gone, so that two that clear do not meet.
    Dead(Option<File>),
}

fn judge(path: &Path) -> Verdict {
    let is_unborn = path.to_string_lossy().ends_with(UNBORN);
    let owner = path.join(OWNER_FILE);
    let said = std::fs::read_to_string(&owner).unwrap_or_default();
    let is_locked = said.starts_with(LOCKED) && !is_unborn;
    if !is_locked && let Ok(pid) = said.trim().parse::<u32>() {
        return if is_alive(pid) {
            Verdict::Lives
        } else {
            Verdict::Dead(None)
        };
    }
    if !is_locked && !is_old(path) {
        return Verdict::Lives;
    }
    match File::open(&owner) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Verdict::Dead(Some(file)),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Verdict::Lives,
        },
        // Whoever cleared it was killed over it.
        Err(error) if error.kind() == ErrorKind::NotFound => Verdict::Dead(None),
        Err(_) => Verdict::Lives,
    }
}

fn is_old(path: &Path) -> bool {
    let written = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let age = written.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > UNBORN_MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::*;

    const KIND: FolderKind = FolderKind {
        prefix: "dr-kept-",
        is_id: |id| id.len() == 3,
        server: None,
        elsewhere: |name| name.ends_with('1').then(|| beside(name)),
    };

    fn beside(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("{name}-{}", std::process::id()))
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// A folder as somebody left it.
        fn folder(&self, name: &str, owner: Option<&str>) -> PathBuf {
            let path = self.0.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("rows"), "a tenant's").unwrap();
            if let Some(owner) = owner {
                fs::write(path.join(OWNER_FILE), owner).unwrap();
            }
            path
        }

        fn clear(&self) {
            ProcessFolder::clear_left_behind(&KIND, self.0.path());
        }

        /// As if all were written two hours ago.
        fn clear_later(&self) {
            let then = SystemTime::now() - 2 * UNBORN_MAX;
            for entry in fs::read_dir(self.0.path()).unwrap() {
                let folder = File::open(entry.unwrap().path()).unwrap();
                folder.set_modified(then).unwrap();
            }
            self.clear();
        }
    }

    /// No process has it: the kernel's limit is 2^22.
    const NOBODY: u32 = 1 << 30;

    #[test]
    fn a_folder_lives_as_long_as_its_lock_whatever_its_process_is_called() {
        let place = Place::new();
        let own = ProcessFolder::create(&KIND, place.0.path(), "aaa", None).unwrap();
        assert_eq!(own.path(), place.0.path().join("dr-kept-aaa"));
        // Of another container: no such process here.
        let owner = own.path().join(OWNER_FILE);
        fs::write(owner, format!("{LOCKED}{NOBODY}")).unwrap();
        // Of a dead process, whose number another one has.
        let alive = format!("{LOCKED}{}", std::process::id());
        let reused = place.folder("dr-kept-bbb", Some(&alive));
        place.clear_later();
        assert!(own.path().join(OWNER_FILE).is_file());
        assert!(!reused.exists());
        let path = own.path().to_owned();
        drop(own);
        assert!(!path.exists());
    }

    #[test]
    fn folders_of_earlier_programs_are_judged_by_their_process() {
        let place = Place::new();
        let living = place.folder("dr-kept-aaa", Some(&std::process::id().to_string()));
        let dead = place.folder("dr-kept-bbb", Some(&NOBODY.to_string()));
        place.clear_later();
        assert!(living.exists() && !dead.exists());
    }

    #[test]
    fn what_was_not_begun_or_half_cleared_goes_when_it_is_old() {
        let place = Place::new();
        let locked = format!("{LOCKED}{NOBODY}");
        let left = [
            place.folder("dr-kept-aaa.new", None),
            place.folder("dr-kept-bbb.new", Some("")),
            place.folder("dr-kept-ccc.new", Some(&locked)),
            place.folder("dr-kept-ddd", None),
        ];
        let foreign = [
            place.folder("dr-kept-something", None),
            place.folder("dr-else", None),
        ];
        place.clear();
        assert!(left.iter().all(|path| path.exists()));
        place.clear_later();
        assert!(left.iter().all(|path| !path.exists()), "{left:?}");
        assert!(foreign.iter().all(|path| path.exists()));
    }

    #[test]
    fn what_lies_elsewhere_goes_with_its_folder() {
        let place = Place::new();
        let own = ProcessFolder::create(&KIND, place.0.path(), "aa1", None).unwrap();
        place.folder("dr-kept-bb1", Some(&NOBODY.to_string()));
        let (kept, left) = (beside("dr-kept-aa1"), beside("dr-kept-bb1"));
        assert_eq!(own.elsewhere.as_ref(), Some(&kept));
        for path in [&kept, &left] {
            fs::create_dir(path).unwrap();
        }
        place.clear();
        assert!(kept.exists() && !left.exists());
        drop(own);
        assert!(!kept.exists());
    }
}

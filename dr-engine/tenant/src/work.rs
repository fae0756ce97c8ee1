//! The work folder of one tenant restore: change sets with the tenant's rows in plain text, so readable
//! by nobody else, and removed when the restore is over, however it ends; that of a process that was killed,
//! by the next restore.
//!
//! Whether a process is dead, its number does not say: another process may have it by now, and one in another
//! container is not to be seen. So a folder holds a file that is locked (flock) for as long as its process lives;
//! the kernel lets go of it, however that ends. A folder whose lock can be taken is dead.
//!
//! A folder must not be seen by others before its lock is held. So it is made under another name, and gets its
//! own by a rename when the file in it is locked: a lock belongs to the open file, not to its name. What a process
//! leaves that is killed before the rename holds nothing of a tenant; it goes when it is older than [`UNBORN_MAX`].
//! (Should somebody stop for that long just there, the rename fails and nothing was begun.) Programs of before wrote
//! their number only: theirs are still judged by that.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dr_model::TenantRestoreId;
use dr_sources::instance::is_alive;

use crate::TenantError;

/// Of every work folder, before the restore's id.
const PREFIX: &str = "dr-";
/// Of one that is being made, behind it.
const UNBORN: &str = ".new";
/// Locked while its process lives; says which that is.
const OWNER_FILE: &str = "owner";
/// What the owner file begins with where the lock decides. Programs of before take it for no number, and leave
/// the folder alone.
const LOCKED: &str = "locked by ";
/// Making a folder takes no time that people could measure.
const UNBORN_MAX: Duration = Duration::from_secs(3600);

/// Where work folders and scratch instances go: `TMPDIR`, else `/var/tmp`, which is on a disk.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A folder that goes with its handle.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    /// Let go of when the folder is gone.
    _lock: Option<File>,
}

impl WorkFolder {
    pub(crate) fn create(id: &TenantRestoreId) -> Result<Self, TenantError> {
        clear_left_behind(&base(), SystemTime::now());
        Self::create_in(&base(), id)
    }

    fn create_in(parent: &Path, id: &TenantRestoreId) -> Result<Self, TenantError> {
        let unborn = parent.join(format!("{PREFIX}{id}{UNBORN}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&unborn)
            .map_err(TenantError::file("create", &unborn))?;
        // From here on it goes with the handle.
        let mut folder = Self {
            path: unborn.clone(),
            _lock: None,
        };
        let owner = folder.path(OWNER_FILE);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        let mut file = file
            .open(&owner)
            .map_err(TenantError::file("create", &owner))?;
        file.try_lock()
            .map_err(std::io::Error::from)
            .map_err(TenantError::file("lock", &owner))?;
        write!(file, "{LOCKED}{}", std::process::id())
            .map_err(TenantError::file("write", &owner))?;
        folder._lock = Some(file);
        let path = parent.join(format!("{PREFIX}{id}"));
        std::fs::rename(&unborn, &path).map_err(TenantError::file("rename", &unborn))?;
        folder.path = path;
        Ok(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder in it, empty.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf, TenantError> {
        let path = self.path(name);
        crate::rows::recreate(&path)?;
        Ok(path)
    }
}

/// Removes what dead processes left: a tenant's rows are not to lie about. What cannot be removed is left for the
/// next time.
fn clear_left_behind(parent: &Path, now: SystemTime) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let id = id.map(|id| id.strip_suffix(UNBORN).unwrap_or(id));
        if id.is_none_or(|id| id.parse::<TenantRestoreId>().is_err()) {
            continue;
        }
        drop(dead(&entry.path(), now));
    }
}

/// A folder of a dead process, to be dropped. The lock stays taken until it is gone, so that two that clear do not
/// meet.
fn dead(path: &Path, now: SystemTime) -> Option<WorkFolder> {
    let dead = |lock| {
        Some(WorkFolder {
            path: path.to_owned(),
            _lock: lock,
        })
    };
    let is_unborn = path.to_string_lossy().ends_with(UNBORN);
    let owner = path.join(OWNER_FILE);
    let said = std::fs::read_to_string(&owner).unwrap_or_default();
    let is_locked = said.starts_with(LOCKED) && !is_unborn;
    if !is_locked && let Ok(pid) = said.trim().parse::<u32>() {
        // Not made and then left: it would remove the folder.
        return if is_alive(pid) { None } else { dead(None) };
    }
    if !is_locked && !is_old(path, now) {
        return None;
    }
    match File::open(&owner) {
        Ok(file) => match file.try_lock() {
            Ok(()) => dead(Some(file)),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
        },
        // Whoever cleared it was killed over it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => dead(None),
        Err(_) => None,
    }
}

fn is_old(path: &Path, now: SystemTime) -> bool {
    let written = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let age = written.ok().and_then(|at| now.duration_since(at).ok());
    age.is_some_and(|age| age > UNBORN_MAX)
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a work folder could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// A folder as somebody left it.
        fn folder(&self, ending: &str, owner: Option<&str>) -> PathBuf {
            let id = TenantRestoreId::new(chrono::Utc::now());
            let path = self.0.path().join(format!("{PREFIX}{id}{ending}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("rows"), "a tenant's").unwrap();
            if let Some(owner) = owner {
                fs::write(path.join(OWNER_FILE), owner).unwrap();
            }
            path
        }

        fn clear(&self, later: Duration) {
            clear_left_behind(self.0.path(), SystemTime::now() + later);
        }
    }

    /// No process has it: the kernel's limit is 2^22.
    const NOBODY: u32 = 1 << 30;
    const NOW: Duration = Duration::ZERO;
    const LATER: Duration = Duration::from_secs(2 * 3600);

    #[test]
    fn a_folder_lives_as_long_as_its_lock_whatever_its_process_is_called() {
        let place = Place::new();
        let id = TenantRestoreId::new(chrono::Utc::now());
        let own = WorkFolder::create_in(place.0.path(), &id).unwrap();
        // Of another container: no such process here.
        fs::write(own.path(OWNER_FILE), format!("{LOCKED}{NOBODY}")).unwrap();
        // Of a dead process, whose number another one has.
        let alive = std::process::id();
        let reused = place.folder("", Some(&format!("{LOCKED}{alive}")));
        place.clear(LATER);
        assert!(own.path("").is_dir());
        assert!(!reused.exists());
        let path = own.path("");
        drop(own);
        assert!(!path.exists());
    }

    #[test]
    fn folders_of_earlier_programs_are_judged_by_their_process() {
        let place = Place::new();
        let living = place.folder("", Some(&std::process::id().to_string()));
        let dead = place.folder("", Some(&NOBODY.to_string()));
        place.clear(LATER);
        assert!(living.exists() && !dead.exists());
    }

    #[test]
    fn what_was_not_begun_or_half_cleared_goes_when_it_is_old() {
        let place = Place::new();
        let left = [
            place.folder(UNBORN, None),
            place.folder(UNBORN, Some("")),
            place.folder(UNBORN, Some(&format!("{LOCKED}{NOBODY}"))),
            place.folder("", None),
        ];
        let foreign = place.0.path().join("dr-something-else");
        fs::create_dir(&foreign).unwrap();
        place.clear(NOW);
        assert!(left.iter().all(|path| path.exists()));
        place.clear(LATER);
        assert!(left.iter().all(|path| !path.exists()), "{left:?}");
        assert!(foreign.exists());
    }
}

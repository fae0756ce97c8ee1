//! The work folder of one tenant restore: change sets with the tenant's rows in plain text, so readable
//! by nobody else, and removed when the restore is over, however it ends; that of a process that was killed,
//! by the next restore.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dr_model::TenantRestoreId;
use dr_sources::instance::is_alive;

use crate::TenantError;

/// Of every work folder, before the restore's id.
const PREFIX: &str = "dr-";
/// Holds the pid of the process that made the folder.
const OWNER_FILE: &str = "owner";

/// Where work folders and scratch instances go: `TMPDIR`, else `/var/tmp`, which is on a disk.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A folder that goes with its handle.
#[derive(Debug)]
pub(crate) struct WorkFolder(PathBuf);

impl WorkFolder {
    pub(crate) fn create(id: &TenantRestoreId) -> Result<Self, TenantError> {
        clear_left_behind(&base());
        let path = base().join(format!("{PREFIX}{id}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(TenantError::file("create", &path))?;
        let folder = Self(path);
        let owner = folder.path(OWNER_FILE);
        std::fs::write(&owner, std::process::id().to_string())
            .map_err(TenantError::file("write", &owner))?;
        Ok(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
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
fn clear_left_behind(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if id.is_none_or(|id| id.parse::<TenantRestoreId>().is_err()) {
            continue;
        }
        let owner = std::fs::read_to_string(entry.path().join(OWNER_FILE)).ok();
        let owner = owner.and_then(|text| text.trim().parse::<u32>().ok());
        if owner.is_some_and(|owner| !is_alive(owner)) {
            drop(WorkFolder(entry.path()));
        }
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a work folder could not be removed");
        }
    }
}

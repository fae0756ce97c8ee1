//! The work folder of one tenant restore: change sets with the tenant's rows in plain text, so readable
//! by nobody else, and removed when the restore is over, however it ends.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use dr_model::TenantRestoreId;

use crate::TenantError;

/// Where work folders and scratch instances go: `TMPDIR`, else `/var/tmp`, which is on a disk.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A folder that goes with its handle.
#[derive(Debug)]
pub(crate) struct WorkFolder(PathBuf);

impl WorkFolder {
    pub(crate) fn create(id: &TenantRestoreId) -> Result<Self, TenantError> {
        let path = base().join(format!("dr-{id}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(TenantError::file("create", &path))?;
        Ok(Self(path))
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

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a work folder could not be removed");
        }
    }
}

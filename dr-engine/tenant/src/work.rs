//! The work folder of one tenant restore: change sets with the tenant's rows in plain text, so readable
//! by nobody else, and removed when the restore is over, however it ends; that of a process that was killed,
//! by the next restore ([`ProcessFolder`]).

use std::path::PathBuf;

use dr_model::TenantRestoreId;
use dr_sources::instance::{FolderKind, ProcessFolder};

use crate::TenantError;

const WORK: FolderKind = FolderKind {
    prefix: "dr-",
    is_id: |id| id.parse::<TenantRestoreId>().is_ok(),
    server: None,
    elsewhere: |_| None,
};

/// Where work folders and scratch instances go: `TMPDIR`, else `/var/tmp`, which is on a disk.
pub(crate) fn base() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A folder that goes with its handle.
#[derive(Debug)]
pub(crate) struct WorkFolder(ProcessFolder);

impl WorkFolder {
    /// Removes what dead processes left, first: a tenant's rows are not to lie about.
    pub(crate) fn create(id: &TenantRestoreId) -> Result<Self, TenantError> {
        let parent = base();
        ProcessFolder::clear_left_behind(&WORK, &parent);
        ProcessFolder::create(&WORK, &parent, &id.to_string(), None)
            .map(Self)
            .map_err(TenantError::WorkFolder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A folder in it, empty.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf, TenantError> {
        let path = self.path(name);
        crate::rows::recreate(&path)?;
        Ok(path)
    }
}

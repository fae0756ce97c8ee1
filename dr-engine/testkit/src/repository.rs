//! A repository in a temporary folder that goes away with the value.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{
    ByteCount, Condition, FilesPosition, Position, RestorePoint, RestorePointId, WorkloadName,
};
use dr_store::{EntryMeta, LocalBackend, Repository, RepositoryKey};

/// A local repository with its key.
#[derive(Debug)]
pub struct TempRepository {
    folder: tempfile::TempDir,
    /// What opens it.
    pub key: RepositoryKey,
    /// It, opened.
    pub repository: Repository,
}

impl Default for TempRepository {
    fn default() -> Self {
        Self::new()
    }
}

impl TempRepository {
    /// Makes a new one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let key = RepositoryKey::generate();
        let path = folder.path().join("repository");
        let repository =
            Repository::create(Arc::new(LocalBackend::new(&path)), &key).expect("a new repository");
        Self {
            folder,
            key,
            repository,
        }
    }

    /// The repository's folder.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// Opens it anew, as another process would.
    ///
    /// # Panics
    /// When it does not open.
    #[must_use]
    pub fn reopen(&self) -> Repository {
        open(&self.path(), &self.key).expect("the repository opens")
    }
}

fn open(path: &Path, key: &RepositoryKey) -> Result<Repository, dr_store::StoreError> {
    Repository::open(Arc::new(LocalBackend::new(path)), key)
}

/// A restore point of a folder, to be finished with; its counts are filled in then.
///
/// # Panics
/// When the name is none.
#[must_use]
pub fn files_point(workload: &str, moment: DateTime<Utc>) -> RestorePoint {
    let workload: WorkloadName = workload.parse().expect("a workload name");
    RestorePoint {
        id: RestorePointId::new(&workload, moment),
        workload,
        tier: "gold".parse().expect("a tier name"),
        started: moment,
        finished: moment,
        moment,
        position: Position::Files(FilesPosition { entries: 0 }),
        files: 0,
        bytes_source: ByteCount(0),
        bytes_added: ByteCount(0),
        condition: Condition::Whole,
    }
}

/// Plain attributes for an entry.
#[must_use]
pub fn meta(path: &str) -> EntryMeta {
    EntryMeta {
        path: path.to_owned(),
        mode: 0o640,
        uid: 1,
        gid: 2,
        modified_ns: 1_700_000_000_000,
        changed_ns: 0,
        inode: 0,
    }
}

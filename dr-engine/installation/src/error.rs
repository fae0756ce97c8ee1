//! What can go wrong between a configuration and what it names.

use std::path::PathBuf;

use dr_config::ConfigError;
use dr_model::{RepositoryName, WorkloadName};
use dr_store::StoreError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The configuration itself. Shown as it is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key could not be read.
    #[error("cannot read the key of repository `{repository}` from {place}")]
    KeyMissing {
        /// The repository.
        repository: RepositoryName,
        /// File or variable.
        place: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Only a key file can be rotated.
    #[error("the key of repository `{repository}` is in no key file")]
    NotRotatable {
        /// The repository.
        repository: RepositoryName,
    },
    /// A key was read and is none, or opens nothing.
    #[error("cannot open repository `{repository}` at {place}")]
    Repository {
        /// The repository.
        repository: RepositoryName,
        /// Folder or bucket.
        place: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The configuration asks for locks that the store does not keep.
    #[error(
        "repository `{repository}` asks for object_lock, which {place} ignores or does not know"
    )]
    NoObjectLock {
        /// The repository.
        repository: RepositoryName,
        /// The bucket.
        place: String,
    },
    /// An operation on an opened repository failed.
    #[error("cannot {action} in repository {place}")]
    Store {
        /// What was being done.
        action: &'static str,
        /// Folder or bucket.
        place: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The catalog could not be opened, created or filled.
    #[error("cannot {action} catalog {url}")]
    Catalog {
        /// What was being done.
        action: &'static str,
        /// The catalog's URL.
        url: String,
        /// Why.
        #[source]
        source: dr_catalog::CatalogError,
    },
    /// A file or folder could not be made or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A workload names no repository.
    #[error("workload `{0}` names no repository")]
    NoRepository(WorkloadName),
    /// A secret's source gave nothing.
    #[error("cannot read the password of workload `{workload}` from {place}")]
    Password {
        /// The workload.
        workload: WorkloadName,
        /// File or variable.
        place: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The repository holds no configuration to adopt.
    #[error("repository {place} holds no configuration: no backup was ever finished in it")]
    NothingToAdopt {
        /// Folder or bucket.
        place: String,
    },
    /// Adoption would overwrite something.
    #[error("{} exists already", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// A stored configuration could not be understood.
    #[error("the configuration stored in {place} cannot be read: {detail}")]
    BadSnapshot {
        /// Folder or bucket.
        place: String,
        /// What is wrong.
        detail: String,
    },
    /// A background thread ended without an answer.
    #[error("a worker thread ended while it was to {action}")]
    Worker {
        /// What was being done.
        action: &'static str,
    },
}

impl InstallationError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint().map(str::to_owned),
            Self::KeyMissing { place, .. } => Some(format!(
                "put the repository's key back at {place}; without it nothing in the repository can be read"
            )),
            Self::NotRotatable { .. } => Some(
                "make another slot with `dr key add`, change `key:` in the configuration to it, then \
                 `dr key remove` the old slot"
                    .to_owned(),
            ),
            Self::Repository { source, .. } | Self::Store { source, .. } => source.hint(),
            Self::Catalog { action, .. } if *action == "open" => Some(
                "`dr catalog rebuild` makes it anew from the repository; `dr init` creates a missing one"
                    .to_owned(),
            ),
            Self::NoObjectLock { .. } => Some(
                "use a bucket made with Object Lock on a store that honours it, or take `object_lock` \
                 out; Object Lock cannot be had where nobody keeps to it"
                    .to_owned(),
            ),
            Self::NothingToAdopt { .. } => {
                Some("write a dr.yaml that names this repository and run `dr init`".to_owned())
            }
            Self::Exists { .. } => {
                Some("choose another place with --config, or move the file away".to_owned())
            }
            _ => None,
        }
    }

    /// Whether the cause is the configuration or its use: exit code 2.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_))
    }
}

//! What can go wrong while protecting a workload.

use std::io;
use std::path::{Path, PathBuf};

use dr_model::{HoldId, RestorePointId, SystemId, TierName, WalFileName, WorkloadName};
use dr_sources::SourceError;
use dr_store::StoreError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The configuration, a key, the repository or the catalog could not be opened.
    #[error(transparent)]
    Installation(#[from] dr_installation::InstallationError),
    /// The catalog could not tell, or not remember, how far lists of restore points go.
    #[error("cannot tell whether a list of restore points went back")]
    SeenLists(#[source] dr_catalog::CatalogError),
    /// The configuration does not name it.
    #[error(transparent)]
    Config(#[from] dr_config::ConfigError),
    /// The repository could not do its part.
    #[error("cannot {action} in repository {place}")]
    Store {
        /// What was being done, on what.
        action: String,
        /// The repository.
        place: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The source could not do its part.
    #[error("cannot {action}")]
    Source {
        /// What was being done, on what.
        action: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// A verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another cluster than the one the workload has been bound to.
    #[error(
        "workload `{workload}` is bound to cluster {bound}, but this is cluster {found}: nothing was stored"
    )]
    OtherCluster {
        /// The workload.
        workload: WorkloadName,
        /// The cluster of its first backup.
        bound: SystemId,
        /// The cluster at hand.
        found: SystemId,
    },
    /// A WAL file of a cluster that no workload stands for.
    #[error("{file} belongs to cluster {found}, which is no workload of this configuration")]
    UnknownCluster {
        /// The file.
        file: String,
        /// Its cluster.
        found: SystemId,
    },
    /// A copy of a protected cluster tries to archive.
    #[error(
        "{} is a copy of workload `{workload}`, whose own data directory {} is another: its WAL is refused",
        found.display(), configured.display()
    )]
    Copy {
        /// The workload.
        workload: WorkloadName,
        /// Where the push came from.
        found: PathBuf,
        /// The data directory of the workload.
        configured: PathBuf,
    },
    /// A file whose name and content do not fit together, or that is no WAL at all.
    #[error("{file} is refused: {what}")]
    BadWal {
        /// The file.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// The archive holds something else under this name.
    #[error(
        "ANOTHER {name} WITH DIFFERENT CONTENT IS IN THE ARCHIVE of workload `{workload}`: nothing was overwritten"
    )]
    WalConflict {
        /// The file.
        name: WalFileName,
        /// The workload.
        workload: WorkloadName,
        /// What the repository says.
        #[source]
        source: StoreError,
    },
    /// The stream of WAL could not be begun, or broke off.
    #[error("cannot receive the WAL of `{workload}`")]
    Streaming {
        /// The workload.
        workload: WorkloadName,
        /// Why.
        #[source]
        source: dr_replication::ReplicationError,
    },
    /// The server was asked and did not answer.
    #[error("the server of `{workload}` said nothing for {seconds} s, though asked")]
    ServerSilent {
        /// The workload.
        workload: WorkloadName,
        /// For how long.
        seconds: u64,
    },
    /// The server stands by for another one.
    #[error(
        "the server of `{0}` is a standby: what it has does not show what its primary has, so nothing is \
         received from it"
    )]
    StandbyStream(WorkloadName),
    /// A workload whose cluster is not known yet.
    #[error(
        "`{0}` has no base backup yet, without which its WAL is good for nothing: take one first"
    )]
    NotBound(WorkloadName),
    /// What was streamed before is not what the server has.
    #[error(
        "WHAT THE SERVER OF `{workload}` HAS IN {name} IS NOT WHAT WAS STREAMED OF IT BEFORE: it went back, \
         or is a copy that went its own way; nothing was stored"
    )]
    OtherHistory {
        /// The workload.
        workload: WorkloadName,
        /// The segment.
        name: WalFileName,
    },
    /// WAL that a base backup cannot do without is neither archived nor still in `pg_wal`.
    #[error(
        "the backup of `{workload}` needs {name}, which is neither in the repository nor in {}",
        looked_in.display()
    )]
    WalMissing {
        /// The workload.
        workload: WorkloadName,
        /// The file.
        name: WalFileName,
        /// The `pg_wal` folder.
        looked_in: PathBuf,
    },
    /// The WAL workload could not be determined.
    #[error("cannot tell which workload {file} is for: {why}")]
    WhichWorkload {
        /// The file.
        file: String,
        /// What is ambiguous.
        why: String,
    },
    /// The workload is not of the kind this needs.
    #[error("workload `{workload}` is no {needed} workload")]
    WrongKind {
        /// The workload.
        workload: WorkloadName,
        /// What was needed.
        needed: &'static str,
    },
    /// The primary's archiver has not brought the last segment that a standby's backup needs.
    #[error(
        "{name} of `{workload}`, in which the standby's backup stops, is not in the repository yet"
    )]
    NotArchivedByPrimary {
        /// The workload.
        workload: WorkloadName,
        /// The segment.
        name: WalFileName,
    },
    /// The server of a cluster runs although it must not.
    #[error("a server runs on {}, or may: {why}", path.display())]
    ServerRuns {
        /// The data directory.
        path: PathBuf,
        /// What speaks for it.
        why: String,
    },
    /// A workload whose tier is not configured: how long its points are kept is not known.
    #[error("workload `{workload}` names tier `{tier}`, which does not exist: nothing was removed")]
    UnknownTier {
        /// The workload.
        workload: WorkloadName,
        /// The tier.
        tier: TierName,
    },
    /// The catalog could not do its part.
    #[error("the catalog keeps rows of restore points that are gone")]
    Catalog(#[source] dr_catalog::CatalogError),
    /// A restore point that no repository lists.
    #[error("no repository lists a restore point {0}")]
    UnknownPoint(RestorePointId),
    /// A text that is no restore point's id.
    #[error("`{0}` is neither the id of a restore point nor a workload")]
    NoSuchPoint(String),
    /// A hold that no repository knows of.
    #[error("no repository knows of {0}")]
    UnknownHold(HoldId),
    /// A hold that somebody ended before.
    #[error("{0} was removed before")]
    HoldEnded(HoldId),
    /// An object of the repository has content that was not written by this program.
    #[error("{what} in repository {place} cannot be understood: {detail}")]
    BadRecord {
        /// The object.
        what: String,
        /// The repository.
        place: String,
        /// What is wrong.
        detail: String,
    },
    /// Not done within its time.
    #[error("{what} took longer than {seconds} s")]
    TimedOut {
        /// What.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// Stopped on request.
    #[error("the backup of `{0}` was cancelled")]
    Cancelled(WorkloadName),
    /// A thread ended without an answer.
    #[error("a worker thread ended while it was to {0}")]
    Worker(&'static str),
}

impl BackupError {
    /// What to try, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Installation(error) => error.hint(),
            Self::Config(error) => error.hint().map(str::to_owned),
            Self::Store { source, .. } => source.hint(),
            Self::Source { source, .. } => source.hint(),
            Self::OtherCluster { .. } => Some(
                "correct the workload's url and data_directory, or give the new cluster a workload \
                 name of its own"
                    .to_owned(),
            ),
            Self::UnknownCluster { .. } => Some(
                "name its data directory in a workload of the configuration, or correct the \
                 archive_command"
                    .to_owned(),
            ),
            Self::Copy { .. } => Some(
                "turn archiving off in the copy (archive_mode=off); if it replaces the original, \
                 name its folder as the workload's data_directory"
                    .to_owned(),
            ),
            Self::WalConflict { .. } => Some(
                "two servers archive as the same cluster, or a file was damaged: find out which one \
                 is right before anything is removed; PostgreSQL keeps the segment until then"
                    .to_owned(),
            ),
            Self::NotArchivedByPrimary { .. } => Some(
                "set archive_timeout on the primary, and archive from there with `dr wal push`; then run \
                 the backup again"
                    .to_owned(),
            ),
            Self::WalMissing { .. } => Some(
                "archive WAL (archive_command = 'dr wal push %p'), or raise wal_keep_size so that it \
                 stays until the backup has ended"
                    .to_owned(),
            ),
            Self::UnknownPoint(_) | Self::NoSuchPoint(_) => {
                Some("`dr backup list` shows them".to_owned())
            }
            Self::UnknownHold(_) | Self::HoldEnded(_) => {
                Some("`dr hold list` shows them".to_owned())
            }
            Self::Catalog(_) => Some("`dr catalog rebuild` makes it anew".to_owned()),
            Self::WhichWorkload { .. } => Some("give --workload".to_owned()),
            Self::ServerRuns { .. } => Some("stop the server first".to_owned()),
            _ => None,
        }
    }

    /// Whether the cause is the configuration or its use: exit code 2.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Installation(error) => error.is_usage(),
            Self::Config(_)
            | Self::WrongKind { .. }
            | Self::NoSuchPoint(_)
            | Self::UnknownTier { .. } => true,
            _ => false,
        }
    }
}

pub(crate) fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File {
        action,
        path,
        source,
    }
}

pub(crate) fn source_error(action: impl Into<String>) -> impl FnOnce(SourceError) -> BackupError {
    let action = action.into();
    move |source| BackupError::Source { action, source }
}

pub(crate) fn store_error(
    action: impl Into<String>,
    repository: &dr_store::Repository,
) -> impl FnOnce(StoreError) -> BackupError {
    let (action, place) = (action.into(), repository.describe());
    move |source| BackupError::Store {
        action,
        place,
        source,
    }
}

//! What can go wrong while restoring.

use std::io;
use std::path::{Path, PathBuf};

use dr_backup::BackupError;
use dr_model::{ErasureId, RestorePointId, SystemId, WalFileName, WorkloadName};
use dr_sources::SourceError;
use dr_store::StoreError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The configuration, a key, the repository or the catalog could not be opened.
    #[error(transparent)]
    Installation(#[from] dr_installation::InstallationError),
    /// The configuration does not name it.
    #[error(transparent)]
    Config(#[from] dr_config::ConfigError),
    /// What is stored could not be looked over.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The repository could not do its part.
    #[error("cannot {action} from repository {place}")]
    Store {
        /// What was being done, on what.
        action: String,
        /// The repository.
        place: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A server or a folder could not do its part.
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
    /// The workload has no restore point.
    #[error("workload `{0}` has no restore point")]
    NoRestorePoint(WorkloadName),
    /// No such restore point.
    #[error("workload `{workload}` has no restore point {point}")]
    UnknownPoint {
        /// The workload.
        workload: WorkloadName,
        /// What was asked for.
        point: RestorePointId,
    },
    /// The target cannot be reached with what is stored.
    #[error("`{workload}` cannot be restored to {target}: {why}; the recovery window is {window}")]
    Unreachable {
        /// The workload.
        workload: WorkloadName,
        /// What was asked for.
        target: String,
        /// Why not.
        why: String,
        /// The window, as text.
        window: String,
        /// The nearest that can be reached, as one would give it after `--to`.
        nearest: String,
    },
    /// A target of a kind this workload does not know.
    #[error("`{workload}` is a {kind} workload: {target} says nothing about it")]
    WrongTarget {
        /// The workload.
        workload: WorkloadName,
        /// Its kind.
        kind: String,
        /// What was asked for.
        target: String,
    },
    /// The workload is not of the kind this needs.
    #[error("workload `{workload}` is no {needed} workload")]
    WrongKind {
        /// The workload.
        workload: WorkloadName,
        /// What was needed.
        needed: &'static str,
    },
    /// A folder is needed.
    #[error("restoring `{0}` needs a folder")]
    NoFolder(WorkloadName),
    /// A tablespace that the restore point does not have is to go somewhere.
    #[error("no tablespace was at {}: {}", location.display(), match there.is_empty() {
        true => "the restore point has none".to_owned(),
        false => format!("they were at {}", there.join(", ")),
    })]
    UnknownTablespace {
        /// Where it is said to have been.
        location: PathBuf,
        /// Where there were some.
        there: Vec<String>,
    },
    /// Files of two places would mix.
    #[error("a tablespace cannot go into {}: {} is there, or goes there", place.display(), other.display())]
    TablespacesMix {
        /// Where it is to go.
        place: PathBuf,
        /// What the other place is.
        other: PathBuf,
    },
    /// Something is in the way.
    #[error("{} is not empty: it holds `{example}`", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// One thing found.
        example: String,
    },
    /// The folder cannot be used by us.
    #[error("{} belongs to {owner}, and this is another user", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: String,
    },
    /// A server runs on the folder that is to be restored over, or may run.
    #[error("a server runs on {}, or may: {why}", path.display())]
    Occupied {
        /// The data directory.
        path: PathBuf,
        /// What speaks for it.
        why: String,
    },
    /// Something is mounted within the folder that is to be restored over.
    #[error("{} cannot be restored over: {} within it is a mount point", path.display(), mount.display())]
    MountWithin {
        /// The data directory.
        path: PathBuf,
        /// The first mount point found.
        mount: PathBuf,
    },
    /// What is restored over has WAL that would be lost.
    #[error("{} has {files} WAL files that are not in the repository, the first is {first}", path.display())]
    WalNotStored {
        /// The folder of the WAL.
        path: PathBuf,
        /// How many.
        files: usize,
        /// The first of them.
        first: WalFileName,
    },
    /// The folder that is to be restored over is another cluster's, or does not tell whose it is.
    #[error("{} is not a state of the cluster {wanted} that was backed up: {}", path.display(), match found {
        Some(found) => format!("it is the cluster {found}"),
        None => "its control file cannot be read".to_owned(),
    })]
    NotThisCluster {
        /// The folder.
        path: PathBuf,
        /// The system identifier that was found there.
        found: Option<SystemId>,
        /// That of the restore point.
        wanted: SystemId,
    },
    /// A stored thing that does not make sense.
    #[error("restore point {point} cannot be restored: {what}")]
    BadPoint {
        /// The point.
        point: RestorePointId,
        /// What is wrong.
        what: String,
    },
    /// The server stopped in recovery because the repository could not be asked. It did not open.
    #[error(
        "recovery of {} stopped because the repository could not deliver WAL; the server did not open\n{log}",
        path.display()
    )]
    RepositoryUnreachable {
        /// The data directory.
        path: PathBuf,
        /// The end of the server's log.
        log: String,
    },
    /// The server did not get through recovery.
    #[error("the restored server of {} did not open: {why}\n{log}", path.display())]
    NotOpened {
        /// The data directory.
        path: PathBuf,
        /// What happened.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// A stream is there already.
    #[error("stream `{stream}` exists at {place}")]
    StreamExists {
        /// The stream.
        stream: String,
        /// The server.
        place: String,
    },
    /// An entry of the ledger of erasures cannot be understood.
    #[error(
        "erasure {name} in repository {place} cannot be understood, so nothing may be opened: {why}"
    )]
    BadErasure {
        /// The entry.
        name: String,
        /// The repository.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// What was erased cannot be taken out of a copy.
    #[error(
        "erasure {id} cannot be applied, so the copy is not opened:{}",
        list_text(why)
    )]
    ErasureNotHeld {
        /// The entry.
        id: ErasureId,
        /// What stands against it.
        why: Vec<String>,
    },
    /// Other rows went than were gathered.
    #[error(
        "{counted} rows were to be erased, and PostgreSQL deleted {erased}: all was rolled back"
    )]
    ErasureMiscounted {
        /// Rows gathered.
        counted: u64,
        /// Rows deleted.
        erased: u64,
    },
    /// A statement on erased rows failed.
    #[error("cannot {action}")]
    ErasureSql {
        /// What was being done, on what.
        action: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// What was erased is still in a restored cluster.
    #[error("{} must not be opened: what was erased has not been taken out of it", path.display())]
    ErasuresPending {
        /// The data directory.
        path: PathBuf,
    },
    /// Stopped on request.
    #[error("the restore of `{0}` was cancelled")]
    Cancelled(WorkloadName),
    /// A thread ended without an answer.
    #[error("a worker thread ended while it was to {0}")]
    Worker(&'static str),
}

fn list_text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  - {line}")).collect()
}

impl RestoreError {
    /// What to try, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Installation(error) => error.hint(),
            Self::Config(error) => error.hint().map(str::to_owned),
            Self::Backup(error) => error.hint(),
            Self::Store { source, .. } => source.hint(),
            Self::Source { source, .. } => source.hint(),
            Self::NoRestorePoint(workload) => Some(format!("take one: dr backup run {workload}")),
            Self::UnknownPoint { workload, .. } => {
                Some(format!("see what there is: dr backup list {workload}"))
            }
            Self::Unreachable { nearest, .. } => {
                Some(format!("the nearest that can be reached: --to {nearest}"))
            }
            Self::WrongTarget { .. } => {
                Some("give a time, `latest` or one of its restore points".to_owned())
            }
            Self::UnknownTablespace { .. } => {
                Some("give --tablespace OLD=NEW with OLD as the source's server had it".to_owned())
            }
            Self::TablespacesMix { .. } => Some(
                "give each tablespace a folder of its own, outside of the data directory".to_owned(),
            ),
            Self::NoFolder(_) => Some("give --into FOLDER".to_owned()),
            Self::NotEmpty { .. } => Some(
                "name a new or an empty folder; move what is there away, or remove it, if the \
                 restore is to take its place; --delta if it is an older or damaged state of the \
                 same cluster"
                    .to_owned(),
            ),
            Self::Occupied { path, .. } => Some(format!(
                "stop it first: pg_ctl stop -m fast -D {}",
                path.display()
            )),
            Self::MountWithin { .. } => Some(
                "leave out --delta and restore into an empty folder, or unmount it".to_owned(),
            ),
            Self::WalNotStored { .. } => Some(
                "`dr wal rescue` stores what a failed primary wrote last; --discard-wal if it may be \
                 lost, as that of a restore that was only a trial"
                    .to_owned(),
            ),
            Self::NotThisCluster { .. } => {
                Some("leave out --delta and restore into an empty folder".to_owned())
            }
            Self::NotOurs { owner, .. } => Some(format!("run it as that user: sudo -u {owner} dr …")),
            Self::RepositoryUnreachable { .. } => Some(
                "make the repository reachable again, then start the server again: recovery goes on \
                 where it stopped"
                    .to_owned(),
            ),
            Self::BadErasure { .. } => Some(
                "`dr repo check --read` and `dr repo repair` bring a damaged record back from a copy"
                    .to_owned(),
            ),
            Self::ErasureNotHeld { id, .. } => Some(format!(
                "record what else has to go with another `dr tenant erase`, or choose another target; `dr restore \
                 --without-erasures` restores the cluster with {id} and all others still in it"
            )),
            Self::ErasuresPending { .. } => Some(
                "its restore was interrupted or refused: remove the folder, or restore over it with --delta"
                    .to_owned(),
            ),
            Self::StreamExists { .. } => {
                Some("give --replace to delete it first, or delete it by hand".to_owned())
            }
            _ => None,
        }
    }

    /// Whether the cause is the configuration or its use: exit code 2.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Installation(error) => error.is_usage(),
            Self::Backup(error) => error.is_usage(),
            Self::Config(_) | Self::NoFolder(_) | Self::WrongKind { .. } => true,
            _ => false,
        }
    }
}

pub(crate) fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::File {
        action,
        path,
        source,
    }
}

pub(crate) fn source_error(action: impl Into<String>) -> impl FnOnce(SourceError) -> RestoreError {
    let action = action.into();
    move |source| RestoreError::Source { action, source }
}

pub(crate) fn store_error(
    action: impl Into<String>,
    repository: &dr_store::Repository,
) -> impl FnOnce(StoreError) -> RestoreError {
    let (action, place) = (action.into(), repository.describe());
    move |source| RestoreError::Store {
        action,
        place,
        source,
    }
}

/// Runs blocking work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RestoreError::Worker(what))?
}

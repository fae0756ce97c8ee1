//! What can go wrong with a source, and what to try.

use std::io;
use std::path::{Path, PathBuf};

use dr_model::SystemId;

/// A failed operation on a source. Display says what failed on what; the cause is the source error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// A verb: "read", "list", "write".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller's OS user may not read what has to be read.
    #[error("{} belongs to {owner} and cannot be read by this user", path.display())]
    NotOwner {
        /// The file or folder.
        path: PathBuf,
        /// Its owner's name.
        owner: String,
        /// The command that would work.
        command: String,
    },
    /// No server answers there.
    #[error("PostgreSQL at {place} does not answer")]
    PostgresDown {
        /// Host and port or socket, never a password.
        place: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A server answers and refuses us.
    #[error("PostgreSQL at {place} refuses the connection")]
    PostgresRefused {
        /// Host and port or socket, never a password.
        place: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A connection URL that cannot be understood.
    #[error("the PostgreSQL connection URL cannot be understood")]
    PostgresUrl {
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("PostgreSQL could not {action}")]
    Sql {
        /// What it was for.
        action: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A PostgreSQL release that is not supported.
    #[error("PostgreSQL {found} is not supported")]
    UnsupportedVersion {
        /// Its version, as it calls itself.
        found: String,
    },
    /// The role lacks a right.
    #[error("the role `{role}` may not {action}")]
    MissingRight {
        /// The database role.
        role: String,
        /// What it may not do.
        action: &'static str,
        /// The statement that would allow it.
        grant: String,
    },
    /// The folder is not this server's.
    #[error(
        "{} belongs to cluster {folder}, but the server is cluster {server}", path.display()
    )]
    OtherCluster {
        /// The data directory given.
        path: PathBuf,
        /// The system identifier in its `pg_control`.
        folder: SystemId,
        /// The server's.
        server: SystemId,
    },
    /// A copy of the cluster, or a wrong path: the server works on another folder.
    #[error("the server's data directory is {}, not {}", server.display(), path.display())]
    OtherDirectory {
        /// The data directory given.
        path: PathBuf,
        /// What the server says.
        server: PathBuf,
    },
    /// The folder was made by another major version.
    #[error("{} is of PostgreSQL {folder}, but the server is {server}", path.display())]
    OtherMajor {
        /// The data directory given.
        path: PathBuf,
        /// In its `PG_VERSION`.
        folder: String,
        /// The server's major version.
        server: u32,
    },
    /// A file that does not have the content it must have.
    #[error("{} is not usable: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The receiver of captured data failed.
    #[error("could not store `{item}`")]
    Sink {
        /// The item's path.
        item: String,
        /// Why.
        #[source]
        source: crate::item::SinkError,
    },
    /// Stopped on request.
    #[error("{what} was cancelled")]
    Cancelled {
        /// What was stopped.
        what: &'static str,
    },
    /// A worker thread ended without an answer.
    #[error("a worker of {what} ended unexpectedly")]
    Worker {
        /// What it worked on.
        what: &'static str,
    },
    /// A program of PostgreSQL or another server is not installed.
    #[error("{program} was not found")]
    ProgramMissing {
        /// The program, and where it was looked for.
        program: String,
    },
    /// A program could not be run or failed.
    #[error("{program} failed: {output}")]
    Program {
        /// The program.
        program: String,
        /// The end of what it printed.
        output: String,
    },
    /// A server we started did not come up.
    #[error("the server of {} did not start: {reason}", path.display())]
    NotStarted {
        /// Its data directory or store.
        path: PathBuf,
        /// What happened, with the end of its log.
        reason: String,
    },
    /// A server did not stop in time.
    #[error("the server of {} (pid {pid}) did not stop within {seconds} s", path.display())]
    NotStopped {
        /// Its data directory or store.
        path: PathBuf,
        /// Its process.
        pid: u32,
        /// How long it was given.
        seconds: u64,
    },
    /// No server runs on a folder.
    #[error("no server runs on {}", path.display())]
    NotRunning {
        /// The data directory or store.
        path: PathBuf,
    },
    /// An OS user is needed and does not exist.
    #[error("there is no OS user `{name}`")]
    UserMissing {
        /// Its name.
        name: String,
    },
    /// A NATS operation failed.
    #[error("NATS at {place} could not {action}")]
    Nats {
        /// The server's address, never a password.
        place: String,
        /// What it was for.
        action: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server could not send what was asked of it.
    #[error(transparent)]
    Replication(#[from] dr_replication::ReplicationError),
    /// Anything said best in a sentence.
    #[error("{0}")]
    Refused(String),
}

impl SourceError {
    /// A file operation that failed.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// What an operator can try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotOwner { command, .. } => format!("run it as that user: {command}"),
            Self::PostgresDown { .. } => {
                "start the server, or correct the workload's `postgres.url`".to_owned()
            }
            Self::PostgresRefused { .. } => {
                "check the role, its password and pg_hba.conf; a password comes from \
                 `password_env`, `password_file` or PGPASSFILE"
                    .to_owned()
            }
            Self::PostgresUrl { .. } => {
                "write it as postgres://user@host:port/database, a socket folder as \
                 postgres://user@localhost/database?host=/run/postgresql"
                    .to_owned()
            }
            Self::UnsupportedVersion { .. } => "versions 14 to 18 are supported".to_owned(),
            Self::MissingRight { grant, .. } => format!("as a superuser: {grant}"),
            Self::OtherCluster { .. } | Self::OtherDirectory { .. } | Self::OtherMajor { .. } => {
                "make `postgres.data_directory` and `postgres.url` name the same cluster".to_owned()
            }
            Self::ProgramMissing { .. } => {
                "install it (Debian: postgresql-<major>, nats-server), or name its folder in \
                 `postgres.bin_directory`"
                    .to_owned()
            }
            Self::Nats { .. } => {
                "start the server, or correct the workload's `nats.url`".to_owned()
            }
            Self::Replication(error) => return error.hint().map(str::to_owned),
            _ => return None,
        })
    }
}

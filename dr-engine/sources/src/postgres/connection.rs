//! Reaching a server and learning what it is.

use std::path::{Path, PathBuf};

use dr_model::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::SourceError;

/// How to reach a server.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `postgres://user@host:port/database`, a socket folder as `?host=/run/postgresql`.
    pub url: String,
    /// The password, from wherever it is kept.
    pub password: Option<String>,
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectOptions").finish_non_exhaustive()
    }
}

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Shared by all copies of a cluster.
    pub system_id: SystemId,
    /// Of its last checkpoint.
    pub timeline: Timeline,
    /// 150018 for 15.18.
    pub server_version_num: u32,
    /// `server_version`.
    pub server_version: String,
    /// Bytes in a WAL segment.
    pub wal_segment_bytes: u64,
    /// `data_directory`, where the role may see it.
    pub data_directory: Option<PathBuf>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether page checksums are on.
    pub page_checksums: bool,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_timeout`; 0: none.
    pub archive_timeout_seconds: u64,
    /// `wal_level`.
    pub wal_level: String,
    /// The position of the last record written (or replayed, on a standby).
    pub current_lsn: Lsn,
}

impl ClusterIdentity {
    /// 15 for 150018.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.server_version_num / 10_000
    }
}

/// Opens a dedicated connection. The password is never printed.
///
/// # Errors
/// When no server answers, or it refuses us.
pub async fn connect(options: &ConnectOptions) -> Result<PgConnection, SourceError> {
    let _ = options;
    todo!()
}

/// Asks a server what it is.
///
/// # Errors
/// When a statement fails, or its release is not supported.
pub async fn identify(connection: &mut PgConnection) -> Result<ClusterIdentity, SourceError> {
    let _ = connection;
    todo!()
}

/// Makes sure that `data_directory` is readable and is the very folder the server works on.
///
/// # Errors
/// When it is unreadable (naming the owner), another cluster's, another major version's, or a copy.
pub fn check_data_directory(
    data_directory: &Path,
    server: &ClusterIdentity,
) -> Result<(), SourceError> {
    let _ = (data_directory, server);
    todo!()
}

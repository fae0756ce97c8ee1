//! What a backup leaves behind, as it is stored, indexed and listed.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    ByteCount, Lsn, RestorePointId, SystemId, TenantRestoreId, TierName, Timeline, WalFileName,
    WorkloadName,
};

/// The kinds of data that can be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// A PostgreSQL cluster.
    Postgres,
    /// NATS JetStream streams with their consumers.
    Nats,
    /// A folder of files.
    Files,
}

impl std::fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Postgres => "postgres",
            Self::Nats => "nats",
            Self::Files => "files",
        })
    }
}

/// A restore point: complete by itself, whatever stored data it shares with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its identifier, also its object name.
    pub id: RestorePointId,
    /// The workload it belongs to.
    pub workload: WorkloadName,
    /// The tier in force when it was made.
    pub tier: TierName,
    /// When the backup began (wall clock).
    pub started: DateTime<Utc>,
    /// When everything it needs was durable (wall clock).
    pub finished: DateTime<Utc>,
    /// The moment whose state it holds when restored by itself.
    pub moment: DateTime<Utc>,
    /// The same moment in the source's own terms.
    pub position: Position,
    /// Files (or streams) it holds.
    pub files: u64,
    /// Size of the source data.
    pub bytes_source: ByteCount,
    /// What had to be added to the repository for it.
    pub bytes_added: ByteCount,
    /// What was found while capturing it.
    pub condition: Condition,
}

/// Whether a restore point is fit to be relied on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Condition {
    /// Nothing wrong was seen.
    Whole,
    /// The source itself was damaged (pages with wrong checksums): restorable, but it does not count
    /// towards minimum redundancy nor as proven.
    SourceDamaged {
        /// What and where, one line each.
        details: Vec<String>,
    },
}

/// A workload's position at a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Position {
    /// A base backup.
    Postgres(PostgresPosition),
    /// Streams of one NATS account.
    Nats(NatsPosition),
    /// A folder.
    Files(FilesPosition),
    /// One tenant's rows and files, kept so that a tenant restore can be undone.
    TenantState(TenantStatePosition),
}

/// Where a base backup begins and ends in the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPosition {
    /// The cluster it was taken from.
    pub system_id: SystemId,
    /// The timeline it was taken on.
    pub timeline: Timeline,
    /// Replay must begin here.
    pub start_lsn: Lsn,
    /// Replay must reach here before the copy is consistent.
    pub stop_lsn: Lsn,
    /// The first WAL segment it needs.
    pub start_segment: WalFileName,
    /// The last WAL segment it needs.
    pub stop_segment: WalFileName,
    /// The cluster's WAL segment size in bytes.
    pub wal_segment_bytes: u64,
    /// `server_version_num`, 150018 for 15.18.
    pub server_version_num: u32,
    /// Whether page checksums are on; when not, pages were not checked.
    pub page_checksums: bool,
}

impl PostgresPosition {
    /// The major version, 15 for `server_version_num` 150018.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.server_version_num / 10_000
    }
}

/// Positions of streams by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsPosition {
    /// One entry for each stream of the workload.
    pub streams: BTreeMap<String, StreamPosition>,
}

/// Where a stream stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    /// Messages it held.
    pub messages: u64,
    /// The sequence number of the first message held.
    pub first_sequence: u64,
    /// The sequence number of the last message ever stored.
    pub last_sequence: u64,
    /// For each durable consumer: the stream sequence up to which everything is acknowledged.
    pub consumers: BTreeMap<String, u64>,
}

/// How much a folder held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesPosition {
    /// Regular files, links and folders.
    pub entries: u64,
}

/// The state of one tenant from before a tenant restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantStatePosition {
    /// The tenant's id as text.
    pub tenant_id: String,
    /// The tenant's name.
    pub tenant_name: String,
    /// The restore it was saved for.
    pub restore: TenantRestoreId,
}

impl RestorePoint {
    /// The PostgreSQL position, if this is a base backup.
    #[must_use]
    pub fn postgres(&self) -> Option<&PostgresPosition> {
        match &self.position {
            Position::Postgres(position) => Some(position),
            Position::Nats(_) | Position::Files(_) | Position::TenantState(_) => None,
        }
    }
}

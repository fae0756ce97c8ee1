//! A base backup of a cluster on this host.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{PostgresPosition, Progress};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use super::CaptureDetails;
use crate::{ItemSink, SourceError};

/// What was found about page checksums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PageChecks {
    /// The cluster has no page checksums: "not checked".
    NotChecked,
    /// Every page of every relation file was checked.
    Checked {
        /// How many pages.
        pages: u64,
    },
}

/// A page whose checksum is wrong in the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptPage {
    /// Its file, as in the point.
    pub path: String,
    /// Its number within the file.
    pub page: u64,
    /// What the page says and what it should say.
    pub what: String,
}

/// What [`BaseBackup::capture`] handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSummary {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were listed and gone when their turn came: the WAL has what became of them.
    pub vanished: u64,
    /// What was found about page checksums.
    pub pages: PageChecks,
    /// Pages with wrong checksums.
    pub corrupt_pages: Vec<CorruptPage>,
}

/// Keeps the server from removing the WAL of a backup (a temporary replication slot on the backup's
/// own session). Drop it when the WAL is stored.
#[derive(Debug)]
pub struct WalHold {
    _session: PgConnection,
}

/// A completed base backup.
#[derive(Debug)]
pub struct BaseBackupResult {
    /// Where it begins and ends.
    pub position: PostgresPosition,
    /// When it began, by the server's clock.
    pub started: DateTime<Utc>,
    /// By the server's clock, read after the backup's end: no commit it holds is later.
    pub moment: DateTime<Utc>,
    /// What was captured.
    pub summary: CaptureSummary,
    /// What a restore has to know.
    pub details: CaptureDetails,
    /// Keep this until the WAL from start to stop is stored.
    pub wal_hold: WalHold,
}

/// A base backup under way. Dropping it, at whatever point, ends its session, and with it the
/// server's backup mode: nothing stays behind in the source.
#[derive(Debug)]
pub struct BaseBackup {
    _session: PgConnection,
}

impl BaseBackup {
    /// Checks that `data_directory` is the server's, and puts the server into backup mode.
    ///
    /// # Errors
    /// When the folder is not readable or not the server's, or the role may not take backups.
    pub async fn begin(
        session: PgConnection,
        data_directory: &Path,
        label: &str,
    ) -> Result<Self, SourceError> {
        let _ = (session, data_directory, label);
        todo!()
    }

    /// Hands the whole cluster to `sink`, reading `parallelism` files at a time.
    ///
    /// # Errors
    /// When something cannot be read or kept, or on cancellation.
    pub async fn capture(
        &mut self,
        sink: Arc<dyn ItemSink>,
        parallelism: usize,
        progress: Arc<dyn Progress>,
        cancel: CancellationToken,
    ) -> Result<CaptureSummary, SourceError> {
        let _ = (sink, parallelism, progress, cancel);
        todo!()
    }

    /// Ends the backup: the label and the tablespace map go to `sink`.
    ///
    /// # Errors
    /// When the server says that the backup is void, or the label cannot be kept.
    pub async fn end(self, sink: Arc<dyn ItemSink>) -> Result<BaseBackupResult, SourceError> {
        let _ = sink;
        todo!()
    }
}

//! A base backup of a cluster: read from its data directory on this host, or sent by its server
//! ([`receive_base_backup`]).
//!
//! One dedicated session from `pg_backup_start` to `pg_backup_stop`: the server ties its backup mode
//! to it (26.3.3), so whatever ends the session, be it our death, voids the backup and leaves the
//! server as it was. A temporary replication slot of another session keeps the WAL that the copy
//! will need; it goes with the session too.
//!
//! Order: backup mode on; list; folders, links and files in parallel, pages checked on the way;
//! configuration from outside; `pg_control` last, its CRC checked; backup mode off; the label as the
//! server gave it. Nothing is written to the data directory.
//!
//! Nothing is ever skipped because of its time or size. What the WAL proves to be as an earlier backup
//! holds it need not be read again, where the caller says so ([`KnownFiles`]); all else is.

mod config_files;
mod ending;
mod facts;
mod known;
mod listing;
mod page;
mod reader;
mod session;
mod streamed;
mod throttle;
mod workers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, PostgresPosition, Progress};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use self::facts::Facts;
pub use self::known::{KnownFile, KnownFiles};
use self::listing::Listing;
pub use self::listing::MainFork;
pub use self::streamed::{StreamedOptions, receive_base_backup, unreadable_configuration};
use super::connection::{ClusterIdentity, check_data_directory, identify};
use super::control::{self, ControlData};
use super::details::{CaptureDetails, ConfigFile};
use super::parts::{self, PartsIndex};
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

/// What was found about page checksums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PageChecks {
    /// The cluster has no page checksums: "not checked".
    NotChecked,
    /// Every page that was read of relation files was checked; of a backup that read only what changed,
    /// the others were when they were read.
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

/// How [`BaseBackup::capture`] reads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaptureOptions {
    /// Files of which only what changed is read.
    pub known: KnownFiles,
    /// Files read at a time; at least 1.
    pub parallelism: usize,
    /// The most that is read; as fast as it goes when left out.
    pub bytes_per_second: Option<u64>,
}

/// What [`BaseBackup::capture`] handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSummary {
    /// Regular files.
    pub files: u64,
    /// Their bytes, whether read or not.
    pub bytes: u64,
    /// Files that were listed and gone when their turn came: the WAL has what became of them.
    pub vanished: u64,
    /// What was found about page checksums.
    pub pages: PageChecks,
    /// Pages with wrong checksums.
    pub corrupt_pages: Vec<CorruptPage>,
    /// Bytes that were not read, because an earlier backup holds them and they did not change.
    pub spared: u64,
    /// Files that are in parts.
    pub files_in_parts: u64,
    /// Pages that were read because they changed, in files that were not read whole.
    pub changed_pages: u64,
}

/// Keeps the server from removing the WAL of a backup (a temporary replication slot on a session of its
/// own). Drop it when the WAL is stored.
#[derive(Debug)]
pub struct WalHold {
    holder: Option<PgConnection>,
}

impl WalHold {
    /// Has a session keep the WAL from the last checkpoint on; notes why, where it cannot.
    async fn take(holder: PgConnection, notes: &mut Vec<String>) -> Self {
        match session::hold_wal(holder).await {
            Ok(holder) => Self {
                holder: Some(holder),
            },
            Err(error) => {
                notes.push(format!(
                    "the server may recycle WAL of this backup: {error}"
                ));
                Self { holder: None }
            }
        }
    }

    /// Uses its session, so that it stays; notes when it did not.
    async fn stay(&mut self, notes: &mut Vec<String>) {
        let Some(holder) = &mut self.holder else {
            return;
        };
        if let Err(error) = sqlx::query("select 1").execute(holder).await {
            notes.push(format!(
                "the server has given up keeping the WAL of this backup: {error}"
            ));
            self.holder = None;
        }
    }

    /// Whether the server really keeps the WAL: without a free replication slot, or the right to use
    /// one, it may recycle a segment before it is stored.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holder.is_some()
    }
}

/// A completed base backup.
#[derive(Debug)]
pub struct BaseBackupResult {
    /// Where it begins and ends.
    pub position: PostgresPosition,
    /// When it began, by the server's clock: every commit up to then lies before its start.
    pub started: DateTime<Utc>,
    /// By the server's clock, read after the backup's end: no commit it holds is later. A standby's files
    /// may be much older; the WAL up to the stop position tells how old.
    pub moment: DateTime<Utc>,
    /// What was captured.
    pub summary: CaptureSummary,
    /// What a restore has to know.
    pub details: CaptureDetails,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Keep this until the WAL from start to stop is stored.
    pub wal_hold: WalHold,
}

/// A base backup under way. Dropping it, at whatever point, ends its session, and with it the
/// server's backup mode: nothing stays behind in the source.
#[derive(Debug)]
pub struct BaseBackup {
    session: PgConnection,
    wal_hold: WalHold,
    identity: ClusterIdentity,
    control: ControlData,
    data_directory: PathBuf,
    facts: Facts,
    start_lsn: Lsn,
    started: DateTime<Utc>,
    captured: Option<Captured>,
}

#[derive(Debug)]
struct Captured {
    summary: CaptureSummary,
    listing: Listing,
    config_files: Vec<ConfigFile>,
}

impl BaseBackup {
    /// Checks that `data_directory` is the server's, and puts the server into backup mode. `holder` is another
    /// session of the same role, for the slot that keeps the WAL: where that grows beyond
    /// `max_slot_wal_keep_size`, the server ends the session that has the slot, and must not end the backup.
    ///
    /// # Errors
    /// When the folder is not readable or not the server's, or the role may not take backups.
    pub async fn begin(
        mut session: PgConnection,
        holder: PgConnection,
        data_directory: &Path,
        label: &str,
    ) -> Result<Self, SourceError> {
        let mut identity = identify(&mut session).await?;
        let folder = data_directory.to_owned();
        let server = identity.clone();
        let control = blocking(move || {
            check_data_directory(&folder, &server)?;
            control::read(&folder)
        })
        .await?;
        session::check_rights(&mut session, &identity).await?;
        session::lift_limits(&mut session).await?;
        let mut facts = facts::gather(&mut session, identity.major_version()).await?;
        let started = session::server_time(&mut session).await?;
        let start_lsn = session::start(&mut session, identity.major_version(), label).await?;
        // The server keeps all WAL from its last checkpoint on, so none is gone in between.
        let wal_hold = WalHold::take(holder, &mut facts.notes).await;
        identity.timeline = session::timeline(&mut session).await?;
        // A standby's backup begins where its primary's checkpoint did, however long ago that was.
        let started = match identity.in_recovery {
            true => session::checkpoint_time(&mut session).await?,
            false => started,
        };
        Ok(Self {
            session,
            wal_hold,
            identity,
            control,
            data_directory: data_directory.to_owned(),
            facts,
            start_lsn,
            started,
            captured: None,
        })
    }

    /// The cluster that is backed up, its timeline that on which the backup begins.
    #[must_use]
    pub fn identity(&self) -> &ClusterIdentity {
        &self.identity
    }

    /// Where the backup begins.
    #[must_use]
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// Pages in one file of a relation.
    #[must_use]
    pub fn segment_pages(&self) -> u32 {
        self.control.segment_pages
    }

    /// Hands the whole cluster to `sink`; of the known files only what changed is read.
    ///
    /// # Errors
    /// When something cannot be read or kept, or on cancellation.
    pub async fn capture(
        &mut self,
        sink: Arc<dyn ItemSink>,
        options: CaptureOptions,
        progress: Arc<dyn Progress>,
        cancel: CancellationToken,
    ) -> Result<CaptureSummary, SourceError> {
        let stop = cancel.child_token();
        // Also when this future is dropped: the workers end at their next buffer.
        let _guard = stop.clone().drop_guard();
        let (mut listing, config_files) = self.list().await?;
        progress.phase("reading the data directory", Some(listing.bytes()));
        let setting = workers::Setting {
            sink: Arc::clone(&sink),
            progress,
            stop,
            page_bytes: usize::try_from(self.control.page_bytes).unwrap_or(8192),
            segment_pages: self.control.segment_pages,
            check_pages: self.identity.page_checksums,
            start_lsn: self.start_lsn,
            known: options.known,
            throttle: options.bytes_per_second.map(throttle::Throttle::new),
        };
        let parallelism = options.parallelism.max(1);
        let files = std::mem::take(&mut listing.files);
        let entries = std::mem::take(&mut listing.entries);
        let shared =
            workers::read_all(setting, files, entries, parallelism, &mut self.session).await?;
        let data_directory = self.data_directory.clone();
        let config = config_files.clone();
        let index = PartsIndex::new(shared.parted());
        let files_in_parts = u64::try_from(index.files.len()).unwrap_or(0);
        let last_bytes = blocking(move || {
            if !index.files.is_empty() {
                let index = index.to_bytes();
                keep_bytes(&data_directory, parts::INDEX_PATH, &index, sink.as_ref())?;
            }
            let bytes = config_files::capture(&config, sink.as_ref())?;
            Ok(bytes + capture_control(&data_directory, sink.as_ref())?)
        })
        .await?;
        let counts = &shared.counts;
        let configs = u64::try_from(config_files.len()).unwrap_or(0);
        let summary = CaptureSummary {
            files: counts.files.load(Ordering::Relaxed) + configs + 1,
            bytes: counts.bytes.load(Ordering::Relaxed)
                + counts.spared.load(Ordering::Relaxed)
                + last_bytes,
            vanished: counts.vanished.load(Ordering::Relaxed),
            pages: if self.identity.page_checksums {
                PageChecks::Checked {
                    pages: counts.pages.load(Ordering::Relaxed),
                }
            } else {
                PageChecks::NotChecked
            },
            corrupt_pages: shared.corrupt_pages(),
            spared: counts.spared.load(Ordering::Relaxed),
            files_in_parts,
            changed_pages: counts.changed.load(Ordering::Relaxed),
        };
        self.captured = Some(Captured {
            summary: summary.clone(),
            listing,
            config_files,
        });
        Ok(summary)
    }

    async fn list(&self) -> Result<(Listing, Vec<ConfigFile>), SourceError> {
        let version_folder = format!(
            "PG_{}_{}",
            self.identity.major_version(),
            self.control.catalog_version
        );
        let data_directory = self.data_directory.clone();
        let paths = self.facts.config.clone();
        blocking(move || {
            let listing = listing::list(&data_directory, &version_folder)?;
            Ok((listing, config_files::find(&paths, &data_directory)?))
        })
        .await
    }

    /// Ends the backup: the label and the tablespace map go to `sink`.
    ///
    /// # Errors
    /// When the server says that the backup is void, or the label cannot be kept.
    pub async fn end(mut self, sink: Arc<dyn ItemSink>) -> Result<BaseBackupResult, SourceError> {
        let Some(captured) = self.captured.take() else {
            return Err(SourceError::Refused(
                "a base backup ended before its capture".to_owned(),
            ));
        };
        let stopped = session::stop(&mut self.session, self.identity.major_version()).await?;
        let moment = ending::moment(&mut self.session, &self.identity, &stopped.label).await?;
        let position = ending::position(&self.identity, self.start_lsn, stopped.lsn);
        let data_directory = self.data_directory.clone();
        blocking(move || {
            keep_text(
                &data_directory,
                "label/backup_label",
                &stopped.label,
                sink.as_ref(),
            )?;
            if stopped.tablespace_map.is_empty() {
                return Ok(());
            }
            let map = &stopped.tablespace_map;
            keep_text(&data_directory, "label/tablespace_map", map, sink.as_ref())
        })
        .await?;
        let details = details(&self, &captured);
        Ok(BaseBackupResult {
            position,
            started: self.started,
            moment,
            summary: captured.summary,
            details,
            in_recovery: self.identity.in_recovery,
            wal_hold: self.wal_hold,
        })
    }
}

fn details(backup: &BaseBackup, captured: &Captured) -> CaptureDetails {
    let facts = &backup.facts;
    CaptureDetails {
        version: DETAILS_VERSION,
        data_directory: backup.data_directory.clone(),
        server_version: backup.identity.server_version.clone(),
        config_files: captured.config_files.clone(),
        tablespaces: captured.listing.tablespaces.clone(),
        wal_directory: captured.listing.wal_directory.clone(),
        databases: facts.databases.clone(),
        extensions: facts.extensions.clone(),
        shared_preload_libraries: facts.shared_preload_libraries.clone(),
        critical_settings: facts.critical.clone(),
        pages: captured.summary.pages.clone(),
        corrupt_pages: captured.summary.corrupt_pages.clone(),
        notes: facts
            .notes
            .iter()
            .chain(&captured.listing.notes)
            .cloned()
            .collect(),
    }
}

/// Of [`CaptureDetails`].
const DETAILS_VERSION: u32 = 1;

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(SourceError::Worker {
            what: "the base backup",
        }))
}

/// The control file, whole by its CRC, after everything else: a copy of it that is newer than the
/// data is repaired by replay, one that is older than a page may not be.
fn capture_control(data_directory: &Path, sink: &dyn ItemSink) -> Result<u64, SourceError> {
    let path = data_directory.join("global/pg_control");
    let metadata = std::fs::metadata(&path).map_err(SourceError::file("examine", &path))?;
    let (bytes, _) = control::read_bytes(data_directory)?;
    let item = Item::from_metadata(
        "data/global/pg_control".to_owned(),
        ItemKind::File,
        &metadata,
    );
    sink.file(&item, &mut bytes.as_slice(), ContentKind::Other)
        .map_err(|source| SourceError::Sink {
            item: item.path,
            source,
        })?;
    Ok(u64::try_from(bytes.len()).unwrap_or(0))
}

/// Hands over a text of the server's, owned like the cluster.
fn keep_text(
    data_directory: &Path,
    path: &str,
    text: &str,
    sink: &dyn ItemSink,
) -> Result<(), SourceError> {
    keep_bytes(data_directory, path, text.as_bytes(), sink)
}

fn keep_bytes(
    data_directory: &Path,
    path: &str,
    mut bytes: &[u8],
    sink: &dyn ItemSink,
) -> Result<(), SourceError> {
    let version = data_directory.join("PG_VERSION");
    let metadata = std::fs::metadata(&version).map_err(SourceError::file("examine", &version))?;
    let item = Item::from_metadata(path.to_owned(), ItemKind::File, &metadata);
    sink.file(&item, &mut bytes, ContentKind::Other)
        .map_err(|source| SourceError::Sink {
            item: item.path,
            source,
        })
}

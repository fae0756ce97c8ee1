//! A base backup that the server itself sends, from whatever host it is on.
//!
//! `BASE_BACKUP` has the server read its files, leave out what a backup does not need, verify page
//! checksums and put its control file last; it sends tar archives, the tablespaces' before the data
//! directory's. They are unpacked on the way into the same items that reading the files makes
//! ([`unpack`]). An ordinary session beside it tells what a restore will need to know, and a third one
//! keeps the WAL.
//!
//! The server says at the end whether pages were damaged, after it has read each suspicious one again, and
//! names their files in warnings. Which pages those are is told by what was received ([`pages`]).

mod config;
mod pages;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dr_model::Progress;
use dr_replication::{
    Address, BackupEnd, BackupEvent, BaseBackup, BaseBackupOptions, Connection, ReplicationError,
    ServerMessage,
};
use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::unpack::{Piece, Unpacked};
use super::facts::{self, Facts};
use super::{
    BaseBackupResult, CaptureDetails, CaptureSummary, ConfigFile, DETAILS_VERSION, PageChecks,
    WalHold, blocking, ending, session,
};
use crate::postgres::connection::{
    ClusterIdentity, ConnectOptions, connect, identify, stream_limits,
};
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

/// How long the server may take to let us in.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// What was received waits here until it is unpacked: some 32 KiB each.
const PIECES_WAITING: usize = 64;
/// So many of the server's warnings are kept.
const WARNINGS_KEPT: usize = 20;

/// How a base backup is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedOptions {
    /// Its name on the server.
    pub label: String,
    /// Where the cluster lies on its host, where the role may not see that.
    pub data_directory: PathBuf,
    /// Files handed to the sink at a time; at least 1.
    pub parallelism: usize,
    /// The most that the server sends; as fast as it goes when left out.
    pub bytes_per_second: Option<u64>,
}

/// What was asked of the server before it begins.
struct Preparation {
    session: PgConnection,
    identity: ClusterIdentity,
    facts: Facts,
    page_bytes: usize,
    segment_pages: u32,
    config: Vec<(ConfigFile, Vec<u8>)>,
    wal_hold: WalHold,
}

/// Takes a base backup of the cluster at `server` over the network, and hands it to `sink`.
///
/// Dropping the future ends the server's part too: nothing stays behind there.
///
/// # Errors
/// When the role may not, the server cannot, something received cannot be kept, or on cancellation.
pub async fn receive_base_backup(
    server: &ConnectOptions,
    options: &StreamedOptions,
    sink: Arc<dyn ItemSink>,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<BaseBackupResult, SourceError> {
    progress.phase("waiting for a checkpoint", None);
    let mut it = prepare(server).await?;
    let started = session::server_time(&mut it.session).await?;
    let mut connection = walsender(server, &it.identity).await?;
    let asked = BaseBackupOptions {
        label: options.label.clone(),
        bytes_per_second: options.bytes_per_second,
    };
    let mut backup = or_cancelled(cancel, connection.base_backup(&asked)).await?;
    let start_lsn = backup.start().lsn;
    it.identity.timeline = backup.start().timeline;
    // A standby's backup begins where its primary's checkpoint did, however long ago that was.
    let started = match it.identity.in_recovery {
        true => session::checkpoint_time(&mut it.session).await?,
        false => started,
    };
    progress.phase("receiving the cluster", backup.start().bytes);
    let setting = unpack::Setting {
        sink: Arc::clone(&sink),
        page_bytes: it.page_bytes,
        segment_pages: it.segment_pages,
        check_pages: it.identity.page_checksums,
        parallelism: options.parallelism.max(1),
    };
    let (end, unpacked) = transfer(&mut backup, setting, progress.as_ref(), cancel).await?;
    if end.timeline != it.identity.timeline {
        return Err(SourceError::Refused(format!(
            "the backup began on timeline {} and ended on {}: run it again",
            it.identity.timeline, end.timeline
        )));
    }
    let moment = ending::moment(&mut it.session, &it.identity, &unpacked.label).await?;
    let position = ending::position(&it.identity, start_lsn, end.lsn);
    let config_files: Vec<ConfigFile> = it.config.iter().map(|(file, _)| file.clone()).collect();
    let (configs, owner) = (it.config, unpacked.owner);
    let config_bytes = blocking(move || keep_config(configs, owner, sink.as_ref())).await?;
    let summary = CaptureSummary {
        files: unpacked.files + config_files.len() as u64,
        bytes: unpacked.bytes + config_bytes,
        vanished: 0,
        pages: match it.identity.page_checksums {
            true => PageChecks::Checked {
                pages: unpacked.pages,
            },
            false => PageChecks::NotChecked,
        },
        corrupt_pages: pages::corrupt(&unpacked.suspicious, start_lsn, &end),
        spared: 0,
        files_in_parts: 0,
        changed_pages: 0,
    };
    let warned = warnings(&end.warnings, &summary);
    for warning in &warned {
        progress.note(warning);
    }
    let notes = it.facts.notes.iter().chain(&warned).cloned().collect();
    let details = CaptureDetails {
        version: DETAILS_VERSION,
        data_directory: (it.identity.data_directory.clone())
            .unwrap_or_else(|| options.data_directory.clone()),
        server_version: it.identity.server_version.clone(),
        config_files,
        tablespaces: unpacked.tablespaces,
        wal_directory: None,
        databases: it.facts.databases,
        extensions: it.facts.extensions,
        shared_preload_libraries: it.facts.shared_preload_libraries,
        critical_settings: it.facts.critical,
        pages: summary.pages.clone(),
        corrupt_pages: summary.corrupt_pages.clone(),
        notes,
    };
    Ok(BaseBackupResult {
        position,
        started,
        moment,
        summary,
        details,
        in_recovery: it.identity.in_recovery,
        wal_hold: it.wal_hold,
    })
}

async fn prepare(server: &ConnectOptions) -> Result<Preparation, SourceError> {
    let mut session = connect(server).await?;
    let identity = identify(&mut session).await?;
    if !stream_limits(&mut session).await?.may_replicate {
        let role: String = sqlx::query_scalar("select current_user::text")
            .fetch_one(&mut session)
            .await
            .map_err(session::failed("tell the role"))?;
        return Err(SourceError::MissingRight {
            grant: format!("ALTER ROLE \"{role}\" REPLICATION"),
            role,
            action: "receive base backups",
        });
    }
    session::lift_limits(&mut session).await?;
    let (page_bytes, segment_pages): (i32, i32) =
        sqlx::query_as("select database_block_size, blocks_per_segment from pg_control_init()")
            .fetch_one(&mut session)
            .await
            .map_err(session::failed("tell the size of its pages"))?;
    let unknown = |_| SourceError::Refused("the server's page size is not understood".to_owned());
    let mut facts = facts::gather(&mut session, identity.major_version()).await?;
    let config = config::read(&mut session, &identity, &mut facts).await?;
    // The slot keeps what the last checkpoint needs; the backup begins with a later one.
    let wal_hold = WalHold::take(connect(server).await?, &mut facts.notes).await;
    Ok(Preparation {
        session,
        identity,
        facts,
        page_bytes: usize::try_from(page_bytes).map_err(unknown)?,
        segment_pages: u32::try_from(segment_pages).map_err(unknown)?,
        config,
        wal_hold,
    })
}

/// A connection for `BASE_BACKUP`, to the very cluster that was asked.
async fn walsender(
    server: &ConnectOptions,
    identity: &ClusterIdentity,
) -> Result<Connection, SourceError> {
    let mut address = Address::from_url(&server.url, server.password.clone())?;
    "dr_base_backup".clone_into(&mut address.application_name);
    let mut connection = Connection::connect(&address, CONNECT_TIME).await?;
    let found = connection.identify_system().await?;
    // Behind one address there may be two servers.
    if found.system_id != identity.system_id {
        return Err(SourceError::Refused(format!(
            "{} is cluster {} for one connection and {} for the next: name one server",
            connection.place(),
            identity.system_id,
            found.system_id
        )));
    }
    Ok(connection)
}

async fn or_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, ReplicationError>>,
) -> Result<T, SourceError> {
    tokio::select! {
        done = work => Ok(done?),
        () = cancel.cancelled() => Err(SourceError::Cancelled { what: "the base backup" }),
    }
}

/// Receives everything while it is unpacked.
async fn transfer(
    backup: &mut BaseBackup<'_>,
    setting: unpack::Setting,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<(BackupEnd, Unpacked), SourceError> {
    let (pieces, incoming) = mpsc::channel(PIECES_WAITING);
    let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(incoming, setting));
    // The sender goes with it, which ends the unpacking, however it ends.
    let received = receive(backup, pieces, progress, cancel).await;
    let unpacked = unpacking.await.unwrap_or(Err(SourceError::Worker {
        what: "the base backup",
    }));
    match received {
        Ok(Some(end)) => Ok((end, unpacked?)),
        // It takes no more, and says why.
        Ok(None) => match unpacked {
            Err(error) => Err(error),
            Ok(_) => Err(SourceError::Worker {
                what: "the base backup",
            }),
        },
        Err(error) => Err(error),
    }
}

/// Passes on what is received; `None` when nobody takes it.
async fn receive(
    backup: &mut BaseBackup<'_>,
    pieces: mpsc::Sender<Piece>,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Option<BackupEnd>, SourceError> {
    loop {
        let (piece, end) = match or_cancelled(cancel, backup.next()).await? {
            BackupEvent::Archive(tablespace) => (Piece::Archive(tablespace), None),
            BackupEvent::Data(data) => {
                progress.advance(data.len() as u64);
                (Piece::Data(data), None)
            }
            BackupEvent::End(end) => (Piece::End, Some(end)),
        };
        if pieces.send(piece).await.is_err() {
            return Ok(None);
        }
        if end.is_some() {
            return Ok(end);
        }
    }
}

/// Warnings that are not about damaged pages: those are told as such.
fn warnings(all: &[ServerMessage], summary: &CaptureSummary) -> Vec<String> {
    if !summary.corrupt_pages.is_empty() {
        return Vec::new();
    }
    all.iter()
        .take(WARNINGS_KEPT)
        .map(|warning| format!("the server warned: {warning}"))
        .collect()
}

/// Hands over the configuration, owned like the cluster.
fn keep_config(
    files: Vec<(ConfigFile, Vec<u8>)>,
    (uid, gid): (u32, u32),
    sink: &dyn ItemSink,
) -> Result<u64, SourceError> {
    let mut bytes = 0;
    for (file, content) in files {
        let item = Item {
            path: file.item,
            kind: ItemKind::File,
            mode: 0o640,
            uid,
            gid,
            modified_ns: 0,
            changed_ns: 0,
            inode: 0,
        };
        bytes += content.len() as u64;
        sink.file(&item, &mut content.as_slice(), ContentKind::Other)
            .map_err(|source| SourceError::Sink {
                item: item.path,
                source,
            })?;
    }
    Ok(bytes)
}

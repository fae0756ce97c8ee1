//! PostgreSQL: a base backup and the WAL it cannot start without.
//!
//! Order: the workload is bound to the cluster; the files; the label; then every segment from START to
//! STOP and every `.history` file is in the repository and has been read back; then the point is
//! listed. The server keeps that WAL (a temporary slot) until then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_config::{BaseBackupBy, PostgresSource};
use dr_model::{ByteCount, Condition, Position, RestorePoint, RestorePointId, WalFileName};
use dr_replication::Address;
use dr_sources::SourceError;
use dr_sources::postgres::{
    BaseBackup, BaseBackupResult, CaptureDetails, CaptureOptions, CaptureSummary, ClusterIdentity,
    ConnectOptions, CorruptPage, StreamedOptions, check_data_directory, connect, identify,
    name_relation, receive_base_backup,
};
use dr_store::BackupWriter;
use serde::{Deserialize, Serialize};

use super::changes::Log;
use super::increment::{Base, Beginning, Increment};
use super::secure::{Origin, secure_wal};
use super::server_wal::{Remote, ServerWal};
use super::sink::StoreSink;
use super::{Job, blocking};
use crate::error::{source_error, store_error};
use crate::{BackupError, bind, check_binding};

/// So many damaged pages are told while the backup runs; all are kept with the point.
const DAMAGED_PAGES_TOLD: usize = 10;
/// So many damaged files get the names of their relations, within so much time.
const DAMAGED_FILES_NAMED: usize = 100;
const NAMING_TIME: Duration = Duration::from_secs(20);
/// 2: relation files may be in parts. Who knows only 1 would take them for missing.
const DETAILS_VERSION: u32 = 2;

/// What is stored beside a base backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostgresDetails {
    /// Version of this structure.
    pub version: u32,
    /// What the capture learned of the cluster.
    pub capture: CaptureDetails,
    /// `archive_mode` of the source.
    pub archive_mode: String,
    /// `archive_command` of the source.
    pub archive_command: String,
    /// The WAL files that belong to the point: they live as long as it does.
    pub wal_files: Vec<WalFileName>,
    /// How it came by what it did not read; `None` when everything was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub increment: Option<Increment>,
}

impl PostgresDetails {
    /// Whether this program knows how to restore what these describe.
    #[must_use]
    pub fn is_known(&self) -> bool {
        (1..=DETAILS_VERSION).contains(&self.version)
    }

    /// Whether the source archived continuously; when not, the point restores to its own end only.
    #[must_use]
    pub fn archives(&self) -> bool {
        archives(&self.archive_mode, &self.archive_command)
    }
}

fn archives(mode: &str, command: &str) -> bool {
    // "(disabled)" is what the server shows for archive_command while archive_mode is off.
    mode != "off" && !command.is_empty() && command != "(disabled)"
}

pub(super) async fn back_up(
    job: &Job<'_>,
    source: &PostgresSource,
) -> Result<RestorePoint, BackupError> {
    let identity = prepare(job, source).await?;
    let writer = job.begin().await?;
    let Captured {
        result,
        sink,
        since,
    } = match source.base_backup {
        BaseBackupBy::Read => capture(job, source, writer).await?,
        BaseBackupBy::Receive => receive(job, source, writer).await?,
    };
    let origin = match result.in_recovery {
        true => Origin::Standby,
        false => Origin::Primary {
            archives: archives(&identity.archive_mode, &identity.archive_command),
        },
    };
    let server = server_wal(job, source, &result)?;
    let secured = secure_wal(job, server, &result.position, origin).await?;
    // The WAL is stored: the server need not keep it any longer.
    let BaseBackupResult {
        position,
        started,
        moment,
        summary,
        details,
        in_recovery: _,
        wal_hold,
    } = result;
    drop(wal_hold);
    // How old a standby's files are, its WAL tells and not its clock.
    let moment = match origin {
        Origin::Primary { .. } => moment,
        Origin::Standby => secured.last_commit.map_or(started, |at| at.max(started)),
    };
    if origin == Origin::Standby && !archives(&identity.archive_mode, &identity.archive_command) {
        job.progress.note(
            "The standby has no archive_command of its own: a cluster that is restored from this as \
             the new primary will not archive until it is given one.",
        );
    }
    let condition = condition(job, source, &summary).await;
    let details = PostgresDetails {
        version: DETAILS_VERSION,
        capture: details,
        archive_mode: identity.archive_mode,
        archive_command: identity.archive_command,
        wal_files: secured.files,
        increment: since.map(|(since, read_in_full)| Increment {
            since,
            read_in_full,
            spared: summary.spared,
            changed_pages: summary.changed_pages,
            files_in_parts: summary.files_in_parts,
        }),
    };
    if let Some(increment) = &details.increment {
        job.progress.note(&format!(
            "Since {}: {} changed pages were read, {} did not change and were not read.",
            increment.since,
            increment.changed_pages,
            ByteCount(increment.spared)
        ));
    }
    let details = serde_json::to_value(details).map_err(|error| BackupError::BadRecord {
        what: "the details of a restore point".to_owned(),
        place: job.repository.describe(),
        detail: error.to_string(),
    })?;
    let mut point = job.point(started, moment, Position::Postgres(position), condition);
    // As the cluster has them, in parts or not.
    (point.files, point.bytes_source) = (summary.files, ByteCount(summary.bytes));
    job.finish(StoreSink::reclaim(sink)?, point, details).await
}

/// Damaged pages are told at once, and kept with the point.
async fn condition(job: &Job<'_>, source: &PostgresSource, summary: &CaptureSummary) -> Condition {
    if summary.corrupt_pages.is_empty() {
        return Condition::Whole;
    }
    // Without their names they are told by their files: a catalog that does not answer may be damaged too.
    let named = tokio::time::timeout(NAMING_TIME, name_files(job, source, summary)).await;
    let names = named.unwrap_or_default();
    let line = |page: &CorruptPage| {
        let of = match names.get(&page.path) {
            Some(name) => format!("{name} ({})", page.path),
            None => page.path.clone(),
        };
        format!("page {} of {of}: {}", page.page, page.what)
    };
    let details: Vec<String> = summary.corrupt_pages.iter().map(line).collect();
    for line in details.iter().take(DAMAGED_PAGES_TOLD) {
        job.progress
            .note(&format!("WARNING: damaged in the source: {line}"));
    }
    if let Some(more) = details
        .len()
        .checked_sub(DAMAGED_PAGES_TOLD)
        .filter(|n| *n > 0)
    {
        job.progress
            .note(&format!("WARNING: and {more} more pages"));
    }
    Condition::SourceDamaged { details }
}

/// What people call the relations of damaged files, as far as it can be told.
async fn name_files(
    job: &Job<'_>,
    source: &PostgresSource,
    summary: &CaptureSummary,
) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    let Ok(options) = connect_options(job, source) else {
        return names;
    };
    let Ok(mut session) = connect(&options).await else {
        return names;
    };
    let files: BTreeSet<&String> = summary
        .corrupt_pages
        .iter()
        .map(|page| &page.path)
        .collect();
    for path in files.into_iter().take(DAMAGED_FILES_NAMED) {
        if let Some(name) = name_relation(&mut session, path).await {
            names.insert(path.clone(), name);
        }
    }
    names
}

/// A base backup that has ended.
struct Captured {
    result: BaseBackupResult,
    sink: Arc<StoreSink>,
    /// The point that it took over from, and when everything was last read.
    since: Option<(RestorePointId, DateTime<Utc>)>,
}

fn connect_options(job: &Job<'_>, source: &PostgresSource) -> Result<ConnectOptions, BackupError> {
    let password = job.installation.postgres_password(&job.workload)?;
    Ok(ConnectOptions {
        url: source.url.clone(),
        password,
    })
}

/// Makes sure that server, folder and workload are one and the same cluster, before anything is stored.
async fn prepare(job: &Job<'_>, source: &PostgresSource) -> Result<ClusterIdentity, BackupError> {
    let mut connection = connect(&connect_options(job, source)?)
        .await
        .map_err(source_error(format!(
            "reach the server of `{}`",
            job.name()
        )))?;
    let identity = identify(&mut connection)
        .await
        .map_err(source_error(format!(
            "identify the server of `{}`",
            job.name()
        )))?;
    if source.base_backup == BaseBackupBy::Read {
        check_data_directory(&source.data_directory, &identity)
            .map_err(source_error(format!("back up `{}`", job.name())))?;
    }
    let (repository, name) = (job.repository.clone(), job.name().clone());
    let (system_id, now) = (identity.system_id, job.installation.clock.now());
    blocking("bind the workload", move || {
        check_binding(&repository, &name, system_id)?;
        bind(&repository, &name, system_id, now)
    })
    .await?;
    Ok(identity)
}

async fn capture(
    job: &Job<'_>,
    source: &PostgresSource,
    writer: BackupWriter,
) -> Result<Captured, BackupError> {
    let failed = || not_captured(job);
    // A dedicated session: the server voids the backup the moment it ends.
    let options = connect_options(job, source)?;
    let session = connect(&options).await.map_err(failed())?;
    let holder = connect(&options).await.map_err(failed())?;
    job.progress.phase("waiting for a checkpoint", None);
    let mut backup = BaseBackup::begin(session, holder, &source.data_directory, &label(job))
        .await
        .map_err(failed())?;
    let (writer, base) = find_base(job, source, &backup, writer).await?;
    let (known, kept, since) = match base {
        Some(base) => (base.known, base.kept, Some((base.since, base.read_in_full))),
        None => Default::default(),
    };
    let sink = Arc::new(StoreSink::new(writer).carrying(kept));
    backup
        .capture(
            Arc::clone(&sink) as Arc<dyn dr_sources::ItemSink>,
            CaptureOptions {
                known,
                parallelism: source.read_parallelism,
                bytes_per_second: source.read_rate.map(|rate| rate.bytes_per_second),
            },
            Arc::clone(&job.progress),
            job.cancel.clone(),
        )
        .await
        .map_err(failed())?;
    let result = backup
        .end(Arc::clone(&sink) as Arc<dyn dr_sources::ItemSink>)
        .await
        .map_err(failed())?;
    Ok(Captured {
        result,
        sink,
        since,
    })
}

/// Has the server send everything. What it holds already is not stored again.
async fn receive(
    job: &Job<'_>,
    source: &PostgresSource,
    writer: BackupWriter,
) -> Result<Captured, BackupError> {
    let sink = Arc::new(StoreSink::new(writer));
    let options = StreamedOptions {
        label: label(job),
        data_directory: source.data_directory.clone(),
        parallelism: source.read_parallelism,
        bytes_per_second: source.read_rate.map(|rate| rate.bytes_per_second),
    };
    let result = receive_base_backup(
        &connect_options(job, source)?,
        &options,
        Arc::clone(&sink) as Arc<dyn dr_sources::ItemSink>,
        Arc::clone(&job.progress),
        &job.cancel,
    )
    .await
    .map_err(not_captured(job))?;
    Ok(Captured {
        result,
        sink,
        since: None,
    })
}

/// What the backup is called on the server.
fn label(job: &Job<'_>) -> String {
    format!("dr {}", job.name())
}

fn not_captured(job: &Job<'_>) -> impl FnOnce(SourceError) -> BackupError + use<> {
    let name = job.name().clone();
    move |error| match error {
        SourceError::Cancelled { .. } => BackupError::Cancelled(name),
        other => source_error(format!("back up `{name}`"))(other),
    }
}

/// Where the WAL of a backup is found that is not in the repository yet.
fn server_wal(
    job: &Job<'_>,
    source: &PostgresSource,
    result: &BaseBackupResult,
) -> Result<ServerWal, BackupError> {
    if source.base_backup == BaseBackupBy::Read {
        return Ok(ServerWal::Folder(source.data_directory.join("pg_wal")));
    }
    let options = connect_options(job, source)?;
    let address = Address::from_url(&options.url, options.password)
        .map_err(|source| not_captured(job)(source.into()))?;
    Ok(ServerWal::Remote(Box::new(Remote {
        workload: job.name().clone(),
        address,
        runtime: tokio::runtime::Handle::current(),
        system_id: result.position.system_id,
        segment_bytes: result.position.wal_segment_bytes,
        cancel: job.cancel.clone(),
    })))
}

/// Finds out what need not be read again, and tells which it is.
async fn find_base(
    job: &Job<'_>,
    source: &PostgresSource,
    backup: &BaseBackup,
    writer: BackupWriter,
) -> Result<(BackupWriter, Option<Base>), BackupError> {
    let full_every =
        chrono::TimeDelta::from_std(source.full_read_every()).unwrap_or(chrono::TimeDelta::MAX);
    if job.full || full_every.is_zero() {
        return Ok((writer, None));
    }
    job.progress
        .phase("reading what changed from the WAL", None);
    let (repository, workload) = (job.repository.clone(), job.name().clone());
    let identity = backup.identity().clone();
    let pg_wal = source.data_directory.join("pg_wal");
    let (start_lsn, segment_pages) = (backup.start_lsn(), backup.segment_pages());
    let (now, cancel) = (job.installation.clock.now(), job.cancel.clone());
    let (writer, base) = blocking("read what changed", move || {
        let beginning = Beginning {
            log: Log {
                repository: &repository,
                workload: &workload,
                pg_wal,
                system_id: identity.system_id,
                cancel,
            },
            identity: &identity,
            start_lsn,
            segment_pages,
            now,
            full_every,
        };
        let base = beginning.base(&writer).map_err(store_error(
            format!("read the last restore point of `{workload}`"),
            &repository,
        ))?;
        Ok((writer, base))
    })
    .await?;
    match base {
        Ok(base) => {
            tracing::info!(workload = %job.name(), since = %base.since, "reading what changed");
            Ok((writer, Some(base)))
        }
        Err(why) => {
            tracing::info!(workload = %job.name(), why, "reading everything");
            job.progress.note(&format!("Everything is read: {why}."));
            Ok((writer, None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_archives_only_with_a_command() {
        assert!(archives("on", "dr wal push %p"));
        assert!(!archives("on", ""));
        assert!(!archives("off", "(disabled)"));
    }
}

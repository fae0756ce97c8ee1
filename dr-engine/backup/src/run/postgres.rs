//! PostgreSQL: a base backup and the WAL it cannot start without.
//!
//! Order: the workload is bound to the cluster; the files; the label; then every segment from START to
//! STOP and every `.history` file is in the repository and has been read back; then the point is
//! listed. The server keeps that WAL (a temporary slot) until then.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dr_config::PostgresSource;
use dr_model::{Condition, Position, PostgresPosition, RestorePoint, WalFileName, WorkloadName};
use dr_sources::postgres::{
    BaseBackup, BaseBackupResult, CaptureDetails, ClusterIdentity, ConnectOptions,
    check_data_directory, connect, identify,
};
use dr_store::Repository;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::sink::StoreSink;
use super::{Job, blocking};
use crate::error::{file_error, source_error, store_error};
use crate::{BackupError, bind, check_binding, wal};

/// How long the archiver is given to bring the last segments by itself before we copy them.
const ARCHIVER_PATIENCE: Duration = Duration::from_secs(10);
/// How often the repository is asked meanwhile.
const ARCHIVER_POLL: Duration = Duration::from_millis(250);
const DETAILS_VERSION: u32 = 1;

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
}

impl PostgresDetails {
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
    let sink = Arc::new(StoreSink::new(writer));
    let result = capture(job, source, &sink).await?;
    let archiving = archives(&identity.archive_mode, &identity.archive_command);
    let wal_files = secure_wal(job, source, &result.position, archiving).await?;
    // The WAL is stored: the server need not keep it any longer.
    let BaseBackupResult {
        position,
        started,
        moment,
        summary,
        details,
        wal_hold,
    } = result;
    drop(wal_hold);
    let condition = if summary.corrupt_pages.is_empty() {
        Condition::Whole
    } else {
        let line = |page: &dr_sources::postgres::CorruptPage| {
            format!("{} page {}: {}", page.path, page.page, page.what)
        };
        Condition::SourceDamaged {
            details: summary.corrupt_pages.iter().map(line).collect(),
        }
    };
    let details = PostgresDetails {
        version: DETAILS_VERSION,
        capture: details,
        archive_mode: identity.archive_mode,
        archive_command: identity.archive_command,
        wal_files,
    };
    let details = serde_json::to_value(details).map_err(|error| BackupError::BadRecord {
        what: "the details of a restore point".to_owned(),
        place: job.repository.describe(),
        detail: error.to_string(),
    })?;
    let point = job.point(started, moment, Position::Postgres(position), condition);
    job.finish(StoreSink::reclaim(sink)?, point, details).await
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
    if identity.in_recovery {
        return Err(BackupError::Standby(job.name().clone()));
    }
    check_data_directory(&source.data_directory, &identity)
        .map_err(source_error(format!("back up `{}`", job.name())))?;
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
    sink: &Arc<StoreSink>,
) -> Result<BaseBackupResult, BackupError> {
    let failed = || {
        let name = job.name().clone();
        move |error: dr_sources::SourceError| match error {
            dr_sources::SourceError::Cancelled { .. } => BackupError::Cancelled(name),
            other => source_error(format!("back up `{name}`"))(other),
        }
    };
    // A dedicated session: the server voids the backup the moment it ends.
    let session = connect(&connect_options(job, source)?)
        .await
        .map_err(failed())?;
    job.progress.phase("waiting for a checkpoint", None);
    let label = format!("dr {}", job.name());
    let mut backup = BaseBackup::begin(session, &source.data_directory, &label)
        .await
        .map_err(failed())?;
    backup
        .capture(
            Arc::clone(sink) as Arc<dyn dr_sources::ItemSink>,
            source.read_parallelism.max(1),
            Arc::clone(&job.progress),
            job.cancel.clone(),
        )
        .await
        .map_err(failed())?;
    backup
        .end(Arc::clone(sink) as Arc<dyn dr_sources::ItemSink>)
        .await
        .map_err(failed())
}

/// The segments from START to STOP.
fn segments_of(position: &PostgresPosition) -> Vec<WalFileName> {
    let size = position.wal_segment_bytes;
    let first = position.start_lsn.0 / size;
    // A stop exactly at a boundary ends the segment before it.
    let last = position.stop_lsn.0.saturating_sub(1) / size;
    (first..=last)
        .map(|number| WalFileName::of_number(number, position.timeline, size))
        .collect()
}

async fn secure_wal(
    job: &Job<'_>,
    source: &PostgresSource,
    position: &PostgresPosition,
    archiving: bool,
) -> Result<Vec<WalFileName>, BackupError> {
    job.progress.phase("securing its WAL", None);
    let work = WalWork {
        repository: job.repository.clone(),
        workload: job.name().clone(),
        pg_wal: source.data_directory.join("pg_wal"),
        position: position.clone(),
        patience: if archiving {
            ARCHIVER_PATIENCE
        } else {
            Duration::ZERO
        },
        clock: Arc::clone(&job.installation.clock),
        cancel: job.cancel.clone(),
    };
    blocking("secure the WAL", move || work.secure()).await
}

struct WalWork {
    repository: Repository,
    workload: WorkloadName,
    pg_wal: PathBuf,
    position: PostgresPosition,
    patience: Duration,
    clock: Arc<dyn dr_model::Clock>,
    cancel: CancellationToken,
}

impl WalWork {
    /// Brings every file the point needs into the repository and reads each back.
    fn secure(&self) -> Result<Vec<WalFileName>, BackupError> {
        let segments = segments_of(&self.position);
        let histories = self.histories()?;
        let mut missing: BTreeSet<WalFileName> =
            segments.iter().chain(&histories).cloned().collect();
        let deadline = Instant::now() + self.patience;
        loop {
            let mut still = BTreeSet::new();
            for name in missing {
                if !self.is_stored(&name)? {
                    still.insert(name);
                }
            }
            missing = still;
            if missing.is_empty() || Instant::now() >= deadline {
                break;
            }
            if self.cancel.is_cancelled() {
                return Err(BackupError::Cancelled(self.workload.clone()));
            }
            std::thread::sleep(ARCHIVER_POLL);
        }
        for name in &missing {
            self.copy(name)?;
        }
        for name in &segments {
            self.read_back(name)?;
        }
        for name in &histories {
            self.read_back(name)?;
        }
        Ok(segments.into_iter().chain(histories).collect())
    }

    fn is_stored(&self, name: &WalFileName) -> Result<bool, BackupError> {
        self.repository
            .wal_info(&self.workload, name)
            .map(|info| info.is_some())
            .map_err(store_error(
                format!("look for {name} of `{}`", self.workload),
                &self.repository,
            ))
    }

    /// The `.history` files of the cluster's own past; of timeline 1 there is none.
    fn histories(&self) -> Result<Vec<WalFileName>, BackupError> {
        let own = self.position.timeline;
        let mut found: Vec<WalFileName> = wal::names_in(&self.pg_wal)?
            .into_iter()
            .filter(|name| match name {
                WalFileName::History { timeline } => *timeline <= own,
                _ => false,
            })
            .collect();
        let newest = WalFileName::History { timeline: own };
        if own.0 > 1 && !found.contains(&newest) {
            found.push(newest);
        }
        Ok(found)
    }

    /// Stores a file from `pg_wal` ourselves. The segments are complete: ending the backup made the
    /// server switch to a new one.
    fn copy(&self, name: &WalFileName) -> Result<(), BackupError> {
        let path = self.pg_wal.join(name.to_string());
        if !path.exists() {
            // The archiver may have brought and removed it since we last asked.
            if self.is_stored(name)? {
                return Ok(());
            }
            return Err(BackupError::WalMissing {
                workload: self.workload.clone(),
                name: name.clone(),
                looked_in: self.pg_wal.clone(),
            });
        }
        let body = read(&path)?;
        if matches!(name, WalFileName::Segment { .. }) {
            let found = wal::check_segment(name, &body)?;
            check_binding(&self.repository, &self.workload, found)?;
        }
        wal::put(
            &self.repository,
            &self.workload,
            name,
            &body,
            self.clock.now(),
        )?;
        Ok(())
    }

    /// The segment as the server still has it; `None` when it was recycled already.
    fn own_segment(&self, name: &WalFileName) -> Result<Option<Vec<u8>>, BackupError> {
        let path = self.pg_wal.join(name.to_string());
        match std::fs::read(&path) {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    /// Proves that the repository gives back what a restore of this point will ask it for.
    fn read_back(&self, name: &WalFileName) -> Result<(), BackupError> {
        let body = self
            .repository
            .get_wal(&self.workload, name)
            .map_err(store_error(
                format!("read back {name} of `{}`", self.workload),
                &self.repository,
            ))?
            .ok_or_else(|| BackupError::WalMissing {
                workload: self.workload.clone(),
                name: name.clone(),
                looked_in: self.pg_wal.clone(),
            })?;
        let bad = |what: &str| BackupError::BadWal {
            file: name.to_string(),
            what: format!("read back from the repository, {what}"),
        };
        match name {
            WalFileName::Segment { .. } => {
                let found = wal::check_segment(name, &body)?;
                if found != self.position.system_id {
                    return Err(bad("it belongs to another cluster"));
                }
                // A rescue or a copy may have stored another end under this name: the start of this very
                // backup could be missing in it.
                if let Some(own) = self.own_segment(name)?
                    && own != body
                {
                    return Err(bad("it is not what this server wrote"));
                }
            }
            _ => {
                std::str::from_utf8(&body)
                    .ok()
                    .and_then(crate::window::parse_history)
                    .ok_or_else(|| bad("it is no timeline history"))?;
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BackupError> {
    std::fs::read(path).map_err(file_error("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dr_model::{Lsn, SystemId, Timeline};

    #[test]
    fn a_stop_at_a_boundary_needs_no_segment_behind_it() {
        let size = 16 << 20;
        let name = |lsn: u64| WalFileName::containing(Lsn(lsn), Timeline(1), size);
        let mut position = PostgresPosition {
            system_id: SystemId(1),
            timeline: Timeline(1),
            start_lsn: Lsn(2 * size + 40),
            stop_lsn: Lsn(4 * size),
            start_segment: name(2 * size),
            stop_segment: name(3 * size),
            wal_segment_bytes: size,
            server_version_num: 150_018,
            page_checksums: true,
        };
        assert_eq!(segments_of(&position), [name(2 * size), name(3 * size)]);
        position.stop_lsn = Lsn(4 * size + 1);
        assert_eq!(segments_of(&position).len(), 3);
    }

    #[test]
    fn a_cluster_archives_only_with_a_command() {
        assert!(archives("on", "dr wal push %p"));
        assert!(!archives("on", ""));
        assert!(!archives("off", "(disabled)"));
    }
}

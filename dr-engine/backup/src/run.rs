//! The conductor.

mod changes;
mod files;
mod increment;
mod nats;
mod postgres;
mod secure;
mod server_wal;
mod sink;

use std::path::Path;
use std::sync::Arc;

use dr_config::{Workload, WorkloadSource};
use dr_installation::{ConfigurationSnapshot, Installation};
use dr_model::{
    ByteCount, Condition, Position, Progress, RestorePoint, RestorePointId, WorkloadName,
};
use dr_store::{BackupWriter, Repository, WriteOptions};
use tokio_util::sync::CancellationToken;

use crate::BackupError;
use crate::error::store_error;

pub use increment::Increment;
pub use nats::{NatsDetails, stream_snapshot_path};
pub use postgres::PostgresDetails;

/// zstd's level where the tier names none: on database pages within 3 % of what level 3 comes to, for
/// about half the time.
const COMPRESSION_LEVEL_DEFAULT: i32 = 1;

/// How to back up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackupOptions {
    /// Read everything, whatever the previous restore point could spare.
    pub full: bool,
}

/// Backs up one workload and returns the listed restore point. No lane handling: the caller wraps this
/// in a job.
///
/// # Errors
/// Nothing is listed when this fails; the source is as it was.
pub async fn run(
    installation: &Installation,
    workload: &WorkloadName,
    options: &BackupOptions,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<RestorePoint, BackupError> {
    let found = installation.config.workload(workload.as_str())?;
    let repository = installation.open_repository_of(workload).await?;
    let job = Job {
        installation,
        workload: found,
        repository,
        full: options.full,
        progress,
        cancel,
    };
    // Neither holds up the backup, nor fails it.
    let ((), configuration, point) = tokio::join!(
        warn_of_lists_that_went_back(&job),
        configuration_to_store(&job),
        back_up(&job),
    );
    let point = point?;
    store_configuration(&job, configuration).await;
    index(installation, &point).await;
    Ok(point)
}

async fn back_up(job: &Job<'_>) -> Result<RestorePoint, BackupError> {
    match job.workload.source {
        WorkloadSource::Postgres(source) => postgres::back_up(job, source).await,
        WorkloadSource::Nats(source) => nats::back_up(job, source).await,
        WorkloadSource::Files(source) => files::back_up(job, source).await,
    }
}

/// What every kind of backup needs.
struct Job<'a> {
    installation: &'a Installation,
    workload: Workload<'a>,
    repository: Repository,
    full: bool,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
}

impl Job<'_> {
    fn name(&self) -> &WorkloadName {
        self.workload.name
    }

    /// Opens the writer. Blocking: it may create the workload's data key.
    async fn begin(&self) -> Result<BackupWriter, BackupError> {
        let (repository, name) = (self.repository.clone(), self.name().clone());
        let options = WriteOptions {
            compression_level: self
                .workload
                .tier
                .compression
                .unwrap_or(COMPRESSION_LEVEL_DEFAULT),
            lock: self.workload.tier.lock.map(|period| period.0),
            storage_class: self.workload.tier.storage_class.clone(),
            ..WriteOptions::default()
        };
        blocking("begin the backup", move || {
            repository.begin(&name, options).map_err(store_error(
                format!("begin a backup of `{name}`"),
                &repository,
            ))
        })
        .await
    }

    /// The restore point as far as it is known now; the writer fills in the amounts that are left 0.
    fn point(
        &self,
        started: chrono::DateTime<chrono::Utc>,
        moment: chrono::DateTime<chrono::Utc>,
        position: Position,
        condition: Condition,
    ) -> RestorePoint {
        RestorePoint {
            id: RestorePointId::new(self.name(), started),
            workload: self.name().clone(),
            tier: self.workload.tier.tier.clone(),
            started,
            finished: self.installation.clock.now(),
            moment,
            position,
            files: 0,
            bytes_source: ByteCount(0),
            bytes_added: ByteCount(0),
            condition,
        }
    }

    /// Lists the point: from here on it exists.
    async fn finish(
        &self,
        writer: BackupWriter,
        mut point: RestorePoint,
        details: serde_json::Value,
    ) -> Result<RestorePoint, BackupError> {
        if self.cancel.is_cancelled() {
            return Err(BackupError::Cancelled(self.name().clone()));
        }
        self.progress.phase("listing the restore point", None);
        point.finished = self.installation.clock.now();
        let (repository, name) = (self.repository.clone(), self.name().clone());
        let copies = writer.copies();
        let point = blocking("list the restore point", move || {
            writer.finish(point, details).map_err(store_error(
                format!("list a restore point of `{name}`"),
                &repository,
            ))
        })
        .await?;
        // It is listed: a copy that lags fails nothing, but nobody is left to believe that it does not.
        for copy in copies.states() {
            if let Some(why) = copy.behind {
                self.progress.note(&format!(
                    "copy `{}` does not have this restore point yet ({why}); `dr repo sync` brings it up",
                    copy.name
                ));
            }
        }
        Ok(point)
    }
}

/// Says loudly that the repository is not what it was; the backup is taken all the same, because it is
/// then needed more than ever.
async fn warn_of_lists_that_went_back(job: &Job<'_>) {
    let (installation, workload) = (job.installation, job.name());
    let Ok(name) = installation.repository_name_of(workload) else {
        return;
    };
    match crate::lists_that_went_back(installation, &name, job.repository.clone()).await {
        Ok(found) => {
            for back in found.iter().filter(|back| back.workload == *workload) {
                tracing::error!(%workload, what = back.what, "the repository went back");
                job.progress.note(&format!(
                    "WARNING: the list of restore points of `{workload}` is not what it was: {}",
                    back.what
                ));
            }
        }
        Err(error) => tracing::debug!(%error, "not told whether a list went back"),
    }
}

/// Runs blocking work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| BackupError::Worker(what))?
}

/// Whether the repository lacks the present configuration.
async fn configuration_to_store(
    job: &Job<'_>,
) -> Result<Option<ConfigurationSnapshot>, BackupError> {
    let (installation, repository) = (job.installation.clone(), job.repository.clone());
    blocking("read the stored configuration", move || {
        Ok(installation.configuration_to_store(&repository)?)
    })
    .await
}

/// The configuration goes into the repository with every backup: repository and key are enough to begin
/// again elsewhere. The point is listed already, so a failure is told and not more.
async fn store_configuration(
    job: &Job<'_>,
    configuration: Result<Option<ConfigurationSnapshot>, BackupError>,
) {
    let stored = match configuration {
        Ok(None) => return,
        Ok(Some(configuration)) => {
            let repository = job.repository.clone();
            blocking("store the configuration", move || {
                Ok(configuration.store(&repository)?)
            })
            .await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = stored {
        tracing::warn!(%error, "the configuration was not stored with the backup");
        job.progress.note(&format!(
            "the configuration was not stored with this backup: {error}"
        ));
    }
}

/// The catalog comes last and may fail: it is read from the repository again at the next start.
async fn index(installation: &Installation, point: &RestorePoint) {
    let index = async {
        let catalog = installation
            .catalog()
            .await
            .map_err(|error| error.to_string())?;
        let repository = installation
            .repository_name_of(&point.workload)
            .map_err(|error| error.to_string())?;
        catalog
            .upsert_point(point, &repository)
            .await
            .map_err(|error| error.to_string())
    };
    if let Err(error) = index.await {
        tracing::warn!(error, point = %point.id, "the catalog does not have this restore point yet");
    }
}

/// Stores the files under `folder` as a restore point of `workload`. `point.files`, `bytes_source` and
/// `bytes_added` are filled in. Blocks.
///
/// # Errors
/// Nothing is listed when this fails.
pub fn store_folder(
    installation: &Installation,
    repository: &Repository,
    workload: &WorkloadName,
    folder: &Path,
    point: RestorePoint,
    details: serde_json::Value,
) -> Result<RestorePoint, BackupError> {
    let found = installation.config.workload(workload.as_str())?;
    let options = WriteOptions {
        compression_level: found.tier.compression.unwrap_or(COMPRESSION_LEVEL_DEFAULT),
        lock: found.tier.lock.map(|period| period.0),
        storage_class: found.tier.storage_class.clone(),
        ..WriteOptions::default()
    };
    let writer = repository.begin(workload, options).map_err(store_error(
        format!("begin a restore point of `{workload}`"),
        repository,
    ))?;
    let sink = sink::StoreSink::new(writer);
    files::capture_folder(folder, &sink, &dr_model::Silent, &CancellationToken::new())?;
    sink.into_writer()
        .finish(point, details)
        .map_err(store_error(
            format!("list a restore point of `{workload}`"),
            repository,
        ))
}

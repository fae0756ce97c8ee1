//! What most commands begin with: the configuration, a way to stop, and a place on a lane.

use std::future::Future;
use std::path::{Path, PathBuf};

use dr_config::{Config, ConfigError};
use dr_installation::{Installation, InstallationError};
use dr_jobs::{JobError, JobSpec, Jobs};
use dr_model::WorkloadName;
use tokio_util::sync::CancellationToken;

use crate::failure::{FAILED, Failure};
use crate::output;

/// What the command line says for every command.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) config: Option<PathBuf>,
    pub(crate) json: bool,
    /// Ends when the process is asked to stop.
    pub(crate) cancel: CancellationToken,
}

impl Context {
    pub(crate) fn new(config: Option<PathBuf>, json: bool) -> Self {
        let cancel = CancellationToken::new();
        tokio::spawn(wait_for_signal(cancel.clone()));
        Self {
            config,
            json,
            cancel,
        }
    }

    pub(crate) fn config_path(&self) -> Result<PathBuf, ConfigError> {
        let path = Config::find(self.config.as_deref())?;
        Ok(std::path::absolute(&path).unwrap_or(path))
    }

    pub(crate) fn installation(&self) -> Result<Installation, Failure> {
        Ok(Installation::open(&self.config_path()?)?)
    }

    /// Runs `work` as a job on a lane.
    pub(crate) async fn job<T, E, F, Work>(
        &self,
        installation: &Installation,
        kind: &'static str,
        lane: &str,
        detail: String,
        wait: bool,
        work: Work,
    ) -> Result<T, Failure>
    where
        Work: FnOnce(dr_jobs::JobContext) -> F,
        F: Future<Output = Result<T, E>>,
        E: std::error::Error + Send + Sync + 'static,
        Failure: From<E>,
    {
        let catalog = match installation.catalog().await {
            Ok(catalog) => Some(catalog),
            Err(error) => {
                // The repository is the truth: a catalog that is away stops no backup and no restore.
                let failure = <Failure as From<InstallationError>>::from(error);
                output::talk(&format!(
                    "warning: {}; going on without a job record",
                    failure.chain.join(": ")
                ));
                None
            }
        };
        let jobs = Jobs::new(catalog, installation.clock.clone());
        let spec = JobSpec {
            kind: kind.to_owned(),
            lane: lane.to_owned(),
            detail,
        };
        jobs.run(spec, wait, &self.cancel, work)
            .await
            .map_err(job_failure)
    }
}

fn job_failure<E>(error: JobError<E>) -> Failure
where
    E: std::error::Error + Send + Sync + 'static,
    Failure: From<E>,
{
    match error {
        JobError::Failed(error) => Failure::from(error),
        JobError::LaneBusy { .. } => Failure::plain(
            FAILED,
            error.to_string(),
            Some("wait for it to end, or add --wait"),
        ),
        other => Failure::plain(FAILED, other.to_string(), None),
    }
}

async fn wait_for_signal(cancel: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    cancel.cancel();
}

/// A workload's name from the command line, checked against the configuration.
pub(crate) fn workload(installation: &Installation, name: &str) -> Result<WorkloadName, Failure> {
    Ok(installation.config.workload(name)?.name.clone())
}

/// This program's own path, for commands it starts and writes down.
pub(crate) fn own_binary() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::of("cannot find this program's own file", &error))
}

/// A path from the command line, absolute.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::of(&format!("cannot resolve {}", path.display()), &error))
}

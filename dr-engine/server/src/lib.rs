//! The daemon: runs what the tiers' schedules ask for, and raises alerts about what does not happen.
//!
//! One daemon for each catalog: it holds a lock on a file beside the catalog, which the kernel frees
//! when the process dies. At its start it ends the jobs of dead processes with a reason, runs again at
//! once what they were interrupted in, and indexes restore points that the catalog lacks.
//!
//! Once a second it asks what is due (dr-scheduler, pure). Each workload is a lane of its own with at
//! most one task; a lane that is stuck holds up nothing else. A planned moment is claimed in the catalog
//! before it is run and ended there after, so it happens once; moments that passed unused collapse to
//! the latest. A failing activity is tried again at its next planned moment, not sooner than a delay
//! that doubles with each failure.
//!
//! Silence is an alarm: a schedule that does not run or fails, a recoverable moment older than the
//! objective, a verification that is overdue or failed each raise one alert, as a log line and in the
//! catalog, and clear it when mended.
//!
//! A crash leaves a claimed run and a running job; both are ended at the next start. On request the
//! daemon stops launching, tells running work to stop, and waits [`STOP_TIMEOUT`] for it.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod alerts;
mod daemon;
mod error;
mod launch;
mod lock;
mod timetable;

use std::sync::Arc;

use dr_installation::Installation;
use dr_jobs::Jobs;
use tokio_util::sync::CancellationToken;

pub use daemon::STOP_TIMEOUT;
pub use error::ServerError;
pub use launch::{Launched, Launcher, Task};

/// Runs until `shutdown` is cancelled.
///
/// # Errors
/// When the catalog cannot be opened or another daemon uses it. Once running, nothing but `shutdown`
/// ends it.
pub async fn serve(
    installation: Installation,
    shutdown: CancellationToken,
) -> Result<(), ServerError> {
    let catalog = installation.catalog().await?;
    let jobs = Jobs::new(Some(catalog), installation.clock.clone());
    let launcher = Arc::new(launch::JobLauncher::new(installation.clone(), jobs));
    serve_with(installation, launcher, shutdown).await
}

/// [`serve`] with another way to carry out what is due.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    installation: Installation,
    launcher: Arc<dyn Launcher>,
    shutdown: CancellationToken,
) -> Result<(), ServerError> {
    let catalog = installation.catalog().await?;
    let _lock = lock::DaemonLock::take(catalog.path())?;
    let jobs = Jobs::new(Some(catalog.clone()), installation.clock.clone());
    for ended in jobs.recover().await.map_err(ServerError::Recover)? {
        tracing::warn!(
            job = ended.id,
            kind = ended.kind,
            lane = ended.lane,
            reason = ended.reason,
            "ended a job that was left behind"
        );
    }
    let daemon = daemon::Daemon::new(installation, catalog, launcher).await?;
    daemon.run(shutdown).await;
    Ok(())
}

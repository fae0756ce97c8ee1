//! Carrying out a plan.

mod cluster;
mod command;
mod folder;
mod over;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use dr_installation::Installation;
use dr_model::{ByteCount, Progress, Target};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{PlannedSource, RestoreError, RestorePlan};

pub(crate) use cluster::{Purpose, restore_cluster};
pub(crate) use folder::{prepare_folder, server_user};
pub use over::rescue_first;

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreOutcome {
    /// The folder; `None` for queues.
    pub folder: Option<PathBuf>,
    /// Files written, or messages put back.
    pub files: u64,
    /// Their size.
    pub bytes: ByteCount,
    /// What the operator should know, one line each.
    pub notes: Vec<String>,
}

/// Restores what `plan` says. Starts nothing.
///
/// # Errors
/// A failure leaves a folder that cannot be started.
pub async fn execute(
    installation: &Installation,
    plan: &RestorePlan,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<RestoreOutcome, RestoreError> {
    match &plan.source {
        PlannedSource::Postgres(_) => {
            let purpose = if plan.as_primary {
                Purpose::Primary
            } else {
                Purpose::Copy
            };
            restore_cluster(installation, plan, purpose, progress, cancel).await
        }
        PlannedSource::Files => {
            let into = plan
                .into
                .clone()
                .ok_or_else(|| RestoreError::NoFolder(plan.workload.clone()))?;
            let (workload, point) = (&plan.workload, &plan.point.id);
            let done =
                crate::files::whole_folder(installation, workload, point, &into, progress).await?;
            Ok(RestoreOutcome {
                folder: Some(into),
                files: done.entries,
                bytes: done.bytes,
                notes: plan.notes.clone(),
            })
        }
        PlannedSource::Nats { .. } => {
            let target = Target::RestorePoint(plan.point.id.clone());
            let done = crate::nats(
                installation,
                &plan.workload,
                &target,
                plan.replace,
                progress,
                cancel,
            )
            .await?;
            let messages = done
                .position
                .streams
                .values()
                .map(|stream| stream.messages)
                .sum();
            Ok(RestoreOutcome {
                folder: None,
                files: messages,
                bytes: plan.point.bytes_source,
                notes: plan.notes.clone(),
            })
        }
    }
}

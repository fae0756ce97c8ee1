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
use dr_sources::postgres::put_back;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::erasure::{self, AppliedErasures};
use crate::error::{blocking, source_error};
use crate::files::Erased;
use crate::{PlannedSource, Reached, RestoreError, RestorePlan};

pub(crate) use cluster::{Opening, Purpose, restore_cluster};
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
    /// What was erased and is not in it.
    #[serde(default)]
    pub erasures: AppliedErasures,
    /// Where recovery ended, if the server has been through it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Reached>,
}

/// Restores what `plan` says. Starts nothing that anybody could reach: a cluster of which something was erased since
/// is recovered privately, and shut down again.
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
            store_kept_histories(installation, plan, progress.as_ref()).await?;
            cluster(installation, plan, purpose, progress, cancel).await
        }
        PlannedSource::Files => {
            let into = plan
                .into
                .clone()
                .ok_or_else(|| RestoreError::NoFolder(plan.workload.clone()))?;
            let (workload, point) = (&plan.workload, &plan.point.id);
            let erased = match plan.without_erasures {
                true => Erased::Left,
                false => Erased::Out,
            };
            let (done, erasures) =
                crate::files::whole_folder(installation, workload, point, &into, erased, progress)
                    .await?;
            Ok(RestoreOutcome {
                folder: Some(into),
                files: done.entries,
                bytes: done.bytes,
                notes: plan.notes.clone(),
                erasures,
                reached: None,
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
                erasures: AppliedErasures::default(),
                reached: None,
            })
        }
    }
}

/// Before the restored server chooses a timeline: one whose history is only on this host has taken its number.
async fn store_kept_histories(
    installation: &Installation,
    plan: &RestorePlan,
    progress: &dyn Progress,
) -> Result<(), RestoreError> {
    let (this, workload) = (installation.clone(), plan.workload.clone());
    let stored = blocking("store histories of timelines", move || {
        Ok(dr_backup::wal::store_kept_histories(&this, &workload))
    });
    // It may be a copy that serves, which takes nothing: the restore is needed all the same.
    if let Err(error) = stored.await? {
        progress.note(&format!(
            "a history of a timeline that this host keeps is not stored: {error}"
        ));
    }
    Ok(())
}

/// A cluster, without what was erased. Where the ledger has nothing, it is left before its recovery.
async fn cluster(
    installation: &Installation,
    plan: &RestorePlan,
    purpose: Purpose,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<RestoreOutcome, RestoreError> {
    let entries = erasure::ledger_of(installation, &plan.workload).await?;
    let opening = match entries.is_empty() || plan.without_erasures {
        true => Opening::AtOnce,
        false => Opening::AfterErasures,
    };
    let mut done = restore_cluster(
        installation,
        plan,
        (purpose, opening),
        Arc::clone(&progress),
        cancel.clone(),
    )
    .await?;
    if plan.without_erasures {
        done.erasures.pending = entries.len() as u64;
        return Ok(done);
    }
    let folder = done
        .folder
        .clone()
        .ok_or_else(|| RestoreError::NoFolder(plan.workload.clone()))?;
    if opening == Opening::AtOnce {
        // It may have taken hours, and somebody may have recorded the first entry meanwhile.
        let now = erasure::ledger_of(installation, &plan.workload).await?;
        if now.is_empty() {
            return Ok(done);
        }
        put_back::close_to_clients(&folder).map_err(source_error("close the restored cluster"))?;
    }
    let (applied, reached) = Box::pin(erasure::settle(
        installation,
        plan,
        &folder,
        progress,
        &cancel,
    ))
    .await?;
    done.notes.push(format!(
        "recovered privately to {} and shut down: it is on timeline {} and starts without recovery, and its files \
         are no longer those of its backup_manifest",
        reached.lsn, reached.timeline
    ));
    done.notes.extend(reached.note.clone());
    done.notes.extend(applied.notes.iter().cloned());
    done.erasures = applied;
    done.reached = Some(reached);
    Ok(done)
}

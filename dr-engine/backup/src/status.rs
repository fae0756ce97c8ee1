//! How each workload stands against its promise: read from the repository, which is the truth.

use chrono::{DateTime, Utc};
use dr_config::{Workload, WorkloadSource};
use dr_installation::Installation;
use dr_model::{HumanDuration, RecoveryWindow, RestorePoint, TierName, WorkloadKind, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::error::store_error;
use crate::run::blocking;
use crate::window::{is_whole_workload, window_of};
use crate::{BackupError, PostgresDetails, Verification, verifications};

/// How one workload stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// The workload.
    pub workload: WorkloadName,
    /// What it is.
    pub kind: WorkloadKind,
    /// Its tier.
    pub tier: TierName,
    /// The tier's objective for loss.
    pub rpo: HumanDuration,
    /// The tier's objective for downtime.
    pub rto: HumanDuration,
    /// Restore points it has.
    pub restore_points: u64,
    /// The newest of them.
    pub newest: Option<RestorePoint>,
    /// The newest moment that can be reached: for PostgreSQL with the archived WAL.
    pub recoverable_to: Option<DateTime<Utc>>,
    /// Seconds between that moment and now.
    pub age_seconds: Option<u64>,
    /// Whether that age is within the objective; `None` when nothing can be recovered yet.
    pub rpo_met: Option<bool>,
    /// The recovery window.
    pub window: Option<RecoveryWindow>,
    /// The newest verification of one of its points.
    pub last_verification: Option<Verification>,
    /// What is wrong, one line each; empty when all is well.
    pub problems: Vec<String>,
}

/// The status of every workload, in order of name. An unreachable repository is a problem of its
/// workloads, not an error of this call.
///
/// # Errors
/// When the configuration cannot be used at all.
pub async fn status(installation: &Installation) -> Result<Vec<WorkloadStatus>, BackupError> {
    let installation = installation.clone();
    blocking("learn the status", move || {
        Ok(installation
            .config
            .workloads()
            .map(|workload| of(&installation, &workload))
            .collect())
    })
    .await
}

fn of(installation: &Installation, workload: &Workload<'_>) -> WorkloadStatus {
    let mut status = WorkloadStatus {
        workload: workload.name.clone(),
        kind: workload.source.kind(),
        tier: workload.tier.tier.clone(),
        rpo: workload.tier.rpo,
        rto: workload.tier.rto,
        restore_points: 0,
        newest: None,
        recoverable_to: None,
        age_seconds: None,
        rpo_met: None,
        window: None,
        last_verification: None,
        problems: Vec::new(),
    };
    if let Some(unused) = workload.config.repositories.get(1) {
        status.problems.push(format!(
            "repository `{unused}` is named but not written to yet"
        ));
    }
    if let Err(error) = fill(installation, workload, &mut status) {
        status.problems.push(chain(&error));
        return status;
    }
    judge(installation.clock.now(), &mut status);
    status
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn fill(
    installation: &Installation,
    workload: &Workload<'_>,
    status: &mut WorkloadStatus,
) -> Result<(), BackupError> {
    let name = workload.name;
    let repository = installation.repository_of(name)?;
    let mut points = repository.points(Some(name)).map_err(store_error(
        format!("list the restore points of `{name}`"),
        &repository,
    ))?;
    points.retain(is_whole_workload);
    status.window = window_of(&repository, name, &points)?;
    status.recoverable_to = status.window.as_ref().map(|window| window.to);
    status.last_verification = verifications(&repository, Some(name))?.pop();
    status.restore_points = points.len() as u64;
    if let (WorkloadSource::Postgres(_), Some(newest)) = (workload.source, points.last()) {
        let stored = repository
            .point(&newest.id)
            .map_err(store_error(format!("read {}", newest.id), &repository))?;
        let details =
            stored.and_then(|s| serde_json::from_value::<PostgresDetails>(s.details).ok());
        if details.is_some_and(|details| !details.archives()) {
            status.problems.push(
                "its WAL is not archived: it can be restored to the end of a backup only"
                    .to_owned(),
            );
        }
    }
    status.newest = points.pop();
    Ok(())
}

/// Pure: what the facts mean for the promise.
fn judge(now: DateTime<Utc>, status: &mut WorkloadStatus) {
    let Some(recoverable_to) = status.recoverable_to else {
        status.problems.push("no restore point yet".to_owned());
        return;
    };
    let age = (now - recoverable_to).to_std().unwrap_or_default();
    status.age_seconds = Some(age.as_secs());
    let met = age <= status.rpo.0;
    status.rpo_met = Some(met);
    if !met {
        status.problems.push(format!(
            "the newest recoverable moment is {} s old; the objective is {}",
            age.as_secs(),
            status.rpo
        ));
    }
    if let Some(window) = &status.window
        && !window.gaps.is_empty()
    {
        status
            .problems
            .push(format!("WAL is missing: {}", window.gaps.join(", ")));
    }
    if let Some(newest) = &status.newest
        && let dr_model::Condition::SourceDamaged { details } = &newest.condition
    {
        status
            .problems
            .push(format!("the source has {} damaged pages", details.len()));
    }
    if let Some(verification) = &status.last_verification
        && !verification.passed
    {
        status
            .problems
            .push(format!("the verification of {} failed", verification.point));
    }
}

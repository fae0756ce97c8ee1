//! How each workload stands against its promise: read from the repository, which is the truth.

mod live;

use chrono::{DateTime, Utc};
use dr_config::{Workload, WorkloadSource};
use dr_installation::Installation;
use dr_model::{HumanDuration, RecoveryWindow, RestorePoint, TierName, WorkloadKind, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::error::store_error;
use crate::run::blocking;
use crate::wal::{GivenUp, last_given_up};
use crate::window::{is_whole_workload, reached, window_of};
use crate::{
    BackupError, CopyStanding, CopyStatus, ListWentBack, PostgresDetails, Verification, copies_of,
    lists_that_went_back, verifications,
};

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
    /// How much of that passes until its first repository can be read, as stated; `None` if no time.
    pub retrieval: Option<HumanDuration>,
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
    /// How the copies in other repositories stand.
    pub copies: Vec<CopyStatus>,
    /// How many repositories the tier promises, the first one counted.
    pub copies_promised: u32,
    /// Whether so many have everything, or lag no longer than they may.
    pub copies_met: bool,
    /// That PostgreSQL's archiver failed and has not succeeded since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archiver: Option<String>,
    /// WAL that was given up on this host, if nothing behind it can be recovered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GivenUp>,
    /// Whether WAL is missing behind the newest base backup: what came after that cannot be recovered until
    /// the next one.
    #[serde(default)]
    pub is_broken_off: bool,
    /// That the list of restore points went back, or another took its place, since it was last seen.
    pub list_went_back: Option<String>,
    /// What is wrong, one line each; empty when all is well.
    pub problems: Vec<String>,
}

/// The status of every workload, in order of name. An unreachable repository is a problem of its
/// workloads, not an error of this call.
///
/// # Errors
/// When the configuration cannot be used at all.
pub async fn status(installation: &Installation) -> Result<Vec<WorkloadStatus>, BackupError> {
    let this = installation.clone();
    let live = live::of_servers(installation).await;
    let mut statuses: Vec<WorkloadStatus> = blocking("learn the status", move || {
        let workloads = this.config.workloads();
        let with_live = |workload: Workload<'_>| {
            let live = live.get(workload.name).cloned().unwrap_or_default();
            of(&this, &workload, &live)
        };
        Ok(workloads.map(with_live).collect())
    })
    .await?;
    for back in went_back(installation).await {
        let status = statuses.iter_mut().find(|s| s.workload == back.workload);
        if let Some(status) = status {
            let what = format!(
                "its list of restore points is not what it was: {}",
                back.what
            );
            status.problems.push(what.clone());
            status.list_went_back = Some(what);
        }
    }
    Ok(statuses)
}

/// What is known to have gone back. Where it cannot be told (no catalog, a place that does not answer)
/// nothing is claimed; a check says so.
async fn went_back(installation: &Installation) -> Vec<ListWentBack> {
    let mut found = Vec::new();
    let firsts: Vec<_> = installation
        .config
        .engine
        .first_repositories()
        .cloned()
        .collect();
    for name in firsts {
        let (this, wanted) = (installation.clone(), name.clone());
        let opened = blocking("open a repository", move || Ok(this.place(&wanted)?)).await;
        let Ok(place) = opened else {
            continue;
        };
        match lists_that_went_back(installation, &name, place).await {
            Ok(lists) => found.extend(lists),
            Err(error) => {
                tracing::debug!(error = chain(&error), "not told whether a list went back");
            }
        }
    }
    found
}

fn of(installation: &Installation, workload: &Workload<'_>, live: &live::Live) -> WorkloadStatus {
    let mut status = WorkloadStatus {
        workload: workload.name.clone(),
        kind: workload.source.kind(),
        tier: workload.tier.tier.clone(),
        rpo: workload.tier.rpo,
        rto: workload.tier.rto,
        retrieval: installation
            .config
            .retrieval_of(workload.config)
            .map(|(_, time)| time),
        restore_points: 0,
        newest: None,
        recoverable_to: None,
        age_seconds: None,
        rpo_met: None,
        window: None,
        last_verification: None,
        copies: Vec::new(),
        copies_promised: workload.tier.copies,
        copies_met: false,
        archiver: live.stuck.as_ref().map(stuck_archiver),
        given_up: None,
        is_broken_off: false,
        list_went_back: None,
        problems: Vec::new(),
    };
    // Known on this host, also while the repository is away; that says whether it was made good since.
    match last_given_up(installation, workload.name) {
        Ok(found) => status.given_up = found,
        Err(error) => status.problems.push(chain(&error)),
    }
    let filled = fill(installation, workload, live, &mut status);
    status.problems.extend(status.archiver.clone());
    if let Some(given_up) = &status.given_up {
        status.problems.push(format!(
            "{}; nothing behind them can be recovered until the next base backup",
            given_up.describe()
        ));
    }
    if let Err(error) = filled {
        status.problems.push(chain(&error));
        return status;
    }
    judge(installation.clock.now(), &mut status);
    status
}

fn stuck_archiver(stuck: &live::Stuck) -> String {
    format!(
        "PostgreSQL could not archive {}, last tried at {}: its log says why; it keeps the WAL until then",
        stuck.file,
        stuck.at.format("%Y-%m-%dT%H:%M:%SZ")
    )
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
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
    live: &live::Live,
    status: &mut WorkloadStatus,
) -> Result<(), BackupError> {
    let name = workload.name;
    let repository = installation.repository_of(name)?;
    if let Some(conflict) = live
        .stuck
        .as_ref()
        .and_then(|stuck| stuck.file.parse().ok())
        && repository
            .wal_info(name, &conflict)
            .map_err(store_error(
                format!("look at {conflict} of `{name}`"),
                &repository,
            ))?
            .is_some()
    {
        // Or it has it, and a copy or its own answer is late: then the archiver gets on by itself.
        let more = "the repository has a file of that name: if its content is another, two servers archive as \
                    the same cluster";
        status.problems.push(more.to_owned());
        status.archiver = status
            .archiver
            .take()
            .map(|archiver| format!("{archiver}; {more}"));
    }
    if let Some(first) = repository.stands_in_for() {
        status.problems.push(format!(
            "repository `{first}` does not answer: this is what its copy in {} knows, and no backup \
             can be taken",
            repository.describe()
        ));
    } else {
        status.copies = copies_of(&repository, name);
    }
    judge_copies(installation.clock.now(), status);
    let mut points = repository.points(Some(name)).map_err(store_error(
        format!("list the restore points of `{name}`"),
        &repository,
    ))?;
    points.retain(is_whole_workload);
    status.window = window_of(&repository, name, &points)?;
    status.recoverable_to = status.window.as_ref().map(|window| window.to);
    if workload.source.kind() == WorkloadKind::Postgres && !points.is_empty() {
        let reached = reached(&repository, name, &points)?;
        status.is_broken_off = reached.is_none();
        // What was reported is recoverable if it can be reached from the newest base, in this place.
        if let Some(flushed) = live.flushed
            && repository.stands_in_for().is_none()
            && reached.is_some_and(|(on, to)| on == flushed.timeline && to >= flushed.to)
        {
            status.recoverable_to = status.recoverable_to.max(Some(flushed.at));
        }
        status.given_up = status
            .given_up
            .take()
            .filter(|given_up| given_up.is_open(&points, reached));
        status.is_broken_off |= status.given_up.is_some();
    }
    status.last_verification = verifications(&repository, Some(name))?.pop();
    status.restore_points = points.len() as u64;
    if let (WorkloadSource::Postgres(source), Some(newest)) = (workload.source, points.last())
        && source.stream.is_none()
    {
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

/// Pure: whether as many repositories as promised have everything.
fn judge_copies(now: DateTime<Utc>, status: &mut WorkloadStatus) {
    let rpo = status.rpo.0;
    let kept = status
        .copies
        .iter()
        .filter(|copy| copy.keeps_promise(now, rpo))
        .count();
    let kept = u32::try_from(kept).unwrap_or(u32::MAX).saturating_add(1);
    status.copies_met = kept >= status.copies_promised;
    let behind = status
        .copies
        .iter()
        .filter(|c| c.standing != CopyStanding::InStep);
    let mut problems: Vec<String> = behind.map(ToString::to_string).collect();
    if !status.copies_met {
        problems.push(format!(
            "{kept} of the {} repositories that the tier promises are up to date",
            status.copies_promised
        ));
    }
    status.problems.extend(problems);
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

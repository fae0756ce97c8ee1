//! How each workload stands against its promise: read from the repository, which is the truth.

mod live;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_config::{Workload, WorkloadSource};
use dr_installation::Installation;
use dr_model::{
    HumanDuration, RecoveryWindow, RestorePoint, TierName, WalFileName, WorkloadKind, WorkloadName,
};
use serde::{Deserialize, Serialize};

use crate::error::store_error;
use crate::run::blocking;
use crate::wal::{GivenUp, GivenUpRecords};
use crate::window::{BehindNewest, Look, is_whole_workload, look};
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
    /// WAL that was given up on this host, as far as nothing behind it can be recovered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
    /// That WAL is missing behind the newest base backup: what came after that cannot be recovered until
    /// the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken_off: Option<BrokenOff>,
    /// That the list of restore points went back, or another took its place, since it was last seen.
    pub list_went_back: Option<String>,
    /// What is wrong, one line each; empty when all is well.
    pub problems: Vec<String>,
}

/// A repository that has not answered by then does not; as long as a store that is silent is asked.
const LOOK_TIMEOUT: Duration = Duration::from_secs(120);

/// Where the WAL behind the newest base backup breaks off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenOff {
    /// The first segment that is missing.
    pub at: WalFileName,
    /// Whether it will not come any more; it may be late, where several are stored side by side, or where a
    /// stream is received that is behind.
    pub is_certain: bool,
}

/// The status of every workload, in order of name. An unreachable repository is a problem of its
/// workloads, not an error of this call.
///
/// # Errors
/// When the configuration cannot be used at all.
pub async fn status(installation: &Installation) -> Result<Vec<WorkloadStatus>, BackupError> {
    let live = live::of_servers(installation).await;
    let backed_up = backed_up(installation).await;
    let names: Vec<WorkloadName> = (installation.config.workloads())
        .map(|workload| workload.name.clone())
        .collect();
    let mut looks = Vec::new();
    for name in &names {
        let live = live.get(name).cloned().unwrap_or_default();
        let look = begin_look(installation, name, live, backed_up.get(name).copied());
        looks.push((name, look));
    }
    let (mut statuses, mut is_silent) = (Vec::new(), false);
    let end = tokio::time::Instant::now() + LOOK_TIMEOUT;
    for (name, look) in looks {
        let status = match look {
            Some(look) => tokio::time::timeout_at(end, look)
                .await
                .ok()
                .and_then(Result::ok),
            None => None,
        };
        let workload = installation.config.workload(name.as_str())?;
        is_silent |= status.is_none();
        let backed_up = backed_up.get(name).copied();
        let live = live.get(name).cloned().unwrap_or_default();
        statuses.push(status.unwrap_or_else(|| {
            let silent = Err(BackupError::TimedOut {
                what: format!("asking the repository of `{name}`"),
                seconds: LOOK_TIMEOUT.as_secs(),
            });
            of(installation, &workload, &live, backed_up, |_| silent)
        }));
    }
    // One that hangs is not asked again for this.
    if is_silent {
        return Ok(statuses);
    }
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

/// Whose repository is being asked: one that hangs, as a file system can, is not asked again until it has
/// answered.
static ASKED: Mutex<BTreeSet<(PathBuf, WorkloadName)>> = Mutex::new(BTreeSet::new());

/// That a workload's repository is being asked; dropped when it has answered.
struct Asking(PathBuf, WorkloadName);

impl Asking {
    /// `None` while it still is.
    fn begin(installation: &Installation, name: &WorkloadName) -> Option<Self> {
        let (path, name) = (installation.config.path.clone(), name.clone());
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        (asked.insert((path.clone(), name.clone()))).then_some(Self(path, name))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        asked.remove(&(self.0.clone(), self.1.clone()));
    }
}

/// Asks a workload's repository on a thread of its own, which is left behind if that hangs and ends with the
/// process; `None` while the last one still does.
fn begin_look(
    installation: &Installation,
    name: &WorkloadName,
    live: live::Live,
    backed_up: Option<DateTime<Utc>>,
) -> Option<tokio::sync::oneshot::Receiver<WorkloadStatus>> {
    let asking = Asking::begin(installation, name)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (this, name) = (installation.clone(), name.clone());
    let look = move || {
        if let Ok(workload) = this.config.workload(name.as_str()) {
            let ask = |status: &mut WorkloadStatus| fill(&this, &workload, &live, status);
            let status = of(&this, &workload, &live, backed_up, ask);
            drop(asking);
            // Nobody waits for it any more, perhaps.
            drop(sender.send(status));
        }
    };
    let begun = std::thread::Builder::new().name("status".to_owned());
    begun.spawn(look).ok().map(|_| receiver)
}

/// When the newest restore point was begun of each workload of which something was given up, as far as the
/// catalog of this host knows.
async fn backed_up(installation: &Installation) -> BTreeMap<WorkloadName, DateTime<Utc>> {
    let mut newest = BTreeMap::new();
    for workload in installation.config.workloads() {
        let records = GivenUpRecords::of(installation, workload.name);
        if records.all().is_ok_and(|all| all.is_empty()) {
            continue;
        }
        let Ok(catalog) = installation.catalog().await else {
            continue;
        };
        let points = catalog.points(Some(workload.name)).await;
        let mut points = points.unwrap_or_default();
        points.retain(is_whole_workload);
        if let Some(begun) = points.iter().map(|point| point.started).max() {
            newest.insert(workload.name.clone(), begun);
        }
    }
    newest
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

fn of(
    installation: &Installation,
    workload: &Workload<'_>,
    live: &live::Live,
    backed_up: Option<DateTime<Utc>>,
    ask: impl FnOnce(&mut WorkloadStatus) -> Result<Option<BehindNewest>, BackupError>,
) -> WorkloadStatus {
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
        broken_off: None,
        list_went_back: None,
        problems: Vec::new(),
    };
    let behind = ask(&mut status);
    status.problems.extend(status.archiver.clone());
    if workload.source.kind() == WorkloadKind::Postgres {
        let behind = behind.as_ref().ok().map(Option::as_ref);
        tell_given_up(installation, workload, behind, backed_up, &mut status);
    }
    if let Err(error) = behind {
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
) -> Result<Option<BehindNewest>, BackupError> {
    let name = workload.name;
    let repository = installation.repository_of(name)?;
    if let Some(archiver) = &mut status.archiver
        && let Some(file) = live
            .stuck
            .as_ref()
            .and_then(|stuck| stuck.file.parse().ok())
        && let Ok(Some(_)) = repository.wal_info(name, &file)
    {
        // Or it has it, and a copy or its own answer is late: then the archiver gets on by itself.
        archiver.push_str(
            "; the repository has a file of that name: if its content is another, two servers archive as the \
             same cluster",
        );
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
    let Look { window, behind } = look(&repository, name, &points)?;
    status.window = window;
    status.recoverable_to = status.window.as_ref().map(|window| window.to);
    // A copy that stands in may only be behind, and what was reported is known to the first place.
    if let Some(behind) = behind.as_ref().filter(|behind| !behind.is_of_a_copy) {
        let missing = behind.first_missing.clone();
        status.broken_off = missing.map(|at| BrokenOff {
            at,
            is_certain: false,
        });
        // What was reported is recoverable if it can be reached from the newest base, in this place.
        let reached = behind.reached();
        if let Some(flushed) = live.flushed
            && reached.is_some_and(|(on, to)| on == flushed.timeline && to >= flushed.to)
        {
            status.recoverable_to = status.recoverable_to.max(Some(flushed.at));
        }
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
    Ok(behind)
}

/// Says what was given up on this host; `behind` is what the repository says of the WAL, `None` when it does
/// not answer. Then only what the catalog knows of no backup since is told.
fn tell_given_up(
    installation: &Installation,
    workload: &Workload<'_>,
    behind: Option<Option<&BehindNewest>>,
    backed_up: Option<DateTime<Utc>>,
    status: &mut WorkloadStatus,
) {
    let is_streamed =
        matches!(workload.source, WorkloadSource::Postgres(it) if it.stream.is_some());
    let records = GivenUpRecords::of(installation, workload.name);
    let (all, kept) = match records
        .all()
        .and_then(|all| Ok((all, records.histories()?)))
    {
        Ok(found) => found,
        Err(error) => {
            status.given_up = Some(format!(
                "what was given up on this host cannot be read: {}",
                chain(&error)
            ));
            status.problems.extend(status.given_up.clone());
            return;
        }
    };
    let is_open = |record: &&GivenUp| match behind {
        Some(behind) => behind.is_some_and(|behind| record.is_open(behind)),
        None => backed_up.is_none_or(|begun| begun <= record.at),
    };
    let open: Vec<&GivenUp> = all.iter().filter(is_open).collect();
    if let Some(first) = open.first() {
        let and_so = match (behind, is_streamed) {
            (None, _) => {
                "whether that was made good since is not known while the repository does not answer"
            }
            (_, true) => {
                "nothing behind them can be recovered until they are received again, or the next base backup"
            }
            (_, false) => "nothing behind them can be recovered until the next base backup",
        };
        let what: Vec<String> = open.iter().map(|record| record.describe()).collect();
        status.given_up = Some(format!("{}; {and_so}", what.join("; ")));
        status.problems.extend(status.given_up.clone());
        if behind.flatten().is_some_and(|behind| !behind.is_of_a_copy) {
            status.broken_off = Some(BrokenOff {
                at: first.first.clone(),
                is_certain: !is_streamed,
            });
        }
    }
    for (name, path) in kept {
        status.problems.push(format!(
            "{name} is kept in {} until the repository takes it",
            path.display()
        ));
    }
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

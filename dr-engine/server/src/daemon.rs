//! The loop: what is due, what runs, what ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dr_backup::BrokenOff;
use dr_backup::wal::Standings;
use dr_catalog::Catalog;
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{WalFileName, WorkloadName};
use dr_scheduler::{Activity, Subject};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::ServerError;
use crate::alerts;
use crate::launch::{Launched, Launcher, Task, chain};
use crate::timetable::{Entry, Turn, turns};

/// The resolution of schedules.
const TICK: Duration = Duration::from_secs(1);
/// How often the repositories are asked how the promises stand.
const STATUS_INTERVAL: Duration = Duration::from_secs(15);
/// How long running work may take to come to its next step after it was asked to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a look at the repositories gave.
struct Look {
    alerts: alerts::Alerts,
    /// Of the workloads whose repository answered: whether their WAL breaks off behind their newest base backup.
    broken_off: BTreeMap<WorkloadName, Option<BrokenOff>>,
}

/// A run that goes on.
struct Running {
    turn: Turn,
    subject: Subject,
}

pub(crate) struct Daemon {
    installation: Installation,
    catalog: Catalog,
    launcher: Arc<dyn Launcher>,
    entries: Vec<Entry>,
    /// Who receives the WAL of what.
    streams: BTreeMap<WorkloadName, Standings>,
    receivers: JoinSet<()>,
    running: HashMap<Id, Running>,
    tasks: JoinSet<Launched>,
    started: DateTime<Utc>,
    /// What the last look at the repositories gave; alerts of schedules are judged every tick.
    status: Option<tokio::task::JoinHandle<Option<Look>>>,
    status_at: Option<Instant>,
    status_alerts: Option<alerts::Alerts>,
    /// Workloads whose WAL breaks off behind their newest base backup: where, and since when that is known.
    broken_off: BTreeMap<WorkloadName, (WalFileName, DateTime<Utc>)>,
    told: Option<alerts::Alerts>,
}

impl Daemon {
    pub(crate) async fn new(
        installation: Installation,
        catalog: Catalog,
        launcher: Arc<dyn Launcher>,
    ) -> Result<Self, ServerError> {
        let started = installation.clock.now();
        let mut entries = Vec::new();
        for planned in dr_scheduler::plan(&installation.config)? {
            entries.push(entry(&catalog, planned, started).await?);
        }
        Ok(Self {
            catalog,
            launcher,
            entries,
            streams: streamed(&installation),
            receivers: JoinSet::new(),
            installation,
            running: HashMap::new(),
            tasks: JoinSet::new(),
            started,
            status: None,
            status_at: None,
            status_alerts: None,
            broken_off: BTreeMap::new(),
            told: None,
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        tracing::info!(
            pid = std::process::id(), schedules = self.entries.len(),
            config = %self.installation.config.path.display(), "the daemon runs"
        );
        // Not waited for: a repository that is away must not keep other workloads from running.
        let installation = self.installation.clone();
        tokio::spawn(async move {
            match installation.reconcile_catalog().await {
                Ok(points) => tracing::info!(points, "the catalog has every restore point"),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the catalog may lack restore points");
                }
            }
        });
        for (workload, standings) in &self.streams {
            let (installation, workload) = (self.installation.clone(), workload.clone());
            let (standings, cancel) = (standings.clone(), shutdown.child_token());
            self.receivers.spawn(async move {
                dr_backup::wal::receive_for_ever(&installation, &workload, &standings, &cancel)
                    .await;
            });
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                Some(Err(error)) = self.receivers.join_next() => {
                    tracing::error!(%error, "a receiver of WAL broke down");
                }
                _ = tick.tick() => {
                    self.launch_what_is_due(&shutdown).await;
                    self.watch().await;
                }
            }
        }
        self.stop().await;
    }

    async fn launch_what_is_due(&mut self, shutdown: &CancellationToken) {
        let now = self.installation.clock.now();
        let busy: BTreeSet<Subject> = self
            .running
            .values()
            .map(|running| running.subject.clone())
            .collect();
        for turn in turns(&self.entries, &busy, now) {
            let Some(entry) = self.entries.get_mut(turn.entry) else {
                continue;
            };
            let key = entry.planned.key.clone();
            match self.catalog.claim_run(&key, turn.planned_at, now).await {
                Ok(true) => {}
                Ok(false) => {
                    // It ran already; go on from there.
                    entry.begun(turn.planned_at);
                    continue;
                }
                Err(error) => {
                    tracing::error!(
                        schedule = key,
                        error = chain(&error),
                        "cannot claim a planned run"
                    );
                    continue;
                }
            }
            entry.begun(turn.planned_at);
            if let Some(missed_since) = turn.missed_since {
                tracing::warn!(schedule = key, %missed_since, "missed runs collapse to this one");
            }
            tracing::info!(schedule = key, planned_at = %turn.planned_at, "begin");
            let subject = entry.planned.subject.clone();
            let task = Task {
                subject: subject.clone(),
                activity: entry.planned.activity.clone(),
            };
            let work = self.launcher.launch(task, shutdown.child_token());
            let handle = self.tasks.spawn(work);
            self.running.insert(handle.id(), Running { turn, subject });
        }
    }

    async fn ended(&mut self, ended: Result<(Id, Launched), tokio::task::JoinError>) {
        let (id, launched) = match ended {
            Ok(ended) => ended,
            Err(error) => (
                error.id(),
                Launched::Failed(format!("the task broke down: {error}")),
            ),
        };
        let Some(Running { turn, .. }) = self.running.remove(&id) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(turn.entry) else {
            return;
        };
        let now = self.installation.clock.now();
        let key = entry.planned.key.as_str();
        let outcome = match launched {
            Launched::Done(detail) => {
                tracing::info!(schedule = key, detail, "done");
                entry.succeeded();
                "done".to_owned()
            }
            Launched::Failed(reason) => {
                tracing::error!(schedule = key, reason, "failed");
                let outcome = format!("failed: {reason}");
                entry.failed(now, reason);
                outcome
            }
            Launched::Cancelled => {
                tracing::warn!(schedule = key, "stopped");
                "cancelled".to_owned()
            }
        };
        let recorded = self
            .catalog
            .finish_run(&entry.planned.key, turn.planned_at, now, &outcome)
            .await;
        if let Err(error) = recorded {
            tracing::warn!(error = chain(&error), "the end of a run was not recorded");
        }
    }

    /// Judges the promises, and tells what changed.
    async fn watch(&mut self) {
        self.ask_repositories().await;
        let now = self.installation.clock.now();
        let mut found = alerts::of_schedules(&self.entries, now);
        found.extend(alerts::of_streams(&self.streams, now));
        let known = self.status_alerts.is_some();
        found.extend(self.status_alerts.clone().unwrap_or_default());
        if known && self.told.as_ref() == Some(&found) {
            return;
        }
        // Until the repositories have answered once, nothing they are to say is taken as mended.
        let in_scope = |subject: &str| {
            known || subject.starts_with("schedule ") || subject.starts_with("stream ")
        };
        match alerts::tell(&self.catalog, &found, in_scope, now).await {
            Ok(()) => self.told = known.then_some(found),
            Err(error) => tracing::error!(error = chain(&error), "alerts could not be recorded"),
        }
    }

    /// Looks at the repositories from time to time, beside everything else: one that does not answer
    /// holds up nothing.
    async fn ask_repositories(&mut self) {
        if self
            .status
            .as_ref()
            .is_some_and(tokio::task::JoinHandle::is_finished)
            && let Some(answer) = self.status.take()
            && let Ok(Some(found)) = answer.await
        {
            self.status_alerts = Some(found.alerts);
            self.make_good(&found.broken_off);
        }
        let fresh = self
            .status_at
            .is_some_and(|at| at.elapsed() < STATUS_INTERVAL);
        if self.status.is_some() || fresh {
            return;
        }
        self.status_at = Some(Instant::now());
        let (installation, entries) = (self.installation.clone(), self.entries.clone());
        let started = self.started;
        self.status = Some(tokio::spawn(async move {
            match dr_backup::status(&installation).await {
                Ok(statuses) => {
                    let now = installation.clock.now();
                    let answered = statuses.iter().filter(|status| status.newest.is_some());
                    Some(Look {
                        alerts: alerts::of_status(&statuses, &entries, started, now),
                        broken_off: answered
                            .map(|status| (status.workload.clone(), status.broken_off.clone()))
                            .collect(),
                    })
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot learn how the promises stand");
                    None
                }
            }
        }));
    }

    /// Has a base backup made at once where WAL breaks off: what came after that cannot be recovered without.
    fn make_good(&mut self, broken_off: &BTreeMap<WorkloadName, Option<BrokenOff>>) {
        let now = self.installation.clock.now();
        for (workload, found) in broken_off {
            let Some(BrokenOff { at, is_certain }) = found else {
                self.broken_off.remove(workload);
                continue;
            };
            let known = self.broken_off.entry(workload.clone());
            let (place, since) = known.or_insert_with(|| (at.clone(), now));
            if place != at {
                (*place, *since) = (at.clone(), now);
            }
            for entry in &mut self.entries {
                if entry.makes_good(workload, *since, *is_certain, now) {
                    tracing::warn!(
                        schedule = entry.planned.key,
                        "{at} is missing behind the newest base backup: another one at once"
                    );
                    entry.make_good(now);
                }
            }
        }
    }

    async fn stop(mut self) {
        tracing::info!(running = self.running.len(), "stopping");
        // The tasks' own tokens are children of the shutdown token and are cancelled already.
        let end = tokio::time::Instant::now() + STOP_TIMEOUT;
        loop {
            match tokio::time::timeout_at(end, self.tasks.join_next_with_id()).await {
                Ok(Some(ended)) => self.ended(ended).await,
                Ok(None) => break,
                Err(_) => {
                    // Aborting drops their futures, which ends their jobs as cancelled.
                    tracing::warn!(running = self.running.len(), "work did not stop in time");
                    self.tasks.shutdown().await;
                    break;
                }
            }
        }
        // What had arrived is stored, and reported to the servers, before they end.
        let receivers = async { while self.receivers.join_next().await.is_some() {} };
        if tokio::time::timeout_at(end, receivers).await.is_err() {
            tracing::warn!("a receiver of WAL did not stop in time");
            self.receivers.shutdown().await;
        }
        if let Some(status) = self.status.take() {
            status.abort();
        }
        tracing::info!("stopped");
    }
}

/// The workloads whose WAL is received as it is written.
fn streamed(installation: &Installation) -> BTreeMap<WorkloadName, Standings> {
    let workloads = installation.config.workloads();
    workloads
        .filter(|workload| match workload.source {
            WorkloadSource::Postgres(source) => source.stream.is_some(),
            WorkloadSource::Nats(_) | WorkloadSource::Files(_) => false,
        })
        .map(|workload| (workload.name.clone(), Standings::default()))
        .collect()
}

/// A schedule with what the catalog knows of its last run.
async fn entry(
    catalog: &Catalog,
    planned: dr_scheduler::Planned,
    now: DateTime<Utc>,
) -> Result<Entry, ServerError> {
    let last = catalog
        .last_run(&planned.key)
        .await
        .map_err(ServerError::History)?;
    let mut entry = Entry::new(planned, now);
    match last {
        // A workload that was never backed up has no protection to wait for.
        None => entry.at_once = entry.planned.activity == Activity::Backup,
        Some(run) => {
            // A clock that was set back must not silence the schedule until it has caught up.
            entry.since = run.planned_at.min(now);
            let interrupted = run.finished.is_none() || run.outcome.as_deref() == Some("cancelled");
            entry.at_once = interrupted;
            if run.finished.is_none() {
                tracing::warn!(
                    schedule = entry.planned.key,
                    "its last run was interrupted; again at once"
                );
                catalog
                    .finish_run(&entry.planned.key, run.planned_at, now, "interrupted")
                    .await
                    .map_err(ServerError::History)?;
            }
            if let Some(reason) = run
                .outcome
                .as_deref()
                .and_then(|o| o.strip_prefix("failed: "))
            {
                // Remembered so that a restart does not clear the alert; tried at the next moment.
                entry.failures_in_a_row = 1;
                entry.last_failure = Some((run.planned_at.min(now), reason.to_owned()));
            }
        }
    }
    Ok(entry)
}

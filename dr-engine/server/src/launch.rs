//! Carrying out what is due.

use std::pin::Pin;
use std::sync::Arc;

use dr_backup::{BackupError, BackupOptions};
use dr_installation::Installation;
use dr_jobs::{JobError, JobSpec, Jobs};
use dr_model::{Progress, WorkloadName};
use dr_restore::VerifyRequest;
use dr_scheduler::{Activity, Subject};
use tokio_util::sync::CancellationToken;

/// Something that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// To what; also the lane.
    pub subject: Subject,
    /// What.
    pub activity: Activity,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launched {
    /// It did what it should.
    Done(String),
    /// It failed, with the reason.
    Failed(String),
    /// It was stopped.
    Cancelled,
}

/// Carries out tasks. One task for each workload at a time is asked for.
pub trait Launcher: Send + Sync {
    /// Carries one out, until its end or until `cancel`.
    fn launch(
        &self,
        task: Task,
        cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Launched> + Send>>;
}

/// Runs tasks as recorded jobs.
pub(crate) struct JobLauncher {
    installation: Installation,
    jobs: Jobs,
}

impl JobLauncher {
    pub(crate) fn new(installation: Installation, jobs: Jobs) -> Self {
        Self { installation, jobs }
    }
}

impl Launcher for JobLauncher {
    fn launch(
        &self,
        task: Task,
        cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Launched> + Send>> {
        let (installation, jobs) = (self.installation.clone(), self.jobs.clone());
        Box::pin(async move {
            let ended = match (task.subject, task.activity) {
                (Subject::Workload(workload), Activity::Backup) => {
                    back_up(&installation, &jobs, &workload, &cancel).await
                }
                (Subject::Workload(workload), Activity::Verify { restore }) => {
                    verify(&installation, &jobs, &workload, restore, &cancel).await
                }
                (Subject::Workload(workload), Activity::Drill { script }) => {
                    tracing::info!(
                        %workload, drill = script,
                        "a drill is due; start it by hand with `dr drill run`"
                    );
                    Launched::Done("to be started by hand".to_owned())
                }
                (subject @ Subject::Repository(_), Activity::Prune) => {
                    prune(&installation, &jobs, &subject, &cancel).await
                }
                (subject, activity) => {
                    Launched::Failed(format!("there is no {} of {subject}", activity.name()))
                }
            };
            match ended {
                // Work that fails after it was asked to stop was stopped, whatever words it has for it.
                Launched::Failed(_) if cancel.is_cancelled() => Launched::Cancelled,
                other => other,
            }
        })
    }
}

fn spec(kind: &str, lane: impl std::fmt::Display) -> JobSpec {
    JobSpec {
        kind: kind.to_owned(),
        lane: lane.to_string(),
        detail: "scheduled".to_owned(),
    }
}

/// A lane held by another process (a backup by hand) is waited for: `wait` is always true here.
async fn back_up(
    installation: &Installation,
    jobs: &Jobs,
    workload: &WorkloadName,
    cancel: &CancellationToken,
) -> Launched {
    let ended = jobs
        .run(spec("backup", workload), true, cancel, |job| async move {
            job.step("backup").await;
            let progress: Arc<dyn Progress> = Arc::new(LogProgress);
            let options = BackupOptions::default();
            dr_backup::run(installation, workload, &options, progress, job.cancel()).await
        })
        .await;
    if ended.is_ok() {
        // Beside everything else: filling a new copy may take longer than to the next backup.
        let (installation, jobs) = (installation.clone(), jobs.clone());
        let (workload, cancel) = (workload.clone(), cancel.clone());
        tokio::spawn(async move {
            bring_copies_up(&installation, &jobs, &workload, &cancel).await;
        });
    }
    launched(ended.map(|point| point.id.to_string()))
}

/// Copies that lag are brought up after a backup. A failure is not the backup's: the copy goes on
/// lagging, which status tells, and is tried after the next one, or later while it keeps failing.
async fn bring_copies_up(
    installation: &Installation,
    jobs: &Jobs,
    workload: &WorkloadName,
    cancel: &CancellationToken,
) {
    let Ok(repository) = installation.open_repository_of(workload).await else {
        return;
    };
    let name = workload.clone();
    let lagging = tokio::task::spawn_blocking(move || {
        let copies = dr_backup::copies_of(&repository, &name).into_iter();
        copies
            .filter(|copy| matches!(copy.standing, dr_backup::CopyStanding::Lags { .. }))
            .map(|copy| copy.repository)
            .collect::<Vec<_>>()
    })
    .await
    .unwrap_or_default();
    for copy in lagging {
        let now = installation.clock.now();
        if !backoff::may_try(&copy, now) {
            continue;
        }
        let spec = JobSpec {
            kind: "sync".to_owned(),
            lane: format!("copy {copy}"),
            detail: "scheduled".to_owned(),
        };
        let (this, name) = (installation.clone(), copy.clone());
        let ended = jobs
            .run(spec, false, cancel, |job| async move {
                job.step("sync").await;
                tokio::task::spawn_blocking(move || {
                    dr_backup::sync(&this, Some(&name), &LogProgress)
                })
                .await
                .map_err(|_| BackupError::Worker("bring a copy up"))?
            })
            .await;
        let failure = match ended {
            Ok(reports) => reports.into_iter().find_map(|(_, report)| match report {
                Ok(report) => report
                    .problems
                    .first()
                    .map(|p| format!("{}: {}", p.object, p.what)),
                Err(error) => Some(chain(&error)),
            }),
            // Somebody is at it.
            Err(JobError::Cancelled | JobError::LaneBusy { .. }) => return,
            Err(error) => Some(chain(&error)),
        };
        backoff::ended(&copy, now, failure.is_some());
        match failure {
            None => tracing::info!(copy = %copy, "the copy is in step"),
            Some(why) => tracing::warn!(copy = %copy, why, "the copy could not be brought up"),
        }
    }
}

/// How long a copy that keeps failing is left alone; known to this process only.
mod backoff {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    use chrono::{DateTime, Utc};
    use dr_model::RepositoryName;

    type Failures = HashMap<RepositoryName, (u32, DateTime<Utc>)>;
    static FAILURES: LazyLock<Mutex<Failures>> = LazyLock::new(Mutex::default);

    pub(super) fn may_try(copy: &RepositoryName, now: DateTime<Utc>) -> bool {
        let failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(copy).is_none_or(|(times, at)| {
            let passed = (now - *at).to_std().unwrap_or(Duration::MAX);
            passed >= dr_scheduler::retry_delay(*times)
        })
    }

    pub(super) fn ended(copy: &RepositoryName, now: DateTime<Utc>, failed: bool) {
        let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
        if failed {
            let entry = failures.entry(copy.clone()).or_insert((0, now));
            *entry = (entry.0.saturating_add(1), now);
        } else {
            failures.remove(copy);
        }
    }
}

async fn verify(
    installation: &Installation,
    jobs: &Jobs,
    workload: &WorkloadName,
    restore: bool,
    cancel: &CancellationToken,
) -> Launched {
    let request = VerifyRequest {
        workload: workload.clone(),
        point: None,
        restore,
        folder: None,
    };
    let request = &request;
    let ended = jobs
        .run(spec("verify", workload), true, cancel, |job| async move {
            job.step("verify").await;
            let progress: Arc<dyn Progress> = Arc::new(LogProgress);
            dr_restore::verify(installation, request, progress, job.cancel()).await
        })
        .await;
    match ended {
        Ok(proof) if proof.passed => Launched::Done(format!("{} holds", proof.point)),
        Ok(proof) => {
            let failed: Vec<String> = proof
                .checks
                .iter()
                .filter(|check| !check.passed)
                .map(|check| format!("{}: {}", check.name, check.detail))
                .collect();
            Launched::Failed(format!(
                "{} does not hold: {}",
                proof.point,
                failed.join("; ")
            ))
        }
        Err(error) => launched(Err(error)),
    }
}

/// Removes what is not needed any more. A prune that is asked to stop has ended its blocking part first:
/// each of its steps leaves the repository whole, but none can be interrupted.
async fn prune(
    installation: &Installation,
    jobs: &Jobs,
    subject: &Subject,
    cancel: &CancellationToken,
) -> Launched {
    let Subject::Repository(name) = subject else {
        return Launched::Failed(format!("{subject} is no repository"));
    };
    let ended = jobs
        .run(
            spec("prune", subject.lane()),
            true,
            cancel,
            |job| async move {
                job.step("prune").await;
                dr_backup::prune_and_forget(
                    installation,
                    name,
                    Default::default(),
                    Arc::new(LogProgress),
                )
                .await
            },
        )
        .await;
    launched(ended.map(|(_, report)| {
        format!(
            "{} restore points, {} WAL files, {} packs removed, {} won",
            report.points.len(),
            report.wal_files,
            report.packs_deleted,
            report.bytes_won
        )
    }))
}

fn launched<E: std::error::Error + 'static>(ended: Result<String, JobError<E>>) -> Launched {
    match ended {
        Ok(detail) => Launched::Done(detail),
        Err(JobError::Cancelled) => Launched::Cancelled,
        Err(error) => Launched::Failed(chain(&error)),
    }
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

/// Progress as log lines: phases when asked for in detail, notes always.
struct LogProgress;

impl Progress for LogProgress {
    fn phase(&self, name: &str, bytes_total: Option<u64>) {
        tracing::debug!(phase = name, bytes_total, "phase");
    }
    fn advance(&self, _bytes: u64) {}
    fn note(&self, text: &str) {
        tracing::info!("{text}");
    }
}

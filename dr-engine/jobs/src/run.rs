//! Claiming a lane, running, beating, ending.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dr_catalog::{Catalog, CatalogError, Claim, JobRow, JobState};
use dr_model::{Clock, JobId};
use tokio_util::sync::CancellationToken;

use crate::{JobError, process};

/// How often a running job gives a sign of life.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// After this long without one, a job on another host counts as dead.
pub const LEASE: Duration = Duration::from_secs(30);
/// Work whose lease was lost is asked to stop, and gets this long to put things in order.
const STOP_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often a waiting job looks whether its lane is free.
const LANE_POLL: Duration = Duration::from_millis(500);

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// backup, restore, ...
    pub kind: String,
    /// What it needs for itself: a workload's name.
    pub lane: String,
    /// For people.
    pub detail: String,
}

/// Runs jobs against one catalog, or unrecorded without one.
#[derive(Debug, Clone)]
pub struct Jobs {
    catalog: Option<Catalog>,
    clock: Arc<dyn Clock>,
}

/// What a running job may do with its record.
#[derive(Debug, Clone)]
pub struct JobContext {
    record: Option<(Catalog, JobId, i64)>,
    clock: Arc<dyn Clock>,
    steps: Arc<AtomicI64>,
    cancel: CancellationToken,
}

impl JobContext {
    /// Journals that a step begins. A journal that cannot be written stops no work; a lost lease does.
    pub async fn step(&self, name: &str) {
        let number = self.steps.fetch_add(1, Ordering::Relaxed);
        let Some((catalog, job, epoch)) = &self.record else {
            return;
        };
        if let Err(error) = catalog
            .begin_step(job, *epoch, number, name, self.clock.now())
            .await
        {
            tracing::warn!(%job, step = name, %error, "cannot journal a step");
            if matches!(error, CatalogError::LeaseLost { .. }) {
                self.cancel.cancel();
            }
        }
    }

    /// Ends when the job is asked to stop, or its lease was lost.
    #[must_use]
    pub fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// The job's id, when it is recorded.
    #[must_use]
    pub fn job(&self) -> Option<&JobId> {
        self.record.as_ref().map(|(_, job, _)| job)
    }
}

impl Jobs {
    /// Jobs of this process. Without a catalog they run unrecorded.
    #[must_use]
    pub fn new(catalog: Option<Catalog>, clock: Arc<dyn Clock>) -> Self {
        Self { catalog, clock }
    }

    /// Ends the records of jobs whose processes are gone, and gives them back.
    ///
    /// # Errors
    /// When the catalog cannot be used.
    pub async fn recover(&self) -> Result<Vec<JobRow>, CatalogError> {
        let Some(catalog) = &self.catalog else {
            return Ok(Vec::new());
        };
        let (this, now) = (process::this(), self.clock.now());
        catalog
            .end_dead_jobs(now, |job| process::why_dead(job, &this, now))
            .await
    }

    /// Runs `work` on its lane. With `wait`, waits for the lane; else a busy lane is an error that names
    /// the job that holds it.
    ///
    /// When its lease is lost, the work is asked to stop by [`JobContext::cancel`] and not dropped: what it began
    /// outside, users that are kept out, is its own to end. It is dropped when it has not ended after
    /// [`STOP_PATIENCE`]. Work that was done by then is done, whoever has the lane.
    ///
    /// # Errors
    /// [`JobError::Failed`] with the work's own error, else why it could not run.
    pub async fn run<T, E, F, Work>(
        &self,
        spec: JobSpec,
        wait: bool,
        cancel: &CancellationToken,
        work: Work,
    ) -> Result<T, JobError<E>>
    where
        Work: FnOnce(JobContext) -> F,
        F: Future<Output = Result<T, E>>,
        E: std::error::Error + Send + Sync + 'static,
    {
        let cancel = cancel.child_token();
        let record = match &self.catalog {
            Some(catalog) => Some(self.claim(catalog, &spec, wait, &cancel).await?),
            None => None,
        };
        let context = JobContext {
            record: record.clone(),
            clock: self.clock.clone(),
            steps: Arc::default(),
            cancel: cancel.clone(),
        };
        let Some((catalog, job, epoch)) = record else {
            return work(context).await.map_err(JobError::Failed);
        };
        let mut hold = Hold {
            catalog: catalog.clone(),
            clock: self.clock.clone(),
            job: job.clone(),
            epoch,
            end: Some((JobState::Cancelled, Some("its work was dropped".to_owned()))),
        };
        let mut work = std::pin::pin!(work(context));
        let outcome = tokio::select! {
            outcome = &mut work => outcome,
            () = self.beat(&catalog, &job, epoch) => {
                hold.end = None;
                cancel.cancel();
                tracing::warn!(%job, "somebody else ended this job: its work is asked to stop");
                return match tokio::time::timeout(STOP_PATIENCE, work).await {
                    Ok(Ok(done)) => Ok(done),
                    Ok(Err(_)) | Err(_) => Err(JobError::LeaseLost),
                };
            }
        };
        hold.end = Some(match &outcome {
            Ok(_) => (JobState::Done, None),
            Err(_) if cancel.is_cancelled() => {
                (JobState::Cancelled, Some("asked to stop".to_owned()))
            }
            Err(error) => (JobState::Failed, Some(chain(error))),
        });
        if hold.try_end().await {
            hold.end = None;
        }
        outcome.map_err(JobError::Failed)
    }

    async fn claim<E: std::error::Error + 'static>(
        &self,
        catalog: &Catalog,
        spec: &JobSpec,
        wait: bool,
        cancel: &CancellationToken,
    ) -> Result<(Catalog, JobId, i64), JobError<E>> {
        let this = process::this();
        loop {
            if cancel.is_cancelled() {
                return Err(JobError::Cancelled);
            }
            let now = self.clock.now();
            let id = JobId::new(now);
            let row = JobRow {
                id: id.to_string(),
                kind: spec.kind.clone(),
                lane: spec.lane.clone(),
                detail: spec.detail.clone(),
                state: JobState::Running,
                owner: this.clone(),
                epoch: 1,
                started: now,
                heartbeat: now,
                reason: None,
            };
            let claim = catalog
                .claim_lane(&row, |holder| process::why_dead(holder, &this, now))
                .await
                .map_err(JobError::Catalog)?;
            match claim {
                Claim::Claimed => return Ok((catalog.clone(), id, row.epoch)),
                Claim::Busy(_) if wait => {
                    tokio::select! {
                        () = tokio::time::sleep(LANE_POLL) => {}
                        () = cancel.cancelled() => return Err(JobError::Cancelled),
                    }
                }
                Claim::Busy(holder) => {
                    return Err(JobError::LaneBusy {
                        lane: holder.lane,
                        job: holder.id,
                        kind: holder.kind,
                        pid: holder.owner.pid,
                        host: holder.owner.host,
                        since: holder.started.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    });
                }
            }
        }
    }

    /// Renews the lease; returns only when it was lost. A catalog that is busy or away for a while does
    /// not end the work: on this host nobody takes over while the process lives.
    async fn beat(&self, catalog: &Catalog, job: &JobId, epoch: i64) {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            match catalog.heartbeat(job, epoch, self.clock.now()).await {
                Ok(()) => {}
                Err(CatalogError::LeaseLost { .. }) => return,
                Err(error) => tracing::warn!(%job, %error, "cannot record a heartbeat"),
            }
        }
    }
}

/// A claimed lane. A living process keeps its jobs for ever, so a job must end with its work even when
/// that is dropped, panics, or ends while the catalog is locked: else the lane would stay taken.
struct Hold {
    catalog: Catalog,
    clock: Arc<dyn Clock>,
    job: JobId,
    epoch: i64,
    /// What is still to be recorded.
    end: Option<(JobState, Option<String>)>,
}

impl Hold {
    /// Records the end; whether nothing is left to record.
    async fn try_end(&self) -> bool {
        let Some(end) = &self.end else { return true };
        record_end(&self.catalog, &self.clock, &self.job, self.epoch, end).await
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (Some(end), Ok(runtime)) = (self.end.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (catalog, clock) = (self.catalog.clone(), self.clock.clone());
        let (job, epoch) = (self.job.clone(), self.epoch);
        runtime.spawn(async move {
            while !record_end(&catalog, &clock, &job, epoch, &end).await {
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
    }
}

async fn record_end(
    catalog: &Catalog,
    clock: &Arc<dyn Clock>,
    job: &JobId,
    epoch: i64,
    (state, reason): &(JobState, Option<String>),
) -> bool {
    match catalog
        .finish_job(job, epoch, *state, reason.as_deref(), clock.now())
        .await
    {
        Ok(()) | Err(CatalogError::LeaseLost { .. }) => true,
        Err(error) => {
            // The work is done, and what it made is in the repository.
            tracing::warn!(%job, %error, "cannot record the end of a job");
            false
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

//! The task beside a job that keeps its lease and writes its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use dr_catalog::{Catalog, CatalogError, JobState};
use dr_model::{Clock, JobId};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::lease::{HEARTBEAT, LEASE};

/// How a job ends, and why if not well.
pub(crate) type End = (JobState, Option<String>);

/// A running job's hold on its lane.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) catalog: Catalog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) job: JobId,
    pub(crate) epoch: i64,
    /// Stops the work.
    pub(crate) cancel: CancellationToken,
    /// Whether the lane belongs to someone else by now.
    pub(crate) lost: Arc<AtomicBool>,
}

impl Hold {
    /// The lane is gone: the work must not go on.
    pub(crate) fn give_up(&self, why: &str) {
        if !self.lost.swap(true, Ordering::SeqCst) {
            tracing::error!(job = %self.job, why, "the job lost its lane and is stopped");
        }
        self.cancel.cancel();
    }

    async fn finish(&self, (state, reason): End) {
        let now = self.clock.now();
        let ended = self
            .catalog
            .finish_job(&self.job, self.epoch, state, reason.as_deref(), now)
            .await;
        if let Err(error) = ended {
            // The record stays "running" until its lease ends and someone needs the lane. What the
            // work did is not undone by that.
            tracing::warn!(job = %self.job, %error, "the end of the job was not recorded");
        }
    }
}

/// Sends heartbeats until the job ends. Dropping it without [`Keeper::end`] (the caller's future was
/// dropped) ends the job too.
pub(crate) struct Keeper {
    end: oneshot::Sender<End>,
    task: JoinHandle<()>,
}

impl Keeper {
    pub(crate) fn start(hold: Hold) -> Self {
        let (end, ended) = oneshot::channel();
        Self { end, task: tokio::spawn(keep(hold, ended)) }
    }

    /// Writes the end and waits until that is done.
    pub(crate) async fn end(self, end: End) {
        if self.end.send(end).is_ok() && self.task.await.is_err() {
            tracing::warn!("the task that keeps a job's lease broke down");
        }
    }
}

async fn keep(hold: Hold, mut ended: oneshot::Receiver<End>) {
    let mut renewed = Instant::now();
    let mut tick = tokio::time::interval(HEARTBEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is immediate, and the claim was the first heartbeat.
    tick.tick().await;
    loop {
        tokio::select! {
            end = &mut ended => {
                let end = end.unwrap_or_else(|_| {
                    hold.cancel.cancel();
                    (JobState::Cancelled, Some("its caller went away".to_owned()))
                });
                hold.finish(end).await;
                return;
            }
            _ = tick.tick() => match hold.catalog.heartbeat(&hold.job, hold.epoch, hold.clock.now()).await {
                Ok(()) => renewed = Instant::now(),
                Err(CatalogError::LeaseLost { .. }) => hold.give_up("another process ended it"),
                Err(error) if renewed.elapsed() > LEASE => {
                    hold.give_up(&format!("its lease could not be renewed: {error}"));
                }
                Err(error) => tracing::warn!(job = %hold.job, %error, "a heartbeat was not written"),
            }
        }
    }
}

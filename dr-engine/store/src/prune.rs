//! Removing what nothing needs, beside running backups of other processes.
//!
//! What is to be removed is decided first, as a value ([`PrunePlan`]) that can be shown; carrying it out
//! looks at everything again. In order:
//!
//! 1. The session of this prune: one at a time for each workload.
//! 2. The list of restore points, without those that go; then their objects. The new entry is added only
//!    if the list is still the one that the decision was made over: a hold placed meanwhile adds one, too.
//! 3. WAL files, oldest first.
//! 4. *Mark*: chunks of packs that are mostly not needed go into new packs, by the ordinary writer; then
//!    these packs, and those of which nothing is needed, are condemned. From then on no writer relies on
//!    them.
//! 5. *Sweep*, when every session that is older than the condemnation has ended: an entry that changes
//!    nothing is added to the list of restore points; what the points of that very entry need is found out
//!    again; indexes without the condemned packs are stored, the old ones deleted, then the packs, then
//!    the list of what was condemned. A condemned pack that is needed after all stays.
//! 6. Old entries of the list, restore points that were never listed, sessions of the dead.
//!
//! A session whose process is known to be dead, or that is older than any backup takes
//! ([`PruneOptions::session_age_max`], by the store's clock), is ended by deleting its object. Its writer
//! may wake at any time. Before it lists its point it asks for its session *between* reading the newest
//! entry and adding the next; the entry of step 5 was added after the session was gone, so either the
//! point was listed before that and what it needs is found out in step 5, or the writer finds the number
//! taken, asks again, and gives up.
//!
//! A crash leaves: an entry without points whose objects are still there (step 6 of the next run removes
//! them), packs stored twice (the next run finds the emptier ones not needed), a list of condemned packs
//! (the next run sweeps them), two indexes that name the same packs (readers take either). Nothing of it
//! is damage, and nothing has to be told to anybody.
//!
//! Packs that a running session may have stored are recognised by their time, by the store's clock; the
//! host's clock decides nothing.

mod bits;
mod decide;
mod execute;
mod homes;
mod indexes;
mod locks;
mod need;
mod sessions;
mod survey;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::{ByteCount, Progress, RestorePointId, WalFileName, WorkloadName};
use serde::Serialize;

pub use sessions::{SessionInfo, SessionState};

use crate::repo::ChainAnchor;
use crate::{Repository, StoreError};
use need::NeedSet;

/// A pack of which less than this is needed is written anew: at a half, the cost of copying is at most
/// the space won.
const REWRITE_BELOW_PERCENT: u8 = 50;
/// So much is copied in one run at most, the emptiest packs first; the next run goes on.
const REWRITE_BYTES_MAX: u64 = 64 << 30;
/// No backup takes longer. Much longer than the largest base backup; the price of one too long is space.
const SESSION_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// More than the clocks of one store's servers are ever apart.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// Entries of the list of restore points that are kept: enough to see what happened lately.
const CHAIN_ENTRIES_KEPT: u64 = 64;

/// How to prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneOptions {
    /// A pack of which a smaller part than this is needed is written anew.
    pub rewrite_below_percent: u8,
    /// So many bytes of packs are copied at most.
    pub rewrite_bytes_max: u64,
    /// A session that is older, by the store's clock, is ended.
    pub session_age_max: Duration,
    /// Some places know whole seconds only, and some are several machines: what was stored less than
    /// this before a session may have been stored after it.
    pub clock_slack: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            rewrite_below_percent: REWRITE_BELOW_PERCENT,
            rewrite_bytes_max: REWRITE_BYTES_MAX,
            session_age_max: SESSION_AGE_MAX,
            clock_slack: CLOCK_SLACK,
        }
    }
}

/// What is to go. What is not needed by anything left goes with it.
#[derive(Debug, Clone, Default)]
pub struct PruneRequest {
    /// The lists of restore points at the time of the decision ([`Repository::anchors`], asked before
    /// points and holds were looked at).
    pub decided_at: Vec<ChainAnchor>,
    /// Restore points.
    pub points: Vec<(WorkloadName, RestorePointId)>,
    /// WAL files.
    pub wal: Vec<(WorkloadName, WalFileName)>,
    /// The place's name for how it keeps the packs of a workload, as for a backup.
    pub storage_classes: HashMap<WorkloadName, String>,
    /// How.
    pub options: PruneOptions,
}

/// What would be removed and why not more. A value: nothing is changed by making one.
#[derive(Debug, Clone, Serialize)]
pub struct PrunePlan {
    /// The repository.
    pub place: String,
    /// By workload.
    pub workloads: Vec<WorkloadPrune>,
    #[serde(skip)]
    options: PruneOptions,
}

/// What would be removed of one workload.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadPrune {
    /// Whose data.
    pub workload: WorkloadName,
    /// Restore points that go.
    pub points: Vec<RestorePointId>,
    /// WAL files that go, oldest first.
    pub wal: Vec<DoomedObject>,
    /// Packs of which nothing is needed.
    pub delete_packs: Vec<DoomedObject>,
    /// Packs of which little is needed: that is copied.
    pub rewrite_packs: Vec<HalfEmptyPack>,
    /// Packs that were condemned before and go as soon as no older session runs.
    pub condemned_packs: u64,
    /// Index objects that are merged into fewer.
    pub merge_indexes: u64,
    /// Old entries of the list of restore points.
    pub old_chain_entries: u64,
    /// Objects of restore points that are in no list.
    pub unlisted_points: Vec<String>,
    /// Writers that have not ended.
    pub sessions: Vec<SessionInfo>,
    /// What a lock keeps.
    pub locked: Vec<LockedObject>,
    /// What is won, once all of it is done.
    pub bytes_won: ByteCount,
    /// What is stored in packs now.
    pub bytes_stored: ByteCount,
    #[serde(skip)]
    decided_at: u64,
    #[serde(skip)]
    storage_class: Option<String>,
    #[serde(skip)]
    merge: HashSet<String>,
    #[serde(skip)]
    need: Arc<NeedSet>,
}

/// An object that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoomedObject {
    /// Its name.
    pub object: String,
    /// Its size.
    pub bytes: ByteCount,
}

/// A pack that is written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HalfEmptyPack {
    /// Its name.
    pub object: String,
    /// Its size.
    pub bytes: ByteCount,
    /// What of it is needed.
    pub live_bytes: ByteCount,
}

/// An object that would go but for its lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LockedObject {
    /// Its name.
    pub object: String,
    /// Its size.
    pub bytes: ByteCount,
    /// When its lock ends.
    pub until: DateTime<Utc>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PruneReport {
    /// Restore points that are listed no more.
    pub points: Vec<RestorePointId>,
    /// WAL files deleted.
    pub wal_files: u64,
    /// Packs deleted.
    pub packs_deleted: u64,
    /// Packs whose needed chunks were copied.
    pub packs_rewritten: u64,
    /// Packs that are condemned and wait for older sessions to end.
    pub packs_waiting: u64,
    /// Index objects replaced by fewer.
    pub indexes_merged: u64,
    /// Sessions that were ended: dead, or older than any backup takes.
    pub sessions_ended: u64,
    /// What was won.
    pub bytes_won: ByteCount,
    /// What could not be done, and why; the next run tries again.
    pub notes: Vec<String>,
}

impl WorkloadPrune {
    /// Whether carrying it out would change anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
            && self.wal.is_empty()
            && self.delete_packs.is_empty()
            && self.rewrite_packs.is_empty()
            && self.condemned_packs == 0
            && self.merge_indexes == 0
            && self.old_chain_entries == 0
            && self.unlisted_points.is_empty()
            && !self
                .sessions
                .iter()
                .any(|s| s.state != SessionState::Running)
    }
}

impl Repository {
    /// Finds out what would go with what is asked to go. Changes nothing.
    ///
    /// # Errors
    /// When a restore point that stays cannot be read, or lacks something: then nothing is pruned, so
    /// that what might mend it is not deleted. When the place fails.
    pub fn plan_prune(
        &self,
        request: &PruneRequest,
        progress: &dyn Progress,
    ) -> Result<PrunePlan, StoreError> {
        let mut workloads = Vec::new();
        for workload in self.inner().known_workloads()? {
            progress.phase(&format!("finding out what `{workload}` needs"), None);
            let decided_at = request
                .decided_at
                .iter()
                .find(|anchor| anchor.workload == workload)
                .map_or(0, |anchor| anchor.sequence);
            let mine = |of: &WorkloadName| *of == workload;
            let wanted = decide::Wanted {
                decided_at,
                points: (request.points.iter().filter(|(of, _)| mine(of)))
                    .map(|(_, id)| id.clone())
                    .collect::<HashSet<_>>(),
                wal: (request.wal.iter().filter(|(of, _)| mine(of)))
                    .map(|(_, name)| name.clone())
                    .collect::<HashSet<_>>(),
                storage_class: request.storage_classes.get(&workload).cloned(),
            };
            workloads.push(decide::workload(
                self,
                &workload,
                wanted,
                &request.options,
                progress,
            )?);
        }
        Ok(PrunePlan {
            place: self.describe(),
            workloads,
            options: request.options,
        })
    }

    /// Carries a plan out.
    ///
    /// # Errors
    /// When the lists of restore points changed since ([`StoreError::PlanOutdated`]), another prune
    /// runs, or the place fails. Whatever was done by then, the repository is whole, and the next run
    /// goes on from there.
    pub fn prune(
        &self,
        plan: &PrunePlan,
        progress: &dyn Progress,
    ) -> Result<PruneReport, StoreError> {
        let mut report = PruneReport::default();
        for workload in plan.workloads.iter().filter(|plan| !plan.is_empty()) {
            progress.phase(&format!("pruning `{}`", workload.workload), None);
            execute::workload(self, workload, &plan.options, progress, &mut report)?;
        }
        Ok(report)
    }

    /// The moment by the place's own clock.
    ///
    /// # Errors
    /// When the place fails.
    pub fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        let repo = self.inner();
        let now = repo.backend.now();
        now.map_err(repo.failed("reading the place's clock".to_owned()))
    }

    /// Adds an entry that changes nothing to a workload's list of restore points: whatever was decided
    /// over the list as it was before is not carried out any more.
    ///
    /// # Errors
    /// When the list cannot be read or the place fails.
    pub fn outdate_plans(
        &self,
        workload: &WorkloadName,
        at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.inner().chain_fence(workload, &[], at).map(|_| ())
    }
}

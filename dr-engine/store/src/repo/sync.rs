//! Bringing a copy up to what the first place holds.
//!
//! Order: keys, packs, indexes, WAL, records, restore points, and last the lists of restore points. Every
//! object is opened before it is stored in the copy. A list is brought only when every point that is new
//! in it can be restored from the copy as it then is; its newest entry goes first, because an older one
//! would list what was removed since. An interruption at any step leaves a copy that lists nothing it
//! does not have, and the next run goes on from there: what is there already is not copied again.
//!
//! Removing comes after that. A restore point's object goes when the list without it is there. Packs,
//! indexes and old WAL go only if a check of the first place finds it whole: what the first place *lost*
//! must not be lost in the copy as well. For the same reason a first place whose list is older than the
//! copy's (or empty) is refused: it went back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dr_model::{Progress, RestorePointId, WorkloadName};
use serde::{Deserialize, Serialize};

use super::chain::{CHAINS, ChainHead, chain_prefix};
use super::keys::{SHRED, SLOTS, TENANT_KEYS, WORKLOAD_KEYS};
use super::lock::LOCKS;
use super::points::{POINTS, StoredPoint, point_name};
use super::session::{CONDEMNED, SESSIONS};
use super::tail::TAILS;
use super::verify::workload_of;
use super::writer::copies::bring_chain;
use super::{Inner, Repository, fetch};
use crate::backend::PutOutcome;
use crate::format::{chain, repository as marker};
use crate::testing::kill_point;
use crate::{CheckOptions, CheckProblem, ObjectEntry, StoreError};

/// Objects on their way at once: packs are 16 MiB, so this bounds memory.
const AT_ONCE: usize = 4;
/// What is brought, in this order. Lists of restore points come after all of it.
const ORDER: [&str; 7] = [
    WORKLOAD_KEYS,
    "records/shred/",
    TENANT_KEYS,
    "data/",
    "index/",
    "wal/",
    "records/",
];

/// What bringing a copy up came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncReport {
    /// Objects copied.
    pub copied: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects removed from the copy, because they were removed from the first place.
    pub removed: u64,
    /// Objects that only the copy has and that were left there.
    pub kept: u64,
    /// What could not be copied, and why.
    pub problems: Vec<CheckProblem>,
}

impl SyncReport {
    /// Whether the copy has everything now.
    #[must_use]
    pub fn in_step(&self) -> bool {
        self.problems.is_empty()
    }
}

/// How far a copy of one workload is behind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyLag {
    /// Changes of the list of restore points that the copy does not have.
    pub lists: u64,
    /// WAL files that it does not have.
    pub wal: u64,
    /// When the oldest of these was stored in the first place.
    pub since: Option<chrono::DateTime<chrono::Utc>>,
}

impl CopyLag {
    /// Whether nothing is missing.
    #[must_use]
    pub fn in_step(&self) -> bool {
        self.lists == 0 && self.wal == 0
    }
}

struct Sync<'a> {
    here: Repository,
    there: Repository,
    progress: &'a dyn Progress,
    listed_here: BTreeMap<String, u64>,
    listed_there: BTreeMap<String, u64>,
    heads: Vec<(WorkloadName, ChainHead)>,
    /// Workloads of which something could not be copied.
    blocked: BTreeSet<WorkloadName>,
    report: SyncReport,
}

fn sizes(listed: Vec<ObjectEntry>) -> BTreeMap<String, u64> {
    listed.into_iter().map(|e| (e.name, e.size)).collect()
}

impl Repository {
    /// Brings a copy up to what this place holds, and removes from it what was removed here.
    ///
    /// # Errors
    /// When the other is no copy of this, this place went back behind it, or a place fails. What cannot be
    /// copied because it is damaged here is in the report.
    pub fn sync_to(&self, copy: &Self, progress: &dyn Progress) -> Result<SyncReport, StoreError> {
        self.inner().is_first()?;
        if !copy.is_copy_of(self) {
            return Err(StoreError::OtherRepository {
                place: copy.describe(),
            });
        }
        let (here, there) = (self.alone(), copy.alone());
        progress.phase("comparing the copy", None);
        // The copy is listed first: what it has was here before. The lists of points are read before
        // the objects are listed: what they need is listed then, or was removed.
        let listed_there = sizes(there.inner().list("")?);
        let heads = heads(here.inner())?;
        went_back(here.inner(), there.inner(), &heads)?;
        let listed_here = sizes(here.inner().list("")?);
        let mut sync = Sync {
            here,
            there,
            progress,
            listed_here,
            listed_there,
            heads,
            blocked: BTreeSet::new(),
            report: SyncReport::default(),
        };
        sync.bring_objects()?;
        sync.bring_lists()?;
        sync.remove()?;
        Ok(sync.report)
    }

    /// How far the copy is behind for one workload: by its list of restore points and its WAL.
    ///
    /// # Errors
    /// When a place fails, or this place went back.
    pub fn lag_of(&self, copy: &Self, workload: &WorkloadName) -> Result<CopyLag, StoreError> {
        let (here, there) = (self.inner(), copy.alone());
        let there = there.inner();
        let mut lag = CopyLag::default();
        let mut since = Vec::new();
        let head = here.chain_head(workload)?;
        if let Some(head) = head {
            let before = there.chain_head(workload)?;
            let known = before.map_or(0, |before| before.entry.sequence);
            if known > head.entry.sequence {
                return Err(here.went_back(workload, there));
            }
            lag.lists = head.entry.sequence - known;
            if lag.lists > 0 {
                let first = here.chain_entry(workload, known + 1)?.unwrap_or(head);
                since.push(first.entry.at);
            }
        }
        let wal = super::wal::wal_prefix(workload);
        let known: HashMap<String, u64> = sizes(there.list(&wal)?).into_iter().collect();
        for entry in here.list(&wal)? {
            if known.get(&entry.name) != Some(&entry.size) {
                lag.wal += 1;
                since.push(entry.modified);
            }
        }
        lag.since = since.into_iter().min();
        Ok(lag)
    }
}

impl Inner {
    fn went_back(&self, workload: &WorkloadName, copy: &Self) -> StoreError {
        StoreError::WentBack {
            workload: workload.clone(),
            place: self.place.clone(),
            copy: copy.place.clone(),
        }
    }
}

fn heads(repo: &Inner) -> Result<Vec<(WorkloadName, ChainHead)>, StoreError> {
    let mut heads = Vec::new();
    for workload in repo.chained_workloads()? {
        if let Some(head) = repo.chain_head(&workload)? {
            heads.push((workload, head));
        }
    }
    Ok(heads)
}

/// Refuses a first place whose list does not go on from the copy's.
fn went_back(
    here: &Inner,
    there: &Inner,
    heads: &[(WorkloadName, ChainHead)],
) -> Result<(), StoreError> {
    for workload in there.chained_workloads()? {
        let prefix = chain_prefix(&workload);
        // By their names: a damaged list in the copy is replaced, not believed.
        let known = there
            .list(&prefix)?
            .iter()
            .filter_map(|entry| chain::sequence_of(&prefix, &entry.name))
            .max()
            .unwrap_or(0);
        let head = heads.iter().find(|(name, _)| *name == workload);
        if head.map_or(0, |(_, head)| head.entry.sequence) < known {
            return Err(here.went_back(&workload, there));
        }
        let (Ok(Some(theirs)), Some(ours)) = (
            there.chain_entry(&workload, known),
            here.chain_entry(&workload, known)?,
        ) else {
            continue;
        };
        if theirs.object_sha256 != ours.object_sha256 {
            return Err(here.went_back(&workload, there));
        }
    }
    Ok(())
}

impl Sync<'_> {
    fn problem(&mut self, object: &str, what: impl Into<String>, affects: Vec<RestorePointId>) {
        self.report.problems.push(CheckProblem {
            object: object.to_owned(),
            what: what.into(),
            affects,
        });
    }

    fn lacking(&self, prefix: &str) -> Vec<(String, u64)> {
        self.listed_here
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(name, size)| self.listed_there.get(*name) != Some(size))
            // They go, from one second to the next, when their segment is stored whole, copies included.
            .filter(|(name, _)| !name.starts_with(TAILS))
            .map(|(name, size)| (name.clone(), *size))
            .collect()
    }

    fn bring_objects(&mut self) -> Result<(), StoreError> {
        let mut todo: Vec<(String, u64)> = Vec::new();
        let mut seen = BTreeSet::new();
        for prefix in ORDER {
            let new = self.lacking(prefix).into_iter();
            todo.extend(new.filter(|(name, _)| seen.insert(name.clone())));
        }
        let bytes = todo.iter().map(|(_, size)| size).sum();
        self.progress.phase("copying", Some(bytes));
        for group in todo.chunks(AT_ONCE) {
            let brought = fetch::each(group, |(name, size)| self.bring(name, *size));
            for ((_, size), brought) in group.iter().zip(brought) {
                match brought {
                    Ok(true) => {
                        self.report.copied += 1;
                        self.report.bytes += size;
                    }
                    Ok(false) => {}
                    Err(StoreError::Damaged { object, what, .. }) => {
                        self.blocked.extend(workload_of(&object));
                        self.problem(&object, what, Vec::new());
                    }
                    Err(StoreError::ObjectMissing { object, .. }) => {
                        self.problem(&object, "it is missing", Vec::new());
                    }
                    Err(error) => return Err(error),
                }
                self.progress.advance(*size);
            }
            kill_point("store.sync.after-objects");
        }
        Ok(())
    }

    /// Copies one object; false if it was removed meanwhile.
    fn bring(&self, object: &str, size: u64) -> Result<bool, StoreError> {
        let (here, there) = (self.here.inner(), self.there.inner());
        let Some(data) = here.get(object)? else {
            // Prune was here, unless it is something that a list names.
            return match object.starts_with(POINTS) {
                true => Err(here.missing(object)),
                false => Ok(false),
            };
        };
        here.verify_object(object, &data)?;
        // Names are never used twice: what is there with another length is not what was stored.
        if self
            .listed_there
            .get(object)
            .is_some_and(|there| *there != size)
        {
            there.delete(object)?;
        }
        if there.put_new(object, data)? == PutOutcome::Exists {
            // Stored by a backup that runs beside, or damaged without a change of its length.
            tracing::debug!(object, "the copy has it already");
        }
        kill_point("store.sync.after-object");
        Ok(true)
    }

    /// Brings the lists of restore points whose points can all be restored from the copy.
    fn bring_lists(&mut self) -> Result<(), StoreError> {
        self.progress
            .phase("listing restore points in the copy", None);
        let damaged = self.here.damaged_points()?;
        for (workload, head) in self.heads.clone() {
            let before = match self.there.inner().chain_head(&workload) {
                Ok(before) => before,
                Err(StoreError::Damaged { object, .. }) => {
                    // The first place's list goes on from here, so this entry is there as well.
                    self.replace(&object)?;
                    self.there.inner().chain_head(&workload)?
                }
                Err(error) => return Err(error),
            };
            let known: BTreeSet<String> = before
                .iter()
                .flat_map(|before| &before.entry.points)
                .map(|listed| listed.object_sha256.clone())
                .collect();
            let mut whole = !self.blocked.contains(&workload);
            let mut new = Vec::new();
            for listed in &head.entry.points {
                if known.contains(&listed.object_sha256) {
                    continue;
                }
                let object = point_name(&listed.point.id);
                new.push(object.clone());
                if damaged.contains_key(&listed.point.id) {
                    continue;
                }
                let lacks = match self.here.inner().read_point(&object) {
                    Ok(Some((found, _))) => self.there.lacks_for(&StoredPoint::of(found))?,
                    Ok(None) => Some("it is missing".to_owned()),
                    Err(StoreError::Damaged { what, .. }) => Some(what),
                    Err(error) => return Err(error),
                };
                if let Some(what) = lacks {
                    whole = false;
                    self.problem(&object, what, vec![listed.point.id.clone()]);
                }
            }
            if whole {
                self.bring_list(&workload, &new, before.as_ref(), &head)?;
            }
        }
        Ok(())
    }

    /// Brings restore points that a list names, and that list. Not before: a copy with a point that no
    /// list of its own names looks like one that went back.
    fn bring_list(
        &mut self,
        workload: &WorkloadName,
        new: &[String],
        before: Option<&ChainHead>,
        head: &ChainHead,
    ) -> Result<(), StoreError> {
        for object in new {
            let size = self.listed_here.get(object).copied().unwrap_or(0);
            match self.bring(object, size) {
                Ok(_) => {
                    self.report.copied += 1;
                    self.report.bytes += size;
                }
                // Marked as damaged: it is as lost there as here.
                Err(StoreError::Damaged { .. } | StoreError::ObjectMissing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        kill_point("store.sync.before-chain");
        let (here, there) = (self.here.inner(), self.there.inner());
        self.report.copied += bring_chain(here, there, workload, before, head)?;
        self.bring_older_lists(workload)
    }

    /// Entries behind the newest that an interruption left out.
    fn bring_older_lists(&mut self, workload: &WorkloadName) -> Result<(), StoreError> {
        let prefix = chain_prefix(workload);
        let there = self.there.inner().list(&prefix)?;
        let there: BTreeSet<String> = there.into_iter().map(|entry| entry.name).collect();
        for entry in self.here.inner().list(&prefix)? {
            if !there.contains(&entry.name)
                && let Some(data) = self.here.inner().get(&entry.name)?
                && self.here.inner().verify_object(&entry.name, &data).is_ok()
            {
                self.there.inner().put_new(&entry.name, data)?;
                self.report.copied += 1;
            }
        }
        Ok(())
    }

    fn replace(&self, object: &str) -> Result<(), StoreError> {
        let (here, there) = (self.here.inner(), self.there.inner());
        let data = here.get(object)?.ok_or_else(|| here.missing(object))?;
        here.verify_object(object, &data)?;
        there.delete(object)?;
        there.put_new(object, data).map(|_| ())
    }

    /// Removes what was removed from the first place.
    fn remove(&mut self) -> Result<(), StoreError> {
        let extra: Vec<String> = self
            .listed_there
            .keys()
            .filter(|name| !self.listed_here.contains_key(*name))
            .filter(|name| !is_its_own(name))
            .cloned()
            .collect();
        if extra.is_empty() || !self.report.in_step() {
            self.report.kept += extra.len() as u64;
            return Ok(());
        }
        self.progress.phase("removing what was removed", None);
        kill_point("store.sync.before-removal");
        let report = self.here.check(CheckOptions::default(), self.progress)?;
        let rules = Removal::new(self, report.problems.is_empty());
        let mut removed = 0;
        for name in &extra {
            if rules.may_go(name) {
                self.there.inner().delete(name)?;
                kill_point("store.sync.after-removal");
                removed += 1;
            }
        }
        self.report.removed = removed;
        self.report.kept = extra.len() as u64 - removed;
        Ok(())
    }
}

/// What each place has for itself.
fn is_its_own(name: &str) -> bool {
    name == marker::NAME
        || [SLOTS, SESSIONS, CONDEMNED, LOCKS]
            .iter()
            .any(|own| name.starts_with(own))
}

/// What only the copy has and may go.
struct Removal {
    /// The first place has everything that its restore points need.
    first_is_whole: bool,
    listed: BTreeSet<String>,
    /// The oldest entry that each list still has.
    oldest_entry: HashMap<WorkloadName, u64>,
    shredded: BTreeSet<String>,
    /// Where the oldest base backup of each workload begins.
    oldest_wal: HashMap<WorkloadName, String>,
}

impl Removal {
    fn new(sync: &Sync<'_>, first_is_whole: bool) -> Self {
        let points = || {
            sync.heads
                .iter()
                .flat_map(|(_, head)| head.entry.points.iter().map(|listed| &listed.point))
        };
        let mut oldest_wal: HashMap<WorkloadName, String> = HashMap::new();
        for point in points() {
            if let Some(position) = point.postgres() {
                let start = position.start_segment.to_string();
                let oldest = oldest_wal
                    .entry(point.workload.clone())
                    .or_insert_with(|| start.clone());
                if start < *oldest {
                    *oldest = start;
                }
            }
        }
        let mut oldest_entry: HashMap<WorkloadName, u64> = HashMap::new();
        for name in sync.listed_here.keys().filter(|n| n.starts_with(CHAINS)) {
            if let Some(workload) = workload_of(name)
                && let Some(sequence) = chain::sequence_of(&chain_prefix(&workload), name)
            {
                let oldest = oldest_entry.entry(workload).or_insert(sequence);
                *oldest = sequence.min(*oldest);
            }
        }
        let shred = format!("records/{SHRED}/");
        let shredded = sync.listed_here.keys().filter_map(|name| {
            let code = name.strip_prefix(&shred)?;
            Some(format!("{TENANT_KEYS}{code}"))
        });
        Self {
            first_is_whole,
            listed: points().map(|point| point_name(&point.id)).collect(),
            oldest_entry,
            shredded: shredded.collect(),
            oldest_wal,
        }
    }

    fn may_go(&self, name: &str) -> bool {
        if name.starts_with(TENANT_KEYS) {
            return self.shredded.contains(name);
        }
        if name.starts_with(POINTS) {
            return !self.listed.contains(name);
        }
        let Some(workload) = workload_of(name) else {
            return false;
        };
        if name.starts_with(CHAINS) {
            let sequence = chain::sequence_of(&chain_prefix(&workload), name);
            let oldest = self.oldest_entry.get(&workload).copied();
            return matches!((sequence, oldest), (Some(sequence), Some(oldest)) if sequence < oldest);
        }
        let is_data = name.starts_with("data/") || name.starts_with("index/");
        if is_data {
            return self.first_is_whole;
        }
        if name.starts_with("wal/") {
            let file = name.rsplit('/').next().unwrap_or_default();
            let is_segment = file.len() == 24;
            let oldest = self.oldest_wal.get(&workload);
            return self.first_is_whole
                && is_segment
                && oldest.is_some_and(|oldest| file < oldest.as_str());
        }
        false
    }
}

//! The copies during one backup: each gets every pack and index as it is stored, and the restore point
//! when everything the point needs is there. One that fails is left out until the next backup.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dr_model::{RestorePoint, WorkloadName};

use super::packs_there;
use crate::format::chain::{self, ChainedPoint};
use crate::format::pack::PackId;
use crate::repo::chain::{ChainHead, chain_prefix};
use crate::repo::copies::{Attached, CopyState, chain as in_one_line};
use crate::repo::index::index_prefix;
use crate::repo::keys::{tenant_key_prefix, workload_key_name};
use crate::repo::points::point_name;
use crate::repo::{Inner, Repository};
use crate::testing::kill_point;
use crate::{ObjectEntry, StoreError};

/// The copies of one backup. Cheap to clone: all clones tell the same.
#[derive(Debug, Clone, Default)]
pub struct CopyRun {
    copies: Arc<Vec<OneCopy>>,
}

#[derive(Debug)]
struct OneCopy {
    attached: Arc<Attached>,
    /// Why it is left out.
    behind: Mutex<Option<String>>,
}

impl OneCopy {
    fn behind(&self) -> Option<String> {
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.clone()
    }

    fn leave_out(&self, why: String) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.get_or_insert(why);
    }

    fn try_to(&self, work: impl FnOnce(&Repository) -> Result<(), StoreError>) {
        if self.behind().is_some() {
            return;
        }
        if let Err(error) = self.attached.open().and_then(|copy| work(&copy)) {
            self.attached.failed(&error);
            self.leave_out(in_one_line(&error));
        }
    }
}

/// What a backup has finished.
pub(super) struct Finished<'a> {
    pub(super) point: &'a RestorePoint,
    pub(super) object: &'a Bytes,
    pub(super) needed: &'a HashMap<PackId, u64>,
}

impl CopyRun {
    pub(super) fn begin(repo: &Inner) -> Self {
        let one = |attached: &Arc<Attached>| {
            attached.forget_failure();
            OneCopy {
                attached: Arc::clone(attached),
                behind: Mutex::default(),
            }
        };
        Self {
            copies: Arc::new(repo.copies.iter().map(one).collect()),
        }
    }

    /// What became of each copy, so far.
    #[must_use]
    pub fn states(&self) -> Vec<CopyState> {
        let state = |copy: &OneCopy| CopyState {
            name: copy.attached.copy.name.clone(),
            place: copy.attached.copy.place.clone(),
            behind: copy.behind(),
        };
        self.copies.iter().map(state).collect()
    }

    /// Stores an object at every copy that is not left out.
    pub(super) fn put(&self, object: &str, data: &Bytes) {
        for copy in self.copies.iter() {
            copy.try_to(|there| there.inner().put_new(object, data.clone()).map(|_| ()));
        }
    }

    /// The same with an object as it is stored in the first place.
    pub(super) fn put_stored(&self, repo: &Inner, object: &str) {
        if self.copies.iter().all(|copy| copy.behind().is_some()) {
            return;
        }
        match repo.get(object) {
            Ok(Some(data)) => self.put(object, &data.into()),
            Ok(None) => {}
            Err(error) => self.all_behind(&error),
        }
    }

    fn all_behind(&self, error: &StoreError) {
        for copy in self.copies.iter() {
            copy.leave_out(in_one_line(error));
        }
    }

    /// Lists the restore point at every copy that has all it needs.
    pub(super) fn finish(&self, repo: &Inner, finished: &Finished<'_>) {
        for copy in self.copies.iter() {
            copy.try_to(|there| {
                if let Some(why) = list_at(repo, there.inner(), finished)? {
                    copy.leave_out(why);
                }
                Ok(())
            });
        }
    }
}

/// What of a prefix is here and not there, or there with another length.
fn lacking(here: &Inner, there: &Inner, prefix: &str) -> Result<Vec<ObjectEntry>, StoreError> {
    let known: HashMap<String, u64> = there
        .list(prefix)?
        .into_iter()
        .map(|entry| (entry.name, entry.size))
        .collect();
    let mut found = here.list(prefix)?;
    found.retain(|entry| known.get(&entry.name) != Some(&entry.size));
    Ok(found)
}

/// Lists a point at a copy; or says what the copy lacks for it.
fn list_at(
    repo: &Inner,
    there: &Inner,
    finished: &Finished<'_>,
) -> Result<Option<String>, StoreError> {
    let workload = &finished.point.workload;
    let packs = packs_there(there, workload)?;
    let missing = finished
        .needed
        .iter()
        .filter(|(id, size)| packs.get(*id) != Some(*size))
        .count();
    if missing > 0 {
        return Ok(Some(format!("it lacks {missing} packs of earlier backups")));
    }
    let Some(head) = repo.chain_head(workload)? else {
        return Ok(None);
    };
    let before = there.chain_head(workload)?;
    if let Some(why) = does_not_follow(repo, workload, before.as_ref(), &head, finished)? {
        return Ok(Some(why));
    }
    let mut small = lacking(repo, there, &tenant_key_prefix(workload))?;
    small.extend(lacking(repo, there, &index_prefix(workload))?);
    let key = workload_key_name(workload);
    let keys = lacking(repo, there, &key)?;
    small.extend(keys.into_iter().filter(|entry| entry.name == key));
    for entry in small {
        bring(repo, there, &entry.name)?;
    }
    kill_point("store.copy.before-point");
    there.put_new(&point_name(&finished.point.id), finished.object.clone())?;
    kill_point("store.copy.before-chain");
    bring_chain(repo, there, workload, before.as_ref(), &head)?;
    Ok(None)
}

/// Whether the newest list holds more than what the copy has listed already and this point.
fn does_not_follow(
    repo: &Inner,
    workload: &WorkloadName,
    before: Option<&ChainHead>,
    head: &ChainHead,
    finished: &Finished<'_>,
) -> Result<Option<String>, StoreError> {
    let mut known: HashSet<String> = HashSet::new();
    if let Some(before) = before {
        let here = repo.chain_entry(workload, before.entry.sequence)?;
        if here.is_some_and(|here| here.object_sha256 != before.object_sha256)
            || before.entry.sequence > head.entry.sequence
        {
            return Ok(Some(
                "its list of restore points does not lead to this one".to_owned(),
            ));
        }
        let of = |listed: &ChainedPoint| listed.object_sha256.clone();
        known.extend(before.entry.points.iter().map(of));
    }
    let lacking = head
        .entry
        .points
        .iter()
        .filter(|listed| listed.point.id != finished.point.id)
        .filter(|listed| !known.contains(&listed.object_sha256))
        .count();
    Ok((lacking > 0).then(|| format!("it lacks {lacking} earlier restore points")))
}

/// Takes one object over as it is.
fn bring(repo: &Inner, there: &Inner, object: &str) -> Result<(), StoreError> {
    // One that vanished meanwhile was merged into another, which is listed as well.
    if let Some(data) = repo.get(object)? {
        there.put_new(object, data)?;
    }
    Ok(())
}

/// Takes the list over: its newest entry first. An older one would, for as long as it were the newest
/// there, list what was removed since.
pub(crate) fn bring_chain(
    repo: &Inner,
    there: &Inner,
    workload: &WorkloadName,
    before: Option<&ChainHead>,
    head: &ChainHead,
) -> Result<u64, StoreError> {
    let prefix = chain_prefix(workload);
    let first = before.map_or(0, |before| before.entry.sequence) + 1;
    let mut brought = 0;
    for sequence in (first..=head.entry.sequence).rev() {
        bring(repo, there, &chain::object_name(&prefix, sequence))?;
        kill_point("store.copy.after-chain");
        brought += 1;
    }
    Ok(brought)
}

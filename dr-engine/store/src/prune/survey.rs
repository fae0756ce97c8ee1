//! What is stored of a workload, looked at in an order in which nothing that a writer does meanwhile can
//! be missed: packs, indexes, sessions, the list of restore points. A writer that ended before its
//! session was looked for has its point in the list; one that has not is seen by its session, and what
//! was stored since it began is left alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::WorkloadName;

use super::homes::Standing;
use super::sessions::{SessionInfo, sessions};
use super::{PruneOptions, decide};
use crate::format::chain::{self, ChainedPoint};
use crate::format::header::Kind;
use crate::format::pack::{self, PackId};
use crate::format::session::{self, CondemnedObject};
use crate::repo::Inner;
use crate::repo::chain::chain_prefix;
use crate::repo::index::Index;
use crate::repo::points::point_name;
use crate::repo::session::condemned_prefix;
use crate::{ObjectEntry, StoreError};

/// A pack as the place lists it.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredPack {
    pub(super) size: u64,
    pub(super) stored_at: DateTime<Utc>,
}

/// Packs that were condemned together.
#[derive(Debug)]
pub(super) struct CondemnedList {
    pub(super) object: String,
    pub(super) packs: Vec<PackId>,
    /// What says that it was there, and since when that was said.
    pub(super) confirmed: Option<(String, DateTime<Utc>)>,
}

/// The restore points, and who may be about to list more.
#[derive(Debug)]
pub(super) struct History {
    /// The objects of the restore points, listed or not; looked for before the sessions.
    point_objects: Vec<String>,
    pub(super) sessions: Vec<SessionInfo>,
    /// The number of the newest entry of the list of restore points.
    pub(super) sequence: u64,
    pub(super) listed: Vec<ChainedPoint>,
    /// The numbers of all entries that are kept, oldest first.
    pub(super) entries: Vec<u64>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) packs: HashMap<PackId, StoredPack>,
    /// Packs that were stored while this looked.
    later: HashSet<PackId>,
    pub(super) index: Arc<Index>,
    pub(super) condemned: Vec<CondemnedList>,
    condemned_packs: HashSet<PackId>,
    /// Looked at last.
    pub(super) history: History,
}

impl History {
    pub(super) fn new(
        repo: &Inner,
        workload: &WorkloadName,
        options: &PruneOptions,
        own: Option<&str>,
    ) -> Result<Self, StoreError> {
        let point_objects = decide::point_objects(repo, workload)?;
        let sessions = sessions(repo, workload, options.session_age_max, own)?;
        let head = repo.chain_head(workload)?;
        let prefix = chain_prefix(workload);
        let entries = repo.list(&prefix)?;
        let mut entries: Vec<u64> = entries
            .iter()
            .filter_map(|entry| chain::sequence_of(&prefix, &entry.name))
            .collect();
        entries.sort_unstable();
        Ok(Self {
            point_objects,
            sessions,
            sequence: head.as_ref().map_or(0, |head| head.entry.sequence),
            listed: head.map(|head| head.entry.points).unwrap_or_default(),
            entries,
        })
    }

    /// The objects of points that are in no list.
    pub(super) fn unlisted(&self) -> Vec<String> {
        let listed: HashSet<String> = (self.listed.iter())
            .map(|chained| point_name(&chained.point.id))
            .collect();
        let objects = self.point_objects.iter();
        objects
            .filter(|object| !listed.contains(*object))
            .cloned()
            .collect()
    }
}

impl Survey {
    pub(super) fn new(
        repo: &Inner,
        workload: &WorkloadName,
        options: &PruneOptions,
        own: Option<&str>,
    ) -> Result<Self, StoreError> {
        let packs = stored_packs(repo, workload)?;
        let index = repo.index_for_reading(workload, true)?;
        let condemned = condemned(repo, workload)?;
        let history = History::new(repo, workload, options, own)?;
        // The index may name packs that were stored after the packs were listed.
        let later = match index
            .packs()
            .iter()
            .all(|file| packs.contains_key(&file.id))
        {
            true => HashSet::new(),
            false => stored_packs(repo, workload)?.into_keys().collect(),
        };
        Ok(Self {
            packs,
            later,
            index,
            condemned_packs: condemned
                .iter()
                .flat_map(|list| list.packs.clone())
                .collect(),
            condemned,
            history,
        })
    }

    pub(super) fn is_condemned(&self, id: &PackId) -> bool {
        self.condemned_packs.contains(id)
    }

    /// How far a pack of the index can be relied on.
    pub(super) fn standing(&self, number: u32) -> Standing {
        let Some(file) = self.index.pack(number) else {
            return Standing::Absent;
        };
        match self.packs.get(&file.id) {
            Some(stored) if stored.size == file.size => match self.is_condemned(&file.id) {
                true => Standing::Condemned,
                false => Standing::Good,
            },
            Some(_) => Standing::Absent,
            None if self.later.contains(&file.id) => Standing::Good,
            None => Standing::Absent,
        }
    }
}

fn stored_packs(
    repo: &Inner,
    workload: &WorkloadName,
) -> Result<HashMap<PackId, StoredPack>, StoreError> {
    let entry = |entry: ObjectEntry| {
        let stored = StoredPack {
            size: entry.size,
            stored_at: entry.modified,
        };
        Some((pack::id_of(workload, &entry.name)?, stored))
    };
    let listed = repo.list(&pack::prefix(workload))?;
    Ok(listed.into_iter().filter_map(entry).collect())
}

/// What was condemned and is not deleted yet.
pub(super) fn condemned(
    repo: &Inner,
    workload: &WorkloadName,
) -> Result<Vec<CondemnedList>, StoreError> {
    let mut lists = Vec::new();
    let mut confirmed = HashMap::new();
    for entry in repo.list(&condemned_prefix(workload))? {
        let Some(body) = repo.get_sealed(&repo.master, Kind::Condemned, &entry.name)? else {
            continue;
        };
        let damaged = |error| repo.unreadable(&entry.name, error);
        let object: CondemnedObject = session::decode(&body).map_err(damaged)?;
        let packs = object.pack_ids().map_err(damaged)?;
        if let Some(confirms) = object.confirms {
            confirmed.insert(confirms, (entry.name, entry.modified));
            continue;
        }
        lists.push(CondemnedList {
            object: entry.name,
            packs,
            confirmed: None,
        });
    }
    for list in &mut lists {
        list.confirmed = confirmed.remove(&list.object);
    }
    // Of lists that are done with.
    for (object, _) in confirmed.into_values() {
        repo.delete(&object)?;
    }
    Ok(lists)
}

//! The list of restore points: reading its newest entry, and adding one.
//!
//! Adding is a compare-and-swap: the next number is written only if nobody has it. Who finds it taken
//! reads that entry and adds to it. A listing of the place may lag behind what was stored, a read by
//! name does not: from the newest entry that was listed, the numbers after it are asked for one by one.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use dr_model::{RestorePoint, RestorePointId, WorkloadName};

use super::keys::WORKLOAD_KEYS;
use super::points::{POINTS, point_name};
use super::{Inner, encode_failed, fetch};
use crate::StoreError;
use crate::backend::{PutOptions, PutOutcome};
use crate::crypto::sha256;
use crate::format::chain::{self, ChainEntry, ChainEvent, ChainedPoint};
use crate::format::header::Kind;
use crate::format::{FormatError, sealed};

/// Where all chains are.
pub(crate) const CHAINS: &str = "chain/";
/// How often another writer may be first before something must be wrong.
const RACES_MAX: u32 = 100;

/// Where a workload's chain is.
pub(crate) fn chain_prefix(workload: &WorkloadName) -> String {
    format!("{CHAINS}{workload}/")
}

/// An entry with what the next one must say of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChainHead {
    pub(crate) entry: ChainEntry,
    pub(crate) object_sha256: String,
}

/// The number of the newest entry of each chain as it was last read: a guess, that is never relied on.
#[derive(Debug, Default)]
pub(crate) struct KnownHeads(Mutex<HashMap<WorkloadName, u64>>);

impl KnownHeads {
    fn get(&self, workload: &WorkloadName) -> Option<u64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(workload).copied()
    }

    fn set(&self, workload: &WorkloadName, sequence: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(workload.clone(), sequence);
    }
}

/// The newest entry of a workload's list of restore points, as an anchor: whoever keeps it elsewhere
/// notices when the repository goes back to an older one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChainAnchor {
    /// The workload.
    pub workload: WorkloadName,
    /// The entry's number.
    pub sequence: u64,
    /// SHA-256 of the entry as it is stored, in hexadecimal digits.
    pub sha256: String,
}

/// Changes the list, given the number of the newest entry.
type Change<'a> = &'a dyn Fn(u64, &mut Vec<ChainedPoint>) -> Result<Option<ChainEvent>, StoreError>;

impl Inner {
    /// One entry; `None` if it is not there.
    pub(crate) fn chain_entry(
        &self,
        workload: &WorkloadName,
        sequence: u64,
    ) -> Result<Option<ChainHead>, StoreError> {
        let object = chain::object_name(&chain_prefix(workload), sequence);
        self.read_verified(&object, &|data| {
            let decode = || -> Result<ChainEntry, FormatError> {
                let body = sealed::decode(&self.id, &self.master, Kind::Chain, &object, data)?;
                chain::decode(&body, sequence)
            };
            Ok(ChainHead {
                entry: decode().map_err(|error| self.unreadable(&object, error))?,
                object_sha256: hex::encode(sha256(data)),
            })
        })
    }

    /// The newest entry of a workload's chain; `None` before the first.
    pub(crate) fn chain_head(
        &self,
        workload: &WorkloadName,
    ) -> Result<Option<ChainHead>, StoreError> {
        let prefix = chain_prefix(workload);
        let newest = || -> Result<Option<u64>, StoreError> {
            let listed = self.list(&prefix)?;
            let numbers = listed
                .iter()
                .filter_map(|entry| chain::sequence_of(&prefix, &entry.name));
            Ok(numbers.max())
        };
        // The entry that was the newest before is most likely still: it is read while the place is listed.
        let guess = self.known_heads.get(workload);
        let (newest, guessed) = match guess {
            Some(guess) => {
                let (newest, read) = fetch::both(newest, || self.entry_and_next(workload, guess));
                (newest?, Some(read))
            }
            None => (newest()?, None),
        };
        let mut sequence = match newest {
            Some(sequence) => sequence,
            None if self.is_free(&prefix, 1)? => return Ok(None),
            None => 1,
        };
        let mut guessed = guessed.filter(|_| guess == newest);
        loop {
            let read = guessed.take();
            let (head, is_newest) = match read {
                Some(read) => read?,
                None => self.entry_and_next(workload, sequence)?,
            };
            if is_newest {
                self.known_heads.set(workload, sequence);
                return Ok(Some(head));
            }
            sequence += 1;
        }
    }

    /// An entry that was listed or seen, and whether the one after it is not there.
    fn entry_and_next(
        &self,
        workload: &WorkloadName,
        sequence: u64,
    ) -> Result<(ChainHead, bool), StoreError> {
        let prefix = chain_prefix(workload);
        let (next_is_free, head) = fetch::both(
            || self.is_free(&prefix, sequence + 1),
            || self.chain_entry(workload, sequence),
        );
        let head = head?.ok_or_else(|| self.missing(&chain::object_name(&prefix, sequence)));
        Ok((head?, next_is_free?))
    }

    /// Whether an entry's number is free. A copy is not asked for what the first place says is not there:
    /// what a copy knows beyond that is a first place that went back, which is for sync to tell.
    fn is_free(&self, prefix: &str, sequence: u64) -> Result<bool, StoreError> {
        let object = chain::object_name(prefix, sequence);
        Ok(self.get(&object)?.is_none())
    }

    /// Lists a restore point whose object is stored. `may_go_on` is asked each time between reading the
    /// newest entry and adding the next: whoever ends a session adds an entry behind that, so a writer
    /// that was suspended at any instant finds the number taken, and is asked again. `head` is the newest
    /// entry as it was read beside storing the object: what came since has taken its number.
    pub(crate) fn chain_listed(
        &self,
        point: &RestorePoint,
        object: &[u8],
        head: Option<ChainHead>,
        at: DateTime<Utc>,
        options: &PutOptions,
        may_go_on: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let chained = ChainedPoint {
            point: point.clone(),
            object_sha256: hex::encode(sha256(object)),
        };
        self.chain_append_to(head, &point.workload, at, options, &|_, points| {
            // An answer that was lost on its way: the entry that took the number was our own.
            if points.contains(&chained) {
                return Ok(None);
            }
            may_go_on()?;
            points.retain(|known| known.point.id != chained.point.id);
            points.push(chained.clone());
            points.sort_by(|left, right| {
                (left.point.moment, &left.point.id).cmp(&(right.point.moment, &right.point.id))
            });
            Ok(Some(ChainEvent::Listed(chained.point.id.clone())))
        })
        .map(|_| ())
    }

    /// Takes restore points off the list, if it is still the one that was looked at when that was
    /// decided. Those that are not in it are no error.
    pub(crate) fn chain_removed(
        &self,
        workload: &WorkloadName,
        ids: &HashSet<RestorePointId>,
        decided_at: u64,
        at: DateTime<Utc>,
        may_go_on: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.chain_append(workload, at, &PutOptions::default(), &|sequence, points| {
            let before = points.len();
            points.retain(|known| !ids.contains(&known.point.id));
            if points.len() == before {
                return Ok(None);
            }
            if sequence != decided_at {
                return Err(StoreError::PlanOutdated {
                    workload: workload.clone(),
                });
            }
            may_go_on()?;
            let mut removed: Vec<RestorePointId> = ids.iter().cloned().collect();
            removed.sort();
            Ok(Some(ChainEvent::Removed(removed)))
        })
        .map(|_| ())
    }

    /// Adds an entry that changes nothing. Whoever was about to add another finds its number taken and
    /// looks again at what it relied on. `unfinished`: points that are said to be in no list on purpose.
    /// Returns the list as it is from then on.
    pub(crate) fn chain_fence(
        &self,
        workload: &WorkloadName,
        unfinished: &[RestorePointId],
        at: DateTime<Utc>,
    ) -> Result<Vec<ChainedPoint>, StoreError> {
        self.chain_append(workload, at, &PutOptions::default(), &|_, _| {
            Ok(Some(ChainEvent::Removed(unfinished.to_vec())))
        })
    }

    /// Adds an entry to whatever is the newest. `change` may be called again when another writer was
    /// first; `None` from it means that there is nothing to change. Returns the list as it is then.
    fn chain_append(
        &self,
        workload: &WorkloadName,
        at: DateTime<Utc>,
        options: &PutOptions,
        change: Change<'_>,
    ) -> Result<Vec<ChainedPoint>, StoreError> {
        let head = self.chain_head(workload)?;
        self.chain_append_to(head, workload, at, options, change)
    }

    /// [`Self::chain_append`], given what was the newest entry a moment ago.
    fn chain_append_to(
        &self,
        mut head: Option<ChainHead>,
        workload: &WorkloadName,
        at: DateTime<Utc>,
        options: &PutOptions,
        change: Change<'_>,
    ) -> Result<Vec<ChainedPoint>, StoreError> {
        let prefix = chain_prefix(workload);
        for _ in 0..RACES_MAX {
            let mut points = head
                .as_ref()
                .map(|head| head.entry.points.clone())
                .unwrap_or_default();
            let last = head.as_ref().map_or(0, |head| head.entry.sequence);
            let Some(event) = change(last, &mut points)? else {
                return Ok(points);
            };
            let sequence = last + 1;
            let entry = ChainEntry {
                sequence,
                previous_sha256: head.map(|head| head.object_sha256),
                at,
                event,
                points,
            };
            let body = serde_json::to_vec(&entry).map_err(|error| StoreError::Encode {
                what: "the list of restore points",
                source: Box::new(error),
            })?;
            let object = chain::object_name(&prefix, sequence);
            let data = sealed::encode(&self.id, &self.master, Kind::Chain, &object, &body)
                .map_err(encode_failed("the list of restore points"))?;
            if self.put_new_with(&object, data, options)? == PutOutcome::Stored {
                return Ok(entry.points);
            }
            head = self.chain_head(workload)?;
        }
        Err(StoreError::Damaged {
            object: prefix,
            place: self.place.clone(),
            what: format!("its next entry was taken {RACES_MAX} times by other writers"),
        })
    }

    /// The listed restore points of a workload.
    pub(crate) fn listed(&self, workload: &WorkloadName) -> Result<Vec<ChainedPoint>, StoreError> {
        match self.chain_head(workload) {
            Ok(head) => Ok(head.map(|head| head.entry.points).unwrap_or_default()),
            // A changed version byte looks like a newer version.
            Err(error @ (StoreError::Damaged { .. } | StoreError::UnsupportedVersion { .. })) => {
                tracing::warn!(%error, "restore points are listed by their objects instead");
                self.listed_by_objects(workload)
            }
            Err(error) => Err(error),
        }
    }

    /// What there is to restore when the list itself is damaged: each restore point's own object is
    /// authenticated. Nothing is written on this ground.
    fn listed_by_objects(&self, workload: &WorkloadName) -> Result<Vec<ChainedPoint>, StoreError> {
        // One workload's name may begin as another's does: the prefix only saves reading.
        let prefix = format!("{POINTS}{}{workload}-", RestorePointId::PREFIX);
        let mut found = Vec::new();
        for entry in self.list(&prefix)? {
            if let Ok(Some((object, data))) = self.read_point(&entry.name)
                && object.point.workload == *workload
            {
                found.push(ChainedPoint {
                    point: object.point,
                    object_sha256: hex::encode(sha256(&data)),
                });
            }
        }
        Ok(found)
    }

    /// The workloads that anything is stored of: those that have a data key.
    pub(crate) fn known_workloads(&self) -> Result<Vec<WorkloadName>, StoreError> {
        let mut found = self.chained_workloads()?;
        let keys = self.list(WORKLOAD_KEYS)?;
        let named = keys
            .iter()
            .filter_map(|entry| entry.name.strip_prefix(WORKLOAD_KEYS));
        found.extend(named.filter_map(|name| name.parse::<WorkloadName>().ok()));
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// The workloads that have a list of restore points.
    pub(crate) fn chained_workloads(&self) -> Result<Vec<WorkloadName>, StoreError> {
        let mut found: Vec<WorkloadName> = self
            .list(CHAINS)?
            .iter()
            .filter_map(|entry| entry.name.strip_prefix(CHAINS)?.split('/').next())
            .filter_map(|name| name.parse().ok())
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Fails when a listed restore point's object is another one.
    pub(crate) fn is_as_listed(
        &self,
        known: &ChainedPoint,
        object: &[u8],
    ) -> Result<(), StoreError> {
        if known.object_sha256 == hex::encode(sha256(object)) {
            return Ok(());
        }
        Err(self.unreadable(
            &point_name(&known.point.id),
            FormatError::damaged("it is not the one that was listed"),
        ))
    }
}

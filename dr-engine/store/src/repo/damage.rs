//! Remembered damage: what a check found, until it is mended.
//!
//! Every event is a record of its own, `records/damage/<name>`, and names are made so that they sort by
//! time: what is damaged now is what was found and not mended since. A backup relies on no pack that is
//! known to be damaged, so that it stores those chunks again, and every restore point that needs them is
//! whole again. Restore points that lost something for good are marked by records of kind
//! `damaged-point`: they stay listed, and count as nothing.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use dr_model::{RestorePointId, WorkloadName};
use serde::{Deserialize, Serialize};

use super::Repository;
use crate::StoreError;
use crate::format::FormatError;
use crate::format::pack::{self, PackId};

/// The kind of records of what was found damaged.
pub(crate) const DAMAGE: &str = "damage";
/// The kind of records of restore points that lost something.
pub(crate) const DAMAGED_POINT: &str = "damaged-point";

/// What happened to objects of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageEvent {
    /// They were found damaged or missing.
    Found,
    /// They are whole again.
    Mended,
}

/// An object and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DamagedObject {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// The content of a record of kind `damage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageRecord {
    /// What happened.
    pub event: DamageEvent,
    /// The place that holds the objects, as it is described there.
    pub place: String,
    /// When.
    pub at: DateTime<Utc>,
    /// Who found or mended it.
    pub by: String,
    /// The objects.
    pub objects: Vec<DamagedObject>,
}

/// The content of a record of kind `damaged-point`: a restore point that cannot be restored whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPoint {
    /// The restore point.
    pub point: RestorePointId,
    /// Its workload.
    pub workload: WorkloadName,
    /// When that was found.
    pub at: DateTime<Utc>,
    /// What of it is lost: paths of files; all of it when empty.
    pub lost: Vec<String>,
    /// Whether that was mended since.
    #[serde(default)]
    pub mended: bool,
}

fn name_at(at: DateTime<Utc>) -> String {
    let micros = u64::try_from(at.timestamp_micros()).unwrap_or(0);
    format!("{micros:016x}-{}", dr_model::random::hex(6))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Encode {
        what: "a record",
        source: Box::new(error),
    })
}

impl Repository {
    /// Remembers what was found damaged, or mended. `place` is that of the objects, which may be a
    /// copy's; the record goes to this repository.
    ///
    /// # Errors
    /// When the place fails.
    pub fn remember_damage(&self, record: &DamageRecord) -> Result<(), StoreError> {
        self.put_record(DAMAGE, &name_at(record.at), &encode(record)?)
    }

    /// What is known to be damaged in a place, by object.
    ///
    /// # Errors
    /// When the place fails.
    pub fn known_damage(&self, place: &str) -> Result<BTreeMap<String, String>, StoreError> {
        let mut damaged = BTreeMap::new();
        for name in self.list_records(DAMAGE)? {
            let Some(record): Option<DamageRecord> = self.read_record(DAMAGE, &name)? else {
                continue;
            };
            if record.place != place {
                continue;
            }
            for found in record.objects {
                match record.event {
                    DamageEvent::Found => damaged.insert(found.object, found.what),
                    DamageEvent::Mended => damaged.remove(&found.object),
                };
            }
        }
        Ok(damaged)
    }

    /// The packs of a workload that no backup may rely on, because they are damaged here.
    pub(crate) fn damaged_packs(
        &self,
        workload: &WorkloadName,
    ) -> Result<BTreeSet<PackId>, StoreError> {
        let damaged = self.known_damage(&self.describe())?;
        Ok(damaged
            .keys()
            .filter_map(|object| pack::id_of(workload, object))
            .collect())
    }

    /// Marks a restore point that lost something, or takes the mark back.
    ///
    /// # Errors
    /// When the place fails.
    pub fn mark_damaged_point(&self, mark: &DamagedPoint) -> Result<(), StoreError> {
        let name = format!("{}/{}", mark.point, name_at(mark.at));
        self.put_record(DAMAGED_POINT, &name, &encode(mark)?)
    }

    /// The restore points that are marked: they lost something for good.
    ///
    /// # Errors
    /// When the place fails.
    pub fn damaged_points(&self) -> Result<BTreeMap<RestorePointId, DamagedPoint>, StoreError> {
        let mut marked = BTreeMap::new();
        for name in self.list_records(DAMAGED_POINT)? {
            let Some(mark): Option<DamagedPoint> = self.read_record(DAMAGED_POINT, &name)? else {
                continue;
            };
            if mark.mended {
                marked.remove(&mark.point);
            } else {
                marked.insert(mark.point.clone(), mark);
            }
        }
        Ok(marked)
    }

    fn read_record<T: for<'a> Deserialize<'a>>(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Option<T>, StoreError> {
        let read = self.get_record(kind, name).and_then(|body| {
            let decode = |body: Vec<u8>| serde_json::from_slice(&body);
            body.map(decode).transpose().map_err(|error| {
                let object = format!("records/{kind}/{name}");
                self.inner()
                    .unreadable(&object, FormatError::Damaged(error.to_string()))
            })
        });
        match read {
            // A check names it; no backup ends because of it.
            Err(error @ (StoreError::Damaged { .. } | StoreError::UnsupportedVersion { .. })) => {
                tracing::warn!(%error, "a record of damage cannot be read");
                Ok(None)
            }
            read => read,
        }
    }
}

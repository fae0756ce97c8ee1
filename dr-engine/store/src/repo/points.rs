//! Restore points: listing them, and opening one.
//!
//! The list is the newest entry of the workload's chain ([`super::chain`]); the object `points/<id>` says
//! where the rest of a point is. One that no list names was never finished, or is going to be deleted.

use std::io::Write;

use dr_model::{RestorePoint, RestorePointId, WorkloadName};

use super::chain::ChainAnchor;
use super::{Inner, Repository, fetch};
use crate::StoreError;
use crate::format::header::Kind;
use crate::format::point::{self, PointObject};
use crate::format::tree::TreeEntry;
use crate::format::{FormatError, sealed};

/// A restore point with what its source recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPoint {
    /// The restore point.
    pub point: RestorePoint,
    /// What the source recorded beside it.
    pub details: serde_json::Value,
    pub(crate) object: PointObject,
}

impl StoredPoint {
    pub(crate) fn of(object: PointObject) -> Self {
        Self {
            point: object.point.clone(),
            details: object.details.clone(),
            object,
        }
    }
}

pub(crate) const POINTS: &str = "points/";

pub(crate) fn point_name(id: &RestorePointId) -> String {
    format!("{POINTS}{id}")
}

/// The workload that an id was made for, if it was made as ids are: what can be asked for before the restore
/// point itself tells.
fn workload_in(id: &RestorePointId) -> Option<WorkloadName> {
    let rest = id.as_str().strip_prefix(RestorePointId::PREFIX)?;
    rest.rsplitn(3, '-').nth(2)?.parse().ok()
}

impl Repository {
    /// All listed restore points, of one workload or of all, sorted by moment.
    ///
    /// # Errors
    /// When a list cannot be read (the object is named), or the place fails.
    pub fn points(&self, workload: Option<&WorkloadName>) -> Result<Vec<RestorePoint>, StoreError> {
        let repo = self.inner();
        let workloads = match workload {
            Some(workload) => vec![workload.clone()],
            None => repo.chained_workloads()?,
        };
        let mut points = Vec::new();
        for listed in fetch::each(&workloads, |workload| repo.listed(workload)) {
            points.extend(listed?.into_iter().map(|listed| listed.point));
        }
        points.sort_by(|left, right| (left.moment, &left.id).cmp(&(right.moment, &right.id)));
        Ok(points)
    }

    /// One restore point; `None` if none of that id is listed.
    ///
    /// # Errors
    /// When it is damaged, is not the one that was listed, or the place fails.
    pub fn point(&self, id: &RestorePointId) -> Result<Option<StoredPoint>, StoreError> {
        let repo = self.inner();
        let guess = workload_in(id);
        let (listed, read) = fetch::both(
            || guess.as_ref().map(|workload| repo.listed(workload)),
            || repo.read_point(&point_name(id)),
        );
        let Some((object, data)) = read? else {
            return Ok(None);
        };
        let workload = &object.point.workload;
        let listed = match listed {
            Some(listed) if guess.as_ref() == Some(workload) => listed?,
            _ => repo.listed(workload)?,
        };
        let Some(known) = listed
            .iter()
            .find(|known| known.point.id == object.point.id)
        else {
            return Ok(None);
        };
        repo.is_as_listed(known, &data)?;
        Ok(Some(StoredPoint::of(object)))
    }

    /// The restore point of a workload that was begun last; `None` before the first.
    pub(crate) fn newest_point(
        &self,
        workload: &WorkloadName,
    ) -> Result<Option<StoredPoint>, StoreError> {
        let repo = self.inner();
        let listed = repo.listed(workload)?;
        let Some(newest) = listed.into_iter().max_by_key(|known| known.point.started) else {
            return Ok(None);
        };
        let Some((object, data)) = repo.read_point(&point_name(&newest.point.id))? else {
            return Ok(None);
        };
        repo.is_as_listed(&newest, &data)?;
        Ok(Some(StoredPoint::of(object)))
    }

    /// The newest entry of each workload's list of restore points: kept elsewhere, it tells when the
    /// repository went back to an older state.
    ///
    /// # Errors
    /// When a list cannot be read or the place fails.
    pub fn anchors(&self) -> Result<Vec<ChainAnchor>, StoreError> {
        // A copy must not hide that this place went back.
        let alone = self.alone();
        let repo = alone.inner();
        let workloads = repo.chained_workloads()?;
        let mut anchors = Vec::new();
        let heads = fetch::each(&workloads, |workload| repo.chain_head(workload));
        for (workload, head) in workloads.into_iter().zip(heads) {
            if let Some(head) = head? {
                anchors.push(ChainAnchor {
                    workload,
                    sequence: head.entry.sequence,
                    sha256: head.object_sha256,
                });
            }
        }
        Ok(anchors)
    }

    /// One entry of a workload's list of restore points; `None` if it is not there (any more).
    ///
    /// # Errors
    /// When it cannot be read or the place fails.
    pub fn anchor_at(
        &self,
        workload: &WorkloadName,
        sequence: u64,
    ) -> Result<Option<ChainAnchor>, StoreError> {
        let entry = self.alone().inner().chain_entry(workload, sequence)?;
        Ok(entry.map(|head| ChainAnchor {
            workload: workload.clone(),
            sequence,
            sha256: head.object_sha256,
        }))
    }

    /// The entries of a restore point, in path order.
    ///
    /// # Errors
    /// When the listing is damaged or the place fails.
    pub fn entries(&self, point: &StoredPoint) -> Result<Vec<TreeEntry>, StoreError> {
        self.reader(point)?.entries()
    }

    /// Writes a file's content to `out`, verified as it goes: an error may come after a part was
    /// written, and then what was written must not be used. For many files of one point,
    /// [`Repository::reader`] keeps what they share.
    ///
    /// # Errors
    /// When something it needs is damaged or missing, the place fails, or `out` does.
    pub fn read_file(
        &self,
        point: &StoredPoint,
        entry: &TreeEntry,
        out: &mut dyn Write,
    ) -> Result<(), StoreError> {
        self.reader(point)?.read_file(entry, out)
    }
}

impl Inner {
    /// A restore point's object, listed or not, with its bytes as they are stored.
    pub(crate) fn read_point(
        &self,
        object: &str,
    ) -> Result<Option<(PointObject, Vec<u8>)>, StoreError> {
        self.read_verified(object, &|data| {
            let decode = || -> Result<PointObject, FormatError> {
                let body = sealed::decode(&self.id, &self.master, Kind::Point, object, data)?;
                let found = point::decode(&body)?;
                if point_name(&found.point.id) == object {
                    Ok(found)
                } else {
                    Err(FormatError::damaged("it is another restore point"))
                }
            };
            let found = decode().map_err(|error| self.unreadable(object, error))?;
            Ok((found, data.to_vec()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_workload() {
        for name in ["erp", "erp-main", "a-1-b"] {
            let workload: WorkloadName = name.parse().unwrap();
            let id = RestorePointId::new(&workload, chrono::Utc::now());
            assert_eq!(workload_in(&id), Some(workload));
        }
        assert_eq!(workload_in(&"rp-x".parse().unwrap()), None);
    }
}

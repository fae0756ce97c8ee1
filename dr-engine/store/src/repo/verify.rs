//! Whether the bytes of an object are what its name says: opened and authenticated as far as the keys at
//! hand go, before they are stored in another place.

use dr_model::WorkloadName;

use super::chain::{CHAINS, chain_prefix};
use super::keys::{TENANT_KEYS, WORKLOAD_KEYS};
use super::points::{POINTS, point_name};
use super::{Inner, Repository};
use crate::StoreError;
use crate::crypto::Keys;
use crate::format::header::Kind;
use crate::format::tree::EntryKind;
use crate::format::{FormatError, chain, data_key, index, pack, point, sealed, wal};
use crate::repo::points::StoredPoint;
use crate::repo::writer::packs_there;

/// The workload that an object belongs to, by its name.
pub(crate) fn workload_of(object: &str) -> Option<WorkloadName> {
    let name = match object.strip_prefix(WORKLOAD_KEYS) {
        Some(name) => name,
        None => [TENANT_KEYS, "data/", "index/", "wal/", CHAINS]
            .iter()
            .find_map(|folder| object.strip_prefix(folder))?
            .split('/')
            .next()?,
    };
    name.parse().ok()
}

impl Inner {
    /// Refuses bytes that are not the object of this name.
    pub(crate) fn verify_object(&self, object: &str, data: &[u8]) -> Result<(), StoreError> {
        let damaged = |error: FormatError| self.unreadable(object, error);
        let master = |kind| sealed::decode(&self.id, &self.master, kind, object, data);
        let folder = object.split('/').next().unwrap_or_default();
        if let Some(name) = object.strip_prefix(WORKLOAD_KEYS) {
            let body = master(Kind::WorkloadKey).map_err(damaged)?;
            data_key::decode(&body).map_err(damaged)?;
            return name
                .parse::<WorkloadName>()
                .map(|_| ())
                .map_err(|_| damaged(FormatError::damaged("its name is not that of a workload")));
        }
        if object.starts_with(TENANT_KEYS) {
            let body = master(Kind::TenantKey).map_err(damaged)?;
            return data_key::decode(&body).map(|_| ()).map_err(damaged);
        }
        if object.starts_with(POINTS) {
            let body = master(Kind::Point).map_err(damaged)?;
            let found = point::decode(&body).map_err(damaged)?;
            return match point_name(&found.point.id) == object {
                true => Ok(()),
                false => Err(damaged(FormatError::damaged("it is another restore point"))),
            };
        }
        if folder == "records" {
            return master(Kind::Record).map(|_| ()).map_err(damaged);
        }
        let Some(workload) = workload_of(object) else {
            return Err(damaged(FormatError::damaged("it belongs to no workload")));
        };
        match folder {
            "chain" => {
                let body = master(Kind::Chain).map_err(damaged)?;
                let sequence = chain::sequence_of(&chain_prefix(&workload), object)
                    .ok_or_else(|| damaged(FormatError::damaged("it has no number")))?;
                chain::decode(&body, sequence).map(|_| ()).map_err(damaged)
            }
            "index" => self.verify_under(&workload, object, data, Kind::Index, &|keys| {
                let body = sealed::decode(&self.id, keys, Kind::Index, object, data)?;
                index::decode(&body).map(|_| ())
            }),
            "data" => self.verify_under(&workload, object, data, Kind::Pack, &|keys| {
                pack::each_chunk(&self.id, keys, object, data, &mut |_, chunk| {
                    chunk.map(|_| ())
                })?
            }),
            "wal" => self.verify_under(&workload, object, data, Kind::Wal, &|keys| {
                wal::decode(&self.id, keys, object, data).map(|_| ())
            }),
            _ => Err(damaged(FormatError::damaged("it is of no known kind"))),
        }
    }

    /// What is under a key that was destroyed on purpose can be judged by nobody, and is let through.
    fn verify_under(
        &self,
        workload: &WorkloadName,
        object: &str,
        data: &[u8],
        kind: Kind,
        opens: &dyn Fn(&Keys) -> Result<(), FormatError>,
    ) -> Result<(), StoreError> {
        let damaged = |error| self.unreadable(object, error);
        let id = sealed::key_id(data, kind).map_err(damaged)?;
        let keys = match self.data_keys_by_id(workload, &id) {
            Ok((_, keys)) => keys,
            Err(StoreError::Shredded { .. }) => return Ok(()),
            Err(StoreError::ObjectMissing { .. }) => {
                return Err(damaged(FormatError::Damaged(format!(
                    "it names data key {}, which is not there",
                    hex::encode(id)
                ))));
            }
            Err(error) => return Err(error),
        };
        opens(&keys).map_err(damaged)
    }
}

impl Repository {
    /// What of a restore point cannot be found here: nothing when it can be restored, as far as that is
    /// known without reading all of its data.
    pub(crate) fn lacks_for(&self, stored: &StoredPoint) -> Result<Option<String>, StoreError> {
        let repo = self.inner();
        let workload = &stored.point.workload;
        let index = match repo.index_for_reading(workload, true) {
            Ok(index) => index,
            Err(
                error @ (StoreError::Damaged { .. }
                | StoreError::ObjectMissing { .. }
                | StoreError::UnsupportedVersion { .. }),
            ) => return Ok(Some(error.to_string())),
            Err(error) => return Err(error),
        };
        let there = packs_there(repo, workload)?;
        let usable: Vec<bool> = index
            .packs()
            .iter()
            .map(|file| there.get(&file.id) == Some(&file.size))
            .collect();
        let is_there = |name: &crate::format::ChunkName| {
            index.find(name).any(|number| {
                let place = usize::try_from(number).unwrap_or(usize::MAX);
                usable.get(place).is_some_and(|usable| *usable)
            })
        };
        let mut missing = 0u64;
        let walked = (|| {
            let reader = self.reader(stored)?;
            for entry in reader.entries()? {
                if entry.kind != EntryKind::File {
                    continue;
                }
                let keys = match reader.keys(entry.key) {
                    Err(StoreError::Shredded { .. }) => continue,
                    keys => keys?,
                };
                reader.walk(&keys, &entry.content, &mut |reference| {
                    missing += u64::from(!is_there(&reference.name));
                    Ok(())
                })?;
            }
            Ok(())
        })();
        match walked {
            Ok(()) if missing == 0 => Ok(None),
            Ok(()) => Ok(Some(format!("{missing} chunks it needs are not there"))),
            Err(
                error @ (StoreError::Damaged { .. }
                | StoreError::ObjectMissing { .. }
                | StoreError::UnsupportedVersion { .. }),
            ) => Ok(Some(error.to_string())),
            Err(error) => Err(error),
        }
    }
}

//! Destroying the key of one tenant's separable data.
//!
//! Order, in each place: the record that says so is durable; then every version of the key object is
//! deleted; then the place is asked whether it is gone. From the record on the key is void for every
//! reader and writer, so a crash in between, or a copy that was away, brings nothing back: running it
//! again, here or there, deletes what was left. A copy gets the very same record, byte for byte.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use chrono::{DateTime, Utc};
use dr_model::WorkloadName;
use serde::{Deserialize, Serialize};

use super::{Domain, SHRED, Shredding, shred_prefix, tenant_key_prefix};
use crate::format::header::Kind;
use crate::format::tree::{EntryKind, TreeEntry};
use crate::repo::points::StoredPoint;
use crate::repo::{Inner, encode_failed};
use crate::testing::kill_point;
use crate::{BackendError, Repository, StoreError};

/// What shredding came to in one place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShredOutcome {
    /// Every destroyed key of this tenant, this time and before.
    pub shreddings: Vec<Shredding>,
    /// Key objects that were deleted this time.
    pub deleted: u64,
}

impl Repository {
    /// Destroys the key of a tenant's separable data: what is sealed under it can be read by nobody
    /// from now on, but by who kept a copy of the key. What the tenant stores later gets a new key. A
    /// tenant without a key is left as it is.
    ///
    /// # Errors
    /// When the place fails: the key may still be there, and this can be run again.
    pub fn shred_tenant(
        &self,
        workload: &WorkloadName,
        tenant: &str,
        at: DateTime<Utc>,
        by: &str,
    ) -> Result<ShredOutcome, StoreError> {
        let mut outcome = self.delete_void_keys(workload, Some(tenant))?;
        if let Some(shredding) = self.order_shredding(workload, tenant, at, by)? {
            kill_point("store.shred.after-record");
            let repo = self.inner();
            repo.known_keys.forget(workload, tenant);
            repo.delete_for_good(&shredding.object)?;
            kill_point("store.shred.after-delete");
            outcome.deleted += 1;
            outcome.shreddings.push(shredding);
        }
        Ok(outcome)
    }

    /// Makes a copy of this repository agree on what was shredded: takes the records over as they are,
    /// and deletes the keys there that they name.
    ///
    /// # Errors
    /// When either place fails.
    pub fn shred_in_copy(
        &self,
        copy: &Self,
        workload: &WorkloadName,
    ) -> Result<ShredOutcome, StoreError> {
        let repo = self.inner();
        for entry in repo.list(&shred_prefix(workload))? {
            let record = repo
                .get(&entry.name)?
                .ok_or_else(|| repo.missing(&entry.name))?;
            copy.inner().put_new(&entry.name, record)?;
        }
        copy.delete_void_keys(workload, None)
    }

    /// Deletes keys that a record says were destroyed and that are there: a crash left them, or a copy
    /// brought them back. Of one tenant or of all.
    ///
    /// # Errors
    /// When the place fails.
    pub fn delete_void_keys(
        &self,
        workload: &WorkloadName,
        tenant: Option<&str>,
    ) -> Result<ShredOutcome, StoreError> {
        let repo = self.inner();
        let mut outcome = ShredOutcome::default();
        for shredding in self.shreddings(workload)? {
            if tenant.is_some_and(|tenant| tenant != shredding.tenant) {
                continue;
            }
            repo.known_keys.forget(workload, &shredding.tenant);
            if repo.is_left(&shredding.object)? {
                repo.delete_for_good(&shredding.object)?;
                outcome.deleted += 1;
            }
            outcome.shreddings.push(shredding);
        }
        Ok(outcome)
    }

    /// Whether an object holds a tenant key that is void: never to be copied anywhere.
    ///
    /// # Errors
    /// When the place fails.
    pub fn is_void_key(&self, object: &str) -> Result<bool, StoreError> {
        let Some(rest) = object.strip_prefix(super::TENANT_KEYS) else {
            return Ok(false);
        };
        let record = format!("records/{SHRED}/{rest}");
        self.inner().get(&record).map(|found| found.is_some())
    }

    /// Writes the record for the tenant's present key; `None` when it has none.
    fn order_shredding(
        &self,
        workload: &WorkloadName,
        tenant: &str,
        at: DateTime<Utc>,
        by: &str,
    ) -> Result<Option<Shredding>, StoreError> {
        let repo = self.inner();
        let domain = Domain::Tenant(tenant.to_owned());
        let object = repo.data_key_object(workload, &domain)?;
        if !repo.is_left(&object)? {
            return Ok(None);
        }
        // A key that is damaged opens nothing any more; its remains go all the same.
        let key_ids = match repo.read_data_keys(&domain, &object) {
            Ok(keys) => keys.iter().map(|keys| hex::encode(keys.id())).collect(),
            Err(StoreError::Damaged { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let shredding = Shredding {
            workload: workload.clone(),
            tenant: tenant.to_owned(),
            key_ids,
            object: object.clone(),
            at,
            by: by.to_owned(),
        };
        let code = object
            .strip_prefix(&tenant_key_prefix(workload))
            .unwrap_or_default();
        let record = format!("{}{code}", shred_prefix(workload));
        let body = serde_json::to_vec(&shredding).map_err(|source| StoreError::Encode {
            what: "a record of shredding",
            source: Box::new(source),
        })?;
        let sealed =
            crate::format::sealed::encode(&repo.id, &repo.master, Kind::Record, &record, &body)
                .map_err(encode_failed("a record of shredding"))?;
        repo.put_new(&record, sealed)?;
        // Of two at once the first one's word stands.
        repo.read_shredding(&record).map(Some)
    }
}

impl Inner {
    /// Removes an object with every version of it, and asks whether it is gone. Where a lock forbids it,
    /// the object is hidden at least, and the error says until when it can be brought back.
    pub(crate) fn delete_for_good(&self, object: &str) -> Result<(), StoreError> {
        let failed = || self.failed(format!("deleting `{object}`"));
        match self.backend.delete_all_versions(object) {
            Ok(_) => {}
            Err(error @ BackendError::Locked { .. }) => {
                if let Err(also) = self.backend.delete(object) {
                    tracing::debug!(object, %also, "a locked object was not hidden either");
                }
                return Err(failed()(error));
            }
            Err(error) => return Err(failed()(error)),
        }
        if self.is_left(object)? {
            return Err(StoreError::NotGone {
                object: object.to_owned(),
                place: self.place.clone(),
            });
        }
        Ok(())
    }

    /// Whether an object is there, or a version that it could be brought back from.
    pub(crate) fn is_left(&self, object: &str) -> Result<bool, StoreError> {
        if self.get(object)?.is_some() {
            return Ok(true);
        }
        match self.backend.versions(object) {
            Ok(versions) => Ok(versions.iter().any(|version| version.name == object)),
            Err(BackendError::NotSupported { .. }) => Ok(false),
            Err(error) => Err(self.failed(format!("listing the versions of `{object}`"))(
                error,
            )),
        }
    }
}

/// A file whose content was shredded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShreddedFile {
    /// Its path.
    pub path: String,
    /// Whose it was.
    pub tenant: String,
    /// When its key was destroyed.
    pub at: DateTime<Utc>,
}

impl Repository {
    /// Tells the entries of a restore point that can be read from the files that were shredded.
    ///
    /// # Errors
    /// When a key is missing or damaged, or the place fails.
    pub fn without_shredded(
        &self,
        point: &StoredPoint,
        entries: Vec<TreeEntry>,
    ) -> Result<(Vec<TreeEntry>, Vec<ShreddedFile>), StoreError> {
        let reader = self.reader(point)?;
        let mut keys: BTreeMap<u16, Option<(String, DateTime<Utc>)>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
            if let Entry::Vacant(unknown) = keys.entry(entry.key) {
                unknown.insert(match reader.keys(entry.key) {
                    Ok(_) => None,
                    Err(StoreError::Shredded { tenant, at }) => Some((tenant, at)),
                    Err(error) => return Err(error),
                });
            }
        }
        if keys.values().all(Option::is_none) {
            return Ok((entries, Vec::new()));
        }
        let (mut readable, mut gone) = (Vec::new(), Vec::new());
        for entry in entries {
            match keys.get(&entry.key) {
                Some(Some((tenant, at))) if entry.kind == EntryKind::File => {
                    gone.push(ShreddedFile {
                        path: entry.meta.path,
                        tenant: tenant.clone(),
                        at: *at,
                    });
                }
                _ => readable.push(entry),
            }
        }
        Ok((readable, gone))
    }
}

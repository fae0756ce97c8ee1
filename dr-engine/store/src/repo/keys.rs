//! Keys as they lie in the repository: the data keys of workloads and of single tenants.
//!
//! A *domain* is what one data key seals: the data of a workload, or of one tenant of it where that
//! is separable. Chunk names, packs and indexes belong to one domain and are never shared between
//! two, so that destroying one key takes nothing from anybody else (deduplication ends at the key).
//!
//! Write order: a data key is durable before anything sealed under it. Two processes may make it at
//! once: whoever stored it first wins, and both read that one back.
//!
//! A tenant's key lies under a code instead of the tenant's name, so that a bucket does not list
//! customers. The code also counts how often the tenant was shredded: shredding writes the record
//! `records/shred/<workload>/<code>` first and deletes `keys/tenant/<workload>/<code>` second. From
//! the record on, whatever lies under that code is void, were it brought back from a copy or by a
//! writer that was asleep; data stored later gets a new key under the next code. A crash between the
//! two leaves a void key that the next shredding of this tenant deletes.

mod shred;
mod slots;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use dr_model::WorkloadName;
use serde::{Deserialize, Serialize};

pub use shred::{ShredOutcome, ShreddedFile};
pub use slots::KeySlot;
pub(super) use slots::{Opened, list_slots, open_slots, store_slot};

use super::{Inner, Repository, encode_failed};
use crate::StoreError;
use crate::backend::PutOutcome;
use crate::crypto::{KEY_ID_BYTES, Keys, random_secret};
use crate::format::header::Kind;
use crate::format::{FormatError, data_key};

/// Where key slots lie.
pub(crate) const SLOTS: &str = "keys/slot/";
/// Where the data keys of workloads lie.
pub(crate) const WORKLOAD_KEYS: &str = "keys/workload/";
/// Where the data keys of tenants lie.
pub(crate) const TENANT_KEYS: &str = "keys/tenant/";
/// The kind of the records that say which tenant keys were destroyed.
pub(crate) const SHRED: &str = "shred";

/// How many keys are fetched at the same time: enough to hide a store's latency.
const FETCHES_MAX: usize = 16;
/// More shreddings of one tenant than this are a mistake, not a life.
const GENERATIONS_MAX: u64 = 10_000;
/// A tenant's name is a folder's, a schema's or a code's: never longer than a path.
const TENANT_NAME_BYTES_MAX: usize = 1024;

/// Names a key without telling it.
pub(crate) type KeyId = [u8; KEY_ID_BYTES];

/// What one data key seals.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// The workload's own data: everything that belongs to no single tenant.
    Workload,
    /// The separable data of the tenant of this name.
    Tenant(String),
}

impl Domain {
    /// The tenant, if the data is one's.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Self::Workload => None,
            Self::Tenant(name) => Some(name),
        }
    }
}

/// That a tenant's key was destroyed; the content of a record of kind `shred`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shredding {
    /// The workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: String,
    /// The ids of the keys, as hexadecimal digits; empty when the key could not be read any more.
    pub key_ids: Vec<String>,
    /// The object that held the key.
    pub object: String,
    /// When it was ordered.
    pub at: DateTime<Utc>,
    /// Who ordered it.
    pub by: String,
}

/// The data key of one tenant, without the key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TenantKey {
    /// The workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: String,
    /// The key's id, as hexadecimal digits.
    pub key_id: String,
}

/// A data key and the tenant it belongs to, if it is one's.
type OwnedKeys = (Arc<Keys>, Option<String>);

/// The data keys that were opened so far.
#[derive(Debug, Default)]
pub(crate) struct KnownKeys {
    opened: Mutex<HashMap<(WorkloadName, Domain), Arc<Keys>>>,
    /// Keys known to be destroyed: that never changes again, and is asked for each file.
    destroyed: Mutex<HashMap<KeyId, Shredding>>,
}

impl KnownKeys {
    fn lock(&self) -> MutexGuard<'_, HashMap<(WorkloadName, Domain), Arc<Keys>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, workload: &WorkloadName, tenant: &str) {
        self.lock()
            .remove(&(workload.clone(), Domain::Tenant(tenant.to_owned())));
    }

    fn destroyed(&self) -> MutexGuard<'_, HashMap<KeyId, Shredding>> {
        self.destroyed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, workload: &WorkloadName, domain: &Domain) -> Option<Arc<Keys>> {
        self.lock()
            .get(&(workload.clone(), domain.clone()))
            .map(Arc::clone)
    }

    fn insert(&self, workload: &WorkloadName, domain: &Domain, keys: &Arc<Keys>) {
        self.lock()
            .insert((workload.clone(), domain.clone()), Arc::clone(keys));
    }
}

/// The object that holds a workload's data key.
pub(crate) fn workload_key_name(workload: &WorkloadName) -> String {
    format!("{WORKLOAD_KEYS}{workload}")
}

/// Where the tenant keys of a workload lie.
pub(crate) fn tenant_key_prefix(workload: &WorkloadName) -> String {
    format!("{TENANT_KEYS}{workload}/")
}

/// Where the shred records of a workload lie.
pub(crate) fn shred_prefix(workload: &WorkloadName) -> String {
    format!("records/{SHRED}/{workload}/")
}

fn check_tenant(name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > TENANT_NAME_BYTES_MAX {
        return Err(StoreError::InvalidName {
            name: name.to_owned(),
            rule: "a tenant's name has 1 to 1024 bytes",
        });
    }
    Ok(())
}

impl Repository {
    /// The tenants of a workload that have a data key of their own, with the key's id, sorted.
    ///
    /// # Errors
    /// When one of the keys is damaged, or the place fails.
    pub fn tenant_keys(&self, workload: &WorkloadName) -> Result<Vec<TenantKey>, StoreError> {
        let found = self.inner().all_data_keys(workload)?;
        let mut keys: Vec<_> = found
            .into_iter()
            .filter_map(|(id, (domain, _))| {
                domain.tenant().map(|tenant| TenantKey {
                    workload: workload.clone(),
                    tenant: tenant.to_owned(),
                    key_id: hex::encode(id),
                })
            })
            .collect();
        keys.sort();
        Ok(keys)
    }

    /// The tenants of a workload whose keys were destroyed, in the order in which it was ordered.
    ///
    /// # Errors
    /// When a record of it is damaged, or the place fails.
    pub fn shreddings(&self, workload: &WorkloadName) -> Result<Vec<Shredding>, StoreError> {
        let repo = self.inner();
        let mut found = Vec::new();
        for entry in repo.list(&shred_prefix(workload))? {
            found.push(repo.read_shredding(&entry.name)?);
        }
        found.sort_by(|left, right| (left.at, &left.object).cmp(&(right.at, &right.object)));
        Ok(found)
    }
}

impl Inner {
    /// Reads keys anew from now on.
    pub(crate) fn forget_keys(&self) {
        self.known_keys.lock().clear();
    }

    /// The data key of a domain; `None` before anything of it was stored, and after its key was
    /// destroyed.
    pub(crate) fn data_keys(
        &self,
        workload: &WorkloadName,
        domain: &Domain,
    ) -> Result<Option<Arc<Keys>>, StoreError> {
        if let Some(keys) = self.known_keys.get(workload, domain) {
            return Ok(Some(keys));
        }
        let object = self.data_key_object(workload, domain)?;
        let keys = self.read_data_keys(domain, &object)?;
        if let Some(keys) = &keys {
            self.known_keys.insert(workload, domain, keys);
        }
        Ok(keys)
    }

    /// The domain's data key, made now if there is none. Two processes may try at once: whoever
    /// stored it first wins, and both read that one.
    pub(crate) fn data_keys_or_new(
        &self,
        workload: &WorkloadName,
        domain: &Domain,
    ) -> Result<Arc<Keys>, StoreError> {
        if let Some(keys) = self.data_keys(workload, domain)? {
            return Ok(keys);
        }
        loop {
            let object = self.data_key_object(workload, domain)?;
            let body = data_key::encode(&random_secret(), domain.tenant());
            let stored = self.put_sealed(&self.master, data_key_kind(domain), &object, &body)?;
            // Shredded in between: this key is void before it sealed anything. The next code's.
            if self.data_key_object(workload, domain)? != object {
                if stored == PutOutcome::Stored {
                    self.delete_for_good(&object)?;
                }
                continue;
            }
            let keys = self
                .read_data_keys(domain, &object)?
                .ok_or_else(|| self.missing(&object))?;
            self.put_stored_at_copies(&object);
            self.known_keys.insert(workload, domain, &keys);
            return Ok(keys);
        }
    }

    /// The data key of a domain of which something is stored.
    pub(crate) fn required_data_keys(
        &self,
        workload: &WorkloadName,
        domain: &Domain,
    ) -> Result<Arc<Keys>, StoreError> {
        match self.data_keys(workload, domain)? {
            Some(keys) => Ok(keys),
            None => Err(self.missing(&self.data_key_object(workload, domain)?)),
        }
    }

    /// Every data key of a workload that there is, by its id: what opens an index or a pack by the
    /// key id in its header. Read anew each time, so that what another process made is found and
    /// what was destroyed is not.
    pub(crate) fn all_data_keys(
        &self,
        workload: &WorkloadName,
    ) -> Result<HashMap<KeyId, (Domain, Arc<Keys>)>, StoreError> {
        let mut found = HashMap::new();
        if let Some(keys) = self.data_keys(workload, &Domain::Workload)? {
            found.insert(keys.id(), (Domain::Workload, keys));
        }
        let objects = self.tenant_key_objects(workload)?;
        for (domain, keys) in self.read_tenant_keys(&objects)? {
            self.known_keys.insert(workload, &domain, &keys);
            found.insert(keys.id(), (domain, keys));
        }
        Ok(found)
    }

    /// The data key with this id: for opening what names it. Says of a destroyed key that it was.
    pub(crate) fn data_keys_by_id(
        &self,
        workload: &WorkloadName,
        id: &KeyId,
    ) -> Result<(Domain, Arc<Keys>), StoreError> {
        let known = self
            .known_keys
            .lock()
            .iter()
            .find(|((of, _), keys)| of == workload && keys.id() == *id)
            .map(|((_, domain), keys)| (domain.clone(), Arc::clone(keys)));
        if let Some(known) = known {
            return Ok(known);
        }
        let destroyed = self.known_keys.destroyed().get(id).cloned();
        if let Some(Shredding { tenant, at, .. }) = destroyed {
            return Err(StoreError::Shredded { tenant, at });
        }
        // Most are the workload's own.
        if let Some(keys) = self.data_keys(workload, &Domain::Workload)?
            && keys.id() == *id
        {
            return Ok((Domain::Workload, keys));
        }
        if let Some(found) = self.all_data_keys(workload)?.remove(id) {
            return Ok(found);
        }
        match self.shredded(workload)?.remove(id) {
            Some(shredding) => {
                let (tenant, at) = (shredding.tenant.clone(), shredding.at);
                self.known_keys.destroyed().insert(*id, shredding);
                Err(StoreError::Shredded { tenant, at })
            }
            None => Err(self.missing(&format!("data key {}", hex::encode(id)))),
        }
    }

    /// The keys of a workload that were destroyed, by id: what tells "shredded" from "damaged".
    pub(crate) fn shredded(
        &self,
        workload: &WorkloadName,
    ) -> Result<BTreeMap<KeyId, Shredding>, StoreError> {
        let mut shredded = BTreeMap::new();
        for entry in self.list(&shred_prefix(workload))? {
            let record = self.read_shredding(&entry.name)?;
            for id in &record.key_ids {
                let mut key_id: KeyId = [0; KEY_ID_BYTES];
                hex::decode_to_slice(id, &mut key_id).map_err(|_| {
                    self.unreadable(&entry.name, FormatError::damaged("a key id in it is none"))
                })?;
                shredded.insert(key_id, record.clone());
            }
        }
        Ok(shredded)
    }

    /// Fails if one of these keys was destroyed since it was opened: what a writer asks before
    /// it stores a restore point and before it lists it, so that no point relies on a key that is gone.
    pub(crate) fn data_keys_are_there(
        &self,
        workload: &WorkloadName,
        domains: impl IntoIterator<Item = (Domain, KeyId)>,
    ) -> Result<(), StoreError> {
        let mut there = None;
        for (domain, id) in domains {
            if domain == Domain::Workload {
                continue;
            }
            let there = match &mut there {
                Some(there) => there,
                none => none.insert(self.all_data_keys(workload)?),
            };
            if !there.contains_key(&id) {
                self.known_keys.lock().remove(&(workload.clone(), domain));
                return Err(self
                    .data_keys_by_id(workload, &id)
                    .err()
                    .unwrap_or_else(|| self.missing(&format!("data key {}", hex::encode(id)))));
            }
        }
        Ok(())
    }

    pub(crate) fn read_shredding(&self, object: &str) -> Result<Shredding, StoreError> {
        let body = self
            .get_sealed(&self.master, Kind::Record, object)?
            .ok_or_else(|| self.missing(object))?;
        serde_json::from_slice(&body)
            .map_err(|error| self.unreadable(object, FormatError::Damaged(error.to_string())))
    }

    /// The object that holds, or would hold, the data key of a domain now.
    pub(crate) fn data_key_object(
        &self,
        workload: &WorkloadName,
        domain: &Domain,
    ) -> Result<String, StoreError> {
        let Domain::Tenant(tenant) = domain else {
            return Ok(workload_key_name(workload));
        };
        check_tenant(tenant)?;
        for generation in 0..GENERATIONS_MAX {
            let code = self.tenant_code(workload, tenant, generation)?;
            // Asked for by name and not listed: a listing may lag behind.
            if self
                .get(&format!("{}{code}", shred_prefix(workload)))?
                .is_none()
            {
                return Ok(format!("{}{code}", tenant_key_prefix(workload)));
            }
        }
        Err(StoreError::InvalidName {
            name: tenant.clone(),
            rule: "it was shredded more often than any tenant is",
        })
    }

    fn tenant_code(
        &self,
        workload: &WorkloadName,
        tenant: &str,
        generation: u64,
    ) -> Result<String, StoreError> {
        self.master
            .tenant_code(workload.as_str(), tenant, generation)
            .map(hex::encode)
            .map_err(encode_failed("the name of a tenant's key"))
    }

    /// The objects of all tenant keys of a workload that are not void.
    pub(crate) fn tenant_key_objects(
        &self,
        workload: &WorkloadName,
    ) -> Result<Vec<String>, StoreError> {
        let keys = tenant_key_prefix(workload);
        let listed = self.list(&keys)?;
        if listed.is_empty() {
            return Ok(Vec::new());
        }
        let records = shred_prefix(workload);
        let void: HashSet<String> = self
            .list(&records)?
            .iter()
            .filter_map(|entry| entry.name.strip_prefix(&records).map(str::to_owned))
            .collect();
        Ok(listed
            .into_iter()
            .map(|entry| entry.name)
            .filter(|name| {
                name.strip_prefix(&keys)
                    .is_some_and(|code| !void.contains(code))
            })
            .collect())
    }

    /// Reads tenant keys, several at the same time. One that vanished since it was listed is left
    /// out: it was shredded meanwhile.
    fn read_tenant_keys(&self, objects: &[String]) -> Result<Vec<(Domain, Arc<Keys>)>, StoreError> {
        let share = objects.len().div_ceil(FETCHES_MAX).max(1);
        let read = |objects: &[String]| -> Result<Vec<_>, StoreError> {
            let mut found = Vec::with_capacity(objects.len());
            for object in objects {
                found.extend(self.read_tenant_key(object)?);
            }
            Ok(found)
        };
        let mut found = Vec::with_capacity(objects.len());
        std::thread::scope(|scope| {
            let running: Vec<_> = objects
                .chunks(share)
                .map(|objects| scope.spawn(move || read(objects)))
                .collect();
            for one in running {
                let keys = one.join().map_err(|_| self.missing(TENANT_KEYS))??;
                found.extend(keys);
            }
            Ok::<(), StoreError>(())
        })?;
        Ok(found)
    }

    /// A tenant's key by its object's name; the tenant's name comes from inside.
    pub(crate) fn read_tenant_key(
        &self,
        object: &str,
    ) -> Result<Option<(Domain, Arc<Keys>)>, StoreError> {
        let Some((keys, Some(tenant))) = self.read_key_body(Kind::TenantKey, object)? else {
            return Ok(None);
        };
        check_tenant(&tenant)?;
        Ok(Some((Domain::Tenant(tenant), keys)))
    }

    /// A data key as it is stored now, without asking what is known.
    pub(crate) fn read_data_keys(
        &self,
        domain: &Domain,
        object: &str,
    ) -> Result<Option<Arc<Keys>>, StoreError> {
        let Some((keys, tenant)) = self.read_key_body(data_key_kind(domain), object)? else {
            return Ok(None);
        };
        if tenant.as_deref() != domain.tenant() {
            return Err(self.unreadable(object, FormatError::damaged("it belongs to another")));
        }
        Ok(Some(keys))
    }

    fn read_key_body(&self, kind: Kind, object: &str) -> Result<Option<OwnedKeys>, StoreError> {
        let Some(body) = self.get_sealed(&self.master, kind, object)? else {
            return Ok(None);
        };
        let body = zeroize::Zeroizing::new(body);
        let (secret, tenant) =
            data_key::decode(&body).map_err(|error| self.unreadable(object, error))?;
        if tenant.is_some() != (kind == Kind::TenantKey) {
            return Err(
                self.unreadable(object, FormatError::damaged("it does not say whose it is"))
            );
        }
        let keys = Keys::new(secret).map_err(|error| self.unreadable(object, error.into()))?;
        Ok(Some((Arc::new(keys), tenant)))
    }
}

fn data_key_kind(domain: &Domain) -> Kind {
    match domain {
        Domain::Workload => Kind::WorkloadKey,
        Domain::Tenant(_) => Kind::TenantKey,
    }
}

#[cfg(test)]
mod tests;

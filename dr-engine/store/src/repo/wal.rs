//! WAL files: one write-once object each. Storing one opens the data key and nothing else: a push
//! runs for every segment, and the archiver waits for it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use dr_model::{WalFileName, WorkloadName};
use serde::{Deserialize, Serialize};

use super::keys::{Domain, workload_key_name};
use super::{Inner, Repository, encode_failed};
use crate::StoreError;
use crate::backend::PutOutcome;
use crate::crypto::Keys;
use crate::format::wal::{self, HEAD_BYTES, WalHead};
use crate::testing::kill_point;

/// What storing a WAL file came to. Either way it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalPut {
    /// It is stored now.
    Stored,
    /// The same content was stored before.
    AlreadyThere,
}

/// What is known of a stored WAL file without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalInfo {
    /// When it was pushed; whole microseconds.
    pub pushed_at: DateTime<Utc>,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Where a workload's WAL files are.
pub(crate) fn wal_prefix(workload: &WorkloadName) -> String {
    format!("wal/{workload}/")
}

fn object_name(workload: &WorkloadName, name: &WalFileName) -> Result<String, StoreError> {
    let timeline = name.timeline().ok_or_else(|| StoreError::InvalidName {
        name: name.to_string(),
        rule: "a WAL file's name begins with its timeline",
    })?;
    Ok(format!("{}{:08X}/{name}", wal_prefix(workload), timeline.0))
}

impl Repository {
    /// Stores a WAL file, durable on return.
    ///
    /// # Errors
    /// [`StoreError::WalConflict`] when the file is stored with other content; or the place fails.
    pub fn put_wal(
        &self,
        workload: &WorkloadName,
        name: &WalFileName,
        body: &[u8],
        pushed_at: DateTime<Utc>,
    ) -> Result<WalPut, StoreError> {
        let repo = self.inner();
        repo.is_first()?;
        let object = object_name(workload, name)?;
        let keys = repo.data_keys_or_new(workload, &Domain::Workload)?;
        let data = wal::encode(&repo.id, &keys, &object, body, pushed_at)
            .map_err(encode_failed("a WAL file"))?;
        let data = Bytes::from(data);
        kill_point("store.wal.before-put");
        let outcome = repo.put_new(&object, data.clone())?;
        kill_point("store.wal.after-put");
        if outcome == PutOutcome::Stored {
            repo.put_wal_at_copies(&object, data);
            return Ok(WalPut::Stored);
        }
        let head = repo
            .wal_head(&keys, &object)?
            .ok_or_else(|| repo.missing(&object))?;
        if head.mac != keys.wal_mac(&object, body) {
            return Err(StoreError::WalConflict {
                workload: workload.clone(),
                name: name.clone(),
            });
        }
        repo.wal_is_whole(&object, &head)?;
        Ok(WalPut::AlreadyThere)
    }

    /// Whether a WAL file is stored with this content; `None` when it is not stored. Reads only its head.
    ///
    /// # Errors
    /// When its head is damaged or the place fails.
    pub fn holds_wal(
        &self,
        workload: &WorkloadName,
        name: &WalFileName,
        body: &[u8],
    ) -> Result<Option<bool>, StoreError> {
        if self.wal_info(workload, name)?.is_none() {
            return Ok(None);
        }
        let repo = self.inner();
        let object = object_name(workload, name)?;
        let keys = repo.required_data_keys(workload, &Domain::Workload)?;
        let head = repo.wal_head(&keys, &object)?;
        Ok(head.map(|head| head.mac == keys.wal_mac(&object, body)))
    }

    /// A WAL file's content, verified; `None` only if the repository answered and lacks it.
    ///
    /// # Errors
    /// When it is damaged or the place fails.
    pub fn get_wal(
        &self,
        workload: &WorkloadName,
        name: &WalFileName,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let repo = self.inner();
        let object = object_name(workload, name)?;
        let found = repo.read_verified(&object, &|data| {
            let keys = repo.required_data_keys(workload, &Domain::Workload)?;
            wal::decode(&repo.id, &keys, &object, data)
                .map_err(|error| repo.unreadable(&object, error))
        })?;
        if found.is_none() {
            // A copy that lags does not prove absence.
            repo.is_first()?;
        }
        Ok(found)
    }

    /// When a WAL file was pushed and how long it is; reads only its head.
    ///
    /// # Errors
    /// When its head is damaged or the place fails.
    pub fn wal_info(
        &self,
        workload: &WorkloadName,
        name: &WalFileName,
    ) -> Result<Option<WalInfo>, StoreError> {
        let repo = self.inner();
        let object = object_name(workload, name)?;
        let Some(keys) = repo.data_keys(workload, &Domain::Workload)? else {
            // Absent, unless the key alone is gone.
            return match repo.get(&object)? {
                None => Ok(None),
                Some(_) => Err(repo.missing(&workload_key_name(workload))),
            };
        };
        Ok(repo.wal_head(&keys, &object)?.map(|head| WalInfo {
            pushed_at: head.pushed_at,
            bytes: head.bytes,
        }))
    }

    /// All WAL files of a workload with the time at which each was stored, by the place's clock.
    ///
    /// # Errors
    /// When the place fails, or holds something else among them.
    pub fn wal_files(
        &self,
        workload: &WorkloadName,
    ) -> Result<Vec<(WalFileName, DateTime<Utc>)>, StoreError> {
        let mut files = Vec::new();
        for entry in self.inner().list(&wal_prefix(workload))? {
            let file = entry.name.rsplit('/').next().unwrap_or_default();
            let name = file.parse().map_err(|_| StoreError::Damaged {
                object: entry.name.clone(),
                place: self.describe(),
                what: "its name is not that of a WAL file".to_owned(),
            })?;
            files.push((name, entry.modified));
        }
        Ok(files)
    }

    /// The names of all WAL files of a workload, sorted by timeline and position.
    ///
    /// # Errors
    /// When the place fails, or holds something else among them.
    pub fn list_wal(&self, workload: &WorkloadName) -> Result<Vec<WalFileName>, StoreError> {
        let files = self.wal_files(workload)?;
        let mut names: Vec<WalFileName> = files.into_iter().map(|(name, _)| name).collect();
        names.sort_by_cached_key(ToString::to_string);
        Ok(names)
    }
}

impl Inner {
    pub(crate) fn wal_head(
        &self,
        keys: &Keys,
        object: &str,
    ) -> Result<Option<WalHead>, StoreError> {
        let data = self.any_place(object, &|place| {
            place.get_range(object, 0, HEAD_BYTES as u64)
        })?;
        data.map(|data| {
            wal::decode_head(&self.id, keys, object, &data)
                .map_err(|error| self.unreadable(object, error))
        })
        .transpose()
    }

    /// Compares the object's size with what its head says, before it is called "there".
    fn wal_is_whole(&self, object: &str, head: &WalHead) -> Result<(), StoreError> {
        let size = self
            .list(object)?
            .iter()
            .find(|entry| entry.name == object)
            .map(|e| e.size);
        if size == Some(head.object_bytes) {
            Ok(())
        } else {
            Err(StoreError::Damaged {
                object: object.to_owned(),
                place: self.place.clone(),
                what: "its length is not what it says".to_owned(),
            })
        }
    }
}

//! The faulty place as a place.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use dr_store::{
    Backend, BackendError, Capabilities, Lock, ObjectEntry, PutOptions, PutOutcome, VersionEntry,
    try_capabilities,
};

use super::{FaultyBackend, Operation};

impl FaultyBackend {
    fn store(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        let mut options = options.clone();
        if self.ignores_locks {
            options.retain_until = None;
        }
        if self.overwrites {
            self.inner.delete(name)?;
        }
        let outcome = self.inner.put_new_with(name, body, &options)?;
        if outcome == PutOutcome::Stored {
            let mut state = self.state();
            state.stored.retain(|stored| stored != name);
            state.stored.push(name.to_owned());
        }
        // Of two that overwrite at once, both are told that they stored it.
        Ok(if self.overwrites {
            PutOutcome::Stored
        } else {
            outcome
        })
    }

    fn on_time(&self, found: Vec<ObjectEntry>) -> Vec<ObjectEntry> {
        let state = self.state();
        let late: Vec<&String> = state.stored.iter().rev().take(self.late).collect();
        found
            .into_iter()
            .filter(|entry| !late.contains(&&entry.name))
            .collect()
    }

    /// What is tried through this decorator, where that may differ from the place's own.
    fn seen_through(&self, own: Capabilities) -> Result<Capabilities, BackendError> {
        if !self.overwrites && !self.ignores_locks {
            return Ok(own);
        }
        // Not recorded, and not in anyone's way: through a decorator of its own.
        let mut through = Self::new(std::sync::Arc::clone(&self.inner));
        through.overwrites = self.overwrites;
        through.ignores_locks = self.ignores_locks;
        let tried = try_capabilities(&through)?;
        Ok(Capabilities {
            put_if_absent_multipart: own.put_if_absent_multipart && tried.put_if_absent,
            checksum_md5: own.checksum_md5,
            checksum_sha256: own.checksum_sha256,
            etag_is_md5: own.etag_is_md5,
            ..tried
        })
    }
}

impl Backend for FaultyBackend {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        self.run(Operation::Put, name, body.len(), || {
            self.store(name, body, options)
        })
    }

    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.run(Operation::Now, "", 0, || self.inner.now())
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.run(Operation::Get, name, 0, || self.inner.get(name))
    }

    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        self.run(Operation::GetRange, name, bytes, || {
            self.inner.get_range(name, offset, length)
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        self.run(Operation::List, prefix, 0, || {
            self.inner.list(prefix).map(|found| self.on_time(found))
        })
    }

    fn delete(&self, name: &str) -> Result<(), BackendError> {
        self.run(Operation::Delete, name, 0, || self.inner.delete(name))
    }

    fn prepare(&self) -> Result<Capabilities, BackendError> {
        self.run(Operation::Prepare, "", 0, || {
            self.seen_through(self.inner.prepare()?)
        })
    }

    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.run(Operation::Probe, "", 0, || {
            self.seen_through(self.inner.probe_capabilities()?)
        })
    }

    fn assume(&self, capabilities: Capabilities) {
        self.inner.assume(capabilities);
    }

    fn sweep(&self, age: Duration) -> Result<u64, BackendError> {
        self.run(Operation::Sweep, "", 0, || self.inner.sweep(age))
    }

    fn versions(&self, prefix: &str) -> Result<Vec<VersionEntry>, BackendError> {
        self.run(Operation::Versions, prefix, 0, || {
            self.inner.versions(prefix)
        })
    }

    fn get_version(&self, name: &str, version: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.run(Operation::GetVersion, name, 0, || {
            self.inner.get_version(name, version)
        })
    }

    fn undelete(&self, name: &str) -> Result<bool, BackendError> {
        self.run(Operation::Undelete, name, 0, || self.inner.undelete(name))
    }

    fn delete_all_versions(&self, name: &str) -> Result<u64, BackendError> {
        self.run(Operation::DeleteAllVersions, name, 0, || {
            self.inner.delete_all_versions(name)
        })
    }

    fn lock_of(&self, name: &str) -> Result<Option<Lock>, BackendError> {
        self.run(Operation::LockOf, name, 0, || self.inner.lock_of(name))
    }

    fn extend_lock(&self, name: &str, until: DateTime<Utc>) -> Result<(), BackendError> {
        self.run(Operation::ExtendLock, name, 0, || {
            if self.ignores_locks {
                return Ok(());
            }
            self.inner.extend_lock(name, until)
        })
    }
}

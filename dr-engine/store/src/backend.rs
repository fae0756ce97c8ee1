//! Where objects are kept: a local folder or an S3 bucket, behind one small contract.
//!
//! The contract, which `tests/backend_contract.rs` runs on every implementation:
//! - An object is written once and never overwritten; what is there can only be deleted.
//! - `put_new` returns only after the object is durable; an object is there whole or not at all.
//! - "Absent" is said only by a place that was reached and answered. A folder that is not there, or
//!   that lost its `repository` object (an unmounted disk), is an error.
//! - Names are relative, `/`-separated, made of `a-z A-Z 0-9 . _ -`.

mod capabilities;
mod error;
mod limit;
mod local;
mod s3;
mod trial;

pub use capabilities::Capabilities;
pub use error::BackendError;
pub use limit::{Bandwidth, LimitedBackend};
pub use local::LocalBackend;
pub use s3::{Patience, S3Backend, S3Location};
pub(crate) use trial::TRIAL;
use trial::TRIAL_LOCK;
pub use trial::try_capabilities;

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What `put_new` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is stored now.
    Stored,
    /// An object of that name was there before and is unchanged (and durable).
    Exists,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectEntry {
    /// Its whole name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was stored, by the place's own clock; some places know whole seconds only.
    pub modified: DateTime<Utc>,
}

/// How firmly a lock holds (the S3 API's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Whoever holds a special right can lift it.
    #[default]
    Governance,
    /// Nobody can lift or shorten it.
    Compliance,
}

/// A lock on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// How firmly it holds.
    pub mode: LockMode,
    /// When it ends.
    pub until: DateTime<Utc>,
}

/// What is asked of a place beside keeping the bytes. A place that cannot do it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Nobody can delete or change the object before this.
    pub retain_until: Option<DateTime<Utc>>,
    /// How firmly; the place's own configured mode when left out.
    pub lock_mode: Option<LockMode>,
    /// The store's name for how it keeps the object (`STANDARD_IA`, `GLACIER`); the place's own
    /// configured class when left out.
    pub storage_class: Option<String>,
}

/// One version of an object, or the mark that hides it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionEntry {
    /// The object's whole name.
    pub name: String,
    /// The store's name for this version.
    pub version: String,
    /// Whether it is what a plain read meets.
    pub is_latest: bool,
    /// Whether it holds nothing and only hides what is below it.
    pub is_delete_marker: bool,
    /// Its size in bytes; 0 for a mark.
    pub size: u64,
    /// When it was stored, by the place's own clock.
    pub modified: DateTime<Utc>,
}

/// A place for objects. All calls block.
pub trait Backend: Send + Sync + Debug {
    /// The place for people: `/var/lib/x` or `s3://bucket/prefix`.
    fn describe(&self) -> String;
    /// Stores an object unless one of that name exists. Durable on return; never overwrites.
    ///
    /// # Errors
    /// When the object may not be durable.
    fn put_new(&self, name: &str, body: &[u8]) -> Result<PutOutcome, BackendError> {
        self.put_new_with(name, Bytes::copy_from_slice(body), &PutOptions::default())
    }
    /// [`Backend::put_new`] with more asked of the place. The body is the caller's to share: a place
    /// keeps it for as long as it may have to send it again, without a copy.
    ///
    /// # Errors
    /// When the object may not be durable, or the place cannot do what is asked.
    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError>;
    /// The place's own clock: what [`ObjectEntry::modified`] is to be compared with.
    ///
    /// # Errors
    /// When the place cannot be written: its clock is read from an object made for it.
    fn now(&self) -> Result<DateTime<Utc>, BackendError>;
    /// The whole object; `None` only if the place answered that it is absent.
    ///
    /// # Errors
    /// When the place does not answer.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError>;
    /// A part of an object, shorter where the object ends.
    ///
    /// # Errors
    /// As for [`Backend::get`].
    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError>;
    /// Says that a part of an object is going to be asked for piece by piece, so that a disk can read it at once. Nothing
    /// is promised, and nothing comes of an object that is not there.
    fn expect(&self, _name: &str, _offset: u64, _length: u64) {}
    /// All objects whose names begin with `prefix`, sorted by name.
    ///
    /// # Errors
    /// As for [`Backend::get`].
    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError>;
    /// Removes an object; one that is absent already is fine. Where the place keeps versions, what
    /// was there is hidden and stays until [`Backend::delete_all_versions`] or the place's own
    /// expiry of hidden versions takes it.
    ///
    /// # Errors
    /// When the object may still be there; [`BackendError::Locked`] when a lock forbids it.
    fn delete(&self, name: &str) -> Result<(), BackendError>;
    /// How many requests at once the place is good for.
    fn requests_at_once(&self) -> usize {
        4
    }
    /// Whether a request waits for a network before the place does anything.
    fn is_far(&self) -> bool {
        false
    }
    /// Makes the place ready for a new repository (a folder is made) and tries what it can do.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn prepare(&self) -> Result<Capabilities, BackendError>;
    /// Tries again what the place of a repository can do, with objects of its own (`trial-*`).
    ///
    /// # Errors
    /// When the place does not answer or cannot be written.
    fn probe_capabilities(&self) -> Result<Capabilities, BackendError>;
    /// Tells what `prepare` found when the repository was created.
    fn assume(&self, _capabilities: Capabilities) {}
    /// Removes what crashed writers left half-written longer than `age` ago; returns how many.
    ///
    /// # Errors
    /// When the place cannot be listed.
    fn sweep(&self, _age: Duration) -> Result<u64, BackendError> {
        Ok(0)
    }

    /// All versions of all objects whose names begin with `prefix`, by name, the newest first.
    ///
    /// # Errors
    /// As for [`Backend::get`]; [`BackendError::NotSupported`] where no versions are kept.
    fn versions(&self, _prefix: &str) -> Result<Vec<VersionEntry>, BackendError> {
        Err(self.not_supported("list the versions of"))
    }
    /// One version of an object; `None` only if the place answered that it is absent.
    ///
    /// # Errors
    /// As for [`Backend::versions`].
    fn get_version(&self, _name: &str, _version: &str) -> Result<Option<Vec<u8>>, BackendError> {
        Err(self.not_supported("read a version of"))
    }
    /// Takes away what hides a deleted object; tells whether the object is there now.
    ///
    /// # Errors
    /// As for [`Backend::versions`].
    fn undelete(&self, _name: &str) -> Result<bool, BackendError> {
        Err(self.not_supported("undelete an object of"))
    }
    /// Removes an object with every version of it, so that nothing brings it back; returns how many
    /// versions and marks went. Nothing is removed if any of them is locked.
    ///
    /// # Errors
    /// As for [`Backend::delete`].
    fn delete_all_versions(&self, name: &str) -> Result<u64, BackendError> {
        self.delete(name).map(|()| 1)
    }
    /// The lock on an object, even one that ended; `None` if it has none or is absent.
    ///
    /// # Errors
    /// When the place does not answer.
    fn lock_of(&self, _name: &str) -> Result<Option<Lock>, BackendError> {
        Ok(None)
    }
    /// Makes a lock end no earlier than `until`; an object without one gets one. Never shortens.
    ///
    /// # Errors
    /// When the lock may end earlier; [`BackendError::NotSupported`] where there are no locks.
    fn extend_lock(&self, _name: &str, _until: DateTime<Utc>) -> Result<(), BackendError> {
        Err(self.not_supported("lock an object of"))
    }
    /// The error of a place without an ability.
    #[doc(hidden)]
    fn not_supported(&self, action: &'static str) -> BackendError {
        BackendError::NotSupported {
            action,
            place: self.describe(),
        }
    }
}

/// Refuses names that could leave the repository or mean something else to a file system.
pub(crate) fn check_name(name: &str) -> Result<(), BackendError> {
    let part_is_good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if name.len() <= 512 && name.split('/').all(part_is_good) {
        Ok(())
    } else {
        Err(BackendError::BadName {
            place: name.to_owned(),
        })
    }
}

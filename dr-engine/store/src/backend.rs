//! Where objects are kept: a local folder or an S3 bucket, behind one small contract.
//!
//! The contract, which `tests/backend_contract.rs` runs on every implementation:
//! - An object is written once and never overwritten; what is there can only be deleted.
//! - `put_new` returns only after the object is durable; an object is there whole or not at all.
//! - "Absent" is said only by a place that was reached and answered. A folder that is not there, or
//!   that lost its `repository` object (an unmounted disk), is an error.
//! - Names are relative, `/`-separated, made of `a-z A-Z 0-9 . _ -`.

mod local;
mod s3;

pub use local::LocalBackend;
pub(crate) use s3::TRIAL;
pub use s3::{S3Backend, S3Location};

use std::fmt::Debug;
use std::time::Duration;

use chrono::{DateTime, Utc};

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

/// What is asked of a place beside keeping the bytes. A place that cannot do it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Nobody can delete or change the object before this.
    pub retain_until: Option<DateTime<Utc>>,
    /// The store's name for how it keeps the object (`STANDARD_IA`, `GLACIER`).
    pub storage_class: Option<String>,
}

/// What a place was seen to do when the repository was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Writing an object that exists is refused by the place itself, without a race.
    pub put_if_absent: bool,
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
        self.put_new_with(name, body, &PutOptions::default())
    }
    /// [`Backend::put_new`] with more asked of the place.
    ///
    /// # Errors
    /// When the object may not be durable, or the place cannot do what is asked.
    fn put_new_with(
        &self,
        name: &str,
        body: &[u8],
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
    /// All objects whose names begin with `prefix`, sorted by name.
    ///
    /// # Errors
    /// As for [`Backend::get`].
    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError>;
    /// Removes an object; one that is absent already is fine.
    ///
    /// # Errors
    /// When the object may still be there.
    fn delete(&self, name: &str) -> Result<(), BackendError>;
    /// How many requests at once the place is good for.
    fn requests_at_once(&self) -> usize {
        4
    }
    /// Makes the place ready for a new repository (a folder is made) and tries what it can do.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn prepare(&self) -> Result<Capabilities, BackendError>;
    /// Tells what `prepare` found when the repository was created.
    fn assume(&self, _capabilities: Capabilities) {}
    /// Removes what crashed writers left half-written longer than `age` ago; returns how many.
    ///
    /// # Errors
    /// When the place cannot be listed.
    fn sweep(&self, _age: Duration) -> Result<u64, BackendError> {
        Ok(0)
    }
}

/// A place that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The folder is not there, or holds no `repository` object any more.
    #[error("repository folder missing: {place}")]
    FolderMissing {
        /// The folder.
        place: String,
    },
    /// No rights.
    #[error("cannot {action} {place}: not permitted to {user}")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// The path.
        place: String,
        /// Who tried.
        user: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// No room.
    #[error("cannot {action} {place}: the disk (or quota) is full")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The path.
        place: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Anything else a file system answers.
    #[error("cannot {action} {place}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        place: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A name outside the allowed alphabet.
    #[error("`{place}` is not an object name")]
    BadName {
        /// The name.
        place: String,
    },
    /// A place for a new repository that is in use already.
    #[error("{place} is not empty: it holds `{example}`")]
    NotEmpty {
        /// The place.
        place: String,
        /// One thing found.
        example: String,
    },
    /// The bucket is not there.
    #[error("bucket missing: {place}")]
    BucketMissing {
        /// The place.
        place: String,
        /// The store's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store refuses who we are.
    #[error("cannot {action} {place}: the store refuses the credentials")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// The store's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody answers.
    #[error("cannot {action} {place}: the store does not answer")]
    Unreachable {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// The transport's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store answered with a failure.
    #[error("cannot {action} {place}: the store reports a failure")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// The store's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BackendError {
    /// The place or path that failed.
    #[must_use]
    pub fn place(&self) -> &str {
        match self {
            Self::FolderMissing { place }
            | Self::NotEmpty { place, .. }
            | Self::NotPermitted { place, .. }
            | Self::Full { place, .. }
            | Self::Io { place, .. }
            | Self::BadName { place }
            | Self::BucketMissing { place, .. }
            | Self::Refused { place, .. }
            | Self::Unreachable { place, .. }
            | Self::Store { place, .. } => place,
        }
    }

    /// What an operator can try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::FolderMissing { .. } => {
                "is the disk mounted? Only `dr init` creates a repository, so that an unmounted disk \
                 never becomes an empty one"
            }
            Self::NotPermitted { .. } => {
                "run dr as the owner of the repository folder (`sudo -u OWNER dr …`), or give this \
                 user the rights; a read-only file system must be mounted read-write"
            }
            Self::Full { .. } => {
                "make room or raise the quota, then run it again: what was stored before is whole"
            }
            Self::NotEmpty { .. } => "name an empty or a new folder for the repository",
            Self::BucketMissing { .. } => "create the bucket; dr never creates one",
            Self::Refused { .. } => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile), the bucket's \
                 policy, and that this machine's clock is right"
            }
            Self::Unreachable { .. } => "check the endpoint, the region and the network",
            Self::Io { .. } | Self::BadName { .. } | Self::Store { .. } => return None,
        };
        Some(text.to_owned())
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

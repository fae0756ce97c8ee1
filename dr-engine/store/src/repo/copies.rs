//! Copies: the same repository in other places, each with key slots of its own.
//!
//! A copy holds byte for byte the objects of the first place, but for the description of itself, its
//! key slots, and what only concerns running writers. It is written beside the first place: every pack,
//! index and key by who stored it there; a restore point only when everything it needs is there, and in
//! the order of a backup, the list last. So whatever a copy lists can be restored from it.
//!
//! A copy that fails holds up nothing. It is left out for the rest of that backup and lags; [`super::sync`]
//! brings it up. Reading asks the first place, and the copies for what it lacks or cannot be opened. What
//! the first place answers to be absent is absent, whatever a copy that does not answer may hold.
//!
//! Copies are opened when first wanted, and one that failed is left alone for a while: what is done for
//! every segment of WAL must not wait for a dead place each time.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dr_model::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

use super::{Inner, Repository};
use crate::crypto::KEY_ID_BYTES;
use crate::format::RepositoryId;
use crate::{Backend, StoreError};

/// A copy that failed is not tried again for so long by what is done by the way.
const LEFT_ALONE: Duration = Duration::from_secs(60);
/// How long a WAL file that the first place has waits for the copies: the archiver waits with it.
pub const COPY_WAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the place of a copy.
pub type OpenCopy =
    Arc<dyn Fn() -> Result<Repository, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// A place that is to hold a copy.
#[derive(Clone)]
pub struct CopyPlace {
    /// What the configuration calls it.
    pub name: String,
    /// The place, for people.
    pub place: String,
    /// Opens it; called when it is first wanted.
    pub open: OpenCopy,
}

impl std::fmt::Debug for CopyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyPlace")
            .field("name", &self.name)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// What became of a copy during one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyState {
    /// What the configuration calls it.
    pub name: String,
    /// The place, for people.
    pub place: String,
    /// Why it does not have this backup yet; nothing when it has.
    pub behind: Option<String>,
}

/// A copy of an open repository.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) copy: CopyPlace,
    id: RepositoryId,
    master_id: [u8; KEY_ID_BYTES],
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    opened: Option<Repository>,
    failed_at_ns: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attached {
    /// The copy, opened; it is proven to be one.
    pub(crate) fn open(&self) -> Result<Repository, StoreError> {
        let mut known = lock(&self.known);
        if let Some(opened) = &known.opened {
            return Ok(opened.clone());
        }
        let opened = (self.copy.open)().map_err(|source| StoreError::CopyAway {
            name: self.copy.name.clone(),
            source,
        });
        let opened = opened.and_then(|opened| {
            let inner = opened.inner();
            if inner.id == self.id && inner.master.id() == self.master_id {
                Ok(opened)
            } else {
                Err(StoreError::OtherRepository {
                    place: self.copy.place.clone(),
                })
            }
        });
        match opened {
            Ok(opened) => {
                known.opened = Some(opened.clone());
                known.failed_at_ns = None;
                Ok(opened)
            }
            Err(error) => {
                known.failed_at_ns = Some(SystemClock.monotonic_ns());
                Err(error)
            }
        }
    }

    /// The copy, unless it failed a moment ago.
    pub(crate) fn open_unless_away(&self) -> Option<Repository> {
        let failed_at_ns = lock(&self.known).failed_at_ns;
        if let Some(at_ns) = failed_at_ns {
            let passed = SystemClock.monotonic_ns().saturating_sub(at_ns);
            if Duration::from_nanos(passed) < LEFT_ALONE {
                return None;
            }
        }
        match self.open() {
            Ok(opened) => Some(opened),
            Err(error) => {
                tracing::warn!(
                    copy = self.copy.name,
                    error = chain(&error),
                    "a copy is away"
                );
                None
            }
        }
    }

    /// Remembers that it failed.
    pub(crate) fn failed(&self, error: &dyn std::error::Error) {
        tracing::warn!(copy = self.copy.name, error = chain(error), "a copy failed");
        lock(&self.known).failed_at_ns = Some(SystemClock.monotonic_ns());
    }

    /// Tries it again at once the next time.
    pub(crate) fn forget_failure(&self) {
        lock(&self.known).failed_at_ns = None;
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl Repository {
    /// The same repository, which from now on is also written to these places and read from them.
    #[must_use]
    pub fn with_copies(&self, copies: Vec<CopyPlace>) -> Self {
        let inner = self.inner();
        let attached = copies.into_iter().map(|copy| {
            Arc::new(Attached {
                copy,
                id: inner.id,
                master_id: inner.master.id(),
                known: Mutex::default(),
            })
        });
        Self::of(inner.at_this_place(attached.collect(), None))
    }

    /// This place alone: what it holds by itself.
    #[must_use]
    pub fn alone(&self) -> Self {
        let inner = self.inner();
        if inner.copies.is_empty() && inner.stands_in_for.is_none() {
            return self.clone();
        }
        Self::of(inner.at_this_place(Vec::new(), None))
    }

    /// The same, read in place of a first place that does not answer. Nothing can be stored, and what
    /// this copy lacks may be where nobody answers.
    #[must_use]
    pub fn standing_in_for(&self, first: &str, copies: Vec<CopyPlace>) -> Self {
        let with = self.with_copies(copies);
        let inner = with.inner();
        Self::of(inner.at_this_place(inner.copies.clone(), Some(first.to_owned())))
    }

    /// The copies, opened; or why not.
    #[must_use]
    pub fn open_copies(&self) -> Vec<(CopyPlace, Result<Self, StoreError>)> {
        let copies = self.inner().copies.iter();
        copies
            .map(|attached| (attached.copy.clone(), attached.open()))
            .collect()
    }

    /// The first place that does not answer, where this copy is read in its stead.
    #[must_use]
    pub fn stands_in_for(&self) -> Option<&str> {
        self.inner().stands_in_for.as_deref()
    }

    /// Whether the other is this repository in another place.
    #[must_use]
    pub fn is_copy_of(&self, other: &Self) -> bool {
        let (this, other) = (self.inner(), other.inner());
        this.id == other.id && this.master.id() == other.master.id()
    }
}

impl Inner {
    /// Refuses to write where only a copy answers.
    pub(crate) fn is_first(&self) -> Result<(), StoreError> {
        match &self.stands_in_for {
            None => Ok(()),
            Some(first) => Err(StoreError::FirstPlaceAway {
                first: first.clone(),
                place: self.place.clone(),
            }),
        }
    }

    /// Stores at the copies what was just stored here. What fails is left to sync.
    pub(crate) fn put_at_copies(&self, object: &str, data: &Bytes) {
        for copy in &self.copies {
            if let Some(opened) = copy.open_unless_away()
                && let Err(error) = opened.inner().put_new(object, data.clone())
            {
                copy.failed(&error);
            }
        }
    }

    /// The same with an object as it is stored here: who else stored it may have been first.
    pub(crate) fn put_stored_at_copies(&self, object: &str) {
        if self.copies.is_empty() {
            return;
        }
        match self.get(object) {
            Ok(Some(data)) => self.put_at_copies(object, &data.into()),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, object, "not stored at the copies"),
        }
    }

    /// Stores a WAL file at the copies, all at once and within [`COPY_WAL_TIMEOUT`]: it is acknowledged
    /// whatever comes of it.
    pub(crate) fn put_wal_at_copies(&self, object: &str, data: Bytes) {
        if self.copies.is_empty() {
            return;
        }
        let (done, ends) = channel();
        for copy in &self.copies {
            let (copy, data, done) = (Arc::clone(copy), data.clone(), done.clone());
            let object = object.to_owned();
            let put = move || {
                if let Some(opened) = copy.open_unless_away()
                    && let Err(error) = opened.inner().put_new(&object, data)
                {
                    copy.failed(&error);
                }
                // Nobody waits any more after the time-out.
                let _ = done.send(());
            };
            let name = "dr-copy-wal".to_owned();
            if let Err(error) = std::thread::Builder::new().name(name).spawn(put) {
                tracing::warn!(%error, "a thread for a copy cannot be started");
            }
        }
        drop(done);
        let end_ns = SystemClock.monotonic_ns() + saturating_ns(COPY_WAL_TIMEOUT);
        for _ in &self.copies {
            let left = end_ns.saturating_sub(SystemClock.monotonic_ns());
            if ends.recv_timeout(Duration::from_nanos(left)).is_err() {
                tracing::warn!(object, "a copy did not take a WAL file in time; it lags");
                return;
            }
        }
    }
}

fn saturating_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The places that hold the repository, opened as they are asked for.
pub(crate) fn places(inner: &Inner) -> impl Iterator<Item = Arc<dyn Backend>> {
    let copies = inner.copies.iter().filter_map(|copy| {
        copy.open_unless_away()
            .map(|opened| Arc::clone(&opened.inner().backend))
    });
    std::iter::once(Arc::clone(&inner.backend)).chain(copies)
}

//! The repository: what is written in which order, and what is believed when reading.
//!
//! Write order of a backup: see [`writer`]. Nothing is ever overwritten, so a reader needs no lock. Keys
//! come before everything they seal: a data key is durable before its first pack. `repository` itself is
//! written last when a repository is made: without it there is none.
//!
//! Several processes may write at once. They share what was finished before they began; the same
//! content written by two at once is stored twice, which costs space and nothing else. They meet only in
//! the list of restore points ([`chain`]), where each adds to what the other wrote.

pub(crate) mod chain;
pub(crate) mod copies;
pub(crate) mod damage;
pub(crate) mod fetch;
pub(crate) mod index;
pub(crate) mod keys;
pub(crate) mod lock;
pub(crate) mod points;
pub(crate) mod reader;
mod records;
mod repair;
pub(crate) mod session;
mod signing;
mod sync;
pub(crate) mod tail;
pub(crate) mod verify;
pub(crate) mod wal;
pub(crate) mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dr_model::WorkloadName;

pub use chain::ChainAnchor;
pub use copies::{COPY_WAL_TIMEOUT, CopyPlace, CopyState, OpenCopy};
pub use damage::{DamageEvent, DamageRecord, DamagedObject, DamagedPoint};
pub use keys::{Domain, KeySlot, ShredOutcome, ShreddedFile, Shredding, TenantKey};
pub use points::StoredPoint;
pub use reader::{PointReader, Updated};
pub use repair::{RepairOptions, RepairReport, Repaired};
pub use sync::{CopyLag, SyncReport};
pub use tail::{TailEnd, TailPlace, WalTail, tail_chain};
pub use wal::{WalInfo, WalPut};
pub use writer::copies::CopyRun;
pub use writer::{BackupWriter, WriteOptions};

use crate::backend::{Backend, Capabilities, PutOptions, PutOutcome, TRIAL};
use crate::crypto::{Keys, RepositoryKey, random_secret};
use crate::format::header::Kind;
use crate::format::repository::{self as marker, RepositoryObject};
use crate::format::{FormatError, RepositoryId, VERSION, sealed};
use crate::{BackendError, StoreError};
use index::Index;
use index::contents::KnownContents;
use keys::{KnownKeys, Opened, SLOTS, list_slots, open_slots, store_slot};

/// A question to one place.
type Ask<'a, T> = &'a dyn Fn(&dyn Backend) -> Result<Option<T>, BackendError>;

/// An open repository. Cheap to clone; usable from several threads.
#[derive(Debug, Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

/// What all clones share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) backend: Arc<dyn Backend>,
    place: String,
    pub(crate) id: RepositoryId,
    id_text: String,
    capabilities: Capabilities,
    pub(crate) master: Keys,
    /// The id of the key slot that opened.
    pub(crate) opened_slot: String,
    known_keys: KnownKeys,
    indexes: Mutex<HashMap<WorkloadName, Arc<Index>>>,
    known_contents: KnownContents,
    known_heads: chain::KnownHeads,
    /// The same repository in other places.
    pub(crate) copies: Vec<Arc<copies::Attached>>,
    /// This is a copy, and the first place does not answer.
    pub(crate) stands_in_for: Option<String>,
}

/// What the slot is called that a repository is made with.
const FIRST_SLOT: &str = "made with the repository";

/// Turns a failed decoding into an error that names the object.
pub(crate) fn unreadable(place: &str, object: &str, error: FormatError) -> StoreError {
    let (object, place) = (object.to_owned(), place.to_owned());
    match error {
        FormatError::Version(found) => StoreError::UnsupportedVersion {
            object,
            place,
            found,
            supported: u32::from(VERSION),
        },
        FormatError::Damaged(what) => StoreError::Damaged {
            object,
            place,
            what,
        },
    }
}

fn backend_failed(
    backend: &dyn Backend,
    action: String,
) -> impl FnOnce(BackendError) -> StoreError {
    let place = backend.describe();
    move |source| StoreError::Backend {
        action,
        place,
        source,
    }
}

fn encode_failed(what: &'static str) -> impl FnOnce(crate::crypto::CryptoFailed) -> StoreError {
    move |source| StoreError::Encode {
        what,
        source: Box::new(source),
    }
}

impl Repository {
    /// Whether the place holds a repository. A folder that is missing holds none.
    ///
    /// # Errors
    /// When the place does not answer.
    pub fn exists(backend: &dyn Backend) -> Result<bool, StoreError> {
        match backend.get(marker::NAME) {
            Ok(found) => Ok(found.is_some()),
            Err(BackendError::FolderMissing { .. }) => Ok(false),
            Err(error) => Err(backend_failed(
                backend,
                "looking for a repository".to_owned(),
            )(error)),
        }
    }

    /// Makes a new repository that `key` opens. The place must be empty, or hold no more than the key
    /// slots of an attempt that did not get to its end.
    ///
    /// # Errors
    /// When there is something already, or the place cannot be written.
    pub fn create(backend: Arc<dyn Backend>, key: &RepositoryKey) -> Result<Self, StoreError> {
        let mut id: RepositoryId = [0; 16];
        dr_model::random::fill(&mut id);
        let master = Keys::new(random_secret()).map_err(encode_failed("the master key"))?;
        Self::create_with(backend, key, id, &master)
    }

    /// Makes a copy of this repository in another place: the same id and master key under a slot of its
    /// own, that `key` opens, and nothing else yet ([`Repository::sync_to`] brings the rest).
    ///
    /// # Errors
    /// As for [`Repository::create`].
    pub fn create_copy(
        &self,
        backend: Arc<dyn Backend>,
        key: &RepositoryKey,
    ) -> Result<Self, StoreError> {
        Self::create_with(backend, key, self.inner.id, &self.inner.master)
    }

    fn create_with(
        backend: Arc<dyn Backend>,
        key: &RepositoryKey,
        id: RepositoryId,
        master: &Keys,
    ) -> Result<Self, StoreError> {
        let place = backend.describe();
        let failed = |action: &str| backend_failed(backend.as_ref(), action.to_owned());
        if Self::exists(backend.as_ref())? {
            return Err(StoreError::AlreadyExists { place });
        }
        let capabilities = backend.prepare().map_err(|error| match error {
            BackendError::NotEmpty { place, example } => StoreError::NotEmpty { place, example },
            error => failed("preparing the place")(error),
        })?;
        if let Some(reason) = capabilities.unfit() {
            return Err(StoreError::Unfit { place, reason });
        }
        let found = backend.list("").map_err(failed("listing what is there"))?;
        let unfinished = |name: &str| name.starts_with(TRIAL) || name.starts_with(SLOTS);
        if let Some(foreign) = found.iter().find(|entry| !unfinished(&entry.name)) {
            return Err(StoreError::NotEmpty {
                place,
                example: foreign.name.clone(),
            });
        }
        for left in &found {
            backend
                .delete(&left.name)
                .map_err(failed("clearing an unfinished attempt"))?;
        }
        let (data, secret) = key.new_slot()?;
        let slot = (&data, &secret);
        store_slot(backend.as_ref(), &id, slot, master, FIRST_SLOT)?;
        crate::testing::kill_point("store.create.after-slot");
        let object = RepositoryObject { id, capabilities };
        let body =
            marker::encode(&object).map_err(|error| unreadable(&place, marker::NAME, error))?;
        let outcome = backend
            .put_new(marker::NAME, &body)
            .map_err(failed("storing `repository`"))?;
        backend.assume(capabilities);
        if outcome == PutOutcome::Exists {
            return Err(StoreError::AlreadyExists { place });
        }
        // Opened as anyone will, so that what cannot be read back is known before it is relied on.
        Self::open(backend, key)
    }

    /// Opens a repository; never creates anything.
    ///
    /// # Errors
    /// When there is none, the key is wrong, or what describes it is damaged.
    pub fn open(backend: Arc<dyn Backend>, key: &RepositoryKey) -> Result<Self, StoreError> {
        let place = backend.describe();
        let failed = |action: &str| backend_failed(backend.as_ref(), action.to_owned());
        let (slots, body) = fetch::both(
            || list_slots(backend.as_ref()),
            || backend.get(marker::NAME).map_err(failed("opening")),
        );
        let body = body?.ok_or_else(|| StoreError::Missing {
            place: place.clone(),
        })?;
        let object =
            marker::decode(&body).map_err(|error| unreadable(&place, marker::NAME, error))?;
        backend.assume(object.capabilities);
        let Opened { master, slot } = open_slots(backend.as_ref(), &slots?, &object.id, key)?;
        Ok(Self {
            inner: Arc::new(Inner {
                backend,
                place,
                id: object.id,
                id_text: hex::encode(object.id),
                capabilities: object.capabilities,
                master,
                opened_slot: slot,
                known_keys: KnownKeys::default(),
                indexes: Mutex::new(HashMap::new()),
                known_contents: KnownContents::default(),
                known_heads: chain::KnownHeads::default(),
                copies: Vec::new(),
                stands_in_for: None,
            }),
        })
    }

    /// The random number that names the repository, as hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.id_text
    }

    /// What the place was seen to do when the repository was created.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    /// Tries again what the place can do; nothing recorded changes.
    ///
    /// # Errors
    /// When the place does not answer or cannot be written.
    pub fn probe_capabilities(&self) -> Result<Capabilities, StoreError> {
        self.inner
            .backend
            .probe_capabilities()
            .map_err(self.inner.failed("trying what the place can do".to_owned()))
    }

    /// The place, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        self.inner.place.clone()
    }

    /// Checks what is stored; see [`crate::CheckReport`].
    ///
    /// # Errors
    /// Only when the place does not answer: whatever is wrong with what it holds is in the report.
    pub fn check(
        &self,
        options: crate::CheckOptions,
        progress: &dyn dr_model::Progress,
    ) -> Result<crate::CheckReport, StoreError> {
        // A copy must not hide what is wrong here.
        crate::check::run(&self.alone(), options, progress)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    fn of(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }
}

impl Inner {
    pub(crate) fn failed(&self, action: String) -> impl FnOnce(BackendError) -> StoreError + use<> {
        let place = self.place.clone();
        move |source| StoreError::Backend {
            action,
            place,
            source,
        }
    }

    pub(crate) fn unreadable(&self, object: &str, error: FormatError) -> StoreError {
        unreadable(&self.place, object, error)
    }

    pub(crate) fn missing(&self, object: &str) -> StoreError {
        StoreError::ObjectMissing {
            object: object.to_owned(),
            place: self.place.clone(),
        }
    }

    /// The same place with other copies; what is known of the content is learned anew.
    fn at_this_place(
        &self,
        copies: Vec<Arc<copies::Attached>>,
        stands_in_for: Option<String>,
    ) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
            place: self.place.clone(),
            id: self.id,
            id_text: self.id_text.clone(),
            capabilities: self.capabilities,
            master: self.master.clone(),
            opened_slot: self.opened_slot.clone(),
            known_keys: KnownKeys::default(),
            indexes: Mutex::new(HashMap::new()),
            known_contents: KnownContents::default(),
            known_heads: chain::KnownHeads::default(),
            copies,
            stands_in_for,
        }
    }

    /// Every place that holds this repository and answers, the first one first.
    pub(crate) fn places(&self) -> impl Iterator<Item = Arc<dyn Backend>> {
        copies::places(self)
    }

    /// The first thing that a place gives, from the first place on; what failed there, when none does.
    pub(crate) fn any_place<T>(
        &self,
        object: &str,
        ask: Ask<'_, T>,
    ) -> Result<Option<T>, StoreError> {
        let mut failed = None;
        for place in self.places() {
            match ask(place.as_ref()) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            None => Ok(None),
            Some(error) => Err(self.failed(format!("reading `{object}`"))(error)),
        }
    }

    /// Reads an object and makes something of it: from the first place where that succeeds. `None` if
    /// the first place answered that it is absent and no copy has it; else the first place's failure.
    pub(crate) fn read_verified<T>(
        &self,
        object: &str,
        decode: &dyn Fn(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut first: Option<Result<(), StoreError>> = None;
        for place in self.places() {
            let read = match place.get(object) {
                Ok(Some(data)) => decode(&data).map(Some),
                Ok(None) => Ok(None),
                Err(error) => Err(self.failed(format!("reading `{object}`"))(error)),
            };
            let outcome = match read {
                Ok(Some(value)) => return Ok(Some(value)),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            // What the first place says counts, should no copy have it.
            first.get_or_insert(outcome);
        }
        first.unwrap_or(Ok(())).map(|()| None)
    }

    pub(crate) fn get(&self, object: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.backend
            .get(object)
            .map_err(self.failed(format!("reading `{object}`")))
    }

    pub(crate) fn put_new(
        &self,
        object: &str,
        body: impl Into<Bytes>,
    ) -> Result<PutOutcome, StoreError> {
        self.put_new_with(object, body, &PutOptions::default())
    }

    pub(crate) fn put_new_with(
        &self,
        object: &str,
        body: impl Into<Bytes>,
        options: &PutOptions,
    ) -> Result<PutOutcome, StoreError> {
        self.is_first()?;
        self.backend
            .put_new_with(object, body.into(), options)
            .map_err(self.failed(format!("storing `{object}`")))
    }

    /// Removes an object from this place; one that is absent already is fine.
    pub(crate) fn delete(&self, object: &str) -> Result<(), StoreError> {
        self.is_first()?;
        self.backend
            .delete(object)
            .map_err(self.failed(format!("deleting `{object}`")))
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<crate::ObjectEntry>, StoreError> {
        self.backend
            .list(prefix)
            .map_err(self.failed(format!("listing `{prefix}`")))
    }

    /// Stores an object of one sealed frame.
    pub(crate) fn put_sealed(
        &self,
        keys: &Keys,
        kind: Kind,
        object: &str,
        body: &[u8],
    ) -> Result<PutOutcome, StoreError> {
        self.put_sealed_with(keys, kind, object, body, &PutOptions::default())
    }

    pub(crate) fn put_sealed_with(
        &self,
        keys: &Keys,
        kind: Kind,
        object: &str,
        body: &[u8],
        options: &PutOptions,
    ) -> Result<PutOutcome, StoreError> {
        let data = sealed::encode(&self.id, keys, kind, object, body)
            .map_err(encode_failed("an object"))?;
        self.put_new_with(object, data, options)
    }

    /// Reads an object of one sealed frame.
    pub(crate) fn get_sealed(
        &self,
        keys: &Keys,
        kind: Kind,
        object: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_verified(object, &|data| {
            sealed::decode(&self.id, keys, kind, object, data)
                .map_err(|error| self.unreadable(object, error))
        })
    }
}

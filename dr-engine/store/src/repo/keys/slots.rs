//! Key slots: what wraps the master key, and how a repository is opened.
//!
//! All slots hold the same master key. A new one is durable and was read back before it is called
//! made; one that is taken away is gone from every version the place keeps, and at least one that is
//! whole must stay. The master key itself never changes: who once opened the repository and kept a
//! copy of it can read that copy for ever, whatever happens to slots.

use chrono::{DateTime, Utc};
use dr_model::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

use super::SLOTS;
use crate::backend::{Backend, ObjectEntry, PutOutcome};
use crate::crypto::{Keys, NewSlot, RepositoryKey, SlotData, SlotKind, SlotRefused};
use crate::format::key_slot::{self, LABEL_CHARS_MAX, ReadSlot, SLOT_BYTES_MAX, SlotNote};
use crate::format::{FormatError, RepositoryId};
use crate::repo::{backend_failed, encode_failed, unreadable};
use crate::{Repository, StoreError};

/// More slots than this nobody can keep an eye on, and opening tries them one by one.
const SLOTS_MAX: usize = 32;

/// A key slot, as `dr key list` shows it. Nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlot {
    /// The slot's id.
    pub id: String,
    /// How it is opened; nothing when it cannot be read.
    pub kind: Option<SlotKind>,
    /// When it was made.
    pub made: Option<DateTime<Utc>>,
    /// What its maker called it.
    pub label: String,
    /// Of a slot for an age recipient, the recipient.
    pub recipient: Option<String>,
    /// Whether this slot opened the repository now.
    pub opened_now: bool,
    /// What is wrong with it, if anything is.
    pub problem: Option<String>,
}

/// What opening came to.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) master: Keys,
    /// The id of the slot that opened.
    pub(crate) slot: String,
}

fn read(backend: &dyn Backend, slot: &ObjectEntry) -> Result<Vec<u8>, StoreError> {
    // A slot of gigabytes is nobody's: it is not read to find that out.
    if slot.size > SLOT_BYTES_MAX {
        return Ok(Vec::new());
    }
    backend
        .get(&slot.name)
        .map(Option::unwrap_or_default)
        .map_err(backend_failed(backend, format!("reading `{}`", slot.name)))
}

pub(crate) fn list_slots(backend: &dyn Backend) -> Result<Vec<ObjectEntry>, StoreError> {
    backend
        .list(SLOTS)
        .map_err(backend_failed(backend, "listing the key slots".to_owned()))
}

fn id_of(object: &str) -> &str {
    object.strip_prefix(SLOTS).unwrap_or(object)
}

/// Tries every key slot of the key's kind. A damaged slot is only an error when no other one opens.
pub(crate) fn open_slots(
    backend: &dyn Backend,
    slots: &[ObjectEntry],
    id: &RepositoryId,
    key: &RepositoryKey,
) -> Result<Opened, StoreError> {
    let place = backend.describe();
    if slots.is_empty() {
        return Err(StoreError::ObjectMissing {
            object: format!("{SLOTS}…"),
            place,
        });
    }
    let mut failed = None;
    let mut kinds = Vec::new();
    for slot in slots {
        let body = read(backend, slot)?;
        let damaged = |error| unreadable(&place, &slot.name, error);
        let read = match ReadSlot::of(&body) {
            Ok(read) => read,
            Err(error) => {
                failed = Some(damaged(error));
                continue;
            }
        };
        kinds.push(read.kind());
        if read.kind() != key.kind() {
            continue;
        }
        let opened = match key.secret_of(&read.data) {
            Ok(Some(secret)) => read.open(id, &slot.name, &secret).map_err(damaged),
            Ok(None) => Ok(None),
            Err(SlotRefused::Slot(error)) => Err(damaged(error)),
            Err(SlotRefused::Opener(error)) => Err(error),
        };
        match opened {
            Ok(Some(master)) => {
                let slot = id_of(&slot.name).to_owned();
                let opened = Opened { master, slot };
                return not_planted(backend, slots, key.kind(), opened);
            }
            Ok(None) => {}
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if kinds.contains(&key.kind()) {
        return Err(StoreError::WrongKey { place });
    }
    kinds.sort();
    kinds.dedup();
    let found: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
    Err(StoreError::NoSlotOfKind {
        place,
        kind: key.kind(),
        found: found.join(", "),
    })
}

/// For some kinds everybody can make a slot: an age recipient is public, and a key service may let
/// many wrap. Who can write to the place could so hand in a master key of his own and read what is
/// written from then on. So for these kinds all slots must agree on the master key.
fn not_planted(
    backend: &dyn Backend,
    slots: &[ObjectEntry],
    kind: SlotKind,
    opened: Opened,
) -> Result<Opened, StoreError> {
    if matches!(kind, SlotKind::KeyFile | SlotKind::Passphrase) {
        return Ok(opened);
    }
    for slot in slots {
        let body = read(backend, slot)?;
        if let Ok(read) = ReadSlot::of(&body)
            && read.master_id() != opened.master.id()
        {
            return Err(unreadable(
                &backend.describe(),
                &slot.name,
                FormatError::damaged(
                    "it names another master key than the slot that opened: one of them was put \
                     there by somebody else",
                ),
            ));
        }
    }
    Ok(opened)
}

fn note(label: &str) -> Result<SlotNote, StoreError> {
    if label.chars().count() > LABEL_CHARS_MAX || label.chars().any(char::is_control) {
        return Err(StoreError::InvalidName {
            name: label.to_owned(),
            rule: "a label is one line of at most 200 characters",
        });
    }
    Ok(SlotNote {
        made: SystemClock.now(),
        label: label.to_owned(),
    })
}

/// Stores a new slot; returns its object's name.
pub(crate) fn store_slot(
    backend: &dyn Backend,
    id: &RepositoryId,
    (data, secret): (&SlotData, &crate::crypto::Secret),
    master: &Keys,
    label: &str,
) -> Result<String, StoreError> {
    let object = format!("{SLOTS}{}", dr_model::random::hex(8));
    let body = key_slot::encode(id, &object, (data, secret), master, &note(label)?)
        .map_err(encode_failed("a key slot"))?;
    if body.len() as u64 > SLOT_BYTES_MAX {
        return Err(StoreError::InvalidKey {
            what: "what its slot would hold is too long",
        });
    }
    let stored = backend
        .put_new(&object, &body)
        .map_err(backend_failed(backend, "storing a key slot".to_owned()))?;
    // Eight random bytes do not occur twice; if they did, the other slot stays as it is.
    match stored {
        PutOutcome::Stored => Ok(object),
        PutOutcome::Exists => Err(StoreError::KeySlot {
            slot: id_of(&object).to_owned(),
            place: backend.describe(),
            what: "is there already",
        }),
    }
}

impl Repository {
    /// The key slots, by id. A slot that cannot be read is listed with what is wrong.
    ///
    /// # Errors
    /// When the place fails.
    pub fn key_slots(&self) -> Result<Vec<KeySlot>, StoreError> {
        let repo = self.inner();
        let backend = repo.backend.as_ref();
        let mut found = Vec::new();
        for entry in list_slots(backend)? {
            let body = read(backend, &entry)?;
            let id = id_of(&entry.name).to_owned();
            let read = ReadSlot::of(&body).and_then(|read| {
                let note = read.note(&repo.id, &entry.name, &repo.master)?;
                Ok((read, note))
            });
            let opened_now = id == repo.opened_slot;
            found.push(match read {
                Ok((read, note)) => KeySlot {
                    id,
                    kind: Some(read.kind()),
                    made: Some(note.made),
                    label: note.label,
                    recipient: match read.data {
                        SlotData::AgeRecipient { recipient, .. } => Some(recipient),
                        _ => None,
                    },
                    opened_now,
                    problem: None,
                },
                Err(error) => KeySlot {
                    id,
                    kind: None,
                    made: None,
                    label: String::new(),
                    recipient: None,
                    opened_now,
                    problem: Some(error.to_string()),
                },
            });
        }
        Ok(found)
    }

    /// The id of the slot that opened the repository.
    #[must_use]
    pub fn opened_slot(&self) -> &str {
        &self.inner().opened_slot
    }

    /// Makes another slot; durable and read back on return. Where its opener is at hand, it was also
    /// opened.
    ///
    /// # Errors
    /// When there are too many slots, the opener fails, or the place does.
    pub fn add_key_slot(&self, slot: &NewSlot, label: &str) -> Result<KeySlot, StoreError> {
        let repo = self.inner();
        let backend = repo.backend.as_ref();
        if list_slots(backend)?.len() >= SLOTS_MAX {
            return Err(StoreError::KeySlot {
                slot: "32 others".to_owned(),
                place: repo.place.clone(),
                what: "are there already: remove one first",
            });
        }
        let (data, secret) = slot.make()?;
        let object = store_slot(backend, &repo.id, (&data, &secret), &repo.master, label)?;
        let proven = self.prove(&object, slot);
        if let Err(error) = proven {
            // A slot that does not open is worse than none: somebody would rely on it.
            repo.delete_for_good(&object)?;
            return Err(error);
        }
        let id = id_of(&object);
        let made = self.key_slots()?.into_iter().find(|slot| slot.id == id);
        made.ok_or_else(|| repo.missing(&object))
    }

    /// Opens a slot just made, as whoever needs it will.
    fn prove(&self, object: &str, slot: &NewSlot) -> Result<(), StoreError> {
        let repo = self.inner();
        let body = repo.get(object)?.ok_or_else(|| repo.missing(object))?;
        let damaged = |error| repo.unreadable(object, error);
        let read = ReadSlot::of(&body).map_err(damaged)?;
        read.note(&repo.id, object, &repo.master).map_err(damaged)?;
        let NewSlot::For(key) = slot else {
            return Ok(()); // Its identity is in a safe.
        };
        let secret = match key.secret_of(&read.data) {
            Ok(secret) => secret,
            Err(SlotRefused::Slot(error)) => return Err(damaged(error)),
            Err(SlotRefused::Opener(error)) => return Err(error),
        };
        let opened = match secret {
            Some(secret) => read.open(&repo.id, object, &secret).map_err(damaged)?,
            None => None,
        };
        if opened.is_some_and(|master| master.id() == repo.master.id()) {
            return Ok(());
        }
        Err(damaged(FormatError::damaged(
            "it does not open with what it was made for",
        )))
    }

    /// Takes a slot away, from every version that the place keeps. One other slot that is whole must
    /// stay; the slot that opened the repository now goes only with `also_opened`.
    ///
    /// # Errors
    /// When it is not there or may not go, or the place fails: then it may still be there.
    pub fn remove_key_slot(&self, id: &str, also_opened: bool) -> Result<(), StoreError> {
        let repo = self.inner();
        let slots = self.key_slots()?;
        let refused = |what| {
            Err(StoreError::KeySlot {
                slot: id.to_owned(),
                place: repo.place.clone(),
                what,
            })
        };
        let Some(slot) = slots.iter().find(|slot| slot.id == id) else {
            return refused("is not there");
        };
        if !slots
            .iter()
            .any(|other| other.id != id && other.problem.is_none())
        {
            return refused("is the last one: without it nobody opens the repository");
        }
        if slot.opened_now && !also_opened {
            return refused("is the one that opened the repository now");
        }
        repo.delete_for_good(&format!("{SLOTS}{id}"))
    }
}

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::*;
use crate::LocalBackend;
use crate::crypto::{KeyCommand, new_age_identity, random_secret};

struct Place {
    _folder: tempfile::TempDir,
    backend: Arc<LocalBackend>,
    key: RepositoryKey,
    repository: Repository,
}

impl Place {
    fn new() -> Self {
        Self::opened_by(RepositoryKey::generate())
    }

    fn opened_by(key: RepositoryKey) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Arc::new(LocalBackend::new(&folder.path().join("repository")));
        let repository = Repository::create(Arc::<LocalBackend>::clone(&backend), &key).unwrap();
        Self {
            _folder: folder,
            backend,
            key,
            repository,
        }
    }

    fn open(&self, key: &RepositoryKey) -> Result<Repository, StoreError> {
        Repository::open(Arc::<LocalBackend>::clone(&self.backend), key)
    }
}

fn copy(key: &RepositoryKey) -> RepositoryKey {
    RepositoryKey::parse(&key.to_text().unwrap()).unwrap()
}

fn passphrase() -> RepositoryKey {
    RepositoryKey::passphrase("a passphrase that is long").unwrap()
}

/// Turns digits into letters, and counts how often it ran.
fn counting(file: &std::path::Path) -> RepositoryKey {
    let script = |from: &str, to: &str| {
        let script = format!("echo ran >> {}; tr {from} {to}", file.display());
        ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
    };
    RepositoryKey::command(KeyCommand {
        wrap: script("0-9", "A-J"),
        unwrap: script("A-J", "0-9"),
    })
}

#[test]
fn a_repository_is_made_and_opened_with_a_key_of_any_kind() {
    let (identity, _) = new_age_identity();
    let folder = tempfile::tempdir().unwrap();
    for key in [
        RepositoryKey::generate(),
        passphrase(),
        RepositoryKey::age_identity(&identity).unwrap(),
        counting(&folder.path().join("runs")),
    ] {
        let place = Place::opened_by(key);
        let again = place.open(&place.key).unwrap();
        let slots = again.key_slots().unwrap();
        assert_eq!(slots.len(), 1);
        assert_eq!(slots[0].kind, Some(place.key.kind()));
        assert!(slots[0].opened_now);
        assert!(matches!(
            place.open(&RepositoryKey::generate()),
            Err(StoreError::WrongKey { .. } | StoreError::NoSlotOfKind { .. })
        ));
    }
}

#[test]
fn several_slots_open_the_same_repository_and_say_which_did() {
    let place = Place::new();
    let (identity, recipient) = new_age_identity();
    let recovery = NewSlot::age_recipient(&recipient).unwrap();
    let made = place.repository.add_key_slot(&recovery, "safe").unwrap();
    assert_eq!(
        (made.kind, made.label.as_str(), made.opened_now),
        (Some(SlotKind::AgeRecipient), "safe", false)
    );
    assert_eq!(made.recipient.as_deref(), Some(recipient.as_str()));
    place
        .repository
        .add_key_slot(&NewSlot::For(passphrase()), "")
        .unwrap();
    for key in [
        copy(&place.key),
        RepositoryKey::age_identity(&identity).unwrap(),
        passphrase(),
    ] {
        let opened = place.open(&key).unwrap();
        assert_eq!(opened.id(), place.repository.id());
        let slots = opened.key_slots().unwrap();
        assert_eq!(slots.len(), 3);
        let by: Vec<_> = slots.iter().filter(|slot| slot.opened_now).collect();
        assert_eq!(by.len(), 1);
        assert_eq!(by[0].kind, Some(key.kind()));
    }
}

#[test]
fn who_opens_with_a_key_file_starts_no_command() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    place
        .repository
        .add_key_slot(&NewSlot::For(counting(&runs)), "service")
        .unwrap();
    let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let before = count();
    place.open(&place.key).unwrap();
    place.open(&RepositoryKey::generate()).unwrap_err();
    assert_eq!(count(), before);
    place.open(&counting(&runs)).unwrap();
    assert_eq!(count(), before + 1);
}

#[test]
fn a_slot_that_was_taken_away_opens_nothing_and_the_last_one_stays() {
    let place = Place::new();
    let new = RepositoryKey::generate();
    let made = place
        .repository
        .add_key_slot(&NewSlot::For(copy(&new)), "new")
        .unwrap();
    let first = place.repository.opened_slot().to_owned();
    let refused = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::KeySlot { .. })));
    };
    refused(place.repository.remove_key_slot(&first, false));
    refused(place.repository.remove_key_slot("0000000000000000", true));
    refused(place.repository.remove_key_slot("../repository", true));
    place.repository.remove_key_slot(&first, true).unwrap();
    assert!(matches!(
        place.open(&place.key),
        Err(StoreError::WrongKey { .. })
    ));
    let opened = place.open(&new).unwrap();
    refused(opened.remove_key_slot(&made.id, true));
    assert!(place.open(&new).is_ok());
}

#[test]
fn a_damaged_slot_does_not_count_as_the_one_that_stays() {
    let place = Place::new();
    place
        .backend
        .put_new("keys/slot/0123456789abcdef", b"not a slot")
        .unwrap();
    let listed = place.repository.key_slots().unwrap();
    assert!(listed[0].problem.is_some() && listed[1].problem.is_none());
    let first = place.repository.opened_slot().to_owned();
    assert!(place.repository.remove_key_slot(&first, true).is_err());
    // It is no obstacle for who has the right key, and said to who has a wrong one.
    place.open(&place.key).unwrap();
    assert!(matches!(
        place.open(&RepositoryKey::generate()),
        Err(StoreError::Damaged { .. })
    ));
    place
        .repository
        .remove_key_slot("0123456789abcdef", false)
        .unwrap();
}

#[test]
fn a_command_that_does_not_give_back_what_it_took_makes_no_slot() {
    let place = Place::new();
    let argv = |from: &str, to: &str| ["tr", from, to].map(str::to_owned).to_vec();
    let forgetful = RepositoryKey::command(KeyCommand {
        wrap: argv("0-9", "A-J"),
        unwrap: argv("A-J", "1-9"),
    });
    assert!(
        place
            .repository
            .add_key_slot(&NewSlot::For(forgetful), "x")
            .is_err()
    );
    assert_eq!(place.repository.key_slots().unwrap().len(), 1);
}

#[test]
fn a_slot_with_a_master_key_of_somebody_elses_is_not_believed() {
    let (identity, recipient) = new_age_identity();
    let key = RepositoryKey::age_identity(&identity).unwrap();
    let place = Place::opened_by(RepositoryKey::age_identity(&identity).unwrap());
    place.open(&key).unwrap();
    // All it takes is the recipient, which is public.
    let foreign = Keys::new(random_secret()).unwrap();
    let (data, secret) = NewSlot::age_recipient(&recipient).unwrap().make().unwrap();
    let slot = (&data, &secret);
    let id = &place.repository.inner().id;
    store_slot(place.backend.as_ref(), id, slot, &foreign, "mine").unwrap();
    assert!(matches!(place.open(&key), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_label_is_one_line_and_a_slot_of_any_size_is_not_read() {
    let place = Place::new();
    let add = |label: &str| {
        place
            .repository
            .add_key_slot(&NewSlot::For(RepositoryKey::generate()), label)
    };
    assert!(add("two\nlines").is_err());
    assert!(add(&"x".repeat(201)).is_err());
    let huge = vec![0u8; 1024 * 1024];
    place.backend.put_new("keys/slot/00", &huge).unwrap();
    place.open(&place.key).unwrap();
    let listed = place.repository.key_slots().unwrap();
    assert!(listed[0].problem.is_some());
}

use super::*;
use crate::crypto::{
    KeyCommand, NewSlot, RepositoryKey, SlotRefused, new_age_identity, random_secret,
};

const REPOSITORY: RepositoryId = [3; 16];
const OBJECT: &str = "keys/slot/a";

fn note() -> SlotNote {
    SlotNote {
        made: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        label: "the safe in Omaha".to_owned(),
    }
}

fn master() -> Keys {
    Keys::new(random_secret()).unwrap()
}

fn slot(key: &NewSlot, master: &Keys) -> Vec<u8> {
    let (data, secret) = key.make().unwrap();
    encode(&REPOSITORY, OBJECT, (&data, &secret), master, &note()).unwrap()
}

fn open_at(
    repository: &RepositoryId,
    object: &str,
    key: &RepositoryKey,
    slot: &[u8],
) -> Result<Option<Keys>, FormatError> {
    let slot = ReadSlot::of(slot)?;
    match key.secret_of(&slot.data) {
        Ok(Some(secret)) => slot.open(repository, object, &secret),
        Ok(None) => Ok(None),
        Err(SlotRefused::Slot(error)) => Err(error),
        Err(SlotRefused::Opener(error)) => Err(FormatError::Damaged(error.to_string())),
    }
}

fn open(key: &RepositoryKey, slot: &[u8]) -> Result<Option<Keys>, FormatError> {
    open_at(&REPOSITORY, OBJECT, key, slot)
}

fn turning(letters: &str) -> RepositoryKey {
    let argv = |from: &str, to: &str| ["tr", from, to].map(str::to_owned).to_vec();
    RepositoryKey::command(KeyCommand {
        wrap: argv("0-9", letters),
        unwrap: argv(letters, "0-9"),
    })
}

/// A new opener of each kind.
fn openers() -> Vec<RepositoryKey> {
    let (identity, _) = new_age_identity();
    vec![
        RepositoryKey::generate(),
        RepositoryKey::passphrase(&dr_model::random::hex(10)).unwrap(),
        RepositoryKey::age_identity(&identity).unwrap(),
        turning("A-J"),
    ]
}

#[test]
fn a_slot_of_each_kind_opens_with_its_own_opener_and_with_no_other() {
    let master = master();
    let mine = openers();
    let slots: Vec<Vec<u8>> = mine
        .iter()
        .map(|key| {
            let (data, secret) = key.new_slot().unwrap();
            encode(&REPOSITORY, OBJECT, (&data, &secret), &master, &note()).unwrap()
        })
        .collect();
    let mut others = openers();
    others.pop();
    for (number, data) in slots.iter().enumerate() {
        for (with, key) in mine.iter().enumerate() {
            let opened = open(key, data).unwrap();
            assert_eq!(
                opened.map(|keys| keys.id()),
                (number == with).then(|| master.id())
            );
        }
        for key in &others {
            assert!(open(key, data).unwrap().is_none(), "{key:?}");
        }
        let read = ReadSlot::of(data).unwrap();
        assert_eq!(read.kind(), mine[number].kind());
        assert_eq!(read.note(&REPOSITORY, OBJECT, &master).unwrap(), note());
    }
    // A command that gives back something else than it was given opens nothing.
    assert!(open(&turning("K-T"), &slots[3]).is_err());
}

#[test]
fn a_slot_for_a_recipient_is_made_without_the_identity() {
    let master = master();
    let (identity, recipient) = new_age_identity();
    let data = slot(&NewSlot::age_recipient(&recipient).unwrap(), &master);
    let key = RepositoryKey::age_identity(&identity).unwrap();
    assert_eq!(open(&key, &data).unwrap().unwrap().id(), master.id());
}

#[test]
fn a_slot_opens_in_no_other_place_or_repository() {
    let master = master();
    let key = RepositoryKey::generate();
    let (data, secret) = key.new_slot().unwrap();
    let slot = encode(&REPOSITORY, OBJECT, (&data, &secret), &master, &note()).unwrap();
    assert!(open(&key, &slot).unwrap().is_some());
    assert!(open_at(&[4; 16], OBJECT, &key, &slot).is_err());
    assert!(open_at(&REPOSITORY, "keys/slot/b", &key, &slot).is_err());
}

#[test]
fn every_changed_byte_of_every_kind_of_slot_is_damage_and_never_a_wrong_key() {
    let master = master();
    for key in openers() {
        let (data, secret) = key.new_slot().unwrap();
        let slot = encode(&REPOSITORY, OBJECT, (&data, &secret), &master, &note()).unwrap();
        for index in 0..slot.len() {
            let mut changed = slot.clone();
            changed[index] ^= 1;
            assert!(
                ReadSlot::of(&changed).is_err(),
                "byte {index} of a {key:?} slot"
            );
            assert!(ReadSlot::of(&slot[..index]).is_err());
        }
    }
}

/// Changes a slot and makes its checksum fit again, as who can write to the place may do.
fn forged(slot: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut body = slot[..slot.len() - 32].to_vec();
    change(&mut body);
    let sum = sha256(&body);
    [body, sum.to_vec()].concat()
}

#[test]
fn a_hostile_slot_cannot_make_its_opener_pay_or_believe() {
    let master = master();
    let key = RepositoryKey::passphrase("a passphrase that is long").unwrap();
    let (data, secret) = key.new_slot().unwrap();
    let slot = encode(&REPOSITORY, OBJECT, (&data, &secret), &master, &note()).unwrap();
    // 100 GiB, endless passes, a million lanes: refused before a byte is taken.
    for (offset, value) in [
        (72, 100 * 1024 * 1024_u32),
        (76, u32::MAX),
        (80, 1_000_000),
        (72, 8),
    ] {
        let hostile = forged(&slot, |body| {
            body[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        });
        assert!(matches!(open(&key, &hostile), Err(FormatError::Damaged(_))));
    }
    // A length that leaves the object, a kind nobody knows.
    for (offset, value) in [(68, 0xff), (71, 0xff), (64, 9), (64, 0), (65, 1)] {
        let hostile = forged(&slot, |body| body[offset] = value);
        assert!(open(&key, &hostile).is_err(), "{offset}");
    }
    // Another master key, wrapped for the same opener: it opens, and its id betrays it.
    let foreign = Keys::new(random_secret()).unwrap();
    let planted = encode(&REPOSITORY, OBJECT, (&data, &secret), &foreign, &note()).unwrap();
    assert_ne!(open(&key, &planted).unwrap().unwrap().id(), master.id());
    assert!(
        ReadSlot::of(&planted)
            .unwrap()
            .note(&REPOSITORY, OBJECT, &master)
            .is_err()
    );
    // Byte by byte, with a checksum that fits: never another key, never a wrong label.
    for index in 0..slot.len() - 32 {
        if (72..84).contains(&index) {
            continue; // Other parameters: tried above, and each costs its time.
        }
        let hostile = forged(&slot, |body| body[index] ^= 1);
        if let Ok(read) = ReadSlot::of(&hostile) {
            assert!(
                !matches!(read.open(&REPOSITORY, OBJECT, &secret), Ok(Some(_))),
                "byte {index}"
            );
            assert!(
                read.note(&REPOSITORY, OBJECT, &master).is_err(),
                "byte {index}"
            );
        }
    }
}

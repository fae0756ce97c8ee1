//! Every decoder of stored bytes, as a fuzzer reaches it. Not in a release (feature `testing`).
//!
//! Most of what is stored is sealed, and random bytes never get past authentication. So there are two
//! kinds of targets: those named after an object are given its raw bytes; those named after what is
//! *inside* are given what comes out of a frame, where needed sealed here under a fixed key, so that what
//! lies behind the door is tried as well: by whoever has the key, or by a writer's mistake.
//!
//! A target fails by panicking: by itself, or because what was decoded does not encode to what it was.

mod seeds;

use std::sync::LazyLock;

use zeroize::Zeroizing;

use crate::crypto::{FrameContext, Keys, RepositoryKey, SlotData, sha256};
use crate::format::bytes::Fields;
use crate::format::content::{Content, decode_references, encode_references};
use crate::format::header::{Header, Kind};
use crate::format::key_slot::ReadSlot;
use crate::format::session::{CondemnedObject, SessionObject};
use crate::format::{
    RepositoryId, VERSION, chain, data_key, index, pack, point, repository, sealed, session, tree,
    wal,
};
use crate::{Shredding, compress};

/// A decoder.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Decodes; panics when it should not have.
    pub run: fn(&[u8]),
    /// Bytes that it accepts, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[
            $(Target { name: stringify!($name), run: $name, seeds: seeds::$name }),*
        ];
    };
}

targets!(
    repository_object,
    key_file_text,
    age_identity_text,
    key_slot,
    key_slot_note_inside,
    age_file_inside,
    data_key_inside,
    sealed_object,
    sealed_object_inside,
    pack_object,
    pack_table_inside,
    chunk_inside,
    index_inside,
    listing_inside,
    references_inside,
    point_inside,
    chain_inside,
    session_inside,
    shredding_inside,
    wal_object,
    wal_inside,
);

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

const REPOSITORY: RepositoryId = [7; 16];
const SALT: [u8; 32] = [9; 32];
const RECORD: &str = "records/note/a";
const SLOT: &str = "keys/slot/0000000000000000";
const PACK: &str = "data/erp/00/00000000000000000000000000000000";
const WAL: &str = "wal/erp/00000001/000000010000000000000001";
/// Made for this and nothing else.
const AGE_IDENTITY: &str =
    "AGE-SECRET-KEY-1QYPQXPQ9QCRSSZG2PVXQ6RS0ZQG3YYC5Z5TPWXQERGD3C8G7RUSQGPQYEE\n";
const SLOT_SECRET: [u8; 32] = [8; 32];

static KEYS: LazyLock<Option<Keys>> = LazyLock::new(|| Keys::new(Zeroizing::new([7; 32])).ok());
static IDENTITY: LazyLock<Option<RepositoryKey>> =
    LazyLock::new(|| RepositoryKey::age_identity(AGE_IDENTITY).ok());

#[allow(
    clippy::expect_used,
    reason = "a fuzz target that has no key must not seem to work"
)]
fn keys() -> &'static Keys {
    KEYS.as_ref().expect("a key is derived from 32 bytes")
}

fn header(kind: Kind) -> Vec<u8> {
    let key_id = keys().id();
    let salt = SALT;
    Header { kind, key_id, salt }.encode()
}

/// Appends a frame sealed under the object key that `sealed_by` gives.
fn append_frame(
    out: &mut Vec<u8>,
    sealed_by: &Keys,
    (kind, object, frame): (Kind, &str, u64),
    bound_to: &[u8],
    inside: &[u8],
) {
    let context = FrameContext {
        repository: &REPOSITORY,
        version: VERSION,
        kind: kind as u8,
        key_id: &keys().id(),
        object,
        frame,
        offset: out.len() as u64,
        bound_to,
    };
    let mut body = inside.to_vec();
    let sealed = sealed_by
        .object_seal(kind as u8, &SALT)
        .and_then(|seal| seal.seal(&context, &mut body));
    assert!(sealed.is_ok(), "sealing under a fixed key");
    out.extend_from_slice(&body);
}

fn repository_object(data: &[u8]) {
    if let Ok(read) = repository::decode(data) {
        let again = repository::encode(&read).and_then(|line| repository::decode(&line));
        assert_eq!(again, Ok(read));
    }
}

fn key_file_text(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(key) = RepositoryKey::parse(text)
    {
        let spelled = key.to_text();
        assert_eq!(
            spelled.as_ref().map(|line| line.trim_end()),
            Some(text.trim_end())
        );
    }
}

fn age_identity_text(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = RepositoryKey::age_identity(text);
    }
}

/// The bytes as they are, and with the checksum that lets them pass.
fn key_slot(data: &[u8]) {
    let summed = [data, sha256(data).as_slice()].concat();
    for slot in [data, summed.as_slice()] {
        if let Ok(read) = ReadSlot::of(slot) {
            let _ = read.open(&REPOSITORY, SLOT, &Zeroizing::new(SLOT_SECRET));
            let _ = read.note(&REPOSITORY, SLOT, keys());
        }
    }
}

/// A slot around what its last frame holds.
fn slot_with_note(inside: &[u8]) -> Vec<u8> {
    let mut out = header(Kind::KeySlot);
    out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    let committed = crate::crypto::commitment(&SLOT_SECRET, &SALT).unwrap_or_default();
    out.extend_from_slice(&committed);
    let opener = Keys::new(Zeroizing::new(SLOT_SECRET));
    let bound = out.clone();
    if let Ok(opener) = opener {
        let at = (Kind::KeySlot, SLOT, 0);
        append_frame(&mut out, &opener, at, &bound, keys().secret().as_slice());
    }
    let length = u32::try_from(inside.len() + 16).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    let bound = out.clone();
    append_frame(&mut out, keys(), (Kind::KeySlot, SLOT, 1), &bound, inside);
    out.extend_from_slice(&sha256(&out));
    out
}

fn key_slot_note_inside(data: &[u8]) {
    if let Ok(read) = ReadSlot::of(&slot_with_note(data)) {
        let _ = read.open(&REPOSITORY, SLOT, &Zeroizing::new(SLOT_SECRET));
    }
}

/// The age file in a slot, which anybody can make.
fn age_file_inside(data: &[u8]) {
    let slot = SlotData::AgeRecipient {
        recipient: String::new(),
        sealed: data.to_vec(),
    };
    if let Some(identity) = IDENTITY.as_ref() {
        let _ = identity.secret_of(&slot);
    }
}

fn data_key_inside(data: &[u8]) {
    if let Ok((secret, tenant)) = data_key::decode(data) {
        let again = data_key::encode(&secret, tenant.as_deref());
        assert_eq!(again.as_slice(), data);
    }
}

fn sealed_object(data: &[u8]) {
    for kind in [Kind::Record, Kind::Index, Kind::Point] {
        let _ = sealed::key_id(data, kind);
        let _ = sealed::decode(&REPOSITORY, keys(), kind, RECORD, data);
    }
}

fn sealed_object_inside(data: &[u8]) {
    let mut out = header(Kind::Record);
    let bound = out.clone();
    append_frame(&mut out, keys(), (Kind::Record, RECORD, 0), &bound, data);
    let _ = sealed::decode(&REPOSITORY, keys(), Kind::Record, RECORD, &out);
}

fn read_pack(data: &[u8]) {
    let mut each = |_, _| Ok::<(), ()>(());
    let _ = pack::each_chunk(&REPOSITORY, keys(), PACK, data, &mut each);
}

fn pack_object(data: &[u8]) {
    read_pack(data);
}

/// The first byte says how much lies before the table.
fn pack_table_inside(data: &[u8]) {
    let Some((before, table)) = data.split_first() else {
        return;
    };
    let mut out = header(Kind::Pack);
    out.resize(out.len() + usize::from(*before), 0);
    let offset = out.len() as u64;
    let at = (Kind::Pack, PACK, table.len() as u64 / 40);
    append_frame(&mut out, keys(), at, b"contents", table);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(b"dr-pack\0");
    read_pack(&out);
}

/// The first four bytes say the length it should come to, up to 16 MiB.
fn chunk_inside(data: &[u8]) {
    let mut fields = Fields::of(data);
    if let Ok(length) = fields.u32() {
        let length = u64::from(length % ((16 << 20) + 1));
        if let Ok(chunk) = compress::unpack(fields.rest(), length) {
            assert_eq!(chunk.len() as u64, length);
        }
    }
}

fn index_inside(data: &[u8]) {
    if let Ok(packs) = index::decode(data) {
        assert_eq!(index::encode(&packs), data);
        for pack in &packs {
            let last = pack::places(&pack.chunks).last();
            let end = last.map_or(64, |(_, place)| place.offset + u64::from(place.stored));
            assert!(end < pack::size(&pack.chunks));
        }
    }
}

fn listing_inside(data: &[u8]) {
    if let Ok(entries) = tree::decode(data) {
        assert_eq!(tree::decode(&tree::encode(&entries)), Ok(entries));
    }
}

fn references_inside(data: &[u8]) {
    if let Ok(references) = decode_references(data) {
        let mut again = Vec::new();
        encode_references(&mut again, &references);
        assert_eq!(again, data);
    }
    let mut fields = Fields::of(data);
    if let Ok(content) = Content::decode(&mut fields) {
        let mut again = Vec::new();
        content.encode(&mut again);
        again.extend_from_slice(fields.rest());
        assert_eq!(again, data);
    }
}

fn point_inside(data: &[u8]) {
    if let Ok(object) = point::decode(data) {
        let _ = object.key_ids();
        let _ = object.listing.content();
    }
}

fn chain_inside(data: &[u8]) {
    let _ = chain::decode(data, 1);
    let _ = chain::decode(data, 2);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = chain::sequence_of("chain/erp/", text);
    }
}

fn session_inside(data: &[u8]) {
    let _ = session::decode::<SessionObject>(data);
    let _ = session::decode::<crate::repo::lock::LockObject>(data);
    if let Ok(condemned) = session::decode::<CondemnedObject>(data) {
        let _ = condemned.pack_ids();
    }
}

fn shredding_inside(data: &[u8]) {
    let _ = serde_json::from_slice::<Shredding>(data);
}

fn wal_object(data: &[u8]) {
    let _ = wal::decode_head(&REPOSITORY, keys(), WAL, data);
    let _ = wal::decode(&REPOSITORY, keys(), WAL, data);
}

/// What the head holds (24 bytes), then the content as it is packed.
fn wal_inside(data: &[u8]) {
    let Some((head, content)) = data.split_at_checked(24) else {
        return;
    };
    let mut out = header(Kind::Wal);
    out.extend_from_slice(&[0; 32]);
    let bound = out.clone();
    append_frame(&mut out, keys(), (Kind::Wal, WAL, 0), &bound, head);
    append_frame(&mut out, keys(), (Kind::Wal, WAL, 1), &bound, content);
    wal_object(&out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_decoder_takes_its_seeds_and_they_are_of_use() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            for seed in seeds {
                (target.run)(&seed);
            }
        }
        // A seed that is refused at the door finds nothing.
        assert!(index::decode(&seeds::index_inside()[0]).is_ok());
        assert!(tree::decode(&seeds::listing_inside()[0]).is_ok());
        assert!(point::decode(&seeds::point_inside()[0]).is_ok());
        assert!(chain::decode(&seeds::chain_inside()[0], 1).is_ok());
        let slot = seeds::key_slot().remove(0);
        assert!(ReadSlot::of(&[slot.as_slice(), &sha256(&slot)].concat()).is_ok());
        let wal = &seeds::wal_object()[0];
        assert!(wal::decode(&REPOSITORY, keys(), WAL, wal).is_ok());
        let record = &seeds::sealed_object()[0];
        assert!(sealed::decode(&REPOSITORY, keys(), Kind::Record, RECORD, record).is_ok());
        let full = &seeds::pack_object()[0];
        let mut each = |_, chunk: Result<Vec<u8>, _>| chunk.map(|_| ());
        let read = pack::each_chunk(&REPOSITORY, keys(), PACK, full, &mut each);
        assert_eq!(read, Ok(Ok(())));
        assert!(IDENTITY.is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_bytes_make_any_decoder_panic(data in prop::collection::vec(any::<u8>(), 0..400)) {
            for target in TARGETS {
                (target.run)(&data);
            }
        }

        #[test]
        fn no_change_to_good_bytes_makes_a_decoder_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
            cuts in any::<bool>(),
        ) {
            for target in TARGETS {
                for mut seed in (target.seeds)() {
                    for (place, value) in &changes {
                        if !seed.is_empty() {
                            let place = place.index(seed.len());
                            seed[place] = *value;
                        }
                    }
                    if cuts && !seed.is_empty() {
                        seed.truncate(cut.index(seed.len()));
                    }
                    (target.run)(&seed);
                }
            }
        }
    }
}

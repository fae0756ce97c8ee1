//! Bytes that the decoders accept: small, made like those of a real repository under the fixed key.

use zeroize::Zeroizing;

use super::{
    AGE_IDENTITY, IDENTITY, Kind, PACK, RECORD, REPOSITORY, WAL, append_frame, header, keys,
    slot_with_note,
};
use crate::compress;
use crate::crypto::{NewSlot, SlotData};
use crate::format::bytes::put_text;
use crate::format::content::{Content, Reference, encode_references};
use crate::format::index::{self, IndexedPack};
use crate::format::pack::{PackedChunk, encode_entries};
use crate::format::tree::{self, EntryKind, EntryMeta, TreeEntry};
use crate::format::{data_key, repository, sealed, wal};

fn of<E>(made: Result<Vec<u8>, E>) -> Vec<Vec<u8>> {
    made.into_iter().collect()
}

pub(super) fn repository_object() -> Vec<Vec<u8>> {
    of(repository::encode(&repository::RepositoryObject {
        id: REPOSITORY,
        capabilities: crate::Capabilities::default(),
    }))
}

pub(super) fn key_file_text() -> Vec<Vec<u8>> {
    let key = crate::RepositoryKey::generate();
    key.to_text()
        .into_iter()
        .map(|text| text.as_bytes().to_vec())
        .collect()
}

pub(super) fn age_identity_text() -> Vec<Vec<u8>> {
    vec![
        AGE_IDENTITY.as_bytes().to_vec(),
        b"# public key: age1\n\n".to_vec(),
    ]
}

fn note() -> Vec<u8> {
    let mut note = 1_700_000_000_000_000i64.to_le_bytes().to_vec();
    put_text(&mut note, "first");
    note
}

/// One of each kind, without the checksum.
pub(super) fn key_slot() -> Vec<Vec<u8>> {
    let mut slot = slot_with_note(&note());
    slot.truncate(slot.len() - 32);
    let mut seeds = vec![slot.clone()];
    let passphrase = [65536u32, 3, 1].map(u32::to_le_bytes).concat();
    let age = age_file_inside().concat();
    let with_salt = [passphrase.as_slice(), &[1; 32]].concat();
    let with_recipient = [&4u32.to_le_bytes(), b"age1".as_slice(), &age].concat();
    for (kind, data) in [
        (2, with_salt),
        (3, with_recipient),
        (4, b"wrapped".to_vec()),
    ] {
        let mut other = slot.get(..64).unwrap_or_default().to_vec();
        other.extend_from_slice(&[kind, 0, 0, 0]);
        other.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
        other.extend_from_slice(&data);
        other.extend_from_slice(slot.get(72..).unwrap_or_default());
        seeds.push(other);
    }
    seeds
}

pub(super) fn key_slot_note_inside() -> Vec<Vec<u8>> {
    vec![note()]
}

pub(super) fn age_file_inside() -> Vec<Vec<u8>> {
    let made = IDENTITY.as_ref().and_then(|identity| {
        let (text, _) = (AGE_IDENTITY, identity.kind());
        let identity = crate::RepositoryKey::age_identity(text).ok()?;
        NewSlot::For(identity).make().ok()
    });
    match made {
        Some((SlotData::AgeRecipient { sealed, .. }, _)) => vec![sealed],
        _ => Vec::new(),
    }
}

pub(super) fn data_key_inside() -> Vec<Vec<u8>> {
    let secret = Zeroizing::new([5; 32]);
    [None, Some("acme")]
        .map(|tenant| data_key::encode(&secret, tenant).to_vec())
        .to_vec()
}

pub(super) fn sealed_object() -> Vec<Vec<u8>> {
    of(sealed::encode(
        &REPOSITORY,
        keys(),
        Kind::Record,
        RECORD,
        b"hello",
    ))
}

pub(super) fn sealed_object_inside() -> Vec<Vec<u8>> {
    let body = b"abcabcabcabcabcabcabcabcabc".repeat(20);
    let with = |packed: Vec<u8>| [&(body.len() as u64).to_le_bytes(), packed.as_slice()].concat();
    let plain = [&[0], body.as_slice()].concat();
    vec![with(plain), with(compress::pack(&body, 3))]
}

fn chunk() -> PackedChunk {
    PackedChunk {
        name: keys().chunk_name(b"hello"),
        stored: 22,
        length: 5,
    }
}

pub(super) fn pack_object() -> Vec<Vec<u8>> {
    let chunk = chunk();
    let mut out = header(Kind::Pack);
    append_frame(
        &mut out,
        keys(),
        (Kind::Pack, PACK, 0),
        &chunk.name,
        b"\0hello",
    );
    let offset = out.len() as u64;
    let table = encode_entries(&[chunk]);
    append_frame(&mut out, keys(), (Kind::Pack, PACK, 1), b"contents", &table);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(b"dr-pack\0");
    vec![out]
}

pub(super) fn pack_table_inside() -> Vec<Vec<u8>> {
    vec![[&[22], encode_entries(&[chunk()]).as_slice()].concat()]
}

pub(super) fn chunk_inside() -> Vec<Vec<u8>> {
    let body = vec![3u8; 5000];
    let length = 5000u32.to_le_bytes();
    vec![
        [length.as_slice(), &compress::pack(&body, 1)].concat(),
        [length.as_slice(), &compress::pack(&body, 19)].concat(),
        [&[5, 0, 0, 0, 0], b"hello".as_slice()].concat(),
    ]
}

pub(super) fn index_inside() -> Vec<Vec<u8>> {
    let pack = |id, count| IndexedPack {
        id: [id; 16],
        chunks: vec![chunk(); count],
    };
    vec![index::encode(&[pack(1, 2), pack(2, 1)])]
}

fn content() -> Content {
    Content {
        bytes: 5,
        crc32c: crc32c::crc32c(b"hello"),
        depth: 0,
        references: references(),
    }
}

fn references() -> Vec<Reference> {
    vec![Reference {
        name: chunk().name,
        bytes: 5,
    }]
}

pub(super) fn listing_inside() -> Vec<Vec<u8>> {
    let meta = |path: &str| EntryMeta {
        path: path.to_owned(),
        mode: 0o644,
        uid: 1,
        gid: 2,
        modified_ns: 3,
        changed_ns: 4,
        inode: 5,
    };
    let target = "a/b".to_owned();
    let entries = [
        TreeEntry::without_content(meta("a"), EntryKind::Folder),
        TreeEntry::file(meta("a/b"), 0, content()),
        TreeEntry::without_content(meta("c"), EntryKind::Link { target }),
    ];
    let plain = tree::encode(&entries);
    let mut extended = plain.clone();
    extended.truncate(plain.len() - 4);
    extended.extend_from_slice(&[6, 0, 0, 0, 1, 1, 0, 0, 0, 9]);
    vec![plain, extended]
}

pub(super) fn references_inside() -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    encode_references(&mut list, &[references(), references()].concat());
    let mut whole = Vec::new();
    content().encode(&mut whole);
    vec![list, whole]
}

const POINT: &str = r#"{"id":"rp-erp-20261125T120000Z-abcdef","workload":"erp","tier":"gold",
"started":"2026-11-25T12:00:00Z","finished":"2026-11-25T12:00:01Z","moment":"2026-11-25T12:00:00Z",
"position":{"kind":"files","entries":1},"files":1,"bytes_source":5,"bytes_added":9,
"condition":{"state":"whole"}}"#;

pub(super) fn point_inside() -> Vec<Vec<u8>> {
    let (id, name) = ("07".repeat(16), "11".repeat(32));
    let postgres = r#"{"kind":"postgres","system_id":"7","timeline":1,"start_lsn":"0/1","stop_lsn":"0/2",
"start_segment":"000000010000000000000001","stop_segment":"000000010000000000000001",
"wal_segment_bytes":16777216,"server_version_num":150018,"page_checksums":true}"#;
    [
        POINT.to_owned(),
        POINT.replace(r#"{"kind":"files","entries":1}"#, postgres),
    ]
    .map(|point| {
        format!(
            r#"{{"point":{point},"details":{{"version":1}},"session":"sessions/erp/0","data_keys":["{id}"],
"listing":{{"bytes":5,"crc32c":1,"depth":0,"references":[{{"name":"{name}","bytes":5}}]}}}}"#
        )
        .into_bytes()
    })
    .to_vec()
}

pub(super) fn chain_inside() -> Vec<Vec<u8>> {
    let sum = "22".repeat(32);
    let event = r#""event":{"listed":"rp-erp-20261125T120000Z-abcdef"}"#;
    let later = r#""event":{"removed":["rp-erp-20261125T120000Z-abcdef"]}"#;
    vec![
        format!(
            r#"{{"sequence":1,"previous_sha256":null,"at":"2026-11-25T12:00:01Z",{event},
"points":[{{"point":{POINT},"object_sha256":"{sum}"}}]}}"#
        )
        .into_bytes(),
        format!(
            r#"{{"sequence":2,"previous_sha256":"{sum}","at":"2026-11-25T12:00:01Z",{later},"points":[]}}"#
        )
        .into_bytes(),
        b"chain/erp/00000000000000ff".to_vec(),
    ]
}

pub(super) fn session_inside() -> Vec<Vec<u8>> {
    let session = r#"{"host":"a","pid":1,"boot":"b","began":"2026-11-25T12:00:00Z"}"#;
    let condemned = format!(r#"{{"packs":["{}"]}}"#, "33".repeat(16));
    vec![session.as_bytes().to_vec(), condemned.into_bytes()]
}

pub(super) fn shredding_inside() -> Vec<Vec<u8>> {
    let text = r#"{"workload":"erp","tenant":"acme","key_ids":["00"],"object":"keys/tenant/erp/0",
"at":"2026-11-25T12:00:00Z","by":"dr"}"#;
    vec![text.as_bytes().to_vec()]
}

pub(super) fn wal_object() -> Vec<Vec<u8>> {
    of(wal::encode(
        &REPOSITORY,
        keys(),
        WAL,
        b"wal wal wal wal",
        chrono::DateTime::UNIX_EPOCH,
    ))
}

pub(super) fn wal_inside() -> Vec<Vec<u8>> {
    let packed = compress::pack(b"wal", 1);
    let mut head = 1_700_000_000_000_000i64.to_le_bytes().to_vec();
    head.extend_from_slice(&3u64.to_le_bytes());
    head.extend_from_slice(&(packed.len() as u64 + 16).to_le_bytes());
    vec![[head, packed].concat()]
}

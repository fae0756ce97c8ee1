//! The test vectors of `docs/FORMAT.md`: made here from fixed keys and salts, opened by the decoders that
//! everything uses, and compared with the document, so that neither can drift.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::content::{Content, Reference};
use super::header::{HEADER_BYTES, Header, Kind};
use super::index::{self, IndexedPack};
use super::key_slot::ReadSlot;
use super::pack::{self, PackedChunk};
use super::tree::{EntryKind, EntryMeta, TreeEntry};
use super::{RepositoryId, VERSION, repository, sealed, tree, wal};
use crate::Capabilities;
use crate::crypto::{FrameContext, Keys, RepositoryKey, Secret, commitment, sha256};

/// Where the document says which vectors it has.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/FORMAT.md");
const REPOSITORY: RepositoryId = *b"repository-id-16";
const SALT: [u8; 32] = [0x5a; 32];

type Vectors = BTreeMap<&'static str, String>;

/// `length` bytes that count up from `first`.
fn counting(first: u8) -> Secret {
    let mut secret = Zeroizing::new([0; 32]);
    for (to, from) in secret.iter_mut().zip(first..) {
        *to = from;
    }
    secret
}

fn slot_secret() -> Secret {
    counting(0x00)
}
fn master() -> Keys {
    Keys::new(counting(0x20)).unwrap()
}
fn data_key() -> Keys {
    Keys::new(counting(0x40)).unwrap()
}

fn header(kind: Kind, keys: &Keys) -> Vec<u8> {
    let (key_id, salt) = (keys.id(), SALT);
    Header { kind, key_id, salt }.encode()
}

/// Seals a frame that is appended to `out`; the header may name another key than it is under.
fn seal(
    (keys, named): (&Keys, &Keys),
    (kind, object, frame): (Kind, &str, u64),
    bound_to: &[u8],
    out: &mut Vec<u8>,
    mut body: Vec<u8>,
) {
    let context = FrameContext {
        repository: &REPOSITORY,
        version: VERSION,
        kind: kind as u8,
        key_id: &named.id(),
        object,
        frame,
        offset: out.len() as u64,
        bound_to,
    };
    let seal = keys.object_seal(kind as u8, &SALT).unwrap();
    seal.seal(&context, &mut body).unwrap();
    out.extend_from_slice(&body);
}

/// Coding 0: as it is.
fn plain(data: &[u8]) -> Vec<u8> {
    [&[0], data].concat()
}

fn sealed_object(kind: Kind, keys: &Keys, object: &str, body: &[u8]) -> Vec<u8> {
    let mut out = header(kind, keys);
    let head = out.clone();
    let frame = [&(body.len() as u64).to_le_bytes(), plain(body).as_slice()].concat();
    seal((keys, keys), (kind, object, 0), &head, &mut out, frame);
    let opened = sealed::decode(&REPOSITORY, keys, kind, object, &out).unwrap();
    assert_eq!(opened, body);
    out
}

fn keys(vectors: &mut Vectors) {
    let text = format!(
        "dr-repository-key-1:{}:{}",
        hex::encode(slot_secret().as_slice()),
        hex::encode(&sha256(slot_secret().as_slice())[..8])
    );
    assert!(RepositoryKey::parse(&text).is_ok());
    vectors.insert("key file", text);
    let value = commitment(slot_secret().as_slice(), &SALT).unwrap();
    vectors.insert("commitment", hex::encode(value));
    vectors.insert("master key id", hex::encode(master().id()));
    vectors.insert("data key id", hex::encode(data_key().id()));
    vectors.insert("chunk name", hex::encode(data_key().chunk_name(b"hello")));
    vectors.insert("wal code", hex::encode(data_key().wal_mac(WAL, b"wal")));
    let seed = data_key().cutting_seed().to_le_bytes();
    vectors.insert("cutting seed", hex::encode(seed));
    for (name, generation) in [("tenant code 0", 0), ("tenant code 1", 1)] {
        let code = master().tenant_code("erp", "acme", generation).unwrap();
        vectors.insert(name, hex::encode(code));
    }
}

const SLOT: &str = "keys/slot/0011223344556677";
const WAL: &str = "wal/erp/00000001/000000010000000000000001";
const PACK: &str = "data/erp/00/000102030405060708090a0b0c0d0e0f";

fn slot(vectors: &mut Vectors) {
    let opener = Keys::new(slot_secret()).unwrap();
    let mut out = header(Kind::KeySlot, &master());
    out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&commitment(slot_secret().as_slice(), &SALT).unwrap());
    let (at, secret) = ((Kind::KeySlot, SLOT, 0), counting(0x20).to_vec());
    let before = out.clone();
    seal((&opener, &master()), at, &before, &mut out, secret);
    let mut note = 1_700_000_000_000_000i64.to_le_bytes().to_vec();
    super::bytes::put_text(&mut note, "first");
    out.extend_from_slice(&(u32::try_from(note.len()).unwrap() + 16).to_le_bytes());
    let before = out.clone();
    let at = (Kind::KeySlot, SLOT, 1);
    seal((&master(), &master()), at, &before, &mut out, note);
    out.extend_from_slice(&sha256(&out));
    let read = ReadSlot::of(&out).unwrap();
    let opened = read.open(&REPOSITORY, SLOT, &slot_secret()).unwrap();
    assert_eq!(opened.unwrap().id(), master().id());
    vectors.insert("key slot", hex::encode(out));
}

fn pack(vectors: &mut Vectors) {
    let keys = data_key();
    let name = keys.chunk_name(b"hello");
    let mut out = header(Kind::Pack, &keys);
    let at = (Kind::Pack, PACK, 0);
    seal((&keys, &keys), at, &name, &mut out, plain(b"hello"));
    let chunks = vec![PackedChunk {
        name,
        stored: 22,
        length: 5,
    }];
    let offset = out.len() as u64;
    let (at, table) = ((Kind::Pack, PACK, 1), pack::encode_entries(&chunks));
    seal((&keys, &keys), at, b"contents", &mut out, table);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(b"dr-pack\0");
    let mut found = Vec::new();
    let mut each = |_, chunk: Result<Vec<u8>, _>| -> Result<(), ()> {
        found.push(chunk.unwrap());
        Ok(())
    };
    let read = pack::each_chunk(&REPOSITORY, &keys, PACK, &out, &mut each);
    assert_eq!(read.unwrap(), Ok(()));
    assert_eq!(found, [b"hello"]);
    vectors.insert("pack", hex::encode(out));
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(0..) {
        *to = from;
    }
    let body = index::encode(&[IndexedPack { id, chunks }]);
    vectors.insert("index body", hex::encode(body));
}

fn listing(vectors: &mut Vectors) {
    let meta = |path: &str, mode| EntryMeta {
        path: path.to_owned(),
        mode,
        uid: 1000,
        gid: 100,
        modified_ns: 1_700_000_000_000_000_000,
        changed_ns: 1_700_000_000_000_000_001,
        inode: 42,
    };
    let content = Content {
        bytes: 5,
        crc32c: crc32c::crc32c(b"hello"),
        depth: 0,
        references: vec![Reference {
            name: data_key().chunk_name(b"hello"),
            bytes: 5,
        }],
    };
    let target = "a/b".to_owned();
    let entries = vec![
        TreeEntry::without_content(meta("a", 0o755), EntryKind::Folder),
        TreeEntry::file(meta("a/b", 0o644), 0, content),
        TreeEntry::without_content(meta("l", 0o777), EntryKind::Link { target }),
    ];
    let body = tree::encode(&entries);
    assert_eq!(tree::decode(&body).unwrap(), entries);
    vectors.insert("listing", hex::encode(body));
}

fn wal_file(vectors: &mut Vectors) {
    let keys = data_key();
    let mut out = header(Kind::Wal, &keys);
    out.extend_from_slice(&keys.wal_mac(WAL, b"wal"));
    let before = out.clone();
    let body = plain(b"wal");
    let mut head = 1_700_000_000_000_000i64.to_le_bytes().to_vec();
    head.extend_from_slice(&3u64.to_le_bytes());
    head.extend_from_slice(&(body.len() as u64 + 16).to_le_bytes());
    let at = (Kind::Wal, WAL, 0);
    seal((&keys, &keys), at, &before, &mut out, head);
    let at = (Kind::Wal, WAL, 1);
    seal((&keys, &keys), at, &before, &mut out, body);
    let opened = wal::decode(&REPOSITORY, &keys, WAL, &out).unwrap();
    assert_eq!(opened, b"wal");
    vectors.insert("wal file", hex::encode(out));
}

fn all() -> Vectors {
    let mut vectors = Vectors::new();
    let capabilities = Capabilities {
        put_if_absent: true,
        ..Capabilities::default()
    };
    let id = REPOSITORY;
    let line = repository::encode(&repository::RepositoryObject { id, capabilities }).unwrap();
    // The members of `capabilities` may grow; the document shows one.
    let line = String::from_utf8(line).unwrap();
    assert!(line.starts_with("{\"format\":\"dr-store\",\"version\":1,\"id\":\""));
    keys(&mut vectors);
    slot(&mut vectors);
    pack(&mut vectors);
    listing(&mut vectors);
    wal_file(&mut vectors);
    let record = sealed_object(Kind::Record, &master(), "records/note/a", b"hello");
    assert_eq!(record.len(), HEADER_BYTES + 8 + 1 + 5 + 16);
    vectors.insert("record", hex::encode(record));
    vectors
}

/// Lines `name = value` of the document, each value joined over the lines that are indented below it.
fn documented() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let (_, rest) = text.split_once("```vectors\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in block.lines() {
        if let Some((name, value)) = line.split_once(" = ") {
            name.clone_into(&mut last);
            found.insert(last.clone(), value.trim().to_owned());
        } else if let Some(value) = found.get_mut(&last) {
            value.push_str(line.trim());
        }
    }
    found
}

#[test]
fn the_document_has_the_numbers_that_the_code_makes() {
    let made: BTreeMap<String, String> = all()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let wanted: Vec<String> = made
        .iter()
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    assert_eq!(documented(), made, "as it must be:\n{}", wanted.join("\n"));
}

/// The repository description that the document shows is accepted, and one changed character is not.
#[test]
fn the_documents_description_of_a_repository_is_one() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("{\"format\":\"dr-store\""))
        .unwrap();
    let read = repository::decode(format!("{line}\n").as_bytes());
    let (checked, _) = line.split_once(",\"sha256\"").unwrap();
    let sum = hex::encode(sha256(checked.as_bytes()));
    assert_eq!(read.map(|read| read.id), Ok(REPOSITORY), "sha256 is {sum}");
    let changed = line.replace("true", "false");
    assert!(repository::decode(format!("{changed}\n").as_bytes()).is_err());
}

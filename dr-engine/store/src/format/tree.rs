//! The listing of a restore point: its entries in path order. The listing is itself cut into chunks
//! and stored like a file, so that it may grow with what it lists.
//!
//! Each entry: kind (1: file 0, folder 1, link 2), mode (4), owner (4), group (4), modification time and
//! change time in nanoseconds since 1970 (8 each, signed), inode (8), path (length 4, bytes); a file
//! then has the number of its data key among those of the restore point (2) and its content
//! ([`super::content`]); a link its target (length 4, bytes). Last come extensions (length of all 4; each:
//! number (1), length (4), bytes), of which there are none yet: below 128 a reader may pass over one that
//! it does not know, from 128 on it must refuse it.

use super::FormatError;
use super::bytes::{Fields, put_text};
use super::content::Content;

/// Extensions from this number on are never passed over.
const MUST_BE_KNOWN: u8 = 128;

/// Path and attributes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMeta {
    /// Relative, `/`-separated, no `..`, no leading `/`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Modification time in nanoseconds since 1970.
    pub modified_ns: i64,
    /// Change time (of content or attributes; programs cannot set it) in nanoseconds since 1970; 0 where
    /// it is not known. With `inode` it tells whether a file is still the one that was captured.
    pub changed_ns: i64,
    /// The file's number within its file system; 0 where it is not known.
    pub inode: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link {
        /// What it points to, as it is.
        target: String,
    },
}

/// An entry of a restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Path and attributes.
    pub meta: EntryMeta,
    /// What it is.
    pub kind: EntryKind,
    /// Size in bytes; 0 but for files.
    pub size: u64,
    /// CRC-32C of a file's content, as it was captured; none for others. (What protects the content is
    /// that every chunk's name is its keyed SHA-256, and the listing of names is authenticated.)
    pub crc32c: Option<u32>,
    /// Which of the restore point's data keys the content is under.
    pub(crate) key: u16,
    pub(crate) content: Content,
}

impl TreeEntry {
    pub(crate) fn file(meta: EntryMeta, key: u16, content: Content) -> Self {
        Self {
            meta,
            kind: EntryKind::File,
            size: content.bytes,
            crc32c: Some(content.crc32c),
            key,
            content,
        }
    }

    pub(crate) fn without_content(meta: EntryMeta, kind: EntryKind) -> Self {
        Self {
            meta,
            kind,
            size: 0,
            crc32c: None,
            key: 0,
            content: Content::default(),
        }
    }
}

pub(crate) fn encode(entries: &[TreeEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.push(match entry.kind {
            EntryKind::File => 0,
            EntryKind::Folder => 1,
            EntryKind::Link { .. } => 2,
        });
        out.extend_from_slice(&entry.meta.mode.to_le_bytes());
        out.extend_from_slice(&entry.meta.uid.to_le_bytes());
        out.extend_from_slice(&entry.meta.gid.to_le_bytes());
        out.extend_from_slice(&entry.meta.modified_ns.to_le_bytes());
        out.extend_from_slice(&entry.meta.changed_ns.to_le_bytes());
        out.extend_from_slice(&entry.meta.inode.to_le_bytes());
        put_text(&mut out, &entry.meta.path);
        match &entry.kind {
            EntryKind::File => {
                out.extend_from_slice(&entry.key.to_le_bytes());
                entry.content.encode(&mut out);
            }
            EntryKind::Folder => {}
            EntryKind::Link { target } => put_text(&mut out, target),
        }
        // Length of the extensions: there are none.
        out.extend_from_slice(&0u32.to_le_bytes());
    }
    out
}

pub(crate) fn decode(data: &[u8]) -> Result<Vec<TreeEntry>, FormatError> {
    let mut fields = Fields::of(data);
    let mut entries: Vec<TreeEntry> = Vec::new();
    while !fields.is_empty() {
        let entry = decode_entry(&mut fields)?;
        if broken_path_rule(&entry.meta.path).is_some() {
            return Err(FormatError::damaged(
                "its listing has a path that none can have",
            ));
        }
        if entries
            .last()
            .is_some_and(|before| before.meta.path >= entry.meta.path)
        {
            return Err(FormatError::damaged("its listing is not in order"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn pass_extensions(fields: &mut Fields<'_>) -> Result<(), FormatError> {
    let length = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    let mut extensions = Fields::of(fields.take(length)?);
    while !extensions.is_empty() {
        let number = extensions.u8()?;
        let length = usize::try_from(extensions.u32()?).unwrap_or(usize::MAX);
        extensions.take(length)?;
        if number >= MUST_BE_KNOWN {
            return Err(FormatError::damaged(
                "its listing has an entry that only a newer program understands",
            ));
        }
    }
    Ok(())
}

/// The entries that are there whole, and the bytes behind them: the beginning of the next one, where a
/// listing is read piece by piece.
pub(crate) fn decode_some(data: &[u8]) -> (Vec<TreeEntry>, &[u8]) {
    let (mut entries, mut rest) = (Vec::new(), data);
    loop {
        let mut fields = Fields::of(rest);
        match decode_entry(&mut fields) {
            Ok(entry) => entries.push(entry),
            Err(_) => return (entries, rest),
        }
        rest = fields.rest();
    }
}

fn decode_entry(fields: &mut Fields<'_>) -> Result<TreeEntry, FormatError> {
    let kind = fields.u8()?;
    let (mode, uid, gid) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (modified_ns, changed_ns) = (fields.i64()?, fields.i64()?);
    let inode = fields.u64()?;
    let meta = EntryMeta {
        path: fields.text()?,
        mode,
        uid,
        gid,
        modified_ns,
        changed_ns,
        inode,
    };
    let entry = match kind {
        0 => {
            let key = fields.u16()?;
            TreeEntry::file(meta, key, Content::decode(fields)?)
        }
        1 => TreeEntry::without_content(meta, EntryKind::Folder),
        2 => {
            let target = fields.text()?;
            TreeEntry::without_content(meta, EntryKind::Link { target })
        }
        _ => {
            return Err(FormatError::damaged(
                "its listing has an entry of unknown kind",
            ));
        }
    };
    pass_extensions(fields)?;
    Ok(entry)
}

/// The rule a path breaks, if it breaks one.
pub(crate) fn broken_path_rule(path: &str) -> Option<&'static str> {
    const PATH_LENGTH_MAX: usize = 64 * 1024;
    if path.is_empty() {
        Some("a path is not empty")
    } else if path.len() > PATH_LENGTH_MAX {
        Some("a path has at most 65536 bytes")
    } else if path.contains('\0') {
        Some("a path has no zero byte")
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        Some("a path is relative, without empty parts, `.` and `..`")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::content::Reference;
    use super::*;

    fn any_content() -> impl Strategy<Value = Content> {
        let parts = prop::collection::vec((any::<[u8; 32]>(), 1u64..1 << 40), 0..4);
        (parts, any::<u32>(), 0u8..3).prop_map(|(parts, crc32c, depth)| {
            let references: Vec<Reference> = parts
                .into_iter()
                .map(|(name, bytes)| Reference { name, bytes })
                .collect();
            Content {
                bytes: references.iter().map(|reference| reference.bytes).sum(),
                crc32c,
                depth,
                references,
            }
        })
    }

    fn any_entry() -> impl Strategy<Value = TreeEntry> {
        let kind = prop_oneof![
            Just(EntryKind::File),
            Just(EntryKind::Folder),
            "[a-z/.]{0,20}".prop_map(|target| EntryKind::Link { target }),
        ];
        (
            kind,
            "[a-z]{1,8}(/[a-z]{1,8}){0,3}",
            any::<(u32, u32, u32, i64, i64, u64, u16)>(),
            any_content(),
        )
            .prop_map(|(kind, path, numbers, content)| {
                let (mode, uid, gid, modified_ns, changed_ns, inode, key) = numbers;
                let meta = EntryMeta {
                    path,
                    mode,
                    uid,
                    gid,
                    modified_ns,
                    changed_ns,
                    inode,
                };
                match kind {
                    EntryKind::File => TreeEntry::file(meta, key, content),
                    kind => TreeEntry::without_content(meta, kind),
                }
            })
    }

    proptest! {
        #[test]
        fn a_listing_survives_a_round_trip(
            mut entries in prop::collection::vec(any_entry(), 0..20),
        ) {
            entries.sort_by(|left, right| left.meta.path.cmp(&right.meta.path));
            entries.dedup_by(|left, right| left.meta.path == right.meta.path);
            prop_assert_eq!(decode(&encode(&entries)).unwrap(), entries);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&data);
        }
    }

    fn folder(path: &str) -> TreeEntry {
        let meta = EntryMeta {
            path: path.to_owned(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            modified_ns: 0,
            changed_ns: 0,
            inode: 0,
        };
        TreeEntry::without_content(meta, EntryKind::Folder)
    }

    #[test]
    fn a_listing_out_of_order_or_with_an_impossible_path_is_refused() {
        assert!(decode(&encode(&[folder("a"), folder("b")])).is_ok());
        assert!(decode(&encode(&[folder("b"), folder("a")])).is_err());
        assert!(decode(&encode(&[folder("a"), folder("a")])).is_err());
        assert!(decode(&encode(&[folder("../a")])).is_err());
    }

    #[test]
    fn extensions_are_passed_over_or_refused_by_their_number() {
        let extended = |number: u8, length: u32| {
            let mut data = encode(&[folder("a")]);
            data.truncate(data.len() - 4);
            data.extend_from_slice(&8u32.to_le_bytes());
            data.push(number);
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(b"abc");
            decode(&data)
        };
        assert_eq!(extended(1, 3).unwrap(), [folder("a")]);
        assert!(extended(128, 3).is_err());
        assert!(extended(1, 4).is_err());
        assert!(extended(1, 2).is_err());
    }

    #[test]
    fn paths_that_could_leave_their_folder_are_refused() {
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0b"] {
            assert!(broken_path_rule(bad).is_some(), "{bad:?}");
        }
        for good in ["a", "data/base/1/2", "a..b/...", "mit Leerzeichen/ä"] {
            assert_eq!(broken_path_rule(good), None, "{good:?}");
        }
    }
}

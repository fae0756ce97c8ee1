//! The listing of a restore point: its entries in path order. The listing is itself cut into chunks
//! and stored like a file, so that it may grow with what it lists.
//!
//! Each entry: kind (1: file 0, folder 1, link 2), mode (4), owner (4), group (4), modification time
//! in nanoseconds since 1970 (8, signed), path (length 4, bytes); a file then has size (8),
//! SHA-256 (32), number of chunks (4) and their names (32 each); a link its target (length 4, bytes).

use super::bytes::{Fields, put_text};
use super::{ChunkName, FormatError};

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
    /// SHA-256 of a file's content; none for others.
    pub sha256: Option<[u8; 32]>,
    pub(crate) chunks: Vec<ChunkName>,
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
        put_text(&mut out, &entry.meta.path);
        match &entry.kind {
            EntryKind::File => {
                out.extend_from_slice(&entry.size.to_le_bytes());
                out.extend_from_slice(&entry.sha256.unwrap_or_default());
                let count = u32::try_from(entry.chunks.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&count.to_le_bytes());
                out.extend(entry.chunks.iter().flatten());
            }
            EntryKind::Folder => {}
            EntryKind::Link { target } => put_text(&mut out, target),
        }
    }
    out
}

pub(crate) fn decode(data: &[u8]) -> Result<Vec<TreeEntry>, FormatError> {
    let mut fields = Fields::of(data);
    let mut entries = Vec::new();
    while !fields.is_empty() {
        entries.push(decode_entry(&mut fields)?);
    }
    Ok(entries)
}

fn decode_entry(fields: &mut Fields<'_>) -> Result<TreeEntry, FormatError> {
    let kind = fields.u8()?;
    let (mode, uid, gid) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let modified_ns = fields.i64()?;
    let meta = EntryMeta {
        path: fields.text()?,
        mode,
        uid,
        gid,
        modified_ns,
    };
    let plain = |meta, kind| TreeEntry {
        meta,
        kind,
        size: 0,
        sha256: None,
        chunks: Vec::new(),
    };
    match kind {
        0 => {
            let size = fields.u64()?;
            let sha256 = Some(fields.array()?);
            let count = fields.u32()?;
            let chunks = (0..count)
                .map(|_| fields.array())
                .collect::<Result<_, _>>()?;
            Ok(TreeEntry {
                meta,
                kind: EntryKind::File,
                size,
                sha256,
                chunks,
            })
        }
        1 => Ok(plain(meta, EntryKind::Folder)),
        2 => {
            let target = fields.text()?;
            Ok(plain(meta, EntryKind::Link { target }))
        }
        _ => Err(FormatError::damaged(
            "its listing has an entry of unknown kind",
        )),
    }
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

    use super::*;

    fn any_entry() -> impl Strategy<Value = TreeEntry> {
        let kind = prop_oneof![
            Just(EntryKind::File),
            Just(EntryKind::Folder),
            "[a-z/.]{0,20}".prop_map(|target| EntryKind::Link { target }),
        ];
        (
            kind,
            "[a-z]{1,8}(/[a-z]{1,8}){0,3}",
            any::<(u32, u32, u32, i64, u64)>(),
            any::<[u8; 32]>(),
        )
            .prop_flat_map(|(kind, path, (mode, uid, gid, modified_ns, size), sha)| {
                let file = kind == EntryKind::File;
                let chunks = prop::collection::vec(any::<ChunkName>(), 0..if file { 4 } else { 1 });
                chunks.prop_map(move |chunks| TreeEntry {
                    meta: EntryMeta {
                        path: path.clone(),
                        mode,
                        uid,
                        gid,
                        modified_ns,
                    },
                    kind: kind.clone(),
                    size: if file { size } else { 0 },
                    sha256: file.then_some(sha),
                    chunks,
                })
            })
    }

    proptest! {
        #[test]
        fn a_listing_survives_a_round_trip(entries in prop::collection::vec(any_entry(), 0..20)) {
            prop_assert_eq!(decode(&encode(&entries)).unwrap(), entries);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&data);
        }
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

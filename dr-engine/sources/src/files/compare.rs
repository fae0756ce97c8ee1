//! What of a live folder is not as stored.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Item, ItemKind, SourceError};

/// More would wait for the same disk.
const THREADS_MAX: usize = 8;

/// A stored entry, as far as it can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// What it is and how it is described.
    pub item: Item,
    /// For files, the size and CRC-32C of the content.
    pub content: Option<(u64, u32)>,
}

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Stored, but not there.
    Missing,
    /// There, but not stored.
    Extra,
    /// A file where a folder was, or the like.
    OtherKind,
    /// A file's content or a link's target.
    Content,
    /// Only the permission bits.
    Mode,
}

/// One entry that is not as stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// Relative to the folder compared.
    pub path: String,
    /// How it differs.
    pub kind: DifferenceKind,
}

/// Compares those entries below `root` for which `only` holds with `expected` (which is filtered
/// alike). In order of path. Times and owners are not compared. A folder that does not exist has
/// nothing in it. Blocks.
///
/// # Errors
/// When something that is there cannot be read or has a name that is not UTF-8.
pub fn differences(
    root: &Path,
    expected: &[Expected],
    only: &dyn Fn(&str) -> bool,
) -> Result<Vec<Difference>, SourceError> {
    let mut live = BTreeMap::new();
    list(root, "", only, &mut live)?;
    let mut pairs = Vec::new();
    let mut found = Vec::new();
    for entry in expected.iter().filter(|entry| only(&entry.item.path)) {
        match live.remove(&entry.item.path) {
            None => found.push(Difference {
                path: entry.item.path.clone(),
                kind: DifferenceKind::Missing,
            }),
            Some(item) => pairs.push((entry, item)),
        }
    }
    let extra = live.into_keys().map(|path| Difference {
        path,
        kind: DifferenceKind::Extra,
    });
    found.extend(extra);
    found.extend(compare(root, &pairs)?);
    found.sort();
    Ok(found)
}

/// Compares what is both stored and there; every thread has its share.
fn compare(root: &Path, pairs: &[(&Expected, Item)]) -> Result<Vec<Difference>, SourceError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(THREADS_MAX);
    let part = |first: usize| {
        let mut found = Vec::new();
        for (expected, item) in pairs.iter().skip(first).step_by(threads) {
            if let Some(kind) = difference(root, expected, item)? {
                let path = item.path.clone();
                found.push(Difference { path, kind });
            }
        }
        Ok::<_, SourceError>(found)
    };
    let part = &part;
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || part(first)))
            .collect();
        let mut found = Vec::new();
        for part in parts {
            let worker_lost = |_| SourceError::Worker {
                what: "comparing a folder",
            };
            found.extend(part.join().map_err(worker_lost)??);
        }
        Ok(found)
    })
}

fn difference(
    root: &Path,
    expected: &Expected,
    live: &Item,
) -> Result<Option<DifferenceKind>, SourceError> {
    let same_mode = expected.item.mode == live.mode;
    let mode = (!same_mode).then_some(DifferenceKind::Mode);
    Ok(match (&expected.item.kind, &live.kind) {
        (ItemKind::Folder, ItemKind::Folder) => mode,
        (ItemKind::Link { target }, ItemKind::Link { target: found }) => {
            (target != found).then_some(DifferenceKind::Content)
        }
        (ItemKind::File, ItemKind::File) => {
            let path = root.join(&live.path);
            let content = crc32c_of_file(&path)?;
            if expected.content == Some(content) {
                mode
            } else {
                Some(DifferenceKind::Content)
            }
        }
        _ => Some(DifferenceKind::OtherKind),
    })
}

/// The size and CRC-32C of a file.
///
/// # Errors
/// When it cannot be read.
pub fn crc32c_of_file(path: &Path) -> Result<(u64, u32), SourceError> {
    let mut file = fs::File::open(path).map_err(SourceError::file("read", path))?;
    let mut checksum = 0;
    let mut size = 0_u64;
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(SourceError::file("read", path))?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            break;
        };
        checksum = crc32c::crc32c_append(checksum, read);
        size += u64::try_from(count).unwrap_or(0);
    }
    Ok((size, checksum))
}

fn list(
    root: &Path,
    relative: &str,
    only: &dyn Fn(&str) -> bool,
    into: &mut BTreeMap<String, Item>,
) -> Result<(), SourceError> {
    let folder = root.join(relative);
    let listing = match fs::read_dir(&folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SourceError::file("list", &folder)(error)),
    };
    for entry in listing {
        let entry = entry.map_err(SourceError::file("list", &folder))?;
        let name = entry.file_name().into_string().map_err(|name| {
            SourceError::Refused(format!(
                "{} has an entry whose name is not UTF-8: {name:?}",
                folder.display()
            ))
        })?;
        let path = if relative.is_empty() {
            name
        } else {
            format!("{relative}/{name}")
        };
        let full = root.join(&path);
        let metadata = match fs::symlink_metadata(&full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(SourceError::file("examine", &full))?,
        };
        let kind = if metadata.is_dir() {
            list(root, &path, only, into)?;
            ItemKind::Folder
        } else if metadata.is_symlink() {
            let target = fs::read_link(&full).map_err(SourceError::file("read the link", &full))?;
            ItemKind::Link {
                target: target.to_string_lossy().into_owned(),
            }
        } else if metadata.is_file() {
            ItemKind::File
        } else {
            // Captures leave sockets and the like out as well.
            continue;
        };
        if only(&path) {
            into.insert(path.clone(), Item::from_metadata(path, kind, &metadata));
        }
    }
    Ok(())
}

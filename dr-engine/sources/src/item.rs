//! What a source hands over: files, folders and links, one by one, to whoever keeps them.
//!
//! The source does not know where they go. A sink may be called from several threads at once. Each path
//! is handed over once; a file whose content ended in an error was not taken, and may come again.

use std::io::Read;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// One entry of a captured tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Relative, `/`-separated, without `..`.
    pub path: String,
    /// What it is.
    pub kind: ItemKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, nanoseconds since the epoch.
    pub modified_ns: i64,
    /// When content or attributes last changed, nanoseconds since the epoch: no program can set it
    /// back. 0 when it is not known, or says nothing because the entry changed while it was captured.
    #[serde(default)]
    pub changed_ns: i64,
    /// The entry's number in its file system; 0 when it is not known.
    #[serde(default)]
    pub inode: u64,
}

/// The kinds of entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// A regular file.
    File,
    /// A folder; its entries are items of their own.
    Folder,
    /// A symbolic link.
    Link {
        /// Where it points, as written in the link.
        target: String,
    },
}

/// How a file's content is best cut for deduplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentKind {
    /// Database pages: changes stay inside page-aligned blocks.
    Pages,
    /// Anything else.
    Other,
}

/// Why a sink could not take an item.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Takes what a source captures.
pub trait ItemSink: Send + Sync {
    /// Takes a regular file. Reads `content` to its end. When `content` fails, nothing of the file is
    /// kept, and its path may be handed over again.
    ///
    /// # Errors
    /// When the content could not be read or kept.
    fn file(&self, item: &Item, content: &mut dyn Read, kind: ContentKind)
    -> Result<(), SinkError>;

    /// Takes a folder or a link.
    ///
    /// # Errors
    /// When it could not be kept.
    fn entry(&self, item: &Item) -> Result<(), SinkError>;

    /// Takes a regular file of `size` bytes without its content, if the sink knows that it has this
    /// very content already: same path, size, times and inode. False: it has to be read.
    ///
    /// # Errors
    /// When it could not be kept.
    fn unchanged(&self, item: &Item, size: u64) -> Result<bool, SinkError> {
        let _ = (item, size);
        Ok(false)
    }

    /// Takes over, unread, what an earlier capture left of the file of this path, of which the source knows
    /// what changed since; `goes_on` says that it will be handed one more part of the file. False: the file
    /// has to be read whole.
    ///
    /// # Errors
    /// When it could not be kept.
    fn carry(&self, path: &str, goes_on: bool) -> Result<bool, SinkError> {
        let _ = (path, goes_on);
        Ok(false)
    }
}

impl Item {
    /// Describes an existing entry under the name `path`.
    #[must_use]
    pub fn from_metadata(path: String, kind: ItemKind, metadata: &std::fs::Metadata) -> Self {
        Self {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// A moment in nanoseconds since the epoch.
pub(crate) fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

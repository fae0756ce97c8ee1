//! What a source hands over: files, folders and links, one by one, to whoever keeps them.
//!
//! The source does not know where they go. A sink may be called from several threads at once; each
//! path is handed over at most once.

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
    /// Takes a regular file. Reads `content` to its end.
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
            modified_ns: metadata
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.mtime_nsec()),
        }
    }
}

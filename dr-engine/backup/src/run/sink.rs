//! From a source's items to the repository's entries: the only place where the two meet.

use std::io::Read;
use std::sync::Arc;

use dr_sources::{ContentKind, Item, ItemKind, ItemSink, SinkError};
use dr_store::{BackupWriter, Cutting, EntryKind, EntryMeta};

use crate::BackupError;

/// Hands items on to a [`BackupWriter`].
#[derive(Debug)]
pub(super) struct StoreSink {
    writer: BackupWriter,
    /// Files that are as they were in the newest restore point need not be read.
    spare_unchanged: bool,
}

impl StoreSink {
    pub(super) fn new(writer: BackupWriter) -> Self {
        Self {
            writer,
            spare_unchanged: false,
        }
    }

    /// Takes over files of the newest restore point whose times and inode tell that they did not change.
    /// For folders of people only: of a database, what its files hold is not told by their times.
    pub(super) fn sparing_unchanged(writer: BackupWriter) -> Self {
        Self {
            writer,
            spare_unchanged: true,
        }
    }

    pub(super) fn into_writer(self) -> BackupWriter {
        self.writer
    }

    /// Takes the writer back from a sink that several threads used.
    ///
    /// # Errors
    /// When one of them still holds it: then something is still being captured.
    pub(super) fn reclaim(sink: Arc<Self>) -> Result<BackupWriter, BackupError> {
        Arc::try_unwrap(sink)
            .map(Self::into_writer)
            .map_err(|_| BackupError::Worker("capture the source"))
    }
}

fn meta(item: &Item) -> EntryMeta {
    EntryMeta {
        path: item.path.clone(),
        mode: item.mode,
        uid: item.uid,
        gid: item.gid,
        modified_ns: item.modified_ns,
        changed_ns: item.changed_ns,
        inode: item.inode,
    }
}

impl ItemSink for StoreSink {
    fn file(
        &self,
        item: &Item,
        content: &mut dyn Read,
        kind: ContentKind,
    ) -> Result<(), SinkError> {
        let cutting = match kind {
            ContentKind::Pages => Cutting::Pages,
            ContentKind::Other => Cutting::Content,
        };
        self.writer.add_file(meta(item), content, cutting)?;
        Ok(())
    }

    fn entry(&self, item: &Item) -> Result<(), SinkError> {
        let kind = match &item.kind {
            ItemKind::File => EntryKind::File,
            ItemKind::Folder => EntryKind::Folder,
            ItemKind::Link { target } => EntryKind::Link {
                target: target.clone(),
            },
        };
        self.writer.add_entry(meta(item), kind)?;
        Ok(())
    }

    fn unchanged(&self, item: &Item, size: u64) -> Result<bool, SinkError> {
        if !self.spare_unchanged {
            return Ok(false);
        }
        Ok(self.writer.add_unchanged(&meta(item), size)?)
    }
}

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
}

impl StoreSink {
    pub(super) fn new(writer: BackupWriter) -> Self {
        Self { writer }
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
}

//! The restore point that a backup builds on, the newest one unless another is named: what need not be read
//! again.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::RestorePointId;

use super::packs::Packs;
use crate::StoreError;
use crate::crypto::Keys;
use crate::format::content::Content;
use crate::format::tree::{EntryKind, EntryMeta, TreeEntry};
use crate::repo::Repository;
use crate::repo::keys::KeyId;
use crate::repo::points::StoredPoint;
use crate::repo::reader::PointReader;

/// A file that was changed later than this before its capture began may have changed again within the
/// same tick of the file system's clock, unseen (network file systems tick in seconds).
const FRESH_NS: i64 = 2_000_000_000;

/// What the restore point holds.
#[derive(Debug)]
pub(super) struct Previous {
    id: RestorePointId,
    /// Sorted by path.
    entries: Vec<TreeEntry>,
    key_ids: Vec<KeyId>,
    started: DateTime<Utc>,
    reader: PointReader,
}

impl Previous {
    pub(super) fn load(repository: &Repository, stored: &StoredPoint) -> Result<Self, StoreError> {
        let reader = repository.reader(stored)?;
        Ok(Self {
            id: stored.point.id.clone(),
            entries: reader.entries()?,
            key_ids: reader.key_ids().to_vec(),
            started: stored.point.started,
            reader,
        })
    }

    pub(super) fn id(&self) -> &RestorePointId {
        &self.id
    }

    pub(super) fn entries(&self) -> &[TreeEntry] {
        &self.entries
    }

    /// The regular file of this path, if its content is under this key.
    pub(super) fn file(&self, path: &str, keys: &Arc<Keys>) -> Option<&TreeEntry> {
        let entry = self.entry(path)?;
        let is_ours = entry.kind == EntryKind::File
            && self.key_ids.get(usize::from(entry.key)) == Some(&keys.id());
        is_ours.then_some(entry)
    }

    fn entry(&self, path: &str) -> Option<&TreeEntry> {
        let place = self
            .entries
            .binary_search_by(|entry| entry.meta.path.as_str().cmp(path))
            .ok()?;
        self.entries.get(place)
    }

    /// The content of this very file, if it was there and its content is under this key.
    pub(super) fn content_of(
        &self,
        meta: &EntryMeta,
        size: u64,
        keys: &Arc<Keys>,
    ) -> Option<&Content> {
        let entry = self.file(&meta.path, keys)?;
        let fresh_from = self.started.timestamp_nanos_opt()? - FRESH_NS;
        let same = entry.size == size
            && meta.inode != 0
            && meta.changed_ns != 0
            && entry.meta.inode == meta.inode
            && entry.meta.changed_ns == meta.changed_ns
            && entry.meta.modified_ns == meta.modified_ns
            && meta.changed_ns < fresh_from
            && meta.modified_ns < fresh_from;
        same.then_some(&entry.content)
    }

    /// Relies on every chunk of a content; false if one of them cannot be relied on.
    pub(super) fn rely_on(
        &self,
        packs: &Packs,
        keys: &Arc<Keys>,
        content: &Content,
    ) -> Result<bool, StoreError> {
        let mut all = true;
        let walked = self.reader.walk(keys, content, &mut |reference| {
            all = all && packs.rely_on(&reference.name);
            Ok(())
        });
        match walked {
            Ok(()) => Ok(all),
            // What cannot be read cannot be relied on; it is stored anew.
            Err(StoreError::Damaged { .. } | StoreError::ObjectMissing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

//! Finding chunks: all index objects of one workload, merged into one table.
//!
//! The table tells the pack; the pack's own table of contents, which is read when a chunk of it is
//! first wanted, tells the place. Should that table be damaged, the index object that named the pack
//! has a copy. An index object may vanish between being listed and read: prune merged it into another,
//! and the listing is read again.

pub(crate) mod contents;
pub(crate) mod table;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use dr_model::WorkloadName;

use super::Inner;
use super::keys::KeyId;
use crate::StoreError;
use crate::format::header::Kind;
use crate::format::index::{self, IndexedPack};
use crate::format::pack::{self, PackId};
use crate::format::{ChunkName, FormatError, sealed};
use table::{ChunkTable, ShortName, TableBuilder};

/// How often a listing of indexes is read again because one vanished meanwhile.
const RELOADS_MAX: u32 = 10;
/// Index objects fetched at once: enough to hide a store's latency.
const FETCHES_MAX: usize = 8;
/// And at most so many bytes of them: opened and decoded they take three times that. An index is stored
/// after some 5 MB at the latest, so that a few are always fetched side by side.
const FETCHED_BYTES_MAX: u64 = 24 << 20;

/// Every known chunk of a workload, whichever data key it is under: names of different keys never
/// agree, because they are keyed hashes.
#[derive(Debug, Default)]
pub(crate) struct Index {
    table: ChunkTable,
    packs: Vec<PackFile>,
    numbers: HashMap<PackId, u32>,
    /// The index objects it was read from.
    objects: Vec<IndexObject>,
}

/// An index object that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexObject {
    pub(crate) name: String,
    /// Its size as it is stored.
    pub(crate) bytes: u64,
    pub(crate) key_id: KeyId,
    pub(crate) packs: u32,
}

/// A pack as the index says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackFile {
    pub(crate) id: PackId,
    pub(crate) size: u64,
    pub(crate) chunks: u32,
    /// The data key it is under.
    pub(crate) key_id: KeyId,
    /// The index object that names it, by its place among [`Index::objects`].
    pub(crate) object: u32,
}

/// What index objects of a workload are called.
pub(crate) fn index_prefix(workload: &WorkloadName) -> String {
    format!("index/{workload}/")
}

/// An index being merged.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    table: TableBuilder,
    index: Index,
}

impl IndexBuilder {
    /// Adds what one index object says.
    pub(crate) fn add(&mut self, name: String, bytes: u64, key_id: KeyId, packs: &[IndexedPack]) {
        let object = u32::try_from(self.index.objects.len()).unwrap_or(u32::MAX);
        for pack in packs {
            // A pack that two indexes name (prune writes the new one before it deletes the old).
            if self.index.numbers.contains_key(&pack.id) {
                continue;
            }
            let number = u32::try_from(self.index.packs.len()).unwrap_or(u32::MAX);
            self.index.numbers.insert(pack.id, number);
            self.index.packs.push(PackFile {
                id: pack.id,
                size: pack::size(&pack.chunks),
                chunks: u32::try_from(pack.chunks.len()).unwrap_or(u32::MAX),
                key_id,
                object,
            });
            for chunk in &pack.chunks {
                self.table.add(&chunk.name, number);
            }
        }
        self.index.objects.push(IndexObject {
            name,
            bytes,
            key_id,
            packs: u32::try_from(packs.len()).unwrap_or(u32::MAX),
        });
    }

    pub(crate) fn finish(self) -> Index {
        Index {
            table: self.table.finish(),
            ..self.index
        }
    }
}

impl Index {
    /// The packs that hold a chunk, by number.
    pub(crate) fn find(&self, name: &ChunkName) -> impl Iterator<Item = u32> {
        self.table.find(ShortName::of(name))
    }

    pub(crate) fn contains(&self, name: &ChunkName) -> bool {
        self.find(name).next().is_some()
    }

    pub(crate) fn pack(&self, number: u32) -> Option<&PackFile> {
        self.packs.get(usize::try_from(number).ok()?)
    }

    pub(crate) fn packs(&self) -> &[PackFile] {
        &self.packs
    }

    pub(crate) fn number_of(&self, id: &PackId) -> Option<u32> {
        self.numbers.get(id).copied()
    }

    /// The index object that names a pack.
    pub(crate) fn object_of(&self, file: &PackFile) -> Option<String> {
        let place = usize::try_from(file.object).ok()?;
        self.objects.get(place).map(|object| object.name.clone())
    }

    pub(crate) fn objects(&self) -> &[IndexObject] {
        &self.objects
    }

    #[cfg(feature = "testing")]
    pub(crate) fn chunks(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn table(&self) -> &ChunkTable {
        &self.table
    }
}

/// An index object as it was read.
#[derive(Debug)]
pub(crate) struct ReadIndex {
    pub(crate) key_id: KeyId,
    pub(crate) packs: Vec<IndexedPack>,
}

/// What of index objects is fetched together: few, or few bytes, and one at least.
pub(crate) fn groups<T>(mut objects: &[T], size: impl Fn(&T) -> u64) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = objects.iter().take(FETCHES_MAX).take_while(|object| {
            bytes += size(object);
            bytes <= FETCHED_BYTES_MAX
        });
        let (group, rest) = objects.split_at(fitting.count().max(1).min(objects.len()));
        objects = rest;
        (!group.is_empty()).then_some(group)
    })
}

impl Inner {
    /// Reads one index object of a workload; `None` if it is not there. An index under a key that was
    /// shredded reads as one without packs.
    pub(crate) fn read_index(
        &self,
        workload: &WorkloadName,
        object: &str,
    ) -> Result<Option<ReadIndex>, StoreError> {
        let damaged = |error| self.unreadable(object, error);
        self.read_verified(object, &|data| {
            let key_id = sealed::key_id(data, Kind::Index).map_err(damaged)?;
            let keys = match self.data_keys_by_id(workload, &key_id) {
                Ok((_, keys)) => keys,
                Err(StoreError::Shredded { .. }) => {
                    return Ok(ReadIndex {
                        key_id,
                        packs: Vec::new(),
                    });
                }
                Err(StoreError::ObjectMissing { .. }) => {
                    return Err(damaged(FormatError::Damaged(format!(
                        "it names data key {}, which is not there",
                        hex::encode(key_id)
                    ))));
                }
                Err(error) => return Err(error),
            };
            sealed::decode(&self.id, &keys, Kind::Index, object, data)
                .and_then(|body| index::decode(&body))
                .map(|packs| ReadIndex { key_id, packs })
                .map_err(damaged)
        })
    }

    /// Reads all index objects of a workload anew.
    pub(crate) fn load_index(&self, workload: &WorkloadName) -> Result<Index, StoreError> {
        let mut vanished = None;
        for _ in 0..RELOADS_MAX {
            match self.try_load_index(workload)? {
                Ok(index) => return Ok(index),
                Err(object) => vanished = Some(object),
            }
        }
        Err(self.missing(&vanished.unwrap_or_default()))
    }

    /// The inner error names an index object that vanished after it was listed.
    fn try_load_index(&self, workload: &WorkloadName) -> Result<Result<Index, String>, StoreError> {
        let listed = self.list(&index_prefix(workload))?;
        let mut builder = IndexBuilder::default();
        // 40 bytes of an index object for each chunk.
        let bytes: u64 = listed.iter().map(|entry| entry.size).sum();
        builder
            .table
            .reserve(usize::try_from(bytes / 40).unwrap_or(0));
        for group in groups(&listed, |entry| entry.size) {
            let read =
                crate::repo::fetch::each(group, |entry| self.read_index(workload, &entry.name));
            for (entry, read) in group.iter().zip(read) {
                match read? {
                    Some(read) => {
                        builder.add(entry.name.clone(), entry.size, read.key_id, &read.packs);
                    }
                    None => return Ok(Err(entry.name.clone())),
                }
            }
        }
        Ok(Ok(builder.finish()))
    }

    /// Reads the index anew the next time it is wanted.
    pub(crate) fn forget_index(&self, workload: &WorkloadName) {
        let mut known = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(workload);
    }

    /// The workload's index for reading. `reload` when the one at hand lacks something: another
    /// process may have written since.
    pub(crate) fn index_for_reading(
        &self,
        workload: &WorkloadName,
        reload: bool,
    ) -> Result<Arc<Index>, StoreError> {
        let mut known = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if !reload && let Some(index) = known.get(workload) {
            return Ok(Arc::clone(index));
        }
        let index = Arc::new(self.load_index(workload)?);
        known.insert(workload.clone(), Arc::clone(&index));
        Ok(index)
    }

    /// Keeps an index that was just read for whoever reads next.
    pub(crate) fn keep_index(&self, workload: &WorkloadName, index: &Arc<Index>) {
        let mut known = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(workload.clone(), Arc::clone(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_objects_or_few_bytes_are_fetched_together_and_none_is_left_out() {
        let sizes = |sizes: &[u64]| -> Vec<usize> {
            groups(sizes, |size| *size).map(<[u64]>::len).collect()
        };
        let max = FETCHED_BYTES_MAX;
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 20]), [8, 8, 4]);
        assert_eq!(
            sizes(&[max + 1, 1, max, max / 2, max / 2, max]),
            [1, 1, 1, 2, 1]
        );
    }
}

//! Finding chunks: all index objects of one workload, merged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use dr_model::WorkloadName;

use super::Inner;
use crate::StoreError;
use crate::crypto::Keys;
use crate::format::header::{HEADER_BYTES, Kind};
use crate::format::index::IndexedPack;
use crate::format::pack::{self, PackOpener, Place};
use crate::format::{ChunkName, index};

/// Where every known chunk of a workload lies.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// A chunk's pack (by number below) and place.
    chunks: HashMap<ChunkName, Located>,
    /// Further copies of chunks: two backups may have stored the same at once, or one again what
    /// was lost.
    copies: HashMap<ChunkName, Vec<Located>>,
    packs: Vec<PackFile>,
    /// What opens a pack, once its header was read.
    openers: Mutex<HashMap<u32, Arc<PackOpener>>>,
}

/// Where one copy of a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    /// The pack's number within the index.
    pub(crate) pack: u32,
    pub(crate) place: Place,
}

/// A pack as the index says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackFile {
    pub(crate) object: String,
    pub(crate) size: u64,
}

/// What index objects of a workload are called.
pub(crate) fn index_prefix(workload: &WorkloadName) -> String {
    format!("index/{workload}.")
}

impl Index {
    pub(crate) fn add(&mut self, packs: &[IndexedPack]) {
        for pack in packs {
            let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
            self.packs.push(PackFile {
                object: pack::object_name(&pack.id),
                size: pack::size(&pack.chunks),
            });
            for (name, place) in pack::places(&pack.chunks) {
                let located = Located {
                    pack: number,
                    place,
                };
                match self.chunks.entry(name) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(located);
                    }
                    Entry::Occupied(_) => self.copies.entry(name).or_default().push(located),
                }
            }
        }
    }

    pub(crate) fn find(&self, name: &ChunkName) -> Option<Located> {
        self.chunks.get(name).copied()
    }

    /// All copies of a chunk, the one that is tried first first.
    pub(crate) fn find_all(&self, name: &ChunkName) -> impl Iterator<Item = Located> {
        let first = self.chunks.get(name).copied();
        first
            .into_iter()
            .chain(self.copies.get(name).into_iter().flatten().copied())
    }

    pub(crate) fn pack(&self, number: u32) -> Option<&PackFile> {
        usize::try_from(number)
            .ok()
            .and_then(|number| self.packs.get(number))
    }

    pub(crate) fn packs(&self) -> &[PackFile] {
        &self.packs
    }

    /// Forgets chunks whose pack is not there whole, so that no backup relies on them.
    pub(crate) fn keep_only(&mut self, is_whole: impl Fn(&PackFile) -> bool) {
        let whole: Vec<bool> = self.packs.iter().map(is_whole).collect();
        let is_good = |at: &Located| {
            usize::try_from(at.pack)
                .ok()
                .and_then(|pack| whole.get(pack))
                .is_some_and(|w| *w)
        };
        let copies = &self.copies;
        self.chunks.retain(|name, located| {
            let mut copies = copies.get(name).into_iter().flatten().copied();
            if !is_good(located)
                && let Some(better) = copies.find(|copy| is_good(copy))
            {
                *located = better;
            }
            is_good(located)
        });
    }

    /// Reads the header of a pack anew the next time: what failed to open may have been mended.
    pub(crate) fn forget_opener(&self, number: u32) {
        self.openers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
    }

    /// What opens the frames of a pack; reads its header the first time.
    pub(crate) fn opener(
        &self,
        repo: &Inner,
        keys: &Keys,
        number: u32,
    ) -> Result<Arc<PackOpener>, StoreError> {
        if let Some(opener) = self
            .openers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
        {
            return Ok(Arc::clone(opener));
        }
        let object = self
            .pack(number)
            .map(|pack| pack.object.clone())
            .unwrap_or_default();
        let header = repo
            .backend
            .get_range(&object, 0, HEADER_BYTES as u64)
            .map_err(repo.failed(format!("reading `{object}`")))?
            .ok_or_else(|| repo.missing(&object))?;
        let opener = PackOpener::new(&repo.id, keys, &object, &header)
            .map_err(|error| repo.unreadable(&object, error))?;
        let opener = Arc::new(opener);
        self.openers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&opener));
        Ok(opener)
    }
}

impl Inner {
    /// Reads one index object.
    pub(crate) fn read_index(
        &self,
        keys: &Keys,
        object: &str,
    ) -> Result<Option<Vec<IndexedPack>>, StoreError> {
        let Some(body) = self.get_sealed(keys, Kind::Index, object)? else {
            return Ok(None);
        };
        index::decode(&body)
            .map(Some)
            .map_err(|error| self.unreadable(object, error))
    }

    /// Reads all index objects of a workload anew.
    pub(crate) fn load_index(
        &self,
        workload: &WorkloadName,
        keys: &Keys,
    ) -> Result<Index, StoreError> {
        let mut merged = Index::default();
        for entry in self.list(&index_prefix(workload))? {
            let packs = self
                .read_index(keys, &entry.name)?
                .ok_or_else(|| self.missing(&entry.name))?;
            merged.add(&packs);
        }
        Ok(merged)
    }

    /// The workload's index for reading. `reload` when the one at hand lacks something: another
    /// process may have written since.
    pub(crate) fn index_for_reading(
        &self,
        workload: &WorkloadName,
        keys: &Keys,
        reload: bool,
    ) -> Result<Arc<Index>, StoreError> {
        let mut known = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if !reload && let Some(index) = known.get(workload) {
            return Ok(Arc::clone(index));
        }
        let index = Arc::new(self.load_index(workload, keys)?);
        known.insert(workload.clone(), Arc::clone(&index));
        Ok(index)
    }
}

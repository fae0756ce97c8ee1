//! What is kept of packs and chunks while a restore point is read.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::StoreError;
use crate::format::ChunkName;
use crate::format::pack::PackId;

/// Whole packs that are kept: some 16 MiB each. More than there are readers at a time, so that none
/// takes away what another is about to read.
const PACKS_KEPT_MAX: usize = 4;
/// How many packs it is remembered of that they were asked for.
const ASKED_MAX: usize = 256;
/// Opened chunks that are kept.
const CHUNK_BYTES_KEPT_MAX: usize = 24 * 1024 * 1024;

/// What is known of a pack that is asked for.
pub(super) enum Asked {
    /// Here it is.
    Kept(Arc<Vec<u8>>),
    /// Not here, and worth fetching whole.
    Often,
    /// Not here.
    Seldom,
}

type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// Whole packs.
#[derive(Debug, Default)]
pub(super) struct PackCache(Mutex<Packs>);

#[derive(Debug, Default)]
struct Packs {
    kept: VecDeque<(PackId, Slot)>,
    asked: VecDeque<(PackId, u32)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PackCache {
    /// Asks for a pack and counts that it was asked for.
    pub(super) fn get(&self, id: &PackId, often: u32) -> Asked {
        let slot = lock(&self.0).slot(id);
        if let Some(slot) = slot {
            // Whoever fetches it holds this until it is there.
            return lock(&slot)
                .as_ref()
                .map_or(Asked::Often, |data| Asked::Kept(Arc::clone(data)));
        }
        match lock(&self.0).count(id) >= often {
            true => Asked::Often,
            false => Asked::Seldom,
        }
    }

    /// Fetches a pack unless another thread just did.
    pub(super) fn fetch(
        &self,
        id: &PackId,
        get: impl FnOnce() -> Result<Vec<u8>, StoreError>,
    ) -> Result<Arc<Vec<u8>>, StoreError> {
        let slot = lock(&self.0).make_slot(id);
        let mut kept = lock(&slot);
        if let Some(data) = kept.as_ref() {
            return Ok(Arc::clone(data));
        }
        let data = Arc::new(get()?);
        *kept = Some(Arc::clone(&data));
        Ok(data)
    }

    pub(super) fn forget(&self, id: &PackId) {
        lock(&self.0).kept.retain(|(kept, _)| kept != id);
    }
}

impl Packs {
    /// The pack's slot, which becomes the last to go.
    fn slot(&mut self, id: &PackId) -> Option<Slot> {
        let place = self.kept.iter().position(|(kept, _)| kept == id)?;
        let found = self.kept.remove(place)?;
        let slot = Arc::clone(&found.1);
        self.kept.push_back(found);
        Some(slot)
    }

    fn make_slot(&mut self, id: &PackId) -> Slot {
        if let Some(slot) = self.slot(id) {
            return slot;
        }
        let slot = Slot::default();
        self.kept.push_back((*id, Arc::clone(&slot)));
        if self.kept.len() > PACKS_KEPT_MAX {
            self.kept.pop_front();
        }
        slot
    }

    fn count(&mut self, id: &PackId) -> u32 {
        if let Some((_, count)) = self.asked.iter_mut().find(|(asked, _)| asked == id) {
            *count += 1;
            return *count;
        }
        self.asked.push_back((*id, 1));
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
        1
    }
}

/// Opened chunks.
#[derive(Debug, Default)]
pub(super) struct ChunkCache(Mutex<Chunks>);

#[derive(Debug, Default)]
struct Chunks {
    kept: HashMap<ChunkName, Arc<Vec<u8>>>,
    order: VecDeque<ChunkName>,
    bytes: usize,
}

impl ChunkCache {
    pub(super) fn get(&self, name: &ChunkName) -> Option<Arc<Vec<u8>>> {
        lock(&self.0).kept.get(name).map(Arc::clone)
    }

    pub(super) fn keep(&self, name: ChunkName, chunk: &Arc<Vec<u8>>) {
        let mut chunks = lock(&self.0);
        if chunks.kept.insert(name, Arc::clone(chunk)).is_some() {
            return;
        }
        chunks.order.push_back(name);
        chunks.bytes += chunk.len();
        while chunks.bytes > CHUNK_BYTES_KEPT_MAX {
            let Some(oldest) = chunks.order.pop_front() else {
                return;
            };
            if let Some(gone) = chunks.kept.remove(&oldest) {
                chunks.bytes -= gone.len();
            }
        }
    }
}

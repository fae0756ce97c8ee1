//! What is kept of packs and chunks while a restore point is read.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::StoreError;
use crate::format::ChunkName;
use crate::format::pack::PackId;

/// Stretches of packs that are kept. More than there are readers at a time, so that none takes away
/// what another is about to read.
const STRETCHES_KEPT_MAX: usize = 10;
/// How many packs it is remembered of that they were asked for.
const ASKED_MAX: usize = 256;
/// Opened chunks that are kept.
const CHUNK_BYTES_KEPT_MAX: usize = 24 * 1024 * 1024;

/// A part of a pack, as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    /// Where in the pack it begins.
    pub(super) base: u64,
    pub(super) data: Arc<Vec<u8>>,
}

/// What is known of a part of a pack that is asked for.
pub(super) enum Asked {
    /// It lies in this.
    Kept(Stretch),
    /// Not here, and more of the pack will be wanted.
    Often,
    /// Not here.
    Seldom,
}

type Slot = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

/// Stretches of packs.
#[derive(Debug, Default)]
pub(super) struct StretchCache(Mutex<Packs>);

#[derive(Debug, Default)]
struct Packs {
    kept: VecDeque<Kept>,
    asked: VecDeque<(PackId, u32)>,
}

#[derive(Debug, Clone)]
struct Kept {
    pack: PackId,
    range: Range<u64>,
    slot: Slot,
}

impl Kept {
    fn holds(&self, pack: &PackId, range: &Range<u64>) -> bool {
        self.pack == *pack && self.range.start <= range.start && range.end <= self.range.end
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StretchCache {
    /// Asks for a part of a pack and counts that the pack was asked for.
    pub(super) fn get(&self, pack: &PackId, range: &Range<u64>, often: u32) -> Asked {
        let kept = lock(&self.0).find(pack, range);
        if let Some(Kept { range, slot, .. }) = kept {
            // Whoever fetches it holds this until it is there.
            return lock(&slot).as_ref().map_or(Asked::Often, |data| {
                Asked::Kept(Stretch {
                    base: range.start,
                    data: Arc::clone(data),
                })
            });
        }
        match lock(&self.0).count(pack) >= often {
            true => Asked::Often,
            false => Asked::Seldom,
        }
    }

    /// Fetches a part of a pack unless another thread just did, and keeps it.
    pub(super) fn fetch(
        &self,
        pack: &PackId,
        range: &Range<u64>,
        get: impl FnOnce(&Range<u64>) -> Result<Vec<u8>, StoreError>,
    ) -> Result<Stretch, StoreError> {
        let Kept { range, slot, .. } = lock(&self.0).make(pack, range);
        let mut kept = lock(&slot);
        let data = match kept.as_ref() {
            Some(data) => Arc::clone(data),
            None => Arc::clone(kept.insert(Arc::new(get(&range)?))),
        };
        let base = range.start;
        Ok(Stretch { base, data })
    }

    /// Whether a part of a pack was not asked for lately. It is from now on.
    pub(super) fn is_new(&self, pack: &PackId, range: &Range<u64>) -> bool {
        let mut packs = lock(&self.0);
        if packs.find(pack, range).is_some() {
            return false;
        }
        packs.make(pack, range);
        true
    }

    pub(super) fn forget(&self, pack: &PackId) {
        lock(&self.0).kept.retain(|kept| kept.pack != *pack);
    }
}

impl Packs {
    /// What holds a part of a pack; it becomes the last to go.
    fn find(&mut self, pack: &PackId, range: &Range<u64>) -> Option<Kept> {
        let place = self.kept.iter().position(|kept| kept.holds(pack, range))?;
        let found = self.kept.remove(place)?;
        self.kept.push_back(found.clone());
        Some(found)
    }

    fn make(&mut self, pack: &PackId, range: &Range<u64>) -> Kept {
        if let Some(kept) = self.find(pack, range) {
            return kept;
        }
        let kept = Kept {
            pack: *pack,
            range: range.clone(),
            slot: Slot::default(),
        };
        self.kept.push_back(kept.clone());
        if self.kept.len() > STRETCHES_KEPT_MAX {
            self.kept.pop_front();
        }
        kept
    }

    fn count(&mut self, pack: &PackId) -> u32 {
        if let Some((_, count)) = self.asked.iter_mut().find(|(asked, _)| asked == pack) {
            *count += 1;
            return *count;
        }
        self.asked.push_back((*pack, 1));
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

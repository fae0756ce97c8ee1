//! Where the chunks of a pack lie: its table of contents, read when first wanted and kept for a while.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use dr_model::WorkloadName;

use super::table::ShortName;
use super::{Index, PackFile};
use crate::StoreError;
use crate::format::header::HEADER_BYTES;
use crate::format::pack::{self, PackId, PackOpener, PackedChunk, Place};
use crate::format::{ChunkName, FormatError};
use crate::repo::{Inner, fetch};

/// Packs whose contents are kept: 64 chunks of 24 bytes each make some 6 MiB of this.
const KEPT_MAX: usize = 4096;

/// What opens a pack and where its chunks are.
#[derive(Debug)]
pub(crate) struct PackContents {
    pub(crate) object: String,
    pub(crate) opener: PackOpener,
    /// In the order in which they lie.
    pub(crate) chunks: Vec<(ShortName, Place)>,
    /// Places in `chunks`, sorted by name.
    by_name: Vec<u32>,
}

impl PackContents {
    fn new(object: String, opener: PackOpener, chunks: &[PackedChunk]) -> Self {
        let chunks: Vec<(ShortName, Place)> = pack::places(chunks)
            .map(|(name, place)| (ShortName::of(&name), place))
            .collect();
        let mut by_name: Vec<u32> = (0u32..).take(chunks.len()).collect();
        let name = |place: &u32| {
            usize::try_from(*place)
                .ok()
                .and_then(|place| chunks.get(place))
                .map(|(name, _)| *name)
        };
        by_name.sort_unstable_by_key(name);
        Self {
            object,
            opener,
            chunks,
            by_name,
        }
    }

    /// Where a chunk lies, by its place in `chunks`.
    pub(crate) fn find(&self, name: &ChunkName) -> Option<Place> {
        let wanted = ShortName::of(name);
        let at = |place: u32| self.chunks.get(usize::try_from(place).ok()?);
        let found = self
            .by_name
            .binary_search_by(|place| {
                at(*place).map_or(std::cmp::Ordering::Less, |(name, _)| name.cmp(&wanted))
            })
            .ok()?;
        at(*self.by_name.get(found)?).map(|(_, place)| *place)
    }

    /// The stretch of the pack in which a chunk lies. Packs are divided into stretches of some `bytes` at fixed places, a
    /// chunk being where it begins: whoever wants a chunk of the same stretch wants the same stretch.
    pub(crate) fn stretch(&self, wanted: &Place, bytes: u64) -> Range<u64> {
        let end_of = |place: &Place| place.offset + u64::from(place.stored);
        let number = |place: &Place| place.offset / bytes.max(1);
        let wanted_number = number(wanted);
        let before = self
            .chunks
            .partition_point(|(_, place)| number(place) < wanted_number);
        let within = self
            .chunks
            .partition_point(|(_, place)| number(place) <= wanted_number);
        match self.chunks.get(before..within) {
            Some([(_, first), .., (_, last)]) => first.offset..end_of(last),
            _ => wanted.offset..end_of(wanted),
        }
    }
}

/// The contents of packs that were wanted lately.
#[derive(Debug, Default)]
pub(crate) struct KnownContents(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    contents: HashMap<PackId, Arc<PackContents>>,
    order: VecDeque<PackId>,
}

impl KnownContents {
    pub(crate) fn get(&self, id: &PackId) -> Option<Arc<PackContents>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.contents.get(id).map(Arc::clone)
    }

    fn keep(&self, id: PackId, contents: &Arc<PackContents>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.contents.insert(id, Arc::clone(contents)).is_none() {
            kept.order.push_back(id);
        }
        if kept.order.len() > KEPT_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.contents.remove(&oldest);
        }
    }

    /// Reads it anew the next time: what failed to open may have been mended.
    pub(crate) fn forget(&self, id: &PackId) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.contents.remove(id);
        kept.order.retain(|kept| kept != id);
    }
}

impl Inner {
    /// The contents of a pack. From the whole pack where that is at hand.
    pub(crate) fn contents(
        &self,
        workload: &WorkloadName,
        index: &Index,
        file: &PackFile,
        whole: Option<&[u8]>,
    ) -> Result<Arc<PackContents>, StoreError> {
        if let Some(known) = self.known_contents.get(&file.id) {
            return Ok(known);
        }
        let object = pack::object_name(workload, &file.id);
        let (_, keys) = self.data_keys_by_id(workload, &file.key_id)?;
        let opened = |header: &[u8]| {
            PackOpener::new(&self.id, &keys, &object, header)
                .map_err(|error| self.unreadable(&object, error))
        };
        let (opener, chunks) = match whole {
            Some(data) => {
                let opener = opened(data)?;
                let chunks = opener.contents(data, data.len() as u64);
                (opener, chunks)
            }
            None => {
                let chunks = usize::try_from(file.chunks).unwrap_or(usize::MAX);
                let tail = pack::tail_bytes(chunks).min(file.size);
                let parts = [(0, HEADER_BYTES as u64), (file.size - tail, tail)];
                let part = |(offset, length): &(u64, u64)| self.part(&object, *offset, *length);
                // Two requests, which need not wait for each other.
                let both = match self.backend.is_far() {
                    true => fetch::each(&parts, part),
                    false => parts.iter().map(part).collect(),
                };
                let mut both = both.into_iter();
                let mut next = || both.next().unwrap_or(Err(StoreError::WriterFailed));
                let opener = opened(&next()?)?;
                let chunks = opener.contents(&next()?, file.size);
                (opener, chunks)
            }
        };
        let chunks = match chunks {
            Ok(chunks) => chunks,
            Err(error) => self
                .contents_by_index(workload, index, file)?
                .ok_or_else(|| self.unreadable(&object, error))?,
        };
        let contents = Arc::new(PackContents::new(object, opener, &chunks));
        self.known_contents.keep(file.id, &contents);
        Ok(contents)
    }

    fn part(&self, object: &str, offset: u64, length: u64) -> Result<Vec<u8>, StoreError> {
        let data = self
            .any_place(object, &|place| place.get_range(object, offset, length))?
            .ok_or_else(|| self.missing(object))?;
        if data.len() as u64 == length {
            Ok(data)
        } else {
            Err(self.unreadable(object, FormatError::damaged("it is cut short")))
        }
    }

    /// The same from the index: the chunks may be whole where the table in the pack is damaged.
    pub(crate) fn contents_by_index(
        &self,
        workload: &WorkloadName,
        index: &Index,
        file: &PackFile,
    ) -> Result<Option<Vec<PackedChunk>>, StoreError> {
        let object = usize::try_from(file.object)
            .ok()
            .and_then(|place| index.objects().get(place));
        let Some(object) = object else {
            return Ok(None);
        };
        let read = self.read_index(workload, &object.name)?;
        Ok(read.and_then(|read| {
            let mut packs = read.packs.into_iter();
            packs
                .find(|pack| pack.id == file.id)
                .map(|pack| pack.chunks)
        }))
    }
}

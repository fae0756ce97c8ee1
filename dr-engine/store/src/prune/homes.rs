//! In which pack each needed chunk lives on, and what that makes of the packs. Pure over an index.

use super::bits::Bits;
use super::need::{NeedError, NeedSet};
use crate::format::ChunkName;
use crate::repo::index::Index;
use crate::repo::index::table::ShortName;

/// Whether a pack can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It is not there whole.
    Absent,
    /// It is there and about to be deleted: the home of what is nowhere else.
    Condemned,
    /// It is there.
    Good,
}

/// The home of each needed chunk.
#[derive(Debug)]
pub(super) struct Homes {
    /// The row of each needed chunk's home.
    rows: Bits,
    /// Needed chunks by pack.
    pub(super) live: Vec<u32>,
}

/// The rows of one chunk.
fn groups(index: &Index) -> impl Iterator<Item = (usize, usize)> + '_ {
    let table = index.table();
    let mut first = 0;
    std::iter::from_fn(move || {
        let (name, _) = table.row(first)?;
        let mut end = first + 1;
        while table.row(end).is_some_and(|(other, _)| other == name) {
            end += 1;
        }
        let group = (first, end);
        first = end;
        Some(group)
    })
}

impl Homes {
    /// Finds a home for every needed chunk: the best pack there is, and of several equal ones the one
    /// that has the largest part of its chunks needed, so that the others may go.
    pub(super) fn find(
        need: &NeedSet,
        standing: &dyn Fn(u32) -> Standing,
    ) -> Result<Self, NeedError> {
        let index = need.index.as_ref();
        let mut homes = Self {
            rows: Bits::new(index.table().len()),
            live: vec![0; index.packs().len()],
        };
        let needed = || groups(index).filter(|(first, _)| need.is_needed(*first));
        // What lies in one pack only is decided first: the rest goes where most is needed anyway.
        for (first, _) in needed().filter(|(first, end)| end - first == 1) {
            homes.settle(need, first..first + 1, standing)?;
        }
        for (first, end) in needed().filter(|(first, end)| end - first > 1) {
            homes.settle(need, first..end, standing)?;
        }
        Ok(homes)
    }

    fn settle(
        &mut self,
        need: &NeedSet,
        rows: std::ops::Range<usize>,
        standing: &dyn Fn(u32) -> Standing,
    ) -> Result<(), NeedError> {
        let table = need.index.table();
        let mut best: Option<((Standing, u64), usize, u32)> = None;
        let mut name = None;
        for row in rows {
            let Some((short, pack)) = table.row(row) else {
                continue;
            };
            name = Some(short);
            let rank = (standing(pack), self.share(&need.index, pack));
            if best.is_none_or(|(known, _, _)| rank > known) {
                best = Some((rank, row, pack));
            }
        }
        match best {
            Some(((Standing::Condemned | Standing::Good, _), row, pack)) => {
                self.rows.set(row);
                let live = usize::try_from(pack).ok();
                if let Some(live) = live.and_then(|pack| self.live.get_mut(pack)) {
                    *live += 1;
                }
                Ok(())
            }
            _ => Err(NeedError::NoChunk(name.map_or([0; 32], ShortName::padded))),
        }
    }

    /// Needed chunks in a million of a pack's chunks.
    fn share(&self, index: &Index, pack: u32) -> u64 {
        let chunks = index.pack(pack).map_or(1, |file| file.chunks.max(1));
        u64::from(self.live(pack)) * 1_000_000 / u64::from(chunks)
    }

    pub(super) fn live(&self, pack: u32) -> u32 {
        usize::try_from(pack)
            .ok()
            .and_then(|pack| self.live.get(pack))
            .copied()
            .unwrap_or(0)
    }

    /// Whether this pack is a chunk's home.
    pub(super) fn is_home(&self, index: &Index, pack: u32, name: &ChunkName) -> bool {
        let short = ShortName::of(name);
        let Some(first) = index.table().first_row(short) else {
            return false;
        };
        (first..)
            .map_while(|row| index.table().row(row).map(|found| (row, found)))
            .take_while(|(_, (name, _))| *name == short)
            .any(|(row, (_, of))| of == pack && self.rows.get(row))
    }
}

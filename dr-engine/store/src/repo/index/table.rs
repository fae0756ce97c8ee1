//! Which pack a chunk lies in, for tens of millions of chunks.
//!
//! 16 bytes for each chunk: the first 12 of its name and the number of its pack, sorted, with a fan-out
//! over the first two bytes. Names are a keyed hash, so they spread evenly and a search ends after a
//! few steps. 96 bits tell chunks apart as well as the whole name does: among 30 million chunks the
//! chance that any two agree is below 10^-14, and whoever reads a chunk computes the whole name again.
//! Where in its pack a chunk lies is not kept here: the pack itself says so (its table of contents).

use crate::format::ChunkName;

/// Names differ in their first bytes: one slot for each value of the first two.
const FAN_OUT: usize = 1 << 16;

/// The part of a name that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShortName {
    high: u64,
    low: u32,
}

impl ShortName {
    pub(crate) fn of(name: &ChunkName) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *name;
        Self {
            high: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            low: u32::from_be_bytes([i, j, k, l]),
        }
    }

    /// A name that begins so, to be shown.
    pub(crate) fn padded(self) -> ChunkName {
        let mut name = [0; 32];
        let (high, rest) = name.split_at_mut(8);
        high.copy_from_slice(&self.high.to_be_bytes());
        if let Some(low) = rest.get_mut(..4) {
            low.copy_from_slice(&self.low.to_be_bytes());
        }
        name
    }

    fn slot(self) -> usize {
        // 16 bits of 64.
        usize::try_from(self.high >> 48).unwrap_or(0)
    }
}

/// A chunk and its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    high: u64,
    low: u32,
    pack: u32,
}

impl Row {
    fn name(self) -> ShortName {
        ShortName {
            high: self.high,
            low: self.low,
        }
    }
}

/// The finished table.
#[derive(Debug, Default)]
pub(crate) struct ChunkTable {
    rows: Vec<Row>,
    /// Where the rows of each slot begin; one more at the end.
    fan_out: Vec<u32>,
}

/// A table being filled.
#[derive(Debug, Default)]
pub(crate) struct TableBuilder(Vec<Row>);

impl TableBuilder {
    /// Makes room; a table that grows by doubling would need half as much again.
    pub(crate) fn reserve(&mut self, chunks: usize) {
        self.0.reserve_exact(chunks);
    }

    pub(crate) fn add(&mut self, name: &ChunkName, pack: u32) {
        let ShortName { high, low } = ShortName::of(name);
        self.0.push(Row { high, low, pack });
    }

    pub(crate) fn finish(mut self) -> ChunkTable {
        // In place, and on every core: the two halves of the names are sorted apart.
        let half = partition(&mut self.0);
        let (left, right) = self.0.split_at_mut(half);
        std::thread::scope(|scope| {
            scope.spawn(|| left.sort_unstable());
            right.sort_unstable();
        });
        let mut fan_out = vec![0u32; FAN_OUT + 1];
        for row in &self.0 {
            if let Some(count) = fan_out.get_mut(row.name().slot() + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for count in &mut fan_out {
            sum += *count;
            *count = sum;
        }
        ChunkTable {
            rows: self.0,
            fan_out,
        }
    }
}

/// Moves names whose first bit is 0 before the others; returns how many there are.
fn partition(rows: &mut [Row]) -> usize {
    let mut end = 0;
    for place in 0..rows.len() {
        if rows.get(place).is_some_and(|row| row.high >> 63 == 0) {
            rows.swap(place, end);
            end += 1;
        }
    }
    end
}

impl ChunkTable {
    /// The packs that hold a chunk: more than one where two writers stored it at once.
    pub(crate) fn find(&self, name: ShortName) -> impl Iterator<Item = u32> {
        let slot = name.slot();
        let bound = |place: usize| {
            let row = self.fan_out.get(place).copied().unwrap_or(0);
            usize::try_from(row).unwrap_or(0)
        };
        let rows = self
            .rows
            .get(bound(slot)..bound(slot + 1))
            .unwrap_or_default();
        let first = rows.partition_point(|row| row.name() < name);
        rows.iter()
            .skip(first)
            .take_while(move |row| row.name() == name)
            .map(|row| row.pack)
    }

    /// The place of a chunk's first row.
    pub(crate) fn first_row(&self, name: ShortName) -> Option<usize> {
        let slot = name.slot();
        let bound = |place: usize| {
            let row = self.fan_out.get(place).copied().unwrap_or(0);
            usize::try_from(row).unwrap_or(0)
        };
        let (start, end) = (bound(slot), bound(slot + 1));
        let rows = self.rows.get(start..end)?;
        let first = rows.partition_point(|row| row.name() < name);
        (rows.get(first)?.name() == name).then_some(start + first)
    }

    /// A row: a chunk and one of its packs. The rows of one chunk lie side by side.
    pub(crate) fn row(&self, place: usize) -> Option<(ShortName, u32)> {
        self.rows.get(place).map(|row| (row.name(), row.pack))
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn name(seed: u64) -> ChunkName {
        crate::crypto::sha256(&seed.to_le_bytes())
    }

    #[test]
    fn every_chunk_is_found_in_its_packs_and_no_other_is() {
        let mut builder = TableBuilder::default();
        let mut expected: HashMap<u64, Vec<u32>> = HashMap::new();
        for seed in 0..20_000u64 {
            let pack = u32::try_from(seed % 97).unwrap();
            builder.add(&name(seed), pack);
            expected.entry(seed).or_default().push(pack);
            if seed % 10 == 0 {
                builder.add(&name(seed), 1000);
                expected.entry(seed).or_default().push(1000);
            }
        }
        let table = builder.finish();
        assert_eq!(table.len(), 22_000);
        for (seed, packs) in &expected {
            let found: Vec<u32> = table.find(ShortName::of(&name(*seed))).collect();
            assert_eq!(found, *packs, "{seed}");
        }
        for seed in 20_000..40_000 {
            assert_eq!(table.find(ShortName::of(&name(seed))).count(), 0);
        }
    }

    #[test]
    fn names_at_the_ends_of_the_range_are_found() {
        let mut builder = TableBuilder::default();
        for byte in [0u8, 0x7f, 0x80, 0xff] {
            builder.add(&[byte; 32], u32::from(byte));
        }
        let table = builder.finish();
        for byte in [0u8, 0x7f, 0x80, 0xff] {
            let found: Vec<u32> = table.find(ShortName::of(&[byte; 32])).collect();
            assert_eq!(found, [u32::from(byte)]);
        }
        assert_eq!(
            ChunkTable::default().find(ShortName::of(&[1; 32])).count(),
            0
        );
    }
}

//! An index, `index/<workload>/<32 hex>`: packs of one data key and what is in them. Sealed
//! under that key ([`super::sealed`]). Body: for each pack its id (16), the number of
//! its chunks (4), and its table of contents as in the pack.

use super::FormatError;
use super::bytes::Fields;
use super::pack::{PackId, PackedChunk, decode_entries, encode_entries};

/// An index object names at most this many packs, so that it stays quick to fetch.
const PACKS_MAX: usize = 4096;
/// And at most this many chunks (160 MiB of them), unless it names one pack.
const CHUNKS_MAX: usize = 4 << 20;

/// A pack in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexedPack {
    pub(crate) id: PackId,
    pub(crate) chunks: Vec<PackedChunk>,
}

/// Packs as they are divided among index objects.
pub(crate) fn parts(packs: &[IndexedPack]) -> Vec<&[IndexedPack]> {
    let mut parts = Vec::new();
    let mut rest = packs;
    while !rest.is_empty() {
        let mut chunks = 0;
        let fitting = rest.iter().take(PACKS_MAX).take_while(|pack| {
            chunks += pack.chunks.len();
            chunks <= CHUNKS_MAX
        });
        let (part, after) = rest.split_at(fitting.count().max(1));
        parts.push(part);
        rest = after;
    }
    parts
}

pub(crate) fn encode(packs: &[IndexedPack]) -> Vec<u8> {
    let bytes = packs.iter().map(|pack| 20 + 40 * pack.chunks.len()).sum();
    let mut out = Vec::with_capacity(bytes);
    for pack in packs {
        out.extend_from_slice(&pack.id);
        let count = u32::try_from(pack.chunks.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&encode_entries(&pack.chunks));
    }
    out
}

pub(crate) fn decode(data: &[u8]) -> Result<Vec<IndexedPack>, FormatError> {
    let mut fields = Fields::of(data);
    let mut packs = Vec::new();
    while !fields.is_empty() {
        let id = fields.array()?;
        let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
        let bytes = count
            .checked_mul(40)
            .ok_or_else(|| FormatError::damaged("it is cut short"))?;
        packs.push(IndexedPack {
            id,
            chunks: decode_entries(fields.take(bytes)?)?,
        });
    }
    Ok(packs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(id: u8, chunks: usize) -> IndexedPack {
        let chunk = PackedChunk {
            name: [id; 32],
            stored: 18,
            length: 1,
        };
        IndexedPack {
            id: [id; 16],
            chunks: vec![chunk; chunks],
        }
    }

    #[test]
    fn an_index_comes_back_and_impossible_lengths_are_refused() {
        let packs = vec![pack(1, 0), pack(2, 3)];
        let data = encode(&packs);
        assert_eq!(decode(&data).unwrap(), packs);
        for length in 0..data.len() {
            assert!(decode(&data[..length]) != Ok(packs.clone()), "{length}");
        }
        for (stored, length) in [(16, 1), (19, 1), (17, u32::MAX), (100, (16 << 20) + 1)] {
            let mut bad = pack(3, 1);
            bad.chunks[0] = PackedChunk {
                stored,
                length,
                ..bad.chunks[0]
            };
            assert!(decode(&encode(&[bad])).is_err(), "{stored} {length}");
        }
    }

    #[test]
    fn many_packs_are_divided_and_none_is_lost() {
        let packs: Vec<IndexedPack> = (0..10_000).map(|_| pack(1, 1)).collect();
        let parts = parts(&packs);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.concat(), packs);
        let large = [pack(1, CHUNKS_MAX + 1), pack(2, 1), pack(3, CHUNKS_MAX)];
        let sizes: Vec<usize> = super::parts(&large).iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }
}

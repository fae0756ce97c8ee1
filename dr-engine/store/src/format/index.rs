//! An index, `index/<workload>/<32 hex>`: packs of one data key and what is in them. Sealed
//! under that key ([`super::sealed`]). Body: for each pack its id (16), the number of
//! its chunks (4), and its table of contents as in the pack.

use super::FormatError;
use super::bytes::Fields;
use super::pack::{PackId, PackedChunk, decode_entries, encode_entries};

/// A pack in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexedPack {
    pub(crate) id: PackId,
    pub(crate) chunks: Vec<PackedChunk>,
}

pub(crate) fn encode(packs: &[IndexedPack]) -> Vec<u8> {
    let mut out = Vec::new();
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

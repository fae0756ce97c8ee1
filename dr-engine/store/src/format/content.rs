//! What a file's content (or a listing) consists of: a tree of chunks.
//!
//! A reference names a chunk and says how many bytes of content it stands for. Up to
//! [`DIRECT_REFERENCES_MAX`] references are kept where the content is described; more are gathered in
//! order into lists of [`LIST_REFERENCES_MAX`], which are stored as chunks themselves and referred to
//! in their place, and so on. An unchanged stretch of a large file is then one reference, and any byte
//! is found by reading one list for each level.
//!
//! A reference: the chunk's name (32), bytes of content (8).

use super::bytes::Fields;
use super::{ChunkName, FormatError};

/// References kept in place: a file of some MiB needs no list.
pub(crate) const DIRECT_REFERENCES_MAX: usize = 32;
/// References in one list: 160 KiB, and 1 GiB of content where it is cut every 256 KiB.
pub(crate) const LIST_REFERENCES_MAX: usize = 4096;
/// Bytes of a reference.
const REFERENCE_BYTES: usize = 40;
/// Levels of lists that a reader follows: 32 x 4096^4 chunks are more than any file has.
pub(crate) const DEPTH_MAX: u8 = 4;

/// References in place that a reader takes; writers keep [`DIRECT_REFERENCES_MAX`].
const PLACE_REFERENCES_MAX: usize = 1024;

/// A chunk, and how much content it (or all below it) stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) name: ChunkName,
    pub(crate) bytes: u64,
}

/// A whole content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    /// Its size.
    pub(crate) bytes: u64,
    /// CRC-32C of it (RFC 3720, appendix B.4).
    pub(crate) crc32c: u32,
    /// Levels of lists between the references here and the content.
    pub(crate) depth: u8,
    pub(crate) references: Vec<Reference>,
}

pub(crate) fn encode_references(out: &mut Vec<u8>, references: &[Reference]) {
    for reference in references {
        out.extend_from_slice(&reference.name);
        out.extend_from_slice(&reference.bytes.to_le_bytes());
    }
}

pub(crate) fn decode_references(data: &[u8]) -> Result<Vec<Reference>, FormatError> {
    let mut fields = Fields::of(data);
    let mut references = Vec::with_capacity(data.len() / REFERENCE_BYTES);
    while !fields.is_empty() {
        references.push(Reference {
            name: fields.array()?,
            bytes: fields.u64()?,
        });
    }
    none_is_empty(&references)?;
    Ok(references)
}

/// With no reference to nothing, what a reader has to follow is bounded by the size it was promised.
fn none_is_empty(references: &[Reference]) -> Result<(), FormatError> {
    match references.iter().any(|reference| reference.bytes == 0) {
        true => Err(FormatError::damaged("a reference in it stands for nothing")),
        false => Ok(()),
    }
}

impl Content {
    /// Bytes (8), CRC-32C (4), depth (1), number of references (4), references.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.crc32c.to_le_bytes());
        out.push(self.depth);
        let count = u32::try_from(self.references.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        encode_references(out, &self.references);
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let (bytes, crc32c, depth) = (fields.u64()?, fields.u32()?, fields.u8()?);
        let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
        let length = count
            .checked_mul(REFERENCE_BYTES)
            .ok_or_else(|| FormatError::damaged("it is cut short"))?;
        let content = Self {
            bytes,
            crc32c,
            depth,
            references: decode_references(fields.take(length)?)?,
        };
        content.check()?;
        Ok(content)
    }

    /// What a reader relies on before it follows the references.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        let sum = self
            .references
            .iter()
            .try_fold(0u64, |sum, reference| sum.checked_add(reference.bytes));
        none_is_empty(&self.references)?;
        if self.references.len() > PLACE_REFERENCES_MAX {
            Err(FormatError::damaged("a content in it has too many parts"))
        } else if self.depth > DEPTH_MAX {
            Err(FormatError::damaged("a content in it is nested too deep"))
        } else if sum != Some(self.bytes) {
            Err(FormatError::damaged(
                "the parts of a content in it do not come to its size",
            ))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_content_survives_a_round_trip(
            parts in prop::collection::vec((any::<[u8; 32]>(), 1u64..1 << 40), 0..40),
            crc32c in any::<u32>(),
            depth in 0..=DEPTH_MAX,
        ) {
            let references: Vec<Reference> =
                parts.into_iter().map(|(name, bytes)| Reference { name, bytes }).collect();
            let bytes = references.iter().map(|reference| reference.bytes).sum();
            let content = Content { bytes, crc32c, depth, references };
            let mut out = Vec::new();
            content.encode(&mut out);
            let mut fields = Fields::of(&out);
            prop_assert_eq!(Content::decode(&mut fields).unwrap(), content);
            prop_assert!(fields.is_empty());
        }
    }

    #[test]
    fn parts_that_do_not_come_to_the_size_are_refused() {
        let reference = Reference {
            name: [1; 32],
            bytes: u64::MAX,
        };
        let mut content = Content {
            bytes: 5,
            references: vec![reference],
            ..Content::default()
        };
        assert!(content.check().is_err());
        content.references.push(reference);
        content.bytes = u64::MAX.wrapping_mul(2);
        assert!(content.check().is_err(), "a sum that wraps around");
        content.references.clear();
        content.bytes = 0;
        content.depth = DEPTH_MAX + 1;
        assert!(content.check().is_err(), "too deep");
        content.depth = 0;
        assert!(content.check().is_ok());
        content.references.push(Reference {
            name: [1; 32],
            bytes: 0,
        });
        assert!(content.check().is_err(), "a reference to nothing");
    }
}

//! Putting a file's content together from chunks that are stored in any order.
//!
//! Workers finish chunks as they come; references are taken in order, and every full list of them is
//! stored as a chunk of its own at once. So what is held of a file does not grow with it: a few lists,
//! and the references that wait for an earlier one, of which there are no more than chunks in flight.

use std::collections::BTreeMap;

use crate::StoreError;
use crate::format::ChunkName;
use crate::format::content::{
    Content, DIRECT_REFERENCES_MAX, LIST_REFERENCES_MAX, Reference, encode_references,
};

/// Stores a list of references as a chunk and names it.
pub(super) type StoreList<'a> = &'a dyn Fn(Vec<u8>) -> Result<ChunkName, StoreError>;

/// References in order, gathered into lists.
#[derive(Debug, Default)]
struct ContentBuilder {
    /// What is not yet in a list, by level; 0 are the chunks of the content.
    levels: Vec<Vec<Reference>>,
}

impl ContentBuilder {
    fn push(
        &mut self,
        level: usize,
        reference: Reference,
        store: StoreList<'_>,
    ) -> Result<(), StoreError> {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let full = match self.levels.get_mut(level) {
            Some(references) => {
                references.push(reference);
                references.len() >= LIST_REFERENCES_MAX
            }
            None => false,
        };
        if full {
            self.fold(level, store)?;
        }
        Ok(())
    }

    /// Puts what there is of a level into a list, and refers to it one level up.
    fn fold(&mut self, level: usize, store: StoreList<'_>) -> Result<(), StoreError> {
        let references = self
            .levels
            .get_mut(level)
            .map(std::mem::take)
            .unwrap_or_default();
        let mut list = Vec::new();
        encode_references(&mut list, &references);
        let reference = Reference {
            name: store(list)?,
            bytes: references.iter().map(|reference| reference.bytes).sum(),
        };
        self.push(level + 1, reference, store)
    }

    fn finish(mut self, store: StoreList<'_>) -> Result<(u8, Vec<Reference>), StoreError> {
        let mut level = 0;
        loop {
            let is_top = self.levels.len() <= level + 1;
            let count = self.levels.get(level).map_or(0, Vec::len);
            if is_top && count <= DIRECT_REFERENCES_MAX {
                let references = self.levels.pop().unwrap_or_default();
                return Ok((u8::try_from(level).unwrap_or(u8::MAX), references));
            }
            if count > 0 {
                self.fold(level, store)?;
            }
            level += 1;
        }
    }
}

/// A file whose chunks are on their way.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    next: u64,
    early: BTreeMap<u64, Reference>,
    builder: ContentBuilder,
    /// How many chunks there are and the checksum of all, once the file was read to its end.
    ended: Option<(u64, u32)>,
    bytes: u64,
}

impl Assembly {
    /// Chunk `number` is stored.
    pub(super) fn stored(
        &mut self,
        number: u64,
        reference: Reference,
        store: StoreList<'_>,
    ) -> Result<(), StoreError> {
        self.early.insert(number, reference);
        while let Some(reference) = self.early.remove(&self.next) {
            self.next += 1;
            self.bytes += reference.bytes;
            self.builder.push(0, reference, store)?;
        }
        Ok(())
    }

    /// The source was read to its end: so many chunks, and this CRC-32C.
    pub(super) fn ended(&mut self, chunks: u64, crc32c: u32) {
        self.ended = Some((chunks, crc32c));
    }

    /// The content, once everything of it is stored; only once.
    pub(super) fn complete(&mut self, store: StoreList<'_>) -> Result<Option<Content>, StoreError> {
        let Some((_, crc32c)) = self.ended.filter(|(chunks, _)| *chunks == self.next) else {
            return Ok(None);
        };
        self.ended = None;
        let (depth, references) = std::mem::take(&mut self.builder).finish(store)?;
        Ok(Some(Content {
            bytes: self.bytes,
            crc32c,
            depth,
            references,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;
    use crate::format::content::decode_references;

    type Lists = RefCell<HashMap<ChunkName, Vec<u8>>>;

    fn name(number: u64) -> ChunkName {
        crate::crypto::sha256(&number.to_le_bytes())
    }

    fn leaves(lists: &Lists, depth: u8, references: &[Reference]) -> Vec<Reference> {
        if depth == 0 {
            return references.to_vec();
        }
        let below = |reference: &Reference| {
            let list = decode_references(&lists.borrow()[&reference.name]).unwrap();
            let bytes: u64 = list.iter().map(|reference| reference.bytes).sum();
            assert_eq!(bytes, reference.bytes);
            leaves(lists, depth - 1, &list)
        };
        references.iter().flat_map(below).collect()
    }

    #[test]
    fn chunks_stored_in_any_order_come_out_in_theirs() {
        for count in [
            0u64,
            1,
            32,
            33,
            4096,
            4097,
            32 * 4096,
            32 * 4096 + 1,
            33 * 4096,
        ] {
            let lists = Lists::default();
            let store = |list: Vec<u8>| {
                let name = crate::crypto::sha256(&list);
                lists.borrow_mut().insert(name, list);
                Ok(name)
            };
            let mut assembly = Assembly::default();
            let reference = |number| Reference {
                name: name(number),
                bytes: number % 7 + 1,
            };
            assembly.ended(count, 99);
            let order = (0..count).map(|number| number ^ 5).filter(|n| *n < count);
            let mut seen: Vec<u64> = order.collect();
            seen.extend((0..count).filter(|number| (number ^ 5) >= count));
            for number in seen {
                assert!(count == 0 || assembly.complete(&store).unwrap().is_none());
                assembly.stored(number, reference(number), &store).unwrap();
            }
            let content = assembly.complete(&store).unwrap().unwrap();
            assert!(assembly.complete(&store).unwrap().is_none());
            assert!(content.references.len() <= DIRECT_REFERENCES_MAX);
            content.check().unwrap();
            let expected: Vec<Reference> = (0..count).map(reference).collect();
            assert_eq!(
                leaves(&lists, content.depth, &content.references),
                expected,
                "{count}"
            );
        }
    }
}

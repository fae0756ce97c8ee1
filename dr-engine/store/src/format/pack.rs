//! A pack, `data/<workload>/<2 hex>/<32 hex>`: chunks of one data key, each sealed by itself, and a sealed
//! table of contents from which the index can be made again.
//!
//! ```text
//!  0 64  header
//! 64  …  frames 0 … n-1, one chunk each: the chunk packed, sealed, bound to the chunk's name
//!  …  …  frame n, sealed: for each chunk its name (32), stored length (4), length (4)
//!  … 16  offset of frame n (8), "dr-pack" and a zero (8)
//! ```

use bytes::Bytes;
use dr_model::WorkloadName;

use super::bytes::Fields;
use super::header::{HEADER_BYTES, Header, Kind};
use super::{CHUNK_BYTES_MAX, ChunkName, FormatError, RepositoryId, VERSION};
use crate::compress;
use crate::crypto::{CryptoFailed, FrameContext, Keys, ObjectSeal, TAG_BYTES};

const END: &[u8; 8] = b"dr-pack\0";
const ENTRY_BYTES: usize = 40;
/// What storing adds to a chunk at most: the byte that names the coding, and the tag.
const ADDED_BYTES_MAX: u32 = 17;
/// Bytes of the end of a pack.
pub(crate) const FOOTER_BYTES: usize = 16;
/// What the table of contents is bound to in place of a chunk's name.
const CONTENTS: &[u8] = b"contents";

/// One chunk in a pack, by its place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedChunk {
    pub(crate) name: ChunkName,
    /// Bytes in the pack.
    pub(crate) stored: u32,
    /// Bytes of the chunk.
    pub(crate) length: u32,
}

/// Where a chunk lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) frame: u64,
    pub(crate) offset: u64,
    pub(crate) stored: u32,
    pub(crate) length: u32,
}

/// Names a pack within its workload.
pub(crate) type PackId = [u8; 16];

/// Where a workload's packs are.
pub(crate) fn prefix(workload: &WorkloadName) -> String {
    format!("data/{workload}/")
}

/// The object name of a pack.
pub(crate) fn object_name(workload: &WorkloadName, id: &PackId) -> String {
    let hex = hex::encode(id);
    format!("data/{workload}/{}/{hex}", hex.get(..2).unwrap_or_default())
}

/// The pack's id in an object name.
pub(crate) fn id_of(workload: &WorkloadName, object: &str) -> Option<PackId> {
    let mut id = [0u8; 16];
    hex::decode_to_slice(object.rsplit('/').next()?, &mut id).ok()?;
    (object_name(workload, &id) == object).then_some(id)
}

/// The places of chunks stored one after the other.
pub(crate) fn places(chunks: &[PackedChunk]) -> impl Iterator<Item = (ChunkName, Place)> {
    let mut offset = HEADER_BYTES as u64;
    chunks.iter().zip(0u64..).map(move |(chunk, frame)| {
        let place = Place {
            frame,
            offset,
            stored: chunk.stored,
            length: chunk.length,
        };
        offset += u64::from(chunk.stored);
        (chunk.name, place)
    })
}

/// The size a pack with these chunks has: a pack of another size is not whole.
pub(crate) fn size(chunks: &[PackedChunk]) -> u64 {
    let frames: u64 = chunks.iter().map(|chunk| u64::from(chunk.stored)).sum();
    frames + HEADER_BYTES as u64 + tail_bytes(chunks.len())
}

/// Bytes of the table of contents and the end of a pack of so many chunks.
pub(crate) fn tail_bytes(chunks: usize) -> u64 {
    (chunks * ENTRY_BYTES + TAG_BYTES + FOOTER_BYTES) as u64
}

/// Room for a chunk while it is opened. Whoever reads many keeps it: to be given memory anew for each of them costs more
/// than what is copied into it.
#[derive(Debug, Default)]
pub(crate) struct ChunkRoom {
    frame: Vec<u8>,
    chunk: Vec<u8>,
}

/// What opens the frames of one pack.
#[derive(Debug)]
pub(crate) struct PackOpener {
    repository: RepositoryId,
    object: String,
    header: Header,
    seal: ObjectSeal,
}

impl PackOpener {
    /// From the first bytes of the pack.
    pub(crate) fn new(
        repository: &RepositoryId,
        keys: &Keys,
        object: &str,
        header: &[u8],
    ) -> Result<Self, FormatError> {
        let header = Header::decode(header, Kind::Pack, Some(&keys.id()))?;
        Self::of(repository, keys, object, header).map_err(Into::into)
    }

    fn of(
        repository: &RepositoryId,
        keys: &Keys,
        object: &str,
        header: Header,
    ) -> Result<Self, CryptoFailed> {
        let seal = keys.object_seal(Kind::Pack as u8, &header.salt)?;
        Ok(Self {
            repository: *repository,
            object: object.to_owned(),
            header,
            seal,
        })
    }

    fn context<'a>(&'a self, frame: u64, offset: u64, bound_to: &'a [u8]) -> FrameContext<'a> {
        FrameContext {
            repository: &self.repository,
            version: VERSION,
            kind: Kind::Pack as u8,
            key_id: &self.header.key_id,
            object: &self.object,
            frame,
            offset,
            bound_to,
        }
    }

    /// Opens one chunk and computes its name again.
    pub(crate) fn chunk(
        &self,
        keys: &Keys,
        name: &ChunkName,
        place: &Place,
        stored: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        let mut room = ChunkRoom::default();
        self.chunk_into(keys, name, place, stored, &mut room)?;
        Ok(room.chunk)
    }

    /// As [`Self::chunk`], in room that was used for other chunks before.
    pub(crate) fn chunk_into<'r>(
        &self,
        keys: &Keys,
        name: &ChunkName,
        place: &Place,
        stored: &[u8],
        room: &'r mut ChunkRoom,
    ) -> Result<&'r [u8], FormatError> {
        let ChunkRoom { frame, chunk } = room;
        frame.clear();
        frame.extend_from_slice(stored);
        let context = self.context(place.frame, place.offset, name);
        self.seal.open_in_place(&context, frame)?;
        compress::unpack_into(frame, u64::from(place.length), chunk)?;
        if keys.chunk_name(chunk) == *name {
            Ok(chunk)
        } else {
            Err(FormatError::damaged(
                "a chunk in it has not the content its name stands for",
            ))
        }
    }

    /// Opens one chunk and computes its name again; returns it as it was packed.
    fn packed_chunk(
        &self,
        keys: &Keys,
        name: &ChunkName,
        place: &Place,
        stored: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        let context = self.context(place.frame, place.offset, name);
        let frame = self.seal.open(&context, stored.to_vec())?;
        let chunk = compress::unpack(&frame, u64::from(place.length))?;
        if keys.chunk_name(&chunk) == *name {
            Ok(frame)
        } else {
            Err(FormatError::damaged(
                "a chunk in it has not the content its name stands for",
            ))
        }
    }

    /// Reads the table of contents of a pack of `size` bytes from its `tail`: the whole pack, or as much
    /// of its end as [`tail_bytes`] says.
    pub(crate) fn contents(&self, tail: &[u8], size: u64) -> Result<Vec<PackedChunk>, FormatError> {
        let cut = || FormatError::damaged("it is cut short");
        let body = tail.len().checked_sub(FOOTER_BYTES).ok_or_else(cut)?;
        let (body, footer) = tail.split_at_checked(body).ok_or_else(cut)?;
        let mut fields = Fields::of(footer);
        let offset = fields.u64()?;
        if fields.array::<8>()? != *END {
            return Err(FormatError::damaged("it does not end as a pack does"));
        }
        let before = size.checked_sub(tail.len() as u64).ok_or_else(cut)?;
        let start = offset
            .checked_sub(before)
            .and_then(|start| usize::try_from(start).ok())
            .ok_or_else(cut)?;
        let (_, table) = body.split_at_checked(start).ok_or_else(cut)?;
        let count = table.len().checked_sub(TAG_BYTES).ok_or_else(cut)? / ENTRY_BYTES;
        let table = self.seal.open(
            &self.context(count as u64, offset, CONTENTS),
            table.to_vec(),
        )?;
        let chunks = decode_entries(&table)?;
        if self::size(&chunks) == size {
            Ok(chunks)
        } else {
            Err(FormatError::damaged("its length does not fit its contents"))
        }
    }
}

/// Opens every chunk of a whole pack, in order; stops at the receiver's first error. The outer error is a
/// pack whose table of contents cannot be read.
pub(crate) fn each_chunk<E>(
    repository: &RepositoryId,
    keys: &Keys,
    object: &str,
    data: &[u8],
    each: &mut dyn FnMut(ChunkName, Result<Vec<u8>, FormatError>) -> Result<(), E>,
) -> Result<Result<(), E>, FormatError> {
    let opener = PackOpener::new(repository, keys, object, data)?;
    let chunks = opener.contents(data, data.len() as u64)?;
    for (name, place) in places(&chunks) {
        let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
        let stored = usize::try_from(place.stored).unwrap_or(usize::MAX);
        let sealed = data
            .get(start..start.saturating_add(stored))
            .unwrap_or_default();
        if let Err(error) = each(name, opener.chunk(keys, &name, &place, sealed)) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// [`each_chunk`] of the chunks that are `wanted`, as they were packed: to be put into another pack.
pub(crate) fn each_packed_chunk<E>(
    repository: &RepositoryId,
    keys: &Keys,
    object: &str,
    data: &[u8],
    wanted: &dyn Fn(&ChunkName) -> bool,
    each: &mut dyn FnMut(ChunkName, u32, Result<Vec<u8>, FormatError>) -> Result<(), E>,
) -> Result<Result<(), E>, FormatError> {
    let opener = PackOpener::new(repository, keys, object, data)?;
    let chunks = opener.contents(data, data.len() as u64)?;
    for (name, place) in places(&chunks).filter(|(name, _)| wanted(name)) {
        let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
        let stored = usize::try_from(place.stored).unwrap_or(usize::MAX);
        let sealed = data
            .get(start..start.saturating_add(stored))
            .unwrap_or_default();
        let packed = opener.packed_chunk(keys, &name, &place, sealed);
        if let Err(error) = each(name, place.length, packed) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

pub(crate) fn encode_entries(chunks: &[PackedChunk]) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunks.len() * ENTRY_BYTES + TAG_BYTES);
    for chunk in chunks {
        out.extend_from_slice(&chunk.name);
        out.extend_from_slice(&chunk.stored.to_le_bytes());
        out.extend_from_slice(&chunk.length.to_le_bytes());
    }
    out
}

pub(crate) fn decode_entries(data: &[u8]) -> Result<Vec<PackedChunk>, FormatError> {
    let mut fields = Fields::of(data);
    let mut chunks = Vec::with_capacity(data.len() / ENTRY_BYTES);
    while !fields.is_empty() {
        let chunk = PackedChunk {
            name: fields.array()?,
            stored: fields.u32()?,
            length: fields.u32()?,
        };
        let stored_max = chunk.length.saturating_add(ADDED_BYTES_MAX);
        if chunk.length > CHUNK_BYTES_MAX || !(ADDED_BYTES_MAX..=stored_max).contains(&chunk.stored)
        {
            return Err(FormatError::damaged("a chunk in it has no possible length"));
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// A pack being filled in memory.
#[derive(Debug)]
pub(crate) struct PackBuilder {
    id: PackId,
    opener: PackOpener,
    data: Vec<u8>,
    chunks: Vec<PackedChunk>,
}

/// A pack ready to be stored.
#[derive(Debug)]
pub(crate) struct FullPack {
    pub(crate) id: PackId,
    pub(crate) object: String,
    pub(crate) data: Bytes,
    pub(crate) chunks: Vec<PackedChunk>,
}

impl PackBuilder {
    pub(crate) fn new(
        repository: &RepositoryId,
        workload: &WorkloadName,
        keys: &Keys,
        capacity: usize,
    ) -> Result<Self, CryptoFailed> {
        let mut id = [0u8; 16];
        dr_model::random::fill(&mut id);
        let header = Header::new(Kind::Pack, keys);
        let mut data = Vec::with_capacity(capacity);
        data.extend_from_slice(&header.encode());
        let opener = PackOpener::of(repository, keys, &object_name(workload, &id), header)?;
        Ok(Self {
            id,
            opener,
            data,
            chunks: Vec::new(),
        })
    }

    /// Bytes gathered so far.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    /// Adds a chunk of `length` bytes that was packed by [`compress::pack`].
    pub(crate) fn add(
        &mut self,
        name: ChunkName,
        length: u32,
        mut packed: Vec<u8>,
    ) -> Result<(), CryptoFailed> {
        let context = self
            .opener
            .context(self.chunks.len() as u64, self.data.len() as u64, &name);
        self.opener.seal.seal(&context, &mut packed)?;
        let stored = u32::try_from(packed.len()).map_err(|_| CryptoFailed)?;
        if length > CHUNK_BYTES_MAX {
            return Err(CryptoFailed);
        }
        self.data.extend_from_slice(&packed);
        self.chunks.push(PackedChunk {
            name,
            stored,
            length,
        });
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<FullPack, CryptoFailed> {
        let offset = self.data.len() as u64;
        let mut table = encode_entries(&self.chunks);
        let context = self
            .opener
            .context(self.chunks.len() as u64, offset, CONTENTS);
        self.opener.seal.seal(&context, &mut table)?;
        self.data.extend_from_slice(&table);
        self.data.extend_from_slice(&offset.to_le_bytes());
        self.data.extend_from_slice(END);
        Ok(FullPack {
            id: self.id,
            object: self.opener.object,
            data: self.data.into(),
            chunks: self.chunks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn a_pack_tells_its_contents_and_no_flipped_byte_passes() {
        let keys = Keys::new(random_secret()).unwrap();
        let id = [1u8; 16];
        let erp: WorkloadName = "erp".parse().unwrap();
        let mut builder = PackBuilder::new(&id, &erp, &keys, 1024).unwrap();
        let chunks: Vec<Vec<u8>> = vec![b"one".to_vec(), vec![9; 500], b"three".to_vec()];
        for chunk in &chunks {
            let length = u32::try_from(chunk.len()).unwrap();
            builder
                .add(keys.chunk_name(chunk), length, compress::pack(chunk, 3))
                .unwrap();
        }
        let full = builder.finish().unwrap();
        let read = |data: &[u8]| -> Result<Vec<Vec<u8>>, FormatError> {
            let opener = PackOpener::new(&id, &keys, &full.object, data)?;
            let contents = opener.contents(data, data.len() as u64)?;
            let tail = data.len() - usize::try_from(tail_bytes(contents.len())).unwrap();
            assert_eq!(opener.contents(&data[tail..], data.len() as u64)?, contents);
            places(&contents)
                .map(|(name, place)| {
                    let start = usize::try_from(place.offset).unwrap();
                    opener.chunk(
                        &keys,
                        &name,
                        &place,
                        &data[start..start + place.stored as usize],
                    )
                })
                .collect()
        };
        assert_eq!(read(&full.data).unwrap(), chunks);
        assert_eq!(size(&full.chunks), full.data.len() as u64);
        assert_eq!(id_of(&erp, &full.object), Some(full.id));
        assert_eq!(id_of(&erp, &full.object.to_uppercase()), None);
        for index in 0..full.data.len() {
            let mut changed = full.data.to_vec();
            changed[index] ^= 0x80;
            assert!(read(&changed).is_err(), "byte {index} was not noticed");
            assert!(
                read(&full.data[..index]).is_err(),
                "cut at {index} was not noticed"
            );
        }
    }
}

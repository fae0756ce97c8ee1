//! A file that is there already, made into what a restore point holds: only what differs is fetched, and only
//! the blocks that differ are written.
//!
//! What is there is believed no more than what is stored: each chunk of it is named anew, and the whole is
//! compared with the checksum taken at capture.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::PointReader;
use crate::StoreError;
use crate::crypto::Keys;
use crate::format::content::Reference;
use crate::format::tree::TreeEntry;

/// PostgreSQL's page, and what file systems keep together.
const BLOCK_BYTES: usize = 8192;
/// What differs is fetched together, up to so many chunks.
const RUN_MAX: usize = 32;

/// What became of a file that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Updated {
    /// Bytes that were as they should be.
    pub same: u64,
    /// Bytes that were written.
    pub written: u64,
}

/// How far an update is.
struct Progress<'f> {
    file: &'f File,
    /// The first byte that was not looked at.
    offset: u64,
    /// Where the chunks that differ begin, and they.
    differing: (u64, Vec<Reference>),
    crc32c: u32,
    updated: Updated,
}

impl PointReader {
    /// Makes `file`, which is open for reading and writing, into what the point holds of an entry. `each` is
    /// told how many bytes are right now. When it fails, the file is neither what it was nor what it should be.
    ///
    /// # Errors
    /// As [`Self::read_file`].
    pub fn update_file(
        &self,
        entry: &TreeEntry,
        file: &File,
        each: &mut dyn FnMut(u64),
    ) -> Result<Updated, StoreError> {
        let content = self.content_of(entry)?;
        let keys = self.keys(entry.key)?;
        let mut progress = Progress {
            file,
            offset: 0,
            differing: (0, Vec::new()),
            crc32c: 0,
            updated: Updated::default(),
        };
        let mut look = |reference: &Reference| {
            self.look(entry, &keys, &mut progress, reference)?;
            each(reference.bytes);
            Ok(())
        };
        self.each_leaf(&keys, content.depth, &content.references, &mut look)?;
        self.write_differing(entry, &keys, &mut progress)?;
        file.set_len(content.bytes)
            .map_err(|source| self.sink_failed(entry, source))?;
        if progress.crc32c != content.crc32c {
            return Err(self.damaged(format!(
                "the content of `{}` is not what was captured",
                entry.meta.path
            )));
        }
        Ok(progress.updated)
    }

    fn sink_failed(&self, entry: &TreeEntry, source: io::Error) -> StoreError {
        StoreError::Sink {
            path: entry.meta.path.clone(),
            point: self.stored.point.id.clone(),
            source,
        }
    }

    /// A content's own chunks, in order.
    fn each_leaf(
        &self,
        keys: &Keys,
        depth: u8,
        references: &[Reference],
        each: &mut dyn FnMut(&Reference) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for reference in references {
            if depth == 0 {
                each(reference)?;
            } else {
                let list = self.list(keys, reference)?;
                self.each_leaf(keys, depth - 1, &list, each)?;
            }
        }
        Ok(())
    }

    /// Whether the file has a chunk where it belongs.
    fn look(
        &self,
        entry: &TreeEntry,
        keys: &Keys,
        progress: &mut Progress<'_>,
        reference: &Reference,
    ) -> Result<(), StoreError> {
        let there = read_at(progress.file, progress.offset, reference.bytes)
            .map_err(|source| self.sink_failed(entry, source))?;
        let is_same =
            there.len() as u64 == reference.bytes && keys.chunk_name(&there) == reference.name;
        if is_same {
            self.write_differing(entry, keys, progress)?;
            progress.crc32c = crc32c::crc32c_append(progress.crc32c, &there);
            progress.updated.same += reference.bytes;
        } else {
            if progress.differing.1.is_empty() {
                progress.differing.0 = progress.offset;
            }
            progress.differing.1.push(*reference);
        }
        progress.offset += reference.bytes;
        if progress.differing.1.len() >= RUN_MAX {
            self.write_differing(entry, keys, progress)?;
        }
        Ok(())
    }

    fn write_differing(
        &self,
        entry: &TreeEntry,
        keys: &Keys,
        progress: &mut Progress<'_>,
    ) -> Result<(), StoreError> {
        let (mut offset, references) = std::mem::take(&mut progress.differing);
        if references.is_empty() {
            return Ok(());
        }
        self.leaves(keys, &references, &mut |chunk| {
            progress.crc32c = crc32c::crc32c_append(progress.crc32c, chunk);
            let written = write_blocks(progress.file, offset, chunk)
                .map_err(|source| self.sink_failed(entry, source))?;
            progress.updated.written += written;
            progress.updated.same += chunk.len() as u64 - written;
            offset += chunk.len() as u64;
            Ok(())
        })
    }
}

/// What the file has there; less at its end.
fn read_at(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut there = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    let mut read = 0;
    while let Some(rest) = there.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    there.truncate(read);
    Ok(there)
}

/// Writes the blocks of a chunk that the file does not have; how many bytes these are.
fn write_blocks(file: &File, offset: u64, chunk: &[u8]) -> io::Result<u64> {
    let there = read_at(file, offset, chunk.len() as u64)?;
    let mut written = 0;
    let mut at = offset;
    let mut there = there.chunks(BLOCK_BYTES);
    for block in chunk.chunks(BLOCK_BYTES) {
        if there.next() != Some(block) {
            file.write_all_at(block, at)?;
            written += block.len() as u64;
        }
        at += block.len() as u64;
    }
    Ok(written)
}

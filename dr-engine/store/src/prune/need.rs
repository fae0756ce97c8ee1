//! Which chunks the restore points need: one bit for each row of the index.
//!
//! Each point is read once. Most of what its listing names was named by an earlier point already, and
//! is not looked at again:
//! - a list of chunks (of a large file) that was followed once is not followed again;
//! - a piece of a listing that was read once with the same beginning of an entry before it says what it
//!   said then, and ends as it ended then: it is not even fetched.
//!
//! So the work is linear in what is distinct. Memory is two bits and a little more for each chunk, and
//! the end of the last entry for each piece of a listing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dr_model::{RestorePointId, WorkloadName};

use super::bits::Bits;
use crate::StoreError;
use crate::crypto::{Keys, sha256};
use crate::format::chain::ChainedPoint;
use crate::format::content::{Content, DEPTH_MAX, Reference};
use crate::format::tree::{self, TreeEntry};
use crate::format::{ChunkName, FormatError};
use crate::repo::index::Index;
use crate::repo::index::table::ShortName;
use crate::repo::points::{StoredPoint, point_name};
use crate::repo::reader::PointReader;
use crate::repo::{Inner, Repository, fetch};

/// Restore points whose objects are fetched side by side.
const POINTS_AT_ONCE: usize = 64;

/// A piece of a listing, and what came before it of an entry.
type Piece = (ShortName, [u8; 32]);

/// What the restore points looked at so far need.
#[derive(Debug)]
pub(super) struct NeedSet {
    pub(super) index: Arc<Index>,
    /// The first row of each chunk that is needed.
    needed: Bits,
    /// Lists that were followed, by how deep the lists below them go: the same bytes may be data too.
    followed: [Bits; DEPTH_MAX as usize + 1],
    /// How each piece of a listing ended: the beginning of an entry.
    pieces: HashMap<Piece, Arc<Vec<u8>>>,
    points: HashSet<RestorePointId>,
}

/// Why needs could not be found out.
pub(super) enum NeedError {
    /// No index names a chunk; it may be that the index was read too early.
    NoChunk(ChunkName),
    Store(StoreError),
}

impl From<StoreError> for NeedError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl NeedSet {
    pub(super) fn new(index: Arc<Index>) -> Self {
        let rows = index.table().len();
        Self {
            index,
            needed: Bits::new(rows),
            followed: std::array::from_fn(|_| Bits::new(rows)),
            pieces: HashMap::new(),
            points: HashSet::new(),
        }
    }

    /// The same needs over another reading of the index.
    pub(super) fn over(&self, index: Arc<Index>) -> Result<Self, NeedError> {
        let mut moved = Self::new(index);
        for row in 0..self.index.table().len() {
            if !self.needed.get(row) {
                continue;
            }
            if let Some((name, _)) = self.index.table().row(row) {
                let row = moved.index.table().first_row(name);
                moved
                    .needed
                    .set(row.ok_or_else(|| NeedError::NoChunk(name.padded()))?);
            }
        }
        moved.points.clone_from(&self.points);
        Ok(moved)
    }

    pub(super) fn is_needed(&self, first_row: usize) -> bool {
        self.needed.get(first_row)
    }

    /// Adds what these points need, as far as they were not looked at before.
    pub(super) fn add(
        &mut self,
        repository: &Repository,
        workload: &WorkloadName,
        points: &[ChainedPoint],
    ) -> Result<(), NeedError> {
        let repo = repository.inner();
        let new: Vec<&ChainedPoint> = points
            .iter()
            .filter(|chained| !self.points.contains(&chained.point.id))
            .collect();
        for group in new.chunks(POINTS_AT_ONCE) {
            let read = fetch::each(group, |chained| read_listed(repo, workload, chained));
            for (chained, stored) in group.iter().zip(read) {
                self.add_point(repository, &stored?)?;
                self.points.insert(chained.point.id.clone());
            }
        }
        Ok(())
    }

    fn add_point(
        &mut self,
        repository: &Repository,
        stored: &StoredPoint,
    ) -> Result<(), NeedError> {
        let object = point_name(&stored.point.id);
        let damaged = |error| NeedError::Store(repository.inner().unreadable(&object, error));
        let reader = repository.reader(stored)?;
        let listing = stored.object.listing.content().map_err(damaged)?;
        let keys = reader.keys(0)?;
        let mut rest = Arc::new(Vec::new());
        self.listing(
            &reader,
            &keys,
            listing.depth,
            &listing.references,
            &mut rest,
        )?;
        if rest.is_empty() {
            Ok(())
        } else {
            let error = FormatError::damaged("its listing does not end with an entry");
            Err(damaged(error))
        }
    }

    /// Goes through the pieces of a listing in order; `rest` is the beginning of the entry at hand.
    fn listing(
        &mut self,
        reader: &PointReader,
        keys: &Keys,
        depth: u8,
        references: &[Reference],
        rest: &mut Arc<Vec<u8>>,
    ) -> Result<(), NeedError> {
        for reference in references {
            self.mark(&reference.name)?;
            if depth > 0 {
                let list = reader.list(keys, reference)?;
                self.listing(reader, keys, depth - 1, &list, rest)?;
                continue;
            }
            let piece = (ShortName::of(&reference.name), sha256(rest));
            *rest = match self.pieces.get(&piece) {
                Some(end) => Arc::clone(end),
                None => {
                    let end = Arc::new(self.piece(reader, keys, reference, rest)?);
                    self.pieces.insert(piece, Arc::clone(&end));
                    end
                }
            };
        }
        Ok(())
    }

    /// Reads one piece of a listing; returns the beginning of the entry it ends in.
    fn piece(
        &mut self,
        reader: &PointReader,
        keys: &Keys,
        reference: &Reference,
        before: &[u8],
    ) -> Result<Vec<u8>, NeedError> {
        let mut data = before.to_vec();
        let chunk = reader.chunk(keys, &reference.name)?;
        data.extend_from_slice(&chunk);
        let (entries, rest) = tree::decode_some(&data);
        for entry in &entries {
            self.entry(reader, entry)?;
        }
        Ok(rest.to_vec())
    }

    fn entry(&mut self, reader: &PointReader, entry: &TreeEntry) -> Result<(), NeedError> {
        let Content {
            depth, references, ..
        } = &entry.content;
        if references.is_empty() {
            return Ok(());
        }
        let keys = match reader.keys(entry.key) {
            Ok(keys) => keys,
            // Nobody can read it any more, so nobody needs it.
            Err(StoreError::Shredded { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.content(reader, &keys, *depth, references)
    }

    fn content(
        &mut self,
        reader: &PointReader,
        keys: &Keys,
        depth: u8,
        references: &[Reference],
    ) -> Result<(), NeedError> {
        for reference in references {
            let row = self.mark(&reference.name)?;
            if depth == 0 {
                continue;
            }
            let followed = self.followed.get_mut(usize::from(depth));
            if followed.is_some_and(|followed| followed.set(row)) {
                let list = reader.list(keys, reference)?;
                self.content(reader, keys, depth - 1, &list)?;
            }
        }
        Ok(())
    }

    fn mark(&mut self, name: &ChunkName) -> Result<usize, NeedError> {
        let row = self.index.table().first_row(ShortName::of(name));
        let row = row.ok_or(NeedError::NoChunk(*name))?;
        self.needed.set(row);
        Ok(row)
    }
}

/// A listed point's object, if it is the one that was listed.
fn read_listed(
    repo: &Inner,
    workload: &WorkloadName,
    chained: &ChainedPoint,
) -> Result<StoredPoint, StoreError> {
    let object = point_name(&chained.point.id);
    let (found, data) = repo
        .read_point(&object)?
        .ok_or_else(|| repo.missing(&object))?;
    if hex::encode(sha256(&data)) != chained.object_sha256 || found.point.workload != *workload {
        let error = FormatError::damaged("it is not the one that was listed");
        return Err(repo.unreadable(&object, error));
    }
    Ok(StoredPoint::of(found))
}

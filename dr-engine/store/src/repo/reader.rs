//! Reading what a restore point holds, whole files or any part of them, from several threads.
//!
//! Nothing read is believed: every chunk is authenticated and its name computed again, and a file read
//! whole is compared with its size and checksum as taken at capture.
//!
//! Chunks that lie one behind the other in a pack are fetched with one request. Of a pack that is asked for
//! again and again (small files lie side by side) long stretches are fetched and kept for a while. Both are
//! bounded; so is what is kept of opened chunks for reading parts of files. A chunk that cannot be read
//! is looked for in other packs that hold it, and each object in every copy of the repository.

mod cache;
mod update;

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use dr_model::WorkloadName;

use super::index::Index;
use super::index::contents::PackContents;
use super::keys::KeyId;
use super::points::{StoredPoint, point_name};
use super::{Inner, Repository, fetch};
use crate::crypto::Keys;
use crate::format::content::{Content, Reference, decode_references};
use crate::format::pack::{ChunkRoom, Place};
use crate::format::tree::{self, EntryKind, TreeEntry};
use crate::format::{ChunkName, FormatError};
use crate::{Backend, StoreError};
use cache::{ChunkCache, Stretch, StretchCache};
pub use update::Updated;

/// Chunks that lie one after the other are fetched together, up to so many stored bytes; of a pack that is asked for
/// often, a stretch of about so many.
const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// From a disk not more than is wanted is fetched if it is this much: files that were captured side by side lie in turns
/// in one pack, and whoever reads one of them would fetch all of them. The disk is told of the whole stretch.
const ROW_BYTES_MIN: u64 = 16 * 1024;
/// Of a pack that is asked for this often within a short while, more than what is wanted is fetched.
const AHEAD_AFTER: u32 = 3;

/// Reads the content of one restore point. Cheap to share between threads.
#[derive(Debug)]
pub struct PointReader {
    repository: Repository,
    workload: WorkloadName,
    stored: StoredPoint,
    key_ids: Vec<KeyId>,
    stretches: StretchCache,
    chunks: ChunkCache,
}

/// Receives references to chunks, in order.
pub(crate) type EachReference<'a> = &'a mut dyn FnMut(&Reference) -> Result<(), StoreError>;

impl Repository {
    /// Prepares reading from a restore point.
    ///
    /// # Errors
    /// When its object is damaged.
    pub fn reader(&self, point: &StoredPoint) -> Result<PointReader, StoreError> {
        let damaged = |error| self.inner().unreadable(&point_name(&point.point.id), error);
        Ok(PointReader {
            repository: self.clone(),
            workload: point.point.workload.clone(),
            key_ids: point.object.key_ids().map_err(damaged)?,
            stored: point.clone(),
            stretches: StretchCache::default(),
            chunks: ChunkCache::default(),
        })
    }
}

impl PointReader {
    fn repo(&self) -> &Inner {
        self.repository.inner()
    }

    pub(crate) fn key_ids(&self) -> &[KeyId] {
        &self.key_ids
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        self.repo().unreadable(
            &point_name(&self.stored.point.id),
            FormatError::Damaged(what.into()),
        )
    }

    /// The keys that an entry's content is under; an error that says so where they were destroyed.
    pub(crate) fn keys(&self, number: u16) -> Result<Arc<Keys>, StoreError> {
        let id = self
            .key_ids
            .get(usize::from(number))
            .ok_or_else(|| self.damaged("an entry names a data key it does not have"))?;
        self.repo()
            .data_keys_by_id(&self.workload, id)
            .map(|(_, keys)| keys)
    }

    /// Whether each request waits for a network, so that more of them side by side are worth a thread.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.repo().backend.is_far()
    }

    /// The entries of the restore point, in path order.
    ///
    /// # Errors
    /// When the listing is damaged or the place fails.
    pub fn entries(&self) -> Result<Vec<TreeEntry>, StoreError> {
        let damaged = |error| {
            self.repo()
                .unreadable(&point_name(&self.stored.point.id), error)
        };
        let content = self.stored.object.listing.content().map_err(damaged)?;
        // What fails here fails below, by name.
        let (keys, _) = fetch::both(
            || self.keys(0),
            || self.repo().index_for_reading(&self.workload, false),
        );
        let mut body = Vec::new();
        self.read(&*keys?, &content, &mut |chunk| {
            body.extend_from_slice(chunk);
            Ok(())
        })
        .and_then(|()| match crc32c::crc32c(&body) == content.crc32c {
            true => Ok(()),
            false => Err(self.damaged("its listing is not the one it was made with")),
        })?;
        tree::decode(&body).map_err(damaged)
    }

    /// Writes a file's content to `out`, verified as it goes: an error may come after a part was
    /// written, and then what was written must not be used.
    ///
    /// # Errors
    /// When something it needs is damaged or missing, the place fails, or `out` does.
    pub fn read_file(&self, entry: &TreeEntry, out: &mut dyn Write) -> Result<(), StoreError> {
        let content = self.content_of(entry)?;
        let mut crc32c = 0;
        self.read(&*self.keys(entry.key)?, content, &mut |chunk| {
            crc32c = crc32c::crc32c_append(crc32c, chunk);
            self.write(entry, chunk, out)
        })?;
        if crc32c == content.crc32c {
            Ok(())
        } else {
            Err(self.damaged(format!(
                "the content of `{}` is not what was captured",
                entry.meta.path
            )))
        }
    }

    /// Writes a part of a file's content to `out`: `length` bytes from `offset`, fewer where the file
    /// ends. Reads no more chunks than the part lies in.
    ///
    /// # Errors
    /// As [`Self::read_file`].
    pub fn read_range(
        &self,
        entry: &TreeEntry,
        offset: u64,
        length: u64,
        out: &mut dyn Write,
    ) -> Result<(), StoreError> {
        let content = self.content_of(entry)?;
        let keys = self.keys(entry.key)?;
        let end = offset.saturating_add(length).min(content.bytes);
        let mut wanted = Part {
            offset: 0,
            start: offset,
            end,
        };
        self.range(
            &keys,
            content.depth,
            &content.references,
            &mut wanted,
            &mut |part| self.write(entry, part, out),
        )
    }

    fn content_of<'a>(&self, entry: &'a TreeEntry) -> Result<&'a Content, StoreError> {
        if entry.kind == EntryKind::File {
            return Ok(&entry.content);
        }
        Err(StoreError::InvalidName {
            name: entry.meta.path.clone(),
            rule: "only files have content",
        })
    }

    fn write(&self, entry: &TreeEntry, data: &[u8], out: &mut dyn Write) -> Result<(), StoreError> {
        out.write_all(data).map_err(|source| StoreError::Sink {
            path: entry.meta.path.clone(),
            point: self.stored.point.id.clone(),
            source,
        })
    }

    /// Hands on a content's chunks in order.
    fn read(
        &self,
        keys: &Keys,
        content: &Content,
        each: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.below(keys, content.depth, &content.references, each)
    }

    fn below(
        &self,
        keys: &Keys,
        depth: u8,
        references: &[Reference],
        each: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if depth == 0 {
            return self.leaves(keys, references, each);
        }
        for reference in references {
            let list = self.list(keys, reference)?;
            self.below(keys, depth - 1, &list, each)?;
        }
        Ok(())
    }

    /// A list of references, which must come to what its own reference says.
    pub(crate) fn list(
        &self,
        keys: &Keys,
        reference: &Reference,
    ) -> Result<Vec<Reference>, StoreError> {
        let list = self.chunk(keys, &reference.name)?;
        let list = decode_references(&list).map_err(|error| self.damaged(error.to_string()))?;
        let sum = list
            .iter()
            .try_fold(0u64, |sum, below| sum.checked_add(below.bytes));
        if sum == Some(reference.bytes) {
            Ok(list)
        } else {
            Err(self.damaged("a list of chunks does not come to its size"))
        }
    }

    /// Every reference of a content: of lists and of the content's own chunks.
    pub(crate) fn walk(
        &self,
        keys: &Keys,
        content: &Content,
        each: EachReference<'_>,
    ) -> Result<(), StoreError> {
        self.walk_below(keys, content.depth, &content.references, each)
    }

    fn walk_below(
        &self,
        keys: &Keys,
        depth: u8,
        references: &[Reference],
        each: EachReference<'_>,
    ) -> Result<(), StoreError> {
        for reference in references {
            each(reference)?;
            if depth > 0 {
                let list = self.list(keys, reference)?;
                self.walk_below(keys, depth - 1, &list, each)?;
            }
        }
        Ok(())
    }

    fn range(
        &self,
        keys: &Keys,
        depth: u8,
        references: &[Reference],
        wanted: &mut Part,
        each: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for reference in references {
            let begins = wanted.offset;
            let ends = begins.saturating_add(reference.bytes);
            if begins >= wanted.end {
                return Ok(());
            }
            if ends <= wanted.start {
                wanted.offset = ends;
                continue;
            }
            if depth > 0 {
                let list = self.list(keys, reference)?;
                self.range(keys, depth - 1, &list, wanted, each)?;
                continue;
            }
            let chunk = self.chunk(keys, &reference.name)?;
            let from = usize::try_from(wanted.start.saturating_sub(begins)).unwrap_or(usize::MAX);
            let to = usize::try_from(wanted.end.min(ends) - begins).unwrap_or(usize::MAX);
            let part = chunk
                .get(from..to)
                .ok_or_else(|| self.damaged("a chunk is not as long as its reference says"))?;
            each(part)?;
            wanted.offset = ends;
        }
        Ok(())
    }

    /// One chunk, kept for a while.
    pub(crate) fn chunk(&self, keys: &Keys, name: &ChunkName) -> Result<Arc<Vec<u8>>, StoreError> {
        if let Some(kept) = self.chunks.get(name) {
            return Ok(kept);
        }
        let index = self.index_with(name)?;
        let number = index.find(name).next();
        let number = number.ok_or_else(|| self.no_chunk(name))?;
        let chunk = Arc::new(match self.chunk_of_pack(keys, &index, number, name) {
            Ok(chunk) => chunk,
            Err(error) => self.any_copy(keys, &index, name, error)?,
        });
        self.chunks.keep(*name, &chunk);
        Ok(chunk)
    }

    fn no_chunk(&self, name: &ChunkName) -> StoreError {
        self.repo().missing(&format!("chunk {}", hex::encode(name)))
    }

    /// The index, read anew if it lacks the chunk: another process may have written since.
    fn index_with(&self, name: &ChunkName) -> Result<Arc<Index>, StoreError> {
        let index = self.repo().index_for_reading(&self.workload, false)?;
        if index.contains(name) {
            return Ok(index);
        }
        self.repo().index_for_reading(&self.workload, true)
    }

    /// The chunks of a stretch of content. Where each request waits for a network, what comes next is
    /// fetched while what is here is opened and handed on.
    fn leaves(
        &self,
        keys: &Keys,
        references: &[Reference],
        each: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let ahead = self.is_far();
        let mut room = ChunkRoom::default();
        std::thread::scope(|scope| {
            let mut rest = references;
            let mut coming = None;
            while !rest.is_empty() {
                let fetched = match coming.take() {
                    None => self.fetch_first(rest),
                    Some(coming) => std::thread::ScopedJoinHandle::join(coming)
                        .unwrap_or(Err(StoreError::WriterFailed)),
                };
                let Fetched { index, run } = fetched?;
                let taken = run.as_ref().map_or(1, |run| run.places.len());
                let (these, later) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
                if ahead && !later.is_empty() {
                    coming = Some(scope.spawn(move || self.fetch_first(later)));
                }
                self.hand_on((keys, &index), these, run, &mut room, each)?;
                rest = later;
            }
            Ok(())
        })
    }

    /// Fetches the first of the chunks with those that lie behind it.
    fn fetch_first(&self, references: &[Reference]) -> Result<Fetched, StoreError> {
        let first = references.first().ok_or(StoreError::WriterFailed)?;
        let index = self.index_with(&first.name)?;
        let number = index
            .find(&first.name)
            .next()
            .ok_or_else(|| self.no_chunk(&first.name))?;
        let run = self.fetch_run(&index, number, references);
        Ok(Fetched { index, run })
    }

    /// Opens what was fetched and hands it on, each chunk from another place where this one's is not whole.
    fn hand_on(
        &self,
        (keys, index): (&Keys, &Index),
        references: &[Reference],
        run: Result<Run, StoreError>,
        room: &mut ChunkRoom,
        each: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let run = match (run, references.first()) {
            (Ok(run), _) => run,
            (Err(error), Some(first)) => {
                let chunk = self.any_copy(keys, index, &first.name, error)?;
                self.expect_length(first, &chunk)?;
                return each(&chunk);
            }
            (Err(error), None) => return Err(error),
        };
        for (reference, place) in references.iter().zip(&run.places) {
            let sealed = run.sealed(place);
            let opened = run
                .contents
                .opener
                .chunk_into(keys, &reference.name, place, sealed, room)
                .map_err(|error| self.repo().unreadable(&run.contents.object, error));
            let copy;
            let chunk = match opened {
                Ok(chunk) => chunk,
                Err(error) => {
                    copy = self.any_copy(keys, index, &reference.name, error)?;
                    &copy
                }
            };
            self.expect_length(reference, chunk)?;
            each(chunk)?;
        }
        Ok(())
    }

    fn expect_length(&self, reference: &Reference, chunk: &[u8]) -> Result<(), StoreError> {
        if chunk.len() as u64 == reference.bytes {
            Ok(())
        } else {
            Err(self.damaged("a chunk is not as long as its reference says"))
        }
    }

    /// Fetches the first chunk with those that are wanted after it and lie behind it in its pack. Of a
    /// pack that is asked for again and again, the whole stretch in which the chunk lies is fetched and kept.
    fn fetch_run(
        &self,
        index: &Index,
        number: u32,
        references: &[Reference],
    ) -> Result<Run, StoreError> {
        let repo = self.repo();
        let file = *index.pack(number).ok_or(StoreError::WriterFailed)?;
        let contents = repo.contents(&self.workload, index, &file, None)?;
        let lacks = "it lacks a chunk that the index says it holds";
        let first = references
            .first()
            .and_then(|reference| contents.find(&reference.name))
            .ok_or_else(|| repo.unreadable(&contents.object, FormatError::damaged(lacks)))?;
        let fetch = |range: &Range<u64>| {
            let length = range.end - range.start;
            let part = |place: &dyn Backend| place.get_range(&contents.object, range.start, length);
            repo.any_place(&contents.object, &part)?
                .ok_or_else(|| repo.missing(&contents.object))
        };
        let row = row_of(&first, &contents, references);
        let only_row = || -> Result<Stretch, StoreError> {
            let data = Arc::new(fetch(&row)?);
            let base = row.start;
            Ok(Stretch { base, data })
        };
        let stretch = match self.stretches.get(&file.id, &range_of(&first), AHEAD_AFTER) {
            cache::Asked::Kept(stretch) => stretch,
            cache::Asked::Often => {
                let range = contents.stretch(&first, FETCH_BYTES_MAX);
                if !self.is_far() && row.end - row.start >= ROW_BYTES_MIN {
                    if self.stretches.is_new(&file.id, &range) {
                        let length = range.end - range.start;
                        repo.backend.expect(&contents.object, range.start, length);
                    }
                    only_row()?
                } else {
                    self.stretches.fetch(&file.id, &range, fetch)?
                }
            }
            cache::Asked::Seldom => only_row()?,
        };
        let rest = references.get(1..).unwrap_or_default().iter();
        let rest = rest
            .map_while(|reference| contents.find(&reference.name))
            .take_while(|place| part_of(&stretch, place).is_some());
        // The first is among them even where the place gave less than was asked for: it fails to open.
        let places = std::iter::once(first).chain(rest).collect();
        Ok(Run {
            contents,
            places,
            stretch,
        })
    }

    fn chunk_of_pack(
        &self,
        keys: &Keys,
        index: &Index,
        number: u32,
        name: &ChunkName,
    ) -> Result<Vec<u8>, StoreError> {
        let reference = Reference {
            name: *name,
            bytes: 0,
        };
        let run = self.fetch_run(index, number, std::slice::from_ref(&reference))?;
        let place = run.places.first().ok_or_else(|| self.no_chunk(name))?;
        run.contents
            .opener
            .chunk(keys, name, place, run.sealed(place))
            .map_err(|error| self.repo().unreadable(&run.contents.object, error))
    }

    /// A chunk from wherever it can be read: any pack that holds it, in the repository or a copy of it.
    /// `failed` is told when there is no such place. When the pack is gone, prune may have put the chunk
    /// into another one after the index was read.
    fn any_copy(
        &self,
        keys: &Keys,
        index: &Index,
        name: &ChunkName,
        failed: StoreError,
    ) -> Result<Vec<u8>, StoreError> {
        if let Some(chunk) = self.copy_in(keys, index, name) {
            return Ok(chunk);
        }
        if matches!(failed, StoreError::ObjectMissing { .. }) {
            let fresh = self.repo().index_for_reading(&self.workload, true)?;
            if let Some(chunk) = self.copy_in(keys, &fresh, name) {
                return Ok(chunk);
            }
        }
        Err(failed)
    }

    fn copy_in(&self, keys: &Keys, index: &Index, name: &ChunkName) -> Option<Vec<u8>> {
        let repo = self.repo();
        for number in index.find(name) {
            let Some(file) = index.pack(number) else {
                continue;
            };
            // What failed to open may have been mended, or be whole elsewhere.
            repo.known_contents.forget(&file.id);
            self.stretches.forget(&file.id);
            let object = crate::format::pack::object_name(&self.workload, &file.id);
            for place in repo.places() {
                let Ok(Some(data)) = place.get(&object) else {
                    continue;
                };
                let (base, data) = (0, Arc::new(data));
                let whole = Stretch { base, data };
                if let Ok(contents) = repo.contents(&self.workload, index, file, Some(&whole.data))
                    && let Some(at) = contents.find(name)
                    && let Some(sealed) = part_of(&whole, &at)
                    && let Ok(chunk) = contents.opener.chunk(keys, name, &at, sealed)
                {
                    return Some(chunk);
                }
                repo.known_contents.forget(&file.id);
            }
        }
        None
    }
}

/// What of a content is wanted, and how far the reader has come.
struct Part {
    offset: u64,
    start: u64,
    end: u64,
}

/// What came of fetching: chunks, or why the first of them has to be looked for elsewhere.
struct Fetched {
    index: Arc<Index>,
    run: Result<Run, StoreError>,
}

/// Chunks that were fetched together.
struct Run {
    contents: Arc<PackContents>,
    places: Vec<Place>,
    stretch: Stretch,
}

impl Run {
    /// A chunk's bytes; none where the place gave less than was asked for, which fails to open.
    fn sealed(&self, place: &Place) -> &[u8] {
        part_of(&self.stretch, place).unwrap_or_default()
    }
}

fn range_of(place: &Place) -> Range<u64> {
    place.offset..place.offset + u64::from(place.stored)
}

/// The part of a pack from `first` on in which the chunks lie as they are wanted.
fn row_of(first: &Place, contents: &PackContents, references: &[Reference]) -> Range<u64> {
    let mut row = range_of(first);
    let rest = references.get(1..).unwrap_or_default().iter();
    for place in rest.map_while(|reference| contents.find(&reference.name)) {
        let next = range_of(&place);
        if next.start != row.end || next.end - row.start > FETCH_BYTES_MAX {
            break;
        }
        row.end = next.end;
    }
    row
}

fn part_of<'a>(stretch: &'a Stretch, place: &Place) -> Option<&'a [u8]> {
    let start = usize::try_from(place.offset.checked_sub(stretch.base)?).ok()?;
    let stored = usize::try_from(place.stored).ok()?;
    stretch.data.get(start..start.checked_add(stored)?)
}

//! Reading restore points: listing them, their entries, and their files.
//!
//! Nothing read is believed: every chunk is authenticated and its name computed again, every file is
//! compared with its size and SHA-256 as taken at capture.

use std::io::Write;
use std::sync::Arc;

use dr_model::{RestorePoint, RestorePointId, WorkloadName};

use super::index::{Index, Located};
use super::keys::Domain;
use super::{Inner, Repository};
use crate::StoreError;
use crate::crypto::{Keys, Sha256};
use crate::format::header::Kind;
use crate::format::point::{self, Listing, PointObject};
use crate::format::tree::{self, EntryKind, TreeEntry};
use crate::format::{ChunkName, FormatError};

/// Chunks that lie one after the other are fetched together, up to this much content.
const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A restore point with what its source recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPoint {
    /// The restore point.
    pub point: RestorePoint,
    /// What the source recorded beside it.
    pub details: serde_json::Value,
    pub(crate) listing: Listing,
}

pub(crate) const POINTS: &str = "points/";

pub(crate) fn point_name(id: &RestorePointId) -> String {
    format!("{POINTS}{id}")
}

impl Repository {
    /// All restore points, of one workload or of all, sorted by moment.
    ///
    /// # Errors
    /// When one of them cannot be read (the object is named), or the place fails.
    pub fn points(&self, workload: Option<&WorkloadName>) -> Result<Vec<RestorePoint>, StoreError> {
        let repo = self.inner();
        // One workload's name may begin as another's does: the prefix only saves reading.
        let prefix = match workload {
            Some(name) => format!("{POINTS}{}{name}-", RestorePointId::PREFIX),
            None => POINTS.to_owned(),
        };
        let mut points = Vec::new();
        for entry in repo.list(&prefix)? {
            // Deleted since it was listed: not there is what it is.
            let Some(found) = repo.read_point(&entry.name)? else {
                continue;
            };
            if workload.is_none_or(|name| found.point.workload == *name) {
                points.push(found.point);
            }
        }
        points.sort_by(|left, right| (left.moment, &left.id).cmp(&(right.moment, &right.id)));
        Ok(points)
    }

    /// One restore point; `None` if there is none of that id.
    ///
    /// # Errors
    /// When it is damaged or the place fails.
    pub fn point(&self, id: &RestorePointId) -> Result<Option<StoredPoint>, StoreError> {
        let found = self.inner().read_point(&point_name(id))?;
        Ok(found.map(
            |PointObject {
                 point,
                 details,
                 listing,
             }| StoredPoint {
                point,
                details,
                listing,
            },
        ))
    }

    /// The entries of a restore point, in path order.
    ///
    /// # Errors
    /// When the listing is damaged or the place fails.
    pub fn entries(&self, point: &StoredPoint) -> Result<Vec<TreeEntry>, StoreError> {
        let repo = self.inner();
        let damaged = |error| repo.unreadable(&point_name(&point.point.id), error);
        let names = point.listing.chunk_names().map_err(damaged)?;
        let mut body = Vec::new();
        let sha256 = self.read_chunks(&point.point, &names, &mut |chunk| {
            body.extend_from_slice(chunk);
            Ok(())
        })?;
        if body.len() as u64 != point.listing.bytes || hex::encode(sha256) != point.listing.sha256 {
            return Err(damaged(FormatError::damaged(
                "its listing is not the one it was made with",
            )));
        }
        tree::decode(&body).map_err(damaged)
    }

    /// Writes a file's content to `out`, verified as it goes: an error may come after a part was
    /// written, and then what was written must not be used.
    ///
    /// # Errors
    /// When something it needs is damaged or missing, the place fails, or `out` does.
    pub fn read_file(
        &self,
        point: &StoredPoint,
        entry: &TreeEntry,
        out: &mut dyn Write,
    ) -> Result<(), StoreError> {
        if entry.kind != EntryKind::File {
            return Err(StoreError::InvalidName {
                name: entry.meta.path.clone(),
                rule: "only files have content",
            });
        }
        let mut size = 0;
        let sha256 = self.read_chunks(&point.point, &entry.chunks, &mut |chunk| {
            size += chunk.len() as u64;
            out.write_all(chunk).map_err(|source| StoreError::Sink {
                path: entry.meta.path.clone(),
                point: point.point.id.clone(),
                source,
            })
        })?;
        if size == entry.size && Some(sha256) == entry.sha256 {
            Ok(())
        } else {
            Err(self.inner().unreadable(
                &point_name(&point.point.id),
                FormatError::Damaged(format!(
                    "the content of `{}` is not what was captured",
                    entry.meta.path
                )),
            ))
        }
    }

    /// Hands on the content of chunks in order; returns the SHA-256 of all of it.
    fn read_chunks(
        &self,
        point: &RestorePoint,
        names: &[ChunkName],
        each: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<[u8; 32], StoreError> {
        let mut sha256 = Sha256::new();
        if names.is_empty() {
            return Ok(sha256.finish());
        }
        let repo = self.inner();
        let keys = repo.required_data_keys(&point.workload, &Domain::Workload)?;
        let index = repo.index_with(&point.workload, &keys, names)?;
        let mut rest = names;
        while let Some((run, later)) = rest.split_at_checked(run_length(&index, rest).max(1)) {
            for chunk in repo.read_run(&keys, &index, run)? {
                sha256.update(&chunk);
                each(&chunk)?;
            }
            rest = later;
        }
        Ok(sha256.finish())
    }
}

/// How many chunks from the front lie one behind the other in one pack.
fn run_length(index: &Index, names: &[ChunkName]) -> usize {
    let Some(first) = names.first().and_then(|name| index.find(name)) else {
        return 0;
    };
    let mut end = first.place.offset;
    let mut bytes = 0;
    let follows = |name: &&ChunkName| {
        let Some(chunk) = index.find(name) else {
            return false;
        };
        let follows = chunk.pack == first.pack && chunk.place.offset == end;
        end += u64::from(chunk.place.stored);
        bytes += u64::from(chunk.place.length);
        follows && bytes <= FETCH_BYTES_MAX
    };
    names.iter().take_while(follows).count()
}

impl Inner {
    pub(crate) fn read_point(&self, object: &str) -> Result<Option<PointObject>, StoreError> {
        let Some(body) = self.get_sealed(&self.master, Kind::Point, object)? else {
            return Ok(None);
        };
        let found = point::decode(&body).map_err(|error| self.unreadable(object, error))?;
        if point_name(&found.point.id) == object {
            Ok(Some(found))
        } else {
            Err(self.unreadable(object, FormatError::damaged("it is another restore point")))
        }
    }

    /// The index, read anew if it lacks one of the chunks.
    fn index_with(
        &self,
        workload: &WorkloadName,
        keys: &Keys,
        names: &[ChunkName],
    ) -> Result<Arc<Index>, StoreError> {
        let index = self.index_for_reading(workload, keys, false)?;
        if names.iter().all(|name| index.find(name).is_some()) {
            return Ok(index);
        }
        self.index_for_reading(workload, keys, true)
    }

    /// Reads chunks that lie one behind the other with one request. If that fails and there are
    /// other copies, reads them one by one.
    fn read_run(
        &self,
        keys: &Keys,
        index: &Index,
        names: &[ChunkName],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let find = |name: &ChunkName| {
            index
                .find(name)
                .ok_or_else(|| self.missing(&format!("chunk {}", hex::encode(name))))
        };
        let run = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let error = match self.fetch(keys, index, names, &run) {
            Ok(chunks) => return Ok(chunks),
            Err(error) => error,
        };
        let has_copies = |name: &ChunkName| index.find_all(name).nth(1).is_some();
        if !is_damage(&error) || !names.iter().any(has_copies) {
            return Err(error);
        }
        names
            .iter()
            .map(|name| self.any_copy(keys, index, name))
            .collect()
    }

    fn any_copy(
        &self,
        keys: &Keys,
        index: &Index,
        name: &ChunkName,
    ) -> Result<Vec<u8>, StoreError> {
        let mut failed = self.missing(&format!("chunk {}", hex::encode(name)));
        for copy in index.find_all(name) {
            match self.fetch(keys, index, &[*name], &[copy]) {
                Ok(mut chunks) => return Ok(chunks.pop().unwrap_or_default()),
                Err(error) if is_damage(&error) => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// Fetches a run at once, opens and verifies its chunks.
    fn fetch(
        &self,
        keys: &Keys,
        index: &Index,
        names: &[ChunkName],
        run: &[Located],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let Some(first) = run.first() else {
            return Ok(Vec::new());
        };
        let opener = index.opener(self, keys, first.pack)?;
        let object = index
            .pack(first.pack)
            .map(|pack| pack.object.clone())
            .unwrap_or_default();
        let length = run.iter().map(|chunk| u64::from(chunk.place.stored)).sum();
        let data = self
            .backend
            .get_range(&object, first.place.offset, length)
            .map_err(self.failed(format!("reading `{object}`")))?
            .ok_or_else(|| self.missing(&object))?;
        let mut rest = data.as_slice();
        let open = |(name, chunk): (&ChunkName, &Located)| {
            let stored = usize::try_from(chunk.place.stored).unwrap_or(usize::MAX);
            let cut = || self.unreadable(&object, FormatError::damaged("it is cut short"));
            let (sealed, later) = rest.split_at_checked(stored).ok_or_else(cut)?;
            rest = later;
            opener
                .chunk(keys, name, &chunk.place, sealed)
                .map_err(|error| self.unreadable(&object, error))
        };
        let opened = names.iter().zip(run).map(open).collect();
        if matches!(opened, Err(StoreError::Damaged { .. })) {
            index.forget_opener(first.pack);
        }
        opened
    }
}

/// Whether another copy may help.
fn is_damage(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Damaged { .. } | StoreError::ObjectMissing { .. }
    )
}

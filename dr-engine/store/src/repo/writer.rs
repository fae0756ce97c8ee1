//! Writing one restore point.
//!
//! `add_file` may be called from several threads. Each compresses on its own; sealing, which is
//! fast, and the filling of the open pack happen under one lock. Who fills a pack stores it, outside
//! the lock. Memory is bounded by the open pack, `parallelism` packs on their way, and a few chunks
//! for each calling thread, whatever the source's size; the listing grows with the number of files.
//!
//! A chunk is reused only when the workload's index names it and its pack was listed whole when the
//! backup began, or when this backup stored it. Once storing a pack has failed, nothing of this
//! backup can be finished: another file may rely on that pack.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dr_model::{ByteCount, RestorePoint, WorkloadName};

use super::index::{Index, index_prefix};
use super::keys::Domain;
use super::points::point_name;
use super::{Inner, Repository, encode_failed};
use crate::backend::PutOutcome;
use crate::chunk::{self, CutError, Cutting};
use crate::compress;
use crate::crypto::{Keys, Sha256, TAG_BYTES};
use crate::format::header::Kind;
use crate::format::index::{self, IndexedPack};
use crate::format::pack::{self, FullPack, PackBuilder};
use crate::format::point::{Listing, PointObject};
use crate::format::tree::{EntryKind, EntryMeta, TreeEntry, broken_path_rule};
use crate::format::{ChunkName, tree};
use crate::testing::kill_point;
use crate::{ObjectEntry, StoreError};

/// When the open pack has this much, it is stored.
const PACK_BYTES: usize = 16 * 1024 * 1024;
/// An index object names at most this many packs (some 64 GiB, and 20 MiB of index).
const INDEX_PACKS_MAX: usize = 4096;
/// Temporary files of crashed writers are removed when older than any push or backup step lasts.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// How a backup is written.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// zstd level.
    pub compression_level: i32,
    /// How many packs may be on their way to the repository at once; bounds memory.
    pub parallelism: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression_level: 3,
            parallelism: 2,
        }
    }
}

/// What was stored of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
}

/// Writes one restore point. Dropped without [`BackupWriter::finish`] it leaves data that nothing
/// refers to, and no restore point.
#[derive(Debug)]
pub struct BackupWriter {
    repository: Repository,
    workload: WorkloadName,
    keys: Arc<Keys>,
    known: Index,
    options: WriteOptions,
    state: Mutex<State>,
    pack_stored: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: Option<PackBuilder>,
    /// Packs handed to the repository and not yet durable.
    on_their_way: usize,
    /// Chunks this backup has put into a pack.
    new: HashSet<ChunkName>,
    stored: Vec<IndexedPack>,
    bytes_added: u64,
    entries: Vec<TreeEntry>,
    failed: bool,
}

impl Repository {
    /// Begins a backup of `workload`: makes its data key if it has none, and learns what is stored
    /// of it already.
    ///
    /// # Errors
    /// When the place fails or an index is damaged.
    pub fn begin(
        &self,
        workload: &WorkloadName,
        options: WriteOptions,
    ) -> Result<BackupWriter, StoreError> {
        let repo = self.inner();
        match repo.backend.sweep(LEFTOVER_AGE) {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "removed temporary files of crashed writers"),
            // What is left over does no harm; what really fails fails below, by name.
            Err(error) => tracing::debug!(%error, "temporary files were not looked for"),
        }
        let keys = repo.data_keys_or_new(workload, &Domain::Workload)?;
        // Index first, packs second: a pack in the index is older than its index object.
        let mut known = repo.load_index(workload, &keys)?;
        let there = packs_there(repo)?;
        known.keep_only(|pack| there.get(&pack.object) == Some(&pack.size));
        Ok(BackupWriter {
            repository: self.clone(),
            workload: workload.clone(),
            keys,
            known,
            options,
            state: Mutex::new(State::default()),
            pack_stored: Condvar::new(),
        })
    }
}

/// All packs with their sizes.
fn packs_there(repo: &Inner) -> Result<HashMap<String, u64>, StoreError> {
    let entry = |ObjectEntry { name, size, .. }| (name, size);
    Ok(repo.list("data/")?.into_iter().map(entry).collect())
}

impl BackupWriter {
    /// Stores a regular file: reads `content` to its end.
    ///
    /// # Errors
    /// When the source, the repository or an earlier call failed.
    pub fn add_file(
        &self,
        meta: EntryMeta,
        content: &mut dyn Read,
        cutting: Cutting,
    ) -> Result<FileSummary, StoreError> {
        check_path(&meta.path)?;
        let stored = self.store_content(&meta.path, content, cutting)?;
        let summary = FileSummary {
            size: stored.size,
            sha256: stored.sha256,
        };
        self.state().entries.push(TreeEntry {
            meta,
            kind: EntryKind::File,
            size: stored.size,
            sha256: Some(stored.sha256),
            chunks: stored.chunks,
        });
        Ok(summary)
    }

    /// Stores a folder or a link (or an empty file).
    ///
    /// # Errors
    /// When the path is not one that can be stored.
    pub fn add_entry(&self, meta: EntryMeta, kind: EntryKind) -> Result<(), StoreError> {
        if kind == EntryKind::File {
            return self
                .add_file(meta, &mut std::io::empty(), Cutting::Content)
                .map(|_| ());
        }
        check_path(&meta.path)?;
        self.state().entries.push(TreeEntry {
            meta,
            kind,
            size: 0,
            sha256: None,
            chunks: Vec::new(),
        });
        Ok(())
    }

    /// Makes everything durable and lists the restore point; fills in its counts.
    ///
    /// # Errors
    /// When anything is not durable or not there; then no restore point is listed.
    pub fn finish(
        self,
        mut point: RestorePoint,
        details: serde_json::Value,
    ) -> Result<RestorePoint, StoreError> {
        if point.workload != self.workload {
            return Err(StoreError::InvalidName {
                name: point.id.to_string(),
                rule: "a restore point belongs to the workload its backup was begun for",
            });
        }
        let entries = self.take_entries()?;
        let listing = self.store_listing(&entries)?;
        self.store_open_pack()?;
        kill_point("store.after-pack");
        let written = self.store_index()?;
        kill_point("store.after-index");
        self.verify_present(&entries, &listing, &written)?;
        let files = entries.iter().filter(|entry| entry.kind == EntryKind::File);
        point.files = files.clone().count() as u64;
        point.bytes_source = ByteCount(files.map(|entry| entry.size).sum());
        point.bytes_added = ByteCount(self.state().bytes_added);
        kill_point("store.before-point");
        self.store_point(&point, details, &listing)?;
        kill_point("store.after-point");
        Ok(point)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn repo(&self) -> &Inner {
        self.repository.inner()
    }

    fn store_content(
        &self,
        path: &str,
        content: &mut dyn Read,
        cutting: Cutting,
    ) -> Result<Stored, StoreError> {
        let mut sha256 = Sha256::new();
        let mut size = 0;
        let mut chunks = Vec::new();
        let each = |data: &[u8]| {
            sha256.update(data);
            size += data.len() as u64;
            let name = self.keys.chunk_name(data);
            chunks.push(name);
            self.store_chunk(name, data)
        };
        chunk::cut(content, cutting, self.keys.cutting_seed(), each).map_err(
            |error| match error {
                CutError::Source(source) => StoreError::Source {
                    path: path.to_owned(),
                    source,
                },
                CutError::Receiver(error) => error,
            },
        )?;
        Ok(Stored {
            size,
            sha256: sha256.finish(),
            chunks,
        })
    }

    fn store_chunk(&self, name: ChunkName, data: &[u8]) -> Result<(), StoreError> {
        if self.known.find(&name).is_some() || self.state().new.contains(&name) {
            return Ok(());
        }
        let packed = compress::pack(data, self.options.compression_level);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let full = self.add_to_pack(name, length, packed)?;
        full.map_or(Ok(()), |full| self.store_pack(full))
    }

    /// Puts a chunk into the open pack; hands the pack back when it is full.
    fn add_to_pack(
        &self,
        name: ChunkName,
        length: u32,
        packed: Vec<u8>,
    ) -> Result<Option<FullPack>, StoreError> {
        let repo = self.repo();
        let mut state = self.wait_for_room(packed.len());
        if state.failed {
            return Err(StoreError::WriterFailed);
        }
        // Another thread may have met the same content meanwhile.
        if !state.new.insert(name) {
            return Ok(None);
        }
        let mut open = match state.open.take() {
            Some(open) => open,
            None => PackBuilder::new(&repo.id, &self.keys, PACK_BYTES + chunk::CHUNK_BYTES_MAX)
                .map_err(encode_failed("a pack"))?,
        };
        if let Err(error) = open.add(name, length, packed) {
            state.failed = true;
            return Err(encode_failed("a chunk")(error));
        }
        if open.len() < PACK_BYTES {
            state.open = Some(open);
            return Ok(None);
        }
        let full = open.finish().inspect_err(|_| state.failed = true);
        let full = full.map_err(encode_failed("a pack"))?;
        state.on_their_way += 1;
        Ok(Some(full))
    }

    /// Waits while this many bytes would fill the open pack and no further pack may be on its way.
    fn wait_for_room(&self, bytes: usize) -> MutexGuard<'_, State> {
        let limit = self.options.parallelism.max(1);
        let must_wait = |state: &mut State| {
            let open = state.open.as_ref().map_or(0, PackBuilder::len);
            !state.failed
                && state.on_their_way >= limit
                && (open == 0 || open + bytes + TAG_BYTES >= PACK_BYTES)
        };
        self.pack_stored
            .wait_while(self.state(), must_wait)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a pack that is counted as on its way.
    fn store_pack(&self, full: FullPack) -> Result<(), StoreError> {
        let object = pack::object_name(&full.id);
        kill_point("store.before-pack");
        let outcome = self.repo().put_new(&object, &full.data);
        let mut state = self.state();
        state.on_their_way -= 1;
        self.pack_stored.notify_all();
        match outcome {
            Ok(PutOutcome::Stored) => {
                state.bytes_added += full.data.len() as u64;
                state.stored.push(IndexedPack {
                    id: full.id,
                    chunks: full.chunks,
                });
                Ok(())
            }
            // Its name is 128 random bits: what is there is not ours.
            Ok(PutOutcome::Exists) => {
                state.failed = true;
                Err(self.name_taken(object))
            }
            Err(error) => {
                state.failed = true;
                Err(error)
            }
        }
    }

    fn name_taken(&self, object: String) -> StoreError {
        StoreError::Damaged {
            object,
            place: self.repository.describe(),
            what: "another object has the name that was just made for a new one".to_owned(),
        }
    }

    fn take_entries(&self) -> Result<Vec<TreeEntry>, StoreError> {
        let mut state = self.state();
        if state.failed {
            return Err(StoreError::WriterFailed);
        }
        let mut entries = std::mem::take(&mut state.entries);
        drop(state);
        entries.sort_by(|left, right| left.meta.path.cmp(&right.meta.path));
        let mut pairs = entries.iter().zip(entries.iter().skip(1));
        match pairs.find(|(left, right)| left.meta.path == right.meta.path) {
            Some((twice, _)) => Err(StoreError::DuplicatePath {
                path: twice.meta.path.clone(),
            }),
            None => Ok(entries),
        }
    }

    fn store_listing(&self, entries: &[TreeEntry]) -> Result<Stored, StoreError> {
        let body = tree::encode(entries);
        self.store_content("the listing", &mut body.as_slice(), Cutting::Content)
    }

    fn store_open_pack(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.failed {
            return Err(StoreError::WriterFailed);
        }
        let Some(open) = state.open.take() else {
            return Ok(());
        };
        state.on_their_way += 1;
        drop(state);
        let full = open.finish().map_err(encode_failed("a pack"))?;
        self.store_pack(full)
    }

    /// Writes the index of what is new and reads it back as a restore will.
    fn store_index(&self) -> Result<Index, StoreError> {
        let packs = std::mem::take(&mut self.state().stored);
        let mut written = Index::default();
        for part in packs.chunks(INDEX_PACKS_MAX) {
            let object = format!(
                "{}{}",
                index_prefix(&self.workload),
                dr_model::random::hex(16)
            );
            let body = index::encode(part);
            let repo = self.repo();
            if repo.put_sealed(&self.keys, Kind::Index, &object, &body)? == PutOutcome::Exists {
                return Err(self.name_taken(object));
            }
            let read = repo
                .read_index(&self.keys, &object)?
                .ok_or_else(|| repo.missing(&object))?;
            if read != part {
                return Err(StoreError::Damaged {
                    object,
                    place: self.repository.describe(),
                    what: "it reads otherwise than it was written".to_owned(),
                });
            }
            self.state().bytes_added += body.len() as u64;
            written.add(&read);
        }
        Ok(written)
    }

    /// The last look before the point is listed: every chunk is in an index, every pack it lies in
    /// is there and as long as it must be.
    fn verify_present(
        &self,
        entries: &[TreeEntry],
        listing: &Stored,
        written: &Index,
    ) -> Result<(), StoreError> {
        let repo = self.repo();
        let there = packs_there(repo)?;
        let mut seen = HashSet::new();
        let names = entries
            .iter()
            .flat_map(|entry| &entry.chunks)
            .chain(&listing.chunks);
        for name in names {
            let place = |index: &Index| {
                index
                    .find(name)
                    .and_then(|located| index.pack(located.pack).cloned())
            };
            let Some(pack) = place(written).or_else(|| place(&self.known)) else {
                return Err(repo.missing(&format!("chunk {}", hex::encode(name))));
            };
            if !seen.contains(&pack.object) {
                match there.get(&pack.object) {
                    Some(size) if *size == pack.size => {}
                    Some(_) => {
                        return Err(StoreError::Damaged {
                            object: pack.object,
                            place: self.repository.describe(),
                            what: "it is not as long as it was written".to_owned(),
                        });
                    }
                    None => return Err(repo.missing(&pack.object)),
                }
                seen.insert(pack.object);
            }
        }
        Ok(())
    }

    fn store_point(
        &self,
        point: &RestorePoint,
        details: serde_json::Value,
        listing: &Stored,
    ) -> Result<(), StoreError> {
        let repo = self.repo();
        let object = PointObject {
            point: point.clone(),
            details,
            listing: Listing::new(listing.size, &listing.sha256, &listing.chunks),
        };
        let body = serde_json::to_vec(&object).map_err(|error| StoreError::Encode {
            what: "a restore point",
            source: Box::new(error),
        })?;
        let name = point_name(&point.id);
        if repo.put_sealed(&repo.master, Kind::Point, &name, &body)? == PutOutcome::Exists {
            return Err(self.name_taken(name));
        }
        Ok(())
    }
}

/// Content as stored.
#[derive(Debug)]
struct Stored {
    size: u64,
    sha256: [u8; 32],
    chunks: Vec<ChunkName>,
}

fn check_path(path: &str) -> Result<(), StoreError> {
    match broken_path_rule(path) {
        Some(rule) => Err(StoreError::InvalidName {
            name: path.to_owned(),
            rule,
        }),
        None => Ok(()),
    }
}

//! Writing one restore point.
//!
//! Callers read and cut, worker threads name, compress and seal, uploaders store ([`pipeline`]). Each of
//! `add_file`'s callers is slowed down when the place is; memory is bounded whatever the source's size
//! (the listing grows with the number of files).
//!
//! Write order: session; what is condemned and what is stored; packs, with an index for every 256 MiB or
//! 131,072 chunks of them; the last index; a look whether everything the point needs is there and nothing of it condemned;
//! the restore point's object, and reading the newest entry of the list of restore points; the same look, but
//! for the packs being there; the next entry, unless another took its place: then again from the newest entry on.
//! Only then is it listed. A crash leaves a session, packs and indexes that the next backup makes use of, or a
//! restore point's object that is in no list.
//!
//! A chunk is reused only when an index names it, its pack was listed whole after the session was
//! stored, and the pack is not condemned.

mod assembly;
pub(crate) mod copies;
mod packs;
mod pipeline;
mod previous;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use dr_model::{ByteCount, RestorePoint, RestorePointId, WorkloadName};

use super::index::PackFile;
use super::keys::Domain;
use super::points::{StoredPoint, point_name};
use super::{Inner, Repository, encode_failed, fetch};
use crate::backend::PutOutcome;
use crate::chunk::{self, CutError, Cutting};
use crate::crypto::Keys;
use crate::format::ChunkName;
use crate::format::content::Content;
use crate::format::header::Kind;
use crate::format::pack::{self, PackId};
use crate::format::point::{Listing, PointObject};
use crate::format::sealed;
use crate::format::session::Purpose;
use crate::format::tree::{self, EntryKind, EntryMeta, TreeEntry, broken_path_rule};
use crate::testing::kill_point;
use crate::{ObjectEntry, StoreError};
use copies::{CopyRun, Finished};
use packs::Packs;
use pipeline::Pipeline;
use previous::Previous;

/// Temporary files of crashed writers are removed when older than any push or backup step lasts.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);
/// Chunks of condemned packs are stored again; prune may condemn more meanwhile.
const CONDEMNED_ROUNDS_MAX: u32 = 5;

/// How a backup is written.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// zstd level.
    pub compression_level: i32,
    /// Threads that compress and seal.
    pub workers: usize,
    /// Packs on their way to the repository at once; bounds memory. As many as the place is good for
    /// when left out.
    pub uploads: Option<usize>,
    /// How long nobody may delete what the restore point needs; the store must honour locks.
    pub lock: Option<Duration>,
    /// The first place's name for how it keeps packs (`STANDARD_IA`); its own configured class when left
    /// out. Lists, keys and indexes are read with every backup and stay as they are.
    pub storage_class: Option<String>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            compression_level: 1,
            workers: cores.min(4),
            uploads: None,
            lock: None,
            storage_class: None,
        }
    }
}

/// Writes one restore point. Dropped without [`BackupWriter::finish`] it leaves data that the next
/// backup reuses, and no restore point.
#[derive(Debug)]
pub struct BackupWriter {
    repository: Repository,
    workload: WorkloadName,
    session: String,
    pipeline: Pipeline,
    /// The restore point that was the newest when this backup began, until it is wanted.
    newest: Mutex<Option<Result<Option<StoredPoint>, StoreError>>>,
    previous: OnceLock<Option<Previous>>,
    loading: Mutex<()>,
    session_stays: AtomicBool,
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
        repo.is_first()?;
        let begun = || repo.begin_session(workload, Utc::now(), Purpose::Backup);
        let (keys, (session, swept)) = fetch::both(
            || repo.data_keys_or_new(workload, &Domain::Workload),
            || fetch::both(begun, || repo.backend.sweep(LEFTOVER_AGE)),
        );
        let session = session?;
        let keys = keys.inspect_err(|_| {
            // Should that fail too, prune finds it dead.
            let _ = repo.backend.delete(&session);
        })?;
        match swept {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "removed temporary files of crashed writers"),
            // What is left over does no harm; what really fails fails below, by name.
            Err(error) => tracing::debug!(%error, "temporary files were not looked for"),
        }
        kill_point("store.after-session");
        let lock = options
            .lock
            .map(|period| repo.plan_lock(workload, period))
            .transpose()?;
        // From here on prune waits for us; what it condemned before, nobody may rely on. What is known to
        // be damaged is stored again.
        let unfit = || fetch::both(|| repo.condemned(workload), || self.damaged_packs(workload));
        let stored = || {
            // Index first, packs second: a pack in the index is older than its index object.
            let known = repo.load_index(workload)?;
            Ok::<_, StoreError>((known, packs_there(repo, workload)?))
        };
        let (newest, (unfit, stored)) = fetch::both(
            || self.newest_point(workload),
            || fetch::both(unfit, stored),
        );
        let (condemned, damaged) = (unfit.0?, unfit.1?);
        let (known, there) = stored?;
        let known = Arc::new(known);
        // What the newest restore point holds is looked up in it too.
        repo.keep_index(workload, &known);
        let is_usable = |file: &super::index::PackFile| {
            there.get(&file.id) == Some(&file.size)
                && !condemned.contains(&file.id)
                && !damaged.contains(&file.id)
        };
        let usable = known.packs().iter().map(is_usable).collect();
        let packs = Packs::new(
            self.clone(),
            workload.clone(),
            options.compression_level,
            packs::Asked {
                lock,
                storage_class: options.storage_class,
            },
            known,
            usable,
        );
        // The first key is the workload's own.
        packs.number_of(&Domain::Workload, &keys)?;
        let uploads = options.uploads.unwrap_or(repo.backend.requests_at_once());
        Ok(BackupWriter {
            repository: self.clone(),
            workload: workload.clone(),
            session,
            pipeline: Pipeline::start(packs, options.workers.max(1), uploads.max(1))?,
            newest: Mutex::new(Some(newest)),
            previous: OnceLock::new(),
            loading: Mutex::new(()),
            session_stays: AtomicBool::new(false),
        })
    }
}

/// A workload's packs with their sizes.
pub(crate) fn packs_there(
    repo: &Inner,
    workload: &WorkloadName,
) -> Result<HashMap<PackId, u64>, StoreError> {
    let entry = |ObjectEntry { name, size, .. }| Some((pack::id_of(workload, &name)?, size));
    Ok(repo
        .list(&pack::prefix(workload))?
        .into_iter()
        .filter_map(entry)
        .collect())
}

impl BackupWriter {
    /// Stores a regular file: reads `content` to its end. What is read may still be on its way when this
    /// returns; a failure then shows in a later call.
    ///
    /// # Errors
    /// When the source, the repository or an earlier call failed.
    pub fn add_file(
        &self,
        meta: EntryMeta,
        content: &mut dyn Read,
        cutting: Cutting,
    ) -> Result<(), StoreError> {
        self.add_file_of(&Domain::Workload, meta, content, cutting)
    }

    /// [`Self::add_file`] under the data key of a domain.
    ///
    /// # Errors
    /// As [`Self::add_file`].
    pub fn add_file_of(
        &self,
        domain: &Domain,
        meta: EntryMeta,
        content: &mut dyn Read,
        cutting: Cutting,
    ) -> Result<(), StoreError> {
        check_path(&meta.path)?;
        let keys = self.keys_of(domain)?;
        let path = meta.path.clone();
        let seed = keys.cutting_seed();
        let file = self.pipeline.begin_file(domain, meta, keys)?;
        let (mut number, mut crc32c) = (0, 0);
        let each = |data: Vec<u8>| {
            crc32c = crc32c::crc32c_append(crc32c, &data);
            let sent = self.pipeline.chunk(&file, number, data);
            number += 1;
            sent
        };
        chunk::cut(content, cutting, seed, each).map_err(|error| match error {
            CutError::Source(source) => StoreError::Source { path, source },
            CutError::Receiver(error) => error,
        })?;
        self.pipeline.end_file(&file, number, crc32c)
    }

    /// Takes a file's content over from the newest restore point of the workload, if that has the very
    /// same file (path, size, times and inode) and all of its content may be relied on; whether it did.
    /// A file that was changed about the time it was captured is never taken over.
    ///
    /// # Errors
    /// When the newest restore point cannot be read.
    pub fn add_unchanged(&self, meta: &EntryMeta, size: u64) -> Result<bool, StoreError> {
        self.add_unchanged_of(&Domain::Workload, meta, size)
    }

    /// [`Self::add_unchanged`] under the data key of a domain.
    ///
    /// # Errors
    /// As [`Self::add_unchanged`].
    pub fn add_unchanged_of(
        &self,
        domain: &Domain,
        meta: &EntryMeta,
        size: u64,
    ) -> Result<bool, StoreError> {
        self.pipeline.shared.packs.check()?;
        let Some(previous) = self.previous()? else {
            return Ok(false);
        };
        let keys = self.keys_of(domain)?;
        let Some(content) = previous.content_of(meta, size, &keys) else {
            return Ok(false);
        };
        let packs = &self.pipeline.shared.packs;
        if !previous.rely_on(packs, &keys, content)? {
            return Ok(false);
        }
        let key = packs.number_of(domain, &keys)?;
        let entry = TreeEntry::file(meta.clone(), key, content.clone());
        self.pipeline.shared.add(entry);
        Ok(true)
    }

    /// Builds on a restore point of the workload, instead of its newest one: what it holds can be taken
    /// over. Returns its entries, sorted by path; `None` when it is there no more, or the backup builds on
    /// another one already.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn build_on(&self, id: &RestorePointId) -> Result<Option<&[TreeEntry]>, StoreError> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.previous.get().is_none() {
            let stored = match self.take_newest() {
                Ok(Some(newest)) if newest.point.id == *id => Some(newest),
                _ => self.repository.point(id)?,
            };
            let loaded = stored
                .map(|stored| Previous::load(&self.repository, &stored))
                .transpose()?;
            self.previous.get_or_init(|| loaded);
        }
        let previous = self.previous.get().and_then(Option::as_ref);
        let wanted = previous.filter(|previous| previous.id() == id);
        Ok(wanted.map(Previous::entries))
    }

    /// Takes regular files over, unread, from the restore point that the backup builds on
    /// ([`Self::build_on`]): each `(from, to)` by its path there under the path `to`, with its attributes.
    /// All of them or, when one is not there or a chunk of it cannot be relied on, none: false.
    ///
    /// # Errors
    /// When the repository fails, or a path is not one that can be stored.
    pub fn take_over(&self, files: &[(String, String)]) -> Result<bool, StoreError> {
        let shared = &self.pipeline.shared;
        shared.packs.check()?;
        let Some(previous) = self.previous.get().and_then(Option::as_ref) else {
            return Ok(false);
        };
        let keys = self.keys_of(&Domain::Workload)?;
        let key = shared.packs.number_of(&Domain::Workload, &keys)?;
        let mut taken = Vec::with_capacity(files.len());
        for (from, to) in files {
            check_path(to)?;
            let Some(entry) = previous.file(from, &keys) else {
                return Ok(false);
            };
            if !previous.rely_on(&shared.packs, &keys, &entry.content)? {
                return Ok(false);
            }
            let meta = EntryMeta {
                path: to.clone(),
                ..entry.meta.clone()
            };
            taken.push(TreeEntry::file(meta, key, entry.content.clone()));
        }
        taken.into_iter().for_each(|entry| shared.add(entry));
        Ok(true)
    }

    /// The newest restore point, asked for again if it was wanted before.
    fn take_newest(&self) -> Result<Option<StoredPoint>, StoreError> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match newest.take() {
            Some(newest) => newest,
            None => self.repository.newest_point(&self.workload),
        }
    }

    fn previous(&self) -> Result<Option<&Previous>, StoreError> {
        if let Some(previous) = self.previous.get() {
            return Ok(previous.as_ref());
        }
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = self.previous.get() {
            return Ok(previous.as_ref());
        }
        let newest = self.take_newest()?;
        let loaded = newest
            .map(|newest| Previous::load(&self.repository, &newest))
            .transpose()?;
        Ok(self.previous.get_or_init(|| loaded).as_ref())
    }

    fn keys_of(&self, domain: &Domain) -> Result<Arc<Keys>, StoreError> {
        self.repository
            .inner()
            .data_keys_or_new(&self.workload, domain)
    }

    /// What becomes of the copies; tells the end of it after [`Self::finish`].
    #[must_use]
    pub fn copies(&self) -> CopyRun {
        self.pipeline.shared.packs.copies.clone()
    }

    /// Stores a folder or a link (or an empty file).
    ///
    /// # Errors
    /// When the path is not one that can be stored.
    pub fn add_entry(&self, meta: EntryMeta, kind: EntryKind) -> Result<(), StoreError> {
        if kind == EntryKind::File {
            return self.add_file(meta, &mut std::io::empty(), Cutting::Content);
        }
        check_path(&meta.path)?;
        let entry = TreeEntry::without_content(meta, kind);
        self.pipeline.shared.add(entry);
        Ok(())
    }

    /// Makes everything durable and lists the restore point; fills in how much was added, and the files and
    /// their bytes unless the point tells them.
    ///
    /// # Errors
    /// When anything is not durable or not there; then no restore point is listed.
    pub fn finish(
        mut self,
        mut point: RestorePoint,
        details: serde_json::Value,
    ) -> Result<RestorePoint, StoreError> {
        if point.workload != self.workload {
            return Err(StoreError::InvalidName {
                name: point.id.to_string(),
                rule: "a restore point belongs to the workload its backup was begun for",
            });
        }
        self.pipeline.finish_chunks()?;
        let entries = self.take_entries()?;
        let listing = self.store_listing(&entries)?;
        let again = self.store_packs()?;
        kill_point("store.after-index");
        if point.files == 0 {
            let is_file = |entry: &&TreeEntry| entry.kind == EntryKind::File;
            point.files = entries.iter().filter(is_file).count() as u64;
            point.bytes_source = ByteCount(entries.iter().map(|entry| entry.size).sum());
        }
        point.bytes_added = ByteCount(self.pipeline.shared.packs.bytes_added());
        self.verify_present(&again)?;
        self.pipeline.shared.packs.lock_needed(&again)?;
        kill_point("store.before-point");
        self.store_point(&point, details, &listing, &again)?;
        Ok(point)
    }

    /// Puts chunks of packs into new packs, and lists no restore point. `wanted` tells which, by pack and
    /// name. Returns the packs that cannot be read: nothing is known to be stored again of them.
    pub(crate) fn rewrite(
        mut self,
        files: &[PackFile],
        wanted: &dyn Fn(&PackFile, &ChunkName) -> bool,
        each: &dyn Fn(&PackFile),
    ) -> Result<Vec<(PackId, StoreError)>, StoreError> {
        let mut unreadable = Vec::new();
        {
            let shared = &self.pipeline.shared;
            let uploads = self
                .pipeline
                .uploads
                .as_ref()
                .ok_or(StoreError::WriterFailed)?;
            for file in files {
                match shared
                    .packs
                    .copy_chunks(file, &|name| wanted(file, name), uploads)
                {
                    Ok(()) => {}
                    Err(
                        error @ (StoreError::Damaged { .. } | StoreError::ObjectMissing { .. }),
                    ) => unreadable.push((file.id, error)),
                    Err(error) => return Err(error),
                }
                shared.packs.check()?;
                each(file);
            }
            shared.packs.send_open(uploads)?;
        }
        self.pipeline.finish_chunks()?;
        self.pipeline.finish_packs()?;
        self.pipeline.shared.packs.store_indexes()?;
        Ok(unreadable)
    }

    fn take_entries(&self) -> Result<Vec<TreeEntry>, StoreError> {
        let mut entries = std::mem::take(
            &mut *self
                .pipeline
                .shared
                .entries
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        entries.sort_unstable_by(|left, right| left.meta.path.cmp(&right.meta.path));
        let mut pairs = entries.iter().zip(entries.iter().skip(1));
        match pairs.find(|(left, right)| left.meta.path == right.meta.path) {
            Some((twice, _)) => Err(StoreError::DuplicatePath {
                path: twice.meta.path.clone(),
            }),
            None => Ok(entries),
        }
    }

    /// Stores the listing as a content under the workload's own key.
    fn store_listing(&self, entries: &[TreeEntry]) -> Result<Content, StoreError> {
        let packs = &self.pipeline.shared.packs;
        let keys = self.keys_of(&Domain::Workload)?;
        let key = packs.number_of(&Domain::Workload, &keys)?;
        let uploads = self
            .pipeline
            .uploads
            .as_ref()
            .ok_or(StoreError::WriterFailed)?;
        let body = tree::encode(entries);
        let store = |list: Vec<u8>| {
            packs
                .store_chunk(key, &keys, &list, uploads)
                .map(|reference| reference.name)
        };
        let mut assembly = assembly::Assembly::default();
        let (mut number, mut crc32c) = (0, 0);
        let each = |data: Vec<u8>| {
            crc32c = crc32c::crc32c_append(crc32c, &data);
            let reference = packs.store_chunk(key, &keys, &data, uploads)?;
            assembly.stored(number, reference, &store)?;
            number += 1;
            Ok(())
        };
        let seed = keys.cutting_seed();
        chunk::cut(&mut body.as_slice(), Cutting::Content, seed, each).map_err(
            |error| match error {
                CutError::Source(source) => StoreError::Source {
                    path: "the listing".to_owned(),
                    source,
                },
                CutError::Receiver(error) => error,
            },
        )?;
        assembly.ended(number, crc32c);
        assembly.complete(&store)?.ok_or(StoreError::WriterFailed)
    }

    /// Stores what is left of packs and indexes; what lies in packs that prune condemned meanwhile is
    /// stored again first. Returns those packs: nothing relies on them any more.
    fn store_packs(&mut self) -> Result<HashSet<PackId>, StoreError> {
        let mut again = HashSet::new();
        for _ in 0..CONDEMNED_ROUNDS_MAX {
            let packs = &self.pipeline.shared.packs;
            let uploads = self
                .pipeline
                .uploads
                .as_ref()
                .ok_or(StoreError::WriterFailed)?;
            // On their way while the place is asked.
            packs.send_open(uploads)?;
            let condemned = packs.repo().condemned(&self.workload)?;
            if !packs.store_again(&condemned, &mut again, uploads)? {
                break;
            }
        }
        if let Some(uploads) = &self.pipeline.uploads {
            self.pipeline.shared.packs.send_open(uploads)?;
        }
        self.pipeline.finish_packs()?;
        kill_point("store.after-pack");
        self.pipeline.shared.packs.store_indexes()?;
        Ok(again)
    }

    /// The last look before the point is listed: every pack that it needs is there and as long as it
    /// must be, no one has ended this session, and nothing is condemned that the point relies on.
    fn verify_present(&self, again: &HashSet<PackId>) -> Result<(), StoreError> {
        let repo = self.repository.inner();
        let needed = self.pipeline.shared.packs.needed(again);
        let (there, ours) = fetch::both(
            || packs_there(repo, &self.workload),
            || self.still_ours(&needed),
        );
        let there = there?;
        for (id, size) in &needed {
            let object = pack::object_name(&self.workload, id);
            match there.get(id) {
                Some(found) if found == size => {}
                Some(_) => {
                    return Err(StoreError::Damaged {
                        object,
                        place: self.repository.describe(),
                        what: "it is not as long as it was written".to_owned(),
                    });
                }
                None => return Err(repo.missing(&object)),
            }
        }
        ours
    }

    /// Whether what the point needs may still be relied on. The session is looked at last: while it is
    /// there, prune waits.
    fn still_ours(&self, needed: &HashMap<PackId, u64>) -> Result<(), StoreError> {
        self.nothing_is_gone(needed)?;
        self.repository.inner().session_is_alive(&self.session)
    }

    /// Nothing that the point needs is condemned, and no data key was destroyed.
    fn nothing_is_gone(&self, needed: &HashMap<PackId, u64>) -> Result<(), StoreError> {
        let repo = self.repository.inner();
        let keys = self.pipeline.shared.packs.keys();
        let domains = keys.into_iter().map(|(domain, keys)| (domain, keys.id()));
        let (condemned, keys) = fetch::both(
            || repo.condemned(&self.workload),
            || repo.data_keys_are_there(&self.workload, domains),
        );
        if condemned?.iter().any(|id| needed.contains_key(id)) {
            return Err(StoreError::Condemned {
                place: self.repository.describe(),
            });
        }
        keys
    }

    /// Deletes a restore point's object that was not listed. Where that cannot be done now (a lock) the
    /// session stays.
    fn take_back(&self, object: &str) {
        let stays = self.repository.inner().backend.delete(object).is_err();
        self.session_stays.store(stays, Ordering::Relaxed);
    }

    fn store_point(
        &self,
        point: &RestorePoint,
        details: serde_json::Value,
        listing: &Content,
        again: &HashSet<PackId>,
    ) -> Result<(), StoreError> {
        let repo = self.repository.inner();
        let keys = self.pipeline.shared.packs.keys();
        let object = PointObject {
            point: point.clone(),
            details,
            session: self.session.clone(),
            data_keys: keys
                .iter()
                .map(|(_, keys)| hex::encode(keys.id()))
                .collect(),
            listing: Listing::of(listing),
        };
        let body = serde_json::to_vec(&object).map_err(|error| StoreError::Encode {
            what: "a restore point",
            source: Box::new(error),
        })?;
        let name = point_name(&point.id);
        let data = sealed::encode(&repo.id, &repo.master, Kind::Point, &name, &body)
            .map_err(encode_failed("a restore point"))?;
        let data = Bytes::from(data);
        let options = self.pipeline.shared.packs.put_options();
        // A failure may hide that the object is stored (its answer was lost). In no list nothing reads it,
        // and the session beside it tells that it was never listed, until prune removes both.
        self.session_stays.store(true, Ordering::Relaxed);
        let (head, stored) = fetch::both(
            || repo.chain_head(&self.workload),
            || repo.put_new_with(&name, data.clone(), &options),
        );
        if stored? == PutOutcome::Exists {
            return Err(repo.name_taken(&name));
        }
        kill_point("store.after-point");
        let needed = self.pipeline.shared.packs.needed(again);
        let refused = Cell::new(false);
        let may_go_on = || {
            let ours = self.still_ours(&needed);
            refused.set(ours.is_err());
            ours
        };
        let listed = repo.chain_listed(point, &data, head?, point.finished, &options, &may_go_on);
        if refused.get() {
            self.take_back(&name);
        }
        listed?;
        self.session_stays.store(false, Ordering::Relaxed);
        kill_point("store.after-chain");
        let finished = Finished {
            point,
            object: &data,
            needed: &needed,
        };
        self.pipeline.shared.packs.copies.finish(repo, &finished);
        Ok(())
    }
}

impl Drop for BackupWriter {
    /// Ends the session, finished or not. What was stored is put into an index, so that the next backup
    /// need not store it again.
    fn drop(&mut self) {
        // A place that failed would only keep us waiting: without an index these packs (few, there is one
        // for every 256 MiB) cost space until prune removes them.
        if self.pipeline.finish_packs().is_ok()
            && let Err(error) = self.pipeline.shared.packs.store_indexes()
        {
            tracing::debug!(%error, "what was stored is in no index");
        }
        if self.session_stays.load(Ordering::Relaxed) {
            return;
        }
        let repo = self.repository.inner();
        if let Err(error) = repo.backend.delete(&self.session) {
            tracing::debug!(%error, "the session stays until prune finds it dead");
        }
    }
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

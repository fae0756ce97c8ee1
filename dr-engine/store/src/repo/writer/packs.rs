//! From a chunk to a stored pack: is it stored already, else compress it, seal it, fill a pack, store
//! the pack, and from time to time an index of what was stored, so that an interruption wastes little.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use dr_model::WorkloadName;

use super::copies::CopyRun;
use crate::backend::{PutOptions, PutOutcome};
use crate::crypto::Keys;
use crate::format::content::Reference;
use crate::format::header::Kind;
use crate::format::index::{self, IndexedPack};
use crate::format::pack::{FullPack, PackBuilder, PackId};
use crate::format::{ChunkName, pack};
use crate::repo::index::table::ShortName;
use crate::repo::index::{Index, PackFile, index_prefix};
use crate::repo::keys::Domain;
use crate::repo::lock::LockPlan;
use crate::repo::{Inner, Repository, encode_failed};
use crate::testing::kill_point;
use crate::{StoreError, chunk, compress};

/// When an open pack has this much, it is stored.
pub(super) const PACK_BYTES: usize = 16 * 1024 * 1024;
/// Open packs of all data keys together hold at most this; then the fullest one is stored as it is.
const OPEN_BYTES_MAX: usize = 48 * 1024 * 1024;
/// So many packs (256 MiB) are stored between two indexes: what an interruption may waste.
const INDEX_PACKS: usize = 16;
/// And at most so many chunks: an index is held in memory about six times while it is stored and read
/// back, 30 MB.
const INDEX_CHUNKS: usize = 128 * 1024;

/// A pack on its way to the place.
#[derive(Debug)]
pub(super) struct Upload {
    key: u16,
    full: FullPack,
}

/// What is asked of the place for what is stored.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// How long it is locked, and what is locked already.
    pub(super) lock: Option<LockPlan>,
    /// How the place keeps packs.
    pub(super) storage_class: Option<String>,
}

/// What the threads of one backup share.
#[derive(Debug)]
pub(super) struct Packs {
    pub(super) repository: Repository,
    pub(super) workload: WorkloadName,
    pub(super) compression_level: i32,
    pub(super) asked: Asked,
    pub(super) copies: CopyRun,
    /// What was stored before.
    pub(super) known: Arc<Index>,
    /// Of each known pack: whether it may be relied on.
    pub(super) usable: Vec<bool>,
    /// Of each known pack: whether this backup relies on it.
    used: Vec<AtomicBool>,
    keys: Mutex<Vec<(Domain, Arc<Keys>)>>,
    open: Mutex<Open>,
    stored: Mutex<Stored>,
    failure: Mutex<Failure>,
    failed: AtomicBool,
}

/// Packs being filled.
#[derive(Debug, Default)]
struct Open {
    builders: HashMap<u16, PackBuilder>,
    /// Chunks this backup has put into a pack, or is about to.
    new: HashSet<ShortName>,
}

/// Packs that are stored.
#[derive(Debug, Default)]
struct Stored {
    /// In no index yet.
    not_indexed: Vec<(u16, IndexedPack)>,
    all: Vec<(PackId, u64)>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Failure(Option<StoreError>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(key: u16, full: PackBuilder, uploads: &Sender<Upload>) -> Result<(), StoreError> {
    let full = full.finish().map_err(encode_failed("a pack"))?;
    // Nobody receives any more when the threads that store have ended.
    uploads
        .send(Upload { key, full })
        .map_err(|_| StoreError::WriterFailed)
}

impl Packs {
    pub(super) fn new(
        repository: Repository,
        workload: WorkloadName,
        compression_level: i32,
        asked: Asked,
        known: Arc<Index>,
        usable: Vec<bool>,
    ) -> Self {
        let used = known.packs().iter().map(|_| AtomicBool::new(false));
        Self {
            used: used.collect(),
            copies: CopyRun::begin(repository.inner()),
            repository,
            workload,
            compression_level,
            asked,
            known,
            usable,
            keys: Mutex::default(),
            open: Mutex::default(),
            stored: Mutex::default(),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn repo(&self) -> &Inner {
        self.repository.inner()
    }

    /// The number under which this backup's entries refer to a data key.
    pub(super) fn number_of(&self, domain: &Domain, keys: &Arc<Keys>) -> Result<u16, StoreError> {
        let mut known = lock(&self.keys);
        let number = match known.iter().position(|(_, known)| known.id() == keys.id()) {
            Some(number) => number,
            None => {
                known.push((domain.clone(), Arc::clone(keys)));
                known.len() - 1
            }
        };
        u16::try_from(number).map_err(|_| StoreError::InvalidName {
            name: self.workload.to_string(),
            rule: "a restore point has at most 65536 data keys",
        })
    }

    pub(super) fn keys(&self) -> Vec<(Domain, Arc<Keys>)> {
        lock(&self.keys).clone()
    }

    fn key(&self, number: u16) -> Result<Arc<Keys>, StoreError> {
        lock(&self.keys)
            .get(usize::from(number))
            .map(|(_, keys)| Arc::clone(keys))
            .ok_or_else(|| self.repo().missing("a data key"))
    }

    /// Remembers the first failure: with a pack that was not stored, nothing can be finished.
    pub(super) fn fail(&self, error: StoreError) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            lock(&self.failure).0 = Some(error);
        }
    }

    /// The failure itself the first time it is asked for, and that there was one from then on.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if !self.has_failed() {
            return Ok(());
        }
        Err(lock(&self.failure)
            .0
            .take()
            .unwrap_or(StoreError::WriterFailed))
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Relies on a chunk that was stored before, if there is a copy to rely on.
    pub(super) fn rely_on(&self, name: &ChunkName) -> bool {
        for number in self.known.find(name) {
            let place = usize::try_from(number).unwrap_or(usize::MAX);
            if self.usable.get(place).is_some_and(|usable| *usable) {
                if let Some(used) = self.used.get(place) {
                    used.store(true, Ordering::Relaxed);
                }
                return true;
            }
        }
        false
    }

    /// Stores a chunk unless it is stored already.
    pub(super) fn store_chunk(
        &self,
        key: u16,
        keys: &Keys,
        data: &[u8],
        uploads: &Sender<Upload>,
    ) -> Result<Reference, StoreError> {
        let name = keys.chunk_name(data);
        let reference = Reference {
            name,
            bytes: data.len() as u64,
        };
        if self.rely_on(&name) || !lock(&self.open).new.insert(ShortName::of(&name)) {
            return Ok(reference);
        }
        self.pack_chunk(key, keys, name, data, uploads)?;
        Ok(reference)
    }

    /// Stores a chunk whether it is stored already or not.
    pub(super) fn pack_chunk(
        &self,
        key: u16,
        keys: &Keys,
        name: ChunkName,
        data: &[u8],
        uploads: &Sender<Upload>,
    ) -> Result<(), StoreError> {
        let packed = compress::pack(data, self.compression_level);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match self.add_to_pack(key, keys, name, length, packed)? {
            Some((key, full)) => send(key, full, uploads),
            None => Ok(()),
        }
    }

    /// Puts a chunk into its key's open pack; hands a pack back when one is full.
    fn add_to_pack(
        &self,
        key: u16,
        keys: &Keys,
        name: ChunkName,
        length: u32,
        packed: Vec<u8>,
    ) -> Result<Option<(u16, PackBuilder)>, StoreError> {
        let mut open = lock(&self.open);
        let builder = match open.builders.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let capacity = PACK_BYTES + chunk::CHUNK_BYTES_MAX;
                let new = PackBuilder::new(&self.repo().id, &self.workload, keys, capacity);
                entry.insert(new.map_err(encode_failed("a pack"))?)
            }
        };
        builder
            .add(name, length, packed)
            .map_err(encode_failed("a chunk"))?;
        let full = if builder.len() >= PACK_BYTES {
            Some(key)
        } else {
            let all: usize = open.builders.values().map(PackBuilder::len).sum();
            let fullest = open.builders.iter().max_by_key(|(_, open)| open.len());
            fullest
                .filter(|_| all >= OPEN_BYTES_MAX)
                .map(|(key, _)| *key)
        };
        Ok(full.and_then(|key| open.builders.remove(&key).map(|builder| (key, builder))))
    }

    /// Sends every pack that is not full.
    pub(super) fn send_open(&self, uploads: &Sender<Upload>) -> Result<(), StoreError> {
        let builders = std::mem::take(&mut lock(&self.open).builders);
        for (key, builder) in builders {
            send(key, builder, uploads)?;
        }
        Ok(())
    }

    /// Stores a pack, and an index when there is enough to index.
    pub(super) fn store_pack(&self, Upload { key, full }: Upload) -> Result<(), StoreError> {
        let repo = self.repo();
        kill_point("store.before-pack");
        if repo.put_new_with(&full.object, full.data.clone(), &self.pack_options())?
            == PutOutcome::Exists
        {
            return Err(repo.name_taken(&full.object));
        }
        self.copies.put(&full.object, &full.data);
        let due = {
            let mut stored = lock(&self.stored);
            let bytes = full.data.len() as u64;
            stored.bytes += bytes;
            stored.all.push((full.id, bytes));
            let chunks = full.chunks;
            stored.not_indexed.push((
                key,
                IndexedPack {
                    id: full.id,
                    chunks,
                },
            ));
            let packs = stored.not_indexed.iter();
            let chunks: usize = packs.map(|(_, pack)| pack.chunks.len()).sum();
            stored.not_indexed.len() >= INDEX_PACKS || chunks >= INDEX_CHUNKS
        };
        if due {
            self.store_indexes()?;
        }
        Ok(())
    }

    /// Writes indexes of what is in none yet, one for each data key, and reads them back as a restore
    /// will.
    pub(super) fn store_indexes(&self) -> Result<(), StoreError> {
        let packs = std::mem::take(&mut lock(&self.stored).not_indexed);
        let mut by_key: HashMap<u16, Vec<IndexedPack>> = HashMap::new();
        for (key, pack) in packs {
            by_key.entry(key).or_default().push(pack);
        }
        for (key, packs) in by_key {
            let keys = self.key(key)?;
            for part in index::parts(&packs) {
                self.store_index(&keys, part)?;
            }
        }
        Ok(())
    }

    fn store_index(&self, keys: &Keys, packs: &[IndexedPack]) -> Result<(), StoreError> {
        let repo = self.repo();
        let object = format!(
            "{}{}",
            index_prefix(&self.workload),
            dr_model::random::hex(16)
        );
        let body = index::encode(packs);
        let options = self.put_options();
        let put = repo.put_sealed_with(keys, Kind::Index, &object, &body, &options)?;
        if put == PutOutcome::Exists {
            return Err(repo.name_taken(&object));
        }
        let read = repo
            .read_index(&self.workload, &object)?
            .ok_or_else(|| repo.missing(&object))?;
        if read.packs != packs {
            return Err(StoreError::Damaged {
                object,
                place: self.repository.describe(),
                what: "it reads otherwise than it was written".to_owned(),
            });
        }
        lock(&self.stored).bytes += body.len() as u64;
        self.copies.put_stored(repo, &object);
        Ok(())
    }

    pub(super) fn put_options(&self) -> PutOptions {
        self.asked
            .lock
            .as_ref()
            .map(LockPlan::put_options)
            .unwrap_or_default()
    }

    /// Packs alone may be kept more cheaply: everything else is read with every backup.
    fn pack_options(&self) -> PutOptions {
        PutOptions {
            storage_class: self.asked.storage_class.clone(),
            ..self.put_options()
        }
    }

    /// Locks what the point relies on as long as what was written for it.
    pub(super) fn lock_needed(&self, again: &HashSet<PackId>) -> Result<(), StoreError> {
        let Some(plan) = &self.asked.lock else {
            return Ok(());
        };
        let object = |id: &PackId| pack::object_name(&self.workload, id);
        let relied_on = self.relied_on().filter(|pack| !again.contains(&pack.id));
        let relied_on = relied_on.map(|pack| object(&pack.id)).collect();
        let written = lock(&self.stored)
            .all
            .iter()
            .map(|(id, _)| object(id))
            .collect();
        self.repo()
            .lock_needed(&self.workload, plan, relied_on, written)
    }

    pub(super) fn bytes_added(&self) -> u64 {
        lock(&self.stored).bytes
    }

    /// The packs stored by this backup, and the known ones it relies on, with their sizes; but not
    /// those whose chunks it has stored `again`.
    pub(super) fn needed(&self, again: &HashSet<PackId>) -> HashMap<PackId, u64> {
        let mut needed: HashMap<PackId, u64> = lock(&self.stored).all.iter().copied().collect();
        let relied_on = self.relied_on().filter(|pack| !again.contains(&pack.id));
        needed.extend(relied_on.map(|pack| (pack.id, pack.size)));
        needed
    }

    fn relied_on(&self) -> impl Iterator<Item = &PackFile> {
        let packs = self.known.packs().iter().zip(&self.used);
        packs
            .filter(|(_, used)| used.load(Ordering::Relaxed))
            .map(|(pack, _)| pack)
    }

    /// Stores again what this backup relies on in packs that were condemned meanwhile. Prune waits for
    /// this session, so they are still there.
    pub(super) fn store_again(
        &self,
        condemned: &HashSet<PackId>,
        again: &mut HashSet<PackId>,
        uploads: &Sender<Upload>,
    ) -> Result<bool, StoreError> {
        let repo = self.repo();
        let mut any = false;
        for file in self.relied_on() {
            if !condemned.contains(&file.id) || !again.insert(file.id) {
                continue;
            }
            any = true;
            let object = pack::object_name(&self.workload, &file.id);
            let data = repo.get(&object)?.ok_or_else(|| repo.missing(&object))?;
            let (domain, keys) = repo.data_keys_by_id(&self.workload, &file.key_id)?;
            let key = self.number_of(&domain, &keys)?;
            pack::each_chunk(&repo.id, &keys, &object, &data, &mut |name, chunk| {
                let chunk = chunk.map_err(|error| repo.unreadable(&object, error))?;
                self.pack_chunk(key, &keys, name, &chunk, uploads)
            })
            .map_err(|error| repo.unreadable(&object, error))??;
        }
        Ok(any)
    }

    /// Stores the chunks of a pack that are `wanted` again, as they were packed.
    pub(super) fn copy_chunks(
        &self,
        file: &PackFile,
        wanted: &dyn Fn(&ChunkName) -> bool,
        uploads: &Sender<Upload>,
    ) -> Result<(), StoreError> {
        let repo = self.repo();
        let object = pack::object_name(&self.workload, &file.id);
        let data = repo.get(&object)?.ok_or_else(|| repo.missing(&object))?;
        let (domain, keys) = repo.data_keys_by_id(&self.workload, &file.key_id)?;
        let key = self.number_of(&domain, &keys)?;
        let mut copy = |name, length, packed: Result<Vec<u8>, _>| {
            let packed = packed.map_err(|error| repo.unreadable(&object, error))?;
            match self.add_to_pack(key, &keys, name, length, packed)? {
                Some((key, full)) => send(key, full, uploads),
                None => Ok(()),
            }
        };
        pack::each_packed_chunk(&repo.id, &keys, &object, &data, wanted, &mut copy)
            .map_err(|error| repo.unreadable(&object, error))?
    }
}

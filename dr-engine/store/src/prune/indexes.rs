//! Index objects: what they say of half-empty packs, and fewer of them in place of many.

use std::collections::{HashMap, HashSet};

use dr_model::WorkloadName;

use super::homes::Homes;
use crate::StoreError;
use crate::backend::PutOutcome;
use crate::format::header::Kind;
use crate::format::index::{self, IndexedPack};
use crate::format::pack::PackId;
use crate::repo::index::{Index, IndexObject, groups, index_prefix};
use crate::repo::keys::KeyId;
use crate::repo::{Inner, fetch};

/// An index object of fewer packs is small: a backup leaves one for every 16 packs, and one at its end.
const SMALL_PACKS: u32 = 256;
/// So many small index objects of one data key are left alone.
const SMALL_KEPT: usize = 8;
/// A new index object is stored when it has so many chunks: 5 MB.
const CHUNKS_MAX: usize = 128 * 1024;
/// And at most so many packs.
const PACKS_MAX: usize = 4096;
/// Chunks gathered for all data keys together: 160 MB.
const GATHERED_MAX: usize = 4_000_000;

/// The needed bytes of each pack of which a part is needed, by the pack's number.
pub(super) fn live_bytes(
    repo: &Inner,
    workload: &WorkloadName,
    index: &Index,
    homes: &Homes,
) -> Result<HashMap<u32, u64>, StoreError> {
    let numbered = || (0u32..).zip(index.packs());
    let partly: HashSet<u32> = numbered()
        .filter(|(number, file)| (1..file.chunks).contains(&homes.live(*number)))
        .map(|(number, _)| number)
        .collect();
    let objects: HashSet<u32> = numbered()
        .filter(|(number, _)| partly.contains(number))
        .map(|(_, file)| file.object)
        .collect();
    let objects: Vec<&IndexObject> = (0u32..)
        .zip(index.objects())
        .filter(|(place, _)| objects.contains(place))
        .map(|(_, object)| object)
        .collect();
    let mut live = HashMap::new();
    for group in groups(&objects, |object| object.bytes) {
        for read in fetch::each(group, |object| repo.read_index(workload, &object.name)) {
            let packs = read?.map(|read| read.packs).unwrap_or_default();
            for pack in packs {
                let number = index.number_of(&pack.id);
                let Some(number) = number.filter(|number| partly.contains(number)) else {
                    continue;
                };
                let needed = (pack.chunks.iter())
                    .filter(|chunk| homes.is_home(index, number, &chunk.name))
                    .map(|chunk| u64::from(chunk.stored))
                    .sum();
                live.insert(number, needed);
            }
        }
    }
    Ok(live)
}

/// The index objects that are to be merged: the small ones of a data key when there are many, and those
/// that say nothing, or what another one says too.
pub(super) fn to_merge(index: &Index) -> HashSet<String> {
    let mut small: HashMap<KeyId, Vec<&str>> = HashMap::new();
    let mut chosen = HashSet::new();
    let mut told: HashMap<u32, (u32, usize)> = HashMap::new();
    for file in index.packs() {
        let (packs, chunks) = told.entry(file.object).or_default();
        *packs += 1;
        *chunks += usize::try_from(file.chunks).unwrap_or(usize::MAX);
    }
    for (place, object) in (0u32..).zip(index.objects()) {
        let (packs, chunks) = told.get(&place).copied().unwrap_or_default();
        if object.packs == 0 || packs != object.packs {
            chosen.insert(object.name.clone());
        } else if packs < SMALL_PACKS && chunks < CHUNKS_MAX / 2 {
            small.entry(object.key_id).or_default().push(&object.name);
        }
    }
    for names in small.into_values().filter(|names| names.len() > SMALL_KEPT) {
        chosen.extend(names.into_iter().map(str::to_owned));
    }
    chosen
}

/// The index objects that name one of these packs.
pub(super) fn naming(index: &Index, packs: &HashSet<PackId>) -> HashSet<String> {
    let named = index.packs().iter().filter(|file| packs.contains(&file.id));
    named.filter_map(|file| index.object_of(file)).collect()
}

/// Packs gathered for new index objects.
#[derive(Default)]
struct Gathered {
    by_key: HashMap<KeyId, Vec<IndexedPack>>,
    chunks: HashMap<KeyId, usize>,
}

/// Stores new index objects in place of `objects`, without the packs to `leave_out`. The old ones are
/// the caller's to delete, afterwards.
pub(super) fn merge(
    repo: &Inner,
    workload: &WorkloadName,
    index: &Index,
    objects: &HashSet<String>,
    leave_out: &HashSet<PackId>,
) -> Result<(), StoreError> {
    let mut gathered = Gathered::default();
    let mut seen: HashSet<PackId> = HashSet::new();
    let known = index.objects().iter();
    let mut old: Vec<&IndexObject> = known
        .filter(|object| objects.contains(&object.name))
        .collect();
    old.sort_by(|left, right| left.name.cmp(&right.name));
    for group in groups(&old, |object| object.bytes) {
        for read in fetch::each(group, |object| repo.read_index(workload, &object.name)) {
            let Some(read) = read? else { continue };
            let packs = read.packs.into_iter();
            for pack in packs.filter(|pack| !leave_out.contains(&pack.id)) {
                if seen.insert(pack.id) {
                    gathered.add(repo, workload, read.key_id, pack)?;
                }
            }
        }
    }
    let keys: Vec<KeyId> = gathered.by_key.keys().copied().collect();
    for key in keys {
        gathered.store(repo, workload, &key)?;
    }
    Ok(())
}

impl Gathered {
    fn add(
        &mut self,
        repo: &Inner,
        workload: &WorkloadName,
        key: KeyId,
        pack: IndexedPack,
    ) -> Result<(), StoreError> {
        let chunks = self.chunks.entry(key).or_default();
        *chunks += pack.chunks.len();
        let chunks = *chunks;
        let packs = self.by_key.entry(key).or_default();
        packs.push(pack);
        if chunks >= CHUNKS_MAX || packs.len() >= PACKS_MAX {
            return self.store(repo, workload, &key);
        }
        if self.chunks.values().sum::<usize>() >= GATHERED_MAX
            && let Some((fullest, _)) = self.chunks.iter().max_by_key(|(_, chunks)| **chunks)
        {
            let fullest = *fullest;
            return self.store(repo, workload, &fullest);
        }
        Ok(())
    }

    /// Stores one index object and reads it back as a reader will.
    fn store(
        &mut self,
        repo: &Inner,
        workload: &WorkloadName,
        key: &KeyId,
    ) -> Result<(), StoreError> {
        self.chunks.remove(key);
        let packs = self.by_key.remove(key).unwrap_or_default();
        if packs.is_empty() {
            return Ok(());
        }
        let (_, keys) = repo.data_keys_by_id(workload, key)?;
        let object = format!("{}{}", index_prefix(workload), dr_model::random::hex(16));
        if repo.put_sealed(&keys, Kind::Index, &object, &index::encode(&packs))?
            == PutOutcome::Exists
        {
            return Err(repo.name_taken(&object));
        }
        let read = repo.read_index(workload, &object)?;
        if read.is_some_and(|read| read.packs == packs) {
            Ok(())
        } else {
            let error =
                crate::format::FormatError::damaged("it reads otherwise than it was written");
            Err(repo.unreadable(&object, error))
        }
    }
}

//! What goes of one workload.

use std::collections::HashSet;
use std::sync::Arc;

use dr_model::{ByteCount, Progress, RestorePointId, WalFileName, WorkloadName};

use super::homes::{Homes, Standing};
use super::locks::take_locked;
use super::need::{NeedError, NeedSet};
use super::sessions::{SessionState, may_belong, oldest_running};
use super::survey::{History, Survey};
use super::{
    CHAIN_ENTRIES_KEPT, DoomedObject, HalfEmptyPack, LockedObject, PruneOptions, WorkloadPrune,
    indexes,
};
use crate::format::FormatError;
use crate::format::chain::ChainEvent;
use crate::format::pack::{self, PackId};
use crate::repo::Inner;
use crate::repo::index::PackFile;
use crate::repo::points::{POINTS, point_name};
use crate::repo::wal::wal_prefix;
use crate::{Repository, StoreError};

/// Packs smaller than this are joined when there are many: each backup leaves one that is not full.
const SMALL_PACK_BYTES: u64 = 4 * 1024 * 1024;
/// So many small packs are left alone.
const SMALL_PACKS_KEPT: usize = 16;

/// What is asked to go.
pub(super) struct Wanted {
    pub(super) decided_at: u64,
    pub(super) points: HashSet<RestorePointId>,
    pub(super) wal: HashSet<WalFileName>,
    pub(super) storage_class: Option<String>,
}

/// A pack that could go if nothing of it were needed.
pub(super) struct Candidate {
    pub(super) id: PackId,
    pub(super) bytes: u64,
    /// Needed bytes; the index's word for the pack where anything is.
    pub(super) live: Option<(PackFile, u64)>,
    /// The index object that names it.
    index_object: Option<String>,
}

pub(super) fn workload(
    repository: &Repository,
    workload: &WorkloadName,
    wanted: Wanted,
    options: &PruneOptions,
    progress: &dyn Progress,
) -> Result<WorkloadPrune, StoreError> {
    let repo = repository.inner();
    let looked = look_twice(repository, workload, &wanted, options, progress)?;
    let (survey, need, homes) = (looked.survey, looked.need, looked.homes);
    let mut locked = looked.locked;
    let (delete, rewrite) = packs(repo, workload, &survey, &homes, options)?;
    let index_of = |candidate: &Candidate| {
        let object = pack::object_name(workload, &candidate.id);
        (object, candidate.bytes, candidate.index_object.clone())
    };
    let delete = take_locked(repo, delete, index_of, &mut locked)?;
    let rewrite = take_locked(repo, rewrite, index_of, &mut locked)?;
    let wal = wal(repo, workload, &survey, wanted.wal, options, &mut locked)?;
    let merge: Vec<String> = indexes::to_merge(&survey.index).into_iter().collect();
    let merge = take_locked(repo, merge, |name| (name.clone(), 0, None), &mut locked)?
        .into_iter()
        .collect::<HashSet<String>>();
    let doomed = |candidate: &Candidate| DoomedObject {
        object: pack::object_name(workload, &candidate.id),
        bytes: ByteCount(candidate.bytes),
    };
    let mut plan = WorkloadPrune {
        workload: workload.clone(),
        points: looked.points,
        wal,
        delete_packs: delete.iter().map(doomed).collect(),
        rewrite_packs: rewrite
            .iter()
            .map(|one| half_empty(workload, one))
            .collect(),
        condemned_packs: survey
            .condemned
            .iter()
            .map(|list| list.packs.len() as u64)
            .sum(),
        merge_indexes: merge.len() as u64,
        merge,
        old_chain_entries: old_entries(&survey.history).len() as u64,
        unlisted_points: looked.unlisted,
        sessions: survey.history.sessions.clone(),
        locked,
        bytes_won: ByteCount(0),
        bytes_stored: ByteCount(survey.packs.values().map(|pack| pack.size).sum()),
        decided_at: wanted.decided_at,
        storage_class: wanted.storage_class,
        need: Arc::new(need),
    };
    plan.bytes_won = ByteCount(won(&plan, &survey));
    Ok(plan)
}

/// What would be won: what goes and does not come back in another pack.
fn won(plan: &WorkloadPrune, survey: &Survey) -> u64 {
    let doomed = plan
        .delete_packs
        .iter()
        .chain(&plan.wal)
        .map(|one| one.bytes.0);
    let rewritten =
        (plan.rewrite_packs.iter()).map(|one| one.bytes.0.saturating_sub(one.live_bytes.0));
    let condemned = (survey.condemned.iter().flat_map(|list| &list.packs))
        .filter_map(|id| survey.packs.get(id).map(|pack| pack.size));
    doomed.chain(rewritten).chain(condemned).sum()
}

/// Everything that a decision is made over.
struct Looked {
    survey: Survey,
    need: NeedSet,
    homes: Homes,
    /// The points that go.
    points: Vec<RestorePointId>,
    /// Objects of points that were never listed, or are not any more.
    unlisted: Vec<String>,
    locked: Vec<LockedObject>,
}

/// Looks at everything, and again if something is missing: an index that was stored after the indexes
/// were read names what a new point needs.
fn look_twice(
    repository: &Repository,
    workload: &WorkloadName,
    wanted: &Wanted,
    options: &PruneOptions,
    progress: &dyn Progress,
) -> Result<Looked, StoreError> {
    let found = match look(repository, workload, wanted, options, progress) {
        Err(NeedError::NoChunk(_)) => look(repository, workload, wanted, options, progress),
        found => found,
    };
    found.map_err(|error| match error {
        NeedError::Store(error) => error,
        NeedError::NoChunk(name) => {
            let repo = repository.inner();
            repo.missing(&format!("chunk {}", hex::encode(name)))
        }
    })
}

fn look(
    repository: &Repository,
    workload: &WorkloadName,
    wanted: &Wanted,
    options: &PruneOptions,
    progress: &dyn Progress,
) -> Result<Looked, NeedError> {
    let repo = repository.inner();
    let mut locked = Vec::new();
    let survey = Survey::new(repo, workload, options, None)?;
    let unlisted = unlisted(repo, workload, &survey.history)?;
    let points = removable(repo, &survey, &wanted.points, &mut locked)?;
    let gone: HashSet<&RestorePointId> = points.iter().collect();
    let mut need = NeedSet::new(Arc::clone(&survey.index));
    let kept: Vec<_> = (survey.history.listed.iter())
        .filter(|chained| !gone.contains(&chained.point.id))
        .cloned()
        .collect();
    progress.phase(
        &format!("reading {} restore points of `{workload}`", kept.len()),
        None,
    );
    need.add(repository, workload, &kept)?;
    let homes = Homes::find(&need, &|pack| survey.standing(pack))?;
    Ok(Looked {
        survey,
        need,
        homes,
        points,
        unlisted,
        locked,
    })
}

/// The points that go: listed, asked to go, and not locked. A locked one stays listed, because it can
/// still be restored.
fn removable(
    repo: &Inner,
    survey: &Survey,
    wanted: &HashSet<RestorePointId>,
    locked: &mut Vec<LockedObject>,
) -> Result<Vec<RestorePointId>, StoreError> {
    let listed = survey
        .history
        .listed
        .iter()
        .map(|chained| &chained.point.id);
    let going: Vec<RestorePointId> = listed.filter(|id| wanted.contains(id)).cloned().collect();
    take_locked(repo, going, |id| (point_name(id), 0, None), locked)
}

/// The packs that go, and those that are written anew.
pub(super) fn packs(
    repo: &Inner,
    workload: &WorkloadName,
    survey: &Survey,
    homes: &Homes,
    options: &PruneOptions,
) -> Result<(Vec<Candidate>, Vec<Candidate>), StoreError> {
    let oldest = oldest_running(&survey.history.sessions);
    let live_bytes = indexes::live_bytes(repo, workload, &survey.index, homes)?;
    let (mut delete, mut partly) = (Vec::new(), Vec::new());
    for (id, stored) in &survey.packs {
        if may_belong(stored.stored_at, oldest, options.clock_slack) || survey.is_condemned(id) {
            continue;
        }
        let number = survey.index.number_of(id);
        let file = number.and_then(|number| survey.index.pack(number)).copied();
        let live = number.map_or(0, |number| homes.live(number));
        let bytes = number.and_then(|number| live_bytes.get(&number)).copied();
        let candidate = Candidate {
            id: *id,
            bytes: stored.size,
            live: file.filter(|_| live > 0).map(|file| {
                // All of it where nothing else was counted.
                (file, bytes.unwrap_or(stored.size))
            }),
            index_object: file.and_then(|file| survey.index.object_of(&file)),
        };
        match candidate.live {
            None => delete.push(candidate),
            // A pack that is not there as it should be is for repair, not for prune.
            Some(_) if number.map(|number| survey.standing(number)) != Some(Standing::Good) => {}
            Some(_) => partly.push(candidate),
        }
    }
    delete.sort_by_key(|candidate| candidate.id);
    Ok((delete, to_rewrite(partly, options)))
}

/// The emptiest first, up to a limit; and the small ones, when there are many.
fn to_rewrite(partly: Vec<Candidate>, options: &PruneOptions) -> Vec<Candidate> {
    let live = |one: &Candidate| one.live.map_or(0, |(_, live)| live);
    let percent = u64::from(options.rewrite_below_percent);
    let is_empty = |one: &Candidate| live(one) * 100 < one.bytes * percent;
    let small = |one: &Candidate| one.bytes < SMALL_PACK_BYTES;
    // Small packs of one data key are joined; those of different keys never mix.
    let mut small_by_key = std::collections::HashMap::new();
    for (file, _) in partly
        .iter()
        .filter(|one| small(one))
        .filter_map(|one| one.live)
    {
        *small_by_key.entry(file.key_id).or_insert(0usize) += 1;
    }
    let is_many = |one: &Candidate| {
        let key = one.live.map(|(file, _)| file.key_id);
        small(one) && key.is_some_and(|key| small_by_key.get(&key) > Some(&SMALL_PACKS_KEPT))
    };
    let mut chosen: Vec<Candidate> = partly
        .into_iter()
        .filter(|one| is_empty(one) || is_many(one))
        .collect();
    chosen.sort_by_key(|one| (live(one) * 1_000_000 / one.bytes.max(1), one.id));
    let mut copied = 0;
    chosen.retain(|one| {
        copied += live(one);
        copied <= options.rewrite_bytes_max
    });
    chosen
}

fn half_empty(workload: &WorkloadName, one: &Candidate) -> HalfEmptyPack {
    HalfEmptyPack {
        object: pack::object_name(workload, &one.id),
        bytes: ByteCount(one.bytes),
        live_bytes: ByteCount(one.live.map_or(0, |(_, live)| live)),
    }
}

/// WAL files that go. What a running backup may have archived stays: its point is not listed yet.
fn wal(
    repo: &Inner,
    workload: &WorkloadName,
    survey: &Survey,
    wanted: HashSet<WalFileName>,
    options: &PruneOptions,
    locked: &mut Vec<LockedObject>,
) -> Result<Vec<DoomedObject>, StoreError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let oldest = oldest_running(&survey.history.sessions);
    let mut doomed: Vec<DoomedObject> = repo
        .list(&wal_prefix(workload))?
        .into_iter()
        .filter(|entry| !may_belong(entry.modified, oldest, options.clock_slack))
        .filter(|entry| {
            let file = entry.name.rsplit('/').next().unwrap_or_default();
            file.parse().is_ok_and(|name| wanted.contains(&name))
        })
        .map(|entry| DoomedObject {
            object: entry.name,
            bytes: ByteCount(entry.size),
        })
        .collect();
    // Oldest first, timeline by timeline: a crash leaves no hole in what is kept.
    doomed.sort_by(|left, right| left.object.cmp(&right.object));
    take_locked(
        repo,
        doomed,
        |one| (one.object.clone(), one.bytes.0, None),
        locked,
    )
}

/// Entries of the list of restore points that are older than is kept. All are kept while objects of
/// points are there that only an old entry may tell about.
pub(super) fn old_entries(history: &History) -> Vec<u64> {
    if !history.unlisted().is_empty() {
        return Vec::new();
    }
    let kept_from = history.sequence.saturating_sub(CHAIN_ENTRIES_KEPT) + 1;
    let old = history.entries.iter().copied();
    old.filter(|sequence| *sequence < kept_from).collect()
}

/// Objects of restore points that are in no list and may go: an entry of the list says that they were
/// removed, or the session of their writer is there and its writer is gone. One of neither kind was
/// listed once: the newest lists are missing, and nothing is to be removed before they are back.
pub(super) fn unlisted(
    repo: &Inner,
    workload: &WorkloadName,
    history: &History,
) -> Result<Vec<String>, StoreError> {
    let objects = history.unlisted();
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let mut removed: HashSet<RestorePointId> = HashSet::new();
    for sequence in &history.entries {
        if let Some(head) = repo.chain_entry(workload, *sequence)?
            && let ChainEvent::Removed(ids) = head.entry.event
        {
            removed.extend(ids);
        }
    }
    let mut may_go = Vec::new();
    for object in objects {
        // One that is gone was deleted by its writer.
        let Some((found, _)) = repo.read_point(&object)? else {
            continue;
        };
        let session = (history.sessions.iter()).find(|session| session.object == found.session);
        match session.map(|session| session.state) {
            Some(SessionState::Running) => {}
            Some(SessionState::Dead | SessionState::Expired) => may_go.push(object),
            None if removed.contains(&found.point.id) => may_go.push(object),
            None => {
                let error = FormatError::damaged(
                    "it was listed and is not any more: the newest lists of restore points are missing",
                );
                return Err(repo.unreadable(&object, error));
            }
        }
    }
    Ok(may_go)
}

/// The objects of a workload's restore points.
pub(super) fn point_objects(
    repo: &Inner,
    workload: &WorkloadName,
) -> Result<Vec<String>, StoreError> {
    let found = repo.list(&format!("{POINTS}rp-{workload}-"))?;
    let names = found.into_iter().map(|entry| entry.name);
    Ok(names
        .filter(|name| workload_of(name) == Some(workload.as_str()))
        .collect())
}

/// The workload in the name of a restore point's object, `points/rp-<workload>-<time>-<digits>`.
fn workload_of(object: &str) -> Option<&str> {
    let id = object.strip_prefix(POINTS)?.strip_prefix("rp-")?;
    let (rest, _) = id.rsplit_once('-')?;
    rest.rsplit_once('-').map(|(workload, _)| workload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_whose_name_begins_another_ones_is_told_apart() {
        let of = |name| workload_of(name);
        assert_eq!(of("points/rp-erp-20260101T000000Z-abcdef"), Some("erp"));
        assert_eq!(
            of("points/rp-erp-east-20260101T000000Z-abcdef"),
            Some("erp-east")
        );
        assert_eq!(of("points/other"), None);
    }
}

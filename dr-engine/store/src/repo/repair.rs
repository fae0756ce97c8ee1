//! Mending what a check finds: from another place that holds the repository, or from what is here.
//!
//! An object is brought back only after its bytes were opened in memory as what its name says. Objects are
//! never overwritten, so what is damaged is deleted, the good bytes are stored, and read back. A crash
//! between the first two leaves the object missing, which is no worse than damaged; the other place still
//! has it, and the next run brings it back.
//!
//! Order: keys and records, because they open and explain the rest; what the check names; indexes, made
//! again from the packs' own tables of contents; WAL; the lists of restore points. A list whose newest
//! entry cannot be read and is nowhere else is made again from the entry before and from the restore
//! points that are complete: that may list a point again that was removed, and loses none.
//!
//! What stays damaged is charged to restore points, file by file, and those are marked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use dr_model::{Progress, RestorePointId, WorkloadName};
use serde::{Deserialize, Serialize};

use super::chain::{CHAINS, chain_prefix};
use super::damage::{DamageEvent, DamageRecord, DamagedObject, DamagedPoint};
use super::index::index_prefix;
use super::keys::{KeyId, SHRED, TENANT_KEYS, WORKLOAD_KEYS};
use super::points::{POINTS, StoredPoint, point_name};
use super::verify::workload_of;
use super::writer::packs_there;
use super::{Inner, Repository, encode_failed};
use crate::backend::PutOutcome;
use crate::crypto::sha256;
use crate::format::chain::{self, ChainEntry, ChainEvent, ChainedPoint};
use crate::format::header::{HEADER_BYTES, Kind};
use crate::format::index::{self, IndexedPack};
use crate::format::pack::{self, PackOpener};
use crate::format::sealed;
use crate::format::tree::EntryKind;
use crate::testing::kill_point;
use crate::{CheckOptions, CheckProblem, StoreError};

/// How to repair.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Only say what would be done.
    pub preview: bool,
    /// Now.
    pub now: DateTime<Utc>,
    /// Who repairs, for the records.
    pub by: String,
}

/// One thing mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// The object.
    pub object: String,
    /// How, and from where.
    pub how: String,
}

/// What became of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairReport {
    /// What was mended; in a preview, what can be.
    pub repaired: Vec<Repaired>,
    /// What is still wrong.
    pub remaining: Vec<CheckProblem>,
    /// The restore points that lost something, with what they lost; marked unless in a preview.
    pub damaged_points: Vec<DamagedPoint>,
}

struct Repair<'a> {
    here: Repository,
    others: &'a [(String, Repository)],
    options: &'a RepairOptions,
    progress: &'a dyn Progress,
    report: RepairReport,
    done: BTreeSet<String>,
}

impl Repository {
    /// Mends what a check of all data finds, from `others` that hold the same repository.
    ///
    /// # Errors
    /// When this place fails. What cannot be mended is in the report; another place that fails is as
    /// good as none.
    pub fn repair(
        &self,
        others: &[(String, Self)],
        options: &RepairOptions,
        progress: &dyn Progress,
    ) -> Result<RepairReport, StoreError> {
        self.inner().is_first()?;
        let strangers = others.iter().find(|(_, other)| !other.is_copy_of(self));
        if let Some((_, other)) = strangers {
            return Err(StoreError::OtherRepository {
                place: other.describe(),
            });
        }
        let mut repair = Repair {
            here: self.alone(),
            others,
            options,
            progress,
            report: RepairReport::default(),
            done: BTreeSet::new(),
        };
        repair.run()?;
        Ok(repair.report)
    }
}

impl Repair<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        self.progress.phase("looking for what is missing", None);
        self.bring_missing(&[WORKLOAD_KEYS, "records/", TENANT_KEYS])?;
        self.bring_lists()?;
        let read = CheckOptions { read_data: true };
        let found = self.here.check(read, self.progress)?;
        self.progress.phase("mending", None);
        let names: Vec<String> = found.problems.iter().map(|p| p.object.clone()).collect();
        for object in &names {
            self.bring_back(object)?;
        }
        self.mend_lists()?;
        if !found.problems.is_empty() {
            self.mend_indexes(&names)?;
        }
        self.bring_wal()?;
        let left = match self.options.preview {
            // What would be mended is not wrong any more then.
            true => found,
            false => self.here.check(read, self.progress)?,
        };
        self.report.remaining = left.problems;
        if self.options.preview {
            let done = &self.done;
            self.report.remaining.retain(|p| !done.contains(&p.object));
        }
        self.count_losses()?;
        self.remember(&names)
    }

    fn names_in(repo: &Inner, prefix: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let listed = repo.list(prefix)?.into_iter();
        Ok(listed.map(|entry| (entry.name, entry.size)).collect())
    }

    /// What only the others have, of kinds that nothing here need name.
    fn bring_missing(&mut self, prefixes: &[&str]) -> Result<(), StoreError> {
        for prefix in prefixes {
            let here = Self::names_in(self.here.inner(), prefix)?;
            let void = self.shredded()?;
            let mut missing = BTreeSet::new();
            for (_, other) in self.others {
                // One that does not answer is as good as none.
                let there = Self::names_in(other.inner(), prefix).unwrap_or_default();
                missing.extend(there.into_keys().filter(|name| !here.contains_key(name)));
            }
            for object in missing {
                if !void.contains(&object) {
                    self.bring_back(&object)?;
                }
            }
        }
        Ok(())
    }

    /// Keys that were destroyed on purpose stay destroyed.
    fn shredded(&self) -> Result<BTreeSet<String>, StoreError> {
        let prefix = format!("records/{SHRED}/");
        let names = Self::names_in(self.here.inner(), &prefix)?;
        let key = |name: String| {
            name.strip_prefix(&prefix)
                .map(|c| format!("{TENANT_KEYS}{c}"))
        };
        Ok(names.into_keys().filter_map(key).collect())
    }

    /// Brings one object back from the first place that has it whole; whether it is whole now.
    fn bring_back(&mut self, object: &str) -> Result<bool, StoreError> {
        let here = self.here.inner();
        if self.done.contains(object) {
            return Ok(true);
        }
        let present = here.get(object).unwrap_or_default();
        if let Some(data) = &present
            && here.verify_object(object, data).is_ok()
        {
            return Ok(true);
        }
        let whole = self.others.iter().find_map(|(name, other)| {
            let data = other.inner().get(object).ok().flatten()?;
            here.verify_object(object, &data).ok()?;
            Some((name.clone(), data))
        });
        let whole = whole
            .map(|(name, data)| (format!("brought back from `{name}`"), data))
            .or_else(|| older_version(here, object));
        let Some((how, data)) = whole else {
            return Ok(false);
        };
        if !self.options.preview {
            replace(here, object, present.is_some(), data)?;
        }
        self.mended(object, how);
        Ok(true)
    }

    fn mended(&mut self, object: &str, how: String) {
        self.progress.note(&format!("{object}: {how}"));
        self.done.insert(object.to_owned());
        self.report.repaired.push(Repaired {
            object: object.to_owned(),
            how,
        });
    }

    /// Entries of lists that only the others have: in gaps, and behind the newest one here if they go on
    /// from it.
    fn bring_lists(&mut self) -> Result<(), StoreError> {
        let here = Self::names_in(self.here.inner(), CHAINS)?;
        let mut missing = BTreeSet::new();
        for (_, other) in self.others {
            let there = Self::names_in(other.inner(), CHAINS).unwrap_or_default();
            for name in there.into_keys().filter(|name| !here.contains_key(name)) {
                let Some(workload) = workload_of(&name) else {
                    continue;
                };
                if self.goes_on(other, &workload) {
                    missing.insert(name);
                }
            }
        }
        for object in missing {
            self.bring_back(&object)?;
        }
        Ok(())
    }

    fn goes_on(&self, other: &Repository, workload: &WorkloadName) -> bool {
        let head = match self.here.inner().chain_head(workload) {
            Ok(None) => return true,
            Ok(Some(head)) => head,
            // Its newest entry is damaged: the same one is brought back, if anything.
            Err(_) => return false,
        };
        let same = other.inner().chain_entry(workload, head.entry.sequence);
        matches!(same, Ok(Some(same)) if same.object_sha256 == head.object_sha256)
    }

    /// Makes the newest entry of a list again where it is damaged and nowhere else.
    fn mend_lists(&mut self) -> Result<(), StoreError> {
        for workload in self.here.inner().chained_workloads()? {
            let object = match self.here.inner().chain_head(&workload) {
                Err(
                    StoreError::Damaged { object, .. }
                    | StoreError::UnsupportedVersion { object, .. },
                ) => object,
                Err(error) => return Err(error),
                Ok(_) => continue,
            };
            if self.done.contains(&object) {
                continue;
            }
            let Some(sequence) = chain::sequence_of(&chain_prefix(&workload), &object) else {
                continue;
            };
            let entry = self.list_again(&workload, sequence)?;
            let points = entry.points.len();
            if !self.options.preview {
                let here = self.here.inner();
                let body = serde_json::to_vec(&entry).map_err(|error| StoreError::Encode {
                    what: "the list of restore points",
                    source: Box::new(error),
                })?;
                let data = sealed::encode(&here.id, &here.master, Kind::Chain, &object, &body)
                    .map_err(encode_failed("the list of restore points"))?;
                replace(here, &object, true, data)?;
            }
            let how = format!(
                "made again from the entry before and complete restore points: lists {points}"
            );
            self.mended(&object, how);
        }
        Ok(())
    }

    fn list_again(&self, workload: &WorkloadName, sequence: u64) -> Result<ChainEntry, StoreError> {
        let here = self.here.inner();
        let prefix = chain_prefix(workload);
        let before = (1..sequence)
            .rev()
            .find_map(|before| here.chain_entry(workload, before).ok().flatten());
        let previous_sha256 = match sequence {
            1 => None,
            _ => {
                let object = chain::object_name(&prefix, sequence - 1);
                Some(hex::encode(sha256(&here.get(&object)?.unwrap_or_default())))
            }
        };
        let mut points: Vec<ChainedPoint> = Vec::new();
        let known = before.map(|head| head.entry.points).unwrap_or_default();
        let mut event = ChainEvent::Removed(Vec::new());
        let names = Self::names_in(here, POINTS)?;
        for name in names.into_keys() {
            let Ok(Some((found, data))) = here.read_point(&name) else {
                continue;
            };
            if found.point.workload != *workload {
                continue;
            }
            let object_sha256 = hex::encode(sha256(&data));
            let listed = known.iter().any(|k| k.object_sha256 == object_sha256);
            let point = found.point.clone();
            if !listed {
                if self.here.lacks_for(&StoredPoint::of(found))?.is_some() {
                    continue;
                }
                event = ChainEvent::Listed(point.id.clone());
            }
            points.push(ChainedPoint {
                point,
                object_sha256,
            });
        }
        points.sort_by(|left, right| {
            (left.point.moment, &left.point.id).cmp(&(right.point.moment, &right.point.id))
        });
        Ok(ChainEntry {
            sequence,
            previous_sha256,
            at: self.options.now,
            event,
            points,
        })
    }

    /// Puts packs that no index names into new ones, and takes indexes away that cannot be read; what
    /// is in no pack here is brought with the others' indexes.
    fn mend_indexes(&mut self, problems: &[String]) -> Result<(), StoreError> {
        let workloads: BTreeSet<WorkloadName> = Self::names_in(self.here.inner(), "data/")?
            .keys()
            .chain(problems)
            .filter_map(|name| workload_of(name).or_else(|| self.workload_of_point(name)))
            .collect();
        for workload in workloads {
            let bad: Vec<&String> = problems
                .iter()
                .filter(|name| name.starts_with(&index_prefix(&workload)))
                .filter(|name| !self.done.contains(*name))
                // Only what still cannot be read: with a damaged key all of them looked bad, and are
                // whole since it was brought back.
                .filter(|name| self.is_unreadable_index(&workload, name))
                .collect();
            let lacks = problems
                .iter()
                .any(|name| self.workload_of_point(name).as_ref() == Some(&workload));
            if bad.is_empty() && !lacks {
                continue;
            }
            self.index_again(&workload, &bad)?;
            // Not before: the others may still have indexes that prune replaced here.
            if lacks && self.still_lacks(&workload, problems)? {
                self.bring_indexed(&workload)?;
            }
        }
        Ok(())
    }

    fn workload_of_point(&self, object: &str) -> Option<WorkloadName> {
        let read = self.here.inner().read_point(object);
        match object.starts_with(POINTS) {
            true => Some(read.ok()??.0.point.workload),
            false => None,
        }
    }

    fn is_unreadable_index(&self, workload: &WorkloadName, object: &str) -> bool {
        matches!(
            self.here.inner().read_index(workload, object),
            Err(StoreError::Damaged { .. } | StoreError::UnsupportedVersion { .. })
        ) && self
            .here
            .inner()
            .required_data_keys(workload, &super::keys::Domain::Workload)
            .is_ok()
    }

    fn still_lacks(
        &self,
        workload: &WorkloadName,
        problems: &[String],
    ) -> Result<bool, StoreError> {
        for name in problems.iter().filter(|name| name.starts_with(POINTS)) {
            if let Ok(Some((found, _))) = self.here.inner().read_point(name)
                && found.point.workload == *workload
                && self.here.lacks_for(&StoredPoint::of(found))?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn index_again(&mut self, workload: &WorkloadName, bad: &[&String]) -> Result<(), StoreError> {
        let repo = self.here.clone();
        let here = repo.inner();
        let mut indexed = BTreeSet::new();
        for name in Self::names_in(here, &index_prefix(workload))?.into_keys() {
            if let Ok(Some(read)) = here.read_index(workload, &name) {
                indexed.extend(read.packs.into_iter().map(|pack| pack.id));
            }
        }
        let mut by_key: HashMap<KeyId, Vec<IndexedPack>> = HashMap::new();
        for (id, size) in packs_there(here, workload)? {
            if indexed.contains(&id) {
                continue;
            }
            let object = pack::object_name(workload, &id);
            // One that cannot be read is named by the check.
            if let Some((key, chunks)) = contents(here, workload, &object, size) {
                by_key
                    .entry(key)
                    .or_default()
                    .push(IndexedPack { id, chunks });
            }
        }
        for (key, packs) in by_key {
            let (_, keys) = here.data_keys_by_id(workload, &key)?;
            let object = format!("{}{}", index_prefix(workload), dr_model::random::hex(16));
            if !self.options.preview {
                let body = index::encode(&packs);
                if here.put_sealed(&keys, Kind::Index, &object, &body)? == PutOutcome::Exists {
                    return Err(here.name_taken(&object));
                }
            }
            let how = format!("made from the contents of {} packs", packs.len());
            self.mended(&object, how);
        }
        for name in bad {
            // Everything that could be read of its packs is in a new one.
            if !self.options.preview {
                here.delete(name)?;
            }
            self.mended(name, "removed: its packs are in a new index".to_owned());
        }
        Ok(())
    }

    /// Brings the others' indexes that are not here, with the packs they name.
    fn bring_indexed(&mut self, workload: &WorkloadName) -> Result<(), StoreError> {
        let here = Self::names_in(self.here.inner(), &index_prefix(workload))?;
        for (_, other) in self.others {
            let there = Self::names_in(other.inner(), &index_prefix(workload)).unwrap_or_default();
            for name in there.into_keys().filter(|name| !here.contains_key(name)) {
                let Ok(Some(read)) = other.inner().read_index(workload, &name) else {
                    continue;
                };
                let mut whole = true;
                for pack in &read.packs {
                    whole &= self.bring_back(&pack::object_name(workload, &pack.id))?;
                }
                if whole {
                    self.bring_back(&name)?;
                }
            }
        }
        Ok(())
    }

    /// WAL that only the others have, from where the oldest base backup begins.
    fn bring_wal(&mut self) -> Result<(), StoreError> {
        let mut oldest: HashMap<WorkloadName, String> = HashMap::new();
        for point in self.here.points(None)? {
            if let Some(position) = point.postgres() {
                let start = position.start_segment.to_string();
                let known = oldest
                    .entry(point.workload.clone())
                    .or_insert(start.clone());
                *known = start.min(known.clone());
            }
        }
        let here = Self::names_in(self.here.inner(), "wal/")?;
        let mut missing = BTreeSet::new();
        for (_, other) in self.others {
            let there = Self::names_in(other.inner(), "wal/").unwrap_or_default();
            for name in there.into_keys().filter(|name| !here.contains_key(name)) {
                let file = name.rsplit('/').next().unwrap_or_default();
                let from = workload_of(&name).and_then(|workload| oldest.get(&workload));
                if from.is_some_and(|from| file >= from.as_str()) {
                    missing.insert(name);
                }
            }
        }
        for object in missing {
            self.bring_back(&object)?;
        }
        Ok(())
    }

    /// Which restore points lost what, by what is still wrong.
    fn count_losses(&mut self) -> Result<(), StoreError> {
        let remaining = self.report.remaining.iter();
        let affected: BTreeSet<RestorePointId> = remaining
            .flat_map(|problem| problem.affects.clone())
            .collect();
        let points = self.here.points(None)?;
        for id in affected {
            let Some(point) = points.iter().find(|point| point.id == id) else {
                continue;
            };
            self.progress.phase("finding out what is lost", None);
            if let Some(lost) = self.lost_of(&id)? {
                self.report.damaged_points.push(DamagedPoint {
                    point: id,
                    workload: point.workload.clone(),
                    at: self.options.now,
                    lost,
                    mended: false,
                });
            }
        }
        Ok(())
    }

    /// The files that cannot be read; none is all of it. Nothing when every file can be read and it is
    /// something else that is lost: WAL.
    fn lost_of(&self, id: &RestorePointId) -> Result<Option<Vec<String>>, StoreError> {
        let is_loss = |error: &StoreError| {
            matches!(
                error,
                StoreError::Damaged { .. }
                    | StoreError::ObjectMissing { .. }
                    | StoreError::UnsupportedVersion { .. }
            )
        };
        let opened = (|| {
            let stored = self
                .here
                .point(id)?
                .ok_or_else(|| self.here.inner().missing(&point_name(id)))?;
            let reader = self.here.reader(&stored)?;
            let entries = reader.entries()?;
            Ok((reader, entries))
        })();
        let (reader, entries) = match opened {
            Ok(opened) => opened,
            Err(error) if is_loss(&error) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error),
        };
        let mut lost = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
            match reader.read_file(entry, &mut std::io::sink()) {
                Ok(()) | Err(StoreError::Shredded { .. }) => {}
                Err(error) if is_loss(&error) => lost.push(entry.meta.path.clone()),
                Err(error) => return Err(error),
            }
        }
        if lost.is_empty() {
            let of_wal = self
                .report
                .remaining
                .iter()
                .filter(|p| p.object.starts_with("wal/") && p.affects.contains(id));
            lost.extend(of_wal.map(|problem| problem.object.clone()));
        }
        Ok((!lost.is_empty()).then_some(lost))
    }

    /// Writes down what is whole again, what is not, and which restore points lost something.
    fn remember(&self, found: &[String]) -> Result<(), StoreError> {
        if self.options.preview {
            return Ok(());
        }
        let place = self.here.describe();
        let known = self.here.known_damage(&place)?;
        let remaining: BTreeMap<&String, &String> = self
            .report
            .remaining
            .iter()
            .map(|problem| (&problem.object, &problem.what))
            .collect();
        let mended = known
            .keys()
            .chain(found)
            .collect::<BTreeSet<_>>()
            .into_iter();
        let mended: Vec<DamagedObject> = mended
            .filter(|object| known.contains_key(*object) && !remaining.contains_key(object))
            .map(|object| DamagedObject {
                object: object.clone(),
                what: String::new(),
            })
            .collect();
        let new = remaining.iter().filter(|(o, _)| !known.contains_key(**o));
        let new: Vec<DamagedObject> = new
            .map(|(object, what)| DamagedObject {
                object: (*object).clone(),
                what: (*what).clone(),
            })
            .collect();
        for (event, objects) in [(DamageEvent::Mended, mended), (DamageEvent::Found, new)] {
            if !objects.is_empty() {
                self.here.remember_damage(&DamageRecord {
                    event,
                    place: place.clone(),
                    at: self.options.now,
                    by: self.options.by.clone(),
                    objects,
                })?;
            }
        }
        let marked = self.here.damaged_points()?;
        for point in &self.report.damaged_points {
            let same = marked
                .get(&point.point)
                .is_some_and(|m| m.lost == point.lost);
            if !same {
                self.here.mark_damaged_point(point)?;
            }
        }
        let lost: BTreeSet<&RestorePointId> = self
            .report
            .damaged_points
            .iter()
            .map(|p| &p.point)
            .collect();
        for (id, mark) in marked {
            if !lost.contains(&id) {
                self.here.mark_damaged_point(&DamagedPoint {
                    at: self.options.now,
                    mended: true,
                    ..mark
                })?;
            }
        }
        Ok(())
    }
}

/// What a place that keeps versions still has of an object under what hides or spoils it.
fn older_version(here: &Inner, object: &str) -> Option<(String, Vec<u8>)> {
    // A place without versions says so; one that fails has none to give.
    let versions = here.backend.versions(object).ok()?;
    let older = versions
        .iter()
        .filter(|version| version.name == object && !version.is_delete_marker);
    older.into_iter().find_map(|version| {
        let data = here.backend.get_version(object, &version.version).ok()??;
        here.verify_object(object, &data).ok()?;
        let how = format!("brought back from its version of {}", version.modified);
        Some((how, data))
    })
}

/// Stores good bytes in place of bad ones or none, and reads them back.
fn replace(here: &Inner, object: &str, present: bool, data: Vec<u8>) -> Result<(), StoreError> {
    if present {
        here.delete(object)?;
    }
    kill_point("store.repair.after-delete");
    here.put_new(object, data)?;
    kill_point("store.repair.after-put");
    let read = here.get(object)?.ok_or_else(|| here.missing(object))?;
    here.verify_object(object, &read)
}

/// What a pack says of itself, and the key it is under.
fn contents(
    here: &Inner,
    workload: &WorkloadName,
    object: &str,
    size: u64,
) -> Option<(KeyId, Vec<pack::PackedChunk>)> {
    let header = here
        .backend
        .get_range(object, 0, HEADER_BYTES as u64)
        .ok()??;
    let id = sealed::key_id(&header, Kind::Pack).ok()?;
    let (_, keys) = here.data_keys_by_id(workload, &id).ok()?;
    let opener = PackOpener::new(&here.id, &keys, object, &header).ok()?;
    let data = here.get(object).ok()??;
    Some((id, opener.contents(&data, size).ok()?))
}

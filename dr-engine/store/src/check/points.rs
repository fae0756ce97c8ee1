//! Restore points: each opens, is the one that was listed, lists its entries, and everything they need
//! is there.

use std::collections::BTreeSet;

use dr_model::{RestorePointId, WalFileName};

use super::Checker;
use crate::StoreError;
use crate::crypto::sha256;
use crate::format::ChunkName;
use crate::format::point::PointObject;
use crate::format::tree::{EntryKind, TreeEntry};
use crate::repo::points::{POINTS, StoredPoint};
use crate::repo::reader::PointReader;

impl Checker<'_> {
    pub(super) fn restore_points(&mut self) -> Result<(), StoreError> {
        let names = self.names(POINTS);
        self.progress.phase("checking restore points", None);
        for name in names {
            let id = name.strip_prefix(POINTS).and_then(|id| id.parse().ok());
            let listed: Option<RestorePointId> = id.filter(|id| self.listed.contains_key(id));
            if listed.is_some() {
                self.report.points += 1;
            }
            let read = self.repo.read_point(&name);
            match (self.note(&name, read)?, listed) {
                (Ok(Some((found, data))), Some(id)) => {
                    self.is_as_listed(&name, &id, &data);
                    self.restore_point(&name, StoredPoint::of(found))?;
                }
                (Err(problem), Some(id)) => self.affects(problem, &id),
                (Ok(Some((found, _))), None) => self.not_listed(&name, &found),
                (_, _) => {}
            }
        }
        Ok(())
    }

    /// A point in no list was never finished (then its writer's session is still there) or is about to be
    /// deleted (then a list says so). Else it was listed, and the list went back.
    fn not_listed(&mut self, object: &str, found: &PointObject) {
        let never_finished = self.objects.contains_key(&found.session);
        if !never_finished && !self.removed.contains(&found.point.id) {
            let problem = self.problem(
                object,
                "it was listed and is not any more: the newest lists of restore points are missing",
            );
            self.affects(problem, &found.point.id);
        }
    }

    fn is_as_listed(&mut self, object: &str, id: &RestorePointId, data: &[u8]) {
        let expected = self.listed.get(id).map(|listed| &listed.object_sha256);
        if expected != Some(&hex::encode(sha256(data))) {
            let problem = self.problem(object, "it is not the one that was listed");
            self.affects(problem, id);
        }
    }

    fn restore_point(&mut self, object: &str, stored: StoredPoint) -> Result<(), StoreError> {
        let point = stored.point.clone();
        self.points.push(point.clone());
        let id = point.id.clone();
        if self
            .workloads
            .get(&point.workload)
            .is_none_or(|known| known.keys.is_none())
        {
            // Told with the key itself.
            return Ok(());
        }
        let reader = self.repository.reader(&stored);
        let Ok(reader) = self.note(object, reader)? else {
            return Ok(());
        };
        let listing = stored.object.listing.content().unwrap_or_default();
        let names: Vec<ChunkName> = listing.references.iter().map(|r| r.name).collect();
        let mut missing = self.chunks(&stored, &names);
        let read = reader.entries();
        match self.note(object, read)? {
            Ok(entries) => {
                missing += self.entries(&stored, &reader, &entries)?;
                let wal = entries.iter().filter_map(|entry| {
                    let file = entry.meta.path.rsplit('/').next()?;
                    file.parse::<WalFileName>()
                        .ok()
                        .map(|name| name.to_string())
                });
                let wal: BTreeSet<String> = wal.collect();
                self.own_wal.insert(id.clone(), wal);
            }
            Err(problem) => self.affects(problem, &id),
        }
        if missing > 0 {
            let problem =
                self.problem(object, format!("{missing} chunks it needs are in no index"));
            self.affects(problem, &id);
            let bad = self.workloads.get(&point.workload);
            for problem in bad
                .map(|known| known.bad_indexes.clone())
                .unwrap_or_default()
            {
                self.affects(problem, &id);
            }
        }
        Ok(())
    }

    /// Everything the files need; returns how many chunks are in no index. What was shredded on purpose
    /// is not missed.
    fn entries(
        &mut self,
        stored: &StoredPoint,
        reader: &PointReader,
        entries: &[TreeEntry],
    ) -> Result<u64, StoreError> {
        let mut missing = 0;
        for entry in entries.iter().filter(|e| e.kind == EntryKind::File) {
            let keys = match reader.keys(entry.key) {
                Err(StoreError::Shredded { .. }) => continue,
                keys => keys,
            };
            let object = crate::repo::points::point_name(&stored.point.id);
            let Ok(keys) = self.note(&object, keys)? else {
                missing += 1;
                continue;
            };
            let mut names = Vec::new();
            let walked = reader.walk(&keys, &entry.content, &mut |reference| {
                names.push(reference.name);
                Ok(())
            });
            missing += self.chunks(stored, &names);
            if let Err(problem) = self.note(&object, walked)? {
                self.affects(problem, &stored.point.id);
            }
        }
        Ok(missing)
    }

    /// Charges a restore point to the problems of the chunks it needs; returns how many of them
    /// are in no index at all.
    fn chunks(&mut self, point: &StoredPoint, names: &[ChunkName]) -> u64 {
        let Some(known) = self.workloads.get(&point.point.workload) else {
            return 0;
        };
        let mut missing = 0;
        let mut charged: BTreeSet<usize> = BTreeSet::new();
        for name in names {
            let short = crate::repo::index::table::ShortName::of(name);
            let mut packs = known.index.find(name).peekable();
            if packs.peek().is_none() {
                missing += 1;
                continue;
            }
            let problem_of = |pack: u32| {
                let chunk = known.bad_chunks.get(&(pack, short));
                known.bad_packs.get(&pack).or(chunk).copied()
            };
            // One good copy is enough.
            let problems: Option<Vec<usize>> = packs.map(problem_of).collect();
            charged.extend(problems.unwrap_or_default());
        }
        let id: RestorePointId = point.point.id.clone();
        for problem in charged {
            self.affects(problem, &id);
        }
        missing
    }
}

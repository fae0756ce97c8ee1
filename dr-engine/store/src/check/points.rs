//! Restore points: each opens, lists its entries, and everything they need is there.

use std::collections::BTreeSet;

use dr_model::{RestorePointId, WalFileName};

use super::Checker;
use crate::StoreError;
use crate::format::ChunkName;
use crate::format::point::PointObject;
use crate::repo::points::{POINTS, StoredPoint};

impl Checker<'_> {
    pub(super) fn restore_points(&mut self) -> Result<(), StoreError> {
        let names = self.names(POINTS);
        self.progress.phase("checking restore points", None);
        for name in names {
            self.report.points += 1;
            let read = self.repo.read_point(&name);
            match self.note(&name, read)? {
                Ok(Some(found)) => self.restore_point(&name, found)?,
                Ok(None) => {}
                Err(problem) => {
                    let id = name.strip_prefix(POINTS).and_then(|id| id.parse().ok());
                    if let Some(id) = id {
                        self.affects(problem, &id);
                    }
                }
            }
        }
        Ok(())
    }

    fn restore_point(&mut self, object: &str, found: PointObject) -> Result<(), StoreError> {
        let PointObject {
            point,
            details,
            listing,
        } = found;
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
        let stored = StoredPoint {
            point,
            details,
            listing,
        };
        let listing = stored.listing.chunk_names().unwrap_or_default();
        let mut missing = self.chunks(&stored, &listing);
        let read = self.repository.entries(&stored);
        match self.note(object, read)? {
            Ok(entries) => {
                for entry in &entries {
                    missing += self.chunks(&stored, &entry.chunks);
                }
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
            let bad = self.workloads.get(&stored.point.workload);
            for problem in bad
                .map(|known| known.bad_indexes.clone())
                .unwrap_or_default()
            {
                self.affects(problem, &id);
            }
        }
        Ok(())
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
            let mut copies = known.index.find_all(name).peekable();
            if copies.peek().is_none() {
                missing += 1;
                continue;
            }
            let problem_of = |copy: crate::repo::index::Located| {
                let chunk = known.bad_chunks.get(&(copy.pack, copy.place.frame));
                known.bad_packs.get(&copy.pack).or(chunk).copied()
            };
            // One good copy is enough.
            let problems: Option<Vec<usize>> = copies.map(problem_of).collect();
            charged.extend(problems.unwrap_or_default());
        }
        let id: RestorePointId = point.point.id.clone();
        for problem in charged {
            self.affects(problem, &id);
        }
        missing
    }
}

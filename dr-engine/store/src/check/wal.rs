//! WAL files: each opens, and every base backup has the WAL it cannot start without.

use std::collections::HashSet;

use dr_model::{PostgresPosition, RestorePointId, WalFileName, WorkloadName};

use super::Checker;
use crate::StoreError;
use crate::format::wal;
use crate::repo::wal::wal_prefix;

impl Checker<'_> {
    pub(super) fn wal_files(&mut self) -> Result<(), StoreError> {
        let names = self.names("wal/");
        let bytes = names.iter().filter_map(|name| self.objects.get(name)).sum();
        self.progress
            .phase("checking WAL", self.options.read_data.then_some(bytes));
        let mut there: HashSet<(WorkloadName, String)> = HashSet::new();
        for object in names {
            self.report.wal_segments += 1;
            let Some((workload, name)) = parsed(&object) else {
                self.problem(&object, "its name is not that of a WAL file");
                continue;
            };
            there.insert((workload.clone(), name.to_string()));
            if let Err(problem) = self.wal_file(&object, &workload)? {
                for id in self.points_needing(&workload, &name) {
                    self.affects(problem, &id);
                }
            }
            self.progress
                .advance(self.objects.get(&object).copied().unwrap_or(0));
        }
        self.needed_wal(&there);
        Ok(())
    }

    /// Reads one WAL object; the inner error is the number of the problem.
    fn wal_file(
        &mut self,
        object: &str,
        workload: &WorkloadName,
    ) -> Result<Result<(), usize>, StoreError> {
        let Some(keys) = self
            .workloads
            .get(workload)
            .and_then(|known| known.keys.clone())
        else {
            return Ok(Err(
                self.problem(object, "the key of its workload is missing or damaged")
            ));
        };
        if self.options.read_data {
            let data = self.repo.get(object)?.unwrap_or_default();
            let read = wal::decode(&self.repo.id, &keys, object, &data)
                .map(|_| ())
                .map_err(|error| self.repo.unreadable(object, error));
            return self.note(object, read);
        }
        let head = self.repo.wal_head(&keys, object);
        let head = match self.note(object, head)? {
            Ok(head) => head,
            Err(problem) => return Ok(Err(problem)),
        };
        if head.map(|head| head.object_bytes) == self.objects.get(object).copied() {
            Ok(Ok(()))
        } else {
            Ok(Err(
                self.problem(object, "it is not as long as it was written")
            ))
        }
    }

    fn points_needing(&self, workload: &WorkloadName, name: &WalFileName) -> Vec<RestorePointId> {
        let needs = |position: &PostgresPosition| {
            needed(position).any(|needed| needed.to_string() == name.to_string())
        };
        self.points
            .iter()
            .filter(|point| point.workload == *workload && point.postgres().is_some_and(needs))
            .filter(|point| !self.holds_itself(&point.id, &name.to_string()))
            .map(|point| point.id.clone())
            .collect()
    }

    fn holds_itself(&self, point: &RestorePointId, name: &str) -> bool {
        self.own_wal
            .get(point)
            .is_some_and(|own| own.contains(name))
    }

    /// Without the WAL from its start to its stop a base backup does not start.
    fn needed_wal(&mut self, there: &HashSet<(WorkloadName, String)>) {
        let mut missing: Vec<(WorkloadName, WalFileName, RestorePointId)> = Vec::new();
        for point in &self.points {
            let Some(position) = point.postgres() else {
                continue;
            };
            for name in needed(position) {
                let stored = there.contains(&(point.workload.clone(), name.to_string()))
                    || self.holds_itself(&point.id, &name.to_string());
                if !stored {
                    missing.push((point.workload.clone(), name, point.id.clone()));
                }
            }
        }
        for (workload, name, id) in missing {
            let timeline = name.timeline().map_or(0, |timeline| timeline.0);
            let object = format!("{}{timeline:08X}/{name}", wal_prefix(&workload));
            let noted = self
                .report
                .problems
                .iter()
                .position(|known| known.object == object);
            let problem = match noted {
                Some(problem) => problem,
                None => self.problem(&object, "it is missing"),
            };
            self.affects(problem, &id);
        }
    }
}

fn parsed(object: &str) -> Option<(WorkloadName, WalFileName)> {
    let mut parts = object.strip_prefix("wal/")?.split('/');
    let workload = parts.next()?.parse().ok()?;
    let timeline = parts.next()?;
    let name: WalFileName = parts.next()?.parse().ok()?;
    let fits = format!("{:08X}", name.timeline()?.0) == timeline && parts.next().is_none();
    fits.then_some((workload, name))
}

/// The segments from a backup's start to its stop.
fn needed(position: &PostgresPosition) -> impl Iterator<Item = WalFileName> + use<> {
    let bytes = position.wal_segment_bytes.max(1);
    let timeline = position.timeline;
    let first = position.start_segment.number(bytes).unwrap_or(1);
    let last = position.stop_segment.number(bytes).unwrap_or(0);
    (first..=last).map(move |number| WalFileName::of_number(number, timeline, bytes))
}

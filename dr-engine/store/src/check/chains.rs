//! The lists of restore points: each is a chain without a gap, and every point it lists is there as it
//! was listed.

use dr_model::WorkloadName;

use super::Checker;
use crate::StoreError;
use crate::format::chain::{self, ChainEvent};
use crate::repo::chain::{CHAINS, ChainHead, chain_prefix};
use crate::repo::points::point_name;

impl Checker<'_> {
    pub(super) fn chains(&mut self) -> Result<(), StoreError> {
        self.progress
            .phase("checking the lists of restore points", None);
        let mut workloads: Vec<WorkloadName> = Vec::new();
        for name in self.names(CHAINS) {
            let workload = name
                .strip_prefix(CHAINS)
                .and_then(|rest| rest.split('/').next())
                .and_then(|workload| workload.parse::<WorkloadName>().ok());
            let known = workload
                .filter(|workload| chain::sequence_of(&chain_prefix(workload), &name).is_some());
            match known {
                None => {
                    self.problem(&name, "its name is not that of a list of restore points");
                }
                Some(workload) if workloads.last() != Some(&workload) => workloads.push(workload),
                Some(_) => {}
            }
        }
        for workload in workloads {
            self.chain(&workload)?;
        }
        Ok(())
    }

    /// Reads a workload's chain from its oldest entry that is kept.
    fn chain(&mut self, workload: &WorkloadName) -> Result<(), StoreError> {
        let prefix = chain_prefix(workload);
        let sequences: Vec<u64> = self
            .names(&prefix)
            .iter()
            .filter_map(|name| chain::sequence_of(&prefix, name))
            .collect();
        let mut before: Option<ChainHead> = None;
        for sequence in sequences {
            let object = chain::object_name(&prefix, sequence);
            let read = self.repo.chain_entry(workload, sequence);
            let Ok(Some(head)) = self.note(&object, read)? else {
                before = None;
                continue;
            };
            if let Some(before) = &before {
                if head.entry.sequence != before.entry.sequence + 1 {
                    self.problem(&object, "the entry before it is missing");
                } else if head.entry.previous_sha256.as_ref() != Some(&before.object_sha256) {
                    self.problem(&object, "it does not follow the entry before it");
                }
            }
            if let ChainEvent::Removed(ids) = &head.entry.event {
                self.removed.extend(ids.iter().cloned());
            }
            before = Some(head);
        }
        // The newest entry is the list.
        for listed in before.map(|head| head.entry.points).unwrap_or_default() {
            let object = point_name(&listed.point.id);
            let id = listed.point.id.clone();
            if !self.objects.contains_key(&object) {
                let problem = self.problem(&object, "it is listed and missing");
                self.affects(problem, &id);
            }
            self.listed.insert(id, listed);
        }
        Ok(())
    }
}

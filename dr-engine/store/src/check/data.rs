//! Indexes and packs.

use dr_model::WorkloadName;

use super::Checker;
use crate::StoreError;
use crate::crypto::Keys;
use crate::format::index::IndexedPack;
use crate::format::pack::{self, PackOpener};

impl Checker<'_> {
    pub(super) fn indexes(&mut self) -> Result<(), StoreError> {
        self.progress.phase("checking indexes", None);
        for name in self.names("index/") {
            let workload = name
                .strip_prefix("index/")
                .and_then(|rest| rest.split_once('.'))
                .and_then(|(workload, _)| workload.parse::<WorkloadName>().ok());
            let Some(workload) = workload else {
                self.problem(&name, "its name is not that of an index");
                continue;
            };
            let Some(keys) = self
                .workloads
                .get(&workload)
                .and_then(|known| known.keys.clone())
            else {
                self.problem(&name, "the key of its workload is missing or damaged");
                continue;
            };
            let read = self.repo.read_index(&keys, &name);
            match self.note(&name, read)? {
                Ok(packs) => {
                    let known = self.workloads.entry(workload).or_default();
                    let packs = packs.unwrap_or_default();
                    known.index.add(&packs);
                    known.contents.extend(packs);
                }
                Err(problem) => {
                    self.workloads
                        .entry(workload)
                        .or_default()
                        .bad_indexes
                        .push(problem);
                }
            }
        }
        Ok(())
    }

    /// Every pack an index names is there and as long as it must be; with `read_data` it opens.
    pub(super) fn packs(&mut self) -> Result<(), StoreError> {
        let indexed: Vec<_> = self
            .workloads
            .iter()
            .flat_map(|(workload, known)| {
                (0u32..).zip(known.index.packs()).map(|(number, file)| {
                    (workload.clone(), known.keys.clone(), number, file.clone())
                })
            })
            .collect();
        let bytes = indexed.iter().map(|(_, _, _, file)| file.size).sum();
        self.progress
            .phase("checking packs", self.options.read_data.then_some(bytes));
        for (workload, keys, number, file) in indexed {
            let what = match self.objects.get(&file.object) {
                None => Some("it is missing"),
                Some(size) if *size != file.size => Some("it is not as long as it was written"),
                Some(_) => None,
            };
            if let Some(what) = what {
                let problem = self.problem(&file.object, what);
                self.bad_pack(&workload, number, problem);
            } else if self.options.read_data
                && let Some(keys) = keys
            {
                self.read_pack(&workload, &keys, number, &file.object)?;
                self.progress.advance(file.size);
            }
        }
        Ok(())
    }

    fn bad_pack(&mut self, workload: &WorkloadName, number: u32, problem: usize) {
        if let Some(known) = self.workloads.get_mut(workload) {
            known.bad_packs.insert(number, problem);
        }
    }

    fn read_pack(
        &mut self,
        workload: &WorkloadName,
        keys: &Keys,
        number: u32,
        object: &str,
    ) -> Result<(), StoreError> {
        let Some(data) = self.repo.get(object)? else {
            let problem = self.problem(object, "it is missing");
            self.bad_pack(workload, number, problem);
            return Ok(());
        };
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        let known = self.workloads.get(workload);
        let Some(indexed) = known.and_then(|known| known.contents.get(place)).cloned() else {
            return Ok(());
        };
        let opener = match PackOpener::new(&self.repo.id, keys, object, &data) {
            Ok(opener) => opener,
            Err(error) => {
                let problem = self.problem(object, error.to_string());
                self.bad_pack(workload, number, problem);
                return Ok(());
            }
        };
        if !self.read_chunks(workload, keys, number, &opener, &indexed, &data) {
            return Ok(());
        }
        // The table of contents is only needed to make an index again: no point is affected.
        match opener.contents(&data) {
            Ok(found) if found == indexed.chunks => {}
            Ok(_) => {
                self.problem(object, "its contents are not what the index says");
            }
            Err(error) => {
                self.problem(object, format!("its table of contents: {error}"));
            }
        }
        Ok(())
    }

    /// Opens every chunk; whether all did.
    fn read_chunks(
        &mut self,
        workload: &WorkloadName,
        keys: &Keys,
        number: u32,
        opener: &PackOpener,
        indexed: &IndexedPack,
        data: &[u8],
    ) -> bool {
        let object = pack::object_name(&indexed.id);
        let mut problem = None;
        for (name, place) in pack::places(&indexed.chunks) {
            let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
            let stored = usize::try_from(place.stored).unwrap_or(usize::MAX);
            let sealed = data
                .get(start..start.saturating_add(stored))
                .unwrap_or_default();
            let Err(error) = opener.chunk(keys, &name, &place, sealed) else {
                continue;
            };
            let problem = *problem.get_or_insert_with(|| self.problem(&object, error.to_string()));
            if let Some(known) = self.workloads.get_mut(workload) {
                known.bad_chunks.insert((number, place.frame), problem);
            }
        }
        problem.is_none()
    }
}

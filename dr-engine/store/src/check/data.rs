//! Indexes and packs.

use dr_model::WorkloadName;

use super::Checker;
use crate::StoreError;
use crate::format::FormatError;
use crate::format::pack::{self, PackOpener, PackedChunk};
use crate::repo::index::table::ShortName;
use crate::repo::index::{IndexBuilder, PackFile};

impl Checker<'_> {
    pub(super) fn indexes(&mut self) -> Result<(), StoreError> {
        self.progress.phase("checking indexes", None);
        let mut builders: std::collections::BTreeMap<WorkloadName, IndexBuilder> =
            std::collections::BTreeMap::new();
        for name in self.names("index/") {
            let workload = name
                .strip_prefix("index/")
                .and_then(|rest| rest.split_once('/'))
                .and_then(|(workload, _)| workload.parse::<WorkloadName>().ok());
            let Some(workload) = workload else {
                self.problem(&name, "its name is not that of an index");
                continue;
            };
            let has_keys = self
                .workloads
                .get(&workload)
                .is_some_and(|known| known.keys.is_some());
            if !has_keys {
                self.problem(&name, "the key of its workload is missing or damaged");
                continue;
            }
            let read = self.repo.read_index(&workload, &name);
            match self.note(&name, read)? {
                Ok(read) => {
                    if let Some(read) = read {
                        let builder = builders.entry(workload).or_default();
                        let bytes = self.objects.get(&name).copied().unwrap_or(0);
                        builder.add(name, bytes, read.key_id, &read.packs);
                    }
                }
                Err(problem) => {
                    let known = self.workloads.entry(workload).or_default();
                    known.bad_indexes.push(problem);
                }
            }
        }
        for (workload, builder) in builders {
            self.workloads.entry(workload).or_default().index = builder.finish();
        }
        Ok(())
    }

    /// Every pack an index names is there and as long as it must be; with `read_data` it opens.
    pub(super) fn packs(&mut self) -> Result<(), StoreError> {
        let indexed: Vec<(WorkloadName, u32, PackFile)> = self
            .workloads
            .iter()
            .flat_map(|(workload, known)| {
                (0u32..)
                    .zip(known.index.packs())
                    .map(|(number, file)| (workload.clone(), number, *file))
            })
            .collect();
        let bytes = indexed.iter().map(|(_, _, file)| file.size).sum();
        self.progress
            .phase("checking packs", self.options.read_data.then_some(bytes));
        for (workload, number, file) in indexed {
            let object = pack::object_name(&workload, &file.id);
            let what = match self.objects.get(&object) {
                None => Some("it is missing"),
                Some(size) if *size != file.size => Some("it is not as long as it was written"),
                Some(_) => None,
            };
            if let Some(what) = what {
                let problem = self.problem(&object, what);
                self.bad_pack(&workload, number, problem);
            } else if self.options.read_data {
                self.read_pack(&workload, number, &file)?;
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
        number: u32,
        file: &PackFile,
    ) -> Result<(), StoreError> {
        let object = pack::object_name(workload, &file.id);
        let keys = match self.repo.data_keys_by_id(workload, &file.key_id) {
            Ok((_, keys)) => keys,
            Err(StoreError::Shredded { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(data) = self.repo.get(&object)? else {
            let problem = self.problem(&object, "it is missing");
            self.bad_pack(workload, number, problem);
            return Ok(());
        };
        let opener = match PackOpener::new(&self.repo.id, &keys, &object, &data) {
            Ok(opener) => opener,
            Err(error) => {
                let problem = self.problem(&object, error.to_string());
                self.bad_pack(workload, number, problem);
                return Ok(());
            }
        };
        let found = opener.contents(&data, data.len() as u64);
        let indexed = self.indexed(workload, file)?;
        // Where the table of contents is damaged the chunks may be whole: the index knows them.
        let chunks = found.as_ref().unwrap_or(&indexed);
        let bad = bad_chunks(&opener, &keys, chunks, &data);
        if let Some((_, error)) = bad.first() {
            let problem = self.problem(&object, error.to_string());
            for (name, _) in bad {
                if let Some(known) = self.workloads.get_mut(workload) {
                    known.bad_chunks.insert((number, name), problem);
                }
            }
            return Ok(());
        }
        // It is only needed to make an index again: no point is affected.
        match found {
            Ok(found) if found == indexed => {}
            Ok(_) => {
                self.problem(&object, "its contents are not what the index says");
            }
            Err(error) => {
                self.problem(&object, format!("its table of contents: {error}"));
            }
        }
        Ok(())
    }

    /// What the index says of a pack.
    fn indexed(
        &self,
        workload: &WorkloadName,
        file: &PackFile,
    ) -> Result<Vec<PackedChunk>, StoreError> {
        let Some(known) = self.workloads.get(workload) else {
            return Ok(Vec::new());
        };
        Ok(self
            .repo
            .contents_by_index(workload, &known.index, file)?
            .unwrap_or_default())
    }
}

/// The chunks of a pack that do not open, and why.
fn bad_chunks(
    opener: &PackOpener,
    keys: &crate::crypto::Keys,
    chunks: &[PackedChunk],
    data: &[u8],
) -> Vec<(ShortName, FormatError)> {
    let opens = |(name, place): (crate::format::ChunkName, pack::Place)| {
        let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
        let stored = usize::try_from(place.stored).unwrap_or(usize::MAX);
        let sealed = data
            .get(start..start.saturating_add(stored))
            .unwrap_or_default();
        let error = opener.chunk(keys, &name, &place, sealed).err()?;
        Some((ShortName::of(&name), error))
    };
    pack::places(chunks).filter_map(opens).collect()
}

//! Checking a repository: is everything there, does it open, and what is lost if not.
//!
//! Everything that describes data is always read (keys, indexes, restore points with their listings,
//! WAL heads, records); the data itself (packs, WAL content) with [`CheckOptions::read_data`]. A
//! problem names the object, what is wrong, and the restore points that cannot be restored whole
//! because of it. Nothing is changed. Packs that no index names are what a crashed backup left: they
//! harm nothing and are no problem.

mod chains;
mod data;
mod points;
mod wal;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dr_model::{Progress, RestorePoint, RestorePointId, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::crypto::Keys;
use crate::format::chain::ChainedPoint;
use crate::format::header::Kind;
use crate::format::key_slot::ReadSlot;
use crate::format::{FormatError, repository};
use crate::repo::Inner;
use crate::repo::chain::CHAINS;
use crate::repo::index::Index;
use crate::repo::index::table::ShortName;
use crate::repo::keys::{Domain, SLOTS, TENANT_KEYS, WORKLOAD_KEYS, workload_key_name};
use crate::repo::lock::LOCKS;
use crate::repo::points::POINTS;
use crate::repo::session::{CONDEMNED, SESSIONS};
use crate::{Repository, StoreError};

/// How much to check.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Read and verify every stored byte, not only what describes it.
    pub read_data: bool,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Objects seen.
    pub objects: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Restore points seen.
    pub points: u64,
    /// WAL files seen.
    pub wal_segments: u64,
    /// What is wrong; empty when all is well.
    pub problems: Vec<CheckProblem>,
}

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckProblem {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Restore points that cannot be restored whole because of it.
    pub affects: Vec<RestorePointId>,
}

/// What is known of one workload while checking.
#[derive(Debug, Default)]
struct Workload {
    keys: Option<Arc<Keys>>,
    index: Index,
    /// Numbers of problems: indexes that could not be read.
    bad_indexes: Vec<usize>,
    /// Packs that are missing or not whole, by number in the index: the number of the problem.
    bad_packs: HashMap<u32, usize>,
    /// Chunks that do not open, by pack: the number of the problem.
    bad_chunks: HashMap<(u32, ShortName), usize>,
}

/// The outer error is the place failing, the inner one the number of a problem.
type Noted<T> = Result<Result<T, usize>, StoreError>;

struct Checker<'a> {
    repository: &'a Repository,
    repo: &'a Inner,
    options: CheckOptions,
    progress: &'a dyn Progress,
    objects: BTreeMap<String, u64>,
    report: CheckReport,
    workloads: BTreeMap<WorkloadName, Workload>,
    points: Vec<RestorePoint>,
    /// What the lists of restore points say of each.
    listed: HashMap<RestorePointId, ChainedPoint>,
    /// Points that a list says were taken off it.
    removed: HashSet<RestorePointId>,
    /// WAL files that a restore point holds itself, by point.
    own_wal: HashMap<RestorePointId, BTreeSet<String>>,
}

pub(crate) fn run(
    repository: &Repository,
    options: CheckOptions,
    progress: &dyn Progress,
) -> Result<CheckReport, StoreError> {
    let repo = repository.inner();
    // What is kept of keys would hide that one is gone.
    repo.forget_keys();
    progress.phase("listing the repository", None);
    let listed = repo.list("")?;
    let mut checker = Checker {
        repository,
        repo,
        options,
        progress,
        report: CheckReport {
            objects: listed.len() as u64,
            bytes: listed.iter().map(|entry| entry.size).sum(),
            ..CheckReport::default()
        },
        objects: listed
            .into_iter()
            .map(|entry| (entry.name, entry.size))
            .collect(),
        workloads: BTreeMap::new(),
        points: Vec::new(),
        listed: HashMap::new(),
        removed: HashSet::new(),
        own_wal: HashMap::new(),
    };
    checker.places();
    checker.keys()?;
    checker.indexes()?;
    checker.packs()?;
    checker.chains()?;
    checker.restore_points()?;
    checker.wal_files()?;
    checker.records()?;
    checker.lost_keys();
    for problem in &mut checker.report.problems {
        problem.affects.sort();
        problem.affects.dedup();
    }
    Ok(checker.report)
}

impl Checker<'_> {
    /// Notes a problem and returns its number.
    fn problem(&mut self, object: &str, what: impl Into<String>) -> usize {
        self.report.problems.push(CheckProblem {
            object: object.to_owned(),
            what: what.into(),
            affects: Vec::new(),
        });
        self.report.problems.len() - 1
    }

    fn affects(&mut self, problem: usize, point: &RestorePointId) {
        if let Some(problem) = self.report.problems.get_mut(problem)
            && problem.affects.last() != Some(point)
        {
            problem.affects.push(point.clone());
        }
    }

    /// Keeps what is wrong with stored things, as the number of the problem; lets the failure of the
    /// place itself through. What is wrong may be another object than the one that was wanted.
    fn note<T>(&mut self, wanted: &str, result: Result<T, StoreError>) -> Noted<T> {
        let (object, what) = match result {
            Ok(value) => return Ok(Ok(value)),
            Err(StoreError::Damaged { object, what, .. }) => (object, what),
            Err(StoreError::ObjectMissing { object, .. }) => (object, "it is missing".to_owned()),
            Err(error @ (StoreError::UnsupportedVersion { .. } | StoreError::Shredded { .. })) => {
                (wanted.to_owned(), error.to_string())
            }
            Err(error) => return Err(error),
        };
        let known = self
            .report
            .problems
            .iter()
            .position(|problem| problem.object == object);
        Ok(Err(known.unwrap_or_else(|| self.problem(&object, what))))
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let from = self.objects.range(prefix.to_owned()..);
        from.map(|(name, _)| name)
            .take_while(|name| name.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Every object lies where its kind belongs.
    fn places(&mut self) {
        const FOLDERS: [&str; 12] = [
            SLOTS,
            WORKLOAD_KEYS,
            TENANT_KEYS,
            "data/",
            "index/",
            POINTS,
            "wal/",
            "records/",
            LOCKS,
            CHAINS,
            SESSIONS,
            CONDEMNED,
        ];
        let is_known = |name: &String| {
            name == repository::NAME || FOLDERS.iter().any(|folder| name.starts_with(folder))
        };
        let strangers: Vec<String> = self
            .objects
            .keys()
            .filter(|name| !is_known(name))
            .cloned()
            .collect();
        for name in strangers {
            self.problem(&name, "it does not belong to a repository");
        }
    }

    fn keys(&mut self) -> Result<(), StoreError> {
        self.progress.phase("checking keys", None);
        let body = self.repo.get(repository::NAME)?.unwrap_or_default();
        let marker = repository::decode(&body).and_then(|found| {
            let same = found.id == self.repo.id;
            same.then_some(())
                .ok_or_else(|| FormatError::damaged("it names another repository"))
        });
        if let Err(error) = marker {
            self.problem(repository::NAME, error.to_string());
        }
        for name in self.names(WORKLOAD_KEYS) {
            let workload = name.strip_prefix(WORKLOAD_KEYS).unwrap_or_default();
            self.data_key(&name, workload)?;
        }
        for name in self.names(TENANT_KEYS) {
            let key = self.repo.read_tenant_key(&name);
            let _ = self.note(&name, key)?;
        }
        for name in self.names(SLOTS) {
            let body = self.repo.get(&name)?.unwrap_or_default();
            let slot = ReadSlot::of(&body)
                .and_then(|slot| slot.note(&self.repo.id, &name, &self.repo.master));
            if let Err(error) = slot {
                self.problem(&name, error.to_string());
            }
        }
        Ok(())
    }

    fn data_key(&mut self, object: &str, workload: &str) -> Result<(), StoreError> {
        let Ok(workload) = workload.parse::<WorkloadName>() else {
            self.problem(object, "its name is not that of a workload");
            return Ok(());
        };
        let keys = self.repo.read_data_keys(&Domain::Workload, object);
        let keys = self.note(object, keys)?.ok().flatten();
        self.workloads.entry(workload).or_default().keys = keys;
        Ok(())
    }

    /// A workload's restore points are lost with its key, whatever else was found.
    fn lost_keys(&mut self) {
        let points: Vec<_> = self
            .points
            .iter()
            .map(|point| (point.workload.clone(), point.id.clone()))
            .collect();
        for (workload, id) in points {
            let object = workload_key_name(&workload);
            if self
                .workloads
                .get(&workload)
                .is_some_and(|known| known.keys.is_some())
            {
                continue;
            }
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

    fn records(&mut self) -> Result<(), StoreError> {
        self.progress.phase("checking records", None);
        for name in self.names("records/") {
            let record = self.repo.get_sealed(&self.repo.master, Kind::Record, &name);
            let _ = self.note(&name, record)?;
        }
        Ok(())
    }
}

//! Loading and validating a whole configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dr_model::{RepositoryName, TierName, WorkloadName};

use crate::{ConfigError, EngineFile, RepositoryConfig, Tier, WorkloadConfig, WorkloadSource};

/// A validated configuration: the engine file and every tier.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the engine file is; absolute.
    pub path: PathBuf,
    /// The engine file.
    pub engine: EngineFile,
    /// The tiers by name.
    pub tiers: BTreeMap<TierName, Tier>,
}

/// A workload with everything the configuration says of it.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Its name.
    pub name: &'a WorkloadName,
    /// Its section in the engine file.
    pub config: &'a WorkloadConfig,
    /// Its one source.
    pub source: WorkloadSource<'a>,
    /// Its tier.
    pub tier: &'a Tier,
}

impl Config {
    /// Finds the engine file: `given`, else `DR_CONFIG`, else `dr.yaml` here, else
    /// `/etc/dr-engine/dr.yaml`.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`] with the places looked at.
    pub fn find(given: Option<&Path>) -> Result<PathBuf, ConfigError> {
        todo!("{given:?}")
    }

    /// Reads and validates the engine file and its tiers.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        todo!("{path:?}")
    }

    /// Reads only what WAL push and fetch need: the engine file, no tiers. As fast as can be.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_engine_only(path: &Path) -> Result<Self, ConfigError> {
        todo!("{path:?}")
    }

    /// The workload of this name.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`] with the nearest known name.
    pub fn workload<'a>(&'a self, name: &str) -> Result<Workload<'a>, ConfigError> {
        todo!("{name}")
    }

    /// All workloads, in order of name.
    pub fn workloads(&self) -> impl Iterator<Item = Workload<'_>> {
        std::iter::empty()
    }

    /// The repository of this name.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`] with the nearest known name.
    pub fn repository(&self, name: &RepositoryName) -> Result<&RepositoryConfig, ConfigError> {
        todo!("{name}")
    }
}

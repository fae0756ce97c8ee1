//! The configuration as a repository object: with every backup, so that the repository and its key are
//! enough to begin again on a new host.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use dr_config::{EngineFile, Tier};
use dr_model::TierName;
use dr_store::Repository;
use serde::{Deserialize, Serialize};

use crate::{Installation, InstallationError};

const RECORD_KIND: &str = "configuration";
const SNAPSHOT_VERSION: u32 = 1;

/// What is stored: everything the engine file and the tiers say. Keys and passwords are not in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigurationSnapshot {
    /// Version of this structure.
    pub version: u32,
    /// When it was taken.
    pub taken: DateTime<Utc>,
    /// The engine file.
    pub engine: EngineFile,
    /// The tiers by name.
    pub tiers: BTreeMap<TierName, Tier>,
}

impl Installation {
    /// The present configuration, unless the newest one that `repository` has is the same. Blocks.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn configuration_to_store(
        &self,
        repository: &Repository,
    ) -> Result<Option<ConfigurationSnapshot>, InstallationError> {
        let snapshot = ConfigurationSnapshot {
            version: SNAPSHOT_VERSION,
            taken: self.clock.now(),
            engine: self.config.engine.clone(),
            tiers: self.config.tiers.clone(),
        };
        let newest = newest_snapshot(repository)?;
        let is_same = newest.is_some_and(|newest| {
            newest.engine == snapshot.engine && newest.tiers == snapshot.tiers
        });
        Ok((!is_same).then_some(snapshot))
    }
}

impl ConfigurationSnapshot {
    /// Stores it. Blocks.
    ///
    /// # Errors
    /// When the repository cannot be written.
    pub fn store(&self, repository: &Repository) -> Result<(), InstallationError> {
        let body = serde_json::to_vec(self).map_err(|error| InstallationError::BadSnapshot {
            place: repository.describe(),
            detail: error.to_string(),
        })?;
        // Names sort by time; the random part keeps two hosts from colliding.
        let name = format!(
            "{}-{}",
            self.taken
                .format("%Y%m%dT%H%M%S%.6fZ")
                .to_string()
                .replace('.', ""),
            dr_model::random::hex(3)
        );
        repository
            .put_record(RECORD_KIND, &name, &body)
            .map_err(|source| InstallationError::Store {
                action: "store the configuration",
                place: repository.describe(),
                source,
            })
    }
}

/// The newest configuration stored in `repository`. Blocks.
pub(crate) fn newest_snapshot(
    repository: &Repository,
) -> Result<Option<ConfigurationSnapshot>, InstallationError> {
    let place = repository.describe();
    let store = |source| InstallationError::Store {
        action: "read the stored configuration",
        place: place.clone(),
        source,
    };
    let mut names = repository.list_records(RECORD_KIND).map_err(store)?;
    names.sort();
    let Some(name) = names.pop() else {
        return Ok(None);
    };
    let Some(body) = repository.get_record(RECORD_KIND, &name).map_err(store)? else {
        return Ok(None);
    };
    let bad = |detail: String| InstallationError::BadSnapshot {
        place: place.clone(),
        detail,
    };
    let snapshot: ConfigurationSnapshot =
        serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    if snapshot.version != SNAPSHOT_VERSION {
        return Err(bad(format!(
            "its version is {}, this program knows {SNAPSHOT_VERSION}",
            snapshot.version
        )));
    }
    Ok(Some(snapshot))
}

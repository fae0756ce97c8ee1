//! Which PostgreSQL cluster a workload is.
//!
//! A workload is bound to one system identifier at its first backup, by a write-once record in the
//! repository: a host that was set up wrongly, or a new cluster made where the old one was, must not mix
//! its data into the old one's archive.

use chrono::{DateTime, Utc};
use dr_model::{SystemId, WorkloadName};
use dr_store::Repository;
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::error::store_error;

const RECORD_KIND: &str = "binding";
const BINDING_VERSION: u32 = 1;

/// The record that binds a workload to one cluster, made at its first backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Version of this structure.
    pub version: u32,
    /// The cluster.
    pub system_id: SystemId,
    /// When it was made.
    pub bound: DateTime<Utc>,
}

/// The binding of `workload`, if it was ever backed up. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub fn binding_of(
    repository: &Repository,
    workload: &WorkloadName,
) -> Result<Option<Binding>, BackupError> {
    let action = || format!("read which cluster `{workload}` is");
    let body = repository
        .get_record(RECORD_KIND, workload.as_str())
        .map_err(store_error(action(), repository))?;
    let Some(body) = body else { return Ok(None) };
    let bad = |detail: String| BackupError::BadRecord {
        what: format!("the binding of `{workload}`"),
        place: repository.describe(),
        detail,
    };
    let binding: Binding = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    if binding.version != BINDING_VERSION {
        return Err(bad(format!("its version is {}", binding.version)));
    }
    Ok(Some(binding))
}

/// Binds `workload` to `system_id`, or confirms it. Blocks.
///
/// # Errors
/// [`BackupError::OtherCluster`] when it is bound to another cluster.
pub fn bind(
    repository: &Repository,
    workload: &WorkloadName,
    system_id: SystemId,
    now: DateTime<Utc>,
) -> Result<(), BackupError> {
    if check_binding(repository, workload, system_id)?.is_some() {
        return Ok(());
    }
    let binding = Binding {
        version: BINDING_VERSION,
        system_id,
        bound: now,
    };
    let body = serde_json::to_vec(&binding).map_err(|error| BackupError::BadRecord {
        what: format!("the binding of `{workload}`"),
        place: repository.describe(),
        detail: error.to_string(),
    })?;
    let put = repository.put_record(RECORD_KIND, workload.as_str(), &body);
    if let Err(error) = put {
        // Someone else may have bound it in between: their record decides.
        return match check_binding(repository, workload, system_id)? {
            Some(_) => Ok(()),
            None => Err(store_error(
                format!("bind `{workload}` to its cluster"),
                repository,
            )(error)),
        };
    }
    Ok(())
}

/// Confirms that `workload` is bound to `system_id`, or to nothing yet. Blocks.
///
/// # Errors
/// [`BackupError::OtherCluster`] when it is bound to another cluster.
pub fn check_binding(
    repository: &Repository,
    workload: &WorkloadName,
    system_id: SystemId,
) -> Result<Option<Binding>, BackupError> {
    let binding = binding_of(repository, workload)?;
    match &binding {
        Some(bound) if bound.system_id != system_id => Err(BackupError::OtherCluster {
            workload: workload.clone(),
            bound: bound.system_id,
            found: system_id,
        }),
        _ => Ok(binding),
    }
}

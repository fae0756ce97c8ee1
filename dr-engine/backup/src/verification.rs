//! The record of a proof: what was done with a restore point and whether it held.

use chrono::{DateTime, Utc};
use dr_model::{RestorePointId, WorkloadName};
use dr_store::Repository;
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::error::store_error;

const RECORD_KIND: &str = "verification";

/// One verification of one restore point, kept in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Version of this structure.
    pub version: u32,
    /// The restore point.
    pub point: RestorePointId,
    /// Its workload.
    pub workload: WorkloadName,
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// Whether the point was really restored (and, for servers, started).
    pub restored: bool,
    /// Whether every check held.
    pub passed: bool,
    /// Each check.
    pub checks: Vec<VerificationCheck>,
}

/// One check of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerificationCheck {
    /// What was checked.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

impl Verification {
    /// The version written now.
    pub const VERSION: u32 = 1;

    /// Its record's name: unique, and in order of time for one point.
    #[must_use]
    pub fn record_name(&self) -> String {
        let stamp = self
            .started
            .format("%Y%m%dT%H%M%S%6fZ")
            .to_string()
            .replace('.', "");
        format!("{}-{stamp}", self.point)
    }

    /// Keeps it in the repository. Blocks.
    ///
    /// # Errors
    /// When the repository cannot be written.
    pub fn store(&self, repository: &Repository) -> Result<(), BackupError> {
        let body = serde_json::to_vec(self).map_err(|error| BackupError::BadRecord {
            what: format!("the verification of {}", self.point),
            place: repository.describe(),
            detail: error.to_string(),
        })?;
        repository
            .put_record(RECORD_KIND, &self.record_name(), &body)
            .map_err(store_error(
                format!("keep the verification of {}", self.point),
                repository,
            ))
    }
}

/// The verifications kept in `repository`, oldest first, of one workload or of all. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub fn verifications(
    repository: &Repository,
    workload: Option<&WorkloadName>,
) -> Result<Vec<Verification>, BackupError> {
    let names = repository
        .list_records(RECORD_KIND)
        .map_err(store_error("list the verifications", repository))?;
    // A name begins with the point's id, which begins with the workload's name.
    let prefix = workload.map(|name| format!("rp-{name}-"));
    let mut found = Vec::new();
    for name in names {
        if prefix
            .as_ref()
            .is_some_and(|prefix| !name.starts_with(prefix))
        {
            continue;
        }
        let body = repository
            .get_record(RECORD_KIND, &name)
            .map_err(store_error(format!("read verification {name}"), repository))?
            .unwrap_or_default();
        let verification: Verification =
            serde_json::from_slice(&body).map_err(|error| BackupError::BadRecord {
                what: format!("verification {name}"),
                place: repository.describe(),
                detail: error.to_string(),
            })?;
        // "erp" is also a prefix of "erp-east".
        if workload.is_none_or(|wanted| *wanted == verification.workload) {
            found.push(verification);
        }
    }
    found.sort_by_key(|verification| verification.started);
    Ok(found)
}

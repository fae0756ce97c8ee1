//! Entries in the repository: records, written once, copied and kept like every other one. The entry goes into
//! each repository that holds a workload which it concerns, so that any of them tells by itself.

use dr_installation::Installation;
use dr_model::WorkloadName;
use dr_store::Repository;

use super::Erasure;
use crate::RestoreError;
use crate::error::{blocking, store_error};

const KIND: &str = "erasure";

/// The entries that concern a workload, the oldest first. Blocks.
///
/// # Errors
/// When the repository cannot be read, or holds an entry that cannot be understood: what is to be forgotten is not
/// guessed.
pub fn erasures(
    repository: &Repository,
    workload: &WorkloadName,
) -> Result<Vec<Erasure>, RestoreError> {
    let names = repository
        .list_records(KIND)
        .map_err(store_error("list the ledger of erasures", repository))?;
    let mut found: Vec<Erasure> = Vec::new();
    for name in names {
        let body = repository
            .get_record(KIND, &name)
            .map_err(store_error(format!("read erasure {name}"), repository))?
            .unwrap_or_default();
        let entry = understood(&body).map_err(|why| RestoreError::BadErasure {
            name: name.clone(),
            place: repository.describe(),
            why,
        })?;
        if entry.concerns(workload) {
            found.push(entry);
        }
    }
    found.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    Ok(found)
}

/// An entry from its bytes.
pub(super) fn understood(body: &[u8]) -> Result<Erasure, String> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let of: Versioned = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if of.version != Erasure::VERSION {
        let version = of.version;
        return Err(format!(
            "it was made by a newer version of dr (version {version})"
        ));
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// The bytes of an entry.
pub(super) fn written(entry: &Erasure) -> Result<Vec<u8>, String> {
    serde_json::to_vec_pretty(entry).map_err(|error| error.to_string())
}

/// Records an entry; durable in all repositories that it concerns when it returns. Again after an interruption is
/// fine. Blocks.
///
/// # Errors
/// When a repository cannot be written. Those that were written before keep it.
pub fn record_erasure(installation: &Installation, entry: &Erasure) -> Result<(), RestoreError> {
    let folders = entry.folders.iter().map(|folder| &folder.workload);
    for workload in std::iter::once(&entry.workload).chain(folders) {
        let repository = installation.repository_of(workload)?;
        let body = written(entry).map_err(|why| RestoreError::BadErasure {
            name: entry.id.to_string(),
            place: repository.describe(),
            why,
        })?;
        repository
            .put_record(KIND, entry.id.as_str(), &body)
            .map_err(store_error(
                format!("keep erasure {}", entry.id),
                &repository,
            ))?;
    }
    Ok(())
}

/// [`erasures`] for asynchronous callers, by the workload's own repository.
pub(crate) async fn ledger_of(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<Vec<Erasure>, RestoreError> {
    let repository = installation.open_repository_of(workload).await?;
    let workload = workload.clone();
    blocking("read the ledger of erasures", move || {
        erasures(&repository, &workload)
    })
    .await
}

//! One WAL file into the repository.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dr_installation::open_for_wal;
use dr_model::{WalFileName, WorkloadName};
use dr_store::{Repository, StoreError, WalPut};

use super::{PUSH_TIMEOUT, WAL_FILE_BYTES_MAX, identity, within};
use crate::BackupError;
use crate::error::{file_error, store_error};

/// Stores one WAL file. Blocks; returns only when it is durable.
///
/// # Errors
/// Everything else: nothing is acknowledged. [`BackupError::WalConflict`] when the archive holds
/// another content under this name: it is never overwritten.
pub fn push(config: &Path, file: &Path) -> Result<WalPut, BackupError> {
    let (config, file) = (config.to_owned(), file.to_owned());
    within(
        PUSH_TIMEOUT,
        format!("pushing {}", file.display()),
        move || store(&config, &file),
    )
}

fn store(config: &Path, file: &Path) -> Result<WalPut, BackupError> {
    let name = name_of(file)?;
    let body = read_whole(file)?;
    let data_directory = identity::data_directory_of(Some(file));
    let system_id = identity::system_id_of(&name, &body, data_directory.as_deref())?;
    let installation = open_for_wal(config)?;
    let workload = identity::workload_for(
        &installation,
        &name.to_string(),
        system_id,
        data_directory.as_deref(),
    )?;
    let repository = installation.repository_of(&workload)?;
    put(
        &repository,
        &workload,
        &name,
        &body,
        installation.clock.now(),
    )
}

pub(super) fn name_of(file: &Path) -> Result<WalFileName, BackupError> {
    file.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| BackupError::BadWal {
            file: file.display().to_string(),
            what: "its name is not that of a WAL file".to_owned(),
        })
}

pub(super) fn read_whole(path: &Path) -> Result<Vec<u8>, BackupError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > WAL_FILE_BYTES_MAX {
            return Err(std::io::Error::other(
                "it is larger than any WAL file can be",
            ));
        }
        let mut body = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.take(WAL_FILE_BYTES_MAX).read_to_end(&mut body)?;
        Ok(body)
    };
    read().map_err(file_error("read", path))
}

/// Stores one WAL file whose cluster has been checked.
pub(crate) fn put(
    repository: &Repository,
    workload: &WorkloadName,
    name: &WalFileName,
    body: &[u8],
    now: chrono::DateTime<chrono::Utc>,
) -> Result<WalPut, BackupError> {
    repository
        .put_wal(workload, name, body, now)
        .map_err(|error| match error {
            conflict @ StoreError::WalConflict { .. } => BackupError::WalConflict {
                name: name.clone(),
                workload: workload.clone(),
                source: conflict,
            },
            other => store_error(format!("store {name} of `{workload}`"), repository)(other),
        })
}

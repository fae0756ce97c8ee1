//! One WAL file into the repository.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use dr_installation::{Installation, open_for_wal};
use dr_model::{Progress, WalFileName, WorkloadName};
use dr_store::{Repository, StoreError, WalPut};
use serde::Serialize;

use super::{PUSH_TIMEOUT, WAL_FILE_BYTES_MAX, identity, within};
use crate::BackupError;
use crate::error::{file_error, store_error};

/// Where the server keeps, beside its WAL, which file is archived (`xlogarchive.c`).
const STATUS_FOLDER: &str = "archive_status";
/// WAL files that are stored side by side; each is held in memory.
const PUSHES_AT_ONCE: usize = 4;

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

/// What a push of everything that is ready did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PushedReady {
    /// Files newly stored.
    pub stored: u64,
    /// Files that were in the repository already.
    pub already_there: u64,
    /// Files that the server had archived, or given up, before they could be read.
    pub not_waiting_any_more: u64,
}

/// Stores every WAL file that a workload's server waits to have archived, several at a time. The server
/// still hands over each by itself, and then finds it stored: after an outage of the repository that
/// goes faster than storing one after the other. Blocks.
///
/// # Errors
/// As [`push`], of the first file that failed; the others are stored or still ready.
pub fn push_ready(
    config: &Path,
    workload: Option<&WorkloadName>,
    progress: &dyn Progress,
) -> Result<PushedReady, BackupError> {
    let installation = open_for_wal(config)?;
    let (name, source) = identity::one_workload(&installation, workload, "what is ready")?;
    let ready = ready_files(&source.data_directory.join("pg_wal"))?;
    progress.phase(&format!("archiving the WAL of `{name}`"), None);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Ok(PushedReady::default())));
    let one_after_the_other = || {
        while let Some(file) = ready.get(next.fetch_add(1, Ordering::Relaxed)) {
            let stored = store_ready(&installation, file);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(so_far) = done.as_mut() else { return };
            match stored {
                Ok(Some(WalPut::Stored)) => so_far.stored += 1,
                Ok(Some(WalPut::AlreadyThere)) => so_far.already_there += 1,
                Ok(None) => so_far.not_waiting_any_more += 1,
                Err(error) => *done = Err(error),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..PUSHES_AT_ONCE {
            scope.spawn(one_after_the_other);
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Stores a file that the server waits for; `None` if it does not any more. The server gives a file that
/// it has done with a new name and writes into it again, while who has it open reads on: so what was read
/// is stored only if the file is still in its place, and waited for, after it was read.
fn store_ready(installation: &Installation, file: &Path) -> Result<Option<WalPut>, BackupError> {
    let name = name_of(file)?;
    let inode = |file: &Path| {
        std::fs::metadata(file)
            .ok()
            .map(|found| (found.dev(), found.ino()))
    };
    let before = inode(file);
    let body = read_whole(file);
    if before.is_none() || inode(file) != before || !marker_of(file).exists() {
        return Ok(None);
    }
    store_body(installation, &name, file, &body?).map(Some)
}

/// What says that the server waits for a file to be archived.
fn marker_of(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(STATUS_FOLDER)
        .join(format!("{name}.ready"))
}

/// The files that the server has marked as ready, oldest first; histories before all segments, as the
/// server does it.
fn ready_files(pg_wal: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let status = pg_wal.join(STATUS_FOLDER);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&status).map_err(file_error("list", &status))? {
        let entry = entry.map_err(file_error("list", &status))?.file_name();
        let name = entry.to_str().and_then(|name| name.strip_suffix(".ready"));
        names.extend(name.and_then(|name| name.parse::<WalFileName>().ok()));
    }
    let is_history = |name: &WalFileName| matches!(name, WalFileName::History { .. });
    names.sort_by_cached_key(|name| (!is_history(name), name.to_string()));
    let files = names.iter().map(|name| pg_wal.join(name.to_string()));
    Ok(files.collect())
}

fn store(config: &Path, file: &Path) -> Result<WalPut, BackupError> {
    let name = name_of(file)?;
    let body = read_whole(file)?;
    store_body(&open_for_wal(config)?, &name, file, &body)
}

fn store_body(
    installation: &Installation,
    name: &WalFileName,
    file: &Path,
    body: &[u8],
) -> Result<WalPut, BackupError> {
    let data_directory = identity::data_directory_of(Some(file));
    let system_id = identity::system_id_of(name, body, data_directory.as_deref())?;
    let workload = identity::workload_for(
        installation,
        &name.to_string(),
        system_id,
        data_directory.as_deref(),
    )?;
    let repository = installation.repository_of(&workload)?;
    put(&repository, &workload, name, body, installation.clock.now())
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

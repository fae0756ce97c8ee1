//! The folder that a restore goes into, and whose it is.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dr_sources::instance::{RunAs, give};

use crate::RestoreError;
use crate::error::{file_error, source_error};

/// PostgreSQL refuses a data directory that others may enter.
const FOLDER_MODE: u32 = 0o700;

/// Makes `into` an empty folder of ours (or, for root, of `owner`).
///
/// # Errors
/// When it holds anything or belongs to someone else.
pub(crate) fn prepare_folder(into: &Path, owner: Option<&RunAs>) -> Result<PathBuf, RestoreError> {
    let into = std::path::absolute(into).map_err(file_error("resolve", into))?;
    match fs::read_dir(&into) {
        Ok(mut entries) => {
            if let Some(entry) = entries.next() {
                let entry = entry.map_err(file_error("list", &into))?;
                return Err(RestoreError::NotEmpty {
                    path: into,
                    example: entry.file_name().to_string_lossy().into_owned(),
                });
            }
            refuse_foreign(&into)?;
            let mode = fs::Permissions::from_mode(FOLDER_MODE);
            fs::set_permissions(&into, mode).map_err(file_error("set the rights of", &into))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(&into, owner)?,
        Err(error) => return Err(file_error("list", &into)(error)),
    }
    give(&into, owner).map_err(source_error("prepare the folder"))?;
    Ok(into)
}

/// Makes the folder and its missing parents; each is given to `owner`.
fn create(path: &Path, owner: Option<&RunAs>) -> Result<(), RestoreError> {
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        create(parent, owner)?;
    }
    let mut builder = fs::DirBuilder::new();
    builder
        .mode(FOLDER_MODE)
        .create(path)
        .map_err(file_error("create", path))?;
    give(path, owner).map_err(source_error("prepare the folder"))?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

pub(super) fn refuse_foreign(path: &Path) -> Result<(), RestoreError> {
    let owner = fs::metadata(path)
        .map_err(file_error("examine", path))?
        .uid();
    let ours = rustix::process::geteuid();
    if ours.is_root() || owner == ours.as_raw() {
        return Ok(());
    }
    Err(RestoreError::NotOurs {
        path: path.to_owned(),
        owner: format!("#{owner}"),
    })
}

/// As whom the server of a folder runs: for root the folder's owner, or the owner of the nearest
/// existing parent, or `postgres` where all that is root's; for everyone else nobody but themselves.
///
/// # Errors
/// When a folder cannot be examined or there is no user `postgres`.
pub(crate) fn server_user(folder: &Path) -> Result<Option<RunAs>, RestoreError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let nearest = folder
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let failed = || source_error(format!("find the owner of {}", folder.display()));
    match RunAs::owner_of(nearest).map_err(failed())? {
        Some(owner) => Ok(Some(owner)),
        None => RunAs::for_postgres().map_err(failed()),
    }
}

pub(super) fn sync_folder(path: &Path) -> Result<(), RestoreError> {
    fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(file_error("flush", path))
}

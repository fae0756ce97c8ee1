//! Small files, written so that they are there whole after a crash or not at all.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::SourceError;

/// PostgreSQL refuses data that others can read.
const FILE_MODE: u32 = 0o600;

/// Writes `folder`/`name` by way of a temporary file. It gets the owner of `folder`, because a
/// server will run as that user whoever restores.
pub(super) fn write(folder: &Path, name: &str, content: &[u8]) -> Result<PathBuf, SourceError> {
    let path = folder.join(name);
    let mut temporary = path.clone().into_os_string();
    temporary.push(".dr-new");
    let temporary = PathBuf::from(temporary);
    let failed = |error| SourceError::file("write", &temporary)(error);
    let mut file = File::create(&temporary).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))
        .map_err(failed)?;
    own_like(&temporary, folder)?;
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    drop(file);
    rename(&temporary, &path)?;
    Ok(path)
}

/// Makes a folder below `root` that has to exist, and its parents, owned like `root`.
pub(super) fn folder(root: &Path, relative: &Path) -> Result<PathBuf, SourceError> {
    let mut path = root.to_owned();
    for part in relative.components() {
        path.push(part);
        if !path.is_dir() {
            std::fs::create_dir(&path).map_err(SourceError::file("create", &path))?;
            own_like(&path, root)?;
            sync_parent(&path)?;
        }
    }
    Ok(path)
}

/// Renames and makes the new name durable.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), SourceError> {
    std::fs::rename(from, to).map_err(SourceError::file("rename", from))?;
    sync_parent(to)
}

/// Removes a file if it is there, durably.
pub(super) fn remove(path: &Path) -> Result<(), SourceError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(SourceError::file("remove", path)(error)),
    }
}

/// Flushes a file that someone else wrote.
pub(super) fn sync_file(path: &Path) -> Result<(), SourceError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(SourceError::file("sync", path))
}

fn sync_parent(path: &Path) -> Result<(), SourceError> {
    sync_file(path.parent().unwrap_or(Path::new("/")))
}

fn own_like(path: &Path, model: &Path) -> Result<(), SourceError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let metadata = std::fs::metadata(model).map_err(SourceError::file("examine", model))?;
    std::os::unix::fs::lchown(path, Some(metadata.uid()), Some(metadata.gid()))
        .map_err(SourceError::file("change the owner of", path))
}

//! Scratch folders: made, removed, and removed later when their process died.

use std::fs;
use std::path::{Path, PathBuf};

use dr_sources::instance::{PostgresInstance, RunAs, StopMode, is_alive};

use crate::RestoreError;
use crate::error::file_error;
use crate::execute::prepare_folder;

const PREFIX: &str = "dr-scratch-";
/// Holds the pid of the process that made the folder.
const OWNER_FILE: &str = "owner";

/// A folder that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    name: String,
}

impl Folder {
    /// Makes a new folder below `parent`, which is made when missing.
    pub(crate) fn create(parent: &Path, user: Option<&RunAs>) -> Result<Self, RestoreError> {
        let name = format!("{PREFIX}{}", dr_model::random::hex(4));
        let path = prepare_folder(&parent.join(&name), user)?;
        let folder = Self { path, name };
        let owner = folder.path.join(OWNER_FILE);
        fs::write(&owner, std::process::id().to_string()).map_err(file_error("write", &owner))?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A short place for sockets.
    pub(crate) fn socket_elsewhere(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}-s", self.name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for path in [self.path.clone(), self.socket_elsewhere()] {
            if let Err(error) = fs::remove_dir_all(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a scratch folder was not removed");
            }
        }
    }
}

/// Clears away what dead processes left below `parent`: a running server first. What cannot be cleared
/// is left for the next time.
pub(crate) fn clear_left_behind(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let owner = fs::read_to_string(path.join(OWNER_FILE)).ok();
        let Some(owner) = owner.and_then(|text| text.trim().parse::<u32>().ok()) else {
            continue;
        };
        if is_alive(owner) {
            continue;
        }
        if let Ok(server) = PostgresInstance::attach(&path.join("data"))
            && let Err(error) = server.stop(StopMode::Immediate)
        {
            tracing::warn!(%error, path = %path.display(), "a scratch server left behind does not stop");
            continue;
        }
        drop(Folder { path, name });
    }
}

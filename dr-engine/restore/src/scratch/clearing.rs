//! Scratch folders: made, removed, and removed later when their process died.

use std::path::{Path, PathBuf};

use dr_sources::instance::{FolderKind, ProcessFolder, RunAs};

use crate::RestoreError;
use crate::error::{file_error, source_error};
use crate::execute::prepare_folder;

/// Of an id, which is so many bytes in hexadecimal.
const ID_BYTES: usize = 4;
/// A server in another container is not to be seen from here, and not stopped: it ends by itself within a minute when
/// its lock file is gone.
const SCRATCH: FolderKind = FolderKind {
    prefix: "dr-scratch-",
    // Not those for sockets: they hold no file that says whose they are.
    is_id: |id| id.len() == 2 * ID_BYTES && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
    server: Some("data"),
    elsewhere: |name| Some(sockets_of(name)),
};

/// A folder that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Folder(ProcessFolder);

impl Folder {
    /// Makes a new folder below `parent`, which is made when missing.
    pub(crate) fn create(parent: &Path, user: Option<&RunAs>) -> Result<Self, RestoreError> {
        if !parent.exists() {
            prepare_folder(parent, user)?;
        }
        let parent = std::path::absolute(parent).map_err(file_error("resolve", parent))?;
        let id = dr_model::random::hex(ID_BYTES);
        ProcessFolder::create(&SCRATCH, &parent, &id, user)
            .map(Self)
            .map_err(source_error("make a scratch folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A short place for sockets.
    pub(crate) fn socket_elsewhere(&self) -> PathBuf {
        let name = self.path().file_name().unwrap_or_default();
        sockets_of(&name.to_string_lossy())
    }
}

fn sockets_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-s"))
}

/// Clears away what dead processes left below `parent`: a running server first. What cannot be cleared
/// is left for the next time.
pub(crate) fn clear_left_behind(parent: &Path) {
    ProcessFolder::clear_left_behind(&SCRATCH, parent);
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// No process has it: the kernel's limit is 2^22.
    const NOBODY: &str = "1073741824";

    #[test]
    fn what_earlier_programs_left_is_found_and_sockets_go_only_with_their_folder() {
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("missing/so far");
        let own = Folder::create(&place, None).unwrap();
        let name = own.path().file_name().unwrap().to_string_lossy();
        // Where all scratch folders lie, if that is `TMPDIR`.
        let sockets = place.join(format!("{name}-s"));
        fs::create_dir(&sockets).unwrap();
        let before = SystemTime::now() - Duration::from_secs(24 * 3600);
        File::open(&sockets).unwrap().set_modified(before).unwrap();
        let left = place.join("dr-scratch-0a1b2c3d");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("owner"), NOBODY).unwrap();
        clear_left_behind(&place);
        assert!(own.path().is_dir() && sockets.is_dir() && !left.exists());
    }
}

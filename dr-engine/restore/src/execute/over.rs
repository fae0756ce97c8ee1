//! A restore over what is in the folder, an older or a damaged state of the same cluster: what is right stays,
//! only what differs is written.
//!
//! Order: it is the same cluster, and no server runs; a marker that says whose folder it is; the control file
//! goes, so that from then on nothing can be started there; what the restore point does not have goes; then
//! as into an empty folder, the control file last, and the marker behind it. Whatever ends this in between
//! leaves a folder that does not start, and that the same command goes on with.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dr_backup::wal::Rescued;
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::SystemId;
use dr_sources::instance::PostgresInstance;
use dr_sources::postgres::control;

use super::folder::{refuse_foreign, sync_folder};
use crate::error::{blocking, file_error};
use crate::{RestoreError, RestoreRequest};

/// Holds the system identifier while there is no control file to tell it.
const MARKER: &str = "dr-restore-unfinished";
const CONTROL_FILE: &str = "global/pg_control";
/// Until it is sure that no server was started at the last moment.
const CONTROL_FILE_ASIDE: &str = "global/pg_control.dr-aside";
/// May be a link to another disk.
const WAL_FOLDER: &str = "pg_wal";

/// Whether there is anything to restore over.
pub(super) fn is_there(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether a request is to be carried out in the place where its cluster lived.
fn is_own_place(installation: &Installation, request: &RestoreRequest) -> bool {
    let Ok(workload) = installation.config.workload(request.workload.as_str()) else {
        return false;
    };
    match (workload.source, &request.into) {
        (WorkloadSource::Postgres(source), Some(into)) => same_place(into, &source.data_directory),
        _ => false,
    }
}

/// Whether two paths are one folder.
pub(super) fn same_place(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Before a cluster is restored over itself, what it wrote last and did not archive is moved into the archive
/// (26.3.4, step 2): to be called before the restore is planned. `None` where nothing is restored over.
///
/// # Errors
/// When the server still runs, or something cannot be stored: then nothing may be restored over it.
pub async fn rescue_first(
    installation: &Installation,
    request: &RestoreRequest,
) -> Result<Option<Rescued>, RestoreError> {
    let into = request.into.clone().unwrap_or_default();
    if !request.delta || !is_there(&into) || !is_own_place(installation, request) {
        return Ok(None);
    }
    let (installation, workload) = (installation.clone(), request.workload.clone());
    blocking("rescue the WAL", move || {
        Ok(Some(dr_backup::wal::rescue(&installation, &workload)?))
    })
    .await
}

/// Makes sure that the folder is this cluster's, that no server runs on it, and that none can be started until
/// the restore is done.
///
/// # Errors
/// When one of these is not so; then nothing was changed.
pub(super) fn prepare(into: &Path, system_id: SystemId) -> Result<PathBuf, RestoreError> {
    let folder = std::path::absolute(into).map_err(file_error("resolve", into))?;
    refuse_foreign(&folder)?;
    refuse_running(&folder)?;
    let marker = folder.join(MARKER);
    let found = match control::read(&folder) {
        Ok(control) => Some(control.system_id),
        Err(_) => fs::read_to_string(&marker)
            .ok()
            .and_then(|text| text.trim().parse().ok()),
    };
    if found != Some(system_id) {
        return Err(RestoreError::NotThisCluster {
            path: folder,
            found,
            wanted: system_id,
        });
    }
    let written = fs::File::create(&marker).and_then(|mut file| {
        writeln!(file, "{system_id}")?;
        file.sync_all()
    });
    written.map_err(file_error("write", &marker))?;
    sync_folder(&folder)?;
    let (control, aside) = (folder.join(CONTROL_FILE), folder.join(CONTROL_FILE_ASIDE));
    match fs::rename(&control, &aside) {
        Ok(()) => sync_folder(&folder.join("global"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("rename", &control)(error)),
    }
    if let Err(running) = refuse_running(&folder) {
        // It read the file before that went; it must find it again.
        fs::rename(&aside, &control).map_err(file_error("rename", &aside))?;
        return Err(running);
    }
    Ok(folder)
}

fn refuse_running(folder: &Path) -> Result<(), RestoreError> {
    let Ok(server) = PostgresInstance::attach(folder) else {
        return Ok(());
    };
    let pid = server.pid();
    // The handle would stop it when dropped.
    server.leave_running();
    Err(RestoreError::ServerRuns {
        path: folder.to_owned(),
        pid,
    })
}

/// The cluster is whole again.
pub(super) fn finish(folder: &Path) -> Result<(), RestoreError> {
    let marker = folder.join(MARKER);
    match fs::remove_file(&marker) {
        Ok(()) => sync_folder(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_error("remove", &marker)(error)),
    }
}

/// What a restore point has in a place.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) files: BTreeSet<PathBuf>,
    pub(super) folders: BTreeSet<PathBuf>,
}

impl Wanted {
    /// A file or a folder, with every folder above it.
    pub(super) fn add(&mut self, path: &Path, is_folder: bool) {
        match is_folder {
            true => self.folders.insert(path.to_owned()),
            false => self.files.insert(path.to_owned()),
        };
        for above in path.ancestors().skip(1) {
            if !self.folders.insert(above.to_owned()) {
                break;
            }
        }
    }

    /// Removes everything below a folder that the restore point does not have, or has as something else. Links
    /// are removed, never followed, but for a `pg_wal` that lies elsewhere: that is emptied.
    pub(super) fn clear(&self, root: &Path) -> Result<(), RestoreError> {
        let wal = root.join(WAL_FOLDER);
        self.clear_below(root, &|path| {
            path == root.join(MARKER) || path == wal && path.is_dir()
        })?;
        match fs::symlink_metadata(&wal) {
            Ok(found) if found.is_symlink() => Self::default().clear_below(&wal, &|_| false),
            _ => Ok(()),
        }
    }

    fn clear_below(
        &self,
        folder: &Path,
        is_spared: &dyn Fn(&Path) -> bool,
    ) -> Result<(), RestoreError> {
        for entry in fs::read_dir(folder).map_err(file_error("list", folder))? {
            let entry = entry.map_err(file_error("list", folder))?;
            let (path, kind) = (entry.path(), entry.file_type());
            let kind = kind.map_err(file_error("examine", &path))?;
            let removed = if kind.is_dir() && self.folders.contains(&path) {
                self.clear_below(&path, is_spared)?;
                Ok(())
            } else if kind.is_dir() {
                fs::remove_dir_all(&path)
            } else if kind.is_file() && self.files.contains(&path) || is_spared(&path) {
                Ok(())
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(file_error("remove", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn below(folder: &Path) -> Vec<String> {
        let mut found: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        found
    }

    #[test]
    fn only_what_is_wanted_stays_and_no_link_is_followed() {
        let work = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (work.path().join("data"), work.path().join("elsewhere"));
        let wal = work.path().join("wal");
        for folder in ["base/1", "base/2", "global", "a-file-there"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for folder in [&elsewhere, &wal] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("x"), "x").unwrap();
        }
        for file in [
            "base/1/10",
            "base/1/11",
            "base/2/10",
            MARKER,
            "a-folder-there",
            "PG_VERSION",
        ] {
            fs::write(root.join(file), "x").unwrap();
        }
        symlink(&elsewhere, root.join("base/3")).unwrap();
        symlink(&wal, root.join(WAL_FOLDER)).unwrap();
        let mut wanted = Wanted::default();
        for file in [
            "base/1/10",
            "base/3/10",
            "global/1",
            "a-file-there",
            "PG_VERSION",
        ] {
            wanted.add(&root.join(file), false);
        }
        wanted.add(&root.join("a-folder-there"), true);
        wanted.add(&root.join("pg_wal"), true);
        wanted.clear(&root).unwrap();
        assert_eq!(
            below(&root),
            ["PG_VERSION", "base", MARKER, "global", "pg_wal"]
        );
        assert_eq!(below(&root.join("base")), ["1"]);
        assert_eq!(below(&root.join("base/1")), ["10"]);
        assert_eq!(
            below(&elsewhere),
            ["x"],
            "what a link points to is not ours"
        );
        assert!(below(&wal).is_empty() && root.join("pg_wal").is_symlink());
    }
}

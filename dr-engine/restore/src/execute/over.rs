//! A restore over what is in the folder, an older or a damaged state of the same cluster: what is right stays,
//! only what differs is written.
//!
//! Order: it is the same cluster, nothing works in it, and nothing is mounted in it; a marker that says whose
//! folder it is, locked until the end; the control file goes aside, so that from then on nothing can be started
//! there; its WAL is in the repository, all of it, else the control file comes back; what the restore point does
//! not have goes; then as into an empty folder, the control file last, and the marker behind it. Whatever ends
//! this in between leaves a folder that does not start, and that the same command goes on with.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dr_backup::wal::Rescued;
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{SystemId, WorkloadName};
use dr_sources::instance::occupied_after;
use dr_sources::postgres::control;
use dr_store::Repository;

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
const TABLESPACE_LINKS: &str = "pg_tblspc";
/// Of a server that was just stopped, something may be left for a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether there is anything to restore over.
pub(super) fn is_there(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether a folder is the place where a workload's cluster lives.
pub(super) fn is_own_place(
    installation: &Installation,
    workload: &WorkloadName,
    folder: &Path,
) -> bool {
    match installation
        .config
        .workload(workload.as_str())
        .map(|found| found.source)
    {
        Ok(WorkloadSource::Postgres(source)) => same_place(folder, &source.data_directory),
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
/// (26.3.4, step 2): to be called when the restore can be planned, which is done again behind it. `None` where
/// nothing is restored over.
///
/// # Errors
/// When the server still runs, or something cannot be stored: then nothing may be restored over it.
pub async fn rescue_first(
    installation: &Installation,
    request: &RestoreRequest,
) -> Result<Option<Rescued>, RestoreError> {
    let into = request.into.clone().unwrap_or_default();
    if !request.delta || !is_there(&into) || !is_own_place(installation, &request.workload, &into) {
        return Ok(None);
    }
    let (installation, workload) = (installation.clone(), request.workload.clone());
    blocking("rescue the WAL", move || {
        Ok(Some(dr_backup::wal::rescue(&installation, &workload)?))
    })
    .await
}

/// The folder that is restored over, while that goes on.
#[derive(Debug)]
pub(super) struct Over {
    folder: PathBuf,
    system_id: SystemId,
    /// Locked: nobody else restores over the same folder.
    marker: Option<File>,
}

impl Over {
    /// Makes sure that the folder is this cluster's and that nothing works in it. Changes nothing.
    ///
    /// # Errors
    /// When one of these is not so.
    pub(super) fn checked(into: &Path, system_id: SystemId) -> Result<Self, RestoreError> {
        let folder = std::path::absolute(into).map_err(file_error("resolve", into))?;
        refuse_foreign(&folder)?;
        refuse_running(&folder)?;
        refuse_mounts(&folder)?;
        let found = match control::read(&folder) {
            Ok(control) => Some(control.system_id),
            Err(_) => fs::read_to_string(folder.join(MARKER))
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
        Ok(Self {
            folder,
            system_id,
            marker: None,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sees to it that no server can be started until the restore is done, and that nothing is lost with what
    /// is there: its WAL must be in the repository, unless it is to be discarded.
    ///
    /// # Errors
    /// When that is not so; then a server can be started as before.
    pub(super) fn begin(
        &mut self,
        repository: &Repository,
        workload: &WorkloadName,
        discard_wal: bool,
    ) -> Result<(), RestoreError> {
        self.mark()?;
        let control = self.folder.join(CONTROL_FILE);
        let aside = self.folder.join(CONTROL_FILE_ASIDE);
        match fs::rename(&control, &aside) {
            Ok(()) => sync_folder(&self.folder.join("global"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file_error("rename", &control)(error)),
        }
        let nothing_is_lost = || {
            refuse_running(&self.folder)?;
            if discard_wal {
                return Ok(());
            }
            let wal = self.folder.join(WAL_FOLDER);
            let lacking = dr_backup::wal::not_stored(repository, workload, &wal, self.system_id)?;
            match lacking.as_slice() {
                [] => Ok(()),
                [first, ..] => Err(RestoreError::WalNotStored {
                    path: wal,
                    files: lacking.len(),
                    first: first.clone(),
                }),
            }
        };
        nothing_is_lost().inspect_err(|_| {
            // As it was. Without a file aside, an earlier restore was interrupted: it stays as it is.
            if fs::rename(&aside, &control).is_ok() {
                let _ = fs::remove_file(self.folder.join(MARKER));
            }
        })
    }

    /// Says whose folder it is, and that it is being restored over.
    fn mark(&mut self) -> Result<(), RestoreError> {
        let path = self.folder.join(MARKER);
        let failed = || file_error("write", &path);
        let mut marker = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed())?;
        if marker.try_lock().is_err() {
            return Err(RestoreError::Occupied {
                path: self.folder.clone(),
                why: "another restore over it goes on".to_owned(),
            });
        }
        writeln!(marker, "{}", self.system_id).map_err(failed())?;
        marker.sync_all().map_err(failed())?;
        self.marker = Some(marker);
        sync_folder(&self.folder)
    }

    /// To be asked before the control file comes back.
    ///
    /// # Errors
    /// When anything works in the folder.
    pub(super) fn may_end(&self) -> Result<(), RestoreError> {
        refuse_running(&self.folder)
    }

    /// The cluster is whole again.
    pub(super) fn finish(self) -> Result<(), RestoreError> {
        let marker = self.folder.join(MARKER);
        fs::remove_file(&marker).map_err(file_error("remove", &marker))?;
        sync_folder(&self.folder)
    }
}

fn refuse_running(folder: &Path) -> Result<(), RestoreError> {
    match occupied_after(folder, PATIENCE) {
        None => Ok(()),
        Some(why) => Err(RestoreError::Occupied {
            path: folder.to_owned(),
            why,
        }),
    }
}

/// What is mounted within the folder is another's: it cannot be cleared, and must not be.
fn refuse_mounts(folder: &Path) -> Result<(), RestoreError> {
    let folder = fs::canonicalize(folder).map_err(file_error("resolve", folder))?;
    // Not on every system; there nothing is known of mounts.
    let Ok(mounts) = fs::read("/proc/self/mountinfo") else {
        return Ok(());
    };
    match mount_within(&mounts, &folder) {
        None => Ok(()),
        Some(mount) => Err(RestoreError::MountWithin {
            path: folder,
            mount,
        }),
    }
}

/// The first mount point below a folder (proc_pid_mountinfo(5): the fifth field, with octal escapes).
fn mount_within(mountinfo: &[u8], folder: &Path) -> Option<PathBuf> {
    let points = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let paths = points.map(|point| PathBuf::from(std::ffi::OsStr::from_bytes(&unescaped(point))));
    paths
        .into_iter()
        .find(|path| path.starts_with(folder) && path != folder)
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *byte == b'\\');
        let code = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(*byte));
        rest = match code {
            Some(_) => behind.get(3..).unwrap_or_default(),
            None => behind,
        };
    }
    out
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

    /// Removes everything below a data directory that the restore point does not have, or has as something else.
    /// Links are removed and never followed, but for a `pg_wal` that lies elsewhere, in the cluster's own
    /// place: that is emptied of WAL. The links to tablespaces stay: they tell where these are until new ones
    /// take their place.
    pub(super) fn clear_data(&self, root: &Path, is_own_place: bool) -> Result<(), RestoreError> {
        let wal = root.join(WAL_FOLDER);
        let marker = root.join(MARKER);
        let links = root.join(TABLESPACE_LINKS);
        let spares_wal = is_own_place && wal.is_dir();
        self.clear_below(root, &|path| {
            path == marker || spares_wal && path == wal || path.parent() == Some(&links)
        })?;
        match fs::symlink_metadata(&wal) {
            Ok(found) if found.is_symlink() => clear_wal(&wal),
            _ => Ok(()),
        }
    }

    /// The same for what a cluster has in a tablespace.
    pub(super) fn clear(&self, root: &Path) -> Result<(), RestoreError> {
        self.clear_below(root, &|_| false)
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

/// Of a folder that may hold other things too, only what a server keeps there.
fn clear_wal(folder: &Path) -> Result<(), RestoreError> {
    for entry in fs::read_dir(folder).map_err(file_error("list", folder))? {
        let path = entry.map_err(file_error("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_wal = name.parse::<dr_model::WalFileName>().is_ok();
        let removed = match name.as_ref() {
            "archive_status" | "summaries" | ".dr-ahead" => fs::remove_dir_all(&path),
            _ if is_wal => fs::remove_file(&path),
            _ => Ok(()),
        };
        removed.map_err(file_error("remove", &path))?;
    }
    Ok(())
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
            fs::write(folder.join("000000010000000000000001"), "x").unwrap();
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
        fs::create_dir(root.join("pg_tblspc")).unwrap();
        symlink(&elsewhere, root.join("pg_tblspc/16384")).unwrap();
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
        wanted.add(&root.join("pg_tblspc"), true);
        wanted.clear_data(&root, true).unwrap();
        let left = [
            "PG_VERSION",
            "base",
            MARKER,
            "global",
            "pg_tblspc",
            "pg_wal",
        ];
        assert_eq!(below(&root), left);
        assert_eq!(below(&root.join("base")), ["1"]);
        assert_eq!(below(&root.join("base/1")), ["10"]);
        assert_eq!(
            below(&root.join("pg_tblspc")),
            ["16384"],
            "where a tablespace is"
        );
        let all = ["000000010000000000000001", "x"];
        assert_eq!(below(&elsewhere), all, "what a link points to is not ours");
        assert_eq!(below(&wal), ["x"], "only the WAL of it");
        assert!(root.join("pg_wal").is_symlink());
        // A copy's link leads to the WAL of its original.
        fs::write(wal.join("000000010000000000000002"), "x").unwrap();
        wanted.clear_data(&root, false).unwrap();
        assert_eq!(below(&wal), ["000000010000000000000002", "x"]);
        assert!(!root.join("pg_wal").exists());
    }

    #[test]
    fn a_mount_within_is_seen_and_the_folder_itself_may_be_one() {
        let text = b"22 1 0:20 / / rw - ext4 /dev/a rw\n\
            23 22 0:21 / /srv/pg rw - ext4 /dev/b rw\n\
            24 22 0:22 / /srv/pg/my\\040logs rw - tmpfs none rw\n";
        let found = |folder: &str| mount_within(text, Path::new(folder));
        assert_eq!(found("/srv/pg"), Some(PathBuf::from("/srv/pg/my logs")));
        assert_eq!(found("/srv/pg/data"), None);
        assert_eq!(found("/srv/p"), None);
    }
}

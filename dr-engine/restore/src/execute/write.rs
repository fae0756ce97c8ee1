//! Files out of the repository, several at a time, each verified by the repository as it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use dr_model::{Progress, WorkloadName};
use dr_sources::files::EarlyWrites;
use dr_sources::instance::{RunAs, give};
use dr_sources::postgres::put_back::{ManifestFile, Place, place};
use dr_store::{EntryKind, PointReader, Repository, StoredPoint, TreeEntry};
use tokio_util::sync::CancellationToken;

use super::cluster::Durability;
use super::folder::sync_folder;
use crate::RestoreError;
use crate::error::{file_error, source_error, store_error};
use crate::telling::Telling;
use crate::threads;

/// Between the repository's chunks and the file.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Where a cluster's files go.
pub(super) struct Writer<'a> {
    pub(super) repository: &'a Repository,
    pub(super) reader: &'a PointReader,
    pub(super) point: &'a StoredPoint,
    pub(super) workload: &'a WorkloadName,
    pub(super) data_directory: &'a Path,
    /// The new location of each tablespace.
    pub(super) tablespaces: &'a BTreeMap<u32, PathBuf>,
    /// The folder for captured configuration.
    pub(super) captured_config: &'a Path,
    pub(super) owner: Option<&'a RunAs>,
    pub(super) durability: &'a Durability,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a CancellationToken,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// For the manifest.
    pub(super) manifest: Vec<ManifestFile>,
}

impl Writer<'_> {
    /// Writes folders, then files, then links. The control file gets its pending name.
    pub(super) fn write_all(&self, entries: &[TreeEntry]) -> Result<Written, RestoreError> {
        let mut files = Vec::new();
        let mut links = Vec::new();
        let mut folders = BTreeSet::new();
        for entry in entries {
            let Some((path, manifest_path)) = self.destination(&entry.meta.path)? else {
                continue;
            };
            match &entry.kind {
                EntryKind::Folder => {
                    self.folder(&path, entry.meta.mode)?;
                    folders.insert(path);
                }
                EntryKind::Link { target } => links.push((path, target.clone())),
                EntryKind::File => files.push((path, manifest_path, entry)),
            }
        }
        for (path, ..) in &files {
            if let Some(parent) = path.parent() {
                self.parents(parent)?;
                folders.insert(parent.to_owned());
            }
        }
        threads::each(&files, self.reader.is_far(), |(path, _, entry)| {
            self.file(path, entry)
        })?;
        let mut written = Written::default();
        files.iter().for_each(|file| note(&mut written, file));
        for (path, target) in &links {
            // A tablespace's link points to its new place already.
            if fs::symlink_metadata(path).is_err() {
                symlink(target, path).map_err(file_error("create", path))?;
                self.give(path)?;
            }
        }
        if self.flushes_each() {
            folders.iter().try_for_each(|folder| sync_folder(folder))?;
        }
        Ok(written)
    }

    /// Where an entry goes, and its path in the manifest if it belongs there.
    fn destination(&self, path: &str) -> Result<Option<(PathBuf, Option<String>)>, RestoreError> {
        let bad = |what: &str| RestoreError::BadPoint {
            point: self.point.point.id.clone(),
            what: format!("{what} `{path}`"),
        };
        Ok(match place(path) {
            Place::Data(relative) => {
                let manifest = path.strip_prefix("data/").map(str::to_owned);
                Some((
                    self.data_directory
                        .join(safe(&relative).ok_or_else(|| bad("bad path"))?),
                    manifest,
                ))
            }
            Place::Tablespace(oid, relative) => {
                let root = self
                    .tablespaces
                    .get(&oid)
                    .ok_or_else(|| bad("unknown tablespace of"))?;
                let relative = safe(&relative).ok_or_else(|| bad("bad path"))?;
                let manifest = format!("pg_tblspc/{oid}/{}", relative.display());
                Some((root.join(relative), Some(manifest)))
            }
            Place::Config(relative) => {
                let relative = safe(&relative).ok_or_else(|| bad("bad path"))?;
                Some((self.captured_config.join(relative), None))
            }
            Place::Skip => None,
        })
    }

    fn folder(&self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        self.parents(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
            .map_err(file_error("set the rights of", path))
    }

    fn parents(&self, path: &Path) -> Result<(), RestoreError> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.parents(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => self.give(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(file_error("create", path)(error)),
        }
    }

    /// Not throw-away copies, nor what is flushed at once at the end.
    fn flushes_each(&self) -> bool {
        matches!(self.durability, Durability::EachFile)
    }

    fn give(&self, path: &Path) -> Result<(), RestoreError> {
        give(path, self.owner).map_err(source_error("write the restored files"))
    }

    fn file(&self, path: &Path, entry: &TreeEntry) -> Result<(), RestoreError> {
        if self.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled(self.workload.clone()));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(entry.meta.mode & 0o7777)
            .open(path)
            .map_err(file_error("create", path))?;
        let mut early;
        let to: &mut dyn Write = match self.durability {
            Durability::Spared => &mut file,
            Durability::EachFile | Durability::Whole(_) => {
                early = EarlyWrites::to(&mut file);
                &mut early
            }
        };
        let mut buffered = BufWriter::with_capacity(WRITE_BUFFER_BYTES, to);
        let mut out = Telling {
            out: &mut buffered,
            progress: self.progress,
        };
        self.reader.read_file(entry, &mut out).map_err(store_error(
            format!("restore `{}` of {}", entry.meta.path, self.point.point.id),
            self.repository,
        ))?;
        buffered.flush().map_err(file_error("write", path))?;
        drop(buffered);
        // The umask may have taken rights away.
        file.set_permissions(fs::Permissions::from_mode(entry.meta.mode & 0o7777))
            .map_err(file_error("set the rights of", path))?;
        self.give(path)?;
        if self.flushes_each() {
            file.sync_all().map_err(file_error("flush", path))?;
        }
        Ok(())
    }
}

fn note(written: &mut Written, (_, manifest_path, entry): &(PathBuf, Option<String>, &TreeEntry)) {
    written.files += 1;
    written.bytes += entry.size;
    if let (Some(path), Some(crc32c)) = (manifest_path, entry.crc32c) {
        written.manifest.push(ManifestFile {
            path: path.clone(),
            size: entry.size,
            modified_seconds: entry.meta.modified_ns.div_euclid(1_000_000_000),
            crc32c,
        });
    }
}

/// A relative path that stays below where it is joined to.
fn safe(path: &Path) -> Option<&Path> {
    path.components()
        .all(|part| matches!(part, std::path::Component::Normal(_)))
        .then_some(path)
}

//! Files out of the repository, several at a time, each verified by the repository as it is read. Of a file
//! that is kept in parts, a new one is put together newest part first, each page written once; one that is
//! there is made into what part 0 is and then changed part by part.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dr_model::{Progress, WorkloadName};
use dr_sources::files::{EarlyWrites, PastCache};
use dr_sources::instance::{RunAs, give};
use dr_sources::postgres::parts::{self, Assembly, FileSum, InOrder, PartedFile, PartsIndex};
use dr_sources::postgres::put_back::{ManifestFile, Place, place};
use dr_store::{EntryKind, PointReader, Repository, StoreError, StoredPoint, TreeEntry};
use tokio_util::sync::CancellationToken;

use super::cluster::Durability;
use super::folder::sync_folder;
use super::over::Wanted;
use crate::RestoreError;
use crate::error::{file_error, source_error, store_error};
use crate::telling::Telling;
use crate::threads;

/// Between the repository's chunks and the file.
const WRITE_BUFFER_BYTES: usize = 256 << 10;
/// Files of this size and more of a cluster that is thrown away are written past the page cache: what is smaller,
/// catalogs above all, is read at once.
const PAST_CACHE_BYTES_MIN: u64 = 1 << 20;
/// What is read at once of a file that was put together, and cut on the way.
const READ_BUFFER_BYTES: usize = 1 << 20;

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
    /// Files may be there, of which stays what is right; whether in the place where the cluster lives.
    pub(super) over: Option<bool>,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a CancellationToken,
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Of these, what was not there yet.
    pub(super) differing: u64,
    /// For the manifest.
    pub(super) manifest: Vec<ManifestFile>,
}

/// Later parts of files, by the file's path in the point.
type Parts<'e> = BTreeMap<String, BTreeMap<u32, &'e TreeEntry>>;

/// The later parts of a file, in order.
struct Parted<'e> {
    manifest_path: Option<String>,
    bytes: u64,
    parts: Vec<&'e TreeEntry>,
}

impl Writer<'_> {
    /// Writes folders, then files, then links. The control file gets its pending name.
    pub(super) fn write_all(&self, entries: &[TreeEntry]) -> Result<Written, RestoreError> {
        if let Some(is_own_place) = self.over {
            self.clear(entries, is_own_place)?;
        }
        let mut files = Vec::new();
        let mut links = Vec::new();
        let mut folders = BTreeSet::new();
        let mut later = Parts::new();
        for entry in entries {
            if let Place::Part { number, of } = place(&entry.meta.path) {
                later.entry(of).or_default().insert(number, entry);
                continue;
            }
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
        let parted = self.parted(entries, later)?;
        let made = Mutex::new(BTreeMap::new());
        let differing = AtomicU64::new(0);
        let bytes = |(_, _, entry): &(PathBuf, Option<String>, &TreeEntry)| entry.size;
        threads::each(&files, bytes, self.reader.is_far(), |(path, _, entry)| {
            let parted = parted.get(&entry.meta.path);
            let (new, sum) = self.file(path, entry, parted)?;
            differing.fetch_add(new, Ordering::Relaxed);
            if let (Some(parted), Some(sum)) = (parted, sum) {
                let file = self.in_manifest(path, parted, sum)?;
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                made.extend(file.map(|file| (file.path.clone(), file)));
            }
            Ok::<(), RestoreError>(())
        })?;
        let mut written = Written {
            differing: differing.into_inner(),
            ..Written::default()
        };
        files.iter().for_each(|file| note(&mut written, file));
        let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        for file in &mut written.manifest {
            if let Some(made) = made.remove(&file.path) {
                written.bytes = (written.bytes + made.size).saturating_sub(file.size);
                *file = made;
            }
        }
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

    /// The files that are in parts, by the path of the first, each with its later parts.
    fn parted<'e>(
        &self,
        entries: &'e [TreeEntry],
        mut later: Parts<'e>,
    ) -> Result<BTreeMap<String, Parted<'e>>, RestoreError> {
        let bad = |what: String| RestoreError::BadPoint {
            point: self.point.point.id.clone(),
            what,
        };
        let firsts = entries
            .iter()
            .filter_map(|entry| match parts::parse(&entry.meta.path) {
                Some((0, of)) => Some(of),
                _ => None,
            });
        let mut firsts: BTreeSet<&str> = firsts.collect();
        let mut files = BTreeMap::new();
        for (of, PartedFile { parts, bytes, .. }) in self.parts_index(entries)?.files {
            let numbered = later.remove(&of).unwrap_or_default();
            if !firsts.remove(of.as_str()) || !numbered.keys().copied().eq(1..parts) {
                return Err(bad(format!("a part of `{of}` is missing")));
            }
            let Some((_, manifest_path)) = self.destination(&of)? else {
                return Err(bad(format!("`{of}` cannot be in parts")));
            };
            let file = Parted {
                manifest_path,
                bytes,
                parts: numbered.into_values().collect(),
            };
            files.insert(parts::path(0, &of), file);
        }
        match later.keys().map(String::as_str).chain(firsts).next() {
            Some(of) => Err(bad(format!("its list of parts does not name `{of}`"))),
            None => Ok(files),
        }
    }

    fn parts_index(&self, entries: &[TreeEntry]) -> Result<PartsIndex, RestoreError> {
        let id = &self.point.point.id;
        let is_index = |entry: &&TreeEntry| entry.meta.path == parts::INDEX_PATH;
        let Some(entry) = entries.iter().find(is_index) else {
            return Ok(PartsIndex::new(BTreeMap::new()));
        };
        let mut body = Vec::new();
        self.reader
            .read_file(entry, &mut body)
            .map_err(store_error(
                format!("read the list of parts of {id}"),
                self.repository,
            ))?;
        PartsIndex::parse(&body).map_err(|what| RestoreError::BadPoint {
            point: id.clone(),
            what: format!("its list of parts cannot be understood: {what}"),
        })
    }

    /// Describes a file that was put together.
    fn in_manifest(
        &self,
        path: &Path,
        of: &Parted<'_>,
        FileSum { bytes, crc32c }: FileSum,
    ) -> Result<Option<ManifestFile>, RestoreError> {
        if bytes != of.bytes {
            return Err(RestoreError::BadPoint {
                point: self.point.point.id.clone(),
                what: format!(
                    "`{}` came to {bytes} bytes instead of {}",
                    path.display(),
                    of.bytes
                ),
            });
        }
        let modified_ns = of.parts.last().map_or(0, |part| part.meta.modified_ns);
        Ok(of.manifest_path.clone().map(|path| ManifestFile {
            path,
            size: bytes,
            modified_seconds: modified_ns.div_euclid(1_000_000_000),
            crc32c,
        }))
    }

    /// Where an entry goes, and its path in the manifest if it belongs there.
    fn destination(&self, path: &str) -> Result<Option<(PathBuf, Option<String>)>, RestoreError> {
        let bad = |what: &str| RestoreError::BadPoint {
            point: self.point.point.id.clone(),
            what: format!("{what} `{path}`"),
        };
        let of = parts::parse(path).map_or(path, |(_, of)| of);
        Ok(match place(path) {
            Place::Data(relative) => {
                let manifest = of.strip_prefix("data/").map(str::to_owned);
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
            Place::Part { .. } | Place::Skip => None,
        })
    }

    /// Removes what the restore point does not have. Of a tablespace's folder, others may use the rest.
    fn clear(&self, entries: &[TreeEntry], is_own_place: bool) -> Result<(), RestoreError> {
        self.progress
            .phase("clearing what is not in the restore point", None);
        let mut wanted = Wanted::default();
        for entry in entries {
            if let Some((path, _)) = self.destination(&entry.meta.path)? {
                wanted.add(&path, entry.kind == EntryKind::Folder);
            }
        }
        wanted.clear_data(self.data_directory, is_own_place)?;
        for place in self.tablespaces.values() {
            let of_versions = wanted.folders.iter();
            for folder in of_versions.filter(|folder| folder.parent() == Some(place)) {
                if folder.is_dir() {
                    wanted.clear(folder)?;
                }
            }
        }
        Ok(())
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

    /// Writes a file: how many bytes of it were not there, and what came of one in parts.
    fn file(
        &self,
        path: &Path,
        entry: &TreeEntry,
        parted: Option<&Parted<'_>>,
    ) -> Result<(u64, Option<FileSum>), RestoreError> {
        if self.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled(self.workload.clone()));
        }
        if self.over.is_some()
            && let Ok(found) = fs::symlink_metadata(path)
        {
            // Another name of the same file may be somebody's snapshot.
            if found.is_file()
                && found.nlink() == 1
                && let Some((file, written)) = self.update(path, entry)?
            {
                let sum = parted.map(|of| self.change(&file, path, of)).transpose()?;
                self.complete(&file, path, entry)?;
                return Ok((written, sum));
            }
            fs::remove_file(path).map_err(file_error("remove", path))?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(entry.meta.mode & 0o7777)
            .open(path)
            .map_err(file_error("create", path))?;
        let sum = match parted {
            // Of a cluster that is thrown away few pages are ever read.
            None if matches!(self.durability, Durability::Spared)
                && entry.size >= PAST_CACHE_BYTES_MIN =>
            {
                let mut direct = PastCache::to(&file, entry.size);
                self.content(entry, &mut direct)?;
                direct.finish().map_err(file_error("write", path))?;
                None
            }
            None => {
                let mut buffered =
                    BufWriter::with_capacity(WRITE_BUFFER_BYTES, self.writing(&mut file));
                self.content(entry, &mut buffered)?;
                buffered.flush().map_err(file_error("write", path))?;
                None
            }
            Some(parted) => Some(self.put_together(&mut file, path, entry, parted)?),
        };
        self.complete(&file, path, entry)?;
        Ok((entry.size, sum))
    }

    /// How a new file is written.
    fn writing<'f>(&self, file: &'f mut File) -> Box<dyn WriteSeek + 'f> {
        match self.durability {
            Durability::Spared => Box::new(file),
            Durability::EachFile | Durability::Whole(_) => Box::new(EarlyWrites::to(file)),
        }
    }

    /// Reads an entry's content.
    fn content(&self, entry: &TreeEntry, out: &mut dyn Write) -> Result<(), RestoreError> {
        let mut out = Telling {
            out,
            progress: self.progress,
        };
        self.reader.read_file(entry, &mut out).map_err(store_error(
            format!("restore `{}` of {}", entry.meta.path, self.point.point.id),
            self.repository,
        ))
    }

    /// A new file out of its parts.
    fn put_together(
        &self,
        file: &mut File,
        path: &Path,
        first: &TreeEntry,
        of: &Parted<'_>,
    ) -> Result<FileSum, RestoreError> {
        let pages = file.try_clone().map_err(file_error("open", path))?;
        let mut assembly = Assembly::of(&pages);
        for entry in of.parts.iter().rev() {
            let mut part = assembly.part();
            self.content(entry, &mut part)?;
            part.finish().map_err(file_error("write", path))?;
        }
        let mut rest = assembly.first(self.writing(file));
        self.content(first, &mut rest)?;
        Ok(rest.finish())
    }

    /// Puts later parts into a file that is what part 0 says.
    fn change(&self, file: &File, path: &Path, of: &Parted<'_>) -> Result<FileSum, RestoreError> {
        for entry in &of.parts {
            let mut part = InOrder::new(file);
            self.content(entry, &mut part)?;
            part.finish().map_err(file_error("write", path))?;
        }
        sum_of(file).map_err(file_error("read back", path))
    }

    /// Makes the content of a file that is there into what it should be; how many bytes of it were not. `None` when
    /// it cannot be read or written, as one without rights, or on a bad place of the disk: it is to be written anew.
    fn update(&self, path: &Path, entry: &TreeEntry) -> Result<Option<(File, u64)>, RestoreError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) => {
                tracing::info!(%error, path = %path.display(), "written anew");
                return Ok(None);
            }
        };
        let mut advance = |bytes| self.progress.advance(bytes);
        let updated = self.reader.update_file(entry, &file, &mut advance);
        match updated {
            Ok(updated) => Ok(Some((file, updated.written))),
            Err(StoreError::Sink { source, .. }) if source.kind() != io::ErrorKind::StorageFull => {
                tracing::info!(%source, path = %path.display(), "written anew");
                Ok(None)
            }
            Err(error) => Err(store_error(
                format!("restore `{}` of {}", entry.meta.path, self.point.point.id),
                self.repository,
            )(error)),
        }
    }

    /// What a file needs beside its content.
    fn complete(
        &self,
        file: &fs::File,
        path: &Path,
        entry: &TreeEntry,
    ) -> Result<(), RestoreError> {
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

/// What is written to, and passed over where something newer is.
trait WriteSeek: Write + Seek {}
impl<T: Write + Seek> WriteSeek for T {}

/// What a file is, read from its beginning.
fn sum_of(mut file: &File) -> io::Result<FileSum> {
    file.rewind()?;
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let (mut bytes, mut crc32c) = (0, 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(FileSum { bytes, crc32c }),
            Ok(read) => {
                let data = buffer.get(..read).unwrap_or_default();
                crc32c = crc32c::crc32c_append(crc32c, data);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A relative path that stays below where it is joined to.
fn safe(path: &Path) -> Option<&Path> {
    path.components()
        .all(|part| matches!(part, std::path::Component::Normal(_)))
        .then_some(path)
}

//! Folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{ByteCount, Progress, RestorePointId, WorkloadName};
use dr_sources::files::FolderWriter;
use dr_sources::{Item, ItemKind};
use dr_store::{EntryKind, Repository, ShreddedFile, StoreError, StoredPoint, TreeEntry};
use serde::{Deserialize, Serialize};

use crate::RestoreError;
use crate::erasure::{self, AppliedErasure, AppliedErasures};
use crate::error::{blocking, file_error, source_error, store_error};
use crate::telling::Telling;
use crate::threads;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesOutcome {
    /// Entries written: files, folders, links.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: ByteCount,
}

/// Restores those entries of a point of a folder for which `only` holds (paths relative to the
/// workload's folder) into `into`, which must be empty or absent.
///
/// # Errors
/// When the point is unknown, the folder is not empty, an entry cannot be read or written, or one was
/// shredded: what is asked for by name is not brought back by halves.
pub async fn files(
    installation: &Installation,
    workload: &WorkloadName,
    point: &RestorePointId,
    into: &Path,
    only: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    progress: Arc<dyn Progress>,
) -> Result<FilesOutcome, RestoreError> {
    restore(
        installation,
        (workload, point),
        into,
        Wanted::Part(only),
        progress,
    )
    .await
}

/// What becomes of files that were erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Erased {
    /// They are left out.
    Out,
    /// They are restored like others.
    Left,
}

/// Restores all of a folder but what was shredded, and says what that was; and but what was erased, unless that is
/// to be left.
///
/// # Errors
/// As [`files`], but for what was shredded.
pub(crate) async fn whole_folder(
    installation: &Installation,
    workload: &WorkloadName,
    point: &RestorePointId,
    into: &Path,
    erased: Erased,
    progress: Arc<dyn Progress>,
) -> Result<(FilesOutcome, AppliedErasures), RestoreError> {
    let entries = erasure::ledger_of(installation, workload).await?;
    let globs = match erased {
        Erased::Out => erasure::erased_paths(&entries, workload)?,
        Erased::Left => Vec::new(),
    };
    let counts: Arc<Vec<AtomicU64>> = Arc::new(entries.iter().map(|_| AtomicU64::new(0)).collect());
    let counted = Arc::clone(&counts);
    let erased_by = move |entry: &TreeEntry| {
        let path = entry.meta.path.as_str();
        let found = globs.iter().find(|(_, glob)| glob.is_match(path));
        let is_file = entry.kind != EntryKind::Folder;
        if let Some(count) = found.and_then(|(place, _)| counted.get(*place))
            && is_file
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        found.is_some()
    };
    let what = Wanted::Everything(Box::new(erased_by));
    let done = restore(installation, (workload, point), into, what, progress).await?;
    let pending = match erased {
        Erased::Out => 0,
        Erased::Left => entries.len() as u64,
    };
    let applied = entries
        .iter()
        .zip(counts.iter())
        .map(|(entry, files)| AppliedErasure {
            id: entry.id.clone(),
            at: entry.at,
            tenant: entry.tenant.clone(),
            tables: Vec::new(),
            files: files.load(Ordering::Relaxed),
        });
    let applied = match erased {
        Erased::Out => applied.collect(),
        Erased::Left => Vec::new(),
    };
    Ok((
        done,
        AppliedErasures {
            entries: applied,
            pending,
            ..AppliedErasures::default()
        },
    ))
}

/// What is to be restored.
enum Wanted {
    /// All that there still is, but for what was erased.
    Everything(Box<dyn Fn(&TreeEntry) -> bool + Send>),
    /// The paths for which it holds, every one of them.
    Part(Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

async fn restore(
    installation: &Installation,
    (workload, point): (&WorkloadName, &RestorePointId),
    into: &Path,
    what: Wanted,
    progress: Arc<dyn Progress>,
) -> Result<FilesOutcome, RestoreError> {
    let repository = installation.open_repository_of(workload).await?;
    let (workload, point) = (workload.clone(), point.clone());
    let into = std::path::absolute(into).map_err(file_error("resolve", into))?;
    blocking("restore the folder", move || {
        let (stored, mut entries, gone) = read_point(&repository, &workload, &point)?;
        let only = match what {
            Wanted::Everything(is_erased) => {
                entries.retain(|entry| !is_erased(entry));
                tell_shredded(&gone, progress.as_ref());
                Arc::new(|_: &str| true)
            }
            Wanted::Part(only) => {
                if let Some(file) = gone.iter().find(|file| only(&file.path)) {
                    return Err(shredded(file, &repository));
                }
                only
            }
        };
        prepare(&into)?;
        write(
            &repository,
            &stored,
            &entries,
            &into,
            only.as_ref(),
            progress.as_ref(),
        )
    })
    .await
}

fn shredded(file: &ShreddedFile, repository: &Repository) -> RestoreError {
    store_error(format!("read `{}`", file.path), repository)(StoreError::Shredded {
        tenant: file.tenant.clone(),
        at: file.at,
    })
}

/// Says what is left out because it was shredded.
fn tell_shredded(gone: &[ShreddedFile], progress: &dyn Progress) {
    let mut tenants: BTreeMap<(&str, DateTime<Utc>), u64> = BTreeMap::new();
    for file in gone {
        *tenants.entry((file.tenant.as_str(), file.at)).or_default() += 1;
    }
    for ((tenant, at), files) in tenants {
        progress.note(&format!(
            "{files} files of tenant {tenant} are left out: shredded on {}",
            at.format("%Y-%m-%d %H:%M:%S UTC")
        ));
    }
}

/// A restore point of a workload, with its entries and the files that were shredded. Blocks.
pub(crate) fn read_point(
    repository: &Repository,
    workload: &WorkloadName,
    point: &RestorePointId,
) -> Result<(StoredPoint, Vec<TreeEntry>, Vec<ShreddedFile>), RestoreError> {
    let failed = || store_error(format!("read restore point {point}"), repository);
    let stored = repository
        .point(point)
        .map_err(failed())?
        .filter(|stored| stored.point.workload == *workload)
        .ok_or_else(|| RestoreError::UnknownPoint {
            workload: workload.clone(),
            point: point.clone(),
        })?;
    let entries = repository.entries(&stored).map_err(failed())?;
    let (entries, gone) = repository
        .without_shredded(&stored, entries)
        .map_err(failed())?;
    Ok((stored, entries, gone))
}

/// The folder keeps its owner and rights when it is there.
fn prepare(into: &Path) -> Result<(), RestoreError> {
    fs::create_dir_all(into).map_err(file_error("create", into))?;
    let mut entries = fs::read_dir(into).map_err(file_error("list", into))?;
    match entries.next() {
        None => Ok(()),
        Some(entry) => {
            let entry = entry.map_err(file_error("list", into))?;
            Err(RestoreError::NotEmpty {
                path: into.to_owned(),
                example: entry.file_name().to_string_lossy().into_owned(),
            })
        }
    }
}

/// An entry of the repository as an item of a source.
pub(crate) fn item_of(entry: &TreeEntry) -> Item {
    Item {
        path: entry.meta.path.clone(),
        kind: match &entry.kind {
            EntryKind::File => ItemKind::File,
            EntryKind::Folder => ItemKind::Folder,
            EntryKind::Link { target } => ItemKind::Link {
                target: target.clone(),
            },
        },
        mode: entry.meta.mode,
        uid: entry.meta.uid,
        gid: entry.meta.gid,
        modified_ns: entry.meta.modified_ns,
        changed_ns: entry.meta.changed_ns,
        inode: entry.meta.inode,
    }
}

fn write(
    repository: &Repository,
    stored: &StoredPoint,
    entries: &[TreeEntry],
    into: &Path,
    only: &dyn Fn(&str) -> bool,
    progress: &dyn Progress,
) -> Result<FilesOutcome, RestoreError> {
    let wanted = wanted(entries, only);
    let bytes = wanted.iter().map(|entry| entry.size).sum();
    progress.phase("restoring the files", Some(bytes));
    let failed = || source_error(format!("restore into {}", into.display()));
    let reader = repository.reader(stored).map_err(store_error(
        format!("read restore point {}", stored.point.id),
        repository,
    ))?;
    let writer = FolderWriter::open(into).map_err(failed())?;
    // Folders first, each after the one it lies in; then everything else may come in any order.
    let (folders, others): (Vec<&TreeEntry>, Vec<&TreeEntry>) = wanted
        .iter()
        .copied()
        .partition(|entry| entry.kind == EntryKind::Folder);
    for entry in folders {
        writer.entry(&item_of(entry)).map_err(failed())?;
    }
    let put_back = |entry: &&TreeEntry| {
        let item = item_of(entry);
        if entry.kind != EntryKind::File {
            return writer.entry(&item).map_err(failed());
        }
        let mut content = |out: &mut dyn std::io::Write| {
            let mut out = Telling { out, progress };
            reader.read_file(entry, &mut out).map_err(Into::into)
        };
        writer.file(&item, &mut content).map_err(failed())
    };
    threads::each(&others, |entry| entry.size, reader.is_far(), put_back)?;
    progress.phase("flushing the files", None);
    writer.finish().map_err(failed())?;
    Ok(FilesOutcome {
        entries: wanted.len() as u64,
        bytes: ByteCount(bytes),
    })
}

/// The entries for which `only` holds, with the folders they lie in, in order of path.
fn wanted<'a>(entries: &'a [TreeEntry], only: &dyn Fn(&str) -> bool) -> Vec<&'a TreeEntry> {
    let chosen: Vec<&TreeEntry> = entries
        .iter()
        .filter(|entry| only(&entry.meta.path))
        .collect();
    let mut parents = std::collections::BTreeSet::new();
    for entry in &chosen {
        for (place, _) in entry.meta.path.match_indices('/') {
            parents.insert(entry.meta.path.get(..place).unwrap_or_default());
        }
    }
    let is_parent =
        |e: &TreeEntry| e.kind == EntryKind::Folder && parents.contains(e.meta.path.as_str());
    let mut all: Vec<&TreeEntry> = entries
        .iter()
        .filter(|entry| only(&entry.meta.path) || is_parent(entry))
        .collect();
    // A folder sorts before what is in it.
    all.sort_by(|a, b| a.meta.path.cmp(&b.meta.path));
    all
}

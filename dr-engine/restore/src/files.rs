//! Folders.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use dr_installation::Installation;
use dr_model::{ByteCount, Progress, RestorePointId, WorkloadName};
use dr_sources::files::FolderWriter;
use dr_sources::{Item, ItemKind};
use dr_store::{EntryKind, Repository, StoredPoint, TreeEntry};
use serde::{Deserialize, Serialize};

use crate::RestoreError;
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
/// When the point is unknown, the folder is not empty, or an entry cannot be read or written.
pub async fn files(
    installation: &Installation,
    workload: &WorkloadName,
    point: &RestorePointId,
    into: &Path,
    only: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    progress: Arc<dyn Progress>,
) -> Result<FilesOutcome, RestoreError> {
    let repository = installation.open_repository_of(workload).await?;
    let (workload, point) = (workload.clone(), point.clone());
    let into = std::path::absolute(into).map_err(file_error("resolve", into))?;
    blocking("restore the folder", move || {
        let (stored, entries) = read_point(&repository, &workload, &point)?;
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

/// A restore point of a workload, with its entries. Blocks.
pub(crate) fn read_point(
    repository: &Repository,
    workload: &WorkloadName,
    point: &RestorePointId,
) -> Result<(StoredPoint, Vec<TreeEntry>), RestoreError> {
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
    Ok((stored, entries))
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
    let (folders, others): (Vec<_>, Vec<_>) = wanted
        .iter()
        .partition(|entry| entry.kind == EntryKind::Folder);
    for entry in folders {
        writer.entry(&item_of(entry)).map_err(failed())?;
    }
    threads::each(&others, |entry| {
        let item = item_of(entry);
        if entry.kind != EntryKind::File {
            return writer.entry(&item).map_err(failed());
        }
        let mut content = |out: &mut dyn std::io::Write| {
            let mut out = Telling { out, progress };
            reader.read_file(entry, &mut out).map_err(Into::into)
        };
        writer.file(&item, &mut content).map_err(failed())
    })?;
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

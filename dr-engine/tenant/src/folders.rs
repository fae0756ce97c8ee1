//! The tenant's part of folders: compared, put back, taken back.
//!
//! Both sides are walked by the same code: the live folder, and the restore point's entries put into a
//! work folder. Content, kind, mode and link target are compared; times and owners are put back but are
//! no difference. A file is written under another name, made durable and renamed; each entry is
//! compared with what the plan was made from just before. Symbolic links are never followed.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use chrono::{DateTime, Utc};
use dr_config::TenantGlob;
use dr_model::{RestorePointId, WorkloadName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::plan::FolderPlan;
use crate::report::FolderResult;
use crate::{Mode, Tenant, TenantError};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(crate) enum Content {
    File { size: u64, sha256: String },
    Folder,
    Link { target: String },
}

/// An entry with what is put back of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(flatten)]
    pub(crate) content: Content,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified_ns: i64,
}

impl PartialEq for Entry {
    /// Whether the difference is one for the tenant.
    fn eq(&self, other: &Self) -> bool {
        let mode_counts = !matches!(self.content, Content::Link { .. });
        self.content == other.content && (!mode_counts || self.mode == other.mode)
    }
}
impl Eq for Entry {}

/// One entry's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryChange {
    pub(crate) path: String,
    pub(crate) before: Option<Entry>,
    pub(crate) after: Option<Entry>,
}

/// The changes to one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FolderChanges {
    pub(crate) workload: WorkloadName,
    pub(crate) glob: String,
    pub(crate) point: RestorePointId,
    pub(crate) moment: DateTime<Utc>,
    pub(crate) age_seconds: i64,
    /// In path order: folders before what is in them.
    pub(crate) entries: Vec<EntryChange>,
}

impl FolderChanges {
    pub(crate) fn reversed(&self) -> Self {
        let mut reversed = self.clone();
        for entry in &mut reversed.entries {
            std::mem::swap(&mut entry.before, &mut entry.after);
        }
        reversed
    }

    pub(crate) fn plan(&self) -> FolderPlan {
        let paths = |which: &dyn Fn(&EntryChange) -> bool| {
            self.entries
                .iter()
                .filter(|entry| which(entry))
                .map(|entry| entry.path.clone())
                .collect()
        };
        FolderPlan {
            workload: self.workload.clone(),
            path: self.glob.clone(),
            point: self.point.clone(),
            moment: self.moment,
            age_seconds: self.age_seconds,
            create: paths(&|entry| entry.before.is_none()),
            replace: paths(&|entry| entry.before.is_some() && entry.after.is_some()),
            delete: paths(&|entry| entry.after.is_none()),
        }
    }
}

/// The configured glob with the tenant's name and id in it.
pub(crate) fn glob_of(pattern: &str, tenant: &Tenant) -> Result<String, TenantError> {
    let part = |value: &str| {
        let bad = value.is_empty() || value == "." || value == ".." || value.contains(['/', '\0']);
        if bad {
            let why = format!("`{value}` cannot be part of a path");
            return Err(TenantError::Refused(vec![format!(
                "tenancy.path `{pattern}`: {why}"
            )]));
        }
        Ok(globset::escape(value))
    };
    let mut glob = pattern.to_owned();
    if glob.contains("{name}") {
        glob = glob.replace("{name}", &part(&tenant.name)?);
    }
    if pattern.contains("{id}") {
        glob = glob.replace("{id}", &part(&tenant.id)?);
    }
    if glob == pattern {
        let why = format!("tenancy.path `{pattern}` has neither {{name}} nor {{id}} in it");
        return Err(TenantError::Refused(vec![why]));
    }
    Ok(glob)
}

/// Tells which paths are the tenant's; the folder that `x/**` lies in is too.
pub(crate) fn matcher(
    glob: &str,
) -> Result<impl Fn(&str) -> bool + Send + Sync + use<>, TenantError> {
    let paths = TenantGlob::new(glob)
        .map_err(|why| TenantError::Refused(vec![format!("tenancy.path `{glob}`: {why}")]))?;
    Ok(move |path: &str| paths.is_match(path))
}

fn hash(path: &Path) -> Result<String, TenantError> {
    let mut file = File::open(path).map_err(TenantError::file("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(TenantError::file("read", path))?;
        match buffer.get(..read) {
            Some(piece) if read > 0 => hasher.update(piece),
            _ => return Ok(hex::encode(hasher.finalize())),
        }
    }
}

fn entry(path: &Path, metadata: &Metadata) -> Result<Option<Entry>, TenantError> {
    let kind = metadata.file_type();
    let content = if kind.is_dir() {
        Content::Folder
    } else if kind.is_file() {
        Content::File {
            size: metadata.len(),
            sha256: hash(path)?,
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(TenantError::file("read", path))?;
        Content::Link {
            target: target.to_string_lossy().into_owned(),
        }
    } else {
        return Ok(None);
    };
    Ok(Some(Entry {
        content,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
    }))
}

/// What is at `path` now.
fn look(path: &Path) -> Result<Option<Entry>, TenantError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => entry(path, &metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TenantError::file("examine", path)(error)),
    }
}

/// The tenant's entries below `root`, by relative path. A missing root holds none.
pub(crate) fn walk(
    root: &Path,
    is_tenants: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Entry>, TenantError> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let folder = root.join(&relative);
        let list = match fs::read_dir(&folder) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(TenantError::file("list", &folder)(error)),
        };
        for item in list {
            let item = item.map_err(TenantError::file("list", &folder))?;
            let path = relative.join(item.file_name());
            let kind = item
                .file_type()
                .map_err(TenantError::file("examine", &item.path()))?;
            let text = path.to_string_lossy().into_owned();
            if is_tenants(&text)
                && let Some(entry) = look(&item.path())?
            {
                found.insert(text, entry);
            }
            if kind.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(found)
}

/// The changes that turn `live` into `then`.
pub(crate) fn difference(
    live: &BTreeMap<String, Entry>,
    then: &BTreeMap<String, Entry>,
    mode: Mode,
) -> Vec<EntryChange> {
    let paths: std::collections::BTreeSet<&String> = live.keys().chain(then.keys()).collect();
    paths
        .into_iter()
        .filter(|path| live.get(*path) != then.get(*path))
        .filter(|path| mode != Mode::Missing || !live.contains_key(*path))
        .map(|path| EntryChange {
            path: path.clone(),
            before: live.get(path).cloned(),
            after: then.get(path).cloned(),
        })
        .collect()
}

/// Refuses paths that lead elsewhere: `..`, or through a symbolic link.
fn inside(root: &Path, relative: &str) -> Result<PathBuf, TenantError> {
    let relative_path = Path::new(relative);
    let mut path = root.to_owned();
    for component in relative_path.components() {
        let leads_out =
            fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_symlink()) && path != root;
        if leads_out || !matches!(component, Component::Normal(_)) {
            let why = format!("{} leads out of its folder", relative_path.display());
            return Err(TenantError::Refused(vec![why]));
        }
        path.push(component);
    }
    Ok(path)
}

/// Leaves out entries that are already as they are to be: a restore that was interrupted after its commit
/// may not have put its files back, and taking it back then has nothing to do for them.
pub(crate) fn leave_out_done(root: &Path, changes: &mut FolderChanges) -> Result<(), TenantError> {
    let mut left = Vec::new();
    for change in std::mem::take(&mut changes.entries) {
        if look(&inside(root, &change.path)?)? != change.after {
            left.push(change);
        }
    }
    changes.entries = left;
    Ok(())
}

/// Entries that are not what the plan was made from.
pub(crate) fn changed_since(
    root: &Path,
    changes: &FolderChanges,
) -> Result<Vec<String>, TenantError> {
    let mut changed = Vec::new();
    for change in &changes.entries {
        if look(&inside(root, &change.path)?)? != change.before {
            changed.push(format!("{} {}", changes.workload, change.path));
        }
    }
    Ok(changed)
}

/// Copies the former content of files that will be replaced or removed below `folder`.
pub(crate) fn save(root: &Path, changes: &FolderChanges, folder: &Path) -> Result<(), TenantError> {
    for change in &changes.entries {
        let Some(Entry {
            content: Content::File { sha256, .. },
            ..
        }) = &change.before
        else {
            continue;
        };
        let to = saved(folder, &changes.workload, &change.path);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(TenantError::file("create", parent))?;
        }
        let from = inside(root, &change.path)?;
        fs::copy(&from, &to).map_err(TenantError::file("copy", &from))?;
        if hash(&to)? != *sha256 {
            return Err(TenantError::Changed(vec![change.path.clone()]));
        }
    }
    Ok(())
}

/// Where the former content of a file lies in a stored state.
pub(crate) fn saved(folder: &Path, workload: &WorkloadName, path: &str) -> PathBuf {
    folder.join("files").join(workload.as_str()).join(path)
}

/// Carries the changes out; `content` tells where a file's content to be written lies.
pub(crate) fn apply(
    root: &Path,
    changes: &FolderChanges,
    content: &dyn Fn(&str) -> PathBuf,
) -> Result<FolderResult, TenantError> {
    let mut result = FolderResult {
        workload: changes.workload.clone(),
        written: 0,
        removed: 0,
    };
    // What is in a folder goes before the folder.
    for change in changes.entries.iter().rev() {
        let path = inside(root, &change.path)?;
        if look(&path)? != change.before {
            return Err(TenantError::Changed(vec![format!(
                "{} {}",
                changes.workload, change.path
            )]));
        }
        let Some(before) = &change.before else {
            continue;
        };
        let same_kind = change.after.as_ref().is_some_and(|after| {
            std::mem::discriminant(&after.content) == std::mem::discriminant(&before.content)
        });
        if same_kind {
            continue;
        }
        let removed = if before.content == Content::Folder {
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(TenantError::file("remove", &path))?;
        sync_parent(&path)?;
        result.removed += u64::from(change.after.is_none());
    }
    for change in &changes.entries {
        let Some(after) = &change.after else { continue };
        put(&inside(root, &change.path)?, after, &content(&change.path))?;
        result.written += 1;
    }
    // Writing into a folder moved its time.
    for change in changes.entries.iter().rev() {
        if let Some(after) = change
            .after
            .as_ref()
            .filter(|after| after.content == Content::Folder)
        {
            set_time(&inside(root, &change.path)?, after)?;
        }
    }
    Ok(result)
}

fn sync_parent(path: &Path) -> Result<(), TenantError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(TenantError::file("sync", parent))
}

fn set_time(path: &Path, entry: &Entry) -> Result<(), TenantError> {
    let since = std::time::Duration::from_nanos(u64::try_from(entry.modified_ns).unwrap_or(0));
    let file = File::open(path).map_err(TenantError::file("open", path))?;
    file.set_modified(std::time::UNIX_EPOCH + since)
        .map_err(TenantError::file("set the time of", path))
}

fn put(path: &Path, entry: &Entry, content: &Path) -> Result<(), TenantError> {
    let own = |path: &Path| -> Result<(), TenantError> {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(path, Some(entry.uid), Some(entry.gid))
                .map_err(TenantError::file("change the owner of", path))?;
        }
        Ok(())
    };
    let mode = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(entry.mode))
            .map_err(TenantError::file("change the mode of", path))
    };
    let temporary = path.with_file_name(format!(".dr-{}", dr_model::random::hex(6)));
    match &entry.content {
        Content::Folder => {
            match fs::create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(TenantError::file("create", path)(error));
                }
                _ => {}
            }
            own(path)?;
            mode(path)?;
            return sync_parent(path);
        }
        Content::Link { target } => {
            std::os::unix::fs::symlink(target, &temporary)
                .map_err(TenantError::file("create", &temporary))?;
            own(&temporary)?;
        }
        Content::File { sha256, .. } => {
            fs::copy(content, &temporary).map_err(TenantError::file("write", &temporary))?;
            own(&temporary)?;
            mode(&temporary)?;
            set_time(&temporary, entry)?;
            let file = File::open(&temporary).map_err(TenantError::file("open", &temporary))?;
            file.sync_all()
                .map_err(TenantError::file("sync", &temporary))?;
            if hash(&temporary)? != *sha256 {
                fs::remove_file(&temporary).map_err(TenantError::file("remove", &temporary))?;
                return Err(TenantError::format(
                    path.display().to_string(),
                    "its content is not as stored",
                ));
            }
        }
    }
    fs::rename(&temporary, path).map_err(TenantError::file("put back", path))?;
    sync_parent(path)
}

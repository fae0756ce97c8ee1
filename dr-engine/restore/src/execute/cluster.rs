//! A PostgreSQL cluster: its files, what makes a server start from them, and last its control file.
//!
//! Order: folder; files (control file under a pending name); tablespace links; label and map;
//! configuration; recovery settings; `backup_manifest`; everything flushed ([`Durability`]); the control
//! file by rename.
//! PostgreSQL refuses a data directory without a control file, so a crash before the last step leaves
//! nothing that could be started by mistake.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dr_backup::PostgresDetails;
use dr_installation::Installation;
use dr_model::{ByteCount, Progress};
use dr_sources::files::Flush;
use dr_sources::instance::{RunAs, give};
use dr_sources::postgres::put_back::{
    self, ManifestFile, RecoveryAction, RecoverySettings, RecoveryTarget, WalRange,
};
use dr_store::{PointReader, Repository, StoredPoint, TreeEntry};
use tokio_util::sync::CancellationToken;

use super::command::{archive_command, binary, restore_command};
use super::folder::{prepare_folder, server_user, sync_folder};
use super::over::{self, Over};
use super::write::{Writer, Written};
use crate::erasure::AppliedErasures;
use crate::error::{blocking, file_error, source_error, store_error};
use crate::recovery::allow_end_of_archive;
use crate::{PlannedSource, PostgresPlan, RecoveryEnd, RestoreError, RestoreOutcome, RestorePlan};

/// Captured configuration waits here until its paths are rewritten.
const CONFIG_PENDING: &str = "dr-config.pending";

/// The folders that a server expects and that are captured empty or not at all (`initdb`, subdirs).
const FOLDERS_EXPECTED: [&str; 19] = [
    "pg_wal",
    "pg_wal/archive_status",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_twophase",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_replslot",
    "pg_tblspc",
    "pg_stat",
    "pg_stat_tmp",
    "pg_logical",
    "pg_logical/snapshots",
    "pg_logical/mappings",
];

/// What a restored cluster is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It takes the source's place and archives.
    Primary,
    /// It stands beside the source and does not archive.
    Copy,
    /// It is thrown away: nothing needs to be flushed.
    Scratch,
}

/// When a restored cluster may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// As soon as its control file is in place.
    AtOnce,
    /// When what was erased has been taken out of it.
    AfterErasures,
}

/// How what is restored is made durable, before the control file makes it startable.
#[derive(Debug)]
pub(super) enum Durability {
    /// Not at all: it is thrown away.
    Spared,
    /// Every file and folder by itself, as it is written.
    EachFile,
    /// The file systems as a whole, at the end.
    Whole(Flush),
}

impl Durability {
    /// To be asked before anything is written.
    fn of(
        purpose: Purpose,
        folder: &Path,
        tablespaces: &BTreeMap<u32, PathBuf>,
    ) -> Result<Self, RestoreError> {
        if purpose == Purpose::Scratch {
            return Ok(Self::Spared);
        }
        let flush = Flush::default();
        for place in std::iter::once(folder).chain(tablespaces.values().map(PathBuf::as_path)) {
            let whole = flush.include_path(place);
            if !whole.map_err(source_error("prepare the folder"))? {
                return Ok(Self::EachFile);
            }
        }
        Ok(Self::Whole(flush))
    }
}

/// Restores a cluster into `plan.into`.
///
/// # Errors
/// A failure leaves a folder that cannot be started.
pub(crate) async fn restore_cluster(
    installation: &Installation,
    plan: &RestorePlan,
    (purpose, opening): (Purpose, Opening),
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<RestoreOutcome, RestoreError> {
    let repository = installation.open_repository_of(&plan.workload).await?;
    let into = plan.into.as_deref().unwrap_or(Path::new(""));
    let job = Job {
        config: installation.config.path.clone(),
        is_own_place: over::is_own_place(installation, &plan.workload, into),
        plan: plan.clone(),
        purpose,
        opening,
        repository,
        progress,
        cancel,
    };
    blocking("restore the cluster", move || job.run()).await
}

struct Job {
    config: PathBuf,
    /// It goes to where the workload's cluster lives.
    is_own_place: bool,
    plan: RestorePlan,
    purpose: Purpose,
    opening: Opening,
    repository: Repository,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
}

impl Job {
    fn run(&self) -> Result<RestoreOutcome, RestoreError> {
        let PlannedSource::Postgres(replay) = &self.plan.source else {
            return Err(RestoreError::WrongKind {
                workload: self.plan.workload.clone(),
                needed: "postgres",
            });
        };
        let into = self
            .plan
            .into
            .as_ref()
            .ok_or_else(|| RestoreError::NoFolder(self.plan.workload.clone()))?;
        let (stored, details, entries) = self.read_point()?;
        let reader = self.repository.reader(&stored).map_err(store_error(
            format!("read restore point {}", stored.point.id),
            &self.repository,
        ))?;
        let owner = server_user(into)?;
        self.know_tablespaces(into, &details)?;
        let mut over = match self.plan.point.postgres() {
            Some(position) if self.plan.delta && over::is_there(into) => {
                Some(Over::checked(into, position.system_id)?)
            }
            _ => None,
        };
        let (folder, there) = match &over {
            Some(over) => (
                over.folder().to_owned(),
                self.tablespaces_there(over.folder(), &details),
            ),
            None => (prepare_folder(into, owner.as_ref())?, BTreeMap::new()),
        };
        let mut notes = self.plan.notes.clone();
        let tablespaces =
            self.place_tablespaces(&folder, &details, &there, owner.as_ref(), &mut notes)?;
        let durability = Durability::of(self.purpose, &folder, &tablespaces)?;
        if let Some(over) = &mut over {
            over.begin(&self.repository, &self.plan.workload, self.plan.discard_wal)?;
        }
        let place = Destination {
            folder: &folder,
            tablespaces: &tablespaces,
            owner: owner.as_ref(),
            durability: &durability,
            over: over.is_some().then_some(self.is_own_place),
        };
        let mut written = self.write_files(&stored, &reader, &entries, &place)?;
        link_tablespaces(&folder, &tablespaces, owner.as_ref())?;
        let mut generated = self.write_label(&reader, &entries, &place)?;
        generated.extend(self.write_config(&folder, &details, &mut notes)?);
        // A file that was rewritten is no longer the one that was captured.
        written
            .manifest
            .retain(|file| generated.iter().all(|newer| newer.path != file.path));
        written.manifest.extend(generated);
        self.write_recovery(&folder, replay, &details)?;
        if self.opening == Opening::AfterErasures {
            put_back::close_to_clients(&folder)
                .map_err(source_error("close the restored cluster"))?;
        }
        self.write_manifest(&folder, &written)?;
        self.settle(&place, &durability)?;
        if let Some(over) = &over {
            over.may_end()?;
        }
        put_back::finish(&folder).map_err(source_error("put the control file in place"))?;
        if let Some(over) = over {
            over.finish()?;
            notes.push(format!(
                "of what was there, {} were right; {} were written",
                ByteCount(written.bytes.saturating_sub(written.differing)),
                ByteCount(written.differing)
            ));
        }
        notes.extend(libraries_missing(&details));
        Ok(RestoreOutcome {
            folder: Some(folder),
            files: written.files,
            bytes: ByteCount(written.bytes),
            notes,
            erasures: AppliedErasures::default(),
            reached: None,
        })
    }

    fn read_point(&self) -> Result<(StoredPoint, PostgresDetails, Vec<TreeEntry>), RestoreError> {
        let id = &self.plan.point.id;
        let failed = || store_error(format!("read restore point {id}"), &self.repository);
        let stored = self
            .repository
            .point(id)
            .map_err(failed())?
            .ok_or_else(|| RestoreError::UnknownPoint {
                workload: self.plan.workload.clone(),
                point: id.clone(),
            })?;
        let bad = |what: String| RestoreError::BadPoint {
            point: id.clone(),
            what,
        };
        let details: PostgresDetails = serde_json::from_value(stored.details.clone())
            .map_err(|error| bad(format!("its details cannot be understood: {error}")))?;
        if !details.is_known() {
            let version = details.version;
            return Err(bad(format!(
                "it was made by a newer version of dr (details of version {version}); update"
            )));
        }
        let entries = self.repository.entries(&stored).map_err(failed())?;
        Ok((stored, details, entries))
    }

    /// Refuses places of tablespaces that cannot be: of some that the restore point does not have, and two
    /// in one folder, or one within another or within the data directory, where their files would mix.
    fn know_tablespaces(&self, into: &Path, details: &PostgresDetails) -> Result<(), RestoreError> {
        let there: Vec<&PathBuf> = (details.capture.tablespaces.iter())
            .map(|tablespace| &tablespace.location)
            .collect();
        let asked = &self.plan.tablespaces;
        if let Some(unknown) = asked.keys().find(|was| !there.contains(was)) {
            return Err(RestoreError::UnknownTablespace {
                location: unknown.clone(),
                there: there.iter().map(|was| was.display().to_string()).collect(),
            });
        }
        let into = std::path::absolute(into).map_err(file_error("resolve", into))?;
        let beside = beside(&into);
        let mut taken = vec![into, beside];
        for place in asked.values() {
            let mixes = |other: &&PathBuf| place.starts_with(other) || other.starts_with(place);
            if let Some(other) = taken.iter().find(mixes) {
                return Err(RestoreError::TablespacesMix {
                    place: place.clone(),
                    other: other.clone(),
                });
            }
            taken.push(place.clone());
        }
        Ok(())
    }

    /// The tablespaces of the cluster that is restored over, by their links: only of one in the place where it
    /// lives and was backed up, or beside the folder. A copy of a data directory has links to the tablespaces
    /// of its original, which may run.
    fn tablespaces_there(
        &self,
        folder: &Path,
        details: &PostgresDetails,
    ) -> BTreeMap<u32, PathBuf> {
        let beside = beside(folder);
        let is_own = self.is_own_place && over::same_place(folder, &details.capture.data_directory);
        let mut there = BTreeMap::new();
        for tablespace in &details.capture.tablespaces {
            let link = folder.join("pg_tblspc").join(tablespace.oid.to_string());
            let Ok(place) = fs::read_link(&link) else {
                continue;
            };
            let is_ours = place.starts_with(&beside) || is_own && place == tablespace.location;
            if is_ours && place.is_dir() {
                there.insert(tablespace.oid, place);
            }
        }
        there
    }

    /// A tablespace goes to where it is asked to, or stays where the cluster that is restored over has it.
    /// Else it goes back to where it was only when the cluster
    /// takes its source's place and nothing is there; else beside the folder, because the source's own may
    /// be in use.
    fn place_tablespaces(
        &self,
        folder: &Path,
        details: &PostgresDetails,
        there: &BTreeMap<u32, PathBuf>,
        owner: Option<&RunAs>,
        notes: &mut Vec<String>,
    ) -> Result<BTreeMap<u32, PathBuf>, RestoreError> {
        let mut places = BTreeMap::new();
        for tablespace in &details.capture.tablespaces {
            let was = &tablespace.location;
            let free = fs::read_dir(was).map_or_else(
                |error| error.kind() == std::io::ErrorKind::NotFound,
                |mut entries| entries.next().is_none(),
            );
            let place = if let Some(asked) = self.plan.tablespaces.get(was) {
                asked.clone()
            } else if let Some(place) = there.get(&tablespace.oid) {
                places.insert(tablespace.oid, place.clone());
                continue;
            } else if self.purpose == Purpose::Primary && free {
                was.clone()
            } else {
                let beside = beside(folder).join(tablespace.oid.to_string());
                notes.push(format!(
                    "tablespace {} of {} is at {}",
                    tablespace.oid,
                    was.display(),
                    beside.display()
                ));
                beside
            };
            places.insert(tablespace.oid, prepare_folder(&place, owner)?);
        }
        Ok(places)
    }

    fn write_files(
        &self,
        stored: &StoredPoint,
        reader: &PointReader,
        entries: &[TreeEntry],
        place: &Destination<'_>,
    ) -> Result<Written, RestoreError> {
        let Destination { folder, owner, .. } = *place;
        let bytes = entries.iter().map(|entry| entry.size).sum();
        self.progress.phase("restoring the files", Some(bytes));
        let config = folder.join(CONFIG_PENDING);
        let writer = Writer {
            repository: &self.repository,
            reader,
            point: stored,
            workload: &self.plan.workload,
            data_directory: folder,
            tablespaces: place.tablespaces,
            captured_config: &config,
            owner,
            durability: place.durability,
            over: place.over,
            progress: self.progress.as_ref(),
            cancel: &self.cancel,
        };
        let written = writer.write_all(entries)?;
        for expected in FOLDERS_EXPECTED {
            let path = folder.join(expected);
            if !path.is_dir() {
                fs::create_dir(&path).map_err(file_error("create", &path))?;
                give(&path, owner).map_err(source_error("write the restored files"))?;
            }
        }
        Ok(written)
    }

    fn read_label(
        &self,
        reader: &PointReader,
        entries: &[TreeEntry],
        path: &str,
    ) -> Result<Option<Vec<u8>>, RestoreError> {
        let Some(entry) = entries.iter().find(|entry| entry.meta.path == path) else {
            return Ok(None);
        };
        let mut body = Vec::new();
        reader.read_file(entry, &mut body).map_err(store_error(
            format!("restore `{path}` of {}", self.plan.point.id),
            &self.repository,
        ))?;
        Ok(Some(body))
    }

    fn write_label(
        &self,
        reader: &PointReader,
        entries: &[TreeEntry],
        place: &Destination<'_>,
    ) -> Result<Vec<ManifestFile>, RestoreError> {
        // Without its label the copy would start silently corrupt: from the wrong checkpoint.
        let label = self
            .read_label(reader, entries, "label/backup_label")?
            .ok_or_else(|| RestoreError::BadPoint {
                point: self.plan.point.id.clone(),
                what: "its backup_label is missing".to_owned(),
            })?;
        let map = self.read_label(reader, entries, "label/tablespace_map")?;
        put_back::write_label(place.folder, &label, map.as_deref(), place.tablespaces)
            .map_err(source_error("write the label"))
    }

    fn write_config(
        &self,
        folder: &Path,
        details: &PostgresDetails,
        notes: &mut Vec<String>,
    ) -> Result<Vec<ManifestFile>, RestoreError> {
        let captured = folder.join(CONFIG_PENDING);
        if !captured.is_dir() {
            return Ok(Vec::new());
        }
        let placed = put_back::place_config(
            folder,
            &captured,
            &details.capture,
            self.plan.config_into.as_deref(),
        )
        .map_err(source_error("put the configuration in place"))?;
        fs::remove_dir_all(&captured).map_err(file_error("remove", &captured))?;
        notes.extend(placed.notes);
        Ok(placed.files)
    }

    fn write_recovery(
        &self,
        folder: &Path,
        replay: &PostgresPlan,
        details: &PostgresDetails,
    ) -> Result<(), RestoreError> {
        let binary = binary()?;
        let target = match &replay.end {
            RecoveryEnd::Consistent => RecoveryTarget::Immediate,
            RecoveryEnd::EndOfArchive => RecoveryTarget::Latest,
            RecoveryEnd::Time { time } => RecoveryTarget::Time(time.fixed_offset()),
            RecoveryEnd::Lsn { lsn } => RecoveryTarget::Lsn(*lsn),
        };
        if self.purpose == Purpose::Scratch {
            // Whatever was set by ALTER SYSTEM (memory, libraries) was meant for another machine.
            let settings = folder.join("postgresql.auto.conf");
            fs::write(&settings, "").map_err(file_error("write", &settings))?;
        }
        // Recovery stops where these are smaller than they were (27.4.5), and the source may have had
        // them on its command line.
        let mut extra = details.capture.critical_settings.as_settings();
        if self.purpose == Purpose::Primary && details.archives() {
            // Our own command names this host's binary and configuration; someone else's stays.
            let command = match details.archive_command.contains("wal push") {
                true => archive_command(&binary, &self.config),
                false => details.archive_command.clone(),
            };
            extra.push(("archive_mode".to_owned(), details.archive_mode.clone()));
            extra.push(("archive_command".to_owned(), command));
        }
        if let Some(port) = self.plan.port {
            extra.push(("port".to_owned(), port.to_string()));
        }
        let settings = RecoverySettings {
            restore_command: restore_command(
                &binary,
                &self.config,
                &self.plan.workload,
                self.purpose == Purpose::Scratch,
            ),
            target,
            inclusive: !self.plan.exclusive,
            timeline: Some(replay.timeline),
            action: RecoveryAction::Promote,
            as_primary: self.purpose == Purpose::Primary,
            extra,
        };
        put_back::write_recovery(folder, &settings)
            .map_err(source_error("write the recovery settings"))?;
        let has_target = matches!(
            replay.end,
            RecoveryEnd::Time { .. } | RecoveryEnd::Lsn { .. }
        );
        if has_target && replay.end_of_archive_is_enough {
            allow_end_of_archive(folder)?;
        }
        Ok(())
    }

    fn write_manifest(&self, folder: &Path, written: &Written) -> Result<(), RestoreError> {
        let Some(position) = self.plan.point.postgres() else {
            return Ok(());
        };
        let range = WalRange {
            timeline: position.timeline,
            start: position.start_lsn,
            end: position.stop_lsn,
        };
        put_back::write_backup_manifest(
            folder,
            position.major_version(),
            position.system_id,
            &written.manifest,
            &[range],
        )
        .map_err(source_error("write the backup manifest"))
    }

    /// Whatever was generated beside the restored files gets the same owner, and everything is flushed.
    fn settle(&self, place: &Destination<'_>, durability: &Durability) -> Result<(), RestoreError> {
        let folder = place.folder;
        for entry in fs::read_dir(folder).map_err(file_error("list", folder))? {
            let path = entry.map_err(file_error("list", folder))?.path();
            give_all(&path, place.owner)?;
        }
        match durability {
            Durability::Spared => return Ok(()),
            Durability::EachFile => {
                for expected in FOLDERS_EXPECTED {
                    sync_folder(&folder.join(expected))?;
                }
                sync_folder(folder)?;
            }
            Durability::Whole(flush) => {
                self.progress.phase("flushing the files", None);
                flush
                    .flush()
                    .map_err(source_error("flush the restored files"))?;
            }
        }
        sync_folder(folder.parent().unwrap_or(Path::new("/")))
    }
}

/// Where a cluster goes.
struct Destination<'a> {
    folder: &'a Path,
    tablespaces: &'a BTreeMap<u32, PathBuf>,
    owner: Option<&'a RunAs>,
    durability: &'a Durability,
    /// Something is there, of which stays what is right; whether in the place where the cluster lives.
    over: Option<bool>,
}

/// Where tablespaces go that cannot be where they were.
fn beside(folder: &Path) -> PathBuf {
    let mut beside = folder.as_os_str().to_owned();
    beside.push(".tablespaces");
    PathBuf::from(beside)
}

/// Gives a generated file, or a generated folder with what is in it, to the owner. Restored folders have
/// theirs already; going through them again costs little beside having written them.
fn give_all(path: &Path, owner: Option<&RunAs>) -> Result<(), RestoreError> {
    if owner.is_none() {
        return Ok(());
    }
    give(path, owner).map_err(source_error("hand over the restored files"))?;
    let metadata = fs::symlink_metadata(path).map_err(file_error("examine", path))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(file_error("list", path))? {
            give_all(&entry.map_err(file_error("list", path))?.path(), owner)?;
        }
    }
    Ok(())
}

/// `pg_tblspc/<oid>` points to the new place. The server makes these links again from the map; other
/// programs that look at the folder, `pg_verifybackup` among them, need them now.
fn link_tablespaces(
    folder: &Path,
    tablespaces: &BTreeMap<u32, PathBuf>,
    owner: Option<&RunAs>,
) -> Result<(), RestoreError> {
    // Of tablespaces that the restore point does not have.
    let links = folder.join("pg_tblspc");
    for entry in fs::read_dir(&links).map_err(file_error("list", &links))? {
        let path = entry.map_err(file_error("list", &links))?.path();
        if path.is_symlink() {
            fs::remove_file(&path).map_err(file_error("remove", &path))?;
        }
    }
    for (oid, place) in tablespaces {
        let link = folder.join("pg_tblspc").join(oid.to_string());
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link).map_err(file_error("remove", &link))?;
        }
        symlink(place, &link).map_err(file_error("create", &link))?;
        give(&link, owner).map_err(source_error("write the restored files"))?;
    }
    Ok(())
}

/// Libraries without which the restored server does not start.
fn libraries_missing(details: &PostgresDetails) -> Vec<String> {
    let preload = details.capture.shared_preload_libraries.trim();
    if preload.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the server preloads these libraries and does not start without them: {preload}"
    )]
}

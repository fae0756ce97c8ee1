//! WAL that a server was let off, so that its disk does not fill while the repository is away.
//!
//! PostgreSQL keeps every segment until it is archived, and goes down with a PANIC when there is no room for
//! more (26.3.1 of its documentation). Where a workload says how much may wait (`archive_queue_max`), what
//! waits is given up as a whole once it is more: taking up again in the middle would leave a hole all the
//! same, and the queue would stay full.
//!
//! What was given up is written down beside the catalog, on the server's host, before PostgreSQL is told
//! that it may forget it: the repository cannot be asked to remember while it is away. A record is about
//! those very files, by name, inode and time, and only until something is stored again: a server that was
//! restored writes the same names with other content. Whether a base backup made it good, the repository says.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use dr_installation::{Installation, create_folder, write_new_file};
use dr_model::{ByteCount, SystemId, WalFileName, WorkloadName};
use dr_store::Repository;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::BackupError;
use crate::error::file_error;
use crate::window::BehindNewest;

/// Beside the catalog: a folder for each workload, a file for each time something was given up.
const FOLDER: &str = "wal-given-up";
const RECORD: &str = "json";
/// Beside a record: something was stored since, and it covers nothing any more.
const ENDED: &str = ".ended";

/// Since when the queue is long, and how long it was.
const QUEUE: &str = "long-queue";
/// A queue that is not shorter after this is filled faster than it is emptied.
const OUTRUN_AFTER: TimeDelta = TimeDelta::minutes(5);

/// A queue that was too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Long {
    since: DateTime<Utc>,
    waiting: u64,
}

/// Pure: whether a queue is filled faster than it is emptied; `Err` with what is to be noted instead of what was.
fn outrun(before: Option<Long>, waiting: u64, now: DateTime<Utc>) -> Result<bool, Long> {
    let long = Long {
        since: now,
        waiting,
    };
    match before {
        // What was noted long ago, or by a clock that was ahead, is of another time.
        Some(before) if now < before.since || now - before.since > OUTRUN_AFTER * 2 => Err(long),
        Some(before) if waiting < before.waiting => Err(long),
        Some(before) => Ok(now - before.since >= OUTRUN_AFTER),
        None => Err(long),
    }
}

/// What tells a file from another one of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl FileIdentity {
    /// Of a file that is there.
    pub(super) fn of(file: &Path) -> Option<Self> {
        let found = std::fs::metadata(file).ok()?;
        Some(Self {
            inode: found.ino(),
            seconds: found.mtime(),
            nanoseconds: found.mtime_nsec(),
        })
    }
}

/// What was given up at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The cluster.
    pub system_id: SystemId,
    /// The first segment that waited.
    pub first: WalFileName,
    /// The last one.
    pub through: WalFileName,
    /// Bytes in a segment.
    pub segment_bytes: u64,
    /// When.
    pub at: DateTime<Utc>,
    /// Bytes that were allowed to wait.
    pub limit: u64,
    /// Everything that waited; what is no segment (`.backup`, `.partial`) is of no use without those around it.
    pub files: BTreeMap<WalFileName, FileIdentity>,
}

impl GivenUp {
    /// What it was, in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        let segments = self.files.keys().filter(|name| name.is_segment());
        let segments = segments.count() as u64;
        format!(
            "{segments} WAL segments ({}), {} to {}, were given up at {}: more than {} waited to be archived",
            ByteCount(segments.saturating_mul(self.segment_bytes)),
            self.first,
            self.through,
            self.at.format("%Y-%m-%dT%H:%M:%SZ"),
            ByteCount(self.limit),
        )
    }

    /// Whether nothing behind it can be recovered yet: some of it may lie on a branch that was left.
    pub(crate) fn is_open(&self, behind: &BehindNewest) -> bool {
        let mut segments = self.files.keys().filter(|name| name.is_segment());
        self.system_id == behind.base.system_id && segments.any(|name| behind.is_cut_by(name))
    }
}

/// A workload's records, on this host.
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Of a workload, wherever its records are or would be.
    pub(crate) fn of(installation: &Installation, workload: &WorkloadName) -> Self {
        let catalog = &installation.config.engine.catalog;
        let catalog = Path::new(catalog.strip_prefix("sqlite:").unwrap_or(catalog));
        let beside = catalog.parent().unwrap_or(Path::new("."));
        Self {
            folder: beside.join(FOLDER).join(workload.as_str()),
        }
    }

    /// Everything that was ever given up, oldest first.
    pub(crate) fn all(&self) -> Result<Vec<GivenUp>, BackupError> {
        let mut found = Vec::new();
        for path in self.files()? {
            if is_record(&path) {
                found.push(read(&path)?);
            }
        }
        found.sort_by_key(|record: &GivenUp| (record.at, record.through.to_string()));
        Ok(found)
    }

    /// What was given up with this very file in it, if nothing was stored since. A record that cannot be read
    /// covers nothing: storing is always right.
    pub(super) fn covering(&self, name: &WalFileName, file: &Path) -> Option<GivenUp> {
        let identity = FileIdentity::of(file)?;
        let records = self.in_force().unwrap_or_default();
        let mut readable = records.iter().filter_map(|path| match read(path) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(
                    error = crate::status::chain(&error),
                    "a record is passed over"
                );
                None
            }
        });
        readable.find(|record| record.files.get(name) == Some(&identity))
    }

    /// Records behind which nothing was stored yet.
    fn in_force(&self) -> Result<Vec<PathBuf>, BackupError> {
        let all = self.files()?;
        let has_not_ended = |path: &&PathBuf| !all.contains(&ended(path));
        Ok(all
            .iter()
            .filter(|path| is_record(path))
            .filter(has_not_ended)
            .cloned()
            .collect())
    }

    /// Writes down what is given up; durable when this returns.
    pub(super) fn write(&self, record: &GivenUp) -> Result<(), BackupError> {
        let name = format!(
            "{}-{}.{RECORD}",
            record.through,
            record.at.format("%Y%m%dT%H%M%S%.6fZ")
        );
        let path = self.folder.join(name);
        let body = serde_json::to_vec(record)
            .map_err(std::io::Error::other)
            .map_err(file_error("write", &path))?;
        create_folder(&self.folder).map_err(file_error("create", &self.folder))?;
        write_new_file(&path, &body, 0o644).map_err(file_error("write", &path))?;
        self.sync()
    }

    /// Whoever made the folders or the file may have died before they were durable.
    fn sync(&self) -> Result<(), BackupError> {
        for folder in self.folder.ancestors().take(3) {
            let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(file_error("sync", folder))?;
        }
        Ok(())
    }

    /// Something was stored: whatever is handed over from now on is not what was given up.
    pub(super) fn end(&self) -> Result<(), BackupError> {
        for path in self.in_force()? {
            let path = ended(&path);
            match write_new_file(&path, b"", 0o644) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.map_err(file_error("write", &path))?,
            }
        }
        Ok(())
    }

    /// Keeps the history of a timeline, which nothing makes up for, until it can be stored. Another one of the
    /// same number is kept beside it.
    pub(super) fn keep_history(&self, name: &WalFileName, body: &[u8]) -> Result<(), BackupError> {
        let mut digest = hex::encode(Sha256::digest(body));
        digest.truncate(8);
        let path = self.folder.join(format!("{name}.{digest}"));
        create_folder(&self.folder).map_err(file_error("create", &self.folder))?;
        match write_new_file(&path, body, 0o644) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(file_error("write", &path))?,
        }
        self.sync()
    }

    /// Notes that more than twice of what may wait did, though the repository takes it; tells whether the queue
    /// has not become shorter for [`OUTRUN_AFTER`].
    pub(super) fn is_outrun(&self, waiting: u64, now: DateTime<Utc>) -> bool {
        let path = self.folder.join(QUEUE);
        let before = std::fs::read(&path).ok();
        let before: Option<Long> = before.and_then(|body| serde_json::from_slice(&body).ok());
        match outrun(before, waiting, now) {
            Ok(is_outrun) => is_outrun,
            Err(noted) => {
                // Not durable: it only says since when.
                let body = serde_json::to_vec(&noted).unwrap_or_default();
                let noted = create_folder(&self.folder).and_then(|()| std::fs::write(&path, body));
                if let Err(error) = noted {
                    tracing::debug!(%error, "since when the queue is long is not noted");
                }
                false
            }
        }
    }

    /// The queue is as it should be.
    pub(super) fn is_not_outrun(&self) {
        drop(std::fs::remove_file(self.folder.join(QUEUE)));
    }

    /// The histories that are kept.
    pub(crate) fn histories(&self) -> Result<Vec<(WalFileName, PathBuf)>, BackupError> {
        let named = |path: PathBuf| {
            let (name, _) = path.file_name()?.to_str()?.rsplit_once('.')?;
            let name: WalFileName = name.parse().ok()?;
            matches!(name, WalFileName::History { .. }).then_some((name, path))
        };
        Ok(self.files()?.into_iter().filter_map(named).collect())
    }

    /// Stores the histories that are kept. One that cannot be stored stands in the way of no other.
    pub(super) fn store_histories(
        &self,
        repository: &Repository,
        workload: &WorkloadName,
        now: DateTime<Utc>,
    ) -> Result<(), BackupError> {
        let mut failed = None;
        for (name, path) in self.histories()? {
            let stored = super::push::read_whole(&path)
                .and_then(|body| super::put(repository, workload, &name, &body, now))
                .and_then(|_| std::fs::remove_file(&path).map_err(file_error("remove", &path)));
            if let Err(error) = stored {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// All files but those that are still written, whose names begin with a dot.
    fn files(&self) -> Result<Vec<PathBuf>, BackupError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error("list", &self.folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(file_error("list", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| !name.starts_with('.')) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

fn is_record(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == RECORD)
}

fn ended(record: &Path) -> PathBuf {
    let mut name = record.as_os_str().to_owned();
    name.push(ENDED);
    PathBuf::from(name)
}

fn read(path: &Path) -> Result<GivenUp, BackupError> {
    let read = || -> std::io::Result<GivenUp> {
        serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::other)
    };
    read().map_err(file_error("read", path))
}

/// Stores the histories of timelines that were kept on this host while the repository was away, before a server
/// that is restored here takes one of their numbers for a timeline of its own. Blocks.
///
/// # Errors
/// When one cannot be stored; another one that the repository has under its number is none.
pub fn store_kept_histories(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<(), BackupError> {
    let records = Records::of(installation, workload);
    if records.histories()?.is_empty() {
        return Ok(());
    }
    let repository = installation.repository_of(workload)?;
    match records.store_histories(&repository, workload, installation.clock.now()) {
        Err(BackupError::WalConflict { .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = [
        "000000010000000000000003",
        "000000010000000000000004",
        "000000010000000000000005",
    ];

    fn record(files: &[PathBuf], second: i64) -> GivenUp {
        let named = |file: &PathBuf| {
            let name: WalFileName = file.file_name()?.to_str()?.parse().ok()?;
            Some((name, FileIdentity::of(file)?))
        };
        let files: BTreeMap<_, _> = files.iter().filter_map(named).collect();
        GivenUp {
            system_id: SystemId(7),
            first: files.keys().next().unwrap().clone(),
            through: files.keys().next_back().unwrap().clone(),
            segment_bytes: 16 << 20,
            at: DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap(),
            limit: 32 << 20,
            files,
        }
    }

    #[test]
    fn only_those_very_files_are_covered_and_only_until_something_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records {
            folder: folder.path().join("a/b"),
        };
        assert_eq!(records.all().unwrap(), []);
        let files: Vec<PathBuf> = NAMES.iter().map(|name| folder.path().join(name)).collect();
        for file in &files {
            std::fs::write(file, "old").unwrap();
        }
        let (one, later) = (record(&files[..2], 0), record(&files[2..], 1));
        records.write(&later).unwrap();
        records.write(&one).unwrap();
        // What was begun is not taken for one, and what cannot be read keeps nothing from being stored.
        std::fs::write(records.folder.join(".x.json.1234"), "{").unwrap();
        assert_eq!(records.all().unwrap(), [one.clone(), later.clone()]);
        std::fs::write(records.folder.join("x.json"), "{").unwrap();
        records.all().unwrap_err();
        let covering =
            |place: usize| records.covering(&NAMES[place].parse().unwrap(), &files[place]);
        assert_eq!(covering(0), Some(one.clone()));
        assert_eq!(covering(2), Some(later));
        // A server that was restored writes the same name again.
        let other = folder.path().join("other");
        std::fs::write(&other, "new").unwrap();
        std::fs::rename(&other, &files[0]).unwrap();
        assert_eq!(covering(0), None);
        assert_eq!(covering(1), Some(one));
        records.end().unwrap();
        assert_eq!(covering(1), None);
        records.end().unwrap();
    }

    #[test]
    fn a_queue_is_outrun_when_it_does_not_become_shorter() {
        let at = |second: i64| DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap();
        let long = |second: i64, waiting: u64| Long {
            since: at(second),
            waiting,
        };
        assert_eq!(outrun(None, 10, at(0)), Err(long(0, 10)));
        let noted = Some(long(0, 10));
        assert_eq!(outrun(noted, 10, at(299)), Ok(false));
        assert_eq!(outrun(noted, 10, at(300)), Ok(true));
        assert_eq!(outrun(noted, 12, at(300)), Ok(true));
        assert_eq!(
            outrun(noted, 9, at(300)),
            Err(long(300, 9)),
            "it becomes shorter"
        );
        assert_eq!(
            outrun(noted, 10, at(601)),
            Err(long(601, 10)),
            "of another time"
        );
        assert_eq!(
            outrun(noted, 10, at(-1)),
            Err(long(-1, 10)),
            "of a clock that was ahead"
        );
    }

    #[test]
    fn two_histories_of_one_number_are_both_kept() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records {
            folder: folder.path().join("erp"),
        };
        let name: WalFileName = "00000002.history".parse().unwrap();
        for body in ["1\t0/E000A0\tone", "1\t0/E00000\tother", "1\t0/E000A0\tone"] {
            records.keep_history(&name, body.as_bytes()).unwrap();
        }
        let kept = records.histories().unwrap();
        assert_eq!(kept.len(), 2);
        assert!(kept.iter().all(|(of, _)| *of == name));
        assert_eq!(records.all().unwrap(), []);
    }
}

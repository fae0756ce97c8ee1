//! WAL that a server was let off, so that its disk does not fill while the repository is away.
//!
//! PostgreSQL keeps every segment until it is archived, and goes down with a PANIC when there is no room for
//! more (26.3.1 of its documentation). Where a workload says how much may wait (`archive_queue_max`), what
//! waits is given up as a whole once it is more: taking up again in the middle would leave a hole all the
//! same, and the queue would stay full.
//!
//! What was given up is written down beside the catalog, on the server's host, before PostgreSQL is told
//! that it may forget it: the repository cannot be asked to remember while it is away. From then on
//! nothing behind it can be recovered until the next base backup: [`GivenUp::is_open`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use dr_installation::{Installation, create_folder, write_new_file};
use dr_model::{ByteCount, Lsn, RestorePoint, SystemId, Timeline, WalFileName, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::error::file_error;

/// Beside the catalog: a folder for each workload, a file for each time something was given up.
const FOLDER: &str = "wal-given-up";

/// What was given up at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The cluster.
    pub system_id: SystemId,
    /// The first segment that waited.
    pub first: WalFileName,
    /// The last one.
    pub through: WalFileName,
    /// How many waited.
    pub segments: u64,
    /// Bytes in a segment.
    pub segment_bytes: u64,
    /// When.
    pub at: DateTime<Utc>,
    /// Bytes that were allowed to wait.
    pub limit: u64,
}

impl GivenUp {
    /// Whether a file waited when this was given up.
    fn covers(&self, name: &WalFileName, system_id: SystemId) -> bool {
        let range = place_of(&self.first)..=place_of(&self.through);
        let place = place_of(name);
        self.system_id == system_id && place.is_some() && range.contains(&place)
    }

    /// Where the last segment ends.
    fn end(&self) -> (Timeline, Lsn) {
        let number = self.through.number(self.segment_bytes).unwrap_or(0);
        let end = Lsn((number + 1).saturating_mul(self.segment_bytes));
        (self.through.timeline().unwrap_or(Timeline(1)), end)
    }

    /// Whether nothing behind it can be recovered yet: the newest base backup began before its end, and the WAL
    /// behind that, which reaches to `reached`, does not go past it (whoever had the segments may have stored
    /// them since).
    pub(crate) fn is_open(
        &self,
        points: &[RestorePoint],
        reached: Option<(Timeline, Lsn)>,
    ) -> bool {
        let Some(base) = points.iter().rev().find_map(RestorePoint::postgres) else {
            return false;
        };
        let end = self.end();
        let is_made_good = is_past((base.timeline, base.start_lsn), end)
            || reached.is_some_and(|to| is_past(to, end));
        base.system_id == self.system_id && !is_made_good
    }

    /// What it was, in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} WAL segments ({}), {} to {}, were given up at {}: more than {} waited to be archived",
            self.segments,
            ByteCount(self.segments.saturating_mul(self.segment_bytes)),
            self.first,
            self.through,
            self.at.format("%Y-%m-%dT%H:%M:%SZ"),
            ByteCount(self.limit),
        )
    }
}

/// Where a file stands in the order of segments; none of a history, which is of all of them.
fn place_of(name: &WalFileName) -> Option<String> {
    match name {
        WalFileName::History { .. } => None,
        other => other.to_string().get(..24).map(str::to_owned),
    }
}

/// A workload's records, on this host.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Of a workload, wherever its records are or would be.
    pub(super) fn of(installation: &Installation, workload: &WorkloadName) -> Self {
        let catalog = &installation.config.engine.catalog;
        let catalog = Path::new(catalog.strip_prefix("sqlite:").unwrap_or(catalog));
        let beside = catalog.parent().unwrap_or(Path::new("."));
        Self {
            folder: beside.join(FOLDER).join(workload.as_str()),
        }
    }

    /// Everything that was ever given up, oldest first.
    pub(super) fn all(&self) -> Result<Vec<GivenUp>, BackupError> {
        let mut found = Vec::new();
        for path in self.files(".json")? {
            let read = || -> std::io::Result<GivenUp> {
                let body = std::fs::read(&path)?;
                serde_json::from_slice(&body).map_err(std::io::Error::other)
            };
            found.push(read().map_err(file_error("read", &path))?);
        }
        found.sort_by_key(|record: &GivenUp| (record.at, record.through.to_string()));
        Ok(found)
    }

    /// What was given up last with a file in it.
    pub(super) fn covering(
        &self,
        name: &WalFileName,
        system_id: SystemId,
    ) -> Result<Option<GivenUp>, BackupError> {
        let mut newest_first = self.all()?.into_iter().rev();
        Ok(newest_first.find(|record| record.covers(name, system_id)))
    }

    /// Writes down what is given up; durable when this returns.
    pub(super) fn write(&self, record: &GivenUp) -> Result<(), BackupError> {
        let path = self.folder.join(format!("{}.json", record.through));
        let body = serde_json::to_vec_pretty(record)
            .map_err(std::io::Error::other)
            .map_err(file_error("write", &path))?;
        create_folder(&self.folder).map_err(file_error("create", &self.folder))?;
        write_new_file(&path, &body, 0o644).map_err(file_error("write", &path))
    }

    /// Keeps the history of a timeline, which nothing makes up for, until it can be stored.
    pub(super) fn keep_history(&self, name: &WalFileName, body: &[u8]) -> Result<(), BackupError> {
        let path = self.folder.join(name.to_string());
        create_folder(&self.folder).map_err(file_error("create", &self.folder))?;
        match write_new_file(&path, body, 0o644) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(file_error("write", &path)),
        }
    }

    /// The histories that are kept.
    pub(super) fn histories(&self) -> Result<BTreeMap<WalFileName, PathBuf>, BackupError> {
        let named = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.parse().ok()?;
            Some((name, path))
        };
        Ok(self
            .files(".history")?
            .into_iter()
            .filter_map(named)
            .collect())
    }

    fn files(&self, ending: &str) -> Result<Vec<PathBuf>, BackupError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error("list", &self.folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(file_error("list", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // A name that begins with a dot is one that is still written.
            if name.is_some_and(|name| !name.starts_with('.') && name.ends_with(ending)) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

/// What was given up last, whether or not that was made good since: the repository has to say.
///
/// # Errors
/// When the records cannot be read.
pub(crate) fn last(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<Option<GivenUp>, BackupError> {
    Ok(Records::of(installation, workload).all()?.pop())
}

/// Whether a place lies at or behind another, on its timeline or a later one.
fn is_past((on, at): (Timeline, Lsn), (timeline, end): (Timeline, Lsn)) -> bool {
    on >= timeline && at >= end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(first: &str, through: &str) -> GivenUp {
        GivenUp {
            system_id: SystemId(7),
            first: first.parse().unwrap(),
            through: through.parse().unwrap(),
            segments: 3,
            segment_bytes: 16 << 20,
            at: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            limit: 32 << 20,
        }
    }

    #[test]
    fn only_what_waited_then_is_covered() {
        let record = record("000000010000000000000003", "000000020000000000000005");
        let covers = |name: &str, id: u64| record.covers(&name.parse().unwrap(), SystemId(id));
        assert!(!covers("000000010000000000000002", 7));
        assert!(covers("000000010000000000000003", 7));
        assert!(covers("000000010000000000000004.00000028.backup", 7));
        assert!(covers("000000010000000000000005.partial", 7));
        assert!(covers("000000020000000000000005", 7));
        assert!(!covers("000000020000000000000006", 7));
        assert!(
            !covers("00000002.history", 7),
            "a history is never given up"
        );
        assert!(!covers("000000010000000000000004", 8), "another cluster");
    }

    #[test]
    fn what_was_given_up_is_read_back_and_what_was_begun_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records {
            folder: folder.path().join("a/b"),
        };
        assert_eq!(records.all().unwrap(), []);
        let one = record("000000010000000000000003", "000000010000000000000005");
        let later = GivenUp {
            at: one.at + chrono::TimeDelta::seconds(1),
            ..record("000000010000000000000007", "000000010000000000000009")
        };
        records.write(&later).unwrap();
        records.write(&one).unwrap();
        std::fs::write(records.folder.join(".x.json.1234"), "{").unwrap();
        assert_eq!(records.all().unwrap(), [one.clone(), later.clone()]);
        let found = |name: &str| {
            records
                .covering(&name.parse().unwrap(), SystemId(7))
                .unwrap()
        };
        assert_eq!(found("000000010000000000000004"), Some(one.clone()));
        assert_eq!(found("000000010000000000000006"), None);
        assert_eq!(found("000000010000000000000009"), Some(later));
        records.write(&one).unwrap_err();
        // A record that cannot be read is not passed over: what it says is not known.
        std::fs::write(records.folder.join("x.json"), "{").unwrap();
        records.all().unwrap_err();
    }
}

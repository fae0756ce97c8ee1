//! Making a folder of restored files into something a server starts from, at the wanted moment.
//!
//! Order of writes, so that the folder cannot start before it is complete: all files but
//! `global/pg_control`; the label; configuration; recovery settings; `backup_manifest`; and last
//! `pg_control`, by rename. A crash before that leaves a folder that PostgreSQL refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, FixedOffset};
use dr_model::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};

use super::CaptureDetails;
use crate::SourceError;

/// Where recovery stops (20.5.6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// At the end of the archive.
    Latest,
    /// As soon as the copy is consistent.
    Immediate,
    /// At the first commit later than this.
    Time(DateTime<FixedOffset>),
    /// At the record that begins here.
    Lsn(Lsn),
}

/// What happens at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryAction {
    /// Open for writing on a new timeline.
    Promote,
    /// Stay read-only.
    Pause,
    /// Shut down.
    Shutdown,
}

/// The recovery settings of a restored folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySettings {
    /// `restore_command`, complete and shell-quoted.
    pub restore_command: String,
    /// Where to stop.
    pub target: RecoveryTarget,
    /// Whether the target itself is included.
    pub inclusive: bool,
    /// The timeline to follow; `None`: the latest.
    pub timeline: Option<Timeline>,
    /// What then.
    pub action: RecoveryAction,
    /// Whether the restored cluster takes the original's place: it keeps its archiving.
    pub as_primary: bool,
    /// More settings for `postgresql.auto.conf`.
    pub extra: Vec<(String, String)>,
}

/// A file of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory; a tablespace's as `pg_tblspc/<oid>/…`.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Modification time, seconds since the epoch.
    pub modified_seconds: i64,
    /// SHA-256 of its content, taken when it was captured or generated.
    pub sha256: [u8; 32],
}

/// A stretch of WAL that a restored folder needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// Its timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
}

/// Where the control file waits until everything else is in place.
pub const CONTROL_FILE_PENDING: &str = "global/pg_control.dr-pending";

/// Where an entry of a point belongs under the restored data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the data directory, at this relative path (the control file under its pending name).
    Data(PathBuf),
    /// In the tablespace with this oid, at this path relative to its location.
    Tablespace(u32, PathBuf),
    /// Configuration from outside: see [`place_config`].
    Config(PathBuf),
    /// Not to be put back as it is.
    Skip,
}

/// Says where a point's entry belongs.
#[must_use]
pub fn place(path: &str) -> Place {
    let _ = path;
    todo!()
}

/// Writes the label (byte for byte) and, if there is one, the tablespace map with the new locations.
/// Returns what was generated, for the manifest.
///
/// # Errors
/// When a file cannot be written durably.
pub fn write_label(
    data_directory: &Path,
    label: &[u8],
    tablespace_map: Option<&[u8]>,
    locations: &BTreeMap<u32, PathBuf>,
) -> Result<Vec<ManifestFile>, SourceError> {
    let _ = (data_directory, label, tablespace_map, locations);
    todo!()
}

/// Writes `recovery.signal` and `postgresql.auto.conf`, keeping foreign settings and dropping old
/// recovery targets; removes `standby.signal`.
///
/// # Errors
/// When a file cannot be read or written durably.
pub fn write_recovery(
    data_directory: &Path,
    settings: &RecoverySettings,
) -> Result<(), SourceError> {
    let _ = (data_directory, settings);
    todo!()
}

/// What [`place_config`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlacedConfig {
    /// Files generated in the data directory, for the manifest.
    pub files: Vec<ManifestFile>,
    /// What an operator should know, a sentence each.
    pub notes: Vec<String>,
}

/// Puts captured configuration (read from `captured`, a folder holding the point's `config/…`) into
/// the data directory with its paths rewritten, or unchanged into `config_into`.
///
/// # Errors
/// When a file cannot be read or written durably.
pub fn place_config(
    data_directory: &Path,
    captured: &Path,
    details: &CaptureDetails,
    config_into: Option<&Path>,
) -> Result<PlacedConfig, SourceError> {
    let _ = (data_directory, captured, details, config_into);
    todo!()
}

/// Writes PostgreSQL's `backup_manifest`, so that `pg_verifybackup -n` can judge the folder.
///
/// # Errors
/// When it cannot be written durably.
pub fn write_backup_manifest(
    data_directory: &Path,
    major_version: u32,
    system_id: SystemId,
    files: &[ManifestFile],
    wal: &[WalRange],
) -> Result<(), SourceError> {
    let _ = (data_directory, major_version, system_id, files, wal);
    todo!()
}

/// The last step: gives the control file its name, durably.
///
/// # Errors
/// When it cannot be renamed or synced.
pub fn finish(data_directory: &Path) -> Result<(), SourceError> {
    let _ = data_directory;
    todo!()
}

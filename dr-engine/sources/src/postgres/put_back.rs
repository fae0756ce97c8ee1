//! Making a folder of restored files into something a server starts from, at the wanted moment.
//!
//! Order of writes, so that the folder cannot start before it is complete: all files but
//! `global/pg_control`; the label; configuration; recovery settings; `backup_manifest`; and last
//! `pg_control`, by rename. A crash before that leaves a folder that PostgreSQL refuses.

mod closed;
mod config;
mod durable;
mod manifest;
mod recovery;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, FixedOffset};
use dr_model::{Lsn, Timeline};
use serde::{Deserialize, Serialize};

pub use self::closed::{close_to_clients, is_closed, open_to_clients};
pub use self::config::{PlacedConfig, place_config};
pub use self::manifest::write_backup_manifest;
pub use self::recovery::write_recovery;
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
    /// CRC-32C of its content, taken when it was captured or generated.
    pub crc32c: u32,
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

impl ManifestFile {
    /// Describes a file that was just generated with this content.
    fn of_content(path: &str, content: &[u8], file: &Path) -> Result<Self, SourceError> {
        let metadata = std::fs::metadata(file).map_err(SourceError::file("examine", file))?;
        Ok(Self {
            path: path.to_owned(),
            size: u64::try_from(content.len()).unwrap_or(0),
            modified_seconds: metadata.mtime(),
            crc32c: crc32c::crc32c(content),
        })
    }
}

/// Where the control file waits until everything else is in place.
pub const CONTROL_FILE_PENDING: &str = "global/pg_control.dr-pending";
const CONTROL_FILE: &str = "global/pg_control";

/// Where an entry of a point belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the data directory, at this relative path (the control file under its pending name).
    Data(PathBuf),
    /// In the tablespace with this oid, at this path relative to its location.
    Tablespace(u32, PathBuf),
    /// In the folder that is given to [`place_config`] as `captured`, at this relative path.
    Config(PathBuf),
    /// Pages that go into a file, which the parts of smaller numbers make first ([`super::parts`]).
    Part {
        /// From 1 on.
        number: u32,
        /// The file's path in the point.
        of: String,
    },
    /// Not to be put back as it is.
    Skip,
}

/// Says where a point's entry belongs.
#[must_use]
pub fn place(path: &str) -> Place {
    match super::parts::parse(path) {
        Some((0, of)) => return place(of),
        Some((number, of)) => {
            return Place::Part {
                number,
                of: of.to_owned(),
            };
        }
        None => {}
    }
    match path.split_once('/') {
        Some(("data", CONTROL_FILE)) => Place::Data(PathBuf::from(CONTROL_FILE_PENDING)),
        // Whether and how the copy recovers is decided anew.
        Some(("data", "standby.signal" | "recovery.signal")) => Place::Skip,
        Some(("data", rest)) => Place::Data(PathBuf::from(rest)),
        Some(("config", rest)) => Place::Config(PathBuf::from(rest)),
        Some(("tablespaces", rest)) => match rest.split_once('/') {
            Some((oid, rest)) => match oid.parse() {
                Ok(oid) => Place::Tablespace(oid, PathBuf::from(rest)),
                Err(_) => Place::Skip,
            },
            None => Place::Skip,
        },
        _ => Place::Skip,
    }
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
    let mut written = Vec::new();
    // The map before the label: without a label the server would not look at the map.
    if let Some(map) = tablespace_map {
        let map = relocate(map, locations);
        let file = durable::write(data_directory, "tablespace_map", &map)?;
        written.push(ManifestFile::of_content("tablespace_map", &map, &file)?);
    }
    let file = durable::write(data_directory, "backup_label", label)?;
    written.push(ManifestFile::of_content("backup_label", label, &file)?);
    Ok(written)
}

/// The map wins over the links (26.3.5), so it has to name the new locations: one `oid path` a line,
/// line ends and backslashes in the path escaped by a backslash.
fn relocate(map: &[u8], locations: &BTreeMap<u32, PathBuf>) -> Vec<u8> {
    let text = String::from_utf8_lossy(map);
    let lines = text.lines().map(|line| {
        let moved = line
            .split_once(' ')
            .and_then(|(oid, _)| Some((oid, locations.get(&oid.parse().ok()?)?)));
        match moved {
            Some((oid, location)) => {
                let location = location.display().to_string();
                let location = location.replace('\\', "\\\\").replace('\n', "\\\n");
                format!("{oid} {location}\n")
            }
            None => format!("{line}\n"),
        }
    });
    lines.collect::<String>().into_bytes()
}

/// The last step: gives the control file its name, durably.
///
/// # Errors
/// When it cannot be renamed or synced.
pub fn finish(data_directory: &Path) -> Result<(), SourceError> {
    let pending = data_directory.join(CONTROL_FILE_PENDING);
    durable::sync_file(&pending)?;
    durable::rename(&pending, &data_directory.join(CONTROL_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_path_has_its_place() {
        let data = |path: &str| Place::Data(PathBuf::from(path));
        assert_eq!(place("data/base/5/1"), data("base/5/1"));
        assert_eq!(
            place("data/global/pg_control"),
            data("global/pg_control.dr-pending")
        );
        assert_eq!(place("data/standby.signal"), Place::Skip);
        assert_eq!(
            place("tablespaces/7/PG_15_1/5/1"),
            Place::Tablespace(7, "PG_15_1/5/1".into())
        );
        assert_eq!(
            place("config/conf.d/a.conf"),
            Place::Config("conf.d/a.conf".into())
        );
        assert_eq!(place("label/backup_label"), Place::Skip);
        assert_eq!(place("parts/0000/data/base/5/1"), data("base/5/1"));
        let part = Place::Part {
            number: 2,
            of: "data/base/5/1".to_owned(),
        };
        assert_eq!(place("parts/0002/data/base/5/1"), part);
        assert_eq!(place("parts/index"), Place::Skip);
        assert_eq!(place("elsewhere"), Place::Skip);
    }

    #[test]
    fn the_tablespace_map_names_the_new_locations() {
        let locations = BTreeMap::from([(7, PathBuf::from("/new/place"))]);
        let map = relocate(b"7 /old/place\n8 /kept\n", &locations);
        assert_eq!(String::from_utf8(map).unwrap(), "7 /new/place\n8 /kept\n");
    }
}

//! What a restore has to know about a captured cluster beyond its files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::base_backup::{CorruptPage, PageChecks};

/// Goes into the details of a restore point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureDetails {
    /// The version of this structure.
    pub version: u32,
    /// The data directory it was captured from.
    pub data_directory: PathBuf,
    /// `server_version`, as people write it.
    pub server_version: String,
    /// Configuration outside the data directory.
    pub config_files: Vec<ConfigFile>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Where `pg_wal` pointed when it was a link.
    pub wal_directory: Option<PathBuf>,
    /// Databases with their collations: another version sorts differently (RULES of glibc and ICU).
    pub databases: Vec<DatabaseLocale>,
    /// Extensions by database: name and version.
    pub extensions: BTreeMap<String, Vec<ExtensionVersion>>,
    /// `shared_preload_libraries`: the server does not start without them.
    pub shared_preload_libraries: String,
    /// What recovery needs at least as large as it was here.
    pub critical_settings: CriticalSettings,
    /// What was found about page checksums.
    pub pages: PageChecks,
    /// Pages whose checksum was wrong in the source.
    pub corrupt_pages: Vec<CorruptPage>,
    /// Things that could not be captured or learned, a sentence each.
    pub notes: Vec<String>,
}

/// A captured configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Its path in the point: `config/postgresql.conf`.
    pub item: String,
    /// Where it lay.
    pub origin: PathBuf,
    /// What it is.
    pub role: ConfigRole,
}

/// The kinds of configuration files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigRole {
    /// `config_file`.
    Main,
    /// `hba_file`.
    Hba,
    /// `ident_file`.
    Ident,
    /// Included by one of them.
    Include,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its oid, also the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lay.
    pub location: PathBuf,
}

/// A database's locale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseLocale {
    /// Its name.
    pub database: String,
    /// `datcollate`.
    pub collate: String,
    /// `datctype`.
    pub ctype: String,
    /// The version the indexes were built with, as recorded by the server (15 and later).
    pub recorded_version: Option<String>,
    /// The version of the library in use (15 and later).
    pub actual_version: Option<String>,
}

/// An installed extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtensionVersion {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Settings that a server in recovery must have at least as large as the source had (27.4.5,
/// "Hot Standby Parameter Reference").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriticalSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
}

impl CriticalSettings {
    /// As settings for a server's command line.
    #[must_use]
    pub fn as_settings(&self) -> Vec<(String, String)> {
        [
            ("max_connections", self.max_connections),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .to_vec()
    }
}

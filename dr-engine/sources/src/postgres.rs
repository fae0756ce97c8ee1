//! PostgreSQL clusters: captured on their host with their own backup mode, put back as a folder a
//! server can start from.
//!
//! A point's paths: `data/<path in the data directory>`, `tablespaces/<oid>/PG_<version>/…`,
//! `config/<name>` for configuration that lies outside the data directory (Debian), and
//! `label/backup_label` with `label/tablespace_map`, byte for byte as the server gave them. A relation's file
//! may be in [`parts`] instead.

pub mod base_backup;
pub(crate) mod config_text;
mod connection;
pub mod control;
pub mod details;
mod names;
pub mod parts;
pub mod put_back;
mod quote;
pub mod tools;

pub use base_backup::{
    BaseBackup, BaseBackupResult, CaptureOptions, CaptureSummary, CorruptPage, KnownFile,
    KnownFiles, MainFork, PageChecks, StreamedOptions, WalHold, receive_base_backup,
    unreadable_configuration,
};
pub use connection::{
    ClusterIdentity, ConnectOptions, StreamLimits, check_data_directory, connect, identify,
    stream_limits,
};
pub use details::{
    CaptureDetails, ConfigFile, ConfigRole, CriticalSettings, DatabaseLocale, ExtensionVersion,
    Tablespace,
};
pub use names::name_relation;
pub use quote::{SESSION, ident, literal, table};
pub use sqlx::PgConnection;

//! What the server says about itself that a restore will need.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::config_files::ConfigPaths;
use crate::SourceError;
use crate::postgres::details::{CriticalSettings, DatabaseLocale, ExtensionVersion};

/// The answers.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) config: ConfigPaths,
    pub(super) critical: CriticalSettings,
    pub(super) shared_preload_libraries: String,
    pub(super) databases: Vec<DatabaseLocale>,
    pub(super) extensions: BTreeMap<String, Vec<ExtensionVersion>>,
    pub(super) notes: Vec<String>,
}

const SETTINGS: &str = "select name, setting from pg_settings where name in (
    'config_file', 'hba_file', 'ident_file', 'shared_preload_libraries', 'max_connections',
    'max_prepared_transactions', 'max_locks_per_transaction', 'max_worker_processes',
    'max_wal_senders')";

/// From 15 on the server records the version of the collation library that a database was made with.
const DATABASES: &str = "select datname::text, datcollate::text, datctype::text,
    datcollversion::text as recorded, pg_database_collation_actual_version(oid)::text as actual
  from pg_database order by datname";
const DATABASES_14: &str = "select datname::text, datcollate::text, datctype::text,
    null::text as recorded, null::text as actual
  from pg_database order by datname";

const EXTENSIONS: &str =
    "select current_database()::text as database, extname::text, extversion from pg_extension
     order by extname";

fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> SourceError {
    move |source| SourceError::Sql { action, source }
}

/// Asks.
pub(super) async fn gather(
    session: &mut PgConnection,
    major_version: u32,
) -> Result<Facts, SourceError> {
    let rows = sqlx::query(SETTINGS)
        .fetch_all(&mut *session)
        .await
        .map_err(failed("tell its settings"))?;
    let settings: BTreeMap<String, String> = rows
        .iter()
        .filter_map(|row| Some((row.try_get("name").ok()?, row.try_get("setting").ok()?)))
        .collect();
    let databases = if major_version >= 15 {
        DATABASES
    } else {
        DATABASES_14
    };
    let databases = sqlx::query_as::<_, DatabaseLocale>(databases)
        .fetch_all(&mut *session)
        .await
        .map_err(failed("list its databases"))?;
    let rows = sqlx::query(EXTENSIONS)
        .fetch_all(&mut *session)
        .await
        .map_err(failed("list its extensions"))?;
    let mut extensions: BTreeMap<String, Vec<ExtensionVersion>> = BTreeMap::new();
    for row in rows {
        let extension = |row: &PgRow| -> Result<(String, ExtensionVersion), sqlx::Error> {
            let version = ExtensionVersion {
                name: row.try_get(1)?,
                version: row.try_get(2)?,
            };
            Ok((row.try_get(0)?, version))
        };
        let (database, version) = extension(&row).map_err(failed("list its extensions"))?;
        extensions.entry(database).or_default().push(version);
    }
    Ok(from_settings(&settings, databases, extensions))
}

fn from_settings(
    settings: &BTreeMap<String, String>,
    databases: Vec<DatabaseLocale>,
    extensions: BTreeMap<String, Vec<ExtensionVersion>>,
) -> Facts {
    let path = |name: &str| {
        settings
            .get(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let number = |name: &str| settings.get(name).and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut notes = Vec::new();
    let config = ConfigPaths {
        main: path("config_file"),
        hba: path("hba_file"),
        ident: path("ident_file"),
    };
    if config.main.is_none() {
        notes.push(
            "the role may not see where the server's configuration is, so none outside the data \
             directory was captured; grant it pg_read_all_settings"
                .to_owned(),
        );
    }
    Facts {
        config,
        critical: CriticalSettings {
            max_connections: number("max_connections"),
            max_prepared_transactions: number("max_prepared_transactions"),
            max_locks_per_transaction: number("max_locks_per_transaction"),
            max_worker_processes: number("max_worker_processes"),
            max_wal_senders: number("max_wal_senders"),
        },
        shared_preload_libraries: settings
            .get("shared_preload_libraries")
            .cloned()
            .unwrap_or_default(),
        databases,
        extensions,
        notes,
    }
}

impl FromRow<'_, PgRow> for DatabaseLocale {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            database: row.try_get(0)?,
            collate: row.try_get(1)?,
            ctype: row.try_get(2)?,
            recorded_version: row.try_get(3)?,
            actual_version: row.try_get(4)?,
        })
    }
}

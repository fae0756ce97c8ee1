//! Configuration that lies outside the data directory, as far as the server gives it out: a base backup
//! does not hold it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sqlx::PgConnection;

use crate::SourceError;
use crate::postgres::base_backup::config_files;
use crate::postgres::base_backup::facts::Facts;
use crate::postgres::connection::ClusterIdentity;
use crate::postgres::details::{ConfigFile, ConfigRole};

/// Every file that a setting, or a line of `pg_hba.conf`, came from.
const INCLUDED: &str =
    "select distinct sourcefile from pg_file_settings where sourcefile is not null";
const INCLUDED_16: &str =
    "select distinct sourcefile from pg_file_settings where sourcefile is not null
    union select file_name from pg_hba_file_rules where file_name is not null
    union select file_name from pg_ident_file_mappings where file_name is not null";
/// `insufficient_privilege`.
const NOT_ALLOWED: &str = "42501";

/// Reads all of it. What the role may not see is noted.
pub(super) async fn read(
    session: &mut PgConnection,
    identity: &ClusterIdentity,
    facts: &mut Facts,
) -> Result<Vec<(ConfigFile, Vec<u8>)>, SourceError> {
    let Some(data_directory) = identity.data_directory.as_deref() else {
        return Ok(Vec::new());
    };
    let paths = &facts.config;
    let named = [
        (&paths.main, ConfigRole::Main),
        (&paths.hba, ConfigRole::Hba),
        (&paths.ident, ConfigRole::Ident),
    ];
    let mut wanted: Vec<(PathBuf, ConfigRole)> = named
        .into_iter()
        .filter_map(|(path, role)| Some((path.clone()?, role)))
        .collect();
    let base = wanted.first().and_then(|(main, _)| main.parent());
    let base = base.map(Path::to_owned).unwrap_or_default();
    let mut refused: BTreeSet<&str> = BTreeSet::new();
    let query = match identity.major_version() {
        ..16 => INCLUDED,
        _ => INCLUDED_16,
    };
    match sqlx::query_scalar::<_, String>(query)
        .fetch_all(&mut *session)
        .await
    {
        Ok(files) => {
            for file in files.into_iter().map(PathBuf::from) {
                if wanted.iter().all(|(path, _)| *path != file) {
                    wanted.push((file, ConfigRole::Include));
                }
            }
        }
        Err(error) if is_refused(&error) => drop(refused.insert("what it includes")),
        Err(source) => return Err(failed(source)),
    }
    let mut found: Vec<(ConfigFile, Vec<u8>)> = Vec::new();
    for (origin, role) in wanted {
        if origin.starts_with(data_directory) {
            continue;
        }
        // True: a file that is there no more is null.
        let content = sqlx::query_scalar::<_, Option<Vec<u8>>>(
            "select pg_read_binary_file($1, 0, 1 << 26, true)",
        )
        .bind(origin.display().to_string())
        .fetch_one(&mut *session)
        .await;
        match content {
            Ok(Some(content)) => {
                let item = config_files::name(&base, &origin, found.len());
                found.push((ConfigFile { item, origin, role }, content));
            }
            Ok(None) => {}
            Err(error) if is_refused(&error) => drop(refused.insert("its files")),
            Err(source) => return Err(failed(source)),
        }
    }
    if !refused.is_empty() {
        let what: Vec<&str> = refused.into_iter().collect();
        facts.notes.push(format!(
            "the server's configuration lies outside the data directory, and the role may not read {}: \
             grant it pg_read_server_files, EXECUTE on pg_read_binary_file(text, bigint, bigint, \
             boolean), and SELECT on pg_file_settings with EXECUTE on pg_show_all_file_settings()",
            what.join(" and ")
        ));
    }
    Ok(found)
}

fn is_refused(error: &sqlx::Error) -> bool {
    (error.as_database_error()).is_some_and(|error| error.code().as_deref() == Some(NOT_ALLOWED))
}

fn failed(source: sqlx::Error) -> SourceError {
    SourceError::Sql {
        action: "give out its configuration",
        source,
    }
}

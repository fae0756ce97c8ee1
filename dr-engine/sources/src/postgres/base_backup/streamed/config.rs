//! Configuration that lies outside the data directory, as far as the server gives it out: a base backup
//! does not hold it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sqlx::PgConnection;

use super::whole::Paths;
use crate::SourceError;
use crate::postgres::base_backup::config_files;
use crate::postgres::base_backup::facts::Facts;
use crate::postgres::connection::ClusterIdentity;
use crate::postgres::details::{ConfigFile, ConfigRole};

/// Every file that a setting, or a line of `pg_hba.conf` or `pg_ident.conf`, came from; and from which version on
/// the server tells it.
const INCLUDED: [(u32, &str); 3] = [
    (
        14,
        "select distinct sourcefile from pg_file_settings where sourcefile is not null",
    ),
    (
        16,
        "select distinct file_name from pg_hba_file_rules where file_name is not null",
    ),
    (
        16,
        "select distinct file_name from pg_ident_file_mappings where file_name is not null",
    ),
];
/// `insufficient_privilege`.
const NOT_ALLOWED: &str = "42501";

/// Reads all of it that did not come with the data directory. What the role may not see is noted.
pub(super) async fn read(
    session: &mut PgConnection,
    identity: &ClusterIdentity,
    facts: &mut Facts,
    received: &Paths,
) -> Result<Vec<(ConfigFile, Vec<u8>)>, SourceError> {
    let came = |path: &str| received.contains(&format!("data/{path}"));
    read_all(session, identity, facts, &came).await
}

/// As [`read`]; `came` tells of a path in the data directory whether it was received as a file.
pub(super) async fn read_all(
    session: &mut PgConnection,
    identity: &ClusterIdentity,
    facts: &mut Facts,
    came: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Vec<(ConfigFile, Vec<u8>)>, SourceError> {
    let Some(data_directory) = identity.data_directory.as_deref() else {
        return Ok(Vec::new());
    };
    let mut refused = BTreeSet::new();
    let wanted = wanted(session, identity, facts, &mut refused).await?;
    let base = wanted.first().and_then(|(main, _)| main.parent());
    let base = base.map(Path::to_owned).unwrap_or_default();
    let mut found: Vec<(ConfigFile, Vec<u8>)> = Vec::new();
    for (origin, role) in wanted {
        // A link in the data directory is not sent.
        let inside = origin
            .strip_prefix(data_directory)
            .ok()
            .and_then(Path::to_str);
        if inside.is_some_and(came) {
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
            Err(error) if is_refused(&error) => {
                refused.insert(
                    "its files (pg_read_server_files, EXECUTE on pg_read_binary_file(text, bigint, bigint, \
                     boolean))",
                );
            }
            Err(source) => return Err(failed(source)),
        }
    }
    if !refused.is_empty() {
        let what: Vec<&str> = refused.into_iter().collect();
        facts.notes.push(format!(
            "the server's configuration lies outside the data directory, and the role may not read all of it; \
             grant it {}",
            what.join(", and ")
        ));
    }
    Ok(found)
}

/// Where configuration comes from: the main files, and what they include as far as the role may see that.
async fn wanted(
    session: &mut PgConnection,
    identity: &ClusterIdentity,
    facts: &Facts,
    refused: &mut BTreeSet<&'static str>,
) -> Result<Vec<(PathBuf, ConfigRole)>, SourceError> {
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
    let is_outside = |path: &PathBuf| {
        (identity.data_directory.as_deref()).is_some_and(|folder| !path.starts_with(folder))
    };
    let any_outside = wanted.iter().any(|(path, _)| is_outside(path));
    for (since, query) in INCLUDED {
        if identity.major_version() < since {
            continue;
        }
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
            // What the usual files in the data directory include is there too.
            Err(error) if is_refused(&error) => {
                if any_outside {
                    refused.insert(GRANTS_TO_SEE);
                }
            }
            Err(source) => return Err(failed(source)),
        }
    }
    Ok(wanted)
}

/// To see what files include.
const GRANTS_TO_SEE: &str = "what they include (SELECT on pg_file_settings with EXECUTE on \
    pg_show_all_file_settings(); from 16 on SELECT on pg_hba_file_rules and pg_ident_file_mappings with EXECUTE on \
    pg_hba_file_rules() and pg_ident_file_mappings() too)";

fn is_refused(error: &sqlx::Error) -> bool {
    (error.as_database_error()).is_some_and(|error| error.code().as_deref() == Some(NOT_ALLOWED))
}

fn failed(source: sqlx::Error) -> SourceError {
    SourceError::Sql {
        action: "give out its configuration",
        source,
    }
}

//! Reaching a server and learning what it is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use dr_model::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection, PgConnection};

use super::control;
use crate::SourceError;
use crate::instance::user_name;

/// How to reach a server.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `postgres://user@host:port/database`, a socket folder as `?host=/run/postgresql`.
    pub url: String,
    /// The password, from wherever it is kept.
    pub password: Option<String>,
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectOptions").finish_non_exhaustive()
    }
}

/// What a server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Shared by all copies of a cluster.
    pub system_id: SystemId,
    /// Of its last checkpoint.
    pub timeline: Timeline,
    /// 150018 for 15.18.
    pub server_version_num: u32,
    /// `server_version`.
    pub server_version: String,
    /// Bytes in a WAL segment.
    pub wal_segment_bytes: u64,
    /// `data_directory`, where the role may see it.
    pub data_directory: Option<PathBuf>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Whether page checksums are on.
    pub page_checksums: bool,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_timeout`; 0: none.
    pub archive_timeout_seconds: u64,
    /// `wal_level`.
    pub wal_level: String,
    /// The position of the last record written (or replayed, on a standby).
    pub current_lsn: Lsn,
}

impl ClusterIdentity {
    /// 15 for 150018.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.server_version_num / 10_000
    }
}
/// A server that does not answer the first packet within this is taken as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The releases this was built for.
const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;

/// Opens a dedicated connection. The password is never printed.
///
/// # Errors
/// When no server answers, or it refuses us.
pub async fn connect(options: &ConnectOptions) -> Result<PgConnection, SourceError> {
    let mut parsed = PgConnectOptions::from_str(&options.url)
        .map_err(|source| SourceError::PostgresUrl { source })?
        .application_name("dr")
        .disable_statement_logging();
    if let Some(password) = &options.password {
        parsed = parsed.password(password);
    }
    let place = place(&parsed);
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&parsed)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(source)) if is_refusal(&source) => {
            Err(SourceError::PostgresRefused { place, source })
        }
        Ok(Err(source)) => Err(SourceError::PostgresDown { place, source }),
        Err(_) => Err(SourceError::PostgresDown {
            place,
            source: sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
        }),
    }
}

fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(folder) => format!("{} (port {})", folder.display(), options.get_port()),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// Whether a server is there and does not want us, as opposed to starting up or shutting down
/// (class 57P, "operator intervention").
fn is_refusal(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| !error.code().is_some_and(|code| code.starts_with("57P")))
}

#[derive(sqlx::FromRow)]
struct IdentityRow {
    system_id: String,
    timeline: i32,
    server_version_num: i32,
    server_version: String,
    wal_segment_bytes: i64,
    data_directory: Option<String>,
    in_recovery: bool,
    page_checksums: bool,
    archive_mode: String,
    archive_command: String,
    archive_timeout_seconds: i64,
    wal_level: String,
    current_lsn: Option<String>,
}

// `pg_settings` instead of `current_setting` where a role without `pg_read_all_settings` may ask:
// the view leaves the row out, the function fails. The identifier is shown signed by the server.
const IDENTITY: &str = "select
    system_identifier::text as system_id,
    (select timeline_id from pg_control_checkpoint()) as timeline,
    current_setting('server_version_num')::int as server_version_num,
    current_setting('server_version') as server_version,
    (select bytes_per_wal_segment::bigint from pg_control_init()) as wal_segment_bytes,
    (select setting from pg_settings where name = 'data_directory') as data_directory,
    pg_is_in_recovery() as in_recovery,
    current_setting('data_checksums')::bool as page_checksums,
    current_setting('archive_mode') as archive_mode,
    coalesce((select setting from pg_settings where name = 'archive_command'), '')
        as archive_command,
    (select setting::bigint from pg_settings where name = 'archive_timeout')
        as archive_timeout_seconds,
    current_setting('wal_level') as wal_level,
    (case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
        else pg_current_wal_insert_lsn() end)::text as current_lsn
  from pg_control_system()";

/// Asks a server what it is.
///
/// # Errors
/// When a statement fails, or its release is not supported.
pub async fn identify(connection: &mut PgConnection) -> Result<ClusterIdentity, SourceError> {
    let row: IdentityRow = sqlx::query_as(IDENTITY)
        .fetch_one(connection)
        .await
        .map_err(|source| SourceError::Sql {
            action: "tell its identity",
            source,
        })?;
    let unreadable =
        |what: &str| SourceError::Refused(format!("the server's {what} is not understood"));
    let signed: i64 = row
        .system_id
        .parse()
        .map_err(|_| unreadable("system identifier"))?;
    let identity = ClusterIdentity {
        system_id: SystemId(signed.cast_unsigned()),
        timeline: Timeline(row.timeline.cast_unsigned()),
        server_version_num: row.server_version_num.cast_unsigned(),
        server_version: row.server_version,
        wal_segment_bytes: row.wal_segment_bytes.cast_unsigned(),
        data_directory: row.data_directory.map(PathBuf::from),
        in_recovery: row.in_recovery,
        page_checksums: row.page_checksums,
        archive_mode: row.archive_mode,
        archive_command: row.archive_command,
        archive_timeout_seconds: row.archive_timeout_seconds.cast_unsigned(),
        wal_level: row.wal_level,
        current_lsn: match row.current_lsn {
            Some(text) => text.parse().map_err(|_| unreadable("WAL position"))?,
            None => Lsn(0),
        },
    };
    if !MAJORS.contains(&identity.major_version()) {
        return Err(SourceError::UnsupportedVersion {
            found: identity.server_version,
        });
    }
    Ok(identity)
}

/// What a server allows to whoever receives its WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLimits {
    /// `max_wal_senders`.
    pub senders_max: u32,
    /// `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub slot_keep_bytes: Option<u64>,
    /// Whether our role may.
    pub may_replicate: bool,
}

/// Asks for them.
///
/// # Errors
/// When the statement fails.
pub async fn stream_limits(connection: &mut PgConnection) -> Result<StreamLimits, SourceError> {
    // `pg_settings` gives the limit in megabytes, -1 for none.
    let (senders_max, slot_keep, may_replicate): (i64, i64, bool) = sqlx::query_as(
        "select (select setting::bigint from pg_settings where name = 'max_wal_senders'),
                (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size'),
                (select rolreplication or rolsuper from pg_roles where rolname = current_user)",
    )
    .fetch_one(connection)
    .await
    .map_err(|source| SourceError::Sql {
        action: "tell what it allows to whoever receives its WAL",
        source,
    })?;
    Ok(StreamLimits {
        senders_max: u32::try_from(senders_max).unwrap_or(0),
        slot_keep_bytes: u64::try_from(slot_keep)
            .ok()
            .map(|megabytes| megabytes << 20),
        may_replicate,
    })
}

/// Makes sure that `data_directory` is readable and is the very folder the server works on.
///
/// # Errors
/// When it is unreadable (naming the owner), another cluster's, another major version's, or a copy.
pub fn check_data_directory(
    data_directory: &Path,
    server: &ClusterIdentity,
) -> Result<(), SourceError> {
    let version_file = data_directory.join("PG_VERSION");
    let folder_major = std::fs::read_to_string(&version_file)
        .map_err(|error| unreadable(data_directory, &version_file, error))?
        .trim()
        .to_owned();
    if folder_major != server.major_version().to_string() {
        return Err(SourceError::OtherMajor {
            path: data_directory.to_owned(),
            folder: folder_major,
            server: server.major_version(),
        });
    }
    let control = control::read(data_directory)?;
    if control.system_id != server.system_id {
        return Err(SourceError::OtherCluster {
            path: data_directory.to_owned(),
            folder: control.system_id,
            server: server.system_id,
        });
    }
    // A restored copy has the same identifier; only the folder itself tells them apart.
    if let Some(servers_own) = &server.data_directory
        && let Ok(theirs) = std::fs::metadata(servers_own)
    {
        let ours = std::fs::metadata(data_directory)
            .map_err(SourceError::file("examine", data_directory))?;
        if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
            return Err(SourceError::OtherDirectory {
                path: data_directory.to_owned(),
                server: servers_own.clone(),
            });
        }
    }
    Ok(())
}

/// Explains a refused read by the owner who may.
fn unreadable(folder: &Path, file: &Path, error: std::io::Error) -> SourceError {
    let owner = std::fs::metadata(folder).map(|metadata| user_name(metadata.uid()));
    match (error.kind(), owner) {
        (std::io::ErrorKind::PermissionDenied, Ok(owner)) => SourceError::NotOwner {
            path: folder.to_owned(),
            command: as_user(&owner, std::env::args()),
            owner,
        },
        _ => SourceError::file("read", file)(error),
    }
}

/// The same command line under another user, quoted for a shell.
fn as_user(owner: &str, arguments: impl Iterator<Item = String>) -> String {
    let quoted = arguments.map(|argument| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            argument
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    });
    ["sudo".to_owned(), "-u".to_owned(), owner.to_owned()]
        .into_iter()
        .chain(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_type_is_quoted() {
        let arguments = ["dr", "backup", "run", "it's"].map(str::to_owned);
        assert_eq!(
            as_user("postgres", arguments.into_iter()),
            r"sudo -u postgres dr backup run 'it'\''s'"
        );
    }

    #[test]
    fn a_password_is_not_printed() {
        let options = ConnectOptions {
            url: "postgres://a:geheim@h/d".into(),
            password: Some("x".into()),
        };
        assert!(!format!("{options:?}").contains("geheim"));
        let parsed = PgConnectOptions::from_str(&options.url).unwrap();
        assert_eq!(place(&parsed), "h:5432");
    }
}

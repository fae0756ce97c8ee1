//! Getting a restored server through recovery, and telling why one did not get through.
//!
//! PostgreSQL ends in FATAL when the archive ends before the target was seen (20.5.6): a time after the
//! last commit, for example. When the plan knew that everything up to the target is stored, the end of
//! the archive is the target's state; a line in `postgresql.auto.conf` says so, beside the target it
//! belongs to. Then, and only then, the target is taken out and the server started once more.
//!
//! When `restore_command` exits above 125 the server stops and does not open. That is the one thing
//! between an unreachable repository and a server that opens early, on a new timeline, without a word.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline};
use dr_sources::SourceError;
use dr_sources::postgres::{ConnectOptions, connect, control};

use crate::error::{file_error, source_error};
use crate::scratch::percent_encode;
use crate::{Reached, RestoreError};

const SETTINGS_FILE: &str = "postgresql.auto.conf";
const MARKER: &str =
    "# dr: everything up to the target is archived; the end of the archive is as good";

/// What makes PostgreSQL look for a target.
const TARGET_SETTINGS: [&str; 6] = [
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_xid",
    "recovery_target_name",
    "recovery_target_inclusive",
];

/// Notes in a restored folder that recovery may end with the archive.
pub(crate) fn allow_end_of_archive(data_directory: &Path) -> Result<(), RestoreError> {
    let path = data_directory.join(SETTINGS_FILE);
    let append = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(&path)?;
        writeln!(file, "{MARKER}")?;
        file.sync_all()
    };
    append().map_err(file_error("write", &path))
}

/// Takes the target out of a folder's settings; `false` when the note is not there.
pub(crate) fn end_with_the_archive(data_directory: &Path) -> Result<bool, RestoreError> {
    let path = data_directory.join(SETTINGS_FILE);
    let text = fs::read_to_string(&path).map_err(file_error("read", &path))?;
    if !text.lines().any(|line| line == MARKER) {
        return Ok(false);
    }
    let kept = without_target(&text);
    // In place: the file keeps its owner and rights, and a torn one is only seen by a server that has
    // just failed and is started again by us.
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)?;
        file.write_all(kept.as_bytes())?;
        file.sync_all()
    };
    write().map_err(file_error("write", &path))?;
    Ok(true)
}

fn without_target(text: &str) -> String {
    let is_target = |line: &str| {
        let name = line
            .trim_start()
            .split(|c: char| c == '=' || c.is_whitespace())
            .next();
        name.is_some_and(|name| TARGET_SETTINGS.contains(&name))
    };
    let mut kept = String::new();
    for line in text
        .lines()
        .filter(|line| !is_target(line) && *line != MARKER)
    {
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// Why a server did not get through recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The target was not in the archive.
    TargetNotReached,
    /// `restore_command` failed in a way that does not mean "not there".
    NotDelivered,
    /// The target lies before the copy is consistent.
    TooEarly,
    /// Anything else.
    Other,
}

/// Reads the server's log (`xlogrecovery.c`, `xlogarchive.c`; the server runs with lc_messages = C).
pub(crate) fn why_ended(log: &str) -> Ended {
    // The last word counts: an earlier start may have written before.
    let last = |text: &str| log.rfind(text);
    let found = [
        (
            last("recovery ended before configured recovery target was reached"),
            Ended::TargetNotReached,
        ),
        (last("could not restore file"), Ended::NotDelivered),
        (
            last("requested recovery stop point is before consistent recovery point"),
            Ended::TooEarly,
        ),
    ];
    found
        .into_iter()
        .filter_map(|(place, why)| place.map(|place| (place, why)))
        .max_by_key(|(place, _)| *place)
        .map_or(Ended::Other, |(_, why)| why)
}

/// The error for a server that did not get through recovery.
pub(crate) fn not_opened(
    data_directory: &Path,
    error: SourceError,
    since: SystemTime,
) -> RestoreError {
    let SourceError::NotStarted { path, reason } = error else {
        return source_error(format!(
            "start the restored server of {}",
            data_directory.display()
        ))(error);
    };
    let log = format!("{reason}{}", collected_log(&path, since));
    match why_ended(&log) {
        Ended::NotDelivered => RestoreError::RepositoryUnreachable { path, log },
        Ended::TooEarly => RestoreError::NotOpened {
            path,
            why: "the target lies before the end of its base backup".to_owned(),
            log,
        },
        Ended::TargetNotReached => RestoreError::NotOpened {
            path,
            why: "the archive ends before the target".to_owned(),
            log,
        },
        Ended::Other => RestoreError::NotOpened {
            path,
            why: "it ended or took too long".to_owned(),
            log,
        },
    }
}

/// Whether the server ended because the archive does not reach the target.
pub(crate) fn is_target_not_reached(error: &SourceError, since: SystemTime) -> bool {
    let SourceError::NotStarted { path, reason } = error else {
        return false;
    };
    let log = format!("{reason}{}", collected_log(path, since));
    why_ended(&log) == Ended::TargetNotReached
}

/// A server with a logging collector writes into its own folder: the newest file there, if it is newer
/// than the start.
fn collected_log(data_directory: &Path, since: SystemTime) -> String {
    let Ok(entries) = fs::read_dir(data_directory.join("log")) else {
        return String::new();
    };
    let newest = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let modified = entry.metadata().ok()?.modified().ok()?;
            (modified >= since).then_some((modified, entry.path()))
        })
        .max();
    let Some((_, path)) = newest else {
        return String::new();
    };
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(20);
    format!("\n{}", lines.get(from..).unwrap_or_default().join("\n"))
}

/// Asks an opened server where its recovery ended.
pub(crate) async fn reached(
    options: &ConnectOptions,
    data_directory: &Path,
    note: Option<String>,
) -> Result<Reached, RestoreError> {
    match ask(options).await {
        Ok((lsn, last_commit_time, timeline)) => Ok(Reached {
            lsn,
            last_commit_time,
            timeline,
            note,
        }),
        // The restored access rules may not let us in; the control file tells what it can.
        Err(error) => {
            let control =
                control::read(data_directory).map_err(source_error("tell where recovery ended"))?;
            let unasked = format!("the server could not be asked where recovery ended: {error}");
            let note = Some(note.map_or(unasked.clone(), |note| format!("{note}; {unasked}")));
            Ok(Reached {
                lsn: control.checkpoint,
                last_commit_time: None,
                timeline: control.timeline,
                note,
            })
        }
    }
}

async fn ask(
    options: &ConnectOptions,
) -> Result<(Lsn, Option<DateTime<Utc>>, Timeline), Box<dyn std::error::Error + Send + Sync>> {
    let mut connection = connect(options).await?;
    // Both keep their last value after promotion (9.27.4, "Recovery Information Functions").
    let (lsn, time, current): (Option<String>, Option<DateTime<Utc>>, String) = sqlx::query_as(
        "select pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp(), \
         pg_walfile_name(pg_current_wal_lsn())",
    )
    .fetch_one(&mut connection)
    .await?;
    let lsn = match lsn {
        Some(text) => text.parse()?,
        // A server that needed no recovery stands where it writes.
        None => sqlx::query_scalar::<_, String>("select pg_current_wal_lsn()::text")
            .fetch_one(&mut connection)
            .await?
            .parse()?,
    };
    let timeline = current
        .get(..8)
        .and_then(|text| u32::from_str_radix(text, 16).ok())
        .ok_or("the server named no WAL file")?;
    Ok((lsn, time, Timeline(timeline)))
}

/// User and database of a connection URL, as written in it.
pub(crate) fn url_parts(url: &str) -> (String, String) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let user = authority
        .rsplit_once('@')
        .map_or("postgres", |(user, _)| user);
    let user = user
        .split(':')
        .next()
        .filter(|user| !user.is_empty())
        .unwrap_or("postgres");
    let database = path
        .split('?')
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or("postgres");
    (user.to_owned(), database.to_owned())
}

/// The same URL with another database.
#[must_use]
pub fn with_database(url: &str, database: &str) -> String {
    let (before, parameters) = match url.split_once('?') {
        Some((before, parameters)) => (before, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let (scheme, rest) = before.split_once("://").unwrap_or(("postgres", before));
    let authority = rest.split('/').next().unwrap_or_default();
    let database = percent_encode(database);
    format!("{scheme}://{authority}/{database}{parameters}")
}

/// The major version that a data directory was made by.
pub(crate) fn major_version(data_directory: &Path) -> Result<u32, RestoreError> {
    let path: PathBuf = data_directory.join("PG_VERSION");
    let text = fs::read_to_string(&path).map_err(file_error("read", &path))?;
    text.trim().parse().map_err(|_| RestoreError::File {
        action: "understand",
        path,
        source: std::io::Error::other("it is no version number"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_database_takes_the_place_of_the_one_in_a_url() {
        let with = |url: &str| with_database(url, "a b");
        assert_eq!(with("postgres://dr@h:1/erp"), "postgres://dr@h:1/a%20b");
        assert_eq!(with("postgres://dr@h"), "postgres://dr@h/a%20b");
        assert_eq!(
            with("postgres://dr@h/erp?sslmode=verify-full"),
            "postgres://dr@h/a%20b?sslmode=verify-full"
        );
        assert_eq!(
            with("postgres://dr@/?host=/run"),
            "postgres://dr@/a%20b?host=/run"
        );
    }

    #[test]
    fn only_the_target_is_taken_out() {
        let text = format!(
            "work_mem = '8MB'\nrestore_command = 'x'\nrecovery_target_time = '2026-11-23'\n\
             recovery_target_inclusive = on\nrecovery_target_timeline = '1'\n{MARKER}\n\
             recovery_target_action = 'promote'\n"
        );
        assert_eq!(
            without_target(&text),
            "work_mem = '8MB'\nrestore_command = 'x'\nrecovery_target_timeline = '1'\n\
             recovery_target_action = 'promote'\n"
        );
    }

    #[test]
    fn the_last_reason_in_the_log_counts() {
        let unreached = "FATAL:  recovery ended before configured recovery target was reached";
        let undelivered = "FATAL:  could not restore file \"00000001\" from archive: exit code 200";
        assert_eq!(
            why_ended(&format!("{undelivered}\n{unreached}\n")),
            Ended::TargetNotReached
        );
        assert_eq!(
            why_ended(&format!("{unreached}\n{undelivered}\n")),
            Ended::NotDelivered
        );
        assert_eq!(why_ended("LOG:  starting"), Ended::Other);
    }

    #[test]
    fn user_and_database_come_from_the_url() {
        let parts = |url| url_parts(url);
        assert_eq!(
            parts("postgres://dr@127.0.0.1:5433/erp"),
            ("dr".into(), "erp".into())
        );
        assert_eq!(
            parts("postgres://h/erp?host=/run"),
            ("postgres".into(), "erp".into())
        );
        assert_eq!(parts("postgres://u:p@h"), ("u".into(), "postgres".into()));
    }
}

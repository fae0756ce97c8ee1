//! What a backup asks of its session.

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline};
use sqlx::{PgConnection, Row};

use crate::SourceError;
use crate::postgres::connection::ClusterIdentity;

pub(super) fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> SourceError {
    move |source| SourceError::Sql { action, source }
}

/// The position up to which the server has written (or, on a standby, replayed).
pub(super) async fn insert_position(session: &mut PgConnection) -> Result<Lsn, SourceError> {
    let text: String = sqlx::query_scalar(
        "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
            else pg_current_wal_insert_lsn() end)::text",
    )
    .fetch_one(session)
    .await
    .map_err(failed("tell its WAL position"))?;
    text.parse()
        .map_err(|_| SourceError::Refused(format!("`{text}` is no WAL position")))
}

/// The timeline of the last checkpoint. After a promotion the server writes on its new timeline for minutes
/// before the first checkpoint there; the one that begins a backup ends that.
pub(super) async fn timeline(session: &mut PgConnection) -> Result<Timeline, SourceError> {
    let timeline: i32 = sqlx::query_scalar("select timeline_id from pg_control_checkpoint()")
        .fetch_one(session)
        .await
        .map_err(failed("tell its timeline"))?;
    u32::try_from(timeline)
        .map(Timeline)
        .map_err(|_| SourceError::Refused(format!("`{timeline}` is no timeline")))
}

/// When the last checkpoint began: every commit up to then lies before its redo position.
pub(super) async fn checkpoint_time(
    session: &mut PgConnection,
) -> Result<DateTime<Utc>, SourceError> {
    sqlx::query_scalar("select checkpoint_time from pg_control_checkpoint()")
        .fetch_one(session)
        .await
        .map_err(failed("tell the time of its checkpoint"))
}

/// The timeline on which a standby's files become consistent; 0 when it is none.
pub(super) async fn consistent_timeline(session: &mut PgConnection) -> Result<u32, SourceError> {
    let timeline: i32 =
        sqlx::query_scalar("select min_recovery_end_timeline from pg_control_recovery()")
            .fetch_one(session)
            .await
            .map_err(failed("tell where its files become consistent"))?;
    Ok(u32::try_from(timeline).unwrap_or(0))
}

/// A time limit meant for ordinary sessions must not void a backup.
pub(super) async fn lift_limits(session: &mut PgConnection) -> Result<(), SourceError> {
    sqlx::raw_sql("set statement_timeout = 0; set lock_timeout = 0; set idle_session_timeout = 0")
        .execute(session)
        .await
        .map(drop)
        .map_err(failed("prepare the session"))
}

pub(super) async fn server_time(session: &mut PgConnection) -> Result<DateTime<Utc>, SourceError> {
    sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(session)
        .await
        .map_err(failed("tell the time"))
}

pub(super) async fn check_rights(
    session: &mut PgConnection,
    identity: &ClusterIdentity,
) -> Result<(), SourceError> {
    let (query, functions) = if identity.major_version() >= 15 {
        (
            "select current_user::text,
                has_function_privilege('pg_backup_start(text, boolean)', 'execute')
                and has_function_privilege('pg_backup_stop(boolean)', 'execute')",
            "pg_backup_start(text, boolean), pg_backup_stop(boolean)",
        )
    } else {
        (
            "select current_user::text,
                has_function_privilege('pg_start_backup(text, boolean, boolean)', 'execute')
                and has_function_privilege('pg_stop_backup(boolean, boolean)', 'execute')",
            "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)",
        )
    };
    let (role, allowed): (String, bool) = sqlx::query_as(query)
        .fetch_one(session)
        .await
        .map_err(failed("tell the role's rights"))?;
    if allowed {
        return Ok(());
    }
    let grant = format!("GRANT EXECUTE ON FUNCTION {functions} TO \"{role}\"");
    Err(SourceError::MissingRight {
        role,
        action: "take base backups",
        grant,
    })
}

/// Makes a temporary slot that keeps the WAL from here on, bounded by the server's own
/// `max_slot_wal_keep_size`.
pub(super) async fn hold_wal(mut holder: PgConnection) -> Result<PgConnection, sqlx::Error> {
    // It has nothing else to do until the backup is stored.
    sqlx::raw_sql("set idle_session_timeout = 0")
        .execute(&mut holder)
        .await?;
    sqlx::query(
        "select pg_create_physical_replication_slot('dr_backup_' || pg_backend_pid(), true, true)",
    )
    .execute(&mut holder)
    .await?;
    Ok(holder)
}

pub(super) async fn start(
    session: &mut PgConnection,
    major: u32,
    label: &str,
) -> Result<Lsn, SourceError> {
    // `fast`: the checkpoint is done at once instead of being spread over minutes.
    let statement = if major >= 15 {
        "select pg_backup_start($1, true)::text"
    } else {
        "select pg_start_backup($1, true, false)::text"
    };
    let text: String = sqlx::query_scalar(statement)
        .bind(label)
        .fetch_one(session)
        .await
        .map_err(failed("begin a base backup"))?;
    text.parse()
        .map_err(|_| SourceError::Refused(format!("`{text}` is no WAL position")))
}

pub(super) struct Stopped {
    pub(super) lsn: Lsn,
    pub(super) label: String,
    pub(super) tablespace_map: String,
}

/// Without waiting for the archive: whoever stores the backup takes the WAL itself.
pub(super) async fn stop(session: &mut PgConnection, major: u32) -> Result<Stopped, SourceError> {
    let statement = if major >= 15 {
        "select lsn::text, labelfile, spcmapfile from pg_backup_stop(false)"
    } else {
        "select lsn::text, labelfile, spcmapfile from pg_stop_backup(false, false)"
    };
    let what = "end the base backup";
    let row = sqlx::query(statement)
        .fetch_one(session)
        .await
        .map_err(failed(what))?;
    let text: String = row.try_get(0).map_err(failed(what))?;
    let map: Option<String> = row.try_get(2).map_err(failed(what))?;
    Ok(Stopped {
        lsn: text
            .parse()
            .map_err(|_| SourceError::Refused(format!("`{text}` is no WAL position")))?,
        label: row.try_get(1).map_err(failed(what))?,
        tablespace_map: map.unwrap_or_default(),
    })
}

/// `START TIMELINE: 1` of a backup label.
pub(super) fn label_timeline(label: &str) -> Option<Timeline> {
    label
        .lines()
        .find_map(|line| line.strip_prefix("START TIMELINE: "))
        .and_then(|number| number.trim().parse().ok())
        .map(Timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_is_read_from_the_label() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000030000000000000002)\n\
                     CHECKPOINT LOCATION: 0/2000060\nSTART TIMELINE: 3\n";
        assert_eq!(label_timeline(label), Some(Timeline(3)));
        assert_eq!(label_timeline("LABEL: x\n"), None);
    }
}

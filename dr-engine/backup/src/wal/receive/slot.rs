//! What the server says of itself and of our slot.

use dr_model::{Lsn, SystemId, WorkloadName};
use dr_sources::postgres::{ConnectOptions, connect, identify};
use sqlx::Connection as _;

use crate::BackupError;
use crate::error::source_error;

/// What has to be known of a server before anything is received from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    pub(super) system_id: SystemId,
    /// Bytes in a WAL segment.
    pub(super) segment_bytes: u64,
    /// Whether it is a standby.
    pub(super) in_recovery: bool,
}

impl Server {
    pub(super) async fn of(
        options: &ConnectOptions,
        workload: &WorkloadName,
    ) -> Result<Self, BackupError> {
        let mut connection = connect(options)
            .await
            .map_err(source_error(format!("reach the server of `{workload}`")))?;
        let identity = identify(&mut connection)
            .await
            .map_err(source_error(format!("identify the server of `{workload}`")))?;
        // It has said all it was asked.
        drop(connection.close().await);
        Ok(Self {
            system_id: identity.system_id,
            segment_bytes: identity.wal_segment_bytes,
            in_recovery: identity.in_recovery,
        })
    }
}

/// How a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none of that name.
    Absent,
    /// It keeps WAL from here on; `None` if it never kept any.
    Keeps(Option<Lsn>),
    /// It held too much, and the server has given it up.
    Lost,
}

/// Looks at a slot.
pub(super) async fn find(
    options: &ConnectOptions,
    slot: &str,
    workload: &WorkloadName,
) -> Result<Found, BackupError> {
    let mut connection = connect(options)
        .await
        .map_err(source_error(format!("reach the server of `{workload}`")))?;
    let row: Option<(Option<String>, Option<String>)> = sqlx::query_as(
        "select restart_lsn::text, wal_status from pg_replication_slots where slot_name = $1",
    )
    .bind(slot)
    .fetch_optional(&mut connection)
    .await
    .map_err(|source| dr_sources::SourceError::Sql {
        action: "look at a replication slot",
        source,
    })
    .map_err(source_error(format!(
        "look at slot `{slot}` of `{workload}`"
    )))?;
    drop(connection.close().await);
    Ok(match row {
        None => Found::Absent,
        Some((_, Some(status))) if status == "lost" => Found::Lost,
        Some((from, _)) => Found::Keeps(from.and_then(|from| from.parse().ok())),
    })
}

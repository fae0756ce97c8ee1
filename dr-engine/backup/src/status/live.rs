//! Whether a streaming workload has everything in its repository right now: its server knows.
//!
//! A quiet server writes nothing, so nothing new arrives, and the newest tail grows old although nothing
//! is lost. The server knows how far we reported, and how far its own WAL goes.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Lsn, Timeline, WorkloadName};
use dr_sources::postgres::{ConnectOptions, connect};
use sqlx::Connection as _;

/// A server that does not answer within this says nothing: then what is stored speaks.
const LIVE_TIMEOUT: Duration = Duration::from_secs(3);

// `now()` is when the transaction began: what was acknowledged before that is not behind a position that
// is read later.
const ALL_IS_FLUSHED: &str = "select now() as at, flush_lsn::text as flushed,
    substr(pg_walfile_name(flush_lsn), 1, 8) as timeline
  from pg_stat_replication
  where application_name = $1 and state = 'streaming' and not pg_is_in_recovery()
    and flush_lsn >= pg_current_wal_flush_lsn()
  limit 1";

/// What a server says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct AllFlushed {
    /// When it said so, by its own clock.
    pub(super) at: DateTime<Utc>,
    /// Everything it has lies before this.
    pub(super) to: Lsn,
    /// The timeline it writes.
    pub(super) timeline: Timeline,
}

/// For each streaming workload whose server says that everything it has was reported to be in the
/// repository: up to where that is. Whether it can be recovered the repository has to say.
pub(super) async fn all_flushed(installation: &Installation) -> BTreeMap<WorkloadName, AllFlushed> {
    let mut found = BTreeMap::new();
    for workload in installation.config.workloads() {
        let WorkloadSource::Postgres(source) = workload.source else {
            continue;
        };
        let Some(stream) = &source.stream else {
            continue;
        };
        let Ok(password) = installation.postgres_password(&workload) else {
            continue;
        };
        let options = ConnectOptions {
            url: source.url.clone(),
            password,
        };
        let slot = stream.slot_of(workload.name);
        let asked = tokio::time::timeout(LIVE_TIMEOUT, asked(&options, &slot)).await;
        if let Ok(Some(flushed)) = asked {
            found.insert(workload.name.clone(), flushed);
        }
    }
    found
}

async fn asked(options: &ConnectOptions, slot: &str) -> Option<AllFlushed> {
    let mut connection = connect(options).await.ok()?;
    let row: Result<Option<(DateTime<Utc>, String, String)>, _> = sqlx::query_as(ALL_IS_FLUSHED)
        .bind(slot)
        .fetch_optional(&mut connection)
        .await;
    drop(connection.close().await);
    let (at, to, timeline) = row.ok().flatten()?;
    Some(AllFlushed {
        at,
        to: to.parse().ok()?,
        timeline: Timeline(u32::from_str_radix(&timeline, 16).ok()?),
    })
}

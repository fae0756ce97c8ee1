//! What servers know themselves: whether their archiver gets on, and whether everything of a streaming workload
//! is in its repository right now.
//!
//! A quiet server writes nothing, so nothing new arrives, and the newest tail grows old although nothing
//! is lost. The server knows how far we reported, and how far its own WAL goes.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Lsn, Timeline, WorkloadName};
use dr_sources::postgres::{ConnectOptions, PgConnection, connect};
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

// Of a standby's archiver `on` says nothing: it is idle.
const ARCHIVER_IS_STUCK: &str = "select last_failed_wal::text, last_failed_time
  from pg_stat_archiver
  where last_failed_time > coalesce(last_archived_time, '-infinity')
    and case current_setting('archive_mode') when 'always' then true
      when 'on' then not pg_is_in_recovery() else false end";

/// That everything a server has was reported to be in the repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct AllFlushed {
    /// When it said so, by its own clock.
    pub(super) at: DateTime<Utc>,
    /// Everything it has lies before this.
    pub(super) to: Lsn,
    /// The timeline it writes.
    pub(super) timeline: Timeline,
}

/// What an archiver says that does not get on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stuck {
    /// What it could not hand over.
    pub(super) file: String,
    /// When that was tried last, by the server's clock.
    pub(super) at: DateTime<Utc>,
}

/// What a server says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// For a streaming workload: everything the server has was reported to be in the repository, up to here.
    /// Whether it can be recovered the repository has to say.
    pub(super) flushed: Option<AllFlushed>,
    /// That its archiver failed, and has not succeeded since.
    pub(super) stuck: Option<Stuck>,
}

/// What the servers of PostgreSQL workloads say, each within [`LIVE_TIMEOUT`].
pub(super) async fn of_servers(installation: &Installation) -> BTreeMap<WorkloadName, Live> {
    let mut asking = tokio::task::JoinSet::new();
    for workload in installation.config.workloads() {
        let WorkloadSource::Postgres(source) = workload.source else {
            continue;
        };
        let Ok(password) = installation.postgres_password(&workload) else {
            continue;
        };
        let options = ConnectOptions {
            url: source.url.clone(),
            password,
        };
        let slot = source.stream.as_ref().map(|s| s.slot_of(workload.name));
        let name = workload.name.clone();
        asking.spawn(async move {
            let asked = tokio::time::timeout(LIVE_TIMEOUT, asked(&options, slot.as_deref())).await;
            (name, asked.ok().flatten().unwrap_or_default())
        });
    }
    let mut found = BTreeMap::new();
    while let Some(asked) = asking.join_next().await {
        found.extend(asked.ok());
    }
    found
}

async fn asked(options: &ConnectOptions, slot: Option<&str>) -> Option<Live> {
    let mut connection = connect(options).await.ok()?;
    let mut live = Live::default();
    if let Some(slot) = slot {
        live.flushed = flushed(&mut connection, slot).await;
    }
    let stuck: Result<Option<(String, DateTime<Utc>)>, _> = sqlx::query_as(ARCHIVER_IS_STUCK)
        .fetch_optional(&mut connection)
        .await;
    live.stuck = stuck.ok().flatten().map(|(file, at)| Stuck { file, at });
    drop(connection.close().await);
    Some(live)
}

async fn flushed(connection: &mut PgConnection, slot: &str) -> Option<AllFlushed> {
    let row: Result<Option<(DateTime<Utc>, String, String)>, _> = sqlx::query_as(ALL_IS_FLUSHED)
        .bind(slot)
        .fetch_optional(connection)
        .await;
    let (at, to, timeline) = row.ok().flatten()?;
    Some(AllFlushed {
        at,
        to: to.parse().ok()?,
        timeline: Timeline(u32::from_str_radix(&timeline, 16).ok()?),
    })
}

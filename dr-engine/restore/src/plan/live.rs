//! Asking the live server to complete the WAL segment it is writing, so that it reaches the archive.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dr_config::PostgresSource;
use dr_model::{Lsn, SystemId, WalFileName};
use dr_sources::postgres::{ConnectOptions, connect, identify};
use dr_store::Repository;

use super::RestoreRequest;
use super::choose::Stored;

/// How long the archiver is given to bring the completed segment.
const ARCHIVE_WAIT: Duration = Duration::from_secs(30);
const ARCHIVE_POLL: Duration = Duration::from_millis(200);
/// A server that does not answer by then counts as gone.
const SERVER_WAIT: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Every commit up to `at` is stored.
    Completed {
        /// The server's clock just before the switch.
        at: DateTime<Utc>,
    },
    /// It could not be done.
    Unavailable {
        /// Completes "…, and".
        why: String,
    },
}

pub(super) async fn complete_archive(
    repository: &Repository,
    request: &RestoreRequest,
    source: &PostgresSource,
    password: Option<String>,
    stored: &Stored,
) -> Asked {
    let system_id = stored
        .points
        .iter()
        .rev()
        .find_map(|point| point.postgres().map(|base| base.system_id));
    let options = ConnectOptions {
        url: source.url.clone(),
        password,
    };
    let asked = tokio::time::timeout(SERVER_WAIT, switch(&options, system_id));
    let switched = match asked.await {
        Err(_) => Err("the live server does not answer".to_owned()),
        Ok(answer) => answer,
    };
    match switched {
        Err(why) => Asked::Unavailable { why },
        Ok(switched) => wait_for_arrival(repository, request, switched).await,
    }
}

/// Where the server stood, and the segment that holds the last byte before that.
struct Switched {
    at: DateTime<Utc>,
    segment: WalFileName,
}

async fn switch(options: &ConnectOptions, system_id: Option<SystemId>) -> Result<Switched, String> {
    let mut connection = connect(options)
        .await
        .map_err(|_| "the live server cannot be asked to complete its segment".to_owned())?;
    let identity = identify(&mut connection)
        .await
        .map_err(|error| error.to_string())?;
    if Some(identity.system_id) != system_id {
        return Err("the live server is another cluster".to_owned());
    }
    if identity.in_recovery {
        return Err("the live server is a standby".to_owned());
    }
    if identity.archive_mode == "off" || identity.archive_command.is_empty() {
        return Err("the live server does not archive".to_owned());
    }
    // The clock is read before the switch: every commit up to that time lies before it.
    let at: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(&mut connection)
        .await
        .map_err(|error| format!("the live server did not tell the time: {error}"))?;
    // The end of what was written in the completed segment; when nothing was written since the last
    // switch, the beginning of the current one (9.27.3). Either way the byte before it is archived.
    let lsn: String = sqlx::query_scalar("select pg_switch_wal()::text")
        .fetch_one(&mut connection)
        .await
        .map_err(|error| format!("the live server did not complete its segment: {error}"))?;
    let lsn: Lsn = lsn
        .parse()
        .map_err(|_| "the live server told no position".to_owned())?;
    let last_byte = Lsn(lsn.0.saturating_sub(1));
    Ok(Switched {
        at,
        segment: WalFileName::containing(last_byte, identity.timeline, identity.wal_segment_bytes),
    })
}

async fn wait_for_arrival(
    repository: &Repository,
    request: &RestoreRequest,
    switched: Switched,
) -> Asked {
    let deadline = Instant::now() + ARCHIVE_WAIT;
    loop {
        let (store, workload) = (repository.clone(), request.workload.clone());
        let name = switched.segment.clone();
        let found = tokio::task::spawn_blocking(move || store.wal_info(&workload, &name)).await;
        match found {
            Ok(Ok(Some(_))) => return Asked::Completed { at: switched.at },
            Ok(Ok(None)) if Instant::now() < deadline => tokio::time::sleep(ARCHIVE_POLL).await,
            Ok(Ok(None)) => {
                return Asked::Unavailable {
                    why: format!(
                        "the live server did not archive {} within {} s",
                        switched.segment,
                        ARCHIVE_WAIT.as_secs()
                    ),
                };
            }
            _ => {
                return Asked::Unavailable {
                    why: "the repository does not answer".to_owned(),
                };
            }
        }
    }
}

//! Keeps the WAL of a restore's transaction until it has been looked at.
//!
//! A server removes WAL that neither a checkpoint nor a standby nor the archive needs any more, and a
//! large transaction can outlast several checkpoints. A temporary physical replication slot
//! ("Replication Slots", 26.2.6) reserves it from the last checkpoint on, and the server drops it with the
//! session, however that ends. The proof is not worth a full disk, on which production would stop: when
//! little is free, the WAL is let go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dr_sources::postgres::ConnectOptions;
use sqlx::postgres::PgConnection;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{TenantError, rows, sql};

/// The server lets the WAL go when nothing was heard for so long: whoever has it kept may be suspended, and
/// then does not look at the free space.
const SILENCE_MAX: &str = "1min";
/// How often the free space is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// What stays free, in multiples of the server's `max_wal_size`: about once that is written until the checkpoint after
/// which it removes what was let go.
const FREE_WAL_SIZES: u64 = 2;

const RESERVE: &str = "select slot_name::text from \
     pg_create_physical_replication_slot('dr_tenant_' || pg_backend_pid(), true, true)";

/// WAL that is kept until this is dropped.
#[derive(Debug)]
pub(crate) struct KeptWal {
    _until_dropped: DropGuard,
}

/// Keeps the WAL from here on. A server that gives no slot (all in use, `wal_level` minimal, the role may not) keeps
/// its WAL as long as it would anyway.
pub(crate) async fn keep(live_options: &ConnectOptions) -> Option<KeptWal> {
    match reserve(live_options).await {
        Ok(kept) => kept,
        Err(error) => {
            tracing::debug!(%error, "the WAL of the transaction is not kept");
            None
        }
    }
}

async fn reserve(live_options: &ConnectOptions) -> Result<Option<KeptWal>, TenantError> {
    let mut live = rows::session(live_options, "the live database").await?;
    let ask = "select current_setting('data_directory')";
    let data: String = sql::value(&mut live, ask, "asking for the data directory").await?;
    let ask = "select pg_size_bytes(current_setting('max_wal_size'))";
    let wal_size: i64 = sql::value(&mut live, ask, "asking for max_wal_size").await?;
    let room = Room {
        wal: Path::new(&data).join("pg_wal"),
        bytes_min: sql::count(wal_size).saturating_mul(FREE_WAL_SIZES),
    };
    if !room.is_there() {
        rows::close(live).await;
        return Ok(None);
    }
    let bound = format!("set idle_session_timeout = '{SILENCE_MAX}'");
    sql::run(&mut live, &bound, "keeping the WAL").await?;
    let _slot: String = sql::value(&mut live, RESERVE, "keeping the WAL").await?;
    let dropped = CancellationToken::new();
    let guard = dropped.clone().drop_guard();
    tokio::spawn(hold(live, room, dropped));
    Ok(Some(KeptWal {
        _until_dropped: guard,
    }))
}

/// Keeps the session, and with it the slot.
async fn hold(mut live: PgConnection, room: Room, dropped: CancellationToken) {
    while room.is_there() {
        tokio::select! {
            () = dropped.cancelled() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        if sql::run(&mut live, "select", "keeping the WAL")
            .await
            .is_err()
        {
            return;
        }
    }
    rows::close(live).await;
}

/// What has to be free beside the WAL.
struct Room {
    wal: PathBuf,
    bytes_min: u64,
}

impl Room {
    /// Not where the WAL is not on this machine.
    fn is_there(&self) -> bool {
        rustix::fs::statvfs(&self.wal)
            .is_ok_and(|system| system.f_bavail.saturating_mul(system.f_frsize) >= self.bytes_min)
    }
}

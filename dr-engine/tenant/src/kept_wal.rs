//! Keeps the WAL of a restore's transaction until it has been looked at.
//!
//! A server removes WAL that neither a checkpoint nor a standby nor the archive needs any more, and a
//! large transaction can outlast several checkpoints. A temporary physical replication slot
//! ("Replication Slots", 26.2.6) reserves it from the last checkpoint on, and the server drops it with the
//! session, however that ends. The proof is not worth a full disk, on which production would stop: when
//! little is free, the WAL is let go.

use std::path::Path;
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
/// The part of the file system that stays free, as its divisor.
const FREE_PART: u64 = 10;

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
    let wal = Path::new(&data).join("pg_wal");
    if !has_room(&wal) {
        rows::close(live).await;
        return Ok(None);
    }
    let bound = format!("set idle_session_timeout = '{SILENCE_MAX}'");
    sql::run(&mut live, &bound, "keeping the WAL").await?;
    let _slot: String = sql::value(&mut live, RESERVE, "keeping the WAL").await?;
    let dropped = CancellationToken::new();
    let guard = dropped.clone().drop_guard();
    tokio::spawn(hold(live, wal.into(), dropped));
    Ok(Some(KeptWal {
        _until_dropped: guard,
    }))
}

/// Keeps the session, and with it the slot.
async fn hold(mut live: PgConnection, wal: Box<Path>, dropped: CancellationToken) {
    while has_room(&wal) {
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

/// Whether enough is free below `wal`; not where it is not on this machine.
fn has_room(wal: &Path) -> bool {
    rustix::fs::statvfs(wal).is_ok_and(|system| system.f_bavail >= system.f_blocks / FREE_PART)
}

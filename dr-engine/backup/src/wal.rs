//! WAL in and out: what `archive_command` and `restore_command` call, and the rescue of a dead
//! primary's last segments.
//!
//! What PostgreSQL calls blocks and opens as little as it can: the engine file, the key, the repository. No
//! catalog, no tiers, no daemon, so that it works with the catalog locked or gone.
//!
//! PostgreSQL acts on the exit status alone. `Ok` from [`push`] means durable; from then on the server
//! may forget the segment. `Ok(Absent)` from [`fetch`] means that an opened repository was asked and
//! does not hold the file; PostgreSQL then believes that the archive ends here and opens the server. So
//! everything that is not proven is an error, and each of the two ends within a named time. What people
//! call, [`push_ready`] and [`check`], takes as long as there is to do.

mod ahead;
mod along;
mod check;
mod fetch;
mod given_up;
mod identity;
mod moment;
mod push;
mod receive;
mod rescue;

use std::sync::mpsc;
use std::time::Duration;

use crate::BackupError;

pub use ahead::{Ahead, Recovery, Spool, fetch_ahead};
pub use along::{Along, EachRecord, read_along};
pub use check::{RecordsFound, WalCheck, WalGap, WalStretch, check};
pub use dr_store::WalPut;
pub use fetch::{Fetched, fetch};
pub(crate) use given_up::Records as GivenUpRecords;
pub use given_up::{FileIdentity, GivenUp, store_kept_histories};
pub use moment::{Moment, Search, Wanted, find};
pub use push::{Pushed, PushedReady, push, push_ready};
pub use receive::{Failing, Standing, Standings, receive, receive_for_ever};
pub(crate) use rescue::names_in;
pub use rescue::{Rescued, not_stored, rescue};

pub(crate) use identity::check_segment;
pub(crate) use push::put;

/// A push not done by then has failed; PostgreSQL tries again. Long enough for a 1 GiB segment at
/// 10 MB/s.
pub const PUSH_TIMEOUT: Duration = Duration::from_secs(120);

/// A fetch not done by then has failed; recovery stops and can be started again.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

/// How a file is handed to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushing {
    /// Durable before it has its name: recovery may go on from there after a crash of the machine.
    Each,
    /// Not flushed: the server runs without `fsync` and is thrown away.
    Spared,
}

/// No WAL segment is larger (`--wal-segsize`, 1 MiB to 1 GiB).
pub(crate) const WAL_FILE_BYTES_MAX: u64 = 1 << 30;

/// The workload that is named, or the only PostgreSQL workload there is; `what` is said to need one.
///
/// # Errors
/// When it is no PostgreSQL workload, or there is none or more than one to choose from.
pub fn one_workload(
    installation: &dr_installation::Installation,
    named: Option<&dr_model::WorkloadName>,
    what: &'static str,
) -> Result<dr_model::WorkloadName, BackupError> {
    identity::one_workload(installation, named, what).map(|(name, _)| name.clone())
}

/// Runs `work` on a thread of its own and waits for at most `limit`. A hanging file system cannot be
/// interrupted: the thread is left behind, and ends with the process.
fn within<T: Send + 'static>(
    limit: Duration,
    what: String,
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("wal".to_owned())
        .spawn(move || {
            // The receiver is gone when the time is up; nobody waits for the answer then.
            let _ = sender.send(work());
        })
        .map_err(|_| BackupError::Worker("move a WAL file"))?;
    match receiver.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(BackupError::TimedOut {
            what,
            seconds: limit.as_secs(),
        }),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(BackupError::Worker("move a WAL file")),
    }
}

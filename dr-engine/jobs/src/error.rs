//! How a job can end other than well.

use dr_catalog::CatalogError;

/// Errors of this crate; `E` is the work's own.
#[derive(Debug, thiserror::Error)]
pub enum JobError<E: std::error::Error + 'static> {
    /// Another job holds the lane.
    #[error("{lane} is busy: {kind} {job} runs in process {pid} on {host} since {since}")]
    LaneBusy {
        /// The lane.
        lane: String,
        /// The job that holds it.
        job: String,
        /// What it does.
        kind: String,
        /// Its process.
        pid: u32,
        /// Its host.
        host: String,
        /// When it began.
        since: String,
    },
    /// The work failed.
    #[error(transparent)]
    Failed(E),
    /// The process was asked to stop before the work began.
    #[error("stopped before it began")]
    Cancelled,
    /// The catalog could not be used.
    #[error("cannot record the job")]
    Catalog(#[source] CatalogError),
    /// Another process took the job over while it ran: it may have been asleep for longer than its lease.
    #[error("the job's lease was lost while it ran; another process may have begun the same work")]
    LeaseLost,
}

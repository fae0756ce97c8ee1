//! Durable work: one job at a time on each lane, with a lease that a dead process cannot hold.
//!
//! A job is a row in the catalog, claimed in one transaction with its lane. While it runs, a heartbeat
//! renews its lease every [`HEARTBEAT`]; every write names the job's epoch, so a process that was taken
//! over can change nothing any more. A job whose process is gone (same host and boot, but no process of
//! that id and start time) is ended at once by whoever needs its lane, and by the daemon at its start; on
//! another host or boot, when its lease of [`LEASE`] has run out.
//!
//! What a crash leaves: a row `running` whose process is gone, ended with a reason by the next to look.
//! What the job had stored is the store's matter: unreferenced data, never a listed restore point.
//!
//! Without a catalog jobs run unrecorded: the repository is safe with concurrent writers, and a backup
//! that does not run because an index is broken protects nobody.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod error;
mod process;
mod run;

pub use dr_catalog::{JobRow, JobState};
pub use error::JobError;
pub use run::{HEARTBEAT, JobContext, JobSpec, Jobs, LEASE};

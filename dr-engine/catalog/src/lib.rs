//! The catalog: an index of the repositories, and this host's jobs, schedule runs and alerts.
//!
//! The repository is the truth. What is only here is the history of one host; everything else can be
//! made anew. SQLite in WAL mode with `synchronous=FULL`: a committed row survives a power cut. Writes
//! begin with `BEGIN IMMEDIATE`, so that two processes wait for each other instead of failing midway.
//! A process that holds the catalog for longer than [`BUSY_TIMEOUT`] makes others give up with an error
//! that says so; backups and pushes go on without it.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod alerts;
mod anchors;
mod error;
mod jobs;
mod open;
mod points;
mod schedules;

pub use alerts::Alert;
pub use anchors::SeenList;
pub use error::CatalogError;
pub use jobs::{Claim, JobRow, JobState, Owner};
pub use open::{BUSY_TIMEOUT, Catalog};
pub use schedules::ScheduleRun;

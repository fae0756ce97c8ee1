//! Restoring whole workloads: choose (pure), write, start, prove.
//!
//! A restore is planned first: [`plan`] turns a target into a [`RestorePlan`] that can be printed and
//! stored, and refuses what cannot be reached. [`execute`] carries it out. Until the very last file is
//! in place, a restored data directory cannot be started: `global/pg_control` comes last, by rename.
//! A crash leaves a folder that PostgreSQL refuses and that a second restore refuses too, because it
//! is not empty; nothing that existed before is touched. Only a restore that is asked for it goes over a
//! stopped state of the same cluster (`execute::over`); interrupted, the same restore goes on.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod collations;
mod erasure;
mod error;
mod execute;
mod files;
mod nats;
mod plan;
mod recovery;
mod scratch;
mod start;
mod telling;
mod threads;
mod verify;

pub use erasure::{
    AppliedErasure, AppliedErasures, ErasedCount, ErasedDatabase, ErasedFolder, ErasedLink,
    ErasedRows, ErasedTable, ErasedTenant, Erasure, ErasureScope, Found, FoundRows,
    Part as ErasurePart, WholePlace, canonical_id, erasures, find, record_erasure,
};
pub use error::RestoreError;
pub use execute::{RestoreOutcome, execute, rescue_first};
pub use files::{FilesOutcome, files};
pub use nats::{NatsOutcome, nats};
pub use plan::{PlannedSource, PostgresPlan, RecoveryEnd, RestorePlan, RestoreRequest, plan};
pub use recovery::with_database;
pub use scratch::{Scratch, scratch, scratch_of};
pub use start::{Reached, StartAs, StartRequest, Started, start};
pub use verify::{VerifyRequest, verify};

pub use dr_backup::{Verification, VerificationCheck};

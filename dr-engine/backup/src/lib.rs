//! Taking backups: from a source into the repository, as a restore point that can be restored.
//!
//! Order, for every kind of workload: data, then (PostgreSQL) every WAL file the copy needs, read back
//! and decoded, then the restore point, then the catalog. A crash before the restore point leaves only
//! data that nothing refers to; a failing catalog fails no backup, because it is an index of the
//! repository and can be rebuilt.
//!
//! [`run`] does not know lanes or jobs: the caller wraps it.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod binding;
mod check;
mod copies;
mod error;
mod hold;
mod prune;
mod retention;
mod run;
mod status;
mod verification;
pub mod wal;
mod window;

pub use binding::{Binding, bind, binding_of, check_binding};
pub use check::{ListWentBack, PlaceCheck, check, lists_that_went_back, repair};
pub use copies::{CopyStanding, CopyStatus, LAG_MAX, Synced, copies_of, sync};
pub use error::BackupError;
pub use hold::{
    Hold, HoldRelease, HoldRequest, HoldScope, StoredHold, add_hold, holds, release_hold,
};
pub use prune::{
    PruneChoice, RepositoryPrune, forget_points, plan_prune, prune, prune_and_forget,
    pruned_repositories,
};
pub use retention::{
    Decision, Fate, Held, HoldOn, KeepReason, PointFacts, RetentionInput, RetentionPlan,
    RetentionPolicy, UNDO_KEPT, WalFacts, WalPlan, plan_retention,
};
pub use run::{
    BackupOptions, Increment, NatsDetails, PostgresDetails, run, store_folder, stream_snapshot_path,
};
pub use status::{BrokenOff, WorkloadStatus, status};
pub use verification::{Verification, VerificationCheck, verifications};
pub use window::{TimelineSwitch, WalCoverage, WalIndex, parse_history, window, window_of};

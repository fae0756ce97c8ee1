//! The vocabulary every other crate speaks: identifiers, log positions, time, targets, restore points.
//!
//! Everything here is a plain value that can be printed, stored and compared. Two things touch the
//! outside and exist here so that they have one door each: [`clock`] (the only way to learn "now")
//! and [`random`] (the only source of randomness for identifiers).

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod clock;
pub mod ids;
pub mod lsn;
pub mod progress;
pub mod quantity;
pub mod random;
pub mod restore_point;
pub mod table_name;
pub mod target;
pub mod window;

pub use clock::{Clock, SystemClock};
pub use ids::{
    DrillRunId, ErasureId, HoldId, InvalidName, JobId, RepositoryName, RestorePointId,
    TenantRestoreId, TierName, WorkloadName,
};
pub use lsn::{Lsn, SystemId, Timeline, WalFileName};
pub use progress::{Progress, Silent};
pub use quantity::{ByteCount, HumanDuration};
pub use restore_point::{
    Condition, FilesPosition, NatsPosition, Position, PostgresPosition, RestorePoint,
    StreamPosition, TenantStatePosition, WorkloadKind,
};
pub use table_name::TableName;
pub use target::{InvalidTarget, Target};
pub use window::RecoveryWindow;

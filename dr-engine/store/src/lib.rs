//! The repository: content-addressed, compressed, encrypted, self-describing (`docs/FORMAT.md`).
//!
//! ```text
//! files -> chunk -> compress -> crypto (seal) -> format (pack, index, point) -> backend
//! ```
//!
//! `format` is pure: bytes in, values out. `repo` holds the write order and is the only user of
//! `backend`. `check` reads everything and believes nothing. Everything blocks: call it from a thread
//! that may (`spawn_blocking`).
//!
//! What holds at every instant, whatever crashes:
//! - an object is there whole or not at all, and is never overwritten;
//! - a listed restore point has everything it needs;
//! - what is read was authenticated for the very place it was read from.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod backend;
mod check;
mod chunk;
mod compress;
mod crypto;
mod error;
mod format;
#[cfg(feature = "testing")]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod prune;
mod repo;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(not(feature = "testing"))]
mod testing;

pub use backend::{
    Backend, BackendError, Bandwidth, Capabilities, LimitedBackend, LocalBackend, Lock, LockMode,
    ObjectEntry, Patience, PutOptions, PutOutcome, S3Backend, S3Location, VersionEntry,
    try_capabilities,
};
pub use check::{CheckOptions, CheckProblem, CheckReport};
pub use chunk::Cutting;
pub use crypto::{KeyCommand, NewSlot, RepositoryKey, Signature, SlotKind, new_age_identity};
pub use error::StoreError;
pub use format::tree::{EntryKind, EntryMeta, TreeEntry};
pub use prune::{
    DoomedObject, HalfEmptyPack, LockedObject, PruneOptions, PrunePlan, PruneReport, PruneRequest,
    SessionInfo, SessionState, WorkloadPrune,
};
pub use repo::{
    BackupWriter, COPY_WAL_TIMEOUT, ChainAnchor, CopyLag, CopyPlace, CopyRun, CopyState,
    DamageEvent, DamageRecord, DamagedObject, DamagedPoint, Domain, KeySlot, OpenCopy, PointReader,
    RepairOptions, RepairReport, Repaired, Repository, ShredOutcome, ShreddedFile, Shredding,
    StoredPoint, SyncReport, TailEnd, TailPlace, TenantKey, Updated, WalInfo, WalPut, WalTail,
    WriteOptions, tail_chain,
};

/// Whether this build carries test hooks (kill points, the journal of file operations). Never in a
/// release: the `dr` binary says so in `dr version --json`, and CI checks it.
pub const TESTING: bool = cfg!(feature = "testing");

//! One tenant, pooled, put back to a moment, undoable.
//!
//! A restore is prepared first: the state at the target is brought back in a private scratch instance,
//! the tenant's rows are cut out of it and out of production (one read-only snapshot), and compared
//! there. The difference is the plan; preparing writes nothing to production. Applying is one
//! transaction on a connection of its own, in an order that keeps these true:
//!
//! - Every statement carries key, tenant and old content; affecting another number of rows than planned
//!   rolls everything back.
//! - Triggers do not fire (`session_replication_role = replica`), which switches foreign keys off too:
//!   so they are checked in SQL as the last statements, in both directions.
//! - The counts PostgreSQL itself keeps for the transaction must equal the plan for every table and be 0
//!   for all others.
//! - The rows' former content is durable in the repository, with a record that names the transaction,
//!   before the commit. So a crash at any instant leaves either nothing, or a restore that can be
//!   decided (`pg_xact_status`) and undone.
//!
//! Folders follow after the commit, from the same point; their former content is in the same restore
//! point.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod apply;
mod beside;
mod casts;
mod catalog;
mod certificate;
mod changes;
mod checks;
mod checksum;
mod classify;
mod clone;
mod conflicts;
mod contents;
mod diff;
mod erase;
mod error;
mod execute;
mod export;
mod fault;
mod filter;
mod folders;
mod history;
mod hold;
mod hooks;
mod kept_wal;
mod large_objects;
mod map;
mod mapping;
mod outcome;
mod plan;
mod proof;
mod record;
mod referred;
mod report;
mod row_counts;
mod rows;
mod run;
mod slice;
mod sql;
mod take_back;
mod take_out;
mod tenants;
mod timeline;
mod undo;
mod views;
mod wal_count;
mod work;

pub use certificate::{Certified, Verified, certificate, signer, verify};
pub use clone::{CloneInto, Cloned, ClonedTable, clone};
pub use erase::{EraseLine, ErasePlan, EraseRequest, PreparedErasure, erasures, prepare_erasure};
pub use error::TenantError;
pub use export::{Export, ExportedColumn, ExportedTable, export};
pub use filter::Filter;
pub use history::{Became, Past, history};
pub use map::{Case, Hop, MappedTable, TableClass, TableName, TenancyMap};
pub use mapping::{list, map, row_counts};
pub use plan::{
    FolderPlan, Mode, Purpose, Sample, TablePlan, Tenant, TenantPlan, TenantRequest, Writing,
};
pub use referred::OnConflict;
pub use report::{
    FolderResult, ProofLine, ProofOutcome, TableContent, TableResult, TenantRestoreReport,
};
pub use row_counts::{Disagreement, RowCounts, TableRows};
pub use run::{Prepared, prepare};
pub use take_back::{PreparedUndo, prepare_undo};
pub use timeline::{
    HeldRows, LostFile, LostRows, TableTouched, TimelineReport, TimelineRequest,
    TimelineTransaction, Touched, Unattributed, timeline,
};

//! Drills: something is really broken in an environment of its own, recovered by the written runbook,
//! and measured from outside.
//!
//! The parts, by what they may know of each other:
//!
//! - [`probe`] is an outside client in a process of its own. Its log is the only source of every time
//!   and every count in a verdict.
//! - [`measure`] and [`verdict`] are pure: a log, the moment of the fault and the set of recovered keys
//!   go in, numbers and a judgement come out.
//! - [`sandbox`] builds a whole installation under one folder and takes it away again. It drives the
//!   product by its own commands, and writes down every process and path it makes before relying on it:
//!   only what is written there is ever stopped or removed.
//! - `fault` breaks things, only inside a sandbox; `witness` looks from outside whether it is broken.
//! - [`run`] is the conductor. It learns of the fault's effect by reading the probe's log, as anyone
//!   watching the service would.
//!
//! Between steady state and fault nothing flushes, switches WAL or takes a backup: a loss that would
//! happen in an incident happens in the drill.
//!
//! A crash of the runner leaves the sandbox's folder with its notes; [`sandbox::clean`] ends exactly
//! what they name.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod assemble;
mod error;
mod evidence;
mod fault;
pub mod measure;
pub mod probe;
mod records;
mod recovered;
mod run;
pub mod sandbox;
mod stage;
pub mod verdict;
pub mod witness;

pub use error::DrillError;
pub use records::{DrillRunSummary, ReportRequest, WrittenReport, list, report};
pub use run::{DrillOutcome, DrillRequest, clean_up_after, run};

//! Runbooks: recovery steps for one situation, in a file that people read and the engine runs.
//!
//! The same file serves a person on paper ([`describe`]), an incident and a drill ([`run`]). Steps run
//! in order; the first that fails ends the run, because what follows builds on it. Each step has a time
//! limit and a number of further tries. Before the first step is begun every template of every step is
//! filled in, so that a forgotten parameter is found before anything was touched.
//!
//! Nothing is undone by itself after a failure: the steps are written so that repeating the whole
//! runbook from its beginning is right (a restore refuses a folder that is not empty, so nothing is
//! overwritten by a repetition).

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod error;
mod execution;
mod failure;
mod run;
mod steps;
mod template;

pub use error::RunbookError;
pub use execution::{RunbookExecution, StepExecution, StepOutcome};
pub use run::{RunbookRequest, describe, run};

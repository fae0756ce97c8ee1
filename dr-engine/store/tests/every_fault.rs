//! Every operation of a recorded run, failed in every way; every object of a repository, damaged in
//! every way; every instant of a run, with the power cut. The cases are generated, and counted at the end
//! of each test.
//!
//! What is asked each time is what an operator would ask: is everything that was acknowledged there, does
//! everything that is listed come back byte for byte, does `check` find nothing wrong (or name what is),
//! and does the next backup succeed without help.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::needless_update,
    reason = "a test that prints how many cases it tried"
)]

#[path = "every_fault/damage.rs"]
mod damage;
#[path = "every_fault/operations.rs"]
mod operations;
#[path = "every_fault/power.rs"]
mod power;
#[path = "every_fault/story.rs"]
mod story;

//! The product killed at any moment, and the power cut under it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on says so and ends"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod kill;
mod power_cut;
mod scene;
mod stream_kills;
mod tenant_kills;

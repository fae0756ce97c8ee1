//! The client beside real servers, and beside some that are none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod access;
mod cluster;
mod encryption;
mod ends;
mod impostor;
mod log;
mod slots;
mod timelines;

//! The product as people use it: the binary, real servers, plain SQL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on says so and ends"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod bad_input;
mod collations;
mod copies;
mod demo;
mod drill_honesty;
mod erasures;
mod judge;
mod new_host;
mod public_schemas;
mod tenant_ends;
mod tenant_parts;
mod tenant_restore;
mod timeline;
mod withheld_segment;

//! What the acceptance tests stand on: the `dr` binary as a person runs it, PostgreSQL's and NATS's own
//! programs, and plain SQL. None of the product's crates is used here, so that nothing of the product
//! judges itself.
//!
//! A [`World`] is one installation in a temporary folder: a private cluster on a free loopback port, a
//! repository, `dr.yaml` and tiers. Started as root, everything in it runs as `postgres`. Dropping it
//! ends every process that lives in its folder, found by that folder's unique name, and removes it;
//! also when the test panics.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses its own part of the harness"
)]

mod cluster;
mod compare;
mod folder;
mod json;
mod program;
mod receiver;
mod schema;
mod world;
mod writer;

use std::path::PathBuf;

pub(crate) use cluster::Cluster;
pub(crate) use compare::{
    Rows, assert_foreign_keys_hold, differences, folder_state, foreign_key_violations, rows_of,
};
pub(crate) use folder::{Account, TempFolder, processes_in};
pub(crate) use json::Json;
pub(crate) use program::{Output, Program, free_port, wait_until};
pub(crate) use receiver::HttpReceiver;
pub(crate) use schema::{CARRIER, ERP, Schema};
pub(crate) use world::{Options, World};
pub(crate) use writer::Writer;

/// The folder of another version's programs than Debian's, if one is to be tested.
pub(crate) fn other_postgres() -> Option<PathBuf> {
    std::env::var_os("DR_TEST_POSTGRES_BIN").map(PathBuf::from)
}

/// One of PostgreSQL's own programs.
pub(crate) fn postgres_program(name: &str) -> PathBuf {
    let debian = || PathBuf::from("/usr/lib/postgresql/15/bin");
    other_postgres().unwrap_or_else(debian).join(name)
}

/// Whether the long variants run: `DR_TEST_LONG=1`.
pub(crate) fn long() -> bool {
    std::env::var("DR_TEST_LONG").is_ok_and(|value| value == "1")
}

//! Private servers: for scratch restores, drills, the demo and tests.
//!
//! A private server lives under one folder, listens on loopback or a socket of its own, runs as an
//! unprivileged user and in a process group of its own (so that a Ctrl-C meant for us does not reach
//! it), and is stopped when its handle is dropped, unless it was told to stay. All calls here block;
//! from async code use `spawn_blocking`.
//!
//! Processes are ended by pid only, and only after making sure that the pid still is the server's.

mod lock_file;
pub mod nats;
mod occupied;
pub mod postgres;
mod process;
mod process_folder;
mod run_as;

pub use nats::NatsInstance;
pub use occupied::{occupied, occupied_after};
pub use postgres::{
    InitdbOptions, PostgresInstance, StartOptions, StopMode, WaitFor, scratch_settings,
};
pub use process::{descendants, is_alive};
pub use process_folder::{FolderKind, ProcessFolder};
pub(crate) use run_as::user_name;
pub use run_as::{RunAs, command, free_port, give};

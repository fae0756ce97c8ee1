//! The `dr` command: arguments in, calls of the engine, answers out.
//!
//! One file per subcommand under `commands/`. Data goes to stdout, everything else to stderr; `--json`
//! makes stdout machine-readable. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 done but
//! an objective was missed. `wal push` and `wal fetch` have codes of their own, because PostgreSQL reads
//! them (see `commands/wal.rs`).

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod args;
mod commands;
mod context;
mod failure;
mod output;
mod progress;

use std::process::ExitCode;

use clap::Parser;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return output::usage(&error),
    };
    output::install_logging(&arguments.command);
    // WAL first: it must start fast and needs no runtime of its own.
    if let args::Command::Wal(command) = &arguments.command {
        return commands::wal::run(command, arguments.config.as_deref());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return output::failure(&failure::Failure::of("cannot start", &error)),
    };
    let code = runtime.block_on(commands::run(arguments));
    // Blocking work that was cancelled may still hold a thread; the process does not wait for it.
    runtime.shutdown_background();
    code
}

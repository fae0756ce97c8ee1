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

use args::WalCommand;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = output::usage(&error);
            // A `restore_command` that cannot be understood proves nothing about the archive.
            let is_wrong_fetch = error.use_stderr() && is_fetch();
            return if is_wrong_fetch { fetch_failed() } else { code };
        }
    };
    // WAL first: it must start fast and needs no runtime of its own.
    if let args::Command::Wal(
        command @ (WalCommand::Push { .. } | WalCommand::Fetch { .. } | WalCommand::Ahead { .. }),
    ) = &arguments.command
    {
        let run = || {
            output::install_logging(&arguments.command);
            commands::wal::run(command, arguments.config.as_deref(), arguments.json)
        };
        // The code of a panic, 101, would mean "not in the archive".
        return std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
            if is_fetch() {
                fetch_failed()
            } else {
                ExitCode::FAILURE
            }
        });
    }
    output::install_logging(&arguments.command);
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

fn fetch_failed() -> ExitCode {
    ExitCode::from(commands::wal::FETCH_FAILED)
}

/// Whether this process was called as `dr … wal fetch …`, readable or not.
fn is_fetch() -> bool {
    let mut words = std::env::args_os().skip(1);
    words.any(|word| word == "wal") && words.any(|word| word == "fetch")
}

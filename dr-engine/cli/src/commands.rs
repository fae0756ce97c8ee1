//! One file per subcommand.

mod backup;
mod catalog;
mod config;
mod demo;
mod drill;
pub(crate) mod hold;
mod init;
mod key;
mod probe;
mod repo;
mod restore;
mod runbook;
mod serve;
mod status;
mod tenant;
pub(crate) mod wal;

use std::process::ExitCode;

use crate::args::{Arguments, Command, WalCommand};
use crate::context::Context;
use crate::failure::Failure;
use crate::output;

/// Runs the parsed command line.
pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let context = Context::new(arguments.config, arguments.json);
    output::exit(dispatch(&context, arguments.command).await)
}

async fn dispatch(context: &Context, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Init(arguments) => init::run(context, arguments).await,
        Command::Status => status::run(context).await,
        Command::Serve => serve::run(context).await,
        Command::Demo(arguments) => demo::run(context, arguments).await,
        Command::Backup(command) => backup::run(context, command).await,
        Command::Restore(arguments) => restore::run(context, arguments).await,
        Command::Tenant(command) => tenant::run(context, command).await,
        Command::Drill(command) => drill::run(context, command).await,
        Command::Probe(command) => probe::run(context, command).await,
        Command::Runbook(command) => runbook::run(context, command).await,
        Command::Hold(command) => hold::run(context, command).await,
        Command::Key(command) => key::run(context, command).await,
        Command::Repo(command) => repo::run(context, command).await,
        Command::Catalog(command) => catalog::run(context, command).await,
        Command::Config(command) => config::run(context, command).await,
        Command::Version => version(context),
        Command::Completions { shell } => completions(shell),
        Command::Wal(WalCommand::Check { workload, records }) => {
            wal::check(context, workload, records).await
        }
        Command::Wal(WalCommand::Receive { workload }) => wal::receive(context, workload).await,
        Command::Wal(WalCommand::Rescue { workload }) => wal::rescue(context, workload).await,
        // Answered before, without a runtime.
        Command::Wal(
            WalCommand::Push { .. } | WalCommand::Fetch { .. } | WalCommand::Ahead { .. },
        ) => Ok(output::failed()),
    }
}

fn version(context: &Context) -> Result<u8, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let testing = dr_store::TESTING;
    if context.json {
        output::json(&serde_json::json!({ "version": version, "testing": testing }))?;
    } else {
        output::data(&format!(
            "dr {version}{}",
            if testing { " (test build)" } else { "" }
        ));
    }
    Ok(0)
}

fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut command = <Arguments as clap::CommandFactory>::command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "dr", &mut script);
    output::data(&String::from_utf8_lossy(&script));
    Ok(0)
}

//! `dr wal push` and `dr wal fetch`, called by PostgreSQL for every segment.
//!
//! Their exit codes are PostgreSQL's business (25.3.1 and 25.3.3 of its documentation), not the
//! program's general ones. Push: 0 only when the file is durable, else 1, because a code above 125 would
//! end the archiver. Fetch: 0 delivered; 1 only when the repository answered and does not hold the file,
//! because any code of 1 to 125 makes PostgreSQL end recovery and open; 200 for everything else.

use std::path::Path;
use std::process::ExitCode;

use dr_backup::wal::Fetched;

use crate::args::WalCommand;
use crate::failure::Failure;
use crate::output;

const FETCH_ABSENT: u8 = 1;
pub(crate) const FETCH_FAILED: u8 = 200;

pub(crate) fn run(command: &WalCommand, config: Option<&Path>) -> ExitCode {
    match command {
        WalCommand::Push { path } => match push(config, path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                output::failure(&failure);
                ExitCode::from(1)
            }
        },
        WalCommand::Fetch {
            name,
            path,
            workload,
        } => match fetch(config, workload.as_deref(), name, path) {
            Ok(Fetched::Delivered) => ExitCode::SUCCESS,
            Ok(Fetched::Absent) => ExitCode::from(FETCH_ABSENT),
            Err(failure) => {
                output::failure(&failure);
                ExitCode::from(FETCH_FAILED)
            }
        },
    }
}

fn push(config: Option<&Path>, path: &Path) -> Result<(), Failure> {
    let config = dr_config::Config::find(config)?;
    dr_backup::wal::push(&config, path)?;
    Ok(())
}

fn fetch(
    config: Option<&Path>,
    workload: Option<&str>,
    name: &str,
    path: &Path,
) -> Result<Fetched, Failure> {
    let config = dr_config::Config::find(config)?;
    let workload = workload.map(str::parse).transpose()?;
    Ok(dr_backup::wal::fetch(
        &config,
        workload.as_ref(),
        name,
        path,
    )?)
}

//! `dr probe`.

use dr_drill::probe::{self, ProbeRequest};

use crate::args::ProbeCommand;
use crate::context::{Context, absolute};
use crate::failure::Failure;

pub(crate) async fn run(context: &Context, command: ProbeCommand) -> Result<u8, Failure> {
    let ProbeCommand::Run { file, log } = command;
    let request = ProbeRequest {
        config: context.config_path()?,
        file: absolute(&file)?,
        log: absolute(&log)?,
    };
    probe::run(&request, context.cancel.clone()).await?;
    Ok(0)
}

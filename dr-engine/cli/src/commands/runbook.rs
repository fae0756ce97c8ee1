//! `dr runbook`.

use std::collections::BTreeMap;

use dr_config::RunbookFile;
use dr_runbook::RunbookRequest;

use crate::args::RunbookCommand;
use crate::context::{Context, absolute, own_binary};
use crate::failure::{FAILED, Failure, USAGE};
use crate::{output, progress};

pub(crate) async fn run(context: &Context, command: RunbookCommand) -> Result<u8, Failure> {
    match command {
        RunbookCommand::Show { file } => show(context, &file),
        RunbookCommand::Run { file, set, yes } => execute(context, &file, &set, yes).await,
    }
}

fn show(context: &Context, file: &std::path::Path) -> Result<u8, Failure> {
    let runbook = RunbookFile::load(file)?;
    if context.json {
        output::json(&runbook)?;
        return Ok(0);
    }
    output::data(&dr_runbook::describe(&runbook));
    Ok(0)
}

async fn execute(
    context: &Context,
    file: &std::path::Path,
    set: &[String],
    yes: bool,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let request = RunbookRequest {
        file: absolute(file)?,
        parameters: parameters(set)?,
        approved: yes,
        dr_binary: own_binary()?,
    };
    let progress = progress::display();
    let execution =
        dr_runbook::run(&installation, &request, progress, context.cancel.clone()).await?;
    if context.json {
        output::json(&execution)?;
    } else {
        output::data(&execution.to_string());
    }
    Ok(if execution.completed() { 0 } else { FAILED })
}

fn parameters(set: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    set.iter()
        .map(|pair| {
            pair.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| {
                    Failure::plain(
                        USAGE,
                        format!("`{pair}` sets nothing"),
                        Some("write --set NAME=VALUE"),
                    )
                })
        })
        .collect()
}

//! `dr drill`.

use dr_drill::{DrillRequest, ReportRequest};

use crate::args::DrillCommand;
use crate::context::{Context, absolute, own_binary};
use crate::failure::{FAILED, Failure, MISSED};
use crate::{output, progress};

pub(crate) async fn run(context: &Context, command: DrillCommand) -> Result<u8, Failure> {
    match command {
        DrillCommand::Run { file, out, sandbox } => {
            let request = DrillRequest {
                dr_binary: own_binary()?,
                config: context.config_path()?,
                drill_file: absolute(&file)?,
                folder: sandbox.as_deref().map(absolute).transpose()?,
                out: absolute(&out)?,
            };
            execute(context, &request).await
        }
        DrillCommand::List => list(context).await,
        DrillCommand::Clean { folder } => {
            let folder = absolute(&folder)?;
            dr_drill::clean_up_after(&folder)?;
            output::data(&format!("removed {}", folder.display()));
            Ok(0)
        }
        DrillCommand::Report { quarter, out } => {
            let request = ReportRequest {
                quarter,
                out: absolute(&out)?,
            };
            report(context, &request).await
        }
    }
}

async fn execute(context: &Context, request: &DrillRequest) -> Result<u8, Failure> {
    let progress = progress::display();
    let outcome = dr_drill::run(request, progress, context.cancel.clone()).await?;
    if context.json {
        output::json(&outcome.report)?;
    } else {
        output::data(&outcome.summary());
    }
    Ok(if !outcome.completed() {
        FAILED
    } else if outcome.met() {
        0
    } else {
        MISSED
    })
}

async fn list(context: &Context) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let runs = dr_drill::list(&installation).await?;
    if context.json {
        output::json(&runs)?;
        return Ok(0);
    }
    if runs.is_empty() {
        output::talk("no drill was run yet; `dr drill run drills/primary-loss.yaml` runs one");
        return Ok(0);
    }
    let rows = runs.iter().map(dr_drill::DrillRunSummary::row).collect();
    output::data(&output::table(&dr_drill::DrillRunSummary::HEADER, rows));
    Ok(0)
}

async fn report(context: &Context, request: &ReportRequest) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let written = dr_drill::report(&installation, request).await?;
    if context.json {
        output::json(&written)?;
    } else {
        for file in &written.files {
            output::data(&file.display().to_string());
        }
    }
    Ok(0)
}

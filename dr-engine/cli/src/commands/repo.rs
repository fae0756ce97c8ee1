//! `dr repo`.

mod prune;

use std::sync::Arc;

use dr_backup::PlaceCheck;
use dr_model::{Progress, RepositoryName};
use dr_store::{CheckOptions, CheckProblem, RepairReport};

use crate::args::RepoCommand;
use crate::context::Context;
use crate::failure::{FAILED, Failure};
use crate::{output, progress};

pub(crate) async fn run(context: &Context, command: RepoCommand) -> Result<u8, Failure> {
    match command {
        RepoCommand::Check { repository, read } => check(context, repository, read).await,
        RepoCommand::Prune {
            repository,
            preview,
            unconfigured,
        } => prune::run(context, repository, preview, unconfigured).await,
        RepoCommand::Sync { repository } => sync(context, repository).await,
        RepoCommand::Repair {
            repository,
            preview,
        } => repair(context, repository, preview).await,
    }
}

fn named(repository: Option<String>) -> Result<Option<RepositoryName>, Failure> {
    Ok(repository.map(|name| name.parse()).transpose()?)
}

/// Who did it, for the records: the person behind `sudo` where there is one.
fn by() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|variable| std::env::var(variable).ok().filter(|name| !name.is_empty()))
        .unwrap_or_else(|| "unknown".to_owned())
}

async fn check(context: &Context, repository: Option<String>, read: bool) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let only = named(repository)?;
    let progress: Arc<dyn Progress> = progress::display();
    let options = CheckOptions { read_data: read };
    let checks = dr_backup::check(&installation, only, options, progress, by()).await?;
    let clean = checks.iter().all(PlaceCheck::is_clean);
    if context.json {
        output::json(&checks)?;
    } else {
        for check in &checks {
            describe(check, read);
        }
    }
    Ok(if clean { 0 } else { FAILED })
}

fn describe(check: &PlaceCheck, read: bool) {
    let report = &check.report;
    output::data(&format!(
        "{} at {}: {} objects, {}, {} restore points, {} WAL files; {}",
        check.repository,
        check.place,
        report.objects,
        dr_model::ByteCount(report.bytes),
        report.points,
        report.wal_segments,
        match (report.problems.is_empty(), read) {
            (true, true) => "every byte read and verified, no problem found".to_owned(),
            (true, false) => "no problem found (data not read; --read does)".to_owned(),
            (false, _) => format!("{} PROBLEMS", report.problems.len()),
        }
    ));
    problems(&report.problems);
    for back in &check.went_back {
        output::data(&format!(
            "  THE LIST OF RESTORE POINTS of `{}` IS NOT WHAT IT WAS: {}",
            back.workload, back.what
        ));
    }
    if let Some(why) = &check.not_told {
        output::talk(&format!(
            "  whether a list of restore points went back cannot be told: {why}"
        ));
    }
    for what in &check.can_no_longer {
        output::data(&format!("  THE STORE no longer {what}"));
    }
    if let Some(why) = &check.not_tried {
        output::talk(&format!(
            "  what the store can do could not be tried: {why}"
        ));
    }
}

fn problems(problems: &[CheckProblem]) {
    for problem in problems {
        output::data(&format!("  {}: {}", problem.object, problem.what));
        for point in &problem.affects {
            output::data(&format!("    affects {point}"));
        }
    }
}

async fn sync(context: &Context, repository: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let only = named(repository)?;
    let display = progress::display();
    let detail = only.as_ref().map(ToString::to_string).unwrap_or_default();
    let reports = context
        .job(&installation, "sync", "sync", detail, false, |job| {
            let (this, only) = (installation.clone(), only.clone());
            async move {
                job.step("sync").await;
                let synced = tokio::task::spawn_blocking(move || {
                    dr_backup::sync(&this, only.as_ref(), display.as_ref())
                });
                synced
                    .await
                    .map_err(|_| dr_backup::BackupError::Worker("bring copies up"))?
            }
        })
        .await?;
    if reports.is_empty() {
        output::talk("no workload names a second repository: there is no copy to bring up");
    }
    let clean = reports
        .iter()
        .all(|(_, report)| report.as_ref().is_ok_and(dr_store::SyncReport::in_step));
    if context.json {
        let reports: Vec<_> = reports
            .iter()
            .map(|(name, report)| match report {
                Ok(report) => serde_json::json!({ "repository": name, "report": report }),
                Err(error) => {
                    serde_json::json!({ "repository": name, "error": error.to_string() })
                }
            })
            .collect();
        output::json(&reports)?;
        return Ok(if clean { 0 } else { FAILED });
    }
    for (name, report) in reports {
        match report {
            Ok(report) => {
                output::data(&format!(
                    "{name}: {}; copied {} objects ({}), removed {}, left {} that only it has",
                    if report.in_step() {
                        "in step"
                    } else {
                        "NOT IN STEP"
                    },
                    report.copied,
                    dr_model::ByteCount(report.bytes),
                    report.removed,
                    report.kept
                ));
                problems(&report.problems);
            }
            Err(error) => {
                output::failure(&Failure::from(error));
            }
        }
    }
    Ok(if clean { 0 } else { FAILED })
}

async fn repair(
    context: &Context,
    repository: Option<String>,
    preview: bool,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let only = named(repository)?;
    let display = progress::display();
    let reports = tokio::task::spawn_blocking(move || {
        dr_backup::repair(
            &installation,
            only.as_ref(),
            preview,
            &by(),
            display.as_ref(),
        )
    })
    .await
    .map_err(|error| Failure::of("the repair ended early", &error))??;
    let clean = reports
        .iter()
        .all(|(_, report)| report.remaining.is_empty());
    if context.json {
        let reports: Vec<_> = reports
            .iter()
            .map(|(name, report)| serde_json::json!({ "repository": name, "report": report }))
            .collect();
        output::json(&reports)?;
    } else {
        for (name, report) in &reports {
            tell(name, report, preview);
        }
    }
    Ok(if clean { 0 } else { FAILED })
}

fn tell(name: &RepositoryName, report: &RepairReport, preview: bool) {
    output::data(&format!(
        "{name}: {} {} objects, {} problems left",
        if preview { "would mend" } else { "mended" },
        report.repaired.len(),
        report.remaining.len()
    ));
    for repaired in &report.repaired {
        output::data(&format!("  {}: {}", repaired.object, repaired.how));
    }
    if !report.remaining.is_empty() {
        output::data("  nowhere whole:");
        problems(&report.remaining);
    }
    for point in &report.damaged_points {
        output::data(&format!(
            "  {} LOST {}",
            point.point,
            match point.lost.len() {
                0 => "everything: it cannot be read".to_owned(),
                count => format!("{count} files:"),
            }
        ));
        for path in &point.lost {
            output::data(&format!("    {path}"));
        }
    }
}

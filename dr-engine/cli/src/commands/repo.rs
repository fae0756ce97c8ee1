//! `dr repo`.

mod prune;

use dr_store::{CheckOptions, CheckReport};

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
    }
}

async fn check(context: &Context, repository: Option<String>, read: bool) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let only: Option<dr_model::RepositoryName> = repository.map(|name| name.parse()).transpose()?;
    let progress = progress::display();
    let reports = tokio::task::spawn_blocking(move || {
        let repositories = match only {
            Some(name) => vec![(name.clone(), installation.repository(&name)?)],
            None => installation.all_repositories()?,
        };
        let mut reports = Vec::new();
        for (name, repository) in repositories {
            let report = repository.check(CheckOptions { read_data: read }, progress.as_ref())?;
            reports.push((name.to_string(), repository.describe(), report));
        }
        Ok::<_, Failure>(reports)
    })
    .await
    .map_err(|error| Failure::of("the check ended early", &error))??;
    let clean = reports
        .iter()
        .all(|(_, _, report)| report.problems.is_empty());
    if context.json {
        let reports: Vec<_> = reports
            .iter()
            .map(|(name, place, report)| {
                serde_json::json!({ "repository": name, "place": place, "report": report })
            })
            .collect();
        output::json(&reports)?;
    } else {
        for (name, place, report) in &reports {
            describe(name, place, report, read);
        }
    }
    Ok(if clean { 0 } else { FAILED })
}

fn describe(name: &str, place: &str, report: &CheckReport, read: bool) {
    output::data(&format!(
        "{name} at {place}: {} objects, {}, {} restore points, {} WAL files; {}",
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
    for problem in &report.problems {
        output::data(&format!("  {}: {}", problem.object, problem.what));
        for point in &problem.affects {
            output::data(&format!("    affects {point}"));
        }
    }
}

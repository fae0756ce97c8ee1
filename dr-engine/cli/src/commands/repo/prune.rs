//! `dr repo prune`.

use std::collections::BTreeMap;
use std::sync::Arc;

use dr_backup::{Decision, Fate, PruneChoice, RepositoryPrune};
use dr_installation::Installation;
use dr_model::{ByteCount, RepositoryName};
use dr_store::{LockedObject, PruneReport, SessionInfo, SessionState, WorkloadPrune};

use crate::context::Context;
use crate::failure::Failure;
use crate::{output, progress};

pub(crate) async fn run(
    context: &Context,
    repository: Option<String>,
    preview: bool,
    unconfigured: bool,
) -> Result<u8, Failure> {
    // A configuration that cannot be read says nothing of what is to be kept: nothing is removed.
    let installation = context.installation()?;
    let names = match repository {
        Some(name) => {
            let name: RepositoryName = name.parse()?;
            installation.config.repository(&name)?;
            vec![name]
        }
        None => dr_backup::pruned_repositories(&installation),
    };
    let choice = PruneChoice { unconfigured };
    let mut answers = Vec::new();
    for name in names {
        let (decided, report) = if preview {
            (decide(&installation, &name, choice).await?, None)
        } else {
            let (decided, report) = remove(context, &installation, &name, choice).await?;
            (decided, Some(report))
        };
        if context.json {
            answers.push(serde_json::json!({ "decided": decided, "done": report }));
        } else {
            describe(&decided);
            if let Some(report) = report {
                done(&report);
            }
        }
    }
    if context.json {
        output::json(&answers)?;
    }
    Ok(0)
}

async fn decide(
    installation: &Installation,
    name: &RepositoryName,
    choice: PruneChoice,
) -> Result<RepositoryPrune, Failure> {
    let (installation, name) = (installation.clone(), name.clone());
    let progress = progress::display();
    tokio::task::spawn_blocking(move || {
        dr_backup::plan_prune(&installation, &name, choice, progress.as_ref())
    })
    .await
    .map_err(|error| Failure::of("the preview ended early", &error))?
    .map_err(Failure::from)
}

async fn remove(
    context: &Context,
    installation: &Installation,
    name: &RepositoryName,
    choice: PruneChoice,
) -> Result<(RepositoryPrune, PruneReport), Failure> {
    let progress: Arc<dyn dr_model::Progress> = progress::display();
    let lane = format!("repository/{name}");
    context
        .job(
            installation,
            "prune",
            &lane,
            String::new(),
            false,
            |job| async move {
                job.step("prune").await;
                dr_backup::prune_and_forget(installation, name, choice, progress).await
            },
        )
        .await
}

fn describe(decided: &RepositoryPrune) {
    output::data(&format!("{} at {}", decided.repository, decided.plan.place));
    let decisions = || decided.retention.iter().flat_map(|plan| &plan.points);
    if decisions().next().is_none() {
        output::data("  no restore points");
    } else {
        let columns = ["restore point", "moment", "", "why"];
        output::data(&output::table(&columns, decisions().map(row).collect()));
        output::data(&summary(decided));
    }
    for plan in &decided.plan.workloads {
        workload(plan);
    }
}

fn row(decision: &Decision) -> Vec<String> {
    let (fate, mut why) = match &decision.fate {
        Fate::Kept { reasons } => {
            let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            ("stays", reasons.join(", "))
        }
        Fate::Removed { since } => ("goes", format!("not needed since {}", output::time(*since))),
    };
    if let Some(fault) = &decision.fault {
        why = format!("{why} ({fault})");
    }
    vec![
        decision.point.to_string(),
        output::time(decision.moment),
        fate.to_owned(),
        why,
    ]
}

/// How many points stay for each kind of reason, and how many go.
fn summary(decided: &RepositoryPrune) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut stay, mut go) = (0, 0);
    for decision in decided.retention.iter().flat_map(|plan| &plan.points) {
        match &decision.fate {
            Fate::Removed { .. } => go += 1,
            Fate::Kept { reasons: kept } => {
                stay += 1;
                for reason in kept {
                    *reasons.entry(reason.kind().to_owned()).or_default() += 1;
                }
            }
        }
    }
    let reasons: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    format!(
        "{go} restore points go, {stay} stay: {}",
        reasons.join(", ")
    )
}

fn workload(plan: &WorkloadPrune) {
    let sum =
        |sizes: &mut dyn Iterator<Item = ByteCount>| ByteCount(sizes.map(|size| size.0).sum());
    output::data(&format!(
        "{}: {} of {} won: {} WAL files ({}), {} packs not needed ({}), {} half-empty packs of {} \
         copied ({} needed)",
        plan.workload,
        plan.bytes_won,
        plan.bytes_stored,
        plan.wal.len(),
        sum(&mut plan.wal.iter().map(|one| one.bytes)),
        plan.delete_packs.len(),
        sum(&mut plan.delete_packs.iter().map(|one| one.bytes)),
        plan.rewrite_packs.len(),
        sum(&mut plan.rewrite_packs.iter().map(|one| one.bytes)),
        sum(&mut plan.rewrite_packs.iter().map(|one| one.live_bytes)),
    ));
    if plan.condemned_packs > 0 {
        output::data(&format!(
            "  {} packs were given up before and go when older backups have ended",
            plan.condemned_packs
        ));
    }
    for session in &plan.sessions {
        output::data(&format!("  {}", writer(session)));
    }
    locked(&plan.locked);
}

fn writer(session: &SessionInfo) -> String {
    let host = session.host.as_deref().unwrap_or("an unknown host");
    let pid = session
        .pid
        .map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    let since = output::time(session.since);
    match session.state {
        SessionState::Running => format!(
            "a writer runs on {host} (process {pid}) since {since}: what it may rely on stays"
        ),
        SessionState::Dead => format!("a writer died on {host} (process {pid}) after {since}"),
        SessionState::Expired => format!(
            "a writer on {host} (process {pid}) has not ended since {since}: it is given up"
        ),
    }
}

/// By day: a lock on each of a thousand packs is one line.
fn locked(objects: &[LockedObject]) {
    let mut days: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for object in objects {
        let day = object.until.format("%F").to_string();
        let (count, bytes) = days.entry(day).or_default();
        *count += 1;
        *bytes += object.bytes.0;
    }
    for (day, (count, bytes)) in days {
        output::data(&format!(
            "  {count} objects ({}) stay: their locks end on {day} (UTC)",
            ByteCount(bytes)
        ));
    }
}

fn done(report: &PruneReport) {
    output::data(&format!(
        "removed {} restore points, {} WAL files, {} packs; {} won",
        report.points.len(),
        report.wal_files,
        report.packs_deleted,
        report.bytes_won
    ));
    if report.packs_waiting > 0 {
        output::data(&format!(
            "{} packs go with the next prune after the backups that run now",
            report.packs_waiting
        ));
    }
    for note in &report.notes {
        output::talk(&format!("warning: {note}"));
    }
}

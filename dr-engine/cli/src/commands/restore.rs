//! `dr restore`.

use std::time::Duration;

use dr_model::{WorkloadKind, WorkloadName};
use dr_restore::{RestorePlan, RestoreRequest, StartAs, StartRequest};

use crate::args::RestoreArgs;
use crate::context::{self, Context, absolute};
use crate::failure::{Failure, USAGE};
use crate::{output, progress};

/// Recovery of a large cluster replays for hours; a server that stands still is noticed by its own
/// checks much earlier.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(context: &Context, arguments: RestoreArgs) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = context::workload(&installation, &arguments.workload)?;
    let kind = installation
        .config
        .workload(workload.as_str())?
        .source
        .kind();
    let request = request(&arguments, workload.clone(), kind)?;
    let plan = dr_restore::plan(&installation, &request).await?;
    if arguments.preview {
        let entries = dr_tenant::erasures(&installation, &workload).await?.len();
        return show_plan(context, &plan, entries);
    }
    let progress = progress::display();
    // Backups go on while a copy is restored into a folder of its own.
    let lane = format!("{workload}/restore");
    let (plan, outcome) = context
        .job(
            &installation,
            "restore",
            &lane,
            detail(&request),
            false,
            |job| {
                let (installation, request, progress) =
                    (installation.clone(), request.clone(), progress.clone());
                async move {
                    let mut plan = plan;
                    // Only now that it can be planned; what is rescued may change what is planned.
                    if let Some(rescued) = dr_restore::rescue_first(&installation, &request).await?
                    {
                        tell_rescued(&rescued);
                        plan = dr_restore::plan(&installation, &request).await?;
                    }
                    job.step("restore").await;
                    let done =
                        dr_restore::execute(&installation, &plan, progress, job.cancel()).await?;
                    Ok::<_, dr_restore::RestoreError>((plan, done))
                }
            },
        )
        .await?;
    let started = if arguments.start {
        let request = StartRequest {
            workload,
            folder: request.into.clone(),
            start_as: if arguments.as_primary {
                StartAs::Primary
            } else {
                StartAs::Scratch
            },
            port: None,
            timeout: RECOVERY_TIME_MAX,
        };
        Some(dr_restore::start(&installation, &request, progress, context.cancel.clone()).await?)
    } else {
        None
    };
    if context.json {
        output::json(&serde_json::json!({ "plan": plan, "outcome": outcome, "started": started }))?;
        return Ok(0);
    }
    output::data(&format!(
        "restored {} from {}: {} files, {}{}",
        plan.workload,
        plan.point.id,
        outcome.files,
        outcome.bytes,
        outcome
            .folder
            .as_ref()
            .map_or_else(String::new, |at| format!(" into {}", at.display()))
    ));
    for note in &outcome.notes {
        output::data(&format!("  {note}"));
    }
    if kind != WorkloadKind::Nats {
        output::data(&format!("  {}", outcome.erasures));
    }
    if outcome.erasures.pending > 0 {
        output::talk("WARNING: what was erased is in it: nobody may see it who must not see that");
    }
    match started {
        Some(started) => describe_started(&started),
        None if kind == WorkloadKind::Postgres => {
            output::talk("nothing was started; `--start` does, or your own start command");
        }
        None => {}
    }
    Ok(0)
}

/// What the job is listed with.
fn detail(request: &RestoreRequest) -> String {
    match request.without_erasures {
        true => format!("{}, with what was erased", request.target),
        false => request.target.to_string(),
    }
}

fn request(
    arguments: &RestoreArgs,
    workload: WorkloadName,
    kind: WorkloadKind,
) -> Result<RestoreRequest, Failure> {
    let usage = |message: String, hint: &str| Failure::plain(USAGE, message, Some(hint));
    match (kind, &arguments.into) {
        (WorkloadKind::Nats, Some(_)) => {
            return Err(usage(
                format!("`{workload}` is a queue: it goes back into its server, not into a folder"),
                "leave out --into; --replace if the stream is still there",
            ));
        }
        (WorkloadKind::Postgres | WorkloadKind::Files, None) => {
            return Err(usage(
                format!("where should `{workload}` be restored to?"),
                "add --into DIR, an empty or new folder",
            ));
        }
        _ => {}
    }
    let for_databases = arguments.start
        || arguments.as_primary
        || arguments.delta
        || !arguments.tablespaces.is_empty();
    if kind != WorkloadKind::Postgres && for_databases {
        return Err(usage(
            format!("`{workload}` is no database: there is nothing to start"),
            "leave out --start, --as-primary, --delta and --tablespace",
        ));
    }
    let mut was: Vec<_> = arguments.tablespaces.iter().map(|(was, _)| was).collect();
    was.sort();
    if let Some(twice) = was.iter().zip(was.iter().skip(1)).find(|(a, b)| a == b) {
        return Err(usage(
            format!("--tablespace names {} twice", twice.0.display()),
            "name each place once",
        ));
    }
    Ok(RestoreRequest {
        delta: arguments.delta,
        discard_wal: arguments.discard_wal,
        exclusive: arguments.exclusive,
        as_primary: arguments.as_primary,
        config_into: arguments.config_into.as_deref().map(absolute).transpose()?,
        tablespaces: arguments.tablespaces.iter().cloned().collect(),
        replace: arguments.replace,
        without_erasures: arguments.without_erasures,
        ..RestoreRequest::new(
            workload,
            arguments.into.as_deref().map(absolute).transpose()?,
            arguments.to.clone(),
        )
    })
}

/// What the failed cluster had written and not archived.
fn tell_rescued(rescued: &dr_backup::wal::Rescued) {
    let text = super::wal::rescued_text(rescued);
    output::talk(&format!("before anything is changed: {text}"));
    for left_out in &rescued.left_out {
        output::talk(&format!("  {left_out}"));
    }
}

fn show_plan(context: &Context, plan: &RestorePlan, erasures: usize) -> Result<u8, Failure> {
    if context.json {
        output::json(plan)?;
        return Ok(0);
    }
    output::data(&format!(
        "would restore {} to {} from {} (moment {}, {})",
        plan.workload,
        plan.target,
        plan.point.id,
        output::time(plan.point.moment),
        plan.point.bytes_source
    ));
    if let (true, Some(into)) = (plan.delta, &plan.into) {
        output::data(&format!(
            "over what is in {}: only what differs is written, and what the restore point does not have is removed",
            into.display()
        ));
    }
    for (was, now) in &plan.tablespaces {
        let (was, now) = (was.display(), now.display());
        output::data(&format!("tablespace {was} into {now}"));
    }
    if let dr_restore::PlannedSource::Postgres(postgres) = &plan.source {
        output::data(&format!(
            "replaying {} WAL segments, {} to {}, on timeline {}; window {}",
            postgres.segments,
            postgres.first_segment,
            postgres.last_segment,
            postgres.timeline,
            postgres.window
        ));
    }
    let is_cluster = matches!(plan.source, dr_restore::PlannedSource::Postgres(_));
    let entries = match erasures {
        1 => "1 entry".to_owned(),
        several => format!("{several} entries"),
    };
    match (erasures, plan.without_erasures) {
        (0, _) => {}
        (_, true) => output::data(&format!("what {entries} erased STAYS in it")),
        (_, false) if is_cluster => output::data(&format!(
            "taking out what {entries} erased: recovered privately for that, and shut down again"
        )),
        (_, false) => output::data(&format!("leaving out what {entries} erased")),
    }
    for note in &plan.notes {
        output::data(&format!("  {note}"));
    }
    Ok(0)
}

fn describe_started(started: &dr_restore::Started) {
    output::data(&format!(
        "running as process {} on port {}, timeline {}, recovered to {}{}",
        started.pid,
        started.port,
        started.reached.timeline,
        started.reached.lsn,
        started
            .reached
            .last_commit_time
            .map_or_else(String::new, |at| format!(
                ", last commit {}",
                at.to_rfc3339()
            ))
    ));
    if let Some(note) = &started.reached.note {
        output::data(&format!("  {note}"));
    }
}

//! `dr wal push` and `dr wal fetch`, called by PostgreSQL for every segment; `dr wal receive`,
//! `dr wal rescue` and `dr wal check`, called by people.
//!
//! The exit codes of push and fetch are PostgreSQL's business (25.3.1 and 25.3.3 of its documentation), not the
//! program's general ones. Push: 0 only when the file is durable (or, beyond the workload's
//! `archive_queue_max`, was given up), else 1, because a code above 125 would end the archiver. Fetch: 0 delivered; 1 only when the repository answered and does not hold the file,
//! because any code of 1 to 125 makes PostgreSQL end recovery and open; 200 for everything else.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dr_backup::wal::{
    Ahead, Fetched, Flushing, Pushed, Recovery, Rescued, Spool, Standing, Standings, WalCheck,
    WalGap, WalStretch,
};
use dr_model::{Progress, WorkloadName};

use crate::args::WalCommand;
use crate::context::Context;
use crate::failure::{FAILED, Failure};
use crate::{output, progress};

/// How often a receiver is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often it says how far it is.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
const FETCH_ABSENT: u8 = 1;
pub(crate) const FETCH_FAILED: u8 = 200;

pub(crate) fn run(command: &WalCommand, config: Option<&Path>, json: bool) -> ExitCode {
    match command {
        WalCommand::Push {
            path,
            ready: _,
            workload,
        } => match push(config, path.as_deref(), workload.as_deref(), json) {
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
            spare_flushes,
        } => match fetch(
            config,
            workload.as_deref(),
            (name, path),
            flushing(*spare_flushes),
        ) {
            Ok(Fetched::Delivered) => ExitCode::SUCCESS,
            Ok(Fetched::Absent) => ExitCode::from(FETCH_ABSENT),
            Err(failure) => {
                output::failure(&failure);
                ExitCode::from(FETCH_FAILED)
            }
        },
        WalCommand::Ahead {
            folder,
            after,
            segment_bytes,
            recovery,
            data_directory,
            workload,
            spare_flushes,
        } => {
            let Some(recovery) = Recovery::of(*recovery, data_directory.clone()) else {
                // It has ended already.
                return ExitCode::SUCCESS;
            };
            let Ok(after) = after.parse() else {
                output::failure(&Failure::plain(
                    FAILED,
                    "--after: not the name of a segment",
                    None,
                ));
                return ExitCode::FAILURE;
            };
            let ahead = Ahead {
                folder: folder.clone(),
                after,
                segment_bytes: *segment_bytes,
                recovery,
                flushing: flushing(*spare_flushes),
            };
            match fetch_ahead(config, workload.as_deref(), &ahead) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    output::failure(&failure);
                    ExitCode::FAILURE
                }
            }
        }
        // Need a runtime: see `check`, `receive` and `rescue`.
        WalCommand::Check { .. } | WalCommand::Receive { .. } | WalCommand::Rescue { .. } => {
            ExitCode::FAILURE
        }
    }
}

/// Pushes a file; without one, everything that is ready.
fn push(
    config: Option<&Path>,
    path: Option<&Path>,
    workload: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let config = dr_config::Config::find(config)?;
    if let Some(path) = path {
        // PostgreSQL puts this into its own log.
        match dr_backup::wal::push(&config, path)? {
            Pushed::Put(_) => {}
            Pushed::GivenUp(given_up) => output::talk(&format!(
                "warning: {} is not stored: {}; nothing behind it can be recovered until the next base \
                 backup",
                path.display(),
                given_up.describe()
            )),
            Pushed::Kept => output::talk(&format!(
                "warning: {} is kept on this host until the repository can be reached",
                path.display()
            )),
        }
        return Ok(());
    }
    let workload = workload.map(str::parse).transpose()?;
    let progress = progress::display();
    let done = dr_backup::wal::push_ready(&config, workload.as_ref(), progress.as_ref())?;
    if json {
        return output::json(&done);
    }
    let meanwhile = match done.not_waiting_any_more {
        0 => String::new(),
        more => format!(", {more} do not wait any more"),
    };
    output::data(&format!(
        "{} WAL files stored, {} were there already{meanwhile}",
        done.stored, done.already_there
    ));
    Ok(())
}

fn fetch(
    config: Option<&Path>,
    workload: Option<&str>,
    (name, path): (&str, &Path),
    flushing: Flushing,
) -> Result<Fetched, Failure> {
    let config = dr_config::Config::find(config)?;
    let workload = workload.map(str::parse).transpose()?;
    let spool = Spool::beside(path, &config, workload.as_ref());
    if spool.take(name, path) {
        return Ok(Fetched::Delivered);
    }
    begin_ahead(&config, workload.as_ref(), (name, flushing), &spool);
    let fetched = dr_backup::wal::fetch(&config, workload.as_ref(), name, path, flushing)?;
    if fetched == Fetched::Delivered {
        spool.delivered(name);
    }
    Ok(fetched)
}

fn flushing(spared: bool) -> Flushing {
    match spared {
        true => Flushing::Spared,
        false => Flushing::Each,
    }
}

/// Starts the helper that fetches the segments behind this one, where that is worth it. Should it not start,
/// each segment is fetched when it is asked for.
fn begin_ahead(
    config: &Path,
    workload: Option<&WorkloadName>,
    (name, flushing): (&str, Flushing),
    spool: &Spool,
) {
    let Some(segment_bytes) = spool.wants_helper(name) else {
        return;
    };
    let (Some(recovery), Ok(binary)) = (Recovery::of_caller(), std::env::current_exe()) else {
        return;
    };
    let paths = (
        std::path::absolute(config),
        std::path::absolute(spool.folder()),
    );
    let (Ok(config), Ok(folder)) = paths else {
        return;
    };
    let mut helper = Command::new(binary);
    helper.arg("--config").arg(config).args(["wal", "ahead"]);
    helper.arg(folder).args(["--after", name]);
    helper.args(["--segment-bytes", &segment_bytes.to_string()]);
    helper.args(["--recovery", &recovery.pid.to_string()]);
    helper.arg("--data-directory").arg(&recovery.directory);
    if let Some(workload) = workload {
        helper.args(["--workload", workload.as_str()]);
    }
    if flushing == Flushing::Spared {
        helper.arg("--spare-flushes");
    }
    // What the server holds open must not stay open for it, nor a signal to the server end it half way.
    helper
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    helper.process_group(0);
    // Whatever works in a data directory is taken for its server.
    helper.current_dir("/");
    if let Err(error) = helper.spawn() {
        tracing::debug!(%error, "segments are not fetched ahead");
    }
}

fn fetch_ahead(
    config: Option<&Path>,
    workload: Option<&str>,
    ahead: &Ahead,
) -> Result<(), Failure> {
    let config = dr_config::Config::find(config)?;
    let workload = workload.map(str::parse).transpose()?;
    Ok(dr_backup::wal::fetch_ahead(
        &config,
        workload.as_ref(),
        ahead,
    )?)
}

pub(crate) async fn check(
    context: &Context,
    workload: Option<String>,
    records: bool,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let only = workload.map(|name| crate::context::workload(&installation, &name));
    let only: Option<WorkloadName> = only.transpose()?;
    let progress: Arc<dyn Progress> = progress::display();
    let checking = dr_backup::wal::check(&installation, only, records, progress);
    let checks = tokio::select! {
        checks = checking => checks?,
        // It changes nothing, and so can be left at any time.
        () = context.cancel.cancelled() => {
            return Err(Failure::plain(FAILED, "the check was stopped", None));
        }
    };
    let is_clean = checks.iter().all(WalCheck::is_clean);
    if context.json {
        output::json(&checks)?;
    } else {
        for check in &checks {
            describe(check);
        }
    }
    Ok(if is_clean { 0 } else { FAILED })
}

pub(crate) async fn rescue(context: &Context, workload: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let named = workload.map(|name| crate::context::workload(&installation, &name));
    let workload = dr_backup::wal::one_workload(
        &installation,
        named.transpose()?.as_ref(),
        "what is to be rescued",
    )?;
    let rescued =
        tokio::task::spawn_blocking(move || dr_backup::wal::rescue(&installation, &workload))
            .await
            .map_err(|_| Failure::plain(FAILED, "the rescue of WAL broke off", None))??;
    let code = if rescued.is_elsewhere { FAILED } else { 0 };
    if context.json {
        output::json(&rescued)?;
        return Ok(code);
    }
    output::data(&rescued_text(&rescued));
    for left_out in &rescued.left_out {
        output::data(&format!("  {left_out}"));
    }
    Ok(code)
}

/// What a rescue did, in a line.
pub(crate) fn rescued_text(rescued: &Rescued) -> String {
    format!(
        "{} WAL files rescued, {} were in the repository already",
        rescued.stored.len(),
        rescued.already_there.len()
    )
}

/// Receives until it is stopped, and says what happens: when it fails, and every now and then how far it is.
pub(crate) async fn receive(context: &Context, workload: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let named = workload.map(|name| crate::context::workload(&installation, &name));
    let workload = dr_backup::wal::one_workload(
        &installation,
        named.transpose()?.as_ref(),
        "what is to be received",
    )?;
    let standings = Standings::default();
    let receiving =
        dr_backup::wal::receive_for_ever(&installation, &workload, &standings, &context.cancel);
    tokio::pin!(receiving);
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    let mut told = Standing::default();
    let mut said = None;
    loop {
        tokio::select! {
            () = &mut receiving => break,
            _ = look.tick() => {
                let now = standings.now();
                let is_time = said.is_none_or(|at: std::time::Instant| at.elapsed() >= TELL_INTERVAL);
                if is_news(&told, &now) || is_time && now.durable != told.durable {
                    tell(&workload, &now);
                    told = now;
                    said = Some(std::time::Instant::now());
                }
            }
        }
    }
    let end = standings.now();
    if context.json {
        output::json(&end)?;
    } else {
        output::data(&format!(
            "{workload}: stopped; everything up to {} is in the repository",
            end.durable
        ));
    }
    Ok(0)
}

/// Whether something happened that is to be said at once.
fn is_news(told: &Standing, now: &Standing) -> bool {
    told.failing.is_some() != now.failing.is_some() || told.timeline != now.timeline
}

fn tell(workload: &WorkloadName, now: &Standing) {
    // Failures and notes are in the log, which goes to the same place.
    if now.failing.is_some() {
        return;
    }
    let Some(timeline) = now.timeline else { return };
    let behind = now.server_end.0.saturating_sub(now.durable.0);
    let behind = match behind {
        0 => "all that the server has".to_owned(),
        bytes => format!("{} behind the server", dr_model::ByteCount(bytes)),
    };
    output::talk(&format!(
        "{workload}: timeline {timeline}, in the repository up to {}, {behind}",
        now.durable
    ));
}

fn describe(check: &WalCheck) {
    output::data(&headline(check));
    if !check.stretches.is_empty() {
        let header = [
            "timeline",
            "segments",
            "first",
            "last",
            "from",
            "to",
            "commits",
            "last commit",
        ];
        let rows = check.stretches.iter().map(row).collect();
        output::data(&output::table(&header, rows));
    }
    let read = |stretch: &WalStretch| stretch.records.clone();
    for note in check
        .stretches
        .iter()
        .filter_map(read)
        .filter_map(|found| found.note)
    {
        output::data(&format!("  {note}"));
    }
    for gap in &check.gaps {
        describe_gap(gap);
    }
    for problem in &check.problems {
        output::data(&format!("! {problem}"));
    }
}

fn headline(check: &WalCheck) -> String {
    if check.restore_points == 0 {
        return format!(
            "{}: no restore point yet, so its WAL is good for nothing",
            check.workload
        );
    }
    let window = match &check.window {
        Some(window) => format!(
            "recoverable from {} to {}",
            output::time(window.from),
            output::time(window.to)
        ),
        None => "what can be recovered is not known".to_owned(),
    };
    let count = |number: u64, one: &str, more: &str| match number {
        0 => None,
        1 => Some(format!("1 {one}")),
        number => Some(format!("{number} {more}")),
    };
    let missing = check.gaps.iter().map(|gap| gap.segments).sum();
    let missing = count(missing, "SEGMENT MISSING", "SEGMENTS MISSING");
    let problems = count(check.problems.len() as u64, "PROBLEM", "PROBLEMS");
    let wrong: Vec<String> = missing.into_iter().chain(problems).collect();
    let verdict = match wrong.is_empty() {
        true => "no gap".to_owned(),
        false => wrong.join(", "),
    };
    format!(
        "{}: {}, {window}; {verdict}",
        check.workload,
        count(
            check.restore_points as u64,
            "restore point",
            "restore points"
        )
        .unwrap_or_default()
    )
}

fn row(stretch: &WalStretch) -> Vec<String> {
    let read = stretch.records.as_ref();
    let unread = || "not read".to_owned();
    vec![
        stretch.timeline.to_string(),
        stretch.segments.to_string(),
        stretch.first.to_string(),
        stretch.last.to_string(),
        stretch.from.to_string(),
        read.and_then(|found| found.to)
            .unwrap_or(stretch.to)
            .to_string(),
        read.map_or_else(unread, |found| found.commits.to_string()),
        read.map_or_else(unread, |found| {
            found
                .last_commit
                .map_or_else(|| "-".to_owned(), output::time)
        }),
    ]
}

fn describe_gap(gap: &WalGap) {
    let which = match gap.segments {
        1 => format!("{} is missing", gap.first),
        more => format!("{more} segments are missing, {} to {}", gap.first, gap.last),
    };
    let until = match &gap.until {
        Some(point) => format!("until restore point {point}"),
        None if gap.is_abandoned => "on this branch, which was left before".to_owned(),
        None => "to the end: take a backup now".to_owned(),
    };
    output::data(&format!(
        "! timeline {}: {which}; nothing from {} on can be recovered {until}",
        gap.timeline, gap.from
    ));
    for point in &gap.breaks {
        output::data(&format!("!   {point} cannot be restored without it"));
    }
}

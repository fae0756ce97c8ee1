//! Filling in a step's templates, and carrying it out.
//!
//! A step reaches its work through the same crates as the command line's verbs, in this process: an
//! incident has no use for a chain of programs. Only `command` starts one.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use dr_config::{
    CommandStep, RescueWalStep, RestoreStep, Step, TenantRestoreStep, VerifySqlStep,
    VerifyStreamStep, WorkloadSource,
};
use dr_installation::Installation;
use dr_model::{Position, Progress, RestorePoint, Target, WorkloadName};
use dr_sources::postgres::ConnectOptions;
use dr_tenant::{Filter, Mode, OnConflict, TenantRequest, Writing};
use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;

use crate::failure::StepFailure;

/// What a step did.
#[derive(Debug, Default)]
pub(crate) struct StepResult {
    pub(crate) detail: String,
    pub(crate) restore_point: Option<String>,
    pub(crate) position: Option<String>,
    pub(crate) bytes: Option<u64>,
}

impl StepResult {
    fn said(detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
            ..Self::default()
        }
    }
}

/// What steps are carried out with.
pub(crate) struct Bench<'a> {
    pub(crate) installation: &'a Installation,
    pub(crate) approved: bool,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) cancel: CancellationToken,
}

type Done = Result<StepResult, StepFailure>;

impl Bench<'_> {
    pub(crate) async fn carry_out(&self, step: &Step) -> Done {
        match step {
            Step::RescueWal(step) => self.rescue_wal(step).await,
            Step::Restore(step) => self.restore(step).await,
            Step::Start(step) => self.start(&step.workload, step_timeout(step.timeout)).await,
            Step::TenantRestore(step) => self.tenant_restore(step).await,
            Step::Backup(step) => self.backup(&step.workload).await,
            Step::VerifySql(step) => self.verify_sql(step).await,
            Step::VerifyStream(step) => self.verify_stream(step).await,
            Step::Command(step) => self.command(step).await,
            Step::Approval(step) => self.approval(&step.ask).await,
        }
    }

    async fn rescue_wal(&self, step: &RescueWalStep) -> Done {
        let (installation, workload) = (self.installation.clone(), step.workload.clone());
        let rescued =
            tokio::task::spawn_blocking(move || dr_backup::wal::rescue(&installation, &workload))
                .await
                .map_err(|_| StepFailure::new("the rescue of WAL broke off"))??;
        let mut detail = format!(
            "{} files stored, {} were in the archive already",
            rescued.stored.len(),
            rescued.already_there.len()
        );
        for line in rescued.left_out.iter().take(5) {
            detail.push_str("; left out: ");
            detail.push_str(line);
        }
        Ok(StepResult::said(detail))
    }

    async fn restore(&self, step: &RestoreStep) -> Done {
        let target: Target = step.to.parse().map_err(StepFailure::of)?;
        let mut request = dr_restore::RestoreRequest::new(
            step.workload.clone(),
            step.into.as_ref().map(Into::into),
            target,
        );
        request.as_primary = step.as_primary;
        let plan = dr_restore::plan(self.installation, &request).await?;
        let outcome = Box::pin(dr_restore::execute(
            self.installation,
            &plan,
            self.progress.clone(),
            self.cancel.clone(),
        ))
        .await?;
        let place = outcome.folder.as_ref().map_or_else(
            || "into its server".to_owned(),
            |folder| format!("into {}", folder.display()),
        );
        let mut detail = format!(
            "{}: {} files, {} {place}",
            plan.point.id, outcome.files, outcome.bytes
        );
        for note in &outcome.notes {
            detail.push_str("; ");
            detail.push_str(note);
        }
        if !outcome.erasures.entries.is_empty() {
            detail.push_str(&format!("; {}", outcome.erasures));
        }
        Ok(StepResult {
            detail,
            restore_point: Some(plan.point.id.to_string()),
            position: Some(position(&plan.point)),
            bytes: Some(outcome.bytes.0),
        })
    }

    async fn start(&self, workload: &WorkloadName, timeout: Duration) -> Done {
        let request = dr_restore::StartRequest {
            workload: workload.clone(),
            folder: None,
            start_as: dr_restore::StartAs::Primary,
            port: None,
            timeout,
        };
        let started = Box::pin(dr_restore::start(
            self.installation,
            &request,
            self.progress.clone(),
            self.cancel.clone(),
        ))
        .await?;
        let last = started.reached.last_commit_time.map_or_else(
            || "no commit replayed".to_owned(),
            |at| format!("last commit {}", at.format("%Y-%m-%dT%H:%M:%S%.3fZ")),
        );
        let note = started
            .reached
            .note
            .map(|note| format!("; {note}"))
            .unwrap_or_default();
        Ok(StepResult {
            detail: format!(
                "process {} on port {}, timeline {}, replayed to {}, {last}{note}",
                started.pid, started.port, started.reached.timeline, started.reached.lsn
            ),
            position: Some(started.reached.lsn.to_string()),
            ..StepResult::default()
        })
    }

    async fn tenant_restore(&self, step: &TenantRestoreStep) -> Done {
        let request = TenantRequest {
            tenant: step.tenant.clone(),
            workload: Some(step.workload.clone()),
            target: step.to.parse().map_err(StepFailure::of)?,
            mode: Mode::Replace,
            filter: Filter::default(),
            on_conflict: OnConflict::Abort,
            by: Some("a runbook".to_owned()),
        };
        let prepared = Box::pin(dr_tenant::prepare(
            self.installation,
            &request,
            self.progress.clone(),
            self.cancel.clone(),
        ))
        .await?;
        let report = prepared
            .apply(Writing::default(), self.progress.clone())
            .await?;
        if !report.agrees() {
            return Err(StepFailure::new(format!(
                "the proof does not hold: {report}"
            )));
        }
        let rows: u64 = report
            .tables
            .iter()
            .map(|table| table.inserted + table.updated + table.deleted)
            .sum();
        let files: u64 = report
            .folders
            .iter()
            .map(|folder| folder.written + folder.removed)
            .sum();
        let shown = report
            .proof
            .iter()
            .map(|line| format!("; {}: {}", line.what, line.detail));
        Ok(StepResult {
            detail: format!(
                "{}: {rows} rows in {} tables and {files} files put back{}",
                report.id,
                report.tables.len(),
                shown.collect::<String>()
            ),
            restore_point: report.undo_point.as_ref().map(ToString::to_string),
            position: Some(step.to.clone()),
            bytes: None,
        })
    }

    async fn backup(&self, workload: &WorkloadName) -> Done {
        let point = dr_backup::run(
            self.installation,
            workload,
            &dr_backup::BackupOptions::default(),
            self.progress.clone(),
            self.cancel.clone(),
        )
        .await?;
        Ok(StepResult {
            detail: format!(
                "{}: {} added of {}",
                point.id, point.bytes_added, point.bytes_source
            ),
            restore_point: Some(point.id.to_string()),
            position: Some(position(&point)),
            bytes: None,
        })
    }

    async fn verify_sql(&self, step: &VerifySqlStep) -> Done {
        let workload = self.installation.config.workload(step.workload.as_str())?;
        let WorkloadSource::Postgres(source) = workload.source else {
            return Err(StepFailure::new(format!(
                "workload `{}` is no database",
                step.workload
            )));
        };
        let options = ConnectOptions {
            url: source.url.clone(),
            password: self.installation.postgres_password(&workload)?,
        };
        let mut connection = dr_sources::postgres::connect(&options).await?;
        // The statement is the runbook's own.
        let statement = AssertSqlSafe(format!("select ({})::bigint", step.sql));
        let value: i64 = sqlx::query_scalar(statement)
            .fetch_one(&mut connection)
            .await
            .map_err(StepFailure::of)?;
        let wanted = match (step.at_least, step.equals) {
            (_, Some(equals)) if value != equals => Some(format!("exactly {equals}")),
            (Some(least), _) if value < least => Some(format!("at least {least}")),
            _ => None,
        };
        match wanted {
            Some(wanted) => Err(StepFailure::new(format!(
                "{} gives {value}, not {wanted}",
                step.sql
            ))),
            None => Ok(StepResult::said(format!("{} gives {value}", step.sql))),
        }
    }

    async fn verify_stream(&self, step: &VerifyStreamStep) -> Done {
        let workload = self.installation.config.workload(step.workload.as_str())?;
        let WorkloadSource::Nats(source) = workload.source else {
            return Err(StepFailure::new(format!(
                "workload `{}` is no queue",
                step.workload
            )));
        };
        let found = dr_sources::nats::position(&source.url, &step.stream).await?;
        let missing: Vec<&String> = step
            .consumers
            .iter()
            .filter(|name| !found.consumers.contains_key(*name))
            .collect();
        if found.messages < step.at_least || !missing.is_empty() {
            return Err(StepFailure::new(format!(
                "stream {} holds {} messages (at least {} wanted); consumers missing: {missing:?}",
                step.stream, found.messages, step.at_least
            )));
        }
        let consumers: Vec<String> = found
            .consumers
            .iter()
            .map(|(name, at)| format!("{name} at {at}"))
            .collect();
        Ok(StepResult::said(format!(
            "stream {} holds {} messages up to {}; consumers: {}",
            step.stream,
            found.messages,
            found.last_sequence,
            if consumers.is_empty() {
                "none".to_owned()
            } else {
                consumers.join(", ")
            }
        )))
    }

    async fn command(&self, step: &CommandStep) -> Done {
        let (program, arguments) = step
            .run
            .split_first()
            .ok_or_else(|| StepFailure::new("the step names no program"))?;
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            // A step that takes too long must not go on unseen.
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| StepFailure::new(format!("cannot run {program}: {error}")))?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let lines: Vec<&str> = said.trim().lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(8)..)
            .unwrap_or_default()
            .join("\n");
        if output.status.success() {
            Ok(StepResult::said(tail))
        } else {
            Err(StepFailure::new(format!(
                "{program} ended with {}: {tail}",
                output.status
            )))
        }
    }

    async fn approval(&self, question: &str) -> Done {
        if self.approved {
            return Ok(StepResult::said(format!("{question}: approved beforehand")));
        }
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(StepFailure::new(format!(
                "nobody can be asked: {question} (run it on a terminal, or with --yes)"
            )));
        }
        let asked = format!("{question} [yes/no] ");
        let answer = tokio::task::spawn_blocking(move || {
            std::io::stderr().write_all(asked.as_bytes())?;
            let mut answer = String::new();
            std::io::stdin().lock().read_line(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        })
        .await
        .map_err(|_| StepFailure::new("the question broke off"))?
        .map_err(StepFailure::of)?;
        if answer.trim() == "yes" {
            Ok(StepResult::said(format!("{question}: yes")))
        } else {
            Err(StepFailure::new(format!("{question}: not approved")))
        }
    }
}

fn step_timeout(given: Option<dr_model::HumanDuration>) -> Duration {
    given.map_or(Duration::from_secs(600), |given| given.0)
}

/// A point's position as the engine prints it.
fn position(point: &RestorePoint) -> String {
    match &point.position {
        Position::Postgres(at) => {
            format!(
                "timeline {}, {} to {}",
                at.timeline, at.start_lsn, at.stop_lsn
            )
        }
        Position::Nats(at) => at
            .streams
            .iter()
            .map(|(name, stream)| format!("{name} up to {}", stream.last_sequence))
            .collect::<Vec<_>>()
            .join(", "),
        Position::Files(at) => format!("{} entries", at.entries),
        Position::TenantState(at) => format!("tenant {}", at.tenant_name),
    }
}

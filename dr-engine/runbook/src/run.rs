//! The conductor.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use dr_config::{RunbookFile, Step};
use dr_installation::Installation;
use dr_model::{HumanDuration, Progress, clock::boot_id};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::failure::StepFailure;
use crate::steps::{Bench, StepResult};
use crate::template::{Values, filled, values_for, workload_of};
use crate::{RunbookError, RunbookExecution, StepExecution, StepOutcome};

/// What to run, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunbookRequest {
    /// The file.
    pub file: PathBuf,
    /// Values for its parameters.
    pub parameters: BTreeMap<String, String>,
    /// Whether a person approved beforehand what its approval steps ask.
    pub approved: bool,
    /// The `dr` binary, for `{{ dr }}` in command steps.
    pub dr_binary: PathBuf,
}

/// A runbook as people read it.
#[must_use]
pub fn describe(runbook: &RunbookFile) -> String {
    let mut text = format!("{}\n\nUse it when: {}\n", runbook.runbook, runbook.symptom);
    // Writing to a String cannot fail.
    if let Some(before) = &runbook.before {
        let _ = write!(text, "\nBefore: {before}\n");
    }
    if !runbook.parameters.is_empty() {
        text.push_str("\nValues it needs (--set NAME=VALUE):\n");
        for (name, meaning) in &runbook.parameters {
            let _ = writeln!(text, "  {name}: {meaning}");
        }
    }
    text.push_str("\nSteps:\n");
    for (step, number) in runbook.steps.iter().zip(1..) {
        let limits = step.limits();
        let subject = subject(step);
        let timeout = HumanDuration(limits.timeout);
        let _ = writeln!(
            text,
            "  {number}. {} {subject} (at most {timeout})",
            step.action()
        );
        if limits.retries > 0 {
            let _ = writeln!(text, "     tried again up to {} times", limits.retries);
        }
        if let Some(why) = limits.why {
            let _ = writeln!(text, "     {why}");
        }
    }
    text
}

/// What a step is carried out on, in a few words.
fn subject(step: &Step) -> String {
    match step {
        Step::Restore(step) => match &step.into {
            Some(into) => format!("{} to {} into {into}", step.workload, step.to),
            None => format!("{} to {}", step.workload, step.to),
        },
        Step::TenantRestore(step) => format!("{} of {} to {}", step.tenant, step.workload, step.to),
        Step::VerifySql(step) => format!("{}: {}", step.workload, step.sql),
        Step::VerifyStream(step) => format!("{} of {}", step.stream, step.workload),
        Step::Command(step) => step.run.join(" "),
        Step::Approval(step) => step.ask.clone(),
        Step::RescueWal(_) | Step::Start(_) | Step::Backup(_) => workload_of(step)
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

/// Runs all steps in order until one fails.
///
/// # Errors
/// When it cannot be begun: the file, a parameter, a template. A step that fails is in the execution.
pub async fn run(
    installation: &Installation,
    request: &RunbookRequest,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<RunbookExecution, RunbookError> {
    let runbook = RunbookFile::load(&request.file)?;
    let text = std::fs::read(&request.file).map_err(|source| RunbookError::Read {
        path: request.file.clone(),
        source,
    })?;
    let steps = prepare(installation, &runbook, request)?;
    let clock = &installation.clock;
    let bench = Bench {
        installation,
        approved: request.approved,
        progress,
        cancel,
    };
    let mut execution = RunbookExecution {
        runbook: runbook.runbook.clone(),
        sha256: hex(&Sha256::digest(&text)),
        boot_id: boot_id(),
        started: clock.now(),
        finished: clock.now(),
        steps: Vec::new(),
    };
    let mut going = true;
    for (step, number) in steps.iter().zip(1..) {
        let line = if going {
            carry_out(&bench, step, number).await
        } else {
            skipped(step, number)
        };
        going = line.outcome == StepOutcome::Done;
        execution.steps.push(line);
    }
    execution.finished = clock.now();
    Ok(execution)
}

/// Every step with its templates filled in, before the first is begun.
fn prepare(
    installation: &Installation,
    runbook: &RunbookFile,
    request: &RunbookRequest,
) -> Result<Vec<Step>, RunbookError> {
    let known: Vec<String> = runbook.parameters.keys().cloned().collect();
    if let Some(name) = request
        .parameters
        .keys()
        .find(|name| !runbook.parameters.contains_key(*name))
    {
        return Err(RunbookError::UnknownParameter {
            runbook: runbook.runbook.clone(),
            name: name.clone(),
            known,
        });
    }
    let mut given: Values = request.parameters.clone();
    given.insert("dr".to_owned(), request.dr_binary.display().to_string());
    given.insert(
        "config".to_owned(),
        installation.config.path.display().to_string(),
    );
    let fill = |(step, number): (&Step, usize)| {
        let workload = workload_of(step);
        if let Some(name) = workload {
            installation.config.workload(name.as_str())?;
        }
        filled(step, &values_for(installation, &given, workload)).map_err(|reason| {
            RunbookError::Template {
                runbook: runbook.runbook.clone(),
                step: number,
                action: step.action(),
                reason,
                known: known.clone(),
            }
        })
    };
    runbook.steps.iter().zip(1..).map(fill).collect()
}

async fn carry_out(bench: &Bench<'_>, step: &Step, number: usize) -> StepExecution {
    let clock = &bench.installation.clock;
    let limits = step.limits();
    let mut line = skipped(step, number);
    line.started = Some(clock.now());
    line.started_ns = Some(clock.monotonic_ns());
    bench
        .progress
        .note(&format!("step {number}: {} {}", line.action, line.subject));
    let result = loop {
        let tried = tokio::select! {
            tried = tokio::time::timeout(limits.timeout, bench.carry_out(step)) => tried
                .unwrap_or_else(|_| Err(StepFailure::new(format!(
                    "it took longer than its {}", line.timeout
                )))),
            () = bench.cancel.cancelled() => Err(StepFailure::new("stopped by a signal")),
        };
        match tried {
            Err(failure) if line.retries < limits.retries && !bench.cancel.is_cancelled() => {
                line.retries += 1;
                bench.progress.note(&format!(
                    "step {number} failed and is tried again: {}",
                    failure.0
                ));
            }
            other => break other,
        }
    };
    line.finished = Some(clock.now());
    line.finished_ns = Some(clock.monotonic_ns());
    let StepResult {
        detail,
        restore_point,
        position,
        bytes,
    } = match result {
        Ok(result) => {
            line.outcome = StepOutcome::Done;
            result
        }
        Err(failure) => {
            line.outcome = StepOutcome::Failed;
            StepResult {
                detail: failure.0,
                ..StepResult::default()
            }
        }
    };
    bench
        .progress
        .note(&format!("step {number}: {}: {detail}", line.outcome));
    StepExecution {
        detail,
        restore_point,
        position,
        bytes,
        ..line
    }
}

fn skipped(step: &Step, number: usize) -> StepExecution {
    let limits = step.limits();
    StepExecution {
        number,
        action: step.action().to_owned(),
        subject: subject(step),
        why: limits.why.map(str::to_owned),
        timeout: HumanDuration(limits.timeout),
        started: None,
        finished: None,
        started_ns: None,
        finished_ns: None,
        outcome: StepOutcome::Skipped,
        retries: 0,
        detail: "a step before it failed".to_owned(),
        restore_point: None,
        position: None,
        bytes: None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

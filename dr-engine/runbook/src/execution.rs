//! The journal of one execution, as it is printed, stored and put into a drill's report.

use std::fmt;

use chrono::{DateTime, Utc};
use dr_model::HumanDuration;
use serde::{Deserialize, Serialize};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It did what it says.
    Done,
    /// It did not, after all tries.
    Failed,
    /// A step before it failed.
    Skipped,
}

impl fmt::Display for StepOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}

/// One step as it was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepExecution {
    /// Counted from 1.
    pub number: usize,
    /// The action.
    pub action: String,
    /// What it was carried out on.
    pub subject: String,
    /// Why it is in the runbook.
    pub why: Option<String>,
    /// Its time limit.
    pub timeout: HumanDuration,
    /// Begin on the wall clock; `None`: skipped.
    pub started: Option<DateTime<Utc>>,
    /// End on the wall clock.
    pub finished: Option<DateTime<Utc>>,
    /// Begin on CLOCK_MONOTONIC.
    pub started_ns: Option<u64>,
    /// End on CLOCK_MONOTONIC.
    pub finished_ns: Option<u64>,
    /// How it ended.
    pub outcome: StepOutcome,
    /// Further tries that were made.
    pub retries: u32,
    /// What it did, or why it failed.
    pub detail: String,
    /// The restore point it used, where it restored something.
    pub restore_point: Option<String>,
    /// Its position, as the engine prints it.
    pub position: Option<String>,
    /// Bytes restored.
    pub bytes: Option<u64>,
}

/// One execution of a runbook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunbookExecution {
    /// The runbook's name.
    pub runbook: String,
    /// SHA-256 of the file as it was run.
    pub sha256: String,
    /// The boot the monotonic times belong to.
    pub boot_id: String,
    /// Begin on the wall clock.
    pub started: DateTime<Utc>,
    /// End on the wall clock.
    pub finished: DateTime<Utc>,
    /// Every step of the file, in order.
    pub steps: Vec<StepExecution>,
}

impl RunbookExecution {
    /// Whether every step did what it says.
    #[must_use]
    pub fn completed(&self) -> bool {
        self.steps
            .iter()
            .all(|step| step.outcome == StepOutcome::Done)
    }

    /// The step that failed, if one did.
    #[must_use]
    pub fn failure(&self) -> Option<&StepExecution> {
        self.steps
            .iter()
            .find(|step| step.outcome == StepOutcome::Failed)
    }
}

impl fmt::Display for RunbookExecution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.sha256.get(..12).unwrap_or(&self.sha256);
        writeln!(f, "runbook {} ({digest})", self.runbook)?;
        for step in &self.steps {
            let took = match (step.started_ns, step.finished_ns) {
                (Some(started), Some(finished)) => {
                    let ms = finished.saturating_sub(started) / 1_000_000;
                    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
                }
                _ => "-".to_owned(),
            };
            writeln!(
                f,
                "  {:>2}. {:<14} {:<7} {:>8}  {}",
                step.number, step.action, step.outcome, took, step.detail
            )?;
        }
        match self.failure() {
            Some(step) => write!(f, "stopped at step {} ({})", step.number, step.action),
            None => write!(f, "all steps done"),
        }
    }
}

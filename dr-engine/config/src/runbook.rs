//! Runbook files: recovery steps that people read and the engine runs.

use std::collections::BTreeMap;
use std::time::Duration;

use dr_model::{HumanDuration, WorkloadName};
use serde::{Deserialize, Serialize};

/// One runbook, `runbooks/<name>.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunbookFile {
    /// Its name; the same as the file's stem.
    pub runbook: String,
    /// What one sees when this runbook applies.
    pub symptom: String,
    /// What to make sure of before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Values the steps use as `{{ name }}`: name to description. The engine knows
    /// `data_directory` and `url` of the steps' workload by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// The steps, run in order.
    pub steps: Vec<Step>,
}

/// One step: a map with a single key, the action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Moves what is left of a failed primary's `pg_wal` into the archive (26.3.4, step 2).
    RescueWal(RescueWalStep),
    /// Restores a workload: a cluster or a folder into `into`, streams into their server.
    Restore(RestoreStep),
    /// Starts a restored cluster and waits until it accepts writes.
    Start(StartStep),
    /// Restores one tenant.
    TenantRestore(TenantRestoreStep),
    /// Takes a backup now.
    Backup(BackupStep),
    /// Runs a query that returns one number and compares it.
    VerifySql(VerifySqlStep),
    /// Checks that a stream is there with at least this many messages and all its consumers.
    VerifyStream(VerifyStreamStep),
    /// Runs a program; exit 0 is success.
    Command(CommandStep),
    /// A person's decision: asks on a terminal, fails without one unless `--yes`.
    Approval(ApprovalStep),
}

impl Step {
    /// What every step has: time limit, retries, reason.
    #[must_use]
    pub fn limits(&self) -> StepLimits<'_> {
        match self {
            Self::RescueWal(step) => {
                StepLimits::of(step.timeout, step.retries, step.why.as_deref())
            }
            Self::Restore(step) => StepLimits::of(step.timeout, step.retries, step.why.as_deref()),
            Self::Start(step) => StepLimits::of(step.timeout, step.retries, step.why.as_deref()),
            Self::TenantRestore(step) => {
                StepLimits::of(step.timeout, step.retries, step.why.as_deref())
            }
            Self::Backup(step) => StepLimits::of(step.timeout, step.retries, step.why.as_deref()),
            Self::VerifySql(step) => {
                StepLimits::of(step.timeout, step.retries, step.why.as_deref())
            }
            Self::VerifyStream(step) => {
                StepLimits::of(step.timeout, step.retries, step.why.as_deref())
            }
            Self::Command(step) => StepLimits::of(step.timeout, step.retries, step.why.as_deref()),
            Self::Approval(step) => StepLimits::of(step.timeout, step.retries, step.why.as_deref()),
        }
    }

    /// The action's name as written in the file.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::RescueWal(_) => "rescue_wal",
            Self::Restore(_) => "restore",
            Self::Start(_) => "start",
            Self::TenantRestore(_) => "tenant_restore",
            Self::Backup(_) => "backup",
            Self::VerifySql(_) => "verify_sql",
            Self::VerifyStream(_) => "verify_stream",
            Self::Command(_) => "command",
            Self::Approval(_) => "approval",
        }
    }
}

/// What every step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits<'a> {
    /// The step fails when it takes longer; 10 minutes unless the file says otherwise.
    pub timeout: Duration,
    /// Further tries after a failure.
    pub retries: u32,
    /// For people: why the step is there.
    pub why: Option<&'a str>,
}

const STEP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

impl<'a> StepLimits<'a> {
    fn of(timeout: Option<HumanDuration>, retries: u32, why: Option<&'a str>) -> Self {
        Self {
            timeout: timeout.map_or(STEP_TIMEOUT_DEFAULT, |given| given.0),
            retries,
            why,
        }
    }
}

fn latest() -> String {
    "latest".to_owned()
}

/// Moves what is left of a failed primary's `pg_wal` into the archive (26.3.4, step 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RescueWalStep {
    /// The workload.
    pub workload: WorkloadName,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Restores a workload: a cluster or a folder into `into`, streams into their server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreStep {
    /// The workload.
    pub workload: WorkloadName,
    /// The folder; a template. Not for queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// The target; a template.
    #[serde(default = "latest")]
    pub to: String,
    /// Whether the restored cluster goes on archiving as the new primary.
    #[serde(default)]
    pub as_primary: bool,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Starts a restored cluster and waits until it accepts writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartStep {
    /// The workload.
    pub workload: WorkloadName,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Restores one tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantRestoreStep {
    /// The tenant; a template.
    pub tenant: String,
    /// The workload.
    pub workload: WorkloadName,
    /// The target; a template.
    pub to: String,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Takes a backup now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupStep {
    /// The workload.
    pub workload: WorkloadName,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Runs a query that returns one number and compares it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifySqlStep {
    /// The workload.
    pub workload: WorkloadName,
    /// The query; a template.
    pub sql: String,
    /// The least acceptable value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<i64>,
    /// The only acceptable value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<i64>,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Checks that a stream is there with at least this many messages and all its consumers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyStreamStep {
    /// The workload.
    pub workload: WorkloadName,
    /// The stream.
    pub stream: String,
    /// The least acceptable number of messages.
    #[serde(default)]
    pub at_least: u64,
    /// Durable consumers that must be there.
    #[serde(default)]
    pub consumers: Vec<String>,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Runs a program; exit 0 is success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandStep {
    /// The program and its arguments; templates. No shell.
    pub run: Vec<String>,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A person's decision: asks on a terminal, fails without one unless `--yes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalStep {
    /// What is asked; a template.
    pub ask: String,
    /// The step fails when it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Further tries after a failure.
    #[serde(default)]
    pub retries: u32,
    /// For people: why the step is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

//! Drill files and the probes they use.

use std::path::PathBuf;

use dr_model::{HumanDuration, TierName, WorkloadName};
use serde::{Deserialize, Serialize};

/// One drill, `drills/<name>.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillFile {
    /// Its name; the same as the file's stem.
    pub drill: String,
    /// For people: the scenario in a sentence or two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// Where it takes place.
    pub environment: EnvironmentConfig,
    /// The promise it is measured against.
    pub objective: ObjectiveConfig,
    /// The outside client.
    pub probe: ProbeUse,
    /// What is broken.
    pub fault: FaultConfig,
    /// How the fault is noticed.
    pub detect: DetectConfig,
    /// The runbook that recovers, relative to the drill file.
    pub runbook: PathBuf,
    /// Who answers for it; printed in the report as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lead: Option<String>,
}

/// Which promise counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// The tier whose RTO and RPO are the objective.
    pub tier: TierName,
}

/// Where a drill takes place. Only sandboxes so far: a drill never touches production.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EnvironmentConfig {
    /// An installation of its own, built from a restore point and removed afterwards.
    Sandbox(SandboxConfig),
}

/// What a sandbox is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// The workload that is put under test.
    pub workload: WorkloadName,
    /// Other workloads that the scenario needs, each from its newest restore point.
    #[serde(default)]
    pub with: Vec<WorkloadName>,
    /// The restore point: `latest` or an id.
    pub from: String,
}

/// How the probe is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeUse {
    /// The probe file, relative to the drill file.
    pub file: PathBuf,
    /// Load before the fault.
    pub before: HumanDuration,
    /// Load after the service is usable again.
    pub after: HumanDuration,
}

/// What is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultConfig {
    /// Kills the primary's processes and, if asked, removes its data directory.
    KillPrimary {
        /// The signal: `KILL` or `QUIT`.
        signal: String,
        /// Whether the data directory is removed after the kill.
        #[serde(default)]
        remove_data_directory: bool,
    },
    /// Runs a statement that wipes a tenant's data, as a person would by mistake; removes its files
    /// in the workloads named by `with`.
    TenantMistake {
        /// The tenant, by name. Left out: the runner takes the first of the probe's tenants.
        #[serde(default)]
        tenant: Option<String>,
        /// The statements; `$1` is the tenant's id.
        statements: Vec<String>,
        /// Workloads of kind files whose tenant folder is emptied.
        #[serde(default)]
        files: Vec<WorkloadName>,
    },
    /// Deletes a stream with everything in it.
    DeleteStream {
        /// The stream's name.
        stream: String,
    },
}

/// How the fault is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectConfig {
    /// Only `probe` so far.
    pub by: String,
    /// Detected after this many failures in a row.
    pub after_failures: u32,
}

/// One probe, `drills/probes/<name>.yaml`: an outside client that writes and reads like a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeFile {
    /// Its name.
    pub probe: String,
    /// The workload it uses.
    pub workload: WorkloadName,
    /// The time between the beginnings of two cycles. A cycle is one write and one read for each
    /// probed tenant.
    pub every: HumanDuration,
    /// After this long without an answer the outcome is unknown.
    pub timeout: HumanDuration,
    /// Databases: a query for the tenants' ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<String>,
    /// At most this many tenants, evenly picked from the list; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants_max: Option<usize>,
    /// Databases: the write. `$1` is the tenant's id, `$2` a text key that is new in every write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<String>,
    /// Databases: the read. Same parameters; it must return a row when the write is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<String>,
    /// Queues: the stream read from. The probe looks written messages up by sequence number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Queues: the subject written to; `{tenant}` is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

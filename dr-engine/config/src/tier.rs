//! Tier files: the promise and the policy that keeps it.

use dr_model::{HumanDuration, TierName};
use serde::{Deserialize, Serialize};

/// One tier, `tier-configs/<name>.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Its name; the same as the file's stem.
    pub tier: TierName,
    /// For people: what it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The longest tolerable downtime.
    pub rto: HumanDuration,
    /// The longest tolerable loss.
    pub rpo: HumanDuration,
    /// When backups run.
    pub backup: Schedule,
    /// How long restore points and WAL are kept.
    pub retention: Retention,
    /// When restore points are proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifySchedule>,
    /// When recovery is exercised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillSchedule>,
    /// How long nobody may delete a restore point's data, whatever their rights (Object Lock). The first
    /// repository of each of the tier's workloads must be a bucket with `object_lock`. Copies and WAL are
    /// not locked by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<HumanDuration>,
    /// How the first repository keeps this tier's data, in the store's own word (`STANDARD_IA`); it must
    /// be a bucket then. Lists, keys, indexes and WAL stay in the repository's own class, and so do
    /// copies. What is stored already stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// zstd level for this tier's data, 1 to 19.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<i32>,
    /// How many repositories must hold everything, the first one counted.
    #[serde(default = "default_copies", skip_serializing_if = "is_one")]
    pub copies: u32,
}

fn default_copies() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(copies: &u32) -> bool {
    *copies == 1
}

/// A schedule: 6 or 7 cron fields (seconds first; 5 fields are read as minutes first), on the civil
/// time of a zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The cron expression.
    pub cron: String,
    /// An IANA zone; UTC when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// How long restore points and WAL are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Any moment this far back can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pitr: Option<HumanDuration>,
    /// Hourly points kept.
    #[serde(default)]
    pub hourly: u32,
    /// Daily points kept.
    #[serde(default)]
    pub daily: u32,
    /// Weekly points kept.
    #[serde(default)]
    pub weekly: u32,
    /// Monthly points kept.
    #[serde(default)]
    pub monthly: u32,
    /// Yearly points kept.
    #[serde(default)]
    pub yearly: u32,
    /// Never fewer whole points than this.
    #[serde(default = "default_min_redundancy")]
    pub min_redundancy: u32,
}

fn default_min_redundancy() -> u32 {
    2
}

/// When restore points are proven, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifySchedule {
    /// The cron expression, as for backups.
    pub cron: String,
    /// An IANA zone; UTC when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Whether the newest point is really restored and, for databases, started. Otherwise every
    /// object it needs is read and checked.
    #[serde(default)]
    pub restore: bool,
}

/// When recovery is exercised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillSchedule {
    /// The drill's name: the stem of its file in the drills folder.
    pub script: String,
    /// The cron expression, as for backups.
    pub cron: String,
    /// An IANA zone; UTC when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

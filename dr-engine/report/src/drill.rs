//! The report of one drill run. Numbered after the points that auditors ask for; every point is there,
//! and what nobody measured or gave stays `None`, which the renderers print as such.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// The version of the stored form. A reader refuses versions it does not know.
pub const REPORT_VERSION: u32 = 1;

/// One drill run, complete. Times that end in `_ms` are differences of CLOCK_MONOTONIC in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// 1. What this is, when, on which clock.
    pub identity: Identity,
    /// 2. Who answers for it.
    pub governance: Governance,
    /// 3. What was and was not exercised.
    pub scope: Scope,
    /// 4. What was to be shown, and when it would have been stopped.
    pub design: Design,
    /// 5. What was broken, with proof.
    pub fault: InjectedFault,
    /// 6. The runbook as it was carried out.
    pub runbook: RunbookUse,
    /// 7. What happened when.
    pub timeline: TimeLine,
    /// 8. Promised and achieved.
    pub objectives: Vec<Objective>,
    /// 8. What measured it.
    pub probe: ProbeUse,
    /// 9. What is gone.
    pub loss: Loss,
    /// 10. From where it was recovered.
    pub recovery_points: Vec<RecoveryPointUsed>,
    /// 11. What was checked afterwards.
    pub verification: Vec<Check>,
    /// 12. How much it took.
    pub volume: Volume,
    /// 13. Who was told when.
    pub communication: Vec<Message>,
    /// 14. What must be mended.
    pub findings: Vec<Finding>,
    /// 15. The judgement.
    pub verdict: Verdict,
    /// 16. What became of the environment.
    pub cleanup: CleanUp,
    /// 17. What can be looked up.
    pub evidence: Evidence,
    /// 18. Who stands for it.
    pub sign_off: SignOff,
    /// 19. Where this run stands within its quarter.
    pub quarter: QuarterPlace,
}

/// Whether a run came to its end, apart from what it showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every phase was carried out and measured.
    Completed,
    /// A phase failed; the verdict is `fail`.
    Failed,
    /// Stopped by a person or an abort criterion before the measurement was complete.
    Aborted,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        })
    }
}

/// 1. Identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The drill run's id; also the report's.
    pub id: String,
    /// The drill's name.
    pub drill: String,
    /// SHA-256 of the drill file, its version.
    pub drill_sha256: String,
    /// The quarter it counts for, like 2026Q4.
    pub period: String,
    /// Tabletop, restore test, functional or full.
    pub kind: String,
    /// Whether the people on duty knew; `None`: not given.
    pub announced: Option<bool>,
    /// Where it took place.
    pub environment: String,
    /// When the run began (wall clock).
    pub started: DateTime<Utc>,
    /// When the run ended (wall clock).
    pub finished: DateTime<Utc>,
    /// The zone all times are printed in.
    pub time_zone: String,
    /// What durations are measured with.
    pub clock: String,
    /// Milliseconds the wall clock was off; `None`: not measured.
    pub clock_offset_ms: Option<i64>,
    /// When this drill was due before.
    pub previous_due: Option<DateTime<Utc>>,
    /// When it is due again.
    pub next_due: Option<DateTime<Utc>>,
    /// Whether the run came to its end.
    pub status: Status,
    /// Why it did not.
    pub cause: Option<String>,
}

/// 2. Governance; all of it as given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Governance {
    /// Who leads.
    pub lead: Option<String>,
    /// The OS user and program that executed it.
    pub executors: Vec<String>,
    /// Who watched.
    pub observers: Vec<String>,
    /// Who approved it.
    pub approver: Option<String>,
    /// By which authorisation.
    pub authorisation: Option<String>,
    /// The risk it answers to.
    pub risk_reference: Option<String>,
    /// Controls served.
    pub controls: Vec<String>,
    /// Who may read this.
    pub classification: Option<String>,
}

/// 3. Scope.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scope {
    /// Services; `None` where the configuration names none.
    pub services: Option<Vec<String>>,
    /// Workloads under test.
    pub workloads: Vec<WorkloadInScope>,
    /// Tenants that were probed.
    pub tenants: Vec<String>,
    /// How tenants are kept apart.
    pub tenancy_model: Option<String>,
    /// Suppliers involved.
    pub suppliers: Option<Vec<String>>,
    /// What was left out, with the reason.
    pub exclusions: Vec<String>,
    /// Share of critical systems covered this quarter, 0 to 1.
    pub coverage_quarter: Option<f64>,
    /// The same over 12 months.
    pub coverage_year: Option<f64>,
}

/// One workload under test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInScope {
    /// Its name.
    pub workload: String,
    /// postgres, nats or files.
    pub kind: String,
    /// Its tier.
    pub tier: String,
}

/// 4. Design.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Design {
    /// What is to be shown.
    pub objective: String,
    /// The scenario in a sentence or two.
    pub scenario: Option<String>,
    /// Taken for granted.
    pub assumptions: Vec<String>,
    /// Made sure of before.
    pub preconditions: Vec<String>,
    /// When it counts as passed.
    pub success_criteria: Vec<String>,
    /// When it is stopped.
    pub abort_criteria: Vec<String>,
    /// What cannot be reached by the fault, and why.
    pub blast_radius: Vec<String>,
}

/// 5. The injected failure.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectedFault {
    /// Exactly what was done.
    pub action: String,
    /// To what.
    pub target: String,
    /// When (wall clock).
    pub at: Option<DateTime<Utc>>,
    /// When, on CLOCK_MONOTONIC: just before the first harm was done.
    pub at_ns: Option<u64>,
    /// Seen from outside the code that did it: each line a look and what it saw.
    pub proof_effect: Vec<Check>,
    /// That its effect is gone again.
    pub proof_removed: Vec<Check>,
}

/// 6. The runbook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunbookUse {
    /// Its name.
    pub runbook: String,
    /// SHA-256 of the file as it was run; its version.
    pub sha256: String,
    /// What was done otherwise than written; empty: nothing.
    pub deviations: Vec<String>,
    /// Steps a person did.
    pub manual_steps: Vec<String>,
    /// Who approved what when.
    pub approvals: Vec<String>,
    /// The command that ran it.
    pub command: String,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Wall clock.
    pub at: DateTime<Utc>,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
}

/// 7. The time line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeLine {
    /// The last write acknowledged before the fault.
    pub last_acknowledged_write: Option<Moment>,
    /// The fault.
    pub fault: Option<Moment>,
    /// The probe's N-th failed cycle in a row ended.
    pub detected: Option<Moment>,
    /// What noticed it.
    pub detected_by: Option<String>,
    /// The runner read that from the probe's log.
    pub declared: Option<Moment>,
    /// The runbook was chosen.
    pub decided: Option<Moment>,
    /// The runbook's first restoring step began.
    pub restore_started: Option<Moment>,
    /// The last restoring step ended.
    pub data_restored: Option<Moment>,
    /// The probe's first run of good cycles ended.
    pub usable: Option<Moment>,
    /// The load after recovery was over without a failure.
    pub back_to_normal: Option<Moment>,
    /// The phases of the run, in order.
    pub phases: Vec<Phase>,
    /// The runbook's steps, in order.
    pub steps: Vec<StepLine>,
}

/// One phase of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Begin on CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// End on CLOCK_MONOTONIC.
    pub finished_ns: u64,
    /// Begin on the wall clock.
    pub started: DateTime<Utc>,
    /// Whether it did what it should.
    pub passed: bool,
    /// What is worth knowing.
    pub detail: String,
}

/// One step of the runbook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLine {
    /// The action.
    pub action: String,
    /// Why it is there, as the runbook says.
    pub why: Option<String>,
    /// Its time limit.
    pub planned_ms: u64,
    /// Begin on CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// End on CLOCK_MONOTONIC.
    pub finished_ns: u64,
    /// Begin on the wall clock.
    pub started: DateTime<Utc>,
    /// Who did it.
    pub actor: String,
    /// done or failed.
    pub outcome: String,
    /// Further tries that were needed.
    pub retries: u32,
    /// What it said.
    pub detail: String,
    /// Where more is to be read.
    pub log: Option<String>,
}

/// 8. One objective against what was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    /// Of what: a service, workload or tenant.
    pub subject: String,
    /// Which measure.
    pub measure: Measure,
    /// In words: from where to where.
    pub definition: String,
    /// Promised, milliseconds; `None`: nothing was promised.
    pub objective_ms: Option<u64>,
    /// Measured, milliseconds; `None`: not measured.
    pub achieved_ms: Option<u64>,
    /// Why it was not measured.
    pub reason: Option<String>,
    /// How much the measured value may be off, milliseconds.
    pub uncertainty_ms: Option<u64>,
    /// The measured value was below what the probe can see; its floor is printed instead.
    pub at_floor: bool,
    /// Met or missed; `None` where nothing was promised. Not measured counts as missed.
    pub met: Option<bool>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Fault to usable.
    RtoFromFault,
    /// Declaration to usable.
    RtoFromDeclaration,
    /// Fault back to the newest recovered acknowledged write.
    Rpo,
    /// Fault to detection.
    Detection,
}

impl Measure {
    /// As people read it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::RtoFromFault => "RTO, fault to usable",
            Self::RtoFromDeclaration => "RTO, declared to usable",
            Self::Rpo => "RPO",
            Self::Detection => "Detection",
        }
    }
}

/// 8. The probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeUse {
    /// Its name.
    pub probe: String,
    /// SHA-256 of its file.
    pub sha256: String,
    /// What it does.
    pub method: String,
    /// Between the beginnings of two cycles.
    pub interval_ms: u64,
    /// After this long an outcome is unknown.
    pub timeout_ms: u64,
    /// Interval plus timeout.
    pub uncertainty_ms: u64,
    /// Cycles made.
    pub cycles: u64,
    /// Writes sent.
    pub writes: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// The boot both clocks belong to.
    pub boot_id: String,
}

/// 9. Loss, in writes of the probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Acknowledged writes that are gone; `None`: not measured.
    pub lost_writes: Option<u64>,
    /// Of these, acknowledged before the fault.
    pub lost_before_fault: Option<u64>,
    /// Of these, acknowledged between the fault and usable: taken in by a damaged service.
    pub lost_after_fault: Option<u64>,
    /// Acknowledged writes found more than once; `None`: not measured.
    pub duplicated_writes: Option<u64>,
    /// Writes without an answer that turned out to be there.
    pub unknown_recovered: Option<u64>,
    /// Writes without an answer that are not there.
    pub unknown_not_recovered: Option<u64>,
    /// By tenant.
    pub tenants: Vec<TenantLoss>,
    /// Keys of lost writes, at most 20, as a sample.
    pub sample: Vec<String>,
    /// What became of writes after the recovery point.
    pub after_the_point: Option<String>,
}

/// What one tenant lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantLoss {
    /// The tenant, as the probe names it.
    pub tenant: String,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Of these, gone.
    pub lost: u64,
    /// Writes without an answer.
    pub unknown: u64,
    /// Fault back to its newest recovered acknowledged write.
    pub rpo_ms: Option<u64>,
}

/// 10. A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPointUsed {
    /// The workload.
    pub workload: String,
    /// The restore point's id.
    pub id: Option<String>,
    /// LSN, stream sequence or version.
    pub position: Option<String>,
    /// Its age at the fault.
    pub age_at_fault_ms: Option<u64>,
    /// Distance to the other stores' points.
    pub skew_ms: Option<u64>,
    /// Where it is kept.
    pub location: Option<String>,
    /// Whether it is locked against deletion.
    pub lock: Option<String>,
    /// The key it is sealed with.
    pub key: Option<String>,
    /// Whether every byte read was authentic.
    pub integrity: Option<String>,
}

/// 11, 5, 16. One look at something, and what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// technical, business, security, tenants, integrations, erasure.
    pub group: String,
    /// What was looked at.
    pub what: String,
    /// Whether it is as it must be; `None`: not measured.
    pub passed: Option<bool>,
    /// What was seen.
    pub detail: String,
}

impl Check {
    /// A look that was made.
    #[must_use]
    pub fn seen(
        group: &str,
        what: impl Into<String>,
        passed: bool,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            group: group.into(),
            what: what.into(),
            passed: Some(passed),
            detail: detail.into(),
        }
    }

    /// A look that nobody made.
    #[must_use]
    pub fn not_measured(group: &str, what: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            what: what.into(),
            passed: None,
            detail: String::new(),
        }
    }
}

/// 12. Volume and cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Bytes read from the repository.
    pub bytes_read: Option<u64>,
    /// Bytes restored.
    pub bytes_written: Option<u64>,
    /// Restored bytes per second while restoring.
    pub throughput_bytes_per_second: Option<u64>,
    /// Processor time.
    pub compute_ms: Option<u64>,
    /// Money; only with a price list.
    pub cost: Option<String>,
}

/// 13. Who was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who.
    pub who: String,
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub what: String,
}

/// 14. A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Within this run: F1, F2…
    pub id: String,
    /// objective, recovery, integrity, clean-up.
    pub category: String,
    /// high, medium or low.
    pub severity: String,
    /// What was found.
    pub what: String,
    /// Why, as far as known.
    pub root_cause: Option<String>,
    /// What to do.
    pub action: Option<String>,
    /// Who does it.
    pub owner: Option<String>,
    /// Until when. A failed drill is re-tested within 30 days.
    pub due: Option<DateTime<Utc>>,
    /// open or closed.
    pub status: String,
    /// The run that re-tested it.
    pub retest: Option<String>,
}

/// The judgement's three words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overall {
    /// Every criterion holds.
    Pass,
    /// The objectives are met; something else must be mended.
    Conditional,
    /// An objective was missed, or the run failed.
    Fail,
}

impl std::fmt::Display for Overall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Conditional => "conditional",
            Self::Fail => "fail",
        })
    }
}

/// 15. The verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Overall.
    pub overall: Overall,
    /// By criterion.
    pub criteria: Vec<Criterion>,
}

/// One criterion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criterion {
    /// What was to hold.
    pub criterion: String,
    /// Whether it does; `None`: not measured.
    pub passed: Option<bool>,
    /// The numbers.
    pub detail: String,
}

/// 16. Clean-up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanUp {
    /// What was made and is gone again.
    pub removed: Vec<String>,
    /// Looks at what is left.
    pub proof: Vec<Check>,
    /// Looks at production, before and after.
    pub production_untouched: Vec<Check>,
    /// What remains to be done.
    pub residual_risk: Option<String>,
}

/// 17. Evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Files, each also a record of the repository.
    pub files: Vec<EvidenceFile>,
    /// Program, version.
    pub tools: Vec<ToolVersion>,
    /// SHA-256 over the files' hashes in order: H(n) = SHA-256(H(n-1) || sha256(n)).
    pub chain_sha256: Option<String>,
    /// A signature over the chain.
    pub signature: Option<String>,
    /// Kept at least until then.
    pub retention: Option<DateTime<Utc>>,
}

/// One piece of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceFile {
    /// Its name, in the evidence folder and in the repository.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// The repository record that holds it; `None`: only the file.
    pub record: Option<String>,
}

/// A program that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolVersion {
    /// The program.
    pub tool: String,
    /// What it says of itself.
    pub version: String,
    /// SHA-256 of its file.
    pub sha256: Option<String>,
}

/// 18. Sign-off; filled in by people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignOff {
    /// Who prepared it.
    pub prepared: Option<String>,
    /// Who reviewed it (security).
    pub reviewed: Option<String>,
    /// Who acknowledged it (management).
    pub acknowledged: Option<String>,
    /// Who gets it.
    pub distribution: Vec<String>,
}

/// 19. This run's place in its quarter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarterPlace {
    /// Runs of this drill held before in the quarter.
    pub runs_before: Option<u64>,
    /// RTO of the previous run of this drill.
    pub previous_rto_ms: Option<u64>,
    /// RPO of the previous run of this drill.
    pub previous_rpo_ms: Option<u64>,
    /// Until when a failed run must be repeated.
    pub retest_by: Option<DateTime<Utc>>,
}

impl DrillReport {
    /// As JSON, indented, with a line feed at its end.
    ///
    /// # Errors
    /// Does not happen with values that were measured.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// The first objective with this measure.
    #[must_use]
    pub fn objective(&self, measure: Measure) -> Option<&Objective> {
        self.objectives
            .iter()
            .find(|objective| objective.measure == measure)
    }
}

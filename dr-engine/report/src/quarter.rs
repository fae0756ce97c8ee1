//! The report of a quarter, made from the drill runs of the repository.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{DrillReport, Finding, Measure, Overall, Status};

/// 19. A quarter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarterReport {
    /// [`crate::REPORT_VERSION`].
    pub version: u32,
    /// Like 2026Q4.
    pub quarter: String,
    /// When it was made (wall clock).
    pub made: DateTime<Utc>,
    /// Drills the tiers plan for the quarter; `None`: no tier schedules one.
    pub planned: Option<u64>,
    /// Drill runs held.
    pub held: u64,
    /// Drills cancelled, each with its reason; `None`: not recorded.
    pub cancelled: Option<Vec<String>>,
    /// The runs, oldest first.
    pub runs: Vec<QuarterRun>,
    /// Workloads that no run of the quarter covered.
    pub not_covered: Vec<String>,
    /// Share of workloads covered, 0 to 1; `None`: no workload is configured.
    pub coverage: Option<f64>,
    /// Share of runs that met their RTO.
    pub rto_met_share: Option<f64>,
    /// Share of runs that met their RPO.
    pub rpo_met_share: Option<f64>,
    /// Backups that succeeded, as a share; `None`: not measured.
    pub backup_success: Option<f64>,
    /// Workload and age of its newest restore point in seconds; `None`: not measured.
    pub staleness: Option<Vec<Staleness>>,
    /// Restore tests: passed and made.
    pub restore_tests: Option<RestoreTests>,
    /// Findings that are open.
    pub open_findings: Vec<OpenFinding>,
    /// Exceptions accepted; `None`: not given.
    pub exceptions: Option<Vec<String>>,
}

/// One run in the quarter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarterRun {
    /// The run.
    pub id: String,
    /// The drill.
    pub drill: String,
    /// When it began (wall clock).
    pub started: DateTime<Utc>,
    /// Whether it came to its end.
    pub status: Status,
    /// The judgement.
    pub overall: Overall,
    /// Promised RTO.
    pub rto_objective_ms: Option<u64>,
    /// Measured RTO.
    pub rto_ms: Option<u64>,
    /// Promised RPO.
    pub rpo_objective_ms: Option<u64>,
    /// Measured RPO.
    pub rpo_ms: Option<u64>,
    /// Acknowledged writes lost.
    pub lost_writes: Option<u64>,
    /// The later run of the same drill that passed, if this one did not.
    pub retested_by: Option<String>,
    /// Until when it must be repeated, if it failed.
    pub retest_by: Option<DateTime<Utc>>,
}

/// How old a workload's newest restore point is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staleness {
    /// The workload.
    pub workload: String,
    /// Seconds since the moment of its newest restore point; `None`: it has none.
    pub age_seconds: Option<u64>,
}

/// Restore tests in the quarter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreTests {
    /// Made.
    pub made: u64,
    /// Passed.
    pub passed: u64,
}

/// A finding of some run that is still open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFinding {
    /// The run.
    pub run: String,
    /// Days since that run.
    pub age_days: u64,
    /// The finding.
    pub finding: Finding,
}

/// What a quarter's report is made from, besides the runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuarterFacts {
    /// Every workload of the configuration.
    pub workloads: Vec<String>,
    /// Drills the tiers plan.
    pub planned: Option<u64>,
    /// Age of newest restore points.
    pub staleness: Option<Vec<Staleness>>,
    /// Restore tests.
    pub restore_tests: Option<RestoreTests>,
}

/// The quarter a moment lies in, like 2026Q4.
#[must_use]
pub fn quarter_of(at: DateTime<Utc>) -> String {
    use chrono::Datelike;
    format!("{}Q{}", at.year(), (at.month0() / 3) + 1)
}

impl QuarterReport {
    /// Makes the report of `quarter` from all runs known; those of other quarters serve only as re-tests.
    #[must_use]
    pub fn of(
        quarter: &str,
        made: DateTime<Utc>,
        runs: &[DrillReport],
        facts: QuarterFacts,
    ) -> Self {
        let mut all: Vec<&DrillReport> = runs.iter().collect();
        all.sort_by_key(|run| run.identity.started);
        let held: Vec<&DrillReport> = all
            .iter()
            .copied()
            .filter(|run| run.identity.period == quarter)
            .collect();
        let covered = |name: &String| {
            held.iter().any(|run| {
                run.identity.status == Status::Completed
                    && run
                        .scope
                        .workloads
                        .iter()
                        .any(|scope| scope.workload == *name)
            })
        };
        let not_covered: Vec<String> = facts
            .workloads
            .iter()
            .filter(|name| !covered(name))
            .cloned()
            .collect();
        let coverage = share(
            facts.workloads.len() - not_covered.len(),
            facts.workloads.len(),
        );
        let lines: Vec<QuarterRun> = held.iter().map(|run| line(run, &all)).collect();
        let open_findings = held
            .iter()
            .flat_map(|run| {
                run.findings
                    .iter()
                    .filter(|finding| finding.status == "open")
                    .map(|finding| OpenFinding {
                        run: run.identity.id.clone(),
                        age_days: u64::try_from((made - run.identity.finished).num_days())
                            .unwrap_or(0),
                        finding: finding.clone(),
                    })
            })
            .collect();
        Self {
            version: crate::REPORT_VERSION,
            quarter: quarter.to_owned(),
            made,
            planned: facts.planned,
            held: lines.len() as u64,
            cancelled: None,
            not_covered,
            coverage,
            rto_met_share: met_share(&held, Measure::RtoFromFault),
            rpo_met_share: met_share(&held, Measure::Rpo),
            backup_success: None,
            staleness: facts.staleness,
            restore_tests: facts.restore_tests,
            open_findings,
            exceptions: None,
            runs: lines,
        }
    }

    /// As JSON, indented, with a line feed at its end.
    ///
    /// # Errors
    /// Does not happen with values that were measured.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

fn line(run: &DrillReport, all: &[&DrillReport]) -> QuarterRun {
    let rto = run.objective(Measure::RtoFromFault);
    let rpo = run.objective(Measure::Rpo);
    let failed = run.verdict.overall == Overall::Fail;
    let retested_by = all
        .iter()
        .find(|later| {
            failed
                && later.identity.drill == run.identity.drill
                && later.identity.started > run.identity.started
                && later.verdict.overall != Overall::Fail
        })
        .map(|later| later.identity.id.clone());
    QuarterRun {
        id: run.identity.id.clone(),
        drill: run.identity.drill.clone(),
        started: run.identity.started,
        status: run.identity.status,
        overall: run.verdict.overall,
        rto_objective_ms: rto.and_then(|objective| objective.objective_ms),
        rto_ms: rto.and_then(|objective| objective.achieved_ms),
        rpo_objective_ms: rpo.and_then(|objective| objective.objective_ms),
        rpo_ms: rpo.and_then(|objective| objective.achieved_ms),
        lost_writes: run.loss.lost_writes,
        retest_by: run.quarter.retest_by,
        retested_by,
    }
}

fn met_share(runs: &[&DrillReport], measure: Measure) -> Option<f64> {
    let judged: Vec<bool> = runs
        .iter()
        .filter_map(|run| run.objective(measure).and_then(|found| found.met))
        .collect();
    share(judged.iter().filter(|met| **met).count(), judged.len())
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a share of a few runs, printed as a percentage"
)]
fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

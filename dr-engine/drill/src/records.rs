//! Drill runs as records of the repository: what was held, and the report of a quarter.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_report::{
    DrillReport, Measure, Overall, QuarterFacts, QuarterReport, Staleness, Status, quarter_of,
};
use serde::{Deserialize, Serialize};

use crate::DrillError;

/// The kind of record that holds a run's report.
const RECORD: &str = "drill-run";

/// One drill run in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillRunSummary {
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
    /// Promised RTO, seconds.
    pub rto_objective_seconds: Option<f64>,
    /// Measured RTO, seconds.
    pub rto_seconds: Option<f64>,
    /// Promised RPO, seconds.
    pub rpo_objective_seconds: Option<f64>,
    /// Measured RPO, seconds.
    pub rpo_seconds: Option<f64>,
    /// Acknowledged writes lost.
    pub lost_writes: Option<u64>,
    /// Why the run did not come to its end.
    pub cause: Option<String>,
}

impl DrillRunSummary {
    /// The columns of [`DrillRunSummary::row`].
    pub const HEADER: [&'static str; 8] = [
        "RUN", "DRILL", "STARTED", "STATUS", "VERDICT", "RTO", "RPO", "LOST",
    ];

    /// What a list shows of a report.
    #[must_use]
    pub fn of(report: &DrillReport) -> Self {
        let rto = report.objective(Measure::RtoFromFault);
        let rpo = report.objective(Measure::Rpo);
        Self {
            id: report.identity.id.clone(),
            drill: report.identity.drill.clone(),
            started: report.identity.started,
            status: report.identity.status,
            overall: report.verdict.overall,
            rto_objective_seconds: rto.and_then(|found| found.objective_ms).map(seconds),
            rto_seconds: rto.and_then(|found| found.achieved_ms).map(seconds),
            rpo_objective_seconds: rpo.and_then(|found| found.objective_ms).map(seconds),
            rpo_seconds: rpo.and_then(|found| found.achieved_ms).map(seconds),
            lost_writes: report.loss.lost_writes,
            cause: report.identity.cause.clone(),
        }
    }

    /// One row of a table.
    #[must_use]
    pub fn row(&self) -> Vec<String> {
        let against = |achieved: Option<f64>, objective: Option<f64>| {
            let achieved = achieved.map_or_else(|| "not measured".to_owned(), duration);
            match objective {
                Some(objective) => format!("{achieved} / {}", duration(objective)),
                None => achieved,
            }
        };
        vec![
            self.id.clone(),
            self.drill.clone(),
            self.started.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            self.status.to_string(),
            self.overall.to_string(),
            against(self.rto_seconds, self.rto_objective_seconds),
            against(self.rpo_seconds, self.rpo_objective_seconds),
            self.lost_writes
                .map_or_else(|| "not measured".to_owned(), |lost| lost.to_string()),
        ]
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "milliseconds of a drill, far below 2^53"
)]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "was a number of milliseconds before"
)]
fn duration(seconds: f64) -> String {
    dr_report::html::duration((seconds * 1000.0).round() as u64)
}

/// Which quarter, and where its report goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRequest {
    /// Like 2026Q4; the present one when left out.
    pub quarter: Option<String>,
    /// The folder.
    pub out: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenReport {
    /// The quarter.
    pub quarter: String,
    /// Drill runs in it.
    pub runs: u64,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// Every drill run kept in any repository of the installation, oldest first.
async fn reports(installation: &Installation) -> Result<Vec<DrillReport>, DrillError> {
    let installation = installation.clone();
    tokio::task::spawn_blocking(move || {
        let failed = |source| DrillError::Repository {
            action: "read drill runs",
            source,
        };
        let mut found: Vec<DrillReport> = Vec::new();
        for (_, repository) in installation.all_repositories()? {
            for name in repository.list_records(RECORD).map_err(failed)? {
                let Some(body) = repository.get_record(RECORD, &name).map_err(failed)? else {
                    continue;
                };
                let report: DrillReport =
                    serde_json::from_slice(&body).map_err(|error| DrillError::Malformed {
                        path: format!("record {RECORD}/{name}").into(),
                        what: "a drill's report",
                        reason: error.to_string(),
                    })?;
                // The same run may be kept in several repositories.
                if !found
                    .iter()
                    .any(|known| known.identity.id == report.identity.id)
                {
                    found.push(report);
                }
            }
        }
        found.sort_by_key(|report| report.identity.started);
        Ok(found)
    })
    .await
    .map_err(|_| DrillError::Cancelled)?
}

/// Reports of the quarter before this run, for its trend.
pub(crate) async fn earlier(
    installation: &Installation,
    drill: &str,
) -> Result<Vec<DrillReport>, DrillError> {
    let mut found = reports(installation).await?;
    found.retain(|report| report.identity.drill == drill);
    Ok(found)
}

/// Keeps a report as a record, durable on return. Blocks.
pub(crate) fn keep(
    repository: &dr_store::Repository,
    report: &DrillReport,
) -> Result<(), DrillError> {
    let body = report.to_json().map_err(|error| DrillError::Malformed {
        path: report.identity.id.clone().into(),
        what: "a report that can be written",
        reason: error.to_string(),
    })?;
    repository
        .put_record(RECORD, &report.identity.id, body.as_bytes())
        .map_err(|source| DrillError::Repository {
            action: "keep the report",
            source,
        })
}

/// Lists all drill runs, oldest first.
///
/// # Errors
/// When a repository cannot be opened or a record is damaged.
pub async fn list(installation: &Installation) -> Result<Vec<DrillRunSummary>, DrillError> {
    Ok(reports(installation)
        .await?
        .iter()
        .map(DrillRunSummary::of)
        .collect())
}

/// Writes the report of a quarter as HTML and JSON.
///
/// # Errors
/// As [`list`], and when a file cannot be written.
pub async fn report(
    installation: &Installation,
    request: &ReportRequest,
) -> Result<WrittenReport, DrillError> {
    let now = installation.clock.now();
    let quarter = request.quarter.clone().unwrap_or_else(|| quarter_of(now));
    if !is_quarter(&quarter) {
        return Err(DrillError::Unsuitable(format!(
            "`{quarter}` is no quarter: write it like 2026Q4"
        )));
    }
    let runs = reports(installation).await?;
    let facts = facts(installation, now).await?;
    let made = QuarterReport::of(&quarter, now, &runs, facts);
    let json = made.to_json().map_err(|error| DrillError::Malformed {
        path: request.out.clone(),
        what: "a folder for a report that can be written",
        reason: error.to_string(),
    })?;
    let html = dr_report::html::quarter(&made);
    let files = write_pair(&request.out, &format!("quarter-{quarter}"), &html, &json)?;
    Ok(WrittenReport {
        quarter,
        runs: made.held,
        files,
    })
}

fn is_quarter(text: &str) -> bool {
    let Some((year, quarter)) = text.split_once('Q') else {
        return false;
    };
    year.len() == 4
        && year.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(quarter, "1" | "2" | "3" | "4")
}

/// Writes `<stem>.html` and `<stem>.json` into a folder.
pub(crate) fn write_pair(
    folder: &Path,
    stem: &str,
    html: &str,
    json: &str,
) -> Result<Vec<PathBuf>, DrillError> {
    std::fs::create_dir_all(folder).map_err(DrillError::file("create", folder))?;
    let mut files = Vec::new();
    for (ending, text) in [("html", html), ("json", json)] {
        let path = folder.join(format!("{stem}.{ending}"));
        std::fs::write(&path, text).map_err(DrillError::file("write", &path))?;
        files.push(path);
    }
    Ok(files)
}

async fn facts(
    installation: &Installation,
    now: DateTime<Utc>,
) -> Result<QuarterFacts, DrillError> {
    let names: Vec<_> = installation
        .config
        .workloads()
        .map(|one| one.name.clone())
        .collect();
    let planned = installation
        .config
        .tiers
        .values()
        .filter(|tier| tier.drill.is_some())
        .count() as u64;
    let mut staleness = Vec::new();
    for name in &names {
        let repository = installation.open_repository_of(name).await?;
        let wanted = name.clone();
        let points = tokio::task::spawn_blocking(move || repository.points(Some(&wanted)))
            .await
            .map_err(|_| DrillError::Cancelled)?
            .map_err(|source| DrillError::Repository {
                action: "list restore points",
                source,
            })?;
        let age = points
            .last()
            .map(|point| (now - point.moment).num_seconds());
        staleness.push(Staleness {
            workload: name.to_string(),
            age_seconds: age.and_then(|seconds| u64::try_from(seconds).ok()),
        });
    }
    Ok(QuarterFacts {
        workloads: names.iter().map(ToString::to_string).collect(),
        planned: (planned > 0).then_some(planned),
        staleness: Some(staleness),
        restore_tests: None,
    })
}

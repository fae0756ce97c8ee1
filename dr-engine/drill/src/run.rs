//! The conductor of a drill run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dr_config::{Config, DrillFile, EnvironmentConfig, ProbeFile, RunbookFile, Tier};
use dr_installation::Installation;
use dr_model::{Clock, DrillRunId, Progress, SystemClock};
use dr_report::{DrillReport, Overall, Status};
use tokio_util::sync::CancellationToken;

use crate::DrillError;
use crate::evidence::Collection;
use crate::sandbox::{self, SandboxRequest};
use crate::stage::{Cast, Stage};
use crate::{assemble, records};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillRequest {
    /// The `dr` binary whose commands are used.
    pub dr_binary: PathBuf,
    /// The installation's engine file.
    pub config: PathBuf,
    /// The drill.
    pub drill_file: PathBuf,
    /// The sandbox's folder; a new one below the temporary folder when left out.
    pub folder: Option<PathBuf>,
    /// Where report and evidence go.
    pub out: PathBuf,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillOutcome {
    /// The report.
    pub report: DrillReport,
    /// The files written: HTML first, then JSON.
    pub files: Vec<PathBuf>,
}

impl DrillOutcome {
    /// Whether every phase was carried out and measured.
    #[must_use]
    pub fn completed(&self) -> bool {
        self.report.identity.status == Status::Completed
    }

    /// Whether every objective was met.
    #[must_use]
    pub fn met(&self) -> bool {
        self.report.verdict.overall != Overall::Fail
    }

    /// For a terminal.
    #[must_use]
    pub fn summary(&self) -> String {
        let report = &self.report;
        let mut text = format!(
            "{} {}: {}, verdict {}\n",
            report.identity.id,
            report.identity.drill,
            report.identity.status,
            report.verdict.overall
        );
        if let Some(cause) = &report.identity.cause {
            text.push_str(&format!("  cause: {cause}\n"));
        }
        for objective in &report.objectives {
            let achieved = objective
                .achieved_ms
                .map_or_else(|| "not measured".to_owned(), dr_report::html::duration);
            let promised = objective.objective_ms.map_or_else(String::new, |ms| {
                format!(" of {}", dr_report::html::duration(ms))
            });
            let met = match objective.met {
                Some(true) => ", met",
                Some(false) => ", MISSED",
                None => "",
            };
            text.push_str(&format!(
                "  {:<24} {}: {achieved}{promised}{met}\n",
                objective.measure.label(),
                objective.subject
            ));
        }
        let lost = report
            .loss
            .lost_writes
            .map_or_else(|| "not measured".to_owned(), |n| n.to_string());
        text.push_str(&format!(
            "  acknowledged writes: {}, lost: {lost}\n",
            report.probe.acknowledged
        ));
        for file in &self.files {
            text.push_str(&format!("  {}\n", file.display()));
        }
        text
    }
}

/// Holds the drill: environment, steady state, load, fault, detection, declaration, runbook,
/// verification, steady state, clean-up, report.
///
/// # Errors
/// When it cannot be begun, or its report cannot be kept. What goes wrong in between is in the report.
pub async fn run(
    request: &DrillRequest,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<DrillOutcome, DrillError> {
    let cast = cast(request)?;
    let earlier = records::earlier(&cast.parent, &cast.drill.drill).await?;
    let mut stage = Stage::new(cast, progress);
    stage.look_at_production(true).await;
    let held = stage.hold(&cancel).await;
    if let Err(stop) = held {
        stage.stopped(stop);
    }
    stage.clean_up().await;
    stage.look_at_production(false).await;
    let tools = assemble::tools(&stage);
    let evidence = stage.evidence.manifest(stage.cast.id.as_str(), tools);
    let report = assemble::report(&stage, evidence, &earlier);
    let files = keep(&stage.cast, &stage.evidence, &report).await?;
    Ok(DrillOutcome { report, files })
}

fn cast(request: &DrillRequest) -> Result<Cast, DrillError> {
    let parent = Installation::open(&request.config)?;
    let drill = DrillFile::load(&request.drill_file)?;
    let probe = ProbeFile::load(&drill.probe.file)?;
    let runbook = RunbookFile::load(&drill.runbook)?;
    let tier = objective(&parent.config, &drill, &request.drill_file)?;
    let EnvironmentConfig::Sandbox(environment) = drill.environment.clone();
    let from = match environment.from.as_str() {
        "latest" => None,
        id => Some(id.parse().map_err(|error: dr_model::InvalidName| {
            DrillError::Unsuitable(format!("`from` of drill `{}`: {error}", drill.drill))
        })?),
    };
    let mut workloads = vec![(environment.workload.clone(), from)];
    workloads.extend(environment.with.iter().map(|name| (name.clone(), None)));
    for (name, _) in &workloads {
        parent.config.workload(name.as_str())?;
    }
    let id = DrillRunId::new(SystemClock.now());
    let folder = request.folder.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("dr-drill-{}", dr_model::random::hex(4)))
    });
    Ok(Cast {
        id,
        sandbox: SandboxRequest {
            dr_binary: request.dr_binary.clone(),
            parent: parent.clone(),
            folder,
            workloads,
        },
        parent,
        workload: environment.workload,
        drill,
        drill_file: request.drill_file.clone(),
        probe,
        runbook,
        tier,
        out: request.out.clone(),
    })
}

/// The promise: one of the installation's tiers, or a tier that lies beside the drill in `tiers/`.
fn objective(config: &Config, drill: &DrillFile, file: &Path) -> Result<Tier, DrillError> {
    let name = &drill.objective.tier;
    if let Some(tier) = config.tiers.get(name) {
        return Ok(tier.clone());
    }
    let beside = file
        .parent()
        .unwrap_or(Path::new("."))
        .join(format!("tiers/{name}.yaml"));
    if beside.is_file() {
        return Ok(Tier::load(&beside)?);
    }
    Err(DrillError::Unsuitable(format!(
        "drill `{}` is measured against tier `{name}`, which is neither in {} nor at {}",
        drill.drill,
        config.engine.tiers.display(),
        beside.display()
    )))
}

/// Evidence first, then the report that names it, then the files people open.
async fn keep(
    cast: &Cast,
    evidence: &Collection,
    report: &DrillReport,
) -> Result<Vec<PathBuf>, DrillError> {
    let id = cast.id.as_str();
    let stem = format!("{}-{id}", cast.drill.drill);
    let repository = cast.parent.open_repository_of(&cast.workload).await?;
    // Sealing a log of some MiB takes a moment; the runtime has nothing else to do by now.
    tokio::task::block_in_place(|| {
        evidence.keep(id, &repository)?;
        records::keep(&repository, report)
    })?;
    evidence.write(&cast.out.join(format!("{stem}-evidence")))?;
    let json = report.to_json().map_err(|error| DrillError::Malformed {
        path: cast.out.clone(),
        what: "a folder for a report that can be written",
        reason: error.to_string(),
    })?;
    records::write_pair(&cast.out, &stem, &dr_report::html::drill(report), &json)
}

/// Removes what a drill that was cut off left in its folder.
///
/// # Errors
/// As [`sandbox::clean`].
pub fn clean_up_after(folder: &Path) -> Result<(), DrillError> {
    sandbox::clean(folder).map(drop)
}

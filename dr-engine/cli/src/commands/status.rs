//! `dr status`.

use dr_backup::WorkloadStatus;
use dr_model::HumanDuration;

use crate::context::Context;
use crate::failure::Failure;
use crate::output;

pub(crate) async fn run(context: &Context) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workloads = dr_backup::status(&installation).await?;
    let running = match installation.catalog().await {
        Ok(catalog) => catalog.running_jobs().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let alerts = match installation.catalog().await {
        Ok(catalog) => catalog.open_alerts().await.unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    if context.json {
        output::json(&serde_json::json!({
            "workloads": workloads, "running_jobs": running, "alerts": alerts,
        }))?;
        return Ok(0);
    }
    if workloads.is_empty() {
        output::talk(&format!(
            "nothing is protected yet: name a workload in {}",
            installation.config.path.display()
        ));
        return Ok(0);
    }
    output::data(&output::table(
        &[
            "workload",
            "kind",
            "tier",
            "RPO",
            "now",
            "",
            "points",
            "recoverable",
            "proven",
        ],
        workloads.iter().map(row).collect(),
    ));
    for workload in &workloads {
        for copy in &workload.copies {
            if copy.standing == dr_backup::CopyStanding::InStep {
                output::data(&format!("{}: {copy}", workload.workload));
            }
        }
        for problem in &workload.problems {
            output::data(&format!("! {}: {problem}", workload.workload));
        }
    }
    for alert in &alerts {
        output::data(&format!("! alert: {alert}"));
    }
    for job in &running {
        output::data(&format!("running: {job}"));
    }
    Ok(0)
}

fn row(status: &WorkloadStatus) -> Vec<String> {
    vec![
        status.workload.to_string(),
        status.kind.to_string(),
        status.tier.to_string(),
        status.rpo.to_string(),
        status.age_seconds.map_or_else(
            || "-".to_owned(),
            |seconds| HumanDuration(std::time::Duration::from_secs(seconds)).to_string(),
        ),
        match status.rpo_met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "NOTHING YET",
        }
        .to_owned(),
        status.restore_points.to_string(),
        status.window.as_ref().map_or_else(
            || "-".to_owned(),
            |window| {
                format!(
                    "{} .. {}",
                    output::time(window.from),
                    output::time(window.to)
                )
            },
        ),
        match &status.last_verification {
            None => "never".to_owned(),
            Some(proof) if proof.passed => output::time(proof.finished),
            Some(proof) => format!("FAILED {}", output::time(proof.finished)),
        },
    ]
}

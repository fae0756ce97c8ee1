//! `dr backup`.

use std::collections::BTreeMap;

use dr_backup::{BackupOptions, Verification};
use dr_installation::Installation;
use dr_model::{RestorePoint, RestorePointId, WorkloadName};
use dr_restore::VerifyRequest;

use crate::args::BackupCommand;
use crate::context::{self, Context};
use crate::failure::{FAILED, Failure};
use crate::{output, progress};

pub(crate) async fn run(context: &Context, command: BackupCommand) -> Result<u8, Failure> {
    match command {
        BackupCommand::Run {
            workload,
            full,
            wait,
        } => take(context, &workload, full, wait).await,
        BackupCommand::List { workload } => list(context, workload).await,
        BackupCommand::Verify { point } => verify(context, point).await,
    }
}

async fn take(context: &Context, name: &str, full: bool, wait: bool) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = context::workload(&installation, name)?;
    let progress = progress::display();
    let options = BackupOptions { full };
    let point = context
        .job(
            &installation,
            "backup",
            workload.as_str(),
            String::new(),
            wait,
            |job| {
                let (installation, workload) = (installation.clone(), workload.clone());
                async move {
                    job.step("backup").await;
                    dr_backup::run(&installation, &workload, &options, progress, job.cancel()).await
                }
            },
        )
        .await?;
    if context.json {
        output::json(&point)?;
    } else {
        output::data(&format!(
            "{} restorable to {}: {} files, {} read, {} added to the repository",
            point.id,
            output::time(point.moment),
            point.files,
            point.bytes_source,
            point.bytes_added
        ));
    }
    Ok(0)
}

async fn list(context: &Context, workload: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let only: Option<WorkloadName> = workload
        .map(|name| context::workload(&installation, &name))
        .transpose()?;
    // From the repository, not the catalog: what is listed is what is there.
    let (points, proofs) = tokio::task::spawn_blocking(move || {
        let mut points = Vec::new();
        let mut proofs: BTreeMap<RestorePointId, Verification> = BTreeMap::new();
        for (_, repository) in installation.all_repositories()? {
            points.extend(repository.points(only.as_ref())?);
            for proof in dr_backup::verifications(&repository, only.as_ref())? {
                proofs.insert(proof.point.clone(), proof);
            }
        }
        Ok::<_, Failure>((points, proofs))
    })
    .await
    .map_err(|error| Failure::of("the listing ended early", &error))??;
    if context.json {
        let rows: Vec<_> = points
            .iter()
            .map(|point| serde_json::json!({ "point": point, "verified": proofs.get(&point.id) }))
            .collect();
        output::json(&rows)?;
        return Ok(0);
    }
    if points.is_empty() {
        output::talk("no restore points yet; `dr backup run WORKLOAD` takes the first");
        return Ok(0);
    }
    let rows = points
        .iter()
        .map(|point| row(point, proofs.get(&point.id)))
        .collect();
    output::data(&output::table(
        &[
            "restore point",
            "workload",
            "moment",
            "position",
            "source",
            "added",
            "proven",
        ],
        rows,
    ));
    Ok(0)
}

fn row(point: &RestorePoint, verification: Option<&Verification>) -> Vec<String> {
    let position = match &point.position {
        dr_model::Position::Postgres(at) => format!("{} tl {}", at.stop_lsn, at.timeline),
        dr_model::Position::Nats(at) => at
            .streams
            .iter()
            .map(|(name, stream)| format!("{name}#{}", stream.last_sequence))
            .collect::<Vec<_>>()
            .join(" "),
        dr_model::Position::Files(at) => format!("{} entries", at.entries),
        dr_model::Position::TenantState(at) => format!("{} before {}", at.tenant_name, at.restore),
    };
    vec![
        point.id.to_string(),
        point.workload.to_string(),
        output::time(point.moment),
        position,
        point.bytes_source.to_string(),
        point.bytes_added.to_string(),
        match verification {
            None => "never".to_owned(),
            Some(proof) if proof.passed => output::time(proof.finished),
            Some(proof) => format!("FAILED {}", output::time(proof.finished)),
        },
    ]
}

/// The points to prove: the named one, or the newest of each workload that has any.
async fn to_verify(
    installation: &Installation,
    point: Option<RestorePointId>,
) -> Result<Vec<(WorkloadName, RestorePointId)>, Failure> {
    let installation = installation.clone();
    tokio::task::spawn_blocking(move || {
        let mut newest: BTreeMap<WorkloadName, RestorePointId> = BTreeMap::new();
        for (_, repository) in installation.all_repositories()? {
            if let Some(id) = &point {
                if let Some(found) = repository.point(id)? {
                    return Ok(vec![(found.point.workload, id.clone())]);
                }
                continue;
            }
            for found in repository.points(None)? {
                if !matches!(found.position, dr_model::Position::TenantState(_)) {
                    newest.insert(found.workload, found.id);
                }
            }
        }
        match point {
            Some(id) => Err(Failure::plain(
                FAILED,
                format!("no repository holds a restore point {id}"),
                Some("`dr backup list` shows them"),
            )),
            None => Ok(newest.into_iter().collect()),
        }
    })
    .await
    .map_err(|error| Failure::of("the listing ended early", &error))?
}

async fn verify(context: &Context, point: Option<String>) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let point: Option<RestorePointId> = point.map(|id| id.parse()).transpose()?;
    let points = to_verify(&installation, point).await?;
    let progress = progress::display();
    let mut verifications = Vec::new();
    for (workload, point) in points {
        let request = VerifyRequest {
            workload,
            point: Some(point),
            restore: true,
            folder: None,
        };
        verifications.push(
            dr_restore::verify(
                &installation,
                &request,
                progress.clone(),
                context.cancel.clone(),
            )
            .await?,
        );
    }
    if context.json {
        output::json(&verifications)?;
    } else if verifications.is_empty() {
        output::talk("no restore points yet; `dr backup run WORKLOAD` takes the first");
    }
    if !context.json {
        for proof in &verifications {
            let verdict = if proof.passed {
                "proven"
            } else {
                "NOT RESTORABLE"
            };
            output::data(&format!("{}: {verdict}", proof.point));
            for check in &proof.checks {
                let mark = if check.passed { "ok" } else { "FAILED" };
                output::data(&format!("  {mark}: {}: {}", check.name, check.detail));
            }
        }
    }
    Ok(if verifications.iter().all(|proof| proof.passed) {
        0
    } else {
        FAILED
    })
}

//! Proving that a restore point can be restored, by restoring it.
//!
//! A cluster is restored into a scratch folder, judged there by PostgreSQL's own `pg_verifybackup`, then
//! started and asked. A folder is restored and compared. Streams are restored into a private server. What
//! was seen is kept as a record in the repository: proof that lives as long as what it is about.

mod checks;
mod cluster;
mod folder;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;

use dr_backup::Verification;
use dr_installation::Installation;
use dr_model::{Condition, Position, Progress, RestorePoint, RestorePointId, WorkloadName};
use dr_store::Repository;
use tokio_util::sync::CancellationToken;

use crate::RestoreError;
use crate::error::{blocking, store_error};
use crate::telling::Telling;
use crate::threads;
use checks::Checks;

/// What to verify, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyRequest {
    /// The workload.
    pub workload: WorkloadName,
    /// The point; the newest when left out.
    pub point: Option<RestorePointId>,
    /// Really restore and, for servers, start. Otherwise every object it needs is read and checked.
    pub restore: bool,
    /// Where scratch folders are made; the system's temporary folder when left out.
    pub folder: Option<PathBuf>,
}

/// What the kinds of verification work with.
struct Work<'a> {
    installation: &'a Installation,
    repository: Repository,
    point: RestorePoint,
    folder: PathBuf,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
}

/// Verifies one restore point and keeps the result as a record in the repository. A check that does
/// not hold is a result (`passed` is false), not an error.
///
/// # Errors
/// When the verification itself could not be carried out.
pub async fn verify(
    installation: &Installation,
    request: &VerifyRequest,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Verification, RestoreError> {
    let started = installation.clock.now();
    let repository = installation.open_repository_of(&request.workload).await?;
    let point = find(&repository, request).await?;
    let folder = request.folder.clone().unwrap_or_else(std::env::temp_dir);
    let work = Work {
        installation,
        repository,
        point,
        folder,
        progress,
        cancel,
    };
    let mut checks = Checks::default();
    let result = match (&work.point.position, request.restore) {
        (Position::Postgres(_), true) => cluster::verify(&work, &mut checks).await,
        (Position::Nats(_), true) => streams::verify(&work, &mut checks).await,
        (Position::Files(_) | Position::TenantState(_), true) => {
            folder::verify(&work, &mut checks).await
        }
        (_, false) => read_everything(&work, &mut checks).await,
    };
    match result {
        Ok(()) => {}
        Err(error @ (RestoreError::Cancelled(_) | RestoreError::Installation(_))) => {
            return Err(error);
        }
        // Not being able to restore is the very thing a verification is to find.
        Err(error) => checks.failed("restore", &error),
    }
    let verification = Verification {
        version: Verification::VERSION,
        point: work.point.id.clone(),
        workload: request.workload.clone(),
        started,
        finished: installation.clock.now(),
        restored: request.restore,
        passed: checks.passed(),
        checks: checks.into_list(),
    };
    keep(installation, &work.repository, &verification).await?;
    Ok(verification)
}

async fn find(
    repository: &Repository,
    request: &VerifyRequest,
) -> Result<RestorePoint, RestoreError> {
    let (repository, workload) = (repository.clone(), request.workload.clone());
    let wanted = request.point.clone();
    blocking("find the restore point", move || {
        let points = repository.points(Some(&workload)).map_err(store_error(
            format!("list the restore points of `{workload}`"),
            &repository,
        ))?;
        match wanted {
            None => points
                .into_iter()
                .rev()
                .find(|point| !matches!(point.position, Position::TenantState(_)))
                .ok_or(RestoreError::NoRestorePoint(workload)),
            Some(id) => {
                points
                    .into_iter()
                    .find(|point| point.id == id)
                    .ok_or(RestoreError::UnknownPoint {
                        workload,
                        point: id,
                    })
            }
        }
    })
    .await
}

/// In the repository first; the catalog only indexes it, and its failure is not the verification's.
async fn keep(
    installation: &Installation,
    repository: &Repository,
    verification: &Verification,
) -> Result<(), RestoreError> {
    let (store, record) = (repository.clone(), verification.clone());
    blocking("keep the verification", move || Ok(record.store(&store)?)).await?;
    tracing::debug!(point = %verification.point, passed = verification.passed, "verified");
    let _ = installation;
    Ok(())
}

/// Reads every object the point needs; the repository verifies each as it is read.
async fn read_everything(work: &Work<'_>, checks: &mut Checks) -> Result<(), RestoreError> {
    let (repository, point) = (work.repository.clone(), work.point.clone());
    let (progress, cancel) = (Arc::clone(&work.progress), work.cancel.clone());
    let (files, segments) = blocking("read the restore point", move || {
        let (stored, mut entries, _) =
            crate::files::read_point(&repository, &point.workload, &point.id)?;
        progress.phase(
            "reading every file",
            Some(entries.iter().map(|e| e.size).sum()),
        );
        let reader = repository
            .reader(&stored)
            .map_err(store_error(format!("read {}", point.id), &repository))?;
        entries.retain(|entry| entry.kind == dr_store::EntryKind::File);
        let bytes = |entry: &dr_store::TreeEntry| entry.size;
        threads::each(&entries, bytes, reader.is_far(), |entry| {
            if cancel.is_cancelled() {
                return Err(RestoreError::Cancelled(point.workload.clone()));
            }
            let mut out = Telling {
                out: &mut std::io::sink(),
                progress: progress.as_ref(),
            };
            reader.read_file(entry, &mut out).map_err(store_error(
                format!("read `{}` of {}", entry.meta.path, point.id),
                &repository,
            ))?;
            Ok(())
        })?;
        let files = entries.len();
        Ok((files, read_wal(&repository, &stored)?))
    })
    .await?;
    checks.held("every file read and verified", format!("{files} files"));
    if segments > 0 {
        checks.held(
            "every WAL file it needs read and verified",
            format!("{segments} files"),
        );
    }
    // That it can be read as it was stored proves nothing of what was damaged before.
    if let Condition::SourceDamaged { details } = &work.point.condition {
        checks.add("the source was whole", false, details.join("\n"));
    }
    Ok(())
}

fn read_wal(
    repository: &Repository,
    stored: &dr_store::StoredPoint,
) -> Result<usize, RestoreError> {
    if stored.point.postgres().is_none() {
        return Ok(0);
    }
    let id = &stored.point.id;
    let bad = |what: String| RestoreError::BadPoint {
        point: id.clone(),
        what,
    };
    let details: dr_backup::PostgresDetails = serde_json::from_value(stored.details.clone())
        .map_err(|error| bad(format!("its details cannot be understood: {error}")))?;
    if !details.is_known() {
        return Err(bad("it was made by a newer version of dr".to_owned()));
    }
    for name in &details.wal_files {
        let body = repository
            .get_wal(&stored.point.workload, name)
            .map_err(store_error(format!("read {name} of {id}"), repository))?;
        if body.is_none() {
            return Err(bad(format!("its WAL file {name} is missing")));
        }
    }
    Ok(details.wal_files.len())
}

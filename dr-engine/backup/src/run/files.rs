//! Folders.

use std::path::Path;

use dr_config::{FilesSource, TenantPath};
use dr_model::{Condition, FilesPosition, Position, Progress, RestorePoint};
use tokio_util::sync::CancellationToken;

use super::sink::StoreSink;
use super::{Job, blocking};
use crate::BackupError;
use crate::error::source_error;

pub(super) async fn back_up(
    job: &Job<'_>,
    source: &FilesSource,
) -> Result<RestorePoint, BackupError> {
    let started = job.installation.clock.now();
    let writer = job.begin().await?;
    let (root, name) = (source.path.clone(), job.name().clone());
    let tenancy = job.workload.config.tenancy.as_ref();
    let tenants = tenancy
        .and_then(|tenancy| tenancy.path.as_deref())
        .and_then(TenantPath::new);
    let (progress, cancel) = (std::sync::Arc::clone(&job.progress), job.cancel.clone());
    progress.phase("reading the folder", bytes_before(job).await);
    let full = job.full;
    let (writer, entries) = blocking("read the folder", move || {
        let sink = match full {
            true => StoreSink::new(writer),
            false => StoreSink::sparing_unchanged(writer),
        };
        let sink = sink.for_tenants(tenants);
        let entries = capture_folder(&root, &sink, progress.as_ref(), &cancel)?;
        if cancel.is_cancelled() {
            return Err(BackupError::Cancelled(name));
        }
        Ok((sink.into_writer(), entries))
    })
    .await?;
    // Entries were read at different times: nothing in the point is later than this, which is what a
    // restore to "not later than" asks for.
    let moment = job.installation.clock.now();
    let position = Position::Files(FilesPosition { entries });
    let point = job.point(started, moment, position, Condition::Whole);
    job.finish(
        writer,
        point,
        serde_json::json!({ "version": 1, "path": source.path }),
    )
    .await
}

/// How much the folder held at the last backup: the best guess there is before it was walked. Only what
/// is shown depends on it, so the catalog is good enough.
async fn bytes_before(job: &Job<'_>) -> Option<u64> {
    let catalog = job.installation.catalog().await.ok()?;
    let points = catalog.points(Some(job.name())).await.ok()?;
    let of_the_folder = |point: &&RestorePoint| matches!(point.position, Position::Files(_));
    let newest = points
        .iter()
        .filter(of_the_folder)
        .max_by_key(|point| point.started)?;
    Some(newest.bytes_source.0)
}

/// Hands a folder's entries to `sink` and returns their number.
pub(super) fn capture_folder(
    root: &Path,
    sink: &StoreSink,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<u64, BackupError> {
    let summary = dr_sources::files::capture(root, sink, progress, cancel)
        .map_err(source_error(format!("read {}", root.display())))?;
    for path in &summary.changing {
        progress.note(&format!("{path} kept changing while it was read"));
    }
    Ok(summary.entries)
}

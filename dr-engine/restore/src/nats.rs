//! Streams.
//!
//! Each archive is fetched and verified before anything on the server is touched; a stream that exists is
//! refused unless it may be replaced, and replaced only when its archive was found whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use dr_backup::{NatsDetails, stream_snapshot_path};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{NatsPosition, Progress, RestorePointId, Target, WorkloadName};
use dr_sources::nats::{IfExists, StreamSnapshot};
use dr_store::{Repository, StoredPoint, TreeEntry};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::error::{blocking, file_error, source_error, store_error};
use crate::files::read_point;
use crate::{RestoreError, RestoreRequest, plan};

/// What was put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsOutcome {
    /// The restore point used.
    pub point: RestorePointId,
    /// Where the streams stand now.
    pub position: NatsPosition,
}

/// Restores all streams of a workload into its live server, from the newest point not later than
/// `target`. A stream that exists is an error unless `replace`.
///
/// # Errors
/// When nothing reaches the target, a stream exists, or the server refuses.
pub async fn nats(
    installation: &Installation,
    workload: &WorkloadName,
    target: &Target,
    replace: bool,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<NatsOutcome, RestoreError> {
    let found = installation.config.workload(workload.as_str())?;
    let WorkloadSource::Nats(source) = found.source else {
        return Err(RestoreError::WrongKind {
            workload: workload.clone(),
            needed: "nats",
        });
    };
    let request = RestoreRequest::new(workload.clone(), None, target.clone());
    let plan = plan(installation, &request).await?;
    let repository = installation.open_repository_of(workload).await?;
    let if_exists = if replace {
        IfExists::Replace
    } else {
        IfExists::Refuse
    };
    let streams = restore_streams(
        &repository,
        workload,
        &plan.point.id,
        &source.url,
        if_exists,
        &progress,
        &cancel,
    )
    .await?;
    Ok(NatsOutcome {
        point: plan.point.id,
        position: NatsPosition { streams },
    })
}

/// Restores every stream of a point into the server at `url`.
pub(crate) async fn restore_streams(
    repository: &Repository,
    workload: &WorkloadName,
    point: &RestorePointId,
    url: &str,
    if_exists: IfExists,
    progress: &Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<BTreeMap<String, dr_model::StreamPosition>, RestoreError> {
    let (store, name, id) = (repository.clone(), workload.clone(), point.clone());
    let (stored, entries, _) = blocking("read the restore point", move || {
        read_point(&store, &name, &id)
    })
    .await?;
    let details: NatsDetails =
        serde_json::from_value(stored.details.clone()).map_err(|error| RestoreError::BadPoint {
            point: point.clone(),
            what: format!("its details cannot be understood: {error}"),
        })?;
    if if_exists == IfExists::Refuse {
        refuse_existing(url, &details).await?;
    }
    let mut positions = BTreeMap::new();
    for (stream, snapshot) in &details.streams {
        if cancel.is_cancelled() {
            return Err(RestoreError::Cancelled(workload.clone()));
        }
        progress.phase(
            &format!("restoring stream {stream}"),
            Some(snapshot.archive_bytes),
        );
        let archive = Archive::fetch(repository, &stored, &entries, snapshot).await?;
        let mut file = tokio::fs::File::open(&archive.path)
            .await
            .map_err(file_error("read", &archive.path))?;
        let position = dr_sources::nats::restore(url, snapshot, &mut file, if_exists, cancel)
            .await
            .map_err(source_error(format!(
                "restore stream `{stream}` of `{workload}`"
            )))?;
        progress.advance(snapshot.archive_bytes);
        positions.insert(stream.clone(), position);
    }
    Ok(positions)
}

/// All are looked for before the first is restored: half of a workload helps nobody.
async fn refuse_existing(url: &str, details: &NatsDetails) -> Result<(), RestoreError> {
    for stream in details.streams.keys() {
        let exists = dr_sources::nats::stream_exists(url, stream)
            .await
            .map_err(source_error(format!("look for stream `{stream}`")))?;
        if exists {
            return Err(RestoreError::StreamExists {
                stream: stream.clone(),
                place: url.to_owned(),
            });
        }
    }
    Ok(())
}

/// An archive on its way to the server: a file that is removed when dropped.
struct Archive {
    path: std::path::PathBuf,
}

impl Archive {
    async fn fetch(
        repository: &Repository,
        stored: &StoredPoint,
        entries: &[TreeEntry],
        snapshot: &StreamSnapshot,
    ) -> Result<Self, RestoreError> {
        let wanted = stream_snapshot_path(&snapshot.stream);
        let entry = entries
            .iter()
            .find(|entry| entry.meta.path == wanted)
            .cloned()
            .ok_or_else(|| RestoreError::BadPoint {
                point: stored.point.id.clone(),
                what: format!("`{wanted}` is not in it"),
            })?;
        let (repository, stored) = (repository.clone(), stored.clone());
        blocking("fetch a stream's archive", move || {
            let name = format!("dr-stream-{}", dr_model::random::hex(8));
            let archive = Self {
                path: std::env::temp_dir().join(name),
            };
            let mut file = create_private(&archive.path)?;
            repository
                .read_file(&stored, &entry, &mut file)
                .map_err(store_error(
                    format!("restore `{}` of {}", entry.meta.path, stored.point.id),
                    &repository,
                ))?;
            Ok(archive)
        })
        .await
    }
}

/// Messages are nobody else's business: only our own user may read the file.
fn create_private(path: &std::path::Path) -> Result<std::fs::File, RestoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error("create", path))
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a temporary file was not removed");
        }
    }
}

//! NATS streams: the server's own snapshot of each, and beside it what a restore cannot do without.

use std::collections::BTreeMap;
use std::sync::Arc;

use dr_config::NatsSource;
use dr_model::{Condition, NatsPosition, Position, RestorePoint};
use dr_sources::nats::{StreamSnapshot, capture_stream, snapshot_path};
use serde::{Deserialize, Serialize};

use super::Job;
use super::sink::StoreSink;
use crate::BackupError;
use crate::error::source_error;

const DETAILS_VERSION: u32 = 1;

/// What is stored beside the archives of a NATS workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatsDetails {
    /// Version of this structure.
    pub version: u32,
    /// Each stream's configuration, state, consumers and the digest of its archive, by name.
    pub streams: BTreeMap<String, StreamSnapshot>,
}

/// The path of a stream's archive in a restore point.
#[must_use]
pub fn stream_snapshot_path(stream: &str) -> String {
    snapshot_path(stream)
}

pub(super) async fn back_up(
    job: &Job<'_>,
    source: &NatsSource,
) -> Result<RestorePoint, BackupError> {
    let started = job.installation.clock.now();
    let sink = Arc::new(StoreSink::new(job.begin().await?));
    let mut streams = BTreeMap::new();
    for stream in &source.streams {
        let taken = capture_stream(
            &source.url,
            stream,
            Arc::clone(&sink) as Arc<dyn dr_sources::ItemSink>,
            Arc::clone(&job.progress),
            &job.cancel,
        )
        .await;
        let snapshot = taken.map_err(|error| match error {
            dr_sources::SourceError::Cancelled { .. } => BackupError::Cancelled(job.name().clone()),
            other => source_error(format!("back up stream `{stream}` of `{}`", job.name()))(other),
        })?;
        streams.insert(stream.clone(), snapshot);
    }
    // Nothing in the archives is later than this.
    let moment = job.installation.clock.now();
    let position = Position::Nats(NatsPosition {
        streams: streams
            .iter()
            .map(|(name, s)| (name.clone(), s.position.clone()))
            .collect(),
    });
    let details = serde_json::to_value(NatsDetails {
        version: DETAILS_VERSION,
        streams,
    })
    .map_err(|error| BackupError::BadRecord {
        what: "the details of a restore point".to_owned(),
        place: job.repository.describe(),
        detail: error.to_string(),
    })?;
    let point = job.point(started, moment, position, Condition::Whole);
    job.finish(StoreSink::reclaim(sink)?, point, details).await
}

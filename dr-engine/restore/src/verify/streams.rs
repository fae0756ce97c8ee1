//! Streams: restored into a private server, and compared with where they stood.

use dr_model::Position;
use dr_sources::instance::{NatsInstance, free_port};
use dr_sources::nats::IfExists;

use super::folder::Temporary;
use super::{Checks, Work};
use crate::RestoreError;
use crate::error::{blocking, source_error};
use crate::nats::restore_streams;

pub(super) async fn verify(work: &Work<'_>, checks: &mut Checks) -> Result<(), RestoreError> {
    let Position::Nats(expected) = &work.point.position else {
        return Err(RestoreError::WrongKind {
            workload: work.point.workload.clone(),
            needed: "nats",
        });
    };
    let store = Temporary::below(&work.folder);
    let path = store.0.clone();
    let server = blocking("start a private NATS server", move || {
        NatsInstance::start(&path, free_port(), None)
            .map_err(source_error("start a private NATS server"))
    })
    .await?;
    let restored = restore_streams(
        &work.repository,
        &work.point.workload,
        &work.point.id,
        &server.url(),
        IfExists::Refuse,
        &work.progress,
        &work.cancel,
    )
    .await?;
    checks.held(
        "restored",
        format!("{} streams into a private server", restored.len()),
    );
    for (stream, was) in &expected.streams {
        let is = restored.get(stream);
        // A consumer goes on while its stream is captured, so its place may be a later one.
        let same = is.is_some_and(|is| {
            is.messages == was.messages
                && is.first_sequence == was.first_sequence
                && is.last_sequence == was.last_sequence
                && was
                    .consumers
                    .iter()
                    .all(|(name, floor)| is.consumers.get(name).is_some_and(|place| place >= floor))
        });
        let detail = is.map_or_else(
            || "missing".to_owned(),
            |is| {
                format!(
                    "{} messages, up to {}, {} consumers",
                    is.messages,
                    is.last_sequence,
                    is.consumers.len()
                )
            },
        );
        checks.add(&format!("stream {stream}"), same, detail);
    }
    blocking("stop the private NATS server", move || {
        server
            .stop()
            .map_err(source_error("stop the private NATS server"))?;
        drop(store);
        Ok(())
    })
    .await
}

//! Putting a stream back from its archive.

use std::time::Duration;

use async_nats::Request;
use bytes::{Bytes, BytesMut};
use dr_model::StreamPosition;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};
use tokio_util::sync::CancellationToken;

use super::connection::{ApiError, REQUEST_TIMEOUT, Server};
use super::snapshot::StreamSnapshot;
use crate::SourceError;

/// Bytes of one chunk: below the smallest message limit that servers are run with.
const CHUNK_BYTES: usize = 128 * 1024;
/// The server rebuilds the whole stream before it answers the end of the archive.
const REBUILD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// What to do about a stream that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// End with an error.
    Refuse,
    /// Delete it, after the archive was found whole.
    Replace,
}

/// Restores a stream with its consumers from `archive`, and checks what came of it.
///
/// # Errors
/// When the archive is not the one described by `snapshot` (nothing is touched then), the stream
/// exists, the server refuses or falls silent, or the stream is not what was captured: what was made
/// of it is removed then.
pub async fn restore(
    url: &str,
    snapshot: &StreamSnapshot,
    archive: &mut (impl AsyncRead + AsyncSeek + Unpin + Send),
    if_exists: IfExists,
    cancel: &CancellationToken,
) -> Result<StreamPosition, SourceError> {
    check_archive(snapshot, archive).await?;
    let stream = &snapshot.stream;
    let server = Server::connect(url).await?;
    if server.stream(stream).await?.is_some() {
        if if_exists == IfExists::Refuse {
            return Err(SourceError::Refused(format!(
                "NATS at {} has a stream `{stream}` already: delete it, or ask for it to be replaced",
                server.place
            )));
        }
        delete(&server, stream).await?;
    }
    let rebuilt = async {
        tokio::select! {
            sent = send(&server, snapshot, archive) => sent?,
            () = cancel.cancelled() => {
                return Err(SourceError::Cancelled { what: "the restore of a stream" });
            }
        }
        let position = server.position(stream).await?;
        compare(snapshot, &position)?;
        Ok(position)
    }
    .await;
    if rebuilt.is_err() {
        // It did not exist when we began, so whatever is there now is our own half-done work.
        if let Ok(Some(_)) = server.stream(stream).await {
            delete(&server, stream).await?;
        }
    }
    rebuilt
}

/// Reads the archive once, so that a damaged one is refused before anything is deleted or made.
async fn check_archive(
    snapshot: &StreamSnapshot,
    archive: &mut (impl AsyncRead + AsyncSeek + Unpin + Send),
) -> Result<(), SourceError> {
    let failed = |source| SourceError::Sink {
        item: format!("the archive of stream {}", snapshot.stream),
        source: Box::new(source),
    };
    archive.rewind().await.map_err(failed)?;
    let mut hash = Sha256::new();
    let mut bytes = 0_u64;
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        let count = archive.read_buf(&mut buffer).await.map_err(failed)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer);
        bytes += u64::try_from(count).unwrap_or(0);
    }
    if bytes != snapshot.archive_bytes || hex::encode(hash.finalize()) != snapshot.archive_sha256 {
        return Err(SourceError::Refused(format!(
            "the archive of stream `{}` is damaged: {bytes} bytes where {} were captured, or other \
             content; nothing was changed",
            snapshot.stream, snapshot.archive_bytes
        )));
    }
    archive.rewind().await.map(|_| ()).map_err(failed)
}

async fn send(
    server: &Server,
    snapshot: &StreamSnapshot,
    archive: &mut (impl AsyncRead + Unpin + Send),
) -> Result<(), SourceError> {
    let stream = &snapshot.stream;
    let action = format!("restore stream `{stream}`");
    let request = json!({ "config": snapshot.config, "state": snapshot.state });
    let answer = server
        .api(&format!("STREAM.RESTORE.{stream}"), &request, &action)
        .await?;
    let subject = answer
        .get("deliver_subject")
        .and_then(Value::as_str)
        .ok_or_else(|| server.failed::<String>(action.clone())("it named no subject".to_owned()))?
        .to_owned();
    let sent = send_chunks(server, &subject, archive, &action).await;
    if sent.is_err() {
        // A chunk without a reply subject makes the server give up at once and remove what it has
        // (processStreamRestore in server/jetstream_api.go); else it would wait for more.
        let _ = server
            .client
            .publish(subject, Bytes::from_static(b"give up"))
            .await;
        let _ = server.client.flush().await;
    }
    sent
}

async fn send_chunks(
    server: &Server,
    subject: &str,
    archive: &mut (impl AsyncRead + Unpin + Send),
    action: &str,
) -> Result<(), SourceError> {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        // Full chunks: a chunk of the archive is one message, and messages cost a round trip each.
        while chunk.len() < CHUNK_BYTES {
            let left = CHUNK_BYTES - chunk.len();
            let mut limited = (&mut *archive).take(u64::try_from(left).unwrap_or(0));
            if limited
                .read_buf(&mut chunk)
                .await
                .map_err(server.failed(action))?
                == 0
            {
                break;
            }
        }
        let last = chunk.is_empty();
        let timeout = if last {
            REBUILD_TIMEOUT
        } else {
            REQUEST_TIMEOUT
        };
        let request = Request::new()
            .payload(chunk.freeze())
            .timeout(Some(timeout));
        let answer = server
            .client
            .send_request(subject.to_owned(), request)
            .await;
        let answer = answer.map_err(server.failed(action))?;
        if !answer.payload.is_empty() {
            let value: Value =
                serde_json::from_slice(&answer.payload).map_err(server.failed(action))?;
            if let Some(error) = ApiError::of(&value) {
                return Err(server.failed(action)(error));
            }
        } else if last {
            return Err(server.failed::<String>(action)(
                "it did not say what became of the archive".to_owned(),
            ));
        }
        if last {
            return Ok(());
        }
    }
}

async fn delete(server: &Server, stream: &str) -> Result<(), SourceError> {
    let action = format!("delete stream `{stream}`");
    server
        .api(&format!("STREAM.DELETE.{stream}"), &Value::Null, &action)
        .await
        .map(|_| ())
}

/// The restored stream must hold what was captured. It may hold more: a live stream goes on while its
/// archive is made. It may hold less at its beginning only where it drops old messages by itself.
fn compare(snapshot: &StreamSnapshot, found: &StreamPosition) -> Result<(), SourceError> {
    let expected = &snapshot.position;
    let mut wrong = Vec::new();
    let drops_old = ["max_age", "max_msgs", "max_bytes", "max_msgs_per_subject"]
        .iter()
        .any(|limit| {
            snapshot
                .config
                .get(*limit)
                .and_then(Value::as_i64)
                .is_some_and(|value| value > 0)
        })
        || snapshot
            .config
            .get("retention")
            .and_then(Value::as_str)
            .is_some_and(|r| r != "limits");
    if found.last_sequence < expected.last_sequence {
        wrong.push(format!(
            "it ends at sequence {} instead of {}",
            found.last_sequence, expected.last_sequence
        ));
    }
    if !drops_old && found.first_sequence != expected.first_sequence {
        wrong.push(format!(
            "it begins at sequence {} instead of {}",
            found.first_sequence, expected.first_sequence
        ));
    }
    if !drops_old && found.messages < expected.messages {
        wrong.push(format!(
            "it holds {} messages instead of {}",
            found.messages, expected.messages
        ));
    }
    for (name, place) in &expected.consumers {
        match found.consumers.get(name) {
            None => wrong.push(format!("consumer `{name}` is missing")),
            Some(found) if found < place => {
                wrong.push(format!(
                    "consumer `{name}` stands at {found} instead of {place}"
                ));
            }
            Some(_) => {}
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(SourceError::Refused(format!(
        "the restored stream `{}` is not what was captured: {}",
        snapshot.stream,
        wrong.join("; ")
    )))
}

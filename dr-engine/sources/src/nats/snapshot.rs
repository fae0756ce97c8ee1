//! Taking a snapshot of a stream.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use dr_model::StreamPosition;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{Server, StreamState, position_of};
use crate::SourceError;

/// Bytes of one chunk; the server's own default. Every server takes messages of this size back.
const CHUNK_BYTES: usize = 128 * 1024;
/// A server that sends nothing for this long has given up. It stops by itself a few seconds after
/// the last acknowledgement it got.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How often the connection is looked at while nothing arrives.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What a [`SourceError::Worker`] names when the receiver of an archive ended first.
pub(super) const RECEIVER: &str = "the storing of a stream's archive";

/// What is known of a stream's archive. It goes beside the archive: a restore cannot do without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSnapshot {
    /// The stream's name.
    pub stream: String,
    /// Its configuration, as the server wrote it.
    pub config: Value,
    /// Its state when the snapshot began, as the server wrote it.
    pub state: Value,
    /// The same and the places of its durable consumers.
    pub position: StreamPosition,
    /// Its consumers when the snapshot began.
    pub consumers: Vec<ConsumerPlace>,
    /// Length of the archive.
    pub archive_bytes: u64,
    /// SHA-256 of the archive, hexadecimal.
    pub archive_sha256: String,
    /// The server's version.
    pub server_version: String,
}

/// Where one consumer stood, in the stream's sequence numbers. A consumer goes on while its stream is
/// captured: its place in the archive is this one or a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerPlace {
    /// Its name.
    pub name: String,
    /// Whether it outlives its subscribers.
    pub durable: bool,
    /// Everything up to here is acknowledged.
    pub ack_floor: u64,
    /// The last message handed out.
    pub delivered: u64,
    /// Its configuration, as the server wrote it.
    pub config: Value,
}

/// What goes to the receiver of an archive. A channel that closes without an `End` was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// The archive is complete.
    End,
}

/// Takes a snapshot of `stream` and sends its archive to `out`.
///
/// # Errors
/// When the server does not answer, has no such stream, finds a damaged message, falls silent or
/// stops short; when `out` is closed or `cancel` is triggered. `out` gets no [`Chunk::End`] then.
pub async fn snapshot(
    url: &str,
    stream: &str,
    out: &mpsc::Sender<Chunk>,
    cancel: &CancellationToken,
) -> Result<StreamSnapshot, SourceError> {
    let server = Server::connect(url).await?;
    server.existing_stream(stream).await?;
    let before = server.consumers(stream).await?;
    let action = format!("take a snapshot of stream `{stream}`");
    let inbox = server.client.new_inbox();
    // Before the request: the first chunk may follow the answer at once.
    let mut chunks = server
        .client
        .subscribe(inbox.clone())
        .await
        .map_err(server.failed(action.clone()))?;
    let request = json!({
        "deliver_subject": inbox,
        "chunk_size": CHUNK_BYTES,
        "no_consumers": false,
        // The server reads every message and checks its checksum first.
        "jsck": true,
    });
    let answer = server
        .api(&format!("STREAM.SNAPSHOT.{stream}"), &request, &action)
        .await?;
    let field = |name: &str| answer.get(name).cloned().unwrap_or(Value::Null);
    let state: StreamState =
        serde_json::from_value(field("state")).map_err(server.failed(action.clone()))?;

    let mut receipt = Receipt {
        bytes: 0,
        hash: Sha256::new(),
    };
    tokio::select! {
        received = receive(&server, &mut chunks, out, &mut receipt, &action) => received?,
        () = cancel.cancelled() => {
            return Err(SourceError::Cancelled { what: "the snapshot of a stream" });
        }
    }
    // A consumer that was deleted meanwhile may be missing in the archive.
    let after = server.consumers(stream).await?;
    let kept: Vec<_> = before
        .into_iter()
        .filter(|consumer| after.iter().any(|other| other.name == consumer.name))
        .collect();
    let snapshot = StreamSnapshot {
        stream: stream.to_owned(),
        config: field("config"),
        state: field("state"),
        position: position_of(&state, &kept),
        consumers: kept
            .iter()
            .map(|consumer| ConsumerPlace {
                name: consumer.name.clone(),
                durable: consumer.is_durable(),
                ack_floor: consumer.ack_floor.stream_seq,
                delivered: consumer.delivered.stream_seq,
                config: consumer.config.clone(),
            })
            .collect(),
        archive_bytes: receipt.bytes,
        archive_sha256: hex::encode(receipt.hash.finalize()),
        server_version: server.client.server_info().version,
    };
    out.send(Chunk::End).await.map_err(|_| receiver_gone())?;
    Ok(snapshot)
}

struct Receipt {
    bytes: u64,
    hash: Sha256,
}

async fn receive(
    server: &Server,
    chunks: &mut Subscriber,
    out: &mpsc::Sender<Chunk>,
    receipt: &mut Receipt,
    action: &str,
) -> Result<(), SourceError> {
    loop {
        let message = next(server, chunks, action).await?;
        if let Some(refusal) = refusal(&message) {
            return Err(server.failed::<String>(action)(refusal));
        }
        if message.payload.is_empty() {
            if receipt.bytes == 0 {
                return Err(server.failed::<String>(action)(
                    "the archive is empty".to_owned(),
                ));
            }
            return Ok(());
        }
        receipt.bytes += u64::try_from(message.payload.len()).unwrap_or(0);
        receipt.hash.update(&message.payload);
        out.send(Chunk::Data(message.payload))
            .await
            .map_err(|_| receiver_gone())?;
        // Acknowledged only when the receiver has room: this is the flow control.
        if let Some(reply) = message.reply {
            let sent = server.client.publish(reply, Bytes::new()).await;
            sent.map_err(server.failed(action))?;
        }
    }
}

async fn next(
    server: &Server,
    chunks: &mut Subscriber,
    action: &str,
) -> Result<Message, SourceError> {
    let failed = |why: &str| server.failed::<String>(action)(why.to_owned());
    let deadline = Instant::now() + SILENCE_MAX;
    while Instant::now() < deadline {
        match tokio::time::timeout(LOOK_INTERVAL, chunks.next()).await {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => return Err(failed("the connection ended before the archive")),
            // The client would reconnect, but the rest of the archive would not follow.
            Err(_) if server.client.connection_state() != State::Connected => {
                return Err(failed("the connection was lost before the archive's end"));
            }
            Err(_) => {}
        }
    }
    Err(failed("the server fell silent before the archive's end"))
}

/// The server says with a status, in place of data, that it gave up.
fn refusal(message: &Message) -> Option<String> {
    let status = message.status.filter(|status| !status.is_success())?;
    let why = message.description.as_deref().unwrap_or("no reason given");
    Some(format!(
        "the server ended the snapshot with status {status}: {why}"
    ))
}

fn receiver_gone() -> SourceError {
    SourceError::Worker { what: RECEIVER }
}

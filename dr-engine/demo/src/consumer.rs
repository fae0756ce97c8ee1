//! The consumer behind the outbox relay: a warehouse that reads every order event once.
//!
//! A message is acknowledged after its line in the log is durable, so the log misses nothing that was
//! acknowledged. A crash in between has the message delivered, and its line written, again: readers
//! of the log tell by the stream sequence.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, pull};
use async_nats::jetstream::{self, Message};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::DemoError;
use crate::relay::{STREAM, broker, jetstream};

/// The durable consumer's name.
pub const CONSUMER: &str = "warehouse";

/// Messages taken at a time; they share one flush of the log.
const BATCH: usize = 100;
/// How long one request waits for messages.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// How long to wait after a failure, or for the stream to be there.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// A message that is not acknowledged within this is delivered again.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// What is read, and where it is noted.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The message broker.
    pub nats_url: String,
    /// One JSON object for each message is appended here.
    pub log_file: PathBuf,
}

/// Reads messages until `cancel` is triggered; gives the number it acknowledged. The stream may be
/// missing, or go away and come back, meanwhile.
///
/// # Errors
/// When the broker cannot be reached at the start, or the log cannot be written.
pub async fn run(options: &ConsumerOptions, cancel: &CancellationToken) -> Result<u64, DemoError> {
    let context = jetstream(&options.nats_url).await?;
    let mut log = File::options()
        .create(true)
        .append(true)
        .open(&options.log_file)
        .await
        .map_err(unwritable(options))?;
    let mut acknowledged = 0;
    while !cancel.is_cancelled() {
        let outcome = tokio::select! {
            () = cancel.cancelled() => break,
            batch = fetch(&context) => batch,
        };
        match outcome {
            Ok(messages) if messages.is_empty() => {}
            Ok(messages) => {
                write(&mut log, &messages)
                    .await
                    .map_err(unwritable(options))?;
                for message in messages {
                    match message.ack().await {
                        Ok(()) => acknowledged += 1,
                        Err(error) => tracing::warn!(%error, "an acknowledgement was not sent"),
                    }
                }
                // Else a stop right after this would take the last acknowledgements with it.
                context
                    .client()
                    .flush()
                    .await
                    .map_err(broker("acknowledging"))?;
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no messages now");
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(RETRY_WAIT) => {}
                }
            }
        }
    }
    Ok(acknowledged)
}

fn unwritable(options: &ConsumerOptions) -> impl Fn(std::io::Error) -> DemoError {
    let path = options.log_file.clone();
    move |source| DemoError::Write {
        path: path.clone(),
        source,
    }
}

async fn fetch(context: &jetstream::Context) -> Result<Vec<Message>, DemoError> {
    let what = "reading events";
    let stream = context
        .get_stream_no_info(STREAM)
        .await
        .map_err(broker(what))?;
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        ..pull::Config::default()
    };
    let consumer: consumer::PullConsumer = stream
        .get_or_create_consumer(CONSUMER, config)
        .await
        .map_err(broker(what))?;
    let mut batch = consumer
        .batch()
        .max_messages(BATCH)
        .expires(FETCH_WAIT)
        .messages()
        .await
        .map_err(broker(what))?;
    let mut messages = Vec::new();
    while let Some(message) = batch.next().await {
        messages.push(message.map_err(broker(what))?);
    }
    Ok(messages)
}

async fn write(log: &mut File, messages: &[Message]) -> std::io::Result<()> {
    let mut lines = String::new();
    for message in messages {
        let info = message.info().map_err(std::io::Error::other)?;
        let body: Value = serde_json::from_slice(&message.payload).unwrap_or(Value::Null);
        let order = body
            .pointer("/event/order_no")
            .cloned()
            .unwrap_or(Value::Null);
        let line = json!({
            "sequence": info.stream_sequence,
            "deliveries": info.delivered,
            "subject": message.subject.as_str(),
            "outbox_id": body.get("outbox_id"),
            "order_no": order,
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    log.write_all(lines.as_bytes()).await?;
    log.sync_data().await
}

//! A queue's client: publishes and waits for the stream's acknowledgement; reads by sequence number.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use dr_config::ProbeFile;

use super::Answer;
use crate::DrillError;

/// Publishes to a subject, and gets messages of a stream.
#[derive(Debug)]
pub struct QueueClient {
    url: String,
    client: Option<async_nats::Client>,
    broken: String,
    timeout: Duration,
    stream: String,
    subject: String,
}

impl QueueClient {
    pub(super) fn new(url: &str, probe: &ProbeFile) -> Result<Self, DrillError> {
        let needed = |name: &str, given: &Option<String>| {
            given.clone().ok_or_else(|| {
                DrillError::Unsuitable(format!(
                    "probe `{}` has no `{name}`, and its workload `{}` is a queue",
                    probe.probe, probe.workload
                ))
            })
        };
        Ok(Self {
            url: url.to_owned(),
            client: None,
            broken: "not connected yet".to_owned(),
            timeout: probe.timeout.0,
            stream: needed("stream", &probe.stream)?,
            subject: needed("subject", &probe.subject)?,
        })
    }

    pub(super) async fn begin_cycle(&mut self) {
        let connected = self.client.as_ref().is_some_and(|client| {
            client.connection_state() == async_nats::connection::State::Connected
        });
        if connected {
            return;
        }
        self.client = None;
        let connecting = async_nats::ConnectOptions::new()
            .name("dr-probe")
            .connection_timeout(self.timeout)
            .connect(&self.url);
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(Ok(client)) => self.client = Some(client),
            Ok(Err(error)) => self.broken = error.to_string(),
            Err(_) => self.broken = "connecting took too long".to_owned(),
        }
    }

    fn context(&self) -> Result<jetstream::Context, Answer> {
        let client = self
            .client
            .clone()
            .ok_or_else(|| Answer::failed(&self.broken))?;
        let mut context = jetstream::new(client);
        context.set_timeout(self.timeout);
        Ok(context)
    }

    pub(super) async fn write(&mut self, tenant: &str, key: &str) -> Answer {
        let context = match self.context() {
            Ok(context) => context,
            Err(answer) => return answer,
        };
        let subject = self.subject.replace("{tenant}", tenant);
        let publishing = async {
            let acknowledgement = context.publish(subject, key.to_owned().into()).await?;
            acknowledgement.await
        };
        match tokio::time::timeout(self.timeout, publishing).await {
            Ok(Ok(acknowledged)) => Answer::acked(Some(acknowledged.sequence)),
            Ok(Err(error)) => match error.kind() {
                PublishErrorKind::StreamNotFound
                | PublishErrorKind::WrongLastMessageId
                | PublishErrorKind::WrongLastSequence => Answer::failed(error),
                _ => Answer::unknown(error),
            },
            Err(_) => Answer::unknown("no answer within the time limit"),
        }
    }

    pub(super) async fn read(&mut self, key: &str, sequence: Option<u64>) -> Answer {
        match self.is_there(key, sequence).await {
            Ok(true) => Answer::acked(None),
            Ok(false) => Answer::failed("the message is not there"),
            Err(answer) => answer,
        }
    }

    /// Whether the message with this sequence number is the one with this key. After a restore the
    /// same number can be given to another message.
    ///
    /// # Errors
    /// The answer that is no answer.
    pub async fn is_there(&mut self, key: &str, sequence: Option<u64>) -> Result<bool, Answer> {
        let Some(sequence) = sequence else {
            return Ok(false);
        };
        let context = self.context()?;
        let getting = async {
            let stream = context
                .get_stream_no_info(&self.stream)
                .await
                .map_err(Answer::failed)?;
            match stream.get_raw_message(sequence).await {
                Ok(message) => Ok(message.payload.as_ref() == key.as_bytes()),
                Err(error)
                    if error.kind() == jetstream::stream::RawMessageErrorKind::NoMessageFound =>
                {
                    Ok(false)
                }
                Err(error) => Err(Answer::failed(error)),
            }
        };
        match tokio::time::timeout(self.timeout, getting).await {
            Ok(answer) => answer,
            Err(_) => Err(Answer::unknown("no answer within the time limit")),
        }
    }
}

//! Requests to JetStream's API, and what its answers mean.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use dr_model::StreamPosition;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::SourceError;

/// How long the server may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to answer one request. A restore's last request is not answered
/// before the whole stream is in place.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// "stream not found" (server/errors.json).
const STREAM_NOT_FOUND: u64 = 10059;
/// Consumers listed by one request are at most 256 (server/jetstream_api.go); this many requests
/// bound the listing.
const CONSUMER_PAGES_MAX: usize = 400;

/// A connection with the address to name in errors.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) place: String,
}

/// A stream as `STREAM.INFO` describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) state: StreamState,
}

/// What of a stream's state matters here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
}

/// A consumer as `CONSUMER.LIST` describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) name: String,
    pub(super) config: Value,
    pub(super) ack_floor: SequencePair,
    pub(super) delivered: SequencePair,
}

/// A consumer's own count and the stream's sequence number.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct SequencePair {
    pub(super) stream_seq: u64,
}

impl ConsumerInfo {
    pub(super) fn is_durable(&self) -> bool {
        self.config
            .get("durable_name")
            .and_then(Value::as_str)
            .is_some_and(|name| !name.is_empty())
    }
}

impl Server {
    pub(super) async fn connect(url: &str) -> Result<Self, SourceError> {
        let place = without_password(url);
        let client = ConnectOptions::new()
            .name("dr")
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .connect(url)
            .await
            .map_err(|source| SourceError::Nats {
                place: place.clone(),
                action: "be reached".to_owned(),
                source: Box::new(source),
            })?;
        Ok(Self { client, place })
    }

    pub(super) fn failed<E>(&self, action: impl Into<String>) -> impl FnOnce(E) -> SourceError
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (place, action) = (self.place.clone(), action.into());
        move |source| SourceError::Nats {
            place,
            action,
            source: source.into(),
        }
    }

    /// Makes one request of JetStream's API and takes the error out of its answer.
    pub(super) async fn api(
        &self,
        subject: &str,
        body: &Value,
        action: &str,
    ) -> Result<Value, SourceError> {
        let payload = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let subject = format!("$JS.API.{subject}");
        let answer = self.client.request(subject, payload.into()).await.map_err(|error| {
            if error.kind() == async_nats::client::RequestErrorKind::NoResponders {
                SourceError::Refused(format!(
                    "NATS at {} has no JetStream: start it with -js, or give the account JetStream",
                    self.place
                ))
            } else {
                self.failed(action)(error)
            }
        })?;
        let value: Value = serde_json::from_slice(&answer.payload).map_err(self.failed(action))?;
        match ApiError::of(&value) {
            Some(error) => Err(self.failed(action)(error)),
            None => Ok(value),
        }
    }

    /// The stream's configuration and state; `None` when there is no such stream.
    pub(super) async fn stream(&self, stream: &str) -> Result<Option<StreamInfo>, SourceError> {
        check_name(stream)?;
        let action = format!("describe stream `{stream}`");
        match self
            .api(&format!("STREAM.INFO.{stream}"), &Value::Null, &action)
            .await
        {
            Ok(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(self.failed(action)),
            Err(SourceError::Nats { source, .. }) if is_not_found(source.as_ref()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::stream`]; a stream that does not exist is an error with the names that do.
    pub(super) async fn existing_stream(&self, stream: &str) -> Result<StreamInfo, SourceError> {
        if let Some(info) = self.stream(stream).await? {
            return Ok(info);
        }
        let names = self
            .api("STREAM.NAMES", &Value::Null, "list its streams")
            .await?;
        let names: Vec<&str> = names
            .get("streams")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let known = if names.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        Err(SourceError::Refused(format!(
            "NATS at {} has no stream `{stream}`: {known}",
            self.place
        )))
    }

    /// All consumers of a stream, in order of name.
    pub(super) async fn consumers(&self, stream: &str) -> Result<Vec<ConsumerInfo>, SourceError> {
        let action = format!("list the consumers of stream `{stream}`");
        let mut found: Vec<ConsumerInfo> = Vec::new();
        for _ in 0..CONSUMER_PAGES_MAX {
            let body = json!({ "offset": found.len() });
            let value = self
                .api(&format!("CONSUMER.LIST.{stream}"), &body, &action)
                .await?;
            let total = value.get("total").and_then(Value::as_u64).unwrap_or(0);
            let page = value.get("consumers").cloned().unwrap_or_else(|| json!([]));
            let page: Vec<ConsumerInfo> =
                serde_json::from_value(page).map_err(self.failed(action.clone()))?;
            let last = page.is_empty();
            found.extend(page);
            if last || u64::try_from(found.len()).is_ok_and(|length| length >= total) {
                break;
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    pub(super) async fn position(&self, stream: &str) -> Result<StreamPosition, SourceError> {
        let info = self.existing_stream(stream).await?;
        Ok(position_of(&info.state, &self.consumers(stream).await?))
    }
}

pub(super) fn position_of(state: &StreamState, consumers: &[ConsumerInfo]) -> StreamPosition {
    let consumers: BTreeMap<String, u64> = consumers
        .iter()
        .filter(|consumer| consumer.is_durable())
        .map(|consumer| (consumer.name.clone(), consumer.ack_floor.stream_seq))
        .collect();
    StreamPosition {
        messages: state.messages,
        first_sequence: state.first_seq,
        last_sequence: state.last_seq,
        consumers,
    }
}

/// Where a stream and its durable consumers stand now.
///
/// # Errors
/// When the server does not answer, has no JetStream or no such stream.
pub async fn position(url: &str, stream: &str) -> Result<StreamPosition, SourceError> {
    Server::connect(url).await?.position(stream).await
}

/// Whether the server has this stream.
///
/// # Errors
/// When the server does not answer or has no JetStream.
pub async fn stream_exists(url: &str, stream: &str) -> Result<bool, SourceError> {
    Ok(Server::connect(url).await?.stream(stream).await?.is_some())
}

/// An error that the API answered with.
#[derive(Debug, thiserror::Error)]
#[error("{description} (JetStream error {code})")]
pub(super) struct ApiError {
    code: u64,
    description: String,
}

impl ApiError {
    pub(super) fn of(answer: &Value) -> Option<Self> {
        let error = answer.get("error").filter(|error| !error.is_null())?;
        let number = |name| error.get(name).and_then(Value::as_u64);
        Some(Self {
            code: number("err_code").or_else(|| number("code")).unwrap_or(0),
            description: error
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or("an error without a description")
                .to_owned(),
        })
    }
}

fn is_not_found(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error
        .downcast_ref::<ApiError>()
        .is_some_and(|error| error.code == STREAM_NOT_FOUND)
}

/// A stream's name becomes part of a subject: `>` or `.` in it would ask for something else.
fn check_name(stream: &str) -> Result<(), SourceError> {
    let bad = stream.is_empty()
        || stream.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c));
    if bad {
        return Err(SourceError::Refused(format!(
            "{stream:?} cannot be the name of a stream"
        )));
    }
    Ok(())
}

/// The address without what an error or log must not show.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_server_without_its_password() {
        assert_eq!(without_password("nats://a:secret@h:4222"), "nats://h:4222");
        assert_eq!(without_password("127.0.0.1:4222"), "nats://127.0.0.1:4222");
    }

    #[test]
    fn a_name_that_would_change_the_subject_is_refused() {
        for bad in ["", "A.B", "A*", ">", "A B", "a/b"] {
            assert!(check_name(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(check_name("ORDERS_2026-x").is_ok());
    }
}

//! A hook that is an HTTP request.
//!
//! Its body is lines of JSON: the first says when it is sent and of which tenant's restore, then in `changed`
//! comes one for each row that was written. They are made while they are sent, so that memory does not grow with
//! them. What a header holds is said nowhere.

use std::error::Error;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use dr_config::{HeaderSource, HttpHook};
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::sync::mpsc::{self, Sender};

use super::{Changed, Rows, SAID_MAX};

/// Bytes of an answer that are read: what is shown of it is in them.
const ANSWER_MAX: usize = 4 * SAID_MAX;
/// Rows are sent in pieces of about so many bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait to be sent.
const PIECES_WAITING: usize = 4;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// `POST http://search/rows`: without what follows the path, which may hold a secret.
pub(super) fn describe(hook: &HttpHook) -> String {
    let shown = hook.url.split(['?', '#']).next().unwrap_or_default();
    format!("{} {shown}", hook.method())
}

/// What can be wrong with it before anything is sent.
pub(super) fn check(hook: &HttpHook) -> Result<(), String> {
    request(hook, Body::default()).map(drop)
}

/// Sends it and reads the answer; `about` is the first line.
pub(super) async fn send(
    hook: &HttpHook,
    about: &Value,
    rows: Option<Rows<'_>>,
) -> Result<String, String> {
    let first = format!("{about}\n");
    let Some(rows) = rows else {
        let body = Full::new(Bytes::from(first)).map_err(|never| match never {});
        let (status, said) = answer(hook, body.boxed_unsync()).await?;
        return Ok(line(&status, &said));
    };
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    let pieces = stream::unfold(receiver, async |mut receiver| {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    let body = StreamBody::new(Box::pin(pieces)).boxed_unsync();
    let (answer, tell) = (answer(hook, body), tell(first, rows, sender));
    tokio::pin!(answer, tell);
    // What counts is the answer: who gives it without reading everything has what it needs.
    let mut told = None;
    let (status, said) = loop {
        tokio::select! {
            answered = &mut answer => break answered?,
            ended = &mut tell, if told.is_none() => told = Some(ended?),
        }
    };
    let told = told.map_or_else(
        || "not all rows were read".to_owned(),
        |told| format!("{told} rows told"),
    );
    Ok(format!("{told}; {}", line(&status, &said)))
}

fn line(status: &str, said: &str) -> String {
    match said.is_empty() {
        true => status.to_owned(),
        false => format!("{status}, it said: {said}"),
    }
}

/// Makes the rows into pieces until they end, or nobody takes them any more.
async fn tell(
    first: String,
    rows: Rows<'_>,
    sender: Sender<io::Result<Bytes>>,
) -> Result<u64, String> {
    let (mut piece, mut told) = (first, 0);
    for changed in Changed::of(rows) {
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => {
                // Without an end, so that the other side does not take it for all.
                let broken = io::Error::other("the rows could not be read");
                let _ = sender.send(Err(broken)).await;
                return Err(format!("telling the rows: {error}"));
            }
        };
        piece.push_str(&format!("{changed}\n"));
        told += 1;
        if piece.len() >= PIECE_BYTES {
            let full = Bytes::from(std::mem::take(&mut piece));
            if sender.send(Ok(full)).await.is_err() {
                return Ok(told);
            }
        }
    }
    // Nobody takes it any more where the answer is there already.
    let _ = sender.send(Ok(Bytes::from(piece))).await;
    Ok(told)
}

/// The status and the beginning of the body, of an answer that says success.
async fn answer(hook: &HttpHook, body: Body) -> Result<(String, String), String> {
    let request = request(hook, body)?;
    let mut connector = HttpConnector::new();
    let response = if hook.url.starts_with("https:") {
        connector.enforce_http(false);
        let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(Arc::new(provider))
            .map_err(|error| format!("no authority is known that servers are signed by: {error}"))?
            .https_only()
            .enable_http1()
            .wrap_connector(connector);
        exchange(https, request).await?
    } else {
        exchange(connector, request).await?
    };
    let status = response.status();
    let said = beginning(response.into_body()).await;
    match status.is_success() {
        true => Ok((status.to_string(), said)),
        false => Err(format!("it answered {}", line(&status.to_string(), &said))),
    }
}

async fn exchange<C>(connector: C, request: Request<Body>) -> Result<Response<Incoming>, String>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let mut builder = Client::builder(TokioExecutor::new());
    let client = builder.pool_max_idle_per_host(0).build(connector);
    client.request(request).await.map_err(|error| chain(&error))
}

/// An error with its causes: the first alone says little.
fn chain(error: &dyn Error) -> String {
    let mut text = format!("no answer came: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn request(hook: &HttpHook, body: Body) -> Result<Request<Body>, String> {
    let mut request = Request::new(body);
    // The error itself may show the URL.
    *request.uri_mut() = hook
        .url
        .parse()
        .map_err(|_| "its `url` is not understood".to_owned())?;
    *request.method_mut() = hook
        .method()
        .parse()
        .map_err(|_| "its `method` is not understood".to_owned())?;
    let headers = request.headers_mut();
    let lines = HeaderValue::from_static("application/x-ndjson");
    headers.insert(CONTENT_TYPE, lines);
    let program = HeaderValue::from_static(concat!("dr/", env!("CARGO_PKG_VERSION")));
    headers.insert(USER_AGENT, program);
    for (name, source) in &hook.headers {
        let (key, value) = header(name, source)?;
        headers.insert(key, value);
    }
    Ok(request)
}

/// Its value is a secret, wherever it comes from.
fn header(name: &str, source: &HeaderSource) -> Result<(HeaderName, HeaderValue), String> {
    let text = match source {
        HeaderSource::Plain(text) => text.clone(),
        HeaderSource::Secret(source) => dr_installation::secret(source)
            .map_err(|error| format!("header {name}: {error}"))?
            .to_string(),
    };
    let key = name
        .parse()
        .map_err(|_| format!("`{name}` is no name of a header"))?;
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| format!("header {name}: its value has characters that no header can have"))?;
    value.set_sensitive(true);
    Ok((key, value))
}

/// What is shown of an answer; one that breaks off has said enough.
async fn beginning(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if bytes.len() >= ANSWER_MAX {
            break;
        }
    }
    let said = String::from_utf8_lossy(&bytes);
    said.trim().chars().take(SAID_MAX).collect()
}

#[cfg(test)]
#[path = "../../../../tests/harness/receiver.rs"]
mod receiver;

#[cfg(test)]
mod tls;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use dr_config::{SecretSource, TenantHook};
    use dr_model::HumanDuration;

    use super::receiver::HttpReceiver;
    use super::*;
    use crate::hooks::{When, tests::hooks};

    fn hook(url: String, headers: &[(&str, HeaderSource)]) -> HttpHook {
        HttpHook {
            url,
            method: None,
            headers: headers
                .iter()
                .map(|(name, source)| ((*name).to_owned(), source.clone()))
                .collect(),
            timeout: None,
        }
    }

    #[tokio::test]
    async fn a_request_says_whose_restore_it_is_and_shows_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, "Bearer s3cr3t\n").unwrap();
        let headers = [
            (
                "Authorization",
                HeaderSource::Secret(SecretSource::File(token)),
            ),
            ("X-Kind", HeaderSource::Plain("tenant".to_owned())),
        ];
        let server = HttpReceiver::start(Some(("200 OK", "queued\n")));
        let hook = TenantHook::Http(hook(server.url("/hooks?key=s3cr3t"), &headers));
        let hooks = hooks();
        let said = hooks.run(When::Before, &hook, None).await;
        assert_eq!(said, Ok("200 OK, it said: queued".to_owned()));
        let received = server.next();
        assert!(
            received
                .head
                .starts_with("POST /hooks?key=s3cr3t HTTP/1.1\r\n")
        );
        for line in [
            "authorization: Bearer s3cr3t",
            "x-kind: tenant",
            "content-type: application/x-ndjson",
        ] {
            assert!(
                received.head.lines().any(|l| l == line),
                "{}",
                received.head
            );
        }
        let about: Value = serde_json::from_str(&received.body).unwrap();
        assert_eq!(about, hooks.about(When::Before));
        assert!(!crate::hooks::describe(&hook).contains("s3cr3t"));
    }

    #[tokio::test]
    async fn an_answer_that_is_no_success_is_told_with_what_it_says() {
        let server = HttpReceiver::start(Some(("503 Service Unavailable", "in the night only")));
        let secret = HeaderSource::Plain("s3cr3t".to_owned());
        let hook = hook(server.url("/"), &[("X-Key", secret)]);
        let why = send(&hook, &Value::Null, None).await.unwrap_err();
        assert_eq!(
            why,
            "it answered 503 Service Unavailable, it said: in the night only"
        );
        // Nobody is asked to go elsewhere with what was for this server.
        let server = HttpReceiver::start(Some(("307 Temporary Redirect", "")));
        let why = send(&hook_to(&server), &Value::Null, None)
            .await
            .unwrap_err();
        assert!(why.contains("307"), "{why}");
    }

    fn hook_to(server: &HttpReceiver) -> HttpHook {
        hook(server.url("/"), &[])
    }

    #[tokio::test]
    async fn no_answer_is_a_failure_and_not_waited_for_for_ever() {
        let server = HttpReceiver::start(None);
        let mut silent = hook_to(&server);
        silent.timeout = Some(HumanDuration(Duration::from_millis(500)));
        let silent = TenantHook::Http(silent);
        let said = hooks().run(When::Before, &silent, None).await;
        assert_eq!(said, Err("it was ended after 0.5 s".to_owned()));
        // A port that nobody listens on.
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}/", free.local_addr().unwrap());
        drop(free);
        let why = send(&hook(url, &[]), &Value::Null, None).await.unwrap_err();
        assert!(why.starts_with("no answer came: "), "{why}");
        assert!(why.to_lowercase().contains("refused"), "{why}");
    }

    #[test]
    fn a_secret_that_is_not_there_is_known_before_anything_runs() {
        let missing = HeaderSource::Secret(SecretSource::Env("DR_TEST_NO_SUCH".to_owned()));
        let there = HeaderSource::Secret(SecretSource::Env("PATH".to_owned()));
        let with = |source| hook("https://localhost/".to_owned(), &[("X-Key", source)]);
        assert_eq!(check(&with(there)), Ok(()));
        let why = check(&with(missing)).unwrap_err();
        assert_eq!(why, "header X-Key: DR_TEST_NO_SUCH is not set to a text");
        let broken = HeaderSource::Plain("s3cr3t\nInjected: yes".to_owned());
        let why = check(&with(broken)).unwrap_err();
        assert!(why.contains("X-Key") && !why.contains("s3cr3t"), "{why}");
    }
}

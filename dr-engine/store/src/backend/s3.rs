//! Objects in a bucket of an S3-compatible store.
//!
//! Every PUT says `If-None-Match: *`, so that the store itself refuses to overwrite. Stores fail
//! open: some accept the header and ignore it. So `prepare` tries it, the `repository` object
//! remembers what was seen, and on a store that ignores it existence is asked before writing, which
//! leaves a race between two writers of one name that nothing here can close.
//!
//! The client retries. A PUT whose answer was lost may have succeeded, and its retry is then refused
//! with 412: what is stored is read and compared before "exists" is said. 409 is the store asking
//! for another try.
//!
//! The SDK is asynchronous and everything here blocks: the runtime lives in a thread of its own, to
//! which calls send their work, so that they may come from inside another runtime's blocking thread.

mod answer;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::primitives::ByteStream;
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::{Backend, BackendError, Capabilities, ObjectEntry, PutOptions, PutOutcome, check_name};
use answer::{Answer, base64, classify};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two bytes of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// One try of one request; a pack of 16 MiB passes at 150 KiB/s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);
/// A request with all its tries.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(300);
const ATTEMPTS_MAX: u32 = 4;
/// How often a conflict (409) is tried again.
const CONFLICTS_MAX: u32 = 5;
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Objects written by `prepare` to try the store; removed at once.
pub(crate) const TRIAL: &str = "trial-";

/// Where an S3-compatible store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// The bucket; it must exist.
    pub bucket: String,
    /// Put before every object name; may be empty.
    pub prefix: String,
    /// The region.
    pub region: String,
    /// Another endpoint than AWS's own; path-style addressing is used with it.
    pub endpoint: Option<String>,
}

/// Objects in a bucket.
#[derive(Debug)]
pub struct S3Backend {
    client: Client,
    bucket: String,
    /// Empty, or ends in `/`.
    prefix: String,
    runtime: Handle,
    conditional: AtomicBool,
    /// Dropped with the backend; its thread then ends.
    _alive: oneshot::Sender<()>,
}

impl S3Backend {
    /// Prepares a client with credentials from the usual AWS chain. Nothing is sent yet.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn connect(location: &S3Location) -> Result<Self, BackendError> {
        Self::start(location, None)
    }

    /// The same with an access key given by the caller.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn connect_as(
        location: &S3Location,
        access_key: &str,
        secret_key: &str,
    ) -> Result<Self, BackendError> {
        let credentials = Credentials::new(access_key, secret_key, None, None, "given");
        Self::start(location, Some(credentials))
    }

    fn start(
        location: &S3Location,
        credentials: Option<Credentials>,
    ) -> Result<Self, BackendError> {
        let prefix = location.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        let failed = |source| BackendError::Io {
            action: "start the client for",
            place: format!("s3://{}/{prefix}", location.bucket),
            source,
        };
        let (runtime, alive) = runtime_thread().map_err(failed)?;
        let location = location.clone();
        let bucket = location.bucket.clone();
        let client = blocking(&runtime, async move { client(location, credentials).await })
            .ok_or_else(|| failed(std::io::Error::other("its thread ended")))?;
        Ok(Self {
            client,
            bucket,
            prefix,
            runtime,
            conditional: AtomicBool::new(true),
            _alive: alive,
        })
    }

    fn key(&self, name: &str) -> Result<String, BackendError> {
        check_name(name)?;
        Ok(format!("{}{name}", self.prefix))
    }

    fn place(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.bucket, self.prefix)
    }

    /// Runs a request to its end in the client's own thread.
    fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        name: &str,
        work: impl Future<Output = Result<T, Answer>> + Send + 'static,
    ) -> Result<Result<T, Answer>, BackendError> {
        blocking(&self.runtime, work).ok_or_else(|| BackendError::Io {
            action,
            place: self.place(name),
            source: std::io::Error::other("the client's thread ended"),
        })
    }

    fn put(
        &self,
        name: &str,
        body: &[u8],
        conditional: bool,
    ) -> Result<Result<(), Answer>, BackendError> {
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(name)?)
            .content_length(i64::try_from(body.len()).unwrap_or(i64::MAX))
            .content_md5(base64(&Md5::digest(body)))
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .body(ByteStream::from(body.to_vec()));
        self.run("write", name, async move {
            request.send().await.map(|_| ()).map_err(classify)
        })
    }

    /// Tells a writer's own success, whose answer was lost, from another's object.
    fn compare(&self, name: &str, body: &[u8]) -> Result<PutOutcome, BackendError> {
        match self.get(name)? {
            Some(stored) if stored == body => Ok(PutOutcome::Stored),
            Some(_) => Ok(PutOutcome::Exists),
            None => Err(Answer::Other(
                "the object was refused as existing and is not there".into(),
            )
            .into_error("write", self.place(name))),
        }
    }
}

/// A runtime in a thread that lives as long as the sender.
fn runtime_thread() -> std::io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("s3")
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("s3-runtime".to_owned())
        .spawn(move || {
            // An error is the sender gone, which is what is waited for.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
    Ok((handle, alive))
}

/// Waits, without a runtime of its own, for work done in another; `None` if that one ended.
fn blocking<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (done, result) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        // Nobody waits any more: then nobody misses it.
        let _ = done.send(work.await);
    });
    result.recv().ok()
}

async fn client(location: S3Location, credentials: Option<Credentials>) -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(location.region))
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX));
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    if let Some(endpoint) = &location.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let config = loader.load().await;
    // Content-MD5 is checked by every store; the newer checksums are refused by old ones. What is
    // read is authenticated by its own seal.
    let config = aws_sdk_s3::config::Builder::from(&config)
        .force_path_style(location.endpoint.is_some())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Client::from_conf(config)
}

impl Backend for S3Backend {
    fn describe(&self) -> String {
        self.place("").trim_end_matches('/').to_owned()
    }

    fn put_new_with(
        &self,
        name: &str,
        body: &[u8],
        _options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        let conditional = self.conditional.load(Ordering::Relaxed);
        if !conditional && self.get(name)?.is_some() {
            return Ok(PutOutcome::Exists);
        }
        let mut conflicts = 0;
        loop {
            match self.put(name, body, conditional)? {
                Ok(()) => return Ok(PutOutcome::Stored),
                Err(Answer::Exists(_)) => return self.compare(name, body),
                Err(Answer::Conflict(_)) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    std::thread::sleep(CONFLICT_PAUSE * conflicts);
                }
                Err(answer) => return Err(answer.into_error("write", self.place(name))),
            }
        }
    }

    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        let name = format!("{TRIAL}{}", dr_model::random::hex(8));
        self.put_new(&name, b"clock")?;
        let found = self.list(&name)?;
        self.delete(&name)?;
        found
            .first()
            .map(|entry| entry.modified)
            .ok_or_else(|| BackendError::Store {
                action: "read the clock of",
                place: self.describe(),
                source: "an object just stored is not listed".into(),
            })
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(name)?);
        let read = self.run("read", name, async move {
            let answer = request.send().await.map_err(classify)?;
            let body = answer.body.collect().await;
            body.map(|body| body.to_vec())
                .map_err(|error| Answer::Unreachable(error.into()))
        })?;
        match read {
            Ok(body) => Ok(Some(body)),
            Err(Answer::Absent(_)) => Ok(None),
            Err(answer) => Err(answer.into_error("read", self.place(name))),
        }
    }

    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let Some(last) = length
            .checked_sub(1)
            .map(|more| offset.saturating_add(more))
        else {
            return Ok(Some(Vec::new()));
        };
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(name)?)
            .range(format!("bytes={offset}-{last}"));
        let read = self.run("read", name, async move {
            let answer = request.send().await.map_err(classify)?;
            let body = answer.body.collect().await;
            body.map(|body| body.to_vec())
                .map_err(|error| Answer::Unreachable(error.into()))
        })?;
        match read {
            Ok(body) => Ok(Some(body)),
            Err(Answer::Absent(_)) => Ok(None),
            Err(Answer::BehindTheEnd(_)) => Ok(Some(Vec::new())),
            Err(answer) => Err(answer.into_error("read", self.place(name))),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(format!("{}{prefix}", self.prefix))
            .into_paginator()
            .send();
        let before = self.prefix.clone();
        let listed = self.run("list", prefix, async move {
            let mut found = Vec::new();
            while let Some(page) = pages.next().await {
                for object in page.map_err(classify)?.contents.unwrap_or_default() {
                    let key = object.key.unwrap_or_default();
                    if let Some(name) = key.strip_prefix(&before) {
                        let size = u64::try_from(object.size.unwrap_or(0)).unwrap_or(0);
                        let modified = object
                            .last_modified
                            .and_then(|at| DateTime::from_timestamp(at.secs(), at.subsec_nanos()));
                        found.push(ObjectEntry {
                            name: name.to_owned(),
                            size,
                            modified: modified.unwrap_or_default(),
                        });
                    }
                }
            }
            Ok(found)
        })?;
        let mut found = listed.map_err(|answer| answer.into_error("list", self.place(prefix)))?;
        found.sort();
        Ok(found)
    }

    fn delete(&self, name: &str) -> Result<(), BackendError> {
        let request = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.key(name)?);
        let deleted = self.run("delete", name, async move {
            request.send().await.map(|_| ()).map_err(classify)
        })?;
        match deleted {
            Ok(()) | Err(Answer::Absent(_)) => Ok(()),
            Err(answer) => Err(answer.into_error("delete", self.place(name))),
        }
    }

    /// Asks the bucket whether it is there and open to us, and tries whether a second write of one
    /// name is refused.
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        self.list(TRIAL)?;
        let name = format!("{TRIAL}{}", dr_model::random::hex(8));
        let failed = |answer: Answer| answer.into_error("write", self.place(&name));
        let put_if_absent = match self.put(&name, b"first", true)? {
            Ok(()) => match self.put(&name, b"second", true)? {
                Ok(()) => false,
                Err(Answer::Exists(_)) => true,
                Err(answer) => return Err(failed(answer)),
            },
            Err(Answer::NotImplemented(_)) => {
                self.put(&name, b"first", false)?.map_err(failed)?;
                false
            }
            Err(answer) => return Err(failed(answer)),
        };
        self.delete(&name)?;
        if !put_if_absent {
            tracing::warn!(
                place = self.describe(),
                "the store ignores If-None-Match: two writers of one name could overwrite each other"
            );
        }
        Ok(Capabilities { put_if_absent })
    }

    fn assume(&self, capabilities: Capabilities) {
        self.conditional
            .store(capabilities.put_if_absent, Ordering::Relaxed);
    }
}

//! The client and what every request needs.

use std::future::Future;
use std::sync::mpsc;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use chrono::{DateTime, Utc};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::{Patience, S3Location};
use crate::backend::LockMode;

/// A bucket with a client for it; its methods are the requests, each with all its attempts.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) client: Client,
    pub(super) name: String,
    /// Empty, or ends in `/`.
    pub(super) prefix: String,
    pub(super) patience: Patience,
    pub(super) lock_mode: LockMode,
    pub(super) storage_class: Option<String>,
    /// Larger objects are written in parts.
    pub(super) whole_max: usize,
}

impl Bucket {
    pub(super) fn place(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.name, self.prefix)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// The store's time as ours.
pub(super) fn time(at: Option<&aws_sdk_s3::primitives::DateTime>) -> Option<DateTime<Utc>> {
    at.and_then(|at| DateTime::from_timestamp(at.secs(), at.subsec_nanos()))
}

/// Our time as the store's.
pub(super) fn store_time(at: DateTime<Utc>) -> aws_sdk_s3::primitives::DateTime {
    aws_sdk_s3::primitives::DateTime::from_secs(at.timestamp())
}

/// A runtime in a thread that lives as long as the sender.
pub(super) fn runtime_thread() -> std::io::Result<(Handle, oneshot::Sender<()>)> {
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
pub(super) fn blocking<T: Send + 'static>(
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

pub(super) async fn client(
    location: S3Location,
    credentials: Option<Credentials>,
    patience: Patience,
) -> Client {
    // Attempts are timed and repeated by `Patience`, which knows their size and sees their bodies. A
    // connection that moves nothing for 20 s is ended by the SDK by itself.
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(patience.connect)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(location.region))
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled());
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    if let Some(endpoint) = &location.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let config = loader.load().await;
    // Content-MD5 is checked by every store; the newer checksums are refused by old ones. What is
    // read is authenticated by its own seal.
    let path_style = location.path_style.unwrap_or(location.endpoint.is_some());
    let config = aws_sdk_s3::config::Builder::from(&config)
        .force_path_style(path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Client::from_conf(config)
}

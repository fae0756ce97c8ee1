//! A real S3 server that someone started for the tests (`scripts/with-ceph.sh`, or any other).
//!
//! It is named by `DR_TEST_S3_ENDPOINT`, `DR_TEST_S3_ACCESS_KEY`, `DR_TEST_S3_SECRET_KEY` and, if it
//! is not us-east-1, `DR_TEST_S3_REGION`. Without the first there is none, and tests leave it out.

use anyhow::Context;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};
use chrono::{DateTime, Utc};
use dr_store::{Patience, S3Backend, S3Location};

/// A server outside of the process.
#[derive(Debug)]
pub struct RealS3 {
    /// What a client calls.
    pub endpoint: String,
    region: String,
    access_key: String,
    secret_key: String,
    runtime: tokio::runtime::Runtime,
}

impl RealS3 {
    /// The server that the environment names, if it names one.
    ///
    /// # Panics
    /// When it names one by halves.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let endpoint = text("DR_TEST_S3_ENDPOINT")?;
        Some(Self {
            endpoint,
            region: text("DR_TEST_S3_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
            access_key: text("DR_TEST_S3_ACCESS_KEY").expect("DR_TEST_S3_ACCESS_KEY is set"),
            secret_key: text("DR_TEST_S3_SECRET_KEY").expect("DR_TEST_S3_SECRET_KEY is set"),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
        })
    }

    /// Makes a bucket of a random name; with `object_lock`, one that keeps versions and locks.
    ///
    /// # Errors
    /// When the server does not make it.
    pub fn new_bucket(&self, object_lock: bool) -> anyhow::Result<String> {
        let bucket = format!("dr-test-{}", dr_model::random::hex(6));
        self.runtime
            .block_on(
                self.client()
                    .create_bucket()
                    .bucket(&bucket)
                    .object_lock_enabled_for_bucket(object_lock)
                    .send(),
            )
            .with_context(|| format!("cannot make bucket {bucket}"))?;
        Ok(bucket)
    }

    /// Where such a bucket is.
    #[must_use]
    pub fn location(&self, bucket: &str, prefix: &str) -> S3Location {
        S3Location {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: self.region.clone(),
            endpoint: Some(self.endpoint.clone()),
            ..S3Location::default()
        }
    }

    /// A client for a place of this server, or of a proxy before it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn connect(&self, location: &S3Location, patience: Patience) -> S3Backend {
        S3Backend::connect_patiently(location, &self.access_key, &self.secret_key, patience)
            .expect("a client")
    }

    fn client(&self) -> Client {
        let credentials = Credentials::new(&self.access_key, &self.secret_key, None, None, "given");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .endpoint_url(&self.endpoint)
            .credentials_provider(credentials)
            .force_path_style(true)
            .build();
        Client::from_conf(config)
    }

    /// Plain requests, past everything that the store crate asks or knows first.
    #[must_use]
    pub fn raw(&self, location: &S3Location) -> RawS3<'_> {
        RawS3 {
            server: self,
            location: location.clone(),
        }
    }
}

/// Plain requests; each tells whether the server did it.
#[derive(Debug)]
pub struct RawS3<'a> {
    server: &'a RealS3,
    location: S3Location,
}

impl RawS3<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.location.prefix)
    }

    /// Sets a lock.
    #[must_use]
    pub fn lock_until(&self, name: &str, mode: &str, until: DateTime<Utc>) -> bool {
        let until = aws_sdk_s3::primitives::DateTime::from_secs(until.timestamp());
        let retention = ObjectLockRetention::builder()
            .mode(ObjectLockRetentionMode::from(mode))
            .retain_until_date(until)
            .build();
        let request = self
            .server
            .client()
            .put_object_retention()
            .bucket(&self.location.bucket)
            .key(self.key(name))
            .retention(retention);
        self.server.runtime.block_on(request.send()).is_ok()
    }

    /// Deletes one version.
    #[must_use]
    pub fn delete_version(&self, name: &str, version: &str) -> bool {
        let request = self
            .server
            .client()
            .delete_object()
            .bucket(&self.location.bucket)
            .key(self.key(name))
            .version_id(version);
        self.server.runtime.block_on(request.send()).is_ok()
    }
}

//! Writing and deleting single objects.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ObjectLockMode, StorageClass};
use aws_smithy_types::base64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};

use super::answer::{Answer, classify};
use super::bucket::{Bucket, store_time};
use super::read::bare;
use crate::backend::{LockMode, PutOptions};

/// What a PUT says beside the bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Terms {
    pub(super) conditional: bool,
    pub(super) sha256: bool,
    pub(super) lock: Option<(ObjectLockMode, DateTime<Utc>)>,
    pub(super) storage_class: Option<StorageClass>,
}

/// The sums that a PUT tells of its body; a trial tells wrong ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    pub(super) md5: [u8; 16],
    /// What is signed; the SDK would sum the body again for every attempt.
    pub(super) sha256: [u8; 32],
    /// The SHA-256 sum that the store is asked to check and to keep.
    pub(super) checked_sha256: Option<[u8; 32]>,
}

impl Sums {
    pub(super) fn of(body: &[u8]) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, body).as_ref());
        Self {
            md5: Md5::digest(body).into(),
            sha256,
            checked_sha256: None,
        }
    }
}

/// Tells the signer a sum that is known already.
#[derive(Debug)]
struct SignedAs([u8; 32]);

impl Intercept for SignedAs {
    fn name(&self) -> &'static str {
        "SignedAs"
    }

    fn modify_before_signing(
        &self,
        _: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        state: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let sum = PayloadSigningOverride::Precomputed(hex::encode(self.0));
        state.interceptor_state().store_put(sum);
        Ok(())
    }
}

/// What the store answered to a write.
#[derive(Debug)]
pub(super) struct Stored {
    /// The sum of what was sent.
    pub(super) sent_md5: String,
    /// `None` if it is no MD5 sum (the object is encrypted by the store).
    pub(super) md5: Option<String>,
    pub(super) version: Option<String>,
}

pub(super) fn mode_of(mode: LockMode) -> ObjectLockMode {
    match mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    }
}

impl Bucket {
    /// What a caller asks, completed by what the place is configured to.
    pub(super) fn terms(&self, options: &PutOptions) -> Terms {
        let mode = options.lock_mode.unwrap_or(self.lock_mode);
        let class = options
            .storage_class
            .as_ref()
            .or(self.storage_class.as_ref());
        Terms {
            lock: options.retain_until.map(|until| (mode_of(mode), until)),
            storage_class: class.map(|class| StorageClass::from(class.as_str())),
            ..Terms::default()
        }
    }

    /// One PUT with all its attempts. After an attempt whose answer was lost the next one may be told
    /// that the object exists: the caller compares.
    pub(super) async fn put(
        self: Arc<Self>,
        key: String,
        body: Bytes,
        terms: Terms,
    ) -> Result<Stored, Answer> {
        let mut sums = Sums::of(&body);
        sums.checked_sha256 = terms.sha256.then_some(sums.sha256);
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        self.patience
            .retried(size, |_| {
                Arc::clone(&self).put_once(key.clone(), body.clone(), terms.clone(), sums)
            })
            .await
    }

    /// One attempt of a PUT.
    pub(super) async fn put_once(
        self: Arc<Self>,
        key: String,
        body: Bytes,
        terms: Terms,
        sums: Sums,
    ) -> Result<Stored, Answer> {
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let (mode, until) = terms.lock.unzip();
        let request = self
            .client
            .put_object()
            .bucket(&self.name)
            .key(key)
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .content_md5(base64::encode(sums.md5))
            .set_checksum_sha256(sums.checked_sha256.map(base64::encode))
            .set_if_none_match(terms.conditional.then(|| "*".to_owned()))
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until.map(store_time))
            .set_storage_class(terms.storage_class)
            .body(ByteStream::from(body))
            .customize()
            .interceptor(SignedAs(sums.sha256));
        let sent = self.patience.within(size, request.send()).await?;
        let answer = sent.map_err(classify)?;
        let etag = bare(answer.e_tag());
        let encrypted = answer.server_side_encryption().is_some();
        Ok(Stored {
            sent_md5: hex::encode(sums.md5),
            md5: (!encrypted).then_some(etag),
            version: answer.version_id().map(str::to_owned),
        })
    }

    /// Deletes an object, or one version of it; one that is absent already is fine.
    pub(super) async fn delete(
        self: Arc<Self>,
        key: String,
        version: Option<String>,
    ) -> Result<(), Answer> {
        let deleted = self
            .patience
            .retried(0, |_| {
                let request = self
                    .client
                    .delete_object()
                    .bucket(&self.name)
                    .key(&key)
                    .set_version_id(version.clone());
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    sent.map(|_| ()).map_err(classify)
                }
            })
            .await;
        match deleted {
            Err(Answer::Absent(_)) => Ok(()),
            other => other,
        }
    }
}

//! Writing and deleting single objects.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ObjectLockMode, StorageClass};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};

use super::answer::{Answer, base64, classify};
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

/// What the store answered to a write.
#[derive(Debug)]
pub(super) struct Stored {
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
        let md5 = base64(&Md5::digest(&body));
        let sha256 = terms
            .sha256
            .then(|| base64(digest(&SHA256, &body).as_ref()));
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        self.patience
            .retried(size, |_| {
                Arc::clone(&self).put_once(
                    key.clone(),
                    body.clone(),
                    terms.clone(),
                    md5.clone(),
                    sha256.clone(),
                )
            })
            .await
    }

    /// One attempt of a PUT, with the sums given: a trial gives wrong ones.
    pub(super) async fn put_once(
        self: Arc<Self>,
        key: String,
        body: Bytes,
        terms: Terms,
        md5: String,
        sha256: Option<String>,
    ) -> Result<Stored, Answer> {
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let (mode, until) = terms.lock.unzip();
        let request = self
            .client
            .put_object()
            .bucket(&self.name)
            .key(key)
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .content_md5(md5)
            .set_checksum_sha256(sha256)
            .set_if_none_match(terms.conditional.then(|| "*".to_owned()))
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until.map(store_time))
            .set_storage_class(terms.storage_class)
            .body(ByteStream::from(body));
        let sent = self.patience.within(size, request.send()).await?;
        let answer = sent.map_err(classify)?;
        let etag = bare(answer.e_tag());
        let encrypted = answer.server_side_encryption().is_some();
        Ok(Stored {
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

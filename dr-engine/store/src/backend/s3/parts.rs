//! Writing a large object in parts.
//!
//! Parts are sent a few at a time, each with its MD5 sum; what the store says of each is compared.
//! Nothing is there under the object's name until the parts are joined, which says `If-None-Match: *`.
//! Some stores ignore that there: then existence is asked just before, and what stands is compared
//! after, so that of two writers at least one is told the truth; the window between cannot be closed.
//! After a failure the parts are given up; a crash leaves them to [`super::S3Backend`]'s sweep.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::base64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};
use tokio::task::JoinSet;

use super::answer::{Answer, classify};
use super::bucket::{Bucket, store_time, time};
use super::read::bare;
use super::write::Terms;

/// Objects above this are written in parts. Packs are below: one request each.
pub(super) const WHOLE_MAX: usize = 64 << 20;
/// The size of a part but the last. S3 allows 5 MiB to 5 GiB and 10,000 parts: 156 GiB.
const PART: usize = 16 << 20;
const PART_MIN: usize = 5 << 20;
/// Parts on their way at once; they are views of the caller's bytes, not copies.
pub(super) const PARTS_AT_ONCE: usize = 4;

/// Where our objects are: with an empty prefix other people's uploads may be in the bucket.
const OURS: [&str; 7] = ["data", "index", "points", "chain", "wal", "records", "keys"];

/// An upload that was begun.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    key: String,
    id: String,
}

/// A part that the store has.
#[derive(Debug, Clone)]
pub(super) struct SentPart {
    number: i32,
    etag: String,
    md5: [u8; 16],
}

/// The ETag of an object in parts: the MD5 sum of the parts' sums, and their number.
pub(super) fn joined_etag(parts: &[SentPart]) -> String {
    let mut sum = Md5::new();
    for part in parts {
        sum.update(part.md5);
    }
    format!("{}-{}", hex::encode(sum.finalize()), parts.len())
}

impl Bucket {
    /// The size of a part.
    pub(super) fn part(&self) -> usize {
        self.whole_max.clamp(PART_MIN, PART)
    }

    pub(super) async fn begin_upload(
        self: Arc<Self>,
        key: String,
        terms: Terms,
    ) -> Result<Upload, Answer> {
        let (mode, until) = terms.lock.unzip();
        let answer = self
            .patience
            .retried(0, |_| {
                let request = self
                    .client
                    .create_multipart_upload()
                    .bucket(&self.name)
                    .key(&key)
                    .set_object_lock_mode(mode.clone())
                    .set_object_lock_retain_until_date(until.map(store_time))
                    .set_storage_class(terms.storage_class.clone());
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    sent.map_err(classify)
                }
            })
            .await?;
        let id = answer
            .upload_id
            .ok_or_else(|| Answer::Other("an upload was begun without an id".into()))?;
        Ok(Upload { key, id })
    }

    async fn send_part(
        self: Arc<Self>,
        upload: Upload,
        number: i32,
        body: Bytes,
    ) -> Result<SentPart, Answer> {
        let md5: [u8; 16] = Md5::digest(&body).into();
        let size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let answer = self
            .patience
            .retried(size, |_| {
                let request = self
                    .client
                    .upload_part()
                    .bucket(&self.name)
                    .key(&upload.key)
                    .upload_id(&upload.id)
                    .part_number(number)
                    .content_length(i64::try_from(size).unwrap_or(i64::MAX))
                    .content_md5(base64::encode(md5))
                    .body(ByteStream::from(body.clone()));
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(size, request.send()).await?;
                    sent.map_err(classify)
                }
            })
            .await?;
        let etag = bare(answer.e_tag());
        if etag.is_empty() {
            return Err(Answer::Other(format!("part {number} has no ETag").into()));
        }
        Ok(SentPart { number, etag, md5 })
    }

    /// Sends some parts at once; they come back in order.
    pub(super) async fn send_parts(
        self: Arc<Self>,
        upload: Upload,
        bodies: Vec<(i32, Bytes)>,
    ) -> Result<Vec<SentPart>, Answer> {
        let mut sending = JoinSet::new();
        for (number, body) in bodies {
            sending.spawn(Arc::clone(&self).send_part(upload.clone(), number, body));
        }
        let mut parts = Vec::new();
        while let Some(sent) = sending.join_next().await {
            let sent = sent.map_err(|_| Answer::Other("sending a part ended early".into()))?;
            parts.push(sent?);
        }
        parts.sort_by_key(|part| part.number);
        Ok(parts)
    }

    /// Joins the parts. [`Answer::Absent`]: the upload is not there any more, as after a joining whose
    /// answer was lost.
    pub(super) async fn join_parts(
        self: Arc<Self>,
        upload: Upload,
        parts: Vec<SentPart>,
        conditional: bool,
    ) -> Result<String, Answer> {
        let list: Vec<CompletedPart> = parts
            .iter()
            .map(|part| {
                CompletedPart::builder()
                    .part_number(part.number)
                    .e_tag(&part.etag)
                    .build()
            })
            .collect();
        let list = CompletedMultipartUpload::builder()
            .set_parts(Some(list))
            .build();
        // The store copies nothing, but some take their time over many parts.
        let size = u64::try_from(parts.len().saturating_mul(1 << 20)).unwrap_or(u64::MAX);
        let answer = self
            .patience
            .retried(size, |_| {
                let request = self
                    .client
                    .complete_multipart_upload()
                    .bucket(&self.name)
                    .key(&upload.key)
                    .upload_id(&upload.id)
                    .multipart_upload(list.clone())
                    .set_if_none_match(conditional.then(|| "*".to_owned()));
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(size, request.send()).await?;
                    sent.map_err(classify)
                }
            })
            .await?;
        Ok(bare(answer.e_tag()))
    }

    pub(super) async fn give_up(self: Arc<Self>, upload: Upload) -> Result<(), Answer> {
        let given_up = self
            .patience
            .retried(0, |_| {
                let request = self
                    .client
                    .abort_multipart_upload()
                    .bucket(&self.name)
                    .key(&upload.key)
                    .upload_id(&upload.id);
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    sent.map(|_| ()).map_err(classify)
                }
            })
            .await;
        match given_up {
            Err(Answer::Absent(_)) => Ok(()),
            other => other,
        }
    }

    /// The uploads below our prefix, with when each was begun by the store's clock, where it says so.
    pub(super) async fn uploads(self: Arc<Self>) -> Result<Vec<(Upload, DateTime<Utc>)>, Answer> {
        let mut found = Vec::new();
        let mut markers: (Option<String>, Option<String>) = (None, None);
        loop {
            let page = self
                .patience
                .retried(0, |_| {
                    let request = self
                        .client
                        .list_multipart_uploads()
                        .bucket(&self.name)
                        .prefix(&self.prefix)
                        .set_key_marker(markers.0.clone())
                        .set_upload_id_marker(markers.1.clone());
                    let this = Arc::clone(&self);
                    async move {
                        let sent = this.patience.within(0, request.send()).await?;
                        sent.map_err(classify)
                    }
                })
                .await?;
            for upload in page.uploads() {
                let begun = time(upload.initiated());
                let (Some(key), Some(id), Some(begun)) = (upload.key(), upload.upload_id(), begun)
                else {
                    continue;
                };
                let name = key.strip_prefix(&self.prefix).unwrap_or_default();
                let top = name.split('/').next();
                if top.is_some_and(|top| OURS.contains(&top)) {
                    let (key, id) = (key.to_owned(), id.to_owned());
                    found.push((Upload { key, id }, begun));
                }
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || next == markers {
                return Ok(found);
            }
            markers = next;
        }
    }
}

//! Reading: whole objects, parts, listings.
//!
//! An answer is believed only when it is whole: as long as its head announced, and, for a part, the
//! part that was asked for. Everything else is asked for again.

use std::sync::Arc;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use chrono::{DateTime, Utc};
use md5::{Digest, Md5};

use super::answer::{Answer, classify};
use super::bucket::{Bucket, time};
use super::patience::Attempt;
use crate::backend::ObjectEntry;

/// Up to this size what is read is compared with the MD5 sum that the store names. Larger things are
/// packs, whose seals are about to be checked anyway, and the sum would take longer than the seals.
const COMPARED_MAX: usize = 1 << 20;

/// What the store says of an object without sending it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) size: u64,
    pub(super) etag: String,
    pub(super) modified: DateTime<Utc>,
}

/// A part of an object: where it begins, how long it is at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) length: u64,
}

fn size(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The text of an ETag without its quotes.
pub(super) fn bare(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

/// Whether an ETag has the form of an MD5 sum; those of encrypted objects may have it and be none.
fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Bucket {
    /// Receives a body to its end, in the time its announced size may take.
    async fn receive(&self, answer: &mut GetObjectOutput) -> Result<Vec<u8>, Answer> {
        let announced = answer.content_length.and_then(|n| u64::try_from(n).ok());
        let receiving = async {
            let capacity = announced.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let mut body = Vec::with_capacity(capacity);
            while let Some(piece) = answer.body.next().await {
                let piece = piece.map_err(|error| {
                    Answer::Unreachable(format!("the answer broke off: {error}").into())
                })?;
                body.extend_from_slice(&piece);
            }
            Ok(body)
        };
        let body = self
            .patience
            .within(announced.unwrap_or(0), receiving)
            .await??;
        match announced {
            Some(announced) if announced != size(body.len()) => Err(Answer::Unreachable(
                format!("{} of {announced} announced bytes came", body.len()).into(),
            )),
            _ => Ok(body),
        }
    }

    /// The whole object, or a version of it.
    pub(super) async fn get(
        self: Arc<Self>,
        key: String,
        version: Option<String>,
        etag_is_md5: bool,
    ) -> Result<Vec<u8>, Answer> {
        self.patience
            .retried(0, |attempt: Attempt| {
                let request = self
                    .client
                    .get_object()
                    .bucket(&self.name)
                    .key(&key)
                    .set_version_id(version.clone());
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    let mut answer = sent.map_err(classify)?;
                    let body = this.receive(&mut answer).await?;
                    let etag = bare(answer.e_tag());
                    let encrypted = answer.server_side_encryption().is_some();
                    if etag_is_md5
                        && !encrypted
                        && is_md5(&etag)
                        && body.len() <= COMPARED_MAX
                        && !etag.eq_ignore_ascii_case(&hex::encode(Md5::digest(&body)))
                    {
                        if !attempt.is_last {
                            return Err(Answer::Garbled("its MD5 sum is not its ETag".into()));
                        }
                        // Something between us and the store makes ETags of its own. Every object
                        // carries a seal or a checksum: that decides.
                        tracing::warn!(place = this.place(""), "objects do not fit their ETags");
                    }
                    Ok(body)
                }
            })
            .await
    }

    /// A part of an object, shorter where the object ends.
    pub(super) async fn get_part(
        self: Arc<Self>,
        key: String,
        part: Part,
    ) -> Result<Vec<u8>, Answer> {
        let last = part.offset.saturating_add(part.length.saturating_sub(1));
        let range = format!("bytes={}-{last}", part.offset);
        self.patience
            .retried(part.length, |_| {
                let request = self
                    .client
                    .get_object()
                    .bucket(&self.name)
                    .key(&key)
                    .range(&range);
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    let mut answer = sent.map_err(classify)?;
                    let told = answer.content_range.take();
                    let body = this.receive(&mut answer).await?;
                    right_part(part, told.as_deref(), body)
                }
            })
            .await
    }

    pub(super) async fn head(self: Arc<Self>, key: String) -> Result<Head, Answer> {
        self.patience
            .retried(0, |_| {
                let request = self.client.head_object().bucket(&self.name).key(&key);
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    let answer = sent.map_err(classify)?;
                    Ok(Head {
                        size: answer
                            .content_length()
                            .and_then(|n| u64::try_from(n).ok())
                            .unwrap_or(0),
                        etag: bare(answer.e_tag()),
                        modified: time(answer.last_modified()).unwrap_or_default(),
                    })
                }
            })
            .await
    }

    pub(super) async fn list(self: Arc<Self>, prefix: String) -> Result<Vec<ObjectEntry>, Answer> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self
                .patience
                .retried(0, |_| {
                    let request = self
                        .client
                        .list_objects_v2()
                        .bucket(&self.name)
                        .prefix(&prefix)
                        .set_continuation_token(token.clone());
                    let this = Arc::clone(&self);
                    async move {
                        let sent = this.patience.within(0, request.send()).await?;
                        sent.map_err(classify)
                    }
                })
                .await?;
            for object in page.contents() {
                if let Some(name) = object.key().and_then(|key| key.strip_prefix(&self.prefix)) {
                    found.push(ObjectEntry {
                        name: name.to_owned(),
                        size: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0),
                        modified: time(object.last_modified()).unwrap_or_default(),
                    });
                }
            }
            let next = page.next_continuation_token;
            if page.is_truncated != Some(true) {
                break;
            }
            // A listing that says it goes on and not where would be short or endless.
            if next.is_none() || next == token {
                return Err(Answer::Other(
                    "a listing broke off without saying where".into(),
                ));
            }
            token = next;
        }
        found.sort();
        Ok(found)
    }
}

/// Makes sure that the part received is the part asked for. A server (or a cache before it) that does
/// not know ranges sends the whole object and does not tell of a range.
fn right_part(part: Part, told: Option<&str>, body: Vec<u8>) -> Result<Vec<u8>, Answer> {
    let Some(told) = told else {
        let from = usize::try_from(part.offset)
            .unwrap_or(usize::MAX)
            .min(body.len());
        let length = usize::try_from(part.length).unwrap_or(usize::MAX);
        let to = from.saturating_add(length).min(body.len());
        return Ok(body.get(from..to).unwrap_or_default().to_vec());
    };
    let garbled = || Answer::Garbled(format!("asked for {part:?}, got `{told}`").into());
    let (range, total) = told
        .strip_prefix("bytes ")
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(garbled)?;
    let first: u64 = range
        .split_once('-')
        .and_then(|(first, _)| first.parse().ok())
        .ok_or_else(garbled)?;
    // `*` is a total that the server does not know.
    let whole: Option<u64> = total.parse().ok();
    let right = whole.map_or(size(body.len()), |whole| {
        part.length.min(whole.saturating_sub(part.offset))
    });
    if first == part.offset && right == size(body.len()) && right <= part.length {
        Ok(body)
    } else {
        Err(garbled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, length: u64) -> Part {
        Part { offset, length }
    }

    #[test]
    fn only_the_part_asked_for_is_taken() {
        let took = |p, told, body: &[u8]| right_part(p, told, body.to_vec()).ok();
        assert_eq!(
            took(part(2, 3), Some("bytes 2-4/10"), b"cde"),
            Some(b"cde".to_vec())
        );
        assert_eq!(
            took(part(8, 9), Some("bytes 8-9/10"), b"ij"),
            Some(b"ij".to_vec())
        );
        assert_eq!(
            took(part(2, 3), Some("bytes 2-4/*"), b"cde"),
            Some(b"cde".to_vec())
        );
        assert_eq!(took(part(2, 3), Some("bytes 2-3/10"), b"cd"), None);
        assert_eq!(took(part(2, 3), Some("bytes 0-2/10"), b"abc"), None);
        assert_eq!(took(part(2, 3), Some("nonsense"), b"abc"), None);
        assert_eq!(took(part(2, 3), None, b"abcdefghij"), Some(b"cde".to_vec()));
        assert_eq!(took(part(20, 3), None, b"abcdefghij"), Some(Vec::new()));
    }
}

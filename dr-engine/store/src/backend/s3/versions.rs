//! Versions and locks.
//!
//! A lock protects a version, not a name: a plain deletion of a locked object succeeds and hides it
//! behind a delete marker. So check and repair look at versions, and what must be gone for good is
//! deleted version by version.

use std::sync::Arc;

use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};

use super::answer::{Answer, classify};
use super::bucket::{Bucket, store_time, time};
use crate::backend::{Lock, LockMode, VersionEntry};

fn mode_of(text: &str) -> LockMode {
    if text.eq_ignore_ascii_case(ObjectLockMode::Compliance.as_str()) {
        LockMode::Compliance
    } else {
        LockMode::Governance
    }
}

impl Bucket {
    pub(super) async fn versions(
        self: Arc<Self>,
        prefix: String,
    ) -> Result<Vec<VersionEntry>, Answer> {
        let mut found = Vec::new();
        let mut markers: (Option<String>, Option<String>) = (None, None);
        loop {
            let page = self
                .patience
                .retried(0, |_| {
                    let request = self
                        .client
                        .list_object_versions()
                        .bucket(&self.name)
                        .prefix(&prefix)
                        .set_key_marker(markers.0.clone())
                        .set_version_id_marker(markers.1.clone());
                    let this = Arc::clone(&self);
                    async move {
                        let sent = this.patience.within(0, request.send()).await?;
                        sent.map_err(classify)
                    }
                })
                .await?;
            let name = |key: Option<&str>| {
                key.and_then(|key| key.strip_prefix(&self.prefix))
                    .map(str::to_owned)
            };
            for version in page.versions() {
                if let Some(name) = name(version.key()) {
                    found.push(VersionEntry {
                        name,
                        version: version.version_id().unwrap_or_default().to_owned(),
                        is_latest: version.is_latest() == Some(true),
                        is_delete_marker: false,
                        size: u64::try_from(version.size().unwrap_or(0)).unwrap_or(0),
                        modified: time(version.last_modified()).unwrap_or_default(),
                    });
                }
            }
            for marker in page.delete_markers() {
                if let Some(name) = name(marker.key()) {
                    found.push(VersionEntry {
                        name,
                        version: marker.version_id().unwrap_or_default().to_owned(),
                        is_latest: marker.is_latest() == Some(true),
                        is_delete_marker: true,
                        size: 0,
                        modified: time(marker.last_modified()).unwrap_or_default(),
                    });
                }
            }
            let next = (page.next_key_marker, page.next_version_id_marker);
            if page.is_truncated != Some(true) {
                break;
            }
            if next == markers || next.0.is_none() {
                return Err(Answer::Other(
                    "a listing broke off without saying where".into(),
                ));
            }
            markers = next;
        }
        // Times are whole seconds: the newest is known by being the latest, the rest by time.
        found.sort_by(|a, b| {
            let order =
                |entry: &VersionEntry| (!entry.is_latest, std::cmp::Reverse(entry.modified));
            a.name.cmp(&b.name).then_with(|| order(a).cmp(&order(b)))
        });
        Ok(found)
    }

    /// The lock on an object or on one version of it.
    pub(super) async fn lock_of(
        self: Arc<Self>,
        key: String,
        version: Option<String>,
    ) -> Result<Option<Lock>, Answer> {
        let answer = self
            .patience
            .retried(0, |_| {
                let request = self
                    .client
                    .get_object_retention()
                    .bucket(&self.name)
                    .key(&key)
                    .set_version_id(version.clone());
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    sent.map_err(classify)
                }
            })
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            // No such object, no lock on it, a marker, a bucket or a store that knows no locks.
            Err(Answer::Absent(_) | Answer::Unlocked(_) | Answer::NotImplemented(_)) => {
                return Ok(None);
            }
            Err(answer) => return Err(answer),
        };
        Ok(answer.retention().and_then(|retention| {
            Some(Lock {
                mode: mode_of(retention.mode()?.as_str()),
                until: time(retention.retain_until_date())?,
            })
        }))
    }

    pub(super) async fn set_lock(self: Arc<Self>, key: String, lock: Lock) -> Result<(), Answer> {
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(store_time(lock.until))
            .build();
        self.patience
            .retried(0, |_| {
                let request = self
                    .client
                    .put_object_retention()
                    .bucket(&self.name)
                    .key(&key)
                    .retention(retention.clone());
                let this = Arc::clone(&self);
                async move {
                    let sent = this.patience.within(0, request.send()).await?;
                    sent.map(|_| ()).map_err(classify)
                }
            })
            .await
    }
}

//! What only S3 has and a trial from outside cannot see: checksums, ETags, objects in parts.

use std::sync::Arc;

use aws_sdk_s3::types::ObjectLockMode;
use bytes::Bytes;

use super::S3Backend;
use super::answer::Answer;
use super::write::{Sums, Terms};
use crate::backend::{
    Backend, BackendError, Capabilities, PutOptions, TRIAL, TRIAL_LOCK, try_capabilities,
};

/// The content of a trial object.
const BODY: &[u8] = b"a trial object of dr, which may be deleted";

impl S3Backend {
    /// Tries everything.
    pub(super) fn tried(&self) -> Result<Capabilities, BackendError> {
        let tried = try_capabilities(self)?;
        let etag_is_md5 = self.etag_is_md5()?;
        let right = Sums::of(BODY);
        let wrong_md5 = Sums {
            md5: [0; 16],
            ..right
        };
        let wrong_sha256 = Sums {
            checked_sha256: Some([0; 32]),
            ..right
        };
        Ok(Capabilities {
            put_if_absent_multipart: tried.put_if_absent && self.parts_are_conditional()?,
            checksum_md5: self.is_refused_for_sums(wrong_md5)?,
            checksum_sha256: self.sha256_is_taken()? && self.is_refused_for_sums(wrong_sha256)?,
            etag_is_md5,
            object_lock: tried.object_lock && self.locks_are_enforced()?,
            ..tried
        })
    }

    fn trial(&self) -> (String, String) {
        let name = format!("{TRIAL}{}", dr_model::random::hex(8));
        let key = self.bucket.key(&name);
        (name, key)
    }

    fn etag_is_md5(&self) -> Result<bool, BackendError> {
        let (name, key) = self.trial();
        let putting = Arc::clone(&self.bucket).put(key, Bytes::from_static(BODY), Terms::default());
        let stored = self
            .run("write", &name, putting)?
            .map_err(|answer| answer.into_error("write", self.place(&name)))?;
        self.discard(&name, stored.version)?;
        Ok(stored.md5.is_some_and(|md5| md5 == stored.sent_md5))
    }

    /// Whether a right SHA-256 sum is taken: old servers may refuse the header.
    fn sha256_is_taken(&self) -> Result<bool, BackendError> {
        let (name, key) = self.trial();
        let terms = Terms {
            sha256: true,
            ..Terms::default()
        };
        let putting = Arc::clone(&self.bucket).put(key, Bytes::from_static(BODY), terms);
        match self.run("write", &name, putting)? {
            Ok(stored) => self.discard(&name, stored.version).map(|()| true),
            Err(answer @ Answer::Unreachable(_)) => {
                Err(answer.into_error("write", self.place(&name)))
            }
            Err(_) => Ok(false),
        }
    }

    /// Whether a body with these sums, one of which is wrong, is refused and not stored.
    fn is_refused_for_sums(&self, sums: Sums) -> Result<bool, BackendError> {
        let (name, key) = self.trial();
        let patience = self.bucket.patience;
        let bucket = Arc::clone(&self.bucket);
        let work = async move {
            patience
                .retried(0, |_| {
                    let once = Arc::clone(&bucket).put_once(
                        key.clone(),
                        Bytes::from_static(BODY),
                        Terms::default(),
                        sums,
                    );
                    async move {
                        match once.await {
                            Ok(stored) => Ok(Some(stored)),
                            Err(answer @ Answer::Unreachable(_)) => Err(answer),
                            Err(_) => Ok(None),
                        }
                    }
                })
                .await
        };
        let stored = self
            .run("write", &name, work)?
            .map_err(|answer| answer.into_error("write", self.place(&name)))?;
        match stored {
            Some(stored) => self.discard(&name, stored.version).map(|()| false),
            // A refusal that leaves the wrong content in place is none.
            None => {
                let absent = self.get(&name)?.is_none();
                if !absent {
                    self.delete_all_versions(&name)?;
                }
                Ok(absent)
            }
        }
    }

    /// Whether joining parts onto an existing object is refused.
    fn parts_are_conditional(&self) -> Result<bool, BackendError> {
        let (name, _) = self.trial();
        self.put_new(&name, b"first")?;
        let joined = self.put_parts(
            &name,
            &Bytes::from_static(BODY),
            &PutOptions::default(),
            true,
        )?;
        let kept = self.get(&name)?.is_some_and(|body| body == b"first");
        self.delete_all_versions(&name)?;
        match joined {
            Ok(_) => Ok(false),
            Err((answer @ Answer::Unreachable(_), _)) => {
                Err(answer.into_error("write", self.place(&name)))
            }
            Err((answer, _)) => Ok(kept && matches!(answer, Answer::Exists(_))),
        }
    }

    /// Whether the store itself refuses to delete a locked version: everywhere else we ask for the lock
    /// first and never get to try.
    fn locks_are_enforced(&self) -> Result<bool, BackendError> {
        let (name, key) = self.trial();
        let until = self.now()? + TRIAL_LOCK;
        let terms = Terms {
            lock: Some((ObjectLockMode::Governance, until)),
            ..Terms::default()
        };
        let body = Bytes::from_static(BODY);
        let putting = Arc::clone(&self.bucket).put(key.clone(), body, terms);
        let stored = self
            .run("write", &name, putting)?
            .map_err(|answer| answer.into_error("write", self.place(&name)))?;
        let deleting = Arc::clone(&self.bucket).delete(key.clone(), stored.version.clone());
        let refused = match self.run("delete", &name, deleting)? {
            Ok(()) => return Ok(false),
            Err(answer @ Answer::Unreachable(_)) => {
                return Err(answer.into_error("delete", self.place(&name)));
            }
            Err(_) => stored.version,
        };
        let reading = Arc::clone(&self.bucket).get(key.clone(), refused, false);
        let there = self.found(&name, reading)?.is_some_and(|body| body == BODY);
        // Hidden until the next trial takes it.
        let hiding = Arc::clone(&self.bucket).delete(key, None);
        self.run("delete", &name, hiding)?
            .map_err(|answer| answer.into_error("delete", self.place(&name)))?;
        Ok(there)
    }
}

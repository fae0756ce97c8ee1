//! Objects in a bucket of an S3-compatible store.
//!
//! Every PUT says `If-None-Match: *`, so that the store itself refuses to overwrite, and carries its
//! MD5 sum (and its SHA-256 sum where a trial showed that the store checks it), so that a body that
//! changed on the way is refused. Stores fail open: some accept a header and ignore it. So `prepare`
//! and `probe_capabilities` try each, and a store that overwrites gets no repository.
//!
//! An answer may be lost. A PUT that timed out may have succeeded, and its repetition is then refused
//! with 412: what is stored is read and compared before "exists" is said. 409 is the store asking for
//! another try. A body that breaks off, or is shorter than announced, is asked for again. What the
//! answer to a PUT says of the stored content (its ETag) is compared where a trial showed that it is
//! the MD5 sum.
//!
//! A crash leaves nothing under an object's name before it is whole; parts of a large object stay with
//! the store until [`Backend::sweep`].
//!
//! The SDK is asynchronous and everything here blocks: the runtime lives in a thread of its own, to
//! which calls send their work, so that they may come from inside another runtime's blocking thread.
//! Connections are kept and opened as needed, one for each request under way, without a limit: the
//! number of calling threads is the limit.

mod answer;
mod bucket;
mod parts;
mod patience;
mod read;
mod trial;
mod versions;
mod write;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::config::Credentials;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use dr_model::{Clock, SystemClock};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{
    Backend, BackendError, Capabilities, Lock, LockMode, ObjectEntry, PutOptions, PutOutcome,
    TRIAL, VersionEntry, check_name,
};
use answer::Answer;
use bucket::{Bucket, blocking, client, runtime_thread};
use parts::{PARTS_AT_ONCE, SentPart, Upload, WHOLE_MAX, joined_etag};
pub use patience::Patience;
use read::Part;
use write::Terms;

/// Where an S3-compatible store is, and how it is used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3Location {
    /// The bucket; it must exist.
    pub bucket: String,
    /// Put before every object name; may be empty.
    pub prefix: String,
    /// The region.
    pub region: String,
    /// Another endpoint than AWS's own.
    pub endpoint: Option<String>,
    /// Whether the bucket is named in the path and not in the host name. When left out: with an
    /// endpoint of one's own, yes.
    pub path_style: Option<bool>,
    /// The storage class of objects that are stored without saying one; the bucket's when left out.
    pub storage_class: Option<String>,
    /// The mode of locks that are asked for without saying one.
    pub lock_mode: LockMode,
    /// Objects of more bytes than this are written in parts; 64 MiB when left out.
    pub parts_above: Option<usize>,
}

/// Objects in a bucket.
#[derive(Debug)]
pub struct S3Backend {
    bucket: Arc<Bucket>,
    runtime: Handle,
    /// `None` until something was tried or told: then everything is asked for and little believed.
    capabilities: Mutex<Option<Capabilities>>,
    /// Dropped with the backend; its thread then ends.
    _alive: oneshot::Sender<()>,
}

impl S3Backend {
    /// Prepares a client with credentials from the usual AWS chain. Nothing is sent yet.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn connect(location: &S3Location) -> Result<Self, BackendError> {
        Self::start(location, None, Patience::default())
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
        Self::connect_patiently(location, access_key, secret_key, Patience::default())
    }

    /// The same with a patience of the caller's.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn connect_patiently(
        location: &S3Location,
        access_key: &str,
        secret_key: &str,
        patience: Patience,
    ) -> Result<Self, BackendError> {
        let credentials = Credentials::new(access_key, secret_key, None, None, "given");
        Self::start(location, Some(credentials), patience)
    }

    fn start(
        location: &S3Location,
        credentials: Option<Credentials>,
        patience: Patience,
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
        let wanted = location.clone();
        let client = blocking(&runtime, client(wanted, credentials, patience))
            .ok_or_else(|| failed(std::io::Error::other("its thread ended")))?;
        Ok(Self {
            bucket: Arc::new(Bucket {
                client,
                name: location.bucket.clone(),
                prefix,
                patience,
                lock_mode: location.lock_mode,
                storage_class: location.storage_class.clone(),
                whole_max: location.parts_above.unwrap_or(WHOLE_MAX),
            }),
            runtime,
            capabilities: Mutex::new(None),
            _alive: alive,
        })
    }

    fn known(&self) -> Option<Capabilities> {
        *self
            .capabilities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, capabilities: Capabilities) {
        *self
            .capabilities
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(capabilities);
    }

    fn key(&self, name: &str) -> Result<String, BackendError> {
        check_name(name)?;
        Ok(self.bucket.key(name))
    }

    fn place(&self, name: &str) -> String {
        self.bucket.place(name)
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

    /// [`Self::run`] where no answer but success means anything particular.
    fn done<T: Send + 'static>(
        &self,
        action: &'static str,
        name: &str,
        work: impl Future<Output = Result<T, Answer>> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.run(action, name, work)?
            .map_err(|answer| answer.into_error(action, self.place(name)))
    }

    /// The same where absence is an answer.
    fn found<T: Send + 'static>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, Answer>> + Send + 'static,
    ) -> Result<Option<T>, BackendError> {
        match self.run("read", name, work)? {
            Ok(value) => Ok(Some(value)),
            Err(Answer::Absent(_)) => Ok(None),
            Err(answer) => Err(answer.into_error("read", self.place(name))),
        }
    }

    fn head(&self, name: &str) -> Result<Option<read::Head>, BackendError> {
        self.found(name, Arc::clone(&self.bucket).head(self.key(name)?))
    }

    /// Tells a writer's own success, whose answer was lost, from another's object.
    fn compare(&self, name: &str, body: &[u8]) -> Result<PutOutcome, BackendError> {
        let gone = || {
            Answer::Other("the object was refused as existing and is not there".into())
                .into_error("write", self.place(name))
        };
        let head = self.head(name)?.ok_or_else(gone)?;
        if usize::try_from(head.size) != Ok(body.len()) {
            return Ok(PutOutcome::Exists);
        }
        let stored = self.get(name)?.ok_or_else(gone)?;
        Ok(if stored == body {
            PutOutcome::Stored
        } else {
            PutOutcome::Exists
        })
    }

    fn put_whole(
        &self,
        name: &str,
        body: &Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        let known = self.known().unwrap_or_default();
        let terms = Terms {
            conditional: true,
            sha256: known.checksum_sha256,
            ..self.bucket.terms(options)
        };
        let putting = Arc::clone(&self.bucket).put(self.key(name)?, body.clone(), terms);
        let stored = match self.run("write", name, putting)? {
            Ok(stored) => stored,
            Err(Answer::Exists(_)) => return self.compare(name, body),
            Err(answer) => return Err(answer.into_error("write", self.place(name))),
        };
        let Some(md5) = stored.md5.filter(|_| known.etag_is_md5) else {
            return Ok(PutOutcome::Stored);
        };
        if md5.eq_ignore_ascii_case(&stored.sent_md5) {
            return Ok(PutOutcome::Stored);
        }
        // Either the answer or what was stored is wrong.
        match self.compare(name, body)? {
            PutOutcome::Stored => Ok(PutOutcome::Stored),
            PutOutcome::Exists => Err(Answer::Garbled(
                format!("the store holds other content than was sent: its MD5 sum is {md5}").into(),
            )
            .into_error("write", self.place(name))),
        }
    }

    /// Sends the parts and joins them. The ETag is what the object's must be, if it was got so far.
    /// Nothing is left behind after a failure, if the store still answers.
    fn put_parts(
        &self,
        name: &str,
        body: &Bytes,
        options: &PutOptions,
        conditional: bool,
    ) -> Result<Result<String, (Answer, Option<String>)>, BackendError> {
        let terms = self.bucket.terms(options);
        let begun = Arc::clone(&self.bucket).begin_upload(self.key(name)?, terms);
        let upload = match self.run("write", name, begun)? {
            Ok(upload) => upload,
            Err(answer) => return Ok(Err((answer, None))),
        };
        let failed = match self.send_parts(name, &upload, body)? {
            Ok(parts) => {
                let expected = joined_etag(&parts);
                let joining =
                    Arc::clone(&self.bucket).join_parts(upload.clone(), parts, conditional);
                match self.run("write", name, joining)? {
                    Ok(_) => return Ok(Ok(expected)),
                    Err(answer) => (answer, Some(expected)),
                }
            }
            Err(answer) => (answer, None),
        };
        let giving_up = Arc::clone(&self.bucket).give_up(upload);
        if let Err(answer) = self.run("write", name, giving_up)? {
            // After a joining whose answer was lost there is nothing to give up.
            let (place, reason) = (self.place(name), answer.text());
            tracing::debug!(place, reason, "cannot give up an upload; it is swept later");
        }
        Ok(Err(failed))
    }

    fn send_parts(
        &self,
        name: &str,
        upload: &Upload,
        body: &Bytes,
    ) -> Result<Result<Vec<SentPart>, Answer>, BackendError> {
        let numbered: Vec<(i32, Bytes)> = (1..)
            .zip(body.chunks(self.bucket.part()))
            .map(|(number, part)| (number, body.slice_ref(part)))
            .collect();
        let mut parts = Vec::new();
        for some in numbered.chunks(PARTS_AT_ONCE) {
            let sending = Arc::clone(&self.bucket).send_parts(upload.clone(), some.to_vec());
            match self.run("write", name, sending)? {
                Ok(sent) => parts.extend(sent),
                Err(answer) => return Ok(Err(answer)),
            }
        }
        Ok(Ok(parts))
    }

    fn put_large(
        &self,
        name: &str,
        body: &Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        let known = self.known();
        let conditional = known.is_some_and(|known| known.put_if_absent_multipart);
        // Whoever joins parts where the store does not look overwrites: asked first, also to spare
        // sending it all in vain.
        if self.head(name)?.is_some() {
            return self.compare(name, body);
        }
        let (expected, failed) = match self.put_parts(name, body, options, conditional)? {
            Ok(expected) => (Some(expected), None),
            Err((answer, expected)) => (expected, Some(answer)),
        };
        // What stands is what counts: an answer may be lost, and where the store does not look another
        // writer's object may stand now.
        if let Some(expected) = expected
            && let Some(head) = self.head(name)?
            && head.etag.eq_ignore_ascii_case(&expected)
        {
            return Ok(PutOutcome::Stored);
        }
        match failed {
            None | Some(Answer::Exists(_)) => self.compare(name, body),
            Some(answer) => Err(answer.into_error("write", self.place(name))),
        }
    }

    /// Deletes a trial object for good. A bucket that locks everything keeps it for a while.
    fn discard(&self, name: &str, version: Option<String>) -> Result<(), BackendError> {
        let deleting = Arc::clone(&self.bucket).delete(self.key(name)?, version);
        match self.run("delete", name, deleting)? {
            Ok(()) => Ok(()),
            Err(Answer::Refused(_)) => {
                let hiding = Arc::clone(&self.bucket).delete(self.key(name)?, None);
                self.done("delete", name, hiding)
            }
            Err(answer) => Err(answer.into_error("delete", self.place(name))),
        }
    }

    /// The lock that still holds, if there is one.
    fn held(&self, name: &str, version: Option<String>) -> Result<Option<Lock>, BackendError> {
        let asking = Arc::clone(&self.bucket).lock_of(self.key(name)?, version);
        let lock = self.done("read the lock of", name, asking)?;
        Ok(lock.filter(|lock| lock.until > SystemClock.now()))
    }

    fn locked(&self, name: &str, lock: Lock) -> BackendError {
        BackendError::Locked {
            action: "delete",
            place: self.place(name),
            until: Some(lock.until),
        }
    }
}

impl Backend for S3Backend {
    fn describe(&self) -> String {
        self.place("").trim_end_matches('/').to_owned()
    }

    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        check_name(name)?;
        let no_locks = self.known().is_some_and(|known| !known.object_lock);
        if options.retain_until.is_some() && no_locks {
            return Err(self.not_supported("lock an object of"));
        }
        if body.len() > self.bucket.whole_max {
            self.put_large(name, &body, options)
        } else {
            self.put_whole(name, &body, options)
        }
    }

    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        let name = format!("{TRIAL}{}", dr_model::random::hex(8));
        let body = Bytes::from_static(b"clock");
        let putting = Arc::clone(&self.bucket).put(self.key(&name)?, body, Terms::default());
        let stored = self.done("write", &name, putting)?;
        // From a listing, as that is what it will be compared with: some stores tell whole seconds
        // elsewhere.
        let listed = self.list(&name)?.first().map(|entry| entry.modified);
        let told = match listed {
            Some(at) => Some(at),
            None => self.head(&name)?.map(|head| head.modified),
        };
        self.discard(&name, stored.version)?;
        told.ok_or_else(|| BackendError::Store {
            action: "read the clock of",
            place: self.describe(),
            source: "an object just stored is not there".into(),
        })
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let compared = self.known().is_some_and(|known| known.etag_is_md5);
        let reading = Arc::clone(&self.bucket).get(self.key(name)?, None, compared);
        self.found(name, reading)
    }

    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let key = self.key(name)?;
        if length == 0 {
            return Ok(Some(Vec::new()));
        }
        let part = Part { offset, length };
        match self.run("read", name, Arc::clone(&self.bucket).get_part(key, part))? {
            Ok(body) => Ok(Some(body)),
            Err(Answer::Absent(_)) => Ok(None),
            Err(Answer::BehindTheEnd(_)) => Ok(Some(Vec::new())),
            Err(answer) => Err(answer.into_error("read", self.place(name))),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        let listing = Arc::clone(&self.bucket).list(self.bucket.key(prefix));
        self.done("list", prefix, listing)
    }

    /// Where locks are known to be honoured, one that holds is asked for first: the deletion itself
    /// would hide the object all the same.
    fn delete(&self, name: &str) -> Result<(), BackendError> {
        let locks = self.known().is_some_and(|known| known.object_lock);
        if locks && let Some(lock) = self.held(name, None)? {
            return Err(self.locked(name, lock));
        }
        let deleting = Arc::clone(&self.bucket).delete(self.key(name)?, None);
        match self.run("delete", name, deleting)? {
            Ok(()) => Ok(()),
            Err(answer @ Answer::Refused(_)) => match self.held(name, None) {
                Ok(Some(lock)) => Err(self.locked(name, lock)),
                _ => Err(answer.into_error("delete", self.place(name))),
            },
            Err(answer) => Err(answer.into_error("delete", self.place(name))),
        }
    }

    /// Asks the bucket whether it is there and open to us, then tries what it does.
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        self.list(TRIAL)?;
        let tried = self.tried()?;
        self.remember(tried);
        Ok(tried)
    }

    fn is_far(&self) -> bool {
        true
    }

    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.tried()
    }

    fn assume(&self, capabilities: Capabilities) {
        self.remember(capabilities);
    }

    fn sweep(&self, age: Duration) -> Result<u64, BackendError> {
        let listing = Arc::clone(&self.bucket).uploads();
        let uploads = match self.run("list the uploads of", "", listing)? {
            Err(Answer::NotImplemented(_)) => return Ok(0),
            Ok(uploads) => uploads,
            Err(answer) => {
                return Err(answer.into_error("list the uploads of", self.place("")));
            }
        };
        // Seldom any; the store's clock costs three requests.
        if uploads.is_empty() {
            return Ok(0);
        }
        let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
        let (now, mut removed) = (self.now()?, 0);
        for (upload, begun) in uploads {
            if now.signed_duration_since(begun) >= age {
                self.done(
                    "give up an upload to",
                    "",
                    Arc::clone(&self.bucket).give_up(upload),
                )?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn versions(&self, prefix: &str) -> Result<Vec<VersionEntry>, BackendError> {
        let listing = Arc::clone(&self.bucket).versions(self.bucket.key(prefix));
        match self.run("list the versions of", prefix, listing)? {
            Ok(found) => Ok(found),
            Err(Answer::NotImplemented(_)) => Err(self.not_supported("list the versions of")),
            Err(answer) => Err(answer.into_error("list the versions of", self.place(prefix))),
        }
    }

    fn get_version(&self, name: &str, version: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let version = Some(version.to_owned());
        let reading = Arc::clone(&self.bucket).get(self.key(name)?, version, false);
        self.found(name, reading)
    }

    fn undelete(&self, name: &str) -> Result<bool, BackendError> {
        let key = self.key(name)?;
        let of_it = |entry: &VersionEntry| entry.name == name;
        let versions = self.versions(name)?;
        // Markers may lie on each other; those below the newest content hide nothing.
        for marker in versions
            .iter()
            .filter(|entry| of_it(entry))
            .take_while(|entry| entry.is_delete_marker)
        {
            let version = Some(marker.version.clone());
            self.done(
                "undelete",
                name,
                Arc::clone(&self.bucket).delete(key.clone(), version),
            )?;
        }
        Ok(self.head(name)?.is_some())
    }

    fn delete_all_versions(&self, name: &str) -> Result<u64, BackendError> {
        let key = self.key(name)?;
        let versions = match self.versions(name) {
            Ok(found) => found,
            Err(BackendError::NotSupported { .. }) => return self.delete(name).map(|()| 1),
            Err(error) => return Err(error),
        };
        let of_it: Vec<_> = versions.iter().filter(|entry| entry.name == name).collect();
        for entry in of_it.iter().filter(|entry| !entry.is_delete_marker) {
            if let Some(lock) = self.held(name, Some(entry.version.clone()))? {
                return Err(self.locked(name, lock));
            }
        }
        let mut removed = 0;
        // The oldest first: a crash in between leaves the newest, or what hides it, in place.
        for entry in of_it.iter().rev() {
            let version = Some(entry.version.clone()).filter(|version| !version.is_empty());
            let deleting = Arc::clone(&self.bucket).delete(key.clone(), version.clone());
            match self.run("delete a version of", name, deleting)? {
                Ok(()) => removed += 1,
                Err(answer @ Answer::Refused(_)) => {
                    return Err(match self.held(name, version) {
                        Ok(Some(lock)) => self.locked(name, lock),
                        _ => answer.into_error("delete a version of", self.place(name)),
                    });
                }
                Err(answer) => {
                    return Err(answer.into_error("delete a version of", self.place(name)));
                }
            }
        }
        Ok(removed)
    }

    fn lock_of(&self, name: &str) -> Result<Option<Lock>, BackendError> {
        let asking = Arc::clone(&self.bucket).lock_of(self.key(name)?, None);
        self.done("read the lock of", name, asking)
    }

    fn extend_lock(&self, name: &str, until: DateTime<Utc>) -> Result<(), BackendError> {
        if self.known().is_some_and(|known| !known.object_lock) {
            return Err(self.not_supported("lock an object of"));
        }
        let lock = self.lock_of(name)?;
        if lock.is_some_and(|lock| lock.until >= until) {
            return Ok(());
        }
        let mode = lock.map_or(self.bucket.lock_mode, |lock| lock.mode);
        let setting = Arc::clone(&self.bucket).set_lock(self.key(name)?, Lock { mode, until });
        self.done("extend the lock of", name, setting)
    }
}

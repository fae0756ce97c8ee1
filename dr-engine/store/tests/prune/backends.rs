//! Places that stop, and places that wait.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use dr_store::{
    Backend, BackendError, Capabilities, LocalBackend, Lock, LockMode, ObjectEntry, PutOptions,
    PutOutcome,
};

/// A place that refuses everything after so many changes: what a process that died has done.
#[derive(Debug)]
pub(crate) struct StoppedBackend {
    inner: LocalBackend,
    left: AtomicI64,
    stopped: AtomicBool,
}

impl StoppedBackend {
    pub(crate) fn new(inner: LocalBackend) -> Self {
        Self {
            inner,
            left: AtomicI64::new(i64::MAX),
            stopped: AtomicBool::new(false),
        }
    }

    pub(crate) fn stop_after(&self, changes: i64) {
        self.left.store(changes, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<(), BackendError> {
        if self.is_stopped() {
            return Err(BackendError::FolderMissing {
                place: "stopped".to_owned(),
            });
        }
        Ok(())
    }

    fn change(&self) -> Result<(), BackendError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.stopped.store(true, Ordering::SeqCst);
        }
        self.check()
    }
}

impl Backend for StoppedBackend {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        self.change()?;
        self.inner.put_new_with(name, body, options)
    }
    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.check()?;
        self.inner.now()
    }
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.check()?;
        self.inner.get(name)
    }
    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        self.check()?;
        self.inner.get_range(name, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        self.check()?;
        self.inner.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), BackendError> {
        self.change()?;
        self.inner.delete(name)
    }
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        self.inner.prepare()
    }
    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.inner.probe_capabilities()
    }
    fn assume(&self, capabilities: Capabilities) {
        self.inner.assume(capabilities);
    }
}

/// Where a writer is held up.
#[derive(Debug)]
pub(crate) struct Gate {
    prefix: String,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    reached: bool,
}

impl Gate {
    pub(crate) fn new(prefix: &str) -> Arc<Self> {
        Arc::new(Self {
            prefix: prefix.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn close(&self) {
        self.state.lock().unwrap().closed = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    pub(crate) fn wait_until_reached(&self) {
        let state = self.state.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |state| !state.reached)
                .unwrap(),
        );
    }

    fn pass(&self, name: &str) {
        if !name.starts_with(&self.prefix) {
            return;
        }
        let mut state = self.state.lock().unwrap();
        if state.closed {
            state.reached = true;
            self.changed.notify_all();
            drop(
                self.changed
                    .wait_while(state, |state| state.closed)
                    .unwrap(),
            );
        }
    }
}

/// A place that waits at a gate before it stores certain objects.
#[derive(Debug)]
pub(crate) struct GatedBackend {
    inner: LocalBackend,
    gate: Arc<Gate>,
}

impl GatedBackend {
    pub(crate) fn new(inner: LocalBackend, gate: Arc<Gate>) -> Self {
        Self { inner, gate }
    }
}

impl Backend for GatedBackend {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        self.gate.pass(name);
        self.inner.put_new_with(name, body, options)
    }
    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.inner.now()
    }
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner.get(name)
    }
    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner.get_range(name, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        self.inner.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), BackendError> {
        self.inner.delete(name)
    }
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        self.inner.prepare()
    }
    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.inner.probe_capabilities()
    }
    fn assume(&self, capabilities: Capabilities) {
        self.inner.assume(capabilities);
    }
}

/// A place that locks every object of a prefix until a moment, and remembers what it was asked.
#[derive(Debug)]
pub(crate) struct LockedBackend {
    inner: LocalBackend,
    prefix: &'static str,
    until: DateTime<Utc>,
    pub(crate) refused: Mutex<Vec<String>>,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl LockedBackend {
    pub(crate) fn new(inner: LocalBackend, prefix: &'static str, until: DateTime<Utc>) -> Self {
        Self {
            inner,
            prefix,
            until,
            refused: Mutex::default(),
            asked: Mutex::default(),
        }
    }
}

impl Backend for LockedBackend {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        self.inner.put_new_with(name, body, options)
    }
    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.inner.now()
    }
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner.get(name)
    }
    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner.get_range(name, offset, length)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectEntry>, BackendError> {
        self.inner.list(prefix)
    }
    fn delete(&self, name: &str) -> Result<(), BackendError> {
        if name.starts_with(self.prefix) && self.until > self.now()? {
            self.refused.lock().unwrap().push(name.to_owned());
            return Err(BackendError::Locked {
                action: "delete",
                place: name.to_owned(),
                until: Some(self.until),
            });
        }
        self.inner.delete(name)
    }
    fn lock_of(&self, name: &str) -> Result<Option<Lock>, BackendError> {
        self.asked.lock().unwrap().push(name.to_owned());
        Ok(name.starts_with(self.prefix).then_some(Lock {
            mode: LockMode::Compliance,
            until: self.until,
        }))
    }
    fn prepare(&self) -> Result<Capabilities, BackendError> {
        self.inner.prepare()
    }
    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.inner.probe_capabilities()
    }
    fn assume(&self, capabilities: Capabilities) {
        self.inner.assume(capabilities);
    }
}

//! A limit on the bandwidth of a place, shared by all threads that use it.
//!
//! Each direction has a budget that fills at the given rate, up to one second's worth. What is moved is
//! taken from it at once, even below zero; who finds it below zero waits until it is not. So a large
//! object passes in one go, the next one waits for it, and the average holds. Writing waits before it
//! sends, reading after it received: only then is it known how much it was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use dr_model::{Clock, SystemClock};

use super::{
    Backend, BackendError, Capabilities, Lock, ObjectEntry, PutOptions, PutOutcome, VersionEntry,
};

/// Bytes per second in each direction; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// To the place.
    pub write: Option<u64>,
    /// From the place.
    pub read: Option<u64>,
}

/// What may still be moved, in one direction.
#[derive(Debug)]
struct Budget {
    bytes_per_second: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Below zero: who comes next waits.
    bytes: i128,
    filled_ns: u64,
}

impl Budget {
    fn new(bytes_per_second: Option<u64>) -> Option<Self> {
        let bytes_per_second = bytes_per_second.filter(|rate| *rate > 0)?;
        let state = State {
            bytes: i128::from(bytes_per_second),
            filled_ns: SystemClock.monotonic_ns(),
        };
        Some(Self {
            bytes_per_second,
            state: Mutex::new(state),
        })
    }

    /// Takes so many bytes; returns how long to wait because of them.
    fn take(&self, bytes: u64, now_ns: u64) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = i128::from(self.bytes_per_second);
        let passed = i128::from(now_ns.saturating_sub(state.filled_ns));
        // Held back to what is whole bytes, so that many short moments add up to what they are worth.
        let filled = passed * rate / 1_000_000_000;
        if filled > 0 {
            let used_ns = u64::try_from(filled * 1_000_000_000 / rate).unwrap_or(u64::MAX);
            state.filled_ns = state.filled_ns.saturating_add(used_ns);
            state.bytes = (state.bytes + filled).min(rate);
        }
        state.bytes -= i128::from(bytes);
        let owed = u64::try_from(-state.bytes).unwrap_or(0);
        Duration::from_nanos(
            u64::try_from(u128::from(owed) * 1_000_000_000 / u128::from(self.bytes_per_second))
                .unwrap_or(u64::MAX),
        )
    }

    fn wait(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        std::thread::sleep(self.take(bytes, SystemClock.monotonic_ns()));
    }
}

/// A place whose bandwidth is limited.
#[derive(Debug)]
pub struct LimitedBackend {
    inner: Arc<dyn Backend>,
    write: Option<Budget>,
    read: Option<Budget>,
}

impl LimitedBackend {
    /// Limits a place; every user of it must go through this value.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, bandwidth: Bandwidth) -> Self {
        Self {
            inner,
            write: Budget::new(bandwidth.write),
            read: Budget::new(bandwidth.read),
        }
    }

    fn received(&self, body: Option<Vec<u8>>) -> Option<Vec<u8>> {
        if let (Some(budget), Some(body)) = (&self.read, &body) {
            budget.wait(body.len());
        }
        body
    }
}

impl Backend for LimitedBackend {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn put_new_with(
        &self,
        name: &str,
        body: Bytes,
        options: &PutOptions,
    ) -> Result<PutOutcome, BackendError> {
        if let Some(budget) = &self.write {
            budget.wait(body.len());
        }
        self.inner.put_new_with(name, body, options)
    }

    fn now(&self) -> Result<DateTime<Utc>, BackendError> {
        self.inner.now()
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner.get(name).map(|body| self.received(body))
    }

    fn get_range(
        &self,
        name: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner
            .get_range(name, offset, length)
            .map(|body| self.received(body))
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

    fn requests_at_once(&self) -> usize {
        self.inner.requests_at_once()
    }

    fn is_far(&self) -> bool {
        self.inner.is_far()
    }

    fn probe_capabilities(&self) -> Result<Capabilities, BackendError> {
        self.inner.probe_capabilities()
    }

    fn assume(&self, capabilities: Capabilities) {
        self.inner.assume(capabilities);
    }

    fn sweep(&self, age: Duration) -> Result<u64, BackendError> {
        self.inner.sweep(age)
    }

    fn versions(&self, prefix: &str) -> Result<Vec<VersionEntry>, BackendError> {
        self.inner.versions(prefix)
    }

    fn get_version(&self, name: &str, version: &str) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner
            .get_version(name, version)
            .map(|body| self.received(body))
    }

    fn undelete(&self, name: &str) -> Result<bool, BackendError> {
        self.inner.undelete(name)
    }

    fn delete_all_versions(&self, name: &str) -> Result<u64, BackendError> {
        self.inner.delete_all_versions(name)
    }

    fn lock_of(&self, name: &str) -> Result<Option<Lock>, BackendError> {
        self.inner.lock_of(name)
    }

    fn extend_lock(&self, name: &str, until: DateTime<Utc>) -> Result<(), BackendError> {
        self.inner.extend_lock(name, until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_average_holds_whatever_the_sizes() {
        for size in [1u64, 1000, 2_500_000] {
            let budget = Budget::new(Some(1_000_000)).unwrap();
            let start = budget.state.lock().unwrap().filled_ns;
            let (mut now, mut moved) = (start, 0);
            while moved < 10_000_000 {
                now += u64::try_from(budget.take(size, now).as_nanos()).unwrap();
                moved += size;
            }
            // Ten seconds' worth, of which the first second was there at the beginning.
            let took = now - start;
            let expected = (moved - 1_000_000) * 1000;
            assert!(
                took.abs_diff(expected) < SECOND / 10,
                "{size}: {took} instead of {expected}"
            );
        }
    }

    #[test]
    fn idle_time_is_saved_up_for_one_second_only() {
        let budget = Budget::new(Some(1000)).unwrap();
        let start = budget.state.lock().unwrap().filled_ns;
        assert_eq!(budget.take(1000, start + 60 * SECOND), Duration::ZERO);
        assert_eq!(
            budget.take(500, start + 60 * SECOND),
            Duration::from_millis(500)
        );
    }
}

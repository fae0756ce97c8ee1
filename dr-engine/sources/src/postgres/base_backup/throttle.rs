//! Reading no faster than is allowed, so that production keeps its disk.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// A thread that waits looks this often whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Spreads what several threads read evenly over time.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: u64,
    /// When everything that was allowed so far has had its time.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Mutex::new(None),
        }
    }

    /// Waits until so much may be read, or until `stop`.
    pub(super) fn wait(&self, bytes: u64, stop: &CancellationToken) {
        let due = self.due(bytes, Instant::now());
        while !stop.is_cancelled() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// When so much may be read; what comes after has to wait for it. What was not used in time is lost.
    fn due(&self, bytes: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = due.checked_add(takes).or(Some(due));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_takes_its_time_and_idle_time_is_not_saved_up() {
        let throttle = Throttle::new(1000);
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(throttle.due(500, begin), begin);
        assert_eq!(throttle.due(1000, begin), begin + second / 2);
        assert_eq!(throttle.due(1, begin), begin + second * 3 / 2);
        let later = begin + second * 60;
        assert_eq!(throttle.due(1000, later), later);
        assert_eq!(throttle.due(1, later), later + second);
    }
}

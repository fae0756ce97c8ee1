//! The only door to "now".
//!
//! Wall-clock time names moments for people and files; it can jump. Durations that end up in a
//! report are differences of [`Clock::monotonic_ns`], which is `CLOCK_MONOTONIC`: one clock for all
//! processes of one boot, so the probe, the drill runner and the engine can be compared. It says
//! nothing across reboots, which is why logs carry [`boot_id`] beside it.

use chrono::{DateTime, Utc};

/// Where a component learns the time. Tests pass a clock of their own.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The wall clock, in UTC.
    fn now(&self) -> DateTime<Utc>;
    /// Nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)), comparable between processes of one boot.
    fn monotonic_ns(&self) -> u64;
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn monotonic_ns(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // CLOCK_MONOTONIC starts at boot and is never negative.
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
        seconds * 1_000_000_000 + nanoseconds
    }
}

/// Identifies this boot of this machine (`/proc/sys/kernel/random/boot_id`, random(4)), or
/// `"unknown"` where the kernel does not say.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

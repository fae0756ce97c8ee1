//! What is due, and when. Pure: schedules, a moment, and what ran last go in; what to run comes out.
//!
//! A cron expression names civil times in a zone. They are computed without any zone and turned into
//! instants here, because the days on which clocks change decide whether a backup is lost:
//!
//! - A civil time that is skipped in spring stands for the first instant after the gap.
//! - A civil time that comes twice in autumn means the first of the two.
//! - A schedule for every hour (`*` in the hour field) means intervals, not times of day: nothing is
//!   made up in spring, where the next hour follows at once, and it runs on through the repeated hour.
//!
//! Planned moments that passed while nobody could run them collapse to the latest one.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod backoff;
mod civil;
mod error;
mod plan;

pub use backoff::{RETRY_DELAY_MAX, RETRY_DELAY_MIN, retry_delay};
pub use civil::{CivilSchedule, Due};
pub use error::ScheduleError;
pub use plan::{Activity, Planned, Subject, plan};

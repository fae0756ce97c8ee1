//! How long to leave a failing activity alone.

use std::time::Duration;

/// After the first failure.
pub const RETRY_DELAY_MIN: Duration = Duration::from_secs(5);
/// After many.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(3600);

/// The least time between the end of a failed run and the next try: doubled with every failure in a
/// row. A failed run is tried again at the next planned moment after that, so this only matters for
/// schedules that come round faster.
#[must_use]
pub fn retry_delay(failures_in_a_row: u32) -> Duration {
    match failures_in_a_row {
        0 => Duration::ZERO,
        failures => RETRY_DELAY_MIN
            .saturating_mul(2_u32.saturating_pow(failures - 1))
            .min(RETRY_DELAY_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_an_hour() {
        let seconds = |failures| retry_delay(failures).as_secs();
        assert_eq!([0, 1, 2, 3, 4].map(seconds), [0, 5, 10, 20, 40]);
        assert_eq!(seconds(11), 3600);
        assert_eq!(seconds(u32::MAX), 3600);
    }
}

//! What can be wrong with a schedule.

/// Errors of this crate. A loaded configuration has none of them.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Not a cron expression.
    #[error("`{expression}` is no schedule")]
    Cron {
        /// As written.
        expression: String,
        /// Why.
        #[source]
        source: Box<cron::error::Error>,
    },
    /// Not an IANA zone.
    #[error("`{0}` is no time zone")]
    Zone(String),
}

impl ScheduleError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some("`dr config check` shows where it is written".to_owned())
    }
}

//! Cron on civil time.

use std::str::FromStr;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use cron::{Schedule, TimeUnitSpec};

use crate::ScheduleError;

/// A civil time is looked for this far around a change of the clocks. No zone moves its clocks by more
/// than this twice within it.
const CHANGE_SPAN: TimeDelta = TimeDelta::hours(3);
/// The longest gap there ever was is one day (Samoa, 2011).
const GAP_MAX_MINUTES: i64 = 26 * 60;
/// Where the latest planned moment is looked for, nearest first, so that a schedule of seconds is not
/// counted through from a year ago.
const LOOK_BACK: [TimeDelta; 4] = [
    TimeDelta::hours(1),
    TimeDelta::days(1),
    TimeDelta::days(32),
    TimeDelta::days(400),
];

/// A cron expression on the civil time of a zone.
#[derive(Debug, Clone)]
pub struct CivilSchedule {
    cron: Schedule,
    zone: Tz,
    every_hour: bool,
}

/// A planned moment that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The moment. The latest, if several have come.
    pub planned_at: DateTime<Utc>,
    /// The first of the earlier moments that passed unused, if there are any.
    pub missed_since: Option<DateTime<Utc>>,
}

impl CivilSchedule {
    /// Reads an expression of 5, 6 or 7 fields. UTC when no zone is named.
    ///
    /// # Errors
    /// When the expression or the zone is none.
    pub fn new(expression: &str, timezone: Option<&str>) -> Result<Self, ScheduleError> {
        let cron = Schedule::from_str(&dr_config::with_seconds(expression)).map_err(|source| {
            ScheduleError::Cron {
                expression: expression.to_owned(),
                source: Box::new(source),
            }
        })?;
        let zone = timezone.unwrap_or("UTC");
        let zone = Tz::from_str(zone).map_err(|_| ScheduleError::Zone(zone.to_owned()))?;
        let every_hour = cron.hours().is_all();
        Ok(Self {
            cron,
            zone,
            every_hour,
        })
    }

    /// The first planned moment later than `after`; `None` when the expression's years are over.
    #[must_use]
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut best: Option<DateTime<Utc>> = None;
        for civil in self.cron.after(&self.search_start(after)) {
            let (first, second) = self.instants(civil.naive_utc());
            for instant in [first, second].into_iter().flatten() {
                if instant > after && best.is_none_or(|best| instant < best) {
                    best = Some(instant);
                }
            }
            // First instants never go back as civil time goes on, so nothing better can follow.
            if let (Some(best), Some(first)) = (best, first)
                && first >= best
            {
                return Some(best);
            }
        }
        best
    }

    /// The latest planned moment later than `since` and not later than `now`.
    #[must_use]
    pub fn due(&self, since: DateTime<Utc>, now: DateTime<Utc>) -> Option<Due> {
        let first = self.next_after(since).filter(|first| *first <= now)?;
        let planned_at = LOOK_BACK
            .iter()
            .map(|span| since.max(now - *span))
            .chain([since])
            .find_map(|from| self.latest_between(from, now))
            .unwrap_or(first);
        Some(Due {
            planned_at,
            missed_since: (first < planned_at).then_some(first),
        })
    }

    fn latest_between(&self, from: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut latest = None;
        let mut at = from;
        while let Some(next) = self.next_after(at).filter(|next| *next <= now) {
            latest = Some(next);
            at = next;
        }
        latest
    }

    /// The civil time at `after`, as a time without a zone; earlier when clocks change nearby, because
    /// a civil time that is over then can come again.
    fn search_start(&self, after: DateTime<Utc>) -> DateTime<Utc> {
        let offset = |at: DateTime<Utc>| {
            self.zone
                .offset_from_utc_datetime(&at.naive_utc())
                .fix()
                .local_minus_utc()
        };
        let here = offset(after);
        let changes = [after - CHANGE_SPAN, after + CHANGE_SPAN]
            .iter()
            .any(|at| offset(*at) != here);
        let civil = after + TimeDelta::seconds(i64::from(here));
        if changes { civil - CHANGE_SPAN } else { civil }
    }

    /// The instants that a planned civil time stands for.
    fn instants(&self, civil: NaiveDateTime) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        match self.zone.from_local_datetime(&civil) {
            MappedLocalTime::Single(at) => (Some(at.to_utc()), None),
            MappedLocalTime::Ambiguous(first, second) => (
                Some(first.to_utc()),
                self.every_hour.then(|| second.to_utc()),
            ),
            MappedLocalTime::None if self.every_hour => (None, None),
            MappedLocalTime::None => (self.end_of_gap(civil), None),
        }
    }

    /// The first instant after the gap that `civil` lies in. Clocks change at full minutes.
    fn end_of_gap(&self, civil: NaiveDateTime) -> Option<DateTime<Utc>> {
        let minute = civil.and_utc().timestamp().div_euclid(60) * 60;
        (1..=GAP_MAX_MINUTES).find_map(|minutes| {
            let later = DateTime::from_timestamp(minute + minutes * 60, 0)?.naive_utc();
            self.zone
                .from_local_datetime(&later)
                .earliest()
                .map(|at| at.to_utc())
        })
    }
}

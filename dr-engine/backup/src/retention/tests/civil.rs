//! Days, weeks and hours as people count them.

use super::*;

fn of(zone: &str, change: impl FnOnce(&mut RetentionPolicy)) -> RetentionPolicy {
    let mut policy = policy();
    policy.zone = zone.parse().unwrap();
    change(&mut policy);
    policy
}

fn kept_periods(case: &Case) -> Vec<String> {
    let mut found = Vec::new();
    for decision in case.plan().points {
        if let Fate::Kept { reasons } = decision.fate {
            found.extend(reasons.into_iter().filter_map(|reason| match reason {
                KeepReason::Period { period, .. } => Some(period),
                _ => None,
            }));
        }
    }
    found
}

#[test]
fn days_are_those_of_the_zone() {
    // 03:00 and 07:00 UTC are two days in Chicago and one in UTC.
    let points = vec![files(0, utc(2026, 7, 2, 3)), files(1, utc(2026, 7, 2, 7))];
    let now = utc(2026, 7, 3, 0);
    let chicago = of("America/Chicago", |policy| policy.daily = 9);
    let case = Case::of(points, chicago, now);
    assert_eq!(kept_periods(&case), ["2026-07-01", "2026-07-02"]);
    let case = Case::of(case.points, of("UTC", |policy| policy.daily = 9), now);
    assert_eq!(kept_periods(&case), ["2026-07-02"]);
}

#[test]
fn the_hour_that_comes_twice_in_autumn_is_two_hours() {
    // Chicago, 1 November 2026: 01:30 CDT is 06:30 UTC, 01:30 CST is 07:30 UTC.
    let points = series(4, |hour| utc(2026, 11, 1, 5 + hour));
    let policy = of("America/Chicago", |policy| policy.hourly = 24);
    let case = Case::of(points, policy, utc(2026, 11, 2, 0));
    assert_eq!(
        kept_periods(&case),
        [
            "2026-11-01T00-05:00",
            "2026-11-01T01-05:00",
            "2026-11-01T01-06:00",
            "2026-11-01T02-06:00"
        ]
    );
}

#[test]
fn the_day_of_23_hours_is_a_day() {
    let points = series(48, |hour| {
        utc(2026, 3, 8, 0) + TimeDelta::hours(hour.into())
    });
    let policy = of("America/Chicago", |policy| policy.daily = 2);
    let case = Case::of(points, policy, utc(2026, 3, 10, 0));
    // 8 March ends at 05:00 UTC of the 9th, an hour earlier than the days before it.
    assert_eq!(case.kept(), [28, 47]);
}

#[test]
fn weeks_are_iso_weeks_across_the_turn_of_the_year() {
    // 2026 has 53 ISO weeks: Friday 1 January 2027 belongs to the last one.
    let points = vec![
        files(0, utc(2026, 12, 27, 12)),
        files(1, utc(2026, 12, 28, 12)),
        files(2, utc(2027, 1, 3, 12)),
        files(3, utc(2027, 1, 4, 12)),
    ];
    let case = Case::of(
        points,
        of("UTC", |policy| policy.weekly = 9),
        utc(2027, 1, 5, 0),
    );
    assert_eq!(kept_periods(&case), ["2026-W52", "2026-W53", "2027-W01"]);
    assert_eq!(case.kept(), [0, 2, 3]);
}

#[test]
fn the_leap_day_is_a_day_and_ends_its_month() {
    let points = vec![
        files(0, utc(2028, 2, 28, 12)),
        files(1, utc(2028, 2, 29, 12)),
        files(2, utc(2028, 3, 1, 12)),
    ];
    let now = utc(2028, 3, 1, 13);
    let case = Case::of(points, of("UTC", |policy| policy.monthly = 2), now);
    assert_eq!(case.kept(), [1, 2]);
    let case = Case::of(case.points, of("UTC", |policy| policy.daily = 3), now);
    assert_eq!(case.kept(), [0, 1, 2]);
}

#[test]
fn a_period_without_points_uses_up_nothing() {
    let points = vec![
        files(0, utc(2024, 1, 1, 0)),
        files(1, utc(2025, 1, 1, 0)),
        files(2, utc(2026, 1, 1, 0)),
    ];
    let case = Case::of(
        points,
        of("UTC", |policy| policy.daily = 2),
        utc(2036, 1, 1, 0),
    );
    assert_eq!(case.kept(), [1, 2]);
    let since = utc(2026, 1, 1, 0);
    assert_eq!(case.plan().points[0].fate, Fate::Removed { since });
}

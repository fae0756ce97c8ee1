//! Planned moments: by example on the days clocks change, and against another implementation in UTC.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use dr_scheduler::{CivilSchedule, Due};
use proptest::prelude::*;

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

fn next(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = CivilSchedule::new(cron, Some(zone)).unwrap();
    std::iter::successors(schedule.next_after(at(after)), |last| {
        schedule.next_after(*last)
    })
    .take(count)
    .map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
    .collect()
}

#[test]
fn a_time_skipped_in_spring_runs_when_the_gap_ends() {
    // 02:30 does not exist in New York on 2026-03-08; the clock goes from 02:00 EST to 03:00 EDT.
    assert_eq!(
        next(
            "0 30 2 * * *",
            "America/New_York",
            "2026-03-07T12:00:00Z",
            2
        ),
        ["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"]
    );
}

#[test]
fn a_time_that_comes_twice_in_autumn_runs_once_at_the_first() {
    // 02:30 comes twice in Berlin on 2026-10-25: at 00:30Z and at 01:30Z.
    assert_eq!(
        next("0 30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
        ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    );
}

#[test]
fn an_hourly_schedule_keeps_its_distance_in_spring_and_autumn() {
    for (after, zone) in [
        ("2026-10-24T22:00:00Z", "Europe/Berlin"),
        ("2026-03-28T22:00:00Z", "Europe/Berlin"),
        ("2026-11-01T03:00:00Z", "America/New_York"),
    ] {
        let schedule = CivilSchedule::new("15 * * * *", Some(zone)).unwrap();
        let mut last = schedule.next_after(at(after)).unwrap();
        for _ in 0..8 {
            let following = schedule.next_after(last).unwrap();
            assert_eq!(following - last, TimeDelta::hours(1), "{zone} after {last}");
            last = following;
        }
    }
}

#[test]
fn half_an_hour_of_summer_time_is_handled_too() {
    // Lord Howe Island moves by 30 minutes: on 2026-04-05 at 02:00 back to 01:30.
    assert_eq!(
        next(
            "0 45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T00:00:00Z",
            2
        ),
        ["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"]
    );
    // On 2026-10-04 the clock goes from 02:00 to 02:30.
    assert_eq!(
        next(
            "0 10 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T00:00:00Z",
            1
        ),
        ["2026-10-03T15:30:00Z"]
    );
}

#[test]
fn leap_days_exist() {
    assert_eq!(
        next("0 0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 2),
        ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]
    );
    assert_eq!(
        next("0 0 12 * * *", "UTC", "2028-02-28T13:00:00Z", 2),
        ["2028-02-29T12:00:00Z", "2028-03-01T12:00:00Z"]
    );
}

#[test]
fn missed_moments_collapse_to_the_latest() {
    let schedule = CivilSchedule::new("0 0 2 * * *", None).unwrap();
    assert_eq!(
        schedule.due(at("2026-06-01T02:00:00Z"), at("2026-06-05T10:00:00Z")),
        Some(Due {
            planned_at: at("2026-06-05T02:00:00Z"),
            missed_since: Some(at("2026-06-02T02:00:00Z")),
        })
    );
    assert_eq!(
        schedule.due(at("2026-06-04T02:00:00Z"), at("2026-06-05T02:00:00Z")),
        Some(Due {
            planned_at: at("2026-06-05T02:00:00Z"),
            missed_since: None
        })
    );
    assert_eq!(
        schedule.due(at("2026-06-05T02:00:00Z"), at("2026-06-05T10:00:00Z")),
        None
    );
    // A yearly one, never run, and one of seconds after a year of silence.
    let yearly = CivilSchedule::new("0 0 0 1 1 *", None).unwrap();
    let due = yearly
        .due(DateTime::UNIX_EPOCH, at("2026-06-05T10:00:00Z"))
        .unwrap();
    assert_eq!(due.planned_at, at("2026-01-01T00:00:00Z"));
    let seconds = CivilSchedule::new("*/5 * * * * *", None).unwrap();
    let due = seconds
        .due(at("2025-06-05T10:00:00Z"), at("2026-06-05T10:00:03Z"))
        .unwrap();
    assert_eq!(due.planned_at, at("2026-06-05T10:00:00Z"));
}

/// A field of a cron expression within `low..=high`.
fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        Just("*".to_owned()),
        (low..=high).prop_map(|value| value.to_string()),
        (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        (2u32..10).prop_map(|step| format!("*/{step}")),
        (low..=high, low..=high).prop_map(|(a, b)| format!("{},{}", a.min(b), a.max(b))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn moments_equal_croners_in_utc(
        second in field(0, 59), minute in field(0, 59), hour in field(0, 23),
        day in field(1, 28), month in field(1, 12), after in 1_700_000_000i64..1_900_000_000,
    ) {
        let expression = format!("{second} {minute} {hour} {day} {month} *");
        let ours = CivilSchedule::new(&expression, None).unwrap();
        let oracle = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Required)
            .build()
            .parse(&expression)
            .unwrap();
        let mut at = DateTime::from_timestamp(after, 0).unwrap();
        for _ in 0..4 {
            let next = ours.next_after(at);
            let expected = oracle.find_next_occurrence(&at, false).ok();
            prop_assert_eq!(next, expected, "{} after {}", expression, at);
            let Some(next) = next else { break };
            at = next;
        }
    }

    #[test]
    fn moments_go_on_and_due_agrees_with_them(
        minute in field(0, 59), hour in field(0, 23), after in 1_760_000_000i64..1_800_000_000,
        zone in prop_oneof![
            Just("America/New_York"), Just("Europe/Berlin"), Just("Australia/Lord_Howe"), Just("UTC")
        ],
    ) {
        let schedule = CivilSchedule::new(&format!("0 {minute} {hour} * * *"), Some(zone)).unwrap();
        let start = DateTime::from_timestamp(after, 0).unwrap();
        let first = schedule.next_after(start).unwrap();
        prop_assert!(first > start);
        // No day is without one, whatever the clocks do.
        prop_assert!(first - start <= TimeDelta::hours(26), "{} after {}", first, start);
        let second = schedule.next_after(first).unwrap();
        prop_assert!(second > first);
        prop_assert_eq!(schedule.due(start, first - TimeDelta::seconds(1)), None);
        let due = schedule.due(start, second).unwrap();
        prop_assert_eq!(due, Due { planned_at: second, missed_since: Some(first) });
        prop_assert_eq!(DateTime::<Utc>::from_str(&first.to_rfc3339()).unwrap(), first);
    }
}

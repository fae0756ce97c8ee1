//! The newest point of each of the last N periods, on civil time.

use std::collections::HashMap;

use chrono::{DateTime, Datelike, Offset, Timelike, Utc};
use chrono_tz::Tz;

use super::{Judged, KeepReason, RetentionPolicy};

/// A length of civil time, with how many of it are kept.
struct Rule {
    unit: &'static str,
    count: u32,
    name: fn(DateTime<Tz>) -> String,
}

/// An hour that comes twice in autumn is two hours: the offset tells them apart.
fn hour(at: DateTime<Tz>) -> String {
    format!("{}T{:02}{}", at.date_naive(), at.hour(), at.offset().fix())
}

fn day(at: DateTime<Tz>) -> String {
    at.date_naive().to_string()
}

/// ISO 8601: the week belongs to the year that has its Thursday.
fn week(at: DateTime<Tz>) -> String {
    let week = at.iso_week();
    format!("{}-W{:02}", week.year(), week.week())
}

fn month(at: DateTime<Tz>) -> String {
    format!("{}-{:02}", at.year(), at.month())
}

fn year(at: DateTime<Tz>) -> String {
    at.year().to_string()
}

fn rules(policy: &RetentionPolicy) -> [Rule; 5] {
    let rule = |unit, count, name: fn(DateTime<Tz>) -> String| Rule { unit, count, name };
    [
        rule("hour", policy.hourly, hour),
        rule("day", policy.daily, day),
        rule("week", policy.weekly, week),
        rule("month", policy.monthly, month),
        rule("year", policy.yearly, year),
    ]
}

/// Keeps what the numbers of the policy ask for. `points` are in order, oldest first.
pub(super) fn keep(points: &mut [&mut Judged<'_>], policy: &RetentionPolicy) {
    for rule in rules(policy).iter().filter(|rule| rule.count > 0) {
        keep_by(points, policy.zone, rule);
    }
}

/// A period, as met from the newest point backwards.
struct Period {
    name: String,
    /// Its points, newest first, by place.
    places: Vec<usize>,
}

fn keep_by(points: &mut [&mut Judged<'_>], zone: Tz, rule: &Rule) {
    let mut periods: Vec<Period> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for (place, one) in points.iter().enumerate().rev() {
        let name = (rule.name)(one.facts.point.moment.with_timezone(&zone));
        let number = *known.entry(name.clone()).or_insert_with(|| {
            periods.push(Period {
                name,
                places: Vec::new(),
            });
            periods.len() - 1
        });
        if let Some(period) = periods.get_mut(number) {
            period.places.push(place);
        }
    }
    let count = usize::try_from(rule.count).unwrap_or(usize::MAX);
    // When the first point of each period was there, newest period first.
    let began: Vec<Option<DateTime<Utc>>> = periods
        .iter()
        .map(|period| {
            let finished = |place: &usize| points.get(*place).map(|one| one.facts.point.finished);
            period.places.iter().filter_map(finished).min()
        })
        .collect();
    for (number, period) in periods.iter().enumerate() {
        let pushed_out = number
            .checked_sub(count)
            .and_then(|newer| began.get(newer).copied().flatten());
        judge_period(points, period, rule.unit, pushed_out);
    }
}

/// The clean point that is newest stands for the period; without a clean one, the newest.
fn judge_period(
    points: &mut [&mut Judged<'_>],
    period: &Period,
    unit: &'static str,
    pushed_out: Option<DateTime<Utc>>,
) {
    let clean = |place: &&usize| points.get(**place).is_some_and(|one| one.facts.is_clean());
    let Some(&chosen) = period.places.iter().find(clean).or(period.places.first()) else {
        return;
    };
    let replaced = points.get(chosen).map(|one| one.facts.point.finished);
    for &place in &period.places {
        let Some(one) = points.get_mut(place) else {
            continue;
        };
        match (place == chosen, pushed_out) {
            (true, None) => one.keep(KeepReason::Period {
                unit,
                period: period.name.clone(),
            }),
            (true, Some(end)) => one.not_needed_since(end),
            (false, _) => {
                if let Some(end) = replaced {
                    one.not_needed_since(end);
                }
            }
        }
    }
}

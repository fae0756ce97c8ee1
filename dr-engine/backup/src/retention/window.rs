//! The window: which points every moment of a span is reached from.
//!
//! A moment lies on a timeline, and a timeline is reached only from points of its own line of history.
//! After a restore to an earlier moment the newest point by the clock may lie on the branch that was
//! left: it reaches nothing of the branch that is followed now. So each timeline that was written to
//! within the span has a point of its own that the span begins with.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use dr_model::{PostgresPosition, Timeline};

use super::{Judged, KeepReason, PointFacts, RetentionInput, RetentionPolicy, WalFacts};
use crate::window::is_whole_workload;

/// Points carry the host's time, WAL objects the store's: this much apart they may be.
const CLOCKS_APART: TimeDelta = TimeDelta::hours(1);

/// What the window is reached through.
#[derive(Default)]
pub(super) struct Reached<'a> {
    /// The points that WAL is kept behind without an end.
    pub(super) from: Vec<&'a PointFacts>,
    /// The timelines on which its moments lie.
    pub(super) followed: Vec<Timeline>,
}

/// Keeps what the window needs.
pub(super) fn keep<'a>(
    points: &mut [&mut Judged<'a>],
    policy: &RetentionPolicy,
    input: &RetentionInput<'_>,
) -> Reached<'a> {
    let begin = input
        .now
        .checked_sub_signed(policy.window())
        .unwrap_or(DateTime::<Utc>::MIN_UTC);
    let facts: Vec<&PointFacts> = points.iter().map(|one| one.facts).collect();
    let anchors = anchors(&facts, begin, input.wal);
    let first = anchors.iter().min().copied();
    let begins = match policy.pitr {
        Some(_) => KeepReason::WindowBegins,
        None => KeepReason::NewestClean,
    };
    let mut reached = Reached {
        from: Vec::new(),
        followed: input
            .wal
            .map(|wal| followed(wal, &facts, begin))
            .unwrap_or_default(),
    };
    for (place, one) in points.iter_mut().enumerate() {
        let is_anchor = anchors.contains(&place);
        let inside = policy.pitr.is_some() && first.is_none_or(|first| place >= first);
        if is_anchor {
            one.keep(begins.clone());
        } else if inside {
            one.keep(KeepReason::Window);
        }
        if is_anchor || inside || place + 1 == facts.len() {
            reached.from.push(one.facts);
        }
    }
    if policy.pitr.is_some() {
        note_ends(points, policy.window(), input);
    }
    reached
}

/// A point left the window when the next one that could stand for it had become as old as that; where
/// none could, any.
fn note_ends(points: &mut [&mut Judged<'_>], length: TimeDelta, input: &RetentionInput<'_>) {
    let (mut clean, mut any): (Option<DateTime<Utc>>, Option<DateTime<Utc>>) = (None, None);
    for one in points.iter_mut().rev() {
        let end = |next: Option<DateTime<Utc>>| {
            next.and_then(|moment| moment.checked_add_signed(length))
                .filter(|end| *end <= input.now)
        };
        if let Some(end) = end(clean).or_else(|| end(any)) {
            one.not_needed_since(end);
        }
        any = Some(one.facts.point.moment);
        if one.facts.is_clean() && has_own_wal(one.facts, input.wal) {
            clean = any;
        }
    }
}

fn has_own_wal(facts: &PointFacts, wal: Option<&WalFacts>) -> bool {
    match (facts.point.postgres(), wal) {
        (Some(base), Some(wal)) => wal.index.has_own_wal(base),
        _ => true,
    }
}

/// The places of the points that a span beginning at `begin` begins with. `points` are in order.
fn anchors(points: &[&PointFacts], begin: DateTime<Utc>, wal: Option<&WalFacts>) -> Vec<usize> {
    let before = points
        .iter()
        .take_while(|facts| facts.point.moment <= begin)
        .count();
    let mut found: Vec<usize> = Vec::new();
    let mut add = |place: Option<usize>| {
        if let Some(place) = place
            && !found.contains(&place)
        {
            found.push(place);
        }
    };
    let candidates = points.get(..before).unwrap_or_default();
    let other = |facts: &PointFacts| facts.point.postgres().is_none();
    add(best(candidates, wal, other));
    for timeline in wal.into_iter().flat_map(|wal| followed(wal, points, begin)) {
        let on_its_line = |facts: &PointFacts| {
            let base = facts.point.postgres();
            base.is_some_and(|base| leads_to(base, timeline, wal))
        };
        add(best(candidates, wal, on_its_line));
    }
    if wal.is_none() {
        add(best(candidates, wal, |facts| {
            facts.point.postgres().is_some()
        }));
    }
    found
}

/// The newest that is clean and has its own WAL; else that has its own WAL; else any.
fn best(
    candidates: &[&PointFacts],
    wal: Option<&WalFacts>,
    fits: impl Fn(&PointFacts) -> bool,
) -> Option<usize> {
    let newest = |good: &dyn Fn(&PointFacts) -> bool| {
        candidates
            .iter()
            .rposition(|facts| fits(facts) && good(facts))
    };
    newest(&|facts| facts.is_clean() && has_own_wal(facts, wal))
        .or_else(|| newest(&|facts| has_own_wal(facts, wal)))
        .or_else(|| newest(&|_| true))
}

/// The timelines on which moments later than `begin` lie: those that were written to since, and the
/// one that was written to last. A timeline that nothing is known of counts.
fn followed(wal: &WalFacts, points: &[&PointFacts], begin: DateTime<Utc>) -> Vec<Timeline> {
    let mut written: BTreeMap<Timeline, Option<DateTime<Utc>>> = BTreeMap::new();
    for timeline in wal.timelines() {
        written.insert(timeline, wal.last_written.get(&timeline).copied());
    }
    for facts in points {
        if let Some(base) = facts.point.postgres() {
            let last = written.entry(base.timeline).or_default();
            *last = (*last).max(Some(facts.point.moment));
        }
    }
    let last = written.values().copied().flatten().max();
    let is_followed = |at: &Option<DateTime<Utc>>| {
        at.is_none_or(|at| Some(at) == last || at + CLOCKS_APART >= begin)
    };
    let mut followed = Vec::new();
    for (timeline, at) in &written {
        if is_followed(at) {
            followed.push(*timeline);
        }
    }
    followed
}

/// Whether replay from `base` can go on along `timeline`.
pub(super) fn leads_to(
    base: &PostgresPosition,
    timeline: Timeline,
    wal: Option<&WalFacts>,
) -> bool {
    base.timeline == timeline
        || wal.is_some_and(|wal| {
            let switches = wal.index.history_of(timeline).iter();
            let mut switches = switches.filter(|switch| switch.parent == base.timeline);
            switches.any(|switch| switch.at >= base.stop_lsn)
        })
}

/// The places of the points that every moment of a span is reached from.
pub(super) fn in_span(
    points: &[Judged<'_>],
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    input: &RetentionInput<'_>,
) -> Vec<usize> {
    let in_time = |moment: DateTime<Utc>| {
        from.is_none_or(|from| moment >= from) && to.is_none_or(|to| moment <= to)
    };
    let mut places: Vec<usize> = points
        .iter()
        .enumerate()
        .filter(|(_, one)| in_time(one.facts.point.moment))
        .map(|(place, _)| place)
        .collect();
    if let Some(from) = from {
        let (numbers, whole): (Vec<usize>, Vec<&PointFacts>) = points
            .iter()
            .enumerate()
            .filter(|(_, one)| is_whole_workload(&one.facts.point))
            .map(|(place, one)| (place, one.facts))
            .unzip();
        let begin = anchors(&whole, from, input.wal);
        places.extend(begin.iter().filter_map(|place| numbers.get(*place)));
    }
    places.sort_unstable();
    places.dedup();
    places
}

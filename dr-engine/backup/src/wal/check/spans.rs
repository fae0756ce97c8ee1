//! Which segments are there and which are missing: pure, over names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use dr_model::{PostgresPosition, Timeline};

use crate::window::WalIndex;

/// Segments of one timeline side by side, by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) timeline: Timeline,
    pub(super) numbers: RangeInclusive<u64>,
    /// Whether they are stored, or missing.
    pub(super) is_there: bool,
}

/// What is to be there without a gap.
pub(super) struct Wanted<'a> {
    /// Every base backup: it cannot be restored without its own segments.
    pub(super) bases: &'a [&'a PostgresPosition],
    /// Those that everything behind is kept of.
    pub(super) onward: &'a [PostgresPosition],
    /// What is kept beside that: timeline, first, last.
    pub(super) held: &'a [(Timeline, u64, u64)],
}

/// Segments by timeline.
type Ranges = BTreeMap<Timeline, Vec<RangeInclusive<u64>>>;

/// All spans, by timeline and position.
pub(super) fn spans(index: &WalIndex, wanted: &Wanted<'_>) -> Vec<Span> {
    let wanted = ranges(index, wanted);
    let timelines: BTreeSet<Timeline> = index.timelines().chain(wanted.keys().copied()).collect();
    let mut spans = Vec::new();
    for timeline in timelines {
        let span = |numbers, is_there| Span {
            timeline,
            numbers,
            is_there,
        };
        let there = runs(index.numbers(timeline));
        for wanted in joined(wanted.get(&timeline).cloned().unwrap_or_default()) {
            spans.extend(missing(&there, &wanted).map(|numbers| span(numbers, false)));
        }
        spans.extend(there.into_iter().map(|numbers| span(numbers, true)));
    }
    spans.sort_by_key(|span| (span.timeline, *span.numbers.start()));
    spans
}

fn ranges(index: &WalIndex, wanted: &Wanted<'_>) -> Ranges {
    let mut ranges = Ranges::new();
    let mut want = |timeline, from: u64, to: u64| {
        if from <= to {
            ranges.entry(timeline).or_default().push(from..=to);
        }
    };
    for base in wanted.bases {
        let own = index.own_segments(base);
        want(base.timeline, *own.start(), *own.end());
    }
    for (timeline, first, last) in wanted.held {
        want(*timeline, *first, *last);
    }
    for base in wanted.onward {
        for timeline in index.timelines_from(base) {
            // What is stored of a timeline is wanted without gaps; of each that it left, what comes
            // before the segment of the switch, which is the child's.
            let mut from = *index.own_segments(base).start();
            for switch in index.history_of(timeline) {
                let left = switch.at.0 / index.segment_bytes;
                if switch.parent >= base.timeline && left > from {
                    want(switch.parent, from, left - 1);
                }
                from = from.max(left);
            }
            if let Some(newest) = index.newest_whole_wanted(timeline) {
                want(timeline, from, newest);
            }
        }
    }
    ranges
}

/// Ranges that touch or overlap, made one.
fn joined(mut ranges: Vec<RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    ranges.sort_by_key(|range| *range.start());
    let mut joined: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if *range.start() <= last.end() + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Numbers side by side.
fn runs(numbers: &BTreeSet<u64>) -> Vec<RangeInclusive<u64>> {
    let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end() + 1 == *number => *run = *run.start()..=*number,
            _ => runs.push(*number..=*number),
        }
    }
    runs
}

/// What of `wanted` is in no run.
fn missing<'a>(
    runs: &'a [RangeInclusive<u64>],
    wanted: &RangeInclusive<u64>,
) -> impl Iterator<Item = RangeInclusive<u64>> + 'a {
    let (mut next, end) = (*wanted.start(), *wanted.end());
    // The last gap ends where something would begin behind what is wanted.
    let ends = runs.iter().cloned().chain([end + 1..=end + 1]);
    ends.filter_map(move |run| {
        let from = next;
        next = next.max(run.end() + 1);
        let to = run.start().checked_sub(1)?.min(end);
        (from <= to).then_some(from..=to)
    })
}

#[cfg(test)]
mod tests {
    use dr_model::{Lsn, SystemId, WalFileName};

    use super::*;
    use crate::window::TimelineSwitch;

    const SEGMENT: u64 = 16 << 20;

    fn index(names: &[(u32, u64)], switches: &[(u32, u32, u64)]) -> WalIndex {
        let names: Vec<WalFileName> = (names.iter())
            .map(|(timeline, number)| WalFileName::of_number(*number, Timeline(*timeline), SEGMENT))
            .collect();
        let mut histories: BTreeMap<Timeline, Vec<TimelineSwitch>> = BTreeMap::new();
        for (timeline, parent, number) in switches {
            histories
                .entry(Timeline(*timeline))
                .or_default()
                .push(TimelineSwitch {
                    parent: Timeline(*parent),
                    at: Lsn(number * SEGMENT + 100),
                });
        }
        WalIndex::new(&names, histories, SEGMENT)
    }

    fn base(timeline: u32, from: u64, to: u64) -> PostgresPosition {
        let named = |number| WalFileName::of_number(number, Timeline(timeline), SEGMENT);
        PostgresPosition {
            system_id: SystemId(1),
            timeline: Timeline(timeline),
            start_lsn: Lsn(from * SEGMENT + 40),
            stop_lsn: Lsn(to * SEGMENT + 400),
            start_segment: named(from),
            stop_segment: named(to),
            wal_segment_bytes: SEGMENT,
            server_version_num: 150_018,
            page_checksums: true,
        }
    }

    /// Timeline, first, last; missing ones with a minus. Everything behind each base is wanted.
    fn told(index: &WalIndex, bases: &[&PostgresPosition]) -> Vec<String> {
        let onward: Vec<PostgresPosition> = bases.iter().map(|base| (*base).clone()).collect();
        told_of(index, bases, &onward, &[])
    }

    fn told_of(
        index: &WalIndex,
        bases: &[&PostgresPosition],
        onward: &[PostgresPosition],
        held: &[(Timeline, u64, u64)],
    ) -> Vec<String> {
        let tell = |span: Span| {
            let sign = if span.is_there { '+' } else { '-' };
            let (first, last) = (span.numbers.start(), span.numbers.end());
            format!("{sign}{}:{first}-{last}", span.timeline)
        };
        let wanted = Wanted {
            bases,
            onward,
            held,
        };
        spans(index, &wanted).into_iter().map(tell).collect()
    }

    #[test]
    fn gaps_are_told_from_the_first_base_on() {
        let stored = [(1, 2), (1, 5), (1, 6), (1, 9), (1, 10)];
        let index = index(&stored, &[]);
        let all = ["+1:2-2", "+1:5-6", "+1:9-10"];
        assert_eq!(told(&index, &[]), all, "without a base nothing is missed");
        let told_with = told(&index, &[&base(1, 5, 5)]);
        assert_eq!(told_with, ["+1:2-2", "+1:5-6", "-1:7-8", "+1:9-10"]);
        // A base whose own WAL is missing misses it, before and behind what is stored.
        let told_with = told(&index, &[&base(1, 3, 3), &base(1, 10, 12)]);
        let expected = [
            "+1:2-2", "-1:3-4", "+1:5-6", "-1:7-8", "+1:9-10", "-1:11-12",
        ];
        assert_eq!(told_with, expected);
    }

    #[test]
    fn a_base_behind_all_that_is_stored_misses_its_own_only() {
        assert_eq!(told(&index(&[], &[]), &[&base(3, 7, 8)]), ["-3:7-8"]);
        let told = told(&index(&[(1, 2)], &[]), &[&base(1, 5, 5)]);
        assert_eq!(told, ["+1:2-2", "-1:5-5"]);
    }

    #[test]
    fn what_retention_does_not_keep_is_not_missed() {
        let stored = [(1, 2), (1, 3), (1, 50), (1, 51), (1, 52), (1, 54)];
        let (old, new) = (base(1, 2, 3), base(1, 51, 51));
        let told = told_of(
            &index(&stored, &[]),
            &[&old, &new],
            std::slice::from_ref(&new),
            &[(Timeline(1), 48, 50)],
        );
        let expected = ["+1:2-3", "-1:48-49", "+1:50-52", "-1:53-53", "+1:54-54"];
        assert_eq!(told, expected);
    }

    #[test]
    fn the_parent_is_wanted_up_to_the_switch_and_the_child_from_it_on() {
        let stored = [(1, 2), (1, 3), (2, 5), (2, 7)];
        let told = told(&index(&stored, &[(2, 1, 5)]), &[&base(1, 2, 2)]);
        assert_eq!(told, ["+1:2-3", "-1:4-4", "+2:5-5", "-2:6-6", "+2:7-7"]);
    }

    #[test]
    fn a_child_that_left_before_the_base_is_not_wanted() {
        let stored = [(1, 2), (1, 3), (1, 4), (2, 2), (2, 4)];
        let told = told(&index(&stored, &[(2, 1, 2)]), &[&base(1, 3, 3)]);
        assert_eq!(told, ["+1:2-4", "+2:2-2", "+2:4-4"]);
    }

    #[test]
    fn grandchildren_are_followed_through_their_parents() {
        let stored = [(1, 2), (2, 3), (3, 6)];
        let switches = [(2, 1, 3), (3, 1, 3), (3, 2, 5)];
        let told = told(&index(&stored, &switches), &[&base(1, 2, 2)]);
        assert_eq!(told, ["+1:2-2", "+2:3-3", "-2:4-4", "-3:5-5", "+3:6-6"]);
    }
}

//! Which WAL files may go.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use dr_model::{PostgresPosition, Timeline, WalFileName};
use dr_store::TailPlace;
use serde::Serialize;

use super::window::{Reached, leads_to};
use super::{Judged, RetentionInput};
use crate::WalIndex;
use crate::window::is_whole_workload;

/// What is stored of a workload's WAL.
#[derive(Debug, Clone, Default)]
pub struct WalFacts {
    /// Segments and histories.
    pub index: WalIndex,
    /// Every file.
    pub names: Vec<WalFileName>,
    /// What was streamed of segments, stored whole or not.
    pub tails: Vec<TailPlace>,
    /// When the newest file of each timeline was stored, by the store's clock.
    pub last_written: BTreeMap<Timeline, DateTime<Utc>>,
}

impl WalFacts {
    /// The timelines that files are there of.
    pub(super) fn timelines(&self) -> BTreeSet<Timeline> {
        self.names
            .iter()
            .filter_map(WalFileName::timeline)
            .collect()
    }
}

/// The decision over WAL files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WalPlan {
    /// The files that may go, oldest first: a crash between two leaves no hole in what is kept.
    #[serde(serialize_with = "as_text")]
    pub remove: Vec<WalFileName>,
    /// What was streamed and says nothing any more: its segment is stored whole, or may go.
    #[serde(skip)]
    pub(crate) remove_tails: Vec<TailPlace>,
    /// Files that stay.
    pub kept: usize,
    /// From where on each timeline is kept without an end.
    #[serde(serialize_with = "as_text")]
    pub continuous_from: Vec<WalFileName>,
    /// The base backups that everything behind is kept of.
    #[serde(skip)]
    pub(crate) onward: Vec<PostgresPosition>,
    /// Segments that a hold keeps beside that: timeline, first, last.
    #[serde(skip)]
    pub(crate) held: Vec<(Timeline, u64, u64)>,
}

fn as_text<S: serde::Serializer>(names: &[WalFileName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(ToString::to_string))
}

/// What is kept of one timeline, in segment numbers.
#[derive(Debug, Default)]
struct Keep {
    /// Everything: nothing is known to compare with.
    all: bool,
    from: Option<u64>,
    ranges: Vec<(u64, u64)>,
}

impl Keep {
    fn onward(&mut self, first: u64) {
        self.from = Some(self.from.map_or(first, |from| from.min(first)));
    }

    fn holds(&self, number: u64) -> bool {
        self.all
            || self.from.is_some_and(|from| number >= from)
            || self
                .ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&number))
    }
}

/// `spans`: points (by place) that WAL is kept behind up to a moment.
pub(super) fn plan(
    input: &RetentionInput<'_>,
    judged: &[Judged<'_>],
    reached: &Reached<'_>,
    spans: &[(usize, Option<DateTime<Utc>>)],
) -> WalPlan {
    let Some(wal) = input.wal else {
        return WalPlan::default();
    };
    let bases = || judged.iter().filter_map(|one| one.facts.point.postgres());
    // Another size of segments was in use: their numbers cannot be compared.
    let one_size = wal.index.segment_bytes > 0
        && bases().all(|base| base.wal_segment_bytes == wal.index.segment_bytes);
    if input.policy.is_none() || bases().next().is_none() || !one_size {
        return WalPlan {
            kept: wal.names.len(),
            ..WalPlan::default()
        };
    }
    let keep = keep(wal, judged, reached, spans);
    let (onward, held) = continuous(wal, judged, reached, spans);
    let (mut remove, mut kept) = (Vec::new(), 0);
    for name in &wal.names {
        if is_kept(name, &keep, wal.index.segment_bytes) {
            kept += 1;
        } else {
            remove.push(name.clone());
        }
    }
    remove.sort_by_cached_key(ToString::to_string);
    let from = |(timeline, keep): (&Timeline, &Keep)| {
        let number = keep.from?;
        Some(WalFileName::of_number(
            number,
            *timeline,
            wal.index.segment_bytes,
        ))
    };
    let is_over = |tail: &&TailPlace| {
        let is_whole = tail
            .segment
            .timeline()
            .zip(tail.segment.number(wal.index.segment_bytes))
            .is_some_and(|(timeline, number)| wal.index.numbers(timeline).contains(&number));
        is_whole || !is_kept(&tail.segment, &keep, wal.index.segment_bytes)
    };
    WalPlan {
        remove,
        remove_tails: wal.tails.iter().filter(is_over).cloned().collect(),
        kept,
        continuous_from: keep.iter().filter_map(from).collect(),
        onward,
        held,
    }
}

/// What is kept without a gap: the bases that everything behind is kept of, and the stretches of holds.
fn continuous(
    wal: &WalFacts,
    judged: &[Judged<'_>],
    reached: &Reached<'_>,
    spans: &[(usize, Option<DateTime<Utc>>)],
) -> (Vec<PostgresPosition>, Vec<(Timeline, u64, u64)>) {
    let from = reached.from.iter();
    let mut onward: Vec<PostgresPosition> = from
        .filter_map(|facts| facts.point.postgres().cloned())
        .collect();
    let mut held = Vec::new();
    for (place, to) in spans {
        let facts = judged.get(*place).map(|one| one.facts);
        let Some(base) = facts.and_then(|facts| facts.point.postgres()) else {
            continue;
        };
        match end_of_span(judged, base, *to) {
            Some(last) => {
                let first = *wal.index.own_segments(base).start();
                held.push((base.timeline, first, last));
            }
            None => onward.push(base.clone()),
        }
    }
    (onward, held)
}

fn is_kept(name: &WalFileName, keep: &BTreeMap<Timeline, Keep>, segment_bytes: u64) -> bool {
    // A backup history file tells of a base that begins in its segment.
    let segment = match name {
        WalFileName::History { .. } => return true,
        WalFileName::Backup(text) => text.get(..24).and_then(|text| text.parse().ok()),
        WalFileName::Segment { .. } | WalFileName::Partial { .. } => Some(name.clone()),
    };
    let Some(segment) = segment else { return true };
    match (segment.timeline(), segment.number(segment_bytes)) {
        (Some(timeline), Some(number)) => keep.get(&timeline).is_none_or(|keep| keep.holds(number)),
        _ => true,
    }
}

fn keep(
    wal: &WalFacts,
    judged: &[Judged<'_>],
    reached: &Reached<'_>,
    spans: &[(usize, Option<DateTime<Utc>>)],
) -> BTreeMap<Timeline, Keep> {
    let mut keep: BTreeMap<Timeline, Keep> = wal
        .timelines()
        .into_iter()
        .map(|timeline| (timeline, Keep::default()))
        .collect();
    for one in judged.iter().filter(|one| !one.reasons.is_empty()) {
        if let Some(base) = one.facts.point.postgres() {
            keep_own(base, wal, &mut keep);
        }
    }
    let onward: Vec<&PostgresPosition> = reached
        .from
        .iter()
        .filter_map(|facts| facts.point.postgres())
        .collect();
    for base in &onward {
        keep_behind(base, None, wal, &mut keep);
    }
    for (place, to) in spans {
        let facts = judged.get(*place).map(|one| one.facts);
        if let Some(base) = facts.and_then(|facts| facts.point.postgres()) {
            keep_behind(base, end_of_span(judged, base, *to), wal, &mut keep);
        }
    }
    for (timeline, keep) in &mut keep {
        let no_history = timeline.0 > 1 && wal.index.history_of(*timeline).is_empty();
        // A base may be under way on a timeline before any point of it is listed.
        let no_base = reached.followed.contains(timeline)
            && !onward
                .iter()
                .any(|base| leads_to(base, *timeline, Some(wal)));
        keep.all = no_history || no_base;
    }
    keep
}

/// A point's own segments, from its START to its STOP.
fn keep_own(base: &PostgresPosition, wal: &WalFacts, keep: &mut BTreeMap<Timeline, Keep>) {
    let numbers = wal.index.own_segments(base);
    let (first, last) = (*numbers.start(), *numbers.end());
    keep.entry(base.timeline)
        .or_default()
        .ranges
        .push((first, last));
    // In the segment of a switch the parent's file may have to serve.
    for switch in wal.index.history_of(base.timeline) {
        let at = switch.at.0 / wal.index.segment_bytes;
        if numbers.contains(&at) {
            keep.entry(switch.parent)
                .or_default()
                .ranges
                .push((first, at));
        }
    }
}

/// Everything behind a base, along every timeline that can be reached from it; on its own timeline up
/// to `last` where that is known.
fn keep_behind(
    base: &PostgresPosition,
    last: Option<u64>,
    wal: &WalFacts,
    keep: &mut BTreeMap<Timeline, Keep>,
) {
    let first = *wal.index.own_segments(base).start();
    for (timeline, keep) in keep {
        if !leads_to(base, *timeline, Some(wal)) {
            continue;
        }
        match last.filter(|_| *timeline == base.timeline) {
            Some(last) => keep.ranges.push((first, last)),
            None => keep.onward(first),
        }
    }
}

/// The last segment of the first base behind the span, if it lies on the same timeline.
fn end_of_span(
    judged: &[Judged<'_>],
    base: &PostgresPosition,
    to: Option<DateTime<Utc>>,
) -> Option<u64> {
    let to = to?;
    let behind = judged
        .iter()
        .map(|one| &one.facts.point)
        .find(|point| is_whole_workload(point) && point.moment >= to)?
        .postgres()?;
    (behind.timeline == base.timeline && behind.stop_lsn >= base.stop_lsn)
        .then(|| behind.stop_lsn.0 / behind.wal_segment_bytes)
}

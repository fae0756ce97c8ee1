//! What can be reached with what is stored: pure deciding over restore points and WAL file names.
//!
//! From a base backup, replay goes on as long as no segment is missing, over timeline switches where a
//! `.history` file tells of them. A segment that is missing behind the end of the chain although newer
//! ones are stored is a gap: everything behind it is out of reach of this base.

use std::collections::{BTreeMap, BTreeSet};

use dr_model::{
    Lsn, PostgresPosition, RecoveryWindow, RestorePoint, Timeline, WalFileName, WorkloadName,
};
use dr_store::{Repository, TailEnd, TailPlace};

use crate::BackupError;
use crate::error::store_error;

/// At most this many missing segments are named one by one.
const GAPS_NAMED_MAX: usize = 16;

/// The WAL that a repository holds for one workload.
#[derive(Debug, Clone, Default)]
pub struct WalIndex {
    segments: BTreeMap<Timeline, BTreeSet<u64>>,
    histories: BTreeMap<Timeline, Vec<TimelineSwitch>>,
    /// What was streamed of segments that are not stored whole.
    tails: BTreeMap<(Timeline, u64), TailEnd>,
    /// The segment size the numbers are counted in.
    pub segment_bytes: u64,
}

/// One line of a `.history` file: `parent` was left at `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub parent: Timeline,
    /// Where.
    pub at: Lsn,
}

/// How far the stored WAL reaches from one base backup without a gap. Pure value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalCoverage {
    /// The timeline that is followed at the end.
    pub timeline: Timeline,
    /// The last segment of the unbroken chain that begins at the base's first segment.
    pub last: Option<WalFileName>,
    /// The chain, and what was streamed behind it, reach to (excluding) this position.
    pub reaches_lsn: Lsn,
    /// What was streamed of the segment behind the chain.
    pub tail: Option<TailEnd>,
    /// Segments in the chain.
    pub segments: u64,
    /// Segments missing behind the chain although newer ones are stored.
    pub gaps: Vec<String>,
}

/// Reads the text of a `.history` file (`timeline.c`, `readTimeLineHistory`): lines of parent timeline,
/// LSN and reason; `#` begins a comment. `None` when it is not one.
#[must_use]
pub fn parse_history(text: &str) -> Option<Vec<TimelineSwitch>> {
    let mut switches: Vec<TimelineSwitch> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split_whitespace();
        let parent = Timeline(fields.next()?.parse().ok()?);
        let at: Lsn = fields.next()?.parse().ok()?;
        if switches.last().is_some_and(|last| last.parent >= parent) {
            return None;
        }
        switches.push(TimelineSwitch { parent, at });
    }
    Some(switches)
}

impl WalIndex {
    /// Builds an index from names and already parsed histories.
    #[must_use]
    pub fn new(
        names: &[WalFileName],
        histories: BTreeMap<Timeline, Vec<TimelineSwitch>>,
        segment_bytes: u64,
    ) -> Self {
        let mut segments: BTreeMap<Timeline, BTreeSet<u64>> = BTreeMap::new();
        for name in names {
            if let WalFileName::Segment { timeline, .. } = name
                && let Some(number) = name.number(segment_bytes)
            {
                segments.entry(*timeline).or_default().insert(number);
            }
        }
        Self {
            segments,
            histories,
            tails: BTreeMap::new(),
            segment_bytes,
        }
    }

    /// Adds what was streamed of segments that are not stored whole. Blocks: where the tails end is
    /// asked for.
    fn with_tails(
        mut self,
        repository: &Repository,
        workload: &WorkloadName,
        places: &[TailPlace],
    ) -> Result<Self, BackupError> {
        let names: BTreeSet<&WalFileName> = places.iter().map(|place| &place.segment).collect();
        for name in names {
            let (Some(timeline), Some(number)) = (name.timeline(), name.number(self.segment_bytes))
            else {
                continue;
            };
            if self.has(timeline, number) {
                continue;
            }
            let start = Lsn(number * self.segment_bytes);
            let failed =
                || store_error(format!("read the streamed WAL of `{workload}`"), repository);
            let end = repository
                .tail_end(workload, places, name, start)
                .map_err(failed())?;
            match end {
                Some(end) => {
                    self.tails.insert((timeline, number), end);
                }
                // Its tails went since they were listed, because the segment came.
                None if repository
                    .wal_info(workload, name)
                    .map_err(failed())?
                    .is_some() =>
                {
                    self.segments.entry(timeline).or_default().insert(number);
                }
                None => {}
            }
        }
        Ok(self)
    }

    /// Lists what `repository` holds for `workload` and reads its `.history` files. Blocks.
    ///
    /// # Errors
    /// When the repository cannot be read or a history file is damaged.
    pub fn read(
        repository: &Repository,
        workload: &WorkloadName,
        segment_bytes: u64,
    ) -> Result<Self, BackupError> {
        // Tails first: a segment is stored whole before anything of the next one is, so that no look shows
        // one of them missing.
        let tails = repository.tails(workload).map_err(store_error(
            format!("list the streamed WAL of `{workload}`"),
            repository,
        ))?;
        let names = repository.list_wal(workload).map_err(store_error(
            format!("list the WAL of `{workload}`"),
            repository,
        ))?;
        let mut histories = BTreeMap::new();
        for name in &names {
            let WalFileName::History { timeline } = name else {
                continue;
            };
            let body = repository
                .get_wal(workload, name)
                .map_err(store_error(
                    format!("read {name} of `{workload}`"),
                    repository,
                ))?
                .unwrap_or_default();
            let switches = std::str::from_utf8(&body)
                .ok()
                .and_then(parse_history)
                .ok_or_else(|| BackupError::BadRecord {
                    what: format!("{name} of `{workload}`"),
                    place: repository.describe(),
                    detail: "it is no timeline history".to_owned(),
                })?;
            histories.insert(*timeline, switches);
        }
        Self::new(&names, histories, segment_bytes).with_tails(repository, workload, &tails)
    }

    /// The timelines on which replay from `base` can end, oldest first: its own, and those that left
    /// it (or a descendant) at or behind the end of the base backup.
    #[must_use]
    pub fn timelines_from(&self, base: &PostgresPosition) -> Vec<Timeline> {
        let mut found = vec![base.timeline];
        for (timeline, switches) in &self.histories {
            let descends = switches
                .iter()
                .any(|switch| switch.parent == base.timeline && switch.at >= base.stop_lsn);
            if descends && *timeline > base.timeline {
                found.push(*timeline);
            }
        }
        found
    }

    /// Where `timeline` left each of its ancestors, oldest first.
    #[must_use]
    pub fn history_of(&self, timeline: Timeline) -> &[TimelineSwitch] {
        self.histories.get(&timeline).map_or(&[], Vec::as_slice)
    }

    /// The numbers of the segments that a base cannot do without, from its START to its STOP.
    #[must_use]
    pub(crate) fn own_segments(&self, base: &PostgresPosition) -> std::ops::RangeInclusive<u64> {
        let size = self.segment_bytes;
        let first = base.start_lsn.0 / size;
        // STOP is the end of the last record: at a boundary it lies in the segment before.
        let last = base.stop_lsn.0.saturating_sub(1) / size;
        let named = |name: &WalFileName| name.number(size);
        let first = named(&base.start_segment).map_or(first, |named| named.min(first));
        let last = named(&base.stop_segment).map_or(last, |named| named.max(last));
        first..=last.max(first)
    }

    /// Whether every segment that a base cannot do without is stored.
    pub(crate) fn has_own_wal(&self, base: &PostgresPosition) -> bool {
        self.segment_bytes > 0
            && self
                .own_segments(base)
                .all(|number| self.stored_segment(base.timeline, number).is_some())
    }

    /// The timelines of which segments are stored.
    pub(crate) fn timelines(&self) -> impl Iterator<Item = Timeline> + '_ {
        self.segments.keys().copied()
    }

    /// The numbers of the segments that are stored of a timeline.
    pub(crate) fn numbers(&self, timeline: Timeline) -> &BTreeSet<u64> {
        static NONE: BTreeSet<u64> = BTreeSet::new();
        self.segments.get(&timeline).unwrap_or(&NONE)
    }

    /// Adds where a timeline left its ancestors, for one whose `.history` is not stored yet.
    pub(crate) fn learn_history(&mut self, timeline: Timeline, switches: Vec<TimelineSwitch>) {
        self.histories.entry(timeline).or_insert(switches);
    }

    /// The newest segment before `end` that replay along `timeline` finds stored.
    pub(crate) fn newest_before(&self, timeline: Timeline, end: u64) -> Option<u64> {
        let own = std::iter::once(timeline);
        let parents = self.history_of(timeline).iter().map(|switch| switch.parent);
        own.chain(parents)
            .filter_map(|of| {
                let numbers = self.numbers(of).range(..end).rev();
                numbers
                    .copied()
                    .find(|number| self.timeline_of_segment(timeline, *number) == of)
            })
            .max()
    }

    fn has(&self, timeline: Timeline, number: u64) -> bool {
        self.segments
            .get(&timeline)
            .is_some_and(|numbers| numbers.contains(&number))
    }

    /// The timeline in the file name of segment `number` when `timeline` is followed: PostgreSQL takes
    /// the segment of the newest timeline in which it begins, or in which the switch lies.
    pub(crate) fn timeline_of_segment(&self, timeline: Timeline, number: u64) -> Timeline {
        for switch in self.history_of(timeline) {
            // The segment in which a switch lies exists on both; the child's copy is complete.
            if number < switch.at.0 / self.segment_bytes {
                return switch.parent;
            }
        }
        timeline
    }

    /// The stored segment that replay along `timeline` reads for `number`. In the segment of a switch
    /// the parent's file serves up to the switch when the child's is not there.
    pub(crate) fn stored_segment(&self, timeline: Timeline, number: u64) -> Option<WalFileName> {
        let named = self.timeline_of_segment(timeline, number);
        self.has(named, number)
            .then(|| WalFileName::of_number(number, named, self.segment_bytes))
    }

    /// The segments that replay along `timeline` finds, whole or streamed in part, by number, oldest first.
    pub(crate) fn stored_along(&self, timeline: Timeline) -> Vec<(u64, WalFileName)> {
        let parents = self.history_of(timeline).iter().map(|switch| switch.parent);
        let on_the_way: BTreeSet<Timeline> = parents.chain([timeline]).collect();
        let whole = on_the_way
            .iter()
            .flat_map(|of| self.numbers(*of).iter().copied());
        let begun = self.tails.keys().filter(|(of, _)| on_the_way.contains(of));
        let numbers: BTreeSet<u64> = whole.chain(begun.map(|(_, number)| *number)).collect();
        let named = |number: u64| {
            let of = self.timeline_of_segment(timeline, number);
            let is_there = self.has(of, number) || self.tails.contains_key(&(of, number));
            is_there.then(|| {
                (
                    number,
                    WalFileName::of_number(number, of, self.segment_bytes),
                )
            })
        };
        numbers.into_iter().filter_map(named).collect()
    }

    /// How far the stored WAL reaches from `base` along `timeline`.
    #[must_use]
    pub fn coverage(&self, base: &PostgresPosition, timeline: Timeline) -> WalCoverage {
        let first = base.start_lsn.0 / self.segment_bytes;
        let mut number = first;
        let mut last = None;
        while let Some(name) = self.stored_segment(timeline, number) {
            last = Some(name);
            number += 1;
        }
        let newest = self.newest_number(timeline).unwrap_or(0);
        let tail = self.tail_of(timeline, number);
        // A segment that grows lacks nothing; one that was left behind lacks its rest.
        let grows = tail.is_some() && newest <= number;
        let lacking = number + u64::from(grows);
        WalCoverage {
            timeline,
            last,
            reaches_lsn: tail.map_or(Lsn(number * self.segment_bytes), |tail| tail.to),
            tail,
            segments: number - first,
            gaps: self.gaps(timeline, lacking, newest),
        }
    }

    /// The place of the restore point by which the present is judged: the newest one, unless production has gone
    /// on on a timeline since that does not lead away from it (a restore in place to before it). Then the newest
    /// one from which that is reached.
    fn leads_to_production(
        &self,
        repository: &Repository,
        workload: &WorkloadName,
        whole: &[&RestorePoint],
    ) -> Result<usize, BackupError> {
        let last = whole.len().saturating_sub(1);
        let leads_to = |point: &RestorePoint, timeline| {
            (point.postgres()).is_some_and(|base| self.timelines_from(base).contains(&timeline))
        };
        let Some((&written, numbers)) = self.segments.last_key_value() else {
            return Ok(last);
        };
        let Some(newest) = whole.get(last).filter(|newest| !leads_to(newest, written)) else {
            return Ok(last);
        };
        let Some(number) = numbers.last() else {
            return Ok(last);
        };
        let name = WalFileName::of_number(*number, written, self.segment_bytes);
        let info = repository.wal_info(workload, &name).map_err(store_error(
            format!("look at {name} of `{workload}`"),
            repository,
        ))?;
        // One that was left again before the newest backup is not production's.
        if info.is_none_or(|info| info.pushed_at <= newest.finished) {
            return Ok(last);
        }
        let found = whole.iter().rposition(|point| leads_to(point, written));
        Ok(found.unwrap_or(last))
    }

    /// The first segment that a chain lacks although later ones are stored.
    fn first_missing(&self, timeline: Timeline, coverage: &WalCoverage) -> Option<WalFileName> {
        let first: WalFileName = coverage.gaps.first()?.parse().ok()?;
        let number = first.number(self.segment_bytes)?;
        let (newest, _) = self.stored_along(timeline).pop()?;
        (newest > number).then_some(first)
    }

    /// What was streamed of the segment that replay along `timeline` reads for `number`. In the segment of
    /// a switch the parent's serves up to the switch while there is nothing of the child's.
    fn tail_of(&self, timeline: Timeline, number: u64) -> Option<TailEnd> {
        let of = |timeline| self.tails.get(&(timeline, number)).copied();
        of(self.timeline_of_segment(timeline, number)).or_else(|| {
            let switches = self.history_of(timeline).iter().rev();
            let mut here = switches.filter(|switch| switch.at.0 / self.segment_bytes == number);
            here.find_map(|switch| {
                let tail = of(switch.parent)?;
                Some(TailEnd {
                    to: tail.to.min(switch.at),
                    // What the parent's server sent says nothing of what the child did since.
                    is_servers_end: false,
                    ..tail
                })
            })
        })
    }

    /// The newest segment of a timeline that has to be whole: the newest one that is, or the one before
    /// what was streamed.
    pub(crate) fn newest_whole_wanted(&self, timeline: Timeline) -> Option<u64> {
        let whole = self.numbers(timeline).last().copied();
        let begun = self.tails.range((timeline, 0)..=(timeline, u64::MAX));
        let begun = begun.map(|((_, number), _)| *number).next_back();
        whole.max(begun.and_then(|number| number.checked_sub(1)))
    }

    /// The newest segment on the way along `timeline`.
    fn newest_number(&self, timeline: Timeline) -> Option<u64> {
        self.newest_whole_wanted(timeline).or_else(|| {
            self.history_of(timeline)
                .last()
                .map(|s| s.at.0 / self.segment_bytes)
        })
    }

    fn gaps(&self, timeline: Timeline, from: u64, newest: u64) -> Vec<String> {
        let missing: Vec<u64> = (from..=newest)
            .take(1 << 16)
            .filter(|number| self.stored_segment(timeline, *number).is_none())
            .collect();
        let mut named: Vec<String> = missing
            .iter()
            .take(GAPS_NAMED_MAX)
            .map(|number| {
                let named = self.timeline_of_segment(timeline, *number);
                WalFileName::of_number(*number, named, self.segment_bytes).to_string()
            })
            .collect();
        if missing.len() > GAPS_NAMED_MAX {
            named.push(format!("and {} more", missing.len() - GAPS_NAMED_MAX));
        }
        named
    }
}

/// The segment size of a workload's cluster, known from its restore points.
pub(crate) fn segment_bytes_of(points: &[RestorePoint]) -> Option<u64> {
    points
        .iter()
        .rev()
        .find_map(|point| point.postgres().map(|p| p.wal_segment_bytes))
}

/// Whether a restore point counts as one from which the whole workload can be restored.
pub(crate) fn is_whole_workload(point: &RestorePoint) -> bool {
    !matches!(point.position, dr_model::Position::TenantState(_))
}

/// The recovery window of a workload; `None` while it has no restore point. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub fn window(
    repository: &Repository,
    workload: &WorkloadName,
) -> Result<Option<RecoveryWindow>, BackupError> {
    let points = repository.points(Some(workload)).map_err(store_error(
        format!("list the restore points of `{workload}`"),
        repository,
    ))?;
    window_of(repository, workload, &points)
}

/// [`window`] over restore points that are at hand already. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub fn window_of(
    repository: &Repository,
    workload: &WorkloadName,
    points: &[RestorePoint],
) -> Result<Option<RecoveryWindow>, BackupError> {
    Ok(look(repository, workload, points)?.window)
}

/// What is stored of a workload: its window, and how its WAL stands behind the newest base backup.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) window: Option<RecoveryWindow>,
    pub(crate) behind: Option<BehindNewest>,
}

/// How the WAL stands behind the newest base backup, along the newest timeline that leads away from it.
#[derive(Debug)]
pub(crate) struct BehindNewest {
    /// The base backup.
    pub(crate) base: PostgresPosition,
    /// The timeline.
    pub(crate) timeline: Timeline,
    /// Replay reaches to (excluding) this position.
    pub(crate) reaches: Lsn,
    /// Whether something is missing before the end that is known.
    pub(crate) has_gaps: bool,
    /// The first segment that is missing although later ones are stored. One that the server is still in, or
    /// that it was in when a timeline began, is not missing but not there yet.
    pub(crate) first_missing: Option<WalFileName>,
    /// Whether a copy was asked, because the repository does not answer: it may be behind.
    pub(crate) is_of_a_copy: bool,
    index: WalIndex,
}

impl BehindNewest {
    /// How far replay goes, unless something is missing before the end.
    pub(crate) fn reached(&self) -> Option<(Timeline, Lsn)> {
        (!self.has_gaps).then_some((self.timeline, self.reaches))
    }

    /// Whether a segment that is not stored keeps what came behind it from being recovered: it lies on the way
    /// along the timeline, the base backup began before its end, and replay does not pass it.
    pub(crate) fn is_cut_by(&self, segment: &WalFileName) -> bool {
        let size = self.index.segment_bytes;
        let Some(number) = segment.number(size) else {
            return false;
        };
        let end = Lsn(number.saturating_add(1).saturating_mul(size));
        let of = self.index.timeline_of_segment(self.timeline, number);
        segment.timeline() == Some(of) && self.base.start_lsn < end && self.reaches < end
    }
}

/// Looks at what is stored. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub(crate) fn look(
    repository: &Repository,
    workload: &WorkloadName,
    points: &[RestorePoint],
) -> Result<Look, BackupError> {
    let whole: Vec<&RestorePoint> = points.iter().filter(|p| is_whole_workload(p)).collect();
    let (Some(oldest), Some(newest)) = (whole.first(), whole.last()) else {
        return Ok(Look::default());
    };
    let mut window = RecoveryWindow {
        from: oldest.moment,
        to: newest.moment,
        gaps: Vec::new(),
    };
    let Some(segment_bytes) = segment_bytes_of(points) else {
        return Ok(Look {
            window: Some(window),
            behind: None,
        });
    };
    let mut behind = None;
    let index = WalIndex::read(repository, workload, segment_bytes)?;
    let judged = index.leads_to_production(repository, workload, &whole)?;
    if let Some(point) = whole.get(judged) {
        window.to = point.moment;
    }
    for (place, point) in whole.iter().enumerate() {
        let Some(base) = point.postgres() else {
            continue;
        };
        let timeline = index.timelines_from(base).pop().unwrap_or(base.timeline);
        let coverage = index.coverage(base, timeline);
        let is_newest = place == judged;
        // A gap that lies behind a newer base is an end of what the older one reaches, and a hole only
        // up to the newer one.
        let first_missing = index.first_missing(timeline, &coverage);
        for gap in coverage.gaps.iter().filter(|_| first_missing.is_some()) {
            if !window.gaps.contains(gap) {
                window.gaps.push(gap.clone());
            }
        }
        if is_newest && let Some(last) = &coverage.last {
            let info = repository.wal_info(workload, last).map_err(store_error(
                format!("look at {last} of `{workload}`"),
                repository,
            ))?;
            if let Some(info) = info {
                window.to = window.to.max(info.pushed_at);
            }
        }
        if is_newest && let Some(tail) = coverage.tail.filter(|tail| tail.is_servers_end) {
            window.to = window.to.max(tail.sent_at);
        }
        if is_newest {
            behind = Some((base.clone(), timeline, coverage, first_missing));
        }
    }
    let behind = behind.map(|(base, timeline, coverage, first_missing)| BehindNewest {
        base,
        timeline,
        reaches: coverage.reaches_lsn,
        has_gaps: !coverage.gaps.is_empty(),
        first_missing,
        is_of_a_copy: repository.stands_in_for().is_some(),
        index,
    });
    Ok(Look {
        window: Some(window),
        behind,
    })
}

#[cfg(test)]
mod tests;

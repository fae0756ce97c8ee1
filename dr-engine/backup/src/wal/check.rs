//! What the stored WAL is good for, timeline by timeline: its stretches, its gaps, what cannot be
//! reached because of them, and, when the records are read, what they hold.
//!
//! Which segments are wanted is decided over names alone ([`spans`]), and by what retention keeps: what it
//! let go is not missed. Reading the records proves more than that each file opens: every record has its
//! checksum, and follows the one before it.
//!
//! Whatever is wrong with what a repository holds is in the answer. An error is a repository that does
//! not answer.

mod records;
mod spans;

use std::ops::RangeInclusive;
use std::sync::Arc;

use dr_config::Workload;
use dr_installation::Installation;
use dr_model::{
    Lsn, PostgresPosition, Progress, RecoveryWindow, RestorePoint, RestorePointId, Timeline,
    WalFileName, WorkloadKind, WorkloadName,
};
use dr_store::{Repository, StoreError};
use serde::Serialize;

use crate::BackupError;
use crate::error::store_error;
use crate::prune::retention_of;
use crate::run::blocking;
use crate::status::chain;
use crate::window::{WalIndex, segment_bytes_of, window_of};
pub use records::RecordsFound;
use records::Tail;
use spans::{Span, Wanted, spans};

/// What is known of a workload's WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalCheck {
    /// The workload.
    pub workload: WorkloadName,
    /// How many restore points it has.
    pub restore_points: usize,
    /// The moments it can be restored to.
    pub window: Option<RecoveryWindow>,
    /// Segments without a gap between them, by timeline and position.
    pub stretches: Vec<WalStretch>,
    /// What is missing.
    pub gaps: Vec<WalGap>,
    /// What else is wrong.
    pub problems: Vec<String>,
}

impl WalCheck {
    /// Whether nothing is missing and nothing is wrong. What is missing of a branch that was left, and of
    /// no restore point, is told, and nobody can do anything about it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let harmless = |gap: &WalGap| gap.is_abandoned && gap.breaks.is_empty();
        self.gaps.iter().all(harmless) && self.problems.is_empty()
    }
}

/// Segments without a gap between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalStretch {
    /// Their timeline.
    pub timeline: Timeline,
    /// The first one.
    pub first: WalFileName,
    /// The last one.
    pub last: WalFileName,
    /// How many they are.
    pub segments: u64,
    /// Where the first one begins.
    pub from: Lsn,
    /// Where the last one ends.
    pub to: Lsn,
    /// What their records say, if they were read.
    pub records: Option<RecordsFound>,
}

/// Segments that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalGap {
    /// Their timeline.
    pub timeline: Timeline,
    /// The first one.
    pub first: WalFileName,
    /// The last one.
    pub last: WalFileName,
    /// How many they are.
    pub segments: u64,
    /// Nothing that was written from here on ...
    pub from: Lsn,
    /// ... can be recovered until this restore point; not at all if there is none.
    pub until: Option<RestorePointId>,
    /// Whether it lies behind the point at which another timeline left this one.
    pub is_abandoned: bool,
    /// Restore points that cannot be restored without them.
    pub breaks: Vec<RestorePointId>,
}

/// A workload's base backups and WAL files.
struct Stored {
    points: Vec<RestorePoint>,
    index: WalIndex,
    onward: Vec<PostgresPosition>,
    held: Vec<(Timeline, u64, u64)>,
}

impl Stored {
    /// The base backups, with their restore points.
    fn bases(&self) -> impl Iterator<Item = (&RestorePointId, &PostgresPosition)> {
        let points = self.points.iter();
        points.filter_map(|point| Some((&point.id, point.postgres()?)))
    }

    /// The timelines that left another one, with the number of the segment of the switch.
    fn children_of(&self, parent: Timeline) -> impl Iterator<Item = (Timeline, u64, Lsn)> + '_ {
        let bases = self.bases().map(|(_, base)| base.timeline);
        let known: std::collections::BTreeSet<Timeline> =
            self.index.timelines().chain(bases).collect();
        let size = self.index.segment_bytes;
        known.into_iter().filter_map(move |timeline| {
            let history = self.index.history_of(timeline).iter();
            let mut left = history.filter(move |switch| switch.parent == parent);
            left.next()
                .map(|switch| (timeline, switch.at.0 / size, switch.at))
        })
    }
}

/// Looks at the WAL of one PostgreSQL workload or of all; reads every record where `read_records` says so.
///
/// # Errors
/// When a repository does not answer, or `only` is no PostgreSQL workload.
pub async fn check(
    installation: &Installation,
    only: Option<WorkloadName>,
    read_records: bool,
    progress: Arc<dyn Progress>,
) -> Result<Vec<WalCheck>, BackupError> {
    let config = &installation.config;
    let is_postgres = |workload: &Workload<'_>| workload.source.kind() == WorkloadKind::Postgres;
    let workloads: Vec<WorkloadName> = match only {
        Some(name) if is_postgres(&config.workload(name.as_str())?) => vec![name],
        Some(workload) => {
            return Err(BackupError::WrongKind {
                workload,
                needed: "postgres",
            });
        }
        None => (config.workloads().filter(is_postgres))
            .map(|workload| workload.name.clone())
            .collect(),
    };
    let installation = installation.clone();
    blocking("check WAL", move || {
        let each = workloads.iter();
        each.map(|name| of_workload(&installation, name, read_records, progress.as_ref()))
            .collect()
    })
    .await
}

fn of_workload(
    installation: &Installation,
    workload: &WorkloadName,
    read_records: bool,
    progress: &dyn Progress,
) -> Result<WalCheck, BackupError> {
    let repository = installation.repository_of(workload)?;
    let look = || look(installation, &repository, workload);
    let (mut found, mut stored) = look()?;
    if !found.gaps.is_empty() {
        // Several segments may be archived at once, and a later one be stored first.
        (found, stored) = look()?;
    }
    if read_records && let Some(stored) = &stored {
        found.read(&repository, stored, progress)?;
    }
    Ok(found)
}

/// Everything that names tell.
fn look(
    installation: &Installation,
    repository: &Repository,
    workload: &WorkloadName,
) -> Result<(WalCheck, Option<Stored>), BackupError> {
    let points = repository.points(Some(workload)).map_err(store_error(
        format!("list the restore points of `{workload}`"),
        repository,
    ))?;
    let mut found = WalCheck {
        workload: workload.clone(),
        restore_points: points.len(),
        window: None,
        stretches: Vec::new(),
        gaps: Vec::new(),
        problems: Vec::new(),
    };
    let Some(segment_bytes) = segment_bytes_of(&points) else {
        return Ok((found, None));
    };
    let window = window_of(repository, workload, &points);
    found.window = found.unless_wrong(window)?.flatten();
    let index = WalIndex::read(repository, workload, segment_bytes);
    let Some(index) = found.unless_wrong(index)? else {
        return Ok((found, None));
    };
    let kept = retention_of(installation, repository, workload, points.clone());
    let kept = found.unless_wrong(kept)?.map(|plan| plan.wal);
    let kept = kept.unwrap_or_default();
    let stored = Stored {
        points,
        index,
        onward: kept.onward,
        held: kept.held,
    };
    found.tell(&stored);
    Ok((found, Some(stored)))
}

impl WalCheck {
    /// Takes what is wrong with the repository's content into the problems.
    fn unless_wrong<T>(
        &mut self,
        outcome: Result<T, BackupError>,
    ) -> Result<Option<T>, BackupError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(
                error @ BackupError::Store {
                    source: StoreError::Backend { .. },
                    ..
                },
            ) => Err(error),
            Err(error) => {
                let problem = chain(&error);
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
                Ok(None)
            }
        }
    }

    fn tell(&mut self, stored: &Stored) {
        let bases: Vec<&PostgresPosition> = stored.bases().map(|(_, base)| base).collect();
        let size = stored.index.segment_bytes;
        let name = |number, timeline| WalFileName::of_number(number, timeline, size);
        let wanted = Wanted {
            bases: &bases,
            onward: &stored.onward,
            held: &stored.held,
        };
        for Span {
            timeline,
            numbers,
            is_there,
        } in spans(&stored.index, &wanted)
        {
            let (first, last) = (*numbers.start(), *numbers.end());
            let segments = last - first + 1;
            let from = Lsn(first.saturating_mul(size));
            if is_there {
                self.stretches.push(WalStretch {
                    timeline,
                    first: name(first, timeline),
                    last: name(last, timeline),
                    segments,
                    from,
                    to: Lsn((last + 1).saturating_mul(size)),
                    records: None,
                });
            } else {
                let mut children = stored.children_of(timeline);
                self.gaps.push(WalGap {
                    timeline,
                    first: name(first, timeline),
                    last: name(last, timeline),
                    segments,
                    from,
                    until: next_base(stored, timeline, &numbers),
                    is_abandoned: children.any(|(_, left, _)| left <= first),
                    breaks: broken_by(stored, timeline, &numbers),
                });
            }
        }
        for timeline in stored.index.timelines() {
            if timeline.0 > 1 && stored.index.history_of(timeline).is_empty() {
                self.problems.push(format!(
                    "{:08X}.history is missing: nothing tells where timeline {timeline} left its parent",
                    timeline.0
                ));
            }
        }
    }

    fn read(
        &mut self,
        repository: &Repository,
        stored: &Stored,
        progress: &dyn Progress,
    ) -> Result<(), BackupError> {
        let stretches = self.stretches.iter();
        let bytes: u64 = stretches.map(|one| one.to.0 - one.from.0).sum();
        progress.phase(
            &format!("reading the WAL of `{}`", self.workload),
            Some(bytes),
        );
        let size = stored.index.segment_bytes;
        let reading = records::Reading {
            repository,
            workload: &self.workload,
            segment_bytes: size,
            system_id: stored.bases().next().map(|(_, base)| base.system_id),
            progress,
        };
        for stretch in &mut self.stretches {
            let behind = stretch.to.0 / size;
            // The child's copy of the segment of a switch begins with its parent's records: they are the
            // parent's, and end them where it has no file of its own.
            let left = stored.index.history_of(stretch.timeline).last();
            let mut children = stored.children_of(stretch.timeline);
            let child = children.find(|(child, left, _)| {
                *left == behind && stored.index.numbers(*child).contains(left)
            });
            let tail = child.map(|(child, number, at)| Tail {
                name: WalFileName::of_number(number, child, size),
                until: at,
            });
            let own_from = left.map_or(Lsn(0), |switch| switch.at);
            let newest = stored.index.numbers(stretch.timeline).last().copied();
            let plan = records::Stretch {
                timeline: stretch.timeline,
                first: stretch.from.0 / size,
                last: behind.saturating_sub(1),
                own_from,
                tail,
                is_newest: newest.is_some_and(|newest| newest < behind),
            };
            stretch.records = Some(reading.stretch(&plan, &mut self.problems)?);
        }
        Ok(())
    }
}

/// The first restore point behind a gap, on its timeline or on one that left it behind the gap.
fn next_base(
    stored: &Stored,
    timeline: Timeline,
    gap: &RangeInclusive<u64>,
) -> Option<RestorePointId> {
    let later: Vec<Timeline> = stored
        .children_of(timeline)
        .filter(|(_, left, _)| left > gap.end())
        .map(|(child, _, _)| child)
        .collect();
    let behind = stored.bases().filter(|(_, base)| {
        let is_on_line = base.timeline == timeline || later.contains(&base.timeline);
        is_on_line && stored.index.own_segments(base).start() > gap.end()
    });
    let first = behind.min_by_key(|(_, base)| base.start_lsn);
    first.map(|(id, _)| id.clone())
}

/// The restore points of whose own WAL a gap takes a part.
fn broken_by(
    stored: &Stored,
    timeline: Timeline,
    gap: &RangeInclusive<u64>,
) -> Vec<RestorePointId> {
    let broken = stored.bases().filter(|(_, base)| {
        let own = stored.index.own_segments(base);
        base.timeline == timeline && own.start() <= gap.end() && gap.start() <= own.end()
    });
    broken.map(|(id, _)| id.clone()).collect()
}

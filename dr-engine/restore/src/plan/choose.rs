//! Pure: from what is stored to what is restored.

use chrono::{DateTime, TimeDelta, Utc};
use dr_backup::wal::Wanted;
use dr_backup::{WalCoverage, WalIndex};
use dr_model::{
    Condition, PostgresPosition, RecoveryWindow, RestorePoint, Target, Timeline, WorkloadName,
};
use dr_store::Repository;

use super::live::Asked;
use super::{PlannedSource, PostgresPlan, RecoveryEnd, RestorePlan, RestoreRequest};
use crate::RestoreError;
use crate::error::store_error;

/// A segment arrives a little after its last commit, and commits of about that time may be in the next
/// one. A target nearer than this to the last arrival is treated as if it might lie behind it.
const ARRIVAL_MARGIN: TimeDelta = TimeDelta::seconds(60);

/// What is listed and stored of a workload.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) workload: WorkloadName,
    /// Sorted by moment.
    pub(super) points: Vec<RestorePoint>,
    pub(super) window: Option<RecoveryWindow>,
    pub(super) wal: WalIndex,
    /// For each point in turn: how far its WAL reaches along the followed timeline, and when the last
    /// segment of that arrived.
    reach: Vec<Reach>,
}

/// How far one base reaches.
#[derive(Debug, Clone)]
struct Reach {
    coverage: Option<WalCoverage>,
    arrived: Option<DateTime<Utc>>,
}

impl Stored {
    /// Adds to the lists how far each base reaches. Blocks: the arrival of the last segments is asked
    /// for.
    pub(super) fn new(
        repository: Repository,
        workload: WorkloadName,
        points: Vec<RestorePoint>,
        window: Option<RecoveryWindow>,
        wal: WalIndex,
    ) -> Result<Self, RestoreError> {
        let mut arrivals: Vec<(dr_model::WalFileName, Option<DateTime<Utc>>)> = Vec::new();
        let mut reach = Vec::new();
        for point in &points {
            let Some(base) = point.postgres() else {
                reach.push(Reach {
                    coverage: None,
                    arrived: None,
                });
                continue;
            };
            let timeline = wal.timelines_from(base).pop().unwrap_or(base.timeline);
            let coverage = wal.coverage(base, timeline);
            let arrived = match &coverage.last {
                None => None,
                // Most bases end in the same segment.
                Some(last) => match arrivals.iter().find(|(name, _)| name == last) {
                    Some((_, arrived)) => *arrived,
                    None => {
                        let info = repository.wal_info(&workload, last).map_err(store_error(
                            format!("look at {last} of `{workload}`"),
                            &repository,
                        ))?;
                        let arrived = info.map(|info| info.pushed_at);
                        arrivals.push((last.clone(), arrived));
                        arrived
                    }
                },
            };
            // What was streamed up to where the server's WAL ended then is the later news.
            let streamed = coverage.tail.filter(|tail| tail.is_servers_end);
            let arrived = arrived.max(streamed.map(|tail| tail.sent_at));
            reach.push(Reach {
                coverage: Some(coverage),
                arrived,
            });
        }
        Ok(Self {
            workload,
            points,
            window,
            wal,
            reach,
        })
    }

    fn window_text(&self) -> String {
        self.window
            .as_ref()
            .map_or_else(|| "empty".to_owned(), ToString::to_string)
    }

    /// The newest timeline that any base leads to.
    fn newest_timeline(&self) -> Option<Timeline> {
        self.points
            .iter()
            .filter_map(RestorePoint::postgres)
            .flat_map(|base| self.wal.timelines_from(base))
            .max()
    }

    /// Bases from which `timeline` can be followed and whose own WAL is whole, oldest first.
    fn bases(
        &self,
        timeline: Timeline,
    ) -> impl DoubleEndedIterator<Item = (&RestorePoint, &PostgresPosition, WalCoverage, DateTime<Utc>)>
    {
        self.points
            .iter()
            .zip(&self.reach)
            .filter_map(move |(point, reach)| {
                let base = point.postgres()?;
                self.wal
                    .timelines_from(base)
                    .contains(&timeline)
                    .then_some(())?;
                let coverage = self.wal.coverage(base, timeline);
                (coverage.reaches_lsn >= base.stop_lsn).then_some(())?;
                // Along another timeline than the followed one the arrival is not known: the point's own
                // end is certain.
                let same = reach
                    .coverage
                    .as_ref()
                    .is_some_and(|known| known.last == coverage.last);
                let arrived = reach
                    .arrived
                    .filter(|_| same)
                    .unwrap_or(point.moment)
                    .max(point.moment);
                Some((point, base, coverage, arrived))
            })
    }
}

/// Whether the archive is known to have passed `time`: a base backup began after it, or what was streamed
/// reached to the server's end after it. The arrival of a segment proves nothing: an archiver that fell
/// behind delivers old commits late.
fn archive_has_passed(
    stored: &Stored,
    timeline: Timeline,
    reaches_lsn: dr_model::Lsn,
    time: DateTime<Utc>,
) -> bool {
    stored.bases(timeline).any(|(point, base, coverage, _)| {
        // A commit's time is taken before it is written, and what is sent is looked up before it is sent.
        let streamed = coverage
            .tail
            .is_some_and(|tail| tail.is_servers_end && tail.sent_at >= time + ARRIVAL_MARGIN);
        (streamed || point.started >= time) && base.start_lsn <= reaches_lsn
    })
}

fn unreachable(stored: &Stored, target: &Target, why: String, nearest: String) -> RestoreError {
    RestoreError::Unreachable {
        workload: stored.workload.clone(),
        target: target.to_string(),
        why,
        window: stored.window_text(),
        nearest,
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// Whether the stored WAL may not hold everything up to the target.
pub(super) fn may_lie_behind_the_archive(request: &RestoreRequest, stored: &Stored) -> bool {
    let Some(timeline) = stored.newest_timeline() else {
        return false;
    };
    let Some((_, _, coverage, arrived)) = stored.bases(timeline).next_back() else {
        return false;
    };
    match &request.target {
        Target::Latest
        | Target::RestorePoint(_)
        | Target::Transaction(_)
        | Target::Before(_)
        | Target::Named(_) => false,
        Target::Time(time) => {
            let time = time.to_utc();
            time + ARRIVAL_MARGIN > arrived
                || !archive_has_passed(stored, timeline, coverage.reaches_lsn, time)
        }
        Target::Lsn(lsn) => *lsn >= coverage.reaches_lsn,
    }
}

/// Plans the restore of a folder or of streams: the newest point not later than the target.
pub(super) fn simple(
    request: &RestoreRequest,
    stored: &Stored,
) -> Result<RestorePlan, RestoreError> {
    let mut notes = Vec::new();
    let newest = stored
        .points
        .last()
        .ok_or_else(|| RestoreError::NoRestorePoint(stored.workload.clone()))?;
    let point = match &request.target {
        Target::Latest => newest,
        Target::RestorePoint(id) => by_id(stored, id)?,
        Target::Lsn(_) | Target::Transaction(_) | Target::Before(_) | Target::Named(_) => {
            return Err(RestoreError::WrongTarget {
                workload: stored.workload.clone(),
                kind: kind_of(newest).to_owned(),
                target: request.target.to_string(),
            });
        }
        Target::Time(time) => {
            let time = time.to_utc();
            let not_later = |point: &&RestorePoint| match request.exclusive {
                true => point.moment < time,
                false => point.moment <= time,
            };
            let found = stored.points.iter().rev().find(not_later);
            let point = found.ok_or_else(|| too_early(stored, &request.target))?;
            let age = (time - point.moment).num_seconds();
            if age > 0 {
                notes.push(format!(
                    "it holds the state of {}, {age} s before the target",
                    rfc3339(point.moment)
                ));
            }
            point
        }
    };
    let source = match &point.position {
        dr_model::Position::Nats(position) => PlannedSource::Nats {
            streams: position.streams.keys().cloned().collect(),
        },
        _ => PlannedSource::Files,
    };
    Ok(assemble(request, point, source, notes))
}

fn kind_of(point: &RestorePoint) -> &'static str {
    match point.position {
        dr_model::Position::Postgres(_) => "postgres",
        dr_model::Position::Nats(_) => "nats",
        dr_model::Position::Files(_) | dr_model::Position::TenantState(_) => "files",
    }
}

fn too_early(stored: &Stored, target: &Target) -> RestoreError {
    let first = stored
        .points
        .first()
        .map_or_else(|| "latest".to_owned(), |p| rfc3339(p.moment));
    unreachable(
        stored,
        target,
        "it lies before the first restore point".to_owned(),
        first,
    )
}

fn by_id<'a>(
    stored: &'a Stored,
    id: &dr_model::RestorePointId,
) -> Result<&'a RestorePoint, RestoreError> {
    stored
        .points
        .iter()
        .find(|point| point.id == *id)
        .ok_or_else(|| RestoreError::UnknownPoint {
            workload: stored.workload.clone(),
            point: id.clone(),
        })
}

/// Plans the restore of a cluster.
pub(super) fn cluster(
    request: &RestoreRequest,
    stored: &Stored,
    asked: Option<&Asked>,
) -> Result<RestorePlan, RestoreError> {
    if stored.points.is_empty() {
        return Err(RestoreError::NoRestorePoint(stored.workload.clone()));
    }
    let timeline = stored
        .newest_timeline()
        .ok_or_else(|| RestoreError::NoRestorePoint(stored.workload.clone()))?;
    match &request.target {
        Target::RestorePoint(id) => at_point(request, stored, by_id(stored, id)?),
        Target::Latest => {
            let (point, base, coverage, _) =
                stored.bases(timeline).next_back().ok_or_else(|| {
                    let why = "no restore point has all its WAL".to_owned();
                    unreachable(stored, &request.target, why, "none".to_owned())
                })?;
            let mut notes = branch_notes(stored, timeline);
            gap_note(&coverage, &mut notes);
            Ok(replay(
                request,
                stored,
                (point, base),
                coverage,
                RecoveryEnd::EndOfArchive,
                true,
                notes,
            ))
        }
        Target::Time(time) => at_time(request, stored, timeline, time.to_utc(), asked),
        Target::Lsn(lsn) => at_lsn(request, stored, timeline, *lsn, asked),
        // Whoever plans has looked for them.
        Target::Transaction(_) | Target::Before(_) | Target::Named(_) => {
            Err(not_found(request, stored, asked, &[]))
        }
    }
}

/// What is looked for in the records of the WAL, and on which timeline; `None` for other targets.
pub(super) fn wanted(request: &RestoreRequest, stored: &Stored) -> Option<(Wanted, Timeline)> {
    let wanted = match &request.target {
        Target::Transaction(xid) | Target::Before(xid) => Wanted::Transaction(*xid),
        Target::Named(name) => Wanted::Named(name.clone()),
        _ => return None,
    };
    Some((wanted, stored.newest_timeline()?))
}

/// A transaction or a name that no stored WAL has.
pub(super) fn not_found(
    request: &RestoreRequest,
    stored: &Stored,
    asked: Option<&Asked>,
    unread: &[String],
) -> RestoreError {
    let live = match asked {
        Some(Asked::Unavailable { why }) => format!(", and {why}"),
        _ => String::new(),
    };
    let along = match stored.newest_timeline() {
        Some(timeline) => format!(" of timeline {timeline}"),
        None => String::new(),
    };
    let unread = match unread {
        [] => String::new(),
        all => format!("; not looked through: {}", all.join("; ")),
    };
    let why = format!("no stored WAL{along} has it{live}{unread}");
    unreachable(stored, &request.target, why, "latest".to_owned())
}

fn at_point(
    request: &RestoreRequest,
    stored: &Stored,
    point: &RestorePoint,
) -> Result<RestorePlan, RestoreError> {
    let bad = |what: String| RestoreError::BadPoint {
        point: point.id.clone(),
        what,
    };
    let base = point
        .postgres()
        .ok_or_else(|| bad("it is no base backup".to_owned()))?;
    let coverage = stored.wal.coverage(base, base.timeline);
    if coverage.reaches_lsn < base.stop_lsn {
        return Err(bad(format!(
            "its WAL is missing: {}",
            coverage.gaps.join(", ")
        )));
    }
    let end = RecoveryEnd::Consistent;
    Ok(replay(
        request,
        stored,
        (point, base),
        coverage,
        end,
        false,
        Vec::new(),
    ))
}

fn at_time(
    request: &RestoreRequest,
    stored: &Stored,
    timeline: Timeline,
    time: DateTime<Utc>,
    asked: Option<&Asked>,
) -> Result<RestorePlan, RestoreError> {
    let Some((point, base, coverage, arrived)) = stored
        .bases(timeline)
        .rev()
        .find(|(point, ..)| point.moment <= time)
    else {
        return Err(too_early(stored, &request.target));
    };
    let mut notes = branch_notes(stored, timeline);
    let completed = matches!(asked, Some(Asked::Completed { at, .. }) if *at >= time);
    if !completed && time > arrived {
        let gap = coverage
            .gaps
            .first()
            .map(|gap| format!("; {gap} is missing"))
            .unwrap_or_default();
        let live = match asked {
            Some(Asked::Unavailable { why }) => format!(" and {why}"),
            _ => String::new(),
        };
        let why = format!("the stored WAL ends at {}{gap}{live}", rfc3339(arrived));
        return Err(unreachable(stored, &request.target, why, rfc3339(arrived)));
    }
    let passed = archive_has_passed(stored, timeline, coverage.reaches_lsn, time);
    // Newer WAL is stored behind a hole: the end of the chain is then not the end of what happened, and
    // stopping there would give an earlier state than the one asked for.
    if let (Some(gap), false) = (coverage.gaps.first(), passed)
        && time + ARRIVAL_MARGIN > arrived
    {
        let why = format!(
            "{gap} is missing, and nothing stored shows that the target lies before it; what comes before \
             it arrived until {}",
            rfc3339(arrived)
        );
        let nearest = rfc3339((arrived - ARRIVAL_MARGIN).max(point.moment));
        return Err(unreachable(stored, &request.target, why, nearest));
    }
    let end_of_archive_is_enough = coverage.gaps.is_empty();
    if let (Some(Asked::Unavailable { why }), false) = (asked, passed) {
        notes.push(format!(
            "nothing stored shows that the archive has passed the target, and {why}: commits that were \
             not archived are not in"
        ));
    }
    let end = RecoveryEnd::Time { time };
    Ok(replay(
        request,
        stored,
        (point, base),
        coverage,
        end,
        end_of_archive_is_enough,
        notes,
    ))
}

fn at_lsn(
    request: &RestoreRequest,
    stored: &Stored,
    timeline: Timeline,
    lsn: dr_model::Lsn,
    asked: Option<&Asked>,
) -> Result<RestorePlan, RestoreError> {
    let Some((point, base, coverage, _)) = stored
        .bases(timeline)
        .rev()
        .find(|(_, base, ..)| base.stop_lsn <= lsn)
    else {
        let nearest = stored.bases(timeline).next().map_or_else(
            || "latest".to_owned(),
            |(_, base, ..)| base.stop_lsn.to_string(),
        );
        let why = "it lies before the end of the first restore point".to_owned();
        return Err(unreachable(stored, &request.target, why, nearest));
    };
    if lsn >= coverage.reaches_lsn {
        let live = match asked {
            Some(Asked::Unavailable { why }) => format!(" and {why}"),
            Some(Asked::Completed { .. }) => " and the server has written no further".to_owned(),
            None => String::new(),
        };
        let gap = coverage
            .gaps
            .first()
            .map(|gap| format!("; {gap} is missing"))
            .unwrap_or_default();
        let why = format!("the stored WAL ends at {}{gap}{live}", coverage.reaches_lsn);
        return Err(unreachable(
            stored,
            &request.target,
            why,
            "latest".to_owned(),
        ));
    }
    let end = RecoveryEnd::Lsn { lsn };
    let notes = branch_notes(stored, timeline);
    Ok(replay(
        request,
        stored,
        (point, base),
        coverage,
        end,
        true,
        notes,
    ))
}

/// What a person should know about a history with branches.
fn branch_notes(stored: &Stored, timeline: Timeline) -> Vec<String> {
    stored
        .wal
        .history_of(timeline)
        .last()
        .map(|switch| {
            format!(
                "timeline {timeline} is followed; it left timeline {} at {}, and what timeline {} \
                 wrote behind that is not in",
                switch.parent, switch.at, switch.parent
            )
        })
        .into_iter()
        .collect()
}

fn gap_note(coverage: &WalCoverage, notes: &mut Vec<String>) {
    if let Some(gap) = coverage.gaps.first() {
        notes.push(format!(
            "WAL is missing from {gap} on: recovery ends before it"
        ));
    }
}

fn replay(
    request: &RestoreRequest,
    stored: &Stored,
    (point, base): (&RestorePoint, &PostgresPosition),
    coverage: WalCoverage,
    end: RecoveryEnd,
    end_of_archive_is_enough: bool,
    notes: Vec<String>,
) -> RestorePlan {
    let source = PlannedSource::Postgres(PostgresPlan {
        start_lsn: base.start_lsn,
        consistent_lsn: base.stop_lsn,
        timeline: coverage.timeline,
        end,
        first_segment: base.start_segment.clone(),
        last_segment: coverage
            .last
            .clone()
            .unwrap_or_else(|| base.stop_segment.clone()),
        reaches_lsn: coverage.reaches_lsn,
        segments: coverage.segments,
        end_of_archive_is_enough,
        window: stored.window.clone().unwrap_or(RecoveryWindow {
            from: point.moment,
            to: point.moment,
            gaps: Vec::new(),
        }),
    });
    assemble(request, point, source, notes)
}

fn assemble(
    request: &RestoreRequest,
    point: &RestorePoint,
    source: PlannedSource,
    mut notes: Vec<String>,
) -> RestorePlan {
    if let Condition::SourceDamaged { details } = &point.condition {
        notes.push(format!(
            "the source had {} damaged pages when this point was made: {}",
            details.len(),
            details.join("; ")
        ));
    }
    RestorePlan {
        workload: request.workload.clone(),
        target: request.target.clone(),
        delta: request.delta,
        discard_wal: request.discard_wal,
        exclusive: request.exclusive,
        into: request.into.clone(),
        as_primary: request.as_primary,
        config_into: request.config_into.clone(),
        tablespaces: request.tablespaces.clone(),
        port: request.port,
        replace: request.replace,
        without_erasures: request.without_erasures,
        point: point.clone(),
        source,
        notes,
    }
}

#[cfg(test)]
mod tests;

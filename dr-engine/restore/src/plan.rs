//! From a target to what must be restored and replayed.
//!
//! The deciding itself ([`choose`]) is pure: it looks at what is listed and stored and at nothing else.
//! Around it, [`plan`] reads the lists and, for a target that may lie behind the last stored WAL, asks
//! the live server to complete its current segment ([`live`]).
//!
//! Which base: the last one that had ended at or before the target, on the timeline that is followed.
//! Which timeline: the newest that the stored history files tell of; one target, one explicit timeline.

mod choose;
mod display;
mod live;

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use dr_backup::wal::{self, Search};
use dr_backup::{WalIndex, window_of};
use dr_config::{PostgresSource, WorkloadSource};
use dr_installation::{Installation, InstallationError};
use dr_model::{
    Lsn, Position, RecoveryWindow, RestorePoint, Silent, Target, Timeline, WalFileName,
    WorkloadName,
};
use dr_store::Repository;
use serde::{Deserialize, Serialize};

use crate::RestoreError;
use crate::error::{blocking, store_error};
use choose::Stored;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The workload.
    pub workload: WorkloadName,
    /// The folder; it must be empty or absent. Not for queues.
    pub into: Option<PathBuf>,
    /// The moment.
    pub target: Target,
    /// The folder may hold an older or damaged state of the same cluster, of which stays what is right.
    pub delta: bool,
    /// The WAL there may be lost, if it is not in the repository.
    pub discard_wal: bool,
    /// Stop just before the target instead of just after it.
    pub exclusive: bool,
    /// The restored cluster takes the source's place: it goes on archiving.
    pub as_primary: bool,
    /// Where configuration files from outside the data directory go; into the folder when left out.
    pub config_into: Option<PathBuf>,
    /// Where tablespaces go, by where they were.
    pub tablespaces: BTreeMap<PathBuf, PathBuf>,
    /// The port written into the restored configuration; the source's own when left out.
    pub port: Option<u16>,
    /// Queues: replace a stream that exists.
    pub replace: bool,
    /// What was erased stays in the copy.
    pub without_erasures: bool,
}

impl RestoreRequest {
    /// Restores `workload` to `target` into `into`, with nothing special.
    #[must_use]
    pub fn new(workload: WorkloadName, into: Option<PathBuf>, target: Target) -> Self {
        Self {
            workload,
            into,
            target,
            delta: false,
            discard_wal: false,
            exclusive: false,
            as_primary: false,
            config_into: None,
            tablespaces: BTreeMap::new(),
            port: None,
            replace: false,
            without_erasures: false,
        }
    }
}

/// What will be done. Printable and storable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The workload.
    pub workload: WorkloadName,
    /// What was asked for.
    pub target: Target,
    /// Over what is in the folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delta: bool,
    /// The WAL there may be lost, if it is not in the repository.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard_wal: bool,
    /// Stop just before the target.
    pub exclusive: bool,
    /// The folder.
    pub into: Option<PathBuf>,
    /// The restored cluster takes the source's place.
    pub as_primary: bool,
    /// Where configuration files from outside the data directory go.
    pub config_into: Option<PathBuf>,
    /// Where tablespaces go, by where they were; those that are not named go where they were, if they may,
    /// else beside the folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tablespaces: BTreeMap<PathBuf, PathBuf>,
    /// The port written into the restored configuration.
    pub port: Option<u16>,
    /// Queues: replace a stream that exists.
    pub replace: bool,
    /// What was erased stays in the copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_erasures: bool,
    /// The restore point it begins with.
    pub point: RestorePoint,
    /// What is particular to the kind of workload.
    pub source: PlannedSource,
    /// What the operator should know, one line each.
    pub notes: Vec<String>,
}

/// What is particular to the kind of workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PlannedSource {
    /// A cluster, with replay.
    Postgres(PostgresPlan),
    /// A folder, as the point holds it.
    Files,
    /// Streams, as the point holds them.
    Nats {
        /// Their names.
        streams: Vec<String>,
    },
}

/// How a cluster is replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostgresPlan {
    /// Replay begins here.
    pub start_lsn: Lsn,
    /// The copy is consistent from here on.
    pub consistent_lsn: Lsn,
    /// The timeline that is followed.
    pub timeline: Timeline,
    /// Where replay ends.
    pub end: RecoveryEnd,
    /// The first segment replayed.
    pub first_segment: WalFileName,
    /// The last segment stored without a gap.
    pub last_segment: WalFileName,
    /// The unbroken chain of stored WAL reaches to (excluding) this position.
    pub reaches_lsn: Lsn,
    /// Segments between first and last.
    pub segments: u64,
    /// Whether everything up to the target is known to be stored, so that recovery may end with the
    /// archive when no later commit tells PostgreSQL to stop there.
    pub end_of_archive_is_enough: bool,
    /// The recovery window.
    pub window: RecoveryWindow,
}

/// Where replay ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "at")]
pub enum RecoveryEnd {
    /// As soon as the copy is consistent: the restore point by itself.
    Consistent,
    /// At a commit time.
    Time {
        /// The time.
        time: DateTime<Utc>,
    },
    /// At a position.
    Lsn {
        /// The position.
        lsn: Lsn,
    },
    /// With the last stored record.
    EndOfArchive,
}

/// Plans a restore. Decides on what is listed and stored; only for a target later than the last stored
/// WAL the live server, if there is one, is asked to complete its current segment.
///
/// # Errors
/// When the target cannot be reached: with the recovery window and the nearest moment that can.
pub async fn plan(
    installation: &Installation,
    request: &RestoreRequest,
) -> Result<RestorePlan, RestoreError> {
    let workload = installation.config.workload(request.workload.as_str())?;
    let repository = installation.open_repository_of(&request.workload).await?;
    let stored = read(&repository, &request.workload).await?;
    let WorkloadSource::Postgres(source) = workload.source else {
        return choose::simple(request, &stored);
    };
    if choose::wanted(request, &stored).is_some() {
        return at_record(
            &repository,
            request,
            source,
            || installation.postgres_password(&workload),
            stored,
        )
        .await;
    }
    if !choose::may_lie_behind_the_archive(request, &stored) {
        return choose::cluster(request, &stored, None);
    }
    let password = installation.postgres_password(&workload)?;
    let asked = live::complete_archive(&repository, request, source, password, &stored).await;
    let stored = match asked {
        live::Asked::Completed { .. } => read(&repository, &request.workload).await?,
        live::Asked::Unavailable { .. } => stored,
    };
    choose::cluster(request, &stored, Some(&asked))
}

/// Plans for a target that the records of the WAL tell: it is looked for, and becomes a position.
async fn at_record(
    repository: &Repository,
    request: &RestoreRequest,
    source: &PostgresSource,
    password: impl Fn() -> Result<Option<String>, InstallationError>,
    stored: Stored,
) -> Result<RestorePlan, RestoreError> {
    let mut stored = stored;
    let mut search = look_for(repository, request, &stored).await?;
    // It may have ended after the last segment was archived; and of a name the last one counts.
    let mut asked = None;
    if search.found.is_none() || matches!(request.target, Target::Named(_)) {
        asked =
            Some(live::complete_archive(repository, request, source, password()?, &stored).await);
        stored = read(repository, &request.workload).await?;
        search = look_for(repository, request, &stored).await?;
    }
    let Some(moment) = search.found else {
        return Err(choose::not_found(
            request,
            &stored,
            asked.as_ref(),
            &search.unread,
        ));
    };
    let at = RestoreRequest {
        target: Target::Lsn(moment.lsn),
        exclusive: request.exclusive || matches!(request.target, Target::Before(_)),
        ..request.clone()
    };
    let mut plan = choose::cluster(&at, &stored, asked.as_ref())?;
    plan.target = request.target.clone();
    if let PlannedSource::Postgres(replay) = &mut plan.source {
        // The record is stored: a recovery that does not come to it has met damage on the way.
        replay.end_of_archive_is_enough = false;
    }
    let mut notes = vec![format!("{}, by the record at {}", moment.what, moment.lsn)];
    if let (Target::Named(_), Some(live::Asked::Unavailable { why })) = (&request.target, &asked) {
        notes.push(format!("there may be a later one of that name: {why}"));
    }
    let unread = search.unread.iter();
    notes.extend(unread.map(|why| format!("not looked through: {why}")));
    plan.notes.splice(0..0, notes);
    Ok(plan)
}

async fn look_for(
    repository: &Repository,
    request: &RestoreRequest,
    stored: &Stored,
) -> Result<Search, RestoreError> {
    let Some((wanted, timeline)) = choose::wanted(request, stored) else {
        return Ok(Search::default());
    };
    let (repository, workload) = (repository.clone(), request.workload.clone());
    let wal = stored.wal.clone();
    blocking("look through the WAL", move || {
        let found = wal::find(&repository, &workload, &wal, timeline, &wanted, &Silent);
        Ok(found?)
    })
    .await
}

/// Everything the deciding looks at.
async fn read(repository: &Repository, workload: &WorkloadName) -> Result<Stored, RestoreError> {
    let (repository, workload) = (repository.clone(), workload.clone());
    blocking("read what is stored", move || {
        let mut points = repository.points(Some(&workload)).map_err(store_error(
            format!("list the restore points of `{workload}`"),
            &repository,
        ))?;
        points.retain(|point| !matches!(point.position, Position::TenantState(_)));
        let window = window_of(&repository, &workload, &points)?;
        let segment_bytes = points
            .iter()
            .rev()
            .find_map(|point| point.postgres().map(|p| p.wal_segment_bytes));
        let wal = match segment_bytes {
            Some(bytes) => WalIndex::read(&repository, &workload, bytes)?,
            None => WalIndex::default(),
        };
        Stored::new(repository, workload, points, window, wal)
    })
    .await
}

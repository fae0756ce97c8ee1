//! Holds: restore points that stay, whatever the policy says, until somebody ends it.
//!
//! A hold is a record of the repository, and so is its end: both are written once and never changed, so
//! that who held what, why and until when stays known. A hold goes into every repository that holds
//! what it is about, and counts wherever it is found.

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{HoldId, RestorePointId, WorkloadName};
use dr_store::Repository;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::error::store_error;
use crate::retention::{Held, HoldOn};

const KIND: &str = "hold";
const RELEASE_KIND: &str = "hold-release";

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum HoldScope {
    /// One restore point.
    Point {
        /// The point.
        point: RestorePointId,
    },
    /// Every moment of a workload's span, open where an end is left out; points to come included.
    Workload {
        /// The beginning.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<DateTime<Utc>>,
        /// The end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<DateTime<Utc>>,
    },
}

/// A hold as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Version of this structure.
    pub version: u32,
    /// Its name.
    pub id: HoldId,
    /// Whose points.
    pub workload: WorkloadName,
    /// Which of them.
    pub scope: HoldScope,
    /// Why, in somebody's words.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When it was placed.
    pub at: DateTime<Utc>,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

/// The end of a hold as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRelease {
    /// Version of this structure.
    pub version: u32,
    /// The hold.
    pub hold: HoldId,
    /// Why, in somebody's words.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// A hold with its end, if somebody ended it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredHold {
    /// The hold.
    #[serde(flatten)]
    pub hold: Hold,
    /// Its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<HoldRelease>,
}

/// A hold to be placed.
#[derive(Debug, Clone)]
pub struct HoldRequest {
    /// A restore point's id, or a workload's name.
    pub on: String,
    /// For a workload: from when.
    pub from: Option<DateTime<Utc>>,
    /// For a workload: up to when.
    pub to: Option<DateTime<Utc>>,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When it ends by itself.
    pub until: Option<DateTime<Utc>>,
}

impl StoredHold {
    /// When it ended or will end; `None` while nobody ends it.
    #[must_use]
    pub fn ends(&self) -> Option<DateTime<Utc>> {
        let released = self.release.as_ref().map(|release| release.at);
        match (self.hold.until, released) {
            (Some(until), Some(released)) => Some(until.min(released)),
            (until, released) => until.or(released),
        }
    }

    /// Whether it holds at `now`.
    #[must_use]
    pub fn is_in_force(&self, now: DateTime<Utc>) -> bool {
        self.ends().is_none_or(|end| end > now)
    }

    /// What it means for the retention of its workload.
    #[must_use]
    pub fn on(&self) -> HoldOn {
        let what = match &self.hold.scope {
            HoldScope::Point { point } => Held::Point(point.clone()),
            HoldScope::Workload { from, to } => Held::Span {
                from: *from,
                to: *to,
            },
        };
        HoldOn {
            id: self.hold.id.clone(),
            what,
            ends: self.ends(),
        }
    }
}

impl Hold {
    /// The version written now.
    pub const VERSION: u32 = 1;

    fn store(&self, repository: &Repository) -> Result<(), BackupError> {
        put(repository, KIND, self.id.as_str(), self)
    }
}

impl HoldRelease {
    /// The version written now.
    pub const VERSION: u32 = 1;
}

fn put(
    repository: &Repository,
    kind: &str,
    name: &str,
    value: &impl Serialize,
) -> Result<(), BackupError> {
    let body = serde_json::to_vec(value).map_err(|error| BackupError::BadRecord {
        what: format!("{kind} {name}"),
        place: repository.describe(),
        detail: error.to_string(),
    })?;
    repository
        .put_record(kind, name, &body)
        .map_err(store_error(format!("keep {kind} {name}"), repository))
}

/// Every record of a kind. One that cannot be understood is an error: what is held is not guessed.
fn all<T: DeserializeOwned>(repository: &Repository, kind: &str) -> Result<Vec<T>, BackupError> {
    let names = repository
        .list_records(kind)
        .map_err(store_error(format!("list the {kind} records"), repository))?;
    let read = |name: String| {
        let body = repository
            .get_record(kind, &name)
            .map_err(store_error(format!("read {kind} {name}"), repository))?
            .unwrap_or_default();
        serde_json::from_slice(&body).map_err(|error| BackupError::BadRecord {
            what: format!("{kind} {name}"),
            place: repository.describe(),
            detail: error.to_string(),
        })
    };
    names.into_iter().map(read).collect()
}

/// The holds that `repository` knows of, ended ones too, oldest first. Blocks.
///
/// # Errors
/// When the repository cannot be read, or holds a hold that cannot be understood.
pub fn holds(repository: &Repository) -> Result<Vec<StoredHold>, BackupError> {
    let mut releases: Vec<HoldRelease> = all(repository, RELEASE_KIND)?;
    let mut found: Vec<StoredHold> = all::<Hold>(repository, KIND)?
        .into_iter()
        .map(|hold| {
            let place = releases.iter().position(|release| release.hold == hold.id);
            let release = place.map(|place| releases.swap_remove(place));
            StoredHold { hold, release }
        })
        .collect();
    found
        .sort_by(|left, right| (left.hold.at, &left.hold.id).cmp(&(right.hold.at, &right.hold.id)));
    Ok(found)
}

/// Places a hold in every repository that has what is to be held. Blocks.
///
/// A point is looked for again after its hold is durable: one that retention took meanwhile is an
/// error, not a hold on nothing.
///
/// # Errors
/// When there is no such point or workload, or a repository cannot be written.
pub fn add_hold(installation: &Installation, request: &HoldRequest) -> Result<Hold, BackupError> {
    let now = installation.clock.now();
    let (workload, scope, repositories) = target(installation, request)?;
    let hold = Hold {
        version: Hold::VERSION,
        id: HoldId::new(now),
        workload,
        scope,
        reason: request.reason.clone(),
        by: request.by.clone(),
        at: now,
        until: request.until,
    };
    for repository in &repositories {
        hold.store(repository)?;
        // What a prune decided before it could know of the hold is not carried out any more.
        repository
            .outdate_plans(&hold.workload, now)
            .map_err(store_error(format!("place {}", hold.id), repository))?;
    }
    if let HoldScope::Point { point } = &hold.scope {
        for repository in &repositories {
            if !lists(repository, &hold.workload, point)? {
                return Err(BackupError::UnknownPoint(point.clone()));
            }
        }
    }
    Ok(hold)
}

/// What a request is about, and where that is.
fn target(
    installation: &Installation,
    request: &HoldRequest,
) -> Result<(WorkloadName, HoldScope, Vec<Repository>), BackupError> {
    let is_workload = installation.config.workload(&request.on).is_ok();
    if is_workload || !request.on.starts_with(RestorePointId::PREFIX) {
        let workload = installation.config.workload(&request.on)?;
        let repositories = vec![installation.repository_of(workload.name)?];
        let scope = HoldScope::Workload {
            from: request.from,
            to: request.to,
        };
        return Ok((workload.name.clone(), scope, repositories));
    }
    let id: RestorePointId = request
        .on
        .parse()
        .map_err(|_| BackupError::NoSuchPoint(request.on.clone()))?;
    let mut found: Option<WorkloadName> = None;
    let mut repositories = Vec::new();
    for (_, repository) in installation.all_repositories()? {
        let point = repository
            .point(&id)
            .map_err(store_error(format!("look for {id}"), &repository))?;
        if let Some(point) = point {
            found = Some(point.point.workload);
            repositories.push(repository);
        }
    }
    let workload = found.ok_or_else(|| BackupError::UnknownPoint(id.clone()))?;
    Ok((workload, HoldScope::Point { point: id }, repositories))
}

fn lists(
    repository: &Repository,
    workload: &WorkloadName,
    id: &RestorePointId,
) -> Result<bool, BackupError> {
    let points = repository.points(Some(workload)).map_err(store_error(
        format!("list the restore points of `{workload}`"),
        repository,
    ))?;
    Ok(points.iter().any(|point| point.id == *id))
}

/// Ends a hold in every repository that knows of it. Blocks.
///
/// # Errors
/// When no repository knows of it, it ended before, or a repository cannot be written.
pub fn release_hold(
    installation: &Installation,
    id: &HoldId,
    reason: &str,
    by: &str,
) -> Result<HoldRelease, BackupError> {
    let now = installation.clock.now();
    let release = HoldRelease {
        version: HoldRelease::VERSION,
        hold: id.clone(),
        reason: reason.to_owned(),
        by: by.to_owned(),
        at: now,
    };
    let (mut known, mut ended) = (false, false);
    for (_, repository) in installation.all_repositories()? {
        let Some(stored) = holds(&repository)?.into_iter().find(|h| h.hold.id == *id) else {
            continue;
        };
        known = true;
        if stored.release.is_none() {
            put(&repository, RELEASE_KIND, id.as_str(), &release)?;
            ended = true;
        }
    }
    match (known, ended) {
        (_, true) => Ok(release),
        (true, false) => Err(BackupError::HoldEnded(id.clone())),
        (false, false) => Err(BackupError::UnknownHold(id.clone())),
    }
}

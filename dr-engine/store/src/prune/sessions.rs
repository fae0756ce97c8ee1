//! Who writes, as far as prune has to know.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use dr_model::WorkloadName;
use serde::Serialize;

use crate::format::header::Kind;
use crate::format::session::{self, Purpose, SessionObject};
use crate::repo::Inner;
use crate::repo::session::{is_dead, sessions_prefix};
use crate::{ObjectEntry, StoreError};

/// Whether a session's writer may still do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// As far as is known.
    Running,
    /// Its process is known to be gone.
    Dead,
    /// It is older than a backup may take; its writer, should it wake, finds its session gone.
    Expired,
}

/// A writer that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    /// The session's object.
    pub object: String,
    /// Its host; `None` when the object is damaged.
    pub host: Option<String>,
    /// Its process there.
    pub pid: Option<u32>,
    /// When it was stored, by the store's clock.
    pub since: DateTime<Utc>,
    /// What is known of it.
    pub state: SessionState,
    /// Whether it prunes.
    pub prunes: bool,
}

/// The sessions of a workload but `own`.
pub(super) fn sessions(
    repo: &Inner,
    workload: &WorkloadName,
    age_max: Duration,
    own: Option<&str>,
) -> Result<Vec<SessionInfo>, StoreError> {
    let listed = repo.list(&sessions_prefix(workload))?;
    let others: Vec<ObjectEntry> = listed
        .into_iter()
        .filter(|entry| own != Some(entry.name.as_str()))
        .collect();
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let now = repo
        .backend
        .now()
        .map_err(repo.failed("reading the place's clock".to_owned()))?;
    let mut found = Vec::new();
    for entry in others {
        let body = match repo.get_sealed(&repo.master, Kind::Session, &entry.name) {
            // It ended meanwhile.
            Ok(None) => continue,
            Ok(Some(body)) => session::decode::<SessionObject>(&body).ok(),
            Err(StoreError::Damaged { .. } | StoreError::UnsupportedVersion { .. }) => None,
            Err(error) => return Err(error),
        };
        let age = (now - entry.modified).to_std().unwrap_or(Duration::ZERO);
        found.push(info(entry, body.as_ref(), age > age_max));
    }
    Ok(found)
}

fn info(entry: ObjectEntry, body: Option<&SessionObject>, is_old: bool) -> SessionInfo {
    let state = if body.is_some_and(is_dead) {
        SessionState::Dead
    } else if is_old {
        SessionState::Expired
    } else {
        SessionState::Running
    };
    SessionInfo {
        object: entry.name,
        host: body.map(|body| body.host.clone()),
        pid: body.map(|body| body.pid),
        since: entry.modified,
        state,
        prunes: body.is_some_and(|body| body.purpose == Purpose::Prune),
    }
}

/// When the oldest running session began, if any runs.
pub(super) fn oldest_running(sessions: &[SessionInfo]) -> Option<DateTime<Utc>> {
    let running = |session: &&SessionInfo| session.state == SessionState::Running;
    sessions
        .iter()
        .filter(running)
        .map(|session| session.since)
        .min()
}

/// Whether something stored at `at` may belong to a session that runs since `oldest`.
pub(super) fn may_belong(
    at: DateTime<Utc>,
    oldest: Option<DateTime<Utc>>,
    slack: Duration,
) -> bool {
    let slack = TimeDelta::from_std(slack).unwrap_or(TimeDelta::MAX);
    oldest.is_some_and(|oldest| at >= oldest - slack)
}

//! How the copies of a repository stand, and bringing them up.
//!
//! A copy is judged by its list of restore points and its WAL, for each workload: that is what can be
//! restored from it. One that lags longer than [`LAG_MAX`] (or than the RPO, where that is longer) breaks
//! the promise of a tier that counts on it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{Progress, RepositoryName, WorkloadName};
use dr_store::{Repository, SyncReport};
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::error::store_error;

/// A copy may lag this long before the promise counts as broken: a night without the second place is
/// no emergency, a day is one. Where the RPO itself is longer, that counts.
pub const LAG_MAX: Duration = Duration::from_secs(24 * 3600);

/// How a copy of a workload stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The repository that holds the copy.
    pub repository: RepositoryName,
    /// How it stands.
    pub standing: CopyStanding,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum CopyStanding {
    /// It has everything.
    InStep,
    /// It lacks something.
    Lags {
        /// Changes of the list of restore points.
        lists: u64,
        /// WAL files.
        wal: u64,
        /// When the oldest of these was stored in the first repository.
        since: Option<DateTime<Utc>>,
    },
    /// It could not be asked.
    Away {
        /// Why.
        why: String,
    },
}

impl CopyStatus {
    /// Whether it keeps what a tier promises that counts on it.
    #[must_use]
    pub fn keeps_promise(&self, now: DateTime<Utc>, rpo: Duration) -> bool {
        match &self.standing {
            CopyStanding::InStep => true,
            CopyStanding::Away { .. } => false,
            CopyStanding::Lags { since, .. } => since.is_some_and(|since| {
                (now - since).to_std().unwrap_or_default() <= LAG_MAX.max(rpo)
            }),
        }
    }
}

impl std::fmt::Display for CopyStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "copy `{}` ", self.repository)?;
        match &self.standing {
            CopyStanding::InStep => write!(f, "is in step"),
            CopyStanding::Away { why } => write!(f, "does not answer: {why}"),
            CopyStanding::Lags { lists, wal, since } => {
                write!(f, "lags by {lists} changes of the list and {wal} WAL files")?;
                match since {
                    Some(since) => write!(f, " since {}", since.format("%Y-%m-%dT%H:%M:%SZ")),
                    None => Ok(()),
                }
            }
        }
    }
}

/// How the copies of a workload stand. `repository` is opened with them. Blocks.
#[must_use]
pub fn copies_of(repository: &Repository, workload: &WorkloadName) -> Vec<CopyStatus> {
    let status = |(place, opened): (dr_store::CopyPlace, _)| {
        let lag = match opened {
            Ok(copy) => repository.lag_of(&copy, workload),
            Err(error) => Err(error),
        };
        let standing = match lag {
            Ok(lag) if lag.in_step() => CopyStanding::InStep,
            Ok(lag) => CopyStanding::Lags {
                lists: lag.lists,
                wal: lag.wal,
                since: lag.since,
            },
            Err(error) => CopyStanding::Away {
                why: crate::status::chain(&error),
            },
        };
        let repository = place.name.parse().ok()?;
        Some(CopyStatus {
            repository,
            standing,
        })
    };
    let copies = repository.open_copies().into_iter();
    copies.filter_map(status).collect()
}

/// What bringing each copy up came to.
pub type Synced = Vec<(RepositoryName, Result<SyncReport, BackupError>)>;

/// Brings copies up to their first repositories: all that the configuration names, or `only` one. Blocks.
///
/// # Errors
/// When the configuration does not know it, or it is no copy. A copy that fails is told by its own result.
pub fn sync(
    installation: &Installation,
    only: Option<&RepositoryName>,
    progress: &dyn Progress,
) -> Result<Synced, BackupError> {
    let engine = &installation.config.engine;
    if let Some(name) = only {
        installation.config.repository(name)?;
    }
    let mut reports = Vec::new();
    for first in engine.first_repositories() {
        let copies = engine.copies_of(first);
        // The first one named means all of its copies.
        let all = only.is_none_or(|only| only == first);
        for copy in copies.into_iter().filter(|copy| all || only == Some(copy)) {
            progress.note(&format!("`{copy}` from `{first}`"));
            let report = sync_one(installation, first, &copy, progress);
            reports.push((copy, report));
        }
    }
    Ok(reports)
}

fn sync_one(
    installation: &Installation,
    first: &RepositoryName,
    copy: &RepositoryName,
    progress: &dyn Progress,
) -> Result<SyncReport, BackupError> {
    let place = installation.place(first)?;
    let there = installation.place(copy)?;
    place.sync_to(&there, progress).map_err(store_error(
        format!("bring copy `{copy}` up to `{first}`"),
        &place,
    ))
}

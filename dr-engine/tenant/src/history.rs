//! What was done to tenants: every restore and undo that a repository keeps a record of, with what became of
//! it. After a crash this is where the id for the undo is found.

use std::fmt;

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{RestorePointId, TenantRestoreId, WorkloadName};
use serde::Serialize;

use crate::execute::blocking;
use crate::record::{self, Ending, Outcome, Record};
use crate::tenants::{self, Place};
use crate::{Mode, Purpose, Tenant, TenantError, rows};

/// One restore or undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Past {
    /// Its id: the handle of its undo.
    pub id: TenantRestoreId,
    /// The workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: Tenant,
    /// To which moment, or which restore was undone.
    pub purpose: Purpose,
    /// How much was put back.
    pub mode: Mode,
    /// When it began (wall clock).
    pub started: DateTime<Utc>,
    /// Who asked for it, where that is known.
    pub by: Option<String>,
    /// The restore point that holds the state from before.
    pub undo_point: RestorePointId,
    /// What became of it.
    pub became: Became,
    /// The undo that took it back.
    pub undone_by: Option<TenantRestoreId>,
}

/// What became of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// It stands.
    Committed,
    /// It changed nothing.
    RolledBack,
    /// It was interrupted, and the server says that its transaction was committed.
    CommittedAndInterrupted,
    /// It was interrupted, and the server says that its transaction changed nothing.
    RolledBackAndInterrupted,
    /// It was interrupted, and its transaction is still on its way.
    InProgress,
    /// Nobody knows: the server does not remember so old a transaction, or does not answer.
    Unknown,
}

impl fmt::Display for Became {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Committed => "done",
            Self::RolledBack => "rolled back",
            Self::CommittedAndInterrupted => "done, then interrupted",
            Self::RolledBackAndInterrupted => "interrupted, nothing changed",
            Self::InProgress => "on its way",
            Self::Unknown => "interrupted, outcome not known",
        })
    }
}

/// The restores and undos of a workload's tenants, the oldest first.
///
/// # Errors
/// When the workload has no tenants, or a repository cannot be read. A server that does not answer is no
/// error: what it alone knows is not known then.
pub async fn history(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<Vec<Past>, TenantError> {
    let place = tenants::place(installation, workload)?;
    let repository = installation.open_repository_of(workload).await?;
    let wanted = workload.clone();
    let kept = blocking("read the records", move || {
        let mut kept = Vec::new();
        for record in record::all(&repository)? {
            if record.workload == wanted {
                let ending = Ending::read(&repository, &record.id)?;
                kept.push((record, ending));
            }
        }
        Ok(kept)
    })
    .await?;
    let mut all: Vec<Past> = Vec::new();
    for (record, ending) in kept {
        let became = match ending.as_ref().map(|ending| ending.outcome) {
            Some(Outcome::Committed) => Became::Committed,
            Some(Outcome::RolledBack) => Became::RolledBack,
            Some(Outcome::Unknown) | None => asked(&place, &record).await,
        };
        let report = ending.and_then(|ending| ending.report);
        if let (Purpose::Undo { of }, Became::Committed | Became::CommittedAndInterrupted) =
            (&record.purpose, became)
            && let Some(taken_back) = all.iter_mut().find(|past| past.id == *of)
        {
            taken_back.undone_by = Some(record.id.clone());
        }
        all.push(Past {
            id: record.id,
            workload: record.workload,
            tenant: record.tenant,
            purpose: record.purpose,
            mode: record.mode,
            started: record.started,
            by: report.and_then(|report| report.by),
            undo_point: record.point,
            became,
            undone_by: None,
        });
    }
    Ok(all)
}

/// What the server knows of an interrupted restore.
async fn asked(place: &Place, record: &Record) -> Became {
    let Some(xid) = record
        .transaction
        .as_deref()
        .and_then(|text| text.parse().ok())
    else {
        return Became::Unknown;
    };
    match rows::outcome_now(&place.live, xid).await.as_deref() {
        Some("committed") => Became::CommittedAndInterrupted,
        Some("aborted") => Became::RolledBackAndInterrupted,
        Some("in progress") => Became::InProgress,
        _ => Became::Unknown,
    }
}

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
use crate::{Filter, Mode, Purpose, Tenant, TenantError, outcome, rows};

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
    /// What it was limited to.
    #[serde(skip_serializing_if = "Filter::is_everything")]
    pub filter: Filter,
    /// When it began (wall clock).
    pub started: DateTime<Utc>,
    /// Who asked for it, where that is known.
    pub by: Option<String>,
    /// The restore point that holds the state from before.
    pub undo_point: RestorePointId,
    /// What became of it.
    pub became: Became,
    /// Why nobody can say what became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_known_because: Option<String>,
    /// The undo that took it back and stands; none if that was taken back itself.
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
    /// Nobody knows: the server is another one, does not remember so old a transaction, or does not answer.
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
        let (became, not_known_because) = match ending.as_ref().map(|ending| ending.outcome) {
            Some(Outcome::Committed) => (Became::Committed, None),
            Some(Outcome::RolledBack) => (Became::RolledBack, None),
            Some(Outcome::Unknown) | None => asked(&place, &record).await,
        };
        let report = ending.and_then(|ending| ending.report);
        // Records of before do not say it, reports always did.
        let filter = match (&report, record.filter.is_everything()) {
            (Some(report), true) => report.filter.clone(),
            _ => record.filter,
        };
        all.push(Past {
            id: record.id,
            workload: record.workload,
            tenant: record.tenant,
            purpose: record.purpose,
            mode: record.mode,
            filter,
            started: record.started,
            by: report.and_then(|report| report.by),
            undo_point: record.point,
            became,
            not_known_because,
            undone_by: None,
        });
    }
    mark_undone(&mut all);
    Ok(all)
}

/// Says of each which undo took it back. From the newest on: whether an undo stands is known before what it took
/// back is looked at. Pure.
fn mark_undone(all: &mut [Past]) {
    for place in (0..all.len()).rev() {
        let Some((before, [past, ..])) = all.split_at_mut_checked(place) else {
            continue;
        };
        let (Purpose::Undo { of }, Became::Committed | Became::CommittedAndInterrupted, None) =
            (&past.purpose, past.became, &past.undone_by)
        else {
            continue;
        };
        if let Some(taken_back) = before.iter_mut().find(|other| other.id == *of) {
            taken_back.undone_by.get_or_insert_with(|| past.id.clone());
        }
    }
}

/// What the server knows of an interrupted restore, or why it knows nothing.
async fn asked(place: &Place, record: &Record) -> (Became, Option<String>) {
    let xid = match outcome::known_here(&place.live, record).await {
        Ok(xid) => xid,
        Err(why) => return (Became::Unknown, Some(why.to_string())),
    };
    match rows::outcome_now(&place.live, xid).await.as_deref() {
        Some("committed") => (Became::CommittedAndInterrupted, None),
        Some("aborted") => (Became::RolledBackAndInterrupted, None),
        Some("in progress") => (Became::InProgress, None),
        _ => {
            let why = format!("the server does not know transaction {xid} any more");
            (Became::Unknown, Some(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> TenantRestoreId {
        format!("tr-20261123T14000{number}Z-00000{number}")
            .parse()
            .unwrap()
    }

    /// Of restores and undos, each with what it takes back, the one that took it back.
    fn undone(all: &[(Option<usize>, Became)]) -> Vec<Option<TenantRestoreId>> {
        let mut all: Vec<Past> = (all.iter().enumerate())
            .map(|(number, (undo_of, became))| Past {
                id: id(number),
                workload: "erp".parse().unwrap(),
                tenant: Tenant {
                    id: "7".to_owned(),
                    name: "ACME".to_owned(),
                    others: std::collections::BTreeMap::new(),
                },
                purpose: match undo_of {
                    Some(of) => Purpose::Undo { of: id(*of) },
                    None => Purpose::Restore {
                        target: dr_model::Target::Latest,
                        lsn: None,
                        last_commit_time: None,
                        note: None,
                    },
                },
                mode: Mode::Replace,
                filter: Filter::default(),
                started: DateTime::UNIX_EPOCH,
                by: None,
                undo_point: RestorePointId::new(&"erp".parse().unwrap(), DateTime::UNIX_EPOCH),
                became: *became,
                not_known_because: None,
                undone_by: None,
            })
            .collect();
        mark_undone(&mut all);
        all.into_iter().map(|past| past.undone_by).collect()
    }

    #[test]
    fn an_undo_that_was_taken_back_took_nothing_back() {
        let done = Became::Committed;
        assert_eq!(
            undone(&[(None, done), (Some(0), done)]),
            [Some(id(1)), None]
        );
        let again = [(None, done), (Some(0), done), (Some(1), done)];
        assert_eq!(undone(&again), [None, Some(id(2)), None]);
        // Undone, done again by undoing that, and undone once more.
        let third = [
            (None, done),
            (Some(0), done),
            (Some(1), done),
            (Some(0), done),
        ];
        assert_eq!(undone(&third), [Some(id(3)), Some(id(2)), None, None]);
        // What took back the undo of an undo leaves the first undo standing.
        let fourth = [
            (None, done),
            (Some(0), done),
            (Some(1), done),
            (Some(2), done),
        ];
        assert_eq!(undone(&fourth), [Some(id(1)), None, Some(id(3)), None]);
        let interrupted = [(None, done), (Some(0), Became::CommittedAndInterrupted)];
        assert_eq!(undone(&interrupted), [Some(id(1)), None]);
        let failed = [(None, done), (Some(0), Became::RolledBack)];
        assert_eq!(undone(&failed), [None, None]);
    }
}

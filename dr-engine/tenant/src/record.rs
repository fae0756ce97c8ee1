//! What the repository keeps of a tenant restore: a record written before the commit, which names the
//! transaction and the restore point with the former state, a second one with the outcome, and a third one
//! with what hooks and the refreshing of views did after that. All are write-once. A record without an outcome is a restore that was
//! interrupted; the server knows what became of its transaction. The outcome does not wait for the hooks, which
//! may take long: killed among them, a restore keeps all that was shown of it.

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{RestorePointId, SystemId, TenantRestoreId, WorkloadName};
use dr_store::Repository;
use serde::{Deserialize, Serialize};

use crate::outcome::WalPlace;
use crate::report::{ProofLine, ProofOutcome};
use crate::{Filter, Mode, Purpose, Tenant, TenantError, TenantRestoreReport};

/// The kind of these records.
const KIND: &str = "tenant-restore";
const VERSION: u32 = 1;

/// Written before the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) id: TenantRestoreId,
    pub(crate) workload: WorkloadName,
    pub(crate) tenant: Tenant,
    pub(crate) mode: Mode,
    pub(crate) purpose: Purpose,
    /// What it was limited to.
    #[serde(default, skip_serializing_if = "Filter::is_everything")]
    pub(crate) filter: Filter,
    pub(crate) started: DateTime<Utc>,
    pub(crate) system_id: SystemId,
    /// The transaction; `None` when only folders are put back.
    pub(crate) transaction: Option<String>,
    /// Where the WAL stood when the rows were written, before the commit; records of before have it not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wal: Option<WalPlace>,
    /// Holds the former state.
    pub(crate) point: RestorePointId,
}

/// What became of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Committed,
    RolledBack,
    Unknown,
}

/// Written when the outcome is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    pub(crate) version: u32,
    pub(crate) id: TenantRestoreId,
    pub(crate) outcome: Outcome,
    pub(crate) report: Option<TenantRestoreReport>,
    pub(crate) error: Option<String>,
    /// Hooks, or views that are refreshed, come after it.
    #[serde(default)]
    pub(crate) hooks_follow: bool,
}

/// What the hooks did that ran after the outcome was known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HooksRan {
    pub(crate) version: u32,
    pub(crate) id: TenantRestoreId,
    pub(crate) lines: Vec<ProofLine>,
}

const ENDING: &str = ".outcome";
const HOOKS: &str = ".hooks";

fn ending_name(id: &TenantRestoreId) -> String {
    format!("{id}{ENDING}")
}

fn hooks_name(id: &TenantRestoreId) -> String {
    format!("{id}{HOOKS}")
}

fn put<T: Serialize>(repository: &Repository, name: &str, value: &T) -> Result<(), TenantError> {
    let body = serde_json::to_vec_pretty(value)
        .map_err(|error| TenantError::format("a tenant restore's record", error))?;
    repository
        .put_record(KIND, name, &body)
        .map_err(|source| TenantError::Store {
            action: format!("storing the record {name}"),
            source,
        })
}

fn get<T: serde::de::DeserializeOwned>(
    repository: &Repository,
    name: &str,
) -> Result<Option<T>, TenantError> {
    let body = repository
        .get_record(KIND, name)
        .map_err(|source| TenantError::Store {
            action: format!("reading the record {name}"),
            source,
        })?;
    body.map(|body| serde_json::from_slice(&body).map_err(|e| TenantError::format(name, e)))
        .transpose()
}

impl Record {
    pub(crate) const VERSION: u32 = VERSION;

    /// Durable on return. Blocks.
    pub(crate) fn store(&self, repository: &Repository) -> Result<(), TenantError> {
        put(repository, self.id.as_str(), self)
    }
}

impl Ending {
    pub(crate) fn new(id: &TenantRestoreId, outcome: Outcome) -> Self {
        Self {
            version: VERSION,
            id: id.clone(),
            outcome,
            report: None,
            error: None,
            hooks_follow: false,
        }
    }

    /// Durable on return. Blocks.
    pub(crate) fn store(&self, repository: &Repository) -> Result<(), TenantError> {
        put(repository, &ending_name(&self.id), self)
    }

    /// With what the hooks did after it. Blocks.
    pub(crate) fn read(
        repository: &Repository,
        id: &TenantRestoreId,
    ) -> Result<Option<Self>, TenantError> {
        let Some(mut ending) = get::<Self>(repository, &ending_name(id))? else {
            return Ok(None);
        };
        if let (true, Some(report)) = (ending.hooks_follow, &mut ending.report) {
            match get::<HooksRan>(repository, &hooks_name(id))? {
                Some(ran) => report.proof.extend(ran.lines),
                None => report.proof.push(ProofLine {
                    what: "what follows the commit was done: hooks `changed` and `after`, views that are refreshed".to_owned(),
                    outcome: ProofOutcome::NotMeasured,
                    detail: "the restore ended before it recorded what they did".to_owned(),
                }),
            }
        }
        Ok(Some(ending))
    }
}

impl HooksRan {
    pub(crate) fn new(id: &TenantRestoreId, lines: Vec<ProofLine>) -> Self {
        Self {
            version: VERSION,
            id: id.clone(),
            lines,
        }
    }

    /// Durable on return. Blocks.
    pub(crate) fn store(&self, repository: &Repository) -> Result<(), TenantError> {
        put(repository, &hooks_name(&self.id), self)
    }
}

/// Finds a tenant restore in any repository. Blocks.
pub(crate) fn find(
    installation: &Installation,
    id: &TenantRestoreId,
) -> Result<(Repository, Record), TenantError> {
    for (_, repository) in installation.all_repositories()? {
        if let Some(record) = get::<Record>(&repository, id.as_str())? {
            return Ok((repository, record));
        }
    }
    Err(TenantError::UnknownRestore(id.clone()))
}

/// Every restore's record, the oldest first. Blocks.
pub(crate) fn all(repository: &Repository) -> Result<Vec<Record>, TenantError> {
    let names = repository
        .list_records(KIND)
        .map_err(|source| TenantError::Store {
            action: "listing tenant restores".to_owned(),
            source,
        })?;
    let mut records: Vec<Record> = Vec::new();
    let is_first = |name: &&String| !name.ends_with(ENDING) && !name.ends_with(HOOKS);
    for name in names.iter().filter(is_first) {
        records.extend(get::<Record>(repository, name)?);
    }
    records.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
    Ok(records)
}

/// The committed undo that took `id` back and was not itself taken back. Blocks.
pub(crate) fn undone_by(
    repository: &Repository,
    id: &TenantRestoreId,
) -> Result<Option<TenantRestoreId>, TenantError> {
    for record in all(repository)? {
        if !matches!(&record.purpose, Purpose::Undo { of } if of == id) {
            continue;
        }
        let committed =
            Ending::read(repository, &record.id)?.is_some_and(|e| e.outcome == Outcome::Committed);
        if committed && undone_by(repository, &record.id)?.is_none() {
            return Ok(Some(record.id));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use dr_model::{Lsn, Timeline};

    use super::*;

    /// As the first version wrote it.
    const FIRST: &str = r#"{
      "version": 1,
      "id": "tr-20261123T142210Z-1f3a9c",
      "workload": "erp",
      "tenant": { "id": "7", "name": "ACME" },
      "mode": "replace",
      "purpose": { "kind": "restore", "target": "latest", "lsn": "0/3000028", "last_commit_time": null, "note": null },
      "started": "2026-11-23T14:22:10Z",
      "system_id": "7391000000000000001",
      "transaction": "4711",
      "point": "rp-erp-20261123T142210Z-1f3a9c"
    }"#;

    #[test]
    fn records_of_earlier_programs_are_read() {
        let mut record: Record = serde_json::from_str(FIRST).unwrap();
        assert_eq!(record.transaction.as_deref(), Some("4711"));
        assert_eq!(record.wal, None);
        assert!(record.filter.is_everything());
        // And written as they were.
        let written = serde_json::to_value(&record).unwrap();
        let first: serde_json::Value = serde_json::from_str(FIRST).unwrap();
        assert_eq!(written, first);
        record.wal = Some(WalPlace {
            timeline: Timeline(2),
            lsn: Lsn(0x300_0028),
        });
        let conditions = ["item: price > 5".to_owned()];
        record.filter = Filter::new(&["invoice".to_owned()], &conditions).unwrap();
        let written = serde_json::to_value(&record).unwrap();
        let filter = serde_json::json!({
            "tables": ["invoice"], "conditions": [["item", "price > 5"]]
        });
        assert_eq!(written.get("filter"), Some(&filter));
        let wal = serde_json::json!({ "timeline": 2, "lsn": "0/3000028" });
        assert_eq!(written.get("wal"), Some(&wal));
        assert_eq!(serde_json::from_value::<Record>(written).unwrap(), record);
    }
}

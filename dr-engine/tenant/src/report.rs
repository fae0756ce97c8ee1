//! What a tenant restore did, and what shows that it did nothing else.

use std::fmt;

use chrono::{DateTime, Utc};
use dr_model::{RestorePointId, TenantRestoreId, WorkloadName};
use dr_restore::AppliedErasures;
use serde::{Deserialize, Serialize};

use crate::{Filter, Mode, Purpose, Tenant};

/// The result of a tenant restore or of an undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRestoreReport {
    /// Its identifier: the handle of its undo.
    pub id: TenantRestoreId,
    /// The database workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: Tenant,
    /// How much was put back.
    pub mode: Mode,
    /// To which moment, or which restore was undone.
    pub purpose: Purpose,
    /// What it was limited to.
    #[serde(default, skip_serializing_if = "Filter::is_everything")]
    pub filter: Filter,
    /// When it began (wall clock).
    pub started: DateTime<Utc>,
    /// When the result had been checked (wall clock).
    pub finished: DateTime<Utc>,
    /// The restore point that holds the state from before; `None` when nothing differed.
    pub undo_point: Option<RestorePointId>,
    /// The database transaction that did it; `None` when no row differed.
    pub transaction: Option<String>,
    /// Rows written, by table; tables without a write are left out.
    pub tables: Vec<TableResult>,
    /// Files put back and removed, by workload.
    pub folders: Vec<FolderResult>,
    /// What was shown, line by line.
    pub proof: Vec<ProofLine>,
    /// The tenant's rows as they were read again, by table; empty where they were not.
    #[serde(default)]
    pub content: Vec<TableContent>,
    /// Who asked for it.
    #[serde(default)]
    pub by: Option<String>,
    /// The host it ran on.
    #[serde(default)]
    pub host: Option<String>,
    /// What was erased of the tenant and is not in what was put back; none where nothing is kept of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasures: Option<AppliedErasures>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Rows written to one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableResult {
    /// `schema.table`.
    pub table: String,
    /// Rows inserted.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
}

/// The tenant's rows of one table, read again after the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContent {
    /// `schema.table`.
    pub table: String,
    /// Rows.
    pub rows: u64,
    /// SHA-256 over the SHA-256 of every row as text, these sorted; in hexadecimal. Rows that are equal have
    /// equal checksums in whatever order they lie.
    pub sha256: String,
}

/// What was done to one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderResult {
    /// The workload.
    pub workload: WorkloadName,
    /// Entries written.
    pub written: u64,
    /// Entries removed.
    pub removed: u64,
}

/// One thing that was to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofLine {
    /// What.
    pub what: String,
    /// Whether it was.
    pub outcome: ProofOutcome,
    /// The numbers.
    pub detail: String,
}

/// Whether something was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofOutcome {
    /// Measured, and as it must be.
    Agrees,
    /// Measured, and not as it must be. Only possible after the commit.
    Differs,
    /// Could not be measured; the detail says why.
    NotMeasured,
}

impl TenantRestoreReport {
    /// Whether everything that was measured is as it must be.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.proof
            .iter()
            .all(|line| line.outcome != ProofOutcome::Differs)
    }
}

impl fmt::Display for TenantRestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: tenant {} of {}, {}",
            self.id, self.tenant.name, self.workload, self.purpose
        )?;
        for line in self.filter.lines() {
            writeln!(f, "  only {line}")?;
        }
        for t in &self.tables {
            writeln!(
                f,
                "  {}: {} inserted, {} updated, {} deleted",
                t.table, t.inserted, t.updated, t.deleted
            )?;
        }
        for folder in &self.folders {
            writeln!(
                f,
                "  folder {}: {} written, {} removed",
                folder.workload, folder.written, folder.removed
            )?;
        }
        for line in &self.proof {
            let word = match line.outcome {
                ProofOutcome::Agrees => "shown",
                ProofOutcome::Differs => "NOT AS IT MUST BE",
                ProofOutcome::NotMeasured => "not measured",
            };
            writeln!(f, "  {word}: {} ({})", line.what, line.detail)?;
        }
        if let Some(erasures) = &self.erasures {
            writeln!(f, "  {erasures}")?;
        }
        self.warnings
            .iter()
            .try_for_each(|line| writeln!(f, "  note: {line}"))?;
        if let Some(point) = &self.undo_point {
            writeln!(
                f,
                "  the state from before is {point}; taken back by: dr tenant undo {}",
                self.id
            )?;
            writeln!(f, "  for the customer: dr tenant certificate {}", self.id)?;
        }
        Ok(())
    }
}

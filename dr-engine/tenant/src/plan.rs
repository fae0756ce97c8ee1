//! What a tenant restore would do, as a value that can be printed, stored and compared.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, RestorePointId, Target, TenantRestoreId, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::TenantError;
use crate::filter::Filter;
use crate::referred::OnConflict;

/// One tenant, as the configured `tenants` query names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tenant {
    /// The value of the tenant column, as text.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Other ids by which tables may know it: further columns of the query, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, String>,
}

/// How much is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As it was: what came since is removed, what changed is put back, what is gone returns.
    Replace,
    /// Only what is gone returns; nothing is changed or removed.
    Missing,
    /// Into files ([`crate::export`]).
    Export,
    /// Into a new database ([`crate::clone`]).
    Clone,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Replace => "replace",
            Self::Missing => "missing",
            Self::Export => "export",
            Self::Clone => "clone",
        })
    }
}

impl std::str::FromStr for Mode {
    type Err = TenantError;
    fn from_str(value: &str) -> Result<Self, TenantError> {
        match value {
            "replace" => Ok(Self::Replace),
            "missing" => Ok(Self::Missing),
            "export" => Ok(Self::Export),
            "clone" => Ok(Self::Clone),
            other => Err(TenantError::UnknownMode(other.to_owned())),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRequest {
    /// The tenant's name, or `id:VALUE`.
    pub tenant: String,
    /// The database; may be left out when one workload holds the tenant.
    pub workload: Option<WorkloadName>,
    /// The moment.
    pub target: Target,
    /// How much is put back.
    pub mode: Mode,
    /// Which tables and rows; everything where nothing is said.
    pub filter: Filter,
    /// What becomes of rows that others refer to.
    pub on_conflict: OnConflict,
    /// Who asks for it, for the certificate.
    pub by: Option<String>,
}

/// How what was planned is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writing {
    /// How long a statement waits for a lock of another session.
    pub lock_wait: Duration,
    /// How long the transaction may take; then it is rolled back.
    pub time_max: Duration,
    /// Whether materialized views over the tables that were written to are refreshed.
    pub refresh_views: bool,
}

impl Default for Writing {
    fn default() -> Self {
        Self {
            lock_wait: Duration::from_secs(10),
            time_max: Duration::from_secs(60 * 60),
            refresh_views: false,
        }
    }
}

/// Whether rows go back to an earlier moment or a restore is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Purpose {
    /// Back to a target.
    Restore {
        /// The moment asked for.
        target: Target,
        /// Where recovery of the scratch instance ended.
        lsn: Option<Lsn>,
        /// The last commit contained in what is put back, if any was replayed.
        last_commit_time: Option<DateTime<Utc>>,
        /// What there is to say about the target, if anything.
        note: Option<String>,
    },
    /// Takes a tenant restore back.
    Undo {
        /// The restore that is taken back.
        of: TenantRestoreId,
    },
}

/// What would be done; `--preview` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantPlan {
    /// The database workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: Tenant,
    /// How much is put back.
    pub mode: Mode,
    /// To which moment, or which restore is undone.
    pub purpose: Purpose,
    /// What it is limited to.
    #[serde(default, skip_serializing_if = "Filter::is_everything")]
    pub filter: Filter,
    /// What becomes of rows that others refer to.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// When the live rows were read.
    pub live_read_at: DateTime<Utc>,
    /// Every table that holds rows of tenants, also those without a difference.
    pub tables: Vec<TablePlan>,
    /// What becomes of large objects that its rows refer to, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<String>,
    /// The tenant's part of folders.
    pub folders: Vec<FolderPlan>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Why it may not be carried out; empty when it may.
    pub refused: Vec<String>,
}

/// One table's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePlan {
    /// `schema.table`.
    pub table: String,
    /// How its rows belong to the tenant: `direct tenant_id`, `via order_id -> sales_order`.
    pub class: String,
    /// The tenant's rows now.
    pub rows_now: u64,
    /// The tenant's rows at the target.
    pub rows_then: u64,
    /// Rows to insert.
    pub insert: u64,
    /// Rows to update.
    pub update: u64,
    /// Rows to delete.
    pub delete: u64,
    /// Columns in which rows to update differ.
    pub changed_columns: Vec<String>,
    /// A few of the changes.
    pub samples: Vec<Sample>,
}

/// One change, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// `insert`, `update` or `delete`.
    pub change: String,
    /// The row's key, `id=4711`.
    pub key: String,
    /// For an update: the columns, `status: cancelled -> open`. Shortened.
    pub detail: String,
}

/// A folder's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderPlan {
    /// The workload.
    pub workload: WorkloadName,
    /// The tenant's part of it, as the glob that was used.
    pub path: String,
    /// The restore point it is put back from; for an undo the one that holds the former state.
    pub point: RestorePointId,
    /// The moment that point holds.
    pub moment: DateTime<Utc>,
    /// How much older than the target it is.
    pub age_seconds: i64,
    /// Entries to create, by path.
    pub create: Vec<String>,
    /// Entries to put back to another content or mode.
    pub replace: Vec<String>,
    /// Entries that were not there then.
    pub delete: Vec<String>,
}

impl TenantPlan {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables
            .iter()
            .all(|t| t.insert + t.update + t.delete == 0)
            && self.large_objects.is_none()
            && self.folders.iter().all(FolderPlan::is_empty)
    }

    /// Tables of which the tenant would lose every row. A plan with such tables wants a confirmation
    /// of its own.
    #[must_use]
    pub fn emptied_tables(&self) -> Vec<&str> {
        self.tables
            .iter()
            .filter(|t| t.rows_now > 0 && t.delete == t.rows_now && t.insert == 0)
            .map(|t| t.table.as_str())
            .collect()
    }

    /// Rows to insert, update and delete over all tables.
    #[must_use]
    pub fn totals(&self) -> (u64, u64, u64) {
        self.tables.iter().fold((0, 0, 0), |(i, u, d), t| {
            (i + t.insert, u + t.update, d + t.delete)
        })
    }
}

impl FolderPlan {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.replace.is_empty() && self.delete.is_empty()
    }
}

fn time(at: &DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore {
                target,
                lsn,
                last_commit_time,
                note,
            } => {
                write!(f, "restore to {target}")?;
                if let Some(at) = last_commit_time {
                    write!(f, ", last commit contained {}", time(at))?;
                }
                if let Some(lsn) = lsn {
                    write!(f, ", LSN {lsn}")?;
                }
                if let Some(note) = note {
                    write!(f, " ({note})")?;
                }
                Ok(())
            }
            Self::Undo { of } => write!(f, "undo of {of}"),
        }
    }
}

impl fmt::Display for TenantPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "tenant {} (id {}) of workload {}",
            self.tenant.name, self.tenant.id, self.workload
        )?;
        writeln!(
            f,
            "{}, mode {}; live rows read {}",
            self.purpose,
            self.mode,
            time(&self.live_read_at)
        )?;
        for line in self.filter.lines() {
            writeln!(f, "only {line}")?;
        }
        writeln!(f)?;
        fmt_tables(&self.tables, f)?;
        if let Some(objects) = &self.large_objects {
            writeln!(f, "{objects}")?;
        }
        for folder in &self.folders {
            writeln!(
                f,
                "\nfolder {} {}: from {} ({}, {} s before the target): {} to create, {} to replace, {} to delete",
                folder.workload,
                folder.path,
                folder.point,
                time(&folder.moment),
                folder.age_seconds,
                folder.create.len(),
                folder.replace.len(),
                folder.delete.len()
            )?;
            let lists = [
                ("create", &folder.create),
                ("replace", &folder.replace),
                ("delete", &folder.delete),
            ];
            for (word, paths) in lists {
                for path in paths.iter().take(SAMPLES_SHOWN) {
                    writeln!(f, "    {word} {path}")?;
                }
            }
        }
        fmt_list("note", &self.warnings, f)?;
        fmt_list("refused", &self.refused, f)
    }
}

/// Samples printed for each table and folder.
const SAMPLES_SHOWN: usize = 3;

fn fmt_list(word: &str, lines: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !lines.is_empty() {
        writeln!(f)?;
    }
    lines
        .iter()
        .try_for_each(|line| writeln!(f, "{word}: {line}"))
}

fn fmt_tables(tables: &[TablePlan], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let changed = || tables.iter().filter(|t| t.insert + t.update + t.delete > 0);
    let width = changed().map(|t| t.table.len()).max().unwrap_or(5).max(5);
    writeln!(
        f,
        "{:<width$}  {:>9}  {:>9}  {:>8}  {:>8}  {:>8}",
        "table", "now", "then", "insert", "update", "delete"
    )?;
    for t in changed() {
        writeln!(
            f,
            "{:<width$}  {:>9}  {:>9}  {:>8}  {:>8}  {:>8}",
            t.table, t.rows_now, t.rows_then, t.insert, t.update, t.delete
        )?;
        for sample in t.samples.iter().take(SAMPLES_SHOWN) {
            writeln!(f, "    {} {} {}", sample.change, sample.key, sample.detail)?;
        }
    }
    let same = tables.len() - changed().count();
    writeln!(
        f,
        "{same} further {} without a difference",
        if same == 1 { "table" } else { "tables" }
    )
}

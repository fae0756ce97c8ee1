//! A set of changes to one tenant's rows, as it is spooled, stored and loaded.
//!
//! One file of COPY text for each table, `db/<number>.copy`, with the columns `op, o0…, n0…`: the old and
//! the new value of every column. `op` is `I` insert, `D` delete, `U` update in place, `R` replace (delete
//! and insert, same key). The reverse of a set is the same file read with old and new exchanged, which is
//! what makes an undo no less exact than the restore. `changes.json` beside it names tables and columns.

use std::path::{Path, PathBuf};

use dr_model::{TenantRestoreId, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::folders::FolderChanges;
use crate::large_objects::LargeObject;
use crate::slice::SliceTable;
use crate::{Mode, Tenant, TenantError};

/// The version of `changes.json`.
pub(crate) const VERSION: u32 = 1;

/// Rows by kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) insert: u64,
    pub(crate) update: u64,
    /// Updates that are written as delete and insert.
    pub(crate) replace: u64,
    pub(crate) delete: u64,
}

impl Counts {
    pub(crate) fn total(self) -> u64 {
        self.insert + self.update + self.replace + self.delete
    }

    /// What PostgreSQL counts: rows inserted, updated, deleted.
    pub(crate) fn written(self) -> [u64; 3] {
        [
            self.insert + self.replace,
            self.update,
            self.delete + self.replace,
        ]
    }
}

/// One table's changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableChanges {
    pub(crate) slice: SliceTable,
    pub(crate) counts: Counts,
    /// Columns that rows to update differ in, by place.
    pub(crate) changed: Vec<usize>,
    /// The tenant's rows before.
    pub(crate) rows_before: u64,
    /// The tenant's rows afterwards.
    pub(crate) rows_after: u64,
    /// Not restored; here because its rows belong to the tenant through those of other tables, and must do so
    /// afterwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) left_out: bool,
    /// What [`crate::contents`] made of the tenant's rows when they were compared, where nothing may have changed
    /// since.
    #[serde(skip)]
    pub(crate) sum_before: Option<String>,
}

/// A whole set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeSet {
    pub(crate) version: u32,
    pub(crate) restore: TenantRestoreId,
    pub(crate) workload: WorkloadName,
    pub(crate) tenant: Tenant,
    pub(crate) mode: Mode,
    /// Parents before their children.
    pub(crate) tables: Vec<TableChanges>,
    /// Large objects that rows refer to, their contents beside the rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) large_objects: Vec<LargeObject>,
    pub(crate) folders: Vec<FolderChanges>,
}

/// Which way a stored set is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Reverse,
}

impl TableChanges {
    /// The file of the table's rows, relative to the set's folder.
    pub(crate) fn file(&self) -> PathBuf {
        PathBuf::from(format!("db/{}.copy", self.slice.number))
    }

    /// Whether rows of it are written.
    pub(crate) fn is_written(&self) -> bool {
        self.counts.total() > 0
    }

    /// `op, o0, …, n0, …`, old and new exchanged for the reverse.
    pub(crate) fn column_list(&self, direction: Direction) -> String {
        let places = 0..self.slice.columns.len();
        let side = |side: &str| {
            places
                .clone()
                .map(|place| format!("{side}{place}"))
                .collect::<Vec<_>>()
        };
        let (first, second) = match direction {
            Direction::Forward => ("o", "n"),
            Direction::Reverse => ("n", "o"),
        };
        let mut list = vec!["op".to_owned()];
        list.extend(side(first));
        list.extend(side(second));
        list.join(", ")
    }

    /// The same changes taken back. Every column is known on both sides now.
    fn reversed(&self) -> Self {
        let mut reversed = self.clone();
        reversed.sum_before = None;
        for column in &mut reversed.slice.columns {
            column.common = true;
        }
        std::mem::swap(&mut reversed.counts.insert, &mut reversed.counts.delete);
        std::mem::swap(&mut reversed.rows_before, &mut reversed.rows_after);
        reversed
    }
}

impl ChangeSet {
    /// The set that takes this one back, under its own id.
    pub(crate) fn reversed(&self, restore: TenantRestoreId) -> Self {
        Self {
            restore,
            tables: self.tables.iter().map(TableChanges::reversed).collect(),
            large_objects: self
                .large_objects
                .iter()
                .map(LargeObject::reversed)
                .collect(),
            folders: self.folders.iter().map(FolderChanges::reversed).collect(),
            ..self.clone()
        }
    }

    /// Whether the database is written to.
    pub(crate) fn has_rows(&self) -> bool {
        self.tables.iter().any(TableChanges::is_written) || !self.large_objects.is_empty()
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), TenantError> {
        let path = folder.join("changes.json");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| TenantError::format("the change set", error))?;
        std::fs::write(&path, text).map_err(TenantError::file("write", &path))
    }

    pub(crate) fn read(folder: &Path) -> Result<Self, TenantError> {
        let path = folder.join("changes.json");
        let text = std::fs::read(&path).map_err(TenantError::file("read", &path))?;
        let set: Self = serde_json::from_slice(&text)
            .map_err(|error| TenantError::format("the stored change set", error))?;
        if set.version == VERSION {
            Ok(set)
        } else {
            Err(TenantError::format(
                "the stored change set",
                format!("version {}", set.version),
            ))
        }
    }
}

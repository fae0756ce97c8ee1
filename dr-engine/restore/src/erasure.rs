//! The ledger of erasures: what had to be forgotten, and is taken out of every copy before anyone sees it.
//!
//! A backup holds people and customers that were erased since. It cannot be changed without losing its proof, so
//! what was erased is written down ([`Erasure`]), and taken out again of whatever is restored: of a scratch server
//! before a tenant's rows are read there, and of a restored cluster while nobody but this process can reach it
//! ([`settle`]). All entries count, whatever moment is restored: an erasure has no date before which it does not
//! hold.
//!
//! An entry carries everything that applying it needs: tables, conditions, keys. Neither the configuration nor the
//! live database has to be there. What is erased with a row is found in the copy itself, by the foreign keys that it
//! has ([`doomed`]). What cannot be erased without breaking the copy stops the restore.

mod doomed;
mod hazards;
mod ledger;
mod places;
mod remade;
mod settle;
mod tables;

use std::fmt;

use chrono::{DateTime, Utc};
use dr_config::TenantGlob;
use dr_model::{ErasureId, TableName, WorkloadName};
use serde::{Deserialize, Serialize};

pub use doomed::{Found, FoundRows, Part, find};
pub(crate) use ledger::ledger_of;
pub use ledger::{erasures, record_erasure};
pub(crate) use settle::{Depth, apply, settle};

/// An entry of the ledger, as it is kept. Written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Version of this structure.
    pub version: u32,
    /// Its name.
    pub id: ErasureId,
    /// The database workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: ErasedTenant,
    /// How much of it.
    pub scope: ErasureScope,
    /// Also rows that refer to erased ones and that their foreign keys do not delete, if they are the tenant's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dependents: bool,
    /// Why, in somebody's words.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// What is erased where.
    pub databases: Vec<ErasedDatabase>,
    /// The tenant's paths in folder workloads, when all of it is erased.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<ErasedFolder>,
}

/// Whose data it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedTenant {
    /// The value of the tenant column, as text.
    pub id: String,
    /// What people called it.
    pub name: String,
    /// The type of the column that holds the id, where one value of it can be written in several ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_type: Option<String>,
}

impl ErasedTenant {
    /// Whether this is its id, however it is written: `7` and `007` are one number, and letters of a uuid may be
    /// small or capital.
    #[must_use]
    pub fn is(&self, id: &str) -> bool {
        let of = self.id_type.as_deref().unwrap_or_default();
        canonical_id(&self.id, of) == canonical_id(id, of)
    }
}

/// A tenant's id as PostgreSQL itself writes a value of this type. What is no value of it stays as it is.
#[must_use]
pub fn canonical_id(id: &str, id_type: &str) -> String {
    let written = match id_type {
        "smallint" | "integer" | "bigint" => id.trim().parse::<i64>().ok().map(|it| it.to_string()),
        "uuid" => uuid(id),
        "bpchar" | "character" => Some(id.trim_end_matches(' ').to_owned()),
        _ => None,
    };
    written.unwrap_or_else(|| id.to_owned())
}

fn uuid(text: &str) -> Option<String> {
    let bare: String = text
        .chars()
        .filter(|letter| !matches!(letter, '-' | '{' | '}' | ' '))
        .map(|letter| letter.to_ascii_lowercase())
        .collect();
    let is_one = bare.len() == 32 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts = [
        bare.get(..8)?,
        bare.get(8..12)?,
        bare.get(12..16)?,
        bare.get(16..20)?,
        bare.get(20..)?,
    ];
    is_one.then(|| parts.join("-"))
}

/// How much of a tenant is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasureScope {
    /// Everything.
    Tenant,
    /// Single rows.
    Rows,
}

/// One database's part of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedDatabase {
    /// The database.
    pub database: String,
    /// Everything in it that lies here is the tenant's and is erased, by whatever names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<WholePlace>,
    /// Tables that held rows of the tenant when the entry was recorded.
    pub tables: Vec<ErasedTable>,
    /// Further columns by which rows belong to rows of other tables, that no foreign key tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<ErasedLink>,
    /// The columns that held the tenant's id, in tables that were gone when the entry was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenant_columns: Vec<String>,
    /// Tables in which such a column means something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<TableName>,
}

/// What is one tenant's as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WholePlace {
    /// The database.
    Database,
    /// A schema of it.
    Schema(String),
}

/// One table's part of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedTable {
    /// The table.
    pub table: TableName,
    /// Whether a row `t` of it is the tenant's: a condition in SQL, all names qualified.
    pub whose: String,
    /// Which of the tenant's rows.
    pub rows: ErasedRows,
}

/// Which of a tenant's rows in a table are erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasedRows {
    /// All of them.
    All,
    /// Those with these keys.
    Keys {
        /// The key's columns.
        columns: Vec<String>,
        /// Each key's values, as text, in the order of the columns.
        keys: Vec<Vec<String>>,
    },
    /// Those that belong to erased rows of other tables.
    Dependent,
}

/// Columns by which a row belongs to a row of another table without a foreign key. Compared by their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedLink {
    /// The table.
    pub child: TableName,
    /// Its columns.
    pub columns: Vec<String>,
    /// The table that it belongs to.
    pub parent: TableName,
    /// Columns there.
    pub parent_columns: Vec<String>,
    /// Only rows in which this column holds this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<(String, String)>,
}

/// A folder's part of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedFolder {
    /// The folder workload.
    pub workload: WorkloadName,
    /// The tenant's paths, as a glob.
    pub path: String,
}

impl Erasure {
    /// The version written now.
    pub const VERSION: u32 = 1;

    /// Whether it has anything to do with what is restored of a workload.
    #[must_use]
    pub fn concerns(&self, workload: &WorkloadName) -> bool {
        self.workload == *workload || self.folders.iter().any(|it| it.workload == *workload)
    }

    /// Whether the whole of this tenant is erased.
    #[must_use]
    pub fn is_whole(&self, tenant: &str) -> bool {
        self.scope == ErasureScope::Tenant && self.tenant.is(tenant)
    }
}

/// What was taken out of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppliedErasures {
    /// Every entry that was applied, also those of which nothing was there.
    pub entries: Vec<AppliedErasure>,
    /// Entries that were left out because it was asked for.
    #[serde(default)]
    pub pending: u64,
    /// What entries name and the copy has not under that name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_found: Vec<String>,
    /// What could not be made anew from the rows that are left, and where else rows may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One entry's part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedErasure {
    /// The entry.
    pub id: ErasureId,
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// Whose data.
    pub tenant: ErasedTenant,
    /// What was erased, by table.
    pub tables: Vec<ErasedCount>,
    /// Files that were left out.
    #[serde(default)]
    pub files: u64,
}

/// One table's part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedCount {
    /// `schema.table`.
    pub table: String,
    /// Rows erased.
    pub erased: u64,
    /// Rows that referred to erased ones and no longer do.
    #[serde(default)]
    pub cleared: u64,
}

impl AppliedErasures {
    /// Rows erased over all entries and tables.
    #[must_use]
    pub fn rows(&self) -> u64 {
        let tables = self.entries.iter().flat_map(|entry| &entry.tables);
        tables.map(|table| table.erased).sum()
    }
}

impl fmt::Display for AppliedErasures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.entries.is_empty() && self.pending == 0 {
            return f.pad("erasures: the ledger has none");
        }
        let entries = counted(self.entries.len() as u64, "entry", "entries");
        let mut text = format!(
            "erasures applied: {entries}, {}",
            counted(self.rows(), "row", "rows")
        );
        let files: u64 = self.entries.iter().map(|entry| entry.files).sum();
        if files > 0 {
            text.push_str(&format!(", {}", counted(files, "file", "files")));
        }
        match self.pending {
            0 => text.push_str("; none pending"),
            pending => text.push_str(&format!("; {pending} NOT APPLIED, as was asked")),
        }
        if !self.not_found.is_empty() {
            let names = self.not_found.join(", ");
            text.push_str(&format!("; NOT FOUND in the copy: {names}"));
        }
        f.pad(&text)
    }
}

fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// Which paths of a folder workload are erased, each with its entry's place among `entries`. A glob that cannot be
/// understood is an error: what is to be forgotten is not guessed.
pub(crate) fn erased_paths(
    entries: &[Erasure],
    workload: &WorkloadName,
) -> Result<Vec<(usize, TenantGlob)>, crate::RestoreError> {
    let mut globs = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        let folders = entry.folders.iter();
        for folder in folders.filter(|folder| folder.workload == *workload) {
            let glob = TenantGlob::new(&folder.path).map_err(|why| {
                crate::RestoreError::ErasureNotHeld {
                    id: entry.id.clone(),
                    why: vec![format!("the path `{}` of it: {why}", folder.path)],
                }
            })?;
            globs.push((place, glob));
        }
    }
    Ok(globs)
}

#[cfg(test)]
mod ids {
    use super::*;

    /// As it is stored. Never edited: what was recorded has to be understood for ever.
    #[test]
    fn a_tenant_is_stored_as_it_was_before() {
        let mut tenant = ErasedTenant {
            id: "7".to_owned(),
            name: "ACME".to_owned(),
            id_type: Some("integer".to_owned()),
        };
        let typed = r#"{"id":"7","name":"ACME","id_type":"integer"}"#;
        assert_eq!(serde_json::to_string(&tenant).unwrap(), typed);
        assert_eq!(serde_json::from_str::<ErasedTenant>(typed).unwrap(), tenant);
        tenant.id_type = None;
        let untyped = r#"{"id":"7","name":"ACME"}"#;
        assert_eq!(
            serde_json::from_str::<ErasedTenant>(untyped).unwrap(),
            tenant
        );
    }

    #[test]
    fn an_id_is_the_same_however_it_is_written() {
        let is = |id: &str, id_type: Option<&str>, other: &str| {
            let tenant = ErasedTenant {
                id: id.to_owned(),
                name: "ACME".to_owned(),
                id_type: id_type.map(str::to_owned),
            };
            tenant.is(other)
        };
        let uuid = "6F9619FF-8B86-D011-B42D-00C04FC964FF";
        assert!(is("007", Some("integer"), "7"));
        assert!(is("7", Some("bigint"), "+7"));
        assert!(!is("7", Some("integer"), "70"));
        assert!(!is("007", None, "7"), "text");
        assert!(is(uuid, Some("uuid"), &uuid.to_lowercase()));
        assert!(is(&uuid.replace('-', ""), Some("uuid"), uuid));
        assert!(!is(uuid, Some("uuid"), &uuid.replace("6F", "7F")));
        assert!(is("A12  ", Some("bpchar"), "A12"));
        assert!(!is("ä", Some("uuid"), "Ä"), "no uuids");
    }
}

#[cfg(test)]
mod tests;

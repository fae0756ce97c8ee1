//! The tenancy map: how each table of a database belongs to tenants.

use std::fmt;

use dr_model::WorkloadName;
use serde::{Deserialize, Serialize};

/// A table's qualified name, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.schema, self.name))
    }
}

/// One step from a table to the table its rows belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The foreign key.
    pub constraint: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// The table it refers to.
    pub parent: TableName,
    /// The columns it refers to.
    pub parent_columns: Vec<String>,
    /// The equality operators, qualified, one for each column.
    pub operators: Vec<String>,
}

/// How a table's rows belong to tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "class")]
pub enum TableClass {
    /// A column holds the tenant's id.
    Direct {
        /// The column.
        column: String,
        /// Its type.
        column_type: String,
    },
    /// Rows belong to the tenant of the row that a foreign key refers to.
    Via {
        /// The next step; further ones are the parent's own class.
        hop: Hop,
        /// Steps to the table with the tenant column.
        depth: usize,
    },
    /// Belongs to all tenants; never written.
    Shared,
    /// Belongs to nobody; never written.
    Ignored,
    /// In no class: any restore is refused.
    Unclassified {
        /// Why it could not be classified.
        reason: String,
        /// Classes that could be declared, as YAML values.
        choices: Vec<String>,
    },
}

/// One table with its class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedTable {
    /// The table.
    pub table: TableName,
    /// Its class.
    #[serde(flatten)]
    pub class: TableClass,
    /// Whether the configuration says so, and not the system catalogs.
    pub declared: bool,
}

/// The tenancy map of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenancyMap {
    /// The workload.
    pub workload: WorkloadName,
    /// The database.
    pub database: String,
    /// All permanent tables, partitions folded into their parents, in order of name.
    pub tables: Vec<MappedTable>,
}

impl TableClass {
    /// In words: `direct tenant_id`, `via order_id -> public.sales_order`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Direct { column, .. } => format!("direct {column}"),
            Self::Via { hop, .. } => format!("via {} -> {}", hop.columns.join(", "), hop.parent),
            Self::Shared => "shared".to_owned(),
            Self::Ignored => "ignored".to_owned(),
            Self::Unclassified { .. } => "unclassified".to_owned(),
        }
    }
}

impl TenancyMap {
    /// The tables in no class.
    pub fn unclassified(&self) -> impl Iterator<Item = (&MappedTable, &str)> {
        self.tables.iter().filter_map(|mapped| match &mapped.class {
            TableClass::Unclassified { reason, .. } => Some((mapped, reason.as_str())),
            _ => None,
        })
    }

    /// What to add to the workload's section of `dr.yaml`; `None` when every table has a class.
    #[must_use]
    pub fn yaml(&self) -> Option<String> {
        let mut lines = String::from("tenancy:\n  tables:\n");
        let mut any = false;
        for mapped in &self.tables {
            if let TableClass::Unclassified { reason, choices } = &mapped.class {
                any = true;
                let choice = choices.first().map_or("ignored", String::as_str);
                let others = choices.get(1..).unwrap_or_default().join(" or ");
                let others = if others.is_empty() {
                    String::new()
                } else {
                    format!(" (or {others})")
                };
                lines.push_str(&format!(
                    "    {}: {choice}  # {reason}{others}\n",
                    mapped.table
                ));
            }
        }
        any.then_some(lines)
    }
}

impl fmt::Display for TenancyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .tables
            .iter()
            .map(|t| t.table.to_string().len())
            .max()
            .unwrap_or(5)
            .max(5);
        writeln!(f, "{:<width$}  class", "table")?;
        for mapped in &self.tables {
            let declared = if mapped.declared { " (declared)" } else { "" };
            write!(
                f,
                "{:<width$}  {}{declared}",
                mapped.table,
                mapped.class.describe()
            )?;
            match &mapped.class {
                TableClass::Unclassified { reason, .. } => writeln!(f, ": {reason}")?,
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}

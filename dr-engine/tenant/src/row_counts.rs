//! Whose rows there are: counted, not believed. A tenant column can say one thing and the foreign key beside
//! it another; rows can be nobody's.

use std::fmt;

use dr_config::TenancyConfig;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

use crate::TenantError;
use crate::catalog::{CatalogRows, ForeignKey};
use crate::map::{MappedTable, TableClass, TenancyMap};
use crate::plan::Tenant;
use crate::slice::{Ownership, join};
use crate::sql::{self, literal, table};

/// The rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// The table.
    pub table: String,
    /// All of them.
    pub rows: u64,
    /// Those of no tenant: the column is null, or the way to one ends.
    pub nobodys: u64,
    /// Those that are everybody's (`tenancy.shared_ids`).
    pub shared: u64,
}

/// Rows that refer to another tenant's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// The foreign key.
    pub constraint: String,
    /// The table of the rows.
    pub table: String,
    /// What they refer to.
    pub parent: String,
    /// How many.
    pub rows: u64,
    /// One of them: whose it is, and whose the other.
    pub example: String,
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RowCounts {
    /// By table, of those that hold tenants' rows.
    pub tables: Vec<TableRows>,
    /// Where a row is one tenant's and what it refers to is another's.
    pub disagreements: Vec<Disagreement>,
}

impl fmt::Display for RowCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .tables
            .iter()
            .map(|t| t.table.len())
            .max()
            .unwrap_or(5)
            .max(5);
        writeln!(
            f,
            "{:<width$}  {:>12}  {:>12}  {:>12}",
            "table", "rows", "nobody's", "everybody's"
        )?;
        for t in &self.tables {
            writeln!(
                f,
                "{:<width$}  {:>12}  {:>12}  {:>12}",
                t.table, t.rows, t.nobodys, t.shared
            )?;
        }
        for d in &self.disagreements {
            writeln!(
                f,
                "! {} rows of {} refer to another tenant's row of {} ({}): {}",
                d.rows, d.table, d.parent, d.constraint, d.example
            )?;
        }
        Ok(())
    }
}

/// Counts, in one snapshot.
pub(crate) async fn count(
    live: &mut PgConnection,
    tenancy: &TenancyConfig,
    map: &TenancyMap,
) -> Result<RowCounts, TenantError> {
    let begin = "begin isolation level repeatable read read only";
    sql::run(live, begin, "beginning to count").await?;
    let catalog = CatalogRows::read(live).await?;
    // Of nobody: other ids stay as they are, and are compared with their like only.
    let nobody = Tenant {
        id: String::new(),
        name: String::new(),
        others: std::collections::BTreeMap::new(),
    };
    let owner = Ownership {
        map,
        tenant: &nobody,
    };
    let shared = tenancy
        .shared_ids
        .iter()
        .map(|id| literal(id))
        .collect::<Vec<_>>();
    let shared = format!("array[{}]::text[]", shared.join(", "));
    let mut counts = RowCounts::default();
    for mapped in map
        .tables
        .iter()
        .filter(|mapped| mapped.class.depth().is_some())
    {
        let Some(relation) = catalog.by_name(&mapped.table) else {
            continue;
        };
        let only = if relation.kind == 'p' { "" } else { "only " };
        let whose = owner.tenant_of(&mapped.class, "t");
        let query = format!(
            "select count(*), count(*) filter (where whose is null), \
             count(*) filter (where whose = any({shared})) \
             from (select {whose} as whose from {only}{} t) t",
            table(&mapped.table)
        );
        let action = format!("counting {}", mapped.table);
        let rows = sql::rows(live, &query, action).await?;
        let row = rows
            .first()
            .ok_or_else(|| TenantError::format("a count", "no row"))?;
        let at = |place| sql::column::<i64>(row, place).map(sql::count);
        counts.tables.push(TableRows {
            table: mapped.table.to_string(),
            rows: at(0)?,
            nobodys: at(1)?,
            shared: at(2)?,
        });
    }
    for key in &catalog.foreign_keys {
        counts
            .disagreements
            .extend(disagreement(live, &catalog, &owner, key, &shared).await?);
    }
    sql::run(live, "commit", "counting").await?;
    Ok(counts)
}

/// By which id of tenants a table knows them in the end.
fn kind_of_id<'m>(map: &'m TenancyMap, mapped: &'m MappedTable) -> Option<Option<&'m String>> {
    match &mapped.class {
        TableClass::Direct { id, .. } => Some(id.as_ref()),
        TableClass::Whole { .. } => Some(None),
        TableClass::Via { hop, .. } => {
            let parent = map.tables.iter().find(|other| other.table == hop.parent)?;
            kind_of_id(map, parent)
        }
        // Its rows may end at tables of several kinds.
        _ => None,
    }
}

async fn disagreement(
    live: &mut PgConnection,
    catalog: &CatalogRows,
    owner: &Ownership<'_>,
    key: &ForeignKey,
    shared: &str,
) -> Result<Option<Disagreement>, TenantError> {
    let mapped = |oid| {
        let relation = catalog.relation(catalog.root_of(oid))?;
        owner
            .map
            .tables
            .iter()
            .find(|mapped| mapped.table == relation.name)
    };
    let (Some(child), Some(parent)) = (mapped(key.child), mapped(key.parent)) else {
        return Ok(None);
    };
    let (Some(own), Some(other)) = (kind_of_id(owner.map, child), kind_of_id(owner.map, parent))
    else {
        return Ok(None);
    };
    let is_the_way =
        matches!(&child.class, TableClass::Via { hop, .. } if hop.constraint == key.name);
    if is_the_way || own != other {
        return Ok(None);
    }
    let query = format!(
        "select count(*), min('of ' || c_whose || ', refers to one of ' || p_whose) from ( \
           select {} as c_whose, {} as p_whose from {} c join {} p on {}) t \
         where c_whose <> p_whose and p_whose <> all({shared})",
        owner.tenant_of(&child.class, "c"),
        owner.tenant_of(&parent.class, "p"),
        table(&child.table),
        table(&parent.table),
        join(&key.parent_columns, "p", &key.operators, &key.columns, "c"),
    );
    let action = format!("looking along {} of {}", key.name, child.table);
    let rows = sql::rows(live, &query, action).await?;
    let row = rows
        .first()
        .ok_or_else(|| TenantError::format("a count", "no row"))?;
    let count = sql::count(sql::column::<i64>(row, 0)?);
    if count == 0 {
        return Ok(None);
    }
    Ok(Some(Disagreement {
        constraint: key.name.clone(),
        table: child.table.to_string(),
        parent: parent.table.to_string(),
        rows: count,
        example: sql::column::<Option<String>>(row, 1)?.unwrap_or_default(),
    }))
}

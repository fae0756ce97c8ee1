//! Rows of others that refer to rows which a restore would remove: found while planning, so that the preview
//! has them, and either a reason not to carry it out or a reason to leave the rows they refer to.
//!
//! That every foreign key holds is checked once more, over all rows, before the commit: see [`crate::checks`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;

use crate::TenantError;
use crate::catalog::{CatalogRows, ForeignKey};
use crate::checks::{all_present, from, places, texts};
use crate::diff::SCHEMA;
use crate::map::TableClass;
use crate::slice::{Ownership, SliceTable};
use crate::sql::{self, ident, literal};

/// Rows looked up at a time.
const ROWS_AT_A_TIME: u64 = 5_000;
/// Rows named in a message.
const NAMED: usize = 5;

/// What becomes of rows that others refer to and that were not there at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// The restore is refused.
    #[default]
    Abort,
    /// They stay.
    Keep,
}

/// Looks for them among the rows of a table that are in `live_N` and not in `then_N`. Where they are to stay, they
/// are put into `then_N`, as if they had been there.
pub(crate) async fn look(
    live: &mut PgConnection,
    scratch: &mut PgConnection,
    rows: &CatalogRows,
    owner: &Ownership<'_>,
    table: &SliceTable,
    on_conflict: OnConflict,
) -> Result<Vec<String>, TenantError> {
    let Some(relation) = rows.by_name(&table.table) else {
        return Ok(Vec::new());
    };
    let (mut seen, mut lines) = (BTreeSet::new(), Vec::new());
    for key in &rows.foreign_keys {
        let (child, parent) = (rows.root_of(key.child), rows.root_of(key.parent));
        // That of each partition says the same.
        if parent != relation.oid || !seen.insert((child, key.columns.clone())) {
            continue;
        }
        let Some(referrer) = Referrer::of(rows, owner, table, key) else {
            continue;
        };
        lines.extend(referrer.look(live, scratch, table, on_conflict).await?);
    }
    Ok(lines)
}

/// A table of which rows may be others' and refer to the tenant's.
struct Referrer<'a> {
    key: &'a ForeignKey,
    name: String,
    from: String,
    /// A row `ch` of it is the tenant's.
    belongs: String,
    whose: String,
    /// The columns referred to, by their places.
    places: Vec<usize>,
}

impl<'a> Referrer<'a> {
    /// `None` where its rows are the tenant's if those that they refer to are.
    fn of(
        rows: &CatalogRows,
        owner: &Ownership<'_>,
        table: &SliceTable,
        key: &'a ForeignKey,
    ) -> Option<Self> {
        let root = rows.root_of(key.child);
        let relation = rows.relation(root)?;
        let mapped = owner.map.tables.iter().find(|it| it.table == relation.name);
        let class = mapped.map(|mapped| &mapped.class);
        let same_owner = match (class, &table.class) {
            (Some(TableClass::Via { hop, .. }), _) => hop.constraint == key.name,
            (
                Some(TableClass::Direct { column: child, .. }),
                TableClass::Direct { column: parent, .. },
            ) => {
                let mut pairs = key.columns.iter().zip(&key.parent_columns);
                pairs.any(|(c, p)| c == child && p == parent)
            }
            _ => false,
        };
        if same_owner {
            return None;
        }
        let (belongs, whose) = match class {
            Some(TableClass::Shared | TableClass::Ignored | TableClass::Unclassified { .. })
            | None => ("false".to_owned(), "null".to_owned()),
            Some(class) => (owner.condition(class, "ch"), owner.tenant_of(class, "ch")),
        };
        Some(Self {
            key,
            name: relation.name.to_string(),
            from: from(rows, root)?,
            belongs,
            whose,
            places: places(table, &key.parent_columns)?,
        })
    }

    async fn look(
        &self,
        live: &mut PgConnection,
        scratch: &mut PgConnection,
        table: &SliceTable,
        on_conflict: OnConflict,
    ) -> Result<Option<String>, TenantError> {
        if table.key.is_empty() {
            return Ok(None);
        }
        let what = format!("looking for rows of others that refer to {}", table.table);
        let (mut after, mut count, mut named) = ("(0,0)".to_owned(), 0, Vec::new());
        loop {
            let query = format!(
                "select coalesce(json_agg(k), '[]')::text, max(at::tid)::text from ({}) k",
                self.leaving(table, &after)
            );
            let found = sql::rows(scratch, &query, what.clone()).await?;
            let Some(row) = found.first() else { break };
            let (batch, last): (String, Option<String>) =
                (sql::column(row, 0)?, sql::column(row, 1)?);
            let Some(last) = last else { break };
            after = last;
            let referred = sql::rows(live, &self.referring(table, &batch), what.clone()).await?;
            let Some(row) = referred.first() else { break };
            let places: Option<Vec<String>> = sql::column(row, 0)?;
            let some: Option<Vec<String>> = sql::column(row, 1)?;
            let Some(places) = places else { continue };
            count += places.len();
            named.extend(some.unwrap_or_default());
            if on_conflict == OnConflict::Keep {
                let keep = format!(
                    "insert into {SCHEMA}.then_{n} select * from {SCHEMA}.live_{n} where ctid = any ({}::tid[])",
                    literal(&format!("{{\"{}\"}}", places.join("\",\""))),
                    n = table.number
                );
                sql::run(scratch, &keep, "keeping rows that others refer to").await?;
            }
        }
        if count == 0 {
            return Ok(None);
        }
        named.truncate(NAMED);
        let (by, rows) = (format!("{} by {}", self.name, self.key.name), &table.table);
        Ok(Some(match on_conflict {
            OnConflict::Abort => format!(
                "{count} rows of {rows} were not there at the target, and others need them ({by} refers to them: {}): \
                 `--on-conflict keep` leaves them",
                named.join("; ")
            ),
            // Goes into the certificate, which is not to tell whose rows these are.
            OnConflict::Keep => format!(
                "{count} rows of {rows} stay, though they were not there at the target: {by} refers to them"
            ),
        }))
    }

    /// Rows that the restore would remove, with where they are and what can be referred to.
    fn leaving(&self, table: &SliceTable, after: &str) -> String {
        let n = table.number;
        let on: Vec<String> = table
            .key
            .iter()
            .map(|key| format!("l.c{p} {} t.c{p}", key.operator, p = key.place))
            .collect();
        let columns: Vec<String> = self
            .places
            .iter()
            .map(|place| format!("l.c{place}::text as p{place}"))
            .collect();
        format!(
            "select l.ctid::text as at, {} from {SCHEMA}.live_{n} l where l.ctid > '{after}'::tid and not exists \
             (select from {SCHEMA}.then_{n} t where {}) order by l.ctid limit {ROWS_AT_A_TIME}",
            columns.join(", "),
            on.join(" and ")
        )
    }

    /// Which of a batch rows of others refer to, and some of these.
    fn referring(&self, table: &SliceTable, batch: &str) -> String {
        let typed: Vec<String> = self
            .places
            .iter()
            .map(|place| format!("p{place} text"))
            .collect();
        let pairs = self
            .places
            .iter()
            .zip(&self.key.operators)
            .zip(&self.key.columns);
        let on: Vec<String> = pairs
            .map(|((place, operator), column)| {
                let base = table
                    .columns
                    .get(*place)
                    .map_or("text", |column| column.base_type.as_str());
                format!("k.p{place}::{base} {operator} ch.{}", ident(column))
            })
            .collect();
        format!(
            "select array_agg(distinct k.at), (array_agg({} || coalesce(' of tenant ' || ({}), '')))[1:{NAMED}] \
             from json_to_recordset({}) as k(at text, {}) join {} ch on {} where {} and ({}) is not true",
            texts("ch", &self.key.columns),
            self.whose,
            literal(batch),
            typed.join(", "),
            self.from,
            on.join(" and "),
            all_present("ch", &self.key.columns),
            self.belongs
        )
    }
}

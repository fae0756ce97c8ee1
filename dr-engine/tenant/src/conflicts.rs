//! Reasons why a plan may not be carried out, and what the operator should know, found while planning.

use sqlx::postgres::PgConnection;

use crate::TenantError;
use crate::catalog::CatalogRows;
use crate::changes::TableChanges;
use crate::diff::SCHEMA;
use crate::slice::Ownership;
use crate::sql::{self, ident, literal};

/// Blocks of changes whose keys are looked up at a time: some thousands of rows.
const BLOCKS_AT_A_TIME: i64 = 64;
/// Keys named in a message.
const NAMED: usize = 5;

/// Finds keys of rows to return that belong to another tenant by now.
pub(crate) async fn taken(
    live: &mut PgConnection,
    scratch: &mut PgConnection,
    owner: &Ownership<'_>,
    changes: &TableChanges,
    refused: &mut Vec<String>,
) -> Result<(), TenantError> {
    let slice = &changes.slice;
    if slice.key.is_empty() {
        return Ok(());
    }
    let action = || format!("looking up keys of {}", slice.table);
    let wanted = slice
        .key
        .iter()
        .map(|key| format!("n{p}::text as k{p}", p = key.place));
    let wanted = wanted.collect::<Vec<_>>().join(", ");
    let typed = slice
        .key
        .iter()
        .map(|key| format!("k{} text", key.place))
        .collect::<Vec<_>>()
        .join(", ");
    let matches = slice
        .key
        .iter()
        .map(|key| {
            let base = slice
                .columns
                .get(key.place)
                .map_or("text", |column| column.base_type.as_str());
            let name = ident(slice.name_at(key.place));
            format!("t.{name} {} k.k{}::{base}", key.operator, key.place)
        })
        .collect::<Vec<_>>()
        .join(" and ");
    let shown = slice
        .key
        .iter()
        .map(|key| format!("k.k{}", key.place))
        .collect::<Vec<_>>()
        .join(", ");
    let change = format!("{SCHEMA}.change_{}", slice.number);
    let blocks =
        format!("select pg_relation_size('{change}') / current_setting('block_size')::int8");
    let blocks: i64 = sql::value(scratch, &blocks, action()).await?;
    let mut block = 0;
    while block < blocks {
        let end = block + BLOCKS_AT_A_TIME;
        // A range of places is read as such: sorting or counting off would read all of it each time.
        let keys = format!(
            "select json_agg(k)::text from (select {wanted} from {change} where op = 'I' \
             and ctid >= '({block},0)'::tid and ctid < '({end},0)'::tid) k"
        );
        block = end;
        let Some(keys) = sql::value::<Option<String>>(scratch, &keys, action()).await? else {
            continue;
        };
        let query = format!(
            "select array_agg(concat_ws(', ', {shown})) from json_to_recordset({}) as k({typed}) \
             join {} t on {matches} where ({}) is not true",
            literal(&keys),
            slice.from(),
            owner.condition(&slice.class, "t")
        );
        let others: Option<Vec<String>> = sql::value(live, &query, action()).await?;
        if let Some(others) = others {
            refused.push(format!(
                "{} {} of rows to return to {} belong to another tenant by now: {}",
                others.len(),
                if others.len() == 1 { "key" } else { "keys" },
                slice.table,
                others
                    .into_iter()
                    .take(NAMED)
                    .collect::<Vec<_>>()
                    .join("; ")
            ));
            return Ok(());
        }
    }
    Ok(())
}

/// Looks at what surrounds the tables to be written: triggers that fire all the same, publications,
/// constraints that cannot be checked, materialized views.
pub(crate) fn surroundings(
    rows: &CatalogRows,
    changes: &[TableChanges],
    warnings: &mut Vec<String>,
    refused: &mut Vec<String>,
) {
    let written: Vec<&TableChanges> = changes.iter().filter(|c| c.counts.total() > 0).collect();
    for changes in &written {
        let table = &changes.slice.table;
        let Some(relation) = rows.by_name(table) else {
            continue;
        };
        let family = rows.family(relation.oid);
        for firing in rows
            .firing
            .iter()
            .filter(|firing| family.contains(&firing.relation))
        {
            refused.push(format!(
                "{} of {table} is ENABLE ALWAYS or REPLICA and would fire",
                firing.name
            ));
        }
        for constraint in rows
            .deferrables
            .iter()
            .filter(|c| family.contains(&c.relation))
        {
            if constraint.complicated {
                refused.push(format!(
                    "deferrable constraint {} of {table} has expressions and cannot be checked",
                    constraint.name
                ));
            }
        }
        publications(rows, changes, warnings, refused);
    }
    if !written.is_empty() && !rows.slots.is_empty() {
        warnings.push(format!(
            "logical replication slots will decode this transaction: {}; downstream systems see its rows",
            rows.slots.join(", ")
        ));
    }
    let views: Vec<String> = rows
        .relations
        .iter()
        .filter(|r| r.kind == 'm')
        .map(|r| r.name.to_string())
        .collect();
    if !written.is_empty() && !views.is_empty() {
        warnings.push(format!(
            "materialized views are refreshed only with --refresh-views: {}",
            views.join(", ")
        ));
    }
}

fn publications(
    rows: &CatalogRows,
    changes: &TableChanges,
    warnings: &mut Vec<String>,
    refused: &mut Vec<String>,
) {
    let table = &changes.slice.table;
    let Some(relation) = rows.by_name(table) else {
        return;
    };
    let family = rows.family(relation.oid);
    let [_, updated, deleted] = changes.counts.written();
    for published in rows
        .published
        .iter()
        .filter(|p| family.contains(&p.relation))
    {
        let note = format!(
            "{table} is in publication {}: subscribers get its rows",
            published.publication
        );
        if !warnings.contains(&note) {
            warnings.push(note);
        }
        let identity = rows
            .relation(published.relation)
            .map_or('n', |r| r.replica_identity);
        let primary = rows
            .indexes
            .iter()
            .any(|i| i.relation == published.relation && i.primary);
        let none = identity == 'n' || (identity == 'd' && !primary);
        if none && ((updated > 0 && published.updates) || (deleted > 0 && published.deletes)) {
            refused.push(format!(
                "{table} is in publication {} without a replica identity, so it cannot be updated or \
                 deleted from: ALTER TABLE {table} REPLICA IDENTITY …",
                published.publication
            ));
        }
    }
}

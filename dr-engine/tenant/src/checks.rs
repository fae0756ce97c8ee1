//! What PostgreSQL does not enforce while triggers are off, checked by hand.
//!
//! `session_replication_role = replica` switches off every constraint trigger: foreign keys, the
//! deferred half of deferrable unique and exclusion constraints. Going back to `origin` checks nothing
//! afterwards. So: parents of rows to be written are locked before (a parent deleted meanwhile makes us
//! wait, then fails the check), and every constraint that touches written rows is checked as the last
//! statements, each with a fresh snapshot: written rows have their parents; rows of any tenant that
//! refer to a row we deleted or re-keyed still find one.

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;

use crate::apply::temporary;
use crate::catalog::{CatalogRows, Deferrable, ForeignKey, Oid};
use crate::changes::TableChanges;
use crate::slice::{Ownership, SliceTable, join, numbered_record};
use crate::sql::{self, ident};
use crate::{TenantError, fault};

/// Offending rows named for each constraint.
const NAMED: usize = 5;
/// More steps of a sequence than this are not taken one by one.
const SEQUENCE_STEPS_MAX: i64 = 10_000_000;

/// The changes of the table that a table or partition belongs to.
fn changes_of<'a>(
    rows: &CatalogRows,
    oid: Oid,
    changed: &'a [&'a TableChanges],
) -> Option<&'a TableChanges> {
    let name = &rows.relation(rows.root_of(oid))?.name;
    changed
        .iter()
        .find(|changes| changes.slice.table == *name)
        .copied()
}

pub(crate) fn from(rows: &CatalogRows, oid: Oid) -> Option<String> {
    let relation = rows.relation(oid)?;
    let name = sql::table(&relation.name);
    Some(if relation.kind == 'p' {
        name
    } else {
        format!("only {name}")
    })
}

pub(crate) fn places(slice: &SliceTable, names: &[String]) -> Option<Vec<usize>> {
    names.iter().map(|name| slice.place_of(name)).collect()
}

fn numbered(side: &str, places: &[usize]) -> Vec<String> {
    places
        .iter()
        .map(|place| format!("{side}{place}"))
        .collect()
}

pub(crate) fn texts(alias: &str, columns: &[String]) -> String {
    let values: Vec<String> = columns
        .iter()
        .map(|name| format!("coalesce({alias}.{}::text, 'null')", ident(name)))
        .collect();
    format!("concat_ws(', ', {})", values.join(", "))
}

pub(crate) fn all_present(alias: &str, columns: &[String]) -> String {
    let tests: Vec<String> = columns
        .iter()
        .map(|name| format!("{alias}.{} is not null", ident(name)))
        .collect();
    tests.join(" and ")
}

/// Locks the parents that rows to be written refer to, as a foreign key's own check would.
pub(crate) async fn lock_parents(
    live: &mut PgConnection,
    rows: &CatalogRows,
    changed: &[&TableChanges],
) -> Result<(), TenantError> {
    for key in &rows.foreign_keys {
        let Some(changes) = changes_of(rows, key.child, changed) else {
            continue;
        };
        let (Some(places), Some(parent)) =
            (places(&changes.slice, &key.columns), from(rows, key.parent))
        else {
            continue;
        };
        let columns = numbered("n", &places);
        let statement = format!(
            "select count(*) from (select 1 from {parent} p where exists (select from {} c \
             where c.op <> 'D' and {}) for key share of p) locked",
            temporary(&changes.slice),
            join(&key.parent_columns, "p", &key.operators, &columns, "c")
        );
        let action = format!(
            "locking the rows that {} refers to by {}",
            changes.slice.table, key.name
        );
        let _locked: i64 = sql::value(live, &statement, action).await?;
    }
    Ok(())
}

/// Runs a query that gives a count and some offenders, and turns offenders into a line.
async fn offenders(
    live: &mut PgConnection,
    query: &str,
    name: &str,
    what: &str,
    found: &mut Vec<String>,
) -> Result<(), TenantError> {
    let rows = sql::rows(live, query, format!("checking {name}")).await?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    let count: i64 = sql::column(row, 0)?;
    if count > 0 {
        let some: Option<Vec<String>> = sql::column(row, 1)?;
        let some = some.unwrap_or_default().join("; ");
        found.push(format!("{name}: {count} {what}: {some}"));
    }
    Ok(())
}

/// Checks every constraint that touches written rows; returns how many.
pub(crate) async fn all(
    live: &mut PgConnection,
    rows: &CatalogRows,
    owner: &Ownership<'_>,
    changed: &[&TableChanges],
) -> Result<usize, TenantError> {
    let mut found = Vec::new();
    let mut checked = 0;
    for constraint in &rows.deferrables {
        if let Some(changes) = changes_of(rows, constraint.relation, changed) {
            checked += 1;
            deferrable(live, rows, constraint, changes, &mut found).await?;
        }
    }
    let unchecked = fault::is("foreign-key-unchecked");
    for key in rows.foreign_keys.iter().filter(|_| !unchecked) {
        if let Some(changes) = changes_of(rows, key.child, changed) {
            checked += 1;
            parents_exist(live, rows, owner, key, changes, &mut found).await?;
        }
        if let Some(changes) = changes_of(rows, key.parent, changed) {
            checked += 1;
            children_have_parents(live, rows, owner, key, changes, &mut found).await?;
        }
    }
    if found.is_empty() {
        Ok(checked)
    } else {
        Err(TenantError::CheckFailed {
            what: "constraints would be violated",
            found,
        })
    }
}

fn key_name(rows: &CatalogRows, key: &ForeignKey) -> String {
    let name = |oid| {
        rows.relation(oid)
            .map(|r| r.name.to_string())
            .unwrap_or_default()
    };
    format!(
        "foreign key {} of {} to {}",
        key.name,
        name(key.child),
        name(key.parent)
    )
}

/// Rows that were written refer to rows that exist.
async fn parents_exist(
    live: &mut PgConnection,
    rows: &CatalogRows,
    owner: &Ownership<'_>,
    key: &ForeignKey,
    changes: &TableChanges,
    found: &mut Vec<String>,
) -> Result<(), TenantError> {
    let (Some(parent), Some(child)) = (from(rows, key.parent), from(rows, key.child)) else {
        return Ok(());
    };
    let is_whole = rows
        .relation(key.child)
        .is_some_and(|relation| relation.root.is_none());
    // The change set knows the written rows; a generated column or a key of one partition only is not
    // in it, and then all of the tenant's rows are looked at.
    let (source, columns, condition) = match places(&changes.slice, &key.columns) {
        Some(places) if is_whole => (
            temporary(&changes.slice),
            numbered("n", &places),
            "c.op <> 'D'".to_owned(),
        ),
        _ => (
            child,
            key.columns.clone(),
            owner.condition(&changes.slice.class, "c"),
        ),
    };
    let present = all_present("c", &columns);
    let missing = format!(
        "({present}) and not exists (select from {parent} p where {})",
        join(&key.parent_columns, "p", &key.operators, &columns, "c")
    );
    let half = if key.match_full {
        let any: Vec<String> = columns
            .iter()
            .map(|name| format!("c.{} is not null", ident(name)))
            .collect();
        format!("or (({}) and not ({present}))", any.join(" or "))
    } else {
        String::new()
    };
    let query = format!(
        "select count(*), (array_agg({}))[1:{NAMED}] from {source} c where {condition} and (({missing}) {half})",
        texts("c", &columns)
    );
    offenders(
        live,
        &query,
        &key_name(rows, key),
        "rows would refer to nothing",
        found,
    )
    .await
}

/// Rows of any tenant that refer to what was deleted or re-keyed still find a row.
async fn children_have_parents(
    live: &mut PgConnection,
    rows: &CatalogRows,
    owner: &Ownership<'_>,
    key: &ForeignKey,
    changes: &TableChanges,
    found: &mut Vec<String>,
) -> Result<(), TenantError> {
    let (Some(parent), Some(child)) = (from(rows, key.parent), from(rows, key.child)) else {
        return Ok(());
    };
    let lost = match places(&changes.slice, &key.parent_columns) {
        Some(places) => {
            let [_, updated, deleted] = changes.counts.written();
            let is_moved = places.iter().any(|place| changes.changed.contains(place));
            let which = match (deleted > 0, updated > 0 && is_moved) {
                // Nobody can refer to what still is: the children, which may have no index, need not be read.
                (false, false) => return Ok(()),
                (true, false) => "c.op in ('D', 'R')",
                (_, true) => "c.op <> 'I'",
            };
            let columns = numbered("o", &places);
            format!(
                "exists (select from {} c where {which} and {})",
                temporary(&changes.slice),
                join(&columns, "c", &key.operators, &key.columns, "ch")
            )
        }
        None => all_present("ch", &key.columns),
    };
    let whose = rows
        .relation(rows.root_of(key.child))
        .and_then(|relation| {
            owner
                .map
                .tables
                .iter()
                .find(|mapped| mapped.table == relation.name)
        })
        .map_or_else(
            || "null".to_owned(),
            |mapped| owner.tenant_of(&mapped.class, "ch"),
        );
    let query = format!(
        "select count(*), (array_agg({} || coalesce(' of tenant ' || ({whose}), '')))[1:{NAMED}] \
         from {child} ch where {} and {lost} and not exists (select from {parent} p where {})",
        texts("ch", &key.columns),
        all_present("ch", &key.columns),
        join(&key.parent_columns, "p", &key.operators, &key.columns, "ch")
    );
    let what = "rows refer to rows that the restore removes";
    offenders(live, &query, &key_name(rows, key), what, found).await
}

/// Rows `a` and `b` cannot both be there. Written so that an index over the columns answers it.
fn conflicting(constraint: &Deferrable) -> String {
    let columns = &constraint.columns;
    if !constraint.nulls_not_distinct {
        return join(columns, "a", &constraint.operators, columns, "b");
    }
    let pairs: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(place, name)| {
            let operator = constraint.operators.get(place).map_or("=", String::as_str);
            let (a, b) = (format!("a.{}", ident(name)), format!("b.{}", ident(name)));
            format!("({a} {operator} {b} or ({a} is null and {b} is null))")
        })
        .collect();
    pairs.join(" and ")
}

/// No two rows share a deferrable key, none overlap under a deferrable exclusion.
async fn deferrable(
    live: &mut PgConnection,
    rows: &CatalogRows,
    constraint: &Deferrable,
    changes: &TableChanges,
    found: &mut Vec<String>,
) -> Result<(), TenantError> {
    let Some(from) = from(rows, constraint.relation) else {
        return Ok(());
    };
    let slice = &changes.slice;
    let change = temporary(slice);
    // The written rows lead, so that the table is asked by its indexes and not read: it is every tenant's.
    let (written, which) = match places(slice, &constraint.columns) {
        _ if !slice.key.is_empty() => (
            format!(
                "{change} c join {from} a on {}",
                slice.key_matches("a", "c", "n")
            ),
            "c.op <> 'D'".to_owned(),
        ),
        Some(places) => (
            format!("{from} a"),
            format!(
                "exists (select from {change} c where c.op <> 'D' and {} operator(pg_catalog.*=) {})",
                numbered_record("c", "n", &places),
                slice.own_record("a", &places)
            ),
        ),
        None => (format!("{from} a"), "true".to_owned()),
    };
    let query = format!(
        "select count(*), (array_agg({}))[1:{NAMED}] from {written} join {from} b \
         on (a.tableoid, a.ctid) <> (b.tableoid, b.ctid) and {} where {which}",
        texts("a", &constraint.columns),
        conflicting(constraint)
    );
    let kind = if constraint.exclusion {
        "exclusion constraint"
    } else {
        "unique constraint"
    };
    let name = format!(
        "deferrable {kind} {} of {}",
        constraint.name, changes.slice.table
    );
    offenders(
        live,
        &query,
        &name,
        "rows would be there twice or overlap",
        found,
    )
    .await
}

/// Moves sequences past the keys that returned. Only forward, by `nextval`, which cannot race with other
/// sessions as `setval` does; steps of a transaction that rolls back stay, which is harmless.
pub(crate) async fn advance_sequences(
    live: &mut PgConnection,
    rows: &CatalogRows,
    changed: &[&TableChanges],
) -> Result<(), TenantError> {
    let mut done = BTreeSet::new();
    for sequence in rows
        .sequences
        .iter()
        .filter(|sequence| sequence.increment > 0)
    {
        let Some(changes) = changes_of(rows, sequence.relation, changed) else {
            continue;
        };
        let Some(place) = changes.slice.place_of(&sequence.column) else {
            continue;
        };
        let name = format!("{}.{}", ident(&sequence.schema), ident(&sequence.name));
        if !done.insert((name.clone(), place)) {
            continue;
        }
        if fault::is("sequence-moved-back") {
            let change = temporary(&changes.slice);
            let back =
                format!("select setval('{name}', max(n{place})) from {change} where op <> 'D'");
            sql::run(live, &back, "planting a bug").await?;
        }
        let steps: i64 = sql::value(
            live,
            &format!(
                "select greatest(0, ceil(((select max(n{place}) from {} where op <> 'D')::numeric \
                 - case when is_called then last_value else last_value - {inc} end) / {inc}))::int8 from {name}",
                temporary(&changes.slice),
                inc = sequence.increment
            ),
            format!("reading sequence {name}"),
        )
        .await?;
        if steps > SEQUENCE_STEPS_MAX {
            return Err(TenantError::Refused(vec![format!(
                "sequence {name} is {steps} steps behind the rows that return; set it forward first"
            )]));
        }
        if steps > 0 {
            let statement = format!(
                "select count(nextval({})) from generate_series(1, {steps})",
                sql::literal(&name)
            );
            let _taken: i64 =
                sql::value(live, &statement, format!("advancing sequence {name}")).await?;
        }
    }
    Ok(())
}

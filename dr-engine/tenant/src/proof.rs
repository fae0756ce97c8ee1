//! PostgreSQL's own count of the rows a transaction wrote (`pg_stat_xact_user_tables`, 28.2.24).
//!
//! It counts every row version written by this transaction in every table and partition, whoever wrote
//! it: our statements, a trigger, a rule. A row's xmin would prove nothing: it sees neither deletions
//! nor writes below savepoints. The view still carries counts of the session's earlier transactions that
//! were not yet handed over, hence the baseline.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;

use crate::TenantError;
use crate::catalog::{CatalogRows, Oid};
use crate::changes::TableChanges;
use crate::sql;

/// Rows inserted, updated, deleted, by table.
pub(crate) type Counters = BTreeMap<Oid, [u64; 3]>;

/// Reads the counters of all tables but temporary ones.
pub(crate) async fn counters(live: &mut PgConnection) -> Result<Counters, TenantError> {
    let rows = sql::rows(
        live,
        "select s.relid::int8, s.n_tup_ins, s.n_tup_upd, s.n_tup_del \
         from pg_stat_xact_user_tables s join pg_class c on c.oid = s.relid \
         where c.relpersistence <> 't'",
        "reading the counters of this transaction",
    )
    .await?;
    rows.iter()
        .map(|row| {
            let oid = Oid::try_from(sql::column::<i64>(row, 0)?)
                .map_err(|error| TenantError::format("a table's oid", error))?;
            let at = |index| sql::column::<i64>(row, index).map(sql::count);
            Ok((oid, [at(1)?, at(2)?, at(3)?]))
        })
        .collect()
}

fn difference(now: [u64; 3], before: [u64; 3]) -> [u64; 3] {
    let [a, b, c] = now;
    let [x, y, z] = before;
    [
        a.saturating_sub(x),
        b.saturating_sub(y),
        c.saturating_sub(z),
    ]
}

fn words([inserted, updated, deleted]: [u64; 3]) -> String {
    format!("{inserted} inserted, {updated} updated, {deleted} deleted")
}

/// Compares the counters with what the statements returned (for each table and partition) and with the
/// plan (for each table with its partitions together). Returns what was counted, tables with 0 left out.
pub(crate) async fn compare(
    live: &mut PgConnection,
    rows: &CatalogRows,
    baseline: &Counters,
    returned: &Counters,
    changed: &[&TableChanges],
) -> Result<Counters, TenantError> {
    let now = counters(live).await?;
    let counted: Counters = now
        .iter()
        .map(|(oid, counts)| {
            (
                *oid,
                difference(*counts, baseline.get(oid).copied().unwrap_or_default()),
            )
        })
        .filter(|(_, counts)| *counts != [0; 3])
        .collect();
    let names = rows.names();
    let name = |oid: Oid| {
        names
            .get(&oid)
            .cloned()
            .unwrap_or_else(|| format!("table {oid}"))
    };
    let mut found = Vec::new();
    let tables: BTreeSet<Oid> = counted.keys().chain(returned.keys()).copied().collect();
    for oid in tables {
        let (seen, told) = (
            counted.get(&oid).copied().unwrap_or_default(),
            returned.get(&oid).copied().unwrap_or_default(),
        );
        if seen != told {
            found.push(format!(
                "{}: {}, but planned are: {}",
                name(oid),
                words(seen),
                words(told)
            ));
        }
    }
    for changes in changed {
        let Some(relation) = rows.by_name(&changes.slice.table) else {
            continue;
        };
        let mut sum = [0u64; 3];
        for oid in rows.family(relation.oid) {
            let counts = counted.get(&oid).copied().unwrap_or_default();
            sum.iter_mut()
                .zip(counts)
                .for_each(|(total, count)| *total += count);
        }
        if sum != changes.counts.written() {
            found.push(format!(
                "{} with its partitions: {}, but planned are: {}",
                changes.slice.table,
                words(sum),
                words(changes.counts.written())
            ));
        }
    }
    if found.is_empty() {
        Ok(counted)
    } else {
        Err(TenantError::CheckFailed {
            what: "PostgreSQL counted other rows written by this transaction than planned",
            found,
        })
    }
}

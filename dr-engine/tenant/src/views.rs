//! Materialized views over the tables that a restore wrote to, made up to date where that is asked for.
//!
//! A view holds rows of all tenants and is computed anew as a whole. With a unique index that is done beside its
//! readers (REFRESH MATERIALIZED VIEW CONCURRENTLY); without one its readers wait, which is why nobody does it
//! unasked.

use std::time::Duration;

use dr_sources::postgres::ConnectOptions;
use serde::Deserialize;

use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, TableChanges};
use crate::report::{ProofLine, ProofOutcome};
use crate::sql::{self, table};
use crate::{TenantError, map::TableName, rows};

/// One that depends on tables that were written to.
#[derive(Debug, Deserialize)]
struct View {
    #[serde(flatten)]
    name: TableName,
    populated: bool,
    /// It has a unique index over all rows, on columns.
    unique: bool,
}

/// Those that depend on these tables, the ones that others depend on first.
fn dependents(catalog: &CatalogRows, set: &ChangeSet) -> String {
    let written = set.tables.iter().filter(|table| table.is_written());
    let numbers: Vec<String> = written
        .filter_map(|changes: &TableChanges| catalog.by_name(&changes.slice.table))
        .flat_map(|relation| catalog.family(relation.oid))
        .map(|oid| oid.to_string())
        .collect();
    format!(
        "with recursive over(oid, step) as (select unnest('{{{}}}'::oid[]), 0 union \
           select r.ev_class, o.step + 1 from over o \
           join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = o.oid \
             and d.classid = 'pg_rewrite'::regclass \
           join pg_rewrite r on r.oid = d.objid and r.ev_class <> o.oid and r.rulename = '_RETURN') \
         select n.nspname as schema, c.relname as name, c.relispopulated as populated, \
           exists (select from pg_index i where i.indrelid = c.oid and i.indisunique and i.indisvalid \
             and i.indimmediate and i.indpred is null and i.indexprs is null) as unique \
         from (select oid, max(step) as step from over group by oid) o join pg_class c on c.oid = o.oid \
         join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'm' order by o.step, c.relname",
        numbers.join(",")
    )
}

/// Refreshes them; a line of the report for each. A failure is a line too: the restore is committed.
pub(crate) async fn refresh(
    live: &ConnectOptions,
    set: &ChangeSet,
    lock_wait: Duration,
) -> Vec<ProofLine> {
    match refresh_all(live, set, lock_wait).await {
        Ok(lines) => lines,
        Err(error) => vec![line("materialized views are up to date", Err(said(&error)))],
    }
}

async fn refresh_all(
    live: &ConnectOptions,
    set: &ChangeSet,
    lock_wait: Duration,
) -> Result<Vec<ProofLine>, TenantError> {
    let mut session = rows::session(live, "the live database").await?;
    let catalog = CatalogRows::read(&mut session).await?;
    let query = dependents(&catalog, set);
    let views: Vec<View> = sql::json(&mut session, &query, "listing materialized views").await?;
    // Their queries may name things as their owners do.
    let ready = format!(
        "reset search_path; reset row_security; set lock_timeout = {}",
        lock_wait.as_millis()
    );
    sql::run(&mut session, &ready, "preparing the session").await?;
    let mut lines = Vec::new();
    for view in views {
        let what = format!("materialized view {} is up to date", view.name);
        if !view.populated {
            lines.push(line(&what, Ok("it was never filled, and stays so")));
            continue;
        }
        let (beside, how) = match view.unique {
            true => ("concurrently ", "refreshed beside its readers"),
            false => (
                "",
                "refreshed; its readers waited, as it has no unique index",
            ),
        };
        let statement = format!("refresh materialized view {beside}{}", table(&view.name));
        let done = sql::run(&mut session, &statement, "refreshing it").await;
        lines.push(line(
            &what,
            done.map(|()| how).map_err(|error| said(&error)),
        ));
    }
    rows::close(session).await;
    Ok(lines)
}

fn said(error: &TenantError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn line(what: &str, done: Result<&str, String>) -> ProofLine {
    let (outcome, detail) = match done {
        Ok(detail) => (ProofOutcome::Agrees, detail.to_owned()),
        Err(why) => (ProofOutcome::Differs, why),
    };
    ProofLine {
        what: what.to_owned(),
        outcome,
        detail,
    }
}

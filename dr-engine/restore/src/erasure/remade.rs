//! What was made from the rows of erased ones' tables, and would still tell of them: materialized views, and the
//! samples that the planner keeps.
//!
//! Samples are deleted together with the rows: ANALYZE of a table that has no rows any more leaves the old ones. Views
//! are made anew afterwards; one that cannot be is emptied, so that it shows nothing.

use dr_sources::postgres::{ConnectOptions, PgConnection, connect};
use serde::Deserialize;

use super::doomed::Found;
use super::hazards;
use super::tables::{json, run};
use crate::RestoreError;
use crate::error::source_error;

/// What is to be made anew in a database.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Those that others read from first.
    views: Vec<Named>,
    tables: Vec<Named>,
}

/// A relation as SQL names it.
#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

/// Relations with erased rows or cleared references: partitions, what is above and below them, what inherits.
const FAMILY: &str = "create temp table dr_family on commit drop as with recursive \
    up(oid) as (select relation from pg_temp.dr_doomed union select unnest(array[SEEDS]::regclass[])::oid \
      union select i.inhparent from pg_inherits i join up on i.inhrelid = up.oid), \
    down(oid) as (select oid from up union select i.inhrelid from pg_inherits i join down on i.inhparent = down.oid) \
    select oid from down";

/// Materialized views over them, and those that call functions, which may read whatever they like.
const VIEWS: &str = "create temp table dr_views on commit drop as with recursive \
    calling(oid) as (select distinct r.ev_class from pg_rewrite r join pg_depend d on d.objid = r.oid \
      where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_proc'::regclass and d.refobjid >= 16384 \
        and r.ev_type = '1'), \
    over(oid, step) as (select oid, 0 from (select oid from pg_temp.dr_family union select oid from calling) s union \
      select r.ev_class, o.step + 1 from over o \
      join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = o.oid \
        and d.classid = 'pg_rewrite'::regclass \
      join pg_rewrite r on r.oid = d.objid and r.ev_type = '1' and r.ev_class <> o.oid) \
    select c.oid, c.oid::regclass::text as name, max(o.step) as step \
      from over o join pg_class c on c.oid = o.oid where c.relkind = 'm' and c.relispopulated group by c.oid";

/// Deletes the planner's samples of what was erased, in the transaction that erased it, and says what has to be made
/// anew after it.
pub(super) async fn forget(
    session: &mut PgConnection,
    found: &Found,
) -> Result<Stale, RestoreError> {
    let names = found.rows.iter().map(|rows| {
        let name = dr_sources::postgres::table(&rows.table);
        dr_sources::postgres::literal(&name)
    });
    let seeds: Vec<String> = names.collect();
    let family = FAMILY.replace("SEEDS", &seeds.join(", "));
    run(session, &family, "list what shows erased rows").await?;
    run(session, VIEWS, "list materialized views").await?;
    let samples = "delete from pg_statistic where starelid in (select oid from pg_temp.dr_family \
          union select oid from pg_temp.dr_views union select i.indexrelid from pg_index i \
            where i.indrelid in (select oid from pg_temp.dr_family union select oid from pg_temp.dr_views)); \
        delete from pg_statistic_ext_data where stxoid in (select oid from pg_statistic_ext \
          where stxrelid in (select oid from pg_temp.dr_family union select oid from pg_temp.dr_views))";
    run(session, samples, "delete samples of erased rows").await?;
    let tables = "select c.oid::regclass::text as name from pg_class c join pg_temp.dr_family f on f.oid = c.oid \
        where c.relkind in ('r', 'p') and not c.relispartition order by 1";
    let views = "select name from pg_temp.dr_views order by step, name";
    Ok(Stale {
        tables: json(session, tables, "list what shows erased rows").await?,
        views: json(session, views, "list materialized views").await?,
    })
}

/// Makes it anew. What cannot be is told: it shows nothing of what was erased all the same.
pub(super) async fn make_anew(
    options: &ConnectOptions,
    database: &str,
    stale: &Stale,
) -> Result<Vec<String>, RestoreError> {
    // With its own search path: what views and indexes call may need it.
    let mut session = connect(options)
        .await
        .map_err(source_error("reach the copy that erasures are applied to"))?;
    run(&mut session, hazards::LOCK_WAIT, "prepare a session").await?;
    let mut notes = Vec::new();
    for Named { name } in &stale.views {
        let statement = format!("refresh materialized view {name}");
        let what = format!("make materialized view {name} without what was erased");
        let Err(error) = run(&mut session, &statement, what).await else {
            continue;
        };
        let empty = format!("refresh materialized view {name} with no data");
        let what = format!("empty materialized view {name}, which shows what was erased");
        run(&mut session, &empty, what).await?;
        notes.push(format!(
            "materialized view {name} of database {database} could not be made anew and is empty now, refresh it \
             when that can be done: {}",
            said(&error)
        ));
    }
    for Named { name } in stale.tables.iter().chain(&stale.views) {
        let done = run(
            &mut session,
            &format!("analyze {name}"),
            format!("analyze {name}"),
        )
        .await;
        if let Err(error) = done {
            notes.push(format!(
                "{name} of database {database} has no statistics, analyze it when that can be done: {}",
                said(&error)
            ));
        }
    }
    Ok(notes)
}

fn said(error: &RestoreError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

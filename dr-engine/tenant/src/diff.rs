//! Comparing the tenant's rows now with those at the target, inside the scratch database.
//!
//! Three tables for each table of the slice, in a schema that only the scratch database has: `then_N`
//! (cut out there), `live_N` (copied from production in one read-only snapshot) and `change_N`, their
//! difference. Rows are matched by key and compared by image, not by `=`: 1.0 is not 1.00. Rows of
//! tables without a key are told apart by content and counted. Columns that did not exist at the target
//! travel as text, only to be kept.

use std::path::Path;

use sqlx::postgres::PgConnection;

use crate::casts::Cast;
use crate::changes::{Counts, Direction, TableChanges};
use crate::plan::{Mode, Sample, TablePlan};
use crate::slice::{Ownership, SliceTable, numbered_record};
use crate::sql::{self, CopyFormat, literal};
use crate::{TenantError, checksum};

/// The schema in the scratch database.
pub(crate) const SCHEMA: &str = "dr_tenant";
/// Samples kept for each table.
const SAMPLES: usize = 5;
/// Characters of a value shown in a sample.
const SAMPLE_VALUE_CHARACTERS: usize = 40;

/// Makes the scratch database ready, dropping what an earlier comparison left.
pub(crate) async fn begin(scratch: &mut PgConnection) -> Result<(), TenantError> {
    sql::run(
        scratch,
        &format!("set client_min_messages = warning; drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}"),
        "preparing the scratch database",
    )
    .await
}

fn shape(table: &SliceTable, alias: &str) -> String {
    table
        .columns
        .iter()
        .enumerate()
        .map(|(place, column)| {
            if column.common {
                format!(
                    "{alias}.{}::{} as c{place}",
                    sql::ident(&column.name),
                    column.base_type
                )
            } else {
                format!("null::text as c{place}")
            }
        })
        .collect::<Vec<_>>()
        .join(", ")
}

/// Values that would not survive the cast to the type that their column has by now.
pub(crate) async fn lost_by_casts(
    scratch: &mut PgConnection,
    owner: &Ownership<'_>,
    table: &SliceTable,
) -> Result<Vec<String>, TenantError> {
    let mut lost = Vec::new();
    for column in &table.columns {
        let Some(Cast { from, to, numbers }) = &column.cast else {
            continue;
        };
        let name = sql::ident(&column.name);
        let text = if *numbers { "" } else { "::text" };
        let query = format!(
            "select count(*) from {} t where {} and t.{name}::{to}::{from}{text} is distinct from t.{name}{text}",
            table.from(),
            owner.condition(&table.class, "t")
        );
        let what = format!("casting {}.{}", table.table, column.name);
        let why = match sql::value::<i64>(scratch, &query, &what).await {
            Ok(0) => continue,
            Ok(values) => format!("{values} values of the tenant would be others"),
            Err(TenantError::Sql { source, .. }) if source.as_database_error().is_some() => {
                source.to_string()
            }
            Err(error) => return Err(error),
        };
        lost.push(format!(
            "{}.{} was {from} at the target and is {to} now: {why}",
            table.table, column.name
        ));
    }
    Ok(lost)
}

/// Cuts the tenant's rows out of the scratch database.
pub(crate) async fn cut_then(
    scratch: &mut PgConnection,
    owner: &Ownership<'_>,
    table: &SliceTable,
) -> Result<(), TenantError> {
    let (number, from, shape) = (table.number, table.from(), shape(table, "t"));
    let condition = owner.condition(&table.class, "t");
    sql::run(
        scratch,
        &format!(
            "create unlogged table {SCHEMA}.then_{number} as select {shape} from {from} t where {condition}; \
             create unlogged table {SCHEMA}.live_{number} as select {shape} from {from} t with no data"
        ),
        format!("cutting the tenant's rows of {} out of the state at the target", table.table),
    )
    .await
}

/// Copies the tenant's live rows beside them.
pub(crate) async fn copy_live(
    live: &mut PgConnection,
    scratch: &mut PgConnection,
    owner: &Ownership<'_>,
    table: &SliceTable,
) -> Result<(), TenantError> {
    let query = format!(
        "select {} from {} t where {}",
        table.select_list("t"),
        table.from(),
        owner.condition(&table.class, "t")
    );
    let into = format!("{SCHEMA}.live_{}", table.number);
    sql::copy_across(
        live,
        &query,
        scratch,
        &into,
        &format!("the tenant's rows of {}", table.table),
    )
    .await
}

fn list(table: &SliceTable, each: impl Fn(usize) -> String) -> String {
    (0..table.columns.len())
        .map(each)
        .collect::<Vec<_>>()
        .join(", ")
}

fn is_common(table: &SliceTable, place: usize) -> bool {
    table.columns.get(place).is_some_and(|column| column.common)
}

/// `a.c0 = b.c0 and …` on the key.
fn by_key(table: &SliceTable, a: &str, b: &str) -> String {
    let on = table
        .key
        .iter()
        .map(|key| format!("{a}.c{p} {} {b}.c{p}", key.operator, p = key.place));
    on.collect::<Vec<_>>().join(" and ")
}

/// Whether two rows hold different values: other images, of which some still have the same text.
fn differ(places: &[usize], a: &str, b: &str) -> String {
    if places.is_empty() {
        return "false".to_owned();
    }
    let (a, b) = (
        numbered_record(a, "c", places),
        numbered_record(b, "c", places),
    );
    format!("({a}::record operator(pg_catalog.*<>) {b}::record and {a}::text <> {b}::text)")
}

/// The difference as a query with the columns `op, o0…, n0…`.
fn difference(table: &SliceTable) -> String {
    let number = table.number;
    let common = table.places(|column| column.common);
    // What is kept or returns: columns unknown at the target keep their live value.
    let new = list(table, |place| {
        if is_common(table, place) {
            format!("t.c{place} as n{place}")
        } else {
            format!("case when t.h then l.c{place} end as n{place}")
        }
    });
    let old = list(table, |place| format!("l.c{place} as o{place}"));
    if table.key.is_empty() {
        let text = |alias: &str| format!("{}::text", numbered_record(alias, "c", &common));
        let numbered = |name: &str| {
            format!(
                "(select true as h, s.*, {image} as image, row_number() over (partition by {image}) as copy \
                 from {SCHEMA}.{name}_{number} s)",
                image = text("s")
            )
        };
        return format!(
            "select case when l.h is null then 'I' else 'D' end as op, {old}, {new} \
             from {} l full join {} t on l.image = t.image and l.copy = t.copy \
             where l.h is null or t.h is null",
            numbered("live"),
            numbered("then")
        );
    }
    let on = by_key(table, "l", "t");
    let differs = |places: &[usize]| differ(places, "l", "t");
    let pinned = table.places(|column| column.common && column.pinned);
    format!(
        "select case when l.h is null then 'I' when t.h is null then 'D' when {} then 'R' else 'U' end as op, \
         {old}, {new} from (select true as h, s.* from {SCHEMA}.live_{number} s) l \
         full join (select true as h, s.* from {SCHEMA}.then_{number} s) t on {on} \
         where l.h is null or t.h is null or {}",
        differs(&pinned),
        differs(&common)
    )
}

/// A condition on a row whose columns are called `c0…`, or `o0…`, or `n0…`, in `alias`.
fn holds_of(table: &SliceTable, condition: &str, alias: &str, prefix: &str) -> String {
    let columns = table
        .places(|column| column.common)
        .into_iter()
        .map(|place| {
            format!(
                "{alias}.{prefix}{place} as {}",
                sql::ident(table.name_at(place))
            )
        });
    format!(
        "exists (select from (select {}) {} where (\n{condition}\n))",
        columns.collect::<Vec<_>>().join(", "),
        sql::ident(&table.table.name)
    )
}

/// Whether a condition can be asked of a table, before anything is compared.
pub(crate) async fn try_condition(
    scratch: &mut PgConnection,
    table: &SliceTable,
    condition: &str,
) -> Result<(), TenantError> {
    let columns = shape(table, "t");
    let query = format!(
        "select count(*) from (select {columns} from {} t limit 0) s where {}",
        table.from(),
        holds_of(table, condition, "s", "c")
    );
    let what = format!("reading the condition on {}", table.table);
    sql::value::<i64>(scratch, &query, &what).await.map(drop)
}

/// Which changes are kept.
fn kept(table: &SliceTable, mode: Mode, condition: Option<&str>) -> String {
    let mut all = Vec::new();
    if mode == Mode::Missing {
        all.push("op = 'I'".to_owned());
    }
    if let Some(condition) = condition {
        let (old, new) = (
            holds_of(table, condition, "d", "o"),
            holds_of(table, condition, "d", "n"),
        );
        all.push(format!("((op <> 'I' and {old}) or (op <> 'D' and {new}))"));
    }
    match all.is_empty() {
        true => String::new(),
        false => format!(" where {}", all.join(" and ")),
    }
}

/// Compares one table and keeps the difference in `change_N`.
pub(crate) async fn compare(
    scratch: &mut PgConnection,
    table: SliceTable,
    mode: Mode,
    condition: Option<&str>,
) -> Result<(TableChanges, TablePlan), TenantError> {
    let number = table.number;
    let action = || format!("comparing the tenant's rows of {}", table.table);
    let only = kept(&table, mode, condition);
    let create = format!(
        "analyze {SCHEMA}.live_{number}; analyze {SCHEMA}.then_{number}; \
         create unlogged table {SCHEMA}.change_{number} as select * from ({}) d{only}",
        difference(&table)
    );
    sql::run(scratch, &create, action()).await?;
    let counted = sql::rows(
        scratch,
        &format!(
            "select count(*) filter (where op = 'I'), count(*) filter (where op = 'U'), \
             count(*) filter (where op = 'R'), count(*) filter (where op = 'D'), \
             (select count(*) from {SCHEMA}.live_{number}), (select count(*) from {SCHEMA}.then_{number}) \
             from {SCHEMA}.change_{number}"
        ),
        action(),
    )
    .await?;
    let row = counted
        .first()
        .ok_or_else(|| TenantError::format("a count", "no row"))?;
    let at = |index| sql::column::<i64>(row, index).map(sql::count);
    let counts = Counts {
        insert: at(0)?,
        update: at(1)?,
        replace: at(2)?,
        delete: at(3)?,
    };
    let (rows_now, rows_then) = (at(4)?, at(5)?);
    let changed = changed_columns(scratch, &table).await?;
    let samples = samples(scratch, &table, &counts).await?;
    let plan = TablePlan {
        table: table.table.to_string(),
        class: table.class.describe(),
        rows_now,
        rows_then,
        insert: counts.insert,
        update: counts.update + counts.replace,
        delete: counts.delete,
        changed_columns: changed
            .iter()
            .map(|&place| table.name_at(place).to_owned())
            .collect(),
        samples,
    };
    let rows_after = rows_now + counts.insert - counts.delete.min(rows_now);
    Ok((
        TableChanges {
            slice: table,
            counts,
            changed,
            rows_before: rows_now,
            rows_after,
            left_out: false,
            sum_before: None,
        },
        plan,
    ))
}

async fn changed_columns(
    scratch: &mut PgConnection,
    table: &SliceTable,
) -> Result<Vec<usize>, TenantError> {
    let common = table.places(|column| column.common);
    if common.is_empty() {
        return Ok(Vec::new());
    }
    let tests = common
        .iter()
        .map(|place| {
            format!("coalesce(bool_or(o{place}::text is distinct from n{place}::text), false)")
        })
        .collect::<Vec<_>>()
        .join(", ");
    let query = format!(
        "select array[{tests}] from {SCHEMA}.change_{} where op in ('U', 'R')",
        table.number
    );
    let flags: Vec<bool> = sql::value(scratch, &query, "finding the changed columns").await?;
    Ok(common
        .into_iter()
        .zip(flags)
        .filter(|(_, changed)| *changed)
        .map(|(place, _)| place)
        .collect())
}

async fn samples(
    scratch: &mut PgConnection,
    table: &SliceTable,
    counts: &Counts,
) -> Result<Vec<Sample>, TenantError> {
    let there = [
        (counts.insert, "('I')"),
        (counts.update, "('U')"),
        (counts.replace, "('R')"),
        (counts.delete, "('D')"),
    ];
    let kinds: Vec<&str> = there
        .into_iter()
        .filter_map(|(count, kind)| (count > 0).then_some(kind))
        .collect();
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    let key_places: Vec<usize> = if table.key.is_empty() {
        (0..table.columns.len().min(3)).collect()
    } else {
        table.key.iter().map(|key| key.place).collect()
    };
    let short = |value: String| {
        format!(
            "left(regexp_replace(coalesce({value}::text, 'null'), '\\s+', ' ', 'g'), {SAMPLE_VALUE_CHARACTERS})"
        )
    };
    let key = key_places
        .iter()
        .map(|&place| {
            let value = short(format!(
                "case when op = 'I' then n{place} else o{place} end"
            ));
            format!(
                "{} || {value}",
                literal(&format!("{}=", table.name_at(place)))
            )
        })
        .collect::<Vec<_>>()
        .join(", ");
    let detail = table
        .places(|column| column.common)
        .into_iter()
        .map(|place| {
            format!(
                "case when op in ('U', 'R') and o{place}::text is distinct from n{place}::text then {} || {} || ' -> ' || {} end",
                literal(&format!("{}: ", table.name_at(place))),
                short(format!("o{place}")),
                short(format!("n{place}"))
            )
        })
        .collect::<Vec<_>>()
        .join(", ");
    let query = format!(
        "select case op when 'I' then 'insert' when 'D' then 'delete' else 'update' end, \
         array_to_string(array[{key}], ', '), array_to_string(array[{detail}]::text[], ', ') \
         from (values {}) k(kind) cross join lateral \
         (select *, row_number() over () as dr_place from {SCHEMA}.change_{} where op = k.kind limit {SAMPLES}) c \
         order by dr_place, op limit {SAMPLES}",
        kinds.join(", "),
        table.number
    );
    let rows = sql::rows(
        scratch,
        &query,
        format!("showing changes of {}", table.table),
    )
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Sample {
                change: sql::column(row, 0)?,
                key: sql::column(row, 1)?,
                detail: sql::column(row, 2)?,
            })
        })
        .collect()
}

/// Writes a table's difference to its file below `folder`.
pub(crate) async fn spool(
    scratch: &mut PgConnection,
    changes: &TableChanges,
    folder: &Path,
) -> Result<(), TenantError> {
    let query = format!(
        "select {} from {SCHEMA}.change_{}",
        changes.column_list(Direction::Forward),
        changes.slice.number
    );
    let what = format!("the changes of {}", changes.slice.table);
    let file = folder.join(changes.file());
    sql::copy_to_file(scratch, &query, CopyFormat::Text, &file, &what)
        .await
        .map(drop)
}

/// What still differs from the target after the commit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Remaining {
    /// Rows that are not as they must be.
    pub(crate) wrong: u64,
    /// Rows that other transactions wrote since.
    pub(crate) written_since: u64,
    /// Rows compared.
    pub(crate) rows: u64,
}

/// The checksum over the rows of `after_N`.
pub(crate) async fn checksum(
    scratch: &mut PgConnection,
    table: &SliceTable,
    condition: Option<&str>,
) -> Result<String, TenantError> {
    let common = table.places(|column| column.common);
    let record = numbered_record("s", "c", &common);
    let meant = condition.map_or("true".to_owned(), |condition| {
        holds_of(table, condition, "s", "c")
    });
    let from = format!("{SCHEMA}.after_{} s where {meant}", table.number);
    let what = format!("the tenant's rows of {}", table.table);
    let (_, sum) = checksum::of(scratch, &record, &from, &what).await?;
    Ok(sum)
}

/// How many rows of `after_N` are not as they must be, how many of them others wrote since, and how many there are.
fn remaining(table: &SliceTable, mode: Mode, condition: Option<&str>) -> String {
    let number = table.number;
    let common = table.places(|column| column.common);
    let meant = |alias: &str| match condition {
        None => "true".to_owned(),
        Some(condition) => holds_of(table, condition, alias, "c"),
    };
    let (then, now) = (meant("t"), meant("a"));
    let (after, before, on, differs) = match table.key.is_empty() {
        false => (
            format!("(select true as h, s.* from {SCHEMA}.after_{number} s)"),
            format!("(select true as h, s.* from {SCHEMA}.then_{number} s)"),
            by_key(table, "a", "t"),
            differ(&common, "a", "t"),
        ),
        // Without a key rows are told apart by all that they hold, and counted.
        true => {
            let numbered = |name: &str| {
                format!(
                    "(select true as h, s.*, {image} as image, row_number() over (partition by {image}) as copy \
                     from {SCHEMA}.{name}_{number} s)",
                    image = format!("{}::text", numbered_record("s", "c", &common))
                )
            };
            (
                numbered("after"),
                numbered("then"),
                "a.image = t.image and a.copy = t.copy".to_owned(),
                "false".to_owned(),
            )
        }
    };
    // In mode `missing` more rows than at the target are as they must be, and rows keep later changes: but
    // every row of the target must be there.
    let wrong = match mode {
        Mode::Missing => format!("a.h is null and {then}"),
        _ => format!(
            "(a.h is null and {then}) or (t.h is null and {now} and not a.since) \
             or ({differs} and (({then}) or ({now})) and not a.since)"
        ),
    };
    format!(
        "select count(*) filter (where {wrong}), \
           count(*) filter (where a.since and (t.h is null or {differs}) and {now}), \
           count(*) filter (where a.h and {now}) \
         from {after} a full join {before} t on {on}"
    )
}

/// Reads the tenant's rows of a table again and compares them with the target. A row that differs and
/// was written by a later transaction than ours (`xid`) is somebody's new work, not our fault.
pub(crate) async fn compare_again(
    live: &mut PgConnection,
    scratch: &mut PgConnection,
    owner: &Ownership<'_>,
    table: &SliceTable,
    xid: u32,
    mode: Mode,
    condition: Option<&str>,
) -> Result<Remaining, TenantError> {
    let number = table.number;
    let shape = shape(table, "t");
    let make = format!(
        "drop table if exists {SCHEMA}.after_{number}; create unlogged table {SCHEMA}.after_{number} as \
         select {shape}, false as since from {} t with no data",
        table.from()
    );
    let what = format!("the tenant's rows of {} once more", table.table);
    sql::run(scratch, &make, format!("reading {what}")).await?;
    let query = format!(
        "select {}, pg_catalog.age(t.xmin) < pg_catalog.age('{xid}'::pg_catalog.xid) from {} t where {}",
        table.select_list("t"),
        table.from(),
        owner.condition(&table.class, "t")
    );
    sql::copy_across(
        live,
        &query,
        scratch,
        &format!("{SCHEMA}.after_{number}"),
        &what,
    )
    .await?;
    let analyze = format!("analyze {SCHEMA}.after_{number}");
    sql::run(scratch, &analyze, format!("reading {what}")).await?;
    let compared = remaining(table, mode, condition);
    let rows = sql::rows(scratch, &compared, format!("comparing {what}")).await?;
    let row = rows
        .first()
        .ok_or_else(|| TenantError::format("a count", "no row"))?;
    let at = |index| sql::column::<i64>(row, index).map(sql::count);
    Ok(Remaining {
        wrong: at(0)?,
        written_since: at(1)?,
        rows: at(2)?,
    })
}

//! The one transaction that writes.
//!
//! READ COMMITTED on a connection of its own, no savepoints, so that each check sees what committed
//! meanwhile. Order: session settings, the baseline of PostgreSQL's own counters, the transaction's id;
//! change sets into temporary tables; the sum over the tenant's rows; parents of rows to be written locked FOR KEY SHARE; deletes,
//! children first; updates and inserts, parents first; sequences forward; foreign keys, deferrable unique
//! and exclusion constraints; row counts; counters against the plan. Whatever is not as planned is an error,
//! and an error rolls back. What was read back from the temporary tables and the actual rows goes to the
//! repository before the caller commits ([`crate::rows::write`]).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgConnection;

use crate::catalog::{CatalogRows, Oid};
use crate::changes::{ChangeSet, Direction, TableChanges};
use crate::slice::{Ownership, SliceTable, numbered_record, same};
use crate::sql::{self, CopyFormat, ident, table};
use crate::{TenantError, checks, contents, fault, proof};

/// What the transaction did, ready to be committed.
#[derive(Debug)]
pub(crate) struct Written {
    /// The transaction's id, with its epoch.
    pub(crate) xid: u64,
    /// Rows written as PostgreSQL counted them, by table oid (partitions by themselves).
    pub(crate) counted: BTreeMap<Oid, [u64; 3]>,
    /// Foreign keys and other constraints that were checked.
    pub(crate) checked: usize,
}

/// The temporary table of a table's changes.
pub(crate) fn temporary(slice: &SliceTable) -> String {
    format!("pg_temp.dr_change_{}", slice.number)
}

/// Opens the transaction and gives it its settings. A statement waits for a lock of another session for `lock_wait`.
pub(crate) async fn begin(
    live: &mut PgConnection,
    lock_wait: Duration,
) -> Result<u64, TenantError> {
    let open = format!(
        "begin isolation level read committed read write; {}; \
         set local lock_timeout = {}; set local client_min_messages = warning",
        sql::SESSION.replace("set ", "set local "),
        // 0 would mean for ever.
        lock_wait.as_millis().max(1)
    );
    sql::run(live, &open, "beginning the transaction").await?;
    let role = match fault::is("trigger-fired") {
        true => "origin",
        false => "replica",
    };
    sql::run(
        live,
        &format!("set local session_replication_role = {role}"),
        "switching triggers off for this transaction (session_replication_role)",
    )
    .await?;
    // A database that does not wait for its disk would forget the commit in a crash, after the outcome
    // was recorded. A stricter setting than `on` stays.
    sql::run(
        live,
        "select set_config('synchronous_commit', 'on', true) \
         where current_setting('synchronous_commit') = 'off'",
        "making the commit durable (synchronous_commit)",
    )
    .await?;
    let counting: String = sql::value(
        live,
        "select current_setting('track_counts')",
        "reading track_counts",
    )
    .await?;
    if counting != "on" {
        return Err(TenantError::Refused(vec![
            "track_counts is off: the server does not count the rows a transaction writes, so nothing \
             could be proven; switch it on"
                .to_owned(),
        ]));
    }
    let xid: String = sql::value(
        live,
        "select pg_current_xact_id()::text",
        "asking for the transaction's id",
    )
    .await?;
    xid.parse()
        .map_err(|error| TenantError::format("the transaction's id", error))
}

/// Carries a change set out in the transaction `xid` that was begun, up to but not including the
/// commit.
pub(crate) async fn write(
    live: &mut PgConnection,
    rows: &CatalogRows,
    owner: &Ownership<'_>,
    set: &ChangeSet,
    folder: &Path,
    direction: Direction,
    xid: u64,
) -> Result<Written, TenantError> {
    let baseline = proof::counters(live).await?;
    let changed: Vec<&TableChanges> = set.tables.iter().filter(|t| t.counts.total() > 0).collect();
    for changes in &changed {
        load(live, changes, folder, direction).await?;
    }
    // As late as can be: from the first lock on, whoever writes to these rows waits for this transaction.
    contents::unchanged(live, owner, set).await?;
    checks::lock_parents(live, rows, &changed).await?;
    let mut returned = Returned {
        tenant: &owner.tenant.id,
        by_table: BTreeMap::new(),
    };
    for changes in changed.iter().rev() {
        delete(live, owner, changes, &mut returned).await?;
    }
    for changes in &changed {
        update(live, owner, changes, &mut returned).await?;
        insert(live, owner, changes, &mut returned).await?;
    }
    if fault::is("touch-other-tenant") {
        touch_other(live, owner, &changed).await?;
    }
    checks::advance_sequences(live, rows, &changed).await?;
    let checked = checks::all(live, rows, owner, &changed).await?;
    count_rows(live, owner, set).await?;
    let counted = proof::compare(live, rows, &baseline, &returned.by_table, &changed).await?;
    Ok(Written {
        xid,
        counted,
        checked,
    })
}

async fn load(
    live: &mut PgConnection,
    changes: &TableChanges,
    folder: &Path,
    direction: Direction,
) -> Result<(), TenantError> {
    let slice = &changes.slice;
    let name = temporary(slice);
    let columns = ["o", "n"]
        .iter()
        .flat_map(|side| {
            slice
                .columns
                .iter()
                .enumerate()
                .map(move |(place, c)| format!("{side}{place} {}", c.base_type))
        })
        .collect::<Vec<_>>()
        .join(", ");
    let what = format!("the changes of {}", slice.table);
    let create = format!(
        "create temporary table dr_change_{} (op text, {columns}) on commit drop",
        slice.number
    );
    sql::run(live, &create, format!("making room for {what}")).await?;
    let into = format!("{name} ({})", changes.column_list(direction));
    sql::copy_from_file(live, &into, &folder.join(changes.file()), &what).await?;
    let turn = match direction {
        Direction::Forward => String::new(),
        Direction::Reverse => format!(
            "update {name} set op = case op when 'I' then 'D' else 'I' end where op in ('I', 'D');"
        ),
    };
    sql::run(
        live,
        &format!("{turn} analyze {name}"),
        format!("loading {what}"),
    )
    .await
}

/// What the statements returned: rows by the table or partition they are in.
struct Returned<'a> {
    tenant: &'a str,
    by_table: BTreeMap<Oid, [u64; 3]>,
}

/// The place of a kind of write in the counters.
#[derive(Clone, Copy)]
enum Write {
    Insert = 0,
    Update = 1,
    Delete = 2,
}

impl Returned<'_> {
    /// Runs a writing statement whose RETURNING gives `part` (the table's oid) and `tenant`, and checks
    /// that it wrote exactly the planned rows and only this tenant's. It is called `done`; `also` are further
    /// statements that read it.
    async fn run(
        &mut self,
        live: &mut PgConnection,
        (statement, also): (&str, &str),
        write: Write,
        planned: u64,
        slice: &SliceTable,
    ) -> Result<(), TenantError> {
        let word = match write {
            Write::Insert => "inserting into",
            Write::Update => "updating",
            Write::Delete => "deleting from",
        };
        let query = format!(
            "with done as ({statement}){also} select part::int8, count(*), \
             count(*) filter (where tenant is distinct from {}) from done group by part",
            sql::literal(self.tenant)
        );
        let rows = sql::rows(live, &query, format!("{word} {}", slice.table)).await?;
        let (mut written, mut foreign) = (0, 0);
        for row in &rows {
            let part = Oid::try_from(sql::column::<i64>(row, 0)?)
                .map_err(|error| TenantError::format("a table's oid", error))?;
            let count = sql::count(sql::column(row, 1)?);
            foreign += sql::count(sql::column(row, 2)?);
            written += count;
            if let Some(place) = self
                .by_table
                .entry(part)
                .or_default()
                .get_mut(write as usize)
            {
                *place += count;
            }
        }
        if foreign > 0 {
            return Err(TenantError::CheckFailed {
                what: "a statement touched rows that are not this tenant's",
                found: vec![format!(
                    "{word} {}: {foreign} of {written} rows",
                    slice.table
                )],
            });
        }
        if written != planned {
            return Err(TenantError::Changed(vec![format!(
                "{word} {}: {planned} rows planned, {written} are still as they were",
                slice.table
            )]));
        }
        Ok(())
    }
}

fn old_matches(slice: &SliceTable, owner: &Ownership<'_>) -> String {
    let all: Vec<usize> = (0..slice.columns.len()).collect();
    let image = same(
        &slice.own_record("t", &all),
        &numbered_record("c", "o", &all),
    );
    format!(
        "{} and {} and {image}",
        slice.key_matches("t", "c", "o"),
        owner.condition(&slice.class, "t")
    )
}

async fn delete(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    changes: &TableChanges,
    returned: &mut Returned<'_>,
) -> Result<(), TenantError> {
    let slice = &changes.slice;
    let [_, _, planned] = changes.counts.written();
    if planned == 0 {
        return Ok(());
    }
    let (from, name) = (slice.from(), temporary(slice));
    let tenant = owner.tenant_of(&slice.class, "t");
    let statement = if slice.key.is_empty() {
        let all: Vec<usize> = (0..slice.columns.len()).collect();
        let own = slice.own_record("t", &all);
        let old = numbered_record("c", "o", &all);
        format!(
            "delete from {from} t using \
               (select t.tableoid as part, t.ctid as place, {own}::text as image, \
                  row_number() over (partition by {own}::text) as copy from {from} t where {}) have \
               join (select {old}::text as image, row_number() over (partition by {old}::text) as copy \
                  from {name} c where c.op in ('D', 'R')) want using (image, copy) \
             where t.ctid = have.place and t.tableoid = have.part \
             returning t.tableoid as part, {tenant} as tenant",
            owner.condition(&slice.class, "t")
        )
    } else {
        let matches = match fault::is("delete-by-key-alone") {
            true => slice.key_matches("t", "c", "o"),
            false => old_matches(slice, owner),
        };
        format!(
            "delete from {from} t using {name} c where c.op in ('D', 'R') and {matches} \
             returning t.tableoid as part, {tenant} as tenant"
        )
    };
    returned
        .run(live, (&statement, ""), Write::Delete, planned, slice)
        .await
}

async fn update(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    changes: &TableChanges,
    returned: &mut Returned<'_>,
) -> Result<(), TenantError> {
    let slice = &changes.slice;
    let [_, planned, _] = changes.counts.written();
    if planned == 0 {
        return Ok(());
    }
    let set = changes
        .changed
        .iter()
        .filter(|&&place| {
            slice
                .columns
                .get(place)
                .is_some_and(|c| c.common && !c.pinned)
        })
        .map(|&place| format!("{} = c.n{place}", ident(slice.name_at(place))))
        .collect::<Vec<_>>()
        .join(", ");
    let statement = format!(
        "update {} t set {set} from {} c where c.op = 'U' and {} \
         returning t.tableoid as part, {} as tenant",
        slice.from(),
        temporary(slice),
        old_matches(slice, owner),
        owner.tenant_of(&slice.class, "t")
    );
    returned
        .run(live, (&statement, ""), Write::Update, planned, slice)
        .await
}

/// Rows that return leave columns unknown at the target to their defaults; rows that are written as
/// delete and insert carry all their columns over.
async fn insert(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    changes: &TableChanges,
    returned: &mut Returned<'_>,
) -> Result<(), TenantError> {
    let slice = &changes.slice;
    let tenant = owner.tenant_of(&slice.class, "t");
    let all: Vec<usize> = (0..slice.columns.len()).collect();
    let common = slice.places(|column| column.common);
    for (op, planned, places) in [
        ("R", changes.counts.replace, &all),
        ("I", changes.counts.insert, &common),
    ] {
        if planned == 0 {
            continue;
        }
        let names: Vec<String> = places
            .iter()
            .map(|&place| ident(slice.name_at(place)))
            .collect();
        let values: Vec<String> = places.iter().map(|place| format!("c.n{place}")).collect();
        let learned = learns_defaults(changes) && op == "I";
        let written: Vec<String> = all
            .iter()
            .filter(|_| learned)
            .map(|&place| format!(", t.{} as n{place}", ident(slice.name_at(place))))
            .collect();
        let statement = format!(
            "insert into {} as t ({}) overriding system value select {} from {} c where c.op = '{op}' \
             returning t.tableoid as part, {tenant} as tenant{}",
            table(&slice.table),
            names.join(", "),
            values.join(", "),
            temporary(slice),
            written.concat()
        );
        let also = match learned {
            true => take_over(slice),
            false => String::new(),
        };
        returned
            .run(live, (&statement, &also), Write::Insert, planned, slice)
            .await?;
        if learned {
            let turn = format!(
                "delete from {name} where op = 'I'; update {name} set op = 'I' where op = 'W'",
                name = temporary(slice)
            );
            sql::run(live, &turn, format!("reading defaults of {}", slice.table)).await?;
        }
    }
    Ok(())
}

/// Whether returning rows get defaults that the change set has to learn, so that it holds whole rows and an
/// undo recognises them.
fn learns_defaults(changes: &TableChanges) -> bool {
    let has_unknown = changes.slice.columns.iter().any(|column| !column.common);
    has_unknown && changes.counts.insert > 0 && !fault::is("undo-from-a-stale-image")
}

/// Takes the inserted rows into the change set as they were written (`W`), to stand for the planned ones. Rows
/// without a key could not be found again.
fn take_over(slice: &SliceTable) -> String {
    let columns: Vec<String> = (0..slice.columns.len())
        .map(|place| format!("n{place}"))
        .collect();
    let columns = columns.join(", ");
    format!(
        ", written as (insert into {} (op, {columns}) select 'W', {columns} from done)",
        temporary(slice)
    )
}

/// How many rows of a table are the tenant's.
pub(crate) async fn count(
    session: &mut PgConnection,
    owner: &Ownership<'_>,
    table: &SliceTable,
) -> Result<u64, TenantError> {
    let query = format!(
        "select count(*) from {} t where {}",
        table.from(),
        owner.condition(&table.class, "t")
    );
    let what = format!("counting the tenant's rows of {}", table.table);
    Ok(sql::count(sql::value::<i64>(session, &query, &what).await?))
}

/// The tenant must have exactly the planned rows everywhere, or somebody is writing for it.
async fn count_rows(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    set: &ChangeSet,
) -> Result<(), TenantError> {
    let mut other = Vec::new();
    for changes in &set.tables {
        let slice = &changes.slice;
        let rows = count(live, owner, slice).await?;
        if rows == changes.rows_after {
            continue;
        }
        other.push(match changes.left_out {
            false => format!(
                "{}: {} rows planned, {rows} found",
                slice.table, changes.rows_after
            ),
            true => format!(
                "{}: is not restored, and {} of its rows would be the tenant's instead of {}, for they are so \
                 through the restored ones: restore it too",
                slice.table, rows, changes.rows_after
            ),
        });
    }
    if other.is_empty() {
        Ok(())
    } else {
        Err(TenantError::Changed(other))
    }
}

/// A planted bug: writes a row of another tenant behind the plan's back.
async fn touch_other(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    changed: &[&TableChanges],
) -> Result<(), TenantError> {
    let Some(slice) = changed
        .iter()
        .map(|c| &c.slice)
        .find(|s| s.depth == 0 && !s.partitioned)
    else {
        return Ok(());
    };
    let free = slice.places(|column| !column.identity_always);
    let name = ident(slice.name_at(free.first().copied().unwrap_or(0)));
    let statement = format!(
        "update {from} t set {name} = {name} where t.ctid = \
         (select ctid from {from} t where not ({}) limit 1)",
        owner.condition(&slice.class, "t"),
        from = slice.from()
    );
    sql::run(live, &statement, "planting a bug").await
}

/// Writes the rows of the change set, as they were found and as they are now, below `folder`.
pub(crate) async fn save(
    live: &mut PgConnection,
    set: &ChangeSet,
    folder: &Path,
) -> Result<(), TenantError> {
    for changes in set.tables.iter().filter(|table| table.counts.total() > 0) {
        let query = format!(
            "select {} from {}",
            changes.column_list(Direction::Forward),
            temporary(&changes.slice)
        );
        let what = format!("the former rows of {}", changes.slice.table);
        let file = folder.join(changes.file());
        sql::copy_to_file(live, &query, CopyFormat::Text, &file, &what).await?;
    }
    Ok(())
}

//! Which rows of a database go when entries of the ledger are applied to it, and what stands against that.
//!
//! First the rows that the entries name; then, round by round, those that belong to them: by foreign keys that
//! delete in cascade, by the links that an entry carries, and where it says so by every foreign key. All of them are
//! gathered in a temporary table, by their place. Rows that are left and refer to one of them either lose that
//! reference (ON DELETE SET NULL) or are a reason against it. Nothing is written here: a preview on a live database
//! gathers by the same statements as the application to a copy.

use std::collections::{BTreeMap, BTreeSet};

use dr_model::TableName;
use dr_sources::postgres::{PgConnection, ident, literal};
use serde::Deserialize;
use sqlx::AssertSqlSafe;

use super::tables::{Column, ForeignKey, Table, Tables, failed, json, run};
use super::{ErasedDatabase, ErasedLink, ErasedRows, Erasure, ErasureScope, WholePlace};
use crate::RestoreError;

/// Keys in one statement.
const KEYS_AT_ONCE: usize = 500;
/// What becomes of a row that is doomed already: an entry that wants every row that refers to it takes it over.
const AGAIN: &str = "on conflict (relation, at) do update set entry = excluded.entry, round = excluded.round, \
    follow = true where excluded.follow and not dr_doomed.follow";
/// Rows named as examples.
const EXAMPLES: usize = 3;

/// What would be erased.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// By entry and table.
    pub rows: Vec<FoundRows>,
    /// What stands against it: an entry's place, and why.
    pub refused: Vec<(usize, String)>,
}

/// Rows of one table that an entry takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRows {
    /// The entry's place among those that were given.
    pub entry: usize,
    /// The table.
    pub table: TableName,
    /// Rows that the entry itself names.
    pub named: u64,
    /// These and those that go with them.
    pub erased: u64,
    /// Rows that stay, and lose their reference to an erased one.
    pub cleared: u64,
}

/// An entry and its part for one database.
pub type Part<'a> = (&'a Erasure, &'a ErasedDatabase);

/// Gathers what entries take from a database into `pg_temp.dr_doomed`. The session is in a transaction and has
/// [`dr_sources::postgres::SESSION`]; the temporary table goes with the transaction.
///
/// # Errors
/// When a statement fails, or an entry speaks of columns that the database does not have.
pub async fn find(session: &mut PgConnection, parts: &[Part<'_>]) -> Result<Found, RestoreError> {
    let tables = Tables::read(session).await?;
    gather(session, &tables, parts).await
}

pub(super) async fn gather(
    session: &mut PgConnection,
    tables: &Tables,
    parts: &[Part<'_>],
) -> Result<Found, RestoreError> {
    let create = "create temp table dr_doomed (relation oid not null, at tid not null, entry int not null, \
        round int not null, follow boolean not null, primary key (relation, at)) on commit drop";
    run(session, create, "gather what is to be erased").await?;
    for (entry, part) in parts.iter().enumerate() {
        for table in tables.all() {
            for condition in named(*part, table)? {
                seed(session, entry, part.0, table, &condition).await?;
            }
        }
    }
    let mut found = Found::default();
    let roots = rounds(session, tables, parts).await?;
    if roots.is_empty() {
        return Ok(found);
    }
    found.refused = of_others(session, tables, parts).await?;
    count(session, tables, &mut found).await?;
    for key in &tables.foreign_keys {
        let ends = tables.ends(key);
        if let Some(ends) = ends.filter(|(_, parent)| roots.contains(&parent.root)) {
            remaining(session, tables, (key, ends), &mut found).await?;
        }
    }
    Ok(found)
}

/// Conditions on rows `t` of a table that an entry names.
fn named((entry, part): Part<'_>, table: &Table) -> Result<Vec<String>, RestoreError> {
    if is_whole(part, table) {
        return Ok(if table.extension {
            Vec::new()
        } else {
            vec!["true".to_owned()]
        });
    }
    let Some(known) = part.tables.iter().find(|known| known.table == table.name) else {
        return Ok(match table.oid == table.root {
            true => unknown(entry, part, table),
            false => Vec::new(),
        });
    };
    match &known.rows {
        ErasedRows::All => Ok(vec![known.whose.clone()]),
        ErasedRows::Dependent => Ok(Vec::new()),
        ErasedRows::Keys { columns, keys } => {
            let lacking = table.lacks(columns);
            if !lacking.is_empty() {
                let why = format!("{} has no {} there", table.name, lacking.join(", "));
                return Err(not_held(entry, why));
            }
            Ok(keys
                .chunks(KEYS_AT_ONCE)
                .map(|keys| format!("({}) and ({})", any_key(table, columns, keys), known.whose))
                .collect())
        }
    }
}

/// Whether the table lies in what is the tenant's as a whole.
fn is_whole(part: &ErasedDatabase, table: &Table) -> bool {
    match &part.whole {
        Some(WholePlace::Database) => true,
        Some(WholePlace::Schema(schema)) => *schema == table.name.schema,
        None => false,
    }
}

/// Of a table that was gone when a whole tenant was erased: by the columns that hold tenants' ids.
fn unknown(entry: &Erasure, part: &ErasedDatabase, table: &Table) -> Vec<String> {
    if entry.scope != ErasureScope::Tenant || part.others.contains(&table.name) {
        return Vec::new();
    }
    let there = part.tenant_columns.iter();
    there
        .filter_map(|name| table.column(name))
        .map(|column| equals(column, &entry.tenant.id))
        .collect()
}

fn any_key(table: &Table, columns: &[String], keys: &[Vec<String>]) -> String {
    let one = |key: &Vec<String>| {
        let parts = columns.iter().zip(key).map(|(name, value)| {
            let column = table.column(name);
            column.map_or_else(|| "false".to_owned(), |column| equals(column, value))
        });
        format!("({})", parts.collect::<Vec<_>>().join(" and "))
    };
    keys.iter().map(one).collect::<Vec<_>>().join(" or ")
}

/// `t.column` is this text. Numbers and uuids are compared as such, so that an index serves; everything else by its
/// text.
fn equals(column: &Column, value: &str) -> String {
    let name = ident(&column.name);
    match column.plain_type.as_str() {
        "smallint" | "integer" | "bigint" => match value.parse::<i64>() {
            Ok(number) => format!("t.{name} = {}::bigint", literal(&number.to_string())),
            Err(_) => "false".to_owned(),
        },
        "uuid" => {
            let digits = value.chars().filter(char::is_ascii_hexdigit).count();
            let is_one = digits == 32 && value.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
            match is_one {
                true => format!("t.{name} = {}::uuid", literal(value)),
                false => "false".to_owned(),
            }
        }
        _ => format!("t.{name}::text = {}", literal(value)),
    }
}

async fn seed(
    session: &mut PgConnection,
    entry: usize,
    erasure: &Erasure,
    table: &Table,
    condition: &str,
) -> Result<(), RestoreError> {
    let insert = format!(
        "insert into pg_temp.dr_doomed select t.tableoid, t.ctid, {entry}, 0, {} from {} t where {condition} {}",
        erasure.dependents,
        table.from(),
        AGAIN
    );
    run(
        session,
        &insert,
        format!("look for erased rows in {}", table.name),
    )
    .await
    .map(|_| ())
    .map_err(|error| held_or(erasure, &table.name, error))
}

/// SQLSTATE class 42: the database does not have what the entry speaks of.
fn held_or(erasure: &Erasure, table: &TableName, error: RestoreError) -> RestoreError {
    let RestoreError::ErasureSql { source, .. } = &error else {
        return error;
    };
    let said = source.as_database_error();
    match said.filter(|said| said.code().is_some_and(|code| code.starts_with("42"))) {
        Some(said) => {
            let why = format!(
                "whose the rows of {table} are cannot be told there: {}",
                said.message()
            );
            not_held(erasure, why)
        }
        None => error,
    }
}

fn not_held(erasure: &Erasure, why: String) -> RestoreError {
    RestoreError::ErasureNotHeld {
        id: erasure.id.clone(),
        why: vec![why],
    }
}

/// Adds what belongs to what is there until nothing more does. Returns the tables with doomed rows, of partitions
/// the topmost.
async fn rounds(
    session: &mut PgConnection,
    tables: &Tables,
    parts: &[Part<'_>],
) -> Result<BTreeSet<u32>, RestoreError> {
    let mut all = BTreeSet::new();
    for round in 1.. {
        run(
            session,
            "analyze pg_temp.dr_doomed",
            "gather what is to be erased",
        )
        .await?;
        let last = roots_of(session, round - 1).await?;
        if last.is_empty() {
            break;
        }
        all.extend(last.iter().copied());
        for key in &tables.foreign_keys {
            let ends = tables.ends(key);
            let Some((child, parent)) = ends.filter(|(_, parent)| last.contains(&parent.root))
            else {
                continue;
            };
            // Of all doomed rows, or of those whose entry wants every row that refers to them.
            let of = match key.on_delete {
                'c' => "true",
                'n' => continue,
                _ => "d.follow",
            };
            add(session, child, parent, (&key.join(), of), round).await?;
        }
        for link in parts.iter().flat_map(|(_, part)| &part.links) {
            let Some((child, parent)) = ends(tables, link) else {
                continue;
            };
            if last.contains(&parent.root) {
                add(session, child, parent, (&link_join(link), "true"), round).await?;
            }
        }
    }
    Ok(all)
}

/// The tables of a link, where it is one that this database has.
fn ends<'a>(tables: &'a Tables, link: &ErasedLink) -> Option<(&'a Table, &'a Table)> {
    let child = tables.named(&link.child)?;
    let parent = tables.named(&link.parent)?;
    let only: Vec<String> = link.only.iter().map(|(column, _)| column.clone()).collect();
    let whole = child.lacks(&link.columns).is_empty()
        && child.lacks(&only).is_empty()
        && parent.lacks(&link.parent_columns).is_empty();
    whole.then_some((child, parent))
}

fn link_join(link: &ErasedLink) -> String {
    let pairs = link.parent_columns.iter().zip(&link.columns);
    let mut parts: Vec<String> = pairs
        .map(|(parent, child)| format!("p.{}::text = c.{}::text", ident(parent), ident(child)))
        .collect();
    if let Some((column, value)) = &link.only {
        parts.push(format!("c.{}::text = {}", ident(column), literal(value)));
    }
    parts.join(" and ")
}

/// Doomed rows `d` of a table `p`, and rows `c` that refer to them and are not doomed.
fn referring(child: &Table, parent: &Table, join: &str) -> String {
    format!(
        "pg_temp.dr_doomed d join {} p on p.tableoid = d.relation and p.ctid = d.at join {} c on {join} \
         where not exists (select from pg_temp.dr_doomed x where x.relation = c.tableoid and x.at = c.ctid)",
        parent.from(),
        child.from()
    )
}

/// Adds rows that refer to doomed ones of the last round. One that is there already is gone through once more when
/// now an entry takes it that wants every row that refers to it.
async fn add(
    session: &mut PgConnection,
    child: &Table,
    parent: &Table,
    (join, of): (&str, &str),
    round: i32,
) -> Result<(), RestoreError> {
    let insert = format!(
        "insert into pg_temp.dr_doomed select c.tableoid, c.ctid, \
           (array_agg(d.entry order by d.follow desc, d.entry))[1], {round}, bool_or(d.follow) \
         from pg_temp.dr_doomed d join {} p on p.tableoid = d.relation and p.ctid = d.at join {} c on {join} \
         where d.round = {} and {of} and not exists (select from pg_temp.dr_doomed x \
           where x.relation = c.tableoid and x.at = c.ctid and (x.follow or not d.follow)) \
         group by 1, 2 {AGAIN}",
        parent.from(),
        child.from(),
        round - 1
    );
    let what = format!("look for rows of {} that belong to erased ones", child.name);
    run(session, &insert, what).await.map(|_| ())
}

async fn roots_of(session: &mut PgConnection, round: i32) -> Result<BTreeSet<u32>, RestoreError> {
    #[derive(Deserialize)]
    struct Root {
        root: u32,
    }
    let query = format!(
        "select distinct coalesce(pg_partition_root(relation)::oid, relation)::int8 as root \
         from pg_temp.dr_doomed where round = {round}"
    );
    let roots: Vec<Root> = json(session, &query, "gather what is to be erased").await?;
    Ok(roots.into_iter().map(|found| found.root).collect())
}

/// Rows that would go along and are not the tenant's, or of which the entry does not tell whose they are.
async fn of_others(
    session: &mut PgConnection,
    tables: &Tables,
    parts: &[Part<'_>],
) -> Result<Vec<(usize, String)>, RestoreError> {
    #[derive(Deserialize)]
    struct Line {
        entry: usize,
        root: u32,
        rows: i64,
    }
    let query = "select entry, coalesce(pg_partition_root(relation)::oid, relation)::int8 as root, count(*) as rows \
        from pg_temp.dr_doomed where round > 0 group by 1, 2 order by 1, 2";
    let along: Vec<Line> = json(session, query, "see whose rows would be erased").await?;
    let mut refused = Vec::new();
    for Line { entry, root, rows } in along {
        let (Some((erasure, _)), Some(table)) = (parts.get(entry), tables.with_oid(root)) else {
            continue;
        };
        // One entry may have several parts of a database.
        let of_entry = parts.iter().filter(|(other, _)| other.id == erasure.id);
        let told: Vec<String> = of_entry.filter_map(|part| whose(*part, table)).collect();
        if told.is_empty() {
            let line = format!(
                "{rows} rows of {} belong to erased ones, and the entry does not tell whose they are",
                table.name
            );
            refused.push((entry, line));
            continue;
        }
        let query = format!(
            "select count(*) from {} t join pg_temp.dr_doomed d on d.relation = t.tableoid and d.at = t.ctid \
             where d.entry = {entry} and d.round > 0 and (({})) is not true",
            table.from(),
            told.join(") or (")
        );
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(query.as_str()))
            .persistent(false)
            .fetch_one(&mut *session)
            .await
            .map_err(failed("see whose rows would be erased"))
            .map_err(|error| held_or(erasure, &table.name, error))?;
        if rows > 0 {
            let line = format!(
                "{rows} rows of {} belong to erased ones, and are not the tenant's",
                table.name
            );
            refused.push((entry, line));
        }
    }
    Ok(refused)
}

/// Whether a row `t` of a table is the tenant's, if an entry's part tells.
pub(super) fn whose((entry, part): Part<'_>, table: &Table) -> Option<String> {
    if is_whole(part, table) {
        return Some("true".to_owned());
    }
    if let Some(known) = part.tables.iter().find(|it| it.table == table.name) {
        return Some(known.whose.clone());
    }
    let by_columns = unknown(entry, part, table);
    (!by_columns.is_empty()).then(|| by_columns.join(" or "))
}

async fn count(
    session: &mut PgConnection,
    tables: &Tables,
    found: &mut Found,
) -> Result<(), RestoreError> {
    #[derive(Deserialize)]
    struct Line {
        entry: usize,
        root: u32,
        named: u64,
        erased: u64,
    }
    let query = "select entry, coalesce(pg_partition_root(relation)::oid, relation)::int8 as root, \
          count(*) filter (where round = 0) as named, count(*) as erased \
        from pg_temp.dr_doomed group by 1, 2 order by 1, 2";
    let lines: Vec<Line> = json(session, query, "count what is to be erased").await?;
    let mut rows: Vec<FoundRows> = lines
        .into_iter()
        .filter_map(|line| {
            Some(FoundRows {
                entry: line.entry,
                table: tables.with_oid(line.root)?.name.clone(),
                named: line.named,
                erased: line.erased,
                cleared: 0,
            })
        })
        .collect();
    rows.sort_by(|a, b| (a.entry, &a.table).cmp(&(b.entry, &b.table)));
    found.rows = rows;
    Ok(())
}

/// Rows that stay although what they refer to goes.
async fn remaining(
    session: &mut PgConnection,
    tables: &Tables,
    (key, (child, parent)): (&ForeignKey, (&Table, &Table)),
    found: &mut Found,
) -> Result<(), RestoreError> {
    #[derive(Deserialize)]
    struct Line {
        entry: usize,
        rows: u64,
        examples: Vec<String>,
    }
    let query = format!(
        "select r.entry, count(*) as rows, (array_agg(r.name order by r.name))[1:{EXAMPLES}] as examples \
         from (select distinct d.entry, c.tableoid, c.ctid, {} as name from {}) r group by 1 order by 1",
        child.named_row("c", &key.columns),
        referring(child, parent, &key.join())
    );
    let lines: Vec<Line> = json(session, &query, "look for rows that refer to erased ones").await?;
    for line in lines {
        let is_set = |name: &String| child.column(name).is_some_and(|column| !column.not_null);
        if key.on_delete == 'n' && key.set_columns().iter().all(is_set) {
            cleared(found, line.entry, &tables.root_of(child).name, line.rows);
            continue;
        }
        let more = if line.rows > line.examples.len() as u64 {
            ", …"
        } else {
            ""
        };
        found.refused.push((
            line.entry,
            format!(
                "{} rows of {} refer to erased rows of {} ({}): {}{more}",
                line.rows,
                child.name,
                parent.name,
                key.name,
                line.examples.join("; ")
            ),
        ));
    }
    Ok(())
}

fn cleared(found: &mut Found, entry: usize, table: &TableName, rows: u64) {
    let known = found.rows.iter_mut();
    let mut known = known.filter(|known| known.entry == entry && known.table == *table);
    match known.next() {
        Some(known) => known.cleared += rows,
        None => found.rows.push(FoundRows {
            entry,
            table: table.clone(),
            named: 0,
            erased: 0,
            cleared: rows,
        }),
    }
}

/// Carries out what was gathered: references are cleared, rows are deleted. Exactly what was counted, or an error.
pub(super) async fn erase(
    session: &mut PgConnection,
    tables: &Tables,
    found: &Found,
) -> Result<(), RestoreError> {
    let roots: BTreeSet<&TableName> = found.rows.iter().map(|rows| &rows.table).collect();
    let cleared: u64 = found.rows.iter().map(|rows| rows.cleared).sum();
    for key in tables
        .foreign_keys
        .iter()
        .filter(|key| key.on_delete == 'n' && cleared > 0)
    {
        let Some((child, parent)) = tables.ends(key) else {
            continue;
        };
        let is_among = |table| roots.contains(&tables.root_of(table).name);
        if is_among(child) && is_among(parent) {
            clear(session, key, child, parent).await?;
        }
    }
    let objects = objects(session, tables, &roots).await?;
    let mut erased = 0;
    for (leaf, _) in leaves(session).await? {
        let delete = format!(
            "delete from only {leaf} t using pg_temp.dr_doomed d \
             where d.relation = {}::regclass and t.ctid = d.at",
            literal(&leaf)
        );
        erased += run(session, &delete, format!("erase rows of {leaf}")).await?;
    }
    let counted: u64 = found.rows.iter().map(|rows| rows.erased).sum();
    if erased != counted {
        return Err(RestoreError::ErasureMiscounted { counted, erased });
    }
    if objects {
        unlink(session, tables).await?;
    }
    Ok(())
}

/// Tables with columns that may hold the number of a large object, as FROM has them, with these columns.
fn numbering(tables: &Tables) -> impl Iterator<Item = (&Table, Vec<String>)> {
    tables.tables.iter().filter_map(|table| {
        let columns = table.columns.iter().filter(|it| it.plain_type == "oid");
        let columns: Vec<String> = columns.map(|column| ident(&column.name)).collect();
        (!columns.is_empty()).then_some((table, columns))
    })
}

/// Gathers the large objects that doomed rows refer to into `pg_temp.dr_objects`; whether there may be any.
async fn objects(
    session: &mut PgConnection,
    tables: &Tables,
    roots: &BTreeSet<&TableName>,
) -> Result<bool, RestoreError> {
    let numbering = numbering(tables).filter(|(table, _)| roots.contains(&table.name));
    let parts: Vec<String> = numbering
        .flat_map(|(table, columns)| {
            columns.into_iter().map(move |column| {
                format!(
                    "select t.{column} as oid from {} t join pg_temp.dr_doomed d on d.relation = t.tableoid and d.at = t.ctid",
                    table.from()
                )
            })
        })
        .collect();
    if parts.is_empty() {
        return Ok(false);
    }
    let gather = format!(
        "create temp table dr_objects on commit drop as select m.oid from pg_largeobject_metadata m \
         where m.oid in ({})",
        parts.join(" union ")
    );
    run(session, &gather, "gather large objects of erased rows").await?;
    Ok(true)
}

/// Removes those of them that no row refers to any more.
async fn unlink(session: &mut PgConnection, tables: &Tables) -> Result<(), RestoreError> {
    let kept = numbering(tables).flat_map(|(table, columns)| {
        columns.into_iter().map(move |column| {
            format!(
                " and not exists (select from {} t where t.{column} = o.oid)",
                table.from()
            )
        })
    });
    // Not by lo_unlink, which takes a lock of each one until the transaction ends: the table of locks has an end.
    let unlink = format!(
        "create temp table dr_unlinked on commit drop as select o.oid from pg_temp.dr_objects o where true{}; \
         analyze pg_temp.dr_unlinked; \
         delete from pg_largeobject where loid in (select oid from pg_temp.dr_unlinked); \
         delete from pg_shdepend where classid = 'pg_largeobject'::regclass \
           and dbid = (select d.oid from pg_database d where d.datname = current_database()) \
           and objid in (select oid from pg_temp.dr_unlinked); \
         delete from pg_description where classoid = 'pg_largeobject'::regclass \
           and objoid in (select oid from pg_temp.dr_unlinked); \
         delete from pg_seclabel where classoid = 'pg_largeobject'::regclass \
           and objoid in (select oid from pg_temp.dr_unlinked); \
         delete from pg_largeobject_metadata where oid in (select oid from pg_temp.dr_unlinked)",
        kept.collect::<String>()
    );
    run(session, &unlink, "remove large objects of erased rows").await?;
    Ok(())
}

async fn clear(
    session: &mut PgConnection,
    key: &ForeignKey,
    child: &Table,
    parent: &Table,
) -> Result<(), RestoreError> {
    let set: Vec<String> = key
        .set_columns()
        .iter()
        .map(|name| format!("{} = null", ident(name)))
        .collect();
    let update = format!(
        "update {} c set {} from pg_temp.dr_doomed d join {} p on p.tableoid = d.relation and p.ctid = d.at \
         where {} and not exists (select from pg_temp.dr_doomed x where x.relation = c.tableoid and x.at = c.ctid)",
        child.from(),
        set.join(", "),
        parent.from(),
        key.join()
    );
    let what = format!("take out references of {} to erased rows", child.name);
    run(session, &update, what).await.map(|_| ())
}

/// Tables and partitions with doomed rows, as SQL names them, with their oids.
pub(super) async fn leaves(
    session: &mut PgConnection,
) -> Result<BTreeMap<String, u32>, RestoreError> {
    #[derive(Deserialize)]
    struct Leaf {
        name: String,
        oid: u32,
    }
    let query = "select distinct relation::regclass::text as name, relation::int8 as oid from pg_temp.dr_doomed";
    let leaves: Vec<Leaf> = json(session, query, "gather what is to be erased").await?;
    Ok(leaves
        .into_iter()
        .map(|leaf| (leaf.name, leaf.oid))
        .collect())
}

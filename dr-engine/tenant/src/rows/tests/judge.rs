//! What is so, in plain SQL: rows as text, sequences, what triggers left behind. It knows the made schemas' tables
//! and whose rows are whose there, and nothing of the product.

use std::collections::BTreeSet;

use super::schemas::Schema;
use super::*;

/// Rows by table, as text, with how many there are of each.
pub(super) type Contents = BTreeMap<String, BTreeMap<String, i64>>;
/// Columns by table, in their order.
pub(super) type Columns = BTreeMap<String, Vec<String>>;

/// What one acknowledged statement did to one row.
#[derive(Debug, Clone)]
pub(super) struct Effect {
    table: String,
    was: Option<String>,
    becomes: Option<String>,
}

impl Effect {
    /// The row's new text; none of one that was deleted.
    pub(super) fn becomes(&self) -> &str {
        self.becomes.as_deref().unwrap_or_default()
    }
}

/// Runs a statement that gives the former and the new text of each row it writes.
pub(super) async fn tell(
    connection: &mut PgConnection,
    table: &str,
    statement: &str,
) -> Vec<Effect> {
    let rows = sql::rows(connection, statement, statement).await;
    let rows = rows.unwrap_or_else(|e| panic!("{e:?}"));
    let effect = |row| Effect {
        table: table.to_owned(),
        was: sql::column(row, 0).unwrap(),
        becomes: sql::column(row, 1).unwrap(),
    };
    rows.iter().map(effect).collect()
}

/// What there must be once these statements were carried out.
pub(super) fn after(start: &Contents, effects: &[Effect]) -> Contents {
    let mut contents = start.clone();
    for effect in effects {
        let rows = contents.entry(effect.table.clone()).or_default();
        if let Some(was) = &effect.was {
            *rows.entry(was.clone()).or_default() -= 1;
        }
        if let Some(becomes) = &effect.becomes {
            *rows.entry(becomes.clone()).or_default() += 1;
        }
    }
    contents
}

/// A session of the people who use the tables: triggers note it as theirs.
pub(super) async fn people(bench: &Bench) -> PgConnection {
    let mut connection = bench.connect("live").await;
    let name = "set application_name = 'people'";
    sql::run(&mut connection, name, name).await.unwrap();
    connection
}

/// The columns of all tables.
pub(super) async fn columns(bench: &Bench, database: &str) -> Columns {
    let mut connection = bench.connect(database).await;
    let query = "select c.relname::text, quote_ident(a.attname) from pg_attribute a \
         join pg_class c on c.oid = a.attrelid where c.relnamespace = 's'::regnamespace \
         and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped order by a.attrelid, a.attnum";
    let rows = sql::rows(&mut connection, query, query).await.unwrap();
    connection.close().await.unwrap();
    let mut columns = Columns::new();
    for row in &rows {
        let table: String = sql::column(row, 0).unwrap();
        let column: String = sql::column(row, 1).unwrap();
        columns.entry(table).or_default().push(column);
    }
    columns
}

/// The columns that there were then and are still.
pub(super) async fn common_columns(bench: &Bench) -> Columns {
    let then = columns(bench, "then_").await;
    let mut common = columns(bench, "live").await;
    for (table, names) in &mut common {
        names.retain(|name| then[table].contains(name));
    }
    common
}

/// The tenant's rows, or all others: whole, or by some columns only.
pub(super) async fn contents(
    bench: &Bench,
    database: &str,
    tenant: &str,
    own: bool,
    columns: Option<&Columns>,
) -> Contents {
    let mut connection = bench.connect(database).await;
    let mut contents = Contents::new();
    for (table, condition) in &bench.own {
        let name = table.rsplit('.').next().unwrap();
        let image = match columns {
            Some(columns) => {
                let named: Vec<String> = columns[name].iter().map(|c| format!("t.{c}")).collect();
                format!("row({})", named.join(", "))
            }
            None => "t".to_owned(),
        };
        let query = format!(
            "select {image}::text, count(*) from {table} t where ({}) is {} group by 1",
            condition.replace('$', tenant),
            if own { "true" } else { "not true" }
        );
        let rows = sql::rows(&mut connection, &query, query.clone()).await;
        let rows = rows.unwrap_or_else(|e| panic!("{e:?}"));
        let counted = |row| (sql::column(row, 0).unwrap(), sql::column(row, 1).unwrap());
        contents.insert(table.clone(), rows.iter().map(counted).collect());
    }
    connection.close().await.unwrap();
    contents
}

/// Rows that are not as they must be.
fn differences(expected: &Contents, found: &Contents) -> Vec<String> {
    let none = BTreeMap::new();
    let mut lines = Vec::new();
    let tables: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    for table in tables {
        let wanted = expected.get(table).unwrap_or(&none);
        let there = found.get(table).unwrap_or(&none);
        let rows: BTreeSet<&String> = wanted.keys().chain(there.keys()).collect();
        for row in rows {
            let count = |rows: &BTreeMap<String, i64>| rows.get(row).copied().unwrap_or(0);
            let (want, have) = (count(wanted), count(there));
            if want != have {
                lines.push(format!("{table} {row}: {have} instead of {want}"));
            }
        }
    }
    lines
}

#[track_caller]
pub(super) fn assert_same(expected: &Contents, found: &Contents, otherwise: &str) {
    let lines = differences(expected, found);
    let shown = lines.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        lines.is_empty(),
        "{otherwise}: {} rows:\n{shown}",
        lines.len()
    );
}

/// What may not go back while tenants are restored: the last number of each sequence, and how many rows triggers
/// made for somebody who is none of the people.
#[derive(Debug)]
pub(super) struct Surroundings {
    sequences: BTreeMap<String, i64>,
    triggered: i64,
}

impl Surroundings {
    pub(super) async fn read(bench: &Bench) -> Self {
        let mut connection = bench.connect("live").await;
        let query = "select sequencename::text, coalesce(last_value, 0) from pg_sequences where schemaname = 's'";
        let rows = sql::rows(&mut connection, query, query).await.unwrap();
        connection.close().await.unwrap();
        let last = |row| (sql::column(row, 0).unwrap(), sql::column(row, 1).unwrap());
        Self {
            sequences: rows.iter().map(last).collect(),
            triggered: bench
                .value("live", "select count(*) from s.audit where by <> 'people'")
                .await,
        }
    }

    /// What is wrong with them now.
    pub(super) async fn wrong(&self, bench: &Bench, schema: &Schema) -> Vec<String> {
        let now = Self::read(bench).await;
        let mut wrong = bench.orphans().await;
        for (name, before) in &self.sequences {
            if now.sequences[name] < *before {
                wrong.push(format!(
                    "{name} went back from {before} to {}",
                    now.sequences[name]
                ));
            }
        }
        for table in schema.tables.iter().filter(|t| t.key.is_numbered()) {
            let name = &table.name;
            let query = format!("select coalesce(max(id), 0)::int8 from s.{name}");
            let largest = bench.value("live", &query).await;
            if now.sequences[&format!("{name}_id_seq")] < largest {
                wrong.push(format!("the sequence of {name} is behind {largest}"));
            }
        }
        if now.triggered != self.triggered {
            wrong.push(format!("triggers fired: {now:?}"));
        }
        wrong
    }
}

/// What the tenant's rows hold in columns that there were not then, by table and key.
pub(super) async fn later_values(
    bench: &Bench,
    schema: &Schema,
    tenant: &str,
) -> BTreeMap<String, i32> {
    let mut connection = bench.connect("live").await;
    let mut values = BTreeMap::new();
    for (place, table) in schema.tables.iter().enumerate() {
        if !table.grows || !table.key.can_be_referred_to() {
            continue;
        }
        let query = format!(
            "select '{} ' || id::text, later from {} t where {}",
            table.name,
            schema.from(place),
            schema.of(place, tenant)
        );
        let rows = sql::rows(&mut connection, &query, query.clone()).await;
        let value = |row| (sql::column(row, 0).unwrap(), sql::column(row, 1).unwrap());
        values.extend(rows.unwrap().iter().map(value));
    }
    connection.close().await.unwrap();
    values
}

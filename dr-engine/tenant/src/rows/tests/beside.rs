//! What lies beside the rows of a made schema: large objects that they refer to, views over them, and a table whose
//! rows are kept elsewhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::schemas::{Dice, Schema};
use super::work::PLAIN;
use super::*;
use crate::report::ProofOutcome;

pub(super) const VIEW: &str = "view";
pub(super) const MATERIALIZED: &str = "materialized view";
pub(super) const FOREIGN: &str = "foreign table";

/// Relations that nothing may be written to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    /// The table that the views look at.
    place: usize,
    /// Whether the materialized one can be refreshed beside its readers.
    has_index: bool,
}

impl Watch {
    pub(super) fn random(dice: &mut Dice, tables: usize) -> Self {
        Self {
            place: dice.roll(tables),
            has_index: dice.one_in(2),
        }
    }
}

/// Large objects by number, as digests.
pub(super) type Objects = BTreeMap<i64, String>;

impl Schema {
    /// What the materialized view holds once it is up to date.
    fn totals(&self, watch: Watch) -> String {
        let table = &self.tables[watch.place];
        let column = table.owner.column().unwrap_or("note");
        let name = &table.name;
        format!("select {column}, v, count(*) as rows from s.{name} group by 1, 2")
    }

    /// Views with the columns that say whose a row is, and a foreign table that nobody can read.
    pub(super) fn ddl_beside(&self) -> String {
        let Some(watch) = self.watch else {
            return String::new();
        };
        let (totals, name) = (self.totals(watch), &self.tables[watch.place].name);
        let mut sql = format!(
            "create view s.seen as select tableoid as org_id, v, note from s.{name};
             create materialized view s.totals as {totals};
             create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;
             create foreign table s.elsewhere (org_id int not null, v int) server nowhere;"
        );
        if watch.has_index {
            let column = self.tables[watch.place].owner.column().unwrap_or("note");
            write!(sql, "create unique index on s.totals ({column}, v);").unwrap();
        }
        sql
    }

    /// The materialized view is up to date at the target.
    pub(super) fn refresh(&self) -> &'static str {
        match self.watch {
            Some(_) => "refresh materialized view s.totals",
            None => "",
        }
    }

    /// Tables whose rows have documents, by place.
    fn with_documents(&self) -> impl Iterator<Item = usize> {
        (0..self.tables.len()).filter(|&place| self.tables[place].has_documents)
    }

    /// Gives some rows of these tenants a document.
    pub(super) fn insert_documents(&self, tenants: &[&str]) -> String {
        let mut sql = String::new();
        for place in self.with_documents() {
            for tenant in tenants {
                let (from, own) = (self.from(place), self.of(place, tenant));
                write!(
                    sql,
                    "update {from} t set doc = lo_from_bytea(0, convert_to(repeat('of {tenant} ' || t::text, \
                     1 + abs(hashtext(t::text)) % 200), 'UTF8')) where {own} and {PLAIN} and v % 2 = 1;"
                )
                .unwrap();
            }
        }
        sql
    }

    /// Documents are lost, spoilt, prolonged and exchanged, with and without a write to their rows.
    pub(super) fn spoil_documents(&self, dice: &mut Dice, tenant: &str) -> String {
        let mut sql = String::new();
        for place in self.with_documents() {
            let (from, own) = (self.from(place), self.of(place, tenant));
            let salt = dice.roll(1_000_000);
            let some = |of: usize| {
                format!(
                    "{own} and {PLAIN} and abs(hashtext(t::text || '{salt}')) % {of} = 0 \
                     and exists (select from pg_largeobject_metadata m where m.oid = t.doc)"
                )
            };
            for (few, what) in [
                (3, "lo_unlink(doc)"),
                (4, "lo_put(doc, 3, 'spoilt')"),
                (5, "lo_put(doc, 100000, 'far away')"),
            ] {
                if dice.one_in(2) {
                    write!(sql, "select {what} from {from} t where {};", some(few)).unwrap();
                }
            }
            if dice.one_in(2) {
                let other = "lo_from_bytea(0, 'another')";
                write!(sql, "update {from} t set doc = {other} where {};", some(6)).unwrap();
            }
        }
        sql
    }
}

/// All large objects of a database.
pub(super) async fn objects(bench: &Bench, database: &str) -> Objects {
    let query = "select oid::int8, md5(lo_get(oid)) from pg_largeobject_metadata";
    let mut connection = bench.connect(database).await;
    let rows = sql::rows(&mut connection, query, query).await.unwrap();
    connection.close().await.unwrap();
    let object = |row| (sql::column(row, 0).unwrap(), sql::column(row, 1).unwrap());
    rows.iter().map(object).collect()
}

/// What there has to be once a tenant is restored: all as it is now, and what its rows of the target referred to as
/// it was then.
pub(super) async fn objects_after(bench: &Bench, schema: &Schema, tenant: &str) -> Objects {
    let mut expected = objects(bench, "live").await;
    let mut numbers = BTreeSet::new();
    let mut connection = bench.connect("then_").await;
    for place in schema.with_documents() {
        let (from, own) = (schema.from(place), schema.of(place, tenant));
        let query = format!("select doc::int8 from {from} t where {own} and doc is not null");
        let rows = sql::rows(&mut connection, &query, query.clone())
            .await
            .unwrap();
        let number = |row| sql::column::<i64>(row, 0).unwrap();
        numbers.extend(rows.iter().map(number));
    }
    connection.close().await.unwrap();
    let then = objects(bench, "then_").await;
    expected.extend(then.into_iter().filter(|(oid, _)| numbers.contains(oid)));
    expected
}

/// The materialized view, as text.
async fn totals(bench: &Bench, query: &str) -> String {
    let query =
        format!("select coalesce(string_agg(t::text, ' ' order by t::text), '') from ({query}) t");
    let mut connection = bench.connect("live").await;
    let text = sql::value(&mut connection, &query, query.clone()).await;
    connection.close().await.unwrap();
    text.unwrap()
}

/// What the materialized view holds, which only a refresh changes.
pub(super) async fn held(bench: &Bench, schema: &Schema) -> Option<String> {
    match schema.watch {
        Some(_) => Some(totals(bench, "select * from s.totals").await),
        None => None,
    }
}

/// Has the materialized view refreshed, where the restore wrote to what it looks at.
pub(super) async fn assert_refreshed(
    bench: &Bench,
    schema: &Schema,
    set: &ChangeSet,
    held_before: Option<String>,
) {
    let Some(watch) = schema.watch else { return };
    assert_eq!(held(bench, schema).await, held_before, "refreshed unasked");
    let lines = crate::views::refresh(&bench.options("live"), set, Duration::from_secs(10)).await;
    assert!(
        lines
            .iter()
            .all(|line| line.outcome == ProofOutcome::Agrees),
        "{lines:?}"
    );
    let name = format!("s.{}", schema.tables[watch.place].name);
    let more = format!("{name}_more");
    let is_written = |table: &crate::changes::TableChanges| {
        let written = table.slice.table.to_string();
        table.is_written() && (written == name || written == more)
    };
    let is_due = set.tables.iter().any(is_written);
    assert_eq!(lines.len(), usize::from(is_due), "{lines:?}");
    if is_due {
        let fresh = totals(bench, &schema.totals(watch)).await;
        assert_eq!(held(bench, schema).await, Some(fresh));
    }
}

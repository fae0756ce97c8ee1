//! What entries name and a copy does not have under that name: it may not have been made yet at the target, or may have
//! had another name. Which of the two cannot be told, so it is said. Likewise other databases with tables of the
//! same names, which may be copies.

use std::collections::BTreeSet;

use dr_model::TableName;
use dr_sources::postgres::{ConnectOptions, PgConnection};
use serde::Deserialize;

use super::doomed::Part;
use super::settle::session;
use super::tables::{Tables, json};
use super::{ErasedRows, Erasure, WholePlace};
use crate::RestoreError;

/// A database of the copy.
#[derive(Debug, Deserialize)]
pub(super) struct Database {
    pub(super) name: String,
    /// It accepts connections.
    open: bool,
}

pub(super) async fn databases(session: &mut PgConnection) -> Result<Vec<Database>, RestoreError> {
    let query = "select datname as name, datallowconn as open from pg_database order by 1";
    json(session, query, "list the databases").await
}

fn named(entries: &[Erasure]) -> BTreeSet<&str> {
    let parts = entries.iter().flat_map(|entry| &entry.databases);
    parts.map(|part| part.database.as_str()).collect()
}

/// The databases of entries that the copy has, and what is told of the others.
pub(super) fn meant<'a>(there: &'a [Database], entries: &[Erasure]) -> (Vec<&'a str>, Vec<String>) {
    let mut meant = Vec::new();
    let mut lacking = Vec::new();
    for name in named(entries) {
        match there.iter().find(|database| database.name == name) {
            Some(database) if database.open => meant.push(database.name.as_str()),
            Some(_) => lacking.push(format!("database {name}, which accepts no connections")),
            None => lacking.push(format!("database {name}")),
        }
    }
    (meant, lacking)
}

/// What entries name in a database that it does not have.
pub(super) fn lacking(tables: &Tables, parts: &[Part<'_>], database: &str) -> BTreeSet<String> {
    let mut lacking = BTreeSet::new();
    for (_, part) in parts {
        if let Some(WholePlace::Schema(schema)) = &part.whole
            && !tables.all().any(|table| table.name.schema == *schema)
        {
            lacking.insert(format!("tables in schema {schema} of database {database}"));
        }
        let own = part
            .tables
            .iter()
            .filter(|it| it.rows != ErasedRows::Dependent);
        for known in own.filter(|known| tables.named(&known.table).is_none()) {
            lacking.insert(format!("{} of database {database}", known.table));
        }
    }
    lacking
}

/// Other databases that have tables of which entries name rows.
pub(super) async fn alike(
    there: &[Database],
    server: &(dyn Fn(&str) -> ConnectOptions + Sync),
    entries: &[Erasure],
) -> Result<Vec<String>, RestoreError> {
    let ours = named(entries);
    let parts = entries.iter().flat_map(|entry| &entry.databases);
    let wanted: BTreeSet<&TableName> = parts
        .flat_map(|part| &part.tables)
        .filter(|known| known.rows != ErasedRows::Dependent)
        .map(|known| &known.table)
        .collect();
    let others = there
        .iter()
        .filter(|it| it.open && !ours.contains(it.name.as_str()));
    let mut notes = Vec::new();
    for Database { name, .. } in others {
        let mut session = session(&server(name)).await?;
        let tables = Tables::read(&mut session).await?;
        let same = wanted.iter().filter(|table| tables.named(table).is_some());
        let same: Vec<String> = same.map(ToString::to_string).collect();
        if !same.is_empty() {
            notes.push(format!(
                "database {name} has {} too, and the entries do not speak of that database: nothing was erased \
                 there; drop it if it is a copy",
                same.join(", ")
            ));
        }
    }
    Ok(notes)
}

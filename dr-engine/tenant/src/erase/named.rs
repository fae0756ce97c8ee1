//! Rows that somebody names, by their keys or by a condition, looked up in the live database.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;

use super::ErasePlan;
use super::entry::Subject;
use crate::filter::Filter;
use crate::map::{TableClass, TableName};
use crate::slice::SliceTable;
use crate::sql::{self, ident, literal};
use crate::{TenantError, diff};

/// Rows that one entry may name; more than that is a tenant, or a mistake.
const ROWS_MAX: usize = 100_000;
/// What joins the values of one key.
const JOINT: char = '/';

/// Columns and keys of each table of which rows are named.
pub(super) type Named = BTreeMap<TableName, (Vec<String>, Vec<Vec<String>>)>;

/// Looks up what is named. A row that is not the tenant's is a reason against it in the plan; one that is not there
/// is taken as it is named.
pub(super) async fn rows(
    live: &mut PgConnection,
    subject: &Subject<'_>,
    texts: &[String],
    filter: &Filter,
    plan: &mut ErasePlan,
) -> Result<Named, TenantError> {
    let mut named: BTreeMap<TableName, (Vec<String>, BTreeSet<Vec<String>>)> = BTreeMap::new();
    for text in texts {
        let (table, keys) = parse(text, subject)?;
        let columns = key_of(table)?;
        for key in keys {
            let key = whole_key(table, &columns, key, subject)?;
            let key = canonical(live, table, &columns, key).await?;
            look_up(live, subject, table, &columns, &key, plan).await?;
            let entry = named.entry(table.table.clone());
            let entry = entry.or_insert_with(|| (columns.clone(), BTreeSet::new()));
            entry.1.insert(key);
        }
    }
    for table in &subject.tables {
        let Some(condition) = filter.condition(&table.table) else {
            continue;
        };
        let columns = key_of(table)?;
        diff::try_condition(live, table, condition).await?;
        let found = with_condition(live, subject, table, &columns, condition).await?;
        if found.is_empty() {
            plan.notes.push(format!(
                "no row of {} that is the tenant's has `{condition}`",
                table.table
            ));
            continue;
        }
        let entry = named.entry(table.table.clone());
        entry
            .or_insert_with(|| (columns, BTreeSet::new()))
            .1
            .extend(found);
    }
    let count: usize = named.values().map(|(_, keys)| keys.len()).sum();
    if count > ROWS_MAX {
        return Err(TenantError::BadErasure(format!(
            "it names {count} rows, and an entry takes {ROWS_MAX} at most"
        )));
    }
    if count == 0 {
        plan.refused.push("no row is named by it".to_owned());
    }
    Ok(named
        .into_iter()
        .map(|(table, (columns, keys))| (table, (columns, keys.into_iter().collect())))
        .collect())
}

/// `TABLE:KEY,KEY`, the values of a key of several columns joined by `/`; a backslash takes its meaning from what
/// follows it.
fn parse<'a>(
    text: &str,
    subject: &'a Subject<'_>,
) -> Result<(&'a SliceTable, Vec<Vec<String>>), TenantError> {
    let bad = |why: &str| TenantError::BadErasure(format!("`{text}` {why}"));
    let (name, rest) = text
        .split_once(':')
        .map(|(name, rest)| (name.trim(), rest))
        .filter(|(name, rest)| !name.is_empty() && !rest.trim().is_empty())
        .ok_or_else(|| bad("is no `TABLE:KEY`, as in `customer:4711`"))?;
    let one = Filter::new(&[name.to_owned()], &[])?;
    one.check(subject.owner.map)?;
    let mut meant = subject.tables.iter().filter(|it| one.chooses(&it.table));
    let table = match (meant.next(), meant.next()) {
        (Some(table), None) => table,
        (None, _) => return Err(bad("names a table of which nothing is this tenant's")),
        (Some(_), Some(_)) => return Err(bad("means several tables: say `schema.table`")),
    };
    Ok((table, split(rest)))
}

fn split(text: &str) -> Vec<Vec<String>> {
    let (mut keys, mut key, mut value) = (Vec::new(), Vec::new(), String::new());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => value.extend(letters.next()),
            JOINT => key.push(std::mem::take(&mut value)),
            ',' => {
                key.push(std::mem::take(&mut value));
                keys.push(std::mem::take(&mut key));
            }
            other => value.push(other),
        }
    }
    key.push(value);
    keys.push(key);
    keys
}

fn key_of(table: &SliceTable) -> Result<Vec<String>, TenantError> {
    let columns: Vec<String> = table
        .key
        .iter()
        .map(|key| table.name_at(key.place).to_owned())
        .collect();
    match columns.is_empty() {
        true => Err(TenantError::BadErasure(format!(
            "{} has no key, so that no row of it can be named: erase what its rows belong to, or give it one",
            table.table
        ))),
        false => Ok(columns),
    }
}

/// The tenant's own id may be left out of a key that it is part of.
fn whole_key(
    table: &SliceTable,
    columns: &[String],
    mut key: Vec<String>,
    subject: &Subject<'_>,
) -> Result<Vec<String>, TenantError> {
    if key.len() + 1 == columns.len()
        && let TableClass::Direct { column, id, .. } = &table.class
        && let Some(place) = columns.iter().position(|name| name == column)
        && let Some(id) = subject.owner.id(id.as_ref())
    {
        key.insert(place, id.to_owned());
    }
    match key.len() == columns.len() {
        true => Ok(key),
        false => Err(TenantError::BadErasure(format!(
            "`{}` is no key of {}, which has the columns {}: join their values with `/`",
            shown(&key),
            table.table,
            columns.join(", ")
        ))),
    }
}

fn shown(key: &[String]) -> String {
    key.join(&JOINT.to_string())
}

fn type_of<'a>(table: &'a SliceTable, column: &str) -> &'a str {
    let found = table.columns.iter().find(|known| known.name == column);
    found.map_or("text", |found| found.base_type.as_str())
}

/// The text that PostgreSQL itself has for these values.
async fn canonical(
    live: &mut PgConnection,
    table: &SliceTable,
    columns: &[String],
    key: Vec<String>,
) -> Result<Vec<String>, TenantError> {
    let mut texts = Vec::new();
    for (column, value) in columns.iter().zip(key) {
        let of = type_of(table, column);
        if let Some(text) = as_given(of, &value) {
            texts.push(text);
            continue;
        }
        let query = format!("select {}::{of}::text", literal(&value));
        let text: Result<String, TenantError> =
            sql::value(live, &query, "understanding a key").await;
        texts.push(text.map_err(|error| match &error {
            TenantError::Sql { source, .. } if source.as_database_error().is_some() => {
                TenantError::BadErasure(format!(
                    "`{value}` is no value of {}.{column}, which is {of}",
                    table.table
                ))
            }
            _ => error,
        })?);
    }
    Ok(texts)
}

/// The text of a value whose type is text of some kind. A cast would cut one that is too long; blanks at the end of
/// a `character(n)` are no part of it.
fn as_given(of: &str, value: &str) -> Option<String> {
    if of.starts_with("character(") || of == "bpchar" {
        return Some(value.trim_end_matches(' ').to_owned());
    }
    (of.starts_with("text") || of.starts_with("character")).then(|| value.to_owned())
}

/// `t` has this key. Whole numbers and uuids are compared as such, so that the index serves.
fn has_key(table: &SliceTable, columns: &[String], key: &[String]) -> String {
    let parts = columns.iter().zip(key).map(|(column, value)| {
        let name = ident(column);
        match type_of(table, column) {
            of @ ("smallint" | "integer" | "bigint" | "uuid") => {
                format!("t.{name} = {}::{of}", literal(value))
            }
            _ => format!("t.{name}::text = {}", literal(value)),
        }
    });
    parts.collect::<Vec<_>>().join(" and ")
}

async fn look_up(
    live: &mut PgConnection,
    subject: &Subject<'_>,
    table: &SliceTable,
    columns: &[String],
    key: &[String],
    plan: &mut ErasePlan,
) -> Result<(), TenantError> {
    let query = format!(
        "select bool_and(coalesce(({}), false)) from {} t where {}",
        subject.owner.condition(&table.class, "t"),
        table.from(),
        has_key(table, columns, key)
    );
    let what = format!("looking for rows of {}", table.table);
    let row = format!("{} {}", table.table, shown(key));
    match sql::value::<Option<bool>>(live, &query, what).await? {
        Some(true) => {}
        Some(false) => {
            let tenant = &subject.owner.tenant.name;
            plan.refused.push(format!("{row} is no row of {tenant}"));
        }
        None => plan.not_live.push(row),
    }
    Ok(())
}

/// The keys of the tenant's rows for which a condition holds.
async fn with_condition(
    live: &mut PgConnection,
    subject: &Subject<'_>,
    table: &SliceTable,
    columns: &[String],
    condition: &str,
) -> Result<Vec<Vec<String>>, TenantError> {
    let texts: Vec<String> = columns
        .iter()
        .map(|name| format!("t.{}::text", ident(name)))
        .collect();
    let query = format!(
        "select array[{}] from {} t where {} and ({condition}) limit {}",
        texts.join(", "),
        table.from(),
        subject.owner.condition(&table.class, "t"),
        ROWS_MAX + 1
    );
    let what = format!("looking for rows of {}", table.table);
    let found = sql::rows(live, &query, what).await?;
    found.iter().map(|row| sql::column(row, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::{as_given, split};

    #[test]
    fn keys_are_parted_by_commas_and_their_values_by_strokes() {
        for (text, keys) in [
            ("4711", vec![vec!["4711"]]),
            ("1,2", vec![vec!["1"], vec!["2"]]),
            ("7/a,7/b", vec![vec!["7", "a"], vec!["7", "b"]]),
            (r"a\,b\/c\\", vec![vec![r"a,b/c\"]]),
        ] {
            assert_eq!(split(text), keys, "{text}");
        }
    }

    #[test]
    fn a_text_is_taken_as_it_is_given_but_for_blanks_that_its_type_ignores() {
        for (of, value, text) in [
            ("character(8)", "A12  ", Some("A12")),
            ("bpchar", "A12 ", Some("A12")),
            ("character varying(8)", "A12  ", Some("A12  ")),
            ("text", " A12 ", Some(" A12 ")),
            ("boolean", "yes", None),
            ("numeric(10,2)", "7", None),
        ] {
            assert_eq!(as_given(of, value).as_deref(), text, "{of}");
        }
    }
}

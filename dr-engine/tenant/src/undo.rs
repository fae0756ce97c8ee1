//! Whether the rows that a restore wrote are still as it left them.
//!
//! Neither production is written to nor a scratch instance is needed: the stored change set and the
//! tenant's live rows are both COPY text made under the same settings, so they are compared as text,
//! streamed, with a short digest for each row of the change set in memory.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgConnection;

use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, TableChanges};
use crate::slice::Ownership;
use crate::{TenancyMap, TenantError};

/// Enough of a SHA-256 to tell rows of one tenant apart.
type Mark = [u8; 16];

fn mark(fields: &[&[u8]]) -> Mark {
    let mut hasher = Sha256::new();
    for field in fields {
        // COPY text never has a raw tab inside a field.
        hasher.update(field);
        hasher.update(b"\t");
    }
    let mut mark = Mark::default();
    mark.iter_mut()
        .zip(hasher.finalize())
        .for_each(|(to, from)| *to = from);
    mark
}

/// What is expected of the rows with one key.
#[derive(Debug, Default)]
struct Expected {
    /// The content they must have, and how many of them.
    content: Option<Mark>,
    copies: u64,
    found: u64,
    /// A live row with this key was met, whatever its content.
    met: bool,
}

/// The state in which rows are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// As the change set found them.
    Before,
    /// As it left them.
    After,
}

fn pick<'a>(fields: &[&'a [u8]], places: impl Iterator<Item = usize>) -> Vec<&'a [u8]> {
    places
        .filter_map(|place| fields.get(place).copied())
        .collect()
}

fn expectations(
    changes: &TableChanges,
    folder: &Path,
    state: State,
) -> Result<HashMap<Mark, Expected>, TenantError> {
    let path = folder.join(changes.file());
    let file = std::fs::File::open(&path).map_err(TenantError::file("open", &path))?;
    let mut reader = BufReader::new(file);
    let mut expected: HashMap<Mark, Expected> = HashMap::new();
    let width = changes.slice.columns.len();
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader
            .read_until(b'\n', &mut line)
            .map_err(TenantError::file("read", &path))?
            == 0
        {
            return Ok(expected);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let mut fields = text.split(|byte| *byte == b'\t');
        let op = fields.next().unwrap_or_default();
        let fields: Vec<&[u8]> = fields.collect();
        let (old, new) = fields.split_at_checked(width).ok_or_else(|| {
            TenantError::format(path.display().to_string(), "a line has too few columns")
        })?;
        let (gone, side, other) = match state {
            State::After => (op == b"D", new, old),
            State::Before => (op == b"I", old, new),
        };
        let shown = if gone { other } else { side };
        if changes.slice.key.is_empty() {
            if !gone {
                let entry = expected.entry(mark(shown)).or_default();
                entry.content = Some(mark(shown));
                entry.copies += 1;
            }
            continue;
        }
        let key = mark(&pick(shown, changes.slice.key.iter().map(|key| key.place)));
        let entry = expected.entry(key).or_default();
        entry.content = (!gone).then(|| mark(side));
        entry.copies = u64::from(!gone);
    }
}

/// Counts rows that are not in the expected state; also returns the tenant's rows.
async fn compare_table(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    changes: &TableChanges,
    folder: &Path,
    state: State,
) -> Result<(u64, u64), TenantError> {
    let mut expected = if changes.counts.total() > 0 {
        expectations(changes, folder, state)?
    } else {
        HashMap::new()
    };
    let slice = &changes.slice;
    let what = format!("reading the tenant's rows of {}", slice.table);
    let query = format!(
        "copy (select {} from {} t where {}) to stdout",
        slice.select_list("t"),
        slice.from(),
        owner.condition(&slice.class, "t")
    );
    let mut stream = live
        .copy_out_raw(&query)
        .await
        .map_err(TenantError::sql(&what))?;
    let (mut wrong, mut rows) = (0, 0);
    let mut pending = Vec::new();
    while let Some(piece) = stream.next().await {
        pending.extend_from_slice(&piece.map_err(TenantError::sql(&what))?);
        let mut begin = 0;
        while let Some(length) = pending
            .get(begin..)
            .and_then(|rest| rest.iter().position(|b| *b == b'\n'))
        {
            let line = pending.get(begin..begin + length).unwrap_or_default();
            begin += length + 1;
            rows += 1;
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
            let content = mark(&fields);
            let key = if slice.key.is_empty() {
                content
            } else {
                mark(&pick(&fields, slice.key.iter().map(|key| key.place)))
            };
            if let Some(entry) = expected.get_mut(&key) {
                entry.met = true;
                match entry.content {
                    Some(known) if known == content => entry.found += 1,
                    // Changed since, or back although it was removed.
                    _ => wrong += 1,
                }
            }
        }
        pending.drain(..begin);
    }
    for entry in expected.values() {
        // A changed row was counted when it was met; here are those that were not met.
        let all_or_none = !slice.key.is_empty() && entry.met;
        if entry.content.is_some() && !all_or_none {
            wrong += entry.copies.saturating_sub(entry.found);
        }
    }
    Ok((wrong, rows))
}

/// What was found for one table.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// Rows not in the expected state.
    pub(crate) wrong: u64,
    /// The tenant's rows.
    pub(crate) rows: u64,
}

/// Compares all tables of a stored change set with the live rows, in one read-only snapshot.
pub(crate) async fn compare(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    set: &ChangeSet,
    folder: &Path,
    state: State,
) -> Result<Vec<Standing>, TenantError> {
    let begin = "begin isolation level repeatable read read only";
    crate::sql::run(live, begin, "beginning to read the live database").await?;
    let mut standings = Vec::new();
    for changes in &set.tables {
        let (wrong, rows) = compare_table(live, owner, changes, folder, state).await?;
        standings.push(Standing { wrong, rows });
    }
    crate::sql::run(live, "commit", "reading the live database").await?;
    Ok(standings)
}

/// Why a stored change set does not fit the tables any more.
pub(crate) fn misfits(rows: &CatalogRows, map: &TenancyMap, set: &ChangeSet) -> Vec<String> {
    let mut misfits = Vec::new();
    for changes in set
        .tables
        .iter()
        .filter(|changes| changes.counts.total() > 0)
    {
        let slice = &changes.slice;
        let Some(relation) = rows.by_name(&slice.table) else {
            misfits.push(format!("{} is gone", slice.table));
            continue;
        };
        let class = map.tables.iter().find(|mapped| mapped.table == slice.table);
        let now = class.map_or_else(String::new, |mapped| mapped.class.describe());
        if now != slice.class.describe() {
            misfits.push(format!(
                "{} was `{}` and is `{now}` now: whose its rows are is told in another way",
                slice.table,
                slice.class.describe()
            ));
        }
        for column in &slice.columns {
            match rows.column(relation.oid, &column.name) {
                None => misfits.push(format!("{}.{} is gone", slice.table, column.name)),
                Some(now) if now.base_type != column.base_type => misfits.push(format!(
                    "{}.{} was {} and is {} now",
                    slice.table, column.name, column.base_type, now.base_type
                )),
                Some(_) => {}
            }
        }
    }
    misfits
}

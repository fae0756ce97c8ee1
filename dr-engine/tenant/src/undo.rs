//! Whether the rows that a restore wrote are still as it left them.
//!
//! Neither production is written to nor a scratch instance is needed: the stored change set and the
//! tenant's live rows are both COPY text made under the same settings, so they are compared as text,
//! streamed, by short digests. When there are more changed rows than [`ROWS_AT_A_TIME`], the digests of both sides
//! are first dealt out to files by their keys, and the files compared one pair after the other (a hash join with
//! partitions): memory does not grow with the tenant, and the live rows are read once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgConnection;

use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, TableChanges};
use crate::slice::{Ownership, SliceTable};
use crate::{TenancyMap, TenantError, apply};

/// Changed rows whose digests are in memory at a time: some 50 MB.
const ROWS_AT_A_TIME: u64 = 500_000;

/// Enough of a SHA-256 to tell rows of one tenant apart.
type Mark = [u8; 16];
const MARK_BYTES: usize = 16;

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

/// A row: the digest of its key, and that of its content unless it must not be there. A row without a key is its
/// own.
type Row = (Mark, Option<Mark>);

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

/// Expected rows, met by live ones.
#[derive(Debug, Default)]
struct Expectations(HashMap<Mark, Expected>);

impl Expectations {
    fn expect(&mut self, (key, content): Row) {
        let entry = self.0.entry(key).or_default();
        if content.is_some() {
            entry.content = content;
            entry.copies += 1;
        }
    }

    /// Takes a live row in; true if it is not as it must be.
    fn is_wrong(&mut self, (key, content): Row) -> bool {
        let Some(entry) = self.0.get_mut(&key) else {
            return false;
        };
        entry.met = true;
        // Changed since, or back although it was removed.
        let wrong = entry.content.is_none() || entry.content != content;
        entry.found += u64::from(!wrong);
        wrong
    }

    /// Rows that were not met.
    fn missing(&self, has_key: bool) -> u64 {
        // With a key, a changed row was counted when it was met.
        let unmet = self.0.values().filter(|entry| !(has_key && entry.met));
        unmet
            .map(|entry| entry.copies.saturating_sub(entry.found))
            .sum()
    }
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

fn key_of(slice: &SliceTable, fields: &[&[u8]]) -> Mark {
    match slice.key.is_empty() {
        true => mark(fields),
        false => mark(&pick(fields, slice.key.iter().map(|key| key.place))),
    }
}

/// Gives `take` what the stored changes say of each row.
fn stored(
    changes: &TableChanges,
    folder: &Path,
    state: State,
    mut take: impl FnMut(Row) -> Result<(), TenantError>,
) -> Result<(), TenantError> {
    let path = folder.join(changes.file());
    let file = File::open(&path).map_err(TenantError::file("open", &path))?;
    let mut reader = BufReader::new(file);
    let slice = &changes.slice;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader
            .read_until(b'\n', &mut line)
            .map_err(TenantError::file("read", &path))?
            == 0
        {
            return Ok(());
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let mut fields = text.split(|byte| *byte == b'\t');
        let op = fields.next().unwrap_or_default();
        let fields: Vec<&[u8]> = fields.collect();
        let (old, new) = fields
            .split_at_checked(slice.columns.len())
            .ok_or_else(|| {
                TenantError::format(path.display().to_string(), "a line has too few columns")
            })?;
        let (gone, side, other) = match state {
            State::After => (op == b"D", new, old),
            State::Before => (op == b"I", old, new),
        };
        match (gone, slice.key.is_empty()) {
            // Rows like it may be there all the same.
            (true, true) => {}
            (true, false) => take((key_of(slice, other), None))?,
            (false, _) => take((key_of(slice, side), Some(mark(side))))?,
        }
    }
}

/// Gives `take` each of the tenant's rows; returns how many.
async fn live_rows(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    slice: &SliceTable,
    mut take: impl FnMut(Row) -> Result<(), TenantError>,
) -> Result<u64, TenantError> {
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
    let mut rows = 0;
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
            take((key_of(slice, &fields), Some(mark(&fields))))?;
        }
        pending.drain(..begin);
    }
    Ok(rows)
}

/// Rows dealt out to files by their keys.
struct Parts(Vec<(PathBuf, BufWriter<File>)>);

/// A key, whether there is a content, and the content.
const ROW_BYTES: usize = 2 * MARK_BYTES + 1;

impl Parts {
    fn create(folder: &Path, name: &str, count: u64) -> Result<Self, TenantError> {
        let part = |number| {
            let path = folder.join(format!("{name}-{number}"));
            let file = File::create(&path).map_err(TenantError::file("create", &path))?;
            Ok((path, BufWriter::new(file)))
        };
        (0..count).map(part).collect::<Result<_, _>>().map(Self)
    }

    fn put(&mut self, (key, content): Row) -> Result<(), TenantError> {
        // Digests are spread evenly.
        let first = u64::from_be_bytes(key.first_chunk().copied().unwrap_or_default());
        let count = self.0.len().max(1) as u64;
        let part = usize::try_from(first % count).unwrap_or(0);
        let Some((path, file)) = self.0.get_mut(part) else {
            return Ok(());
        };
        let known = [u8::from(content.is_some())];
        [&key[..], &known, &content.unwrap_or_default()]
            .iter()
            .try_for_each(|bytes| file.write_all(bytes))
            .map_err(TenantError::file("write", path))
    }

    fn written(self) -> Result<Vec<PathBuf>, TenantError> {
        let close = |(path, mut file): (PathBuf, BufWriter<File>)| {
            file.flush().map_err(TenantError::file("write", &path))?;
            Ok(path)
        };
        self.0.into_iter().map(close).collect()
    }
}

/// Reads a part back and removes it.
fn read_part(path: &Path, mut take: impl FnMut(Row)) -> Result<(), TenantError> {
    let file = File::open(path).map_err(TenantError::file("open", path))?;
    let rows = file
        .metadata()
        .map_err(TenantError::file("read", path))?
        .len()
        / ROW_BYTES as u64;
    let mut reader = BufReader::new(file);
    for _ in 0..rows {
        let (mut key, mut known, mut content) = (Mark::default(), [0], Mark::default());
        for bytes in [&mut key[..], &mut known, &mut content] {
            reader
                .read_exact(bytes)
                .map_err(TenantError::file("read", path))?;
        }
        take((key, (known == [1]).then_some(content)));
    }
    std::fs::remove_file(path).map_err(TenantError::file("remove", path))
}

/// Counts rows that are not in the expected state; also returns the tenant's rows.
async fn compare_table(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    changes: &TableChanges,
    folder: &Path,
    state: State,
    rows_at_a_time: u64,
) -> Result<(u64, u64), TenantError> {
    let slice = &changes.slice;
    if !changes.is_written() {
        return Ok((0, apply::count(live, owner, slice).await?));
    }
    let has_key = !slice.key.is_empty();
    let parts = changes.counts.total().div_ceil(rows_at_a_time);
    if parts <= 1 {
        let (mut expected, mut wrong) = (Expectations::default(), 0);
        stored(changes, folder, state, |row| {
            expected.expect(row);
            Ok(())
        })?;
        let rows = live_rows(live, owner, slice, |row| {
            wrong += u64::from(expected.is_wrong(row));
            Ok(())
        });
        let rows = rows.await?;
        return Ok((wrong + expected.missing(has_key), rows));
    }
    let mut expected = Parts::create(folder, "expected", parts)?;
    stored(changes, folder, state, |row| expected.put(row))?;
    let mut found = Parts::create(folder, "found", parts)?;
    let rows = live_rows(live, owner, slice, |row| found.put(row)).await?;
    let mut wrong = 0;
    for (expected, found) in expected.written()?.iter().zip(found.written()?) {
        let mut part = Expectations::default();
        read_part(expected, |row| part.expect(row))?;
        read_part(&found, |row| wrong += u64::from(part.is_wrong(row)))?;
        wrong += part.missing(has_key);
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
    compare_by(live, owner, set, folder, state, ROWS_AT_A_TIME).await
}

/// As [`compare`], with so many changed rows of a table in memory.
pub(crate) async fn compare_by(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    set: &ChangeSet,
    folder: &Path,
    state: State,
    rows_at_a_time: u64,
) -> Result<Vec<Standing>, TenantError> {
    let begin = "begin isolation level repeatable read read only";
    crate::sql::run(live, begin, "beginning to read the live database").await?;
    let mut standings = Vec::new();
    for changes in &set.tables {
        let found = compare_table(live, owner, changes, folder, state, rows_at_a_time);
        let (wrong, rows) = found.await?;
        standings.push(Standing { wrong, rows });
    }
    crate::sql::run(live, "commit", "reading the live database").await?;
    Ok(standings)
}

/// Why stored changes do not fit their table any more.
pub(crate) fn misfits(rows: &CatalogRows, map: &TenancyMap, changes: &TableChanges) -> Vec<String> {
    let slice = &changes.slice;
    let Some(relation) = rows.by_name(&slice.table) else {
        return vec![format!("{} is gone", slice.table)];
    };
    let mut misfits = Vec::new();
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
    misfits
}

//! Taking what was erased out of a stored change set, before an undo writes it back.
//!
//! An erased row that the restore changed or removed must not return by taking the restore back: its lines are left
//! out, and so are those of rows that belonged to it, by foreign keys that delete in cascade and by the links that
//! the entry carries. A row that was left out stays as it is now, be that gone or live. A row that comes back refers
//! to nothing where it referred to an erased one by a foreign key that is set null. Which lines these are
//! PostgreSQL decides ([`gone`], [`cleared`]); here the files are read line by line and written anew.

mod cleared;
mod gone;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use dr_restore::{AppliedErasure, AppliedErasures, ErasedCount, Erasure};
use sqlx::postgres::PgConnection;

use self::cleared::Fields;
use crate::changes::{ChangeSet, Counts, TableChanges};
use crate::execute::blocking;
use crate::map::TableName;
use crate::slice::Ownership;
use crate::{TenantError, large_objects, sql};

/// What becomes of a table's lines, by their numbers from 0.
#[derive(Default)]
struct Lost {
    /// Left out, in their order.
    lines: Vec<u64>,
    cleared: Fields,
}

type AllLost = BTreeMap<TableName, Lost>;

/// Takes the lines of erased rows out of the files below `folder` and out of the counts of `set`, which is written
/// there again. `entries` are this tenant's. In the live database only temporary tables are made.
pub(crate) async fn take_out(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    set: &mut ChangeSet,
    folder: &Path,
    database: &str,
    entries: &[Erasure],
) -> Result<AppliedErasures, TenantError> {
    let mut applied = AppliedErasures::default();
    let mut all = AllLost::new();
    sql::run(
        live,
        "begin isolation level repeatable read; set local client_min_messages = warning",
        "beginning to compare with what was erased",
    )
    .await?;
    let mut gone = gone::Gone::load(live, owner, set, folder, database, entries).await?;
    for entry in entries {
        let mut lost = AllLost::new();
        for part in entry
            .databases
            .iter()
            .filter(|part| part.database == database)
        {
            gone.find(live, entry, part).await?;
            for (table, lines) in gone.lines(live).await? {
                merge(&mut lost.entry(table).or_default().lines, lines);
            }
            for (table, fields) in gone.cleared(live).await? {
                lost.entry(table).or_default().cleared.extend(fields);
            }
        }
        let counts = lost.iter().map(|(table, lost)| ErasedCount {
            table: table.to_string(),
            erased: lost.lines.len() as u64,
            cleared: lost.cleared.len() as u64,
        });
        applied.entries.push(AppliedErasure {
            id: entry.id.clone(),
            at: entry.at,
            tenant: entry.tenant.clone(),
            tables: counts.collect(),
            files: 0,
        });
        for (table, lost) in lost {
            let into = all.entry(table).or_default();
            merge(&mut into.lines, lost.lines);
            for (line, fields) in lost.cleared {
                into.cleared.entry(line).or_default().extend(fields);
            }
        }
    }
    sql::run(live, "rollback", "comparing with what was erased").await?;
    if all.is_empty() {
        return Ok(applied);
    }
    let (mut changed, folder) = (set.clone(), folder.to_owned());
    *set = blocking("leave out what was erased", move || {
        leave_out(&mut changed, &folder, &all)?;
        Ok(changed)
    })
    .await?;
    Ok(applied)
}

fn merge(into: &mut Vec<u64>, lines: Vec<u64>) {
    into.extend(lines);
    into.sort_unstable();
    into.dedup();
}

/// Writes the files of these tables anew, and then the set.
fn leave_out(set: &mut ChangeSet, folder: &Path, all: &AllLost) -> Result<(), TenantError> {
    let (mut gone, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for changes in &mut set.tables {
        let lost = all.get(&changes.slice.table);
        let left_out = lost.map_or(&[][..], |lost| lost.lines.as_slice());
        objects(changes, folder, left_out, &mut gone, &mut needed)?;
        if let Some(lost) = lost {
            rewrite(changes, folder, lost)?;
        }
    }
    let returns = |oid: &u32| !gone.contains(oid) || needed.contains(oid);
    set.large_objects.retain(|object| returns(&object.oid));
    set.write(folder)
}

/// Lines of a table's file, one at a time.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
    next: u64,
}

impl Lines {
    fn open(changes: &TableChanges, folder: &Path) -> Result<Self, TenantError> {
        let path = folder.join(changes.file());
        let file = File::open(&path).map_err(TenantError::file("open", &path))?;
        Ok(Self {
            path,
            reader: BufReader::new(file),
            line: Vec::new(),
            next: 0,
        })
    }

    /// The next line and its number.
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, TenantError> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        if read.map_err(TenantError::file("read", &self.path))? == 0 {
            return Ok(None);
        }
        let number = self.next;
        self.next += 1;
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok(Some((number, line)))
    }
}

/// Whether a line is left out; lines are asked for in their order.
fn is_in(left_out: &mut &[u64], number: u64) -> bool {
    match left_out.split_first() {
        Some((first, rest)) if *first == number => {
            *left_out = rest;
            true
        }
        _ => false,
    }
}

/// Large objects that lines refer to which are left out, and those that others refer to.
fn objects(
    changes: &TableChanges,
    folder: &Path,
    mut left_out: &[u64],
    gone: &mut BTreeSet<u32>,
    needed: &mut BTreeSet<u32>,
) -> Result<(), TenantError> {
    let columns = large_objects::columns(&changes.slice);
    if columns.is_empty() || !changes.is_written() {
        return Ok(());
    }
    let width = changes.slice.columns.len();
    let mut lines = Lines::open(changes, folder)?;
    while let Some((number, line)) = lines.next()? {
        let mut fields = line.split(|byte| *byte == b'\t');
        // Of a row that the restore made there is only what it was made to.
        let side = match fields.next() {
            Some(b"I") => width,
            _ => 0,
        };
        let fields: Vec<&[u8]> = fields.collect();
        let values = columns.iter().filter_map(|place| fields.get(side + place));
        let oids = values.filter_map(|text| std::str::from_utf8(text).ok()?.parse::<u32>().ok());
        match is_in(&mut left_out, number) {
            true => gone.extend(oids),
            false => needed.extend(oids),
        }
    }
    Ok(())
}

/// Writes a table's file anew without what is lost, and counts what is left.
fn rewrite(changes: &mut TableChanges, folder: &Path, lost: &Lost) -> Result<(), TenantError> {
    let mut left_out = lost.lines.as_slice();
    let path = folder.join(changes.file());
    let kept = path.with_extension("kept");
    let mut counts = Counts::default();
    let mut lines = Lines::open(changes, folder)?;
    let new = File::create(&kept).map_err(TenantError::file("create", &kept))?;
    let mut new = BufWriter::new(new);
    while let Some((number, line)) = lines.next()? {
        if is_in(&mut left_out, number) {
            continue;
        }
        match line.first() {
            Some(b'I') => counts.insert += 1,
            Some(b'D') => counts.delete += 1,
            Some(b'R') => counts.replace += 1,
            _ => counts.update += 1,
        }
        let cleared = lost.cleared.get(&number);
        let line = cleared.map_or(Cow::Borrowed(line), |fields| {
            Cow::Owned(without(line, fields))
        });
        let written = new.write_all(&line).and_then(|()| new.write_all(b"\n"));
        written.map_err(TenantError::file("write", &kept))?;
    }
    new.flush().map_err(TenantError::file("write", &kept))?;
    std::fs::rename(&kept, &path).map_err(TenantError::file("rename", &kept))?;
    // The tenant had them before the restore, and will not after the undo.
    let fewer = changes.counts.delete.saturating_sub(counts.delete);
    changes.rows_before = changes.rows_before.saturating_sub(fewer);
    changes.counts = counts;
    Ok(())
}

/// The line with these of its values null, as COPY writes that.
fn without(line: &[u8], fields: &BTreeSet<usize>) -> Vec<u8> {
    let mut written = Vec::with_capacity(line.len());
    for (place, value) in line.split(|byte| *byte == b'\t').enumerate() {
        if place > 0 {
            written.push(b'\t');
        }
        // What the line does comes before its values.
        let is_lost = place
            .checked_sub(1)
            .is_some_and(|place| fields.contains(&place));
        written.extend_from_slice(if is_lost { b"\\N" } else { value });
    }
    written
}

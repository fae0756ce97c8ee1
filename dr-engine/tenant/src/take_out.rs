//! Taking what was erased out of a stored change set, before an undo writes it back.
//!
//! An erased row that the restore changed or removed must not return by taking the restore back: its lines are left
//! out, and so are those of rows that belonged to it, by foreign keys that delete in cascade and by the links that
//! the entry carries. A row that was left out stays as it is now, be that gone or live.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use dr_restore::{
    AppliedErasure, AppliedErasures, ErasedCount, ErasedDatabase, ErasedLink, ErasedRows, Erasure,
};

use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, Counts, TableChanges};
use crate::map::TableName;
use crate::{TenantError, large_objects, slice};

/// What leads from rows of a table to rows of another.
struct Step {
    child: TableName,
    columns: Vec<String>,
    parent: TableName,
    parent_columns: Vec<String>,
    only: Option<(String, String)>,
}

/// Lines of one table's file that are left out, by their numbers from 0.
type LeftOut = BTreeMap<TableName, BTreeSet<usize>>;

/// Takes the lines of erased rows out of the files below `folder` and out of the counts of `set`, which is written
/// there again. `entries` are this tenant's. Blocks.
pub(crate) fn take_out(
    set: &mut ChangeSet,
    folder: &Path,
    database: &str,
    catalog: &CatalogRows,
    entries: &[Erasure],
) -> Result<AppliedErasures, TenantError> {
    let mut applied = AppliedErasures::default();
    let mut all = LeftOut::new();
    for entry in entries {
        let mut left_out = LeftOut::new();
        for part in entry
            .databases
            .iter()
            .filter(|part| part.database == database)
        {
            named(set, folder, part, &mut left_out)?;
            belonging(set, folder, &steps(catalog, entry, part), &mut left_out)?;
        }
        let counts = left_out.iter().map(|(table, lines)| ErasedCount {
            table: table.to_string(),
            erased: lines.len() as u64,
            cleared: 0,
        });
        applied.entries.push(AppliedErasure {
            id: entry.id.clone(),
            at: entry.at,
            tenant: entry.tenant.clone(),
            tables: counts.collect(),
            files: 0,
        });
        for (table, lines) in left_out {
            all.entry(table).or_default().extend(lines);
        }
    }
    let (mut gone, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for changes in &mut set.tables {
        if let Some(left_out) = all.get(&changes.slice.table).filter(|it| !it.is_empty()) {
            objects(changes, folder, left_out, &mut gone, &mut needed)?;
            rewrite(changes, folder, left_out)?;
        }
    }
    let returns = |oid: &u32| !gone.contains(oid) || needed.contains(oid);
    set.large_objects.retain(|object| returns(&object.oid));
    if !all.is_empty() {
        set.write(folder)?;
    }
    Ok(applied)
}

/// Large objects that lines refer to which are left out, and those that others refer to.
fn objects(
    changes: &TableChanges,
    folder: &Path,
    left_out: &BTreeSet<usize>,
    gone: &mut BTreeSet<u32>,
    needed: &mut BTreeSet<u32>,
) -> Result<(), TenantError> {
    let columns = large_objects::columns(&changes.slice);
    if columns.is_empty() {
        return Ok(());
    }
    for (number, line) in lines(changes, folder)?.iter().enumerate() {
        let values = columns.iter().filter_map(|&place| line.values.get(place));
        let oids = values.flatten().filter_map(|text| text.parse::<u32>().ok());
        match left_out.contains(&number) {
            true => gone.extend(oids),
            false => needed.extend(oids),
        }
    }
    Ok(())
}

/// A line of a set's file: what it does, and the values of the row that it is about.
struct Line {
    op: u8,
    values: Vec<Option<String>>,
}

fn lines(changes: &TableChanges, folder: &Path) -> Result<Vec<Line>, TenantError> {
    if changes.counts.total() == 0 {
        return Ok(Vec::new());
    }
    let path = folder.join(changes.file());
    let file = std::fs::File::open(&path).map_err(TenantError::file("open", &path))?;
    let width = changes.slice.columns.len();
    let damaged = || TenantError::format(path.display().to_string(), "a line has too few columns");
    let mut found = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(TenantError::file("read", &path))?;
        let mut fields = line.split('\t');
        let op = fields
            .next()
            .and_then(|op| op.bytes().next())
            .ok_or_else(damaged)?;
        let fields: Vec<&str> = fields.collect();
        let (old, new) = fields.split_at_checked(width).ok_or_else(damaged)?;
        // Of a row that the restore made there is only what it was made to.
        let values = if op == b'I' { new } else { old };
        let values = values.iter().map(|text| unescaped(text)).collect();
        found.push(Line { op, values });
    }
    Ok(found)
}

/// A value from COPY's text format (PostgreSQL documentation, COPY, "Text Format").
fn unescaped(text: &str) -> Option<String> {
    if text == "\\N" {
        return None;
    }
    let mut value = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            value.push(letter);
            continue;
        }
        value.extend(letters.next().map(|letter| match letter {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            other => other,
        }));
    }
    Some(value)
}

fn places(table: &slice::SliceTable, columns: &[String]) -> Option<Vec<usize>> {
    columns.iter().map(|name| table.place_of(name)).collect()
}

fn values(line: &Line, places: &[usize]) -> Option<Vec<String>> {
    let of = |place: &usize| line.values.get(*place).cloned().flatten();
    places.iter().map(of).collect()
}

/// Lines of the rows that the entry names.
fn named(
    set: &ChangeSet,
    folder: &Path,
    part: &ErasedDatabase,
    left_out: &mut LeftOut,
) -> Result<(), TenantError> {
    for erased in &part.tables {
        let ErasedRows::Keys { columns, keys } = &erased.rows else {
            continue;
        };
        let changes = set.tables.iter().find(|it| it.slice.table == erased.table);
        let Some(changes) = changes.filter(|changes| changes.counts.total() > 0) else {
            continue;
        };
        let places = places(&changes.slice, columns).ok_or_else(|| {
            TenantError::Refused(vec![format!(
                "what was erased of {} cannot be told apart: the stored rows have no {}",
                erased.table,
                columns.join(", ")
            )])
        })?;
        let keys: HashSet<&Vec<String>> = keys.iter().collect();
        for (number, line) in lines(changes, folder)?.iter().enumerate() {
            if values(line, &places).is_some_and(|key| keys.contains(&key)) {
                left_out
                    .entry(erased.table.clone())
                    .or_default()
                    .insert(number);
            }
        }
    }
    Ok(())
}

/// Lines of rows that belong to rows whose lines are left out, until there are no more.
fn belonging(
    set: &ChangeSet,
    folder: &Path,
    steps: &[Step],
    left_out: &mut LeftOut,
) -> Result<(), TenantError> {
    let of = |name: &TableName| set.tables.iter().find(|it| it.slice.table == *name);
    let count = |left_out: &LeftOut| left_out.values().map(BTreeSet::len).sum::<usize>();
    loop {
        let before = count(left_out);
        for step in steps {
            let (Some(child), Some(parent), Some(gone)) = (
                of(&step.child),
                of(&step.parent),
                left_out.get(&step.parent),
            ) else {
                continue;
            };
            let (Some(child_places), Some(parent_places)) = (
                places(&child.slice, &step.columns),
                places(&parent.slice, &step.parent_columns),
            ) else {
                continue;
            };
            let parents = lines(parent, folder)?;
            let gone: HashSet<Vec<String>> = gone
                .iter()
                .filter_map(|number| values(parents.get(*number)?, &parent_places))
                .collect();
            for (number, line) in lines(child, folder)?.iter().enumerate() {
                let is_meant = step.only.as_ref().is_none_or(|(column, value)| {
                    let place = child.slice.place_of(column);
                    place.is_some_and(|place| {
                        line.values.get(place).cloned().flatten().as_ref() == Some(value)
                    })
                });
                if is_meant && values(line, &child_places).is_some_and(|key| gone.contains(&key)) {
                    left_out
                        .entry(step.child.clone())
                        .or_default()
                        .insert(number);
                }
            }
        }
        if count(left_out) == before {
            return Ok(());
        }
    }
}

fn steps(catalog: &CatalogRows, entry: &Erasure, part: &ErasedDatabase) -> Vec<Step> {
    let name_of = |oid| {
        let relation = catalog.relation(catalog.root_of(oid));
        relation.map(|relation| relation.name.clone())
    };
    let keys = catalog.foreign_keys.iter();
    let keys = keys.filter(|key| key.cascade || entry.dependents);
    let mut steps: Vec<Step> = keys
        .filter_map(|key| {
            Some(Step {
                child: name_of(key.child)?,
                columns: key.columns.clone(),
                parent: name_of(key.parent)?,
                parent_columns: key.parent_columns.clone(),
                only: None,
            })
        })
        .collect();
    steps.extend(part.links.iter().map(|link: &ErasedLink| Step {
        child: link.child.clone(),
        columns: link.columns.clone(),
        parent: link.parent.clone(),
        parent_columns: link.parent_columns.clone(),
        only: link.only.clone(),
    }));
    steps
}

/// Writes a table's file anew without these lines, and counts what is left.
fn rewrite(
    changes: &mut TableChanges,
    folder: &Path,
    left_out: &BTreeSet<usize>,
) -> Result<(), TenantError> {
    let path = folder.join(changes.file());
    let kept = path.with_extension("kept");
    let before = changes.counts.delete;
    let mut counts = Counts::default();
    for (number, line) in lines(changes, folder)?.iter().enumerate() {
        if left_out.contains(&number) {
            continue;
        }
        match line.op {
            b'I' => counts.insert += 1,
            b'D' => counts.delete += 1,
            b'R' => counts.replace += 1,
            _ => counts.update += 1,
        }
    }
    let file = std::fs::File::open(&path).map_err(TenantError::file("open", &path))?;
    let new = std::fs::File::create(&kept).map_err(TenantError::file("create", &kept))?;
    let mut new = BufWriter::new(new);
    for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
        let line = line.map_err(TenantError::file("read", &path))?;
        if !left_out.contains(&number) {
            let written = new.write_all(&line).and_then(|()| new.write_all(b"\n"));
            written.map_err(TenantError::file("write", &kept))?;
        }
    }
    new.flush().map_err(TenantError::file("write", &kept))?;
    std::fs::rename(&kept, &path).map_err(TenantError::file("rename", &kept))?;
    // The tenant had them before the restore, and will not after the undo.
    changes.rows_before = changes.rows_before.saturating_sub(before - counts.delete);
    changes.counts = counts;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn values_are_read_as_copy_wrote_them() {
        for (text, value) in [
            ("plain", Some("plain")),
            ("\\N", None),
            ("", Some("")),
            ("a\\tb\\\\c\\n", Some("a\tb\\c\n")),
        ] {
            assert_eq!(unescaped(text).as_deref(), value, "{text}");
        }
    }
}

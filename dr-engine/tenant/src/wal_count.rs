//! The transaction as its write-ahead log tells it: a second witness beside PostgreSQL's counters, read
//! after the commit by PostgreSQL's own `pg_waldump` from the live data directory.
//!
//! Counted are the heap records of the transaction by file; files are named by the server
//! (`pg_filenode_relation`). System catalogs are left out: temporary tables leave records there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use dr_model::{Lsn, Timeline};
use dr_sources::instance::{RunAs, command};
use sqlx::postgres::PgConnection;

use crate::catalog::{CatalogRows, Oid};
use crate::proof::Counters;
use crate::report::{ProofLine, ProofOutcome};
use crate::{TenantError, sql};

/// Where the transaction's records are.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    pub(crate) data_directory: PathBuf,
    pub(crate) bin_directory: PathBuf,
    pub(crate) timeline: Timeline,
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
}

const WHAT: &str = "the WAL of the transaction holds the planned rows and no others";

pub(crate) fn line(outcome: ProofOutcome, detail: impl Into<String>) -> ProofLine {
    ProofLine {
        what: WHAT.to_owned(),
        outcome,
        detail: detail.into(),
    }
}

/// Counts and compares; what stands in the way of measuring is part of the line, never an error.
pub(crate) async fn agree(
    live: &mut PgConnection,
    rows: &CatalogRows,
    stretch: Stretch,
    xid: u64,
    counted: &Counters,
) -> ProofLine {
    let read = tokio::task::spawn_blocking(move || dump(&stretch, xid)).await;
    let text = match read {
        Ok(Ok(text)) => text,
        Ok(Err(why)) => return line(ProofOutcome::NotMeasured, why),
        Err(_) => {
            return line(
                ProofOutcome::NotMeasured,
                "the reader ended without an answer",
            );
        }
    };
    match compare(live, rows, &text, counted).await {
        Ok(found) => found,
        Err(error) => line(ProofOutcome::NotMeasured, error.to_string()),
    }
}

fn dump(stretch: &Stretch, xid: u64) -> Result<String, String> {
    let user = RunAs::owner_of(&stretch.data_directory).map_err(|error| error.to_string())?;
    let program: &Path = &stretch.bin_directory.join("pg_waldump");
    // The log knows a transaction by the lower half of its id.
    let output = command(user.as_ref(), program)
        .arg(format!(
            "--path={}",
            stretch.data_directory.join("pg_wal").display()
        ))
        .arg(format!("--timeline={}", stretch.timeline))
        .arg(format!("--start={}", stretch.from))
        .arg(format!("--end={}", stretch.to))
        .arg(format!("--xid={}", xid & 0xFFFF_FFFF))
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// A file of a relation: tablespace and file number.
type FileNode = (Oid, Oid);

/// Rows by file, and whether the commit names subtransactions.
fn count(text: &str) -> (BTreeMap<FileNode, [u64; 3]>, bool, bool) {
    let mut files: BTreeMap<FileNode, [u64; 3]> = BTreeMap::new();
    let (mut committed, mut subtransactions) = (false, false);
    for record in text.lines() {
        let Some(rest) = record.split("rmgr: ").nth(1) else {
            continue;
        };
        let manager = rest.split_ascii_whitespace().next().unwrap_or_default();
        let description = rest.split("desc: ").nth(1).unwrap_or_default();
        let kind = description
            .split(|c: char| c.is_ascii_whitespace() || c == '+')
            .next()
            .unwrap_or_default();
        if manager == "Transaction" {
            committed |= kind == "COMMIT";
            subtransactions |= description.contains("subxacts");
        }
        let (place, rows) = match (manager, kind) {
            ("Heap", "INSERT") => (0, 1),
            ("Heap2", "MULTI_INSERT") => (0, tuples(description)),
            ("Heap", "UPDATE" | "HOT_UPDATE") => (1, 1),
            ("Heap", "DELETE") => (2, 1),
            _ => continue,
        };
        if let Some(file) = file_node(description)
            && let Some(total) = files.entry(file).or_default().get_mut(place)
        {
            *total += rows;
        }
    }
    (files, committed, subtransactions)
}

/// `MULTI_INSERT+INIT 3 tuples flags …` (15), `ntuples: 3, flags …` (16 and later).
fn tuples(description: &str) -> u64 {
    let words: Vec<&str> = description
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words
        .windows(2)
        .find_map(|pair| match pair {
            [number, "tuples"] | ["ntuples", number] => number.parse().ok(),
            _ => None,
        })
        .unwrap_or(1)
}

/// The first `rel tablespace/database/file` of a record.
fn file_node(description: &str) -> Option<FileNode> {
    let path = description
        .split("rel ")
        .nth(1)?
        .split_ascii_whitespace()
        .next()?;
    let mut parts = path.trim_end_matches(',').split('/').map(str::parse::<Oid>);
    let tablespace = parts.next()?.ok()?;
    let file = parts.nth(1)?.ok()?;
    Some((tablespace, file))
}

async fn compare(
    live: &mut PgConnection,
    rows: &CatalogRows,
    text: &str,
    counted: &Counters,
) -> Result<ProofLine, TenantError> {
    let (files, committed, subtransactions) = count(text);
    if !committed {
        return Ok(line(
            ProofOutcome::NotMeasured,
            "its commit was not found in that stretch of WAL",
        ));
    }
    if subtransactions {
        return Ok(line(
            ProofOutcome::Differs,
            "the commit names subtransactions, and there should be none",
        ));
    }
    let mut seen: Counters = BTreeMap::new();
    for ((tablespace, file), counts) in &files {
        // The default tablespace is written as 0 in pg_class; the function takes both.
        let query = format!(
            "select coalesce((select c.oid::int8 from pg_class c where c.oid = \
             pg_filenode_relation({tablespace}, {file}) and c.relkind in ('r', 'm') \
             and c.relnamespace not in (select oid from pg_namespace where nspname in \
               ('pg_catalog', 'information_schema', 'pg_toast')) and c.relpersistence <> 't'), 0)"
        );
        let oid: i64 = sql::value(live, &query, "naming a file of the WAL").await?;
        if let Ok(oid) = Oid::try_from(oid)
            && oid != 0
        {
            seen.insert(oid, *counts);
        }
    }
    let total: u64 = seen.values().flatten().sum();
    if seen == *counted {
        return Ok(line(
            ProofOutcome::Agrees,
            format!("{total} row changes in {} tables", seen.len()),
        ));
    }
    let names = rows.names();
    let differing: Vec<String> = seen
        .keys()
        .chain(counted.keys())
        .filter(|oid| seen.get(oid) != counted.get(oid))
        .map(|oid| {
            format!(
                "{}: {:?} in the WAL, {:?} counted",
                names.get(oid).cloned().unwrap_or_else(|| oid.to_string()),
                seen.get(oid).copied().unwrap_or_default(),
                counted.get(oid).copied().unwrap_or_default()
            )
        })
        .collect();
    Ok(line(ProofOutcome::Differs, differing.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_records_are_counted_by_file() {
        let text = "\
rmgr: Heap        len (rec/tot):     59/   159, tx:        742, lsn: 0/01A2, prev 0/01A1, desc: INSERT+INIT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap2       len (rec/tot):     59/   159, tx:        742, lsn: 0/01A2, prev 0/01A1, desc: MULTI_INSERT 3 tuples flags 0x02, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     59/   159, tx:        742, lsn: 0/01A2, prev 0/01A1, desc: HOT_UPDATE off 1 xmax 742 flags 0x00 ; new off 2 xmax 0, blkref #0: rel 1663/5/16385 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        742, lsn: 0/01A2, prev 0/01A1, desc: LOCK off 1: xid 742: flags 0x00 LOCK_ONLY, blkref #0: rel 1663/5/16385 blk 0
rmgr: Heap        len (rec/tot):     54/    54, tx:        742, lsn: 0/01A2, prev 0/01A1, desc: DELETE off 9 flags 0x00 KEYS_UPDATED , blkref #0: rel 1663/5/16385 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        742, lsn: 0/01A2, prev 0/01A1, desc: COMMIT 2026-11-23 14:03:21.5 UTC
";
        let (files, committed, subtransactions) = count(text);
        assert!(committed && !subtransactions);
        assert_eq!(files.get(&(1663, 16384)), Some(&[4, 0, 0]));
        assert_eq!(files.get(&(1663, 16385)), Some(&[0, 1, 1]));
    }
}

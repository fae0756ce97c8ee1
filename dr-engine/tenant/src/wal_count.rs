//! The transaction as its write-ahead log tells it: a second witness beside PostgreSQL's counters, read
//! after the commit by PostgreSQL's own `pg_waldump` from the live data directory.
//!
//! Counted are the heap records of the transaction by file; files are named by the server
//! (`pg_filenode_relation`). System catalogs are left out: temporary tables leave records there.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
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

/// Bytes of its complaints that are kept.
const SAID_MAX: u64 = 4096;

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
    let seen = match read {
        Ok(Ok(seen)) => seen,
        Ok(Err(why)) => return line(ProofOutcome::NotMeasured, why),
        Err(_) => {
            return line(
                ProofOutcome::NotMeasured,
                "the reader ended without an answer",
            );
        }
    };
    match compare(live, rows, &seen, counted).await {
        Ok(found) => found,
        Err(error) => line(ProofOutcome::NotMeasured, error.to_string()),
    }
}

/// What the log holds of the transaction. A large restore has millions of records: they are counted as they come.
fn dump(stretch: &Stretch, xid: u64) -> Result<Seen, String> {
    let user = RunAs::owner_of(&stretch.data_directory).map_err(|error| error.to_string())?;
    let program: &Path = &stretch.bin_directory.join("pg_waldump");
    // The log knows a transaction by the lower half of its id.
    let mut child = command(user.as_ref(), program)
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
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
    let complaints = child.stderr.take();
    // Beside the records: a program that nobody listens to waits.
    let complaints = std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut complaints) = complaints {
            complaints.by_ref().take(SAID_MAX).read_to_end(&mut said)?;
            io::copy(&mut complaints, &mut io::sink())?;
        }
        Ok::<_, io::Error>(String::from_utf8_lossy(&said).trim().to_owned())
    });
    let mut seen = Seen::default();
    let read = child.stdout.take().map_or(Ok(()), |records| {
        BufReader::new(records)
            .lines()
            .try_for_each(|record| record.map(|record| seen.take(&record)))
    });
    if read.is_err() {
        // It may have more to say than anybody reads; that it has ended already is as good.
        let _ended = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let said = complaints
        .join()
        .map_err(|_| "the reader of its complaints failed".to_owned())?;
    read.and(
        said.as_ref()
            .map(|_| ())
            .map_err(|error| error.kind().into()),
    )
    .map_err(|error| format!("reading what {} says: {error}", program.display()))?;
    match status.success() {
        true => Ok(seen),
        false => Err(said.unwrap_or_default()),
    }
}

/// A file of a relation: tablespace and file number.
type FileNode = (Oid, Oid);

/// What was read of a transaction.
#[derive(Debug, Default)]
struct Seen {
    /// Rows inserted, updated and deleted.
    files: BTreeMap<FileNode, [u64; 3]>,
    committed: bool,
    /// The commit names subtransactions.
    subtransactions: bool,
}

impl Seen {
    /// Takes in a record, as `pg_waldump` prints it.
    fn take(&mut self, record: &str) {
        let Some(rest) = record.split("rmgr: ").nth(1) else {
            return;
        };
        let manager = rest.split_ascii_whitespace().next().unwrap_or_default();
        let description = rest.split("desc: ").nth(1).unwrap_or_default();
        let kind = description
            .split(|c: char| c.is_ascii_whitespace() || c == '+')
            .next()
            .unwrap_or_default();
        if manager == "Transaction" {
            self.committed |= kind == "COMMIT";
            self.subtransactions |= description.contains("subxacts");
        }
        let (place, rows) = match (manager, kind) {
            ("Heap", "INSERT") => (0, 1),
            ("Heap2", "MULTI_INSERT") => (0, tuples(description)),
            ("Heap", "UPDATE" | "HOT_UPDATE") => (1, 1),
            ("Heap", "DELETE") => (2, 1),
            _ => return,
        };
        if let Some(file) = file_node(description)
            && let Some(total) = self.files.entry(file).or_default().get_mut(place)
        {
            *total += rows;
        }
    }
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
    seen_by_file: &Seen,
    counted: &Counters,
) -> Result<ProofLine, TenantError> {
    if !seen_by_file.committed {
        return Ok(line(
            ProofOutcome::NotMeasured,
            "its commit was not found in that stretch of WAL",
        ));
    }
    if seen_by_file.subtransactions {
        return Ok(line(
            ProofOutcome::Differs,
            "the commit names subtransactions, and there should be none",
        ));
    }
    let mut seen: Counters = BTreeMap::new();
    for ((tablespace, file), counts) in &seen_by_file.files {
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
        let mut seen = Seen::default();
        text.lines().for_each(|record| seen.take(record));
        assert!(seen.committed && !seen.subtransactions);
        assert_eq!(seen.files.get(&(1663, 16384)), Some(&[4, 0, 0]));
        assert_eq!(seen.files.get(&(1663, 16385)), Some(&[0, 1, 1]));
    }
}

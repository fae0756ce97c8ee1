//! What is told of a window.

use std::fmt;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Target, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::Tenant;

/// The transactions that touched one tenant's rows in a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineReport {
    /// Version of this structure.
    pub version: u32,
    /// The workload.
    pub workload: WorkloadName,
    /// The database.
    pub database: String,
    /// Whose rows.
    pub tenant: Tenant,
    /// The beginning of the window.
    pub from: DateTime<Utc>,
    /// Its end.
    pub to: DateTime<Utc>,
    /// Where in the log the state of the beginning is.
    pub begin: Lsn,
    /// Where the last commit ended that was looked at.
    pub end: Option<Lsn>,
    /// The tenant's rows at the beginning.
    pub rows: u64,
    /// In this many tables.
    pub tables: u64,
    /// In the order of their commits.
    pub transactions: Vec<TimelineTransaction>,
    /// What could not be attributed to anybody.
    pub unattributed: Unattributed,
    /// What is to be known of it, a sentence each.
    pub notes: Vec<String>,
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineTransaction {
    /// Its number; of 64 bits the lower half, as the log has it.
    pub xid: u32,
    /// When it was committed, by the server's clock then.
    pub at: DateTime<Utc>,
    /// Where the record of that begins.
    pub lsn: Lsn,
    /// The moment before it, as a target.
    pub before: Target,
    /// What it did, by table.
    pub tables: Vec<TableTouched>,
    /// The tenant's rows that went with it: deleted, or with a file.
    pub removed: u64,
    /// The tenant's rows before it.
    pub rows_before: u64,
    /// Whether none removed more.
    pub removed_most: bool,
    /// It began before the WAL that was read: rows that it wrote before are not in here.
    pub began_before: bool,
}

/// What a transaction did in one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableTouched {
    /// `schema.table`.
    pub table: String,
    /// To the tenant's rows.
    #[serde(flatten)]
    pub rows: Touched,
    /// To rows of which it is not known whose they are.
    #[serde(default, skip_serializing_if = "Touched::is_nothing")]
    pub owner_not_known: Touched,
    /// Files of the table that went with the transaction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<LostRows>,
}

/// Rows by what was done to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Touched {
    /// Rows inserted.
    pub insert: u64,
    /// Rows updated.
    pub update: u64,
    /// Rows deleted.
    pub delete: u64,
}

impl Touched {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.insert + self.update + self.delete
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.total() == 0
    }
}

/// What became of a table's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostFile {
    /// The table was emptied (`TRUNCATE`).
    Emptied,
    /// The table has another file with rows in it (`VACUUM FULL`, `CLUSTER`, some kinds of `ALTER TABLE`, or
    /// emptied and filled again). Whether they are the same rows is not told.
    Rewritten,
    /// Dropped, or emptied or rewritten and that again since.
    Gone,
}

/// The tenant's rows in a file that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRows {
    /// What became of the file.
    pub file: LostFile,
    /// What was in it.
    pub before: HeldRows,
    /// What the same transaction put into the file in its place; nothing where that is not known.
    pub after: Option<HeldRows>,
}

impl LostRows {
    /// The tenant's rows that went with it, as far as that is known.
    #[must_use]
    pub fn removed(&self) -> u64 {
        match (self.file, &self.after) {
            (LostFile::Emptied | LostFile::Gone, _) => self.before.rows,
            (LostFile::Rewritten, Some(after)) => self.before.rows.saturating_sub(after.rows),
            (LostFile::Rewritten, None) => 0,
        }
    }

    pub(super) fn gained(&self) -> u64 {
        let after = self.after.map_or(0, |after| after.rows);
        after.saturating_sub(self.before.rows)
    }

    /// Whether rows of the tenant were in it, or are in the one in its place.
    #[must_use]
    pub fn is_the_tenants(&self) -> bool {
        self.before.rows > 0 || self.after.is_some_and(|after| after.rows > 0)
    }
}

/// Rows in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRows {
    /// The tenant's.
    pub rows: u64,
    /// Those of which it is not known whose they are.
    pub owner_not_known: u64,
}

impl fmt::Display for HeldRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the tenant", counted(self.rows, "row"))?;
        match self.owner_not_known {
            0 => Ok(()),
            open => write!(f, " and {open} of which it is not known"),
        }
    }
}

/// What could not be attributed to anybody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unattributed {
    /// Rows of tenants' tables of which it is not known whose they are, in transactions that are in no list
    /// above.
    pub rows: u64,
    /// These transactions.
    pub transactions: Vec<TimelineTransaction>,
    /// Rows in files of tables that there are not any more, and were not at the beginning.
    pub rows_elsewhere: u64,
}

fn time(at: &DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// A word as a shell takes it.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:@/+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

impl TimelineReport {
    /// What to type to put the tenant back to just before a transaction.
    #[must_use]
    pub fn restore_command(&self, transaction: &TimelineTransaction) -> String {
        format!(
            "dr tenant restore {} --to {}",
            shell_word(&self.tenant.name),
            transaction.before
        )
    }
}

impl fmt::Display for TimelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "tenant {} (id {}) of workload {}, {} to {}",
            self.tenant.name,
            self.tenant.id,
            self.workload,
            time(&self.from),
            time(&self.to)
        )?;
        writeln!(
            f,
            "{} rows in {} tables at the beginning (LSN {}); {} touched them",
            self.rows,
            self.tables,
            self.begin,
            counted(self.transactions.len() as u64, "transaction")
        )?;
        if !self.transactions.is_empty() {
            writeln!(f)?;
            fmt_transactions(&self.transactions, f)?;
        }
        let most = self.transactions.iter().filter(|it| it.removed_most);
        for transaction in most {
            writeln!(
                f,
                "\n* none removed more than {}: {} of the tenant's {} rows. To just before it:\n  {}",
                transaction.xid,
                transaction.removed,
                transaction.rows_before,
                self.restore_command(transaction)
            )?;
        }
        if !self.transactions.is_empty() && self.transactions.iter().all(|it| !it.removed_most) {
            let tenant = shell_word(&self.tenant.name);
            writeln!(
                f,
                "\nnone removed rows of the tenant. To just before one of them:\n  \
                 dr tenant restore {tenant} --to before:XID"
            )?;
        }
        self.fmt_unattributed(f)?;
        for note in &self.notes {
            writeln!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}

impl TimelineReport {
    fn fmt_unattributed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unattributed {
            rows,
            transactions,
            rows_elsewhere,
        } = &self.unattributed;
        if *rows > 0 {
            writeln!(
                f,
                "\nnot attributed: {} in {}, of which it is not known whose they are (--json lists \
                 them): made and gone again within the window, or changed since",
                counted(*rows, "row"),
                counted(transactions.len() as u64, "further transaction")
            )?;
        }
        if *rows_elsewhere > 0 {
            writeln!(
                f,
                "\nnot attributed: {} in files that are no table's, neither at the beginning nor now",
                counted(*rows_elsewhere, "row")
            )?;
        }
        Ok(())
    }
}

/// `1 row`, `2 rows`.
fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn fmt_transactions(
    transactions: &[TimelineTransaction],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let tables = transactions.iter().flat_map(|it| &it.tables);
    let width = tables.map(|it| it.table.len()).max().unwrap_or(5).max(5);
    writeln!(
        f,
        "  {:<24}  {:>10}  {:<12}  {:<width$}  {:>8}  {:>8}  {:>8}",
        "time", "xid", "lsn", "table", "insert", "update", "delete"
    )?;
    for transaction in transactions {
        let mut mark = if transaction.removed_most { "*" } else { " " };
        let mut head = [
            time(&transaction.at),
            transaction.xid.to_string(),
            transaction.lsn.to_string(),
        ];
        for touched in &transaction.tables {
            let [at, xid, lsn] = std::mem::take(&mut head);
            writeln!(
                f,
                "{mark} {at:<24}  {xid:>10}  {lsn:<12}  {:<width$}  {:>8}  {:>8}  {:>8}",
                touched.table, touched.rows.insert, touched.rows.update, touched.rows.delete
            )?;
            mark = " ";
            fmt_further(touched, f)?;
        }
        if transaction.began_before {
            writeln!(
                f,
                "    it began before the WAL that was read: what it wrote before is not counted"
            )?;
        }
    }
    Ok(())
}

/// What stands below a table's line.
fn fmt_further(touched: &TableTouched, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for lost in &touched.files {
        let how = match lost.file {
            LostFile::Emptied => "emptied",
            LostFile::Rewritten => "rewritten, or emptied and filled again",
            LostFile::Gone => "dropped, or emptied or rewritten and that again since",
        };
        write!(f, "    {} {how}: before {}", touched.table, lost.before)?;
        match (lost.file, &lost.after) {
            (LostFile::Rewritten, Some(after)) => writeln!(f, ", then {after}")?,
            (LostFile::Rewritten, None) => writeln!(f, ", then not known")?,
            _ => writeln!(f)?,
        }
    }
    let open = &touched.owner_not_known;
    if !open.is_nothing() {
        writeln!(
            f,
            "    {} and of rows whose owner is not known {} inserted, {} updated, {} deleted",
            touched.table, open.insert, open.update, open.delete
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_name_is_one_word_for_a_shell() {
        assert_eq!(shell_word("acme"), "acme");
        assert_eq!(shell_word("id:7"), "id:7");
        assert_eq!(shell_word("Müller & Sons' $1"), "'Müller & Sons'\\'' $1'");
    }
}

//! What goes into a walk, and what comes out of it.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use dr_model::Lsn;
use dr_wal::{Relation, RowPlace};

use super::content::Content;

/// A row's number; all rows that are known to be the tenant's have the same.
pub(super) type RowNumber = u32;
pub(super) const OURS: RowNumber = 0;

/// How the rows of a file are told to be the tenant's.
#[derive(Debug, Clone)]
pub(super) enum How {
    /// All of them are.
    Whole,
    /// By their places, and by what they hold where that is understood.
    Placed(Content),
}

/// A file of a table that holds rows of tenants.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) relation: Relation,
    /// The table or partition whose it is.
    pub(super) oid: u32,
    /// The number of the table in the map.
    pub(super) table: usize,
    /// Steps to the table with the tenant column.
    pub(super) depth: usize,
    pub(super) how: How,
    /// It was there at the beginning.
    pub(super) existed: bool,
}

/// What was done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Done {
    Inserted,
    Updated,
    Deleted,
}

/// Rows of a table, by what was done to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
}

impl Counts {
    pub(super) fn add(&mut self, done: Done, rows: u64) {
        let count = match done {
            Done::Inserted => &mut self.inserted,
            Done::Updated => &mut self.updated,
            Done::Deleted => &mut self.deleted,
        };
        *count += rows;
    }
}

/// What became of a file that went with a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The table has an empty one in its place.
    Emptied,
    /// The table has another one in its place, and rows in it.
    Rewritten,
    /// What came in its place is not known, if anything did.
    Gone,
}

/// A file that went with a transaction.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) table: usize,
    pub(super) fate: Fate,
    /// What was in it.
    pub(super) before: Held,
    /// What the same transaction put into the file in its place; `None` where not all of that was seen.
    pub(super) after: Option<Held>,
    pub(super) next: Option<u32>,
}

/// Rows in a file.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Of the tenant.
    pub(super) rows: u64,
    /// Of which it has to be found out.
    pub(super) open: Vec<RowNumber>,
}

impl Held {
    pub(super) fn is_nothing(&self) -> bool {
        self.rows == 0 && self.open.is_empty()
    }
}

/// What a transaction did.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) xid: u32,
    pub(super) at: DateTime<Utc>,
    pub(super) lsn: Lsn,
    pub(super) tables: BTreeMap<usize, Counts>,
    /// To rows of which it has to be found out whose they are.
    pub(super) open: Vec<(usize, Done, RowNumber)>,
    pub(super) lost: Vec<Lost>,
    /// Rows in files of no table that is known.
    pub(super) elsewhere: u64,
    /// It began before what was read: there may be more.
    pub(super) began_before: bool,
}

/// What is looked for at the end: the version of a row that a transaction wrote at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) row: RowNumber,
    pub(super) place: RowPlace,
    pub(super) writer: u32,
}

/// What is walked through.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    pub(super) files: Vec<File>,
    /// Files of everything else that is known.
    pub(super) others: HashSet<Relation>,
    /// Of each set of columns that is referred to, whether all of its table's files can be read.
    pub(super) spaces: Vec<bool>,
    /// The database.
    pub(super) database: u32,
    /// The state of the places is the one here; what commits from here on is told.
    pub(super) begin: Lsn,
    /// The first later commit ends the walk, as it would end a recovery to this time.
    pub(super) until: DateTime<Utc>,
}

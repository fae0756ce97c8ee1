//! What a stretch of WAL says in short: which blocks changed, which transactions ended, and how many
//! rows they wrote in which relations.
//!
//! Blocks are named by relation file and fork. Beside the blocks that records refer to there is what has
//! no such reference: a relation that is made, truncated or dropped, a database that is copied.
//!
//! What a summary does not tell, and whoever copies changed blocks must read whole or know by itself: the
//! free space map and the visibility map (the log tells of them in part only); unlogged relations, which
//! are not logged; hint bits, unless checksums or `wal_log_hints` are on; files that are no relations
//! (transaction status, relation maps); that a file became longer.
//!
//! A summary is only as good as the log it was made from. Records of a resource manager that is not
//! known, and `wal_level = minimal` as far as the log tells of it, are [`Summary::doubts`]: with any, it
//! must not be relied on for what changed. A log that never names its level says nothing about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dr_model::Lsn;

use crate::bytes::Fields;
use crate::record::{Fork, Manager, Record, Relation};
use crate::transaction::{Ended, Outcome};

/// `XLR_INFO_MASK`: the low four bits of a record's info are the WAL's own.
const INFO_MASK: u8 = 0xF0;
/// `XLR_SPECIAL_REL_UPDATE`: it changes files of relations beside the blocks that it names.
const SPECIAL: u8 = 0x01;
const HEAP_KIND_MASK: u8 = 0x70;
const HEAP_INSERT: u8 = 0x00;
const HEAP_DELETE: u8 = 0x10;
const HEAP_UPDATE: u8 = 0x20;
const HEAP_HOT_UPDATE: u8 = 0x40;
const HEAP2_MULTI_INSERT: u8 = 0x50;
const STORAGE_CREATE: u8 = 0x10;
const STORAGE_TRUNCATE: u8 = 0x20;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
/// Where `wal_level` is in `xl_parameter_change`, behind five numbers.
const WAL_LEVEL_OFFSET: usize = 20;
/// `SMGR_TRUNCATE_HEAP`.
const TRUNCATES_MAIN: u32 = 0x0001;

/// Rows written by a transaction in one relation, as the log tells: an insert that was given up for a
/// conflict (`ON CONFLICT`) counts as inserted and as deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Rows inserted.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
}

impl Change {
    fn add(&mut self, other: &Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

/// Rows by relation.
pub type Changes = BTreeMap<Relation, Change>;

/// A transaction that ended, with what it wrote since the summary began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// How and when it ended.
    pub ended: Ended,
    /// What it and its subtransactions wrote, aborted subtransactions left out.
    pub changes: Changes,
}

/// What changed in one fork of a relation file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForkChanges {
    /// The file was made, or cut to this many blocks: everything from here on is new.
    pub new_from: Option<u32>,
    /// Blocks that may have changed.
    pub blocks: BTreeSet<u32>,
}

/// A stretch of WAL in short. Records are added in their order.
#[derive(Debug, Default)]
pub struct Summary {
    /// Where the first record began.
    pub begin: Option<Lsn>,
    /// Where the last one ended.
    pub end: Option<Lsn>,
    /// What changed, by relation file and fork.
    pub forks: BTreeMap<(Relation, Fork), ForkChanges>,
    /// Databases (tablespace, database) that were made or dropped: all of their files are new.
    pub databases: BTreeSet<(u32, u32)>,
    /// Transactions that ended, in the order of the log: not in that of their times.
    pub transactions: Vec<Transaction>,
    /// Why what changed is not all here.
    pub doubts: BTreeSet<String>,
    /// `wal_level` as the log last told it; 0 is minimal.
    wal_level: Option<u32>,
    /// What transactions wrote that have not ended.
    open: HashMap<u32, Changes>,
}

impl Summary {
    /// How many changed blocks it names.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.forks.values().map(|fork| fork.blocks.len()).sum()
    }

    /// Adds what a record says.
    ///
    /// # Errors
    /// When it is of a known kind and cannot be understood.
    pub fn add(&mut self, record: &Record<'_>, major: u32) -> Result<(), &'static str> {
        self.begin.get_or_insert(record.lsn);
        self.end = Some(record.end);
        if record.manager.name().is_none() {
            let who = format!("records of resource manager {}", record.manager.0);
            self.doubts.insert(who);
        }
        let is_told = matches!(
            record.manager,
            Manager::STORAGE | Manager::DATABASE | Manager::TRANSACTION
        );
        if record.info & SPECIAL != 0 && !is_told {
            let who = format!("a record of manager {} changes files", record.manager.0);
            self.doubts.insert(who);
        }
        let told = |fork| matches!(fork, Fork::Main | Fork::Init);
        for block in record.blocks.iter().filter(|block| told(block.fork)) {
            let fork = self.forks.entry((block.relation, block.fork)).or_default();
            // What lies behind is new anyway.
            if fork.new_from.is_none_or(|new_from| block.number < new_from) {
                fork.blocks.insert(block.number);
            }
        }
        match record.manager {
            Manager::HEAP | Manager::HEAP2 => self.rows(record),
            Manager::STORAGE => self
                .storage(record)
                .ok_or("a relation's record is cut short"),
            Manager::DATABASE => self
                .database(record, major)
                .ok_or("a database's record is cut short"),
            Manager::XLOG => self.parameters(record),
            Manager::TRANSACTION => self.transaction(record, major),
            _ => Ok(()),
        }
    }

    fn rows(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        let kind = record.info & HEAP_KIND_MASK;
        let mut change = Change::default();
        match (record.manager, kind) {
            (Manager::HEAP, HEAP_INSERT) => change.inserted = 1,
            (Manager::HEAP, HEAP_DELETE) => change.deleted = 1,
            (Manager::HEAP, HEAP_UPDATE | HEAP_HOT_UPDATE) => change.updated = 1,
            (Manager::HEAP2, HEAP2_MULTI_INSERT) => {
                let mut fields = Fields::of(record.data);
                // Flags and a byte that aligns come first.
                let count = fields.u16().and_then(|_| fields.u16());
                change.inserted = u64::from(count.ok_or("an insert of rows is cut short")?);
            }
            _ => return Ok(()),
        }
        // The first block is that of the row, or of its new version.
        let block = record.blocks.first().ok_or("a row's record has no block")?;
        let of = self.open.entry(record.xid).or_default();
        of.entry(block.relation).or_default().add(&change);
        Ok(())
    }

    fn storage(&mut self, record: &Record<'_>) -> Option<()> {
        let mut fields = Fields::of(record.data);
        match record.info & INFO_MASK {
            STORAGE_CREATE => {
                let relation = Relation::read(&mut fields)?;
                let fork = u8::try_from(fields.u32()?).ok().and_then(Fork::of)?;
                if matches!(fork, Fork::Main | Fork::Init) {
                    self.new_from(relation, fork, 0);
                }
            }
            STORAGE_TRUNCATE => {
                let block = fields.u32()?;
                let relation = Relation::read(&mut fields)?;
                if fields.u32()? & TRUNCATES_MAIN != 0 {
                    self.new_from(relation, Fork::Main, block);
                }
            }
            _ => self.unknown("relations"),
        }
        Some(())
    }

    fn new_from(&mut self, relation: Relation, fork: Fork, block: u32) {
        let changes = self.forks.entry((relation, fork)).or_default();
        changes.new_from = Some(changes.new_from.map_or(block, |known| known.min(block)));
        // What lies behind is new anyway.
        changes.blocks.split_off(&block);
    }

    /// `xl_dbase_create_*_rec` and `xl_dbase_drop_rec`. Version 15 has two ways to make one, and moved
    /// the number of dropping.
    fn database(&mut self, record: &Record<'_>, major: u32) -> Option<()> {
        let mut fields = Fields::of(record.data);
        let database = fields.u32()?;
        let is_drop = match (major, record.info & INFO_MASK) {
            (_, 0x00) => false,
            (..=14, 0x10) | (15.., 0x20) => true,
            (15.., 0x10) => false,
            _ => {
                self.unknown("databases");
                return Some(());
            }
        };
        let tablespaces = if is_drop { fields.u32()? } else { 1 };
        for _ in 0..tablespaces {
            self.databases.insert((fields.u32()?, database));
        }
        Some(())
    }

    fn unknown(&mut self, of: &str) {
        let what = format!("a record of {of} of a kind that is not known");
        self.doubts.insert(what);
    }

    fn parameters(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        if record.info & INFO_MASK != XLOG_PARAMETER_CHANGE {
            return Ok(());
        }
        let level = record.data.get(WAL_LEVEL_OFFSET..);
        let level = level.and_then(|rest| Fields::of(rest).u32());
        let now = level.ok_or("a change of parameters is cut short")?;
        // What it was before the first change is not told.
        if now == 0 || self.wal_level.is_none() {
            self.doubts
                .insert("wal_level was minimal, or may have been".to_owned());
        }
        self.wal_level = Some(now);
        Ok(())
    }

    fn transaction(&mut self, record: &Record<'_>, major: u32) -> Result<(), &'static str> {
        let Some(ended) = Ended::of(record, major)? else {
            return Ok(());
        };
        for relation in &ended.dropped {
            self.new_from(*relation, Fork::Main, 0);
            self.new_from(*relation, Fork::Init, 0);
        }
        let mut changes = self.open.remove(&ended.xid).unwrap_or_default();
        for xid in &ended.subtransactions {
            for (relation, change) in self.open.remove(xid).unwrap_or_default() {
                changes.entry(relation).or_default().add(&change);
            }
        }
        if ended.outcome == Outcome::Aborted {
            changes.clear();
        }
        self.transactions.push(Transaction { ended, changes });
        Ok(())
    }
}

#[cfg(test)]
mod tests;

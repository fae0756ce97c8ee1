//! How transactions end: the records of resource manager Transaction (`access/xact.h`).

use chrono::{DateTime, TimeDelta, Utc};
use dr_model::Lsn;

use crate::bytes::Fields;
use crate::record::{Manager, Record, Relation};

const KIND_MASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const HAS_INFO: u8 = 0x80;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;

/// PostgreSQL counts microseconds from 2000-01-01 UTC.
const EPOCH_UNIX_SECONDS: i64 = 946_684_800;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// What it did counts.
    Committed,
    /// It did nothing.
    Aborted,
}

/// The end of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Where the record of it begins.
    pub lsn: Lsn,
    /// Where it ends: recovery to this position includes the transaction.
    pub end: Lsn,
    /// The transaction; of a prepared one its own, not that of the command that ended it.
    pub xid: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When, by the server's clock: what recovery to a time compares.
    pub at: DateTime<Utc>,
    /// Its subtransactions, which end with it.
    pub subtransactions: Vec<u32>,
    /// Files of relations that go with it.
    pub dropped: Vec<Relation>,
}

/// A restore point that somebody named (`pg_create_restore_point`, `xl_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPoint {
    /// When, by the server's clock.
    pub at: DateTime<Utc>,
    /// Its name.
    pub name: String,
}

/// Transactions that were under way, as a checkpoint tells (`xl_running_xacts`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// They, and those of their subtransactions that the server still had in mind.
    pub xids: Vec<u32>,
}

/// `XLOG_RUNNING_XACTS` of resource manager Standby.
const RUNNING: u8 = 0x10;

impl Running {
    /// What a record says of running transactions; `None` when it is of another kind.
    ///
    /// # Errors
    /// When it is of this kind and cannot be understood.
    pub fn of(record: &Record<'_>) -> Result<Option<Self>, &'static str> {
        if record.manager != Manager::STANDBY || record.info & INFO_MASK != RUNNING {
            return Ok(None);
        }
        Self::read(record)
            .map(Some)
            .ok_or("a list of running transactions is cut short")
    }

    fn read(record: &Record<'_>) -> Option<Self> {
        let mut fields = Fields::of(record.data);
        let count = fields.u32()?.checked_add(fields.u32()?)?;
        // Whether some are left out, and three bounds.
        fields.take(16)?;
        let mut xids = Vec::new();
        for _ in 0..count {
            xids.push(fields.u32()?);
        }
        Some(Self { xids })
    }
}

/// `XLOG_RESTORE_POINT` of resource manager XLOG.
const RESTORE_POINT: u8 = 0x70;
const INFO_MASK: u8 = 0xF0;

impl NamedPoint {
    /// What a record says of a named restore point; `None` when it is of another kind.
    ///
    /// # Errors
    /// When it is of this kind and cannot be understood.
    pub fn of(record: &Record<'_>) -> Result<Option<Self>, &'static str> {
        if record.manager != Manager::XLOG || record.info & INFO_MASK != RESTORE_POINT {
            return Ok(None);
        }
        Self::read(record)
            .map(Some)
            .ok_or("a named restore point is cut short")
    }

    fn read(record: &Record<'_>) -> Option<Self> {
        let at = time(Fields::of(record.data).i64()?)?;
        let name = record.data.get(8..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(Self {
            at,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

/// A time of PostgreSQL's as ours; `None` outside of what ours can hold.
fn time(microseconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(EPOCH_UNIX_SECONDS, 0)?
        .checked_add_signed(TimeDelta::microseconds(microseconds))
}

impl Ended {
    /// What a record says of a transaction's end; `None` when it is of another kind.
    ///
    /// # Errors
    /// When it is of this kind and cannot be understood.
    pub fn of(record: &Record<'_>, major: u32) -> Result<Option<Self>, &'static str> {
        let outcome = match (record.manager, record.info & KIND_MASK) {
            (Manager::TRANSACTION, COMMIT | COMMIT_PREPARED) => Outcome::Committed,
            (Manager::TRANSACTION, ABORT | ABORT_PREPARED) => Outcome::Aborted,
            _ => return Ok(None),
        };
        Self::read(record, outcome, major)
            .map(Some)
            .ok_or("the end of a transaction is cut short")
    }

    fn read(record: &Record<'_>, outcome: Outcome, major: u32) -> Option<Self> {
        let mut fields = Fields::of(record.data);
        let at = time(fields.i64()?)?;
        let parts = match record.info & HAS_INFO {
            0 => 0,
            _ => fields.u32()?,
        };
        let has = |part| parts & part != 0;
        let mut ended = Self {
            lsn: record.lsn,
            end: record.end,
            xid: record.xid,
            outcome,
            at,
            subtransactions: Vec::new(),
            dropped: Vec::new(),
        };
        if has(HAS_DATABASE) {
            fields.take(8)?;
        }
        if has(HAS_SUBTRANSACTIONS) {
            for _ in 0..fields.u32()? {
                ended.subtransactions.push(fields.u32()?);
            }
        }
        if has(HAS_RELATIONS) {
            for _ in 0..fields.u32()? {
                ended.dropped.push(Relation::read(&mut fields)?);
            }
        }
        if has(HAS_DROPPED_STATISTICS) {
            let each = if major >= 18 { 16 } else { 12 };
            skip(&mut fields, each)?;
        }
        if has(HAS_INVALIDATIONS) {
            skip(&mut fields, 16)?;
        }
        if has(HAS_TWO_PHASE) {
            ended.xid = fields.u32()?;
        }
        Some(ended)
    }
}

/// Skips a count and so many items of `bytes` each.
fn skip(fields: &mut Fields<'_>, bytes: usize) -> Option<()> {
    let count = usize::try_from(fields.u32()?).ok()?;
    fields.take(count.checked_mul(bytes)?).map(|_| ())
}

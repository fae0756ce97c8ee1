//! Finding a moment in the stored WAL: where a transaction ended, or where a restore point was named.
//!
//! The newest segment is read first: what a person looks for was mostly just now, and the numbers of
//! transactions come again after four thousand million. A record that begins in one segment ends in the next,
//! so each is read on into the one behind it.

use std::collections::VecDeque;

use chrono::{DateTime, SecondsFormat, Utc};
use dr_model::{Lsn, Progress, Timeline, WalFileName, WorkloadName};
use dr_store::{Repository, StoreError};
use dr_wal::page::SegmentHeader;
use dr_wal::{Ended, NamedPoint, Outcome, Reader, Record, WalError};

use super::fetch::streamed;
use crate::BackupError;
use crate::error::store_error;
use crate::window::WalIndex;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The end of the transaction with this number.
    Transaction(u32),
    /// A restore point that was named so (`pg_create_restore_point`); the last one of that name.
    Named(String),
}

/// A record that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Where the record begins.
    pub lsn: Lsn,
    /// What it says, for people.
    pub what: String,
}

/// What came of looking.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Search {
    /// The newest record that is wanted.
    pub found: Option<Moment>,
    /// WAL behind it (or all of it) that could not be looked through, and why.
    pub unread: Vec<String>,
}

/// A record may go over so many segments: commits that drop a million relations do.
const SEGMENTS_OF_A_RECORD: usize = 3;
/// So many reasons are told.
const UNREAD_TOLD: usize = 5;

/// Looks for a moment on the way along `timeline`, from the newest stored WAL backwards. Blocks.
///
/// # Errors
/// When the repository does not answer. A segment that is damaged or missing is told.
pub fn find(
    repository: &Repository,
    workload: &WorkloadName,
    index: &WalIndex,
    timeline: Timeline,
    wanted: &Wanted,
    progress: &dyn Progress,
) -> Result<Search, BackupError> {
    let names = index.stored_along(timeline);
    let bytes = index.segment_bytes.saturating_mul(names.len() as u64);
    progress.phase("looking through the WAL", Some(bytes));
    let newest = names.last().map(|(number, _)| *number);
    let mut search = Search::default();
    // The segments behind the one that is read, the nearest one first.
    let mut behind: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
    for (number, name) in names.into_iter().rev() {
        if behind.front().is_none_or(|(next, _)| *next != number + 1) {
            behind.clear();
            if newest != Some(number) {
                search.unread(format!("what comes behind {name} is missing"));
            }
        }
        let body = match body_of(repository, workload, &name) {
            Ok(Some(body)) => body,
            // It went with the restore point it belonged to.
            Ok(None) => continue,
            Err(
                error @ BackupError::Store {
                    source: StoreError::Backend { .. },
                    ..
                },
            ) => {
                return Err(error);
            }
            Err(error) => {
                search.unread(crate::status::chain(&error));
                continue;
            }
        };
        let segment = Segment {
            name: &name,
            body: &body,
            behind: behind.iter().map(|(_, body)| body.as_slice()).collect(),
            may_end: newest == Some(number),
        };
        match segment.look(wanted) {
            Ok(None) => {}
            Ok(found) => {
                search.found = found;
                return Ok(search);
            }
            Err(error) => search.unread(crate::status::chain(&error)),
        }
        progress.advance(index.segment_bytes);
        behind.push_front((number, body));
        behind.truncate(SEGMENTS_OF_A_RECORD);
    }
    Ok(search)
}

impl Search {
    fn unread(&mut self, why: String) {
        if self.unread.len() < UNREAD_TOLD {
            self.unread.push(why);
        }
    }
}

/// A segment, whole or as far as it was streamed.
pub(super) fn body_of(
    repository: &Repository,
    workload: &WorkloadName,
    name: &WalFileName,
) -> Result<Option<Vec<u8>>, BackupError> {
    let whole = || {
        repository.get_wal(workload, name).map_err(store_error(
            format!("read {name} of `{workload}`"),
            repository,
        ))
    };
    if let Some(body) = whole()? {
        return Ok(Some(body));
    }
    // Tails go when their segment is there: it is asked for again whatever they gave.
    let streamed = streamed(repository, workload, name);
    match whole()? {
        Some(body) => Ok(Some(body)),
        None => streamed,
    }
}

struct Segment<'a> {
    name: &'a WalFileName,
    body: &'a [u8],
    behind: Vec<&'a [u8]>,
    /// Whether the log may end within.
    may_end: bool,
}

impl Segment<'_> {
    /// The last record that is wanted among those that begin in the segment.
    fn look(&self, wanted: &Wanted) -> Result<Option<Moment>, BackupError> {
        let bad = |what: String| BackupError::BadWal {
            file: self.name.to_string(),
            what,
        };
        super::check_segment(self.name, self.body)?;
        let header =
            SegmentHeader::parse(self.body).ok_or_else(|| bad("it is no segment".to_owned()))?;
        let mut reader = Reader::new(&header).map_err(|error| bad(error.to_string()))?;
        let (major, page_bytes) = (reader.major(), reader.page_bytes());
        let end = Lsn(header.start.0.saturating_add(header.segment_bytes));
        let (mut found, mut wrong) = (None, None);
        let mut each = |record: &Record<'_>| match told(record, major, wanted) {
            Ok(Some(moment)) if record.lsn < end => found = Some(moment),
            Ok(_) => {}
            Err(what) => drop(wrong.get_or_insert((record.lsn, what))),
        };
        let behind = self.behind.iter().flat_map(|body| body.chunks(page_bytes));
        for page in self.body.chunks(page_bytes).chain(behind) {
            // Behind the segment only the record is read on that began in it.
            if reader.position().is_some_and(|next| next >= end) {
                break;
            }
            match reader.page(page, &mut each) {
                Ok(()) => {}
                // Of what was streamed, and of the newest segment of a server that crashed, the rest is
                // not there.
                Err(
                    WalError::NoRecord { .. } | WalError::NoPage { .. } | WalError::Checksum { .. },
                ) if self.may_end => break,
                // What came before is found all the same.
                Err(error) if found.is_none() => return Err(bad(error.to_string())),
                Err(_) => break,
            }
        }
        match wrong {
            Some((at, what)) => Err(bad(WalError::Record { at, what }.to_string())),
            None => Ok(found),
        }
    }
}

fn told(record: &Record<'_>, major: u32, wanted: &Wanted) -> Result<Option<Moment>, &'static str> {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let what = match wanted {
        Wanted::Named(name) => NamedPoint::of(record)?
            .filter(|point| point.name == *name)
            .map(|point| format!("restore point `{name}` was named at {}", time(point.at))),
        Wanted::Transaction(xid) => Ended::of(record, major)?.and_then(|ended| {
            let how = match ended.outcome {
                Outcome::Committed => "was committed",
                Outcome::Aborted => "was rolled back",
            };
            let at = time(ended.at);
            if ended.xid == *xid {
                Some(format!("transaction {xid} {how} at {at}"))
            } else if ended.subtransactions.contains(xid) {
                let parent = ended.xid;
                Some(format!(
                    "transaction {xid}, a part of {parent}, {how} with it at {at}"
                ))
            } else {
                None
            }
        }),
    };
    let lsn = record.lsn;
    Ok(what.map(|what| Moment { lsn, what }))
}

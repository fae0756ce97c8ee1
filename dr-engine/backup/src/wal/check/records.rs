//! Reading every record of a stretch of segments.

use std::ops::Range;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Progress, SystemId, Timeline, WalFileName, WorkloadName};
use dr_store::{Repository, StoreError};
use dr_wal::page::SegmentHeader;
use dr_wal::{Ended, Outcome, Reader, Record, WalError};
use serde::Serialize;

use crate::BackupError;
use crate::error::store_error;
use crate::wal::check_segment;

/// What the records of a stretch say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct RecordsFound {
    /// How many there are.
    pub records: u64,
    /// Transactions that were committed.
    pub commits: u64,
    /// The time of the first commit.
    pub first_commit: Option<DateTime<Utc>>,
    /// The time of the last commit, in the order of the log: recovery can reach it.
    pub last_commit: Option<DateTime<Utc>>,
    /// Where the last whole record ends.
    pub to: Option<Lsn>,
    /// That the log ends inside of the newest segment, as after a crash, and where.
    pub note: Option<String>,
}

impl RecordsFound {
    fn add(&mut self, record: &Record<'_>, major: u32) -> Result<(), &'static str> {
        self.records += 1;
        self.to = Some(record.end);
        if let Some(ended) = Ended::of(record, major)?
            && ended.outcome == Outcome::Committed
        {
            self.commits += 1;
            self.first_commit.get_or_insert(ended.at);
            self.last_commit = Some(ended.at);
        }
        Ok(())
    }
}

/// What reading needs.
pub(super) struct Reading<'a> {
    pub(super) repository: &'a Repository,
    pub(super) workload: &'a WorkloadName,
    pub(super) segment_bytes: u64,
    pub(super) system_id: Option<SystemId>,
    pub(super) progress: &'a dyn Progress,
}

/// The segment in which another timeline left this one: the records before are this one's.
pub(super) struct Tail {
    pub(super) name: WalFileName,
    pub(super) until: Lsn,
}

/// What is to be read.
pub(super) struct Stretch {
    pub(super) timeline: Timeline,
    pub(super) first: u64,
    pub(super) last: u64,
    /// Records before are those of the parent.
    pub(super) own_from: Lsn,
    pub(super) tail: Option<Tail>,
    /// Whether nothing newer is stored of the timeline.
    pub(super) is_newest: bool,
}

/// Why the reading of a stretch ends before its end.
enum Stop {
    /// The repository does not answer.
    Failed(BackupError),
    /// Something is wrong with what it holds.
    Problem(String),
    /// No record follows, or not a whole one.
    LogEnds(String),
}

impl Reading<'_> {
    /// Reads a stretch as far as it can be read; what is wrong is added to `problems`.
    pub(super) fn stretch(
        &self,
        stretch: &Stretch,
        problems: &mut Vec<String>,
    ) -> Result<RecordsFound, BackupError> {
        let mut found = RecordsFound::default();
        let mut reader = None;
        let own = stretch.own_from..Lsn(u64::MAX);
        for number in stretch.first..=stretch.last {
            let name = WalFileName::of_number(number, stretch.timeline, self.segment_bytes);
            let is_last = number == stretch.last && stretch.tail.is_none();
            match self.segment(&name, &mut reader, &own, &mut found) {
                Ok(()) => {}
                // The newest segment of a server that crashed was rescued as it was: written in part.
                Err(Stop::LogEnds(what)) if is_last && stretch.is_newest => {
                    found.note = Some(format!("{name} is not full: {what}"));
                }
                Err(Stop::Problem(what) | Stop::LogEnds(what)) => {
                    let unread = stretch.last - number;
                    problems.push(format!("{name}: {what}{}", rest(unread)));
                    return Ok(found);
                }
                Err(Stop::Failed(error)) => return Err(error),
            }
            self.progress.advance(self.segment_bytes);
        }
        if let Some(tail) = &stretch.tail {
            let own = stretch.own_from..tail.until;
            match self.segment(&tail.name, &mut reader, &own, &mut found) {
                // Its own timeline's stretch tells what is wrong with it.
                Ok(()) | Err(Stop::Problem(_) | Stop::LogEnds(_)) => {}
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        Ok(found)
    }

    fn segment(
        &self,
        name: &WalFileName,
        reader: &mut Option<Reader>,
        own: &Range<Lsn>,
        found: &mut RecordsFound,
    ) -> Result<(), Stop> {
        let body = self.body(name)?;
        let system_id = check_segment(name, &body).map_err(|error| problem(&error))?;
        if self.system_id.is_some_and(|ours| ours != system_id) {
            let what = format!("it is of another cluster, with system identifier {system_id}");
            return Err(Stop::Problem(what));
        }
        let reader = match reader {
            Some(reader) => reader,
            None => {
                let header = SegmentHeader::parse(&body);
                let header = header.ok_or_else(|| Stop::Problem("it is no segment".to_owned()))?;
                reader.insert(Reader::new(&header).map_err(|error| problem(&error))?)
            }
        };
        let major = reader.major();
        for page in body.chunks(reader.page_bytes()) {
            let mut wrong = None;
            let mut each = |record: &Record<'_>| {
                if own.contains(&record.lsn)
                    && let Err(what) = found.add(record, major)
                {
                    wrong.get_or_insert((record.lsn, what));
                }
            };
            reader.page(page, &mut each).map_err(|error| match error {
                WalError::NoRecord { .. } | WalError::NoPage { .. } | WalError::Checksum { .. } => {
                    Stop::LogEnds(error.to_string())
                }
                WalError::Page { .. } | WalError::Record { .. } => problem(&error),
            })?;
            if let Some((at, what)) = wrong {
                return Err(problem(&WalError::Record { at, what }));
            }
        }
        Ok(())
    }

    fn body(&self, name: &WalFileName) -> Result<Vec<u8>, Stop> {
        match self.repository.get_wal(self.workload, name) {
            Ok(Some(body)) => Ok(body),
            Ok(None) => Err(Stop::Problem("it is not there any more".to_owned())),
            Err(error @ StoreError::Backend { .. }) => {
                let action = format!("read {name} of `{}`", self.workload);
                Err(Stop::Failed(store_error(action, self.repository)(error)))
            }
            Err(error) => Err(problem(&error)),
        }
    }
}

/// What is not read because of a problem.
fn rest(unread: u64) -> String {
    match unread {
        0 => String::new(),
        1 => " (the segment behind it was not read)".to_owned(),
        more => format!(" (the {more} segments behind it were not read)"),
    }
}

/// An error with its causes, in one line.
fn problem(error: &dyn std::error::Error) -> Stop {
    Stop::Problem(crate::status::chain(error))
}

//! Reading the stored records of a stretch of WAL, one after the other along a timeline.

use std::ops::ControlFlow;

use dr_model::{Lsn, Progress, Timeline, WorkloadName};
use dr_store::Repository;
use dr_wal::page::SegmentHeader;
use dr_wal::{Reader, Record, WalError};

use super::moment::body_of;
use crate::BackupError;
use crate::window::WalIndex;

/// What gets each record, with the major version that wrote it.
pub type EachRecord<'a> = dyn FnMut(&Record<'_>, u32) -> Result<ControlFlow<()>, &'static str> + 'a;

/// Which records are read.
#[derive(Debug, Clone, Copy)]
pub struct Along<'a> {
    /// Where they are stored.
    pub repository: &'a Repository,
    /// Whose they are.
    pub workload: &'a WorkloadName,
    /// What is stored of them.
    pub index: &'a WalIndex,
    /// The timeline that is followed to its end.
    pub timeline: Timeline,
    /// The first one is the one that begins here, or behind.
    pub from: Lsn,
}

/// Reads records until `each` has enough or no more is stored; returns where the last one ended that `each`
/// was given. Blocks.
///
/// # Errors
/// When a segment in between is missing or damaged, or the repository does not answer.
pub fn read_along(
    along: &Along<'_>,
    progress: &dyn Progress,
    each: &mut EachRecord<'_>,
) -> Result<Option<Lsn>, BackupError> {
    let size = along.index.segment_bytes.max(1);
    let first = along.from.0 / size;
    let names = along.index.stored_along(along.timeline);
    let names: Vec<_> = (names.into_iter())
        .filter(|(number, _)| *number >= first)
        .collect();
    let bytes = size.saturating_mul(names.len() as u64);
    progress.phase("reading the WAL", Some(bytes));
    let newest = names.last().map(|(number, _)| *number);
    let mut reading = Reading {
        from: along.from,
        reader: None,
        ended: None,
    };
    let mut expected = first;
    for (number, name) in names {
        let lacks = |what: &str| BackupError::BadWal {
            file: name.to_string(),
            what: what.to_owned(),
        };
        if number != expected {
            return Err(lacks(
                "what comes before it is not stored: there is a gap in the WAL",
            ));
        }
        let body = body_of(along.repository, along.workload, &name)?
            .ok_or_else(|| lacks("it is not there any more"))?;
        super::check_segment(&name, &body)?;
        let may_end = newest == Some(number);
        let flow = reading.segment(&body, may_end, each);
        match flow.map_err(|what| lacks(&what))? {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(()) => break,
        }
        progress.advance(size);
        expected = number + 1;
    }
    Ok(reading.ended)
}

struct Reading {
    from: Lsn,
    reader: Option<Reader>,
    ended: Option<Lsn>,
}

impl Reading {
    fn segment(
        &mut self,
        body: &[u8],
        may_end: bool,
        each: &mut EachRecord<'_>,
    ) -> Result<ControlFlow<()>, String> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => {
                let header = SegmentHeader::parse(body).ok_or("it is no segment")?;
                none.insert(Reader::new(&header).map_err(|error| error.to_string())?)
            }
        };
        let (major, from, ended) = (reader.major(), self.from, &mut self.ended);
        for page in body.chunks(reader.page_bytes()) {
            let mut stopped = None;
            let read = reader.page(page, &mut |record| {
                if stopped.is_some() || record.lsn < from {
                    return;
                }
                match each(record, major) {
                    Ok(ControlFlow::Continue(())) => *ended = Some(record.end),
                    Ok(ControlFlow::Break(())) => stopped = Some(Ok(())),
                    Err(what) => {
                        let at = record.lsn;
                        stopped = Some(Err(WalError::Record { at, what }));
                    }
                }
            });
            match (stopped, read) {
                (Some(Ok(())), _) => return Ok(ControlFlow::Break(())),
                (Some(Err(error)), _) => return Err(error.to_string()),
                (None, Ok(())) => {}
                // Of what was streamed, and of the newest segment of a server that crashed, the rest is
                // not there.
                (
                    None,
                    Err(
                        WalError::NoRecord { .. }
                        | WalError::NoPage { .. }
                        | WalError::Checksum { .. },
                    ),
                ) if may_end => return Ok(ControlFlow::Break(())),
                (None, Err(error)) => return Err(error.to_string()),
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

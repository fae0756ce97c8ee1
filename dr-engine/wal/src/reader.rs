//! From pages to records.
//!
//! Pages are handed over one after the other, from the beginning of a segment on. A record may go over
//! several pages, and begin in a segment and end in the next: the reader keeps what it has of it. What
//! the first page continues began before and is left out.
//!
//! After a crash the server may go on behind a record that was never finished; the page says so, and
//! what was kept of that record is dropped. After a switch the rest of the segment means nothing.

use dr_model::Lsn;

use crate::page::{PageHeader, SegmentHeader, major_version};
use crate::record::{self, HEADER_BYTES, Header, Manager, Record};

/// Records begin at multiples of this (`MAXALIGN`).
const ALIGNED: u64 = 8;
/// `XLOG_SWITCH` of resource manager XLOG: the rest of the segment is not used.
const SWITCH: u8 = 0x40;
/// `XLogRecordMaxSize`: nothing larger is written (1020 MiB).
const RECORD_BYTES_MAX: u32 = 1020 * 1024 * 1024;

/// Why reading ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// No record begins there: the log ends, if this is its newest segment.
    #[error("no record begins at {at}")]
    NoRecord {
        /// Where one would begin.
        at: Lsn,
    },
    /// No page begins there, or one of a former use of the segment: the log ends, if this is its newest
    /// segment.
    #[error("no page of this log begins at {at}")]
    NoPage {
        /// Where one would begin.
        at: Lsn,
    },
    /// A record has not the checksum that it names. The newest record of a server that crashed may be
    /// written in part: there, and only there, this is the end of the log.
    #[error("the record at {at} is damaged, or not written to its end: its checksum is wrong")]
    Checksum {
        /// Where it begins.
        at: Lsn,
    },
    /// These bytes are not the page that comes next.
    #[error("the page at {at} is not one of this log: {what}")]
    Page {
        /// Where the page should be.
        at: Lsn,
        /// What is wrong with it.
        what: String,
    },
    /// A record is damaged.
    #[error("the record at {at} is damaged: {what}")]
    Record {
        /// Where it begins.
        at: Lsn,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Where the reader is.
#[derive(Debug)]
enum Place {
    /// Within a record that began before the first page.
    Before,
    /// Where the next record begins.
    At(Lsn),
    /// Within a record.
    Within {
        begun: Lsn,
        gathered: Vec<u8>,
        length: usize,
    },
}

/// Reads records from pages.
#[derive(Debug)]
pub struct Reader {
    magic: u16,
    major: u32,
    page_bytes: u32,
    segment_bytes: u64,
    next_page: Lsn,
    place: Place,
    last: Option<Lsn>,
}

impl Reader {
    /// Prepares to read from the beginning of a segment; its first page is the first to be handed over.
    ///
    /// # Errors
    /// [`WalError::Page`] when it is of a version that is not known.
    pub fn new(segment: &SegmentHeader) -> Result<Self, WalError> {
        let major = major_version(segment.magic).ok_or_else(|| WalError::Page {
            at: segment.start,
            what: format!("its version is not known (magic {:#06X})", segment.magic),
        })?;
        Ok(Self {
            magic: segment.magic,
            major,
            page_bytes: segment.page_bytes,
            segment_bytes: segment.segment_bytes,
            next_page: segment.start,
            place: Place::Before,
            last: None,
        })
    }

    /// The major version of what is read.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        usize::try_from(self.page_bytes).unwrap_or(usize::MAX)
    }

    /// Where the next record begins, or the one that is not read to its end; `None` before the first.
    #[must_use]
    pub fn position(&self) -> Option<Lsn> {
        match &self.place {
            Place::Before => None,
            Place::At(at) => Some(*at),
            Place::Within { begun, .. } => Some(*begun),
        }
    }

    /// Reads the next page; `each` gets every record that ends on it.
    ///
    /// # Errors
    /// Where the log ends or is damaged. Nothing can be read behind that.
    pub fn page(&mut self, page: &[u8], each: &mut dyn FnMut(&Record<'_>)) -> Result<(), WalError> {
        let start = self.next_page;
        let end = Lsn(start.0.saturating_add(u64::from(self.page_bytes)));
        if page.len() != self.page_bytes() {
            return Err(self.bad_page(format!("it has {} bytes", page.len())));
        }
        if let Place::At(at) = self.place
            && at >= end
        {
            // Behind a switch.
            self.next_page = end;
            return Ok(());
        }
        let header = self.header(page)?;
        let offset = self.first_record(page, &header, each)?;
        self.next_page = end;
        match offset {
            Some(offset) => self.records(page, start, offset, each),
            None => Ok(()),
        }
    }

    fn header(&self, page: &[u8]) -> Result<PageHeader, WalError> {
        let at = self.next_page;
        let header = PageHeader::parse(page).ok_or(WalError::NoPage { at })?;
        if header.start < at {
            return Err(WalError::NoPage { at });
        }
        if header.magic != self.magic {
            return Err(self.bad_page(format!("it is of another version ({:#06X})", header.magic)));
        }
        if header.start != at {
            return Err(self.bad_page(format!("it says that it is the one at {}", header.start)));
        }
        Ok(header)
    }

    /// Finishes what the page continues; returns where on it the next record begins, if it does.
    fn first_record(
        &mut self,
        page: &[u8],
        header: &PageHeader,
        each: &mut dyn FnMut(&Record<'_>),
    ) -> Result<Option<usize>, WalError> {
        let start = self.next_page;
        let room = page.len().saturating_sub(header.bytes());
        match std::mem::replace(&mut self.place, Place::Before) {
            Place::At(at) => {
                if header.continued.is_some() {
                    return Err(self.bad_page("it continues a record that is not there".to_owned()));
                }
                let offset = usize::try_from(at.0.saturating_sub(start.0)).unwrap_or(0);
                Ok(Some(offset.max(header.bytes())))
            }
            Place::Before => {
                let continued = header.continued.filter(|_| !header.overwrites).unwrap_or(0);
                let skipped = aligned(u64::from(continued));
                match usize::try_from(skipped).ok().filter(|bytes| *bytes < room) {
                    Some(bytes) => Ok(Some(header.bytes() + bytes)),
                    None => Ok(None),
                }
            }
            Place::Within { .. } if header.overwrites => Ok(Some(header.bytes())),
            Place::Within {
                begun,
                mut gathered,
                length,
            } => {
                let lacking = length - gathered.len();
                if header.continued.and_then(|rest| usize::try_from(rest).ok()) != Some(lacking) {
                    return Err(WalError::Record {
                        at: begun,
                        what: "the next page does not continue it",
                    });
                }
                let taken = lacking.min(room);
                let from = page.get(header.bytes()..header.bytes() + taken);
                gathered.extend_from_slice(from.unwrap_or_default());
                if taken < lacking {
                    self.place = Place::Within {
                        begun,
                        gathered,
                        length,
                    };
                    return Ok(None);
                }
                let end = start
                    .0
                    .saturating_add(aligned((header.bytes() + taken) as u64));
                let next = self.finish(begun, Lsn(end), &gathered, each)?;
                self.place = Place::At(next);
                Ok(self.offset_on(start, next))
            }
        }
    }

    /// The offset of a position on a page that begins at `start`, if it lies there.
    fn offset_on(&self, start: Lsn, at: Lsn) -> Option<usize> {
        let offset = at.0.checked_sub(start.0)?;
        (offset < u64::from(self.page_bytes)).then(|| usize::try_from(offset).ok())?
    }

    /// Reads records from an offset of a page on.
    fn records(
        &mut self,
        page: &[u8],
        start: Lsn,
        mut offset: usize,
        each: &mut dyn FnMut(&Record<'_>),
    ) -> Result<(), WalError> {
        loop {
            let at = Lsn(start.0.saturating_add(offset as u64));
            self.place = Place::At(at);
            let rest = page.get(offset..).unwrap_or_default();
            // Aligned as records are, the length never goes over a page's end.
            let length = match rest.first_chunk() {
                Some(length) => u32::from_le_bytes(*length),
                None => return Ok(()),
            };
            let length = usize::try_from(length)
                .ok()
                .filter(|length| (HEADER_BYTES..=RECORD_BYTES_MAX as usize).contains(length))
                .ok_or(WalError::NoRecord { at })?;
            let Some(bytes) = rest.get(..length) else {
                self.place = Place::Within {
                    begun: at,
                    gathered: rest.to_vec(),
                    length,
                };
                return Ok(());
            };
            let end = Lsn(at.0.saturating_add(aligned(length as u64)));
            let next = self.finish(at, end, bytes, each)?;
            self.place = Place::At(next);
            match self.offset_on(start, next) {
                Some(next) => offset = next,
                None => return Ok(()),
            }
        }
    }

    /// Checks a whole record and hands it over; returns where the next one begins.
    fn finish(
        &mut self,
        at: Lsn,
        end: Lsn,
        bytes: &[u8],
        each: &mut dyn FnMut(&Record<'_>),
    ) -> Result<Lsn, WalError> {
        let bad = |what| WalError::Record { at, what };
        let header = Header::read(bytes).ok_or_else(|| bad("it is cut short"))?;
        if !record::sum_is_right(bytes, &header) {
            // Behind the end of the log lies what a former use of the segment left.
            return Err(match self.follows(&header) {
                true => WalError::Checksum { at },
                false => WalError::NoRecord { at },
            });
        }
        if !self.follows(&header) {
            return Err(bad("it does not follow the record before it"));
        }
        let parts = record::parts(bytes, self.major).map_err(bad)?;
        let is_switch = header.manager == Manager::XLOG && header.info & 0xF0 == SWITCH;
        let end = if is_switch {
            Lsn(end
                .0
                .checked_next_multiple_of(self.segment_bytes)
                .unwrap_or(u64::MAX))
        } else {
            end
        };
        self.last = Some(at);
        each(&Record {
            lsn: at,
            end,
            previous: header.previous,
            length: header.length,
            xid: header.xid,
            info: header.info,
            manager: header.manager,
            blocks: parts.blocks,
            held: parts.held,
            data: parts.data,
        });
        Ok(end)
    }

    fn follows(&self, header: &Header) -> bool {
        self.last.is_none_or(|last| last == header.previous)
    }

    fn bad_page(&self, what: String) -> WalError {
        WalError::Page {
            at: self.next_page,
            what,
        }
    }
}

fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(ALIGNED).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;

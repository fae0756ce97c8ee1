//! The headers of WAL pages (`XLogPageHeaderData`, `XLogLongPageHeaderData`).

use dr_model::{Lsn, SystemId, Timeline};

use crate::bytes::Fields;

/// Bytes of the header of a segment's first page, which is longer than the others.
pub const LONG_HEADER_BYTES: usize = 40;
const SHORT_HEADER_BYTES: usize = 24;

/// The page begins within a record of the page before.
const FIRST_IS_CONTINUED: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
/// The record of the page before was never finished: the server crashed, and went on here.
const FIRST_OVERWRITES: u16 = 0x0008;

/// `XLOG_PAGE_MAGIC` by major version.
const MAGICS: [(u16, u32); 5] = [
    (0xD10D, 14),
    (0xD110, 15),
    (0xD113, 16),
    (0xD116, 17),
    (0xD118, 18),
];
/// Segments are a power of two between 1 MiB and 1 GiB.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;
/// WAL pages are a power of two between 1 and 64 KiB (`--with-wal-blocksize`).
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 1 << 10..=1 << 16;

/// The major version whose `XLOG_PAGE_MAGIC` this is; `None` when it is none that is supported.
#[must_use]
pub fn major_version(magic: u16) -> Option<u32> {
    MAGICS
        .iter()
        .find(|(known, _)| *known == magic)
        .map(|(_, major)| *major)
}

/// What the first page of a segment says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// `xlp_magic`: differs by major version.
    pub magic: u16,
    /// The timeline of the first record on the page.
    pub timeline: Timeline,
    /// The position of the page: of the segment's beginning.
    pub start: Lsn,
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// Bytes in a segment.
    pub segment_bytes: u64,
    /// Bytes in a WAL page.
    pub page_bytes: u32,
}

impl SegmentHeader {
    /// Reads the header of a segment; `None` when these are not the first bytes of one.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let page = PageHeader::parse(bytes)?;
        let mut fields = Fields::of(bytes.get(SHORT_HEADER_BYTES..)?);
        let header = Self {
            magic: page.magic,
            timeline: page.timeline,
            start: page.start,
            system_id: SystemId(fields.u64()?),
            segment_bytes: u64::from(fields.u32()?),
            page_bytes: fields.u32()?,
        };
        let plausible = page.is_long
            && SEGMENT_BYTES.contains(&header.segment_bytes)
            && header.segment_bytes.is_power_of_two()
            && PAGE_BYTES.contains(&header.page_bytes)
            && header.page_bytes.is_power_of_two()
            && header.start.0.is_multiple_of(header.segment_bytes);
        plausible.then_some(header)
    }
}

/// What every page begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) magic: u16,
    pub(crate) timeline: Timeline,
    pub(crate) start: Lsn,
    /// Bytes of a record of an earlier page that come first, on this page and further ones.
    pub(crate) continued: Option<u32>,
    pub(crate) overwrites: bool,
    is_long: bool,
}

impl PageHeader {
    /// `None` when no page of any version begins so.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::of(bytes);
        let (magic, info) = (fields.u16()?, fields.u16()?);
        let timeline = Timeline(fields.u32()?);
        let start = Lsn(fields.u64()?);
        let rest = fields.u32()?;
        (magic >> 8 == 0xD1).then_some(Self {
            magic,
            timeline,
            start,
            continued: (info & FIRST_IS_CONTINUED != 0).then_some(rest),
            overwrites: info & FIRST_OVERWRITES != 0,
            is_long: info & LONG_HEADER != 0,
        })
    }

    /// Bytes of it.
    pub(crate) fn bytes(&self) -> usize {
        if self.is_long {
            LONG_HEADER_BYTES
        } else {
            SHORT_HEADER_BYTES
        }
    }
}

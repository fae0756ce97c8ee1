//! The header of a WAL segment's first page (`access/xlog_internal.h`, XLogLongPageHeaderData).

use dr_model::{Lsn, SystemId, Timeline};

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

/// Bytes of the header.
pub const HEADER_BYTES: usize = 40;

/// `XLP_LONG_HEADER`: set on the first page of a segment.
const LONG_HEADER: u16 = 0x0002;
/// `XLOG_PAGE_MAGIC` by major version.
const MAGICS: [(u16, u32); 6] = [
    (0xD106, 13),
    (0xD10D, 14),
    (0xD110, 15),
    (0xD113, 16),
    (0xD116, 17),
    (0xD118, 18),
];
/// Segments are a power of two between 1 MiB and 1 GiB.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// Reads the header of a segment; `None` when these are not the first bytes of one.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<SegmentHeader> {
    let u16_at = |offset| Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?));
    let u32_at = |offset| Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?));
    let u64_at = |offset| Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?));
    let header = SegmentHeader {
        magic: u16_at(0)?,
        timeline: Timeline(u32_at(4)?),
        start: Lsn(u64_at(8)?),
        system_id: SystemId(u64_at(24)?),
        segment_bytes: u64::from(u32_at(32)?),
        page_bytes: u32_at(36)?,
    };
    let plausible = header.magic >> 8 == 0xD1
        && u16_at(2)? & LONG_HEADER != 0
        && SEGMENT_BYTES.contains(&header.segment_bytes)
        && header.segment_bytes.is_power_of_two()
        && header.start.0.is_multiple_of(header.segment_bytes);
    plausible.then_some(header)
}

/// The major version whose `XLOG_PAGE_MAGIC` this is; `None` when unknown.
#[must_use]
pub fn major_version(magic: u16) -> Option<u32> {
    MAGICS
        .iter()
        .find(|(known, _)| *known == magic)
        .map(|(_, major)| *major)
}

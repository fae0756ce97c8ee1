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

/// Reads the header of a segment; `None` when these are not the first bytes of one.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<SegmentHeader> {
    let _ = bytes;
    todo!()
}

/// The major version whose `XLOG_PAGE_MAGIC` this is; `None` when unknown.
#[must_use]
pub fn major_version(magic: u16) -> Option<u32> {
    let _ = magic;
    todo!()
}

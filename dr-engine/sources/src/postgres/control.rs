//! `global/pg_control`, read without PostgreSQL's programs (`catalog/pg_control.h`).

use std::path::Path;

use dr_model::{Lsn, SystemId, Timeline};

use crate::SourceError;

/// The fields of `pg_control` that a backup or restore needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// The cluster's identifier.
    pub system_id: SystemId,
    /// `pg_control_version`: 1300 for 13 to 16, 1700 for 17, 1800 for 18.
    pub control_version: u32,
    /// The catalog version, as in the tablespace folder's name.
    pub catalog_version: u32,
    /// The last checkpoint record.
    pub checkpoint: Lsn,
    /// Where its redo begins.
    pub checkpoint_redo: Lsn,
    /// The timeline of the last checkpoint.
    pub timeline: Timeline,
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Pages in one file of a relation.
    pub segment_pages: u32,
    /// Bytes in a WAL segment.
    pub wal_segment_bytes: u64,
    /// Whether page checksums are on.
    pub page_checksums: bool,
}

/// Reads the control file of a data directory, again when it is torn by a concurrent write.
///
/// # Errors
/// When it cannot be read or its CRC stays wrong.
pub fn read(data_directory: &Path) -> Result<ControlData, SourceError> {
    let _ = data_directory;
    todo!()
}

/// Parses the bytes of a control file, `None` if the CRC is wrong or the version unknown.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<ControlData> {
    let _ = bytes;
    todo!()
}

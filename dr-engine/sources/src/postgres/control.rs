//! `global/pg_control`, read without PostgreSQL's programs (`catalog/pg_control.h`).

use std::path::Path;
use std::time::Duration;

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
    /// Whether the server is (or was, when it crashed) open for writing, out of any recovery.
    pub in_production: bool,
    /// Whether it was, or is, a standby or a cluster that recovers from an archive: it wrote no WAL of its own.
    pub in_recovery: bool,
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

/// Bytes PostgreSQL writes for it; all it says is in the first 300 or so.
const FILE_BYTES: usize = 8192;
/// A torn read is seen by its CRC and mended by reading again, as PostgreSQL's own tools do.
const READ_ATTEMPTS: u32 = 10;
const PAUSE_BEFORE_REREAD: Duration = Duration::from_millis(10);
/// Where the CRC lies: to version 17, and from 18 on (`default_char_signedness` came before it).
const CRC_OFFSETS: [usize; 2] = [288, 292];
/// `DBState`.
const DB_IN_PRODUCTION: u32 = 6;
const DB_SHUTDOWNED_IN_RECOVERY: u32 = 2;
const DB_IN_ARCHIVE_RECOVERY: u32 = 5;
const VERSIONS: std::ops::RangeInclusive<u32> = 1300..=1899;

/// Reads the control file of a data directory, again when it is torn by a concurrent write.
///
/// # Errors
/// When it cannot be read or its CRC stays wrong.
pub fn read(data_directory: &Path) -> Result<ControlData, SourceError> {
    read_bytes(data_directory).map(|(_, control)| control)
}

/// As [`read`], with the bytes that were judged: what a backup stores.
pub(crate) fn read_bytes(data_directory: &Path) -> Result<(Vec<u8>, ControlData), SourceError> {
    let path = data_directory.join("global/pg_control");
    read_until_whole(&path, || std::fs::read(&path))
}

/// Reads until what is read is whole.
fn read_until_whole(
    path: &Path,
    mut read: impl FnMut() -> std::io::Result<Vec<u8>>,
) -> Result<(Vec<u8>, ControlData), SourceError> {
    for attempt in 0..READ_ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE_BEFORE_REREAD);
        }
        let bytes = read().map_err(SourceError::file("read", path))?;
        if bytes.len() == FILE_BYTES
            && let Some(control) = parse(&bytes)
        {
            return Ok((bytes, control));
        }
    }
    Err(SourceError::Malformed {
        path: path.to_owned(),
        what: "its CRC or version is wrong".to_owned(),
    })
}

/// Parses the bytes of a control file, `None` if the CRC is wrong or the version unknown.
///
/// The layout is that of a 64-bit little-endian server, the same from 13 to 18 up to the nonce.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<ControlData> {
    let control_version = u32_at(bytes, 8)?;
    let intact = CRC_OFFSETS.iter().any(|offset| {
        bytes.get(..*offset).map(crc32c::crc32c) == u32_at(bytes, *offset)
            && u32_at(bytes, *offset).is_some()
    });
    if !intact || !VERSIONS.contains(&control_version) {
        return None;
    }
    Some(ControlData {
        system_id: SystemId(u64_at(bytes, 0)?),
        control_version,
        catalog_version: u32_at(bytes, 12)?,
        in_production: u32_at(bytes, 16)? == DB_IN_PRODUCTION,
        in_recovery: [DB_SHUTDOWNED_IN_RECOVERY, DB_IN_ARCHIVE_RECOVERY]
            .contains(&u32_at(bytes, 16)?),
        checkpoint: Lsn(u64_at(bytes, 32)?),
        checkpoint_redo: Lsn(u64_at(bytes, 40)?),
        timeline: Timeline(u32_at(bytes, 48)?),
        page_bytes: u32_at(bytes, 216)?,
        segment_pages: u32_at(bytes, 220)?,
        wal_segment_bytes: u64::from(u32_at(bytes, 228)?),
        page_checksums: u32_at(bytes, 252)? != 0,
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 15 writes it, but for what is not read.
    fn whole(checkpoint: u64) -> Vec<u8> {
        let mut bytes = vec![0; FILE_BYTES];
        bytes[8..12].copy_from_slice(&1300u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&checkpoint.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The beginning of one, and the rest of another: what a reader sees while the server writes.
    fn torn() -> Vec<u8> {
        [
            &whole(0x0500_0028)[..36],
            &whole(0x0300_0028_0000_0000)[36..],
        ]
        .concat()
    }

    fn read_from(contents: &[Vec<u8>]) -> (Result<Vec<u8>, String>, usize) {
        let mut times = 0;
        let path = Path::new("/data/global/pg_control");
        let read = read_until_whole(path, || {
            times += 1;
            Ok(contents[(times - 1).min(contents.len() - 1)].clone())
        });
        let bytes = read.map(|(bytes, control)| {
            assert_eq!(parse(&bytes).as_ref(), Some(&control));
            bytes
        });
        (bytes.map_err(|error| error.to_string()), times)
    }

    #[test]
    fn a_control_file_that_is_torn_is_read_again_until_it_is_whole() {
        let (torn, good) = (torn(), whole(0x0600_0028));
        assert_eq!(parse(&torn), None);
        assert_eq!(
            read_from(std::slice::from_ref(&good)),
            (Ok(good.clone()), 1)
        );
        let short = good[..4096].to_vec();
        let seen = [
            torn.clone(),
            short,
            torn.clone(),
            good.clone(),
            torn.clone(),
        ];
        assert_eq!(read_from(&seen), (Ok(good), 4));
        let (read, times) = read_from(&[torn]);
        assert!(read.is_err_and(|said| said.contains("its CRC or version is wrong")));
        assert_eq!(times, usize::try_from(READ_ATTEMPTS).unwrap());
    }
}

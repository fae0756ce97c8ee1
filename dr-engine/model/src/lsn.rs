//! Positions in PostgreSQL's write-ahead log.
//!
//! Sources: PostgreSQL documentation, "pg_lsn Type" (8.20), "WAL Internals" (30.6); file names follow
//! `XLogFileName` and its relatives in `access/xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Something that is not a log position, timeline or WAL file name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {what}")]
pub struct InvalidPosition {
    what: &'static str,
    value: String,
}

/// A byte position in the write-ahead log, printed as PostgreSQL prints it: `0/3000028`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = InvalidPosition;
    fn from_str(value: &str) -> Result<Self, InvalidPosition> {
        let invalid = || InvalidPosition {
            what: "an LSN (like 0/3000028)",
            value: value.to_owned(),
        };
        let (high, low) = value.split_once('/').ok_or_else(invalid)?;
        let part = |text: &str| {
            let hexadecimal = !text.is_empty()
                && text.len() <= 8
                && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if hexadecimal {
                u64::from_str_radix(text, 16).map_err(|_| invalid())
            } else {
                Err(invalid())
            }
        };
        Ok(Self((part(high)? << 32) | part(low)?))
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidPosition;
    fn try_from(value: String) -> Result<Self, InvalidPosition> {
        value.parse()
    }
}
impl From<Lsn> for String {
    fn from(value: Lsn) -> Self {
        value.to_string()
    }
}

/// A timeline id; 1 in a cluster that never came out of recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A cluster's system identifier (`pg_control_system()`). Copies of a cluster share it. Printed and
/// stored as decimal text, because JSON readers lose precision above 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl FromStr for SystemId {
    type Err = InvalidPosition;
    fn from_str(value: &str) -> Result<Self, InvalidPosition> {
        value.parse().map(Self).map_err(|_| InvalidPosition {
            what: "a system identifier",
            value: value.to_owned(),
        })
    }
}
impl TryFrom<String> for SystemId {
    type Error = InvalidPosition;
    fn try_from(value: String) -> Result<Self, InvalidPosition> {
        value.parse()
    }
}
impl From<SystemId> for String {
    fn from(value: SystemId) -> Self {
        value.to_string()
    }
}

/// The name of a file that PostgreSQL hands to `archive_command` or asks `restore_command` for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WalFileName {
    /// A whole segment: timeline and segment number.
    Segment {
        /// The timeline in the name; the pages inside may belong to an ancestor.
        timeline: Timeline,
        /// Counted from 0 in units of the segment size.
        log: u32,
        /// The segment within `log`.
        segment: u32,
    },
    /// The last, incomplete segment of a timeline that ended by promotion.
    Partial {
        /// As for a whole segment.
        timeline: Timeline,
        /// As for a whole segment.
        log: u32,
        /// As for a whole segment.
        segment: u32,
    },
    /// `0000000N.history`: where each timeline left its parent.
    History {
        /// The timeline whose ancestry it tells.
        timeline: Timeline,
    },
    /// `<segment>.<offset>.backup`: written at the end of a base backup.
    Backup(String),
}

impl WalFileName {
    /// The name of the segment that holds `lsn`. With `lsn` exactly at a boundary this is the
    /// segment that begins there.
    #[must_use]
    pub fn containing(lsn: Lsn, timeline: Timeline, segment_bytes: u64) -> Self {
        Self::of_number(lsn.0 / segment_bytes, timeline, segment_bytes)
    }

    /// The segment with the given number (LSN divided by segment size).
    #[must_use]
    pub fn of_number(number: u64, timeline: Timeline, segment_bytes: u64) -> Self {
        let per_log = 0x1_0000_0000 / segment_bytes;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self::Segment {
            timeline,
            log: narrow(number / per_log),
            segment: narrow(number % per_log),
        }
    }

    /// The segment's number (LSN divided by segment size); `None` for `.history` and `.backup`.
    #[must_use]
    pub fn number(&self, segment_bytes: u64) -> Option<u64> {
        match self {
            Self::Segment { log, segment, .. } | Self::Partial { log, segment, .. } => {
                Some(u64::from(*log) * (0x1_0000_0000 / segment_bytes) + u64::from(*segment))
            }
            Self::History { .. } | Self::Backup(_) => None,
        }
    }

    /// Whether it is a whole segment.
    #[must_use]
    pub fn is_segment(&self) -> bool {
        matches!(self, Self::Segment { .. })
    }

    /// The timeline in the name; `None` only for a `.backup` name that cannot be parsed.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        match self {
            Self::Segment { timeline, .. }
            | Self::Partial { timeline, .. }
            | Self::History { timeline } => Some(*timeline),
            Self::Backup(name) => name
                .get(..8)
                .and_then(|text| u32::from_str_radix(text, 16).ok())
                .map(Timeline),
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment {
                timeline,
                log,
                segment,
            } => {
                write!(f, "{:08X}{log:08X}{segment:08X}", timeline.0)
            }
            Self::Partial {
                timeline,
                log,
                segment,
            } => {
                write!(f, "{:08X}{log:08X}{segment:08X}.partial", timeline.0)
            }
            Self::History { timeline } => write!(f, "{:08X}.history", timeline.0),
            Self::Backup(name) => f.write_str(name),
        }
    }
}

fn upper_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

impl FromStr for WalFileName {
    type Err = InvalidPosition;
    fn from_str(value: &str) -> Result<Self, InvalidPosition> {
        let invalid = || InvalidPosition {
            what: "the name of a WAL file",
            value: value.to_owned(),
        };
        let number = |text: &str| u32::from_str_radix(text, 16).map_err(|_| invalid());
        if let Some(stem) = value.strip_suffix(".history") {
            if upper_hex(stem, 8) {
                return Ok(Self::History {
                    timeline: Timeline(number(stem)?),
                });
            }
            return Err(invalid());
        }
        if let Some(stem) = value.strip_suffix(".backup") {
            let (segment, offset) = stem.split_once('.').ok_or_else(invalid)?;
            if upper_hex(segment, 24) && upper_hex(offset, 8) {
                return Ok(Self::Backup(value.to_owned()));
            }
            return Err(invalid());
        }
        let stem = value.strip_suffix(".partial").unwrap_or(value);
        if !upper_hex(stem, 24) {
            return Err(invalid());
        }
        let part =
            |range: std::ops::Range<usize>| stem.get(range).ok_or_else(invalid).and_then(number);
        let (timeline, log, segment) = (Timeline(part(0..8)?), part(8..16)?, part(16..24)?);
        if value.len() == stem.len() {
            Ok(Self::Segment {
                timeline,
                log,
                segment,
            })
        } else {
            Ok(Self::Partial {
                timeline,
                log,
                segment,
            })
        }
    }
}
impl TryFrom<String> for WalFileName {
    type Error = InvalidPosition;
    fn try_from(value: String) -> Result<Self, InvalidPosition> {
        value.parse()
    }
}
impl From<WalFileName> for String {
    fn from(value: WalFileName) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_prints_as_postgresql_does() {
        assert_eq!(Lsn(0x0000_0001_2300_0028).to_string(), "1/23000028");
        assert_eq!(
            "1/23000028".parse::<Lsn>().expect("valid"),
            Lsn(0x0000_0001_2300_0028)
        );
        for bad in [
            "",
            "1",
            "/",
            "1/",
            "x/1",
            "1/123456789",
            "+1/2",
            "2026-11-23T00:00:00Z",
        ] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn segment_names_follow_the_segment_size() {
        let name = |lsn, size| WalFileName::containing(Lsn(lsn), Timeline(1), size).to_string();
        assert_eq!(name(0x0300_0028, 16 << 20), "000000010000000000000003");
        assert_eq!(name(0x1_0000_0000, 16 << 20), "000000010000000100000000");
        assert_eq!(name(0x0300_0028, 1 << 20), "000000010000000000000030");
    }

    #[test]
    fn wal_file_names_survive_a_round_trip() {
        for text in [
            "000000010000000000000003",
            "00000002000000AA000000FF.partial",
            "0000000A.history",
            "000000010000000000000003.00000028.backup",
        ] {
            assert_eq!(
                text.parse::<WalFileName>().expect("valid").to_string(),
                text
            );
        }
        for bad in [
            "",
            "../x",
            "000000010000000000000003.part",
            "00000001000000000000000g",
            "a.history",
        ] {
            assert!(bad.parse::<WalFileName>().is_err(), "{bad:?} was accepted");
        }
    }
}

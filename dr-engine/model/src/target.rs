//! The moment a restore aims at, as a person writes it after `--to`.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Serialize};

use crate::{Lsn, RestorePointId};

/// A text that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// A date and time without an offset could mean two dozen moments.
    #[error("`{0}` has no UTC offset: write it as {0}Z for UTC, or with an offset like {0}-06:00")]
    NoOffset(String),
    /// Nothing that is known.
    #[error(
        "`{0}` is no target: give `latest`, a time like 2026-11-23T14:03:21Z, an LSN like 0/3000028, \
         a transaction like xid:7391, the moment before it like before:7391, a name given with pg_create_restore_point like name:before-import, \
         or a restore point id (rp-…)"
    )]
    Unknown(String),
}

/// A recovery target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Everything that is recoverable.
    Latest,
    /// Includes commits at this very time.
    Time(DateTime<FixedOffset>),
    /// Includes the record that begins here (20.5.6, `recovery_target_inclusive`).
    Lsn(Lsn),
    /// Includes this transaction and what ended before it (`recovery_target_xid`).
    Transaction(u32),
    /// What had ended before this transaction did, and not the transaction
    /// (`recovery_target_inclusive = off`).
    Before(u32),
    /// The restore point that was named so in the server (`recovery_target_name`).
    Named(String),
    /// The state a restore point holds by itself.
    RestorePoint(RestorePointId),
}

const XID_PREFIX: &str = "xid:";
const BEFORE_PREFIX: &str = "before:";
const NAME_PREFIX: &str = "name:";

impl FromStr for Target {
    type Err = InvalidTarget;
    fn from_str(value: &str) -> Result<Self, InvalidTarget> {
        if value == "latest" {
            return Ok(Self::Latest);
        }
        if value.starts_with(RestorePointId::PREFIX) {
            return value
                .parse()
                .map(Self::RestorePoint)
                .map_err(|_| InvalidTarget::Unknown(value.to_owned()));
        }
        let transaction = |text: &str| {
            // The server's functions tell 64 bits, of which the log has the lower half.
            let number = text.parse::<u64>().map(|number| number & 0xFFFF_FFFF);
            number
                .map(|number| u32::try_from(number).unwrap_or_default())
                .map_err(|_| InvalidTarget::Unknown(value.to_owned()))
        };
        if let Some(xid) = value.strip_prefix(XID_PREFIX) {
            return transaction(xid).map(Self::Transaction);
        }
        if let Some(xid) = value.strip_prefix(BEFORE_PREFIX) {
            return transaction(xid).map(Self::Before);
        }
        if let Some(name) = value
            .strip_prefix(NAME_PREFIX)
            .filter(|name| !name.is_empty())
        {
            return Ok(Self::Named(name.to_owned()));
        }
        if let Ok(lsn) = value.parse() {
            return Ok(Self::Lsn(lsn));
        }
        if let Ok(time) = DateTime::parse_from_rfc3339(&value.replacen(' ', "T", 1)) {
            return Ok(Self::Time(time));
        }
        let normal = value.replacen(' ', "T", 1);
        if DateTime::parse_from_rfc3339(&format!("{normal}Z")).is_ok() {
            return Err(InvalidTarget::NoOffset(normal));
        }
        Err(InvalidTarget::Unknown(value.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Time(time) => f.write_str(&time.to_rfc3339()),
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Transaction(xid) => write!(f, "{XID_PREFIX}{xid}"),
            Self::Before(xid) => write!(f, "{BEFORE_PREFIX}{xid}"),
            Self::Named(name) => write!(f, "{NAME_PREFIX}{name}"),
            Self::RestorePoint(id) => id.fmt(f),
        }
    }
}
impl TryFrom<String> for Target {
    type Error = InvalidTarget;
    fn try_from(value: String) -> Result<Self, InvalidTarget> {
        value.parse()
    }
}
impl From<Target> for String {
    fn from(value: Target) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_target_is_recognised() {
        assert_eq!("latest".parse::<Target>(), Ok(Target::Latest));
        assert_eq!(
            "0/3000028".parse::<Target>(),
            Ok(Target::Lsn(Lsn(0x0300_0028)))
        );
        assert!(matches!(
            "2026-11-23T14:03:21.5Z".parse(),
            Ok(Target::Time(_))
        ));
        assert!(matches!(
            "2026-11-23 14:03:21+01:00".parse(),
            Ok(Target::Time(_))
        ));
        assert_eq!("xid:7391".parse(), Ok(Target::Transaction(7391)));
        assert_eq!("xid:4294974687".parse(), Ok(Target::Transaction(7391)));
        assert_eq!("before:7391".parse(), Ok(Target::Before(7391)));
        assert_eq!("before:4294974687".parse(), Ok(Target::Before(7391)));
        assert_eq!(Target::Before(7391).to_string(), "before:7391");
        let named = Target::Named("before the import".to_owned());
        assert_eq!("name:before the import".parse(), Ok(named.clone()));
        assert_eq!(named.to_string(), "name:before the import");
        for other in [
            "xid:",
            "xid:abc",
            "xid:-1",
            "name:",
            "before:",
            "before:xid:1",
        ] {
            assert!(other.parse::<Target>().is_err(), "{other}");
        }
        assert!(matches!(
            "rp-erp-20261123T000000Z-abcdef".parse(),
            Ok(Target::RestorePoint(_))
        ));
    }

    #[test]
    fn a_time_without_an_offset_is_refused_with_the_way_out() {
        let error = "2026-11-23T14:03:21"
            .parse::<Target>()
            .expect_err("ambiguous");
        assert!(
            error.to_string().contains("2026-11-23T14:03:21Z"),
            "{error}"
        );
        assert!("yesterday".parse::<Target>().is_err());
    }
}

//! Names people choose and identifiers the engine makes.
//!
//! All of them become object names, file names and parts of shell commands, so their alphabet is
//! small: lower-case letters, digits, `-`, `_`, and for generated ids the `T` and `Z` of a time.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::random;

/// A name or identifier that does not have the required form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {what}: {rule}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    rule: &'static str,
}

const NAME_LENGTH_MAX: usize = 63;
const NAME_RULE: &str = "use 1 to 63 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit";

fn is_name(value: &str) -> bool {
    value.len() <= NAME_LENGTH_MAX
        && value
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && value.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
        })
}

macro_rules! text_type {
    ($name:ident, $what:literal, $rule:expr, $check:expr, $(#[$doc:meta])*) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                if $check(value) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(InvalidName { what: $what, value: value.to_owned(), rule: $rule })
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

text_type!(WorkloadName, "workload name", NAME_RULE, is_name,
    /// Names a workload in the configuration and everywhere its data is stored.
);
text_type!(RepositoryName, "repository name", NAME_RULE, is_name,
    /// Names a repository in the configuration.
);
text_type!(TierName, "tier name", NAME_RULE, is_name,
    /// Names a tier; also the stem of its file.
);

const ID_RULE: &str = "it is made by the engine; copy it from a listing";

fn is_id(value: &str, prefix: &str) -> bool {
    value.len() <= 160
        && value
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn stamp(at: DateTime<Utc>) -> String {
    at.format("%Y%m%dT%H%M%SZ").to_string()
}

macro_rules! id_type {
    ($name:ident, $what:literal, $prefix:literal, $(#[$doc:meta])*) => {
        text_type!($name, $what, ID_RULE, |value: &str| is_id(value, $prefix), $(#[$doc])*);

        impl $name {
            /// What every identifier of this kind begins with.
            pub const PREFIX: &'static str = $prefix;
        }
    };
}

id_type!(RestorePointId, "restore point id", "rp-",
    /// Identifies a restore point: `rp-<workload>-<UTC time>-<6 hex digits>`.
);
id_type!(JobId, "job id", "job-",
    /// Identifies one execution of a job: `job-<UTC time>-<6 hex digits>`.
);
id_type!(TenantRestoreId, "tenant restore id", "tr-",
    /// Identifies one tenant restore, the handle of its undo: `tr-<UTC time>-<6 hex digits>`.
);
id_type!(HoldId, "hold id", "hold-",
    /// Identifies a hold on restore points: `hold-<UTC time>-<6 hex digits>`.
);
id_type!(ErasureId, "erasure id", "er-",
    /// Identifies an entry of the ledger of erasures: `er-<UTC time>-<6 hex digits>`.
);
id_type!(DrillRunId, "drill run id", "run-",
    /// Identifies one execution of a drill: `run-<UTC time>-<6 hex digits>`.
);

impl RestorePointId {
    /// Makes a new identifier for a point of `workload` begun at `at`.
    #[must_use]
    pub fn new(workload: &WorkloadName, at: DateTime<Utc>) -> Self {
        Self(format!(
            "{}{workload}-{}-{}",
            Self::PREFIX,
            stamp(at),
            random::hex(3)
        ))
    }
}

macro_rules! timed_id {
    ($name:ident) => {
        impl $name {
            /// Makes a new identifier for something begun at `at`.
            #[must_use]
            pub fn new(at: DateTime<Utc>) -> Self {
                Self(format!("{}{}-{}", Self::PREFIX, stamp(at), random::hex(3)))
            }
        }
    };
}
timed_id!(JobId);
timed_id!(TenantRestoreId);
timed_id!(DrillRunId);
timed_id!(HoldId);
timed_id!(ErasureId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", "..", "a/b", "-a", "A", "a b", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<WorkloadName>().is_err(), "{bad:?} was accepted");
        }
        assert!("erp-main_2".parse::<WorkloadName>().is_ok());
    }

    #[test]
    fn ids_keep_their_kind() {
        let workload: WorkloadName = "erp".parse().expect("valid");
        let id = RestorePointId::new(&workload, DateTime::UNIX_EPOCH);
        assert!(id.as_str().starts_with("rp-erp-19700101T000000Z-"));
        assert!(id.as_str().parse::<JobId>().is_err());
        assert_eq!(id.as_str().parse::<RestorePointId>().expect("valid"), id);
    }
}

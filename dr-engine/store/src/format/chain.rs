//! The list of a workload's restore points, `chain/<workload>/<sequence, 16 hex>`: JSON, sealed under
//! the master key ([`super::sealed`]).
//!
//! Each entry is the complete list as it is from then on, and names the entry before it by the SHA-256
//! of that object's bytes. The newest entry is the list: a restore point that is not in it is not
//! listed, whatever objects lie about, and one that is in it and whose object is gone or another is
//! noticed. Entries are written once and numbered without gaps, so that of two writers one finds the
//! number taken, reads what the other wrote, and adds to that.

use chrono::{DateTime, Utc};
use dr_model::{RestorePoint, RestorePointId};
use serde::{Deserialize, Serialize};

use super::FormatError;

/// One restore point in the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChainedPoint {
    pub(crate) point: RestorePoint,
    /// SHA-256 of the object `points/<id>`, in hexadecimal digits.
    pub(crate) object_sha256: String,
}

/// What an entry changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ChainEvent {
    /// A restore point was listed.
    Listed(RestorePointId),
    /// Restore points are listed no more. An empty list: nothing changed, and the entry only takes its
    /// number, so that a writer whose session was ended cannot add its point unseen.
    Removed(Vec<RestorePointId>),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChainEntry {
    pub(crate) sequence: u64,
    /// SHA-256 of the entry before this one as it is stored; absent in the first.
    pub(crate) previous_sha256: Option<String>,
    pub(crate) at: DateTime<Utc>,
    pub(crate) event: ChainEvent,
    pub(crate) points: Vec<ChainedPoint>,
}

/// The object that holds an entry.
pub(crate) fn object_name(prefix: &str, sequence: u64) -> String {
    format!("{prefix}{sequence:016x}")
}

/// The number in an entry's object name.
pub(crate) fn sequence_of(prefix: &str, object: &str) -> Option<u64> {
    let digits = object.strip_prefix(prefix)?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (object_name(prefix, sequence) == object).then_some(sequence)
}

pub(crate) fn decode(data: &[u8], sequence: u64) -> Result<ChainEntry, FormatError> {
    let entry: ChainEntry = serde_json::from_slice(data)
        .map_err(|error| FormatError::Damaged(format!("it is no list of points: {error}")))?;
    let is_first = entry.previous_sha256.is_none();
    if entry.sequence != sequence || is_first != (sequence == 1) {
        return Err(FormatError::damaged("it is another entry of the chain"));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_spelling_of_a_number_names_an_entry() {
        let name = object_name("chain/erp/", 0x1f);
        assert_eq!(name, "chain/erp/000000000000001f");
        assert_eq!(sequence_of("chain/erp/", &name), Some(0x1f));
        for bad in [
            "chain/erp/1f",
            "chain/erp/000000000000001F",
            "chain/erp/+00000000000001f",
            "chain/crm/000000000000001f",
        ] {
            assert_eq!(sequence_of("chain/erp/", bad), None, "{bad}");
        }
    }
}

//! A restore point, `points/<id>`: JSON, sealed under the master key ([`super::sealed`]).

use dr_model::RestorePoint;
use serde::{Deserialize, Serialize};

use super::FormatError;
use super::content::{Content, Reference};

/// Entries refer to data keys by a number of 16 bits.
const DATA_KEYS_MAX: usize = 1 << 16;

/// What the object says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PointObject {
    pub(crate) point: RestorePoint,
    pub(crate) details: serde_json::Value,
    /// The session of the writer. It is deleted when the point is listed: a point in no list whose session
    /// is gone was listed once.
    pub(crate) session: String,
    /// Ids of the data keys that contents are under, in hexadecimal digits; entries refer to them by
    /// number. The first is the workload's own, which the listing is under.
    pub(crate) data_keys: Vec<String>,
    pub(crate) listing: Listing,
}

/// Where the listing of its entries is: a content under the workload's data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listing {
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
    pub(crate) depth: u8,
    pub(crate) references: Vec<ListingReference>,
}

/// A chunk of the listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListingReference {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl Listing {
    pub(crate) fn of(content: &Content) -> Self {
        let reference = |reference: &Reference| ListingReference {
            name: hex::encode(reference.name),
            bytes: reference.bytes,
        };
        Self {
            bytes: content.bytes,
            crc32c: content.crc32c,
            depth: content.depth,
            references: content.references.iter().map(reference).collect(),
        }
    }

    pub(crate) fn content(&self) -> Result<Content, FormatError> {
        let reference = |reference: &ListingReference| {
            let mut name = [0u8; 32];
            hex::decode_to_slice(&reference.name, &mut name)
                .map(|()| Reference {
                    name,
                    bytes: reference.bytes,
                })
                .map_err(|_| FormatError::damaged("a chunk name in it is no chunk name"))
        };
        let content = Content {
            bytes: self.bytes,
            crc32c: self.crc32c,
            depth: self.depth,
            references: self
                .references
                .iter()
                .map(reference)
                .collect::<Result<_, _>>()?,
        };
        content.check()?;
        Ok(content)
    }
}

impl PointObject {
    pub(crate) fn key_ids(&self) -> Result<Vec<[u8; 16]>, FormatError> {
        let id = |text: &String| {
            let mut id = [0u8; 16];
            hex::decode_to_slice(text, &mut id)
                .map(|()| id)
                .map_err(|_| FormatError::damaged("a key id in it is no key id"))
        };
        if self.data_keys.is_empty() || self.data_keys.len() > DATA_KEYS_MAX {
            return Err(FormatError::damaged("it has no data key, or too many"));
        }
        self.data_keys.iter().map(id).collect()
    }
}

pub(crate) fn decode(data: &[u8]) -> Result<PointObject, FormatError> {
    serde_json::from_slice(data)
        .map_err(|error| FormatError::Damaged(format!("it is no restore point: {error}")))
}

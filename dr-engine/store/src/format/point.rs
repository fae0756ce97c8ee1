//! A restore point, `points/<id>`: JSON, sealed under the master key ([`super::sealed`]).

use dr_model::RestorePoint;
use serde::{Deserialize, Serialize};

use super::{ChunkName, FormatError};

/// What the object says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PointObject {
    pub(crate) point: RestorePoint,
    pub(crate) details: serde_json::Value,
    pub(crate) listing: Listing,
}

/// Where the listing of its entries is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listing {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) chunks: Vec<String>,
}

impl Listing {
    pub(crate) fn new(bytes: u64, sha256: &[u8; 32], chunks: &[ChunkName]) -> Self {
        Self {
            bytes,
            sha256: hex::encode(sha256),
            chunks: chunks.iter().map(hex::encode).collect(),
        }
    }

    pub(crate) fn chunk_names(&self) -> Result<Vec<ChunkName>, FormatError> {
        let name = |text: &String| {
            let mut name = [0u8; 32];
            hex::decode_to_slice(text, &mut name)
                .map(|()| name)
                .map_err(|_| FormatError::damaged("a chunk name in it is no chunk name"))
        };
        self.chunks.iter().map(name).collect()
    }
}

pub(crate) fn decode(data: &[u8]) -> Result<PointObject, FormatError> {
    serde_json::from_slice(data)
        .map_err(|error| FormatError::Damaged(format!("it is no restore point: {error}")))
}

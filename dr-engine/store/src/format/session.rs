//! Who is writing, `sessions/<workload>/<32 hex>`, and what prune is about to delete,
//! `condemned/<workload>/<32 hex>`: JSON, sealed under the master key ([`super::sealed`]).
//!
//! A writer stores its session before it looks at what is stored, and prune stores the packs it condemns
//! before it looks at the sessions: of any two, at least one sees the other. When they were stored is
//! the place's to say, not theirs: clocks of hosts differ.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::FormatError;

/// A running writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionObject {
    /// The host it runs on.
    pub(crate) host: String,
    /// Its process there.
    pub(crate) pid: u32,
    /// The host's boot, so that a process of an earlier one is known to be gone.
    pub(crate) boot: String,
    /// When it began, by its own clock; for people.
    pub(crate) began: DateTime<Utc>,
    /// What it does.
    #[serde(default)]
    pub(crate) purpose: Purpose,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    /// Writes a restore point.
    #[default]
    Backup,
    /// Removes what nothing needs; one at a time.
    Prune,
}

/// Packs that are going to be deleted: no writer may rely on them any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CondemnedObject {
    /// Ids of packs, in hexadecimal digits.
    pub(crate) packs: Vec<String>,
    /// Another list, which was there before this object was stored: whoever began after this object was
    /// stored has seen that list. (When an object was stored is not when it could first be seen.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) confirms: Option<String>,
}

pub(crate) fn decode<T: for<'a> Deserialize<'a>>(data: &[u8]) -> Result<T, FormatError> {
    serde_json::from_slice(data)
        .map_err(|error| FormatError::Damaged(format!("it cannot be understood: {error}")))
}

impl CondemnedObject {
    pub(crate) fn pack_ids(&self) -> Result<Vec<[u8; 16]>, FormatError> {
        let id = |text: &String| {
            let mut id = [0u8; 16];
            hex::decode_to_slice(text, &mut id)
                .map(|()| id)
                .map_err(|_| FormatError::damaged("a pack in it has no pack's name"))
        };
        self.packs.iter().map(id).collect()
    }
}

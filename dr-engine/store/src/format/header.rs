//! The first 64 bytes of every sealed object.
//!
//! ```text
//!  0  8  "dr-store"
//!  8  1  format version
//!  9  1  kind
//! 10  6  zero
//! 16 16  id of the key it is sealed under
//! 32 32  salt of the object's own key
//! ```

use super::bytes::Fields;
use super::{FormatError, VERSION};
use crate::crypto::{KEY_ID_BYTES, Keys, SALT_BYTES, random_salt};

const MAGIC: &[u8; 8] = b"dr-store";

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 64;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    KeySlot = 1,
    WorkloadKey = 2,
    Pack = 3,
    Index = 4,
    Point = 5,
    Wal = 6,
    Record = 7,
    TenantKey = 8,
    Chain = 9,
    Session = 10,
    Condemned = 11,
    Lock = 12,
}

/// A decoded header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) key_id: [u8; KEY_ID_BYTES],
    pub(crate) salt: [u8; SALT_BYTES],
}

impl Header {
    pub(crate) fn new(kind: Kind, keys: &Keys) -> Self {
        Self {
            kind,
            key_id: keys.id(),
            salt: random_salt(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.push(self.kind as u8);
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&self.key_id);
        out.extend_from_slice(&self.salt);
        out
    }

    /// Reads the header of an object that must be of `kind` and, but for key slots, sealed under
    /// the key with `key_id`.
    pub(crate) fn decode(
        data: &[u8],
        kind: Kind,
        key_id: Option<&[u8; KEY_ID_BYTES]>,
    ) -> Result<Self, FormatError> {
        let mut fields = Fields::of(data);
        if fields.array::<8>()? != *MAGIC {
            return Err(FormatError::damaged(
                "it does not begin as a stored object does",
            ));
        }
        let version = fields.u8()?;
        if version != VERSION {
            return Err(FormatError::Version(u32::from(version)));
        }
        if fields.u8()? != kind as u8 {
            return Err(FormatError::damaged(
                "it is of another kind than its name says",
            ));
        }
        if fields.array::<6>()? != [0; 6] {
            return Err(FormatError::damaged("its header was changed"));
        }
        let header = Self {
            kind,
            key_id: fields.array()?,
            salt: fields.array()?,
        };
        if key_id.is_some_and(|expected| *expected != header.key_id) {
            return Err(FormatError::damaged(
                "it names another key than its place requires",
            ));
        }
        Ok(header)
    }
}

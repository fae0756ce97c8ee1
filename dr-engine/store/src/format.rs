//! What is stored, byte by byte: pure encoding and decoding, one file for each stored thing.
//! `docs/FORMAT.md` says the same in words. All integers are little-endian.

pub(crate) mod bytes;
pub(crate) mod chain;
pub(crate) mod content;
pub(crate) mod data_key;
pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod key_slot;
pub(crate) mod pack;
pub(crate) mod point;
pub(crate) mod repository;
pub(crate) mod sealed;
pub(crate) mod session;
pub(crate) mod tree;
pub(crate) mod wal;

#[cfg(test)]
mod vectors;

/// The version everything here is written in.
pub(crate) const VERSION: u8 = 1;

/// No sealed body and no WAL file is longer: what claims to be is refused before memory is taken for it.
/// (PostgreSQL's longest segment has just this.)
pub(crate) const BODY_BYTES_MAX: u64 = 1 << 30;
/// No chunk is longer. Writers cut shorter ones; a reader holds a few of them at once.
pub(crate) const CHUNK_BYTES_MAX: u32 = 16 << 20;

/// The keyed hash of a chunk's plaintext.
pub(crate) type ChunkName = [u8; 32];
/// The random number that names a repository.
pub(crate) type RepositoryId = [u8; 16];

/// Something stored that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("it has format version {0}")]
    Version(u32),
    #[error("{0}")]
    Damaged(String),
}

impl FormatError {
    pub(crate) fn damaged(what: &str) -> Self {
        Self::Damaged(what.to_owned())
    }
}

impl From<crate::crypto::CryptoFailed> for FormatError {
    /// On reading, a failed opening means changed bytes.
    fn from(_: crate::crypto::CryptoFailed) -> Self {
        Self::damaged("its authentication fails: it was changed or belongs elsewhere")
    }
}

impl From<crate::compress::BadCoding> for FormatError {
    fn from(error: crate::compress::BadCoding) -> Self {
        Self::Damaged(error.to_string())
    }
}

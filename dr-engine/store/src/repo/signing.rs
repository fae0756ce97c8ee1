//! Signing what leaves the repository: see [`Signature`].

use super::Repository;
use crate::StoreError;
use crate::crypto::{CryptoFailed, Signature};
use crate::format::FormatError;

impl Repository {
    /// Signs a document with the repository's own key.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn sign(&self, document: &[u8]) -> Result<Signature, StoreError> {
        let signed = self.inner().master.sign(document);
        signed.map_err(|error| self.refused(error))
    }

    /// The key by which others know what this repository signed, 32 bytes (Ed25519).
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn public_key(&self) -> Result<Vec<u8>, StoreError> {
        let key = self.inner().master.public_key();
        key.map_err(|error| self.refused(error))
    }

    fn refused(&self, error: CryptoFailed) -> StoreError {
        let what = FormatError::Damaged(error.to_string());
        self.inner().unreadable("its signing key", what)
    }
}

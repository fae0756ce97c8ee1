//! Signatures under a key of the repository's own, for documents that leave it (Ed25519, RFC 8032).
//!
//! The key is derived from the master key, so that every place that opens the repository signs alike and
//! nothing more has to be kept; it serves for this and nothing else. Who gets a document needs the public key
//! only.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::{CryptoFailed, Keys, SECRET_BYTES, derive};

/// A public key and what it signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// 32 bytes.
    pub key: Vec<u8>,
    /// 64 bytes.
    pub value: Vec<u8>,
}

impl Signature {
    /// Whether it is that of its own key over just this message. Whose key it is, is another question.
    #[must_use]
    pub fn is_of(&self, message: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(message, &self.value)
            .is_ok()
    }
}

impl Keys {
    /// Signs. The same message gets the same signature.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Signature, CryptoFailed> {
        let pair = self.pair()?;
        Ok(Signature {
            key: pair.public_key().as_ref().to_vec(),
            value: pair.sign(message).as_ref().to_vec(),
        })
    }

    /// The public key that goes with [`Self::sign`].
    pub(crate) fn public_key(&self) -> Result<Vec<u8>, CryptoFailed> {
        Ok(self.pair()?.public_key().as_ref().to_vec())
    }

    fn pair(&self) -> Result<Ed25519KeyPair, CryptoFailed> {
        let info: [&[u8]; 1] = [b"dr-store/1 signing"];
        let seed = derive::<SECRET_BYTES>(self.secret().as_slice(), &[], &info)?;
        Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).map_err(|_| CryptoFailed)
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn keys(fill: u8) -> Keys {
        Keys::new(Zeroizing::new([fill; SECRET_BYTES])).unwrap()
    }

    #[test]
    fn a_signature_is_of_one_key_and_one_message() {
        let signature = keys(1).sign(b"12 rows").unwrap();
        assert_eq!(signature, keys(1).sign(b"12 rows").unwrap());
        assert_eq!(signature.key, keys(1).public_key().unwrap());
        assert!(signature.is_of(b"12 rows"));
        assert!(!signature.is_of(b"13 rows"));
        let mut other = signature.clone();
        other.key = keys(2).public_key().unwrap();
        assert!(!other.is_of(b"12 rows"));
        other = signature;
        other.value[3] ^= 1;
        assert!(!other.is_of(b"12 rows"));
        other.value.clear();
        assert!(!other.is_of(b"12 rows"));
    }

    /// Documents are verified for years: the key that a master key leads to stays. By another program: HKDF of
    /// RFC 5869 written out, and OpenSSL.
    #[test]
    fn the_key_that_signs_is_the_same_for_ever() {
        let key = hex::encode(keys(7).public_key().unwrap());
        assert_eq!(
            key,
            "81031c5e59f59dc7b825f2abad560c69fb3498502ff6f91d7f5d22651db68d5a"
        );
    }
}

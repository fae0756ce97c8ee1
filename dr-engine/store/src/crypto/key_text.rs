//! The operator's key and its text: one line, strict, with a checksum, so that a copy with one
//! changed bit is called "not valid" instead of failing as some other key would.

use zeroize::Zeroizing;

use super::{SECRET_BYTES, Secret, random_secret, sha256};
use crate::StoreError;

const PREFIX: &str = "dr-repository-key-1:";
const CHECK_BYTES: usize = 8;

/// The key that opens a repository; kept by the operator in a key file.
pub struct RepositoryKey(Secret);

impl std::fmt::Debug for RepositoryKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RepositoryKey(…)")
    }
}

impl RepositoryKey {
    /// Makes a new random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(random_secret())
    }

    /// Reads the text of a key file: what [`Self::to_text`] wrote, with or without the line end.
    ///
    /// # Errors
    /// When the text is anything else, were it by one bit.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let invalid = |what| StoreError::InvalidKey { what };
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            return Err(invalid("it is empty"));
        }
        let encoded = line
            .strip_prefix(PREFIX)
            .ok_or_else(|| invalid("it does not begin as a repository key does"))?;
        let (secret_hex, _) = encoded
            .split_once(':')
            .ok_or_else(|| invalid("it is cut short"))?;
        let mut secret: Secret = Zeroizing::new([0u8; SECRET_BYTES]);
        hex::decode_to_slice(secret_hex, secret.as_mut_slice())
            .map_err(|_| invalid("it has a wrong length or a character that is no digit of it"))?;
        let key = Self(secret);
        // Compared as text, so that no second spelling (upper case, spaces) is a key as well.
        if key.line().as_str() == line {
            Ok(key)
        } else {
            Err(invalid(
                "its checksum does not fit: at least one character was changed",
            ))
        }
    }

    /// The text of a key file, with a line end.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = self.line();
        text.push('\n');
        text
    }

    fn line(&self) -> Zeroizing<String> {
        let check: String = sha256(self.0.as_slice())
            .iter()
            .take(CHECK_BYTES)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let secret = Zeroizing::new(hex::encode(self.0.as_slice()));
        // Room for the line end, so that pushing it does not leave a copy behind.
        let mut line = Zeroizing::new(String::with_capacity(128));
        for part in [PREFIX, secret.as_str(), ":", &check] {
            line.push_str(part);
        }
        line
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_a_round_trip_and_no_changed_bit_does() {
        let text = RepositoryKey::generate().to_text();
        assert_eq!(RepositoryKey::parse(&text).unwrap().to_text(), text);
        assert!(RepositoryKey::parse(text.trim_end()).is_ok());
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.as_bytes().to_vec();
                bytes[index] ^= 1 << bit;
                if let Ok(changed) = String::from_utf8(bytes) {
                    assert!(
                        RepositoryKey::parse(&changed).is_err(),
                        "bit {bit} of byte {index} was not noticed"
                    );
                }
            }
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = RepositoryKey::generate();
        let secret = hex::encode(key.secret().as_slice());
        assert!(!format!("{key:?}").contains(&secret));
    }
}

//! Secrets as text: one line, strict, with a checksum, so that a copy with one changed bit is called
//! "not valid" instead of failing as some other key would. A key file holds such a line; a key
//! command is given one to wrap and must give it back.

use zeroize::Zeroizing;

use super::{SECRET_BYTES, Secret, sha256};
use crate::StoreError;

/// What the text of a key file begins with.
pub(super) const KEY_FILE: &str = "dr-repository-key-1:";
/// What the text begins with that a key command wraps.
pub(super) const SLOT_SECRET: &str = "dr-slot-secret-1:";
const CHECK_BYTES: usize = 8;

/// The text of a secret, with a line end.
pub(super) fn write(prefix: &str, secret: &Secret) -> Zeroizing<String> {
    let mut text = line(prefix, secret);
    text.push('\n');
    text
}

fn line(prefix: &str, secret: &Secret) -> Zeroizing<String> {
    let check: String = sha256(secret.as_slice())
        .iter()
        .take(CHECK_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let digits = Zeroizing::new(hex::encode(secret.as_slice()));
    // Room for the line end, so that pushing it does not leave a copy behind.
    let mut line = Zeroizing::new(String::with_capacity(128));
    for part in [prefix, digits.as_str(), ":", &check] {
        line.push_str(part);
    }
    line
}

/// Reads what [`write`] wrote, with or without the line end, and nothing else.
pub(super) fn read(prefix: &str, text: &str) -> Result<Secret, StoreError> {
    let invalid = |what| StoreError::InvalidKey { what };
    let given = text.strip_suffix('\n').unwrap_or(text);
    let given = given.strip_suffix('\r').unwrap_or(given);
    if given.is_empty() {
        return Err(invalid("it is empty"));
    }
    let encoded = given
        .strip_prefix(prefix)
        .ok_or_else(|| invalid("it does not begin as a repository key does"))?;
    let (digits, _) = encoded
        .split_once(':')
        .ok_or_else(|| invalid("it is cut short"))?;
    let mut secret: Secret = Zeroizing::new([0u8; SECRET_BYTES]);
    hex::decode_to_slice(digits, secret.as_mut_slice())
        .map_err(|_| invalid("it has a wrong length or a character that is no digit of it"))?;
    // Compared as text, so that no second spelling (upper case, spaces) is a key as well.
    if line(prefix, &secret).as_str() == given {
        Ok(secret)
    } else {
        Err(invalid(
            "its checksum does not fit: at least one character was changed",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn a_key_survives_a_round_trip_and_no_changed_bit_does() {
        let secret = random_secret();
        let text = write(KEY_FILE, &secret);
        assert_eq!(read(KEY_FILE, &text).unwrap(), secret);
        assert!(read(KEY_FILE, text.trim_end()).is_ok());
        assert!(read(SLOT_SECRET, &text).is_err());
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.as_bytes().to_vec();
                bytes[index] ^= 1 << bit;
                if let Ok(changed) = String::from_utf8(bytes) {
                    assert!(
                        read(KEY_FILE, &changed).is_err(),
                        "bit {bit} of byte {index} was not noticed"
                    );
                }
            }
        }
    }
}

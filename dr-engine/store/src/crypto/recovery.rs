//! The offline recovery key: an age identity (age-encryption.org/v1, X25519). A slot for it needs
//! only the recipient, so that the identity can stay in a safe from the day it was made.

use std::io::Read;

use age::secrecy::ExposeSecret;
use age::x25519::{Identity, Recipient};
use zeroize::{Zeroize, Zeroizing};

use super::{SECRET_BYTES, Secret};
use crate::StoreError;
use crate::format::FormatError;

/// An identity file holds a handful of identities, not a key ring.
const IDENTITIES_MAX: usize = 16;

fn invalid(what: &'static str) -> StoreError {
    StoreError::InvalidKey { what }
}

/// Reads an identity file as `age-keygen` writes it: comments, and one identity on a line.
pub(super) fn identities(text: &str) -> Result<Vec<Identity>, StoreError> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("age-encryption.org/") || line.starts_with("-----BEGIN AGE") {
            return Err(invalid(
                "the age identity file is itself encrypted: decrypt it first (`age -d`)",
            ));
        }
        found.push(line.parse().map_err(|_| {
            invalid("a line of the age identity file is no `AGE-SECRET-KEY-1…` of kind X25519")
        })?);
    }
    match found.len() {
        0 => Err(invalid("the age identity file holds no identity")),
        1..=IDENTITIES_MAX => Ok(found),
        _ => Err(invalid("the age identity file holds too many identities")),
    }
}

/// The recipient of an identity, as text.
pub(super) fn recipient_of(identity: &Identity) -> String {
    identity.to_public().to_string()
}

/// Whether a text is a recipient that a slot can be made for.
pub(super) fn check_recipient(text: &str) -> Result<(), StoreError> {
    text.parse::<Recipient>()
        .map(|_| ())
        .map_err(|_| invalid("it is no age recipient (`age1…`) of kind X25519"))
}

/// Seals a slot's secret for a recipient.
pub(super) fn seal(recipient: &str, secret: &Secret) -> Result<Vec<u8>, StoreError> {
    check_recipient(recipient)?;
    let recipient: Recipient = recipient
        .parse()
        .map_err(|_| invalid("it is no age recipient (`age1…`) of kind X25519"))?;
    age::encrypt(&recipient, secret.as_slice()).map_err(|source| StoreError::Encode {
        what: "a slot for an age recipient",
        source: Box::new(source),
    })
}

/// Opens a slot's secret; `None` when it was sealed for somebody else.
pub(super) fn open(identities: &[Identity], sealed: &[u8]) -> Result<Option<Secret>, FormatError> {
    let broken = || FormatError::damaged("the age file in it is not whole");
    let decryptor = age::Decryptor::new_buffered(sealed).map_err(|_| broken())?;
    let known = identities.iter().map(|one| one as &dyn age::Identity);
    let mut reader = match decryptor.decrypt(known) {
        Ok(reader) => reader,
        Err(age::DecryptError::NoMatchingKeys) => return Ok(None),
        Err(_) => return Err(broken()),
    };
    let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
    reader
        .read_exact(secret.as_mut_slice())
        .map_err(|_| broken())?;
    let mut more = [0u8; 1];
    match reader.read(&mut more) {
        Ok(0) => Ok(Some(secret)),
        _ => {
            more.zeroize();
            Err(broken())
        }
    }
}

/// A new identity, as `age-keygen` writes it; for tests and for who has no `age-keygen` at hand.
pub(super) fn new_identity() -> (Zeroizing<String>, String) {
    let identity = Identity::generate();
    let recipient = recipient_of(&identity);
    let text = Zeroizing::new(format!(
        "# public key: {recipient}\n{}\n",
        identity.to_string().expose_secret()
    ));
    (text, recipient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn only_the_identity_opens_what_was_sealed_for_its_recipient() {
        let (text, recipient) = new_identity();
        let secret = random_secret();
        let sealed = seal(&recipient, &secret).unwrap();
        let mine = identities(&text).unwrap();
        assert_eq!(open(&mine, &sealed).unwrap(), Some(secret));
        let (other, _) = new_identity();
        assert_eq!(open(&identities(&other).unwrap(), &sealed).unwrap(), None);
        let both = format!("{}{}", other.as_str(), text.as_str());
        assert!(
            open(&identities(&both).unwrap(), &sealed)
                .unwrap()
                .is_some()
        );
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(
                !matches!(open(&mine, &changed), Ok(Some(_))),
                "byte {index}"
            );
        }
    }

    #[test]
    fn what_is_no_identity_and_no_recipient_is_refused_without_repeating_it() {
        let (text, recipient) = new_identity();
        let secret_line = text.lines().nth(1).unwrap();
        for bad in [
            "",
            "# only a comment\n",
            "AGE-SECRET-KEY-1XYZ",
            &secret_line[..40],
        ] {
            let error = identities(bad).err().unwrap().to_string();
            assert!(bad.len() < 10 || !error.contains(bad), "{error}");
        }
        assert!(check_recipient(&recipient).is_ok());
        assert!(check_recipient(&recipient[..30]).is_err());
        assert!(check_recipient(secret_line).is_err());
    }
}

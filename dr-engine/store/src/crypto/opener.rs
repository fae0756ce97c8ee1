//! What an operator has in hand: something that opens a key slot, or for which one can be made.
//!
//! Only slots of the opener's own kind are tried. So who opens with a key file never pays for a
//! passphrase's stretching, and starts no outside program.

use std::fmt;

use age::x25519::Identity;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::passphrase::Stretching;
use super::{KeyCommand, Secret, key_text, random_secret, recovery};
use crate::StoreError;
use crate::format::FormatError;

/// Shorter passphrases are guessed by who has a copy of the repository and time.
const PASSPHRASE_CHARS_MIN: usize = 12;
const PASSPHRASE_BYTES_MAX: usize = 4096;

/// How a key slot is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum SlotKind {
    /// By a key file.
    KeyFile = 1,
    /// By a passphrase.
    Passphrase = 2,
    /// By an age identity.
    AgeRecipient = 3,
    /// By an outside command.
    Command = 4,
}

impl SlotKind {
    /// The kind, for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyFile => "key-file",
            Self::Passphrase => "passphrase",
            Self::AgeRecipient => "age-recipient",
            Self::Command => "command",
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What stands in a slot beside its commitment: what its opener needs to come to the slot's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SlotData {
    /// The secret is what the key file holds.
    KeyFile,
    /// The secret is stretched from the passphrase.
    Passphrase(Stretching),
    /// The secret, sealed for the recipient.
    AgeRecipient { recipient: String, sealed: Vec<u8> },
    /// The secret, wrapped by the command.
    Command { wrapped: Vec<u8> },
}

impl SlotData {
    pub(crate) fn kind(&self) -> SlotKind {
        match self {
            Self::KeyFile => SlotKind::KeyFile,
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::AgeRecipient { .. } => SlotKind::AgeRecipient,
            Self::Command { .. } => SlotKind::Command,
        }
    }
}

/// Opens a repository: one of the four things that a key slot can be made for.
///
/// ```
/// # use dr_store::RepositoryKey;
/// let key = RepositoryKey::generate();
/// let text = key.to_text().expect("a key file has a text");
/// assert!(RepositoryKey::parse(&text).is_ok());
/// ```
pub struct RepositoryKey(Opener);

enum Opener {
    KeyFile(Secret),
    Passphrase(Zeroizing<String>),
    Age(Vec<Identity>),
    Command(KeyCommand),
}

impl fmt::Debug for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepositoryKey({}, …)", self.kind())
    }
}

impl RepositoryKey {
    /// Makes a new random key for a key file.
    #[must_use]
    pub fn generate() -> Self {
        Self(Opener::KeyFile(random_secret()))
    }

    /// Reads the text of a key file: what [`Self::to_text`] gave, with or without the line end.
    ///
    /// # Errors
    /// When the text is anything else, were it by one bit.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        key_text::read(key_text::KEY_FILE, text)
            .map(Opener::KeyFile)
            .map(Self)
    }

    /// The text of a key file, with a line end; `None` of a key that is kept in no key file.
    #[must_use]
    pub fn to_text(&self) -> Option<Zeroizing<String>> {
        match &self.0 {
            Opener::KeyFile(secret) => Some(key_text::write(key_text::KEY_FILE, secret)),
            _ => None,
        }
    }

    /// A passphrase, byte for byte, but for one line end behind it.
    ///
    /// # Errors
    /// When it is too short to protect anything, or far too long.
    pub fn passphrase(text: &str) -> Result<Self, StoreError> {
        let invalid = |what| StoreError::InvalidKey { what };
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.chars().count() < PASSPHRASE_CHARS_MIN {
            return Err(invalid("the passphrase has fewer than 12 characters"));
        }
        if line.len() > PASSPHRASE_BYTES_MAX {
            return Err(invalid("the passphrase has more than 4096 bytes"));
        }
        Ok(Self(Opener::Passphrase(Zeroizing::new(line.to_owned()))))
    }

    /// The identities of an age identity file (X25519).
    ///
    /// # Errors
    /// When it holds anything else, or is itself encrypted.
    pub fn age_identity(text: &str) -> Result<Self, StoreError> {
        recovery::identities(text).map(Opener::Age).map(Self)
    }

    /// A command that wraps and unwraps the secret of its slot.
    #[must_use]
    pub fn command(command: KeyCommand) -> Self {
        Self(Opener::Command(command))
    }

    /// The kind of slot it opens.
    #[must_use]
    pub fn kind(&self) -> SlotKind {
        match self.0 {
            Opener::KeyFile(_) => SlotKind::KeyFile,
            Opener::Passphrase(_) => SlotKind::Passphrase,
            Opener::Age(_) => SlotKind::AgeRecipient,
            Opener::Command(_) => SlotKind::Command,
        }
    }

    /// Makes the secret of a new slot, and what stands in the slot for coming to it again.
    pub(crate) fn new_slot(&self) -> Result<(SlotData, Secret), StoreError> {
        match &self.0 {
            Opener::KeyFile(secret) => Ok((SlotData::KeyFile, secret.clone())),
            Opener::Passphrase(text) => {
                let stretching = Stretching::new();
                let secret = stretching
                    .secret(text)
                    .map_err(|source| StoreError::Encode {
                        what: "a passphrase's slot",
                        source: Box::new(source),
                    })?;
                Ok((SlotData::Passphrase(stretching), secret))
            }
            Opener::Age(identities) => {
                let first = identities.first().ok_or(StoreError::InvalidKey {
                    what: "the age identity file holds no identity",
                })?;
                NewSlot::AgeRecipient(recovery::recipient_of(first)).make()
            }
            Opener::Command(command) => {
                let secret = random_secret();
                let wrapped = command.wrap(&secret)?;
                Ok((SlotData::Command { wrapped }, secret))
            }
        }
    }

    /// The secret of a slot; `None` when the slot is visibly not for this opener. That it is the right
    /// one, only the slot's commitment can tell.
    pub(crate) fn secret_of(&self, slot: &SlotData) -> Result<Option<Secret>, SlotRefused> {
        match (&self.0, slot) {
            (Opener::KeyFile(secret), SlotData::KeyFile) => Ok(Some(secret.clone())),
            (Opener::Passphrase(text), SlotData::Passphrase(stretching)) => stretching
                .secret(text)
                .map(Some)
                .map_err(|error| SlotRefused::Slot(error.into())),
            (Opener::Age(identities), SlotData::AgeRecipient { sealed, .. }) => {
                recovery::open(identities, sealed).map_err(SlotRefused::Slot)
            }
            (Opener::Command(command), SlotData::Command { wrapped }) => command
                .unwrap(wrapped)
                .map(Some)
                .map_err(SlotRefused::Opener),
            _ => Ok(None),
        }
    }
}

/// Why a slot of the right kind gave no secret.
pub(crate) enum SlotRefused {
    /// The slot is not as it was written.
    Slot(FormatError),
    /// The opener failed.
    Opener(StoreError),
}

/// What a new key slot is made for.
#[derive(Debug)]
pub enum NewSlot {
    /// Something at hand that will open it.
    For(RepositoryKey),
    /// An age recipient (`age1…`): whoever has its identity will open it; it need not be here.
    AgeRecipient(String),
}

impl NewSlot {
    /// A slot for an age recipient.
    ///
    /// # Errors
    /// When the text is no recipient of kind X25519.
    pub fn age_recipient(text: &str) -> Result<Self, StoreError> {
        let text = text.trim();
        recovery::check_recipient(text)?;
        Ok(Self::AgeRecipient(text.to_owned()))
    }

    pub(crate) fn make(&self) -> Result<(SlotData, Secret), StoreError> {
        match self {
            Self::For(key) => key.new_slot(),
            Self::AgeRecipient(recipient) => {
                let secret = random_secret();
                let sealed = recovery::seal(recipient, &secret)?;
                let recipient = recipient.clone();
                Ok((SlotData::AgeRecipient { recipient, sealed }, secret))
            }
        }
    }
}

/// Makes an age identity, as `age-keygen` does: the text of its file, and its recipient.
#[must_use]
pub fn new_age_identity() -> (Zeroizing<String>, String) {
    recovery::new_identity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_printed() {
        let (identity, _) = new_age_identity();
        let keys = [
            RepositoryKey::generate(),
            RepositoryKey::passphrase("a passphrase of some length").unwrap(),
            RepositoryKey::age_identity(&identity).unwrap(),
        ];
        for key in keys {
            let shown = format!("{key:?}");
            assert!(shown.len() < 40, "{shown}");
            assert!(!shown.contains("some length"), "{shown}");
        }
    }

    #[test]
    fn a_passphrase_is_taken_byte_for_byte_and_not_when_it_is_short() {
        assert!(RepositoryKey::passphrase("eleven char").is_err());
        assert!(RepositoryKey::passphrase(&"x".repeat(5000)).is_err());
        let text = |key: &RepositoryKey| match &key.0 {
            Opener::Passphrase(text) => text.to_string(),
            _ => String::new(),
        };
        let key = RepositoryKey::passphrase(" twelve chars at least \r\n").unwrap();
        assert_eq!(text(&key), " twelve chars at least ");
    }
}

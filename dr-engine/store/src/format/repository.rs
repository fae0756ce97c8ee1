//! The object `repository`: the only one in plain text, so that a person who finds the place knows
//! what it is. Its bytes are canonical: any other spelling of the same values is refused.

use serde::{Deserialize, Serialize};

use super::{FormatError, RepositoryId, VERSION};
use crate::Capabilities;
use crate::crypto::sha256;

/// The object's name.
pub(crate) const NAME: &str = "repository";

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RepositoryObject {
    pub(crate) id: RepositoryId,
    /// What the place was seen to do when the repository was created.
    pub(crate) capabilities: Capabilities,
}

#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u32,
    id: String,
    capabilities: Capabilities,
    #[serde(default)]
    sha256: String,
}

fn text_of(value: &RepositoryObject) -> Result<String, FormatError> {
    let failed = |_| FormatError::damaged("it cannot be put in words");
    let mut text = Text {
        format: "dr-store".to_owned(),
        version: u32::from(VERSION),
        id: hex::encode(value.id),
        capabilities: value.capabilities,
        sha256: String::new(),
    };
    text.sha256 = hex::encode(sha256(&serde_json::to_vec(&text).map_err(failed)?));
    serde_json::to_string(&text)
        .map(|line| line + "\n")
        .map_err(failed)
}

pub(crate) fn encode(value: &RepositoryObject) -> Result<Vec<u8>, FormatError> {
    text_of(value).map(String::into_bytes)
}

pub(crate) fn decode(data: &[u8]) -> Result<RepositoryObject, FormatError> {
    let unreadable = || FormatError::damaged("it is not the description of a repository");
    let text: Text = serde_json::from_slice(data).map_err(|_| unreadable())?;
    if text.format != "dr-store" {
        return Err(unreadable());
    }
    if text.version != u32::from(VERSION) {
        return Err(FormatError::Version(text.version));
    }
    let mut id = [0u8; 16];
    hex::decode_to_slice(&text.id, &mut id).map_err(|_| unreadable())?;
    let value = RepositoryObject {
        id,
        capabilities: text.capabilities,
    };
    if text_of(&value)?.as_bytes() == data {
        Ok(value)
    } else {
        Err(FormatError::damaged("its checksum does not fit"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_noticed() {
        let value = RepositoryObject {
            id: [0xa5; 16],
            capabilities: Capabilities {
                put_if_absent: true,
                clock_skew_seconds: -3,
                ..Capabilities::default()
            },
        };
        let data = encode(&value).unwrap();
        assert_eq!(decode(&data).unwrap(), value);
        for index in 0..data.len() {
            for bit in 0..8 {
                let mut changed = data.clone();
                changed[index] ^= 1 << bit;
                assert!(decode(&changed).is_err(), "bit {bit} of byte {index}");
            }
        }
    }
}

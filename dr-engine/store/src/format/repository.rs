//! The object `repository`: the only one in plain text, so that a person who finds the place knows
//! what it is. Its bytes are canonical: any other spelling of the same values is refused.

use serde::{Deserialize, Serialize};

use super::{FormatError, RepositoryId, VERSION};
use crate::crypto::sha256;

/// The object's name.
pub(crate) const NAME: &str = "repository";

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RepositoryObject {
    pub(crate) id: RepositoryId,
    /// Whether the place was seen to refuse writing what exists.
    pub(crate) put_if_absent: bool,
}

#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u32,
    id: String,
    put_if_absent: bool,
    #[serde(default)]
    sha256: String,
}

fn text_of(value: &RepositoryObject) -> Result<String, FormatError> {
    let failed = |_| FormatError::damaged("it cannot be put in words");
    let mut text = Text {
        format: "dr-store".to_owned(),
        version: u32::from(VERSION),
        id: hex::encode(value.id),
        put_if_absent: value.put_if_absent,
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
        put_if_absent: text.put_if_absent,
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
            put_if_absent: true,
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

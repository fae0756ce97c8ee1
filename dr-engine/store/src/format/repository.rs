//! The object `repository`: the only one in plain text, so that a person who finds the place knows
//! what it is. One line of JSON whose last member is the SHA-256 of the line's bytes before it, so that any
//! changed bit is noticed whatever members there are.

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
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u32,
    id: String,
    capabilities: Capabilities,
}

/// What every version says.
#[derive(Deserialize)]
struct Versioned {
    format: String,
    version: u32,
}

/// Bytes of the checksum's member with the brace and the line end after it.
const SUM_BYTES: usize = 78;

/// The end of the line: the SHA-256 of everything before it, as the last member.
fn sum_of(checked: &[u8]) -> String {
    format!(",\"sha256\":\"{}\"}}\n", hex::encode(sha256(checked)))
}

pub(crate) fn encode(value: &RepositoryObject) -> Result<Vec<u8>, FormatError> {
    let text = Text {
        format: "dr-store".to_owned(),
        version: u32::from(VERSION),
        id: hex::encode(value.id),
        capabilities: value.capabilities,
    };
    let mut line =
        serde_json::to_vec(&text).map_err(|_| FormatError::damaged("it cannot be put in words"))?;
    // The closing brace comes after the checksum.
    line.pop();
    let sum = sum_of(&line);
    line.extend_from_slice(sum.as_bytes());
    Ok(line)
}

pub(crate) fn decode(data: &[u8]) -> Result<RepositoryObject, FormatError> {
    let unreadable = || FormatError::damaged("it is not the description of a repository");
    // The version first: another one may spell the rest differently.
    let versioned: Versioned = serde_json::from_slice(data).map_err(|_| unreadable())?;
    if versioned.format != "dr-store" {
        return Err(unreadable());
    }
    if versioned.version != u32::from(VERSION) {
        return Err(FormatError::Version(versioned.version));
    }
    let (checked, sum) = data
        .len()
        .checked_sub(SUM_BYTES)
        .and_then(|length| data.split_at_checked(length))
        .ok_or_else(unreadable)?;
    if sum_of(checked).as_bytes() != sum {
        return Err(FormatError::damaged("its checksum does not fit"));
    }
    let mut line = checked.to_vec();
    line.push(b'}');
    let text: Text = serde_json::from_slice(&line).map_err(|_| unreadable())?;
    let mut id = [0u8; 16];
    hex::decode_to_slice(&text.id, &mut id).map_err(|_| unreadable())?;
    Ok(RepositoryObject {
        id,
        capabilities: text.capabilities,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_named_however_it_spells_the_rest() {
        let newer = b"{\"format\":\"dr-store\",\"version\":2,\"name\":[1,2]}\n";
        assert_eq!(decode(newer), Err(FormatError::Version(2)));
        let foreign = b"{\"format\":\"other\",\"version\":2}\n";
        assert!(matches!(decode(foreign), Err(FormatError::Damaged(_))));
    }

    #[test]
    fn a_capability_that_is_not_known_or_not_said_is_no_damage() {
        let with = |capabilities: &str| {
            let id = "a5".repeat(16);
            let line = format!(
                "{{\"format\":\"dr-store\",\"version\":1,\"id\":\"{id}\",\"capabilities\":{capabilities}"
            );
            decode((line.clone() + &sum_of(line.as_bytes())).as_bytes())
        };
        let value = with("{\"later\":7,\"put_if_absent\":true}").unwrap();
        assert!(value.capabilities.put_if_absent);
        assert_eq!(with("{}").unwrap().capabilities, Capabilities::default());
        assert!(with("{},\"must\":1").is_err());
    }

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

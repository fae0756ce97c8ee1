//! A key slot, `keys/<slot>`: the master key, wrapped under a key that an operator keeps.
//!
//! ```text
//!   0 64  header; its key id is the master key's
//!  64 32  commitment to the key that opens the slot
//!  96 48  frame 0, sealed, bound to header and commitment: the master key
//! 144 32  SHA-256 of all before it: tells a damaged slot from a wrong key
//! ```

use zeroize::{Zeroize, Zeroizing};

use super::bytes::Fields;
use super::header::{HEADER_BYTES, Header, Kind};
use super::{FormatError, RepositoryId, VERSION};
use crate::crypto::{
    CryptoFailed, FrameContext, Keys, RepositoryKey, SECRET_BYTES, Secret, commitment, equal,
    sha256,
};

const COMMITTED_BYTES: usize = HEADER_BYTES + 32;
const CHECKED_BYTES: usize = COMMITTED_BYTES + SECRET_BYTES + crate::crypto::TAG_BYTES;

fn wrapping(key: &RepositoryKey) -> Result<Keys, CryptoFailed> {
    Keys::new(key.secret().clone())
}

fn context<'a>(
    repository: &'a RepositoryId,
    header: &'a Header,
    object: &'a str,
    bound_to: &'a [u8],
) -> FrameContext<'a> {
    FrameContext {
        repository,
        version: VERSION,
        kind: Kind::KeySlot as u8,
        key_id: &header.key_id,
        object,
        frame: 0,
        offset: COMMITTED_BYTES as u64,
        bound_to,
    }
}

pub(crate) fn encode(
    repository: &RepositoryId,
    object: &str,
    key: &RepositoryKey,
    master: &Keys,
) -> Result<Vec<u8>, CryptoFailed> {
    let header = Header::new(Kind::KeySlot, master);
    let mut out = header.encode();
    out.extend_from_slice(&commitment(key.secret().as_slice(), &header.salt)?);
    let mut frame = Vec::with_capacity(SECRET_BYTES + crate::crypto::TAG_BYTES);
    frame.extend_from_slice(master.secret().as_slice());
    wrapping(key)?
        .object_seal(Kind::KeySlot as u8, &header.salt)?
        .seal(&context(repository, &header, object, &out), &mut frame)?;
    out.extend_from_slice(&frame);
    out.extend_from_slice(&sha256(&out));
    Ok(out)
}

/// Reads what can be read of a slot without the key that opens it.
pub(crate) fn inspect(data: &[u8], master: &Keys) -> Result<(), FormatError> {
    let checked = checked(data)?;
    Header::decode(checked, Kind::KeySlot, Some(&master.id())).map(|_| ())
}

/// The slot without its checksum.
fn checked(data: &[u8]) -> Result<&[u8], FormatError> {
    let mut fields = Fields::of(data);
    let checked = fields.take(CHECKED_BYTES)?;
    let sum: [u8; 32] = fields.array()?;
    fields.end()?;
    if sha256(checked) == sum {
        Ok(checked)
    } else {
        Err(FormatError::damaged("its checksum does not fit"))
    }
}

/// Opens a slot; `None` when it was made for another key.
pub(crate) fn decode(
    repository: &RepositoryId,
    object: &str,
    key: &RepositoryKey,
    data: &[u8],
) -> Result<Option<Keys>, FormatError> {
    let checked = checked(data)?;
    let header = Header::decode(checked, Kind::KeySlot, None)?;
    let mut fields = Fields::of(checked);
    let bound_to = fields.take(COMMITTED_BYTES)?;
    let frame = fields.rest();
    let mut committed = Fields::of(bound_to);
    committed.take(HEADER_BYTES)?;
    if !equal(
        committed.rest(),
        &commitment(key.secret().as_slice(), &header.salt)?,
    ) {
        return Ok(None);
    }
    let mut opened = wrapping(key)?
        .object_seal(Kind::KeySlot as u8, &header.salt)?
        .open(
            &context(repository, &header, object, bound_to),
            frame.to_vec(),
        )?;
    let secret = secret_of(&opened);
    opened.zeroize();
    let master = Keys::new(secret?)?;
    if master.id() == header.key_id {
        Ok(Some(master))
    } else {
        Err(FormatError::damaged("it holds another key than it names"))
    }
}

/// A secret from decoded bytes.
pub(crate) fn secret_of(bytes: &[u8]) -> Result<Secret, FormatError> {
    let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
    if bytes.len() != SECRET_BYTES {
        return Err(FormatError::damaged("the key in it has a wrong length"));
    }
    secret.copy_from_slice(bytes);
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn a_slot_opens_with_its_key_and_tells_damage_from_a_wrong_key() {
        let key = RepositoryKey::generate();
        let master = Keys::new(random_secret()).unwrap();
        let id = [3u8; 16];
        let data = encode(&id, "keys/a", &key, &master).unwrap();
        let opened = decode(&id, "keys/a", &key, &data).unwrap().unwrap();
        assert_eq!(opened.id(), master.id());
        assert!(
            decode(&id, "keys/a", &RepositoryKey::generate(), &data)
                .unwrap()
                .is_none()
        );
        assert!(decode(&id, "keys/b", &key, &data).is_err());
        assert!(decode(&[4u8; 16], "keys/a", &key, &data).is_err());
        for index in 0..data.len() {
            let mut changed = data.clone();
            changed[index] ^= 1;
            assert!(
                decode(&id, "keys/a", &key, &changed).is_err(),
                "byte {index}"
            );
        }
    }
}

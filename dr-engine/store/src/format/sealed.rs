//! An object with one sealed frame: workload keys, indexes, restore points and records.
//!
//! ```text
//!  0 64  header
//! 64  …  frame 0, sealed, bound to the header: length of the body (8), the body packed
//! ```

use super::bytes::Fields;
use super::header::{HEADER_BYTES, Header, Kind};
use super::{BODY_BYTES_MAX, FormatError, RepositoryId, VERSION};
use crate::compress;
use crate::crypto::{CryptoFailed, FrameContext, KEY_ID_BYTES, Keys};

/// Structured things compress well at little cost.
const LEVEL: i32 = 3;

fn context<'a>(
    repository: &'a RepositoryId,
    header: &'a Header,
    header_bytes: &'a [u8],
    object: &'a str,
) -> FrameContext<'a> {
    FrameContext {
        repository,
        version: VERSION,
        kind: header.kind as u8,
        key_id: &header.key_id,
        object,
        frame: 0,
        offset: HEADER_BYTES as u64,
        bound_to: header_bytes,
    }
}

pub(crate) fn encode(
    repository: &RepositoryId,
    keys: &Keys,
    kind: Kind,
    object: &str,
    body: &[u8],
) -> Result<Vec<u8>, CryptoFailed> {
    // Writers stay far below (an index is split); what no reader takes is never written.
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(CryptoFailed);
    }
    let header = Header::new(kind, keys);
    let mut out = header.encode();
    let mut frame = (body.len() as u64).to_le_bytes().to_vec();
    frame.extend_from_slice(&compress::pack(body, LEVEL));
    keys.object_seal(kind as u8, &header.salt)?
        .seal(&context(repository, &header, &out, object), &mut frame)?;
    out.extend_from_slice(&frame);
    Ok(out)
}

/// Which key an object of one sealed frame says it is under; not yet authenticated.
pub(crate) fn key_id(data: &[u8], kind: Kind) -> Result<[u8; KEY_ID_BYTES], FormatError> {
    Header::decode(data, kind, None).map(|header| header.key_id)
}

pub(crate) fn decode(
    repository: &RepositoryId,
    keys: &Keys,
    kind: Kind,
    object: &str,
    data: &[u8],
) -> Result<Vec<u8>, FormatError> {
    let header = Header::decode(data, kind, Some(&keys.id()))?;
    let (header_bytes, frame) = data
        .split_at_checked(HEADER_BYTES)
        .ok_or_else(|| FormatError::damaged("it is cut short"))?;
    let frame = keys.object_seal(kind as u8, &header.salt)?.open(
        &context(repository, &header, header_bytes, object),
        frame.to_vec(),
    )?;
    let mut fields = Fields::of(&frame);
    let length = fields.u64()?;
    if length > BODY_BYTES_MAX {
        return Err(FormatError::damaged("it is longer than any object is"));
    }
    Ok(compress::unpack(fields.rest(), length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn an_object_opens_only_where_and_as_it_was_written() {
        let keys = Keys::new(random_secret()).unwrap();
        let other = Keys::new(random_secret()).unwrap();
        let id = [1u8; 16];
        let data = encode(&id, &keys, Kind::Record, "records/a/b", b"hello").unwrap();
        let open = |id: &RepositoryId, keys: &Keys, kind, name: &str, data: &[u8]| {
            decode(id, keys, kind, name, data)
        };
        assert_eq!(
            open(&id, &keys, Kind::Record, "records/a/b", &data).unwrap(),
            b"hello"
        );
        assert!(open(&[2u8; 16], &keys, Kind::Record, "records/a/b", &data).is_err());
        assert!(open(&id, &other, Kind::Record, "records/a/b", &data).is_err());
        assert!(open(&id, &keys, Kind::Point, "records/a/b", &data).is_err());
        assert!(open(&id, &keys, Kind::Record, "records/a/c", &data).is_err());
        for index in 0..data.len() {
            let mut changed = data.clone();
            changed[index] ^= 0x10;
            assert!(
                open(&id, &keys, Kind::Record, "records/a/b", &changed).is_err(),
                "{index}"
            );
            assert!(open(&id, &keys, Kind::Record, "records/a/b", &data[..index]).is_err());
        }
    }
}

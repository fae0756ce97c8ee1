//! A WAL file, `wal/<workload>/<timeline>/<file>`.
//!
//! ```text
//!   0 64  header
//!  64 32  keyed code (HMAC-SHA-256) of name and content: tells a repeated push without reading it
//!  96 40  frame 0, sealed, bound to header and code: pushed at (8, microseconds since 1970),
//!         length of the content (8), length of frame 1 as stored (8)
//! 136  …  frame 1, sealed, bound to header and code: the content packed
//! ```

use chrono::{DateTime, Utc};

use super::bytes::Fields;
use super::header::{HEADER_BYTES, Header, Kind};
use super::{BODY_BYTES_MAX, FormatError, RepositoryId, VERSION};
use crate::compress;
use crate::crypto::{CryptoFailed, FrameContext, Keys, TAG_BYTES};

const CODED_BYTES: usize = HEADER_BYTES + 32;
/// Bytes to read to know everything but the content.
pub(crate) const HEAD_BYTES: usize = CODED_BYTES + 24 + TAG_BYTES;
/// Segments are mostly pages; a push must not keep the archiver waiting.
const LEVEL: i32 = 1;

/// What the head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WalHead {
    pub(crate) mac: [u8; 32],
    pub(crate) pushed_at: DateTime<Utc>,
    pub(crate) bytes: u64,
    /// Size of the whole object.
    pub(crate) object_bytes: u64,
    header: Header,
}

fn context<'a>(
    repository: &'a RepositoryId,
    header: &'a Header,
    object: &'a str,
    frame: u64,
    bound_to: &'a [u8],
) -> FrameContext<'a> {
    let offset = if frame == 0 { CODED_BYTES } else { HEAD_BYTES };
    FrameContext {
        repository,
        version: VERSION,
        kind: Kind::Wal as u8,
        key_id: &header.key_id,
        object,
        frame,
        offset: offset as u64,
        bound_to,
    }
}

pub(crate) fn encode(
    repository: &RepositoryId,
    keys: &Keys,
    object: &str,
    content: &[u8],
    pushed_at: DateTime<Utc>,
) -> Result<Vec<u8>, CryptoFailed> {
    if content.len() as u64 > BODY_BYTES_MAX {
        return Err(CryptoFailed);
    }
    let header = Header::new(Kind::Wal, keys);
    let seal = keys.object_seal(Kind::Wal as u8, &header.salt)?;
    // The archiver waits for both.
    let (mac, mut body) = std::thread::scope(|scope| {
        let mac = scope.spawn(|| keys.wal_mac(object, content));
        let body = compress::pack(content, LEVEL);
        (mac.join(), body)
    });
    let mut out = header.encode();
    out.extend_from_slice(&mac.map_err(|_| CryptoFailed)?);
    seal.seal(&context(repository, &header, object, 1, &out), &mut body)?;
    let mut head = Vec::with_capacity(24 + TAG_BYTES);
    head.extend_from_slice(&pushed_at.timestamp_micros().to_le_bytes());
    head.extend_from_slice(&(content.len() as u64).to_le_bytes());
    head.extend_from_slice(&(body.len() as u64).to_le_bytes());
    seal.seal(&context(repository, &header, object, 0, &out), &mut head)?;
    out.extend_from_slice(&head);
    out.extend_from_slice(&body);
    Ok(out)
}

pub(crate) fn decode_head(
    repository: &RepositoryId,
    keys: &Keys,
    object: &str,
    data: &[u8],
) -> Result<WalHead, FormatError> {
    let header = Header::decode(data, Kind::Wal, Some(&keys.id()))?;
    let mut fields = Fields::of(data);
    let bound_to = fields.take(CODED_BYTES)?;
    let frame = fields.take(HEAD_BYTES - CODED_BYTES)?;
    let frame = keys.object_seal(Kind::Wal as u8, &header.salt)?.open(
        &context(repository, &header, object, 0, bound_to),
        frame.to_vec(),
    )?;
    let mut coded = Fields::of(bound_to);
    coded.take(HEADER_BYTES)?;
    let mac = coded.array()?;
    let mut fields = Fields::of(&frame);
    let pushed_at = DateTime::from_timestamp_micros(fields.i64()?)
        .ok_or_else(|| FormatError::damaged("the time in it is no time"))?;
    let (bytes, body) = (fields.u64()?, fields.u64()?);
    if bytes > BODY_BYTES_MAX {
        return Err(FormatError::damaged("it is longer than any WAL file is"));
    }
    let object_bytes = body.saturating_add(HEAD_BYTES as u64);
    Ok(WalHead {
        mac,
        pushed_at,
        bytes,
        object_bytes,
        header,
    })
}

/// Opens the content and computes its code again.
pub(crate) fn decode(
    repository: &RepositoryId,
    keys: &Keys,
    object: &str,
    data: &[u8],
) -> Result<Vec<u8>, FormatError> {
    let head = decode_head(repository, keys, object, data)?;
    if data.len() as u64 != head.object_bytes {
        return Err(FormatError::damaged("its length is not what it says"));
    }
    let mut fields = Fields::of(data);
    let bound_to = Fields::of(data).take(CODED_BYTES)?;
    fields.take(HEAD_BYTES)?;
    let body = keys.object_seal(Kind::Wal as u8, &head.header.salt)?.open(
        &context(repository, &head.header, object, 1, bound_to),
        fields.rest().to_vec(),
    )?;
    let content = compress::unpack(&body, head.bytes)?;
    if keys.wal_mac(object, &content) == head.mac {
        Ok(content)
    } else {
        Err(FormatError::damaged(
            "its content is not what its code stands for",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random_secret;

    #[test]
    fn a_wal_file_comes_back_and_no_flipped_byte_passes() {
        let keys = Keys::new(random_secret()).unwrap();
        let id = [1u8; 16];
        let content = b"wal ".repeat(200);
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        let data = encode(&id, &keys, "wal/erp/x", &content, at).unwrap();
        assert_eq!(decode(&id, &keys, "wal/erp/x", &data).unwrap(), content);
        let head = decode_head(&id, &keys, "wal/erp/x", &data[..HEAD_BYTES]).unwrap();
        assert_eq!((head.pushed_at, head.bytes), (at, content.len() as u64));
        assert_eq!(head.object_bytes, data.len() as u64);
        assert!(decode(&id, &keys, "wal/erp/y", &data).is_err());
        for index in 0..data.len() {
            let mut changed = data.clone();
            changed[index] ^= 4;
            assert!(
                decode(&id, &keys, "wal/erp/x", &changed).is_err(),
                "byte {index}"
            );
        }
    }
}

//! The content of a sealed frame: one byte that names the coding, then the bytes.

/// Stored as it is.
const PLAIN: u8 = 0;
/// One zstd frame (RFC 8878).
const ZSTD: u8 = 1;

/// A frame whose content cannot be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadCoding(&'static str);

/// Compresses unless that makes it longer. Leaves room for the tag that sealing appends.
pub(crate) fn pack(data: &[u8], level: i32) -> Vec<u8> {
    if let Ok(compressed) = zstd::bulk::compress(data, level)
        && compressed.len() < data.len()
    {
        return coded(ZSTD, &compressed);
    }
    coded(PLAIN, data)
}

fn coded(coding: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 1 + crate::crypto::TAG_BYTES);
    out.push(coding);
    out.extend_from_slice(content);
    out
}

/// Undoes [`pack`]. `length` is what the data must come to; a frame that would grow beyond it is
/// refused before the memory is taken.
pub(crate) fn unpack(content: &[u8], length: u64) -> Result<Vec<u8>, BadCoding> {
    let length =
        usize::try_from(length).map_err(|_| BadCoding("it is too long for this machine"))?;
    let (coding, content) = content
        .split_first()
        .ok_or(BadCoding("a frame of it is empty"))?;
    let data = match *coding {
        PLAIN => content.to_vec(),
        ZSTD => zstd::bulk::decompress(content, length)
            .map_err(|_| BadCoding("a frame of it cannot be decompressed"))?,
        _ => return Err(BadCoding("a frame of it has an unknown coding")),
    };
    if data.len() == length {
        Ok(data)
    } else {
        Err(BadCoding("a frame of it has a wrong length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_data_comes_back_and_random_data_does_not_grow() {
        let text = b"abcabcabc".repeat(1000);
        assert_eq!(unpack(&pack(&text, 3), text.len() as u64).unwrap(), text);
        assert!(pack(&text, 3).len() < 200);
        let mut noise = vec![0u8; 5000];
        dr_model::random::fill(&mut noise);
        assert_eq!(pack(&noise, 3).len(), 5001);
        assert_eq!(unpack(&pack(&noise, 3), 5000).unwrap(), noise);
        assert_eq!(unpack(&pack(&[], 3), 0).unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn a_wrong_length_or_coding_is_refused() {
        let packed = pack(&[7u8; 100], 3);
        assert!(unpack(&packed, 99).is_err());
        assert!(unpack(&packed, 101).is_err());
        assert!(unpack(&[9, 1, 2], 2).is_err());
        assert!(unpack(&[], 0).is_err());
    }
}

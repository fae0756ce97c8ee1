//! Unpacking what PostgreSQL packed with its own method (`common/pg_lzcompress.c`): eight items to a byte
//! that says of each whether it is a byte as it is, or a stretch of what is unpacked already.

/// The shortest stretch.
const STRETCH_MIN: usize = 3;
/// A stretch of this length has a byte more that adds to it.
const STRETCH_LONG: usize = 18;

/// Unpacks to exactly `bytes`; `None` when that is not what is packed.
pub(crate) fn unpack(packed: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut from = packed.iter().copied();
    let mut unpacked = Vec::with_capacity(bytes);
    'all: while let Some(kinds) = from.next() {
        for item in 0..8 {
            if unpacked.len() >= bytes {
                break 'all;
            }
            let Some(first) = from.next() else {
                break 'all;
            };
            if kinds >> item & 1 == 0 {
                unpacked.push(first);
                continue;
            }
            let second = from.next()?;
            let mut length = usize::from(first & 0x0F) + STRETCH_MIN;
            let back = usize::from(first & 0xF0) << 4 | usize::from(second);
            if length == STRETCH_LONG {
                length += usize::from(from.next()?);
            }
            let begin = unpacked.len().checked_sub(back).filter(|_| back > 0)?;
            // It may reach into what it makes itself.
            for place in begin..begin + length.min(bytes - unpacked.len()) {
                unpacked.push(*unpacked.get(place)?);
            }
        }
    }
    (unpacked.len() == bytes).then_some(unpacked)
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[test]
    fn bytes_and_stretches_come_out_as_they_were() {
        // Two bytes, then ten more of them, two back.
        let packed = [0b100, b'a', b'b', 0x07, 0x02];
        assert_eq!(unpack(&packed, 12).unwrap(), b"abababababab");
        // One byte, and 299 of it.
        let long = [0b10, b'x', 0x0F, 0x01, 255, 0, b'y'];
        assert_eq!(unpack(&long, 274).unwrap(), [b'x'; 274]);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        assert!(
            unpack(&[0b1, 0x07, 0x02], 10).is_none(),
            "nothing to go back to"
        );
        assert!(unpack(&[0b10, b'x', 0x07, 0x00], 11).is_none());
        assert!(unpack(&[0, b'x'], 2).is_none());
    }
}

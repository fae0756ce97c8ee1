//! The checksum of a data page (`storage/checksum_impl.h`): 32 interleaved FNV-1a sums, folded.
//!
//! The block number goes into it, counted from the beginning of the relation across its segment
//! files, so a page that was written to the wrong place is found too.

use dr_model::Lsn;

const SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
const CHECKSUM_OFFSET: usize = 8;
/// `pd_upper`; 0 in a page that was never initialised.
const UPPER_OFFSET: usize = 14;

/// `checksumBaseOffsets`: random starting values, one for each sum.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageState {
    /// Its checksum is right, or it is all zeros: allocated and not used yet.
    Good,
    /// Its checksum is wrong.
    Bad {
        lsn: Lsn,
        stored: u16,
        expected: u16,
    },
}

/// Whether a page's header says that it was never used (`PageIsNew`).
pub(crate) fn is_new(page: &[u8]) -> bool {
    let upper: Option<&[u8; 2]> = page.get(UPPER_OFFSET..).and_then(|page| page.first_chunk());
    upper == Some(&[0, 0])
}

/// Judges one whole page; `block` counts from the beginning of the relation.
pub(crate) fn judge(page: &[u8], block: u32) -> PageState {
    if is_new(page) && page.iter().all(|byte| *byte == 0) {
        return PageState::Good;
    }
    let stored = page
        .get(CHECKSUM_OFFSET..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u16::from_le_bytes(*bytes));
    let expected = checksum(page, block);
    if stored == expected {
        return PageState::Good;
    }
    PageState::Bad {
        lsn: lsn(page),
        stored,
        expected,
    }
}

/// `pd_lsn`: the end of the last WAL record that changed the page, high half first.
fn lsn(page: &[u8]) -> Lsn {
    let half = |offset: usize| {
        page.get(offset..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
    };
    Lsn((half(0) << 32) | half(4))
}

/// `pg_checksum_page`, with `pd_checksum` taken as zero.
pub(crate) fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<{ SUMS * 4 }>();
    for (index, row) in rows.iter().enumerate() {
        let mut row = *row;
        if index == 0 {
            // The checksum lies in the first row.
            for byte in row.iter_mut().skip(CHECKSUM_OFFSET).take(2) {
                *byte = 0;
            }
        }
        let (words, _) = row.as_chunks::<4>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = mix(*sum, u32::from_le_bytes(*word));
        }
    }
    // Two rounds of zeros let the last row reach every bit.
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = mix(*sum, 0);
        }
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // Never zero, which stands for "no checksum".
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_page_is_good_and_a_nearly_zero_page_is_not() {
        let mut page = vec![0u8; 8192];
        assert_eq!(judge(&page, 7), PageState::Good);
        page[8000] = 1;
        assert!(matches!(judge(&page, 7), PageState::Bad { .. }));
    }

    #[test]
    fn every_flipped_bit_and_a_wrong_block_number_are_found() {
        let mut page: Vec<u8> = (0..8192u32)
            .map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap())
            .collect();
        let sum = checksum(&page, 131_072 + 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(judge(&page, 131_072 + 5), PageState::Good);
        assert!(matches!(judge(&page, 5), PageState::Bad { .. }));
        for at in [0, 9, 127, 128, 4096, 8191] {
            page[at] ^= 0x10;
            assert!(
                matches!(judge(&page, 131_072 + 5), PageState::Bad { .. }),
                "byte {at}"
            );
            page[at] ^= 0x10;
        }
    }
}

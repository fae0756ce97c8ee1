//! The CRC-32C of a file of which pages are replaced, without reading the rest of it.
//!
//! CRCs are linear: the sums of two files of one length that differ in one page differ by the difference of
//! the pages' own sums, carried over as many zero bytes as follow the page. Carrying over 2^k bytes is a
//! linear map of 32 bits; there is a table of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Of lengths of files.
const BITS: usize = 48;
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What a bit of a sum becomes when bytes follow.
type Carry = [u32; 32];

fn apply(carry: &Carry, sum: u32) -> u32 {
    let bits = carry.iter().enumerate();
    bits.filter(|(bit, _)| sum >> bit & 1 == 1)
        .fold(0, |all, (_, column)| all ^ column)
}

/// The maps for 1, 2, 4, … bytes.
fn carries() -> &'static [Carry] {
    static CARRIES: OnceLock<Vec<Carry>> = OnceLock::new();
    CARRIES.get_or_init(|| {
        let mut all = Vec::with_capacity(BITS);
        let mut carry: Carry = std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, 1));
        for _ in 0..BITS {
            all.push(carry);
            carry = carry.map(|column| apply(&carry, column));
        }
        all
    })
}

/// A sum with so many zero bytes behind it, as far as it is linear.
fn carried(sum: u32, bytes: u64) -> u32 {
    let maps = carries().iter().enumerate();
    maps.filter(|(bit, _)| bytes >> bit & 1 == 1)
        .fold(sum, |sum, (_, carry)| apply(carry, sum))
}

/// The length of a file and its CRC-32C, as long as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSum {
    /// In bytes.
    pub bytes: u64,
    /// Unknown after the file was cut.
    pub crc32c: Option<u32>,
}

impl FileSum {
    /// The file gets another length; zeros come behind it.
    pub(super) fn set_len(&mut self, bytes: u64) {
        let mut more = bytes.saturating_sub(self.bytes);
        if bytes < self.bytes {
            self.crc32c = None;
        }
        while let Some(crc32c) = &mut self.crc32c
            && more > 0
        {
            let now = usize::try_from(more).unwrap_or(usize::MAX).min(ZEROS.len());
            *crc32c = crc32c::crc32c_append(*crc32c, ZEROS.get(..now).unwrap_or_default());
            more -= now as u64;
        }
        self.bytes = bytes;
    }

    /// `page` is about to replace what the file holds at `offset`.
    pub(super) fn replace(&mut self, file: &File, page: &[u8], offset: u64) -> io::Result<()> {
        let Some(crc32c) = &mut self.crc32c else {
            return Ok(());
        };
        let mut before = vec![0; page.len()];
        file.read_exact_at(&mut before, offset)?;
        let behind = self.bytes.saturating_sub(offset + page.len() as u64);
        *crc32c ^= carried(crc32c::crc32c(&before) ^ crc32c::crc32c(page), behind);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_file_whatever_is_done_to_it(
            mut content in proptest::collection::vec(any::<u8>(), 0..5000),
            changes in proptest::collection::vec((any::<u16>(), 0usize..6000, any::<u8>()), 0..20),
        ) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&content, 0).unwrap();
            let mut sum = FileSum {
                bytes: content.len() as u64,
                crc32c: Some(crc32c::crc32c(&content)),
            };
            for (at, length, fill) in changes {
                if length > content.len() {
                    content.resize(length, 0);
                    file.set_len(length as u64).unwrap();
                    sum.set_len(length as u64);
                }
                let at = usize::from(at) % (content.len() + 1);
                let page = vec![fill; length.min(content.len() - at)];
                sum.replace(&file, &page, at as u64).unwrap();
                file.write_all_at(&page, at as u64).unwrap();
                content.splice(at..at + page.len(), page);
                prop_assert_eq!(sum.crc32c, Some(crc32c::crc32c(&content)));
                prop_assert_eq!(sum.bytes, content.len() as u64);
            }
            sum.set_len(content.len() as u64);
            prop_assert_eq!(sum.crc32c, Some(crc32c::crc32c(&content)));
            if !content.is_empty() {
                sum.set_len(content.len() as u64 - 1);
                prop_assert_eq!(sum.crc32c, None);
            }
        }
    }

    #[test]
    fn a_page_of_a_large_file_is_carried_over_all_that_follows() {
        let zeros = vec![0; 64 << 20];
        let page = [7; 8192];
        let mut content = zeros.clone();
        content[8192..16384].copy_from_slice(&page);
        let behind = content.len() as u64 - 16384;
        let difference = carried(
            crc32c::crc32c(&zeros[..8192]) ^ crc32c::crc32c(&page),
            behind,
        );
        assert_eq!(
            crc32c::crc32c(&content),
            crc32c::crc32c(&zeros) ^ difference
        );
    }
}

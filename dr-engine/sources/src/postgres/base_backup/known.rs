//! What an earlier backup holds of a cluster's files, and which of their pages may have changed since.

use std::collections::HashMap;

use crate::postgres::parts::PAGES_MAX;

/// A file has at most so many parts: a restore reads all of them.
const PARTS_MAX: u32 = 64;

/// Relation files of which it is known what changed since an earlier backup; every other file is read in
/// full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownFiles {
    /// By path in the point.
    pub files: HashMap<String, KnownFile>,
}

/// What the earlier backup holds of a file, and what changed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFile {
    /// How long it was.
    pub bytes: u64,
    /// In how many parts it is held: 1 when it was read whole.
    pub parts: u32,
    /// Pages in the parts behind the first.
    pub pages_in_parts: u64,
    /// Every page from here on is new.
    pub new_from: Option<u32>,
    /// Pages before that may have changed, by number within the file, ascending.
    pub changed: Vec<u32>,
}

impl KnownFile {
    /// The pages to read of the file that is `bytes` long now; `None` when it is to be read whole. In parts
    /// a file holds at most half as many pages more than it has, so that restoring it is never twice the
    /// work.
    pub(super) fn pages_to_read(&self, bytes: u64, page_bytes: u64) -> Option<Vec<u32>> {
        let is_pages = |bytes: u64| bytes > 0 && bytes.is_multiple_of(page_bytes);
        if !is_pages(bytes) || !is_pages(self.bytes) || self.parts >= PARTS_MAX {
            return None;
        }
        let pages = u32::try_from(bytes / page_bytes).ok()?;
        let before = u32::try_from(self.bytes / page_bytes).ok()?;
        // What lies behind its former end may not be in the log: a file is lengthened unlogged.
        let new_from = self.new_from.map_or(before, |page| page.min(before));
        let changed = self.changed.iter().copied();
        let known = changed.take_while(|page| *page < new_from.min(pages));
        let new = u64::from(pages.saturating_sub(new_from));
        let may_hold = u64::from(pages / 2).checked_sub(self.pages_in_parts + new)?;
        let mut wanted: Vec<u32> = known.collect();
        if u64::try_from(wanted.len()).ok()? > may_hold {
            return None;
        }
        wanted.extend(new_from..pages);
        (wanted.len() <= PAGES_MAX as usize).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 8192;

    fn known(pages: u64, new_from: Option<u32>, changed: &[u32]) -> KnownFile {
        KnownFile {
            bytes: pages * PAGE,
            parts: 1,
            pages_in_parts: 0,
            new_from,
            changed: changed.to_vec(),
        }
    }

    #[test]
    fn what_changed_and_what_is_new_is_read_and_nothing_else() {
        let read = |file: &KnownFile, pages: u64| file.pages_to_read(pages * PAGE, PAGE);
        assert_eq!(read(&known(100, None, &[]), 100), Some(vec![]));
        assert_eq!(read(&known(100, None, &[3, 70]), 100), Some(vec![3, 70]));
        // It became longer, with and without a word in the log.
        let longer = Some(vec![3, 100, 101]);
        assert_eq!(read(&known(100, None, &[3]), 102), longer);
        assert_eq!(read(&known(100, None, &[3, 100, 101]), 102), longer);
        // It was cut and grew again.
        let cut = known(100, Some(98), &[3]);
        assert_eq!(read(&cut, 100), Some(vec![3, 98, 99]));
        // It is shorter now than the log says yet.
        assert_eq!(read(&known(100, None, &[3, 70]), 50), Some(vec![3]));
        assert_eq!(read(&known(100, Some(60), &[3]), 50), Some(vec![3]));
    }

    #[test]
    fn a_file_that_is_no_whole_pages_or_changed_much_is_read_whole() {
        assert_eq!(known(100, None, &[]).pages_to_read(0, PAGE), None);
        assert_eq!(known(100, None, &[]).pages_to_read(PAGE + 1, PAGE), None);
        assert_eq!(known(0, None, &[]).pages_to_read(PAGE, PAGE), None);
        let many: Vec<u32> = (0..51).collect();
        assert_eq!(
            known(100, None, &many).pages_to_read(100 * PAGE, PAGE),
            None
        );
        assert!(
            known(100, None, &many[..50])
                .pages_to_read(100 * PAGE, PAGE)
                .is_some()
        );
        assert_eq!(
            known(100, Some(0), &[]).pages_to_read(100 * PAGE, PAGE),
            None
        );
        assert_eq!(known(40, None, &[]).pages_to_read(100 * PAGE, PAGE), None);
        let mut long = known(100, None, &many[..10]);
        long.pages_in_parts = 41;
        assert_eq!(long.pages_to_read(100 * PAGE, PAGE), None);
        long.pages_in_parts = 40;
        assert!(long.pages_to_read(100 * PAGE, PAGE).is_some());
        long.parts = PARTS_MAX;
        assert_eq!(long.pages_to_read(100 * PAGE, PAGE), None);
    }
}

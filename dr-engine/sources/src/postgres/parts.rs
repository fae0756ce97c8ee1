//! Relation files in parts: a file as it was once read whole, and the pages that changed since.
//!
//! A backup that knows from the WAL which pages changed reads these and no others. What it hands over of
//! such a file is one more *part*; the parts before it are taken over, unread. Part 0
//! (`parts/0000/<path>`) is the file as it was read whole; each later one says how long the file is and
//! holds pages that replace, or come behind, what the parts before it say. `parts/index` names every file
//! that is in parts, so that none can be missing unnoticed.
//!
//! A part, integers little-endian: `dr-pages`; version 1 (4 bytes); bytes of a page (4); bytes of the file
//! (8); number of pages n (4); zero (4); n page numbers within the file, ascending (4 each); the pages.

mod assembly;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

pub use assembly::{Assembly, FileSum, FirstWriter, NewestFirst};

/// The list of files in parts.
pub const INDEX_PATH: &str = "parts/index";
/// Of [`PartsIndex`] and of a part.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"dr-pages";
const HEADER_BYTES: usize = 32;
const NUMBER_BYTES: usize = 4;
/// A relation's file has at most 1 GiB of pages of at least 1 KiB by default; room for larger builds.
pub(crate) const PAGES_MAX: u32 = 1 << 24;

/// The path of a part of the file that is called `of` in a point.
#[must_use]
pub fn path(number: u32, of: &str) -> String {
    format!("parts/{number:04}/{of}")
}

/// Takes the path of a part apart: its number, and the path of its file.
#[must_use]
pub fn parse(path: &str) -> Option<(u32, &str)> {
    let (number, of) = path.strip_prefix("parts/")?.split_once('/')?;
    let is_number = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((number.parse().ok().filter(|_| is_number)?, of))
}

/// Which files are in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsIndex {
    /// Of this structure.
    version: u32,
    /// By path.
    pub files: BTreeMap<String, PartedFile>,
}

/// A file in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartedFile {
    /// How many parts, the one of the whole file included.
    pub parts: u32,
    /// The file's length.
    pub bytes: u64,
    /// Pages in the parts behind the first, repeated ones included.
    pub pages: u64,
}

impl PartsIndex {
    /// Names these files.
    #[must_use]
    pub fn new(files: BTreeMap<String, PartedFile>) -> Self {
        Self {
            version: VERSION,
            files,
        }
    }

    /// As it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is none, or one of a version that is not known.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let index: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if index.version != VERSION {
            return Err(format!("it is of version {}", index.version));
        }
        Ok(index)
    }
}

/// What comes before the pages of a part.
pub(crate) fn header(page_bytes: u32, file_bytes: u64, pages: &[u32]) -> Vec<u8> {
    let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let mut header = Vec::with_capacity(HEADER_BYTES + pages.len() * NUMBER_BYTES);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&page_bytes.to_le_bytes());
    header.extend_from_slice(&file_bytes.to_le_bytes());
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    for page in pages {
        header.extend_from_slice(&page.to_le_bytes());
    }
    header
}

/// What the pages of a part are handed to.
pub trait Pages {
    /// Before the first page: how long the file is, of which pages.
    ///
    /// # Errors
    /// When the file cannot be changed, or the pages do not fit.
    fn begin(&mut self, page_bytes: u32, file_bytes: u64) -> io::Result<()>;
    /// A page that belongs at `offset`.
    ///
    /// # Errors
    /// When it cannot be written.
    fn page(&mut self, number: u32, offset: u64, page: &[u8]) -> io::Result<()>;
}

/// Takes a part apart. What is written to it is the part, from its beginning.
#[derive(Debug)]
pub struct PartWriter<P> {
    to: P,
    /// The header, until it is whole; then what there is of a page.
    gathered: Vec<u8>,
    layout: Option<Layout>,
}

/// Puts the pages of a part into the file that the parts before it made, which is open for writing.
pub type InOrder<'a> = PartWriter<&'a File>;

#[derive(Debug)]
struct Layout {
    page_bytes: usize,
    /// Still to come, the next one last.
    pages: Vec<u32>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Pages for &File {
    fn begin(&mut self, _: u32, file_bytes: u64) -> io::Result<()> {
        self.set_len(file_bytes)
    }

    fn page(&mut self, _: u32, offset: u64, page: &[u8]) -> io::Result<()> {
        self.write_all_at(page, offset)
    }
}

impl<'a> InOrder<'a> {
    /// Prepares to change `file`.
    #[must_use]
    pub fn new(file: &'a File) -> Self {
        Self::to(file)
    }
}

impl<P> PartWriter<P> {
    fn to(to: P) -> Self {
        Self {
            to,
            gathered: Vec::new(),
            layout: None,
        }
    }

    /// To be called behind the last byte: whether the part was whole.
    ///
    /// # Errors
    /// When the part ended before it was complete.
    pub fn finish(self) -> io::Result<()> {
        match self.layout {
            Some(layout) if layout.pages.is_empty() && self.gathered.is_empty() => Ok(()),
            _ => Err(bad("a part of a relation's file is cut short")),
        }
    }

    /// Takes from `data` until `wanted` bytes are gathered; whether they are.
    fn gather(&mut self, data: &mut &[u8], wanted: usize) -> bool {
        let lacking = wanted.saturating_sub(self.gathered.len()).min(data.len());
        let (taken, rest) = data.split_at_checked(lacking).unwrap_or((data, &[]));
        self.gathered.extend_from_slice(taken);
        *data = rest;
        self.gathered.len() >= wanted
    }
}

impl<P: Pages> PartWriter<P> {
    fn begin(&mut self, data: &mut &[u8]) -> io::Result<()> {
        if !self.gather(data, HEADER_BYTES) {
            return Ok(());
        }
        let number = |at: usize| -> u32 {
            let bytes = self.gathered.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let (version, page_bytes, count) = (number(8), number(12), number(24));
        let file_bytes = u64::from(number(16)) | u64::from(number(20)) << 32;
        let is_page = page_bytes.is_power_of_two() && (512..=32 * 1024).contains(&page_bytes);
        if self.gathered.get(..8) != Some(&MAGIC) || version != VERSION || number(28) != 0 {
            return Err(bad(
                "a part of a relation's file is of a kind that is not known",
            ));
        }
        if !is_page || count > PAGES_MAX || file_bytes % u64::from(page_bytes) != 0 {
            return Err(bad("a part of a relation's file does not describe pages"));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if !self.gather(data, HEADER_BYTES + count * NUMBER_BYTES) {
            return Ok(());
        }
        let numbers = self.gathered.get(HEADER_BYTES..).unwrap_or_default();
        let (numbers, _) = numbers.as_chunks::<NUMBER_BYTES>();
        let mut pages: Vec<u32> = numbers.iter().map(|it| u32::from_le_bytes(*it)).collect();
        let ascend = pages.iter().zip(pages.iter().skip(1)).all(|(a, b)| a < b);
        let last = pages.last().map_or(0, |last| u64::from(*last) + 1);
        if !ascend || last * u64::from(page_bytes) > file_bytes {
            return Err(bad(
                "a part of a relation's file names pages that it cannot have",
            ));
        }
        pages.reverse();
        self.to.begin(page_bytes, file_bytes)?;
        self.gathered.clear();
        self.layout = Some(Layout {
            page_bytes: usize::try_from(page_bytes).unwrap_or(usize::MAX),
            pages,
        });
        Ok(())
    }

    /// The next page, if all of it is here.
    fn next_page(&mut self, data: &mut &[u8]) -> io::Result<bool> {
        let Some(layout) = &mut self.layout else {
            return Ok(false);
        };
        let wanted = layout.page_bytes;
        let Some(number) = layout.pages.last().copied() else {
            return Err(bad("a part of a relation's file goes on behind its end"));
        };
        let offset = u64::from(number) * u64::try_from(wanted).unwrap_or(u64::MAX);
        match data.split_at_checked(wanted) {
            Some((page, rest)) if self.gathered.is_empty() => {
                self.to.page(number, offset, page)?;
                *data = rest;
            }
            _ if self.gather(data, wanted) => {
                self.to.page(number, offset, &self.gathered)?;
                self.gathered.clear();
            }
            _ => return Ok(false),
        }
        if let Some(layout) = &mut self.layout {
            layout.pages.pop();
        }
        Ok(true)
    }
}

impl<P: Pages> Write for PartWriter<P> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut rest = data;
        if self.layout.is_none() {
            self.begin(&mut rest)?;
        }
        while !rest.is_empty() && self.next_page(&mut rest)? {}
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(file_bytes: u64, pages: &[(u32, u8)]) -> Vec<u8> {
        let numbers: Vec<u32> = pages.iter().map(|(number, _)| *number).collect();
        let mut part = header(1024, file_bytes, &numbers);
        for (_, fill) in pages {
            part.extend_from_slice(&[*fill; 1024]);
        }
        part
    }

    fn content(file: &File) -> Vec<u8> {
        let bytes = file.metadata().unwrap().len();
        let mut content = vec![0; usize::try_from(bytes).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    /// Oldest first, over what the file is.
    fn apply(file: &File, part: &[u8], at_once: usize) -> io::Result<()> {
        let mut writer = InOrder::new(file);
        for piece in part.chunks(at_once) {
            writer.write_all(piece)?;
        }
        writer.finish()
    }

    /// Newest first, into a new file.
    fn assemble(first: &[u8], parts: &[Vec<u8>], at_once: usize) -> io::Result<(Vec<u8>, FileSum)> {
        let file = tempfile::tempfile().unwrap();
        let mut assembly = Assembly::of(&file);
        for part in parts.iter().rev() {
            let mut writer = assembly.part();
            for piece in part.chunks(at_once) {
                writer.write_all(piece)?;
            }
            writer.finish()?;
        }
        let mut writer = assembly.first(&file);
        for piece in first.chunks(at_once) {
            writer.write_all(piece)?;
        }
        let sum = writer.finish();
        Ok((content(&file), sum))
    }

    #[test]
    fn a_path_tells_part_and_file() {
        assert_eq!(path(3, "data/base/5/1"), "parts/0003/data/base/5/1");
        assert_eq!(
            parse("parts/0003/data/base/5/1"),
            Some((3, "data/base/5/1"))
        );
        for other in [
            INDEX_PATH,
            "parts/3/data/x",
            "parts/+003/data/x",
            "data/base/5/1",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn parts_replace_pages_lengthen_and_shorten_however_they_come() {
        let first = [1; 4096];
        let parts = [
            part(6144, &[(1, 2), (5, 3)]),
            part(2048, &[]),
            part(3072, &[(0, 9), (2, 8)]),
        ];
        let expected = [vec![1, 2, 1, 1, 0, 3], vec![1, 2], vec![9, 2, 8]];
        for at_once in [1, 7, 1024, 1 << 20] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&first, 0).unwrap();
            for (taken, expected) in (1..).zip(&expected) {
                apply(&file, &parts[taken - 1], at_once).unwrap();
                let (assembled, _) = assemble(&first, &parts[..taken], at_once).unwrap();
                for whole in [content(&file), assembled] {
                    let fills: Vec<u8> = whole.chunks(1024).map(|page| page[0]).collect();
                    assert_eq!(fills, *expected);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn newest_first_comes_to_what_the_parts_say_in_order(
            first in proptest::collection::vec(1u8.., 0..12),
            cut in 0usize..1024,
            said in proptest::collection::vec((0u64..14, proptest::collection::btree_map(0u32..14, 1u8.., 0..8)), 0..6),
            at_once in 1usize..5000,
        ) {
            let mut whole: Vec<u8> = first.iter().flat_map(|fill| [*fill; 1024]).collect();
            whole.truncate(whole.len().saturating_sub(cut));
            let parts: Vec<Vec<u8>> = said
                .iter()
                .map(|(length, pages)| {
                    let pages = pages.iter().map(|(number, fill)| (*number, *fill));
                    let pages: Vec<_> = pages.filter(|(number, _)| u64::from(*number) < *length).collect();
                    part(length * 1024, &pages)
                })
                .collect();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&whole, 0).unwrap();
            for part in &parts {
                apply(&file, part, at_once).unwrap();
            }
            let expected = content(&file);
            let (assembled, sum) = assemble(&whole, &parts, at_once).unwrap();
            prop_assert!(assembled == expected);
            prop_assert_eq!(sum, FileSum { bytes: expected.len() as u64, crc32c: crc32c::crc32c(&expected) });
        }
    }

    #[test]
    fn parts_of_different_pages_are_refused() {
        let other = header(2048, 4096, &[]);
        let refused = assemble(&[1; 4096], &[other, part(4096, &[])], 4096);
        assert!(refused.unwrap_err().to_string().contains("other pages"));
    }

    #[test]
    fn what_is_no_whole_part_is_refused() {
        let whole = part(4096, &[(1, 2), (3, 3)]);
        let mut longer = whole.clone();
        longer.push(0);
        let mut others = vec![longer, part(2048, &[(2, 1)]), part(4096, &[(2, 1), (1, 1)])];
        others.extend((0..whole.len()).map(|length| whole[..length].to_vec()));
        for at in [0, 8, 13, 28] {
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            others.push(changed);
        }
        let file = tempfile::tempfile().unwrap();
        for other in others {
            assert!(apply(&file, &other, 4096).is_err());
            assert!(assemble(&[1; 4096], &[other], 4096).is_err());
        }
    }

    #[test]
    fn the_index_of_another_version_is_refused() {
        let file = PartedFile {
            parts: 2,
            bytes: 8192,
            pages: 1,
        };
        let index = PartsIndex::new(BTreeMap::from([("data/base/5/1".to_owned(), file)]));
        assert_eq!(PartsIndex::parse(&index.to_bytes()), Ok(index.clone()));
        let newer = String::from_utf8(index.to_bytes()).unwrap();
        let newer = newer.replace("\"version\":1", "\"version\":2");
        assert!(PartsIndex::parse(newer.as_bytes()).is_err());
    }
}

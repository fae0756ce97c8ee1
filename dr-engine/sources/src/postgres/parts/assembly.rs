//! A file put together from its parts, the newest first, so that each page is written once and nothing is
//! read back.
//!
//! What a newer part says of a page counts. A part that made the file shorter ends what older ones say
//! behind it, even where the file grew again later: there it begins with zeros.
//!
//! The CRC-32C of the whole comes from what is written. Where a page is there already, its own sum is put
//! behind the one so far: CRCs are linear, so that this needs the sum so far carried over as many zero bytes
//! as a page has, a linear map of 32 bits, and not the page.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::{Pages, PartWriter, bad};

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A file that came out whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// The CRC-32C of all of it.
    pub crc32c: u32,
}

/// A new file on its way: first [`Self::part`] for each later part, the newest first, then [`Self::first`].
#[derive(Debug)]
pub struct Assembly<'a> {
    file: &'a File,
    /// The file's length; unknown before the newest part.
    bytes: Option<u64>,
    /// From here on, parts that are older than those taken in say nothing.
    limit: u64,
    page_bytes: u32,
    /// The pages that are there, each with its sum.
    pages: BTreeMap<u32, u32>,
}

/// Takes a later part in.
pub type NewestFirst<'s, 'a> = PartWriter<&'s mut Assembly<'a>>;

impl<'a> Assembly<'a> {
    /// Begins with an empty file that is open for writing.
    #[must_use]
    pub fn of(file: &'a File) -> Self {
        Self {
            file,
            bytes: None,
            limit: u64::MAX,
            page_bytes: 0,
            pages: BTreeMap::new(),
        }
    }

    /// To write the next older part to.
    pub fn part(&mut self) -> NewestFirst<'_, 'a> {
        PartWriter::to(self)
    }

    /// To write part 0 to, whose bytes go to `out`, the same file at its beginning, where nothing newer is there.
    pub fn first<W: Write + Seek>(self, out: W) -> FirstWriter<W> {
        let carry = std::array::from_fn(|bit| {
            let page = usize::try_from(self.page_bytes).unwrap_or(usize::MAX);
            crc32c::crc32c_combine(1 << bit, 0, page)
        });
        FirstWriter {
            out,
            bytes: self.bytes,
            limit: self.limit,
            page_bytes: u64::from(self.page_bytes),
            pages: self.pages,
            offset: 0,
            sum: FileSum {
                bytes: 0,
                crc32c: 0,
            },
            carry,
        }
    }
}

impl Pages for &mut Assembly<'_> {
    fn begin(&mut self, page_bytes: u32, file_bytes: u64) -> io::Result<()> {
        if self.bytes.is_none() {
            self.bytes = Some(file_bytes);
            self.page_bytes = page_bytes;
            self.file.set_len(file_bytes)?;
        }
        self.limit = self.limit.min(file_bytes);
        if self.page_bytes == page_bytes {
            Ok(())
        } else {
            Err(bad(
                "a part of a relation's file has other pages than the next",
            ))
        }
    }

    fn page(&mut self, number: u32, offset: u64, page: &[u8]) -> io::Result<()> {
        if offset < self.limit && !self.pages.contains_key(&number) {
            self.file.write_all_at(page, offset)?;
            self.pages.insert(number, crc32c::crc32c(page));
        }
        Ok(())
    }
}

/// Takes part 0 in.
#[derive(Debug)]
pub struct FirstWriter<W> {
    out: W,
    bytes: Option<u64>,
    limit: u64,
    page_bytes: u64,
    /// Those that are there and were not come to.
    pages: BTreeMap<u32, u32>,
    /// How far part 0 has come.
    offset: u64,
    /// How far the file has: a page that is there counts from its first byte.
    sum: FileSum,
    /// What a bit of a sum becomes when a page follows.
    carry: [u32; 32],
}

impl<W> FirstWriter<W> {
    /// Where the next page begins that is there already.
    fn next_page(&self) -> Option<u64> {
        let (number, _) = self.pages.first_key_value()?;
        Some(u64::from(*number) * self.page_bytes)
    }

    /// A page that is there lies here.
    fn pass_page(&mut self) {
        if let Some((_, page)) = self.pages.pop_first() {
            let sum = self.sum.crc32c;
            let columns = self.carry.iter().enumerate();
            let carried = columns.filter(|(bit, _)| sum >> bit & 1 == 1);
            self.sum.crc32c = carried.fold(page, |all, (_, column)| all ^ column);
            self.sum.bytes += self.page_bytes;
        }
    }

    fn pass_zeros(&mut self, until: u64) {
        while self.sum.bytes < until {
            let more = usize::try_from(until - self.sum.bytes).unwrap_or(usize::MAX);
            let zeros = ZEROS.get(..more).unwrap_or(&ZEROS);
            self.sum.crc32c = crc32c::crc32c_append(self.sum.crc32c, zeros);
            self.sum.bytes += zeros.len() as u64;
        }
    }

    /// To be called behind the last byte: what the file is now.
    #[must_use]
    pub fn finish(mut self) -> FileSum {
        let bytes = self.bytes.unwrap_or(self.offset);
        while let Some(page) = self.next_page() {
            self.pass_zeros(page);
            self.pass_page();
        }
        self.pass_zeros(bytes);
        self.sum
    }
}

impl<W: Write + Seek> Write for FirstWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut rest = data;
        while !rest.is_empty() && self.offset < self.limit {
            if self.next_page() == Some(self.sum.bytes) {
                self.pass_page();
            }
            // Behind where part 0 is, when what is there lies here.
            let there = self.sum.bytes > self.offset;
            let until = match (there, self.next_page()) {
                (true, _) => self.sum.bytes,
                (false, Some(page)) => page.min(self.limit),
                (false, None) => self.limit,
            };
            let length = usize::try_from(until - self.offset).unwrap_or(usize::MAX);
            let (these, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            let length = these.len() as u64;
            if there {
                let forward = i64::try_from(length).map_err(io::Error::other)?;
                self.out.seek(SeekFrom::Current(forward))?;
            } else {
                self.out.write_all(these)?;
                self.sum.crc32c = crc32c::crc32c_append(self.sum.crc32c, these);
                self.sum.bytes += length;
            }
            self.offset += length;
            rest = later;
        }
        self.offset += rest.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

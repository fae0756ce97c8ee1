//! Reading one file, or some of its pages, while they are checked.
//!
//! The file may grow, shrink or change under the reader. Exactly what was there at opening is read,
//! or less if it shrinks; the WAL repeats every change since backup mode began. A page that was read
//! while the server wrote it is read again; the sink gets what was judged last.
//!
//! Of pages that were announced none may be missing: those that a shorter file has no more are read as
//! zeros. They are never seen: the file became shorter after backup mode began, and recovery repeats that.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::page::{PageState, judge};
use super::workers::Shared;

/// Bytes asked of the file system at a time; a multiple of every page size.
const BUFFER_BYTES: usize = 512 * 1024;
/// A write of one page takes microseconds; a page wrong this often in a row is not being written.
const REREADS_MAX: u32 = 4;
const PAUSE_BEFORE_REREAD: Duration = Duration::from_millis(2);

/// Why a reader stopped before the end.
#[derive(Debug)]
pub(super) enum Stopped {
    Cancelled,
    Failed(io::Error),
}

/// Reads a file for a sink.
pub(super) struct CheckedReader<'a> {
    file: &'a File,
    path: &'a str,
    shared: &'a Shared,
    /// The number of the file's first page within its relation; `None`: pages are not checked.
    first_page: Option<u32>,
    buffer: Vec<u8>,
    given: usize,
    /// What of the file is to be read, the next stretch last.
    stretches: Vec<Range<u64>>,
    /// Whether a shorter file is filled up.
    fills_up: bool,
    bytes: u64,
    stopped: Option<Stopped>,
}

impl<'a> CheckedReader<'a> {
    pub(super) fn new(
        file: &'a File,
        path: &'a str,
        size: u64,
        first_page: Option<u32>,
        shared: &'a Shared,
    ) -> Self {
        let whole = 0..size;
        Self {
            file,
            path,
            shared,
            first_page,
            buffer: Vec::new(),
            given: 0,
            stretches: (size > 0).then_some(whole).into_iter().collect(),
            fills_up: false,
            bytes: 0,
            stopped: None,
        }
    }

    /// Reads these pages, which ascend, instead of the whole file, and hands out `header` before them.
    pub(super) fn only(mut self, pages: &[u32], header: Vec<u8>) -> Self {
        let page_bytes = u64::try_from(self.shared.page_bytes).unwrap_or(u64::MAX);
        let mut stretches: Vec<Range<u64>> = Vec::new();
        for page in pages.iter().rev() {
            let start = u64::from(*page) * page_bytes;
            let end = start + page_bytes;
            match stretches.last_mut() {
                Some(next) if next.start == end => next.start = start,
                _ => stretches.push(start..end),
            }
        }
        self.stretches = stretches;
        self.fills_up = true;
        self.buffer = header;
        self
    }

    /// Why it stopped early, if it did.
    pub(super) fn stopped(&mut self) -> Option<Stopped> {
        self.stopped.take()
    }

    /// Whether everything was handed out.
    pub(super) fn is_finished(&self) -> bool {
        self.stretches.is_empty() && self.given == self.buffer.len()
    }

    /// Bytes read of the file so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn refill(&mut self) -> io::Result<()> {
        if self.shared.stop.is_cancelled() {
            return Err(self.stop(Stopped::Cancelled));
        }
        let Some(stretch) = self.stretches.pop() else {
            return Ok(());
        };
        let position = stretch.start;
        let wanted = stretch.end.saturating_sub(position);
        let wanted = usize::try_from(wanted).map_or(BUFFER_BYTES, |r| r.min(BUFFER_BYTES));
        if let Some(throttle) = &self.shared.throttle {
            throttle.wait(wanted as u64, &self.shared.stop);
        }
        self.buffer.clear();
        self.buffer.resize(wanted, 0);
        self.given = 0;
        let read = match read_fully_at(self.file, &mut self.buffer, position) {
            Ok(read) => read,
            Err(error) => {
                self.buffer.clear();
                return Err(self.stop(Stopped::Failed(error)));
            }
        };
        // Less than asked for means that the file became shorter: this is its end now.
        let kept = if self.fills_up { wanted } else { read };
        self.buffer.truncate(kept);
        self.buffer.get_mut(read..).unwrap_or_default().fill(0);
        if let Some(first_page) = self.first_page {
            self.check_pages(position, first_page);
        }
        let rest = position + u64::try_from(wanted).unwrap_or(0)..stretch.end;
        if !rest.is_empty() && (read == wanted || self.fills_up) {
            self.stretches.push(rest);
        }
        let bytes = u64::try_from(read).unwrap_or(0);
        self.bytes += bytes;
        self.shared.progress.advance(bytes);
        Ok(())
    }

    fn stop(&mut self, why: Stopped) -> io::Error {
        let error = match &why {
            Stopped::Cancelled => io::Error::other("cancelled"),
            Stopped::Failed(error) => io::Error::new(error.kind(), error.to_string()),
        };
        self.stopped = Some(why);
        error
    }

    /// Judges each whole page in the buffer. A part of a page at the end belongs to an extension
    /// under way, which the WAL repeats.
    fn check_pages(&mut self, position: u64, first_page: u32) {
        let page_bytes = self.shared.page_bytes;
        let before = position / u64::try_from(page_bytes).unwrap_or(u64::MAX);
        let (file, path, shared) = (self.file, self.path, self.shared);
        for (page, index) in self.buffer.chunks_exact_mut(page_bytes).zip(0u64..) {
            let number = before + index;
            // Block numbers are 32 bits wide in PostgreSQL too.
            let block = first_page.wrapping_add(u32::try_from(number).unwrap_or(u32::MAX));
            shared.count_page();
            if matches!(judge(page, block), PageState::Good) {
                continue;
            }
            let offset = position + index * u64::try_from(page_bytes).unwrap_or(0);
            let state = reread(file, page, offset, block);
            if let PageState::Bad {
                lsn,
                stored,
                expected,
            } = state
                && !shared.is_benign(lsn)
            {
                let what =
                    format!("checksum {stored:04X} instead of {expected:04X}, page LSN {lsn}");
                shared.report_corrupt(path, number, what);
            }
        }
    }
}

/// Reads a suspicious page again, into the buffer, until it is good or stays bad.
fn reread(file: &File, page: &mut [u8], offset: u64, block: u32) -> PageState {
    let mut state = judge(page, block);
    for _ in 0..REREADS_MAX {
        if matches!(state, PageState::Good) {
            break;
        }
        std::thread::sleep(PAUSE_BEFORE_REREAD);
        let mut again = vec![0; page.len()];
        if read_fully_at(file, &mut again, offset).is_ok_and(|read| read == page.len()) {
            page.copy_from_slice(&again);
            state = judge(page, block);
        }
    }
    state
}

/// Fills `buffer` from `offset`; less only at the end of the file.
fn read_fully_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + u64::try_from(filled).unwrap_or(0)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Read for CheckedReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.buffer.len() && !self.stretches.is_empty() && !out.is_empty() {
            self.refill()?;
        }
        let ready = self.buffer.get(self.given..).unwrap_or_default();
        let count = ready.len().min(out.len());
        if let (Some(from), Some(to)) = (ready.get(..count), out.get_mut(..count)) {
            to.copy_from_slice(from);
        }
        self.given += count;
        Ok(count)
    }
}

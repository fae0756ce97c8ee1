//! Cutting files into chunks.
//!
//! Relation files are cut at fixed, page-aligned places, so that an unchanged stretch stays the same
//! chunk and any page can be found without reading the file. Other files are cut by content
//! (FastCDC), so that an insertion moves no later boundary; the cutting is keyed. A file that is not
//! longer than the shortest chunk is one chunk, and nothing is computed for it.

use std::cell::RefCell;
use std::io::{self, Read};

use fastcdc::v2020::{FastCDC, Normalization};

/// How a file is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cutting {
    /// At fixed, page-aligned places.
    Pages,
    /// By content.
    Content,
}

/// 32 pages of 8 KiB: larger compresses a little better, smaller stores less of a changed file and is restored faster.
pub(crate) const PAGES_BYTES: usize = 256 * 1024;
const CONTENT_BYTES_MIN: usize = 128 * 1024;
const CONTENT_BYTES_AVERAGE: usize = 512 * 1024;
const CONTENT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The longest chunk there is.
pub(crate) const CHUNK_BYTES_MAX: usize = CONTENT_BYTES_MAX;

/// Why cutting ended early.
pub(crate) enum CutError<E> {
    /// The source could not be read.
    Source(io::Error),
    /// The receiver of the chunks failed.
    Receiver(E),
}

thread_local! {
    /// Where a thread reads to before it cuts. Kept from file to file: most files are small, and a buffer
    /// of this size costs more to make than they cost to read.
    static WINDOW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Twice the longest chunk: no cut depends on more than the longest chunk, so where the window begins has
/// no influence.
const WINDOW_BYTES: usize = 2 * CONTENT_BYTES_MAX;

/// Reads `source` to its end and hands it on in chunks, in order.
pub(crate) fn cut<E>(
    source: &mut dyn Read,
    cutting: Cutting,
    seed: u64,
    mut each: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), CutError<E>> {
    match cutting {
        Cutting::Pages => loop {
            let mut chunk = Vec::with_capacity(PAGES_BYTES);
            fill(source, &mut chunk, PAGES_BYTES).map_err(CutError::Source)?;
            if chunk.is_empty() {
                return Ok(());
            }
            chunk.shrink_to_fit();
            each(chunk).map_err(CutError::Receiver)?;
        },
        Cutting::Content => WINDOW.with_borrow_mut(|window| {
            window.clear();
            by_content(window, source, seed, each)
        }),
    }
}

/// Reads until there are so many bytes or the source ends; whether it ended.
fn fill(source: &mut dyn Read, data: &mut Vec<u8>, bytes: usize) -> io::Result<bool> {
    let room = bytes.saturating_sub(data.len()) as u64;
    source.take(room).read_to_end(data)?;
    Ok(data.len() < bytes)
}

fn by_content<E>(
    data: &mut Vec<u8>,
    source: &mut dyn Read,
    seed: u64,
    mut each: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), CutError<E>> {
    data.reserve(WINDOW_BYTES);
    loop {
        let at_end = fill(source, data, WINDOW_BYTES).map_err(CutError::Source)?;
        let mut start = 0;
        if at_end && data.len() <= CONTENT_BYTES_MIN {
            start = data.len();
            if start > 0 {
                each(data.clone()).map_err(CutError::Receiver)?;
            }
        }
        let cutter = (start < data.len()).then(|| cutter(data, seed));
        while let Some(cutter) = &cutter
            && start < data.len()
            && (at_end || data.len() - start >= CONTENT_BYTES_MAX)
        {
            let (_, end) = cutter.cut(start, data.len() - start);
            let chunk = data.get(start..end).unwrap_or_default().to_vec();
            each(chunk).map_err(CutError::Receiver)?;
            start = end;
        }
        if at_end {
            return Ok(());
        }
        drop(cutter);
        data.drain(..start);
    }
}

fn cutter(data: &[u8], seed: u64) -> FastCDC<'_> {
    FastCDC::with_level_and_seed(
        data,
        CONTENT_BYTES_MIN,
        CONTENT_BYTES_AVERAGE,
        CONTENT_BYTES_MAX,
        Normalization::Level1,
        seed,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(data: &[u8], cutting: Cutting) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let done = cut(&mut &*data, cutting, 7, |chunk| {
            found.push(chunk);
            Ok::<(), ()>(())
        });
        assert!(done.is_ok());
        found
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let mut data: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| step()).collect();
        data.truncate(bytes);
        data
    }

    #[test]
    fn pieces_come_to_the_whole_whatever_its_length() {
        for length in [
            0,
            1,
            CONTENT_BYTES_MIN - 1,
            CONTENT_BYTES_MIN,
            CONTENT_BYTES_MIN + 1,
            CONTENT_BYTES_MAX,
            5 * CONTENT_BYTES_MAX + 12_345,
        ] {
            for cutting in [Cutting::Pages, Cutting::Content] {
                let data = noise(length);
                let found = pieces(&data, cutting);
                assert!(found.iter().all(|piece| !piece.is_empty()));
                assert!(found.iter().all(|piece| piece.len() <= CHUNK_BYTES_MAX));
                assert_eq!(found.concat(), data, "{length} {cutting:?}");
            }
        }
    }

    #[test]
    fn an_insertion_moves_no_later_boundary() {
        let data = noise(24 * CONTENT_BYTES_AVERAGE);
        let mut longer = data.clone();
        longer.splice(1_000_000..1_000_000, *b"inserted");
        let before: std::collections::HashSet<_> =
            pieces(&data, Cutting::Content).into_iter().collect();
        let after = pieces(&longer, Cutting::Content);
        let new = after
            .iter()
            .filter(|piece| !before.contains(*piece))
            .count();
        assert!(new <= 3, "{new} of {} pieces are new", after.len());
    }

    #[test]
    fn how_the_source_hands_out_its_bytes_has_no_influence() {
        struct Trickle<'a>(&'a [u8]);
        impl Read for Trickle<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = self.0.len().min(buffer.len()).min(7777);
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        let data = noise(9 * CONTENT_BYTES_AVERAGE);
        let mut found = Vec::new();
        let done = cut(&mut Trickle(&data), Cutting::Content, 7, |chunk| {
            found.push(chunk);
            Ok::<(), ()>(())
        });
        assert!(done.is_ok());
        assert_eq!(found, pieces(&data, Cutting::Content));
    }
}

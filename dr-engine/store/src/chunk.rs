//! Cutting files into chunks.
//!
//! Relation files are cut at fixed, page-aligned places, so that an unchanged stretch stays the same
//! chunk and any page can be found without reading the file. Other files are cut by content
//! (FastCDC), so that an insertion moves no later boundary; the cutting is keyed.

use std::io::{self, Read};

use fastcdc::v2020::{Normalization, StreamCDC};

/// How a file is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cutting {
    /// At fixed, page-aligned places.
    Pages,
    /// By content.
    Content,
}

/// 16 pages of 8 KiB: larger compresses a little better, smaller stores less of a changed file.
pub(crate) const PAGES_BYTES: usize = 128 * 1024;
const CONTENT_BYTES_MIN: usize = 64 * 1024;
const CONTENT_BYTES_AVERAGE: usize = 256 * 1024;
const CONTENT_BYTES_MAX: usize = 1024 * 1024;
/// What a thread may hold of one file while cutting.
pub(crate) const CHUNK_BYTES_MAX: usize = CONTENT_BYTES_MAX;

/// Why cutting ended early.
pub(crate) enum CutError<E> {
    /// The source could not be read.
    Source(io::Error),
    /// The receiver of the chunks failed.
    Receiver(E),
}

/// Reads `source` to its end and hands it on in chunks, in order.
pub(crate) fn cut<E>(
    source: &mut dyn Read,
    cutting: Cutting,
    seed: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), CutError<E>> {
    match cutting {
        Cutting::Pages => {
            let mut buffer = Vec::with_capacity(PAGES_BYTES);
            loop {
                buffer.clear();
                let read = source
                    .take(PAGES_BYTES as u64)
                    .read_to_end(&mut buffer)
                    .map_err(CutError::Source)?;
                if read == 0 {
                    return Ok(());
                }
                each(&buffer).map_err(CutError::Receiver)?;
            }
        }
        Cutting::Content => {
            let chunks = StreamCDC::with_level_and_seed(
                source,
                CONTENT_BYTES_MIN,
                CONTENT_BYTES_AVERAGE,
                CONTENT_BYTES_MAX,
                Normalization::Level1,
                seed,
            );
            for chunk in chunks {
                let chunk = chunk.map_err(|error| CutError::Source(error.into()))?;
                each(&chunk.data).map_err(CutError::Receiver)?;
            }
            Ok(())
        }
    }
}

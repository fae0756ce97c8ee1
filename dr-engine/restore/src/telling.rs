//! Progress of what is written, as it is written: files may be large.

use std::io::{self, Write};

use dr_model::Progress;

/// Tells `progress` of every byte that `out` took.
pub(crate) struct Telling<'a> {
    pub(crate) out: &'a mut dyn Write,
    pub(crate) progress: &'a dyn Progress,
}

impl Write for Telling<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.out.write(data)?;
        self.progress.advance(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

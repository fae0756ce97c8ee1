//! Beginning to write to the disk while there is more to come.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZeroU64;

use rustix::fs::Advice;

/// Handed to the disk at once. Less would break up what lies together.
const STEP_BYTES: u64 = 8 << 20;

/// A new file that is going to be flushed, and has its content go to the disk as it comes, so that the
/// disk does not stand idle until the flush and is then waited for. It makes nothing durable.
///
/// posix_fadvise(2) with `POSIX_FADV_DONTNEED` has Linux begin to write what is not written yet, without
/// waiting for it and without a commit to the journal, and keeps what is on its way in memory. A file
/// system that does nothing of the kind loses nothing by it.
#[derive(Debug)]
pub struct EarlyWrites<'f> {
    file: &'f mut File,
    begun: u64,
    /// Where the next byte goes.
    at: u64,
}

impl<'f> EarlyWrites<'f> {
    /// Writes to an empty file.
    pub fn to(file: &'f mut File) -> Self {
        Self {
            file,
            begun: 0,
            at: 0,
        }
    }
}

impl Write for EarlyWrites<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.at += count as u64;
        let waiting = self.at.saturating_sub(self.begun);
        if waiting >= STEP_BYTES {
            // Only advice: whether it was taken does not matter.
            let length = NonZeroU64::new(waiting);
            let _ = rustix::fs::fadvise(&*self.file, self.begun, length, Advice::DontNeed);
            self.begun = self.at;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Forward only, over what somebody else wrote.
impl Seek for EarlyWrites<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content: Vec<u8> = (0u32..10 << 20).map(|n| (n % 251) as u8).collect();
        let mut file = File::create(&path).unwrap();
        let mut early = EarlyWrites::to(&mut file);
        for part in content.chunks(300_001) {
            early.write_all(part).unwrap();
        }
        assert!(early.begun >= STEP_BYTES);
        assert!(std::fs::read(&path).unwrap() == content);
    }
}

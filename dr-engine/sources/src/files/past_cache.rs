//! Writing a large file past the page cache.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{FallocateFlags, OFlags};

/// What the address, the length and the place of a write have to be a multiple of: no file system asks for more.
const BLOCK_BYTES: usize = 4096;
/// Written at once: few enough calls, and small enough to stay in the processor's own memory.
const BUFFER_BYTES: usize = 1 << 20;

/// A new file that nobody is going to read soon, as most of a cluster that is restored to take a few rows out of it. In
/// the page cache it would take the place of what is read: of the live server's pages, where that is beside it.
///
/// By `O_DIRECT` (open(2)); a file system that knows nothing of it is written to as ever. It makes nothing durable.
#[derive(Debug)]
pub struct PastCache<'f> {
    file: &'f File,
    buffer: Vec<u8>,
    /// Where in the buffer the aligned part begins.
    begin: usize,
    filled: usize,
    written: u64,
    is_direct: bool,
}

impl<'f> PastCache<'f> {
    /// Writes to an empty file that is going to have `bytes` bytes.
    #[must_use]
    pub fn to(file: &'f File, bytes: u64) -> Self {
        // Spares the file system from extending the file with each write. One that cannot do it writes all the same,
        // and one that is full says so then.
        let _ = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes);
        let buffer = vec![0; BUFFER_BYTES + BLOCK_BYTES];
        let begin = buffer.as_ptr().align_offset(BLOCK_BYTES);
        let is_aligned = begin <= BLOCK_BYTES;
        Self {
            file,
            buffer,
            begin: if is_aligned { begin } else { 0 },
            filled: 0,
            written: 0,
            is_direct: is_aligned && set_direct(file, true).is_ok(),
        }
    }

    fn held(&self, from: usize, to: usize) -> &[u8] {
        let place = self.begin + from..self.begin + to;
        self.buffer.get(place).unwrap_or_default()
    }

    /// Writes what is held, from one place to another.
    fn write_held(&mut self, from: usize, to: usize) -> io::Result<()> {
        let mut file = self.file;
        let mut done = file.write_all(self.held(from, to));
        let refused = |error: &io::Error| error.raw_os_error() == Some(INVALID);
        // Some file systems take the flag and refuse the write.
        if self.is_direct && done.as_ref().is_err_and(refused) {
            self.by_the_cache()?;
            done = file.write_all(self.held(from, to));
        }
        self.written += (to - from) as u64;
        done
    }

    fn by_the_cache(&mut self) -> io::Result<()> {
        self.is_direct = false;
        set_direct(self.file, false)
    }

    /// Writes what is left, and ends the file there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        let whole = self.filled - self.filled % BLOCK_BYTES;
        if whole > 0 {
            self.write_held(0, whole)?;
        }
        if self.filled > whole {
            if self.is_direct {
                self.by_the_cache()?;
            }
            self.write_held(whole, self.filled)?;
        }
        // It was made as long as it was announced to be.
        self.file.set_len(self.written)
    }
}

/// `EINVAL`, as the standard library gives it.
const INVALID: i32 = rustix::io::Errno::INVAL.raw_os_error();

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

impl Write for PastCache<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = self.begin + self.filled..self.begin + BUFFER_BYTES;
        let room = self.buffer.get_mut(room).unwrap_or_default();
        let count = room.len().min(data.len());
        if let (Some(to), Some(from)) = (room.get_mut(..count), data.get(..count)) {
            to.copy_from_slice(from);
        }
        self.filled += count;
        if self.filled == BUFFER_BYTES {
            self.write_held(0, BUFFER_BYTES)?;
            self.filled = 0;
        }
        Ok(count)
    }

    /// Only whole blocks can be written: see [`PastCache::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In folders whose file systems have it, and in one that may not.
    #[test]
    fn what_is_written_is_the_same() {
        for parent in ["/var/tmp", "/dev/shm"] {
            let Ok(folder) = tempfile::tempdir_in(parent) else {
                continue;
            };
            let path = folder.path().join("file");
            let content: Vec<u8> = (0u32..3 << 20).map(|n| (n % 251) as u8).collect();
            for length in [0, 1, 4096, 5000, 1 << 20, (1 << 20) + 8192, 3_000_001] {
                let content = &content[..length];
                for announced in [0, length as u64, 4 << 20] {
                    let file = File::create(&path).unwrap();
                    let mut direct = PastCache::to(&file, announced);
                    for part in content.chunks(300_001) {
                        direct.write_all(part).unwrap();
                    }
                    direct.finish().unwrap();
                    assert!(
                        std::fs::read(&path).unwrap() == content,
                        "{length} of {announced}"
                    );
                }
            }
        }
    }
}

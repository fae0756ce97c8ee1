//! Which blocks changed between the beginnings of two base backups, by the WAL between them.
//!
//! The WAL is the server's own where `pg_wal` still has it, else the repository's; the last segment must be
//! the server's own. All of it has to be there and to hang together, record by record, from a segment that
//! the earlier backup stored to the very record at which this one begins. Whatever is in doubt is said, and
//! then nothing is relied on.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dr_model::{Lsn, PostgresPosition, SystemId, WalFileName, WorkloadName};
use dr_store::Repository;
use dr_wal::page::SegmentHeader;
use dr_wal::{Reader, Summary};
use tokio_util::sync::CancellationToken;

use crate::wal;

/// More changed blocks (64 GiB of them) are not kept in memory: reading everything costs about as much.
const BLOCKS_MAX: usize = 8 << 20;

/// Where the WAL is.
pub(super) struct Log<'a> {
    pub(super) repository: &'a Repository,
    pub(super) workload: &'a WorkloadName,
    pub(super) pg_wal: PathBuf,
    pub(super) system_id: SystemId,
    pub(super) cancel: CancellationToken,
}

/// What the WAL from the beginning of `base` to `until`, where a base backup of the same timeline begins,
/// says. Of its transactions nothing is kept.
///
/// # Errors
/// With the reason why it does not tell.
pub(super) fn since(log: &Log<'_>, base: &PostgresPosition, until: Lsn) -> Result<Summary, String> {
    let size = base.wal_segment_bytes;
    let (first, last) = (base.start_lsn.0 / size, until.0.saturating_sub(1) / size);
    let stored_by_base = base.stop_lsn.0.saturating_sub(1) / size;
    let mut progress = Progress {
        summary: Summary::default(),
        reader: None,
        until,
        is_met: false,
    };
    for number in first..=last {
        if log.cancel.is_cancelled() {
            return Err("it is cancelled".to_owned());
        }
        let name = WalFileName::of_number(number, base.timeline, size);
        // What the base stored is the line that its files belong to. Where the server has gone on from an
        // older state of itself, its own file of that name is another.
        let body = if number <= stored_by_base {
            log.agreed(&name)?
        } else if number < last {
            log.either(&name)?
        } else {
            // What another line of this timeline left in the repository does not lead to this server.
            log.own(&name)?
                .ok_or_else(|| format!("{name} is not with the server any more"))?
        };
        let system = wal::check_segment(&name, &body).map_err(|error| error.to_string())?;
        if system != log.system_id {
            return Err(format!("{name} is of another cluster"));
        }
        let has_arrived = progress.read(&name, &body)?;
        if let Some(doubt) = progress.summary.doubts.first() {
            return Err(doubt.clone());
        }
        if progress.summary.blocks() > BLOCKS_MAX {
            return Err("more changed than is worth telling apart".to_owned());
        }
        if has_arrived {
            return Ok(progress.summary);
        }
    }
    Err(format!("the log ends before {until}"))
}

struct Progress {
    summary: Summary,
    reader: Option<Reader>,
    until: Lsn,
    /// Whether a record was seen that begins at `until`.
    is_met: bool,
}

impl Progress {
    /// Reads a segment; whether that is far enough: to a record that begins exactly at `until`. In a log of
    /// another line hardly one does; in this one there is always one, because the server has written it
    /// before it says that the backup has begun.
    fn read(&mut self, name: &WalFileName, body: &[u8]) -> Result<bool, String> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => {
                let header = SegmentHeader::parse(body).ok_or_else(|| format!("{name} is none"))?;
                let begun = Reader::new(&header).map_err(|error| error.to_string())?;
                none.insert(begun)
            }
        };
        let (major, until) = (reader.major(), self.until);
        let page_bytes = reader.page_bytes();
        for page in body.chunks(page_bytes) {
            let (summary, is_met) = (&mut self.summary, &mut self.is_met);
            let mut wrong = None;
            let read = reader.page(page, &mut |record| {
                *is_met |= record.lsn == until;
                // What begins behind is replayed when this backup is restored.
                if record.lsn < until
                    && let Err(what) = summary.add(record, major)
                {
                    wrong.get_or_insert(format!("the record at {}: {what}", record.lsn));
                }
            });
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
            // Behind the wanted end the log may be on its way.
            match (*is_met, read) {
                (true, _) => return Ok(true),
                (false, Err(error)) => return Err(error.to_string()),
                (false, Ok(())) => {}
            }
            if reader.position().is_some_and(|next| next > until) {
                return Err(format!(
                    "no record begins at {until}, where this backup does"
                ));
            }
        }
        self.summary.transactions.clear();
        Ok(false)
    }
}

impl Log<'_> {
    /// A segment that the repository must have, and the server must have alike if it still has it.
    fn agreed(&self, name: &WalFileName) -> Result<Vec<u8>, String> {
        let stored = self
            .stored(name)?
            .ok_or_else(|| format!("{name} is not in the repository"))?;
        match self.own(name)? {
            Some(own) if own != stored => Err(format!(
                "{name} of the server is not the one that the last backup stored"
            )),
            _ => Ok(stored),
        }
    }

    fn either(&self, name: &WalFileName) -> Result<Vec<u8>, String> {
        match self.own(name)? {
            Some(own) => Ok(own),
            None => self
                .stored(name)?
                .ok_or_else(|| format!("{name} is neither with the server nor in the repository")),
        }
    }

    fn stored(&self, name: &WalFileName) -> Result<Option<Vec<u8>>, String> {
        let found = self.repository.get_wal(self.workload, name);
        found.map_err(|error| format!("{name} cannot be read from the repository: {error}"))
    }

    /// The segment as the server has it. A file that is given another name while it is read is being
    /// recycled: `None`, as when it is gone.
    fn own(&self, name: &WalFileName) -> Result<Option<Vec<u8>>, String> {
        let path = self.pg_wal.join(name.to_string());
        let failed = |error: &std::io::Error| format!("{} cannot be read: {error}", path.display());
        let inode = || match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        };
        let before = inode()?;
        let Some(body) = read(&path).map_err(|error| failed(&error))? else {
            return Ok(None);
        };
        Ok((before.is_some() && inode()? == before).then_some(body))
    }
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(body) => Ok(Some(body)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

//! One WAL file out of the repository.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use dr_installation::{Installation, open_for_wal};
use dr_model::{Lsn, WalFileName, WorkloadName};
use dr_store::Repository;
use dr_wal::page::SegmentHeader;

use super::{FETCH_TIMEOUT, Flushing, identity, within};
use crate::BackupError;
use crate::error::{file_error, store_error};

/// So often it is looked for what was streamed before something of it is said to be missing.
const LOOKS_MAX: u32 = 3;

/// What became of a fetch that got an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The file is there, whole, and durable if that was asked for.
    Delivered,
    /// The repository answered and does not hold it.
    Absent,
}

/// Delivers one WAL file to `to`, durably unless that is spared. Blocks.
///
/// # Errors
/// Whatever is neither delivery nor proven absence.
pub fn fetch(
    config: &Path,
    workload: Option<&WorkloadName>,
    name: &str,
    to: &Path,
    flushing: Flushing,
) -> Result<Fetched, BackupError> {
    let (config, workload) = (config.to_owned(), workload.cloned());
    let (name, to) = (name.to_owned(), to.to_owned());
    within(FETCH_TIMEOUT, format!("fetching {name}"), move || {
        let installation = open_for_wal(&config)?;
        deliver(&installation, workload.as_ref(), &name, (&to, flushing))
    })
}

fn deliver(
    installation: &Installation,
    workload: Option<&WorkloadName>,
    name: &str,
    (to, flushing): (&Path, Flushing),
) -> Result<Fetched, BackupError> {
    let name: WalFileName = name.parse().map_err(|_| BackupError::BadWal {
        file: name.to_owned(),
        what: "it is not the name of a WAL file".to_owned(),
    })?;
    let workload = match workload {
        Some(given) => given.clone(),
        None => identity::workload_of_directory(installation, &name)?,
    };
    let repository = installation.repository_of(&workload)?;
    // Of folders there is never any WAL: that proves nothing.
    identity::one_workload(installation, Some(&workload), "what is to be fetched")?;
    let failed = || store_error(format!("fetch {name} of `{workload}`"), &repository);
    let whole = || repository.get_wal(&workload, &name).map_err(failed());
    let body = match whole()? {
        Some(body) => Some(body),
        // Tails go when their segment is there: it is asked for again whatever they gave, so that neither
        // is missed, nor a part taken for the whole, because of the moment of asking.
        None => {
            let streamed = streamed(&repository, &workload, &name);
            match whole()? {
                Some(body) => Some(body),
                None => streamed?,
            }
        }
    };
    let Some(body) = body else {
        return Ok(Fetched::Absent);
    };
    hand_over(to, &body, flushing)?;
    Ok(Fetched::Delivered)
}

/// What was streamed of a segment that is not stored whole, filled up with zeros: recovery takes a file of
/// a segment's size only, and ends where the records do.
pub(super) fn streamed(
    repository: &Repository,
    workload: &WorkloadName,
    name: &WalFileName,
) -> Result<Option<Vec<u8>>, BackupError> {
    if !matches!(name, WalFileName::Segment { .. }) {
        return Ok(None);
    }
    let failed = || store_error(format!("fetch {name} of `{workload}`"), repository);
    let mut looks = 0;
    let (mut body, page) = loop {
        looks += 1;
        let places = repository.tails(workload).map_err(failed())?;
        let of_it = || places.iter().filter(|place| place.segment == *name);
        // Where the segment begins, its first page must say.
        let start = of_it().map(|place| place.from).min();
        let (Some(start), Some(end)) = (start, of_it().map(|place| place.to).max()) else {
            return Ok(None);
        };
        let (body, damaged) = repository
            .read_tails(workload, name, start)
            .map_err(failed())?;
        // Recovery would end before what was acknowledged, without a word.
        if let Some(damaged) = damaged {
            return Err(failed()(damaged));
        }
        let reached = Lsn(start.0.saturating_add(body.len() as u64));
        match SegmentHeader::parse(&body) {
            Some(page) if reached >= end => break (body, page),
            // A listing is no picture of one moment.
            _ if looks < LOOKS_MAX => {}
            found => {
                let lacking = found.map_or_else(
                    || format!("before {start}"),
                    |_| format!("from {reached} to before {end}"),
                );
                return Err(BackupError::BadWal {
                    file: name.to_string(),
                    what: format!("of what was streamed of it, something is missing {lacking}"),
                });
            }
        }
    };
    if let Ok(bytes) = usize::try_from(page.segment_bytes)
        && body.len() < bytes
    {
        body.resize(bytes, 0);
    }
    identity::check_segment(name, &body)?;
    Ok(Some(body))
}

/// Writes beside the target, makes it durable unless that is spared, and only then gives it the target's name:
/// PostgreSQL never sees a part of it.
fn hand_over(to: &Path, body: &[u8], flushing: Flushing) -> Result<(), BackupError> {
    let mut part_name = to.as_os_str().to_owned();
    part_name.push(".dr-part");
    let part = PathBuf::from(part_name);
    let folder = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&part)?;
        file.write_all(body)?;
        if flushing == Flushing::Spared {
            return fs::rename(&part, to);
        }
        file.sync_all()?;
        drop(file);
        fs::rename(&part, to)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&part);
        file_error("write", to)(error)
    })
}

//! The WAL without which a base backup cannot start: brought into the repository, and read back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dr_model::{Lsn, PostgresPosition, WalFileName, WorkloadName};
use dr_store::Repository;
use dr_wal::page::SegmentHeader;
use dr_wal::{Ended, Outcome, Reader};
use tokio_util::sync::CancellationToken;

use super::server_wal::ServerWal;
use super::{Job, blocking};
use crate::error::store_error;
use crate::{BackupError, check_binding, wal};

/// How long the archiver is given to bring the last segments by itself before we copy them.
const ARCHIVER_PATIENCE: Duration = Duration::from_secs(10);
/// How long the primary's archiver is given when the backup is a standby's, which has the last segment in
/// part only: `archive_timeout` of most, and more.
const PRIMARY_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often the repository is asked meanwhile.
const ARCHIVER_POLL: Duration = Duration::from_millis(250);

/// The segments from START to STOP.
fn segments_of(position: &PostgresPosition) -> Vec<WalFileName> {
    let size = position.wal_segment_bytes;
    let first = position.start_lsn.0 / size;
    // A stop exactly at a boundary ends the segment before it.
    let last = position.stop_lsn.0.saturating_sub(1) / size;
    (first..=last)
        .map(|number| WalFileName::of_number(number, position.timeline, size))
        .collect()
}

/// Whose files were captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The server that writes the WAL; whether it archives.
    Primary { archives: bool },
    /// A server that receives it: the segment in which its backup stops is still on its way.
    Standby,
}

pub(super) async fn secure_wal(
    job: &Job<'_>,
    server: ServerWal,
    position: &PostgresPosition,
    origin: Origin,
) -> Result<Secured, BackupError> {
    let (phase, patience) = match origin {
        Origin::Primary { archives: true } => ("securing its WAL", ARCHIVER_PATIENCE),
        Origin::Primary { archives: false } => ("securing its WAL", Duration::ZERO),
        Origin::Standby => (
            "waiting until the primary has archived its WAL",
            PRIMARY_PATIENCE,
        ),
    };
    job.progress.phase(phase, None);
    let work = WalWork {
        repository: job.repository.clone(),
        workload: job.name().clone(),
        server,
        position: position.clone(),
        origin,
        patience,
        clock: Arc::clone(&job.installation.clock),
        cancel: job.cancel.clone(),
    };
    blocking("secure the WAL", move || work.secure()).await
}

/// What was secured.
pub(super) struct Secured {
    pub(super) files: Vec<WalFileName>,
    /// Of a standby's backup: when the last transaction up to its stop was committed, if one was.
    pub(super) last_commit: Option<DateTime<Utc>>,
}

/// Finds the last commit before a position.
struct LastCommit {
    until: Lsn,
    reader: Option<Reader>,
    at: Option<DateTime<Utc>>,
}

impl LastCommit {
    fn new(until: Lsn) -> Self {
        Self {
            until,
            reader: None,
            at: None,
        }
    }

    /// Reads the next segment.
    fn read(&mut self, name: &WalFileName, body: &[u8]) -> Result<(), BackupError> {
        let bad = |what: String| BackupError::BadWal {
            file: name.to_string(),
            what,
        };
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => {
                let header = SegmentHeader::parse(body);
                let header = header.ok_or_else(|| bad("it is no segment".to_owned()))?;
                none.insert(Reader::new(&header).map_err(|error| bad(error.to_string()))?)
            }
        };
        let (major, until) = (reader.major(), self.until);
        for page in body.chunks(reader.page_bytes()) {
            if reader.position().is_some_and(|next| next >= until) {
                break;
            }
            let at = &mut self.at;
            let read = reader.page(page, &mut |record| {
                let ended = Ended::of(record, major).ok().flatten();
                if record.end <= until
                    && let Some(ended) = ended.filter(|it| it.outcome == Outcome::Committed)
                {
                    *at = (*at).max(Some(ended.at));
                }
            });
            // Without its records up to the stop the copy could not become consistent.
            match read {
                Err(error) if reader.position().is_none_or(|next| next < until) => {
                    return Err(bad(error.to_string()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

struct WalWork {
    repository: Repository,
    workload: WorkloadName,
    server: ServerWal,
    position: PostgresPosition,
    origin: Origin,
    patience: Duration,
    clock: Arc<dyn dr_model::Clock>,
    cancel: CancellationToken,
}

impl WalWork {
    /// Brings every file the point needs into the repository and reads each back.
    fn secure(&self) -> Result<Secured, BackupError> {
        let segments = segments_of(&self.position);
        let histories = self.histories()?;
        let all = || segments.iter().chain(&histories);
        let mut missing: BTreeSet<WalFileName> = match self.origin {
            Origin::Primary { .. } => all().cloned().collect(),
            // Everything else is whole here.
            Origin::Standby => segments.last().cloned().into_iter().collect(),
        };
        let deadline = Instant::now() + self.patience;
        loop {
            let mut still = BTreeSet::new();
            for name in missing {
                if !self.is_stored(&name)? {
                    still.insert(name);
                }
            }
            missing = still;
            if missing.is_empty() || Instant::now() >= deadline {
                break;
            }
            if self.cancel.is_cancelled() {
                return Err(BackupError::Cancelled(self.workload.clone()));
            }
            std::thread::sleep(ARCHIVER_POLL);
        }
        if self.origin == Origin::Standby
            && let Some(name) = missing.first()
        {
            return Err(BackupError::NotArchivedByPrimary {
                workload: self.workload.clone(),
                name: name.clone(),
            });
        }
        let mut commits = LastCommit::new(self.position.stop_lsn);
        for name in all() {
            let body = self.settle(name)?;
            if self.origin == Origin::Standby && matches!(name, WalFileName::Segment { .. }) {
                commits.read(name, &body)?;
            }
        }
        Ok(Secured {
            last_commit: commits.at,
            files: segments.into_iter().chain(histories).collect(),
        })
    }

    fn is_stored(&self, name: &WalFileName) -> Result<bool, BackupError> {
        self.repository
            .wal_info(&self.workload, name)
            .map(|info| info.is_some())
            .map_err(store_error(
                format!("look for {name} of `{}`", self.workload),
                &self.repository,
            ))
    }

    /// The `.history` files of the cluster's own past; of timeline 1 there is none.
    fn histories(&self) -> Result<Vec<WalFileName>, BackupError> {
        let own = self.position.timeline;
        let mut found = self.server.histories(own)?;
        let newest = WalFileName::History { timeline: own };
        if own.0 > 1 && !found.contains(&newest) {
            found.push(newest);
        }
        Ok(found)
    }

    /// How much of a file the server has for good: a segment is complete, because ending the backup made a
    /// primary switch to a new one; but the one in which a standby's backup stops is still on its way to it.
    fn complete(&self, name: &WalFileName) -> u64 {
        let size = self.position.wal_segment_bytes;
        match (self.origin, name.number(size)) {
            (Origin::Standby, Some(number)) => {
                (self.position.stop_lsn.0.saturating_sub(number * size)).min(size)
            }
            _ => size,
        }
    }

    /// Makes sure that a file is stored, from the server if need be, and gives back what is.
    fn settle(&self, name: &WalFileName) -> Result<Vec<u8>, BackupError> {
        if self.cancel.is_cancelled() {
            return Err(BackupError::Cancelled(self.workload.clone()));
        }
        let is_stored = self.is_stored(name)?;
        let own = match self.server.file(name, self.complete(name)) {
            // It was only to be compared.
            Err(error @ BackupError::Streaming { .. }) if is_stored => {
                tracing::warn!(file = %name, error = %crate::status::chain(&error), "not compared with the server's");
                None
            }
            asked => asked?,
        };
        if !is_stored {
            match &own {
                // What is on its way to a standby is only compared.
                Some(_) if self.complete(name) < self.position.wal_segment_bytes => {
                    return Err(self.missing(name));
                }
                Some(body) => self.store(name, body)?,
                // The archiver may have brought and removed it since we last asked.
                None if self.is_stored(name)? => {}
                None => return Err(self.missing(name)),
            }
        }
        self.read_back(name, own.as_deref())
    }

    fn store(&self, name: &WalFileName, body: &[u8]) -> Result<(), BackupError> {
        if matches!(name, WalFileName::Segment { .. }) {
            let found = wal::check_segment(name, body)?;
            check_binding(&self.repository, &self.workload, found)?;
        }
        let now = self.clock.now();
        wal::put(&self.repository, &self.workload, name, body, now).map(drop)
    }

    fn missing(&self, name: &WalFileName) -> BackupError {
        BackupError::WalMissing {
            workload: self.workload.clone(),
            name: name.clone(),
            looked_in: self.server.place(),
        }
    }

    /// Proves that the repository gives back what a restore of this point will ask it for; `own` is what
    /// the server has of it.
    fn read_back(&self, name: &WalFileName, own: Option<&[u8]>) -> Result<Vec<u8>, BackupError> {
        let body = self
            .repository
            .get_wal(&self.workload, name)
            .map_err(store_error(
                format!("read back {name} of `{}`", self.workload),
                &self.repository,
            ))?
            .ok_or_else(|| self.missing(name))?;
        let bad = |what: &str| BackupError::BadWal {
            file: name.to_string(),
            what: format!("read back from the repository, {what}"),
        };
        match name {
            WalFileName::Segment { .. } => {
                let found = wal::check_segment(name, &body)?;
                if found != self.position.system_id {
                    return Err(bad("it belongs to another cluster"));
                }
                // A rescue or a copy may have stored another end under this name: the start of this very
                // backup could be missing in it.
                let whole = usize::try_from(self.complete(name)).unwrap_or(usize::MAX);
                let whole = whole.min(body.len());
                if let Some(own) = own
                    && own.get(..whole) != body.get(..whole)
                {
                    return Err(bad("it is not what this server wrote"));
                }
            }
            _ => {
                std::str::from_utf8(&body)
                    .ok()
                    .and_then(crate::window::parse_history)
                    .ok_or_else(|| bad("it is no timeline history"))?;
                // A timeline's number can have been given twice: recovery along the other one would end
                // where this cluster never was. Of its ancestors the file of its own timeline tells.
                let is_own = name.timeline() == Some(self.position.timeline);
                if is_own && own.is_some_and(|own| own != body) {
                    return Err(bad("it is not what this server has"));
                }
            }
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dr_model::{Lsn, SystemId, Timeline};

    #[test]
    fn a_stop_at_a_boundary_needs_no_segment_behind_it() {
        let size = 16 << 20;
        let name = |lsn: u64| WalFileName::containing(Lsn(lsn), Timeline(1), size);
        let mut position = PostgresPosition {
            system_id: SystemId(1),
            timeline: Timeline(1),
            start_lsn: Lsn(2 * size + 40),
            stop_lsn: Lsn(4 * size),
            start_segment: name(2 * size),
            stop_segment: name(3 * size),
            wal_segment_bytes: size,
            server_version_num: 150_018,
            page_checksums: true,
        };
        assert_eq!(segments_of(&position), [name(2 * size), name(3 * size)]);
        position.stop_lsn = Lsn(4 * size + 1);
        assert_eq!(segments_of(&position).len(), 3);
    }

    /// A segment of 1 MiB as a standby has it, of which the second half was never sent.
    fn segment(position: &PostgresPosition) -> Vec<u8> {
        let size = position.wal_segment_bytes;
        let begin = position.start_lsn.0 / size * size;
        let mut body = vec![0; usize::try_from(size).unwrap()];
        body[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        body[2] = 2;
        body[4] = 1;
        body[8..16].copy_from_slice(&begin.to_le_bytes());
        body[24..32].copy_from_slice(&position.system_id.0.to_le_bytes());
        body[32..36].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        body[36..40].copy_from_slice(&8192u32.to_le_bytes());
        body
    }

    /// A standby has the rest of it only when its primary has written it.
    #[test]
    fn a_segment_that_its_primary_did_not_archive_is_not_taken_from_a_standby() {
        let folder = tempfile::tempdir().unwrap();
        let place = dr_store::LocalBackend::new(&folder.path().join("repository"));
        let key = dr_store::RepositoryKey::generate();
        let repository = Repository::create(Arc::new(place), &key).unwrap();
        let size = 1 << 20;
        let name = WalFileName::of_number(5, Timeline(1), size);
        let position = PostgresPosition {
            system_id: SystemId(77),
            timeline: Timeline(1),
            start_lsn: Lsn(5 * size + 40),
            stop_lsn: Lsn(5 * size + size / 2),
            start_segment: name.clone(),
            stop_segment: name.clone(),
            wal_segment_bytes: size,
            server_version_num: 150_018,
            page_checksums: true,
        };
        let pg_wal = folder.path().to_owned();
        std::fs::write(pg_wal.join(name.to_string()), segment(&position)).unwrap();
        let mut work = WalWork {
            repository: repository.clone(),
            workload: "erp".parse().unwrap(),
            server: ServerWal::Folder(pg_wal),
            position,
            origin: Origin::Standby,
            patience: Duration::ZERO,
            clock: Arc::new(dr_model::SystemClock),
            cancel: CancellationToken::new(),
        };
        let workload = work.workload.clone();
        let is_stored = || repository.wal_info(&workload, &name).unwrap().is_some();
        let error = work.secure().map(drop).unwrap_err();
        assert!(
            matches!(&error, BackupError::NotArchivedByPrimary { name: of, .. } if *of == name),
            "{error:?}"
        );
        // Even where it was there a moment ago.
        let error = work.settle(&name).unwrap_err();
        assert!(
            matches!(&error, BackupError::WalMissing { name: of, .. } if *of == name),
            "{error:?}"
        );
        assert!(!is_stored());
        // A primary's is whole.
        work.origin = Origin::Primary { archives: false };
        let secured = work.secure().unwrap();
        assert!(is_stored());
        assert_eq!(secured.files, [name]);
    }
}

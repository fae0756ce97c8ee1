//! One WAL file into the repository.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dr_installation::{Installation, open_for_wal};
use dr_model::{Progress, SystemId, WalFileName, WorkloadName};
use dr_sources::postgres::control;
use dr_store::{Repository, StoreError, WalPut};
use serde::Serialize;

use super::given_up::{FileIdentity, GivenUp, Records};
use super::{PUSH_TIMEOUT, WAL_FILE_BYTES_MAX, identity, within};
use crate::BackupError;
use crate::error::{file_error, source_error, store_error};

/// Where the server keeps, beside its WAL, which file is archived (`xlogarchive.c`).
const STATUS_FOLDER: &str = "archive_status";
/// However little may wait.
const SEGMENTS_THAT_MAY_WAIT: u64 = 4;
/// When more waits than may, the repository gets so long to take one more, beside the time its bytes take.
const LAST_TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// A slower one is no use to a server that fills a queue.
const SLOWEST_BYTES_PER_SECOND: u64 = 20 << 20;
/// WAL files that are stored side by side; each is held in memory.
const PUSHES_AT_ONCE: usize = 4;

/// What became of a file that PostgreSQL handed over. It may forget it in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It is durable in the repository.
    Put(WalPut),
    /// More waits than may: it was given up, which is written down on this host.
    GivenUp(Box<GivenUp>),
    /// More waits than may: a history, which is never given up, is kept on this host until it can be stored.
    Kept,
}

/// Stores one WAL file. Blocks; returns only when it is durable, or was given up because more waits than the
/// workload's `archive_queue_max`.
///
/// # Errors
/// Everything else: nothing is acknowledged. [`BackupError::WalConflict`] when the archive holds
/// another content under this name: it is never overwritten.
pub fn push(config: &Path, file: &Path) -> Result<Pushed, BackupError> {
    let (config, file) = (config.to_owned(), file.to_owned());
    within(
        PUSH_TIMEOUT,
        format!("pushing {}", file.display()),
        move || store(&config, &file),
    )
}

/// What a push of everything that is ready did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PushedReady {
    /// Files newly stored.
    pub stored: u64,
    /// Files that were in the repository already.
    pub already_there: u64,
    /// Files that the server had archived, or given up, before they could be read.
    pub not_waiting_any_more: u64,
}

/// Stores every WAL file that a workload's server waits to have archived, several at a time. The server
/// still hands over each by itself, and then finds it stored: after an outage of the repository that
/// goes faster than storing one after the other. Blocks.
///
/// # Errors
/// As [`push`], of the first file that failed; the others are stored or still ready.
pub fn push_ready(
    config: &Path,
    workload: Option<&WorkloadName>,
    progress: &dyn Progress,
) -> Result<PushedReady, BackupError> {
    let installation = open_for_wal(config)?;
    let (name, source) = identity::one_workload(&installation, workload, "what is ready")?;
    let ready = ready_files(&source.data_directory.join("pg_wal"))?;
    progress.phase(&format!("archiving the WAL of `{name}`"), None);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Ok(PushedReady::default())));
    let one_after_the_other = || {
        while let Some(file) = ready.get(next.fetch_add(1, Ordering::Relaxed)) {
            let stored = store_ready(&installation, file);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(so_far) = done.as_mut() else { return };
            match stored {
                Ok(Some(WalPut::Stored)) => so_far.stored += 1,
                Ok(Some(WalPut::AlreadyThere)) => so_far.already_there += 1,
                Ok(None) => so_far.not_waiting_any_more += 1,
                Err(error) => *done = Err(error),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..PUSHES_AT_ONCE {
            scope.spawn(one_after_the_other);
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Stores a file that the server waits for; `None` if it does not any more. The server gives a file that
/// it has done with a new name and writes into it again, while who has it open reads on: so what was read
/// is stored only if the file is still in its place, and waited for, after it was read.
fn store_ready(installation: &Installation, file: &Path) -> Result<Option<WalPut>, BackupError> {
    let name = name_of(file)?;
    let inode = |file: &Path| {
        std::fs::metadata(file)
            .ok()
            .map(|found| (found.dev(), found.ino()))
    };
    let before = inode(file);
    let body = read_whole(file);
    if before.is_none() || inode(file) != before || !marker_of(file).exists() {
        return Ok(None);
    }
    store_body(installation, &name, file, &body?).map(Some)
}

/// What says that the server waits for a file to be archived.
fn marker_of(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(STATUS_FOLDER)
        .join(format!("{name}.ready"))
}

/// The files that the server has marked as ready, oldest first; histories before all segments, as the
/// server does it.
fn ready_files(pg_wal: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let status = pg_wal.join(STATUS_FOLDER);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&status).map_err(file_error("list", &status))? {
        let entry = entry.map_err(file_error("list", &status))?.file_name();
        let name = entry.to_str().and_then(|name| name.strip_suffix(".ready"));
        names.extend(name.and_then(|name| name.parse::<WalFileName>().ok()));
    }
    let is_history = |name: &WalFileName| matches!(name, WalFileName::History { .. });
    names.sort_by_cached_key(|name| (!is_history(name), name.to_string()));
    let files = names.iter().map(|name| pg_wal.join(name.to_string()));
    Ok(files.collect())
}

fn store(config: &Path, file: &Path) -> Result<Pushed, BackupError> {
    let name = name_of(file)?;
    let body = read_whole(file)?;
    let installation = open_for_wal(config)?;
    if let Some(queue) = Queue::of(&installation, file)? {
        return queue.push(&installation, &name, file, body);
    }
    store_body(&installation, &name, file, &body).map(Pushed::Put)
}

/// What waits to be archived, where a limit is set for it.
struct Queue {
    records: Records,
    limit: u64,
    segment_bytes: u64,
    system_id: SystemId,
    /// What waits but histories, which are never given up.
    waiting: BTreeMap<WalFileName, FileIdentity>,
}

impl Queue {
    /// Of the workload in whose data directory a file waits. A file that the server does not wait for (a
    /// person hands it over) is in no queue, and is stored or refused.
    fn of(installation: &Installation, file: &Path) -> Result<Option<Self>, BackupError> {
        let Some(folder) = identity::data_directory_of(Some(file)) else {
            return Ok(None);
        };
        let Some((workload, limit)) = identity::archive_limit(installation, &folder) else {
            return Ok(None);
        };
        if !marker_of(file).exists() {
            return Ok(None);
        }
        let control =
            control::read(&folder).map_err(source_error("tell how much WAL waits".to_owned()))?;
        let ready = ready_files(&folder.join("pg_wal"))?;
        let named = |file: &PathBuf| {
            let name = name_of(file).ok()?;
            let is_history = matches!(name, WalFileName::History { .. });
            Some((name, FileIdentity::of(file)?)).filter(|_| !is_history)
        };
        Ok(Some(Self {
            records: Records::of(installation, workload),
            // Archiving lives with a few segments that wait.
            limit: limit.max(SEGMENTS_THAT_MAY_WAIT * control.wal_segment_bytes),
            segment_bytes: control.wal_segment_bytes,
            system_id: control.system_id,
            waiting: ready.iter().filter_map(named).collect(),
        }))
    }

    fn push(
        &self,
        installation: &Installation,
        name: &WalFileName,
        file: &Path,
        body: Vec<u8>,
    ) -> Result<Pushed, BackupError> {
        if let Some(record) = self.records.covering(name, file) {
            return Ok(Pushed::GivenUp(Box::new(record)));
        }
        let segments = self.waiting.keys().filter(|name| name.is_segment());
        let bytes = (segments.count() as u64).saturating_mul(self.segment_bytes);
        if bytes <= self.limit {
            self.records.is_not_outrun();
            return store_body(installation, name, file, &body).map(Pushed::Put);
        }
        // It may have come back just now, or why it failed was mended; but it may also be what does not answer.
        let tried = {
            let (installation, name) = (installation.clone(), name.clone());
            let (file, body) = (file.to_owned(), body.clone());
            let what = format!("pushing {}", file.display());
            within(self.last_try(), what, move || {
                store_body(&installation, &name, &file, &body)
            })
        };
        let now = installation.clock.now();
        match tried {
            Ok(put) if bytes <= self.limit.saturating_mul(2) => return Ok(Pushed::Put(put)),
            Ok(put) if !self.records.is_outrun(self.waiting.len() as u64, now) => {
                return Ok(Pushed::Put(put));
            }
            Ok(_) => tracing::warn!("WAL is written faster than it is stored"),
            Err(error) => {
                tracing::warn!(
                    error = crate::status::chain(&error),
                    "too much waits for this"
                );
            }
        }
        self.give_up(name, &body, now)
    }

    /// What a repository that works takes one segment in.
    fn last_try(&self) -> Duration {
        let seconds = self.segment_bytes / SLOWEST_BYTES_PER_SECOND;
        LAST_TRY_TIMEOUT + Duration::from_secs(seconds)
    }

    /// Gives up everything that waits; durable when this returns.
    fn give_up(
        &self,
        name: &WalFileName,
        body: &[u8],
        now: chrono::DateTime<chrono::Utc>,
    ) -> Result<Pushed, BackupError> {
        if matches!(name, WalFileName::History { .. }) {
            self.records.keep_history(name, body)?;
            return Ok(Pushed::Kept);
        }
        let mut segments = self.waiting.keys().filter(|name| name.is_segment());
        let (Some(first), through) = (segments.next(), segments.next_back()) else {
            return Err(BackupError::Worker("tell what waits"));
        };
        let record = GivenUp {
            system_id: self.system_id,
            first: first.clone(),
            through: through.unwrap_or(first).clone(),
            segment_bytes: self.segment_bytes,
            at: now,
            limit: self.limit,
            files: self.waiting.clone(),
        };
        self.records.write(&record)?;
        Ok(Pushed::GivenUp(Box::new(record)))
    }
}

fn store_body(
    installation: &Installation,
    name: &WalFileName,
    file: &Path,
    body: &[u8],
) -> Result<WalPut, BackupError> {
    let data_directory = identity::data_directory_of(Some(file));
    let system_id = identity::system_id_of(name, body, data_directory.as_deref())?;
    let workload = identity::workload_for(
        installation,
        &name.to_string(),
        system_id,
        data_directory.as_deref(),
    )?;
    let repository = installation.repository_of(&workload)?;
    let now = installation.clock.now();
    let stored = put(&repository, &workload, name, body, now)?;
    let records = Records::of(installation, &workload);
    let ended = records
        .end()
        .and_then(|()| records.store_histories(&repository, &workload, now));
    // The file is stored all the same.
    if let Err(error) = ended {
        tracing::warn!(
            error = crate::status::chain(&error),
            "what was given up or kept before is not done with"
        );
    }
    Ok(stored)
}

pub(super) fn name_of(file: &Path) -> Result<WalFileName, BackupError> {
    file.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| BackupError::BadWal {
            file: file.display().to_string(),
            what: "its name is not that of a WAL file".to_owned(),
        })
}

pub(super) fn read_whole(path: &Path) -> Result<Vec<u8>, BackupError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > WAL_FILE_BYTES_MAX {
            return Err(std::io::Error::other(
                "it is larger than any WAL file can be",
            ));
        }
        let mut body = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.take(WAL_FILE_BYTES_MAX).read_to_end(&mut body)?;
        Ok(body)
    };
    read().map_err(file_error("read", path))
}

/// Stores one WAL file whose cluster has been checked.
pub(crate) fn put(
    repository: &Repository,
    workload: &WorkloadName,
    name: &WalFileName,
    body: &[u8],
    now: chrono::DateTime<chrono::Utc>,
) -> Result<WalPut, BackupError> {
    repository
        .put_wal(workload, name, body, now)
        .map_err(|error| match error {
            conflict @ StoreError::WalConflict { .. } => BackupError::WalConflict {
                name: name.clone(),
                workload: workload.clone(),
                source: conflict,
            },
            other => store_error(format!("store {name} of `{workload}`"), repository)(other),
        })
}

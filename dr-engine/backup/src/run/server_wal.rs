//! The WAL that the server of a base backup still has: in its data directory on this host, or sent by it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dr_model::{Lsn, SystemId, Timeline, WalFileName, WorkloadName};
use dr_replication::{Address, Connection, Event, ReplicationError};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::BackupError;
use crate::error::file_error;
use crate::wal::names_in;
use crate::window::parse_history;

/// How long the server may take to answer, and to send the next bytes of WAL that it has.
const PATIENCE: Duration = Duration::from_secs(60);
/// Shorter than any `wal_sender_timeout` in use: a server that hears nothing ends the stream.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A server that is away for a moment, or has no session free, is asked again so often.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);
/// `too_many_connections`.
const NO_SESSION_FREE: &str = "53300";

/// Where it is found.
pub(super) enum ServerWal {
    /// In this `pg_wal`.
    Folder(PathBuf),
    /// At a server.
    Remote(Box<Remote>),
}

/// A server that sends its WAL.
pub(super) struct Remote {
    pub(super) workload: WorkloadName,
    pub(super) address: Address,
    /// To wait for what is sent, on a thread that may block.
    pub(super) runtime: Handle,
    pub(super) system_id: SystemId,
    pub(super) segment_bytes: u64,
    pub(super) cancel: CancellationToken,
}

impl ServerWal {
    /// Where it was looked for, for messages.
    pub(super) fn place(&self) -> PathBuf {
        match self {
            Self::Folder(pg_wal) => pg_wal.clone(),
            Self::Remote(remote) => format!("pg_wal of {}", remote.address.place()).into(),
        }
    }

    /// The `.history` files of a timeline and its past that are here; of timeline 1 there is none.
    pub(super) fn histories(&self, own: Timeline) -> Result<Vec<WalFileName>, BackupError> {
        let is_wanted = |name: &WalFileName| match name {
            WalFileName::History { timeline } => *timeline <= own,
            _ => false,
        };
        match self {
            Self::Folder(pg_wal) => Ok(names_in(pg_wal)?.into_iter().filter(is_wanted).collect()),
            Self::Remote(remote) => remote.histories(own),
        }
    }

    /// The first `bytes` of a segment, or a `.history` file; `None` when the server has it no more.
    pub(super) fn file(
        &self,
        name: &WalFileName,
        bytes: u64,
    ) -> Result<Option<Vec<u8>>, BackupError> {
        match self {
            Self::Folder(pg_wal) => in_folder(pg_wal, name),
            Self::Remote(remote) => remote.file(name, bytes),
        }
    }
}

fn in_folder(pg_wal: &Path, name: &WalFileName) -> Result<Option<Vec<u8>>, BackupError> {
    let path = pg_wal.join(name.to_string());
    match std::fs::read(&path) {
        Ok(body) => Ok(Some(body)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", &path)(error)),
    }
}

impl Remote {
    fn failed(&self, source: ReplicationError) -> BackupError {
        BackupError::Streaming {
            workload: self.workload.clone(),
            source,
        }
    }

    fn file(&self, name: &WalFileName, bytes: u64) -> Result<Option<Vec<u8>>, BackupError> {
        self.runtime.block_on(async {
            tokio::select! {
                found = self.file_in_the_end(name, bytes) => found,
                () = self.cancel.cancelled() => Err(BackupError::Cancelled(self.workload.clone())),
            }
        })
    }

    async fn file_in_the_end(
        &self,
        name: &WalFileName,
        bytes: u64,
    ) -> Result<Option<Vec<u8>>, BackupError> {
        let mut attempt = 1;
        loop {
            match self.ask(name, bytes).await {
                Err(BackupError::Streaming { source, .. })
                    if attempt < ATTEMPTS
                        && (source.is_down() || source.code() == Some(NO_SESSION_FREE)) =>
                {
                    tracing::debug!(error = %source, file = %name, "asking for WAL once more");
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                asked => return asked,
            }
        }
    }

    async fn ask(&self, name: &WalFileName, bytes: u64) -> Result<Option<Vec<u8>>, BackupError> {
        let mut connection = self.connect().await?;
        let found = match name {
            WalFileName::History { timeline } => self.history(&mut connection, *timeline).await?,
            _ => self.segment(&mut connection, name, bytes).await?,
        };
        connection.close().await;
        Ok(found)
    }

    /// A connection to the cluster that was backed up, and to no other one behind the same address.
    async fn connect(&self) -> Result<Connection, BackupError> {
        let connected = Connection::connect(&self.address, PATIENCE).await;
        let mut connection = connected.map_err(|source| self.failed(source))?;
        let identity = connection.identify_system().await;
        let found = identity.map_err(|source| self.failed(source))?.system_id;
        if found == self.system_id {
            return Ok(connection);
        }
        Err(BackupError::OtherCluster {
            workload: self.workload.clone(),
            bound: self.system_id,
            found,
        })
    }

    fn histories(&self, own: Timeline) -> Result<Vec<WalFileName>, BackupError> {
        let body = match own.0 {
            ..=1 => None,
            _ => self.file(&WalFileName::History { timeline: own }, 0)?,
        };
        // Without its own history there is nothing that tells of others.
        let Some(body) = body else {
            return Ok(Vec::new());
        };
        let switches = std::str::from_utf8(&body).ok().and_then(parse_history);
        let parents = switches.unwrap_or_default().into_iter();
        let mut found = Vec::new();
        for timeline in parents.map(|switch| switch.parent).chain([own]) {
            let name = WalFileName::History { timeline };
            if timeline.0 > 1 && self.file(&name, 0)?.is_some() {
                found.push(name);
            }
        }
        Ok(found)
    }

    async fn history(
        &self,
        connection: &mut Connection,
        timeline: Timeline,
    ) -> Result<Option<Vec<u8>>, BackupError> {
        match connection.timeline_history(timeline).await {
            Ok((_, body)) => Ok(Some(body.to_vec())),
            // The file is absent there.
            Err(error) if error.code() == Some("58P01") => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    async fn segment(
        &self,
        connection: &mut Connection,
        name: &WalFileName,
        bytes: u64,
    ) -> Result<Option<Vec<u8>>, BackupError> {
        let (Some(number), Some(timeline)) = (name.number(self.segment_bytes), name.timeline())
        else {
            return Ok(None);
        };
        let begin = Lsn(number * self.segment_bytes);
        let wanted = usize::try_from(bytes.min(self.segment_bytes)).unwrap_or(usize::MAX);
        let started = connection.start_physical(None, begin, timeline).await;
        let mut stream = started.map_err(|source| self.failed(source))?;
        let mut body = Vec::new();
        let mut deadline = Instant::now() + PATIENCE;
        while body.len() < wanted {
            let next = tokio::select! {
                next = stream.next() => next,
                () = tokio::time::sleep(REPORT_EVERY) => {
                    if Instant::now() >= deadline {
                        return Err(self.silent());
                    }
                    // Nothing: who reports what it has flushed can be taken for a synchronous standby.
                    let reported = stream.report(Lsn(0), Lsn(0), Lsn(0), false).await;
                    reported.map_err(|source| self.failed(source))?;
                    continue;
                }
            };
            match next {
                Ok(Event::Data { start, data, .. }) => {
                    if start.0 != begin.0 + body.len() as u64 {
                        return Err(BackupError::BadWal {
                            file: name.to_string(),
                            what: format!("the server goes on at {start} in the middle of it"),
                        });
                    }
                    body.extend_from_slice(&data);
                    deadline = Instant::now() + PATIENCE;
                }
                // Only data is what is waited for.
                Ok(Event::Keepalive { .. }) if Instant::now() >= deadline => {
                    return Err(self.silent());
                }
                Ok(Event::Keepalive { .. }) => {
                    let reported = stream.report(Lsn(0), Lsn(0), Lsn(0), false).await;
                    reported.map_err(|source| self.failed(source))?;
                }
                Ok(Event::TimelineEnded { .. }) => return Ok(None),
                Err(error) if error.is_wal_removed() => return Ok(None),
                Err(source) => return Err(self.failed(source)),
            }
        }
        body.truncate(wanted);
        Ok(Some(body))
    }

    fn silent(&self) -> BackupError {
        BackupError::ServerSilent {
            workload: self.workload.clone(),
            seconds: PATIENCE.as_secs(),
        }
    }
}

//! WAL received as it is written: what an RPO of seconds needs.
//!
//! A receiver is a standby to the server (physical replication, by a slot of its own), and the repository
//! is its disk. What arrives is stored as tails of the growing segment, a few in a second; a whole segment
//! is stored as if it had been pushed, and its tails go. Only what is durable in the repository is
//! reported as flushed: so the server keeps the rest for us, and a server that names us in
//! `synchronous_standby_names` acknowledges a commit only when it is in the repository.
//!
//! Archiving goes on beside it. Both store the same segments; whoever comes second finds them stored.
//!
//! A crash leaves tails that end where they end. The next receiver begins a little earlier, compares what
//! it receives with what is there, and goes on behind it: a server that went back, or is another one, is
//! refused before anything of it is stored. Where the server has removed what is lacking, the gap stays and
//! is said.

mod begin;
mod flow;
mod inflow;
mod slot;
mod standing;

use std::collections::BTreeMap;
use std::time::Duration;

use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Lsn, Timeline, WalFileName, WorkloadName};
use dr_replication::{Address, Connection};
use dr_sources::postgres::ConnectOptions;
use dr_store::{Repository, StoreError};
use tokio_util::sync::CancellationToken;

use super::put;
use crate::BackupError;
use crate::binding::check_binding;
use crate::error::store_error;
use crate::run::blocking;
use crate::window::{TimelineSwitch, WalIndex, parse_history};
use begin::{Beginning, Known, Place, beginning};
use flow::{Flow, Next};
use slot::Found;
pub use standing::{Failing, Standing, Standings};

/// A server that does not answer within this is taken as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One that does not come to its end within this after it was asked to is left: a repository that hangs.
const STOP_MAX: Duration = Duration::from_secs(130);
/// After a failure: the first pause, doubled with each failure up to the last.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LAST: Duration = Duration::from_secs(30);

/// Receives until `cancel`, beginning again after every failure, which `standings` tells.
pub async fn receive_for_ever(
    installation: &Installation,
    workload: &WorkloadName,
    standings: &Standings,
    cancel: &CancellationToken,
) {
    let mut pause = PAUSE_FIRST;
    while !cancel.is_cancelled() {
        let before = standings.now().durable;
        let received = tokio::select! {
            received = receive(installation, workload, standings, cancel) => received,
            // Whatever it waits for by then, it is not a write that is known to be on its way.
            () = stopped_for(STOP_MAX, cancel) => return,
        };
        if let Err(error) = received {
            standings.failed(&error, installation.clock.now());
        }
        // One that got something into the repository begins again at once.
        if standings.now().durable > before {
            pause = PAUSE_FIRST;
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

/// Waits until `cancel` was asked for so long ago.
async fn stopped_for(time: Duration, cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(time).await;
}

/// Receives until `cancel` or the first failure. What had arrived is stored before it returns, unless the
/// repository is what fails.
///
/// # Errors
/// When the server or the repository fails, or they do not belong together. Everything that was reported
/// to the server is durable.
pub async fn receive(
    installation: &Installation,
    workload: &WorkloadName,
    standings: &Standings,
    cancel: &CancellationToken,
) -> Result<(), BackupError> {
    let found = installation.config.workload(workload.as_str())?;
    let WorkloadSource::Postgres(source) = found.source else {
        return Err(BackupError::WrongKind {
            workload: workload.clone(),
            needed: "postgres",
        });
    };
    let options = ConnectOptions {
        url: source.url.clone(),
        password: installation.postgres_password(&found)?,
    };
    let stream = source.stream.clone().unwrap_or_default();
    let receiver = Receiver {
        installation,
        workload,
        repository: installation.open_repository_of(workload).await?,
        slot: stream.slot_of(workload),
        every: stream.every(),
        options,
        standings,
    };
    receiver.run(cancel).await
}

/// One connection's work.
struct Receiver<'a> {
    installation: &'a Installation,
    workload: &'a WorkloadName,
    repository: Repository,
    slot: String,
    every: Duration,
    options: ConnectOptions,
    standings: &'a Standings,
}

impl Receiver<'_> {
    async fn run(&self, cancel: &CancellationToken) -> Result<(), BackupError> {
        let server = slot::Server::of(&self.options, self.workload).await?;
        self.check_cluster(&server).await?;
        let mut address = Address::from_url(&self.options.url, self.options.password.clone())
            .map_err(|source| self.failed(source))?;
        address.application_name.clone_from(&self.slot);
        let mut connection = Connection::connect(&address, CONNECT_TIMEOUT)
            .await
            .map_err(|source| self.failed(source))?;
        let system = connection
            .identify_system()
            .await
            .map_err(|source| self.failed(source))?;
        // Two connections: behind one address there may be two servers.
        if system.system_id != server.system_id {
            return Err(BackupError::OtherCluster {
                workload: self.workload.clone(),
                bound: server.system_id,
                found: system.system_id,
            });
        }
        let kept = self.slot(&mut connection).await?;
        let mut index = self.index(server.segment_bytes).await?;
        if system.timeline.0 > 1 {
            let switches = self.learn_history(&mut connection, system.timeline).await?;
            self.learn_parents(&mut connection, &switches).await;
            index.learn_history(system.timeline, switches);
        }
        let Beginning { places, lacking } = beginning(&Known {
            index: &index,
            timeline: system.timeline,
            flushed: system.xlogpos,
            slot: kept,
        });
        let mut places = places.into_iter();
        let Some(mut place) = places.next() else {
            return Ok(());
        };
        loop {
            // All of it before the stream begins: the server waits for what it sent to be taken.
            let expected = self
                .stored_from(&place, server.segment_bytes, system.xlogpos)
                .await?;
            // Asked again: while that was read the server went on, and archived.
            let now = connection
                .identify_system()
                .await
                .map_err(|source| self.failed(source))?;
            if place.timeline == now.timeline {
                self.check_reach(&place, &expected, server.segment_bytes, now.xlogpos)?;
            }
            let flow = Flow::new(self, &place, server.segment_bytes, expected, now.xlogpos);
            let stream = connection
                .start_physical(Some(&self.slot), place.at, place.timeline)
                .await
                .map_err(|source| self.failed(source))?;
            self.standings.begun(place.timeline, place.at);
            match flow.run(stream, cancel).await {
                Ok(Next::Stopped) => {
                    // The slot is free when this returns.
                    connection.close().await;
                    return Ok(());
                }
                Ok(Next::Timeline(timeline, switch)) => {
                    self.learn_history(&mut connection, timeline).await?;
                    let segment = switch.0 / server.segment_bytes;
                    place = Place {
                        timeline,
                        at: Lsn(segment * server.segment_bytes),
                    };
                }
                // The server looks for its WAL only once it streams.
                Err(BackupError::Streaming { source, workload }) if source.is_wal_removed() => {
                    let Some(next) = places.next() else {
                        return Err(BackupError::Streaming { source, workload });
                    };
                    if next.at > lacking {
                        self.standings.note(format!(
                            "the server has removed its WAL before {}: what is not stored between \
                             {lacking} and there is missing",
                            next.at
                        ));
                    }
                    place = next;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Everything must be of one cluster, before anything is stored.
    async fn check_cluster(&self, server: &slot::Server) -> Result<(), BackupError> {
        // A standby says nothing of what its primary has: nothing that it sends shows how far that is.
        if server.in_recovery {
            return Err(BackupError::StandbyStream(self.workload.clone()));
        }
        let (repository, name) = (self.repository.clone(), self.workload.clone());
        let id = server.system_id;
        let bound = blocking("tell which cluster a workload is", move || {
            check_binding(&repository, &name, id)
        })
        .await?;
        match bound {
            Some(_) => Ok(()),
            None => Err(BackupError::NotBound(self.workload.clone())),
        }
    }

    /// Makes sure of the slot; from where on it keeps WAL.
    async fn slot(&self, connection: &mut Connection) -> Result<Option<Lsn>, BackupError> {
        match slot::find(&self.options, &self.slot, self.workload).await? {
            Found::Keeps(from) => return Ok(from),
            Found::Absent => {}
            Found::Lost => {
                self.standings.note(format!(
                    "the server has given up slot `{}`, which held more WAL than \
                     max_slot_wal_keep_size allows: it is made anew",
                    self.slot
                ));
                connection
                    .drop_slot(&self.slot)
                    .await
                    .map_err(|source| self.failed(source))?;
            }
        }
        connection
            .create_slot(&self.slot)
            .await
            .map_err(|source| self.failed(source))?;
        match slot::find(&self.options, &self.slot, self.workload).await? {
            Found::Keeps(from) => Ok(from),
            Found::Absent | Found::Lost => Ok(None),
        }
    }

    async fn index(&self, segment_bytes: u64) -> Result<WalIndex, BackupError> {
        let (repository, name) = (self.repository.clone(), self.workload.clone());
        blocking("list the stored WAL", move || {
            WalIndex::read(&repository, &name, segment_bytes)
        })
        .await
    }

    /// Stores the history of a timeline, without which nothing finds the way to it.
    async fn learn_history(
        &self,
        connection: &mut Connection,
        timeline: Timeline,
    ) -> Result<Vec<TimelineSwitch>, BackupError> {
        let (_, body) = connection
            .timeline_history(timeline)
            .await
            .map_err(|source| self.failed(source))?;
        let name = WalFileName::History { timeline };
        let switches = std::str::from_utf8(&body)
            .ok()
            .and_then(parse_history)
            .ok_or_else(|| BackupError::BadWal {
                file: name.to_string(),
                what: "the server's answer is no timeline history".to_owned(),
            })?;
        let (repository, workload) = (self.repository.clone(), self.workload.clone());
        let now = self.installation.clock.now();
        blocking("store a timeline history", move || {
            put(&repository, &workload, &name, &body, now).map(drop)
        })
        .await?;
        Ok(switches)
    }

    /// Those of its ancestors, for a server that probes one timeline after the other. Whatever restores here
    /// names its timeline: failing costs nothing.
    async fn learn_parents(&self, connection: &mut Connection, switches: &[TimelineSwitch]) {
        for parent in switches.iter().map(|switch| switch.parent) {
            if parent.0 > 1
                && let Err(error) = self.learn_history(connection, parent).await
            {
                tracing::debug!(%error, timeline = %parent, "its history is not stored");
            }
        }
    }

    /// What is stored of the segment that is begun in and of the one the server is in, whole or streamed,
    /// and what was streamed of others: by their numbers, from their beginnings.
    async fn stored_from(
        &self,
        place: &Place,
        segment_bytes: u64,
        flushed: Lsn,
    ) -> Result<BTreeMap<u64, Vec<u8>>, BackupError> {
        let (repository, workload) = (self.repository.clone(), self.workload.clone());
        let Place { timeline, at } = *place;
        blocking("read the streamed WAL", move || {
            let failed = || {
                store_error(
                    format!("read what was streamed of `{workload}`"),
                    &repository,
                )
            };
            let mut stored = BTreeMap::new();
            for tail in repository.tails(&workload).map_err(failed())? {
                let name = tail.segment;
                let number = name
                    .number(segment_bytes)
                    .filter(|number| *number >= at.0 / segment_bytes)
                    .filter(|_| name.timeline() == Some(timeline));
                let Some(number) = number.filter(|number| !stored.contains_key(number)) else {
                    continue;
                };
                // What is damaged is received again.
                let (bytes, _) = repository
                    .read_tails(&workload, &name, Lsn(number * segment_bytes))
                    .map_err(failed())?;
                stored.insert(number, bytes);
            }
            for number in [at.0 / segment_bytes, flushed.0 / segment_bytes] {
                let name = WalFileName::of_number(number, timeline, segment_bytes);
                match repository.get_wal(&workload, &name) {
                    Ok(Some(body)) => {
                        stored.insert(number, body);
                    }
                    Ok(None) => {}
                    // Its code still tells whether what arrives is the same.
                    Err(StoreError::Damaged { object, .. }) => {
                        tracing::warn!(object, "a damaged segment cannot be compared");
                    }
                    Err(error) => return Err(failed()(error)),
                }
            }
            Ok(stored)
        })
        .await
    }

    /// A server that has not even reached what was streamed from it went back, or is another one: it would
    /// never send what could be compared.
    fn check_reach(
        &self,
        place: &Place,
        stored: &BTreeMap<u64, Vec<u8>>,
        segment_bytes: u64,
        flushed: Lsn,
    ) -> Result<(), BackupError> {
        let reaches = |(number, bytes): (&u64, &Vec<u8>)| {
            let end = (number * segment_bytes).saturating_add(bytes.len() as u64);
            (end > flushed.0).then_some(*number)
        };
        match stored.iter().find_map(reaches) {
            None => Ok(()),
            Some(number) => Err(BackupError::OtherHistory {
                workload: self.workload.clone(),
                name: WalFileName::of_number(number, place.timeline, segment_bytes),
            }),
        }
    }

    fn failed(&self, source: dr_replication::ReplicationError) -> BackupError {
        BackupError::Streaming {
            workload: self.workload.clone(),
            source,
        }
    }
}

//! Receiving everything while it is unpacked, and keeping the other sessions alive meanwhile.

use std::time::Duration;

use dr_model::Progress;
use dr_replication::{BackupEnd, BackupEvent, BaseBackup, ReplicationError};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::reach::Reached;
use super::unpack::{self, Piece, Unpacked};
use crate::SourceError;

/// What was received waits here until it is unpacked: some 32 KiB each.
const PIECES_WAITING: usize = 64;
/// Shorter than what forgets idle connections: firewalls, address translation, load balancers.
const STAY_EVERY: Duration = Duration::from_secs(30);

pub(super) fn cancelled() -> SourceError {
    SourceError::Cancelled {
        what: "the base backup",
    }
}

pub(super) async fn or_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, ReplicationError>>,
) -> Result<T, SourceError> {
    tokio::select! {
        done = work => Ok(done?),
        () = cancel.cancelled() => Err(cancelled()),
    }
}

pub(super) async fn run(
    backup: &mut BaseBackup<'_>,
    setting: unpack::Setting,
    reached: &mut Reached,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<(BackupEnd, Unpacked), SourceError> {
    let (pieces, incoming) = mpsc::channel(PIECES_WAITING);
    let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(incoming, setting));
    // The sender goes with it, which ends the unpacking, however it ends.
    let received = receive(backup, pieces, reached, progress, cancel).await;
    let unpacked = unpacking.await.unwrap_or(Err(SourceError::Worker {
        what: "the base backup",
    }));
    match received {
        Ok(Some(end)) => Ok((end, unpacked?)),
        // It takes no more, and says why.
        Ok(None) => match unpacked {
            Err(error) => Err(error),
            Ok(_) => Err(SourceError::Worker {
                what: "the base backup",
            }),
        },
        Err(error) => Err(error),
    }
}

/// Passes on what is received; `None` when nobody takes it.
async fn receive(
    backup: &mut BaseBackup<'_>,
    pieces: mpsc::Sender<Piece>,
    reached: &mut Reached,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Option<BackupEnd>, SourceError> {
    let mut stay = tokio::time::interval_at(Instant::now() + STAY_EVERY, STAY_EVERY);
    stay.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = or_cancelled(cancel, backup.next()) => event?,
            _ = stay.tick() => {
                tokio::select! {
                    stayed = reached.stay() => stayed?,
                    () = cancel.cancelled() => return Err(cancelled()),
                }
                continue;
            }
        };
        let (piece, end) = match event {
            BackupEvent::Archive(tablespace) => (Piece::Archive(tablespace), None),
            BackupEvent::Data(data) => {
                progress.advance(data.len() as u64);
                (Piece::Data(data), None)
            }
            BackupEvent::End(end) => (Piece::End, Some(end)),
        };
        if pieces.send(piece).await.is_err() {
            return Ok(None);
        }
        if end.is_some() {
            return Ok(end);
        }
    }
}

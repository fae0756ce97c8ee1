//! What is received along one timeline, and on its way into the repository.
//!
//! Three things go on at once: taking what the server sends, one write, and removing tails that say nothing
//! any more. Only the write counts for what is reported.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline, WalFileName};
use dr_replication::{Event, Stream};
use dr_store::tail_chain;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::begin::Place;
use super::inflow::{Differs, Inflow, Work};
use super::{Receiver, put};
use crate::BackupError;
use crate::error::store_error;
use crate::wal::check_segment;

/// How often the server hears of us when nothing happens; it gives us up after `wal_sender_timeout`, a
/// minute by default.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// A server that was asked and says nothing for so long is gone, or the way to it is.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A write that takes longer is given up with the connection: a server that stops waits for us to report.
const WRITE_MAX: Duration = Duration::from_secs(120);

/// How a flow ended well.
pub(super) enum Next {
    /// It was asked to.
    Stopped,
    /// The timeline ended: it goes on along another one from here.
    Timeline(Timeline, Lsn),
}

type Writing = JoinHandle<Result<(), BackupError>>;

pub(super) struct Flow<'a> {
    receiver: &'a Receiver<'a>,
    inflow: Inflow,
    segment_bytes: u64,
    writing: Option<Writing>,
    last_write: Instant,
    /// The segment that is being stored whole.
    coming: Option<WalFileName>,
    /// Segments that were stored whole, of which tails may be there.
    finished: Vec<WalFileName>,
    /// Whether tails may be there that say nothing any more.
    is_untidy: bool,
    tidying: Option<JoinHandle<()>>,
    server_end: Lsn,
    /// The server's clock when it last sent WAL.
    sent_at: Option<DateTime<Utc>>,
    /// When the server was last heard.
    heard: Instant,
    /// The server took no report.
    is_deaf: bool,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
        receiver: &'a Receiver<'a>,
        place: &Place,
        segment_bytes: u64,
        stored: BTreeMap<u64, Vec<u8>>,
        server_end: Lsn,
    ) -> Self {
        Self {
            receiver,
            inflow: Inflow::new(place.timeline, segment_bytes, place.at, stored),
            segment_bytes,
            writing: None,
            last_write: Instant::now(),
            coming: None,
            finished: Vec::new(),
            is_untidy: false,
            tidying: None,
            server_end,
            sent_at: None,
            heard: Instant::now(),
            is_deaf: false,
        }
    }

    /// Receives until the timeline ends, `cancel`, or a failure. What had arrived is stored before it
    /// returns: with the server gone this is what is left of its last commits.
    pub(super) async fn run(
        mut self,
        mut stream: Stream<'_>,
        cancel: &CancellationToken,
    ) -> Result<Next, BackupError> {
        let ended = self.go_on(&mut stream, cancel).await;
        // After anything else the repository cannot be written, or must not be.
        let may_store = matches!(
            ended,
            Ok(_) | Err(BackupError::Streaming { .. } | BackupError::ServerSilent { .. })
        );
        if may_store {
            self.store_the_rest().await?;
        }
        self.tell();
        if matches!(ended, Ok(Next::Stopped)) {
            self.report(&mut stream, false).await;
        }
        ended
    }

    async fn store_the_rest(&mut self) -> Result<(), BackupError> {
        let mut writing = self.writing.take();
        loop {
            let write = match writing.take() {
                Some(writing) => writing,
                None => match self.inflow.next() {
                    Some(work) => self.store(work),
                    None => return Ok(()),
                },
            };
            let written = tokio::time::timeout(WRITE_MAX, write).await;
            finished(written.map_err(|_| self.too_slow())?)?;
            self.inflow.done();
        }
    }

    async fn go_on(
        &mut self,
        stream: &mut Stream<'_>,
        cancel: &CancellationToken,
    ) -> Result<Next, BackupError> {
        // A server that has nothing new answers, so that it is known to be there.
        self.report(stream, true).await;
        let mut next_report = Instant::now() + REPORT_INTERVAL;
        loop {
            let due = self.last_write + self.receiver.every;
            let is_due = Instant::now() >= due || !self.inflow.has_room();
            if self.writing.is_none()
                && (is_due || self.inflow.holds_segment())
                && let Some(work) = self.inflow.next()
            {
                self.last_write = Instant::now();
                self.writing = Some(self.store(work));
            }
            let waits = self.writing.is_none() && self.inflow.has_news();
            let too_long = self.last_write + WRITE_MAX;
            tokio::select! {
                () = cancel.cancelled() => return Ok(Next::Stopped),
                written = ended(&mut self.writing) => {
                    self.writing = None;
                    finished(written)?;
                    self.inflow.done();
                    self.finished.extend(self.coming.take());
                    self.tell();
                    self.tidy();
                    self.report(stream, false).await;
                    next_report = Instant::now() + REPORT_INTERVAL;
                }
                event = stream.next(), if self.inflow.has_room() => {
                    let event = event.map_err(|source| self.receiver.failed(source))?;
                    if let Some(next) = self.take(stream, event).await? {
                        return Ok(next);
                    }
                }
                () = sleep_until(due), if waits => {}
                () = sleep_until(too_long), if self.writing.is_some() => {
                    return Err(self.too_slow());
                }
                () = sleep_until(next_report) => {
                    // A quiet server says nothing by itself: whether it is there has to be asked.
                    if self.inflow.has_room() && self.heard.elapsed() > SILENCE_MAX {
                        return Err(BackupError::ServerSilent {
                            workload: self.receiver.workload.clone(),
                            seconds: SILENCE_MAX.as_secs(),
                        });
                    }
                    self.report(stream, true).await;
                    next_report = Instant::now() + REPORT_INTERVAL;
                }
            }
        }
    }

    fn too_slow(&self) -> BackupError {
        BackupError::TimedOut {
            what: format!("storing what was streamed of `{}`", self.receiver.workload),
            seconds: WRITE_MAX.as_secs(),
        }
    }

    /// Takes one message; how the flow ended, if it did.
    async fn take(
        &mut self,
        stream: &mut Stream<'_>,
        event: Event,
    ) -> Result<Option<Next>, BackupError> {
        self.heard = Instant::now();
        match event {
            Event::Data {
                start,
                server_end,
                server_clock,
                data,
            } => {
                self.server_end = self.server_end.max(server_end);
                self.sent_at = Some(server_clock);
                match self.inflow.push(start, &data, server_clock, server_end) {
                    Ok(true) => Ok(None),
                    Ok(false) => Err(BackupError::BadWal {
                        file: self.inflow.growing().0.to_string(),
                        what: format!(
                            "the server sent {start} where {} follows",
                            self.inflow.received()
                        ),
                    }),
                    Err(Differs(name)) => Err(BackupError::OtherHistory {
                        workload: self.receiver.workload.clone(),
                        name,
                    }),
                }
            }
            Event::Keepalive {
                server_end,
                server_clock,
                reply_requested,
            } => {
                // An answer to us says how far it has sent, which may be less than it has.
                self.server_end = self.server_end.max(server_end);
                if self.inflow.durable() >= self.server_end {
                    self.receiver.standings.all_durable(server_clock);
                }
                if reply_requested {
                    self.report(stream, false).await;
                }
                Ok(None)
            }
            Event::TimelineEnded {
                next: Some((timeline, at)),
            } => Ok(Some(Next::Timeline(timeline, at))),
            // Nobody knows yet where it goes on: asked again with the next connection.
            Event::TimelineEnded { next: None } => Ok(Some(Next::Stopped)),
        }
    }

    /// Stores, on a thread of its own.
    fn store(&mut self, work: Work) -> Writing {
        let receiver = self.receiver;
        let (repository, workload) = (receiver.repository.clone(), receiver.workload.clone());
        let (now, segment_bytes) = (receiver.installation.clock.now(), self.segment_bytes);
        receiver
            .standings
            .stored(matches!(work, Work::Segment { .. }));
        self.coming = match &work {
            Work::Segment { name, .. } => Some(name.clone()),
            Work::Tail { merges, .. } => {
                self.is_untidy |= *merges;
                None
            }
        };
        tokio::task::spawn_blocking(move || match work {
            Work::Tail { tail, .. } => repository
                .put_tail(&workload, segment_bytes, &tail)
                .map(drop)
                .map_err(store_error(
                    format!("store what was streamed of `{workload}`"),
                    &repository,
                )),
            Work::Segment { name, body } => {
                check_segment(&name, &body)?;
                put(&repository, &workload, &name, &body, now).map(drop)
            }
        })
    }

    /// Removes tails that say nothing any more: of segments that are durable, and those that lie within
    /// what durable ones hold. Failing at it does no harm: prune removes them.
    fn tidy(&mut self) {
        let is_busy = self
            .tidying
            .as_ref()
            .is_some_and(|work| !work.is_finished());
        let is_over = self.finished.is_empty() && !self.is_untidy;
        if is_busy || is_over {
            return;
        }
        let durable = self.inflow.durable();
        let receiver = self.receiver;
        let (repository, workload) = (receiver.repository.clone(), receiver.workload.clone());
        let finished = std::mem::take(&mut self.finished);
        self.is_untidy = false;
        let growing = self.inflow.growing();
        self.tidying = Some(tokio::task::spawn_blocking(move || {
            let removed = repository.tails(&workload).and_then(|mut places| {
                // One that is being written may be seen already, and is not to be relied on.
                places.retain(|place| place.to <= durable);
                let needed = tail_chain(&places, &growing.0, growing.1);
                places.retain(|place| {
                    finished.contains(&place.segment)
                        || place.segment == growing.0 && !needed.contains(place)
                });
                repository.remove_tails(&workload, &places)
            });
            if let Err(error) = removed {
                tracing::debug!(%error, "tails were not removed");
            }
        }));
    }

    /// Tells the server how far it is. Failing at it ends nothing: a server that died has perhaps sent more
    /// than was taken yet, which is what is left of its last commits. `Stream::next` says when that is over.
    async fn report(&mut self, stream: &mut Stream<'_>, wants_reply: bool) {
        if self.is_deaf {
            return;
        }
        // Memory is no disk, and nothing is replayed here: one position for `remote_write`, `on` and
        // `remote_apply`. Before anything arrived it is none at all: a slot would go back to it.
        let durable = match self.sent_at {
            Some(_) => self.inflow.durable(),
            None => Lsn(0),
        };
        let told = stream.report(durable, durable, durable, wants_reply).await;
        if let Err(error) = told {
            tracing::debug!(%error, "the server does not take reports");
            self.is_deaf = true;
        }
    }

    fn tell(&self) {
        self.receiver.standings.progressed(
            self.inflow.timeline(),
            self.inflow.received(),
            self.inflow.durable(),
            self.server_end,
        );
        if let Some(sent_at) = self.sent_at
            && self.inflow.durable() >= self.server_end
        {
            self.receiver.standings.all_durable(sent_at);
        }
    }
}

/// Waits for a write; for ever where there is none.
async fn ended(
    writing: &mut Option<Writing>,
) -> Result<Result<(), BackupError>, tokio::task::JoinError> {
    match writing {
        Some(writing) => writing.await,
        None => std::future::pending().await,
    }
}

fn finished(
    written: Result<Result<(), BackupError>, tokio::task::JoinError>,
) -> Result<(), BackupError> {
    written.map_err(|_| BackupError::Worker("store what was streamed"))?
}

//! The log as it arrives, and what is told to the server of it.

use std::io;

use dr_model::{Clock, Lsn, SystemClock, Timeline};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend::{self, CopyData};

use crate::answer::Answer;
use crate::error::Action;
use crate::frame::Frame;
use crate::message::{Status, decode};
use crate::{Connection, Event, ReplicationError};

/// Where the stream is.
#[derive(Debug)]
enum State {
    /// The server sends its log.
    Streaming,
    /// It has ended that, and tells what follows.
    Ending(Answer),
    /// It has told.
    Ended(Option<(Timeline, Lsn)>),
    /// It failed.
    Failed,
}

/// The server's log as it arrives.
///
/// A server that has nothing to say says nothing. To know that it is still there, ask for an answer with
/// [`Self::report`]; and report more often than its `wal_sender_timeout`, or it ends the connection.
///
/// Dropping this in the middle leaves the connection streaming: it can only be closed then.
#[derive(Debug)]
pub struct Stream<'a> {
    connection: &'a mut Connection,
    state: State,
}

impl<'a> Stream<'a> {
    /// Waits for the answer to `START_REPLICATION`.
    pub(crate) async fn begin(connection: &'a mut Connection) -> Result<Self, ReplicationError> {
        let mut answer = Answer::default();
        loop {
            match connection.receive().await? {
                Frame::CopyBoth => {
                    return Ok(Self {
                        connection,
                        state: State::Streaming,
                    });
                }
                frame => {
                    if answer.take(frame, Action::Stream, &connection.wire)? {
                        let state = ended(connection, answer)?;
                        return Ok(Self { connection, state });
                    }
                }
            }
        }
    }

    /// Waits for what comes next. May be dropped at any time, as in `tokio::select!`: nothing is lost.
    ///
    /// After [`Event::TimelineEnded`] the same is returned again and again.
    ///
    /// # Errors
    /// [`ReplicationError::is_down`] when the connection is lost or the server stops,
    /// [`ReplicationError::is_wal_removed`] when it no longer has what comes next. The stream is over
    /// then.
    pub async fn next(&mut self) -> Result<Event, ReplicationError> {
        loop {
            match &self.state {
                State::Ended(next) => return Ok(Event::TimelineEnded { next: *next }),
                State::Failed => return Err(self.occupied()),
                State::Streaming | State::Ending(_) => {}
            }
            let taken = match self.connection.receive().await {
                Ok(frame) => self.take(frame),
                Err(error) => Err(error),
            };
            match taken {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(event),
                Err(error) => {
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
    }

    fn occupied(&self) -> ReplicationError {
        ReplicationError::Occupied {
            place: self.connection.wire.place.clone(),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Event>, ReplicationError> {
        let connection = &mut *self.connection;
        match (&mut self.state, frame) {
            (State::Streaming, Frame::Message(Message::CopyData(body))) => {
                decode(body.into_bytes())
                    .map(Some)
                    .map_err(|what| connection.wire.protocol(what))
            }
            (State::Streaming, Frame::Message(Message::CopyDone)) => {
                frontend::copy_done(connection.wire.output());
                self.state = State::Ending(Answer::default());
                Ok(None)
            }
            (State::Streaming, Frame::Message(Message::CommandComplete(_))) => {
                // `WalSndDone`: a server that stops says that the command is complete, without an end
                // of the copy stream before it, and goes away.
                Err(ReplicationError::Down {
                    place: connection.wire.place.clone(),
                    source: io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the server shuts down",
                    ),
                })
            }
            (State::Streaming, frame @ Frame::Message(Message::ErrorResponse(_))) => {
                let mut answer = Answer::default();
                answer.take(frame, Action::Stream, &connection.wire)?;
                self.state = State::Ending(answer);
                Ok(None)
            }
            (State::Streaming, frame) => {
                Err(connection.wire.unexpected(&frame, "while it streams"))
            }
            (State::Ending(answer), frame) => {
                if answer.take(frame, Action::Stream, &connection.wire)? {
                    let answer = std::mem::take(answer);
                    self.state = ended(connection, answer)?;
                }
                Ok(None)
            }
            // Nothing is received in these.
            (State::Ended(_) | State::Failed, _) => Ok(None),
        }
    }

    /// Tells the server how far its log is `written`, `flushed` (safe on disk) and `applied` here. Each
    /// is the position behind the last byte; 0 where there is none yet. A slot lets go of what is
    /// flushed, and a commit that waits for this client goes on: never report more than is true.
    ///
    /// With `reply_wanted` the server answers with an [`Event::Keepalive`]. Does nothing when the
    /// timeline has ended. May be dropped at any time; a part that was sent is completed later.
    ///
    /// # Errors
    /// When the connection is lost. [`Self::next`] may know more of why.
    pub async fn report(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        applied: Lsn,
        reply_wanted: bool,
    ) -> Result<(), ReplicationError> {
        match self.state {
            State::Streaming => {}
            State::Ending(_) | State::Ended(_) => return Ok(()),
            State::Failed => return Err(self.occupied()),
        }
        let status = Status {
            written,
            flushed,
            applied,
            clock: SystemClock.now(),
            reply_wanted,
        };
        let wire = &mut self.connection.wire;
        CopyData::new(status.encode())
            .map_err(|error| wire.protocol(error.to_string()))?
            .write(wire.output());
        wire.flush().await
    }
}

/// The answer behind a stream names what follows the timeline; or nothing, where nothing does.
fn ended(connection: &mut Connection, answer: Answer) -> Result<State, ReplicationError> {
    connection.is_ready = true;
    let wire = &connection.wire;
    let rows = answer.rows(Action::Stream, wire)?;
    if rows.is_empty() {
        return Ok(State::Ended(None));
    }
    let timeline = rows.value("next_tli").map(Timeline);
    let start = rows.value("next_tli_startpos");
    let malformed = |what| wire.protocol(what);
    Ok(State::Ended(Some((
        timeline.map_err(malformed)?,
        start.map_err(malformed)?,
    ))))
}

//! A connection to a walsender and its commands.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use dr_model::{Lsn, SystemId, Timeline, WalFileName};
use postgres_protocol::message::backend::{Message, ParameterStatusBody};
use postgres_protocol::message::frontend;

use crate::answer::Answer;
use crate::authentication::{Authentication, refused};
use crate::error::Action;
use crate::frame::Frame;
use crate::rows::Rows;
use crate::stream::Stream;
use crate::wire::Wire;
use crate::{Address, ReplicationError, transport};

/// `NAMEDATALEN` less the closing zero.
const SLOT_NAME_BYTES_MAX: usize = 63;
/// A server tells some fifteen of its settings.
const PARAMETERS_MAX: usize = 256;

/// What a server is: `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Shared by all copies of a cluster.
    pub system_id: SystemId,
    /// The timeline that it writes, or that it follows as a standby.
    pub timeline: Timeline,
    /// Where its log is flushed to; on a standby, where it has been received to.
    pub xlogpos: Lsn,
}

/// What became of a replication slot that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotCreated {
    /// It was made, and holds the log from the last checkpoint on.
    New,
    /// There is one of this name already, made by whomever and of whichever kind.
    Existed,
}

/// A connection to a walsender.
pub struct Connection {
    pub(crate) wire: Wire,
    /// Whether it waits for a command: none was sent, or its answer is complete.
    pub(crate) is_ready: bool,
    parameters: BTreeMap<String, String>,
    limit: Duration,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("place", &self.wire.place)
            .field("is_ready", &self.is_ready)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects and is let in. `limit` is how long that may take, and later how long the server may take
    /// to answer a command.
    ///
    /// # Errors
    /// When no server answers, it refuses us, or the connection cannot be encrypted as wanted.
    pub async fn connect(address: &Address, limit: Duration) -> Result<Self, ReplicationError> {
        within(limit, address.place(), Self::open(address, limit)).await
    }

    async fn open(address: &Address, limit: Duration) -> Result<Self, ReplicationError> {
        let transport = transport::open(address).await?;
        let mut wire = Wire::new(address.place(), transport.socket);
        let mut parameters = vec![
            ("user", address.user.as_str()),
            ("application_name", address.application_name.as_str()),
            ("client_encoding", "UTF8"),
            // A walsender for physical replication.
            ("replication", "true"),
        ];
        if let Some(database) = &address.database {
            parameters.push(("database", database));
        }
        frontend::startup_message(parameters, wire.output())
            .map_err(|error| wire.protocol(error.to_string()))?;
        Authentication::new(&mut wire, address, transport.is_private)
            .run()
            .await?;
        let mut connection = Self {
            wire,
            is_ready: false,
            parameters: BTreeMap::new(),
            limit,
        };
        connection.wait_until_ready().await?;
        Ok(connection)
    }

    async fn wait_until_ready(&mut self) -> Result<(), ReplicationError> {
        loop {
            match self.receive().await? {
                Frame::Message(Message::BackendKeyData(_)) => {}
                Frame::Message(Message::ErrorResponse(body)) => {
                    return Err(refused(&self.wire, &body));
                }
                Frame::Message(Message::ReadyForQuery(_)) => {
                    self.is_ready = true;
                    return Ok(());
                }
                other => return Err(self.wire.unexpected(&other, "while it starts")),
            }
        }
    }

    /// Host and port or socket, for messages.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.wire.place
    }

    /// The server's release, as it calls itself: `15.18 (Debian 15.18-0+deb12u1)`.
    #[must_use]
    pub fn server_version(&self) -> &str {
        self.parameters
            .get("server_version")
            .map_or("", String::as_str)
    }

    /// Asks the server what it is.
    ///
    /// # Errors
    /// When the connection is lost or the answer is not understood.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let rows = self.command(Action::Identify, "IDENTIFY_SYSTEM").await?;
        let read = || {
            Ok(SystemIdentity {
                system_id: rows.value("systemid")?,
                timeline: Timeline(rows.value("timeline")?),
                xlogpos: rows.value("xlogpos")?,
            })
        };
        read().map_err(|what: String| self.wire.protocol(what))
    }

    /// Asks for a setting, as the server prints it: `16MB` for `wal_segment_size`.
    ///
    /// # Errors
    /// When the server knows no such setting or does not show it to this role, or the connection is
    /// lost.
    pub async fn show(&mut self, name: &str) -> Result<String, ReplicationError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(ReplicationError::Name {
                name: name.to_owned(),
                what: "setting",
            });
        }
        let rows = self.command(Action::Show, &format!("SHOW {name}")).await?;
        rows.first().map_err(|what| self.wire.protocol(what))
    }

    /// Makes a physical replication slot that holds the log from now on: from the last checkpoint's
    /// beginning, so that it begins with whole segments.
    ///
    /// # Errors
    /// When the name is not one for a slot, the server has too many, or the connection is lost.
    pub async fn create_slot(&mut self, name: &str) -> Result<SlotCreated, ReplicationError> {
        check_slot(name)?;
        // The older of two syntaxes, which 15 and later still take.
        let command = format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL RESERVE_WAL");
        match self.command(Action::CreateSlot, &command).await {
            Ok(_) => Ok(SlotCreated::New),
            Err(error) if error.code() == Some("42710") => Ok(SlotCreated::Existed),
            Err(error) => Err(error),
        }
    }

    /// Drops a replication slot; does not wait for one that is in use.
    ///
    /// # Errors
    /// [`ReplicationError::is_slot_absent`], [`ReplicationError::is_slot_in_use`], or when the
    /// connection is lost.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        check_slot(name)?;
        let command = format!("DROP_REPLICATION_SLOT \"{name}\"");
        self.command(Action::DropSlot, &command).await.map(|_| ())
    }

    /// Asks for the history file of a timeline: its name and content. Timeline 1 has none.
    ///
    /// # Errors
    /// When the server has none of this timeline, or the connection is lost.
    pub async fn timeline_history(
        &mut self,
        timeline: Timeline,
    ) -> Result<(String, Bytes), ReplicationError> {
        let command = format!("TIMELINE_HISTORY {timeline}");
        let rows = self.command(Action::History, &command).await?;
        let malformed = |what: String| self.wire.protocol(what);
        let name = rows.text("filename").map_err(malformed)?;
        // It becomes the name of a file.
        if name != (WalFileName::History { timeline }).to_string() {
            return Err(malformed(format!(
                "it calls the history of timeline {timeline} `{name}`"
            )));
        }
        Ok((name, rows.bytes("content").map_err(malformed)?))
    }

    /// Asks the server to stream its log from a position on, of a slot if one is named.
    ///
    /// A position at which the timeline has already ended is answered by a stream that has nothing but
    /// [`Event::TimelineEnded`](crate::Event::TimelineEnded).
    ///
    /// # Errors
    /// [`ReplicationError::is_slot_absent`], [`ReplicationError::is_slot_in_use`], when the timeline is
    /// none of this server's, or the connection is lost. A position that is not yet, or no longer, in
    /// the server's log is told by [`Stream::next`] only: the server has a look when it sends.
    pub async fn start_physical(
        &mut self,
        slot: Option<&str>,
        from: Lsn,
        timeline: Timeline,
    ) -> Result<Stream<'_>, ReplicationError> {
        let slot = match slot {
            Some(name) => {
                check_slot(name)?;
                format!("SLOT \"{name}\" ")
            }
            None => String::new(),
        };
        self.begin(&format!(
            "START_REPLICATION {slot}PHYSICAL {from} TIMELINE {timeline}"
        ))?;
        let (limit, place) = (self.limit, self.wire.place.clone());
        within(limit, place, Stream::begin(self)).await
    }

    /// Ends the session and waits, no longer than the limit, until the server has ended it too: a slot
    /// is free then.
    pub async fn close(mut self) {
        // A walsender takes this also in the middle of a stream.
        frontend::terminate(self.wire.output());
        // The server closes the connection at last, which is an error like any other here.
        let ended = async { while self.wire.receive().await.is_ok() {} };
        let _ = tokio::time::timeout(self.limit, ended).await;
    }

    /// Sends a command and waits for its whole answer.
    async fn command(&mut self, action: Action, text: &str) -> Result<Rows, ReplicationError> {
        self.begin(text)?;
        let (limit, place) = (self.limit, self.wire.place.clone());
        within(limit, place, self.answer(action)).await
    }

    pub(crate) fn begin(&mut self, command: &str) -> Result<(), ReplicationError> {
        if !self.is_ready {
            return Err(ReplicationError::Occupied {
                place: self.wire.place.clone(),
            });
        }
        self.is_ready = false;
        frontend::query(command, self.wire.output())
            .map_err(|error| self.wire.protocol(error.to_string()))
    }

    async fn answer(&mut self, action: Action) -> Result<Rows, ReplicationError> {
        let mut answer = Answer::default();
        loop {
            let frame = self.receive().await?;
            if answer.take(frame, action, &self.wire)? {
                self.is_ready = true;
                return answer.rows(action, &self.wire);
            }
        }
    }

    /// Reads on to the end of an answer that is not wanted any more.
    pub(crate) async fn wait_until_answered(&mut self) -> Result<(), ReplicationError> {
        while !matches!(
            self.receive().await?,
            Frame::Message(Message::ReadyForQuery(_))
        ) {}
        self.is_ready = true;
        Ok(())
    }

    /// The next message that is not just news. May be dropped at any time.
    pub(crate) async fn receive(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            match self.receive_with_notices().await? {
                Frame::Message(Message::NoticeResponse(_)) => {}
                frame => return Ok(frame),
            }
        }
    }

    /// As [`Self::receive`], but notices are news that is wanted.
    pub(crate) async fn receive_with_notices(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            match self.wire.receive().await? {
                Frame::Message(Message::ParameterStatus(body)) => self.note(&body)?,
                Frame::Message(Message::NotificationResponse(_)) => {}
                frame => return Ok(frame),
            }
        }
    }

    fn note(&mut self, body: &ParameterStatusBody) -> Result<(), ReplicationError> {
        let malformed = |error: io::Error| self.wire.protocol(error.to_string());
        let name = body.name().map_err(malformed)?.to_owned();
        let value = body.value().map_err(malformed)?.to_owned();
        self.parameters.insert(name, value);
        if self.parameters.len() > PARAMETERS_MAX {
            return Err(self.wire.protocol("it has endless settings"));
        }
        Ok(())
    }
}

async fn within<T>(
    limit: Duration,
    place: String,
    work: impl Future<Output = Result<T, ReplicationError>>,
) -> Result<T, ReplicationError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(ReplicationError::Down {
            place,
            source: io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", limit.as_secs_f64()),
            ),
        }),
    }
}

/// What the server takes for a slot's name (`ReplicationSlotValidateName`); it goes into commands.
fn check_slot(name: &str) -> Result<(), ReplicationError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=SLOT_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(ReplicationError::Name {
        name: name.to_owned(),
        what: "replication slot",
    })
}

#[cfg(test)]
mod tests;

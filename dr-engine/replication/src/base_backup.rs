//! A whole cluster as the server sends it: `BASE_BACKUP` (55.4, "Streaming Replication Protocol").
//!
//! Two forms of it are spoken: to version 14 each tar archive is a copy stream of its own; from 15 on
//! there is one, in which archives are announced.

use bytes::{Buf, Bytes};
use dr_model::{Lsn, Timeline};
use postgres_protocol::message::backend::Message;

use crate::error::Action;
use crate::frame::Frame;
use crate::rows::{Rows, notice_message, server_message};
use crate::{Connection, ReplicationError, ServerMessage, answer};

/// The first version that sends all archives in one stream, and takes options in brackets.
const ONE_STREAM: u32 = 15;
/// What `MAX_RATE` may be, in kilobytes a second.
const RATE: std::ops::RangeInclusive<u64> = 32..=1_048_576;
/// "Checksum verification failed": said when everything has been sent.
const DATA_CORRUPTED: &str = "XX001";
/// So many warnings are kept. Each damaged file gets up to six.
const WARNINGS_MAX: usize = 10_000;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseBackupOptions {
    /// The backup's name in its label.
    pub label: String,
    /// The most that the server sends; as fast as it goes when left out.
    pub bytes_per_second: Option<u64>,
}

/// A tablespace outside of the data directory's `base` and `global`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentTablespace {
    /// Its oid.
    pub oid: u32,
    /// Where it lies on the server; relative to the data directory when it lies in it.
    pub location: String,
}

/// What comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStart {
    /// Where replay of the backup begins.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// All of them.
    pub tablespaces: Vec<SentTablespace>,
    /// About how much there is to send.
    pub bytes: Option<u64>,
}

/// What comes last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupEnd {
    /// Where the backup stops.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// Pages had wrong checksums, also when the server read them again: which ones, the warnings say.
    pub damaged: Option<ServerMessage>,
    /// What the server warned of: damaged pages, and what it left out.
    pub warnings: Vec<ServerMessage>,
}

/// The next thing that the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// A tar archive begins: of a tablespace, or else of the data directory, which is the last one.
    Archive(Option<SentTablespace>),
    /// The next bytes of the archive. It may end without the blocks of zeros that end a tar file.
    Data(Bytes),
    /// Everything was sent.
    End(BackupEnd),
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or between archives.
    Waiting,
    Copying,
    /// It ended, or failed.
    Over,
}

/// A cluster on its way.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    connection: &'a mut Connection,
    start: BackupStart,
    one_stream: bool,
    /// How many archives have begun.
    archives: usize,
    state: State,
    end: Rows,
    failure: Option<ServerMessage>,
    warnings: Vec<ServerMessage>,
}

impl Connection {
    /// Asks the server for a whole cluster, without its log: a replication slot has to keep what the backup
    /// needs of it. The server makes a checkpoint first, which can take a while.
    ///
    /// # Errors
    /// When the role may not, the server cannot, or the connection is lost.
    pub async fn base_backup(
        &mut self,
        options: &BaseBackupOptions,
    ) -> Result<BaseBackup<'_>, ReplicationError> {
        let major = self.major_version()?;
        self.begin(&command(options, major))?;
        BaseBackup::begin(self, major >= ONE_STREAM).await
    }

    fn major_version(&self) -> Result<u32, ReplicationError> {
        let version = self.server_version();
        let digits = version.split(|c: char| !c.is_ascii_digit()).next();
        digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| self.wire.protocol(format!("its version is `{version}`")))
    }
}

/// The command in the words of a version. Not with `TABLESPACE_MAP`: up to 15, the server would then leave
/// out tablespaces that lie in the data directory.
fn command(options: &BaseBackupOptions, major: u32) -> String {
    let label = options.label.replace('\'', "''");
    let rate = options
        .bytes_per_second
        .map(|bytes| (bytes / 1024).clamp(*RATE.start(), *RATE.end()));
    if major >= ONE_STREAM {
        let rate = rate.map_or(String::new(), |rate| format!(", MAX_RATE {rate}"));
        return format!(
            "BASE_BACKUP (LABEL '{label}', PROGRESS, CHECKPOINT 'fast', WAIT false, MANIFEST 'no'{rate})"
        );
    }
    let rate = rate.map_or(String::new(), |rate| format!(" MAX_RATE {rate}"));
    format!("BASE_BACKUP LABEL '{label}' PROGRESS FAST NOWAIT{rate}")
}

impl<'a> BaseBackup<'a> {
    async fn begin(
        connection: &'a mut Connection,
        one_stream: bool,
    ) -> Result<Self, ReplicationError> {
        let mut warnings = Vec::new();
        let position = table(connection, &mut warnings).await?;
        let places = table(connection, &mut warnings).await?;
        let start = start_of(&position, places).map_err(|what| connection.wire.protocol(what))?;
        Ok(Self {
            connection,
            start,
            one_stream,
            archives: 0,
            state: State::Waiting,
            end: Rows::default(),
            failure: None,
            warnings,
        })
    }

    /// What came first.
    #[must_use]
    pub fn start(&self) -> &BackupStart {
        &self.start
    }

    /// Waits for what comes next. May be dropped at any time: nothing is lost.
    ///
    /// # Errors
    /// When the server cannot go on, or the connection is lost. The backup is void then.
    pub async fn next(&mut self) -> Result<BackupEvent, ReplicationError> {
        if self.state == State::Over {
            return Err(ReplicationError::Occupied {
                place: self.connection.wire.place.clone(),
            });
        }
        loop {
            let frame = match receive(self.connection, &mut self.warnings).await {
                Ok(frame) => frame,
                Err(error) => {
                    self.state = State::Over;
                    return Err(error);
                }
            };
            match self.take(frame) {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(event),
                Err(error) => {
                    self.state = State::Over;
                    return Err(error);
                }
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<BackupEvent>, ReplicationError> {
        match (self.state, frame) {
            (State::Waiting, Frame::Message(Message::CopyOutResponse(_))) => {
                self.state = State::Copying;
                if self.one_stream {
                    return Ok(None);
                }
                // In the order of the list, and the data directory last.
                let tablespace = self.start.tablespaces.get(self.archives).cloned();
                self.archive(tablespace)
            }
            (State::Copying, Frame::Message(Message::CopyData(body))) => {
                self.data(body.into_bytes())
            }
            (State::Copying, Frame::Message(Message::CopyDone)) => {
                self.state = State::Waiting;
                Ok(None)
            }
            (State::Waiting, Frame::Message(Message::RowDescription(body))) => {
                let described = self.end.describe(&body);
                described.map_err(|what| self.malformed(what))?;
                Ok(None)
            }
            (State::Waiting, Frame::Message(Message::DataRow(body))) => {
                let added = self.end.add(&body);
                added.map_err(|what| self.malformed(what))?;
                Ok(None)
            }
            (State::Waiting, Frame::Message(Message::CommandComplete(_))) => Ok(None),
            (_, Frame::Message(Message::ErrorResponse(body))) => {
                let message = server_message(&body).map_err(|what| self.malformed(what))?;
                if message.severity != "ERROR" || self.failure.is_some() {
                    return Err(self.failed(message));
                }
                self.state = State::Waiting;
                self.failure = Some(message);
                Ok(None)
            }
            (State::Waiting, Frame::Message(Message::ReadyForQuery(_))) => self.over().map(Some),
            (_, other) => Err(self.connection.wire.unexpected(&other, "in a base backup")),
        }
    }

    /// From 15 on, the first byte says what follows.
    fn data(&mut self, mut body: Bytes) -> Result<Option<BackupEvent>, ReplicationError> {
        if !self.one_stream {
            return Ok(Some(BackupEvent::Data(body)));
        }
        match body.try_get_u8() {
            Ok(b'd') => Ok(Some(BackupEvent::Data(body))),
            // How far it is.
            Ok(b'p') => Ok(None),
            Ok(b'n') => {
                let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(text);
                let tablespace = match name.strip_suffix(".tar") {
                    Some("base") => None,
                    Some(oid) => Some(self.tablespace(oid)?),
                    None => {
                        return Err(self.malformed(format!("it sends an archive named `{name}`")));
                    }
                };
                self.archive(tablespace)
            }
            Ok(other) => Err(self.malformed(format!("a message of kind {other} in a base backup"))),
            Err(_) => Err(self.malformed("an empty message in a base backup".to_owned())),
        }
    }

    fn tablespace(&self, oid: &str) -> Result<SentTablespace, ReplicationError> {
        let mut all = self.start.tablespaces.iter();
        all.find(|tablespace| tablespace.oid.to_string() == oid)
            .cloned()
            .ok_or_else(|| self.malformed(format!("it sends a tablespace {oid} it did not list")))
    }

    fn archive(
        &mut self,
        tablespace: Option<SentTablespace>,
    ) -> Result<Option<BackupEvent>, ReplicationError> {
        self.archives += 1;
        Ok(Some(BackupEvent::Archive(tablespace)))
    }

    fn over(&mut self) -> Result<BackupEvent, ReplicationError> {
        self.state = State::Over;
        self.connection.is_ready = true;
        let end = std::mem::take(&mut self.end);
        let damaged = match self.failure.take() {
            // Everything was sent before that: a backup of damaged pages is better than none.
            Some(message) if message.code == DATA_CORRUPTED && !end.is_empty() => Some(message),
            Some(message) => return Err(self.failed(message)),
            None => None,
        };
        if self.archives != self.start.tablespaces.len() + 1 {
            return Err(self.malformed(format!(
                "it sent {} archives and {} tablespaces",
                self.archives,
                self.start.tablespaces.len()
            )));
        }
        let position = |column: &str| end.value(column).map_err(|what| self.malformed(what));
        let lsn = position("recptr")?;
        let timeline = end.value("tli").map(Timeline);
        Ok(BackupEvent::End(BackupEnd {
            lsn,
            timeline: timeline.map_err(|what| self.malformed(what))?,
            damaged,
            warnings: std::mem::take(&mut self.warnings),
        }))
    }

    fn malformed(&self, what: String) -> ReplicationError {
        self.connection.wire.protocol(what)
    }

    fn failed(&self, message: ServerMessage) -> ReplicationError {
        answer::failed(&self.connection.wire, Action::BaseBackup, message)
    }
}

/// One of the tables that come before the archives.
async fn table(
    connection: &mut Connection,
    warnings: &mut Vec<ServerMessage>,
) -> Result<Rows, ReplicationError> {
    let mut rows = Rows::default();
    loop {
        let frame = receive(connection, warnings).await?;
        let wire = &connection.wire;
        let taken = match frame {
            Frame::Message(Message::RowDescription(body)) => rows.describe(&body),
            Frame::Message(Message::DataRow(body)) => rows.add(&body),
            Frame::Message(Message::CommandComplete(_)) => return Ok(rows),
            Frame::Message(Message::ErrorResponse(body)) => {
                let message = server_message(&body).map_err(|what| wire.protocol(what))?;
                let is_over = message.severity != "ERROR";
                let error = answer::failed(wire, Action::BaseBackup, message);
                if !is_over {
                    connection.wait_until_answered().await?;
                }
                return Err(error);
            }
            other => return Err(wire.unexpected(&other, "before a base backup")),
        };
        taken.map_err(|what| wire.protocol(what))?;
    }
}

async fn receive(
    connection: &mut Connection,
    warnings: &mut Vec<ServerMessage>,
) -> Result<Frame, ReplicationError> {
    loop {
        match connection.receive_with_notices().await? {
            Frame::Message(Message::NoticeResponse(body)) => {
                let message =
                    notice_message(&body).map_err(|what| connection.wire.protocol(what))?;
                if message.severity == "WARNING" && warnings.len() < WARNINGS_MAX {
                    warnings.push(message);
                }
            }
            frame => return Ok(frame),
        }
    }
}

fn start_of(position: &Rows, places: Rows) -> Result<BackupStart, String> {
    let (mut tablespaces, mut bytes) = (Vec::new(), Some(0u64));
    for place in places.each() {
        // In kilobytes.
        let size: Option<u64> = place.optional("size")?;
        bytes = bytes
            .zip(size)
            .map(|(all, size)| all.saturating_add(size.saturating_mul(1024)));
        if let Some(oid) = place.optional("spcoid")? {
            let location = place.text("spclocation")?;
            tablespaces.push(SentTablespace { oid, location });
        }
    }
    Ok(BackupStart {
        lsn: position.value("recptr")?,
        timeline: Timeline(position.value("tli")?),
        tablespaces,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_in_the_words_of_the_version() {
        let options = BaseBackupOptions {
            label: "it's".to_owned(),
            bytes_per_second: Some(10 << 20),
        };
        assert_eq!(
            command(&options, 14),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 10240"
        );
        assert_eq!(
            command(&options, 15),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, MANIFEST 'no', \
             MAX_RATE 10240)"
        );
        // Slower or faster than the server lets one ask for.
        for (bytes, rate) in [(1, "MAX_RATE 32)"), (u64::MAX, "MAX_RATE 1048576)")] {
            let options = BaseBackupOptions {
                bytes_per_second: Some(bytes),
                ..BaseBackupOptions::default()
            };
            assert!(command(&options, 18).ends_with(rate));
        }
    }
}

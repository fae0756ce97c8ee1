//! The answer to a command, message by message.

use postgres_protocol::message::backend::Message;

use crate::authentication::is_unavailable;
use crate::error::Action;
use crate::frame::Frame;
use crate::rows::{Rows, server_message};
use crate::wire::Wire;
use crate::{ReplicationError, ServerMessage};

/// What has been received of an answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    rows: Rows,
    failure: Option<ServerMessage>,
}

impl Answer {
    /// Takes the next message of the answer to `action`; says whether it was the last.
    ///
    /// # Errors
    /// When it does not belong there. What the server could not do is told by [`Self::rows`], because
    /// the answer goes on behind it; unless the connection ends with it.
    pub(crate) fn take(
        &mut self,
        frame: Frame,
        action: Action,
        wire: &Wire,
    ) -> Result<bool, ReplicationError> {
        let malformed = |what| wire.protocol(what);
        match frame {
            Frame::Message(Message::RowDescription(body)) => {
                self.rows.describe(&body).map_err(malformed)?;
            }
            Frame::Message(Message::DataRow(body)) => self.rows.add(&body).map_err(malformed)?,
            Frame::Message(Message::CommandComplete(_)) => {}
            Frame::Message(Message::ErrorResponse(body)) => {
                let message = server_message(&body).map_err(malformed)?;
                if message.severity != "ERROR" {
                    return Err(failed(wire, action, message));
                }
                self.failure = Some(message);
            }
            Frame::Message(Message::ReadyForQuery(_)) => return Ok(true),
            other => return Err(wire.unexpected(&other, "in the answer to a command")),
        }
        Ok(false)
    }

    /// The rows, when the answer is complete.
    ///
    /// # Errors
    /// What the server said, if it could not do it.
    pub(crate) fn rows(self, action: Action, wire: &Wire) -> Result<Rows, ReplicationError> {
        match self.failure {
            Some(message) => Err(failed(wire, action, message)),
            None => Ok(self.rows),
        }
    }
}

/// An error that the server told.
pub(crate) fn failed(wire: &Wire, action: Action, message: ServerMessage) -> ReplicationError {
    let place = wire.place.clone();
    let server = Box::new(message);
    if is_unavailable(&server.code) {
        ReplicationError::Unavailable { place, server }
    } else {
        ReplicationError::Server {
            place,
            action,
            server,
        }
    }
}

//! From bytes to messages.

use std::io;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{Header, Message};

/// No message is larger than this. The largest that a server of this protocol sends holds 128 KiB of log
/// (`MAX_SEND_SIZE` in `walsender.c`), or a timeline's history.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// `CopyBothResponse`, which is sent in replication only and which the library does not know.
const COPY_BOTH_TAG: u8 = b'W';
/// The tag and the length, which counts itself but not the tag.
const TAG_BYTES: usize = 1;

/// A message of the server.
pub(crate) enum Frame {
    /// From now on log is streamed.
    CopyBoth,
    /// Everything else.
    Message(Message),
}

impl Frame {
    /// What to call it in an error.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::CopyBoth => "CopyBothResponse",
            Self::Message(Message::AuthenticationOk) => "AuthenticationOk",
            Self::Message(Message::CommandComplete(_)) => "CommandComplete",
            Self::Message(Message::CopyData(_)) => "CopyData",
            Self::Message(Message::CopyDone) => "CopyDone",
            Self::Message(Message::DataRow(_)) => "DataRow",
            Self::Message(Message::ReadyForQuery(_)) => "ReadyForQuery",
            Self::Message(Message::RowDescription(_)) => "RowDescription",
            Self::Message(_) => "a message of another kind",
        }
    }
}

/// Takes the first message from `input`; `None` when it is not there to its end.
///
/// # Errors
/// When it is no message, or too large to be one.
pub(crate) fn take(input: &mut BytesMut) -> io::Result<Option<Frame>> {
    let Some(header) = Header::parse(input)? else {
        return Ok(None);
    };
    let bytes = usize::try_from(header.len()).unwrap_or(usize::MAX);
    if bytes > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {bytes} bytes"),
        ));
    }
    if input.len() < TAG_BYTES + bytes {
        return Ok(None);
    }
    if header.tag() == COPY_BOTH_TAG {
        // The formats of columns, which a stream does not have.
        input.advance(TAG_BYTES + bytes);
        return Ok(Some(Frame::CopyBoth));
    }
    Ok(Message::parse(input)?.map(Frame::Message))
}

#[cfg(test)]
mod tests;

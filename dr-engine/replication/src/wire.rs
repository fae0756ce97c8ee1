//! An open connection with what has been read of it and what is still to be sent.
//!
//! Both directions keep what is not finished here and not in a future: a future that is dropped in the
//! middle of a message loses nothing, and the next one goes on where it stopped.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::frame::{self, Frame};
use crate::transport::Duplex;
use crate::{ReplicationError, tls};

/// Bytes to have room for before reading.
const READ_BYTES: usize = 256 * 1024;

/// A connection that speaks messages.
pub(crate) struct Wire {
    /// Host and port or socket, for errors.
    pub(crate) place: String,
    socket: Box<dyn Duplex>,
    input: BytesMut,
    output: BytesMut,
    /// Written, but perhaps still in a buffer of the encryption.
    unflushed: bool,
    /// Why nothing can be written any more.
    write_error: Option<io::Error>,
}

impl Wire {
    pub(crate) fn new(place: String, socket: Box<dyn Duplex>) -> Self {
        Self {
            place,
            socket,
            input: BytesMut::new(),
            output: BytesMut::new(),
            unflushed: false,
            write_error: None,
        }
    }

    /// Where messages to be sent are put. They leave with the next [`Self::flush`] or while
    /// [`Self::receive`] waits.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// The next message. May be dropped at any time.
    ///
    /// # Errors
    /// When the connection is lost or something is received that is no message.
    pub(crate) async fn receive(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            if let Some(frame) =
                frame::take(&mut self.input).map_err(|error| self.protocol(error.to_string()))?
            {
                return Ok(frame);
            }
            if let Err(error) = self.exchange().await {
                return Err(tls::error(self.place.clone(), error));
            }
        }
    }

    /// Sends everything that is to be sent. May be dropped at any time.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn flush(&mut self) -> Result<(), ReplicationError> {
        let flushed = poll_fn(|context| self.poll_flush(context)).await;
        flushed.map_err(|error| tls::error(self.place.clone(), error))
    }

    /// Something that the protocol does not allow.
    pub(crate) fn protocol(&self, what: impl Into<String>) -> ReplicationError {
        ReplicationError::Protocol {
            place: self.place.clone(),
            what: what.into(),
        }
    }

    /// A message where it is not allowed.
    pub(crate) fn unexpected(&self, frame: &Frame, when: &str) -> ReplicationError {
        self.protocol(format!("it sends {} {when}", frame.name()))
    }

    /// Waits for more input, and sends meanwhile: neither side may wait for the other to read first.
    async fn exchange(&mut self) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        let read = poll_fn(|context| {
            // A server that has closed the connection may have said why before: that is read first.
            if let Poll::Ready(Err(error)) = self.poll_flush(context) {
                self.output.clear();
                self.unflushed = false;
                self.write_error = Some(error);
            }
            pin!(self.socket.read_buf(&mut self.input)).poll(context)
        });
        match read.await {
            Ok(0) => Err(self.write_error.take().unwrap_or_else(|| {
                io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server has closed the connection",
                )
            })),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(context, &self.output);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.output.advance(bytes),
            }
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;

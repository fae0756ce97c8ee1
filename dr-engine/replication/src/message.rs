//! What is inside a copy stream of replication: 55.4, `START_REPLICATION`.
//!
//! All numbers are big-endian, all times are microseconds since 2000-01-01 UTC.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline};

/// 2000-01-01 UTC in microseconds since 1970.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;
const XLOG_DATA: u8 = b'w';
const KEEPALIVE: u8 = b'k';
const STATUS_UPDATE: u8 = b'r';

/// What the server sends while it streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The next bytes of the log. They begin where the last ones ended, end where a record or a page
    /// ends, and can go over the end of a segment.
    Data {
        /// The position of the first byte.
        start: Lsn,
        /// Where the server's log ended when it sent this.
        server_end: Lsn,
        /// The server's clock when it sent this.
        server_clock: DateTime<Utc>,
        /// The bytes.
        data: Bytes,
    },
    /// The server is there, and has nothing more to send.
    Keepalive {
        /// Where the server's log ends.
        server_end: Lsn,
        /// The server's clock when it sent this.
        server_clock: DateTime<Utc>,
        /// Whether it ends the connection if nothing is reported soon.
        reply_requested: bool,
    },
    /// Everything of this timeline has been sent, and the stream is over: the connection can be used for
    /// other commands.
    TimelineEnded {
        /// The timeline that follows and the position where it leaves this one; none where the server
        /// names none.
        next: Option<(Timeline, Lsn)>,
    },
}

/// Reads what is inside a copy message of the server; says what is wrong with it otherwise.
pub(crate) fn decode(mut body: Bytes) -> Result<Event, String> {
    let short = |what: &str| format!("{what} is cut off");
    match body.try_get_u8() {
        Ok(XLOG_DATA) => {
            let mut fields = || Some((lsn(&mut body)?, lsn(&mut body)?, time(&mut body)?));
            let (start, server_end, server_clock) = fields().ok_or_else(|| short("data"))?;
            if start.0.checked_add(body.len() as u64).is_none() {
                return Err(format!(
                    "data at {start} goes over the end of all positions"
                ));
            }
            Ok(Event::Data {
                start,
                server_end,
                server_clock: server_clock?,
                data: body,
            })
        }
        Ok(KEEPALIVE) => {
            let mut fields = || {
                let (end, clock) = (lsn(&mut body)?, time(&mut body)?);
                Some((end, clock, body.try_get_u8().ok()?))
            };
            let (server_end, server_clock, reply) = fields().ok_or_else(|| short("a keepalive"))?;
            Ok(Event::Keepalive {
                server_end,
                server_clock: server_clock?,
                reply_requested: reply != 0,
            })
        }
        Ok(other) => Err(format!("a message of kind {other} in the stream")),
        Err(_) => Err(short("a message in the stream")),
    }
}

fn lsn(body: &mut Bytes) -> Option<Lsn> {
    body.try_get_u64().ok().map(Lsn)
}

/// `None` where the bytes end, an error where the time cannot be.
fn time(body: &mut Bytes) -> Option<Result<DateTime<Utc>, String>> {
    let microseconds = body.try_get_i64().ok()?;
    let time = microseconds
        .checked_add(EPOCH_MICROSECONDS)
        .and_then(DateTime::from_timestamp_micros);
    Some(time.ok_or_else(|| format!("its clock shows {microseconds} microseconds since 2000")))
}

/// What a client tells the server about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) written: Lsn,
    pub(crate) flushed: Lsn,
    pub(crate) applied: Lsn,
    pub(crate) clock: DateTime<Utc>,
    pub(crate) reply_wanted: bool,
}

impl Status {
    pub(crate) fn encode(&self) -> BytesMut {
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(STATUS_UPDATE);
        for position in [self.written, self.flushed, self.applied] {
            body.put_u64(position.0);
        }
        // Saturates far outside of what a clock can show.
        let microseconds = self.clock.timestamp_micros();
        body.put_i64(microseconds.saturating_sub(EPOCH_MICROSECONDS));
        body.put_u8(u8::from(self.reply_wanted));
        body
    }
}

#[cfg(test)]
mod tests;

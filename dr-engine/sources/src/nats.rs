//! NATS JetStream streams, by the server's own snapshot and restore.
//!
//! The client library has no calls for them, so the requests are made here, as ADR-8 and the server
//! define them: a snapshot is asked for on `$JS.API.STREAM.SNAPSHOT.<stream>` with a subject to
//! deliver to, arrives there in chunks that are acknowledged one by one, and ends with an empty
//! message. A restore is asked for on `$JS.API.STREAM.RESTORE.<stream>`, is answered with a subject to
//! send to, and takes the same chunks, each answered, and an empty one at the end.
//!
//! What arrives is an archive in the server's own format (tar, compressed as S2): messages and the
//! state of every consumer. It is opaque to us but for its length and SHA-256, which are kept in
//! [`StreamSnapshot`]: a restore reads the archive once to check them before it touches anything, and
//! once more to send it.
//!
//! *A snapshot is complete or an error.* A missing end, a status message in place of data, silence,
//! or a stream whose archive the server cut short by closing: all fail the capture, and a failed
//! capture never ends the reader as if the file were whole.
//!
//! *A restore is complete or leaves nothing.* A stream that exists is refused unless the caller chose
//! to replace it; it is deleted only after the archive was checked. What the server made of a restore
//! that failed is removed. Afterwards the messages, the sequence numbers and each durable consumer's
//! place are compared with what was captured.

mod capture;
mod connection;
mod restore;
mod snapshot;

pub use capture::{capture_stream, snapshot_path};
pub use connection::{position, stream_exists};
pub use restore::{IfExists, restore};
pub use snapshot::{Chunk, ConsumerPlace, StreamSnapshot, snapshot};

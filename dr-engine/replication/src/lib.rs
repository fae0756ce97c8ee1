//! Receiving PostgreSQL's write-ahead log as it is written, and whole clusters: the client side of physical
//! streaming replication. Versions 14 to 18.
//!
//! A server keeps the newest segment of its log to itself until the segment is full. What is in it is
//! lost with the server, unless somebody receives it as it is written. This is what a standby does, and
//! `pg_receivewal`; and this crate, which speaks to the server's *walsender* as they do.
//!
//! Source: PostgreSQL documentation, "Streaming Replication Protocol" (55.4 in version 15) and
//! "Message Flow" (55.2). Messages are framed, and passwords are proven, by `postgres-protocol`; what is
//! inside a copy stream of replication is in [`message`], because that library knows nothing of it.
//!
//! Nothing here knows where received bytes go. Nothing is written to a file, and nothing is confirmed to
//! the server that the caller does not confirm with [`Stream::report`].

#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod account;
pub mod address;
mod answer;
mod authentication;
pub mod base_backup;
pub mod connection;
pub mod error;
mod frame;
pub mod message;
mod password_file;
mod rows;
pub mod stream;
mod tls;
mod transport;
mod wire;

pub use address::{Address, ClientCertificate, Host, Tls, TlsMode};
pub use base_backup::{
    BackupEnd, BackupEvent, BackupStart, BaseBackup, BaseBackupOptions, SentTablespace,
};
pub use connection::{Connection, SlotCreated, SystemIdentity};
pub use error::{Action, ReplicationError, ServerMessage};
pub use message::Event;
pub use stream::Stream;

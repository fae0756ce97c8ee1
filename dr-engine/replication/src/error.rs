//! What can go wrong while replicating, and what to try.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What the server said of an error (55.8 "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerMessage {
    /// `ERROR`, `FATAL` or `PANIC`. After the last two the server closes the connection.
    pub severity: String,
    /// The SQLSTATE, five characters (Appendix A "PostgreSQL Error Codes").
    pub code: String,
    /// What happened, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, "; {more}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerMessage {}

/// What was asked of the server when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// `IDENTIFY_SYSTEM`.
    Identify,
    /// `SHOW`.
    Show,
    /// `CREATE_REPLICATION_SLOT`.
    CreateSlot,
    /// `DROP_REPLICATION_SLOT`.
    DropSlot,
    /// `TIMELINE_HISTORY`.
    History,
    /// `START_REPLICATION`, and everything until the stream ends.
    Stream,
    /// `BASE_BACKUP`, and everything until it ends.
    BaseBackup,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identify => "identify itself",
            Self::Show => "show a setting",
            Self::CreateSlot => "create the replication slot",
            Self::DropSlot => "drop the replication slot",
            Self::History => "send the history of a timeline",
            Self::Stream => "stream its log",
            Self::BaseBackup => "send a base backup",
        })
    }
}

/// A failed operation. Display says what failed where; the cause is the source error. Nothing of it ever
/// holds a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicationError {
    /// A connection URL that cannot be understood.
    #[error("the PostgreSQL connection URL cannot be understood: {what}")]
    Url {
        /// What is wrong with it; never the URL itself.
        what: String,
    },
    /// A name that no replication slot can have, or no setting.
    #[error("`{name}` is not the name of a {what}")]
    Name {
        /// The name.
        name: String,
        /// Of what.
        what: &'static str,
    },
    /// A certificate or key file that cannot be used.
    #[error("the certificate or key file {} cannot be used", path.display())]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No server answers there, not in time, or not any more.
    #[error("PostgreSQL at {place} does not answer")]
    Down {
        /// Host and port or socket, never a password.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A server answers that it starts, stops or has ended this session (class 57P).
    #[error("PostgreSQL at {place} is not available")]
    Unavailable {
        /// Host and port or socket.
        place: String,
        /// What it said.
        #[source]
        server: Box<ServerMessage>,
    },
    /// A server answers and does not let us in.
    #[error("PostgreSQL at {place} refuses the connection")]
    Refused {
        /// Host and port or socket.
        place: String,
        /// What it said.
        #[source]
        server: Box<ServerMessage>,
    },
    /// The server wants a password and there is none.
    #[error("PostgreSQL at {place} asks for the password of `{user}`, and none is given")]
    PasswordMissing {
        /// Host and port or socket.
        place: String,
        /// The role.
        user: String,
    },
    /// The server wants to see the password where others could see it too.
    #[error(
        "PostgreSQL at {place} asks for the password in clear text over an unencrypted connection"
    )]
    PasswordExposed {
        /// Host and port or socket.
        place: String,
    },
    /// The server does not prove that it knows the password's verifier, or asks in a way that is not
    /// known.
    #[error("PostgreSQL at {place} cannot be authenticated with: {what}")]
    Authentication {
        /// Host and port or socket.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// The connection cannot be encrypted, or the server's certificate is not the right one.
    #[error("the TLS connection to PostgreSQL at {place} failed")]
    Tls {
        /// Host and port.
        place: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server has TLS switched off.
    #[error("PostgreSQL at {place} does not offer TLS")]
    TlsNotOffered {
        /// Host and port.
        place: String,
    },
    /// A command failed.
    #[error("PostgreSQL at {place} could not {action}")]
    Server {
        /// Host and port or socket.
        place: String,
        /// What it was asked for.
        action: Action,
        /// What it said.
        #[source]
        server: Box<ServerMessage>,
    },
    /// The server said something that the protocol does not allow there.
    #[error("PostgreSQL at {place} does not keep to the protocol: {what}")]
    Protocol {
        /// Host and port or socket.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// The connection still streams, or an earlier command was given up in the middle.
    #[error("the connection to PostgreSQL at {place} cannot be used for another command")]
    Occupied {
        /// Host and port or socket.
        place: String,
    },
}

impl ReplicationError {
    /// What the server said, if it is the server that says it.
    #[must_use]
    pub fn server_message(&self) -> Option<&ServerMessage> {
        match self {
            Self::Unavailable { server, .. }
            | Self::Refused { server, .. }
            | Self::Server { server, .. } => Some(server),
            _ => None,
        }
    }

    /// The SQLSTATE, if it is the server that says it.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.server_message().map(|message| message.code.as_str())
    }

    /// Whether no server is there at the moment: not reached, lost, starting or stopping. Trying again
    /// later can help.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Down { .. } | Self::Unavailable { .. })
    }

    /// Whether the server no longer has the log from the position that was asked for. Asking again
    /// cannot help: what is missing has to come from an archive, or a new base backup is needed.
    #[must_use]
    pub fn is_wal_removed(&self) -> bool {
        let Self::Server {
            action: Action::Stream,
            server,
            ..
        } = self
        else {
            return false;
        };
        // The file is absent (`WalSndSegmentOpen`); from 18 on, a slot that lost what it held says it
        // before that (`ReplicationSlotAcquire`), with a code that it shares with other errors.
        server.code == "58P01"
            || (server.code == "55000" && server.message.contains("can no longer access"))
    }

    /// Whether there is no such replication slot.
    #[must_use]
    pub fn is_slot_absent(&self) -> bool {
        self.failed_with("42704")
    }

    /// Whether the replication slot is used by another session, or still by a former one of ours that
    /// the server has not missed yet.
    #[must_use]
    pub fn is_slot_in_use(&self) -> bool {
        self.failed_with("55006")
    }

    fn failed_with(&self, code: &str) -> bool {
        matches!(self, Self::Server { server, .. } if server.code == code)
    }

    /// What an operator can try.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        if self.is_wal_removed() {
            return Some(
                "take what is missing from an archive, or a new base backup; keep more with \
                 `wal_keep_size`, or with a slot and a larger `max_slot_wal_keep_size`",
            );
        }
        Some(match self {
            Self::Url { .. } => {
                "write it as postgres://user@host:port/database, a socket folder as \
                 postgres://user@localhost/database?host=/run/postgresql"
            }
            Self::Name { .. } => {
                "a slot's name has 1 to 63 of the characters a-z, 0-9 and _, a setting's also dots"
            }
            Self::CertificateFile { .. } => {
                "name a file in PEM format that this account may read; sslcert and sslkey belong \
                 together"
            }
            Self::Down { .. } => "start the server, or correct the URL",
            Self::Unavailable { .. } => "wait until it has started",
            Self::Refused { .. } => {
                "check that the role has REPLICATION, its password, and that pg_hba.conf has a line \
                 for database `replication`"
            }
            Self::PasswordMissing { .. } => {
                "give a password, or allow the role to connect without in pg_hba.conf"
            }
            Self::PasswordExposed { .. } => {
                "use sslmode=require or better, or method scram-sha-256 in pg_hba.conf"
            }
            Self::Tls { .. } => {
                "check sslrootcert, and that the host in the URL is among the certificate's subject \
                 alternative names"
            }
            Self::TlsNotOffered { .. } => {
                "switch `ssl` on in postgresql.conf, or choose an sslmode"
            }
            Self::Server { server, .. } => return hint_for(&server.code),
            Self::Occupied { .. } => "connect anew",
            Self::Authentication { .. } => "use method scram-sha-256 in pg_hba.conf",
            Self::Protocol { .. } => "check that a PostgreSQL server listens there, and no pooler",
        })
    }
}

fn hint_for(code: &str) -> Option<&'static str> {
    Some(match code {
        "55006" => "stop the other receiver, or wait until the server has missed it",
        "42704" => "create the slot",
        "42710" => "use another name, or the slot that exists",
        "42501" => "give the role REPLICATION",
        "53400" => "raise `max_replication_slots`",
        _ => return None,
    })
}

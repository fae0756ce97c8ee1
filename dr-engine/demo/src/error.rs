//! What can go wrong in the demo's own parts.

use std::path::PathBuf;

/// An error of the demo's own parts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The database refused.
    #[error("{what} failed in the database")]
    Sql {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: sqlx::Error,
    },
    /// The message broker refused or did not answer.
    #[error("{what} failed at the message broker")]
    Broker {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The outbox is in the hands of another relay.
    #[error("another outbox relay works on this database")]
    SecondRelay,
    /// Something could not be given to the user that the demo runs as.
    #[error("cannot prepare a folder of the demo")]
    Instance(#[source] dr_sources::SourceError),
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl DemoError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Sql { .. } => Some("the ERP wants an empty database and its owner".to_owned()),
            Self::Broker { .. } => {
                Some("check that nats-server runs with JetStream (-js) at this address".to_owned())
            }
            Self::SecondRelay => Some("stop the other one first".to_owned()),
            Self::Instance(source) => source.hint(),
            Self::Write { path, .. } => path
                .parent()
                .map(|folder| format!("check space and rights in {}", folder.display())),
        }
    }
}

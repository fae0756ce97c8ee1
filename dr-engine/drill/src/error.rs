//! What can keep a drill from being held. What goes wrong inside a drill that is being held is in its
//! report.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// A drill, probe or runbook file, or the configuration, is not what it should be.
    #[error(transparent)]
    Config(#[from] dr_config::ConfigError),
    /// The installation, its repository or its catalog could not be opened.
    #[error(transparent)]
    Installation(#[from] dr_installation::InstallationError),
    /// A private server or an OS user was not to be had.
    #[error(transparent)]
    Source(#[from] dr_sources::SourceError),
    /// A file or folder could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Read, create, remove…
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {what}: {reason}", path.display())]
    Malformed {
        /// The path.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A command of the product failed.
    #[error("`{command}` ended with {status}:\n{output}")]
    Command {
        /// As it was run.
        command: String,
        /// Its exit.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// A program could not be started or awaited.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The drill asks for something that the configuration or this version does not have.
    #[error("{0}")]
    Unsuitable(String),
    /// Something that the drill would have harmed is not its own.
    #[error("refused to touch {what}: this drill did not make it")]
    NotOurs {
        /// A process or path.
        what: String,
    },
    /// The probed database refused or did not answer.
    #[error("{what} failed in the database")]
    Sql {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The message broker refused or did not answer.
    #[error("{what} failed at the message broker: {reason}")]
    Broker {
        /// What was being done.
        what: &'static str,
        /// Its words.
        reason: String,
    },
    /// The repository refused or did not answer.
    #[error("cannot {action} in the repository")]
    Repository {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: dr_store::StoreError,
    },
    /// A time limit was reached.
    #[error("{what} took longer than {seconds} s")]
    TooSlow {
        /// What was waited for.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// A person or a signal stopped it.
    #[error("stopped before it was done")]
    Cancelled,
}

impl DrillError {
    /// What to try, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint().map(str::to_owned),
            Self::Installation(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::NotOurs { .. } => {
                Some("give the drill a folder of its own with --sandbox DIR".to_owned())
            }
            Self::Sql { .. } | Self::Broker { .. } => {
                Some("the probe's file names the workload and the statements".to_owned())
            }
            _ => None,
        }
    }

    pub(crate) fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

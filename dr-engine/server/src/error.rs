//! Why the daemon does not start.

use std::path::PathBuf;

use dr_catalog::CatalogError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration or the catalog could not be opened.
    #[error(transparent)]
    Installation(#[from] dr_installation::InstallationError),
    /// Another daemon works with this catalog.
    #[error("another daemon, process {pid}, works with catalog {}", catalog.display())]
    AlreadyRunning {
        /// The catalog.
        catalog: PathBuf,
        /// The other daemon.
        pid: String,
    },
    /// The lock could not be taken for another reason.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Jobs of dead processes could not be ended.
    #[error("cannot end the jobs that were left behind")]
    Recover(#[source] CatalogError),
    /// What ran last could not be read.
    #[error("cannot read what ran last")]
    History(#[source] CatalogError),
    /// A schedule could not be read.
    #[error(transparent)]
    Schedule(#[from] dr_scheduler::ScheduleError),
}

impl ServerError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Installation(error) => error.hint(),
            Self::AlreadyRunning { pid, .. } => Some(format!(
                "stop it first (kill {pid}), or give this one a configuration with a catalog of its own"
            )),
            Self::Lock { .. } => {
                Some("the daemon must be able to write the folder of the catalog".to_owned())
            }
            Self::Recover(error) | Self::History(error) => error.hint(),
            Self::Schedule(error) => error.hint(),
        }
    }
}

//! What can end the story early.

use std::path::PathBuf;

/// Errors of the story.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// The folder holds something that is not the demo's.
    #[error("{} exists and was not made by the demo", path.display())]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The user that the servers run as cannot work in the folder.
    #[error("{user} cannot enter or write {}", path.display())]
    ClosedFolder {
        /// The folder.
        path: PathBuf,
        /// The user.
        user: String,
    },
    /// A file or folder could not be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A server could not be started or asked.
    #[error("cannot {action}")]
    Server {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: dr_sources::SourceError,
    },
    /// The ERP could not be made.
    #[error("cannot {action}")]
    Erp {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A statement of the story failed.
    #[error("the database refused: {statement}")]
    Sql {
        /// The statement.
        statement: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A command of the story ended with an unexpected code.
    #[error("`{command}` ended with {status}: {message}")]
    Command {
        /// As shown.
        command: String,
        /// Its exit status.
        status: String,
        /// Its last words.
        message: String,
    },
    /// A command's JSON was not what its documentation says.
    #[error("`{command}` answered something unexpected: {detail}")]
    Answer {
        /// As shown.
        command: String,
        /// What is wrong.
        detail: String,
    },
    /// Something that had to happen did not, in time.
    #[error("{what} did not happen within {seconds} s; see {}", log.display())]
    Waited {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// Where to look.
        log: PathBuf,
    },
    /// What came back is not what was there.
    #[error("{0}")]
    NotAsBefore(String),
    /// Asked to stop.
    #[error("interrupted; everything the demo started was stopped")]
    Interrupted,
}

impl StoryError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::ForeignFolder { .. } => {
                Some("give another folder with --dir, or remove this one yourself".to_owned())
            }
            Self::ClosedFolder { user, .. } => Some(format!(
                "give a folder below one that {user} can enter, like --dir /var/tmp/dr-demo"
            )),
            Self::Server { source, .. } => source.hint(),
            Self::Command { .. } | Self::Waited { .. } => Some(
                "the demo's folder is kept: its logs/ tell more; `dr demo --clean` removes it"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

pub(crate) fn file(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> StoryError {
    let path = path.to_owned();
    move |source| StoryError::File {
        action,
        path,
        source,
    }
}

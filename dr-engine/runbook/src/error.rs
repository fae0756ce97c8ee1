//! What can keep a runbook from being run at all. A step that fails is no error of this kind: it is
//! in the execution.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum RunbookError {
    /// The runbook or the configuration is not what it should be.
    #[error(transparent)]
    Config(#[from] dr_config::ConfigError),
    /// The file could not be read again for its hash.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A value was set that the runbook does not name.
    #[error("runbook `{runbook}` has no parameter `{name}`")]
    UnknownParameter {
        /// The runbook.
        runbook: String,
        /// What was set.
        name: String,
        /// What it has.
        known: Vec<String>,
    },
    /// A template uses something that has no value.
    #[error("step {step} ({action}) of runbook `{runbook}` cannot be filled in: {reason}")]
    Template {
        /// The runbook.
        runbook: String,
        /// Counted from 1.
        step: usize,
        /// Its action.
        action: &'static str,
        /// The template engine's words.
        reason: String,
        /// What it has.
        known: Vec<String>,
    },
}

impl RunbookError {
    /// What to try, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint().map(str::to_owned),
            Self::UnknownParameter { known, .. } | Self::Template { known, .. } => {
                Some(if known.is_empty() {
                    "it takes no parameters".to_owned()
                } else {
                    format!(
                        "give values with --set NAME=VALUE; it knows {}",
                        known.join(", ")
                    )
                })
            }
            Self::Read { .. } => None,
        }
    }
}

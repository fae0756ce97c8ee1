//! What is wrong with a file, where, and what to try.

use std::path::PathBuf;

/// Errors of this crate. Every one is a usage error: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not what the file should hold.
    #[error("{}{}: {message}", path.display(), at(*.line, *.column))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1; 0 when the whole file is meant.
        line: usize,
        /// Column, counted from 1; 0 when the whole line is meant.
        column: usize,
        /// What is wrong.
        message: String,
        /// What to try.
        hint: Option<String>,
    },
    /// Something was asked for that the configuration does not name.
    #[error("no {what} `{name}` in {}", path.display())]
    Unknown {
        /// Workload, tier, repository…
        what: &'static str,
        /// What was asked for.
        name: String,
        /// The engine file.
        path: PathBuf,
        /// What to try: the nearest known name, or the list.
        hint: String,
    },
    /// A file that people could have put in several places is in none of them.
    #[error("no configuration found: looked at {}", looked_at.join(", "))]
    NotFound {
        /// The places.
        looked_at: Vec<String>,
    },
}

fn at(line: usize, column: usize) -> String {
    match (line, column) {
        (0, _) => String::new(),
        (line, 0) => format!(":{line}"),
        (line, column) => format!(":{line}:{column}"),
    }
}

impl ConfigError {
    /// What to try, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Invalid { hint, .. } => hint.as_deref(),
            Self::Unknown { hint, .. } => Some(hint),
            Self::NotFound { .. } => {
                Some("create one with `dr init`, or name it with --config FILE")
            }
            Self::Read { .. } => None,
        }
    }
}

//! What a place for objects can answer instead of doing what was asked.

use chrono::{DateTime, Utc};

/// A place that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The folder is not there, or holds no `repository` object any more.
    #[error("repository folder missing: {place}")]
    FolderMissing {
        /// The folder.
        place: String,
    },
    /// No rights.
    #[error("cannot {action} {place}: not permitted to {user}")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// The path.
        place: String,
        /// Who tried.
        user: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// No room.
    #[error("cannot {action} {place}: the disk (or quota) is full")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The path.
        place: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Anything else a file system answers.
    #[error("cannot {action} {place}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        place: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A name outside the allowed alphabet.
    #[error("`{place}` is not an object name")]
    BadName {
        /// The name.
        place: String,
    },
    /// A place for a new repository that is in use already.
    #[error("{place} is not empty: it holds `{example}`")]
    NotEmpty {
        /// The place.
        place: String,
        /// One thing found.
        example: String,
    },
    /// The bucket is not there.
    #[error("bucket missing: {place}")]
    BucketMissing {
        /// The place.
        place: String,
        /// The store's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store refuses who we are.
    #[error("cannot {action} {place}: the store refuses the credentials")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// The store's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody answers.
    #[error("cannot {action} {place}: the store does not answer")]
    Unreachable {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// The transport's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A lock forbids it.
    #[error("cannot {action} {place}: it is locked{}", until_text(*until))]
    Locked {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// When the lock ends, if the store tells.
        until: Option<DateTime<Utc>>,
    },
    /// The place has no such ability.
    #[error("cannot {action} {place}: this place has no such ability")]
    NotSupported {
        /// What was asked.
        action: &'static str,
        /// The place.
        place: String,
    },
    /// The store answered with a failure.
    #[error("cannot {action} {place}: the store reports a failure")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The place.
        place: String,
        /// The store's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BackendError {
    /// The place or path that failed.
    #[must_use]
    pub fn place(&self) -> &str {
        match self {
            Self::FolderMissing { place }
            | Self::NotEmpty { place, .. }
            | Self::NotPermitted { place, .. }
            | Self::Full { place, .. }
            | Self::Io { place, .. }
            | Self::BadName { place }
            | Self::BucketMissing { place, .. }
            | Self::Refused { place, .. }
            | Self::Locked { place, .. }
            | Self::NotSupported { place, .. }
            | Self::Unreachable { place, .. }
            | Self::Store { place, .. } => place,
        }
    }

    /// What an operator can try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::FolderMissing { .. } => {
                "is the disk mounted? Only `dr init` creates a repository, so that an unmounted disk \
                 never becomes an empty one"
            }
            Self::NotPermitted { .. } => {
                "run dr as the owner of the repository folder (`sudo -u OWNER dr …`), or give this \
                 user the rights; a read-only file system must be mounted read-write"
            }
            Self::Full { .. } => {
                "make room or raise the quota, then run it again: what was stored before is whole"
            }
            Self::NotEmpty { .. } => "name an empty or a new folder for the repository",
            Self::BucketMissing { .. } => "create the bucket; dr never creates one",
            Self::Refused { .. } => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile), the bucket's \
                 policy, and that this machine's clock is right"
            }
            Self::Unreachable { .. } => "check the endpoint, the region and the network",
            Self::Locked { .. } => {
                "the store refuses until the lock ends; a governance lock can be lifted by whoever \
                 holds s3:BypassGovernanceRetention, a compliance lock by nobody"
            }
            Self::NotSupported { .. } => {
                "`dr repo check` tells what the place can do; versions and locks need an S3 bucket \
                 made with Object Lock"
            }
            Self::Io { .. } | Self::BadName { .. } | Self::Store { .. } => return None,
        };
        Some(text.to_owned())
    }
}

fn until_text(until: Option<DateTime<Utc>>) -> String {
    until.map_or_else(String::new, |until| {
        format!(" until {}", until.format("%Y-%m-%dT%H:%M:%SZ"))
    })
}

//! What can go wrong with the catalog.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The URL is of no known kind.
    #[error("`{url}` is no catalog; write sqlite:PATH")]
    Url {
        /// As configured.
        url: String,
    },
    /// There is no catalog.
    #[error("there is no catalog at {}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The database refused.
    #[error("the catalog refused to {action}")]
    Database {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("the catalog's schema cannot be brought up to date")]
    Migrate {
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// The file could not be handed to the owner of its folder.
    #[error("cannot change the owner of {}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A row does not hold what it should.
    #[error("the catalog holds a {what} that cannot be read: {detail}")]
    Row {
        /// What kind of row.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A job's lease was taken by someone else.
    #[error("job {job} was taken over by another process")]
    LeaseLost {
        /// The job.
        job: String,
    },
}

impl CatalogError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(
                "`dr init` creates it, `dr catalog rebuild` makes it anew from the repository"
                    .to_owned(),
            ),
            Self::Database { source, .. } if is_busy(source) => {
                Some("another process holds the catalog; try again when it has ended".to_owned())
            }
            Self::Database { .. } | Self::Migrate { .. } | Self::Row { .. } => {
                Some("if the file is damaged, move it away and run `dr catalog rebuild`".to_owned())
            }
            _ => None,
        }
    }
}

/// SQLITE_BUSY (5) and its extended codes.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<i32>().ok())
        .is_some_and(|code| code & 0xFF == 5)
}

pub(crate) fn database(action: &'static str) -> impl FnOnce(sqlx::Error) -> CatalogError {
    move |source| CatalogError::Database { action, source }
}

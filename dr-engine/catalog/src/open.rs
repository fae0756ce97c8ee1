//! Opening, creating, migrating.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use crate::CatalogError;
use crate::error::database;

/// How long one process waits for another that writes. Writes take milliseconds.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A few tasks of one process read and write at the same time.
const CONNECTIONS_MAX: u32 = 4;

/// An open catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub(crate) pool: SqlitePool,
    path: PathBuf,
}

fn path_of(url: &str) -> Result<&Path, CatalogError> {
    url.strip_prefix("sqlite:")
        .map(Path::new)
        .ok_or_else(|| CatalogError::Url {
            url: url.to_owned(),
        })
}

impl Catalog {
    /// Whether there is a catalog at `url`.
    #[must_use]
    pub fn exists(url: &str) -> bool {
        path_of(url).is_ok_and(Path::is_file)
    }

    /// Opens an existing catalog and brings its schema up to date.
    ///
    /// # Errors
    /// When there is none, or it is locked or damaged.
    pub async fn open(url: &str) -> Result<Self, CatalogError> {
        let path = path_of(url)?;
        if !path.is_file() {
            return Err(CatalogError::Missing {
                path: path.to_owned(),
            });
        }
        Self::connect(path, false).await
    }

    /// Opens a catalog, and makes it first where there is none.
    ///
    /// # Errors
    /// When its folder is missing or not writable, or it is locked or damaged.
    pub async fn create(url: &str) -> Result<Self, CatalogError> {
        let path = path_of(url)?;
        let new = !path.exists();
        let catalog = Self::connect(path, true).await?;
        if new {
            take_owner_of_folder(path).map_err(|source| CatalogError::Owner {
                path: path.to_owned(),
                source,
            })?;
        }
        Ok(catalog)
    }

    async fn connect(path: &Path, create: bool) -> Result<Self, CatalogError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(BUSY_TIMEOUT + Duration::from_secs(5))
            .connect_with(options)
            .await
            .map_err(database("open"))?;
        sqlx::migrate!("./migrations")
            .run(&pool)
            .await
            .map_err(|source| CatalogError::Migrate { source })?;
        Ok(Self {
            pool,
            path: path.to_owned(),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Created as root, the file belongs to whom its folder belongs, so that the daemon can use it. SQLite
/// itself gives its side files the owner of the main one.
fn take_owner_of_folder(path: &Path) -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let owner = std::fs::metadata(folder)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = PathBuf::from(name);
        if file.exists() {
            std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

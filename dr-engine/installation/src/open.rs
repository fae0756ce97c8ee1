//! Opening what a configuration names, each thing once and only when asked for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dr_catalog::Catalog;
use dr_config::{Config, ObjectLockMode, RepositoryConfig, Workload};
use dr_model::{Clock, RepositoryName, SystemClock, WorkloadName};
use dr_store::{
    Backend, Bandwidth, Capabilities, CopyPlace, LimitedBackend, LocalBackend, LockMode,
    Repository, S3Backend, S3Location, StoreError,
};

use crate::{InstallationError, key};

/// A configuration with what it names opened on demand. Cheap to clone.
#[derive(Clone)]
pub struct Installation {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// The clock everything in it uses.
    pub clock: Arc<dyn Clock>,
    places: Arc<Mutex<BTreeMap<RepositoryName, Repository>>>,
    /// By the first one and its copies.
    repositories: Arc<Mutex<BTreeMap<Vec<RepositoryName>, Repository>>>,
    catalog: Arc<tokio::sync::OnceCell<Catalog>>,
}

impl std::fmt::Debug for Installation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installation")
            .field("config", &self.config.path)
            .finish_non_exhaustive()
    }
}

pub(crate) fn backend(
    name: &RepositoryName,
    config: &RepositoryConfig,
) -> Result<Arc<dyn Backend>, InstallationError> {
    if let Some(path) = &config.path {
        return Ok(Arc::new(LocalBackend::new(path)));
    }
    let s3 = config.s3.as_ref().ok_or_else(|| InstallationError::File {
        action: "find a place for repository",
        path: name.as_str().into(),
        source: std::io::ErrorKind::InvalidInput.into(),
    })?;
    let location = S3Location {
        bucket: s3.bucket.clone(),
        prefix: s3.prefix.clone(),
        region: s3.region.clone(),
        endpoint: s3.endpoint.clone(),
        path_style: s3.path_style,
        storage_class: s3.storage_class.clone(),
        lock_mode: match s3.object_lock {
            Some(ObjectLockMode::Compliance) => LockMode::Compliance,
            Some(ObjectLockMode::Governance) | None => LockMode::Governance,
        },
        ..S3Location::default()
    };
    let backend = S3Backend::connect(&location).map_err(|cause| InstallationError::Repository {
        repository: name.clone(),
        place: format!("s3://{}/{}", s3.bucket, s3.prefix),
        source: cause.into(),
    })?;
    let Some(limit) = s3.bandwidth else {
        return Ok(Arc::new(backend));
    };
    let bandwidth = Bandwidth {
        write: limit.write.map(|rate| rate.bytes_per_second),
        read: limit.read.map(|rate| rate.bytes_per_second),
    };
    Ok(Arc::new(LimitedBackend::new(Arc::new(backend), bandwidth)))
}

/// Refuses a store that ignores the locks which the configuration asks for: what it kept would look
/// protected and would not be.
pub(crate) fn check_locks(
    name: &RepositoryName,
    config: &RepositoryConfig,
    place: &str,
    capabilities: Capabilities,
) -> Result<(), InstallationError> {
    let asked = config.s3.as_ref().and_then(|s3| s3.object_lock).is_some();
    if asked && !capabilities.object_lock {
        return Err(InstallationError::NoObjectLock {
            repository: name.clone(),
            place: place.to_owned(),
        });
    }
    Ok(())
}

pub(crate) fn open_repository(
    name: &RepositoryName,
    config: &RepositoryConfig,
) -> Result<Repository, InstallationError> {
    let backend = backend(name, config)?;
    let place = backend.describe();
    let key = key::read(name, &config.key, &place)?;
    let opened =
        Repository::open(backend, &key).map_err(|source| InstallationError::Repository {
            repository: name.clone(),
            place: place.clone(),
            source,
        })?;
    check_locks(name, config, &place, opened.capabilities())?;
    Ok(opened)
}

fn described(config: &RepositoryConfig) -> String {
    match (&config.path, &config.s3) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(s3)) => format!("s3://{}/{}", s3.bucket, s3.prefix),
        (None, None) => "nowhere".to_owned(),
    }
}

/// Whether the place itself fails, as against a key or a configuration that is wrong.
fn is_away(error: &InstallationError) -> bool {
    let InstallationError::Repository { source, .. } = error else {
        return false;
    };
    matches!(
        source,
        StoreError::Backend { .. }
            | StoreError::Missing { .. }
            | StoreError::Damaged { .. }
            | StoreError::ObjectMissing { .. }
    )
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl Installation {
    /// Reads the configuration; opens nothing yet.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn open(config_path: &Path) -> Result<Self, InstallationError> {
        Ok(Self::of(Config::load(config_path)?, Arc::new(SystemClock)))
    }

    /// An installation of a configuration that is already at hand.
    #[must_use]
    pub fn of(config: Config, clock: Arc<dyn Clock>) -> Self {
        Self {
            config: Arc::new(config),
            clock,
            places: Arc::default(),
            repositories: Arc::default(),
            catalog: Arc::default(),
        }
    }

    /// The place of this name by itself, without its copies, opened on first use. Blocks.
    ///
    /// # Errors
    /// When the configuration does not name it, its key is missing or wrong, or it is not there.
    pub fn place(&self, name: &RepositoryName) -> Result<Repository, InstallationError> {
        let known = || self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repository) = known().get(name) {
            return Ok(repository.clone());
        }
        // Not locked meanwhile: a place that does not answer must not hold up the others.
        let repository = open_repository(name, self.config.repository(name)?)?;
        known().insert(name.clone(), repository.clone());
        Ok(repository)
    }

    /// The repository of this name with its copies, opened on first use. Where it does not answer and a
    /// copy does, that copy, which can then only be read. Blocks.
    ///
    /// # Errors
    /// As [`Installation::place`].
    pub fn repository(&self, name: &RepositoryName) -> Result<Repository, InstallationError> {
        self.family(name, &self.config.engine.copies_of(name))
    }

    fn family(
        &self,
        first: &RepositoryName,
        copies: &[RepositoryName],
    ) -> Result<Repository, InstallationError> {
        let mut key = vec![first.clone()];
        key.extend_from_slice(copies);
        let known = || {
            self.repositories
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(repository) = known().get(&key) {
            return Ok(repository.clone());
        }
        let repository = match self.place(first) {
            Ok(place) if copies.is_empty() => place,
            Ok(place) => place.with_copies(self.copy_places(copies)?),
            // Not kept: the first place is asked again the next time.
            Err(error) if is_away(&error) => return self.stand_in(first, copies, error),
            Err(error) => return Err(error),
        };
        known().insert(key, repository.clone());
        Ok(repository)
    }

    /// The first copy that opens, to be read only.
    fn stand_in(
        &self,
        first: &RepositoryName,
        copies: &[RepositoryName],
        error: InstallationError,
    ) -> Result<Repository, InstallationError> {
        for name in copies {
            match self.place(name) {
                Ok(place) => {
                    tracing::warn!(
                        first = first.as_str(),
                        copy = name.as_str(),
                        error = chain(&error),
                        "the repository does not answer; its copy is read"
                    );
                    let others: Vec<RepositoryName> = copies
                        .iter()
                        .filter(|other| *other != name)
                        .cloned()
                        .collect();
                    return Ok(place.standing_in_for(first.as_str(), self.copy_places(&others)?));
                }
                Err(error) => {
                    tracing::warn!(
                        copy = name.as_str(),
                        error = chain(&error),
                        "a copy does not answer"
                    );
                }
            }
        }
        Err(error)
    }

    fn copy_places(&self, copies: &[RepositoryName]) -> Result<Vec<CopyPlace>, InstallationError> {
        let place = |name: &RepositoryName| {
            let config = self.config.repository(name)?;
            let (this, wanted) = (self.clone(), name.clone());
            Ok(CopyPlace {
                name: name.to_string(),
                place: described(config),
                open: Arc::new(move || Ok(this.place(&wanted)?)),
            })
        };
        copies.iter().map(place).collect()
    }

    /// The name of the repository that a workload's data goes to.
    ///
    /// # Errors
    /// When the configuration names no such workload or no repository for it.
    pub fn repository_name_of(
        &self,
        workload: &WorkloadName,
    ) -> Result<RepositoryName, InstallationError> {
        self.repository_names_of(workload)?
            .first()
            .cloned()
            .ok_or_else(|| InstallationError::NoRepository(workload.clone()))
    }

    fn repository_names_of(
        &self,
        workload: &WorkloadName,
    ) -> Result<&[RepositoryName], InstallationError> {
        // From the engine file: what pushes and fetches WAL has read no tiers.
        let config = match self.config.engine.workloads.get(workload) {
            Some(config) => config,
            None => self.config.workload(workload.as_str())?.config,
        };
        Ok(&config.repositories)
    }

    /// The repository that a workload's data goes to. Blocks.
    ///
    /// # Errors
    /// As [`Installation::repository`].
    pub fn repository_of(&self, workload: &WorkloadName) -> Result<Repository, InstallationError> {
        match self.repository_names_of(workload)?.split_first() {
            Some((first, copies)) => self.family(first, copies),
            None => Err(InstallationError::NoRepository(workload.clone())),
        }
    }

    /// [`Installation::repository_of`] for asynchronous callers.
    ///
    /// # Errors
    /// As [`Installation::repository`].
    pub async fn open_repository_of(
        &self,
        workload: &WorkloadName,
    ) -> Result<Repository, InstallationError> {
        let (this, workload) = (self.clone(), workload.clone());
        tokio::task::spawn_blocking(move || this.repository_of(&workload))
            .await
            .map_err(|_| InstallationError::Worker {
                action: "open a repository",
            })?
    }

    /// Every repository that the configuration names and that is no copy of another, by name, with its
    /// copies. Blocks.
    ///
    /// # Errors
    /// As [`Installation::repository`].
    pub fn all_repositories(&self) -> Result<Vec<(RepositoryName, Repository)>, InstallationError> {
        self.config
            .engine
            .first_repositories()
            .map(|name| Ok((name.clone(), self.repository(name)?)))
            .collect()
    }

    /// The catalog, opened on first use; never created here.
    ///
    /// # Errors
    /// When it is missing, locked or damaged.
    pub async fn catalog(&self) -> Result<Catalog, InstallationError> {
        let url = &self.config.engine.catalog;
        self.catalog
            .get_or_try_init(|| Catalog::open(url))
            .await
            .cloned()
            .map_err(|source| InstallationError::Catalog {
                action: "open",
                url: url.clone(),
                source,
            })
    }

    /// How to connect to a workload's database: its URL and, where configured, the password.
    ///
    /// # Errors
    /// When the password's source cannot be read.
    pub fn postgres_password(
        &self,
        workload: &Workload<'_>,
    ) -> Result<Option<String>, InstallationError> {
        match workload.source {
            dr_config::WorkloadSource::Postgres(source) => key::password(workload.name, source),
            _ => Ok(None),
        }
    }
}

/// Opens the least that pushing or fetching WAL needs: the engine file without tiers, and nothing of
/// the catalog.
///
/// # Errors
/// What is wrong with the engine file.
pub fn open_for_wal(config_path: &Path) -> Result<Installation, InstallationError> {
    Ok(Installation::of(
        Config::load_engine_only(config_path)?,
        Arc::new(SystemClock),
    ))
}

#[cfg(test)]
mod tests {
    use dr_config::{KeySource, S3Config};

    use super::*;

    fn bucket(object_lock: Option<ObjectLockMode>) -> RepositoryConfig {
        RepositoryConfig {
            path: None,
            s3: Some(S3Config {
                bucket: "acme-dr".to_owned(),
                region: "us-east-1".to_owned(),
                object_lock,
                ..S3Config::default()
            }),
            retrieval: None,
            key: KeySource {
                file: Some("repository.key".into()),
                ..KeySource::default()
            },
        }
    }

    #[test]
    fn a_store_that_ignores_the_locks_asked_for_is_refused() {
        let name: RepositoryName = "main".parse().unwrap();
        let ignores = Capabilities::default();
        let honours = Capabilities {
            object_lock: true,
            ..ignores
        };
        let check = |config: &RepositoryConfig, capabilities| {
            check_locks(&name, config, "s3://acme-dr", capabilities)
        };
        let asks = bucket(Some(ObjectLockMode::Compliance));
        let error = check(&asks, ignores).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("asks for object_lock, which s3://acme-dr ignores")
        );
        assert!(error.hint().unwrap().contains("made with Object Lock"));
        check(&asks, honours).unwrap();
        check(&bucket(None), ignores).unwrap();
    }
}

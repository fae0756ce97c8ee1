//! `dr init --adopt`: a new host, where only the repository and its key are left.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dr_config::{Config, KeySource, RepositoryConfig, S3Config};
use dr_model::{RepositoryName, SystemClock};
use dr_store::Repository;

use crate::init::InitOutcome;
use crate::snapshot::newest_snapshot;
use crate::{Installation, InstallationError, create_folder, key, open, write_new_file};

/// Where the repository is.
#[derive(Debug, Clone)]
pub enum AdoptSource {
    /// A local folder.
    Path(PathBuf),
    /// A bucket.
    S3(S3Config),
}

/// What to adopt, and where its configuration goes.
#[derive(Debug, Clone)]
pub struct AdoptRequest {
    /// The repository.
    pub source: AdoptSource,
    /// Where its key is, with absolute paths.
    pub key: KeySource,
    /// The engine file to write; it must not exist.
    pub config: PathBuf,
}

/// Writes the configuration stored in the repository beside a new catalog filled from it. The
/// repository's place and key are the given ones; the catalog and the tiers lie beside the engine
/// file; sources stay as they were on the old host, to be edited where they differ.
///
/// # Errors
/// When the engine file exists, the key does not open the repository, or it holds no configuration.
pub async fn adopt(request: &AdoptRequest) -> Result<InitOutcome, InstallationError> {
    if request.config.exists() {
        return Err(InstallationError::Exists {
            path: request.config.clone(),
        });
    }
    let request_for_thread = request.clone();
    let mut outcome =
        tokio::task::spawn_blocking(move || write_adopted_configuration(&request_for_thread))
            .await
            .map_err(|_| InstallationError::Worker {
                action: "read the repository",
            })??;
    let installation = Installation::of(Config::load(&request.config)?, Arc::new(SystemClock));
    let report = installation.rebuild_catalog().await?;
    outcome.created.push(format!(
        "catalog {}, filled with {} restore points",
        installation.config.engine.catalog, report.restore_points
    ));
    Ok(outcome)
}

fn file_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> InstallationError {
    let path = path.to_owned();
    move |source| InstallationError::File {
        action,
        path,
        source,
    }
}

fn absolute(path: &Path) -> Result<PathBuf, InstallationError> {
    std::path::absolute(path).map_err(file_error("resolve", path))
}

fn write_adopted_configuration(request: &AdoptRequest) -> Result<InitOutcome, InstallationError> {
    let key = request.key.clone();
    let place = match &request.source {
        AdoptSource::Path(path) => RepositoryConfig {
            path: Some(absolute(path)?),
            s3: None,
            retrieval: None,
            key,
        },
        AdoptSource::S3(s3) => RepositoryConfig {
            path: None,
            s3: Some(s3.clone()),
            retrieval: None,
            key,
        },
    };
    let name: RepositoryName = "main".parse().map_err(|_| InstallationError::Worker {
        action: "name the repository",
    })?;
    let backend = open::backend(&name, &place)?;
    let described = backend.describe();
    let repository_key = key::read(&name, &place.key, &described)?;
    let repository = Repository::open(backend, &repository_key).map_err(|source| {
        InstallationError::Repository {
            repository: name.clone(),
            place: described.clone(),
            source,
        }
    })?;
    let mut snapshot = newest_snapshot(&repository)?.ok_or(InstallationError::NothingToAdopt {
        place: described.clone(),
    })?;

    let config = absolute(&request.config)?;
    let folder = config.parent().unwrap_or(Path::new("/")).to_owned();
    let tiers = folder.join("tier-configs");
    create_folder(&tiers).map_err(file_error("create", &tiers))?;
    // All repositories of the old host become the given one: it is the only one known to be here.
    let names: Vec<RepositoryName> = snapshot.engine.repositories.keys().cloned().collect();
    for old in names {
        snapshot.engine.repositories.insert(old, place.clone());
    }
    snapshot.engine.catalog = format!("sqlite:{}", folder.join("catalog.db").display());
    snapshot.engine.tiers = tiers.clone();

    let mut outcome = InitOutcome {
        config: config.clone(),
        ..InitOutcome::default()
    };
    let yaml = |what: &str, text: Result<String, String>| {
        text.map_err(|detail| InstallationError::BadSnapshot {
            place: described.clone(),
            detail: format!("{what}: {detail}"),
        })
    };
    for (name, tier) in &snapshot.tiers {
        let path = tiers.join(format!("{name}.yaml"));
        let text = yaml("tier", dr_config::to_yaml(tier))?;
        write_new_file(&path, text.as_bytes(), 0o644).map_err(file_error("write", &path))?;
        outcome.created.push(format!("tier {}", path.display()));
    }
    let text = yaml("engine file", dr_config::to_yaml(&snapshot.engine))?;
    // The engine file is last: with it, the adoption counts as done.
    write_new_file(&config, text.as_bytes(), 0o644).map_err(file_error("write", &config))?;
    outcome
        .created
        .push(format!("configuration {}", config.display()));
    Ok(outcome)
}

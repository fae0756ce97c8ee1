//! `dr init`: creates what the configuration names and lacks, and the configuration itself if there is
//! none.

use std::path::{Path, PathBuf};

use dr_catalog::Catalog;
use dr_config::{Config, RepositoryConfig};
use dr_model::RepositoryName;
use dr_store::{Repository, StoreError};

use crate::{Installation, InstallationError, create_folder, key, open, write_new_file};

/// What to initialise.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// The engine file, existing or not.
    pub config: PathBuf,
    /// For a new engine file: the folder of its repository; `repository` beside it when left out.
    pub repository: Option<PathBuf>,
    /// For a new engine file: the YAML of its `workloads:` section, if any is known yet.
    pub workloads: Option<String>,
}

/// What was done, in order.
#[derive(Debug, Clone, Default)]
pub struct InitOutcome {
    /// The engine file.
    pub config: PathBuf,
    /// Lines that say what was created.
    pub created: Vec<String>,
    /// What the buckets of new repositories were seen to do, a sentence each.
    pub seen: Vec<String>,
    /// Key files that were created: the thing to keep elsewhere.
    pub keys: Vec<PathBuf>,
}

const ENGINE_TEMPLATE: &str = include_str!("engine-template.yaml");
const TIERS: [(&str, &str); 3] = [
    ("gold.yaml", include_str!("../../../tier-configs/gold.yaml")),
    (
        "silver.yaml",
        include_str!("../../../tier-configs/silver.yaml"),
    ),
    (
        "bronze.yaml",
        include_str!("../../../tier-configs/bronze.yaml"),
    ),
];
const EXAMPLE_WORKLOADS: &str = include_str!("example-workloads.yaml");

/// Initialises. Running it again finishes what a crash left and otherwise changes nothing.
///
/// # Errors
/// When a folder is foreign, a key does not open its repository, or something cannot be written.
/// Nothing that existed is changed.
pub async fn init(request: &InitRequest) -> Result<InitOutcome, InstallationError> {
    let mut outcome = InitOutcome {
        config: request.config.clone(),
        ..InitOutcome::default()
    };
    if !request.config.exists() {
        write_configuration(request, &mut outcome)?;
    }
    let config = Config::load(&request.config)?;
    let engine = config.engine.clone();
    outcome = tokio::task::spawn_blocking(move || {
        for first in engine.first_repositories() {
            let Some(place) = engine.repositories.get(first) else {
                continue;
            };
            let repository = create_repository(first, place, None, &mut outcome)?;
            for name in engine.copies_of(first) {
                if let Some(place) = engine.repositories.get(&name) {
                    create_repository(&name, place, Some(&repository), &mut outcome)?;
                }
            }
        }
        Ok::<_, InstallationError>(outcome)
    })
    .await
    .map_err(|_| InstallationError::Worker {
        action: "create the repositories",
    })??;
    create_catalog(config, &mut outcome).await?;
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

fn write_configuration(
    request: &InitRequest,
    outcome: &mut InitOutcome,
) -> Result<(), InstallationError> {
    let folder = match request.config.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let tiers = folder.join("tier-configs");
    create_folder(&tiers).map_err(file_error("create", &tiers))?;
    for (name, text) in TIERS {
        let path = tiers.join(name);
        if !path.exists() {
            write_new_file(&path, text.as_bytes(), 0o644).map_err(file_error("write", &path))?;
            outcome.created.push(format!("tier {}", path.display()));
        }
    }
    let repository = request.repository.as_ref().map_or_else(
        || "repository".to_owned(),
        |path| path.display().to_string(),
    );
    // JSON strings are YAML strings, whatever is in the path.
    let repository = serde_json::Value::String(repository).to_string();
    let workloads = request.workloads.as_deref().unwrap_or(EXAMPLE_WORKLOADS);
    let text = ENGINE_TEMPLATE
        .replace("@REPOSITORY@", &repository)
        .replace("@WORKLOADS@", workloads);
    write_new_file(&request.config, text.as_bytes(), 0o644)
        .map_err(file_error("write", &request.config))?;
    outcome
        .created
        .push(format!("configuration {}", request.config.display()));
    Ok(())
}

/// Creates a repository's key if there is none, then the repository if there is none; as a copy of
/// `first` where that is given. A place that holds another repository is refused.
fn create_repository(
    name: &RepositoryName,
    config: &RepositoryConfig,
    first: Option<&Repository>,
    outcome: &mut InitOutcome,
) -> Result<Repository, InstallationError> {
    let backend = open::backend(name, config)?;
    let place = backend.describe();
    let failed = |source: StoreError| InstallationError::Repository {
        repository: name.clone(),
        place: place.clone(),
        source,
    };
    // A key made beside an existing repository could open nothing and would look as if it did.
    if let Some(file) = &config.key.file
        && !file.exists()
        && !Repository::exists(backend.as_ref()).map_err(failed)?
    {
        if let Some(parent) = file.parent() {
            create_folder(parent).map_err(file_error("create", parent))?;
        }
        key::write_new_key(file).map_err(file_error("write", file))?;
        outcome.created.push(format!("key {}", file.display()));
        outcome.keys.push(file.clone());
    }
    let key = key::read(name, &config.key, &place)?;
    if Repository::exists(backend.as_ref()).map_err(failed)? {
        let opened = Repository::open(backend, &key).map_err(failed)?;
        return match first {
            Some(first) if !opened.is_copy_of(first) => Err(failed(StoreError::OtherRepository {
                place: place.clone(),
            })),
            _ => Ok(opened),
        };
    }
    if let Some(path) = &config.path {
        create_folder(path).map_err(file_error("create", path))?;
    }
    if config
        .s3
        .as_ref()
        .is_some_and(|s3| s3.object_lock.is_some())
    {
        // Before anything is stored: a repository that was made could not be moved to another bucket.
        let capabilities = backend.prepare().map_err(|error| failed(error.into()))?;
        open::check_locks(name, config, &place, capabilities)?;
    }
    let (created, what) = match first {
        None => (Repository::create(backend, &key), "repository"),
        Some(first) => (first.create_copy(backend, &key), "copy"),
    };
    let created = created.map_err(failed)?;
    outcome.created.push(format!("{what} `{name}` at {place}"));
    if config.s3.is_some() {
        let sentences = created.capabilities().sentences();
        let lines = sentences.iter().map(|line| format!("`{name}`: {line}"));
        outcome.seen.extend(lines);
    }
    Ok(created)
}

async fn create_catalog(
    config: Config,
    outcome: &mut InitOutcome,
) -> Result<(), InstallationError> {
    let url = config.engine.catalog.clone();
    let failed = |action| {
        let url = url.clone();
        move |source| InstallationError::Catalog {
            action,
            url,
            source,
        }
    };
    if Catalog::exists(&url) {
        Catalog::open(&url).await.map_err(failed("open"))?;
        return Ok(());
    }
    if let Some(path) = url.strip_prefix("sqlite:")
        && let Some(parent) = Path::new(path).parent()
    {
        create_folder(parent).map_err(file_error("create", parent))?;
    }
    let installation = Installation::of(config, std::sync::Arc::new(dr_model::SystemClock));
    let report = installation.rebuild_catalog().await?;
    outcome.created.push(match report.restore_points {
        0 => format!("catalog {url}"),
        points => format!("catalog {url}, filled with {points} restore points"),
    });
    Ok(())
}

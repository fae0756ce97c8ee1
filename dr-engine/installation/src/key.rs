//! Finding a repository's key and a database's password: from a file or the environment.

use std::io;
use std::path::Path;

use dr_config::{KeySource, PostgresSource};
use dr_model::{RepositoryName, WorkloadName};
use dr_store::RepositoryKey;

use crate::{InstallationError, write_new_file};

/// Where a key is, for messages. Never the key.
pub(crate) fn place(source: &KeySource) -> String {
    match (&source.file, &source.env) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(variable)) => format!("the environment variable {variable}"),
        (None, None) => "nowhere".to_owned(),
    }
}

fn variable(name: &str) -> io::Result<String> {
    std::env::var(name)
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, format!("{name}: {error}")))
}

fn text(file: Option<&Path>, env: Option<&str>) -> io::Result<Option<String>> {
    match (file, env) {
        (Some(file), _) => std::fs::read_to_string(file).map(Some),
        (None, Some(name)) => variable(name).map(Some),
        (None, None) => Ok(None),
    }
}

pub(crate) fn read(
    repository: &RepositoryName,
    source: &KeySource,
    repository_place: &str,
) -> Result<RepositoryKey, InstallationError> {
    let missing = |cause| InstallationError::KeyMissing {
        repository: repository.clone(),
        place: place(source),
        source: cause,
    };
    let text = text(source.file.as_deref(), source.env.as_deref())
        .map_err(missing)?
        .ok_or_else(|| missing(io::ErrorKind::NotFound.into()))?;
    RepositoryKey::parse(&text).map_err(|cause| InstallationError::Repository {
        repository: repository.clone(),
        place: repository_place.to_owned(),
        source: cause,
    })
}

/// Makes a new key file; an existing one is never touched.
pub(crate) fn write_new(file: &Path) -> io::Result<()> {
    let text = RepositoryKey::generate()
        .to_text()
        .ok_or_else(|| io::Error::other("a new key has no text"))?;
    write_new_file(file, text.as_bytes(), 0o600)
}

/// The password of a database connection, if the configuration names a source for one.
pub(crate) fn password(
    workload: &WorkloadName,
    source: &PostgresSource,
) -> Result<Option<String>, InstallationError> {
    text(
        source.password_file.as_deref(),
        source.password_env.as_deref(),
    )
    .map(|text| text.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()))
    .map_err(|cause| InstallationError::Password {
        workload: workload.clone(),
        place: source.password_file.as_ref().map_or_else(
            || format!("{:?}", source.password_env.as_deref().unwrap_or_default()),
            |file| file.display().to_string(),
        ),
        source: cause,
    })
}

//! Finding a repository's key and a database's password: from a file, the environment, a command.

use std::io;
use std::path::{Path, PathBuf};

use dr_config::{ChosenKey, KeyCommandSource, KeySource, PostgresSource, SecretSource};
use dr_model::{RepositoryName, WorkloadName};
use dr_store::{KeyCommand, RepositoryKey, StoreError};
use zeroize::Zeroizing;

use crate::{InstallationError, write_new_file};

/// Where a key is, for messages. Never the key, and of a command only the program.
#[must_use]
pub fn key_place(source: &KeySource) -> String {
    let variable = |name: &str| format!("the environment variable {name}");
    match source.named().next() {
        Some(
            ChosenKey::File(path) | ChosenKey::PassphraseFile(path) | ChosenKey::AgeIdentity(path),
        ) => path.display().to_string(),
        Some(ChosenKey::Env(name) | ChosenKey::PassphraseEnv(name)) => variable(name),
        Some(ChosenKey::Command(command)) => {
            let program = command.unwrap.first().map_or("?", String::as_str);
            format!("the command {program}")
        }
        None => "nowhere".to_owned(),
    }
}

fn variable(name: &str) -> io::Result<Zeroizing<String>> {
    std::env::var(name)
        .map(Zeroizing::new)
        // Not the error itself: of a value that is no text it shows the value.
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{name} is not set to a text"),
            )
        })
}

fn file(path: &Path) -> io::Result<Zeroizing<String>> {
    std::fs::read_to_string(path).map(Zeroizing::new)
}

/// A secret that a configuration names, without the end of its line.
///
/// # Errors
/// Where it was looked for, and why it is not there; never the secret.
pub fn secret(source: &SecretSource) -> io::Result<Zeroizing<String>> {
    let text = match source {
        SecretSource::Env(name) => variable(name)?,
        SecretSource::File(path) => file(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?,
    };
    let text = text.trim_end_matches(['\r', '\n']);
    Ok(Zeroizing::new(text.to_owned()))
}

fn command(source: &KeyCommandSource) -> KeyCommand {
    KeyCommand {
        wrap: source.wrap.clone(),
        unwrap: source.unwrap.clone(),
    }
}

/// Why a key could not be had.
#[derive(Debug)]
enum NoKey {
    /// Its source cannot be read.
    Source(io::Error),
    /// What was read is none.
    Text(StoreError),
}

fn obtain(source: &KeySource) -> Result<RepositoryKey, NoKey> {
    let read = |text: io::Result<Zeroizing<String>>| text.map_err(NoKey::Source);
    let chosen = source
        .named()
        .next()
        .ok_or_else(|| NoKey::Source(io::ErrorKind::NotFound.into()))?;
    let key = match chosen {
        ChosenKey::File(path) => RepositoryKey::parse(&read(file(path))?),
        ChosenKey::Env(name) => RepositoryKey::parse(&read(variable(name))?),
        ChosenKey::PassphraseFile(path) => RepositoryKey::passphrase(&read(file(path))?),
        ChosenKey::PassphraseEnv(name) => RepositoryKey::passphrase(&read(variable(name))?),
        ChosenKey::AgeIdentity(path) => RepositoryKey::age_identity(&read(file(path))?),
        ChosenKey::Command(source) => Ok(RepositoryKey::command(command(source))),
    };
    key.map_err(NoKey::Text)
}

pub(crate) fn read(
    repository: &RepositoryName,
    source: &KeySource,
    repository_place: &str,
) -> Result<RepositoryKey, InstallationError> {
    obtain(source).map_err(|error| match error {
        NoKey::Source(cause) => InstallationError::KeyMissing {
            repository: repository.clone(),
            place: key_place(source),
            source: cause,
        },
        NoKey::Text(cause) => InstallationError::Repository {
            repository: repository.clone(),
            place: repository_place.to_owned(),
            source: cause,
        },
    })
}

/// A key that the command line names, for a new slot.
///
/// # Errors
/// When its source cannot be read, or holds no key.
pub fn key_of(source: &KeySource) -> Result<RepositoryKey, InstallationError> {
    obtain(source).map_err(|error| match error {
        NoKey::Source(cause) => InstallationError::File {
            action: "read the key in",
            path: PathBuf::from(key_place(source)),
            source: cause,
        },
        NoKey::Text(cause) => InstallationError::Store {
            action: "use the key for a slot",
            place: key_place(source),
            source: cause,
        },
    })
}

/// Makes a new key file; an existing one is never touched.
///
/// # Errors
/// When it exists or cannot be written.
pub fn write_new_key(path: &Path) -> io::Result<()> {
    let text = RepositoryKey::generate()
        .to_text()
        .ok_or_else(|| io::Error::other("a new key has no text"))?;
    write_new_file(path, text.as_bytes(), 0o600)
}

/// The password of a database connection, if the configuration names a source for one.
pub(crate) fn password(
    workload: &WorkloadName,
    source: &PostgresSource,
) -> Result<Option<String>, InstallationError> {
    let text = match (&source.password_file, &source.password_env) {
        (Some(path), _) => file(path).map(Some),
        (None, Some(name)) => variable(name).map(Some),
        (None, None) => Ok(None),
    };
    text.map(|text| text.map(|text| text.trim_end_matches(['\r', '\n']).to_owned()))
        .map_err(|cause| InstallationError::Password {
            workload: workload.clone(),
            place: source.password_file.as_ref().map_or_else(
                || format!("{:?}", source.password_env.as_deref().unwrap_or_default()),
                |file| file.display().to_string(),
            ),
            source: cause,
        })
}

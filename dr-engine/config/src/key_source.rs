//! Where a repository's key is found. The key itself never stands in a configuration.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where a key is found: exactly one of its fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySource {
    /// A key file (mode 0600).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// An environment variable that holds the key file's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// A file that holds a passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase_file: Option<PathBuf>,
    /// An environment variable that holds a passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase_env: Option<String>,
    /// An age identity file (`AGE-SECRET-KEY-1…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_identity: Option<PathBuf>,
    /// Programs that wrap and unwrap the secret of a key slot: any key service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<KeyCommandSource>,
}

/// Two programs with their arguments; no shell is involved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyCommandSource {
    /// Given a secret on standard input, prints it wrapped. Used when a slot is made.
    pub wrap: Vec<String>,
    /// Given what `wrap` printed on standard input, prints the secret. Used at every opening.
    pub unwrap: Vec<String>,
}

/// The one source that a [`KeySource`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChosenKey<'a> {
    /// A key file.
    File(&'a Path),
    /// A variable with a key file's text.
    Env(&'a str),
    /// A file with a passphrase.
    PassphraseFile(&'a Path),
    /// A variable with a passphrase.
    PassphraseEnv(&'a str),
    /// An age identity file.
    AgeIdentity(&'a Path),
    /// An outside command.
    Command(&'a KeyCommandSource),
}

impl KeySource {
    /// A key file.
    #[must_use]
    pub fn of_file(path: PathBuf) -> Self {
        Self {
            file: Some(path),
            ..Self::default()
        }
    }

    /// All sources that are named; a validated configuration names exactly one.
    pub fn named(&self) -> impl Iterator<Item = ChosenKey<'_>> {
        [
            self.file.as_deref().map(ChosenKey::File),
            self.env.as_deref().map(ChosenKey::Env),
            self.passphrase_file
                .as_deref()
                .map(ChosenKey::PassphraseFile),
            self.passphrase_env.as_deref().map(ChosenKey::PassphraseEnv),
            self.age_identity.as_deref().map(ChosenKey::AgeIdentity),
            self.command.as_ref().map(ChosenKey::Command),
        ]
        .into_iter()
        .flatten()
    }

    /// What is wrong with it as it stands, and what to try.
    pub(crate) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        const CHOICE: &str = "exactly one of `file`, `env`, `passphrase_file`, `passphrase_env`, \
                              `age_identity` and `command`";
        match self.named().count() {
            1 => {}
            0 => return Some(("names no source", CHOICE)),
            _ => return Some(("names several sources", CHOICE)),
        }
        let command = self.command.as_ref()?;
        let names_no_program = |argv: &[String]| argv.first().is_none_or(String::is_empty);
        (names_no_program(&command.wrap) || names_no_program(&command.unwrap)).then_some((
            "has a `command` without a program",
            "write `command: { wrap: [PROGRAM, ARGUMENT…], unwrap: [PROGRAM, ARGUMENT…] }`",
        ))
    }

    /// Makes paths absolute; a program without `/` in it is looked for in PATH.
    pub(crate) fn make_absolute(&mut self, absolute: impl Fn(&mut PathBuf)) {
        self.file.iter_mut().for_each(&absolute);
        self.passphrase_file.iter_mut().for_each(&absolute);
        self.age_identity.iter_mut().for_each(&absolute);
        let Some(command) = &mut self.command else {
            return;
        };
        for argv in [&mut command.wrap, &mut command.unwrap] {
            if let Some(program) = argv.first_mut()
                && program.contains('/')
            {
                let mut path = PathBuf::from(&*program);
                absolute(&mut path);
                *program = path.to_string_lossy().into_owned();
            }
        }
    }
}

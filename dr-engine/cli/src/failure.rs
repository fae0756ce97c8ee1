//! How an error reaches a person: what failed, why, what to try, and an exit code.

use std::error::Error;

/// 1: it failed.
pub(crate) const FAILED: u8 = 1;
/// 2: the command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 2;
/// 3: done, but an objective was missed.
pub(crate) const MISSED: u8 = 3;

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// The error and its causes, outermost first.
    pub(crate) chain: Vec<String>,
    pub(crate) hint: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl Error for Failure {}

impl Failure {
    /// A failure with causes.
    pub(crate) fn of(what: &str, error: &dyn Error) -> Self {
        let mut failure = Self::from_chain(error, None, FAILED);
        failure.chain.insert(0, what.to_owned());
        failure
    }

    /// A failure without causes.
    pub(crate) fn plain(code: u8, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            code,
            chain: vec![message.into()],
            hint: hint.map(str::to_owned),
        }
    }

    fn from_chain(error: &dyn Error, hint: Option<String>, code: u8) -> Self {
        let mut chain = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // A transparent error repeats its cause's words.
            if chain.last() != Some(&text) {
                chain.push(text);
            }
            cause = error.source();
        }
        Self { code, chain, hint }
    }
}

macro_rules! failure_from {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let hint = error.hint();
                Self::from_chain(&error, hint.map(Into::into), FAILED)
            }
        }
    )*};
}

failure_from!(
    dr_backup::BackupError,
    dr_restore::RestoreError,
    dr_store::StoreError,
    dr_sources::SourceError,
    dr_catalog::CatalogError,
    dr_runbook::RunbookError,
    dr_drill::DrillError,
    dr_server::ServerError,
    dr_demo::DemoError,
    dr_demo::StoryError,
);

impl From<dr_tenant::TenantError> for Failure {
    fn from(error: dr_tenant::TenantError) -> Self {
        let (hint, code) = (error.hint(), if error.is_usage() { USAGE } else { FAILED });
        Self::from_chain(&error, hint, code)
    }
}

impl From<dr_config::ConfigError> for Failure {
    fn from(error: dr_config::ConfigError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self::from_chain(&error, hint, USAGE)
    }
}

impl From<dr_installation::InstallationError> for Failure {
    fn from(error: dr_installation::InstallationError) -> Self {
        let hint = error.hint();
        let code = if error.is_usage() { USAGE } else { FAILED };
        Self::from_chain(&error, hint, code)
    }
}

impl From<dr_model::InvalidName> for Failure {
    fn from(error: dr_model::InvalidName) -> Self {
        Self::plain(USAGE, error.to_string(), None)
    }
}

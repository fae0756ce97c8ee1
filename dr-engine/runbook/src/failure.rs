//! Why a step failed, in words: it goes into the journal, not up the stack.

use std::error::Error;

/// A step's failure with all its causes and what to try, as text.
#[derive(Debug)]
pub(crate) struct StepFailure(pub(crate) String);

impl StepFailure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn of(error: impl Error) -> Self {
        Self::chain(&error, None)
    }

    fn chain(error: &dyn Error, hint: Option<String>) -> Self {
        let mut text = error.to_string();
        let mut last = text.clone();
        let mut cause = error.source();
        while let Some(error) = cause {
            let words = error.to_string();
            // A transparent error repeats its cause's words.
            if words != last {
                text.push_str(": ");
                text.push_str(&words);
                last = words;
            }
            cause = error.source();
        }
        if let Some(hint) = hint {
            text.push_str(" (hint: ");
            text.push_str(&hint);
            text.push(')');
        }
        Self(text)
    }
}

macro_rules! failure_from {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for StepFailure {
            fn from(error: $error) -> Self {
                let hint = error.hint().map(Into::into);
                Self::chain(&error, hint)
            }
        }
    )*};
}

failure_from!(
    dr_backup::BackupError,
    dr_restore::RestoreError,
    dr_tenant::TenantError,
    dr_sources::SourceError,
    dr_installation::InstallationError,
    dr_config::ConfigError,
);

//! What was checked and what was seen.

use dr_backup::VerificationCheck;

/// The checks of one verification, in order.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<VerificationCheck>);

impl Checks {
    pub(super) fn held(&mut self, name: &str, detail: impl Into<String>) {
        self.add(name, true, detail.into());
    }

    pub(super) fn add(&mut self, name: &str, passed: bool, detail: String) {
        self.0.push(VerificationCheck {
            name: name.to_owned(),
            passed,
            detail,
        });
    }

    /// A check that ended in an error, with its causes.
    pub(super) fn failed(&mut self, name: &str, error: &dyn std::error::Error) {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            detail.push_str(": ");
            detail.push_str(&inner.to_string());
            cause = inner.source();
        }
        self.add(name, false, detail);
    }

    pub(super) fn passed(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|check| check.passed)
    }

    pub(super) fn into_list(self) -> Vec<VerificationCheck> {
        self.0
    }
}

//! The span of moments a workload can be restored to.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A recovery window with its holes. Inside `from..=to`, any moment that is in no gap is reachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryWindow {
    /// The earliest reachable moment: the end of the oldest restore point.
    pub from: DateTime<Utc>,
    /// The latest reachable moment known from what is stored: the arrival of the newest WAL, or the
    /// newest restore point where there is no WAL.
    pub to: DateTime<Utc>,
    /// What is missing inside, as WAL segment names or descriptions.
    pub gaps: Vec<String>,
}

impl std::fmt::Display for RecoveryWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = |at: &DateTime<Utc>| at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        write!(f, "{} .. {}", time(&self.from), time(&self.to))?;
        if !self.gaps.is_empty() {
            write!(
                f,
                " with {} missing: {}",
                self.gaps.len(),
                self.gaps.join(", ")
            )?;
        }
        Ok(())
    }
}

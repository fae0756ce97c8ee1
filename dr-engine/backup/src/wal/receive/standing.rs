//! How a receiver stands, for whoever watches it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use dr_model::{Lsn, Timeline};
use serde::Serialize;

use crate::BackupError;
use crate::status::chain;

/// How one receiver stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The timeline that is followed; `None` before the first connection.
    pub timeline: Option<Timeline>,
    /// The position after the last byte that arrived.
    pub received: Lsn,
    /// Everything before is durable in the repository.
    pub durable: Lsn,
    /// Where the server's WAL ended when it was last heard.
    pub server_end: Lsn,
    /// When, by the server's clock, everything it had was durable, as far as it is known.
    pub all_durable_at: Option<DateTime<Utc>>,
    /// Whole segments handed to the repository.
    pub segments: u64,
    /// Tails handed to the repository.
    pub tails: u64,
    /// Why nothing is received now, and since when.
    pub failing: Option<Failing>,
    /// What a person has to know, oldest first; the last few.
    pub notes: Vec<String>,
}

/// A receiver that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failing {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Why, the last time.
    pub why: String,
}

impl Standing {
    /// Only what got into the repository shows that all is well: a connection alone does not.
    fn mended(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!("WAL is received again");
        }
    }
}

/// So many notes are kept.
const NOTES_MAX: usize = 8;

/// A [`Standing`] that is shared. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Standings(Arc<Mutex<Standing>>);

impl Standings {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands now.
    #[must_use]
    pub fn now(&self) -> Standing {
        self.lock().clone()
    }

    pub(super) fn begun(&self, timeline: Timeline, at: Lsn) {
        tracing::info!(%timeline, %at, "receiving WAL");
        let mut standing = self.lock();
        standing.timeline = Some(timeline);
        standing.received = at;
    }

    pub(super) fn progressed(&self, timeline: Timeline, received: Lsn, durable: Lsn, end: Lsn) {
        let mut standing = self.lock();
        standing.timeline = Some(timeline);
        standing.received = received;
        standing.server_end = end;
        if durable > standing.durable {
            standing.durable = durable;
            standing.mended();
        }
    }

    pub(super) fn all_durable(&self, at: DateTime<Utc>) {
        let mut standing = self.lock();
        standing.all_durable_at = Some(at);
        standing.mended();
    }

    pub(super) fn stored(&self, is_segment: bool) {
        let mut standing = self.lock();
        if is_segment {
            standing.segments += 1;
        } else {
            standing.tails += 1;
        }
    }

    pub(super) fn note(&self, note: String) {
        tracing::warn!(note, "streaming");
        let mut standing = self.lock();
        standing.notes.push(note);
        if standing.notes.len() > NOTES_MAX {
            standing.notes.remove(0);
        }
    }

    pub(super) fn failed(&self, error: &BackupError, now: DateTime<Utc>) {
        let why = chain(error);
        let mut standing = self.lock();
        let known = standing.failing.as_ref();
        if known.is_none_or(|known| known.why != why) {
            tracing::warn!(why, "WAL is not received");
        }
        let since = known.map_or(now, |known| known.since);
        standing.failing = Some(Failing { since, why });
    }
}

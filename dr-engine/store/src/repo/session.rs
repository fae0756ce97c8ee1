//! Running writers, and the packs that are about to be deleted.
//!
//! What makes pruning safe beside writers of other processes, even one that was suspended for days: a
//! writer stores its session before it looks at condemned packs and indexes, and asks again, before it
//! stores its restore point and just before it lists that, whether no pack it relies on is condemned and
//! its session is still there, in this order. Prune condemns first, looks at the sessions second, and deletes a pack only when
//! every session that is older than the condemnation has ended. A session that never ends is ended by
//! deleting its object: its writer finds that and gives up, and nothing it did is listed.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use dr_model::WorkloadName;

use super::{Inner, encode_failed};
use crate::StoreError;
use crate::format::header::Kind;
use crate::format::pack::PackId;
use crate::format::sealed;
use crate::format::session::{self, CondemnedObject, Purpose, SessionObject};

/// Where sessions are.
pub(crate) const SESSIONS: &str = "sessions/";
/// Where condemned packs are named.
pub(crate) const CONDEMNED: &str = "condemned/";

/// Where a workload's sessions are.
pub(crate) fn sessions_prefix(workload: &WorkloadName) -> String {
    format!("{SESSIONS}{workload}/")
}

/// Where a workload's condemned packs are named.
pub(crate) fn condemned_prefix(workload: &WorkloadName) -> String {
    format!("{CONDEMNED}{workload}/")
}

/// Whether a session's process is known to be gone: it ran on this host, under an earlier boot or under
/// a number that no process has any more. Of other hosts nothing is known.
pub(crate) fn is_dead(session: &SessionObject) -> bool {
    let here = this_process(session.began, session.purpose);
    if session.host != here.host || here.boot.is_empty() || session.boot.is_empty() {
        return false;
    }
    if session.boot != here.boot {
        return true;
    }
    let pid = i32::try_from(session.pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// This process, as its session names it.
pub(crate) fn this_process(began: DateTime<Utc>, purpose: Purpose) -> SessionObject {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    // Without it (no Linux) a dead process is only recognised by its session's age.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    SessionObject {
        host,
        pid: std::process::id(),
        boot: boot.trim().to_owned(),
        began,
        purpose,
    }
}

impl Inner {
    /// Stores a session; returns its object's name.
    pub(crate) fn begin_session(
        &self,
        workload: &WorkloadName,
        began: DateTime<Utc>,
        purpose: Purpose,
    ) -> Result<String, StoreError> {
        let object = format!("{}{}", sessions_prefix(workload), dr_model::random::hex(16));
        self.put_json(Kind::Session, &object, &this_process(began, purpose))?;
        Ok(object)
    }

    /// Fails when the session was ended by somebody else.
    pub(crate) fn session_is_alive(&self, object: &str) -> Result<(), StoreError> {
        match self.get(object)? {
            Some(_) => Ok(()),
            None => Err(StoreError::SessionEnded {
                place: self.place.clone(),
            }),
        }
    }

    /// The packs of a workload that no writer may rely on.
    pub(crate) fn condemned(&self, workload: &WorkloadName) -> Result<HashSet<PackId>, StoreError> {
        let mut packs = HashSet::new();
        for entry in self.list(&condemned_prefix(workload))? {
            let Some(body) = self.get_sealed(&self.master, Kind::Condemned, &entry.name)? else {
                // Prune got to its end meanwhile.
                continue;
            };
            let ids = session::decode::<CondemnedObject>(&body)
                .and_then(|condemned| condemned.pack_ids())
                .map_err(|error| self.unreadable(&entry.name, error))?;
            packs.extend(ids);
        }
        Ok(packs)
    }

    /// Stores a JSON document sealed under the master key under a name made for it.
    pub(crate) fn put_json<T: serde::Serialize>(
        &self,
        kind: Kind,
        object: &str,
        value: &T,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_vec(value).map_err(|error| StoreError::Encode {
            what: "an object",
            source: Box::new(error),
        })?;
        let data = sealed::encode(&self.id, &self.master, kind, object, &body)
            .map_err(encode_failed("an object"))?;
        match self.put_new(object, data)? {
            crate::PutOutcome::Stored => Ok(()),
            crate::PutOutcome::Exists => Err(self.name_taken(object)),
        }
    }

    /// A name of 128 random bits that is there already is not ours.
    pub(crate) fn name_taken(&self, object: &str) -> StoreError {
        StoreError::Damaged {
            object: object.to_owned(),
            place: self.place.clone(),
            what: "another object has the name that was just made for a new one".to_owned(),
        }
    }
}

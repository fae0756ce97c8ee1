//! Locks on what a restore point needs, in stores that know Object Lock.
//!
//! A tier may promise that nobody, with whatever rights, deletes a restore point's data for some time. A
//! chunk that a newer point shares must then stay locked as long as the newest point that needs it: so
//! before the point is stored, the locks of all packs it relies on are extended. An incremental point
//! touches nearly every pack; to ask for and extend each lock each time would cost a request for each.
//! Locks are therefore set in coarse steps, an eighth of the period, and a lock record,
//! `locks/<workload>/<until, 16 hex>.<32 hex>`, says which objects are locked until then: within a step
//! nothing needs to be asked or extended.
//!
//! Order: extended locks, then the record of them, then the restore point. A crash between leaves locks
//! that are longer than needed. A record is only there to save requests: `check` asks the store itself.
//!
//! Tenants' keys are not locked: they must be destroyable.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::WorkloadName;
use serde::{Deserialize, Serialize};

use super::keys::{SLOTS, workload_key_name};
use super::{Inner, fetch};
use crate::backend::PutOptions;
use crate::format::header::Kind;
use crate::format::{repository, session};
use crate::{BackendError, StoreError};

/// Where lock records are.
pub(crate) const LOCKS: &str = "locks/";
/// Into how many steps the period of a lock is divided.
const STEPS: i64 = 8;
/// No step is shorter.
const STEP_SECONDS_MIN: i64 = 3600;

/// Objects that are locked until a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LockObject {
    pub(crate) until: DateTime<Utc>,
    pub(crate) objects: Vec<String>,
}

/// Until when one backup locks, and what is locked that long already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockPlan {
    pub(crate) until: DateTime<Utc>,
    locked: HashSet<String>,
}

/// Where a workload's lock records are.
pub(crate) fn locks_prefix(workload: &WorkloadName) -> String {
    format!("{LOCKS}{workload}/")
}

/// The end of the step in which a lock that begins now and lasts `period` ends.
fn end_of_lock(now: DateTime<Utc>, period: Duration) -> DateTime<Utc> {
    let period = i64::try_from(period.as_secs()).unwrap_or(i64::MAX / 4);
    let step = (period / STEPS).max(STEP_SECONDS_MIN);
    let end = now.timestamp().saturating_add(period);
    let end = end.div_euclid(step).saturating_add(1).saturating_mul(step);
    DateTime::from_timestamp(end, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Until when the objects of a record are locked, from its name.
fn until_of(prefix: &str, object: &str) -> Option<DateTime<Utc>> {
    let digits = object.strip_prefix(prefix)?.split('.').next()?;
    DateTime::from_timestamp(i64::from_str_radix(digits, 16).ok()?, 0)
}

impl LockPlan {
    pub(crate) fn put_options(&self) -> PutOptions {
        PutOptions {
            retain_until: Some(self.until),
            ..PutOptions::default()
        }
    }
}

impl Inner {
    /// Plans the locks of a backup: refuses where the store does not honour them.
    pub(crate) fn plan_lock(
        &self,
        workload: &WorkloadName,
        period: Duration,
    ) -> Result<LockPlan, StoreError> {
        if !self.capabilities.object_lock {
            return Err(StoreError::CannotLock {
                place: self.place.clone(),
            });
        }
        let now = self
            .backend
            .now()
            .map_err(self.failed("asking for the time".to_owned()))?;
        if let Err(error) = self.forget_ended_locks(workload, now) {
            tracing::debug!(%error, "records of locks that ended stay");
        }
        let until = end_of_lock(now, period);
        let prefix = locks_prefix(workload);
        let mut locked = HashSet::new();
        for entry in self.list(&prefix)? {
            if until_of(&prefix, &entry.name).is_none_or(|ends| ends < until) {
                continue;
            }
            if let Some(body) = self.get_sealed(&self.master, Kind::Lock, &entry.name)? {
                let record: LockObject =
                    session::decode(&body).map_err(|error| self.unreadable(&entry.name, error))?;
                locked.extend(record.objects);
            }
        }
        Ok(LockPlan { until, locked })
    }

    /// Extends the locks of what a point relies on, and records them with those of what was just
    /// written under a lock.
    pub(crate) fn lock_needed(
        &self,
        workload: &WorkloadName,
        plan: &LockPlan,
        relied_on: Vec<String>,
        written: Vec<String>,
    ) -> Result<(), StoreError> {
        let mut needed = relied_on;
        needed.push(repository::NAME.to_owned());
        needed.push(workload_key_name(workload));
        needed.extend(self.list(SLOTS)?.into_iter().map(|entry| entry.name));
        needed.retain(|object| !plan.locked.contains(object));
        let extended = fetch::each(&needed, |object| {
            self.backend
                .extend_lock(object, plan.until)
                .map_err(self.failed(format!("locking `{object}`")))
        });
        extended.into_iter().collect::<Result<Vec<()>, _>>()?;
        let mut objects = needed;
        objects.extend(written);
        if objects.is_empty() {
            return Ok(());
        }
        let object = format!(
            "{}{:016x}.{}",
            locks_prefix(workload),
            plan.until.timestamp(),
            dr_model::random::hex(16)
        );
        let record = LockObject {
            until: plan.until,
            objects,
        };
        self.put_json(Kind::Lock, &object, &record)
    }

    /// Removes records of locks that ended.
    fn forget_ended_locks(
        &self,
        workload: &WorkloadName,
        now: DateTime<Utc>,
    ) -> Result<u64, StoreError> {
        let prefix = locks_prefix(workload);
        let mut removed = 0;
        for entry in self.list(&prefix)? {
            if until_of(&prefix, &entry.name).is_some_and(|ends| ends < now) {
                match self.backend.delete(&entry.name) {
                    Ok(()) => removed += 1,
                    Err(BackendError::Locked { .. }) => {}
                    Err(error) => {
                        return Err(self.failed(format!("deleting `{}`", entry.name))(error));
                    }
                }
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn a_lock_lasts_at_least_its_period_and_at_most_a_step_longer() {
        let month = Duration::from_secs(30 * 86_400);
        let step = 30 * 86_400 / STEPS;
        for now in [0, 1, 1_790_000_000, 1_790_123_457] {
            let lasts = (end_of_lock(at(now), month) - at(now)).num_seconds();
            assert!(
                lasts > 30 * 86_400 && lasts <= 30 * 86_400 + step,
                "{lasts}"
            );
        }
    }

    #[test]
    fn backups_within_a_step_need_the_same_lock() {
        let month = Duration::from_secs(30 * 86_400);
        let step = 30 * 86_400 / STEPS;
        let ends: HashSet<_> = (0..step / 3600)
            .map(|hour| end_of_lock(at(1_790_000_000 + hour * 3600), month))
            .collect();
        assert!(ends.len() <= 2, "{ends:?}");
    }

    #[test]
    fn the_name_of_a_record_says_until_when() {
        let until = at(1_800_000_000);
        let object = format!("locks/erp/{:016x}.abc", until.timestamp());
        assert_eq!(until_of("locks/erp/", &object), Some(until));
        assert_eq!(until_of("locks/erp/", "locks/erp/xyz.abc"), None);
    }
}

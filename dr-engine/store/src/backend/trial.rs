//! Trying what a place does, through nothing but its own operations, so that it works on every kind of
//! place and on every decorator around one.
//!
//! Every object made here is named `trial-<random>` and is removed again. One that is locked when the
//! trial ends stays, hidden, for the seconds of its lock; the next trial removes it. A crash leaves
//! trial objects; they mean nothing to anyone.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use dr_model::{Clock, SystemClock};

use super::{Backend, BackendError, Capabilities, LockMode, PutOptions, PutOutcome};

/// What trial objects' names begin with.
pub(crate) const TRIAL: &str = "trial-";
/// Writers of one name at the same moment: more than a store's front end has locks by chance.
const RACERS: u8 = 8;
/// A store that checks, then writes, has one winner by chance now and then.
const RACES: u32 = 3;
/// How long the trial object is locked. Long enough to be refused a deletion in a slow store.
pub(super) const TRIAL_LOCK: TimeDelta = TimeDelta::seconds(20);
/// How exactly a store tells a lock's end.
const LOCK_EXACTNESS: TimeDelta = TimeDelta::seconds(1);
/// Trial objects older than this are nobody's any more.
const LEFT_BEHIND: TimeDelta = TimeDelta::minutes(10);

/// Tries everything that can be tried from outside. A kind of place that knows more (checksums,
/// objects in parts) fills that in itself.
///
/// # Errors
/// When the place does not answer or cannot be written.
pub fn try_capabilities(backend: &dyn Backend) -> Result<Capabilities, BackendError> {
    let clock_skew_seconds = clock_skew(backend)?;
    clear_left_behind(backend)?;
    let put_if_absent = sequential(backend)?;
    let mut put_if_absent_raced = put_if_absent;
    for _ in 0..RACES {
        put_if_absent_raced = put_if_absent_raced && raced(backend)?;
    }
    let versions = versions(backend)?;
    Ok(Capabilities {
        put_if_absent,
        put_if_absent_raced,
        versions,
        object_lock: versions && object_lock(backend)?,
        clock_skew_seconds,
        ..Capabilities::default()
    })
}

fn trial_name() -> String {
    format!("{TRIAL}{}", dr_model::random::hex(8))
}

/// The place's time less ours; 0 if ours, before and after asking, encloses it as exactly as the place
/// tells it (S3 tells whole seconds, cut off).
fn clock_skew(backend: &dyn Backend) -> Result<i64, BackendError> {
    let before = SystemClock.now();
    let there = backend.now()?;
    let after = SystemClock.now();
    Ok(skew(before, there, after))
}

fn skew(before: DateTime<Utc>, there: DateTime<Utc>, after: DateTime<Utc>) -> i64 {
    let resolution = TimeDelta::seconds(1);
    if there + resolution < before {
        (there + resolution - before).num_seconds()
    } else if there > after + resolution {
        (there - after - resolution).num_seconds()
    } else {
        0
    }
}

/// Whether a second write of one name is refused and changes nothing.
fn sequential(backend: &dyn Backend) -> Result<bool, BackendError> {
    let name = trial_name();
    backend.put_new(&name, b"first")?;
    let refused = backend.put_new(&name, b"second")? == PutOutcome::Exists;
    let kept = backend.get(&name)?.is_some_and(|body| body == b"first");
    backend.delete_all_versions(&name)?;
    Ok(refused && kept)
}

/// Whether of several writers of one name exactly one is told that it won, and its content stands.
fn raced(backend: &dyn Backend) -> Result<bool, BackendError> {
    let name = trial_name();
    let outcomes: Vec<Option<Result<PutOutcome, BackendError>>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..RACERS)
            .map(|writer| {
                let name = &name;
                scope.spawn(move || backend.put_new(name, &[writer; 64]))
            })
            .collect();
        // A writer that panicked has not won.
        writers
            .into_iter()
            .map(|writer| writer.join().ok())
            .collect()
    });
    let mut winners = Vec::new();
    for (writer, outcome) in (0..RACERS).zip(outcomes) {
        if outcome.transpose()? == Some(PutOutcome::Stored) {
            winners.push(writer);
        }
    }
    let stored = backend.get(&name)?;
    backend.delete_all_versions(&name)?;
    Ok(matches!(winners.as_slice(), [winner] if stored.is_some_and(|body| body == [*winner; 64])))
}

fn supported<T>(answer: Result<T, BackendError>) -> Result<Option<T>, BackendError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(BackendError::NotSupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a deleted object's content is still there and comes back.
fn versions(backend: &dyn Backend) -> Result<bool, BackendError> {
    let name = trial_name();
    backend.put_new(&name, b"kept")?;
    backend.delete(&name)?;
    let Some(found) = supported(backend.versions(&name))? else {
        return Ok(false);
    };
    let mut kept = false;
    for entry in found.iter().filter(|entry| !entry.is_delete_marker) {
        kept = kept
            || backend
                .get_version(&name, &entry.version)?
                .is_some_and(|body| body == b"kept");
    }
    let kept = kept && backend.undelete(&name)? && backend.get(&name)?.is_some();
    backend.delete_all_versions(&name)?;
    Ok(kept)
}

/// Whether a lock is there when asked for, and really forbids deletion for good.
fn object_lock(backend: &dyn Backend) -> Result<bool, BackendError> {
    let name = trial_name();
    let until = backend.now()? + TRIAL_LOCK;
    let options = PutOptions {
        retain_until: Some(until),
        lock_mode: Some(LockMode::Governance),
        storage_class: None,
    };
    match backend.put_new_with(&name, Bytes::from_static(b"locked"), &options) {
        Ok(_) => {}
        // A bucket made without Object Lock says so in several ways; nothing was stored then.
        Err(
            BackendError::NotSupported { .. }
            | BackendError::Store { .. }
            | BackendError::Refused { .. },
        ) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    let told = backend.lock_of(&name)?.is_some_and(|lock| {
        lock.mode == LockMode::Governance && (lock.until - until).abs() <= LOCK_EXACTNESS
    });
    let refused = match backend.delete_all_versions(&name) {
        Ok(_) => false,
        Err(BackendError::Locked { .. }) => true,
        Err(error) => return Err(error),
    };
    let there = backend.get(&name)?.is_some_and(|body| body == b"locked");
    // Hidden, so that no listing shows it; a place that knows of the lock refuses even that.
    match backend.delete(&name) {
        Ok(()) | Err(BackendError::Locked { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(told && refused && there)
}

/// Removes trial objects that a crash or a lock left behind.
fn clear_left_behind(backend: &dyn Backend) -> Result<(), BackendError> {
    let before = backend.now()? - LEFT_BEHIND;
    let mut names: Vec<String> = match supported(backend.versions(TRIAL))? {
        Some(found) => found
            .into_iter()
            .filter(|entry| entry.modified < before)
            .map(|entry| entry.name)
            .collect(),
        None => backend
            .list(TRIAL)?
            .into_iter()
            .filter(|entry| entry.modified < before)
            .map(|entry| entry.name)
            .collect(),
    };
    names.dedup();
    for name in names {
        match backend.delete_all_versions(&name) {
            // The bucket may lock everything for longer than the trial asks.
            Ok(_) | Err(BackendError::Locked { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_told_in_whole_seconds_is_not_called_wrong() {
        let at = |millis| DateTime::from_timestamp_millis(1_000_000_000_i64 + millis).unwrap();
        assert_eq!(skew(at(900), at(0), at(950)), 0);
        assert_eq!(skew(at(900), at(1000), at(1950)), 0);
        assert_eq!(skew(at(0), at(3_600_000), at(100)), 3598);
        assert_eq!(skew(at(0), at(-3_600_000), at(100)), -3599);
    }
}

//! What the place does not allow to be deleted yet. Asked only of what is wanted to go.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use dr_model::ByteCount;

use super::LockedObject;
use crate::StoreError;
use crate::repo::{Inner, fetch};

/// Objects asked about side by side before the next are looked at.
const ASKED_AT_ONCE: usize = 256;

/// When an object's lock ends or ended, if it has one.
fn lock_end(repo: &Inner, object: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
    let lock = repo.backend.lock_of(object);
    lock.map(|lock| lock.map(|lock| lock.until))
        .map_err(repo.failed(format!("asking for the lock of `{object}`")))
}

/// Takes out what is locked; an object may depend on another one (its index) being free as well.
pub(super) fn take_locked<T>(
    repo: &Inner,
    wanted: Vec<T>,
    name: impl Fn(&T) -> (String, u64, Option<String>),
    locked: &mut Vec<LockedObject>,
) -> Result<Vec<T>, StoreError> {
    let mut free = Vec::new();
    let mut others: HashMap<String, Option<DateTime<Utc>>> = HashMap::new();
    let named: Vec<(String, u64, Option<String>)> = wanted.iter().map(name).collect();
    let mut now = None;
    let mut ends = Vec::with_capacity(named.len());
    for group in named.chunks(ASKED_AT_ONCE) {
        ends.extend(fetch::each(group, |(object, _, _)| lock_end(repo, object)));
    }
    for ((one, (object, bytes, other)), end) in wanted.into_iter().zip(named).zip(ends) {
        let mut until = end?;
        if let Some(other) = other {
            let end = match others.get(&other) {
                Some(known) => *known,
                None => lock_end(repo, &other)?,
            };
            others.insert(other, end);
            until = until.max(end);
        }
        if until.is_some() && now.is_none() {
            let clock = repo.backend.now();
            now = Some(clock.map_err(repo.failed("reading the place's clock".to_owned()))?);
        }
        match until.filter(|until| now.is_none_or(|now| *until > now)) {
            Some(until) => locked.push(LockedObject {
                object,
                bytes: ByteCount(bytes),
                until,
            }),
            None => free.push(one),
        }
    }
    Ok(free)
}

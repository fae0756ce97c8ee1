//! Who is given up for dead. Pure.

use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_catalog::{JobRow, Owner};

/// The time between two signs of life of a running job.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// A job without a sign of life for this long has lost its lane: three heartbeats.
pub const LEASE: Duration = Duration::from_secs(30);

/// Why the process behind `job` is to be given up, or `None` while it lives. `start_of` tells when the
/// process of an id on this host started, if there is one.
///
/// A process of this host and boot is known to be dead at once. Everything else, a living process that
/// makes no progress included, is dead when its lease has run out.
pub fn reason_of_death(
    job: &JobRow,
    here: &Owner,
    now: DateTime<Utc>,
    start_of: impl Fn(u32) -> Option<u64>,
) -> Option<String> {
    let owner = &job.owner;
    if owner.host == here.host {
        if owner.boot != here.boot {
            return Some(format!("the host was restarted under process {}", owner.pid));
        }
        if start_of(owner.pid) != Some(owner.pid_started) {
            return Some(format!("process {} ended without a word", owner.pid));
        }
    }
    // A clock that was set back gives a negative silence: alive.
    let silence = (now - job.heartbeat).to_std().unwrap_or_default();
    (silence > LEASE).then(|| {
        format!("process {} gave no sign of life for {} s", owner.pid, silence.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use dr_catalog::JobState;
    use proptest::prelude::*;

    use super::*;

    fn owner(host: u8, boot: u8, pid: u32, pid_started: u64) -> Owner {
        Owner { host: format!("host{host}"), boot: format!("boot{boot}"), pid, pid_started }
    }

    fn job(owner: Owner, heartbeat: DateTime<Utc>) -> JobRow {
        JobRow {
            id: "job-1".to_owned(),
            kind: "backup".to_owned(),
            lane: "erp".to_owned(),
            detail: String::new(),
            state: JobState::Running,
            owner,
            epoch: 1,
            started: heartbeat,
            heartbeat,
            reason: None,
        }
    }

    proptest! {
        #[test]
        fn the_living_are_never_taken_over_and_the_dead_always(
            host in 0u8..2, boot in 0u8..2, pid in 1u32..4, started in 1u64..3,
            running in proptest::option::of(1u64..3), silence in -100i64..100,
        ) {
            let now = DateTime::<Utc>::UNIX_EPOCH + chrono::TimeDelta::days(1000);
            let holder = owner(host, boot, pid, started);
            let job = job(holder, now - chrono::TimeDelta::seconds(silence));
            let reason =
                reason_of_death(&job, &owner(0, 0, 9, 9), now, |asked| running.filter(|_| asked == pid));
            let process_gone = host == 0 && (boot != 0 || running != Some(started));
            prop_assert_eq!(reason.is_some(), process_gone || silence > 30, "{:?}", reason);
        }
    }

    #[test]
    fn a_lease_outlives_two_missed_heartbeats() {
        assert!(LEASE > HEARTBEAT * 2);
    }
}

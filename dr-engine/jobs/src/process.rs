//! Which process this is, and whether another one still lives.

use chrono::{DateTime, Utc};
use dr_catalog::{JobRow, Owner};

use crate::run::LEASE;

/// When a process began, in clock ticks since boot (proc(5), field 22 of `stat`). Ids are reused; the
/// pair of id and start is not. `None`: no such process, or one that has ended and waits for its parent.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// This process.
pub(crate) fn this() -> Owner {
    let pid = std::process::id();
    Owner {
        host: host(),
        boot: dr_model::clock::boot_id(),
        pid,
        pid_started: started_ticks(pid).unwrap_or(0),
    }
}

/// Why `job` can no longer be running; `None` when it may be.
pub(crate) fn why_dead(job: &JobRow, this: &Owner, now: DateTime<Utc>) -> Option<String> {
    if job.owner.host == this.host && job.owner.boot == this.boot {
        return match started_ticks(job.owner.pid) {
            Some(ticks) if ticks == job.owner.pid_started => None,
            _ => Some(format!(
                "its process {} ended without a word",
                job.owner.pid
            )),
        };
    }
    if job.owner.host == this.host {
        return Some("the host was restarted while it ran".to_owned());
    }
    let silent = now.signed_duration_since(job.heartbeat);
    (silent.to_std().is_ok_and(|silent| silent > LEASE)).then(|| {
        format!(
            "no sign of life from {} for {} s",
            job.owner.host,
            silent.num_seconds()
        )
    })
}

#[cfg(test)]
mod tests {
    use dr_catalog::JobState;

    use super::*;

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

    #[test]
    fn a_living_process_keeps_its_job_however_silent_it_is() {
        let now = Utc::now();
        let old = now - chrono::Duration::days(1);
        assert_eq!(why_dead(&job(this(), old), &this(), now), None);
    }

    #[test]
    fn a_process_id_that_was_reused_is_not_the_job_s_process() {
        let owner = Owner {
            pid_started: this().pid_started + 1,
            ..this()
        };
        let now = Utc::now();
        assert!(why_dead(&job(owner, now), &this(), now).is_some());
    }

    #[test]
    fn another_boot_of_this_host_holds_nothing() {
        let owner = Owner {
            boot: "earlier".to_owned(),
            ..this()
        };
        let now = Utc::now();
        assert!(why_dead(&job(owner, now), &this(), now).is_some());
    }

    #[test]
    fn another_host_keeps_its_job_for_its_lease() {
        let owner = Owner {
            host: "elsewhere".to_owned(),
            ..this()
        };
        let now = Utc::now();
        assert_eq!(why_dead(&job(owner.clone(), now), &this(), now), None);
        let old = now - chrono::Duration::seconds(31);
        assert!(why_dead(&job(owner, old), &this(), now).is_some());
    }
}

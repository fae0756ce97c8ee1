//! What each schedule did last, and from it what is to run now. Pure but for the values put in.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::WorkloadName;
use dr_scheduler::{Activity, Planned, Subject, retry_delay};

/// A planned moment that nobody took up for this long is an alarm.
pub(crate) const LATE_AFTER: Duration = Duration::from_secs(300);

/// A segment that others were stored behind may be missing for so long before it counts as lost.
const BROKEN_OFF_GRACE: Duration = Duration::from_secs(120);

/// After a backup that was to make up for missing WAL there is none for this reason for so long.
const MAKE_GOOD_AGAIN: Duration = Duration::from_secs(1800);

/// One schedule and its recent past.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) planned: Planned,
    /// Planned moments up to here are done with.
    pub(crate) since: DateTime<Utc>,
    /// Run at once, whatever the schedule says: it was interrupted, or there is nothing yet.
    pub(crate) at_once: bool,
    /// When it was last to make up for missing WAL.
    pub(crate) made_good: Option<DateTime<Utc>>,
    pub(crate) failures_in_a_row: u32,
    pub(crate) last_failure: Option<(DateTime<Utc>, String)>,
}

/// What is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The entry's place in the timetable.
    pub(crate) entry: usize,
    pub(crate) planned_at: DateTime<Utc>,
    pub(crate) missed_since: Option<DateTime<Utc>>,
}

impl Entry {
    pub(crate) fn new(planned: Planned, since: DateTime<Utc>) -> Self {
        Self {
            planned,
            since,
            at_once: false,
            made_good: None,
            failures_in_a_row: 0,
            last_failure: None,
        }
    }

    /// The moment that is due now, if it may run now.
    fn due(&self, now: DateTime<Utc>) -> Option<(DateTime<Utc>, Option<DateTime<Utc>>)> {
        if let Some((failed_at, _)) = &self.last_failure {
            // A clock that was set back must not silence a schedule: no time passed is as good as none.
            let passed = (now - *failed_at).to_std().unwrap_or(Duration::MAX);
            if passed < retry_delay(self.failures_in_a_row) {
                return None;
            }
        }
        if self.at_once {
            return Some((now, None));
        }
        self.planned
            .schedule
            .due(self.since, now)
            .map(|due| (due.planned_at, due.missed_since))
    }

    /// Since when a moment waits in vain, once that is too long.
    pub(crate) fn late_since(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let first = self.planned.schedule.next_after(self.since)?;
        let waited = (now - first).to_std().ok()?;
        (waited > LATE_AFTER).then_some(first)
    }

    /// Whether this is the backup that makes up for WAL which breaks off behind the newest one, as was first
    /// seen at `since`: none has begun after that and gone well. It may read the whole source, and load what was
    /// too slow already; so after one there is a long pause, however it ended. Until what is missing is known for
    /// good it may only be late: segments that are stored side by side, or received again.
    pub(crate) fn makes_good(
        &self,
        workload: &WorkloadName,
        since: DateTime<Utc>,
        is_certain: bool,
        now: DateTime<Utc>,
    ) -> bool {
        // A clock that was set back must not silence it: no time passed is as good as none.
        let passed = |from: DateTime<Utc>| (now - from).to_std().unwrap_or(Duration::MAX);
        let is_its_backup = self.planned.activity == Activity::Backup
            && self.planned.subject.workload() == Some(workload);
        let may_be_late = !is_certain && passed(since) < BROKEN_OFF_GRACE;
        let has_run = self.since > since && self.last_failure.is_none();
        let is_pause = (self.made_good).is_some_and(|at| passed(at) < MAKE_GOOD_AGAIN);
        is_its_backup && !self.at_once && !may_be_late && !has_run && !is_pause
    }

    /// It runs at once, to make up for missing WAL.
    pub(crate) fn make_good(&mut self, now: DateTime<Utc>) {
        self.at_once = true;
        self.made_good = Some(now);
    }

    pub(crate) fn begun(&mut self, planned_at: DateTime<Utc>) {
        self.since = planned_at;
        self.at_once = false;
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
        self.last_failure = None;
    }

    pub(crate) fn failed(&mut self, at: DateTime<Utc>, reason: String) {
        self.failures_in_a_row += 1;
        self.last_failure = Some((at, reason));
    }
}

/// At most one turn for each free lane: what has been due for longest, so that a frequent backup does
/// not starve a rare verification.
pub(crate) fn turns(entries: &[Entry], busy: &BTreeSet<Subject>, now: DateTime<Utc>) -> Vec<Turn> {
    let mut turns: Vec<Turn> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| !busy.contains(&entry.planned.subject))
        .filter_map(|(place, entry)| {
            let (planned_at, missed_since) = entry.due(now)?;
            Some(Turn {
                entry: place,
                planned_at,
                missed_since,
            })
        })
        .collect();
    turns.sort_by_key(|turn| (turn.missed_since.unwrap_or(turn.planned_at), turn.entry));
    let mut taken = BTreeSet::new();
    turns.retain(|turn| {
        entries
            .get(turn.entry)
            .is_some_and(|entry| taken.insert(entry.planned.subject.clone()))
    });
    turns
}

#[cfg(test)]
mod tests {
    use dr_scheduler::CivilSchedule;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn entry(workload: &str, activity: Activity, cron: &str) -> Entry {
        let planned = Planned {
            key: format!("{workload}/{}", activity.name()),
            subject: Subject::Workload(workload.parse().unwrap()),
            activity,
            schedule: CivilSchedule::new(cron, None).unwrap(),
        };
        Entry::new(planned, at(0))
    }

    #[test]
    fn each_free_lane_gets_what_has_waited_longest() {
        let entries = [
            entry("erp", Activity::Backup, "*/5 * * * * *"),
            entry("erp", Activity::Verify { restore: true }, "20 * * * * *"),
            entry("files", Activity::Backup, "*/5 * * * * *"),
        ];
        let free = BTreeSet::new();
        assert!(turns(&entries, &free, at(4)).is_empty());
        let picked: Vec<usize> = turns(&entries, &free, at(5))
            .iter()
            .map(|t| t.entry)
            .collect();
        assert_eq!(picked, [0, 2]);
        // The backup ran at 20 s; the verification planned for 20 s goes before the one of 25 s.
        let mut later = entries.clone();
        later[0].begun(at(20));
        later[2].begun(at(25));
        let picked: Vec<usize> = turns(&later, &free, at(25))
            .iter()
            .map(|t| t.entry)
            .collect();
        assert_eq!(picked, [1]);
        // A stuck lane holds up nobody else.
        let busy = BTreeSet::from([dr_scheduler::Subject::Workload("erp".parse().unwrap())]);
        let picked: Vec<usize> = turns(&entries, &busy, at(60))
            .iter()
            .map(|t| t.entry)
            .collect();
        assert_eq!(picked, [2]);
    }

    #[test]
    fn failures_are_tried_again_later_and_later() {
        let mut entry = entry("erp", Activity::Backup, "* * * * * *");
        entry.begun(at(1));
        entry.failed(at(1), "down".to_owned());
        assert_eq!(entry.due(at(5)), None);
        assert!(entry.due(at(6)).is_some());
        entry.failed(at(6), "down".to_owned());
        assert_eq!(entry.due(at(15)), None);
        assert!(entry.due(at(16)).is_some());
        // The clock was set back: not silenced.
        assert!(
            Entry {
                since: at(-100),
                ..entry.clone()
            }
            .due(at(-10))
            .is_some()
        );
        entry.succeeded();
        assert!(entry.due(at(7)).is_some());
    }

    #[test]
    fn what_waits_too_long_is_late() {
        let entry = entry("erp", Activity::Backup, "0 * * * * *");
        let first = entry.planned.schedule.next_after(at(0)).unwrap();
        assert_eq!(
            entry.late_since(first + chrono::TimeDelta::seconds(300)),
            None
        );
        assert_eq!(
            entry.late_since(first + chrono::TimeDelta::seconds(301)),
            Some(first)
        );
    }

    #[test]
    fn wal_that_breaks_off_has_the_next_backup_made_at_once() {
        let mut erp = entry("erp", Activity::Backup, "0 0 2 * * *");
        let name: WorkloadName = "erp".parse().unwrap();
        let asked = |entry: &Entry, certain: bool, second: i64| {
            entry.makes_good(&name, at(100), certain, at(second))
        };
        assert!(asked(&erp, true, 100));
        assert!(!asked(&erp, false, 219), "it may only be late");
        assert!(asked(&erp, false, 220));
        let other = entry("files", Activity::Backup, "0 0 2 * * *");
        assert!(!asked(&other, true, 100));
        let verify = entry("erp", Activity::Verify { restore: true }, "0 0 2 * * *");
        assert!(!asked(&verify, true, 100));
        erp.make_good(at(100));
        assert!(!asked(&erp, true, 101), "once is enough");
        erp.begun(at(101));
        assert!(
            !asked(&erp, true, 5000),
            "it runs, or did and changed nothing"
        );
        erp.failed(at(111), "down".to_owned());
        assert!(!asked(&erp, true, 1899), "it may have read everything");
        assert!(asked(&erp, true, 1900), "again");
        assert!(asked(&erp, true, 50), "the clock was set back");
        // Another hole, found right behind that.
        erp.succeeded();
        let next = |second: i64| erp.makes_good(&name, at(200), true, at(second));
        assert!(!next(201), "the next one comes soon enough");
        assert!(next(1900));
    }
}

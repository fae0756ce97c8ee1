use std::collections::BTreeMap;

use chrono::TimeZone;
use dr_model::{
    ByteCount, Condition, FilesPosition, Lsn, Position, PostgresPosition, SystemId, Timeline,
    WalFileName,
};

use super::*;
use crate::{TimelineSwitch, WalIndex};

mod civil;
mod properties;

const SEGMENT: u64 = 16 << 20;

fn workload() -> WorkloadName {
    "erp".parse().unwrap()
}

fn policy() -> RetentionPolicy {
    RetentionPolicy::nothing()
}

fn point(number: usize, moment: DateTime<Utc>, position: Position) -> PointFacts {
    PointFacts {
        point: RestorePoint {
            id: format!("rp-erp-{number:05}").parse().unwrap(),
            workload: workload(),
            tier: "gold".parse().unwrap(),
            started: moment,
            finished: moment,
            moment,
            position,
            files: 1,
            bytes_source: ByteCount(1),
            bytes_added: ByteCount(1),
            condition: Condition::Whole,
        },
        fault: None,
    }
}

fn files(number: usize, moment: DateTime<Utc>) -> PointFacts {
    let position = Position::Files(FilesPosition { entries: 1 });
    point(number, moment, position)
}

fn base(timeline: u32, start: u64, stop: u64) -> PostgresPosition {
    PostgresPosition {
        system_id: SystemId(1),
        timeline: Timeline(timeline),
        start_lsn: Lsn(start),
        stop_lsn: Lsn(stop),
        start_segment: WalFileName::containing(Lsn(start), Timeline(timeline), SEGMENT),
        stop_segment: WalFileName::containing(Lsn(stop - 1), Timeline(timeline), SEGMENT),
        wal_segment_bytes: SEGMENT,
        server_version_num: 150_018,
        page_checksums: true,
    }
}

/// So many points, each later than the one before it.
fn series(count: usize, at: impl Fn(u32) -> DateTime<Utc>) -> Vec<PointFacts> {
    (0..count)
        .zip(0..)
        .map(|(number, step)| files(number, at(step)))
        .collect()
}

fn utc(year: i32, month: u32, day: u32, hour: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(year, month, day, hour, 0, 0).unwrap()
}

struct Case {
    points: Vec<PointFacts>,
    policy: Option<RetentionPolicy>,
    holds: Vec<HoldOn>,
    wal: Option<WalFacts>,
    now: DateTime<Utc>,
}

impl Case {
    fn of(points: Vec<PointFacts>, policy: RetentionPolicy, now: DateTime<Utc>) -> Self {
        Self {
            points,
            policy: Some(policy),
            holds: Vec::new(),
            wal: None,
            now,
        }
    }

    fn plan(&self) -> RetentionPlan {
        plan_retention(&RetentionInput {
            workload: &workload(),
            points: &self.points,
            policy: self.policy.as_ref(),
            known_tiers: None,
            holds: &self.holds,
            wal: self.wal.as_ref(),
            now: self.now,
        })
    }

    fn kept(&self) -> Vec<usize> {
        let plan = self.plan();
        let kept: Vec<_> = plan.kept().cloned().collect();
        let is_kept = |place: &usize| kept.contains(&self.points[*place].point.id);
        (0..self.points.len()).filter(is_kept).collect()
    }
}

#[test]
fn the_newest_point_stays_under_the_emptiest_policy() {
    let points = series(5, |n| utc(2026, 3, 1, n));
    let case = Case::of(points, policy(), utc(2027, 1, 1, 0));
    assert_eq!(case.kept(), [4]);
    let plan = case.plan();
    assert_eq!(
        plan.points[0].fate,
        Fate::Removed {
            since: utc(2026, 3, 1, 1)
        },
        "it was the newest until the next one came"
    );
}

#[test]
fn damaged_points_do_not_count_and_the_last_clean_one_outlives_them() {
    let mut points: Vec<_> = series(6, |n| utc(2026, 3, 1 + n, 0));
    for damaged in &mut points[2..] {
        damaged.fault = Some("the source was damaged".to_owned());
    }
    let mut case = Case::of(points, policy(), utc(2027, 1, 1, 0));
    assert_eq!(case.kept(), [1, 5]);
    case.policy.as_mut().unwrap().min_redundancy = 2;
    assert_eq!(case.kept(), [0, 1, 5]);
}

#[test]
fn a_failed_verification_brings_no_daily_point_down_to_a_damaged_one() {
    let mut points = vec![
        files(0, utc(2026, 3, 1, 8)),
        files(1, utc(2026, 3, 1, 16)),
        files(2, utc(2026, 3, 2, 8)),
    ];
    points[1].fault = Some("its last verification failed".to_owned());
    let daily = RetentionPolicy {
        daily: 2,
        ..policy()
    };
    assert_eq!(Case::of(points, daily, utc(2026, 3, 2, 9)).kept(), [0, 2]);
}

#[test]
fn what_the_configuration_does_not_name_any_more_is_kept_unless_asked() {
    let points: Vec<_> = series(3, |n| utc(2026, 3, 1, n));
    let mut case = Case::of(points, policy(), utc(2027, 1, 1, 0));
    case.policy = None;
    assert_eq!(case.kept(), [0, 1, 2]);
    let known = BTreeSet::from(["silver".parse().unwrap()]);
    let nothing = policy();
    let workload = workload();
    let mut input = RetentionInput {
        workload: &workload,
        points: &case.points,
        policy: Some(&nothing),
        known_tiers: Some(&known),
        holds: &[],
        wal: None,
        now: case.now,
    };
    assert_eq!(plan_retention(&input).kept().count(), 3);
    input.known_tiers = None;
    assert_eq!(plan_retention(&input).kept().count(), 1);
}

#[test]
fn a_hold_ends_when_somebody_or_its_date_ends_it() {
    let points: Vec<_> = series(3, |n| utc(2026, 3, 1, n));
    let mut case = Case::of(points, policy(), utc(2026, 6, 1, 0));
    let id: HoldId = "hold-1".parse().unwrap();
    case.holds = vec![HoldOn {
        id: id.clone(),
        what: Held::Point(case.points[0].point.id.clone()),
        ends: Some(utc(2026, 6, 2, 0)),
    }];
    assert_eq!(case.kept(), [0, 2]);
    let reasons = vec![KeepReason::Hold { id }];
    assert_eq!(case.plan().points[0].fate, Fate::Kept { reasons });
    case.now = utc(2026, 6, 2, 0);
    assert_eq!(case.kept(), [2]);
    let since = utc(2026, 6, 2, 0);
    assert_eq!(case.plan().points[0].fate, Fate::Removed { since });
}

#[test]
fn a_hold_on_a_span_holds_the_point_it_begins_with() {
    let points: Vec<_> = series(8, |n| utc(2026, 3, 1 + n, 0));
    let mut case = Case::of(points, policy(), utc(2026, 6, 1, 0));
    case.holds = vec![HoldOn {
        id: "hold-1".parse().unwrap(),
        what: Held::Span {
            from: Some(utc(2026, 3, 2, 12)),
            to: Some(utc(2026, 3, 4, 12)),
        },
        ends: None,
    }];
    assert_eq!(case.kept(), [1, 2, 3, 7]);
}

#[test]
fn the_window_begins_with_a_point_of_the_branch_that_is_followed() {
    // Base 0 on timeline 1 at 08:00, base 1 on timeline 1 at 10:00; at 11:00 the database is put back
    // to 09:00 and timeline 2 goes on; at 12:00 base 2 is taken on it.
    let (zero, one) = (
        base(1, 2 * SEGMENT + 40, 3 * SEGMENT),
        base(1, 6 * SEGMENT + 40, 7 * SEGMENT),
    );
    let two = base(2, 6 * SEGMENT + 40, 7 * SEGMENT);
    let at = |hour| utc(2026, 3, 1, hour);
    let points = vec![
        point(0, at(8), Position::Postgres(zero)),
        point(1, at(10), Position::Postgres(one)),
        point(2, at(12), Position::Postgres(two)),
    ];
    let segment = |timeline, number| WalFileName::of_number(number, Timeline(timeline), SEGMENT);
    let mut names: Vec<_> = (0..=8).map(|n| segment(1, n)).collect();
    names.extend((4..=9).map(|n| segment(2, n)));
    names.push(WalFileName::History {
        timeline: Timeline(2),
    });
    let switch = TimelineSwitch {
        parent: Timeline(1),
        at: Lsn(4 * SEGMENT + 100),
    };
    let histories = BTreeMap::from([(Timeline(2), vec![switch])]);
    let wal = WalFacts {
        tails: Vec::new(),
        index: WalIndex::new(&names, histories, SEGMENT),
        names,
        last_written: BTreeMap::from([(Timeline(1), at(11)), (Timeline(2), at(13))]),
    };
    let mut case = Case::of(points, policy(), at(13));
    case.policy.as_mut().unwrap().pitr = Some("90m".parse().unwrap());
    case.wal = Some(wal);
    assert_eq!(case.kept(), [0, 1, 2], "base 1 cannot reach 11:30");
    let plan = case.plan();
    assert_eq!(plan.wal.remove, [segment(1, 0), segment(1, 1)]);
    // A day later both branches before base 2 are over.
    case.now = utc(2026, 3, 2, 13);
    assert_eq!(case.kept(), [2]);
    let gone = case.plan().wal.remove;
    assert!(gone.contains(&segment(1, 8)) && gone.contains(&segment(2, 5)));
    assert!(!gone.contains(&segment(2, 6)));
}

#[test]
fn a_timeline_without_its_history_keeps_everything() {
    let segment = |timeline, number| WalFileName::of_number(number, Timeline(timeline), SEGMENT);
    let names: Vec<_> = (0..4)
        .map(|n| segment(1, n))
        .chain((2..6).map(|n| segment(3, n)))
        .collect();
    let last = base(1, 3 * SEGMENT + 40, 4 * SEGMENT);
    let mut case = Case::of(
        vec![point(0, utc(2026, 3, 1, 0), Position::Postgres(last))],
        policy(),
        utc(2026, 4, 1, 0),
    );
    case.wal = Some(WalFacts {
        tails: Vec::new(),
        index: WalIndex::new(&names, BTreeMap::new(), SEGMENT),
        names,
        last_written: BTreeMap::from([
            (Timeline(1), utc(2026, 3, 1, 0)),
            (Timeline(3), utc(2026, 3, 1, 0)),
        ]),
    });
    let plan = case.plan();
    assert_eq!(
        plan.wal.remove,
        [segment(1, 0), segment(1, 1), segment(1, 2)]
    );
}

#[test]
fn without_any_base_no_wal_goes() {
    let name = WalFileName::of_number(1, Timeline(1), SEGMENT);
    let mut case = Case::of(Vec::new(), policy(), utc(2026, 3, 1, 0));
    case.wal = Some(WalFacts {
        tails: Vec::new(),
        index: WalIndex::new(std::slice::from_ref(&name), BTreeMap::new(), SEGMENT),
        names: vec![name],
        last_written: BTreeMap::new(),
    });
    assert_eq!(case.plan().wal.remove, []);
}

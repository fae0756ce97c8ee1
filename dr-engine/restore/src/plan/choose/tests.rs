use std::collections::BTreeMap;

use super::*;
use dr_backup::TimelineSwitch;
use dr_model::{ByteCount, Lsn, Position, RestorePointId, SystemId, WalFileName};

const SEGMENT: u64 = 16 << 20;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_000_000 + seconds, 0).unwrap()
}

fn workload() -> WorkloadName {
    "erp".parse().unwrap()
}

/// A base backup of segment `number` on `timeline`, ended `seconds` after the beginning of time.
fn base(timeline: u32, number: u64, seconds: i64) -> RestorePoint {
    let name = WalFileName::of_number(number, Timeline(timeline), SEGMENT);
    let position = PostgresPosition {
        system_id: SystemId(1),
        timeline: Timeline(timeline),
        start_lsn: Lsn(number * SEGMENT + 40),
        stop_lsn: Lsn(number * SEGMENT + 400),
        start_segment: name.clone(),
        stop_segment: name,
        wal_segment_bytes: SEGMENT,
        server_version_num: 150_018,
        page_checksums: true,
    };
    RestorePoint {
        id: RestorePointId::new(&workload(), at(seconds)),
        workload: workload(),
        tier: "gold".parse().unwrap(),
        started: at(seconds - 1),
        finished: at(seconds),
        moment: at(seconds),
        position: Position::Postgres(position),
        files: 1,
        bytes_source: ByteCount(1),
        bytes_added: ByteCount(1),
        condition: Condition::Whole,
    }
}

/// Points, WAL by timeline and number, and when the last segment arrived.
fn stored(
    points: Vec<RestorePoint>,
    wal: &[(u32, u64)],
    histories: BTreeMap<Timeline, Vec<TimelineSwitch>>,
    arrived: i64,
) -> Stored {
    let names: Vec<WalFileName> = wal
        .iter()
        .map(|(timeline, number)| WalFileName::of_number(*number, Timeline(*timeline), SEGMENT))
        .collect();
    let wal = WalIndex::new(&names, histories, SEGMENT);
    let reach = points
        .iter()
        .map(|point| {
            let base = point.postgres().unwrap();
            let timeline = wal.timelines_from(base).pop().unwrap();
            let coverage = wal.coverage(base, timeline);
            Reach {
                coverage: Some(coverage),
                arrived: Some(at(arrived)),
            }
        })
        .collect();
    let window = points.first().map(|first| RecoveryWindow {
        from: first.moment,
        to: at(arrived),
        gaps: Vec::new(),
    });
    Stored {
        workload: workload(),
        points,
        window,
        wal,
        reach,
    }
}

fn to(target: Target) -> RestoreRequest {
    RestoreRequest::new(workload(), None, target)
}

fn time(seconds: i64) -> Target {
    Target::Time(at(seconds).fixed_offset())
}

fn replay_of(plan: &RestorePlan) -> &PostgresPlan {
    match &plan.source {
        PlannedSource::Postgres(plan) => plan,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_base_that_ended_before_the_target_is_taken() {
    let points = vec![base(1, 2, 100), base(1, 4, 200), base(1, 6, 300)];
    let middle = points[1].id.clone();
    let all = stored(
        points,
        &[(1, 2), (1, 3), (1, 4), (1, 5), (1, 6)],
        BTreeMap::new(),
        400,
    );
    let plan = cluster(&to(time(299)), &all, None).unwrap();
    assert_eq!(plan.point.id, middle);
    assert_eq!(replay_of(&plan).end, RecoveryEnd::Time { time: at(299) });
    let plan = cluster(&to(Target::Lsn(Lsn(4 * SEGMENT + 400))), &all, None).unwrap();
    assert_eq!(plan.point.id, middle, "a stop exactly at the target counts");
    let plan = cluster(&to(Target::Lsn(Lsn(6 * SEGMENT + 399))), &all, None).unwrap();
    assert_eq!(
        plan.point.id, middle,
        "a base that ends behind the target does not"
    );
}

#[test]
fn a_target_outside_the_window_is_refused_with_the_nearest() {
    let all = stored(
        vec![base(1, 2, 100)],
        &[(1, 2), (1, 3)],
        BTreeMap::new(),
        400,
    );
    for (target, nearest) in [(time(99), at(100)), (time(401), at(400))] {
        let error = cluster(&to(target), &all, None).unwrap_err();
        let RestoreError::Unreachable {
            nearest: said,
            window,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(*said, rfc3339(nearest));
        assert!(error.to_string().contains(window.as_str()), "{error}");
    }
    let behind = Target::Lsn(Lsn(4 * SEGMENT));
    assert!(matches!(
        cluster(&to(behind), &all, None),
        Err(RestoreError::Unreachable { .. })
    ));
}

#[test]
fn a_target_behind_a_gap_is_refused_and_the_gap_named() {
    let all = stored(
        vec![base(1, 2, 100)],
        &[(1, 2), (1, 3), (1, 5)],
        BTreeMap::new(),
        200,
    );
    let error = cluster(&to(time(300)), &all, None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("000000010000000000000004 is missing"),
        "{error}"
    );
    let plan = cluster(&to(Target::Latest), &all, None).unwrap();
    assert_eq!(replay_of(&plan).reaches_lsn, Lsn(4 * SEGMENT));
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("000000010000000000000004"))
    );
}

#[test]
fn the_live_server_makes_a_late_target_reachable() {
    let all = stored(
        vec![base(1, 2, 100)],
        &[(1, 2), (1, 3)],
        BTreeMap::new(),
        400,
    );
    let request = to(time(450));
    assert!(may_lie_behind_the_archive(&request, &all));
    // That a segment arrived late does not say that the commits in it are as late; a later base does.
    assert!(may_lie_behind_the_archive(&to(time(200)), &all));
    let later = stored(
        vec![base(1, 2, 100), base(1, 3, 300)],
        &[(1, 2), (1, 3)],
        BTreeMap::new(),
        400,
    );
    assert!(!may_lie_behind_the_archive(&to(time(200)), &later));
    let completed = Asked::Completed { at: at(460) };
    assert!(cluster(&request, &all, Some(&completed)).is_ok());
    // A moment that has not come yet is not reachable, whoever says that he wrote everything.
    let early = Asked::Completed { at: at(440) };
    assert!(cluster(&request, &all, Some(&early)).is_err());
    let gone = Asked::Unavailable {
        why: "it is gone".to_owned(),
    };
    let error = cluster(&request, &all, Some(&gone)).unwrap_err();
    assert!(error.to_string().contains("it is gone"), "{error}");
}

#[test]
fn the_newest_timeline_is_followed_and_abandoned_bases_are_not_used() {
    let switch = TimelineSwitch {
        parent: Timeline(1),
        at: Lsn(4 * SEGMENT + 100),
    };
    let histories = BTreeMap::from([(Timeline(2), vec![switch])]);
    let kept = base(1, 2, 100);
    let abandoned = base(1, 5, 200);
    let (kept_id, abandoned_id) = (kept.id.clone(), abandoned.id.clone());
    let wal = [(1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 4), (2, 5)];
    let all = stored(vec![kept, abandoned], &wal, histories, 400);
    let plan = cluster(&to(time(300)), &all, None).unwrap();
    assert_eq!(plan.point.id, kept_id);
    assert_eq!(replay_of(&plan).timeline, Timeline(2));
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("timeline 2 is followed"))
    );
    // By its name an abandoned base can still be had, on its own timeline.
    let plan = cluster(&to(Target::RestorePoint(abandoned_id)), &all, None).unwrap();
    assert_eq!(replay_of(&plan).timeline, Timeline(1));
    assert_eq!(replay_of(&plan).end, RecoveryEnd::Consistent);
}

#[test]
fn a_base_without_its_own_wal_is_not_used() {
    let all = stored(vec![base(1, 2, 100)], &[(1, 3)], BTreeMap::new(), 400);
    assert!(matches!(
        cluster(&to(Target::Latest), &all, None),
        Err(RestoreError::Unreachable { .. })
    ));
    let id = all.points[0].id.clone();
    assert!(matches!(
        cluster(&to(Target::RestorePoint(id)), &all, None),
        Err(RestoreError::BadPoint { .. })
    ));
}

#[test]
fn a_hole_in_the_wal_is_never_taken_for_its_end() {
    // Segment 4 is missing and 5 is there; what comes before the hole arrived until 400.
    let all = stored(
        vec![base(1, 2, 100)],
        &[(1, 2), (1, 3), (1, 5)],
        BTreeMap::new(),
        400,
    );
    let asked = Asked::Completed { at: at(500) };
    let error = cluster(&to(time(399)), &all, Some(&asked)).unwrap_err();
    assert!(
        error.to_string().contains("000000010000000000000004"),
        "{error}"
    );
    // Long before the hole it is tried; if no commit behind the target shows up, that is a failure.
    let plan = cluster(&to(time(200)), &all, None).unwrap();
    assert!(!replay_of(&plan).end_of_archive_is_enough);
    let whole = stored(
        vec![base(1, 2, 100)],
        &[(1, 2), (1, 3)],
        BTreeMap::new(),
        400,
    );
    let plan = cluster(&to(time(200)), &whole, None).unwrap();
    assert!(replay_of(&plan).end_of_archive_is_enough);
}

use super::*;
use dr_model::SystemId;

const SEGMENT: u64 = 16 << 20;

fn segment(timeline: u32, number: u64) -> WalFileName {
    WalFileName::of_number(number, Timeline(timeline), SEGMENT)
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

#[test]
fn a_missing_segment_ends_the_chain_and_is_named() {
    let names: Vec<_> = [2, 3, 4, 6, 7].map(|n| segment(1, n)).into();
    let index = WalIndex::new(&names, BTreeMap::new(), SEGMENT);
    let coverage = index.coverage(&base(1, 2 * SEGMENT + 40, 3 * SEGMENT), Timeline(1));
    assert_eq!(coverage.last, Some(segment(1, 4)));
    assert_eq!(coverage.reaches_lsn, Lsn(5 * SEGMENT));
    assert_eq!(coverage.gaps, [segment(1, 5).to_string()]);
}

#[test]
fn a_base_without_its_first_segment_reaches_nothing() {
    let index = WalIndex::new(&[segment(1, 3)], BTreeMap::new(), SEGMENT);
    let coverage = index.coverage(&base(1, 2 * SEGMENT + 40, 3 * SEGMENT), Timeline(1));
    assert_eq!(coverage.last, None);
    assert_eq!(coverage.segments, 0);
    assert_eq!(coverage.gaps, [segment(1, 2).to_string()]);
}

#[test]
fn the_chain_follows_a_timeline_switch() {
    let switch = TimelineSwitch {
        parent: Timeline(1),
        at: Lsn(4 * SEGMENT + 100),
    };
    let histories = BTreeMap::from([(Timeline(2), vec![switch])]);
    let mut names: Vec<_> = [2, 3, 4, 5, 6].map(|n| segment(1, n)).into();
    names.extend([4, 5].map(|n| segment(2, n)));
    let index = WalIndex::new(&names, histories, SEGMENT);
    let before = base(1, 2 * SEGMENT + 40, 3 * SEGMENT);
    assert_eq!(index.timelines_from(&before), [Timeline(1), Timeline(2)]);
    let coverage = index.coverage(&before, Timeline(2));
    assert_eq!(coverage.last, Some(segment(2, 5)));
    assert_eq!(coverage.segments, 4);
    // A base that ended behind the switch belongs to the abandoned branch only.
    let behind = base(1, 5 * SEGMENT + 40, 6 * SEGMENT);
    assert_eq!(index.timelines_from(&behind), [Timeline(1)]);
}

#[test]
fn history_files_read_as_postgresql_writes_them() {
    let text = "1\t0/5000000\tno recovery target specified\n\n2\t0/7000148\tbefore 2026-11-23\n";
    let switches = parse_history(text).unwrap();
    assert_eq!(switches.len(), 2);
    assert_eq!(
        switches[1],
        TimelineSwitch {
            parent: Timeline(2),
            at: Lsn(0x0700_0148)
        }
    );
    assert!(parse_history("nonsense").is_none());
    assert!(
        parse_history("2\t0/1\tx\n1\t0/2\ty\n").is_none(),
        "parents must ascend"
    );
}

fn tail(to: u64, is_servers_end: bool) -> TailEnd {
    TailEnd {
        to: Lsn(to),
        sent_at: chrono::DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        is_servers_end,
    }
}

#[test]
fn what_was_streamed_behind_the_chain_is_reached_and_lacks_nothing() {
    let names: Vec<_> = [2, 3, 4].map(|n| segment(1, n)).into();
    let mut index = WalIndex::new(&names, BTreeMap::new(), SEGMENT);
    let from = base(1, 2 * SEGMENT + 40, 3 * SEGMENT);
    let end = 5 * SEGMENT + 77;
    index.tails.insert((Timeline(1), 5), tail(end, true));
    let coverage = index.coverage(&from, Timeline(1));
    assert_eq!(coverage.reaches_lsn, Lsn(end));
    assert_eq!(coverage.last, Some(segment(1, 4)));
    assert_eq!(coverage.gaps, [""; 0]);
    // Left behind: its rest is missing, and what comes after it is out of reach.
    index
        .tails
        .insert((Timeline(1), 7), tail(7 * SEGMENT + 5, true));
    let coverage = index.coverage(&from, Timeline(1));
    assert_eq!(coverage.reaches_lsn, Lsn(end));
    assert_eq!(coverage.gaps, [5, 6].map(|n| segment(1, n).to_string()));
    assert_eq!(index.newest_whole_wanted(Timeline(1)), Some(6));
}

#[test]
fn until_the_child_has_something_the_parents_tail_serves_up_to_the_switch() {
    let at = 4 * SEGMENT + 100;
    let switch = TimelineSwitch {
        parent: Timeline(1),
        at: Lsn(at),
    };
    let histories = BTreeMap::from([(Timeline(2), vec![switch])]);
    let names: Vec<_> = [2, 3].map(|n| segment(1, n)).into();
    let mut index = WalIndex::new(&names, histories, SEGMENT);
    let from = base(1, 2 * SEGMENT + 40, 3 * SEGMENT);
    index.tails.insert((Timeline(1), 4), tail(at + 900, true));
    let coverage = index.coverage(&from, Timeline(2));
    assert_eq!((coverage.reaches_lsn, coverage.gaps.len()), (Lsn(at), 0));
    assert!(coverage.tail.is_some_and(|tail| !tail.is_servers_end));
    index.tails.insert((Timeline(2), 4), tail(at + 300, true));
    let coverage = index.coverage(&from, Timeline(2));
    assert_eq!(coverage.reaches_lsn, Lsn(at + 300));
}

/// How it stands behind a base of timeline 1 that begins in segment 2; timeline 2 left timeline 1 in segment 6.
fn behind(stored: &[(u32, u64)]) -> BehindNewest {
    let switch = TimelineSwitch {
        parent: Timeline(1),
        at: Lsn(6 * SEGMENT + 100),
    };
    let names: Vec<_> = stored.iter().map(|(of, n)| segment(*of, *n)).collect();
    let index = WalIndex::new(
        &names,
        BTreeMap::from([(Timeline(2), vec![switch])]),
        SEGMENT,
    );
    let base = base(1, 2 * SEGMENT + 40, 3 * SEGMENT);
    let coverage = index.coverage(&base, Timeline(2));
    BehindNewest {
        timeline: Timeline(2),
        reaches: coverage.reaches_lsn,
        has_gaps: !coverage.gaps.is_empty(),
        first_missing: index.first_missing(Timeline(2), &coverage),
        is_of_a_copy: false,
        base,
        index,
    }
}

#[test]
fn a_segment_that_is_not_full_yet_is_not_missing() {
    let old: Vec<(u32, u64)> = (2..=6).map(|n| (1, n)).collect();
    assert_eq!(behind(&old).first_missing, None, "just promoted");
    let with = |more: &[(u32, u64)]| behind(&[&old, more].concat()).first_missing;
    assert_eq!(with(&[(2, 6), (2, 7)]), None);
    assert_eq!(with(&[(2, 7)]), Some(segment(2, 6)));
    assert_eq!(with(&[(2, 6), (2, 8)]), Some(segment(2, 7)));
}

#[test]
fn only_what_lies_on_the_way_and_behind_the_base_cuts_it() {
    let cut = behind(&[(1, 2), (1, 3), (2, 9)]);
    let is_cut = |of: u32, number: u64| cut.is_cut_by(&segment(of, number));
    assert!(!is_cut(1, 1), "before the base");
    assert!(!is_cut(1, 3), "it is stored");
    assert!(is_cut(1, 4) && is_cut(1, 5));
    assert!(!is_cut(1, 6), "timeline 2 has that segment of its own");
    assert!(!is_cut(1, 8), "on the branch that was left");
    assert!(is_cut(2, 6) && is_cut(2, 8));
    // Somebody stored them since.
    let filled = behind(&[(1, 2), (1, 3), (1, 4), (1, 5), (2, 6), (2, 7)]);
    assert!(!filled.is_cut_by(&segment(1, 4)));
    assert!(filled.is_cut_by(&segment(2, 8)));
}

#[test]
fn the_present_is_judged_along_the_timeline_that_production_writes() {
    let folder = tempfile::tempdir().unwrap();
    let place = dr_store::LocalBackend::new(&folder.path().join("repository"));
    let key = dr_store::RepositoryKey::generate();
    let repository = Repository::create(std::sync::Arc::new(place), &key).unwrap();
    let workload: WorkloadName = "erp".parse().unwrap();
    let at = |minute: i64| chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(minute);
    let point = |minute: i64, base: PostgresPosition| RestorePoint {
        id: dr_model::RestorePointId::new(&workload, at(minute)),
        workload: workload.clone(),
        tier: "gold".parse().unwrap(),
        started: at(minute),
        finished: at(minute),
        moment: at(minute),
        position: dr_model::Position::Postgres(base),
        files: 1,
        bytes_source: dr_model::ByteCount(1),
        bytes_added: dr_model::ByteCount(1),
        condition: dr_model::Condition::Whole,
    };
    let put = |name: &WalFileName, body: &[u8], minute: i64| {
        repository
            .put_wal(&workload, name, body, at(minute))
            .unwrap();
    };
    let points = [
        point(1, base(1, 2 * SEGMENT + 40, 3 * SEGMENT)),
        point(9, base(1, 8 * SEGMENT + 40, 9 * SEGMENT)),
    ];
    for number in 2..=9 {
        put(
            &segment(1, number),
            b"of the old one",
            i64::try_from(number).unwrap(),
        );
    }
    let judged = || {
        let behind = look(&repository, &workload, &points)
            .unwrap()
            .behind
            .unwrap();
        (behind.base.start_lsn.0 / SEGMENT, behind.timeline.0)
    };
    assert_eq!(judged(), (8, 1));
    // Restored in place to before the second one.
    let history = WalFileName::History {
        timeline: Timeline(2),
    };
    let text = format!("1\t{}\tno recovery target\n", Lsn(5 * SEGMENT + 100));
    put(&history, text.as_bytes(), 8);
    put(&segment(2, 5), b"of a trial", 8);
    assert_eq!(
        judged(),
        (8, 1),
        "that was left again before the second one"
    );
    put(&segment(2, 6), b"of the new one", 10);
    assert_eq!(judged(), (2, 2));
}

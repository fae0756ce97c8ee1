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

use super::*;
use crate::reader::tests::Log;

/// Manager, info and data of a record.
type Said = (u8, u8, Vec<u8>);

const LATEST: u32 = 15;
const WAL_LEVEL_MINIMAL: u32 = 0;
const WAL_LEVEL_REPLICA: u32 = 1;

fn add_all(summary: &mut Summary, records: &[Said], major: u32) -> Vec<Result<(), &'static str>> {
    let mut log = Log::new();
    for (manager, info, data) in records {
        log.record_of(*manager, *info, data);
    }
    let mut said = Vec::new();
    log.each(&mut |record| said.push(summary.add(record, major)));
    assert_eq!(said.len(), records.len(), "not all were read");
    said
}

/// Why the records' changes are not all in their summary.
fn doubts(records: &[Said], major: u32) -> Vec<String> {
    let mut summary = Summary::default();
    let said = add_all(&mut summary, records, major);
    assert_eq!(said, vec![Ok(()); records.len()]);
    summary.doubts.into_iter().collect()
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|it| it.to_le_bytes()).collect()
}

/// `xl_parameter_change`: five numbers, the level, and two switches.
fn parameters(wal_level: u32) -> Said {
    let mut data = numbers(&[100, 8, 10, 0, 64, wal_level]);
    data.extend_from_slice(&[0, 0]);
    (Manager::XLOG.0, XLOG_PARAMETER_CHANGE, data)
}

/// A relation is made: it is in the main fork of 1663/5/16384.
fn made() -> Said {
    let data = numbers(&[1663, 5, 16_384, 0]);
    (Manager::STORAGE.0, STORAGE_CREATE, data)
}

#[test]
fn records_of_a_manager_that_is_not_known_are_doubted() {
    let known = (0..=u8::MAX)
        .find(|it| Manager(*it).name().is_none())
        .unwrap();
    // From 128 on they are an extension's own.
    for manager in [known, 127, 128, 200, 255] {
        let doubts = doubts(&[made(), (manager, 0, vec![1; 40]), made()], LATEST);
        let wanted = format!("records of resource manager {manager}");
        assert_eq!(doubts, [wanted]);
    }
    // Those that only rows, locks and messages are of are not.
    for manager in [Manager::STANDBY.0, 3, 5, 21] {
        assert!(doubts(&[(manager, 0, vec![0; 40])], LATEST).is_empty());
    }
}

/// Whoever wrote such a record changed files that it does not name as blocks: only of three managers it is
/// known which.
#[test]
fn a_record_that_changes_files_beside_its_blocks_is_doubted_unless_it_says_which() {
    for manager in (0..=21).filter(|manager| ![1, 2, 4].contains(manager)) {
        // No kind of record that says something else.
        let said = (manager, 0x70 | SPECIAL, vec![0; 40]);
        let doubts = doubts(&[said], LATEST);
        let wanted = format!("a record of manager {manager} changes files");
        assert_eq!(doubts, [wanted]);
        let plain = self::doubts(&[(manager, 0x70, vec![0; 40])], LATEST);
        assert!(plain.is_empty(), "{plain:?}");
    }
    let commit = (Manager::TRANSACTION.0, SPECIAL, 0u64.to_le_bytes().to_vec());
    let (manager, info, data) = made();
    let relation = (manager, info | SPECIAL, data);
    let database = (Manager::DATABASE.0, SPECIAL, numbers(&[5, 1663, 1, 1663]));
    assert!(doubts(&[commit, relation, database], LATEST).is_empty());
}

#[test]
fn a_kind_of_record_about_relations_that_is_not_known_is_doubted() {
    for kind in (0..=0xF0u8).step_by(0x10) {
        let doubts = doubts(&[(Manager::STORAGE.0, kind, vec![0; 40])], LATEST);
        if [STORAGE_CREATE, STORAGE_TRUNCATE].contains(&kind) {
            assert!(doubts.is_empty(), "{kind:02X}: {doubts:?}");
        } else {
            let wanted = "a record of relations of a kind that is not known";
            assert_eq!(doubts, [wanted], "{kind:02X}");
        }
    }
}

#[test]
fn a_kind_of_record_about_databases_that_is_not_known_is_doubted() {
    for (major, known) in [
        (14, &[0x00, 0x10][..]),
        (15, &[0x00, 0x10, 0x20]),
        (18, &[0x00, 0x10, 0x20]),
    ] {
        for kind in (0..=0xF0u8).step_by(0x10) {
            let data = numbers(&[5, 1, 1663, 0]);
            let doubts = doubts(&[(Manager::DATABASE.0, kind, data)], major);
            if known.contains(&kind) {
                assert!(doubts.is_empty(), "{major}, {kind:02X}: {doubts:?}");
            } else {
                let wanted = "a record of databases of a kind that is not known";
                assert_eq!(doubts, [wanted], "{major}, {kind:02X}");
            }
        }
    }
}

#[test]
fn a_minimal_level_is_doubted_whatever_it_was_before_and_whatever_it_is_again() {
    let wanted = ["wal_level was minimal, or may have been".to_owned()];
    // What it was before the first change is not told.
    assert_eq!(doubts(&[made(), parameters(WAL_LEVEL_REPLICA)], 15), wanted);
    assert_eq!(doubts(&[made(), parameters(WAL_LEVEL_MINIMAL)], 15), wanted);

    let mut summary = Summary::default();
    add_all(&mut summary, &[parameters(WAL_LEVEL_REPLICA)], LATEST);
    summary.doubts.clear();
    // Of something else, and to a level that is enough.
    let other = (Manager::XLOG.0, 0x10, numbers(&[0; 10]));
    add_all(&mut summary, &[other, parameters(2)], LATEST);
    assert!(summary.doubts.is_empty(), "{:?}", summary.doubts);
    let (down, up) = (parameters(WAL_LEVEL_MINIMAL), parameters(WAL_LEVEL_REPLICA));
    add_all(&mut summary, &[down, made(), up], LATEST);
    assert!(summary.doubts.into_iter().eq(wanted));
}

#[test]
fn a_record_that_is_cut_short_is_an_error() {
    let relation = (Manager::STORAGE.0, STORAGE_CREATE, numbers(&[1663, 5]));
    let cut = (Manager::STORAGE.0, STORAGE_TRUNCATE, numbers(&[7, 1663, 5]));
    let database = (Manager::DATABASE.0, 0, numbers(&[5]));
    let dropped = (Manager::DATABASE.0, 0x20, numbers(&[5, 2, 1663]));
    let level = (Manager::XLOG.0, XLOG_PARAMETER_CHANGE, numbers(&[0; 5]));
    for record in [relation, cut, database, dropped, level] {
        let said = add_all(
            &mut Summary::default(),
            std::slice::from_ref(&record),
            LATEST,
        );
        assert!(said[0].is_err(), "{record:?}");
    }
}

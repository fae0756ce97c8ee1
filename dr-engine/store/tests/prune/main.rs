//! Pruning: what nothing needs goes, what anything needs stays, whatever else happens at the time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use dr_model::{RestorePointId, Silent, WorkloadName};
use dr_store::{
    Backend, CheckOptions, Cutting, LocalBackend, PruneOptions, PruneReport, PruneRequest,
    Repository, SessionState, StoreError, WriteOptions,
};
use dr_testkit::{TempRepository, files_point, meta};

mod backends;

use backends::{Gate, GatedBackend, LockedBackend, StoppedBackend};

fn erp() -> WorkloadName {
    "erp".parse().unwrap()
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8))
        .flat_map(|_| next())
        .take(length)
        .collect()
}

/// The content of file `file` as of version `version`.
fn content(file: u64, version: u64) -> Vec<u8> {
    noise(file * 1000 + version, 60_000)
}

/// The number of a file of many chunks.
const LARGE: u64 = 100;

/// What a restore point holds: file by version.
type Files = BTreeMap<u64, u64>;

fn options() -> PruneOptions {
    PruneOptions {
        // One file system has one clock.
        clock_slack: Duration::ZERO,
        ..PruneOptions::default()
    }
}

fn back_up(repository: &Repository, files: &Files, at: i64) -> Result<RestorePointId, StoreError> {
    let writer = repository.begin(&erp(), WriteOptions::default())?;
    for (file, version) in files {
        let body = content(*file, *version);
        writer.add_file(
            meta(&format!("f{file}")),
            &mut body.as_slice(),
            Cutting::Content,
        )?;
    }
    // Of some size, so that there is a list of chunks below it.
    if files.contains_key(&LARGE) {
        let large: Vec<u8> = (0..40)
            .flat_map(|part| noise(7 + part, 256 * 1024))
            .collect();
        writer.add_file(meta("large"), &mut large.as_slice(), Cutting::Pages)?;
    }
    let point = files_point("erp", DateTime::from_timestamp(at, 0).unwrap());
    Ok(writer.finish(point, serde_json::Value::Null)?.id)
}

fn request(
    repository: &Repository,
    points: &[RestorePointId],
    options: PruneOptions,
) -> PruneRequest {
    PruneRequest {
        storage_classes: HashMap::new(),
        decided_at: repository.anchors().unwrap(),
        points: points.iter().map(|id| (erp(), id.clone())).collect(),
        wal: Vec::new(),
        options,
    }
}

fn prune(
    repository: &Repository,
    points: &[RestorePointId],
    options: PruneOptions,
) -> Result<PruneReport, StoreError> {
    let plan = repository.plan_prune(&request(repository, points, options), &Silent)?;
    repository.prune(&plan, &Silent)
}

/// Every byte is right, and every listed point is what it was.
fn expect_whole(repository: &Repository, expected: &BTreeMap<RestorePointId, Files>) {
    let report = repository
        .check(CheckOptions { read_data: true }, &Silent)
        .unwrap();
    assert_eq!(report.problems, []);
    for (id, files) in expected {
        let point = repository
            .point(id)
            .unwrap()
            .unwrap_or_else(|| panic!("{id} is gone"));
        for entry in repository.entries(&point).unwrap() {
            let mut body = Vec::new();
            repository.read_file(&point, &entry, &mut body).unwrap();
            if let Some(file) = entry.meta.path.strip_prefix('f') {
                let file: u64 = file.parse().unwrap();
                assert_eq!(body, content(file, files[&file]), "{id} {file}");
            }
        }
    }
}

/// [`history`] with a file of many chunks, which stays as it is.
fn history_with_large(repository: &Repository, points: u64) -> Vec<(RestorePointId, Files)> {
    history_of(repository, points, &[LARGE])
}

/// A history: each point changes some files of the one before it.
fn history(repository: &Repository, points: u64) -> Vec<(RestorePointId, Files)> {
    history_of(repository, points, &[])
}

fn history_of(repository: &Repository, points: u64, more: &[u64]) -> Vec<(RestorePointId, Files)> {
    let files = (0..12).chain(more.iter().copied());
    let mut files: Files = files.map(|file| (file, 0)).collect();
    let mut made = Vec::new();
    for number in 0..points {
        for file in [number % 12, (number * 5 + 1) % 12] {
            files.insert(file, number + 1);
        }
        let id = back_up(repository, &files, i64::try_from(number).unwrap()).unwrap();
        made.push((id, files.clone()));
    }
    made
}

fn stored_bytes(temp: &TempRepository) -> u64 {
    let listed = LocalBackend::new(&temp.path()).list("data/").unwrap();
    listed.iter().map(|entry| entry.size).sum()
}

fn objects(temp: &TempRepository, prefix: &str) -> usize {
    LocalBackend::new(&temp.path()).list(prefix).unwrap().len()
}

#[test]
fn what_only_removed_points_needed_goes_and_the_rest_stays_whole() {
    let temp = TempRepository::new();
    let made = history_with_large(&temp.repository, 10);
    let (going, staying) = made.split_at(7);
    let going: Vec<_> = going.iter().map(|(id, _)| id.clone()).collect();
    let before = stored_bytes(&temp);
    let plan = temp
        .repository
        .plan_prune(&request(&temp.repository, &going, options()), &Silent)
        .unwrap();
    assert_eq!(stored_bytes(&temp), before, "a plan changes nothing");
    let report = temp.repository.prune(&plan, &Silent).unwrap();
    assert_eq!(report.points, going);
    assert!(
        report.packs_deleted > 0 && report.notes.is_empty(),
        "{report:?}"
    );
    assert!(stored_bytes(&temp) < before);
    expect_whole(&temp.reopen(), &staying.iter().cloned().collect());
    expect_whole(&temp.repository, &staying.iter().cloned().collect());
    assert_eq!(temp.repository.points(None).unwrap().len(), 3);
    assert_eq!(objects(&temp, "points/"), 3);
    assert_eq!(
        objects(&temp, "condemned/") + objects(&temp, "sessions/"),
        0
    );
    // Nothing is left to do.
    let plan = temp
        .repository
        .plan_prune(&request(&temp.repository, &[], options()), &Silent)
        .unwrap();
    assert!(
        plan.workloads.iter().all(dr_store::WorkloadPrune::is_empty),
        "{plan:?}"
    );
}

#[test]
fn removing_everything_leaves_no_data() {
    let temp = TempRepository::new();
    let going: Vec<_> = history(&temp.repository, 3)
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    prune(&temp.repository, &going, options()).unwrap();
    assert_eq!(stored_bytes(&temp), 0);
    assert_eq!(objects(&temp, "index/"), 0);
    expect_whole(&temp.repository, &BTreeMap::new());
    // And it goes on from there.
    let files: Files = BTreeMap::from([(1, 1)]);
    let id = back_up(&temp.repository, &files, 100).unwrap();
    expect_whole(&temp.reopen(), &BTreeMap::from([(id, files)]));
}

#[test]
fn many_small_indexes_and_packs_become_few() {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 30);
    assert!(objects(&temp, "index/") >= 30);
    prune(&temp.repository, &[], options()).unwrap();
    // What is left of the copying makes one more small index.
    prune(&temp.repository, &[], options()).unwrap();
    assert!(
        objects(&temp, "index/") <= 9,
        "{}",
        objects(&temp, "index/")
    );
    assert!(objects(&temp, "data/") <= 17, "{}", objects(&temp, "data/"));
    expect_whole(&temp.reopen(), &made.into_iter().collect());
}

#[test]
fn the_newest_64_entries_of_the_list_are_kept() {
    let temp = TempRepository::new();
    back_up(&temp.repository, &BTreeMap::new(), 0).unwrap();
    for _ in 0..80 {
        temp.repository.outdate_plans(&erp(), Utc::now()).unwrap();
    }
    prune(&temp.repository, &[], options()).unwrap();
    assert_eq!(objects(&temp, "chain/"), 64);
    assert_eq!(temp.reopen().points(None).unwrap().len(), 1);
    expect_whole(&temp.repository, &BTreeMap::new());
}

#[test]
fn a_plan_over_an_older_list_is_not_carried_out() {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 3);
    let request = request(&temp.repository, &[made[0].0.clone()], options());
    // Somebody places a hold.
    temp.repository.outdate_plans(&erp(), Utc::now()).unwrap();
    let plan = temp.repository.plan_prune(&request, &Silent).unwrap();
    let error = temp.repository.prune(&plan, &Silent).unwrap_err();
    assert!(
        matches!(error, StoreError::PlanOutdated { .. }),
        "{error:?}"
    );
    expect_whole(&temp.repository, &made.into_iter().collect());
}

#[test]
fn a_repository_that_lacks_something_is_not_pruned() {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 4);
    let backend = LocalBackend::new(&temp.path());
    let index = backend.list("index/").unwrap().remove(0).name;
    backend.delete(&index).unwrap();
    let error = prune(&temp.reopen(), &[made[0].0.clone()], options()).unwrap_err();
    assert!(
        matches!(error, StoreError::ObjectMissing { .. }),
        "{error:?}"
    );
    assert_eq!(temp.repository.points(None).unwrap().len(), 4);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_stop_at_every_step_leaves_a_whole_repository_and_the_next_run_goes_on() {
    let template = TempRepository::new();
    let made = history(&template.repository, 10);
    let (going, staying) = made.split_at(8);
    let going: Vec<_> = going.iter().map(|(id, _)| id.clone()).collect();
    let staying: BTreeMap<_, _> = staying.iter().cloned().collect();
    // A process that was stopped has no session any more; this one lives on, so it is too old.
    let again = PruneOptions {
        session_age_max: Duration::ZERO,
        ..options()
    };
    for step in 0.. {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&template.path(), folder.path());
        let count = |prefix| LocalBackend::new(folder.path()).list(prefix).unwrap().len();
        let open = |backend| Repository::open(backend, &template.key).unwrap();
        let stopped = Arc::new(StoppedBackend::new(LocalBackend::new(folder.path())));
        let repository = open(stopped.clone());
        let request = request(&repository, &going, options());
        let plan = repository.plan_prune(&request, &Silent).unwrap();
        stopped.stop_after(step);
        let ended = repository.prune(&plan, &Silent);
        drop(repository);
        let repository = open(Arc::new(LocalBackend::new(folder.path())));
        expect_whole(&repository, &staying);
        if !stopped.is_stopped() {
            let report = ended.unwrap();
            assert!(
                report.packs_rewritten > 0 && report.packs_deleted > 0,
                "{report:?}"
            );
            assert!(step > 30, "{step} steps only");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
        prune(&repository, &going, again).unwrap();
        expect_whole(&repository, &staying);
        assert_eq!(repository.points(None).unwrap().len(), 2, "step {step}");
        assert_eq!(count("points/"), 2, "step {step}");
        assert_eq!(count("condemned/") + count("sessions/"), 0, "step {step}");
    }
}

#[test]
fn what_a_running_backup_stored_or_relies_on_stays() {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 6);
    let going: Vec<_> = made.iter().map(|(id, _)| id.clone()).collect();
    let repository = temp.reopen();
    let writer = repository.begin(&erp(), WriteOptions::default()).unwrap();
    let (old, new) = (content(1, made[5].1[&1]), noise(99, 100_000));
    for (path, body) in [("old", &old), ("new", &new)] {
        writer
            .add_file(meta(path), &mut body.as_slice(), Cutting::Content)
            .unwrap();
    }
    let report = prune(&temp.repository, &going, options()).unwrap();
    assert_eq!(report.packs_deleted, 0);
    assert!(report.packs_waiting > 0);
    let point = files_point("erp", DateTime::from_timestamp(50, 0).unwrap());
    let id = writer.finish(point, serde_json::Value::Null).unwrap().id;
    let report = prune(&temp.repository, &[], options()).unwrap();
    assert!(report.packs_deleted > 0);
    expect_whole(&temp.reopen(), &BTreeMap::new());
    let point = temp.repository.point(&id).unwrap().unwrap();
    for entry in temp.repository.entries(&point).unwrap() {
        let mut body = Vec::new();
        temp.repository
            .read_file(&point, &entry, &mut body)
            .unwrap();
        assert_eq!(
            body,
            if entry.meta.path == "old" {
                old.clone()
            } else {
                new.clone()
            }
        );
    }
}

/// A backup that is suspended before it stores something whose name begins with `before`, for longer
/// than any grace period, while everything it relied on is pruned.
fn suspended(before: &str) {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 4);
    let (gone, kept) = made.split_at(3);
    let gate = Gate::new(before);
    let backend = GatedBackend::new(LocalBackend::new(&temp.path()), gate.clone());
    let repository = Repository::open(Arc::new(backend), &temp.key).unwrap();
    gate.close();
    let mut files = gone[0].1.clone();
    files.insert(3, 500);
    let writer = std::thread::spawn(move || back_up(&repository, &files, 77));
    gate.wait_until_reached();
    let expired = PruneOptions {
        session_age_max: Duration::ZERO,
        ..options()
    };
    let going: Vec<_> = gone.iter().map(|(id, _)| id.clone()).collect();
    let report = prune(&temp.reopen(), &going, expired).unwrap();
    assert_eq!(report.sessions_ended, 1);
    assert!(report.packs_deleted > 0, "what it relied on is gone");
    gate.open();
    let error = writer.join().unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::SessionEnded { .. }
                | StoreError::Condemned { .. }
                | StoreError::ObjectMissing { .. }
        ),
        "{before}: {error:?}"
    );
    let repository = temp.reopen();
    assert_eq!(repository.points(None).unwrap().len(), 1, "{before}");
    expect_whole(&repository, &kept.iter().cloned().collect());
    prune(&repository, &[], expired).unwrap();
    assert_eq!(objects(&temp, "points/"), 1, "{before}");
    expect_whole(&repository, &kept.iter().cloned().collect());
}

#[test]
fn a_backup_that_wakes_before_its_restore_point_is_stored_gives_up() {
    suspended("points/");
}

#[test]
fn a_backup_that_wakes_between_its_last_look_and_the_list_gives_up() {
    suspended("chain/");
}

#[test]
fn a_backup_that_wakes_before_its_packs_gives_up() {
    suspended("data/");
}

#[test]
fn a_backup_that_lists_its_point_as_its_session_ends_keeps_what_it_needs() {
    let temp = TempRepository::new();
    let gated = || {
        let gate = Gate::new("chain/");
        let backend = GatedBackend::new(LocalBackend::new(&temp.path()), gate.clone());
        let repository = Repository::open(Arc::new(backend), &temp.key).unwrap();
        (gate, repository)
    };
    let files: Files = BTreeMap::from([(1, 900), (2, 900)]);
    let gone = back_up(&temp.repository, &files, 1).unwrap();
    history(&temp.repository, 1);
    // A prune that died behind the list leaves packs that no point needs; the next backup relies on them.
    let stopped = Arc::new(StoppedBackend::new(LocalBackend::new(&temp.path())));
    let repository = Repository::open(stopped.clone(), &temp.key).unwrap();
    let request = request(&repository, &[gone], options());
    let plan = repository.plan_prune(&request, &Silent).unwrap();
    // Behind the list and the object of the point, so that the next prune has nothing to add to the list.
    stopped.stop_after(3);
    repository.prune(&plan, &Silent).unwrap_err();
    let place = LocalBackend::new(&temp.path());
    for session in place.list("sessions/").unwrap() {
        place.delete(&session.name).unwrap();
    }
    let (backup_gate, writing) = gated();
    backup_gate.close();
    let expected = files.clone();
    let writer = std::thread::spawn(move || back_up(&writing, &files, 77));
    // It has looked for the last time, and found its session alive and nothing condemned.
    backup_gate.wait_until_reached();
    let report = prune(&temp.reopen(), &[], options()).unwrap();
    assert!(
        report.packs_waiting > 0 && report.packs_deleted == 0,
        "{report:?}"
    );
    // Another prune ends its session, and is held up before the entry that fences it off.
    let (prune_gate, pruner) = gated();
    prune_gate.close();
    let expired = PruneOptions {
        session_age_max: Duration::ZERO,
        ..options()
    };
    let pruning = std::thread::spawn(move || prune(&pruner, &[], expired));
    prune_gate.wait_until_reached();
    backup_gate.open();
    let id = writer.join().unwrap().unwrap();
    prune_gate.open();
    let report = pruning.join().unwrap().unwrap();
    assert_eq!(report.packs_deleted, 0, "what the point needs stays");
    expect_whole(&temp.reopen(), &BTreeMap::from([(id, expected)]));
}

#[test]
fn backups_and_prunes_of_several_threads_at_once_lose_nothing() {
    let temp = TempRepository::new();
    let path = temp.path();
    let open = || Repository::open(Arc::new(LocalBackend::new(&path)), &temp.key).unwrap();
    history(&temp.repository, 2);
    let listed = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let repository = open();
                scope.spawn(move || {
                    let mut made = Vec::new();
                    for number in 0..8 {
                        let files: Files = (0..6)
                            .map(|file| (file, number * 2 + (writer + file) % 3))
                            .collect();
                        let at = i64::try_from(1000 + writer * 100 + number).unwrap();
                        match back_up(&repository, &files, at) {
                            Ok(id) => made.push((id, files)),
                            // Stored again five times and condemned again: the next one succeeds.
                            Err(StoreError::Condemned { .. }) => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    made
                })
            })
            .collect();
        let pruners: Vec<_> = (0..2)
            .map(|_| {
                let repository = open();
                scope.spawn(move || {
                    for _ in 0..10 {
                        let points = repository.points(Some(&erp())).unwrap();
                        // All but the newest four go.
                        let old = points.len().saturating_sub(4);
                        let going: Vec<_> = points[..old].iter().map(|p| p.id.clone()).collect();
                        match prune(&repository, &going, options()) {
                            Ok(_)
                            | Err(StoreError::PlanOutdated { .. } | StoreError::PruneRuns { .. }) =>
                                {}
                            // The point was removed by the other one while this one read it.
                            Err(StoreError::ObjectMissing { object, .. })
                                if object.starts_with("points/") => {}
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                })
            })
            .collect();
        for pruner in pruners {
            pruner.join().unwrap();
        }
        let made = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap());
        made.collect::<BTreeMap<_, _>>()
    });
    let repository = temp.reopen();
    let left = repository.points(None).unwrap();
    assert!(!left.is_empty());
    let expected = left
        .iter()
        .filter_map(|point| Some((point.id.clone(), listed.get(&point.id)?.clone())))
        .collect();
    expect_whole(&repository, &expected);
    prune(&repository, &[], options()).unwrap();
    expect_whole(&repository, &expected);
}

#[test]
fn a_session_of_this_process_is_running_and_is_shown() {
    let temp = TempRepository::new();
    history(&temp.repository, 1);
    let repository = temp.reopen();
    let writer = repository.begin(&erp(), WriteOptions::default()).unwrap();
    let plan = repository
        .plan_prune(&request(&repository, &[], options()), &Silent)
        .unwrap();
    let sessions = &plan.workloads[0].sessions;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].state, SessionState::Running);
    assert_eq!(sessions[0].pid, Some(std::process::id()));
    drop(writer);
}

#[test]
fn a_reader_that_knows_the_packs_from_before_finds_what_was_copied() {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 8);
    let (id, files) = made.last().unwrap().clone();
    let reading = temp.reopen();
    let point = reading.point(&id).unwrap().unwrap();
    // It knows the index from here on.
    let entries = reading.entries(&point).unwrap();
    let going: Vec<_> = made[..7].iter().map(|(id, _)| id.clone()).collect();
    let report = prune(&temp.repository, &going, options()).unwrap();
    assert!(report.packs_rewritten > 0, "{report:?}");
    for entry in entries {
        let mut body = Vec::new();
        reading.read_file(&point, &entry, &mut body).unwrap();
        if let Some(file) = entry.meta.path.strip_prefix('f') {
            let file: u64 = file.parse().unwrap();
            assert_eq!(body, content(file, files[&file]));
        }
    }
}

/// What is locked, by the beginning of its name: nothing of it is tried, and the rest is whole.
fn locked(prefix: &'static str) -> (usize, usize) {
    let temp = TempRepository::new();
    let made = history(&temp.repository, 10);
    let (going, staying) = made.split_at(8);
    let going: Vec<_> = going.iter().map(|(id, _)| id.clone()).collect();
    let until = Utc::now() + chrono::TimeDelta::days(30);
    let place = Arc::new(LockedBackend::new(
        LocalBackend::new(&temp.path()),
        prefix,
        until,
    ));
    let repository = Repository::open(place.clone(), &temp.key).unwrap();
    let before = stored_bytes(&temp);
    let plan = repository
        .plan_prune(&request(&repository, &going, options()), &Silent)
        .unwrap();
    let held = plan.workloads[0].locked.clone();
    assert!(held.iter().all(|object| object.until == until));
    let report = repository.prune(&plan, &Silent).unwrap();
    assert_eq!(
        *place.refused.lock().unwrap(),
        [] as [String; 0],
        "{prefix}"
    );
    assert_eq!(report.notes, [] as [String; 0]);
    expect_whole(&temp.reopen(), &staying.iter().cloned().collect());
    // An object that stays anyway is not asked about.
    let kept = format!("points/{}", staying[0].0);
    assert!(!place.asked.lock().unwrap().contains(&kept));
    let listed = temp.reopen().points(None).unwrap().len();
    let after = stored_bytes(&temp);
    assert_eq!(after < before, prefix == "wal/", "{prefix}");
    // Once the locks have ended, all of it goes.
    let later = Arc::new(LockedBackend::new(
        LocalBackend::new(&temp.path()),
        prefix,
        Utc::now(),
    ));
    std::thread::sleep(Duration::from_millis(10));
    let repository = Repository::open(later, &temp.key).unwrap();
    prune(&repository, &going, options()).unwrap();
    assert!(stored_bytes(&temp) < before);
    expect_whole(&temp.reopen(), &staying.iter().cloned().collect());
    (held.len(), listed)
}

#[test]
fn a_locked_pack_stays_and_is_not_tried() {
    let (held, listed) = locked("data/");
    assert!(held > 0);
    assert_eq!(listed, 2);
}

#[test]
fn a_pack_whose_index_is_locked_stays_with_it() {
    let (held, listed) = locked("index/");
    assert!(held > 0);
    assert_eq!(listed, 2);
}

#[test]
fn a_point_that_is_locked_stays_listed() {
    let (held, listed) = locked("points/");
    assert_eq!((held, listed), (8, 10));
}

#[test]
fn locks_on_other_things_hold_nothing_up() {
    assert_eq!(locked("wal/"), (0, 2));
}

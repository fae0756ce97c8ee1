//! Every operation of a run: killed before it, killed after it, failed, its answer lost.

use std::path::Path;
use std::sync::Arc;

use dr_store::{Backend, LocalBackend, RepositoryKey};
use dr_testkit::{Failure, Fault, FaultyBackend, TempRepository, When};

use crate::story::{Done, goes_on, holds, open, open_in, run};

const FAULTS: [Fault; 6] = [
    Fault::DieBefore,
    Fault::DieAfter,
    Fault::Fail(Failure::Full),
    Fault::Fail(Failure::Unreachable),
    Fault::Fail(Failure::NotPermitted),
    Fault::LoseAnswer,
];

fn faulty(folder: &Path) -> FaultyBackend {
    FaultyBackend::new(Arc::new(LocalBackend::new(folder)))
}

/// Runs the story on a new repository with a fault planned; returns what was acknowledged.
fn run_with(place: &TempRepository, fault: Option<(u64, Fault)>) -> (Vec<Done>, FaultyBackend) {
    let mut backend = faulty(&place.path());
    if let Some((number, fault)) = fault {
        backend = backend.with(When::Number(number), fault);
    }
    let backend = Arc::new(backend);
    let mut done = Vec::new();
    let shared: Arc<dyn Backend> = Arc::clone(&backend) as Arc<dyn Backend>;
    if let Ok(repository) = open_in(shared, &place.key) {
        // It ends where the fault is, or goes over it.
        let _ = run(&repository, &mut |step| done.push(step));
    }
    let backend = Arc::try_unwrap(backend).expect("nobody holds the place any more");
    (done, backend)
}

fn key_of(place: &TempRepository) -> RepositoryKey {
    RepositoryKey::parse(&place.key.to_text().unwrap()).unwrap()
}

#[test]
fn a_run_that_fails_or_dies_at_any_operation_loses_nothing_and_the_next_is_clean() {
    let recorded = run_with(&TempRepository::new(), None);
    let operations = recorded.1.record();
    assert_eq!(recorded.0.len(), 6, "the run itself must succeed");
    let mut cases = 0u32;
    for operation in &operations {
        for fault in FAULTS {
            // Killed after what changes nothing is killed before the next.
            if fault == Fault::DieAfter && !operation.operation.changes() {
                continue;
            }
            let case = format!(
                "{fault:?} at operation {} ({:?} {})",
                operation.number, operation.operation, operation.name
            );
            let place = TempRepository::new();
            let (done, backend) = run_with(&place, Some((operation.number, fault)));
            let met = backend.record().iter().any(|seen| seen.fault.is_some());
            assert!(met, "{case}: the fault was not met");
            let repository = open(&place.path(), &key_of(&place));
            holds(&repository, &done, &case);
            goes_on(&repository, &done, &case);
            cases += 1;
        }
    }
    println!("{} operations, {cases} cases", operations.len());
    assert!(cases > 200, "only {cases} cases were generated");
}

#[test]
fn a_place_that_lists_late_loses_nothing() {
    for newest in 1..=6 {
        let place = TempRepository::new();
        let backend = Arc::new(faulty(&place.path()).listing_late(newest));
        let case = format!("listings lack the newest {newest}");
        let mut done = Vec::new();
        let repository = open_in(backend, &place.key).unwrap();
        // What was just stored may not be listed yet: a backup then fails rather than trust it.
        let _ = run(&repository, &mut |step| done.push(step));
        drop(repository);
        let repository = open(&place.path(), &key_of(&place));
        holds(&repository, &done, &case);
        goes_on(&repository, &done, &case);
    }
}

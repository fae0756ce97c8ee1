//! The shipped drills, probes and runbooks are what the documentation says of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use dr_config::{DrillFile, ProbeFile, RunbookFile, Step, Tier};

fn shipped(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found: Vec<PathBuf> = std::fs::read_dir(root.join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "nothing in {folder}");
    found
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_file_is_valid_and_named_after_what_it_holds() {
    for path in shipped("drills") {
        let drill = DrillFile::load(&path).unwrap();
        assert_eq!(drill.drill, stem(&path));
        ProbeFile::load(&drill.probe.file).unwrap();
        RunbookFile::load(&drill.runbook).unwrap();
    }
    for path in shipped("drills/probes") {
        assert_eq!(ProbeFile::load(&path).unwrap().probe, stem(&path));
    }
    for path in shipped("drills/tiers") {
        assert_eq!(Tier::load(&path).unwrap().tier.as_str(), stem(&path));
    }
    for path in shipped("runbooks") {
        assert_eq!(RunbookFile::load(&path).unwrap().runbook, stem(&path));
    }
}

#[test]
fn every_runbook_is_run_by_a_drill_and_listed_by_its_symptom() {
    let used: Vec<PathBuf> = shipped("drills")
        .iter()
        .map(|path| {
            DrillFile::load(path)
                .unwrap()
                .runbook
                .canonicalize()
                .unwrap()
        })
        .collect();
    let index =
        std::fs::read_to_string(shipped("runbooks")[0].with_file_name("README.md")).unwrap();
    for path in shipped("runbooks") {
        assert!(
            used.contains(&path.canonicalize().unwrap()),
            "no drill runs {}",
            path.display()
        );
        assert!(
            index.contains(&format!("({}.yaml)", stem(&path))),
            "{} is not indexed",
            stem(&path)
        );
    }
}

#[test]
fn one_drill_promises_what_nobody_can_keep() {
    let impossible = shipped("drills/tiers")
        .into_iter()
        .map(|path| Tier::load(&path).unwrap());
    let names: Vec<String> = impossible
        .filter(|tier| tier.rto.0 <= std::time::Duration::from_secs(1))
        .map(|tier| tier.tier.to_string())
        .collect();
    let measured_against =
        |path: &PathBuf| DrillFile::load(path).unwrap().objective.tier.to_string();
    assert!(
        shipped("drills")
            .iter()
            .any(|path| names.contains(&measured_against(path)))
    );
}

/// What a failed primary did not archive is in its `pg_wal` alone, and a restore takes its place.
#[test]
fn a_runbook_that_replaces_a_primary_rescues_its_wal_first() {
    let mut replacing = 0;
    for path in shipped("runbooks") {
        let steps = RunbookFile::load(&path).unwrap().steps;
        for (place, step) in steps.iter().enumerate() {
            let Step::Restore(restore) = step else {
                continue;
            };
            let into = restore.into.as_deref().unwrap_or_default();
            if !restore.as_primary && !into.contains("data_directory") {
                continue;
            }
            replacing += 1;
            let is_rescued = steps[..place].iter().any(|before| {
                matches!(before, Step::RescueWal(rescue) if rescue.workload == restore.workload)
            });
            let (path, workload) = (path.display(), &restore.workload);
            assert!(is_rescued, "{path}: the WAL of `{workload}` is lost");
        }
    }
    assert!(replacing > 0, "no runbook rebuilds a primary");
}

//! Folders as they were, streams with their messages and consumers.

use crate::harness::{ERP, Options, World, folder_state};

#[test]
fn a_folder_comes_back_as_it_was() {
    let world = World::protected(&Options::new("folder", &ERP));
    let before = folder_state(&world.path("config"));
    assert!(!before.is_empty());
    std::fs::remove_dir_all(world.path("config")).unwrap();
    let into = world.path("config").display().to_string();
    world.dr(&["restore", "config", "--into", &into]).ok();
    assert_eq!(folder_state(&world.path("config")), before);
}

#[test]
fn points_of_every_kind_are_proven_by_restoring_them() {
    let options = Options {
        queue: true,
        ..Options::new("proofs", &ERP)
    };
    let world = World::new(&options);
    world.dr(&["init"]).ok();
    world.archive("");
    for workload in ["erp", "config"] {
        world.dr(&["backup", "run", workload]).ok();
    }
    // The stream does not exist: the backup says which, and lists nothing.
    let output = world.dr(&["backup", "run", "orders"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["ORDERS"]);
    assert!(world.points("orders").is_empty());
    for proof in world.ask(&["backup", "verify"]).list("") {
        assert_eq!(proof.at("/passed").0, true, "{proof:?}");
    }
}

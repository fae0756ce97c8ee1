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
    let mut world = World::protected(&options);
    let proofs = world.ask(&["backup", "verify"]).list("");
    assert_eq!(
        proofs.len(),
        3,
        "a database, a folder and a queue: {proofs:?}"
    );
    for proof in &proofs {
        assert_eq!(proof.at("/passed").0, true, "{proof:?}");
    }
    // The broker is down: said, and nothing is listed.
    let before = world.points("orders").len();
    world.stop_queue();
    let output = world.dr(&["backup", "run", "orders"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["ORDERS", "NATS at"]);
    assert_eq!(world.points("orders").len(), before);
}

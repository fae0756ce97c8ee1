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
fn a_change_is_found_though_size_and_time_are_as_before() {
    let world = World::protected(&Options::new("unchanged", &ERP));
    let folder = world.path("config");
    let file = folder.join("settings");
    std::fs::write(&file, "one").unwrap();
    std::fs::write(folder.join("other"), "stays").unwrap();
    // Until their times can be relied on.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let mut points = Vec::new();
    // Identifiers tell whole seconds: what is new in the list is what was just made.
    let mut back_up = |arguments: &[&str]| {
        let known = world.points("config");
        world.dr(arguments).ok();
        let made = world.points("config");
        points.extend(made.into_iter().filter(|point| !known.contains(point)));
    };
    back_up(&["backup", "run", "config"]);
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    std::fs::write(&file, "two").unwrap();
    let opened = std::fs::File::options().write(true).open(&file).unwrap();
    opened.set_modified(modified).unwrap();
    drop(opened);
    back_up(&["backup", "run", "config"]);
    back_up(&["backup", "run", "config", "--full"]);
    let before = folder_state(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
    let into = folder.display().to_string();
    assert_eq!(points.len(), 3);
    for (point, as_now) in points.iter().zip([false, true, true]) {
        world
            .dr(&["restore", "config", "--to", point, "--into", &into])
            .ok();
        let restored = folder_state(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(restored == before, as_now, "{point}: {restored:?}");
    }
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

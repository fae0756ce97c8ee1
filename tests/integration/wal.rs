//! WAL in and out, by its exit codes.

use std::fs;

use crate::harness::{ERP, Options, World};

fn archived(world: &World) -> String {
    world.cluster.switch_and_wait()
}

#[test]
fn the_same_segment_again_is_fine_and_another_content_is_refused() {
    let world = World::protected(&Options::new("twice", &ERP));
    let name = archived(&world);
    let got = world.path("got");
    let fetch = |name: &str| world.dr(&["wal", "fetch", "--workload", "erp", name, "got"]);
    assert_eq!(fetch(&name).code, Some(0));
    let folder = world.path("data/pg_wal");
    let push = |path: &std::path::Path| {
        world
            .program(&["wal", "push", &path.display().to_string()])
            .directory(&world.cluster.data)
            .run()
    };
    let again = world.path(&format!("tmp/{name}"));
    fs::copy(&got, &again).unwrap();
    world.account.own(&again);
    let output = push(&again);
    assert_eq!(output.code, Some(0), "the same content again: {output}");
    let mut bytes = fs::read(&got).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&again, bytes).unwrap();
    let output = push(&again);
    assert_eq!(output.code, Some(1), "another content: {output}");
    output.says(&["DIFFERENT CONTENT"]);
    let before = fs::read(&got).unwrap();
    assert_eq!(fetch(&name).code, Some(0));
    assert_eq!(
        fs::read(&got).unwrap(),
        before,
        "what was stored first stays"
    );
    // A segment under another one's name is none.
    let renamed = world.path("tmp/0000000100000000000000FE");
    fs::copy(&got, &renamed).unwrap();
    world.account.own(&renamed);
    let output = push(&renamed);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["its first page is that of"]);
    assert!(folder.is_dir());
}

#[test]
fn absent_is_answered_only_by_a_repository_that_was_asked() {
    let world = World::protected(&Options::new("absent", &ERP));
    let fetch = |name: &str| {
        world
            .dr(&["wal", "fetch", "--workload", "erp", name, "got"])
            .code
    };
    assert_eq!(fetch("0000000100000000000000FE"), Some(1), "not there");
    assert_eq!(fetch("00000009.history"), Some(1), "not there");
    assert_eq!(fetch("nonsense"), Some(200), "no WAL file");
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();
    assert_eq!(
        fetch("0000000100000000000000FE"),
        Some(200),
        "no repository"
    );
    assert_eq!(fetch("00000009.history"), Some(200), "no repository");
    fs::create_dir(&here).unwrap();
    world.account.own(&here);
    assert_eq!(
        fetch("0000000100000000000000FE"),
        Some(200),
        "an empty folder is no repository"
    );
    fs::remove_dir(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    fs::rename(world.path("repository.key"), world.path("key.away")).unwrap();
    assert_eq!(fetch("0000000100000000000000FE"), Some(200), "no key");
    fs::rename(world.path("key.away"), world.path("repository.key")).unwrap();
    fs::rename(world.path("catalog.db"), world.path("catalog.away")).unwrap();
    assert_eq!(
        fetch("0000000100000000000000FE"),
        Some(1),
        "the catalog is not needed"
    );
}

#[test]
fn a_copy_of_the_cluster_may_not_archive() {
    let world = World::protected(&Options::new("copy", &ERP));
    let name = archived(&world);
    assert_eq!(
        world
            .dr(&["wal", "fetch", "--workload", "erp", &name, "tmp/x"])
            .code,
        Some(0)
    );
    let into = world.path("copy");
    world
        .dr(&["restore", "erp", "--into", &into.display().to_string()])
        .ok();
    let segment = into.join("pg_wal/0000000100000000000000FE");
    fs::copy(world.path("tmp/x"), &segment).unwrap();
    let segment_of_copy = into.join(format!("pg_wal/{name}"));
    fs::copy(world.path("tmp/x"), &segment_of_copy).unwrap();
    world.account.own(&into);
    let output = world
        .program(&["wal", "push", &format!("pg_wal/{name}")])
        .directory(&into)
        .run();
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["is a copy of workload `erp`"]);
}

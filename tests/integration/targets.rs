//! A cluster restored to a time, an LSN, a restore point and the latest moment.

use std::path::Path;

use crate::harness::{Cluster, ERP, Options, POSTGRES_BIN, Program, World};

/// A world with a table whose rows are numbered, each written by a commit of its own.
fn world(name: &'static str) -> World {
    let world = World::protected(&Options::new(name, &ERP));
    world
        .cluster
        .psql("create table mark (n int primary key, at timestamptz default clock_timestamp())");
    world
}

fn mark(cluster: &Cluster, n: u32) {
    cluster.psql(&format!("insert into mark (n) values ({n})"));
}

fn marks(cluster: &Cluster) -> Vec<String> {
    cluster.psql("select n from mark order by n")
}

/// Someone else's program judges the restored folder, before any server has touched it.
#[track_caller]
fn pg_verifybackup(world: &World, data: &Path) {
    Program::new(&world.account, format!("{POSTGRES_BIN}/pg_verifybackup"))
        .args(["-n".as_ref(), data.as_os_str()])
        .run()
        .ok();
}

#[test]
fn each_kind_of_target_is_reached_exactly() {
    let world = world("targets");
    mark(&world.cluster, 1);
    let after_one = world.cluster.moment();
    mark(&world.cluster, 2);
    let lsn_after_two = world.cluster.value("select pg_current_wal_insert_lsn()");
    mark(&world.cluster, 3);
    world.dr(&["backup", "run", "erp"]).ok();
    let point = world.points("erp").pop().unwrap();
    mark(&world.cluster, 4);
    world.cluster.switch_and_wait();

    let restored = world.restore_started("to-time", &after_one);
    assert_eq!(marks(&restored), ["1"], "to a time");
    assert_eq!(
        restored.value("show archive_mode"),
        "off",
        "a copy does not archive"
    );
    restored.stop("fast");

    let restored = world.restore_started("to-lsn", &lsn_after_two);
    assert!(
        ["1,2", "1,2,3"].contains(&marks(&restored).join(",").as_str()),
        "to an LSN"
    );
    assert!(marks(&restored).contains(&"2".to_owned()), "to an LSN");
    restored.stop("fast");

    let restored = world.restore_started("to-point", &point);
    assert_eq!(marks(&restored), ["1", "2", "3"], "to a restore point");
    restored.stop("fast");

    let restored = world.restore_started("to-latest", "latest");
    assert_eq!(marks(&restored), ["1", "2", "3", "4"], "to the latest");
    restored.psql("insert into mark (n) values (5)");
    restored.stop("fast");
}

#[test]
fn a_restored_folder_passes_pg_verifybackup_and_is_verified() {
    let world = world("verify");
    let into = world.path("restored");
    world
        .dr(&["restore", "erp", "--into", &into.display().to_string()])
        .ok();
    pg_verifybackup(&world, &into);
    assert!(into.join("recovery.signal").exists());
    let proofs = world.ask(&["backup", "verify"]);
    for proof in proofs.list("") {
        assert_eq!(proof.at("/passed").0, true, "{proof:?}");
    }
    let listed = world.ask(&["backup", "list", "erp"]);
    assert_eq!(
        listed.list("").last().unwrap().at("/verified/passed").0,
        true
    );
}

#[test]
fn a_time_after_the_last_commit_is_reached_with_the_help_of_the_live_server() {
    let world = world("idle");
    mark(&world.cluster, 1);
    // Not archived yet, and no commit follows: the server completes its segment when asked, and recovery
    // goes to the end of the archive.
    let after_one = world.cluster.moment();
    let restored = world.restore_started("to-now", &after_one);
    assert_eq!(marks(&restored), ["1"]);
    restored.stop("fast");
}

#[test]
fn a_new_primary_archives_on_its_own_timeline() {
    let world = world("primary");
    mark(&world.cluster, 1);
    world.cluster.switch_and_wait();
    world.cluster.stop("immediate");
    std::fs::remove_dir_all(&world.cluster.data).unwrap();
    let into = world.cluster.data.display().to_string();
    world
        .dr(&["restore", "erp", "--into", &into, "--as-primary", "--start"])
        .ok();
    assert_eq!(marks(&world.cluster), ["1"]);
    mark(&world.cluster, 2);
    let segment = world.cluster.switch_and_wait();
    assert!(segment.starts_with("00000002"), "{segment}");
    world.dr(&["backup", "run", "erp"]).ok();
    mark(&world.cluster, 3);
    world.cluster.switch_and_wait();
    let restored = world.restore_started("again", "latest");
    assert_eq!(marks(&restored), ["1", "2", "3"]);
    restored.stop("fast");
}

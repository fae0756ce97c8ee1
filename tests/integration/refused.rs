//! What cannot be done ends in a clear error, and nothing is lost by it.

use std::fs;
use std::time::Duration;

use crate::harness::{Cluster, ERP, Options, World, wait_until};

#[test]
fn a_target_outside_the_window_is_refused_with_the_window() {
    let world = World::protected(&Options::new("window", &ERP));
    let into = world.path("out").display().to_string();
    let early = world.dr(&[
        "restore",
        "erp",
        "--into",
        &into,
        "--to",
        "2001-01-01T00:00:00Z",
    ]);
    assert_eq!(early.code, Some(1), "{early}");
    early.says(&["before the first restore point", "recovery window is"]);
    let late = world.dr(&[
        "restore",
        "erp",
        "--into",
        &into,
        "--to",
        "2101-01-01T00:00:00Z",
    ]);
    assert_eq!(late.code, Some(1), "{late}");
    late.says(&["the stored WAL ends at", "recovery window is"]);
    assert!(!world.path("out").exists(), "nothing was made");
}

#[test]
fn a_folder_that_is_not_empty_is_refused() {
    let world = World::protected(&Options::new("notempty", &ERP));
    let into = world.path("out");
    fs::create_dir(&into).unwrap();
    fs::write(into.join("mine"), "keep").unwrap();
    let output = world.dr(&["restore", "erp", "--into", &into.display().to_string()]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["is not empty", "mine"]);
    assert_eq!(fs::read_to_string(into.join("mine")).unwrap(), "keep");
}

#[test]
fn another_cluster_is_refused() {
    let world = World::protected(&Options::new("other", &ERP));
    let before = world.points("erp").len();
    let other = Cluster::create(
        &world.account,
        &world.path("other-data"),
        "erp",
        1,
        "archive_mode = off",
    );
    world.edit_configuration(&world.cluster.url(), &other.url());
    world.edit_configuration("data_directory: data ", "data_directory: other-data ");
    let output = world.dr(&["backup", "run", "erp"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["bound to cluster", "nothing was stored"]);
    assert_eq!(world.points("erp").len(), before);
    other.stop("fast");
}

#[test]
fn a_flipped_byte_in_a_pack_is_noticed_by_the_restore() {
    let world = World::protected(&Options::new("flip", &ERP));
    let packs = world.path("repository/data");
    let mut largest: Option<(u64, std::path::PathBuf)> = None;
    let mut open = vec![packs];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                open.push(entry.path());
            } else if largest.as_ref().is_none_or(|(size, _)| meta.len() > *size) {
                largest = Some((meta.len(), entry.path()));
            }
        }
    }
    let (size, pack) = largest.unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = usize::try_from(size / 2).unwrap();
    bytes[middle] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    world.account.own(&pack);
    let into = world.path("out");
    let output = world.dr(&["restore", "erp", "--into", &into.display().to_string()]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["is damaged"]);
    assert!(
        !into.join("global/pg_control").exists(),
        "what is left cannot be started"
    );
}

#[test]
fn a_wrong_key_opens_nothing() {
    let world = World::protected(&Options::new("key", &ERP));
    let key = world.path("repository.key");
    let text = fs::read_to_string(&key).unwrap();
    let last = text.trim_end().chars().last().unwrap();
    let other = if last == '0' { '1' } else { '0' };
    let changed = format!("{}{other}\n", &text.trim_end()[..text.trim_end().len() - 1]);
    fs::write(&key, changed).unwrap();
    let into = world.path("out").display().to_string();
    let output = world.dr(&["restore", "erp", "--into", &into]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["key"]);
    fs::remove_file(&key).unwrap();
    let output = world.dr(&["restore", "erp", "--into", &into]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["cannot read the key"]);
}

#[test]
fn a_server_does_not_open_while_the_repository_is_unreachable() {
    let world = World::protected(&Options::new("unreachable", &ERP));
    world
        .cluster
        .psql("create table late (n int); insert into late values (1)");
    world.cluster.switch_and_wait();
    let into = world.path("restored");
    world
        .dr(&["restore", "erp", "--into", &into.display().to_string()])
        .ok();
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();
    let copy = Cluster {
        data: into.clone(),
        ..world.cluster.clone()
    };
    world.cluster.stop("fast");
    // Started by hand, as a person would: the exit status of the fetch alone decides.
    let started = copy.try_start();
    assert_ne!(started.code, Some(0), "{started}");
    assert!(!copy.runs(), "the server opened without its WAL");
    let log = fs::read_to_string(copy.log()).unwrap();
    assert!(log.contains("could not restore file"), "{log}");
    fs::rename(&away, &here).unwrap();
    copy.start();
    wait_until("the end of recovery", Duration::from_secs(60), || {
        (copy.value("select pg_is_in_recovery()") == "f").then_some(())
    });
    assert_eq!(
        copy.value("select n from late"),
        "1",
        "recovery went on where it had stopped"
    );
    copy.stop("fast");
}

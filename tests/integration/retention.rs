//! What the tiers and holds keep stays, and what they do not goes, by the command line.

use std::fs;

use crate::harness::{ERP, Options, World, folder_state};

/// A world whose tiers keep as little as can be.
fn forgetful(name: &'static str) -> World {
    let world = World::protected(&Options::new(name, &ERP));
    for tier in ["gold", "silver"] {
        let path = world.path("tier-configs").join(format!("{tier}.yaml"));
        let text = fs::read_to_string(&path).unwrap();
        let kept = "{ pitr: 14d, daily: 7, min_redundancy: 2 }";
        assert!(text.contains(kept), "{text}");
        fs::write(path, text.replace(kept, "{ daily: 1, min_redundancy: 1 }")).unwrap();
    }
    world
}

fn change_and_back_up(world: &World, times: usize) {
    for number in 0..times {
        let file = world.path("config").join("changing.txt");
        fs::write(file, format!("{number} ").repeat(50_000)).unwrap();
        world.dr(&["backup", "run", "config"]).ok();
    }
}

#[test]
fn prune_removes_what_no_rule_keeps_and_a_hold_is_such_a_rule() {
    let world = forgetful("prune");
    change_and_back_up(&world, 3);
    let points = world.points("config");
    assert_eq!(points.len(), 4);
    let held = points[1].as_str();
    let output = world.dr(&[
        "hold",
        "add",
        "rp-config-20200101T000000Z-000000",
        "--reason",
        "x",
    ]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["no repository lists"]);
    let hold = world.ask(&["hold", "add", held, "--reason", "an audit"]);
    assert!(!hold.text("/by").is_empty());

    let preview = world.dr(&["repo", "prune", "--preview"]).ok();
    preview.says(&[
        held,
        "hold-",
        "not needed since",
        "newest",
        "2 restore points go",
    ]);
    assert_eq!(world.points("config"), points, "a preview removes nothing");

    let done = world.ask(&["repo", "prune"]);
    assert_eq!(done.list("/0/done/points").len(), 2);
    let left = world.points("config");
    assert_eq!(left, [held, points[3].as_str()]);
    world.dr(&["repo", "check", "--read"]).ok();

    world
        .dr(&["hold", "remove", &hold.text("/id"), "--reason", "done"])
        .ok();
    let output = world.dr(&["hold", "remove", &hold.text("/id"), "--reason", "again"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert_eq!(world.ask(&["hold", "list"]).list("").len(), 0);
    assert_eq!(world.ask(&["hold", "list", "--all"]).list("").len(), 1);
    world.dr(&["repo", "prune"]).ok();
    assert_eq!(world.points("config"), [points[3].as_str()]);

    let before = folder_state(&world.path("config"));
    fs::remove_dir_all(world.path("config")).unwrap();
    let into = world.path("config").display().to_string();
    world.dr(&["restore", "config", "--into", &into]).ok();
    assert_eq!(folder_state(&world.path("config")), before);
}

#[test]
fn wal_that_no_kept_base_needs_goes_and_the_rest_still_restores() {
    let world = forgetful("prune-wal");
    let wal = || {
        let folder = world.path("repository/wal/erp");
        let timelines = fs::read_dir(folder).unwrap();
        let files = timelines.flat_map(|timeline| fs::read_dir(timeline.unwrap().path()).unwrap());
        files.count()
    };
    for _ in 0..2 {
        world.dr(&["backup", "run", "erp"]).ok();
    }
    let (points, before) = (world.points("erp"), wal());
    assert_eq!(points.len(), 3);
    let done = world.ask(&["repo", "prune"]);
    assert!(done.number("/0/done/wal_files") > 0);
    assert!(wal() < before);
    assert_eq!(world.points("erp"), [points[2].as_str()]);
    world.dr(&["repo", "check", "--read"]).ok();
    let restored = world.restore_started("look", "latest");
    drop(restored);
}

#[test]
fn nothing_is_removed_while_the_configuration_says_nothing_of_a_workload() {
    let world = forgetful("prune-unknown");
    change_and_back_up(&world, 2);
    let points = world.points("config");
    fs::remove_file(world.path("tier-configs/silver.yaml")).unwrap();
    let output = world.dr(&["repo", "prune"]);
    assert_eq!(output.code, Some(2), "{output}");
    output.says(&["silver"]);
    let of_config = |name: &str| name.starts_with("rp-config-");
    let found = fs::read_dir(world.path("repository/points"))
        .unwrap()
        .filter(|entry| of_config(&entry.as_ref().unwrap().file_name().to_string_lossy()))
        .count();
    assert_eq!(found, points.len());
}

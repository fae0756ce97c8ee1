//! A repository and its copies: one is first, everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;

use dr_config::{Config, ConfigError};

fn load(folder: &str, lists: &[&str], copies: u32) -> Result<Config, ConfigError> {
    let root = std::env::temp_dir().join(format!("dr-families-{folder}-{}", std::process::id()));
    fs::create_dir_all(root.join("tiers")).unwrap();
    let tier = format!(
        "tier: gold\nrto: 1h\nrpo: 1h\ncopies: {copies}\nbackup: {{ cron: \"0 0 3 * * *\" }}\n\
         retention: {{ daily: 1 }}\n"
    );
    fs::write(root.join("tiers/gold.yaml"), tier).unwrap();
    let mut text = "repositories:\n".to_owned();
    for name in ["main", "east", "west", "other"] {
        text += &format!("  {name}: {{ path: {name}, key: {{ file: {name}.key }} }}\n");
    }
    text += "catalog: sqlite:c.db\ntiers: tiers\nworkloads:\n";
    for (number, list) in lists.iter().enumerate() {
        text += &format!(
            "  w{number}: {{ tier: gold, repositories: {list}, files: {{ path: /srv }} }}\n"
        );
    }
    fs::write(root.join("dr.yaml"), text).unwrap();
    let loaded = Config::load(&root.join("dr.yaml"));
    fs::remove_dir_all(root).unwrap();
    loaded
}

#[test]
fn copies_belong_to_the_first_of_their_lists() {
    let lists = ["[main, east]", "[main]", "[main, west, east]", "[other]"];
    let config = load("good", &lists, 1).unwrap();
    let engine = &config.engine;
    let firsts: Vec<_> = engine.first_repositories().map(|n| n.as_str()).collect();
    assert_eq!(firsts, ["main", "other"]);
    let main = "main".parse().unwrap();
    let copies = engine.copies_of(&main);
    let copies: Vec<_> = copies.iter().map(|name| name.as_str()).collect();
    assert_eq!(copies, ["east", "west"]);
    assert_eq!(engine.first_of(&"west".parse().unwrap()), &main);
}

#[test]
fn a_copy_of_two_repositories_is_refused() {
    for (folder, lists) in [
        ("a", ["[main, east]", "[other, east]"]),
        ("b", ["[main, east]", "[east]"]),
        ("c", ["[main, east]", "[east, main]"]),
    ] {
        let error = load(folder, &lists, 1).unwrap_err().to_string();
        assert!(
            error.contains("disagree on the first"),
            "{lists:?}: {error}"
        );
    }
}

#[test]
fn a_workload_with_fewer_repositories_than_its_tier_promises_is_refused() {
    assert!(load("enough", &["[main, east]"], 2).is_ok());
    let error = load("few", &["[main]"], 2).unwrap_err().to_string();
    assert!(error.contains("1 of the 2 repositories"), "{error}");
    assert!(load("none", &["[main]"], 0).is_err());
}

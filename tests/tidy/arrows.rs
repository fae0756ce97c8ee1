//! Dependencies point one way: the order of `members` in Cargo.toml is the architecture.

use std::collections::BTreeMap;

use crate::root;

/// Arrows that exist for a reason beyond the order, and arrows that must never be.
const FORBIDDEN: [(&str, &str, &str); 5] = [
    (
        "sources",
        "store",
        "sources do not know where their data goes",
    ),
    (
        "store",
        "sources",
        "the repository does not know what it holds",
    ),
    (
        "store",
        "config",
        "the repository is usable without this product's configuration",
    ),
    (
        "report",
        "drill",
        "reports are plain data; drills fill them in",
    ),
    (
        "scheduler",
        "backup",
        "deciding what is due is apart from doing it",
    ),
];

fn members() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let list = text
        .split("members = [")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    list.split(',')
        .filter_map(|line| line.trim().trim_matches('"').strip_prefix("dr-engine/"))
        .map(str::to_owned)
        .collect()
}

fn dependencies(member: &str) -> Vec<String> {
    let path = root().join("dr-engine").join(member).join("Cargo.toml");
    let text = std::fs::read_to_string(path).unwrap();
    // Tests of a crate may use the test kit and crates below; only what ships counts.
    let shipped = text
        .split("[dependencies]")
        .nth(1)
        .unwrap_or("")
        .split("\n[")
        .next()
        .unwrap();
    shipped
        .lines()
        .filter_map(|line| line.trim().strip_prefix("dr-"))
        .map(|rest| rest.split(['.', ' ', '=']).next().unwrap().to_owned())
        .collect()
}

#[test]
fn a_crate_uses_only_crates_above_it() {
    let members = members();
    assert!(
        members.len() > 10,
        "the list of members was not understood: {members:?}"
    );
    let order: BTreeMap<&str, usize> = members
        .iter()
        .enumerate()
        .map(|(place, name)| (name.as_str(), place))
        .collect();
    let mut wrong = Vec::new();
    for member in &members {
        for dependency in dependencies(member) {
            if order[dependency.as_str()] >= order[member.as_str()] {
                wrong.push(format!("{member} uses {dependency}, which stands below it"));
            }
            if dependency == "testkit" {
                wrong.push(format!("{member} ships the test kit"));
            }
            if dependency == "demo" && member != "cli" && member != "testkit" {
                wrong.push(format!("{member} knows the demo"));
            }
            for (from, to, why) in FORBIDDEN {
                if member == from && dependency == to {
                    wrong.push(format!("{from} uses {to}: {why}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_test_kit_is_in_no_default_build() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let list = text
        .split("default-members = [")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    assert!(
        !list.contains("testkit"),
        "the test kit switches on test hooks"
    );
}

//! The tiers that ship are valid, and the documents beside them name every key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use dr_config::Tier;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tier-configs")
}

#[test]
fn every_tier_file_is_valid() {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            found.push(Tier::load(&path).unwrap().tier.to_string());
        }
    }
    found.sort();
    assert_eq!(found, ["bronze", "full", "gold", "silver"]);
}

#[test]
fn the_full_example_and_the_readme_have_every_key() {
    let tier = Tier::load(&folder().join("full.yaml")).unwrap();
    // Debug prints every field, those that are not set too.
    let debug = format!("{tier:?}");
    assert!(!debug.contains("None"), "full.yaml lacks a key: {debug}");
    let readme = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for field in debug
        .split([' ', '{', '('])
        .filter_map(|word| word.strip_suffix(':'))
    {
        let places = [
            format!("`{field}`"),
            format!(".{field}`"),
            format!("`{field}."),
        ];
        let named = places.iter().any(|place| readme.contains(place));
        assert!(named, "tier-configs/README.md does not name `{field}`");
    }
}

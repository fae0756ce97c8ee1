//! Names say what a thing is.

use crate::{files, root};

const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "helpers", "misc", "stuff"];

#[test]
fn no_module_is_named_after_nothing() {
    let named: Vec<String> = files(&root().join("dr-engine"), ".rs")
        .into_iter()
        .filter(|path| {
            path.components().any(|part| {
                let part = part.as_os_str().to_string_lossy();
                EMPTY_NAMES.contains(&part.trim_end_matches(".rs"))
            })
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(named.is_empty(), "say what they hold: {named:?}");
}

#[test]
fn every_allowed_lint_has_its_reason() {
    let mut bare = Vec::new();
    for path in files(&root().join("dr-engine"), ".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.starts_with("#[allow(") && line.ends_with(")]") && !line.contains("reason") {
                bare.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(
        bare.is_empty(),
        "an allowed lint without a reason: {bare:?}"
    );
}

//! Files stay readable.

use crate::{files, root};

const LINES_MAX: usize = 800;

#[test]
fn no_source_file_is_longer_than_it_can_be_read() {
    let long: Vec<String> = files(&root().join("dr-engine"), ".rs")
        .into_iter()
        .filter_map(|path| {
            let lines = std::fs::read_to_string(&path).unwrap().lines().count();
            (lines > LINES_MAX).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(
        long.is_empty(),
        "split by responsibility:\n{}",
        long.join("\n")
    );
}

#[test]
fn the_main_file_only_starts_the_program() {
    let text = std::fs::read_to_string(root().join("dr-engine/main.rs")).unwrap();
    assert!(text.lines().count() <= 20);
}

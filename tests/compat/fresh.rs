//! A repository that the program makes now.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::reader::Kept;

struct Installation {
    folder: tempfile::TempDir,
}

impl Installation {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        fs::create_dir(at.join("tier-configs")).unwrap();
        fs::write(
            at.join("tier-configs/silver.yaml"),
            "tier: silver\nrto: 1h\nrpo: 25h\nbackup: { cron: \"0 0 3 * * *\" }\n\
             retention: { daily: 7, min_redundancy: 2 }\n",
        )
        .unwrap();
        fs::write(
            at.join("dr.yaml"),
            "repositories:\n  main: { path: repository, key: { file: repository.key } }\n\
             catalog: sqlite:catalog.db\ntiers: tier-configs/\nworkloads:\n  docs:\n    \
             tier: silver\n    repositories: [main]\n    files: { path: docs }\n",
        )
        .unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn dr(&self, arguments: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_dr"))
            .arg("--config")
            .arg(self.path("dr.yaml"))
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }

    fn kept(&self) -> Kept {
        Kept {
            folder: self.path("repository"),
            key: self.path("repository.key"),
        }
    }
}

/// Bytes without a pattern that are the same each time.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

fn assert_same(left: &Path, right: &Path) {
    let files = crate::reader::files(left);
    assert_eq!(files, crate::reader::files(right));
    for file in files {
        let (left, right) = (left.join(&file), right.join(&file));
        if left.is_symlink() {
            assert_eq!(
                fs::read_link(&left).unwrap(),
                fs::read_link(&right).unwrap()
            );
        } else {
            assert!(
                fs::read(&left).unwrap() == fs::read(&right).unwrap(),
                "{file}"
            );
        }
    }
}

#[test]
fn another_program_restores_what_was_backed_up_byte_for_byte() {
    let made = Installation::new();
    let docs = made.path("docs");
    fs::create_dir_all(docs.join("a/b")).unwrap();
    fs::create_dir(docs.join("empty")).unwrap();
    fs::write(docs.join("nothing"), "").unwrap();
    fs::write(docs.join("a/b/small ☃"), "hello\n").unwrap();
    fs::write(docs.join("noise"), noise(700_001)).unwrap();
    fs::write(
        docs.join("text"),
        "the same line again and again\n".repeat(60_000),
    )
    .unwrap();
    symlink("a/b", docs.join("link")).unwrap();
    made.dr(&["init"]);
    made.dr(&["backup", "run", "docs"]);
    fs::write(docs.join("later"), "later\n").unwrap();
    made.dr(&["backup", "run", "docs"]);
    let kept = made.kept();
    let points = kept.lines(&["points"]);
    assert_eq!(points.len(), 2);
    let into = made.path("restored");
    fs::create_dir(&into).unwrap();
    kept.read(&["restore", &points[1], into.to_str().unwrap()]);
    assert_same(&docs, &into);
    let body = kept.read(&["extract", &points[0], "noise", "-"]);
    assert!(body == noise(700_001));
    let said = kept.refuses(&["extract", &points[0], "later", "-"]);
    assert!(said.contains("later"), "{said}");
    kept.read(&["verify"]);
}

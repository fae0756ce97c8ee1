//! Running the independent reader.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// Debian's Python, for which `scripts/install-servers.sh` installs the packages; else whichever has them.
static PYTHON: LazyLock<&str> = LazyLock::new(|| {
    ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|python| {
            Command::new(python)
                .args(["-c", "import zstandard, cryptography"])
                .output()
                .is_ok_and(|output| output.status.success())
        })
        .expect(
            "the independent reader needs Python's packages `zstandard` and `cryptography`: run \
             `make servers` (Debian: python3-zstandard, python3-cryptography)",
        )
});

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A repository with its key file.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) folder: PathBuf,
    pub(crate) key: PathBuf,
}

impl Kept {
    /// One of those that are never edited.
    pub(crate) fn golden(version: &str) -> Self {
        let place = root().join("tests/compat").join(version);
        Self {
            folder: place.join("repository"),
            key: place.join("repository.key"),
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(*PYTHON)
            .arg("-B")
            .arg(root().join("tests/format/reader.py"))
            .args([&self.folder, &self.key])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What the reader prints, when it ends well.
    #[track_caller]
    pub(crate) fn read(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output.stdout
    }

    /// The lines it prints.
    #[track_caller]
    pub(crate) fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let printed = String::from_utf8(self.read(arguments)).unwrap();
        printed.lines().map(str::to_owned).collect()
    }

    /// What it says when it refuses.
    #[track_caller]
    pub(crate) fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(!errors.contains("Traceback"), "{arguments:?}: {errors}");
        errors
    }
}

/// Every file below a folder, relative and sorted.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                let path = entry.path();
                let below = path.strip_prefix(folder).unwrap();
                found.push(below.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

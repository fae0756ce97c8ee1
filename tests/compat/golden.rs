//! Repositories that were made once.

use serde_json::Value;
use sha2::Digest as _;

use crate::reader::{Kept, root};

fn expected() -> Value {
    let place = root().join("tests/compat/v1/expected.json");
    serde_json::from_slice(&std::fs::read(place).unwrap()).unwrap()
}

fn digest(body: &[u8]) -> String {
    let digits = sha2::Sha256::digest(body);
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn another_program_reads_everything_in_version_1() {
    let kept = Kept::golden("v1");
    let expected = expected();
    let order: Vec<String> = serde_json::from_value(expected["order"].clone()).unwrap();
    assert_eq!(kept.lines(&["points"]), order);
    let destroyed = expected["destroyed"][0].as_str().unwrap();
    for (point, holds) in expected["points"].as_object().unwrap() {
        let holds = holds.as_object().unwrap();
        assert_eq!(kept.lines(&["files", point]).len(), holds.len());
        for (path, file) in holds {
            let Some(sha256) = file["sha256"].as_str() else {
                continue;
            };
            if path == destroyed {
                let said = kept.refuses(&["extract", point, path, "-"]);
                assert!(said.contains("destroyed"), "{said}");
            } else {
                let body = kept.read(&["extract", point, path, "-"]);
                assert_eq!(digest(&body), sha256, "{path}");
            }
        }
    }
    let wal = expected["wal"].as_object().unwrap();
    assert_eq!(kept.lines(&["wal", "docs"]).len(), wal.len());
    for (file, sha256) in wal {
        let body = kept.read(&["wal-extract", "docs", file, "-"]);
        assert_eq!(Value::from(digest(&body)), *sha256, "{file}");
    }
    kept.read(&["verify"]);
    let second = Kept {
        key: root().join("tests/compat/v1/second.key"),
        ..kept
    };
    assert_eq!(second.lines(&["points"]), order);
}

#[test]
fn a_removed_point_is_not_read_by_another_program() {
    let removed = expected()["removed"].as_str().unwrap().to_owned();
    let said = Kept::golden("v1").refuses(&["files", &removed]);
    assert!(said.contains("no restore point"), "{said}");
}

#[test]
fn another_program_refuses_version_2_by_its_number() {
    let said = Kept::golden("v2").refuses(&["points"]);
    assert!(
        said.contains("repository: it has format version 2"),
        "{said}"
    );
}

//! `dr demo` from outside: told to its end, and ended with the cause when something in it is broken.
//!
//! Each run takes minutes, so they belong to the long variant (`DR_TEST_LONG=1`).

use std::path::PathBuf;
use std::process::Command;

struct Told {
    code: Option<i32>,
    text: String,
    folder: PathBuf,
}

impl Drop for Told {
    fn drop(&mut self) {
        let folder = self.folder.display().to_string();
        drop(
            Command::new(env!("CARGO_BIN_EXE_dr"))
                .args(["demo", "--dir", &folder, "--clean"])
                .output(),
        );
    }
}

fn tell(variable: Option<(&str, &str)>) -> Option<Told> {
    if !crate::harness::long() {
        return None;
    }
    let name = format!("dr-demo-test-{}", std::process::id());
    let folder = PathBuf::from("/var/tmp").join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dr"));
    command.args(["demo", "--dir"]).arg(&folder);
    command.envs(variable);
    let output = command.output().unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Some(Told {
        code: output.status.code(),
        text,
        folder,
    })
}

fn last_error(text: &str) -> String {
    let at = text
        .rfind("error: `dr")
        .or_else(|| text.rfind("error:"))
        .unwrap_or(0);
    text[at..].to_owned()
}

#[test]
fn the_demo_is_told_to_its_end() {
    let Some(told) = tell(None) else { return };
    assert_eq!(told.code, Some(0), "{}", told.text);
    for words in ["What you have seen", "lost", "met", "KEEP A COPY"] {
        assert!(told.text.contains(words), "no `{words}` in:\n{}", told.text);
    }
}

#[test]
fn a_missing_wal_segment_ends_the_demo_and_is_named() {
    let fault = ("DR_TEST_DEMO_FAULT", "remove-wal-segment");
    let Some(told) = tell(Some(fault)) else {
        return;
    };
    let error = last_error(&told.text);
    assert_eq!(told.code, Some(1), "{}", told.text);
    assert!(
        error.contains("tenant restore") && error.contains("00000001"),
        "{error}"
    );
}

#[test]
fn a_runbook_without_its_restore_step_ends_the_demo_and_the_cause_is_named() {
    let fault = ("DR_TEST_DEMO_FAULT", "remove-restore-step");
    let Some(told) = tell(Some(fault)) else {
        return;
    };
    assert_eq!(told.code, Some(1), "{}", told.text);
    assert!(
        last_error(&told.text).contains("drill run drills/primary-loss.yaml"),
        "{}",
        told.text
    );
    assert!(told.text.contains("cause: runbook"), "{}", told.text);
}

#[test]
fn a_restore_that_touches_another_tenant_ends_the_demo_and_the_table_is_named() {
    let fault = ("DR_TEST_TENANT_FAULT", "touch-other-tenant");
    let Some(told) = tell(Some(fault)) else {
        return;
    };
    let error = last_error(&told.text);
    assert_eq!(told.code, Some(1), "{}", told.text);
    assert!(
        error.contains("tenant restore") && error.contains("public."),
        "{error}"
    );
}

//! Loading runbooks, drills and probes: the files that are exercised.

use std::path::{Path, PathBuf};

use crate::parse::{invalid, invalid_at, parse, positive, read};
use crate::{ConfigError, DrillFile, FaultConfig, ProbeFile, RunbookFile, Step};

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

impl RunbookFile {
    /// Reads and validates a runbook.
    ///
    /// # Errors
    /// What is wrong, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let runbook: Self = parse(&text, path)?;
        if runbook.steps.is_empty() {
            return Err(invalid_at(
                path,
                &text,
                &["steps:"],
                "the runbook has no steps",
                None,
            ));
        }
        let compares_nothing = |step: &Step| match step {
            Step::VerifySql(step) => step.at_least.is_none() && step.equals.is_none(),
            _ => false,
        };
        if runbook.steps.iter().any(compares_nothing) {
            return Err(invalid_at(
                path,
                &text,
                &["verify_sql:"],
                "a verify_sql step compares with nothing and would always succeed",
                "give at_least or equals".to_owned(),
            ));
        }
        Ok(runbook)
    }
}

impl DrillFile {
    /// Reads and validates a drill. The paths of its probe and its runbook become absolute.
    ///
    /// # Errors
    /// What is wrong, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let path = absolute(path)?;
        let text = read(&path)?;
        let mut drill: Self = parse(&text, &path)?;
        if drill.detect.by != "probe" {
            return Err(invalid_at(
                &path,
                &text,
                &["detect:", "by:"],
                format!("a fault cannot be detected by `{}`", drill.detect.by),
                "by: probe".to_owned(),
            ));
        }
        if drill.detect.after_failures == 0 {
            return Err(invalid_at(
                &path,
                &text,
                &["detect:", "after_failures:"],
                "detection after 0 failures would precede the fault",
                "1 or more".to_owned(),
            ));
        }
        // Said now and not when the sandbox stands and the load runs.
        if let FaultConfig::KillPrimary { signal, .. } = &drill.fault
            && !["KILL", "QUIT"].contains(&signal.as_str())
        {
            return Err(invalid_at(
                &path,
                &text,
                &["kill_primary:", "signal:"],
                format!("a primary is not killed by `{signal}`"),
                "KILL or QUIT".to_owned(),
            ));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        drill.probe.file = folder.join(&drill.probe.file);
        drill.runbook = folder.join(&drill.runbook);
        let places: [(&str, &PathBuf, &[&str]); 2] = [
            ("probe", &drill.probe.file, &["probe:", "file:"]),
            ("runbook", &drill.runbook, &["runbook:"]),
        ];
        for (what, file, route) in places {
            if !file.is_file() {
                return Err(invalid_at(
                    &path,
                    &text,
                    route,
                    format!("the drill's {what} {} is not there", file.display()),
                    "the path is relative to the drill's file".to_owned(),
                ));
            }
        }
        Ok(drill)
    }
}

impl ProbeFile {
    /// Reads and validates a probe.
    ///
    /// # Errors
    /// What is wrong, with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let probe: Self = parse(&text, path)?;
        positive(path, &text, "every", probe.every)?;
        positive(path, &text, "timeout", probe.timeout)?;
        let database = probe.tenants.is_some() && probe.write.is_some() && probe.read.is_some();
        let queue = probe.stream.is_some() && probe.subject.is_some();
        let mixed = (probe.write.is_some() || probe.read.is_some())
            && (probe.stream.is_some() || probe.subject.is_some());
        if database == queue || mixed {
            return Err(invalid(
                path,
                "a probe uses a database (`tenants`, `write`, `read`) or a queue (`stream`, `subject`)",
                "give all keys of one kind and none of the other".to_owned(),
            ));
        }
        Ok(probe)
    }
}

//! Loading runbooks, drills and probes: the files that are exercised.

use std::path::{Path, PathBuf};

use crate::parse::{invalid, invalid_at, parse, positive, read};
use crate::{ConfigError, DrillFile, ProbeFile, RunbookFile};

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
                "steps:",
                "the runbook has no steps",
                None,
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
                "by:",
                format!("a fault cannot be detected by `{}`", drill.detect.by),
                "by: probe".to_owned(),
            ));
        }
        if drill.detect.after_failures == 0 {
            return Err(invalid_at(
                &path,
                &text,
                "after_failures",
                "detection after 0 failures would precede the fault",
                "1 or more".to_owned(),
            ));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        drill.probe.file = folder.join(&drill.probe.file);
        drill.runbook = folder.join(&drill.runbook);
        for (what, file) in [("probe", &drill.probe.file), ("runbook", &drill.runbook)] {
            if !file.is_file() {
                return Err(invalid_at(
                    &path,
                    &text,
                    &format!("{what}:"),
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

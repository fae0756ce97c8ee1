//! What a sandbox made, written down before it is relied on, so that removing it is provable and
//! touches nothing else.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dr_report::Check;
use dr_sources::instance::{RunAs, descendants, give};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::DrillError;
use crate::witness::{
    Process, command_line, path_is_gone, process_is_gone, processes_in, processes_marked,
};

const NOTES: &str = "sandbox.json";
/// In the environment of every `dr` that is run for a sandbox; what these start in turn inherits it.
pub(super) const MARK: &str = "DR_SANDBOX";
/// A process that is told to end and does not within this is killed.
const END_TIME_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// The notes of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// The version of this form.
    pub version: u32,
    /// The folder.
    pub folder: PathBuf,
    /// Whether the folder itself was made, or was there and empty.
    pub made_folder: bool,
    /// Processes that were started.
    pub processes: Vec<NotedProcess>,
}

/// A process that was started for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedProcess {
    /// What it is.
    pub what: String,
    /// Which it is.
    pub process: Process,
}

/// What was removed, and how it was seen to be gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What was made and is gone again.
    pub removed: Vec<String>,
    /// Looks at what is left.
    pub proof: Vec<Check>,
}

impl Notes {
    /// Makes the folder, or takes an empty one, and writes the first notes.
    pub(super) fn begin(folder: &Path, run_as: Option<&RunAs>) -> Result<Self, DrillError> {
        let made_folder = !folder.exists();
        if made_folder {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(folder)
                .map_err(DrillError::file("create", folder))?;
        } else {
            let mut entries =
                std::fs::read_dir(folder).map_err(DrillError::file("list", folder))?;
            if entries.next().is_some() {
                return Err(DrillError::NotOurs {
                    what: format!("{}, which is not empty", folder.display()),
                });
            }
        }
        give(folder, run_as)?;
        let notes = Self {
            version: 1,
            folder: folder.to_owned(),
            made_folder,
            processes: Vec::new(),
        };
        notes.write()?;
        Ok(notes)
    }

    pub(super) fn remember(&mut self, what: &str, pid: u32) -> Result<(), DrillError> {
        // One that has ended already needs no note.
        if let Some(process) = Process::of(pid) {
            self.processes.push(NotedProcess {
                what: what.to_owned(),
                process,
            });
        }
        self.write()
    }

    /// Every living process that was started for the sandbox: the noted ones, the marked ones, and all
    /// that descend from them.
    pub(super) fn processes(&self) -> Vec<Process> {
        let noted = self
            .processes
            .iter()
            .map(|noted| noted.process)
            .filter(Process::runs);
        let mut all: Vec<Process> = noted.collect();
        all.extend(processes_marked(MARK, &self.folder.display().to_string()));
        let below: Vec<Process> = all
            .iter()
            .flat_map(|process| descendants(process.pid))
            .filter_map(Process::of)
            .collect();
        all.extend(below);
        all.sort_by_key(|process| process.started_ticks);
        all.dedup();
        all
    }

    fn write(&self) -> Result<(), DrillError> {
        let path = self.folder.join(NOTES);
        let temporary = self.folder.join(".sandbox.json.new");
        let text = serde_json::to_vec_pretty(self).map_err(|error| DrillError::Malformed {
            path: path.clone(),
            what: "notes that can be written",
            reason: error.to_string(),
        })?;
        std::fs::write(&temporary, text).map_err(DrillError::file("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(DrillError::file("replace", &path))
    }

    fn read(folder: &Path) -> Result<Self, DrillError> {
        let path = folder.join(NOTES);
        let text = std::fs::read(&path).map_err(|_| DrillError::NotOurs {
            what: format!("{}, which has no {NOTES}", folder.display()),
        })?;
        let notes: Self = serde_json::from_slice(&text).map_err(|error| DrillError::Malformed {
            path: path.clone(),
            what: "a sandbox's notes",
            reason: error.to_string(),
        })?;
        if notes.folder != folder {
            return Err(DrillError::NotOurs {
                what: format!(
                    "{}, whose notes are those of {}",
                    folder.display(),
                    notes.folder.display()
                ),
            });
        }
        Ok(notes)
    }
}

/// Ends what a sandbox's notes name and what works inside its folder, and removes the folder. Blocks.
///
/// # Errors
/// When the folder has no notes (it is no sandbox), or cannot be removed.
pub fn clean(folder: &Path) -> Result<Cleaned, DrillError> {
    let notes = Notes::read(folder)?;
    let mut cleaned = Cleaned::default();
    let mut gone: Vec<(String, Process)> = Vec::new();
    for process in notes.processes() {
        end(process);
    }
    for noted in &notes.processes {
        gone.push((noted.what.clone(), noted.process));
    }
    // What is left of what its servers and runbooks started in turn.
    for process in processes_marked(MARK, &notes.folder.display().to_string()) {
        gone.push((first_words(&command_line(process.pid)), process));
        end(process);
    }
    for (what, process) in &gone {
        cleaned
            .removed
            .push(format!("process {} ({what})", process.pid));
        cleaned
            .proof
            .push(process_is_gone("clean-up", what, *process));
    }
    let left = processes_in(folder);
    cleaned.proof.push(Check::seen(
        "clean-up",
        "no process works in the sandbox's folder",
        left.is_empty(),
        format!("{} found in /proc", left.len()),
    ));
    std::fs::remove_dir_all(folder).map_err(DrillError::file("remove", folder))?;
    if !notes.made_folder {
        std::fs::create_dir(folder).map_err(DrillError::file("create", folder))?;
    }
    cleaned.removed.push(format!("folder {}", folder.display()));
    if notes.made_folder {
        cleaned.proof.push(path_is_gone("clean-up", folder));
    }
    Ok(cleaned)
}

fn first_words(command: &str) -> String {
    command
        .split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Asks a process to end, and kills it when it does not.
fn end(process: Process) {
    for wanted in [Signal::TERM, Signal::KILL] {
        if !process.runs() {
            return;
        }
        // TERM would have a PostgreSQL server wait for its sessions (19.5): QUIT ends them at once.
        let server = command_line(process.pid).contains("postgres");
        let wanted = if server && wanted == Signal::TERM {
            Signal::QUIT
        } else {
            wanted
        };
        if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
            // Gone in the meantime is what is wanted.
            let _ = kill_process(pid, wanted);
        }
        let deadline = Instant::now() + END_TIME_MAX;
        while process.runs() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_sandbox_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("precious"), "x").unwrap();
        assert!(matches!(
            clean(folder.path()),
            Err(DrillError::NotOurs { .. })
        ));
        assert!(matches!(
            Notes::begin(folder.path(), None),
            Err(DrillError::NotOurs { .. })
        ));
        assert!(folder.path().join("precious").exists());
    }

    #[test]
    fn notes_of_another_folder_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("first");
        Notes::begin(&first, None).unwrap();
        let second = folder.path().join("second");
        std::fs::create_dir(&second).unwrap();
        std::fs::copy(first.join(NOTES), second.join(NOTES)).unwrap();
        assert!(matches!(clean(&second), Err(DrillError::NotOurs { .. })));
        clean(&first).unwrap();
        assert!(!first.exists());
    }

    #[test]
    fn a_noted_process_is_ended_and_one_with_a_reused_pid_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = folder.path().join("sandbox");
        let mut notes = Notes::begin(&sandbox, None).unwrap();
        let mut ours = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let mut foreign = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        notes.remember("ours", ours.id()).unwrap();
        let mut reused = Process::of(foreign.id()).unwrap();
        reused.started_ticks += 1;
        notes.processes.push(NotedProcess {
            what: "an earlier one".to_owned(),
            process: reused,
        });
        notes.write().unwrap();
        let cleaned = clean(&sandbox).unwrap();
        assert!(
            cleaned.proof.iter().all(|check| check.passed == Some(true)),
            "{cleaned:?}"
        );
        assert!(ours.wait().is_ok());
        assert!(Process::of(foreign.id()).unwrap().runs());
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}

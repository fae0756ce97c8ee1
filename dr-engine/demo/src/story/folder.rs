//! The demo's folder: made, marked, refused when it is someone else's, removed.
//!
//! The mark is a file that lists every process the story starts, written before the process can
//! outlive us. Only processes whose start time still is the noted one are ever signalled: a process id
//! may belong to someone else by now.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dr_sources::instance::{self, RunAs};
use rustix::process::{Pid, Signal, kill_process};

use super::Narrator;
use super::error::{StoryError, file};

const MARK: &str = ".dr-demo";
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

fn mark_of(folder: &Path) -> PathBuf {
    folder.join(MARK)
}

/// Makes the folder anew, owned by whom everything in it runs as.
pub(crate) fn prepare(
    folder: &Path,
    run_as: Option<&RunAs>,
    narrator: &dyn Narrator,
) -> Result<(), StoryError> {
    if folder.exists() {
        clean(folder, narrator)?;
    }
    fs::create_dir_all(folder).map_err(file("create", folder))?;
    fs::write(mark_of(folder), "").map_err(file("write", &mark_of(folder)))?;
    for path in [folder.to_owned(), mark_of(folder)] {
        instance::give(&path, run_as).map_err(|source| StoryError::Server {
            action: "hand over the demo's folder",
            source,
        })?;
    }
    let enters = instance::command(run_as, "test")
        .arg("-w")
        .arg(folder)
        .current_dir("/")
        .status()
        .is_ok_and(|status| status.success());
    if !enters {
        fs::remove_dir_all(folder).map_err(file("remove", folder))?;
        return Err(StoryError::ClosedFolder {
            path: folder.to_owned(),
            user: run_as.map_or_else(
                || "this user".to_owned(),
                |user| format!("the user {}", user.name),
            ),
        });
    }
    Ok(())
}

/// When a process began, in clock ticks since boot (proc(5), field 22 of `stat`).
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Notes a process of the story in the folder.
pub(crate) fn note_process(folder: &Path, pid: u32) -> Result<(), StoryError> {
    use std::io::Write;
    let path = mark_of(folder);
    let ticks = start_ticks(pid).unwrap_or(0);
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| writeln!(file, "{pid} {ticks}"))
        .map_err(file("write", &path))
}

fn noted(folder: &Path) -> Vec<(u32, u64)> {
    let text = fs::read_to_string(mark_of(folder)).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (pid, ticks) = line.split_once(' ')?;
            Some((pid.parse().ok()?, ticks.parse().ok()?))
        })
        .collect()
}

/// Ends what of a demo still runs and removes its folder.
///
/// # Errors
/// When the folder was not made by the demo, or cannot be removed.
pub fn clean(folder: &Path, narrator: &dyn Narrator) -> Result<(), StoryError> {
    if !folder.exists() {
        narrator.line(&format!(
            "{} is not there: nothing to clean",
            folder.display()
        ));
        return Ok(());
    }
    let empty = fs::read_dir(folder)
        .map_err(file("list", folder))?
        .next()
        .is_none();
    if !empty && !mark_of(folder).is_file() {
        return Err(StoryError::ForeignFolder {
            path: folder.to_owned(),
        });
    }
    let running: Vec<(u32, u64)> = noted(folder)
        .into_iter()
        .filter(|(pid, ticks)| *ticks != 0 && start_ticks(*pid) == Some(*ticks))
        .collect();
    for (pid, _) in &running {
        narrator.line(&format!("ending process {pid} of an earlier demo"));
        end(*pid);
    }
    fs::remove_dir_all(folder).map_err(file("remove", folder))?;
    narrator.line(&format!("removed {}", folder.display()));
    Ok(())
}

/// Ends one process: asks first, then insists.
pub(crate) fn end(pid: u32) {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    // INT is PostgreSQL's fast shutdown, and an ordinary request to stop for the rest.
    if kill_process(process, Signal::INT).is_err() {
        return;
    }
    let began = std::time::Instant::now();
    while start_ticks(pid).is_some() && began.elapsed() < STOP_TIME_MAX {
        std::thread::sleep(Duration::from_millis(50));
    }
    if start_ticks(pid).is_some() {
        let _ = kill_process(process, Signal::KILL);
    }
}

/// Ends a child process: asks first, insists after `patience`, and waits for its end.
pub(crate) fn end_child(child: &mut std::process::Child, patience: Duration) {
    let Some(process) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    let _ = kill_process(process, Signal::TERM);
    let began = std::time::Instant::now();
    while matches!(child.try_wait(), Ok(None)) && began.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(child.kill());
    drop(child.wait());
}

/// Asks a process to end.
pub(crate) fn ask_to_end(pid: Option<u32>) {
    if let Some(process) = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw)
    {
        let _ = kill_process(process, Signal::TERM);
    }
}

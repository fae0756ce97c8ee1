//! What the kernel says about processes, read from proc(5).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at while waiting for it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub(crate) state: char,
    pub(crate) parent: u32,
    /// Clock ticks since boot: with the pid it identifies a process.
    pub(crate) started_ticks: u64,
}

/// Reads `/proc/<pid>/stat`; `None` when there is no such process.
pub(crate) fn stat(pid: u32) -> Option<ProcessStat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<ProcessStat> {
    // The second field is the program's name in parentheses and may itself contain both.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let started_ticks = fields.nth(17)?.parse().ok()?;
    Some(ProcessStat {
        state,
        parent,
        started_ticks,
    })
}

/// Whether a process exists and has not ended (a zombie has).
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// All living processes below `pid`, without `pid` itself.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let all: Vec<(u32, u32)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut found = Vec::new();
    let mut queue = VecDeque::from([pid]);
    while let Some(parent) = queue.pop_front() {
        for (child, _) in all.iter().filter(|(_, of)| *of == parent) {
            found.push(*child);
            queue.push_back(*child);
        }
    }
    found
}

/// Sends a signal; a process that is gone already is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // ESRCH means that it ended by itself, which is what a stop wants.
        let _ = kill_process(pid, signal);
    }
}

/// Polls `condition` until it holds or `timeout` is over.
pub(crate) fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_found_with_its_parent() {
        let own = stat(std::process::id()).expect("we exist");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(own.started_ticks > 0);
        assert!(is_alive(std::process::id()));
    }

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) S (b) R 3 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0";
        let stat = parse_stat(text).expect("well formed");
        assert_eq!(
            (stat.state, stat.parent, stat.started_ticks),
            ('R', 3, 4711)
        );
    }
}

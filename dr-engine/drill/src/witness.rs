//! Looking from outside: the process table, the file system, TCP. Nothing here is told by the code that
//! made or broke what is looked at.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use dr_report::Check;
use serde::{Deserialize, Serialize};

/// How long a connection may take on loopback.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Clock ticks between boot and its start (proc(5), `starttime`).
    pub started_ticks: u64,
}

/// State letter and start of a process, from proc(5).
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may itself contain some.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Process {
    /// The process that has this pid now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|(_, started_ticks)| Self { pid, started_ticks })
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started_ticks)| {
            started_ticks == self.started_ticks && !matches!(state, 'Z' | 'X')
        })
    }
}

/// The postmaster that serves a data directory, if one runs.
#[must_use]
pub fn postmaster(data_directory: &Path) -> Option<Process> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let pid = text.lines().next()?.trim().parse().ok()?;
    Process::of(pid).filter(Process::runs)
}

/// A process's command line, its parts separated by spaces.
#[must_use]
pub fn command_line(pid: u32) -> String {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .map(|bytes| {
            String::from_utf8_lossy(&bytes)
                .replace('\0', " ")
                .trim()
                .to_owned()
        })
        .unwrap_or_default()
}

/// Living processes that work in `folder`: their working folder is inside it. What merely names it in a
/// command line (an editor, the command that started this drill) is none of them.
#[must_use]
pub fn processes_in(folder: &Path) -> Vec<Process> {
    pids()
        .filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
        })
        .filter_map(|pid| Process::of(pid).filter(Process::runs))
        .collect()
}

/// Living processes that were started with this variable in their environment, or by such a process
/// with its environment handed on.
#[must_use]
pub fn processes_marked(name: &str, value: &str) -> Vec<Process> {
    let wanted = format!("{name}={value}").into_bytes();
    pids()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == wanted))
        })
        .filter_map(|pid| Process::of(pid).filter(Process::runs))
        .collect()
}

fn pids() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
}

/// A look whether a process is gone.
#[must_use]
pub fn process_is_gone(group: &str, what: &str, process: Process) -> Check {
    let detail = match stat(process.pid) {
        None => format!("/proc/{} does not exist", process.pid),
        Some((state, ticks)) if ticks == process.started_ticks => {
            format!("/proc/{}/stat: state {state}", process.pid)
        }
        Some(_) => format!("pid {} belongs to a later process", process.pid),
    };
    Check::seen(
        group,
        format!("{what} (pid {}) is gone", process.pid),
        !process.runs(),
        detail,
    )
}

/// A look whether a path is gone.
#[must_use]
pub fn path_is_gone(group: &str, path: &Path) -> Check {
    let found = std::fs::symlink_metadata(path);
    let gone = matches!(&found, Err(error) if error.kind() == std::io::ErrorKind::NotFound);
    let detail = found.map_or_else(|error| error.to_string(), |_| "it exists".to_owned());
    Check::seen(group, format!("{} is gone", path.display()), gone, detail)
}

/// A look whether nobody listens on a loopback port.
#[must_use]
pub fn port_is_closed(group: &str, port: u16) -> Check {
    let answer =
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), CONNECT_TIMEOUT);
    let (closed, detail) = match answer {
        Ok(_) => (false, "a connection was accepted".to_owned()),
        Err(error) => (true, error.to_string()),
    };
    Check::seen(
        group,
        format!("nobody listens on 127.0.0.1:{port}"),
        closed,
        detail,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.runs());
        assert!(own.started_ticks > 0);
        assert!(
            !Process {
                started_ticks: own.started_ticks + 1,
                ..own
            }
            .runs()
        );
        let check = process_is_gone("t", "we", own);
        assert_eq!(check.passed, Some(false), "{check:?}");
    }

    #[test]
    fn an_open_port_is_seen_as_open() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(port_is_closed("t", port).passed, Some(false));
        drop(listener);
        assert_eq!(port_is_closed("t", port).passed, Some(true));
    }
}

//! `postmaster.pid`: who serves a data directory.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Guards against a recycled pid in a stale lock file.
pub(super) fn is_postgres(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| matches!(name.trim(), "postgres" | "postmaster"))
}

/// Whether a server's process is known to serve another data directory: a stale lock file may name a pid
/// that is some other server's by now, after a restart of the machine. A server's working directory is what
/// it serves; one that may not be looked at is taken at the lock file's word.
pub(super) fn serves_another(pid: u32, data_directory: &Path) -> bool {
    let folder = |path: &Path| {
        std::fs::metadata(path)
            .ok()
            .map(|found| (found.dev(), found.ino()))
    };
    let serves = folder(Path::new(&format!("/proc/{pid}/cwd")));
    serves.is_some() && serves != folder(data_directory)
}

/// `postmaster.pid` (`miscadmin.h`, LOCK_FILE_LINE_*).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LockFile {
    pub(super) pid: u32,
    pub(super) port: u16,
    pub(super) socket_directory: Option<PathBuf>,
    pub(super) status: String,
}

impl LockFile {
    pub(super) fn read(data_directory: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?)
    }

    /// `None` as well for a file that is not completely written yet.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        let port = lines.nth(2)?.trim().parse().ok()?;
        let socket = lines.next()?.trim();
        let status = lines.nth(2).unwrap_or_default().trim().to_owned();
        let socket_directory = (!socket.is_empty()).then(|| PathBuf::from(socket));
        Some(Self {
            pid,
            port,
            socket_directory,
            status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_tells_pid_port_socket_and_state() {
        let text = "4711\n/data\n1764000000\n5433\n/run/pg\n127.0.0.1\n  5433001 12\nready   \n";
        let lock = LockFile::parse(text).expect("well formed");
        assert_eq!(
            (lock.pid, lock.port, lock.status.as_str()),
            (4711, 5433, "ready")
        );
        assert_eq!(lock.socket_directory.as_deref(), Some(Path::new("/run/pg")));
        assert!(LockFile::parse("4711\n/data\n").is_none(), "half written");
    }
}

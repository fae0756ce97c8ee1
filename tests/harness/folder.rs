//! A temporary folder that the servers' user may enter, and the end of everything that lives in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Who the programs of a world run as.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The user to become, when root.
    pub(crate) setpriv: Option<String>,
    pub(crate) group: String,
    pub(crate) home: PathBuf,
}

impl Account {
    /// `postgres` when root, else the caller.
    pub(crate) fn of_servers(home: &Path) -> Self {
        Self::named("postgres", "postgres", home)
    }

    /// Another user; the caller when not root.
    pub(crate) fn named(user: &str, group: &str, home: &Path) -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            setpriv: root.then(|| user.to_owned()),
            group: group.to_owned(),
            home: home.to_owned(),
        }
    }

    /// Gives a path, with all below it, to this account.
    pub(crate) fn own(&self, path: &Path) {
        if let Some(user) = &self.setpriv {
            let done = std::process::Command::new("chown")
                .args(["-R", "-h", &format!("{user}:{}", self.group)])
                .arg(path)
                .status()
                .unwrap();
            assert!(done.success(), "chown {}", path.display());
        }
    }
}

/// A folder below /var/tmp that is gone when this is dropped, with all processes that live in it.
#[derive(Debug)]
pub(crate) struct TempFolder {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl TempFolder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix(&format!("dr-test-{name}-"))
            .tempdir_in("/var/tmp")
            .unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            path: folder.path().to_owned(),
            _folder: folder,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        end_processes(&self.path);
        if std::env::var_os("DR_TEST_KEEP").is_some() {
            let kept = self.path.with_extension("kept");
            drop(fs::rename(&self.path, kept));
        }
    }
}

/// Processes whose command line names the folder, with that command line.
pub(crate) fn processes_in(folder: &Path) -> Vec<(i32, String)> {
    let needle = folder.display().to_string();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        if name == own {
            continue;
        }
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&needle) {
            found.push((pid, line));
        }
    }
    found
}

/// Servers get the signal for an immediate end first, so that they remove their shared memory.
fn end_processes(folder: &Path) {
    let began = Instant::now();
    for signal in [Signal::QUIT, Signal::KILL] {
        for (pid, _) in processes_in(folder) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
        while began.elapsed() < Duration::from_secs(5) && !processes_in(folder).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

//! Whether anything works in a data directory: for commands that destroy what is there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::lock_file::serves_another;
use super::process::{is_alive, stat, wait_until};

/// Says why a data directory must be taken for one in use; `None` when nothing speaks for it. More careful than
/// attaching to a server: a server in a container, one with another name, a single-user one, and what is left
/// of a killed one count too.
#[must_use]
pub fn occupied(data_directory: &Path) -> Option<String> {
    lock_file_speaks(data_directory).or_else(|| a_process_works_in(data_directory))
}

/// [`occupied`], after waiting so long for what is about to end: of a server that was killed, processes may be left
/// for a moment. Its lock file is believed at once.
#[must_use]
pub fn occupied_after(data_directory: &Path, patience: Duration) -> Option<String> {
    let mut why = None;
    wait_until(patience, || {
        why = occupied(data_directory);
        why.is_none() || lock_file_speaks(data_directory).is_some()
    });
    why
}

fn lock_file_speaks(data_directory: &Path) -> Option<String> {
    let path = data_directory.join("postmaster.pid");
    let text = fs::read_to_string(&path).ok()?;
    let remove = format!("remove {} if no server uses the folder", path.display());
    // A single-user server writes its number as a negative one.
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i64>().ok());
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid.unsigned_abs()).ok()) else {
        return Some(format!("its postmaster.pid cannot be understood; {remove}"));
    };
    // What a server in a container calls itself, and what always lives outside of it.
    if pid == 1 {
        return Some(format!(
            "its postmaster.pid names process 1, as a server in a container does; {remove}"
        ));
    }
    (is_alive(pid) && !serves_another(pid, data_directory))
        .then(|| format!("process {pid}, which its postmaster.pid names, is alive"))
}

/// A server and its processes work in the data directory; so may the shell that this was called from.
fn a_process_works_in(data_directory: &Path) -> Option<String> {
    let of = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    let folder = of(data_directory)?;
    let mut own = vec![std::process::id()];
    while let Some(parent) = own
        .last()
        .and_then(|pid| stat(*pid))
        .map(|stat| stat.parent)
    {
        if parent == 0 || own.contains(&parent) {
            break;
        }
        own.push(parent);
    }
    let processes = fs::read_dir("/proc").ok()?;
    let mut pids = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| !own.contains(pid));
    let pid = pids.find(|pid| of(Path::new(&format!("/proc/{pid}/cwd"))) == Some(folder))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({}) works in it", name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_or_a_process_in_the_folder_speaks_for_use() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(occupied(folder.path()), None);
        let pid = folder.path().join("postmaster.pid");
        for (text, said) in [
            ("1\n/data\n", "process 1, as a server in a container"),
            ("x", "cannot be understood"),
        ] {
            fs::write(&pid, text).unwrap();
            let why = occupied(folder.path()).unwrap();
            assert!(why.contains(said) && why.contains("remove"), "{why}");
        }
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        for text in [format!("-{}\n", child.id()), format!("{}\n", child.id())] {
            fs::write(&pid, text).unwrap();
            let why = occupied(folder.path()).unwrap();
            assert!(
                why.contains(&format!("process {}, which", child.id())),
                "{why}"
            );
        }
        fs::remove_file(&pid).unwrap();
        let why = occupied(folder.path()).unwrap();
        assert!(why.contains("(sleep) works in it"), "{why}");
        child.kill().unwrap();
        child.wait().unwrap();
        // Somebody else has that number now, or nobody.
        fs::write(&pid, format!("{}\n", child.id())).unwrap();
        assert_eq!(occupied(folder.path()), None);
    }
}

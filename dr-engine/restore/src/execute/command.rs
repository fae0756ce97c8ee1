//! The commands that a restored server runs.

use std::path::{Path, PathBuf};

use dr_model::WorkloadName;

use crate::RestoreError;
use crate::error::file_error;

/// Names another binary for the commands written into restored clusters than the running one, for
/// programs that use this crate as a library.
const BINARY_VARIABLE: &str = "DR_BINARY";

/// The `dr` binary that a restored server shall call.
pub(super) fn binary() -> Result<PathBuf, RestoreError> {
    if let Some(given) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(PathBuf::from(given));
    }
    let own = std::env::current_exe().map_err(file_error("find", Path::new("/proc/self/exe")))?;
    // After an upgrade in place the kernel marks the old file; the new one has the plain name.
    let text = own.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or_else(|| own.clone(), PathBuf::from))
}

/// One word for `/bin/sh` inside a setting in which PostgreSQL replaces `%p` and its relatives
/// (20.5.5): quotes for the shell, doubled percent signs for PostgreSQL.
fn word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%"))
}

/// `restore_command`: absolute and quoted, so that it works from any folder and in any shell. For a server that is
/// thrown away nothing needs to be flushed.
pub(super) fn restore_command(
    binary: &Path,
    config: &Path,
    workload: &WorkloadName,
    is_thrown_away: bool,
) -> String {
    format!(
        "{} --config {} wal fetch --workload {}{} %f %p",
        word(&binary.display().to_string()),
        word(&config.display().to_string()),
        word(workload.as_str()),
        if is_thrown_away {
            " --spare-flushes"
        } else {
            ""
        }
    )
}

/// `archive_command` of a new primary.
pub(super) fn archive_command(binary: &Path, config: &Path) -> String {
    format!(
        "{} --config {} wal push %p",
        word(&binary.display().to_string()),
        word(&config.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_shell_and_server() {
        let workload: WorkloadName = "erp".parse().unwrap();
        let command = restore_command(
            Path::new("/opt/o'brien/dr"),
            Path::new("/etc/100%/dr.yaml"),
            &workload,
            false,
        );
        assert_eq!(
            command,
            "'/opt/o'\\''brien/dr' --config '/etc/100%%/dr.yaml' wal fetch --workload 'erp' %f %p"
        );
        let thrown_away = restore_command(Path::new("/dr"), Path::new("/c"), &workload, true);
        assert_eq!(
            thrown_away,
            "'/dr' --config '/c' wal fetch --workload 'erp' --spare-flushes %f %p"
        );
    }
}

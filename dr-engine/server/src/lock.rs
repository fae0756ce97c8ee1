//! One daemon for each catalog.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::ServerError;

/// Held as long as the daemon runs. The kernel frees it when the process ends, however it ends; the
/// file stays and says who was last.
#[derive(Debug)]
pub(crate) struct DaemonLock {
    _file: File,
}

impl DaemonLock {
    pub(crate) fn take(catalog: &Path) -> Result<Self, ServerError> {
        let mut name = catalog.as_os_str().to_owned();
        name.push(".daemon");
        let path = std::path::PathBuf::from(name);
        let failed = |source| ServerError::Lock {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message: the lock itself is not in doubt.
                let _ = file.read_to_string(&mut pid);
                return Err(ServerError::AlreadyRunning {
                    catalog: catalog.to_owned(),
                    pid: pid.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("catalog.db");
        let first = DaemonLock::take(&catalog).unwrap();
        let error = DaemonLock::take(&catalog).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        DaemonLock::take(&catalog).unwrap();
    }
}

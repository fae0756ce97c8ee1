//! Making files and folders so that they survive a power cut and belong to who should own them.
//!
//! Started as root, what dr creates takes owner and group of the folder it lies in: the daemon
//! usually runs as the database's owner, and must be able to use what an administrator created.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::Path;

pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn take_owner_of_parent(path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let parent = std::fs::metadata(parent_of(path))?;
        chown(path, Some(parent.uid()), Some(parent.gid()))?;
    }
    Ok(())
}

pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a folder (mode 0700) and its missing parents, durably. An existing one is left as it is.
///
/// # Errors
/// Whatever the file system says.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    if !parent.exists() {
        create_folder(parent)?;
    }
    DirBuilder::new().mode(0o700).create(path)?;
    take_owner_of_parent(path)?;
    sync_folder(parent)
}

/// Writes a new file with the given mode, durably: content first under another name, then the name.
/// An existing file is never replaced.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when the file exists, else whatever the file system says.
pub fn write_new_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let parent = parent_of(path);
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}", dr_model::random::hex(4)));
    let result = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        take_owner_of_parent(&temporary)?;
        // A hard link fails when the name is taken, where a rename would replace it.
        std::fs::hard_link(&temporary, path)
    })();
    // Whether linked or failed, the temporary name has served.
    let removed = std::fs::remove_file(&temporary);
    result?;
    removed?;
    sync_folder(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = std::env::temp_dir().join(format!("dr-place-{}", dr_model::random::hex(6)));
        create_folder(&folder.join("a/b")).unwrap();
        let file = folder.join("a/b/key");
        write_new_file(&file, b"first", 0o600).unwrap();
        let error = write_new_file(&file, b"second", 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).unwrap(), b"first");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.join("a/b")).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

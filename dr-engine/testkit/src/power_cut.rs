//! The file system as it may be found after the power went: only what was fsynced is certain.
//!
//! The journal is what `dr_store::testing::note` wrote. The rules applied are the strictest a POSIX
//! file system allows: a folder's entry (a new file, folder or name) is there only if the folder was
//! fsynced afterwards; a file's content is there only if the file was fsynced.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    content_durable: bool,
    entry_durable: bool,
    is_folder: bool,
}

/// Drops from `root` everything that the journal does not prove durable. Returns what was dropped.
/// What the journal does not mention was there before and stays.
///
/// # Errors
/// When the journal cannot be read or the files cannot be changed.
pub fn drop_unsynced(journal: &Path, root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = fs::read_to_string(journal)
        .with_context(|| format!("cannot read the journal {}", journal.display()))?;
    let mut entries: HashMap<PathBuf, Entry> = HashMap::new();
    for line in text.lines() {
        apply(line, &mut entries).with_context(|| format!("journal line `{line}`"))?;
    }
    let mut dropped = Vec::new();
    for (path, entry) in &entries {
        if !path.starts_with(root) || fs::symlink_metadata(path).is_err() {
            continue;
        }
        if !entry.entry_durable {
            if entry.is_folder {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
            dropped.push(path.clone());
        } else if !entry.is_folder && !entry.content_durable {
            fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(path)?;
            dropped.push(path.clone());
        }
    }
    dropped.sort();
    Ok(dropped)
}

fn apply(line: &str, entries: &mut HashMap<PathBuf, Entry>) -> anyhow::Result<()> {
    let mut fields = line.split('\t');
    let operation = fields.next().context("an operation")?;
    let path = PathBuf::from(fields.next().context("a path")?);
    match operation {
        "create" => {
            entries.insert(path, Entry::default());
        }
        "mkdir" => {
            // A second process may try to make the folder that is there already.
            entries.entry(path).or_insert(Entry {
                is_folder: true,
                ..Entry::default()
            });
        }
        "rename" => {
            let to = PathBuf::from(fields.next().context("a second path")?);
            let moved = entries.get(&path).copied().unwrap_or_default();
            // Renaming onto what exists fails without a change (nothing is ever replaced).
            entries.entry(to).or_insert(Entry {
                entry_durable: false,
                ..moved
            });
        }
        "fsync-file" => {
            entries.entry(path).or_default().content_durable = true;
        }
        "fsync-folder" => {
            for (child, entry) in entries.iter_mut() {
                if child.parent() == Some(path.as_path()) {
                    entry.entry_durable = true;
                }
            }
        }
        "delete" => {
            entries.remove(&path);
        }
        other => anyhow::bail!("unknown operation `{other}`"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_fsynced_survives() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["safe", "no-entry", "no-content", "before"] {
            fs::write(path(name), b"content").unwrap();
        }
        let root = folder.path().display();
        let journal = path("journal");
        let lines = [
            format!("create\t{root}/t1"),
            format!("fsync-file\t{root}/t1"),
            format!("rename\t{root}/t1\t{root}/safe"),
            format!("create\t{root}/t2"),
            format!("rename\t{root}/t2\t{root}/no-content"),
            format!("fsync-folder\t{root}"),
            format!("create\t{root}/t3"),
            format!("fsync-file\t{root}/t3"),
            format!("rename\t{root}/t3\t{root}/no-entry"),
        ];
        fs::write(&journal, lines.join("\n")).unwrap();
        let dropped = drop_unsynced(&journal, folder.path()).unwrap();
        assert_eq!(dropped, [path("no-content"), path("no-entry")]);
        assert_eq!(fs::read(path("safe")).unwrap(), b"content");
        assert_eq!(fs::read(path("before")).unwrap(), b"content");
        assert_eq!(fs::read(path("no-content")).unwrap(), b"");
        assert!(!path("no-entry").exists());
    }
}

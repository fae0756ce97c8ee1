//! Whether what was received is a whole cluster.
//!
//! A server sends no symbolic links but those of tablespaces and of `pg_wal`, and only warns of what it
//! leaves out (`sendDir` in `basebackup.c`): a folder of the cluster that an operator moved elsewhere would
//! be missing without an error.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use dr_replication::ServerMessage;

use crate::SourceError;

/// Paths of a point, to be asked for only: each by eight bytes, however many files a cluster has.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths(HashSet<u64>);

impl Paths {
    pub(super) fn insert(&mut self, path: &str) {
        self.0.insert(Self::short(path));
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains(&Self::short(path))
    }

    fn short(path: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        hasher.finish()
    }
}

/// Without these nothing starts, or starts and has forgotten which transactions were committed.
const FOLDERS: [&str; 6] = [
    "data/base",
    "data/global",
    "data/pg_multixact/members",
    "data/pg_multixact/offsets",
    "data/pg_xact",
    "data/pg_twophase",
];
const FILES: [&str; 3] = [
    "data/PG_VERSION",
    "data/global/pg_filenode.map",
    "label/backup_label",
];

/// Refuses what lacks a part that a cluster cannot be without. A database was there all the while if it is
/// in both lists.
pub(super) fn check(
    received: &Paths,
    before: &BTreeSet<u32>,
    after: &BTreeSet<u32>,
    warnings: &[ServerMessage],
) -> Result<(), SourceError> {
    let databases = (before.intersection(after)).map(|oid| format!("data/base/{oid}"));
    let needed = FOLDERS.iter().chain(&FILES).map(ToString::to_string);
    let lacking = needed
        .chain(databases)
        .find(|path| !received.contains(path));
    let own = |path: &String| {
        ["base", "global", "pg_"]
            .iter()
            .any(|of| path.starts_with(of))
    };
    let left_out = left_out(received, warnings).into_iter().find(own);
    let Some(what) = lacking
        .map(|path| path.trim_start_matches("data/").to_owned())
        .or(left_out)
    else {
        return Ok(());
    };
    Err(SourceError::Refused(format!(
        "the server did not send {what} of its data directory, without which it is no cluster: a server sends \
         no symbolic links but those of tablespaces and of pg_wal; make it a folder, or read the files on the \
         server's host (base_backup: read)"
    )))
}

/// What of the server's warnings is news: each once, and not that a page is damaged, which is told as such.
pub(super) fn warnings(received: &Paths, all: &[ServerMessage]) -> Vec<String> {
    let mut told = Vec::new();
    for warning in all {
        let is_of_pages = path_in(&warning.message).is_none_or(|path| is_received(received, path));
        let line = format!("the server warned: {}", warning.message);
        if !is_of_pages && !told.contains(&line) {
            told.push(line);
        }
    }
    told
}

/// Paths in the data directory that warnings name and that were not received.
fn left_out(received: &Paths, warnings: &[ServerMessage]) -> BTreeSet<String> {
    let named = warnings.iter().filter_map(|one| path_in(&one.message));
    let named = named.filter(|path| !is_received(received, path));
    named.map(str::to_owned).collect()
}

fn is_received(received: &Paths, path: &str) -> bool {
    received.contains(&format!("data/{path}"))
}

/// The path `./…` in a message, in whatever language and between whatever quotes.
fn path_in(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("./")?;
    let end = rest.find([
        '"', '\'', '`', '«', '»', '“', '”', '„', '‘', '’', '‚', '‹', '›',
    ]);
    Some(rest.get(..end.unwrap_or(rest.len()))?.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        let more = ["data/base/1", "data/base/5", "data/base/5/16384"];
        FOLDERS
            .iter()
            .chain(&FILES)
            .chain(&more)
            .map(ToString::to_string)
            .collect()
    }

    fn received() -> Paths {
        received_but("")
    }

    fn received_but(missing: &str) -> Paths {
        let mut paths = Paths::default();
        for name in names().iter().filter(|name| *name != missing) {
            paths.insert(name);
        }
        paths
    }

    fn warned(texts: &[&str]) -> Vec<ServerMessage> {
        let message = |text: &&str| ServerMessage {
            message: (*text).to_owned(),
            ..ServerMessage::default()
        };
        texts.iter().map(message).collect()
    }

    fn refused(received: &Paths, warnings: &[&str]) -> Option<String> {
        let databases = BTreeSet::from([1, 5]);
        let error = check(received, &databases, &databases, &warned(warnings)).err();
        error.map(|error| error.to_string())
    }

    #[test]
    fn every_part_that_matters_is_missed() {
        assert_eq!(refused(&received(), &[]), None);
        for path in names() {
            if path == "data/base/5/16384" {
                continue;
            }
            let name = path.trim_start_matches("data/");
            let said = refused(&received_but(&path), &[])
                .unwrap_or_else(|| panic!("{path} is not missed"));
            assert!(said.contains(&format!("did not send {name} of")), "{said}");
        }
        // Made or dropped meanwhile.
        let (before, after) = (BTreeSet::from([1, 5, 7]), BTreeSet::from([1, 5, 8]));
        assert!(check(&received(), &before, &after, &[]).is_ok());
    }

    #[test]
    fn a_warning_tells_what_was_left_out() {
        let link = "übergehe besondere Datei »./base/5/16385«";
        assert!(
            refused(&received(), &[link])
                .unwrap()
                .contains("base/5/16385")
        );
        // Its page is damaged: it was sent.
        let damaged = "checksum verification failed in file \"./base/5/16384\", block 3";
        assert_eq!(refused(&received(), &[damaged]), None);
        let log = "skipping special file \"./log\"";
        assert_eq!(refused(&received(), &[log]), None);
        assert_eq!(
            warnings(&received(), &warned(&[log, damaged, log])),
            [format!("the server warned: {log}")]
        );
    }
}

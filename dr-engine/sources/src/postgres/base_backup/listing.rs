//! What of a data directory belongs into a backup (26.3.4, "Backing Up the Data Directory", and
//! `basebackup.c` for what the server's own tool leaves out).
//!
//! The listing is made once, after backup mode began: what appears later is made again by the WAL,
//! what disappears is removed again by it.

use std::collections::{BTreeMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::postgres::details::Tablespace;
use crate::{Item, ItemKind, SourceError};

/// Folders whose content means nothing to another server life; they themselves must exist.
const EMPTIED: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];
/// Files that belong to the running server, or to another backup.
const LEFT_OUT: [&str; 7] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
];
const LEFT_OUT_PREFIXES: [&str; 2] = ["pgsql_tmp", "pg_internal.init"];
/// Copied last and by itself.
const CONTROL_FILE: &str = "global/pg_control";

/// A regular file to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedFile {
    pub(crate) source: PathBuf,
    /// Its path in the point.
    pub(crate) path: String,
    /// As listed; what is read is decided when it is opened.
    pub(crate) size: u64,
    /// For a relation's file: its number among the relation's files.
    pub(crate) relation_segment: Option<u32>,
}

/// Everything to hand over but the control file and the configuration from outside.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Item>,
    pub(crate) files: Vec<ListedFile>,
    pub(crate) tablespaces: Vec<Tablespace>,
    pub(crate) wal_directory: Option<PathBuf>,
    pub(crate) notes: Vec<String>,
}

impl Listing {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Lists a data directory; `version_folder` is the `PG_<major>_<catalog version>` of tablespaces.
pub(crate) fn list(data_directory: &Path, version_folder: &str) -> Result<Listing, SourceError> {
    let mut walk = Walk {
        listing: Listing::default(),
        skip: tablespace_folders(data_directory)?,
    };
    walk.root(data_directory)?;
    walk.tablespaces(data_directory, version_folder)?;
    // The largest first, so that no worker is left alone with one at the end.
    walk.listing
        .files
        .sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    Ok(walk.listing)
}

/// Tablespaces that lie inside the data directory (against advice) must not be captured twice.
fn tablespace_folders(data_directory: &Path) -> Result<HashSet<PathBuf>, SourceError> {
    let folder = data_directory.join("pg_tblspc");
    Ok(read_folder(&folder)?
        .into_values()
        .filter(|(_, metadata)| metadata.is_symlink())
        .filter_map(|(path, _)| std::fs::canonicalize(path).ok())
        .collect())
}

type Folder = BTreeMap<String, (PathBuf, Metadata)>;

/// The entries of a folder by name; one that vanished is empty, as are entries that vanish.
fn read_folder(folder: &Path) -> Result<Folder, SourceError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Folder::new()),
        Err(error) => return Err(SourceError::file("list", folder)(error)),
    };
    let mut found = Folder::new();
    for entry in entries {
        let entry = entry.map_err(SourceError::file("list", folder))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(SourceError::Malformed {
                path,
                what: "its name is not UTF-8".to_owned(),
            });
        };
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) => drop(found.insert(name, (path, metadata))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(SourceError::file("examine", &path)(error)),
        }
    }
    Ok(found)
}

struct Walk {
    listing: Listing,
    skip: HashSet<PathBuf>,
}

impl Walk {
    /// The top level, where the special folders are.
    fn root(&mut self, data_directory: &Path) -> Result<(), SourceError> {
        for (name, (path, metadata)) in read_folder(data_directory)? {
            let item = format!("data/{name}");
            if EMPTIED.contains(&name.as_str()) {
                self.emptied(&name, &path)?;
            } else if name == "pg_tblspc" {
                self.folder(&item, &metadata);
            } else if metadata.is_symlink() && is_own_folder(&name, &path) {
                // A link to a part of the cluster must not survive as a link: a restored copy
                // would work on the original's files.
                self.listing
                    .notes
                    .push(format!("{} was a link and became a folder", path.display()));
                let target =
                    std::fs::metadata(&path).map_err(SourceError::file("examine", &path))?;
                self.folder(&item, &target);
                self.tree(&path, &item)?;
            } else {
                self.entry(&item, path, &metadata, Place::Plain)?;
            }
        }
        Ok(())
    }

    fn emptied(&mut self, name: &str, path: &Path) -> Result<(), SourceError> {
        let metadata = std::fs::metadata(path).map_err(SourceError::file("examine", path))?;
        self.folder(&format!("data/{name}"), &metadata);
        if name == "pg_wal" {
            self.folder("data/pg_wal/archive_status", &metadata);
            self.listing.wal_directory = std::fs::read_link(path).ok();
        }
        Ok(())
    }

    /// The tablespaces: their links here, their content under `tablespaces/`.
    fn tablespaces(&mut self, data: &Path, version_folder: &str) -> Result<(), SourceError> {
        for (name, (path, metadata)) in read_folder(&data.join("pg_tblspc"))? {
            let item = format!("data/pg_tblspc/{name}");
            let Ok(oid) = name.parse::<u32>() else {
                continue;
            };
            if !metadata.is_symlink() {
                // `allow_in_place_tablespaces`: a plain folder of the data directory.
                self.entry(&item, path, &metadata, Place::Plain)?;
                continue;
            }
            let location = std::fs::read_link(&path).map_err(SourceError::file("read", &path))?;
            // The link itself is no entry: a restored copy must never reach the original's files.
            // Other major versions may have folders of their own beside it.
            let folder = location.join(version_folder);
            let metadata =
                std::fs::metadata(&folder).map_err(SourceError::file("examine", &folder))?;
            let item = format!("tablespaces/{oid}/{version_folder}");
            self.folder(&item, &metadata);
            self.tree(&folder, &item)?;
            self.listing.tablespaces.push(Tablespace { oid, location });
        }
        Ok(())
    }

    fn tree(&mut self, folder: &Path, item: &str) -> Result<(), SourceError> {
        let place = Place::inside(item);
        let entries = read_folder(folder)?;
        let unlogged: HashSet<String> = match place {
            Place::Relations => entries
                .keys()
                .filter_map(|name| name.strip_suffix("_init"))
                .map(str::to_owned)
                .collect(),
            Place::Plain => HashSet::new(),
        };
        for (name, (path, metadata)) in entries {
            let relation = parse_relation(&name);
            // Recovery makes an unlogged relation anew from its init fork.
            let emptied_by_recovery = relation
                .as_ref()
                .is_some_and(|r| r.fork != Some("init") && unlogged.contains(r.node));
            if matches!(place, Place::Relations) && (is_temporary(&name) || emptied_by_recovery) {
                continue;
            }
            self.entry(&format!("{item}/{name}"), path, &metadata, place)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        item: &str,
        path: PathBuf,
        metadata: &Metadata,
        place: Place,
    ) -> Result<(), SourceError> {
        let name = item.rsplit('/').next().unwrap_or(item);
        if LEFT_OUT_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            return Ok(());
        }
        if metadata.is_dir() {
            if !self.skip.is_empty()
                && std::fs::canonicalize(&path).is_ok_and(|real| self.skip.contains(&real))
            {
                return Ok(());
            }
            self.folder(item, metadata);
            return self.tree(&path, item);
        }
        if metadata.is_symlink() {
            let target = std::fs::read_link(&path).map_err(SourceError::file("read", &path))?;
            let Ok(target) = target.into_os_string().into_string() else {
                let what = "its target is not UTF-8".to_owned();
                return Err(SourceError::Malformed { path, what });
            };
            let kind = ItemKind::Link { target };
            self.listing
                .entries
                .push(Item::from_metadata(item.to_owned(), kind, metadata));
        } else if metadata.is_file() {
            let top = item.strip_prefix("data/").unwrap_or(item);
            if top != CONTROL_FILE && !LEFT_OUT.contains(&top) {
                let relation = parse_relation(name).filter(|_| matches!(place, Place::Relations));
                self.listing.files.push(ListedFile {
                    source: path,
                    path: item.to_owned(),
                    size: metadata.len(),
                    relation_segment: relation.map(|relation| relation.segment),
                });
            }
        } else if !metadata.file_type().is_socket() {
            self.listing
                .notes
                .push(format!("{} is no file and was left out", path.display()));
        }
        Ok(())
    }

    fn folder(&mut self, item: &str, metadata: &Metadata) {
        self.listing.entries.push(Item::from_metadata(
            item.to_owned(),
            ItemKind::Folder,
            metadata,
        ));
    }
}

/// Whether a link at the top level stands for a folder of the cluster itself, not for one an
/// operator put there (like `log`).
fn is_own_folder(name: &str, path: &Path) -> bool {
    (name == "base" || name == "global" || name.starts_with("pg_")) && path.is_dir()
}

/// A file of a relation's main fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MainFork {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID; 0 for relations that all share.
    pub database: u32,
    /// The relation file's number (`pg_class.relfilenode`).
    pub node: u32,
    /// Which of its files.
    pub segment: u32,
}

/// `DEFAULTTABLESPACE_OID` and `GLOBALTABLESPACE_OID` (`catalog/pg_tablespace.dat`).
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

impl MainFork {
    /// Which relation's file a path of a point is; `None` for other forks and other files.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        let (tablespace, database, name) = match parts.as_slice() {
            ["data", "global", name] => (GLOBAL_TABLESPACE, 0, name),
            ["data", "base", database, name] => (DEFAULT_TABLESPACE, database.parse().ok()?, name),
            ["tablespaces", oid, _, database, name]
            | ["data", "pg_tblspc", oid, _, database, name] => {
                (oid.parse().ok()?, database.parse().ok()?, name)
            }
            _ => return None,
        };
        let file = parse_relation(name).filter(|file| file.fork.is_none())?;
        Some(Self {
            tablespace,
            database,
            node: file.node.parse().ok()?,
            segment: file.segment,
        })
    }
}

/// Whether a folder holds relation files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Relations,
    Plain,
}

impl Place {
    /// Of the entries inside `folder`: `global`, `base/<oid>`, and `<version>/<oid>` of a tablespace.
    fn inside(folder: &str) -> Self {
        let is_oid = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = folder.split('/').collect();
        match parts.as_slice() {
            ["data", "global"] => Self::Relations,
            ["data", "base", database] if is_oid(database) => Self::Relations,
            ["tablespaces", _, _, database] if is_oid(database) => Self::Relations,
            ["data", "pg_tblspc", _, _, database] if is_oid(database) => Self::Relations,
            _ => Self::Plain,
        }
    }
}

/// The parts of a relation file's name: `16384`, `16384.2`, `16384_vm`, `16384_fsm.1`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RelationFile<'a> {
    pub(crate) node: &'a str,
    pub(crate) fork: Option<&'a str>,
    pub(crate) segment: u32,
}

pub(crate) fn parse_relation(name: &str) -> Option<RelationFile<'_>> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, number)) => (stem, number.parse().ok()?),
        None => (name, 0),
    };
    let (node, fork) = match stem.split_once('_') {
        Some((node, fork @ ("fsm" | "vm" | "init"))) => (node, Some(fork)),
        Some(_) => return None,
        None => (stem, None),
    };
    let is_number = !node.is_empty() && node.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(RelationFile {
        node,
        fork,
        segment,
    })
}

/// For the path of a relation's file in a point: its number among the relation's files.
pub(crate) fn relation_segment(path: &str) -> Option<u32> {
    let (folder, name) = path.rsplit_once('/')?;
    let relation = parse_relation(name)?;
    matches!(Place::inside(folder), Place::Relations).then_some(relation.segment)
}

/// Temporary relations, `t<backend>_<node>[_<fork>][.<segment>]`, are gone with their session.
fn is_temporary(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, relation)| {
            !backend.is_empty()
                && backend.bytes().all(|byte| byte.is_ascii_digit())
                && parse_relation(relation).is_some()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_files_are_told_by_their_names() {
        let parsed = |name| parse_relation(name).map(|r| (r.node.to_owned(), r.fork, r.segment));
        assert_eq!(parsed("16384"), Some(("16384".to_owned(), None, 0)));
        assert_eq!(
            parsed("16384_fsm.3"),
            Some(("16384".to_owned(), Some("fsm"), 3))
        );
        for other in [
            "PG_VERSION",
            "pg_filenode.map",
            "1.x",
            "_vm",
            "16384_x",
            "t3_16384",
            "",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
        assert!(is_temporary("t3_16384_vm.1") && !is_temporary("t_1") && !is_temporary("test_1"));
    }

    #[test]
    fn a_path_tells_the_relation_of_a_main_fork() {
        let main = |path| {
            let file = MainFork::parse(path)?;
            Some((file.tablespace, file.database, file.node, file.segment))
        };
        assert_eq!(main("data/base/5/16384.2"), Some((1663, 5, 16384, 2)));
        assert_eq!(main("data/global/1262"), Some((1664, 0, 1262, 0)));
        let elsewhere = Some((777, 5, 16384, 0));
        assert_eq!(main("tablespaces/777/PG_15_202209061/5/16384"), elsewhere);
        assert_eq!(main("data/pg_tblspc/777/PG_15_1/5/16384"), elsewhere);
        for other in [
            "data/base/5/16384_vm",
            "data/base/5/16384_fsm.1",
            "data/base/5/16384_init",
            "data/base/5/pg_filenode.map",
            "data/pg_xact/0000",
            "data/PG_VERSION",
        ] {
            assert_eq!(main(other), None, "{other}");
        }
    }

    #[test]
    fn a_folder_with_every_kind_of_entry_is_listed_as_the_rules_say() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path();
        for folder in [
            "base/5/pgsql_tmp",
            "global",
            "pg_wal",
            "pg_replslot/slot",
            "pg_tblspc",
            "log",
        ] {
            std::fs::create_dir_all(data.join(folder)).unwrap();
        }
        for file in [
            "PG_VERSION",
            "postmaster.pid",
            "backup_label",
            "base/5/100",
            "base/5/100.1",
            "base/5/200",
            "base/5/200_fsm",
            "base/5/200_init",
            "base/5/t4_300",
            "base/5/pgsql_tmp/pgsql_tmp1.0",
            "base/5/pg_internal.init",
            "global/pg_control",
            "global/1262",
            "pg_wal/0000",
            "log/a.log",
        ] {
            std::fs::write(data.join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", data.join("link")).unwrap();

        let listing = list(data, "PG_15_202209061").unwrap();
        let mut files: Vec<(&str, Option<u32>)> = listing
            .files
            .iter()
            .map(|f| (f.path.as_str(), f.relation_segment))
            .collect();
        files.sort_unstable();
        assert_eq!(
            files,
            [
                ("data/PG_VERSION", None),
                ("data/base/5/100", Some(0)),
                ("data/base/5/100.1", Some(1)),
                ("data/base/5/200_init", Some(0)),
                ("data/global/1262", Some(0)),
                ("data/log/a.log", None),
            ]
        );
        let entries: Vec<&str> = listing.entries.iter().map(|e| e.path.as_str()).collect();
        for expected in [
            "data/pg_wal",
            "data/pg_wal/archive_status",
            "data/pg_replslot",
            "data/link",
        ] {
            assert!(
                entries.contains(&expected),
                "{expected} is missing in {entries:?}"
            );
        }
        assert!(
            !entries
                .iter()
                .any(|e| e.contains("pgsql_tmp") || e.contains("slot/"))
        );
    }
}

//! What of a cluster need not be read again: everything that the WAL since an earlier base backup does not
//! name.
//!
//! The rules (`docs/adr/0017-incrementals-from-the-wal.md`): the changed blocks are those named between the
//! earlier backup's beginning, not its end, and this one's beginning; on one timeline; only the main forks
//! of relations, all else is read whole. Any doubt, and everything is read.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use dr_model::{
    ByteCount, Condition, Lsn, PostgresPosition, RestorePoint, RestorePointId, SystemId, Timeline,
};
use dr_sources::postgres::parts::{self, PartedFile, PartsIndex};
use dr_sources::postgres::{ClusterIdentity, KnownFile, KnownFiles, MainFork};
use dr_store::{BackupWriter, Repository, StoreError, StoredPoint, TreeEntry};
use dr_wal::{Fork, Relation, Summary};
use serde::{Deserialize, Serialize};

use super::changes::{self, Log};
use super::postgres::PostgresDetails;

/// How a base backup came by what it did not read, kept with its restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Increment {
    /// The restore point whose files were taken over where nothing changed. It is not needed any more:
    /// this point is complete by itself.
    pub since: RestorePointId,
    /// When everything was last read.
    pub read_in_full: DateTime<Utc>,
    /// Bytes of files that were not read.
    pub spared: u64,
    /// Pages that were read because they changed, of files that were not read whole.
    pub changed_pages: u64,
    /// Files that are in parts.
    pub files_in_parts: u64,
}

/// So much WAL is always worth reading; more of it only if it is less than there is to read otherwise.
const WAL_BYTES_MIN: u64 = 1 << 30;

/// What a backup may build on.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) since: RestorePointId,
    pub(super) read_in_full: DateTime<Utc>,
    pub(super) known: KnownFiles,
    /// How each of them is kept: as it is called in the earlier point, in order.
    pub(super) kept: HashMap<String, Vec<String>>,
}

/// A base backup that begins.
pub(super) struct Beginning<'a> {
    pub(super) log: Log<'a>,
    pub(super) identity: &'a ClusterIdentity,
    pub(super) start_lsn: Lsn,
    pub(super) segment_pages: u32,
    pub(super) now: DateTime<Utc>,
    /// Everything is read when it was last read longer ago.
    pub(super) full_every: chrono::TimeDelta,
}

impl Beginning<'_> {
    /// Finds out what need not be read.
    ///
    /// # Errors
    /// The inner one: why everything has to be read. The outer one: the repository fails.
    pub(super) fn base(&self, writer: &BackupWriter) -> Result<Result<Base, String>, StoreError> {
        match self.base_or_why(writer) {
            Ok(base) => Ok(Ok(base)),
            Err(Not::Possible(why)) => Ok(Err(why)),
            // A damaged restore point must not keep the next one from being made.
            Err(Not::Read(
                error @ (StoreError::Damaged { .. } | StoreError::ObjectMissing { .. }),
            )) => Ok(Err(error.to_string())),
            Err(Not::Read(error)) => Err(error),
        }
    }

    fn base_or_why(&self, writer: &BackupWriter) -> Result<Base, Not> {
        let repository = self.log.repository;
        let points = repository.points(Some(self.log.workload))?;
        let newest = newest(points, self.identity.system_id, self.identity.timeline)
            .ok_or_else(|| "it is the first backup".to_owned())?;
        let position = self.position_of(&newest)?;
        let is_gone = || format!("{} is there no more", newest.id);
        let stored = repository.point(&newest.id)?.ok_or_else(is_gone)?;
        let read_in_full = read_in_full(&stored)?;
        let is_due = self.now - read_in_full >= self.full_every || read_in_full > self.now;
        if is_due {
            let when = read_in_full.format("%Y-%m-%d %H:%M UTC");
            return Err(format!("everything was last read on {when}").into());
        }
        let entries = writer.build_on(&newest.id)?.ok_or_else(is_gone)?;
        let index = index_of(repository, &stored, entries)?;
        let summary = changes::since(&self.log, position, self.start_lsn)
            .map_err(|why| format!("the WAL does not tell what changed: {why}"))?;
        let (known, kept) = known(entries, &index, &summary, self.segment_pages);
        Ok(Base {
            since: newest.id,
            read_in_full,
            known,
            kept,
        })
    }

    /// Where an earlier backup begins, if this one may build on it.
    fn position_of<'p>(&self, point: &'p RestorePoint) -> Result<&'p PostgresPosition, String> {
        let id = &point.id;
        let position = point
            .postgres()
            .ok_or_else(|| format!("{id} is no base backup"))?;
        let identity = self.identity;
        if point.condition != Condition::Whole {
            return Err(format!("{id} holds damaged pages"));
        }
        if position.system_id != identity.system_id
            || position.wal_segment_bytes != identity.wal_segment_bytes
            || position.major_version() != identity.major_version()
        {
            return Err(format!("{id} is of another cluster"));
        }
        if position.page_checksums != identity.page_checksums {
            return Err(format!("page checksums were switched since {id}"));
        }
        if position.timeline != identity.timeline {
            return Err(format!(
                "{id} is of timeline {}, the server is on {}",
                position.timeline, identity.timeline
            ));
        }
        if position.stop_lsn > self.start_lsn {
            let why = match self.identity.in_recovery {
                true => "the standby has not come that far",
                false => "the server was set back",
            };
            return Err(format!("{id} ends behind where this backup begins: {why}"));
        }
        let wal = self.start_lsn.0 - position.start_lsn.0;
        if wal > point.bytes_source.0.max(WAL_BYTES_MIN) {
            return Err(format!(
                "there is more WAL since {id} ({}) than there are files",
                ByteCount(wal)
            ));
        }
        Ok(position)
    }
}

/// The base backup that ends last on this timeline of the cluster; if there is none, the one that was made
/// last.
fn newest(
    points: Vec<RestorePoint>,
    system_id: SystemId,
    timeline: Timeline,
) -> Option<RestorePoint> {
    let end = |point: &RestorePoint| {
        let position = point.postgres()?;
        let is_ours = position.system_id == system_id && position.timeline == timeline;
        Some((is_ours, is_ours.then_some(position.stop_lsn), point.started))
    };
    let bases = points.into_iter().filter(|point| end(point).is_some());
    bases.max_by_key(end)
}

/// Why a backup builds on nothing.
enum Not {
    /// Everything has to be read.
    Possible(String),
    /// What the repository holds could not be read.
    Read(StoreError),
}

impl From<String> for Not {
    fn from(why: String) -> Self {
        Self::Possible(why)
    }
}

impl From<StoreError> for Not {
    fn from(error: StoreError) -> Self {
        Self::Read(error)
    }
}

fn read_in_full(stored: &StoredPoint) -> Result<DateTime<Utc>, String> {
    let details: PostgresDetails = serde_json::from_value(stored.details.clone())
        .map_err(|error| format!("the details of {} are not known: {error}", stored.point.id))?;
    if !details.is_known() {
        return Err(format!(
            "{} was made by a newer version of dr",
            stored.point.id
        ));
    }
    let increment = details.increment.as_ref();
    Ok(increment.map_or(stored.point.started, |increment| increment.read_in_full))
}

/// The list of files in parts.
fn index_of(
    repository: &Repository,
    stored: &StoredPoint,
    entries: &[TreeEntry],
) -> Result<PartsIndex, Not> {
    let path = |entry: &&TreeEntry| entry.meta.path == parts::INDEX_PATH;
    let Some(entry) = entries.iter().find(path) else {
        return Ok(PartsIndex::new(BTreeMap::new()));
    };
    let mut body = Vec::new();
    repository.reader(stored)?.read_file(entry, &mut body)?;
    let bad = |what| format!("the list of parts of {}: {what}", stored.point.id);
    Ok(PartsIndex::parse(&body).map_err(bad)?)
}

/// Joins what the earlier point holds with what changed since.
fn known(
    entries: &[TreeEntry],
    index: &PartsIndex,
    summary: &Summary,
    segment_pages: u32,
) -> (KnownFiles, HashMap<String, Vec<String>>) {
    let whole = entries.iter().filter_map(|entry| {
        let file = PartedFile {
            parts: 1,
            bytes: entry.size,
            pages: 0,
        };
        let path = &entry.meta.path;
        (!index.files.contains_key(path)).then(|| (path.clone(), vec![path.clone()], file))
    });
    let parted = index.files.iter().map(|(path, file)| {
        let names = (0..file.parts).map(|number| parts::path(number, path));
        (path.clone(), names.collect(), *file)
    });
    let (mut known, mut kept) = (KnownFiles::default(), HashMap::new());
    for (path, names, file) in whole.chain(parted) {
        let changes = MainFork::parse(&path)
            .and_then(|relation| changes_of(&relation, summary, segment_pages));
        let Some((new_from, changed)) = changes else {
            continue;
        };
        let file = KnownFile {
            bytes: file.bytes,
            parts: file.parts,
            pages_in_parts: file.pages,
            new_from,
            changed,
        };
        known.files.insert(path.clone(), file);
        kept.insert(path, names);
    }
    (known, kept)
}

/// From which page on one file of a relation is new, and which pages before that may have changed; `None`
/// when all of it is new.
fn changes_of(
    file: &MainFork,
    summary: &Summary,
    segment_pages: u32,
) -> Option<(Option<u32>, Vec<u32>)> {
    if summary
        .databases
        .contains(&(file.tablespace, file.database))
    {
        return None;
    }
    let relation = Relation {
        tablespace: file.tablespace,
        database: file.database,
        file: file.node,
    };
    let Some(changes) = summary.forks.get(&(relation, Fork::Main)) else {
        return Some((None, Vec::new()));
    };
    let first = file.segment.checked_mul(segment_pages)?;
    let behind = first.saturating_add(segment_pages);
    let new_from = match changes.new_from {
        Some(block) if block <= first => return None,
        Some(block) if block < behind => Some(block - first),
        _ => None,
    };
    let changed = changes.blocks.range(first..behind);
    Some((new_from, changed.map(|block| block - first).collect()))
}

#[cfg(test)]
mod tests {
    use dr_model::{Position, WalFileName};

    use super::*;

    const SEGMENT: u32 = 131_072;

    fn point(minute: u32, position: Option<(u32, u64)>) -> RestorePoint {
        let started = DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(i64::from(minute));
        let workload = "erp".parse().unwrap();
        let segment = WalFileName::of_number(1, Timeline(1), 16 << 20);
        RestorePoint {
            id: RestorePointId::new(&workload, started),
            workload,
            tier: "gold".parse().unwrap(),
            started,
            finished: started,
            moment: started,
            position: match position {
                None => Position::Files(dr_model::FilesPosition { entries: 1 }),
                Some((timeline, stop)) => Position::Postgres(PostgresPosition {
                    system_id: SystemId(7),
                    timeline: Timeline(timeline),
                    start_lsn: Lsn(stop - 1),
                    stop_lsn: Lsn(stop),
                    start_segment: segment.clone(),
                    stop_segment: segment,
                    wal_segment_bytes: 16 << 20,
                    server_version_num: 150_018,
                    page_checksums: true,
                }),
            },
            files: 0,
            bytes_source: ByteCount(0),
            bytes_added: ByteCount(0),
            condition: Condition::Whole,
        }
    }

    /// A clock that was wrong has no influence, nor have restore points of other kinds.
    #[test]
    fn the_base_is_the_backup_that_ends_last_on_the_timeline() {
        let points = || {
            vec![
                point(900, Some((1, 100))),
                point(2, Some((1, 300))),
                point(3, Some((2, 500))),
                point(999, None),
            ]
        };
        let stop = |system, timeline| {
            let found = newest(points(), SystemId(system), Timeline(timeline));
            found.and_then(|point| point.postgres().map(|position| position.stop_lsn.0))
        };
        assert_eq!(stop(7, 1), Some(300));
        assert_eq!(stop(7, 2), Some(500));
        // To say why it will not do.
        assert_eq!(stop(7, 3), Some(100));
        assert_eq!(stop(8, 1), Some(100));
        assert!(newest(vec![point(1, None)], SystemId(7), Timeline(1)).is_none());
    }

    /// A server on timeline 1 of system 7.
    fn server() -> ClusterIdentity {
        ClusterIdentity {
            system_id: SystemId(7),
            timeline: Timeline(1),
            server_version_num: 150_019,
            server_version: "15.19".to_owned(),
            wal_segment_bytes: 16 << 20,
            data_directory: None,
            in_recovery: false,
            page_checksums: true,
            archive_mode: "on".to_owned(),
            archive_command: String::new(),
            archive_timeout_seconds: 0,
            wal_level: "replica".to_owned(),
            current_lsn: Lsn(2000),
        }
    }

    /// Where an earlier backup begins that `change` makes another one than this server can go on from, or
    /// why it has to read everything.
    fn built_on(
        server: &ClusterIdentity,
        change: impl FnOnce(&mut RestorePoint, &mut PostgresPosition),
    ) -> Result<Lsn, String> {
        let mut earlier = point(1, Some((1, 1000)));
        let Position::Postgres(mut position) = earlier.position.clone() else {
            unreachable!("it is made as one")
        };
        change(&mut earlier, &mut position);
        earlier.position = Position::Postgres(position);
        let folder = tempfile::tempdir().unwrap();
        let place = dr_store::LocalBackend::new(&folder.path().join("repository"));
        let key = dr_store::RepositoryKey::generate();
        let repository = Repository::create(std::sync::Arc::new(place), &key).unwrap();
        let beginning = Beginning {
            log: Log {
                repository: &repository,
                workload: &earlier.workload,
                pg_wal: folder.path().to_owned(),
                system_id: server.system_id,
                cancel: tokio_util::sync::CancellationToken::new(),
            },
            identity: server,
            start_lsn: Lsn(1000),
            segment_pages: SEGMENT,
            now: DateTime::UNIX_EPOCH,
            full_every: chrono::TimeDelta::MAX,
        };
        let found = beginning.position_of(&earlier);
        found.map(|position| position.start_lsn)
    }

    #[test]
    fn a_backup_builds_only_on_one_that_the_same_servers_wal_leads_away_from() {
        let server = server();
        // One that ends where this one begins, of an earlier minor version.
        assert_eq!(built_on(&server, |_, _| {}), Ok(Lsn(999)));
        let why = |change: fn(&mut RestorePoint, &mut PostgresPosition)| {
            built_on(&server, change).unwrap_err()
        };
        let of_another = [
            why(|_, position| position.system_id = SystemId(8)),
            why(|_, position| position.wal_segment_bytes = 1 << 20),
            why(|_, position| position.server_version_num = 140_018),
        ];
        for said in of_another {
            assert!(said.contains("is of another cluster"), "{said}");
        }
        let said = why(|_, position| position.timeline = Timeline(2));
        assert!(
            said.contains("is of timeline 2, the server is on 1"),
            "{said}"
        );
        let said = why(|_, position| position.page_checksums = false);
        assert!(said.contains("checksums were switched"), "{said}");
        let said = why(|point, _| {
            point.condition = Condition::SourceDamaged {
                details: vec!["a page".to_owned()],
            };
        });
        assert!(said.contains("holds damaged pages"), "{said}");
    }

    #[test]
    fn a_server_that_was_set_back_behind_an_earlier_backups_end_reads_everything() {
        let mut server = server();
        let set_back = |server: &ClusterIdentity| {
            built_on(server, |_, position| position.stop_lsn = Lsn(1001)).unwrap_err()
        };
        let said = set_back(&server);
        assert!(said.contains("the server was set back"), "{said}");
        server.in_recovery = true;
        let said = set_back(&server);
        assert!(said.contains("the standby has not come that far"), "{said}");
    }

    fn summary(file: u32, new_from: Option<u32>, blocks: &[u32]) -> Summary {
        let relation = Relation {
            tablespace: 1663,
            database: 5,
            file,
        };
        let changes = dr_wal::summary::ForkChanges {
            new_from,
            blocks: blocks.iter().copied().collect(),
        };
        let mut summary = Summary::default();
        summary.forks.insert((relation, Fork::Main), changes);
        summary
    }

    fn of(path: &str, summary: &Summary) -> Option<(Option<u32>, Vec<u32>)> {
        changes_of(&MainFork::parse(path).unwrap(), summary, SEGMENT)
    }

    #[test]
    fn blocks_are_told_by_the_file_they_are_in() {
        let summary = summary(100, None, &[0, 7, SEGMENT - 1, SEGMENT, SEGMENT + 9]);
        let first = Some((None, vec![0, 7, SEGMENT - 1]));
        assert_eq!(of("data/base/5/100", &summary), first);
        assert_eq!(of("data/base/5/100.1", &summary), Some((None, vec![0, 9])));
        for other in ["data/base/5/100.2", "data/base/5/101", "data/base/6/100"] {
            assert_eq!(of(other, &summary), Some((None, vec![])), "{other}");
        }
    }

    #[test]
    fn what_was_cut_made_or_copied_is_new() {
        let cut = summary(100, Some(SEGMENT + 5), &[3, SEGMENT + 1]);
        assert_eq!(of("data/base/5/100", &cut), Some((None, vec![3])));
        assert_eq!(of("data/base/5/100.1", &cut), Some((Some(5), vec![1])));
        assert_eq!(of("data/base/5/100.2", &cut), None);
        let made = summary(100, Some(0), &[]);
        assert_eq!(of("data/base/5/100", &made), None);
        let mut copied = Summary::default();
        copied.databases.insert((1663, 5));
        assert_eq!(of("data/base/5/100", &copied), None);
        assert_eq!(of("data/base/6/100", &copied), Some((None, vec![])));
    }
}

//! From a source's items to the repository's entries: the only place where the two meet.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use dr_config::TenantPath;
use dr_sources::postgres::parts;
use dr_sources::{ContentKind, Item, ItemKind, ItemSink, SinkError};
use dr_store::{BackupWriter, Cutting, Domain, EntryKind, EntryMeta};

use crate::BackupError;

/// Hands items on to a [`BackupWriter`].
#[derive(Debug)]
pub(super) struct StoreSink {
    writer: BackupWriter,
    /// Files that are as they were in the newest restore point need not be read.
    spare_unchanged: bool,
    /// Whose a path is, where tenants' files can be told apart: each tenant's content goes under a key
    /// of its own.
    tenants: Option<TenantPath>,
    /// Relation files that may be taken over from an earlier restore point, by path: how they are called
    /// there, whole or part by part.
    kept: HashMap<String, Vec<String>>,
}

impl StoreSink {
    pub(super) fn new(writer: BackupWriter) -> Self {
        Self {
            writer,
            spare_unchanged: false,
            tenants: None,
            kept: HashMap::new(),
        }
    }

    /// Takes over relation files, as the source knows what changed in them.
    pub(super) fn carrying(self, kept: HashMap<String, Vec<String>>) -> Self {
        Self { kept, ..self }
    }

    /// Takes over files of the newest restore point whose times and inode tell that they did not change.
    /// For folders of people only: of a database, what its files hold is not told by their times.
    pub(super) fn sparing_unchanged(writer: BackupWriter) -> Self {
        Self {
            spare_unchanged: true,
            ..Self::new(writer)
        }
    }

    /// Tells tenants' files apart.
    pub(super) fn for_tenants(mut self, tenants: Option<TenantPath>) -> Self {
        self.tenants = tenants;
        self
    }

    fn domain(&self, path: &str) -> Domain {
        let tenant = self.tenants.as_ref().and_then(|of| of.tenant_of(path));
        tenant.map_or(Domain::Workload, Domain::Tenant)
    }

    pub(super) fn into_writer(self) -> BackupWriter {
        self.writer
    }

    /// Takes the writer back from a sink that several threads used.
    ///
    /// # Errors
    /// When one of them still holds it: then something is still being captured.
    pub(super) fn reclaim(sink: Arc<Self>) -> Result<BackupWriter, BackupError> {
        Arc::try_unwrap(sink)
            .map(Self::into_writer)
            .map_err(|_| BackupError::Worker("capture the source"))
    }
}

fn meta(item: &Item) -> EntryMeta {
    EntryMeta {
        path: item.path.clone(),
        mode: item.mode,
        uid: item.uid,
        gid: item.gid,
        modified_ns: item.modified_ns,
        changed_ns: item.changed_ns,
        inode: item.inode,
    }
}

impl ItemSink for StoreSink {
    fn file(
        &self,
        item: &Item,
        content: &mut dyn Read,
        kind: ContentKind,
    ) -> Result<(), SinkError> {
        let cutting = match kind {
            ContentKind::Pages => Cutting::Pages,
            ContentKind::Other => Cutting::Content,
        };
        let domain = self.domain(&item.path);
        self.writer
            .add_file_of(&domain, meta(item), content, cutting)?;
        Ok(())
    }

    fn entry(&self, item: &Item) -> Result<(), SinkError> {
        let kind = match &item.kind {
            ItemKind::File => EntryKind::File,
            ItemKind::Folder => EntryKind::Folder,
            ItemKind::Link { target } => EntryKind::Link {
                target: target.clone(),
            },
        };
        self.writer.add_entry(meta(item), kind)?;
        Ok(())
    }

    fn unchanged(&self, item: &Item, size: u64) -> Result<bool, SinkError> {
        if !self.spare_unchanged {
            return Ok(false);
        }
        let domain = self.domain(&item.path);
        Ok(self.writer.add_unchanged_of(&domain, &meta(item), size)?)
    }

    fn carry(&self, path: &str, goes_on: bool) -> Result<bool, SinkError> {
        let Some(names) = self.kept.get(path) else {
            return Ok(false);
        };
        // A file that was whole becomes the first part of one in parts.
        let under = |name: &String| match goes_on && name == path {
            true => parts::path(0, path),
            false => name.clone(),
        };
        let files: Vec<_> = names
            .iter()
            .map(|name| (name.clone(), under(name)))
            .collect();
        Ok(self.writer.take_over(&files)?)
    }
}

#[cfg(test)]
mod tests {
    use dr_model::{
        ByteCount, Clock, Condition, FilesPosition, Position, RestorePoint, RestorePointId,
        SystemClock, WorkloadName,
    };
    use dr_store::{LocalBackend, Repository, RepositoryKey, WriteOptions};

    use super::*;

    fn item(path: &str) -> Item {
        Item {
            path: path.to_owned(),
            kind: ItemKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified_ns: 1_700_000_000_000_000_000,
            changed_ns: 1_700_000_000_000_000_001,
            inode: 7,
        }
    }

    fn finish(sink: StoreSink, workload: &WorkloadName) {
        let now = SystemClock.now();
        let point = RestorePoint {
            id: RestorePointId::new(workload, now),
            workload: workload.clone(),
            tier: "gold".parse().unwrap(),
            started: now,
            finished: now,
            moment: now,
            position: Position::Files(FilesPosition { entries: 1 }),
            files: 0,
            bytes_source: ByteCount(0),
            bytes_added: ByteCount(0),
            condition: Condition::Whole,
        };
        let details = serde_json::Value::Null;
        sink.into_writer().finish(point, details).unwrap();
    }

    #[test]
    fn a_file_is_taken_over_only_unchanged_and_only_where_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let backend = Arc::new(LocalBackend::new(&folder.path().join("repository")));
        let repository = Repository::create(backend, &RepositoryKey::generate()).unwrap();
        let workload: WorkloadName = "documents".parse().unwrap();
        let begin = || {
            repository
                .begin(&workload, WriteOptions::default())
                .unwrap()
        };

        let sink = StoreSink::sparing_unchanged(begin());
        let file = item("a");
        assert!(!sink.unchanged(&file, 5).unwrap(), "there is no point yet");
        sink.file(&file, &mut &b"hello"[..], ContentKind::Other)
            .unwrap();
        let unknown = Item {
            changed_ns: 0,
            ..item("fresh")
        };
        sink.file(&unknown, &mut &b"hello"[..], ContentKind::Other)
            .unwrap();
        finish(sink, &workload);

        let full = StoreSink::new(begin());
        assert!(
            !full.unchanged(&file, 5).unwrap(),
            "everything is to be read"
        );
        drop(full);

        let sink = StoreSink::sparing_unchanged(begin());
        let others = [
            (item("b"), 5),
            (item("a"), 6),
            (
                Item {
                    inode: 8,
                    ..item("a")
                },
                5,
            ),
            (
                Item {
                    inode: 0,
                    ..item("a")
                },
                5,
            ),
            (
                Item {
                    modified_ns: 1,
                    ..item("a")
                },
                5,
            ),
            (
                Item {
                    changed_ns: 1,
                    ..item("a")
                },
                5,
            ),
            (
                Item {
                    changed_ns: 0,
                    ..item("a")
                },
                5,
            ),
            (item("fresh"), 5),
            (unknown, 5),
        ];
        for (other, size) in &others {
            assert!(!sink.unchanged(other, *size).unwrap(), "{other:?}, {size}");
        }
        assert!(sink.unchanged(&file, 5).unwrap());
        finish(sink, &workload);
        let points = repository.points(Some(&workload)).unwrap();
        let newest = points.iter().max_by_key(|point| point.started).unwrap();
        let stored = repository.point(&newest.id).unwrap().unwrap();
        let entries = repository.entries(&stored).unwrap();
        let mut content = Vec::new();
        let [entry] = &*entries else {
            panic!("one file was handed over: {entries:?}");
        };
        repository.read_file(&stored, entry, &mut content).unwrap();
        assert_eq!(content, b"hello");
    }

    #[test]
    fn a_file_whose_reader_failed_is_forgotten_and_may_come_again() {
        struct Failing(u32);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.0 += 1;
                if self.0 > 40 {
                    return Err(std::io::Error::other("the file changed"));
                }
                buffer.fill(3);
                Ok(buffer.len())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let backend = Arc::new(LocalBackend::new(&folder.path().join("repository")));
        let repository = Repository::create(backend, &RepositoryKey::generate()).unwrap();
        let workload: WorkloadName = "documents".parse().unwrap();
        let writer = repository
            .begin(&workload, WriteOptions::default())
            .unwrap();
        let sink = StoreSink::sparing_unchanged(writer);
        let file = item("a");
        sink.file(&file, &mut Failing(0), ContentKind::Other)
            .unwrap_err();
        sink.file(&file, &mut &b"whole"[..], ContentKind::Other)
            .unwrap();
        finish(sink, &workload);
        let point = &repository.points(Some(&workload)).unwrap()[0];
        assert_eq!((point.files, point.bytes_source), (1, ByteCount(5)));
    }
}

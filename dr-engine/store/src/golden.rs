//! Makes the repository that is kept in `tests/compat/v1` and never edited. It was made once; a later
//! version of the format gets a folder of its own. See `tests/compat/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_model::{ByteCount, Condition, FilesPosition, Position, RestorePoint, RestorePointId};
use dr_model::{TierName, WalFileName, WorkloadName};
use serde_json::{Value, json};

use crate::crypto::{KeyCommand, NewSlot, sha256};
use crate::format::header::Kind;
use crate::format::session::{CondemnedObject, Purpose};
use crate::repo::lock::LockObject;
use crate::repo::points::point_name;
use crate::{
    Backend, BackupWriter, Cutting, Domain, EntryKind, EntryMeta, LocalBackend, Repository,
    RepositoryKey, Shredding, WriteOptions, new_age_identity,
};

/// Bytes of each stretch of the large file; each becomes one chunk.
const STRETCH: usize = 256 * 1024;
/// More than are referred to in place, so that there is a list.
const STRETCHES: u8 = 40;
const PASSPHRASE: &str = "correct horse battery staple";

fn workload() -> WorkloadName {
    "docs".parse().unwrap()
}

fn at(minutes: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_764_072_000 + 60 * minutes, 0).unwrap()
}

/// A large file that compresses to nearly nothing; `changed` is another stretch.
fn large(changed: Option<u8>) -> Vec<u8> {
    (0..STRETCHES)
        .flat_map(|number| {
            let letter = if changed == Some(number) { b'!' } else { b'.' };
            let line = format!(
                "stretch {number:02} {}\n",
                char::from(letter).to_string().repeat(52)
            );
            line.into_bytes().repeat(STRETCH / 64)
        })
        .collect()
}

/// A WAL file of recognisable content.
fn wal(name: &str) -> Vec<u8> {
    format!("not really WAL: {name}\n").repeat(400).into_bytes()
}

struct Maker {
    repository: Repository,
    expected: BTreeMap<String, Value>,
}

impl Maker {
    fn meta(path: &str, mode: u32) -> EntryMeta {
        EntryMeta {
            path: path.to_owned(),
            mode,
            uid: 1000,
            gid: 100,
            modified_ns: 1_764_000_000_123_456_789,
            changed_ns: 1_764_000_000_987_654_321,
            inode: 4711,
        }
    }

    /// One restore point; returns what it holds.
    fn point(&mut self, minutes: i64, changed: Option<u8>, removed: bool) -> RestorePointId {
        let writer = self
            .repository
            .begin(&workload(), WriteOptions::default())
            .unwrap();
        let mut holds = BTreeMap::new();
        let mut file = |writer: &BackupWriter, domain: &Domain, path: &str, body: &[u8]| {
            let meta = Self::meta(path, 0o640);
            writer
                .add_file_of(domain, meta, &mut &*body, Cutting::Pages)
                .unwrap();
            let digest = hex::encode(sha256(body));
            holds.insert(
                path.to_owned(),
                json!({"bytes": body.len(), "sha256": digest}),
            );
        };
        let tenant = |name: &str| Domain::Tenant(name.to_owned());
        let own = Domain::Workload;
        file(&writer, &own, "small.txt", b"hello\n");
        file(&writer, &own, "empty", b"");
        file(&writer, &own, "Straße/日本語 ☃.txt", "schön\n".as_bytes());
        file(&writer, &own, "large.bin", &large(changed));
        let note = format!("made at minute {minutes}\n");
        file(&writer, &own, "note.txt", note.as_bytes());
        file(
            &writer,
            &tenant("acme"),
            "tenants/acme/settings.yaml",
            b"acme: 1\n",
        );
        file(
            &writer,
            &tenant("birch"),
            "tenants/birch/settings.yaml",
            b"birch: 2\n",
        );
        for folder in [
            "Straße",
            "tenants",
            "tenants/acme",
            "tenants/birch",
            "empty-folder",
        ] {
            writer
                .add_entry(Self::meta(folder, 0o750), EntryKind::Folder)
                .unwrap();
            holds.insert(folder.to_owned(), json!("folder"));
        }
        for (path, target) in [("link", "small.txt"), ("dangling", "../nowhere")] {
            let kind = EntryKind::Link {
                target: target.to_owned(),
            };
            writer.add_entry(Self::meta(path, 0o777), kind).unwrap();
            holds.insert(path.to_owned(), json!({"link": target}));
        }
        let tier: TierName = "gold".parse().unwrap();
        let point = RestorePoint {
            id: RestorePointId::new(&workload(), at(minutes)),
            workload: workload(),
            tier,
            started: at(minutes),
            finished: at(minutes),
            moment: at(minutes),
            position: Position::Files(FilesPosition { entries: 14 }),
            files: 0,
            bytes_source: ByteCount(0),
            bytes_added: ByteCount(0),
            condition: Condition::Whole,
        };
        let point = writer
            .finish(point, json!({"version": 1, "made": "for the tests"}))
            .unwrap();
        if !removed {
            self.expected.insert(point.id.to_string(), json!(holds));
        }
        point.id
    }

    /// Destroys a tenant's key as shredding does.
    fn shred(&self, name: &str) {
        let repo = self.repository.inner();
        let domain = Domain::Tenant(name.to_owned());
        let object = repo.data_key_object(&workload(), &domain).unwrap();
        let keys = repo.data_keys(&workload(), &domain).unwrap().unwrap();
        let record = Shredding {
            workload: workload(),
            tenant: name.to_owned(),
            key_ids: vec![hex::encode(keys.id())],
            object: object.clone(),
            at: at(100),
            by: "the maker of this repository".to_owned(),
        };
        let code = object.rsplit('/').next().unwrap();
        let body = serde_json::to_vec(&record).unwrap();
        let place = format!("docs/{code}");
        self.repository.put_record("shred", &place, &body).unwrap();
        repo.backend.delete(&object).unwrap();
    }

    fn slots(&self, into: &Path) {
        let second = RepositoryKey::generate();
        let text = second.to_text().unwrap();
        std::fs::write(into.join("second.key"), text.as_bytes()).unwrap();
        let (identity, _) = new_age_identity();
        std::fs::write(into.join("age-identity.txt"), identity.as_bytes()).unwrap();
        std::fs::write(into.join("passphrase.txt"), format!("{PASSPHRASE}\n")).unwrap();
        let command = KeyCommand {
            wrap: vec!["base64".to_owned(), "-w0".to_owned()],
            unwrap: vec!["base64".to_owned(), "-d".to_owned()],
        };
        let passphrase = RepositoryKey::passphrase(PASSPHRASE).unwrap();
        let age = RepositoryKey::age_identity(&identity).unwrap();
        for (key, label) in [
            (second, "a second key file"),
            (passphrase, "a passphrase"),
            (age, "the recovery key"),
            (
                RepositoryKey::command(command),
                "base64 instead of a key service",
            ),
        ] {
            self.repository
                .add_key_slot(&NewSlot::For(key), label)
                .unwrap();
        }
    }

    fn rest(&mut self) -> Value {
        let mut wal_files = BTreeMap::new();
        for name in [
            "000000010000000000000001",
            "000000010000000000000002",
            "00000002.history",
            "000000020000000000000003.partial",
        ] {
            let file: WalFileName = name.parse().unwrap();
            self.repository
                .put_wal(&workload(), &file, &wal(name), at(7))
                .unwrap();
            wal_files.insert(name, hex::encode(sha256(&wal(name))));
        }
        let mut records = BTreeMap::new();
        for (kind, name, body) in [
            ("note", "first", "{\"text\":\"kept\"}"),
            ("hold", "docs/one", "{\"until\":null}"),
        ] {
            self.repository
                .put_record(kind, name, body.as_bytes())
                .unwrap();
            records.insert(format!("{kind}/{name}"), body);
        }
        json!({"wal": wal_files, "records": records})
    }
}

/// What a writer that died and a prune that was interrupted leave, and the record of a lock.
fn leftovers(repository: &Repository) {
    let repo = repository.inner();
    repo.begin_session(&workload(), at(50), Purpose::Backup)
        .unwrap();
    let condemned = CondemnedObject {
        packs: vec!["00".repeat(16)],
        confirms: None,
    };
    let object = format!("condemned/docs/{}", "0".repeat(32));
    repo.put_json(Kind::Condemned, &object, &condemned).unwrap();
    let locked = LockObject {
        until: at(60),
        objects: vec!["repository".to_owned()],
    };
    let object = format!("locks/docs/{:016x}.{}", at(60).timestamp(), "0".repeat(32));
    repo.put_json(Kind::Lock, &object, &locked).unwrap();
}

#[test]
#[ignore = "made once: DR_GOLDEN_INTO=<a new folder> cargo test -p dr-store --lib golden -- --ignored"]
fn make_the_golden_repository() {
    let into = PathBuf::from(std::env::var_os("DR_GOLDEN_INTO").unwrap());
    std::fs::create_dir(&into).unwrap();
    let key = RepositoryKey::generate();
    let text = key.to_text().unwrap();
    std::fs::write(into.join("repository.key"), text.as_bytes()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(&into.join("repository")));
    let repository = Repository::create(Arc::clone(&backend), &key).unwrap();
    let expected = BTreeMap::new();
    let mut maker = Maker {
        repository,
        expected,
    };
    let first = maker.point(0, None, false);
    let removed = maker.point(1, Some(3), true);
    let second = maker.point(2, Some(39), false);
    let repo = maker.repository.inner();
    let gone = std::collections::HashSet::from([removed.clone()]);
    let decided_at = repo
        .chain_head(&workload())
        .unwrap()
        .unwrap()
        .entry
        .sequence;
    repo.chain_removed(&workload(), &gone, decided_at, at(3), &|| Ok(()))
        .unwrap();
    backend.delete(&point_name(&removed)).unwrap();
    maker.slots(&into);
    let mut expected = maker.rest();
    maker.shred("birch");
    leftovers(&maker.repository);
    expected["points"] = json!(maker.expected);
    expected["removed"] = json!(removed);
    expected["destroyed"] = json!(["tenants/birch/settings.yaml"]);
    expected["order"] = json!([first, second]);
    let text = serde_json::to_string_pretty(&expected).unwrap();
    std::fs::write(into.join("expected.json"), text + "\n").unwrap();
}

//! A private source cluster, a sink that keeps captured items in a folder, and the way back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use dr_model::{Lsn, PostgresPosition, Silent, WalFileName};
use dr_sources::instance::{
    InitdbOptions, PostgresInstance, RunAs, StartOptions, free_port, give, scratch_settings,
};
use dr_sources::postgres::put_back::{
    self, ManifestFile, Place, RecoveryAction, RecoverySettings, RecoveryTarget, WalRange,
};
use dr_sources::postgres::{
    BaseBackup, BaseBackupResult, CaptureOptions, ConnectOptions, connect, tools,
};
use dr_sources::{ContentKind, Item, ItemKind, ItemSink, SinkError, SourceError};
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

pub(crate) const MAJOR: u32 = 15;

pub(crate) fn bin() -> PathBuf {
    tools::bin_directory(None, MAJOR).unwrap()
}

pub(crate) struct Home {
    folder: tempfile::TempDir,
    pub(crate) run_as: Option<RunAs>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-postgres")
            .tempdir()
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        Self { folder, run_as }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a folder that belongs to the servers' user.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        give(&path, self.run_as.as_ref()).unwrap();
        path
    }

    pub(crate) fn initdb(&self, name: &str, data_checksums: bool) -> PathBuf {
        let options = InitdbOptions::new(&bin(), &self.path(name), self.run_as.clone());
        let arguments = vec!["--no-sync".to_owned()];
        PostgresInstance::initdb(&InitdbOptions {
            data_checksums,
            arguments,
            ..options
        })
        .unwrap();
        self.path(name)
    }

    /// As Debian does: the configuration is named on the command line.
    pub(crate) fn start_with_config(&self, data: &Path, config_file: &str) -> PostgresInstance {
        self.start(data, &[("config_file", config_file)])
    }

    pub(crate) fn start(&self, data: &Path, settings: &[(&str, &str)]) -> PostgresInstance {
        let mut options = StartOptions::new(&bin(), data, self.run_as.clone(), free_port());
        options.settings = settings
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        options
            .settings
            .push(("fsync".to_owned(), "off".to_owned()));
        PostgresInstance::start(options).unwrap()
    }
}

pub(crate) async fn session(server: &PostgresInstance) -> PgConnection {
    connect(&ConnectOptions {
        url: server.url("postgres"),
        password: None,
    })
    .await
    .unwrap()
}

pub(crate) async fn run(server: &PostgresInstance, sql: &'static str) {
    let mut session = session(server).await;
    sqlx::raw_sql(sql).execute(&mut session).await.unwrap();
    session.close().await.unwrap();
}

/// As [`run`], of a statement that is put together.
pub(crate) async fn run_text(server: &PostgresInstance, sql: String) {
    let mut session = session(server).await;
    let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
    statement.execute(&mut session).await.unwrap();
    session.close().await.unwrap();
}

pub(crate) async fn number(server: &PostgresInstance, sql: &'static str) -> i64 {
    let mut session = session(server).await;
    let number = sqlx::query_scalar(sql)
        .fetch_one(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
    number
}

pub(crate) async fn text(server: &PostgresInstance, sql: &'static str) -> String {
    let mut session = session(server).await;
    let text = sqlx::query_scalar(sql)
        .fetch_one(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
    text
}

/// What a sink saw of one item.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) item: Item,
    pub(crate) crc32c: u32,
    pub(crate) size: u64,
    pub(crate) kind: Option<ContentKind>,
}

type OnFile = Box<dyn Fn(&Item) + Send + Sync>;

/// Keeps files below a folder by their paths.
pub(crate) struct FolderSink {
    root: PathBuf,
    kept: Mutex<Vec<Kept>>,
    on_file: OnFile,
}

impl FolderSink {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self::watched(root, Box::new(|_| {}))
    }

    pub(crate) fn watched(root: PathBuf, on_file: OnFile) -> Self {
        fs::create_dir_all(&root).unwrap();
        Self {
            root,
            kept: Mutex::new(Vec::new()),
            on_file,
        }
    }

    /// In the order of arrival.
    pub(crate) fn kept(&self) -> Vec<Kept> {
        self.kept.lock().unwrap().clone()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.kept().into_iter().map(|kept| kept.item.path).collect()
    }

    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        fs::read(self.root.join(path)).unwrap()
    }

    fn keep(&self, item: &Item, crc32c: u32, size: u64, kind: Option<ContentKind>) {
        let mut kept = self.kept.lock().unwrap();
        let twice = kept.iter().any(|kept| kept.item.path == item.path);
        assert!(!twice, "{} is handed over twice", item.path);
        kept.push(Kept {
            item: item.clone(),
            crc32c,
            size,
            kind,
        });
    }
}

impl ItemSink for FolderSink {
    fn file(
        &self,
        item: &Item,
        content: &mut dyn Read,
        kind: ContentKind,
    ) -> Result<(), SinkError> {
        (self.on_file)(item);
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        let path = self.root.join(&item.path);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, &bytes)?;
        self.keep(item, crc32c::crc32c(&bytes), bytes.len() as u64, Some(kind));
        Ok(())
    }

    fn entry(&self, item: &Item) -> Result<(), SinkError> {
        self.keep(item, 0, 0, None);
        Ok(())
    }
}

/// Everything, so many files at a time.
pub(crate) fn reading(parallelism: usize) -> CaptureOptions {
    CaptureOptions {
        parallelism,
        ..CaptureOptions::default()
    }
}

/// Takes a base backup; the WAL it needs is copied to `wal` before the hold on it is let go.
pub(crate) async fn back_up(
    server: &PostgresInstance,
    sink: &Arc<FolderSink>,
    wal: &Path,
) -> Result<BaseBackupResult, SourceError> {
    let data = server.data_directory().to_owned();
    let mut backup =
        BaseBackup::begin(session(server).await, session(server).await, &data, "test").await?;
    backup
        .capture(
            Arc::clone(sink) as _,
            reading(2),
            Arc::new(Silent),
            CancellationToken::new(),
        )
        .await?;
    let result = backup.end(Arc::clone(sink) as _).await?;
    assert!(result.wal_hold.holds());
    keep_wal(server, &result, wal);
    Ok(result)
}

/// Copies the WAL from the backup's start to its stop.
pub(crate) fn keep_wal(server: &PostgresInstance, result: &BaseBackupResult, wal: &Path) {
    for name in segments(&result.position) {
        fs::copy(
            server.data_directory().join("pg_wal").join(&name),
            wal.join(&name),
        )
        .unwrap();
        give(&wal.join(&name), RunAs::for_postgres().unwrap().as_ref()).unwrap();
    }
}

fn segments(position: &PostgresPosition) -> Vec<String> {
    let bytes = position.wal_segment_bytes;
    let number = |name: &WalFileName| name.number(bytes).unwrap();
    (number(&position.start_segment)..=number(&position.stop_segment))
        .map(|number| WalFileName::of_number(number, position.timeline, bytes).to_string())
        .collect()
}

/// Puts a capture back into `into`, the way a restore does, up to the end of the backup.
pub(crate) fn put_back(
    home: &Home,
    sink: &FolderSink,
    result: &BaseBackupResult,
    into: &Path,
    wal: &Path,
) -> put_back::PlacedConfig {
    let owner = home.run_as.as_ref();
    let staging = home.folder("staging");
    let mut locations = BTreeMap::new();
    for tablespace in &result.details.tablespaces {
        locations.insert(
            tablespace.oid,
            home.folder(&format!("tablespace-{}", tablespace.oid)),
        );
    }
    let mut manifest = Vec::new();
    let mut kept = sink.kept();
    kept.sort_by(|a, b| a.item.path.cmp(&b.item.path));
    for kept in &kept {
        let (target, listed) = match put_back::place(&kept.item.path) {
            Place::Data(path) => (into.join(path), kept.item.path.strip_prefix("data/")),
            Place::Tablespace(oid, path) => (locations[&oid].join(path), None),
            Place::Config(path) => (staging.join(path), None),
            Place::Part { .. } | Place::Skip => continue,
        };
        let listed = match kept.item.path.strip_prefix("tablespaces/") {
            Some(rest) => Some(format!("pg_tblspc/{rest}")),
            None => listed.map(str::to_owned),
        };
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        match &kept.item.kind {
            ItemKind::Folder => fs::create_dir_all(&target).unwrap(),
            ItemKind::Link { target: to } => std::os::unix::fs::symlink(to, &target).unwrap(),
            ItemKind::File => fs::write(&target, sink.content(&kept.item.path)).unwrap(),
        }
        give(&target, owner).unwrap();
        if !matches!(kept.item.kind, ItemKind::Link { .. }) {
            fs::set_permissions(&target, fs::Permissions::from_mode(kept.item.mode)).unwrap();
        }
        if let (ItemKind::File, Some(path)) = (&kept.item.kind, listed) {
            manifest.push(ManifestFile {
                path,
                size: kept.size,
                modified_seconds: kept.item.modified_ns / 1_000_000_000,
                crc32c: kept.crc32c,
            });
        }
    }
    for (oid, location) in &locations {
        std::os::unix::fs::symlink(location, into.join(format!("pg_tblspc/{oid}"))).unwrap();
    }
    let label = sink.content("label/backup_label");
    let map = sink.paths().contains(&"label/tablespace_map".to_owned());
    let map = map.then(|| sink.content("label/tablespace_map"));
    manifest.extend(put_back::write_label(into, &label, map.as_deref(), &locations).unwrap());
    let placed = put_back::place_config(into, &staging, &result.details, None).unwrap();
    manifest.extend(placed.files.clone());
    let position = &result.position;
    let range = WalRange {
        timeline: position.timeline,
        start: position.start_lsn,
        end: position.stop_lsn,
    };
    put_back::write_recovery(
        into,
        &RecoverySettings {
            restore_command: format!("cp {}/%f %p", wal.display()),
            target: RecoveryTarget::Immediate,
            inclusive: true,
            timeline: Some(position.timeline),
            action: RecoveryAction::Promote,
            as_primary: false,
            extra: Vec::new(),
        },
    )
    .unwrap();
    put_back::write_backup_manifest(into, MAJOR, position.system_id, &manifest, &[range]).unwrap();
    assert!(
        !into.join("global/pg_control").exists(),
        "it could start before it is complete"
    );
    put_back::finish(into).unwrap();
    placed
}

/// Someone else's judgement of a restored folder.
pub(crate) fn verify(home: &Home, data: &Path) -> Result<(), String> {
    let program = bin().join("pg_verifybackup");
    let output = dr_sources::instance::command(home.run_as.as_ref(), program)
        .arg("-n")
        .arg(data)
        .current_dir("/")
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Starts a restored folder and waits until it is out of recovery.
pub(crate) fn start_restored(
    home: &Home,
    data: &Path,
    settings: &[(String, String)],
) -> PostgresInstance {
    let mut options = StartOptions::new(&bin(), data, home.run_as.clone(), free_port());
    options.settings = scratch_settings();
    options.settings.extend_from_slice(settings);
    options.wait_for = dr_sources::instance::WaitFor::ReadWrite;
    PostgresInstance::start(options).unwrap()
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

pub(crate) fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

//! A base backup is listed only when the repository gives back every WAL file that it cannot start without,
//! as the server wrote it. Real servers; what befalls the WAL does so between the end of the backup and the
//! moment at which its files are looked for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dr_backup::{BackupError, BackupOptions, PostgresDetails};
use dr_installation::{InitRequest, Installation, init};
use dr_model::{Progress, RestorePoint, WalFileName, WorkloadName};
use dr_sources::instance::{
    InitdbOptions, PostgresInstance, RunAs, StartOptions, StopMode, WaitFor, free_port, give,
};
use dr_sources::postgres::{ConnectOptions, connect, tools};
use dr_store::Repository;
use sqlx::Connection;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

const SEGMENT_BYTES: u64 = 1 << 20;
/// The phases of a backup at which something befalls it.
const READING: &str = "reading the data directory";
const RECEIVING: &str = "receiving the cluster";
const SECURING: &str = "securing its WAL";
const ARCHIVING: &str = "waiting until the primary has archived its WAL";

/// A cluster.
struct Source {
    server: Option<PostgresInstance>,
    run_as: Option<RunAs>,
    // Last: everything above lives in it.
    folder: tempfile::TempDir,
}

impl Source {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-secured")
            .tempdir()
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        let mut source = Self {
            folder,
            run_as,
            server: None,
        };
        let options = InitdbOptions::new(&bin(), &source.data(), source.run_as.clone());
        PostgresInstance::initdb(&InitdbOptions {
            wal_segment_megabytes: Some(1),
            arguments: vec!["--no-sync".to_owned()],
            ..options
        })
        .unwrap();
        source.start();
        source
    }

    /// A cluster that was promoted once.
    fn on_its_second_timeline() -> Self {
        let mut source = Self::new();
        let server = source.server.take().unwrap();
        server.stop(StopMode::Fast).unwrap();
        source.signal("recovery.signal");
        source.start();
        source
    }

    /// A primary and its standby.
    fn pair() -> (Self, Self) {
        let mut primary = Self::new();
        primary.server.take().unwrap().stop(StopMode::Fast).unwrap();
        let folder = tempfile::Builder::new()
            .prefix("dr-secured")
            .tempdir()
            .unwrap();
        give(folder.path(), primary.run_as.as_ref()).unwrap();
        let mut standby = Self {
            folder,
            run_as: primary.run_as.clone(),
            server: None,
        };
        let copied = Command::new("cp")
            .arg("-a")
            .args([primary.data(), standby.data()])
            .status();
        assert!(copied.unwrap().success());
        standby.signal("standby.signal");
        primary.start();
        let port = primary.server.as_ref().unwrap().port();
        let place = format!("host=127.0.0.1 port={port} user=postgres");
        standby.start_with(&[("primary_conninfo", &place)], WaitFor::Connections);
        (primary, standby)
    }

    fn signal(&self, name: &str) {
        let signal = self.data().join(name);
        fs::write(&signal, "").unwrap();
        give(&signal, self.run_as.as_ref()).unwrap();
    }

    fn start(&mut self) {
        self.start_with(&[("restore_command", "false")], WaitFor::ReadWrite);
    }

    fn start_with(&mut self, settings: &[(&str, &str)], wait_for: WaitFor) {
        let mut options = StartOptions::new(&bin(), &self.data(), self.run_as.clone(), free_port());
        options.settings = ([("fsync", "off")].iter().chain(settings))
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        options.wait_for = wait_for;
        self.server = Some(PostgresInstance::start(options).unwrap());
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn url(&self) -> String {
        self.server.as_ref().unwrap().url("postgres")
    }

    /// A new repository for it.
    async fn repository(&self, base_backup: &str) -> Protected {
        let place = tempfile::tempdir().unwrap();
        let tiers = place.path().join("tiers");
        fs::create_dir(&tiers).unwrap();
        let tier = "tier: often\nrto: 1h\nrpo: 1h\nbackup: { cron: \"0 0 3 * * *\" }\n\
                    retention: { daily: 1 }\n";
        fs::write(tiers.join("often.yaml"), tier).unwrap();
        let config = place.path().join("dr.yaml");
        let (url, data) = (self.url(), self.data());
        let text = format!(
            "repositories:\n  main: {{ path: repository, key: {{ file: key }} }}\n\
             catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n\
             \x20 erp: {{ tier: often, repositories: [main], postgres: {{ url: \"{url}\", \
             data_directory: {}, base_backup: {base_backup} }} }}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        init(&InitRequest {
            config: config.clone(),
            repository: None,
            workloads: None,
        })
        .await
        .unwrap();
        let installation = Installation::open(&config).unwrap();
        let repository = installation.open_repository_of(&workload()).await.unwrap();
        Protected {
            place: Arc::new(place),
            installation,
            repository,
            url,
            pg_wal: data.join("pg_wal"),
        }
    }
}

fn bin() -> PathBuf {
    tools::bin_directory(None, 15).unwrap()
}

fn workload() -> WorkloadName {
    "erp".parse().unwrap()
}

/// A cluster with its repository.
#[derive(Clone)]
struct Protected {
    place: Arc<tempfile::TempDir>,
    installation: Installation,
    repository: Repository,
    url: String,
    pg_wal: PathBuf,
}

/// A WAL file by its name.
type Stored = (WalFileName, Vec<u8>);
type Befalls = Box<dyn Fn(&str) + Send + Sync>;

/// Tells what the backup has come to.
struct Told(Befalls);

impl Progress for Told {
    fn phase(&self, name: &str, _bytes_total: Option<u64>) {
        (self.0)(name);
    }
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _text: &str) {}
}

/// Waits for a future where no waiting is done.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(future))
}

async fn ask(url: &str, sql: String) -> String {
    let options = ConnectOptions {
        url: url.to_owned(),
        password: None,
    };
    let mut session = connect(&options).await.unwrap();
    let answer = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_one(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
    answer
}

impl Protected {
    /// Takes a base backup that goes over two segments. `befalls` is what happens at the end to the two, the
    /// first and the last.
    async fn back_up(
        &self,
        befalls: impl Fn(&Self, &[WalFileName; 2]) + Send + Sync + 'static,
    ) -> Result<RestorePoint, BackupError> {
        let (before, found) = (self.points(), Arc::new(Mutex::new(false)));
        let (itself, has_befallen) = (self.clone(), Arc::clone(&found));
        let result = self
            .back_up_told(Box::new(move |phase| match phase {
                READING | RECEIVING => drop(wait(itself.switch())),
                SECURING => {
                    befalls(&itself, &wait(itself.segments()));
                    *has_befallen.lock().unwrap() = true;
                }
                _ => {}
            }))
            .await;
        assert!(
            *found.lock().unwrap(),
            "it did not come that far: {result:?}"
        );
        let listed = self.points() - before;
        assert_eq!(listed, usize::from(result.is_ok()), "{result:?}");
        result
    }

    async fn back_up_told(&self, told: Befalls) -> Result<RestorePoint, BackupError> {
        dr_backup::run(
            &self.installation,
            &workload(),
            &BackupOptions { full: true },
            Arc::new(Told(told)),
            CancellationToken::new(),
        )
        .await
    }

    /// The segment to which it happens, and why nothing was listed.
    async fn refused(
        &self,
        which: usize,
        befalls: impl Fn(&Self, &WalFileName) + Send + Sync + 'static,
    ) -> (WalFileName, BackupError) {
        let name = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&name);
        let result = self
            .back_up(move |erp, segments| {
                *seen.lock().unwrap() = Some(segments[which].clone());
                befalls(erp, &segments[which]);
            })
            .await;
        let name = name.lock().unwrap().clone().unwrap();
        (name, result.unwrap_err())
    }

    fn points(&self) -> usize {
        let points = self.repository.points(Some(&workload()));
        points.unwrap().len()
    }

    async fn switch(&self) -> String {
        let sql =
            "select pg_logical_emit_message(false, 'test', 'x')::text || pg_switch_wal()::text";
        ask(&self.url, sql.to_owned()).await
    }

    /// The two segments before that in which the server writes now.
    async fn segments(&self) -> [WalFileName; 2] {
        let before = |segments: u64| {
            let bytes = segments * SEGMENT_BYTES;
            let sql = format!("select pg_walfile_name(pg_current_wal_insert_lsn() - {bytes})");
            ask(&self.url, sql)
        };
        [before(2).await, before(1).await].map(|name| name.parse().unwrap())
    }

    fn on_server(&self, name: &WalFileName) -> PathBuf {
        self.pg_wal.join(name.to_string())
    }

    fn remove(&self, name: &WalFileName) {
        fs::remove_file(self.on_server(name)).unwrap();
    }

    /// As an archiver does.
    fn store(&self, name: &WalFileName, body: &[u8]) {
        let now = chrono::Utc::now();
        self.repository
            .put_wal(&workload(), name, body, now)
            .unwrap();
    }

    /// Flips a bit of a stored file.
    fn damage(&self, name: &WalFileName) {
        let place = self.place.path().join("repository");
        let stored = found_in(&place, &name.to_string()).expect("it is stored");
        let mut body = fs::read(&stored).unwrap();
        let middle = body.len() / 2;
        body[middle] ^= 1;
        fs::remove_file(&stored).unwrap();
        fs::write(&stored, body).unwrap();
    }
}

fn found_in(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found = match path.is_dir() {
            true => found_in(&path, name),
            false => (path.file_name()? == name).then_some(path),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn is_missing(error: &BackupError, wanted: &WalFileName) -> bool {
    matches!(error, BackupError::WalMissing { name, .. } if name == wanted)
}

fn is_bad(error: &BackupError, wanted: &WalFileName, why: &str) -> bool {
    matches!(error, BackupError::BadWal { file, what }
        if *file == wanted.to_string() && what.contains(why))
}

/// One after the other of both segments.
const BOTH: [usize; 2] = [0, 1];

#[tokio::test(flavor = "multi_thread")]
async fn what_a_listed_backup_needs_is_stored_as_the_server_wrote_it() {
    let source = Source::on_its_second_timeline();
    for by in ["read", "receive"] {
        let erp = source.repository(by).await;
        let needed: Arc<Mutex<Vec<Stored>>> = Arc::default();
        let seen = Arc::clone(&needed);
        // The archiver has brought the first one already, and the server has removed it.
        let point = erp
            .back_up(move |erp, segments| {
                let history = WalFileName::History {
                    timeline: dr_model::Timeline(2),
                };
                for name in segments.iter().chain([&history]) {
                    let body = fs::read(erp.on_server(name)).unwrap();
                    seen.lock().unwrap().push((name.clone(), body));
                }
                let (name, body) = seen.lock().unwrap()[0].clone();
                erp.store(&name, &body);
                erp.remove(&name);
            })
            .await
            .unwrap();
        let position = point.postgres().unwrap();
        let stored = erp.repository.point(&point.id).unwrap().unwrap();
        let details: PostgresDetails = serde_json::from_value(stored.details).unwrap();
        let needed = needed.lock().unwrap().clone();
        let names: Vec<WalFileName> = needed.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(details.wal_files, names, "{by}");
        assert_eq!(position.start_segment, names[0], "{by}");
        assert_eq!(position.stop_segment, names[1], "{by}");
        for (name, body) in needed {
            let stored = erp.repository.get_wal(&workload(), &name).unwrap();
            assert!(stored == Some(body), "{by}: {name} is another");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_nowhere_leaves_nothing_listed() {
    let source = Source::new();
    for by in ["read", "receive"] {
        let erp = source.repository(by).await;
        for which in BOTH {
            let (gone, error) = erp.refused(which, Protected::remove).await;
            assert!(is_missing(&error, &gone), "{by}, {gone}: {error:?}");
        }
    }
}

/// The same segment, but for its last bytes: nothing that a check of its pages sees.
fn another(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let last = body.len() - 1;
    body[last] ^= 1;
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn another_content_under_a_segments_name_leaves_nothing_listed() {
    let source = Source::new();
    for by in ["read", "receive"] {
        let erp = source.repository(by).await;
        for which in BOTH {
            let store_another = |erp: &Protected, name: &WalFileName| {
                let own = fs::read(erp.on_server(name)).unwrap();
                erp.store(name, &another(&own));
            };
            let (name, error) = erp.refused(which, store_another).await;
            let why = "it is not what this server wrote";
            assert!(is_bad(&error, &name, why), "{by}, {name}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_segment_that_is_damaged_leaves_nothing_listed() {
    let source = Source::new();
    let erp = source.repository("read").await;
    for (which, is_removed) in [(0, false), (1, false), (0, true), (1, true)] {
        let damage = move |erp: &Protected, name: &WalFileName| {
            erp.store(name, &fs::read(erp.on_server(name)).unwrap());
            erp.damage(name);
            if is_removed {
                erp.remove(name);
            }
        };
        let (name, error) = erp.refused(which, damage).await;
        let BackupError::Store { action, source, .. } = &error else {
            panic!("{name}: {error:?}")
        };
        assert_eq!(*action, format!("read back {name} of `erp`"));
        let is_damage = matches!(source, dr_store::StoreError::Damaged { .. });
        assert!(is_damage, "{name}: {error:?}");
    }
}

/// What the server has no more can only be judged by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_segment_of_this_cluster_leaves_nothing_listed() {
    let source = Source::new();
    let erp = source.repository("read").await;
    // Where the first page has the cluster's number, and its own place.
    for (offset, why) in [
        (24, "it belongs to another cluster"),
        (11, "its first page is that of"),
        (0, "its first page is not that of a WAL segment"),
    ] {
        let store_foreign = move |erp: &Protected, name: &WalFileName| {
            let mut body = fs::read(erp.on_server(name)).unwrap();
            body[offset] ^= 0x21;
            if offset == 0 {
                body[..64].fill(0);
            }
            erp.store(name, &body);
            erp.remove(name);
        };
        let (name, error) = erp.refused(0, store_foreign).await;
        assert!(is_bad(&error, &name, why), "{name}: {error:?}");
    }
    let cut = |erp: &Protected, name: &WalFileName| {
        let body = fs::read(erp.on_server(name)).unwrap();
        erp.store(name, &body[..body.len() / 2]);
        erp.remove(name);
    };
    let (name, error) = erp.refused(1, cut).await;
    assert!(is_bad(&error, &name, "segments have"), "{name}: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_nowhere_or_another_leaves_nothing_listed() {
    let source = Source::on_its_second_timeline();
    let history = WalFileName::History {
        timeline: dr_model::Timeline(2),
    };
    let own = fs::read(source.data().join("pg_wal/00000002.history")).unwrap();
    let elsewhere = b"1\t0/1500000\tno recovery target specified\n".to_vec();
    assert_ne!(own, elsewhere);
    let cases: [(&str, Option<&[u8]>, &str); 3] = [
        (
            "no history",
            Some(b"it is none"),
            "it is no timeline history",
        ),
        (
            "another",
            Some(&elsewhere),
            "it is not what this server has",
        ),
        ("nowhere", None, ""),
    ];
    for (case, body, why) in cases {
        let erp = source.repository("read").await;
        let (stored, name) = (body.map(<[u8]>::to_vec), history.clone());
        let error = erp
            .back_up(move |erp, _| match &stored {
                Some(stored) => erp.store(&name, stored),
                None => erp.remove(&name),
            })
            .await
            .unwrap_err();
        match body {
            Some(_) => assert!(is_bad(&error, &history, why), "{case}: {error:?}"),
            None => assert!(is_missing(&error, &history), "{case}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_session_is_ended_leaves_nothing_listed() {
    let source = Source::new();
    for (by, phase, sql) in [
        // The session that began it, not the one that keeps its WAL.
        (
            "read",
            READING,
            "select count(pg_terminate_backend(pid, 20000))::text from pg_stat_activity
             where application_name = 'dr' and pid <> pg_backend_pid() and pid not in
                 (select active_pid from pg_replication_slots where active_pid is not null)",
        ),
        (
            "receive",
            RECEIVING,
            "select count(pg_terminate_backend(pid, 20000))::text from pg_stat_replication",
        ),
    ] {
        let erp = source.repository(by).await;
        let (url, ended) = (erp.url.clone(), Arc::new(Mutex::new(String::new())));
        let seen = Arc::clone(&ended);
        let result = erp
            .back_up_told(Box::new(move |now| {
                if now == phase {
                    *seen.lock().unwrap() = wait(ask(&url, sql.to_owned()));
                }
            }))
            .await;
        assert_eq!(*ended.lock().unwrap(), "1", "{by}: {result:?}");
        let error = result.unwrap_err();
        let is_the_servers = matches!(error, BackupError::Source { .. });
        assert!(is_the_servers, "{by}: {error:?}");
        assert_eq!(erp.points(), 0, "{by}");
    }
}

/// The segment in which a standby's backup stops comes from the primary's archiver: it has more in it than the
/// standby has, and must have nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_primary_archives_must_be_what_its_standby_has() {
    let (primary, standby) = Source::pair();
    let url = primary.url();
    let erp = standby.repository("read").await;
    // Where the archived segment is another one: within the record that the backup begins behind, or not.
    for (place, is_listed) in [(None, true), (Some(100), false), (Some(1_000_000), true)] {
        let one = "select pg_switch_wal()::text";
        let two = "select pg_logical_emit_message(false, 'test', repeat('x', 4000))::text";
        for sql in [one, two] {
            ask(&url, sql.to_owned()).await;
        }
        checkpoint(&url).await;
        follow(&url, &standby.url()).await;
        let (of, url, archive) = (erp.clone(), url.clone(), primary.data().join("pg_wal"));
        let name = "select pg_walfile_name(pg_current_wal_insert_lsn())";
        let stop: WalFileName = ask(&url, name.to_owned()).await.parse().unwrap();
        let wanted = stop.clone();
        let before = erp.points();
        let result = erp
            .back_up_told(Box::new(move |phase| {
                if phase == ARCHIVING {
                    wait(ask(&url, one.to_owned()));
                    let mut body = fs::read(archive.join(stop.to_string())).unwrap();
                    if let Some(place) = place {
                        body[place] ^= 1;
                    }
                    of.store(&stop, &body);
                }
            }))
            .await;
        assert_eq!(erp.points() - before, usize::from(is_listed), "{result:?}");
        match result {
            Ok(point) => assert_eq!(point.postgres().unwrap().stop_segment, wanted),
            Err(error) => {
                let why = "it is not what this server wrote";
                assert!(is_bad(&error, &wanted, why), "{place:?}: {error:?}");
            }
        }
    }
}

async fn checkpoint(url: &str) {
    let options = ConnectOptions {
        url: url.to_owned(),
        password: None,
    };
    let mut session = connect(&options).await.unwrap();
    sqlx::raw_sql("checkpoint")
        .execute(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
}

/// Waits until a standby has replayed what its primary has written.
async fn follow(primary: &str, standby: &str) {
    let sql = "select pg_current_wal_flush_lsn()::text";
    let written = ask(primary, sql.to_owned()).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let sql = format!("select (pg_last_wal_replay_lsn() >= '{written}')::text");
    while ask(standby, sql.clone()).await != "true" {
        assert!(Instant::now() < deadline, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

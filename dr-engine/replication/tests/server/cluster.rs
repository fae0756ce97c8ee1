//! A private server for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dr_model::{Lsn, Timeline, WalFileName};
use dr_replication::{Address, Connection, Event, Stream};
use dr_sources::instance::{
    InitdbOptions, PostgresInstance, RunAs, StartOptions, command, free_port, give,
};
use dr_sources::postgres::{ConnectOptions, connect, tools};
use sqlx::{Connection as _, PgConnection};

/// The version that Debian has; `DR_TEST_POSTGRES_BIN` names the programs of another one.
const DEBIAN_MAJOR: u32 = 15;
pub(crate) const SEGMENT_BYTES: u64 = 1 << 20;
/// Longer than a busy machine needs, shorter than a test may hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Home {
    folder: tempfile::TempDir,
    run_as: Option<RunAs>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-repl")
            .tempdir()
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        Self { folder, run_as }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that belongs to the server, and only it may read.
    pub(crate) fn write(&self, path: &Path, content: &str) {
        use std::os::unix::fs::PermissionsExt;
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        give(path, self.run_as.as_ref()).unwrap();
    }

    /// With small segments, so that there are many.
    pub(crate) fn initdb(&self, name: &str) -> PathBuf {
        let options = InitdbOptions::new(&bin(), &self.path(name), self.run_as.clone());
        PostgresInstance::initdb(&InitdbOptions {
            arguments: vec!["--no-sync".to_owned()],
            wal_segment_megabytes: Some(1),
            ..options
        })
        .unwrap();
        self.path(name)
    }

    /// On loopback and a socket in this folder.
    pub(crate) fn start(&self, data: &Path, settings: &[(&str, &str)]) -> PostgresInstance {
        let mut options = StartOptions::new(&bin(), data, self.run_as.clone(), free_port());
        options.socket_directory = Some(self.folder.path().to_owned());
        let ours = [
            ("fsync", "off"),
            ("autovacuum", "off"),
            ("wal_keep_size", "1GB"),
        ];
        options.settings = (ours.iter().chain(settings))
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        PostgresInstance::start(options).unwrap()
    }

    /// Runs one of PostgreSQL's programs as the servers' user.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        let output = command(self.run_as.as_ref(), bin().join(program))
            .args(arguments)
            .current_dir("/")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {text}");
    }
}

fn bin() -> PathBuf {
    match std::env::var_os("DR_TEST_POSTGRES_BIN") {
        Some(other) => other.into(),
        None => tools::bin_directory(None, DEBIAN_MAJOR).unwrap(),
    }
}

/// A server with its home, for tests that need no more.
pub(crate) struct Server {
    pub(crate) instance: PostgresInstance,
    // Removed after the server has stopped.
    pub(crate) home: Home,
}

impl Server {
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let home = Home::new();
        let instance = home.start(&home.initdb("data"), settings);
        Self { instance, home }
    }

    pub(crate) async fn receiver(&self) -> Connection {
        receiver(&self.instance).await
    }
}

/// A URL by loopback; [`PostgresInstance::url`] is by the socket.
pub(crate) fn loopback(server: &PostgresInstance, user: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{}/postgres", server.port())
}

pub(crate) fn address(server: &PostgresInstance) -> Address {
    Address::from_url(&loopback(server, "postgres"), None).unwrap()
}

pub(crate) async fn receiver(server: &PostgresInstance) -> Connection {
    Connection::connect(&address(server), LIMIT).await.unwrap()
}

pub(crate) async fn session(server: &PostgresInstance) -> PgConnection {
    let options = ConnectOptions {
        url: server.url("postgres"),
        password: None,
    };
    connect(&options).await.unwrap()
}

/// Runs statements one by one: some may not be within a transaction, as several in one message are.
pub(crate) async fn run(server: &PostgresInstance, statements: &[&'static str]) {
    let mut session = session(server).await;
    for statement in statements {
        let done = sqlx::raw_sql(*statement).execute(&mut session).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    session.close().await.unwrap();
}

/// The only value of a query, as text; `None` where there is no row.
pub(crate) async fn text(server: &PostgresInstance, sql: &'static str) -> Option<String> {
    let mut session = session(server).await;
    let text = sqlx::query_scalar(sql).fetch_optional(&mut session).await;
    session.close().await.unwrap();
    text.unwrap()
}

/// Waits until a query says `true`.
pub(crate) async fn wait_for(server: &PostgresInstance, sql: &'static str) {
    let mut session = session(server).await;
    let wait = async {
        loop {
            let answer: bool = sqlx::query_scalar(sql)
                .fetch_one(&mut session)
                .await
                .unwrap();
            if answer {
                return;
            }
        }
    };
    let waited = tokio::time::timeout(LIMIT, wait).await;
    waited.unwrap_or_else(|_| panic!("never true: {sql}"));
}

/// Where the server's log ends, all of it written.
pub(crate) async fn log_end(server: &PostgresInstance) -> Lsn {
    let end = text(server, "select pg_current_wal_flush_lsn()::text").await;
    end.unwrap().parse().unwrap()
}

/// Writes some three segments of log.
pub(crate) async fn write_log(server: &PostgresInstance) {
    run(
        server,
        &[
            "create table if not exists load (n int, what text)",
            "insert into load select n, repeat(md5(n::text), 20) from generate_series(1, 4000) n",
        ],
    )
    .await;
}

pub(crate) fn segment_start(position: Lsn) -> Lsn {
    Lsn(position.0 / SEGMENT_BYTES * SEGMENT_BYTES)
}

/// Bytes of the log as the server has them in its files.
pub(crate) fn in_files(data: &Path, timeline: Timeline, from: Lsn, to: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = from;
    while at < to {
        let start = segment_start(at);
        let name = WalFileName::containing(at, timeline, SEGMENT_BYTES).to_string();
        let segment = fs::read(data.join("pg_wal").join(name)).unwrap();
        let end = Lsn(start.0 + SEGMENT_BYTES).min(to);
        let within = |position: Lsn| usize::try_from(position.0 - start.0).unwrap();
        bytes.extend_from_slice(&segment[within(at)..within(end)]);
        at = end;
    }
    bytes
}

/// The next event, which has to come soon.
pub(crate) async fn next(
    stream: &mut Stream<'_>,
) -> Result<Event, dr_replication::ReplicationError> {
    let next = tokio::time::timeout(LIMIT, stream.next()).await;
    next.expect("nothing comes")
}

/// What a test has received.
pub(crate) struct Received {
    pub(crate) from: Lsn,
    pub(crate) bytes: Vec<u8>,
}

impl Received {
    pub(crate) fn nothing(from: Lsn) -> Self {
        Self {
            from,
            bytes: Vec::new(),
        }
    }

    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.from.0 + self.bytes.len() as u64)
    }

    /// Each message begins where the last one ended.
    pub(crate) fn add(&mut self, start: Lsn, data: &[u8]) {
        assert_eq!(start, self.end(), "there is a gap");
        assert!(!data.is_empty());
        self.bytes.extend_from_slice(data);
    }

    pub(crate) async fn until(&mut self, stream: &mut Stream<'_>, end: Lsn) {
        while self.end() < end {
            match next(stream).await.unwrap() {
                Event::Data { start, data, .. } => self.add(start, &data),
                Event::Keepalive { .. } => {}
                Event::TimelineEnded { next } => panic!("the timeline has ended: {next:?}"),
            }
        }
    }

    /// Waits for the answer to a report that asked for one.
    pub(crate) async fn until_answered(&mut self, stream: &mut Stream<'_>) {
        loop {
            match next(stream).await.unwrap() {
                Event::Data { start, data, .. } => self.add(start, &data),
                Event::Keepalive {
                    reply_requested: false,
                    ..
                } => return,
                // Of its own accord, because we were silent for long.
                Event::Keepalive { .. } => {}
                Event::TimelineEnded { next } => panic!("the timeline has ended: {next:?}"),
            }
        }
    }
}

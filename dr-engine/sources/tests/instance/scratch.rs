//! A copy of a cluster that does much, started as a scratch server or restored beside its original: it does
//! nothing outside itself.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dr_sources::instance::{
    PostgresInstance, StartOptions, StopMode, WaitFor, give, scratch_settings,
};
use dr_sources::postgres::put_back::{
    RecoveryAction, RecoverySettings, RecoveryTarget, write_recovery,
};
use sqlx::{Connection, PgConnection};

use crate::Home;

/// What the original has in its files, and what a scratch server of it must have.
const HARMFUL: [(&str, &str, &str); 16] = [
    ("archive_mode", "on", "off"),
    ("synchronous_standby_names", "*", ""),
    ("max_logical_replication_workers", "4", "0"),
    ("listen_addresses", "127.0.0.1", ""),
    ("autovacuum", "on", "off"),
    ("shared_preload_libraries", "auto_explain", ""),
    ("session_preload_libraries", "auto_explain", ""),
    ("primary_conninfo", "host=127.0.0.1", ""),
    ("primary_slot_name", "of_the_original", ""),
    ("hot_standby", "on", "off"),
    // Without a certificate it would not even start.
    ("ssl", "on", "off"),
    ("logging_collector", "on", "off"),
    ("log_destination", "csvlog", "stderr"),
    ("external_pid_file", "original.pid", "dr-external.pid"),
    ("fsync", "on", "off"),
    ("full_page_writes", "on", "off"),
];

async fn text(server: &PostgresInstance, sql: &str) -> String {
    let mut session = PgConnection::connect(&server.url("postgres"))
        .await
        .unwrap();
    let text = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
    text
}

/// Waits until a question has this answer.
async fn until(server: &PostgresInstance, sql: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while text(server, sql).await != wanted {
        assert!(Instant::now() < deadline, "never {wanted}: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const REPLICATION_WORKERS: &str = "select count(*)::text from pg_stat_activity
    where backend_type like 'logical replication%'";

/// Where the original's publisher would be: it never answers, and hears who calls.
struct Publisher(TcpListener);

impl Publisher {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn address(&self) -> String {
        let port = self.0.local_addr().unwrap().port();
        format!("host=127.0.0.1 port={port} dbname=postgres")
    }

    /// How many have called since this was last asked.
    fn calls(&self) -> usize {
        std::iter::from_fn(|| self.0.accept().ok()).count()
    }
}

/// A stopped cluster that subscribes to another one.
async fn subscriber(home: &Home, publisher: &Publisher) {
    home.initdb();
    let server = PostgresInstance::start(home.options()).unwrap();
    let mut session = PgConnection::connect(&server.url("postgres"))
        .await
        .unwrap();
    let sql = format!(
        "create table item (id int primary key);
         create subscription ours connection '{}' publication everything
             with (connect = false, slot_name = 'ours');
         alter subscription ours enable",
        publisher.address()
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut session)
        .await
        .unwrap();
    session.close().await.unwrap();
    // Left to itself it works on it: the launcher, and a worker that waits for an answer.
    until(&server, REPLICATION_WORKERS, "2").await;
    server.stop(StopMode::Fast).unwrap();
    assert!(publisher.calls() > 0);
}

/// Writes settings into both of a cluster's own files.
fn configure(home: &Home, settings: &[(&str, String)]) {
    let lines: String = (settings.iter())
        .map(|(name, value)| format!("{name} = '{value}'\n"))
        .collect();
    for name in ["postgresql.conf", "postgresql.auto.conf"] {
        let path = home.data().join(name);
        let old = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{old}{lines}")).unwrap();
        give(&path, home.run_as.as_ref()).unwrap();
    }
}

/// A place that is the original's own: the servers' user may write there.
fn originals(home: &Home, name: &str) -> PathBuf {
    home.folder.path().join(name)
}

#[tokio::test]
async fn a_scratch_server_of_a_busy_cluster_does_nothing_outside_itself() {
    let (home, publisher) = (Home::new(), Publisher::new());
    subscriber(&home, &publisher).await;
    let archived = originals(&home, "archived");
    let pid_file = originals(&home, "original.pid");
    let mut settings: Vec<(&str, String)> = (HARMFUL.iter())
        .map(|(name, harmful, _)| (*name, (*harmful).to_owned()))
        .collect();
    for (name, value) in &mut settings {
        match *name {
            "external_pid_file" => *value = pid_file.display().to_string(),
            "primary_conninfo" => *value = publisher.address(),
            _ => {}
        }
    }
    settings.push(("wal_level", "logical".to_owned()));
    settings.push(("archive_command", format!("touch {}", archived.display())));
    configure(&home, &settings);

    let server = PostgresInstance::start(StartOptions {
        socket_directory: Some(home.folder.path().to_owned()),
        listen_loopback: false,
        settings: scratch_settings(),
        wait_for: WaitFor::ReadWrite,
        ..home.options()
    })
    .unwrap();
    for (name, _, harmless) in HARMFUL {
        let shown = text(&server, &format!("show {name}")).await;
        assert_eq!(shown, harmless, "{name}");
        // Where a server listens is decided beside the settings too: each has to say it.
        let wanted = (name.to_owned(), harmless.to_owned());
        assert!(scratch_settings().contains(&wanted), "{name} is not said");
    }
    // The files are what the command line beats.
    let overruled = "select count(distinct name)::text from pg_file_settings
        where not applied and error is null and name = 'archive_mode'";
    assert_eq!(text(&server, overruled).await, "1");
    let enabled = "select count(*)::text from pg_subscription where subenabled";
    assert_eq!(text(&server, enabled).await, "1");
    assert_eq!(text(&server, REPLICATION_WORKERS).await, "0");
    for kind in ["archiver", "autovacuum launcher", "logger", "walreceiver"] {
        let sql =
            format!("select count(*)::text from pg_stat_activity where backend_type = '{kind}'");
        assert_eq!(text(&server, &sql).await, "0", "{kind}");
    }
    // A commit waits for nobody.
    let sql = "with it as (insert into item select 1 returning id) select id::text from it";
    assert_eq!(text(&server, sql).await, "1");
    text(&server, "select pg_switch_wal()::text").await;
    server.stop(StopMode::Fast).unwrap();
    assert_eq!(publisher.calls(), 0);
    for path in [archived, pid_file] {
        assert!(!path.exists(), "{}", path.display());
    }
}

fn recover(data: &Path, as_primary: bool) {
    let settings = RecoverySettings {
        restore_command: "false".to_owned(),
        target: RecoveryTarget::Latest,
        inclusive: true,
        timeline: None,
        action: RecoveryAction::Promote,
        as_primary,
        extra: Vec::new(),
    };
    write_recovery(data, &settings).unwrap();
}

/// By its own files alone: nobody says on a command line how a clone has to be started.
#[tokio::test]
async fn a_restored_copy_that_is_no_primary_leaves_its_originals_surroundings_alone() {
    let (home, publisher) = (Home::new(), Publisher::new());
    subscriber(&home, &publisher).await;
    let [archived, ended, cleaned] =
        ["archived", "ended", "cleaned"].map(|name| originals(&home, name));
    let touch = |path: &PathBuf| format!("touch {}", path.display());
    configure(
        &home,
        &[
            ("archive_mode", "on".to_owned()),
            ("archive_command", touch(&archived)),
            ("synchronous_standby_names", "*".to_owned()),
            ("max_logical_replication_workers", "4".to_owned()),
            ("recovery_end_command", touch(&ended)),
            ("archive_cleanup_command", touch(&cleaned)),
            ("recovery_min_apply_delay", "1h".to_owned()),
        ],
    );
    recover(&home.data(), false);
    fs::write(home.data().join("standby.signal"), "").unwrap();
    recover(&home.data(), false);
    give(
        &home.data().join("postgresql.auto.conf"),
        home.run_as.as_ref(),
    )
    .unwrap();

    let server = PostgresInstance::start(StartOptions {
        wait_for: WaitFor::ReadWrite,
        ..home.options()
    })
    .unwrap();
    for (name, harmless) in [
        ("archive_mode", "off"),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("recovery_end_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_min_apply_delay", "0"),
    ] {
        let shown = text(&server, &format!("show {name}")).await;
        assert_eq!(shown, harmless, "{name}");
    }
    assert_eq!(text(&server, REPLICATION_WORKERS).await, "0");
    let sql = "with it as (insert into item select 1 returning id) select id::text from it";
    assert_eq!(text(&server, sql).await, "1");
    text(&server, "select pg_switch_wal()::text").await;
    let timeline = "select timeline_id::text from pg_control_checkpoint()";
    until(&server, timeline, "2").await;
    server.stop(StopMode::Fast).unwrap();
    assert_eq!(publisher.calls(), 0);
    for path in [archived, ended, cleaned] {
        assert!(!path.exists(), "{}", path.display());
    }
}

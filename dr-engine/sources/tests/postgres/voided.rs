//! What makes a base backup void, and what must be kept of it to the byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dr_model::Silent;
use dr_sources::instance::{PostgresInstance, StopMode, give};
use dr_sources::postgres::{
    BaseBackup, BaseBackupResult, ConnectOptions, StreamedOptions, receive_base_backup,
};
use dr_sources::{ItemSink, SourceError};
use tokio_util::sync::CancellationToken;

use crate::cluster::{
    FolderSink, Home, copy_folder, keep_wal, lsn, number, put_back, reading, run, session, text,
};
use crate::{ROWS, wait_for_zero};

/// How a backup is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Reading,
    Receiving,
}

const BOTH: [By; 2] = [By::Reading, By::Receiving];
/// Not as a program would name it.
const LABEL: &str = "it's  the \\ tést of  dr ";

async fn take(
    by: By,
    server: &PostgresInstance,
    sink: &Arc<FolderSink>,
) -> Result<BaseBackupResult, SourceError> {
    let (progress, nothing) = (Arc::new(Silent), CancellationToken::new());
    let sink = Arc::clone(sink) as Arc<dyn ItemSink>;
    let data = server.data_directory().to_owned();
    if by == By::Receiving {
        let address = ConnectOptions {
            url: server.url("postgres"),
            password: None,
        };
        let options = StreamedOptions {
            label: LABEL.to_owned(),
            data_directory: data,
            parallelism: 2,
            bytes_per_second: None,
        };
        return receive_base_backup(&address, &options, sink, progress, &nothing).await;
    }
    let (one, other) = (session(server).await, session(server).await);
    let mut backup = BaseBackup::begin(one, other, &data, LABEL).await?;
    backup
        .capture(Arc::clone(&sink), reading(2), progress, nothing)
        .await?;
    backup.end(sink).await
}

/// A sink to whose first file this happens, once.
fn at_first_file(root: PathBuf, what: impl Fn() + Send + Sync + 'static) -> Arc<FolderSink> {
    let has_happened = AtomicBool::new(false);
    let once = move || {
        if !has_happened.swap(true, Ordering::SeqCst) {
            what();
        }
    };
    Arc::new(FolderSink::watched(root, Box::new(move |_| once())))
}

/// What is asked of a server while it is backed up, on whatever thread.
fn ask(url: &str, sql: &str) -> String {
    let (url, sql) = (url.to_owned(), sqlx::AssertSqlSafe(sql.to_owned()));
    let asked = async move {
        let options = ConnectOptions {
            url,
            password: None,
        };
        let mut session = dr_sources::postgres::connect(&options).await.unwrap();
        sqlx::query_scalar(sql)
            .fetch_one(&mut session)
            .await
            .unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    std::thread::scope(|threads| threads.spawn(|| runtime.block_on(asked)).join().unwrap())
}

/// A primary and its standby.
async fn pair(home: &Home) -> (PostgresInstance, PostgresInstance) {
    let data = home.initdb("primary", true);
    let primary = home.start(&data, &[]);
    run(&primary, ROWS).await;
    primary.stop(StopMode::Fast).unwrap();
    let copy = home.path("standby");
    copy_folder(&data, &copy);
    let primary = home.start(&data, &[]);
    let signal = copy.join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    give(&signal, home.run_as.as_ref()).unwrap();
    let place = format!("host=127.0.0.1 port={} user=postgres", primary.port());
    let standby = home.start(&copy, &[("primary_conninfo", &place)]);
    replayed(&primary, &standby).await;
    (primary, standby)
}

/// Waits until the standby has replayed what its primary has written.
async fn replayed(primary: &PostgresInstance, standby: &PostgresInstance) {
    let written = lsn(&text(primary, "select pg_current_wal_flush_lsn()::text").await);
    let deadline = Instant::now() + Duration::from_secs(30);
    let sql = "select coalesce(pg_last_wal_replay_lsn(), '0/0')::text";
    while lsn(&text(standby, sql).await) < written {
        assert!(Instant::now() < deadline, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_session_is_ended_is_void() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let mut one = session(&server).await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut one)
        .await
        .unwrap();
    let mut backup = BaseBackup::begin(one, session(&server).await, &data, LABEL)
        .await
        .unwrap();
    let url = server.url("postgres");
    let sink = at_first_file(home.path("captured"), move || {
        let sql = format!("select pg_terminate_backend({pid}, 20000)::text");
        assert_eq!(ask(&url, &sql), "true");
    });
    let nothing = CancellationToken::new();
    let captured = backup
        .capture(
            Arc::clone(&sink) as _,
            reading(2),
            Arc::new(Silent),
            nothing,
        )
        .await;
    let ended = match captured {
        Ok(_) => backup.end(Arc::clone(&sink) as _).await.map(drop),
        Err(error) => Err(error),
    };
    let error = ended.unwrap_err();
    assert!(matches!(error, SourceError::Sql { .. }), "{error:?}");
    assert!(!sink.paths().contains(&"label/backup_label".to_owned()));
    assert!(!data.join("backup_label").exists());
    wait_for_zero(&server, "select count(*) from pg_replication_slots").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_standby_that_is_promoted_meanwhile_is_void() {
    for by in BOTH {
        let home = Home::new();
        let (_primary, standby) = pair(&home).await;
        let url = standby.url("postgres");
        let sink = at_first_file(home.path("captured"), move || {
            assert_eq!(ask(&url, "select pg_promote(true, 60)::text"), "true");
        });
        let error = take(by, &standby, &sink).await.unwrap_err();
        let said = chain(&error);
        assert!(said.contains("promoted"), "{by:?}: {said}");
        wait_for_zero(&standby, "select count(*) from pg_replication_slots").await;
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        said = format!("{said}: {error}");
        source = error.source();
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_standby_is_void_when_its_primary_writes_no_full_pages() {
    let home = Home::new();
    let (primary, standby) = pair(&home).await;
    let sink = Arc::new(FolderSink::new(home.path("whole")));
    take(By::Reading, &standby, &sink).await.unwrap();

    let (one, other) = (session(&standby).await, session(&standby).await);
    let data = standby.data_directory().to_owned();
    let mut backup = BaseBackup::begin(one, other, &data, LABEL).await.unwrap();
    let (sink, nothing) = (FolderSink::new(home.path("late")), CancellationToken::new());
    let sink = Arc::new(sink);
    backup
        .capture(
            Arc::clone(&sink) as _,
            reading(2),
            Arc::new(Silent),
            nothing,
        )
        .await
        .unwrap();
    run(&primary, "alter system set full_page_writes = off").await;
    run(&primary, "select pg_reload_conf()").await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let sql = "select count(*) from pg_control_checkpoint() where full_page_writes";
    while number(&primary, sql).await != 0 {
        assert!(Instant::now() < deadline, "it still writes full pages");
        run(&primary, "checkpoint").await;
    }
    replayed(&primary, &standby).await;
    let late = backup.end(Arc::clone(&sink) as _).await.map(drop);
    assert!(!sink.paths().contains(&"label/backup_label".to_owned()));
    let mut all = vec![late];
    for by in BOTH {
        let sink = Arc::new(FolderSink::new(home.path(&format!("{by:?}"))));
        all.push(take(by, &standby, &sink).await.map(drop));
        assert!(!sink.paths().contains(&"label/backup_label".to_owned()));
    }
    for taken in all {
        let said = chain(&taken.unwrap_err());
        assert!(said.contains("full_page_writes=off"), "{said}");
    }
}

/// The label as the server has written it down for itself: its backup history file says the same, and where
/// the backup ended.
fn servers_label(data: &Path) -> String {
    let mut found: Vec<PathBuf> = std::fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "backup"))
        .collect();
    found.sort();
    let newest = std::fs::read_to_string(found.last().expect("a backup history file")).unwrap();
    let lines = newest.split_inclusive('\n');
    lines.filter(|line| !line.starts_with("STOP ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_label_is_kept_and_restored_as_the_server_gave_it() {
    let home = Home::new();
    let data = home.initdb("source", true);
    // Without an archive its own notes would be removed at once.
    let server = home.start(
        &data,
        &[("archive_mode", "on"), ("archive_command", "false")],
    );
    run(&server, ROWS).await;
    for by in BOTH {
        let label = data.join("backup_label");
        let sink = at_first_file(home.path(&format!("{by:?}")), move || {
            assert!(!label.exists(), "the original would start as a copy");
        });
        let result = take(by, &server, &sink).await.unwrap();
        let wanted = servers_label(&data);
        let line = format!("\nLABEL: {LABEL}\n");
        assert!(wanted.contains(&line), "{wanted}");
        let kept = String::from_utf8(sink.content("label/backup_label")).unwrap();
        assert_eq!(kept, wanted, "{by:?}");

        let home = Home::new();
        let (into, wal) = (home.folder("restored"), home.folder("wal"));
        keep_wal(&server, &result, &wal);
        put_back(&home, &sink, &result, &into, &wal);
        let restored = std::fs::read_to_string(into.join("backup_label")).unwrap();
        assert_eq!(restored, wanted, "{by:?}");
    }
}

//! A real cluster is captured, judged, put back and started.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "postgres/cluster.rs"]
mod cluster;
#[path = "postgres/streamed.rs"]
mod streamed;
#[path = "postgres/told.rs"]
mod told;
#[path = "postgres/voided.rs"]
mod voided;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{
    FolderSink, Home, back_up, copy_folder, keep_wal, lsn, number, put_back, reading, run, session,
    start_restored, text, verify,
};
use dr_model::Silent;
use dr_sources::instance::{PostgresInstance, StopMode};
use dr_sources::postgres::{
    BaseBackup, ConnectOptions, PageChecks, check_data_directory, connect, control, identify,
};
use dr_sources::{ContentKind, SourceError};
use dr_wal::page::SegmentHeader;
use tokio_util::sync::CancellationToken;

const ROWS: &str = "create table item (id int primary key, what text);
    insert into item select n, repeat(md5(n::text), 8) from generate_series(1, 20000) n;
    checkpoint";

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_cluster_is_put_back_verified_and_started() {
    let home = Home::new();
    let server = home.start(&home.initdb("source", true), &[("max_connections", "33")]);
    run(&server, ROWS).await;
    let location = home.folder("space");
    let sql = format!("create tablespace fast location '{}'", location.display());
    let mut connection = session(&server).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    run(
        &server,
        "create table moved tablespace fast as select n from generate_series(1, 5000) n;
        create unlogged table fleeting as select n from generate_series(1, 1000) n;
        create table busy (n bigserial primary key, what text)",
    )
    .await;

    // A writer all the time, so that files grow and pages change under the reader.
    let stop = CancellationToken::new();
    let writer = tokio::spawn(write_until(stop.clone(), session(&server).await));
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let wal = home.folder("wal");
    let result = back_up(&server, &sink, &wal).await.unwrap();
    stop.cancel();
    assert!(writer.await.unwrap() > 0);

    let PageChecks::Checked { pages } = result.details.pages else {
        panic!("not checked")
    };
    assert!(pages > 1000, "{pages} pages");
    assert_eq!(result.details.corrupt_pages, []);
    assert_eq!(result.details.critical_settings.max_connections, 33);
    assert!(result.position.start_lsn < result.position.stop_lsn);
    assert!(result.started < result.moment);
    let files: Vec<String> = sink
        .kept()
        .into_iter()
        .filter(|k| k.kind.is_some())
        .map(|k| k.item.path)
        .collect();
    let last = files
        .iter()
        .position(|path| path == "data/global/pg_control")
        .unwrap();
    assert_eq!(
        files[last + 1..],
        ["label/backup_label", "label/tablespace_map"]
    );
    let expected_files = u64::try_from(files.len() - 2).unwrap();
    assert_eq!(result.summary.files, expected_files);

    let into = home.folder("restored");
    put_back(&home, &sink, &result, &into, &wal);
    verify(&home, &into).unwrap();
    let restored = start_restored(
        &home,
        &into,
        &result.details.critical_settings.as_settings(),
    );
    assert_eq!(number(&restored, "select count(*) from item").await, 20_000);
    assert_eq!(number(&restored, "select count(*) from moved").await, 5000);
    assert_eq!(number(&restored, "select count(*) from fleeting").await, 0);
    let sums = "select count(*) - max(n) + coalesce(sum(length(what) - 1000), 0) from busy";
    assert_eq!(
        number(&restored, sums).await,
        0,
        "rows of the writer are torn or missing"
    );
    let place = text(
        &restored,
        "select pg_tablespace_location(oid) from pg_tablespace
        where spcname = 'fast'",
    )
    .await;
    assert_ne!(
        Path::new(&place),
        location,
        "the copy works on the original's tablespace"
    );
    assert_eq!(text(&restored, "show archive_mode").await, "off");
    let system_id = "select system_identifier from pg_control_system()";
    assert_eq!(
        number(&restored, system_id).await,
        number(&server, system_id).await
    );
}

async fn write_until(stop: CancellationToken, mut session: sqlx::PgConnection) -> u32 {
    let mut rounds = 0;
    while !stop.is_cancelled() {
        let insert = "insert into busy (what) select repeat('x', 1000) from generate_series(1, 50)";
        sqlx::raw_sql(insert).execute(&mut session).await.unwrap();
        rounds += 1;
    }
    rounds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_reported_with_its_page_and_verifybackup_still_agrees() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let file = text(&server, "select pg_relation_filepath('item')").await;
    let heap = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(data.join(&file))
        .unwrap();
    let mut byte = [0];
    heap.read_exact_at(&mut byte, 3 * 8192 + 4000).unwrap();
    heap.write_all_at(&[byte[0] ^ 1], 3 * 8192 + 4000).unwrap();

    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let result = back_up(&server, &sink, &home.folder("wal")).await.unwrap();
    let found: Vec<(&str, u64)> = result
        .details
        .corrupt_pages
        .iter()
        .map(|p| (p.path.as_str(), p.page))
        .collect();
    assert_eq!(found, [(format!("data/{file}").as_str(), 3)]);
    assert!(
        sink.kept().iter().any(|k| {
            k.item.path.ends_with(&file) && matches!(k.kind, Some(ContentKind::Pages))
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_changed_since_the_start_is_excused_and_mended_by_the_wal() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let file = text(&server, "select pg_relation_filepath('item')").await;
    let mut backup = BaseBackup::begin(
        session(&server).await,
        session(&server).await,
        &data,
        "test",
    )
    .await
    .unwrap();
    // All rows of the second page move to its free space or elsewhere; the WAL gets the whole page.
    run(
        &server,
        "delete from item where ctid >= '(1,0)' and ctid < '(2,0)'; checkpoint",
    )
    .await;
    let heap = fs::OpenOptions::new()
        .write(true)
        .open(data.join(&file))
        .unwrap();
    heap.write_all_at(b"torn", 8192 + 5000).unwrap();

    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let nothing = CancellationToken::new();
    let summary = backup
        .capture(
            Arc::clone(&sink) as _,
            reading(2),
            Arc::new(Silent),
            nothing,
        )
        .await
        .unwrap();
    assert_eq!(summary.corrupt_pages, []);
    let captured = sink.content(&format!("data/{file}"));
    assert_eq!(&captured[8192 + 5000..8192 + 5004], b"torn");
    let result = backup.end(Arc::clone(&sink) as _).await.unwrap();
    let wal = home.folder("wal");
    keep_wal(&server, &result, &wal);

    let into = home.folder("restored");
    put_back(&home, &sink, &result, &into, &wal);
    let restored = start_restored(&home, &into, &[]);
    let sum = "select count(*) + sum(length(what)) from item";
    assert_eq!(number(&restored, sum).await, number(&server, sum).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_with_an_lsn_that_was_never_written_is_not_excused() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let file = text(&server, "select pg_relation_filepath('item')").await;
    let heap = fs::OpenOptions::new()
        .write(true)
        .open(data.join(&file))
        .unwrap();
    // The high half of the page's LSN: far beyond anything this server wrote.
    heap.write_all_at(&[0xFF], 5 * 8192).unwrap();
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let result = back_up(&server, &sink, &home.folder("wal")).await.unwrap();
    assert_eq!(result.details.corrupt_pages.len(), 1);
    assert_eq!(result.details.corrupt_pages[0].page, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_checksums_the_result_says_not_checked() {
    let home = Home::new();
    let server = home.start(&home.initdb("source", false), &[]);
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let result = back_up(&server, &sink, &home.folder("wal")).await.unwrap();
    assert_eq!(result.details.pages, PageChecks::NotChecked);
    assert!(!result.position.page_checksums);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanishes_is_skipped() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    let doomed = data.join("base/1/999999");
    fs::write(&doomed, "").unwrap();
    let in_sink = doomed.clone();
    let sink = FolderSink::watched(
        home.path("captured"),
        Box::new(move |_| drop(fs::remove_file(&in_sink))),
    );
    let sink = Arc::new(sink);
    let result = back_up(&server, &sink, &home.folder("wal")).await.unwrap();
    assert_eq!(result.summary.vanished, 1);
    assert!(!sink.paths().contains(&"data/base/1/999999".to_owned()));
}

async fn wait_for_zero(server: &PostgresInstance, sql: &'static str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while number(server, sql).await != 0 {
        assert!(Instant::now() < deadline, "still there: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_backup_leaves_the_server_as_it_was() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let cancel = CancellationToken::new();
    let at_first_file = cancel.clone();
    let sink = FolderSink::watched(
        home.path("captured"),
        Box::new(move |_| at_first_file.cancel()),
    );
    let mut backup = BaseBackup::begin(
        session(&server).await,
        session(&server).await,
        &data,
        "test",
    )
    .await
    .unwrap();
    let held = "select count(*) from pg_replication_slots where temporary";
    assert_eq!(number(&server, held).await, 1);
    let error = backup
        .capture(Arc::new(sink), reading(2), Arc::new(Silent), cancel)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Cancelled { .. }), "{error}");
    drop(backup);
    wait_for_zero(&server, held).await;
    wait_for_zero(
        &server,
        "select count(*) from pg_stat_activity where application_name = 'dr'
        and pid <> pg_backend_pid()",
    )
    .await;
    assert!(!data.join("backup_label").exists());
    let sink = Arc::new(FolderSink::new(home.path("again")));
    back_up(&server, &sink, &home.folder("wal")).await.unwrap();
}

/// Where a slot would keep more WAL than `max_slot_wal_keep_size`, a checkpoint ends the session that has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_outlives_the_slot_that_the_server_gives_up() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(
        &data,
        &[
            ("max_slot_wal_keep_size", "1MB"),
            ("max_wal_size", "32MB"),
            ("min_wal_size", "32MB"),
        ],
    );
    run(&server, ROWS).await;
    let (one, other) = (session(&server).await, session(&server).await);
    let mut backup = BaseBackup::begin(one, other, &data, "test").await.unwrap();
    let held = "select count(*) from pg_replication_slots where temporary";
    assert_eq!(number(&server, held).await, 1);
    for _ in 0..6 {
        run(&server, "create table w as select 1; drop table w").await;
        run(&server, "select pg_switch_wal()").await;
    }
    run(&server, "checkpoint").await;
    wait_for_zero(&server, held).await;
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let cancel = CancellationToken::new();
    backup
        .capture(Arc::clone(&sink) as _, reading(2), Arc::new(Silent), cancel)
        .await
        .unwrap();
    backup.end(sink as _).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_capture_stops_reading_and_ends_its_session() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let (reached, waiting) = std::sync::mpsc::channel();
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let sink = FolderSink::watched(
        home.path("captured"),
        Box::new(move |_| {
            let _ = reached.send(());
            // Ends when the test lets go of the other side.
            let _ = gate.lock().unwrap().recv();
        }),
    );
    let sink = Arc::new(sink);
    let mut backup = BaseBackup::begin(
        session(&server).await,
        session(&server).await,
        &data,
        "test",
    )
    .await
    .unwrap();
    let into = Arc::clone(&sink);
    let task = tokio::spawn(async move {
        backup
            .capture(
                into as _,
                reading(1),
                Arc::new(Silent),
                CancellationToken::new(),
            )
            .await
    });
    waiting.recv().unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    drop(go_on);
    wait_for_zero(&server, "select count(*) from pg_replication_slots").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while Arc::strong_count(&sink) > 1 {
        assert!(Instant::now() < deadline, "a worker still reads");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        sink.kept()
            .iter()
            .filter(|kept| kept.kind.is_some())
            .count()
            < 2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_the_right_is_told_the_grant() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, "create role clerk login").await;
    let options = ConnectOptions {
        url: server.url("postgres").replace("postgres@", "clerk@"),
        password: None,
    };
    let begun = BaseBackup::begin(
        connect(&options).await.unwrap(),
        connect(&options).await.unwrap(),
        &data,
        "test",
    )
    .await;
    let error = begun.unwrap_err();
    assert!(matches!(error, SourceError::MissingRight { .. }), "{error}");
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("GRANT EXECUTE ON FUNCTION pg_backup_start"),
        "{hint}"
    );

    // What the hint says is enough, though the server then cannot be asked to keep its WAL.
    run(
        &server,
        "grant execute on function pg_backup_start(text, boolean),
        pg_backup_stop(boolean) to clerk",
    )
    .await;
    let mut backup = BaseBackup::begin(
        connect(&options).await.unwrap(),
        connect(&options).await.unwrap(),
        &data,
        "test",
    )
    .await
    .unwrap();
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let nothing = CancellationToken::new();
    backup
        .capture(
            Arc::clone(&sink) as _,
            reading(2),
            Arc::new(Silent),
            nothing,
        )
        .await
        .unwrap();
    let result = backup.end(Arc::clone(&sink) as _).await.unwrap();
    assert!(!result.wal_hold.holds());
    assert_eq!(result.details.notes.len(), 2, "{:?}", result.details.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_the_servers_is_refused() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let other = home.initdb("other", true);
    let server = home.start(&data, &[]);
    let begin = |folder: &Path| {
        let folder = folder.to_owned();
        let server = &server;
        async move {
            BaseBackup::begin(
                session(server).await,
                session(server).await,
                &folder,
                "test",
            )
            .await
            .unwrap_err()
        }
    };
    let error = begin(&other).await;
    assert!(matches!(error, SourceError::OtherCluster { .. }), "{error}");
    assert!(error.hint().unwrap().contains("data_directory"));

    let copy = home.path("copy");
    copy_folder(&data, &copy);
    let error = begin(&copy).await;
    assert!(
        matches!(error, SourceError::OtherDirectory { .. }),
        "{error}"
    );

    fs::write(copy.join("PG_VERSION"), "14\n").unwrap();
    let error = begin(&copy).await;
    assert!(matches!(error, SourceError::OtherMajor { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("is of PostgreSQL 14, but the server is 15"),
        "{error}"
    );

    let options = ConnectOptions {
        url: server.url("postgres"),
        password: None,
    };
    let identity = identify(&mut session(&server).await).await.unwrap();
    check_data_directory(&data, &identity).unwrap();
    server.stop(StopMode::Fast).unwrap();
    let error = connect(&options).await.unwrap_err();
    assert!(matches!(error, SourceError::PostgresDown { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_file_and_a_segments_header_say_what_the_server_says() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, "checkpoint").await;
    let identity = identify(&mut session(&server).await).await.unwrap();
    let control = control::read(&data).unwrap();
    assert_eq!(control.system_id, identity.system_id);
    assert_eq!(control.wal_segment_bytes, identity.wal_segment_bytes);
    assert_eq!((control.page_bytes, control.segment_pages), (8192, 131_072));
    assert!(control.page_checksums && control.in_production);
    let redo = text(
        &server,
        "select redo_lsn::text from pg_control_checkpoint()",
    )
    .await;
    assert_eq!(control.checkpoint_redo, lsn(&redo));
    let catalog = "select catalog_version_no::bigint from pg_control_system()";
    assert_eq!(
        i64::from(control.catalog_version),
        number(&server, catalog).await
    );

    let name = text(&server, "select pg_walfile_name(pg_current_wal_lsn())").await;
    let segment = fs::read(data.join("pg_wal").join(name)).unwrap();
    let header = SegmentHeader::parse(&segment).unwrap();
    assert_eq!(header.system_id, identity.system_id);
    assert_eq!(header.segment_bytes, identity.wal_segment_bytes);
    assert_eq!(header.timeline, identity.timeline);
    assert_eq!(dr_wal::page::major_version(header.magic), Some(15));
    assert!(
        SegmentHeader::parse(&segment[8192..]).is_none(),
        "not the first page"
    );

    let mut bytes = fs::read(data.join("global/pg_control")).unwrap();
    bytes[40] ^= 1;
    assert!(
        control::parse(&bytes).is_none(),
        "a torn control file was believed"
    );
}

/// A cluster as Debian makes it, its configuration in /etc/postgresql; dropped again.
struct DebianCluster {
    name: String,
    data: std::path::PathBuf,
}

impl DebianCluster {
    /// `None` where it cannot be made: not as root, or no Debian.
    fn make(home: &Home) -> Option<Self> {
        home.run_as.as_ref()?;
        let name = format!("drtest{}", std::process::id());
        let data = home.path("debian");
        let output = Command::new("pg_createcluster")
            .args(["15", &name, "--start-conf=manual", "-d"])
            .arg(&data)
            .arg("-l")
            .arg(home.path("debian.log"))
            .args([
                "--port",
                &dr_sources::instance::free_port().to_string(),
                "--locale=C",
            ])
            .args(["--", "--data-checksums", "--auth=trust", "--no-sync"])
            .output()
            .ok()?;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(Self { name, data })
    }

    fn config(&self, name: &str) -> std::path::PathBuf {
        Path::new("/etc/postgresql/15").join(&self.name).join(name)
    }
}

impl Drop for DebianCluster {
    fn drop(&mut self) {
        let dropped = Command::new("pg_dropcluster")
            .args(["--stop", "15", &self.name])
            .status();
        // It leaves what it did not make itself.
        let _ = fs::remove_dir_all(self.config(""));
        assert!(dropped.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_cluster_comes_back_with_its_configuration_from_etc() {
    let home = Home::new();
    let Some(debian) = DebianCluster::make(&home) else {
        return;
    };
    fs::write(debian.config("conf.d/dr-test.conf"), "work_mem = '7MB'\n").unwrap();
    fs::write(
        debian.config("pg_hba.conf"),
        "# the right one\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n",
    )
    .unwrap();
    assert!(!debian.data.join("postgresql.conf").exists());
    let config = debian.config("postgresql.conf").display().to_string();
    let source = home.start_with_config(&debian.data, &config);
    run(&source, ROWS).await;
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let wal = home.folder("wal");
    let result = back_up(&source, &sink, &wal).await.unwrap();
    for expected in [
        "postgresql.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "conf.d/dr-test.conf",
    ] {
        let expected = format!("config/{expected}");
        assert!(sink.paths().contains(&expected), "{expected} is missing");
    }
    source.stop(StopMode::Fast).unwrap();
    drop(debian);

    let into = home.folder("restored");
    put_back(&home, &sink, &result, &into, &wal);
    verify(&home, &into).unwrap();
    let main = fs::read_to_string(into.join("postgresql.conf")).unwrap();
    assert!(
        main.contains("# restored by dr; was: data_directory = "),
        "{main}"
    );
    let restored = start_restored(&home, &into, &[]);
    assert_eq!(number(&restored, "select count(*) from item").await, 20_000);
    assert_eq!(text(&restored, "show work_mem").await, "7MB");
    for (setting, file) in [
        ("show hba_file", "pg_hba.conf"),
        ("show config_file", "postgresql.conf"),
    ] {
        assert_eq!(
            text(&restored, setting).await,
            into.join(file).display().to_string()
        );
    }
    let hba = fs::read_to_string(into.join("pg_hba.conf")).unwrap();
    assert!(hba.starts_with("# the right one"));
}

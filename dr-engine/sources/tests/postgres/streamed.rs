//! A cluster that its server sends: the same items that reading its files makes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dr_model::Silent;
use dr_sources::SourceError;
use dr_sources::instance::{PostgresInstance, StopMode, give};
use dr_sources::postgres::{
    BaseBackupResult, ConfigRole, ConnectOptions, PageChecks, StreamedOptions, receive_base_backup,
};
use tokio_util::sync::CancellationToken;

use crate::cluster::{
    FolderSink, Home, back_up, keep_wal, number, put_back, run, run_text, session, start_restored,
    text, verify,
};
use crate::{ROWS, wait_for_zero, write_until};

fn options() -> StreamedOptions {
    StreamedOptions {
        label: "it's a test".to_owned(),
        data_directory: "/not/on/this/host".into(),
        parallelism: 2,
        bytes_per_second: None,
    }
}

fn address(server: &PostgresInstance, role: &str) -> ConnectOptions {
    ConnectOptions {
        url: server
            .url("postgres")
            .replace("postgres@", &format!("{role}@")),
        password: None,
    }
}

async fn receive_with(
    server: &PostgresInstance,
    sink: &Arc<FolderSink>,
    cancel: &CancellationToken,
) -> Result<BaseBackupResult, SourceError> {
    let address = address(server, "postgres");
    let sink = Arc::clone(sink) as _;
    receive_base_backup(&address, &options(), sink, Arc::new(Silent), cancel).await
}

async fn receive(server: &PostgresInstance, sink: &Arc<FolderSink>) -> BaseBackupResult {
    let nothing = CancellationToken::new();
    receive_with(server, sink, &nothing).await.unwrap()
}

/// What a restore makes of each path, but for what differs from one backup to the next.
fn items(sink: &FolderSink) -> BTreeMap<String, String> {
    let differs = ["data/global/pg_control", "label/backup_label"];
    let kept = sink.kept().into_iter();
    kept.map(|kept| {
        let item = &kept.item;
        let (size, content) = match differs.contains(&item.path.as_str()) {
            true => (0, 0),
            false => (kept.size, kept.crc32c),
        };
        let what = format!(
            "{:?} {:?} {:o} {}:{} {size} bytes, {content:x}",
            item.kind, kept.kind, item.mode, item.uid, item.gid
        );
        (item.path.clone(), what)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_sends_is_what_its_files_hold() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let etc = home.folder("etc");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), etc.join(name)).unwrap();
    }
    fs::create_dir(etc.join("conf.d")).unwrap();
    fs::write(etc.join("conf.d/ours.conf"), "autovacuum = off\n").unwrap();
    let main = fs::read_to_string(etc.join("postgresql.conf")).unwrap();
    let place = |name: &str| etc.join(name).display().to_string();
    let main = format!(
        "{main}\ninclude_dir = 'conf.d'\nhba_file = '{}'\nident_file = '{}'\n\
         allow_in_place_tablespaces = on\n",
        place("pg_hba.conf"),
        place("pg_ident.conf")
    );
    fs::write(etc.join("postgresql.conf"), main).unwrap();
    give(&etc.join("conf.d"), home.run_as.as_ref()).unwrap();
    give(&etc.join("conf.d/ours.conf"), home.run_as.as_ref()).unwrap();
    let data_directory = data.display().to_string();
    let config_file = place("postgresql.conf");
    let server = home.start(
        &data,
        &[
            ("config_file", &config_file),
            ("data_directory", &data_directory),
        ],
    );
    run(&server, ROWS).await;
    for name in ["fast", "slow"] {
        let location = home.folder(name);
        let sql = format!("create tablespace {name} location '{}'", location.display());
        run_text(&server, sql).await;
    }
    run(&server, "create tablespace inside location ''").await;
    run(
        &server,
        "create table moved tablespace fast as select n from generate_series(1, 5000) n;
         create table other tablespace slow as select n from generate_series(1, 9000) n;
         create table within tablespace inside as select n from generate_series(1, 7000) n;
         create unlogged table fleeting (n int primary key);
         insert into fleeting select generate_series(1, 1000);
         create table empty (n int);
         checkpoint",
    )
    .await;

    let read = Arc::new(FolderSink::new(home.path("read")));
    let by_reading = back_up(&server, &read, &home.folder("wal")).await.unwrap();
    let received = Arc::new(FolderSink::new(home.path("received")));
    let result = receive(&server, &received).await;

    let (mut expected, found) = (items(&read), items(&received));
    // Not needed where the links are made anew; asking for it, the server would leave out `inside`.
    expected.remove("label/tablespace_map");
    // What of a folder's attributes the server does not send of configuration.
    for (path, what) in &mut expected {
        if path.starts_with("config/") {
            assert!(
                found[path].ends_with(what.rsplit_once(' ').unwrap().1),
                "{path}"
            );
            *what = found[path].clone();
        }
    }
    for (path, what) in &expected {
        assert_eq!(found.get(path), Some(what), "{path}");
    }
    assert_eq!(found.len(), expected.len(), "{:?}", found.keys());
    let (ours, theirs) = (&result.details, &by_reading.details);
    assert_eq!(ours.config_files.len(), 4);
    assert_eq!(ours.config_files[3].role, ConfigRole::Include);
    for file in &theirs.config_files {
        assert!(ours.config_files.contains(file), "{file:?}");
    }
    let mut tablespaces = theirs.tablespaces.clone();
    tablespaces.sort_by_key(|one| one.oid);
    assert_eq!(ours.tablespaces, tablespaces);
    assert_eq!(ours.data_directory, data);
    assert_eq!(ours.databases, theirs.databases);
    assert_eq!(ours.pages, theirs.pages);
    assert!(ours.notes.is_empty(), "{:?}", ours.notes);
    assert_eq!(result.summary.files, by_reading.summary.files + 1);
    let label = String::from_utf8(received.content("label/backup_label")).unwrap();
    assert!(label.contains("LABEL: it's a test"), "{label}");
    assert!(result.wal_hold.holds());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_put_back_verified_and_started() {
    let home = Home::new();
    let server = home.start(&home.initdb("source", true), &[]);
    run(&server, ROWS).await;
    let location = home.folder("space").display().to_string();
    run_text(
        &server,
        format!("create tablespace fast location '{location}'"),
    )
    .await;
    run(
        &server,
        "create table moved tablespace fast as select n from generate_series(1, 5000) n;
         create unlogged table fleeting as select n from generate_series(1, 1000) n;
         create table busy (n bigserial primary key, what text)",
    )
    .await;
    let stop = CancellationToken::new();
    let writer = tokio::spawn(write_until(stop.clone(), session(&server).await));
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let result = receive(&server, &sink).await;
    let wal = home.folder("wal");
    keep_wal(&server, &result, &wal);
    stop.cancel();
    assert!(writer.await.unwrap() > 0);
    assert_eq!(result.details.corrupt_pages, []);
    assert!(result.started < result.moment);

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
    assert_eq!(number(&restored, sums).await, 0);
}

fn damage(data: &Path, file: &str, at: u64, bytes: &[u8]) {
    let heap = fs::OpenOptions::new().write(true).open(data.join(file));
    heap.unwrap().write_all_at(bytes, at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_told_whatever_the_server_looks_at() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let location = home.folder("space").display().to_string();
    run_text(
        &server,
        format!("create tablespace fast location '{location}'"),
    )
    .await;
    run(
        &server,
        "create table moved tablespace fast as select n from generate_series(1, 5000) n;
         create table late as select n from generate_series(1, 5000) n; checkpoint",
    )
    .await;
    let item = text(&server, "select pg_relation_filepath('item')").await;
    let moved = text(&server, "select pg_relation_filepath('moved')").await;
    let late = text(&server, "select pg_relation_filepath('late')").await;
    damage(&data, &item, 3 * 8192 + 4000, b"damaged");
    damage(&data, &moved, 2 * 8192 + 4000, b"damaged");
    // The high half of the page's LSN: far beyond anything this server wrote, which it does not look at.
    damage(&data, &late, 5 * 8192, &[0xFF]);
    // Nor at a page whose header is gone, which it takes for one that was never used.
    damage(&data, &late, 7 * 8192, &[0; 512]);

    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let result = receive(&server, &sink).await;
    let found: Vec<(String, u64)> = (result.details.corrupt_pages.iter())
        .map(|page| (page.path.clone(), page.page))
        .collect();
    let moved = moved.replace("pg_tblspc", "tablespaces");
    let mut expected = vec![
        (format!("data/{item}"), 3),
        (format!("data/{late}"), 5),
        (format!("data/{late}"), 7),
        (moved, 2),
    ];
    expected.sort();
    assert_eq!(found, expected);
    assert!(matches!(result.details.pages, PageChecks::Checked { pages } if pages > 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_killed_one_is_an_error_and_leaves_nothing() {
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
    let error = receive_with(&server, &Arc::new(sink), &cancel)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::Cancelled { .. }), "{error}");
    wait_for_zero(&server, "select count(*) from pg_replication_slots").await;
    wait_for_zero(&server, "select count(*) from pg_stat_replication").await;

    // Killed while it sends: the table is larger than what can be on its way.
    run(
        &server,
        "create table large as select n, repeat(md5(n::text), 30) from generate_series(1, 60000) n",
    )
    .await;
    let pid = server.pid();
    let sink = FolderSink::watched(
        home.path("killed"),
        Box::new(move |item| {
            if item.path == "data/PG_VERSION" || item.path.starts_with("data/base/") {
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            }
        }),
    );
    let nothing = CancellationToken::new();
    let error = receive_with(&server, &Arc::new(sink), &nothing)
        .await
        .unwrap_err();
    let SourceError::Replication(error) = error else {
        panic!("{error:?}")
    };
    assert!(error.is_down(), "{error}");
    drop(server.stop(StopMode::Immediate));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_ends_it_with_its_own_words() {
    struct Full;
    impl dr_sources::ItemSink for Full {
        fn file(
            &self,
            _: &dr_sources::Item,
            _: &mut dyn std::io::Read,
            _: dr_sources::ContentKind,
        ) -> Result<(), dr_sources::SinkError> {
            Err("no space left".into())
        }
        fn entry(&self, _: &dr_sources::Item) -> Result<(), dr_sources::SinkError> {
            Ok(())
        }
    }
    let home = Home::new();
    let server = home.start(&home.initdb("source", true), &[]);
    let address = address(&server, "postgres");
    let nothing = CancellationToken::new();
    let ended = receive_base_backup(
        &address,
        &options(),
        Arc::new(Full),
        Arc::new(Silent),
        &nothing,
    )
    .await;
    let SourceError::Sink { source, .. } = ended.unwrap_err() else {
        panic!("another error")
    };
    assert_eq!(source.to_string(), "no space left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_is_told_what_it_needs() {
    let home = Home::new();
    let data = home.initdb("source", true);
    let etc = home.folder("etc");
    fs::rename(data.join("pg_hba.conf"), etc.join("pg_hba.conf")).unwrap();
    let hba = etc.join("pg_hba.conf").display().to_string();
    let server = home.start(&data, &[("hba_file", &hba)]);
    run(&server, "create role clerk login").await;
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let nothing = CancellationToken::new();
    let take = || {
        let address = address(&server, "clerk");
        let sink = Arc::clone(&sink);
        let nothing = nothing.clone();
        async move { receive_base_backup(&address, &options(), sink, Arc::new(Silent), &nothing).await }
    };
    let error = take().await.unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "as a superuser: ALTER ROLE \"clerk\" REPLICATION"
    );
    run(
        &server,
        "alter role clerk replication; grant pg_read_all_settings to clerk",
    )
    .await;
    let result = take().await.unwrap();
    let notes = &result.details.notes;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("may not read all of it"), "{notes:?}");
    // What it says is enough.
    run(
        &server,
        "grant pg_read_server_files to clerk;
         grant execute on function pg_read_binary_file(text, bigint, bigint, boolean) to clerk;
         grant select on pg_file_settings to clerk;
         grant execute on function pg_show_all_file_settings() to clerk",
    )
    .await;
    let sink = Arc::new(FolderSink::new(home.path("again")));
    let result = receive_base_backup(
        &address(&server, "clerk"),
        &options(),
        Arc::clone(&sink) as _,
        Arc::new(Silent),
        &nothing,
    )
    .await
    .unwrap();
    assert!(
        result.details.notes.is_empty(),
        "{:?}",
        result.details.notes
    );
    assert_eq!(
        sink.content("config/outside/0-pg_hba.conf"),
        fs::read(hba).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_cluster_that_the_server_leaves_out_is_no_backup() {
    let home = Home::new();
    let data = home.initdb("source", true);
    // As an operator does who makes room; a server sends no such links.
    let elsewhere = home.folder("elsewhere");
    fs::rename(data.join("pg_xact"), elsewhere.join("pg_xact")).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("pg_xact"), data.join("pg_xact")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, data.join("log")).unwrap();
    let server = home.start(&data, &[]);
    let sink = Arc::new(FolderSink::new(home.path("captured")));
    let nothing = CancellationToken::new();
    let error = receive_with(&server, &sink, &nothing).await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("did not send pg_xact of its data directory"),
        "{said}"
    );
    drop(server.stop(StopMode::Fast));

    fs::remove_file(data.join("pg_xact")).unwrap();
    fs::rename(elsewhere.join("pg_xact"), data.join("pg_xact")).unwrap();
    let conf = elsewhere.join("postgresql.conf");
    fs::rename(data.join("postgresql.conf"), &conf).unwrap();
    std::os::unix::fs::symlink(&conf, data.join("postgresql.conf")).unwrap();
    let server = home.start(&data, &[]);
    let sink = Arc::new(FolderSink::new(home.path("again")));
    let result = receive(&server, &sink).await;
    // One that matters less is told, and the configuration is there all the same.
    let notes = &result.details.notes;
    let links = notes
        .iter()
        .filter(|note| note.contains("\"./log\""))
        .count();
    assert_eq!(links, 1, "{notes:?}");
    let config = &result.details.config_files;
    assert_eq!(config.len(), 1, "{config:?}");
    assert_eq!(sink.content(&config[0].item), fs::read(&conf).unwrap());
}

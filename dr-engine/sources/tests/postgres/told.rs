//! What is told with a capture of pages in later files of a relation, and of collations.

use std::fs;
use std::sync::Arc;

use dr_model::Silent;
use dr_sources::instance::{PostgresInstance, StopMode, command, give};
use dr_sources::postgres::{
    BaseBackupResult, ConnectOptions, PageChecks, StreamedOptions, receive_base_backup,
};
use tokio_util::sync::CancellationToken;

use crate::ROWS;
use crate::cluster::{FolderSink, Home, back_up, bin, run, text};

const PAGE: usize = 8192;

async fn received(server: &PostgresInstance, sink: &Arc<FolderSink>) -> BaseBackupResult {
    let address = ConnectOptions {
        url: server.url("postgres"),
        password: None,
    };
    let options = StreamedOptions {
        label: "test".to_owned(),
        data_directory: server.data_directory().to_owned(),
        parallelism: 2,
        bytes_per_second: None,
    };
    let (sink, nothing) = (Arc::clone(sink) as _, CancellationToken::new());
    receive_base_backup(&address, &options, sink, Arc::new(Silent), &nothing)
        .await
        .unwrap()
}

/// PostgreSQL's own program sums the pages of a relation's second file: what goes into a sum is a page's
/// number in the relation.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_later_file_of_a_relation_is_judged_by_its_number_in_the_relation() {
    let home = Home::new();
    let data = home.initdb("source", false);
    let server = home.start(&data, &[]);
    run(&server, ROWS).await;
    let heap = data.join(text(&server, "select pg_relation_filepath('item')").await);
    server.stop(StopMode::Fast).unwrap();
    let later = |segment: u32| heap.with_file_name(format!("99999.{segment}"));
    let pages = fs::read(&heap).unwrap()[..20 * PAGE].to_vec();
    assert!(
        pages
            .chunks(PAGE)
            .all(|page| page.iter().any(|byte| *byte != 0))
    );
    fs::write(later(1), &pages).unwrap();
    fs::write(later(3), &pages).unwrap();
    for segment in [1, 3] {
        give(&later(segment), home.run_as.as_ref()).unwrap();
    }
    let summed = command(home.run_as.as_ref(), bin().join("pg_checksums"))
        .args(["--enable", "--no-sync", "-D"])
        .arg(&data)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(summed.status.success(), "{summed:?}");
    // A page that was written to another place of the same relation.
    let mut moved = fs::read(later(1)).unwrap();
    moved.copy_within(7 * PAGE..8 * PAGE, 3 * PAGE);
    fs::write(later(2), &fs::read(later(1)).unwrap()[..PAGE]).unwrap();
    give(&later(2), home.run_as.as_ref()).unwrap();
    fs::write(later(1), moved).unwrap();

    let server = home.start(&data, &[]);
    let base = heap.parent().unwrap().strip_prefix(&data).unwrap();
    let path = |segment: u32| format!("data/{}/99999.{segment}", base.display());
    let wanted = [(path(1), 3), (path(2), 0)];
    let sink = Arc::new(FolderSink::new(home.path("read")));
    let read = back_up(&server, &sink, &home.folder("wal")).await.unwrap();
    let sink = Arc::new(FolderSink::new(home.path("received")));
    for result in [read, received(&server, &sink).await] {
        let found: Vec<(String, u64)> = (result.details.corrupt_pages.iter())
            .map(|page| (page.path.clone(), page.page))
            .collect();
        assert_eq!(found, wanted);
        assert!(matches!(result.details.pages, PageChecks::Checked { pages } if pages > 100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collations_of_every_database_are_told_with_their_versions() {
    let home = Home::new();
    let server = home.start(&home.initdb("source", true), &[]);
    for sql in [
        "create database sorted template template0 locale_provider icu icu_locale 'en-US'",
        "create database outgrown template template0 locale_provider icu icu_locale 'de-DE'",
        "update pg_database set datcollversion = '1.2' where datname = 'outgrown'",
    ] {
        run(&server, sql).await;
    }
    let now = text(
        &server,
        "select pg_database_collation_actual_version(oid) from pg_database where datname = 'sorted'",
    )
    .await;
    let wanted = [
        ("outgrown", Some("1.2"), Some(now.as_str())),
        // In the C locale nothing can change.
        ("postgres", None, None),
        ("sorted", Some(now.as_str()), Some(now.as_str())),
        ("template0", None, None),
        ("template1", None, None),
    ];
    let sink = Arc::new(FolderSink::new(home.path("read")));
    let read = back_up(&server, &sink, &home.folder("wal")).await.unwrap();
    let sink = Arc::new(FolderSink::new(home.path("received")));
    for result in [read, received(&server, &sink).await] {
        // As it is stored with a restore point.
        let details = serde_json::to_value(&result.details).unwrap();
        let databases = details["databases"].as_array().unwrap();
        let told: Vec<(&str, Option<&str>, Option<&str>)> = (databases.iter())
            .map(|of| {
                let version = |name: &str| of[name].as_str();
                let name = of["database"].as_str().unwrap();
                (name, version("recorded_version"), version("actual_version"))
            })
            .collect();
        assert_eq!(told, wanted);
    }
}

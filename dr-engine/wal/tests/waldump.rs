//! What the reader says of the log of a real server, beside what `pg_waldump` says of it, and beside the
//! files that the server wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use chrono::{DateTime, NaiveDateTime, Utc};
use dr_model::Lsn;
use dr_sources::instance::{
    InitdbOptions, PostgresInstance, RunAs, StartOptions, StopMode, free_port, give,
};
use dr_sources::postgres::{ConnectOptions, connect, tools};
use dr_wal::page::SegmentHeader;
use dr_wal::{
    Change, Ended, Fork, Layout, Manager, Outcome, Reader, Record, Relation, RowChange, RowPlace,
    Running, Summary, Value, WalError, row_changes,
};
use sqlx::{Connection, Executor};

/// The version that Debian has; `DR_TEST_POSTGRES_BIN` names the programs of another one.
const DEBIAN_MAJOR: u32 = 15;
const SEGMENT_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 8192;

struct Cluster {
    _home: tempfile::TempDir,
    data: PathBuf,
    run_as: Option<RunAs>,
}

impl Cluster {
    /// With small segments, so that records go over their ends, and checksums, so that hints are logged.
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("dr-wal").tempdir().unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(home.path(), run_as.as_ref()).unwrap();
        let data = home.path().join("data");
        let options = InitdbOptions::new(&Self::bin(), &data, run_as.clone());
        PostgresInstance::initdb(&InitdbOptions {
            data_checksums: true,
            arguments: vec!["--no-sync".to_owned(), "--wal-segsize=1".to_owned()],
            ..options
        })
        .unwrap();
        Self {
            _home: home,
            data,
            run_as,
        }
    }

    fn bin() -> PathBuf {
        match std::env::var_os("DR_TEST_POSTGRES_BIN") {
            Some(other) => other.into(),
            None => tools::bin_directory(None, DEBIAN_MAJOR).unwrap(),
        }
    }

    fn major() -> u32 {
        let version = Command::new(Self::bin().join("postgres"))
            .arg("-V")
            .output();
        let version = String::from_utf8(version.unwrap().stdout).unwrap();
        let number = version
            .rsplit(' ')
            .find_map(|word| word.trim().split('.').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no version in `{version}`"))
    }

    fn start(&self, settings: &[(&str, &str)]) -> PostgresInstance {
        let mut options =
            StartOptions::new(&Self::bin(), &self.data, self.run_as.clone(), free_port());
        let ours = [
            ("fsync", "off"),
            ("max_prepared_transactions", "10"),
            ("wal_keep_size", "4GB"),
            ("autovacuum", "off"),
        ];
        options.settings = (ours.iter().chain(settings))
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        PostgresInstance::start(options).unwrap()
    }

    /// The segments in order.
    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.data.join("pg_wal")).unwrap();
        let mut segments: Vec<PathBuf> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().len() == 24)
            .collect();
        segments.sort();
        segments
    }

    /// Every file of a relation's main fork, by relation.
    fn main_forks(&self, copy: &Path) -> BTreeMap<Relation, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut add = |folder: PathBuf, tablespace, database| {
            let Ok(entries) = fs::read_dir(folder) else {
                return;
            };
            for entry in entries.map(Result::unwrap) {
                let name = entry.file_name().into_string().unwrap();
                if let Ok(file) = name.parse() {
                    let relation = Relation {
                        tablespace,
                        database,
                        file,
                    };
                    found.insert(relation, fs::read(entry.path()).unwrap());
                }
            }
        };
        add(copy.join("global"), 1664, 0);
        for entry in fs::read_dir(copy.join("base")).unwrap() {
            let entry = entry.unwrap();
            let database = entry.file_name().to_str().unwrap().parse();
            if let Ok(database) = database {
                add(entry.path(), 1663, database);
            }
        }
        found
    }
}

async fn run(server: &PostgresInstance, sql: &str) -> Vec<String> {
    run_in(server, "postgres", sql).await
}

async fn run_in(server: &PostgresInstance, database: &str, sql: &str) -> Vec<String> {
    let options = ConnectOptions {
        url: server.url(database),
        password: None,
    };
    let mut session = connect(&options).await.unwrap();
    let mut answers = Vec::new();
    for statement in statements(sql) {
        let statement = sqlx::AssertSqlSafe(statement);
        let rows = session.fetch_all(sqlx::raw_sql(statement)).await.unwrap();
        answers.extend(rows.iter().map(|row| {
            use sqlx::Row;
            row.try_get::<String, _>(0).unwrap_or_default()
        }));
    }
    session.close().await.unwrap();
    answers
}

/// One by one: some may not be within a transaction, as several in one message are.
fn statements(sql: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut quoted = false;
    for line in sql
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
    {
        statement.push_str(line);
        statement.push('\n');
        quoted ^= line.matches("$$").count() % 2 == 1;
        if !quoted && line.trim_end().ends_with(';') {
            statements.push(std::mem::take(&mut statement));
        }
    }
    statements
}

/// A record in the words of `pg_waldump`.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    manager: String,
    length: u32,
    xid: u32,
    lsn: Lsn,
    previous: Lsn,
    blocks: Vec<String>,
    rows: String,
}

fn told_by_us(record: &Record<'_>) -> Told {
    let block = |block: &dr_wal::Block| {
        let fork = match block.fork {
            Fork::Main => String::new(),
            other => format!(" fork {}", other.name()),
        };
        let image = if block.has_image { " FPW" } else { "" };
        format!(
            "{}: rel {}{fork} blk {}{image}",
            block.id, block.relation, block.number
        )
    };
    Told {
        manager: record.manager.name().unwrap().to_owned(),
        length: record.length,
        xid: record.xid,
        lsn: record.lsn,
        previous: record.previous,
        blocks: record.blocks.iter().map(block).collect(),
        rows: rows_told_by_us(record),
    }
}

/// What is done to rows, and the lines; of several at once only how many.
fn rows_told_by_us(record: &Record<'_>) -> String {
    let mut told = Vec::new();
    row_changes(record, &mut |relation, change| {
        assert_eq!(relation, record.blocks[0].relation);
        told.push(match change {
            RowChange::Inserted { at, .. } => format!("INSERT {}", at.line),
            RowChange::Updated { from, to, .. } => format!("UPDATE {} {}", from.line, to.line),
            RowChange::Deleted { at, .. } => format!("DELETE {}", at.line),
        });
    })
    .unwrap();
    match record.manager {
        Manager::HEAP2 if !told.is_empty() => format!("MULTI_INSERT {}", told.len()),
        _ => told.join("; "),
    }
}

/// The same in the words of `pg_waldump`, which are others before version 16.
fn rows_told_by_waldump(line: &str) -> String {
    let said = line.split_once("desc: ").map_or("", |(_, said)| said);
    let said = said.split(", blkref").next().unwrap();
    let words: Vec<&str> = said
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .collect();
    let numbers = |names: &[&str]| -> Vec<&str> {
        let pairs = words.windows(2).filter(|pair| names.contains(&pair[0]));
        pairs.map(|pair| pair[1]).collect()
    };
    let is_heap = line.starts_with("rmgr: Heap");
    match words.first().copied().filter(|_| is_heap) {
        Some(kind @ ("INSERT" | "DELETE")) => format!("{kind} {}", numbers(&["off"])[0]),
        Some("UPDATE" | "HOT_UPDATE") => {
            format!(
                "UPDATE {}",
                numbers(&["off", "old_off", "new_off"]).join(" ")
            )
        }
        Some("MULTI_INSERT") => {
            let before = words.iter().position(|word| *word == "tuples");
            let count = before.map_or_else(|| numbers(&["ntuples"])[0], |at| words[at - 1]);
            format!("MULTI_INSERT {count}")
        }
        _ => String::new(),
    }
}

/// A line like `rmgr: Heap  len (rec/tot): 54/ 54, tx: 739, lsn: 0/01526028, prev 0/01525FF0, desc: ...`.
fn told_by_waldump(line: &str) -> Told {
    let between = |from: &str, to: &str| {
        let rest = line
            .split_once(from)
            .unwrap_or_else(|| panic!("no `{from}` in {line}"))
            .1;
        rest.split_once(to)
            .map_or(rest, |(part, _)| part)
            .trim()
            .to_owned()
    };
    let lengths = between("len (rec/tot):", ", tx:");
    let blocks = line.split(", blkref #").skip(1);
    Told {
        manager: between("rmgr:", "len (rec/tot)"),
        length: lengths.split_once('/').unwrap().1.trim().parse().unwrap(),
        xid: between("tx:", ",").parse().unwrap(),
        lsn: between("lsn:", ",").parse().unwrap(),
        previous: between("prev ", ",").parse().unwrap(),
        blocks: blocks.map(|block| block.trim().to_owned()).collect(),
        rows: rows_told_by_waldump(line),
    }
}

/// The end of a transaction, in the words of `pg_waldump`: transaction, outcome, time, subtransactions.
fn ended_by_waldump(line: &str) -> Option<(u32, Outcome, DateTime<Utc>, Vec<u32>)> {
    let (_, said) = line.split_once("desc: ")?;
    let (kind, rest) = said.split_once(' ')?;
    let outcome = match kind {
        "COMMIT" | "COMMIT_PREPARED" => Outcome::Committed,
        "ABORT" | "ABORT_PREPARED" => Outcome::Aborted,
        _ => return None,
    };
    let (xid, rest) = match kind.ends_with("PREPARED") {
        true => {
            let (xid, rest) = rest.split_once(": ").unwrap();
            (xid.parse().unwrap(), rest)
        }
        false => (told_by_waldump(line).xid, rest),
    };
    let time = rest.split(" UTC").next().unwrap();
    let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").unwrap();
    let subtransactions = rest.split("subxacts: ").nth(1).unwrap_or_default();
    let subtransactions = subtransactions
        .split(';')
        .next()
        .unwrap()
        .split_whitespace();
    let subtransactions = subtransactions.map(|xid| xid.parse().unwrap()).collect();
    Some((xid, outcome, time.and_utc(), subtransactions))
}

fn start_of(segment: &Path) -> Lsn {
    SegmentHeader::parse(&fs::read(segment).unwrap())
        .unwrap()
        .start
}

fn waldump(cluster: &Cluster, first: &Path) -> Vec<String> {
    // Given a segment it reads no other one.
    let output = Command::new(Cluster::bin().join("pg_waldump"))
        .arg("-p")
        .arg(cluster.data.join("pg_wal"))
        .arg("--start")
        .arg(start_of(first).to_string())
        .env("TZ", "UTC")
        .output()
        .unwrap();
    // It always fails at the end of the log.
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

/// Reads the log from the first of these segments to its end; returns where that is.
fn read(segments: &[PathBuf], each: &mut dyn FnMut(&Record<'_>)) -> Lsn {
    let first = fs::read(&segments[0]).unwrap();
    let mut reader = Reader::new(&SegmentHeader::parse(&first).unwrap()).unwrap();
    assert_eq!(reader.major(), Cluster::major());
    for segment in segments {
        let bytes = fs::read(segment).unwrap();
        assert_eq!(bytes.len(), SEGMENT_BYTES);
        for page in bytes.chunks(PAGE_BYTES) {
            match reader.page(page, each) {
                Ok(()) => {}
                Err(WalError::NoRecord { at }) => return at,
                // Where the log ended at the end of a page.
                Err(WalError::NoPage { at }) => return at,
                Err(error) => panic!("{}: {error}", segment.display()),
            }
        }
    }
    reader.position().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_what_waldump_says_and_no_changed_block_is_missing() {
    let major = Cluster::major();
    for compression in ["off", "on"] {
        let cluster = Cluster::new();
        let server = cluster.start(&[("wal_compression", compression)]);
        run(
            &server,
            "CREATE TABLE before (id int); INSERT INTO before SELECT generate_series(1, 9000);",
        )
        .await;
        server.stop(StopMode::Fast).unwrap();
        let before = cluster.main_forks(&cluster.data);
        // Behind the segment in which the log ends lie some that are made ahead.
        let segments = cluster.segments();
        let end = read(&segments, &mut |_| {});
        let begin = usize::try_from(end.0 - start_of(&segments[0]).0).unwrap() / SEGMENT_BYTES;

        let server = cluster.start(&[("wal_compression", compression)]);
        run(&server, include_str!("mixed.sql")).await;
        run(&server, databases(major)).await;
        run(&server, "UPDATE before SET id = id + 1 WHERE id % 500 = 0;").await;
        server.stop(StopMode::Fast).unwrap();

        let segments = cluster.segments();
        let lines = waldump(&cluster, &segments[begin]);
        let (mut ours, mut summary, mut ended) = (Vec::new(), Summary::default(), Vec::new());
        let last = read(&segments[begin..], &mut |record| {
            ours.push(told_by_us(record));
            if record.lsn >= end {
                summary.add(record, major).unwrap();
            }
            ended.extend(Ended::of(record, major).unwrap());
        });
        let theirs: Vec<Told> = lines.iter().map(|line| told_by_waldump(line)).collect();
        for (our, their) in ours.iter().zip(&theirs) {
            assert_eq!(our, their);
        }
        assert_eq!(ours.len(), theirs.len(), "the log ends at {last}");
        assert!(ours.len() > 20_000, "{} records", ours.len());
        let managers: std::collections::BTreeSet<&str> =
            ours.iter().map(|record| record.manager.as_str()).collect();
        assert!(managers.len() >= 18, "the load is not mixed: {managers:?}");

        let theirs: Vec<_> = lines
            .iter()
            .filter_map(|line| ended_by_waldump(line))
            .collect();
        let ours: Vec<_> = ended
            .into_iter()
            .map(|ended| (ended.xid, ended.outcome, ended.at, ended.subtransactions))
            .collect();
        assert_eq!(ours, theirs);
        assert_eq!(summary.doubts.len(), 0, "{:?}", summary.doubts);

        let after = cluster.main_forks(&cluster.data);
        let compared = nothing_is_missing(&cluster, &before, &after, &summary);
        assert!(compared > 500, "{compared} blocks differ");
    }
}

/// So much log the long comparison makes: `DR_TEST_LONG=1`.
const LONG_BYTES: u64 = 2 << 30;
const ROUNDS_MAX: usize = 60;
/// Many rows at once, and many pages by themselves.
const BULK: &str = "CREATE TABLE bulk (id bigint PRIMARY KEY, a int, note text);
INSERT INTO bulk SELECT g, g % 1000, repeat(md5(g::text), 3) FROM generate_series(1, 120000) g;
CREATE INDEX ON bulk (a);
CHECKPOINT;
UPDATE bulk SET a = a + 1 WHERE id % 50 = 0;
DELETE FROM bulk WHERE id % 9 = 0;
VACUUM (FREEZE, TRUNCATE) bulk;
CREATE INDEX ON bulk USING gin (to_tsvector('simple', note)) WHERE id < 20000;
VACUUM FULL bulk;
TRUNCATE bulk;
INSERT INTO bulk SELECT g, g % 1000, 'again' FROM generate_series(1, 50000) g;
";

/// Record by record, over gigabytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gigabytes_of_mixed_log_are_what_waldump_says() {
    if std::env::var("DR_TEST_LONG").as_deref() != Ok("1") {
        return;
    }
    let major = Cluster::major();
    let cluster = Cluster::new();
    let settings = [("max_wal_size", "1GB"), ("checkpoint_timeout", "1min")];
    let server = cluster.start(&settings);
    // Before what is read: of a database that the log makes, no block is looked at.
    for round in 0..ROUNDS_MAX {
        run(&server, &format!("CREATE DATABASE round{round};")).await;
    }
    server.stop(StopMode::Fast).unwrap();
    let before = cluster.main_forks(&cluster.data);
    let segments = cluster.segments();
    let end = read(&segments, &mut |_| {});
    let begin = usize::try_from(end.0 - start_of(&segments[0]).0).unwrap() / SEGMENT_BYTES;

    let server = cluster.start(&settings);
    let mut rounds = 0;
    loop {
        assert!(rounds < ROUNDS_MAX, "the rounds are too short");
        let database = format!("round{rounds}");
        // What is one for the whole cluster can be made once.
        let mixed = include_str!("mixed.sql").replace("'elsewhere'", &format!("'{database}'"));
        run_in(&server, &database, &mixed).await;
        run_in(&server, &database, BULK).await;
        let drop = format!("SELECT pg_replication_origin_drop('{database}');");
        run(&server, &drop).await;
        rounds += 1;
        let now = run(&server, "SELECT pg_current_wal_lsn()::text;").await;
        if now[0].parse::<Lsn>().unwrap().0 - end.0 > LONG_BYTES {
            break;
        }
        if rounds % 3 == 0 {
            run(&server, &format!("DROP DATABASE {database};")).await;
        }
    }
    run(&server, databases(major)).await;
    server.stop(StopMode::Fast).unwrap();

    let segments = cluster.segments();
    let mut theirs = Command::new(Cluster::bin().join("pg_waldump"))
        .arg("-p")
        .arg(cluster.data.join("pg_wal"))
        .arg("--start")
        .arg(start_of(&segments[begin]).to_string())
        .env("TZ", "UTC")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(theirs.stdout.take().unwrap()).lines();
    let (mut records, mut ends, mut summary) = (0_u64, 0_u64, Summary::default());
    let last = read(&segments[begin..], &mut |record| {
        let line = lines.next().expect("pg_waldump ended before").unwrap();
        assert_eq!(told_by_us(record), told_by_waldump(&line));
        let ended = Ended::of(record, major).unwrap();
        let ended = ended.map(|it| (it.xid, it.outcome, it.at, it.subtransactions));
        assert_eq!(ended, ended_by_waldump(&line), "{line}");
        ends += u64::from(ended.is_some());
        records += 1;
        if record.lsn >= end {
            summary.add(record, major).unwrap();
        }
    });
    assert!(lines.next().is_none(), "pg_waldump goes on behind {last}");
    theirs.wait().unwrap();
    assert_eq!(summary.doubts.len(), 0, "{:?}", summary.doubts);
    let after = cluster.main_forks(&cluster.data);
    let compared = nothing_is_missing(&cluster, &before, &after, &summary);
    let bytes = last.0 - end.0;
    assert!(
        bytes > LONG_BYTES && compared > 10_000,
        "{bytes}, {compared}"
    );
    #[allow(clippy::print_stderr, reason = "what was compared is the point of it")]
    {
        eprintln!(
            "version {major}: {bytes} bytes, {rounds} rounds, {records} records, {ends} transactions, {compared} changed blocks"
        );
    }
}

/// Databases are made in two ways since version 15, and in one before.
fn databases(major: u32) -> &'static str {
    match major {
        ..=14 => "CREATE DATABASE another;\nCREATE DATABASE third;\nDROP DATABASE third;",
        _ => {
            "CREATE DATABASE another STRATEGY wal_log;\n\
             CREATE DATABASE third STRATEGY file_copy;\nDROP DATABASE third;"
        }
    }
}

/// Every block that differs between two times at rest is in the summary of what was written in between.
fn nothing_is_missing(
    cluster: &Cluster,
    before: &BTreeMap<Relation, Vec<u8>>,
    after: &BTreeMap<Relation, Vec<u8>>,
    summary: &Summary,
) -> usize {
    let mut different = 0;
    for (relation, now) in after {
        let init = cluster
            .data
            .join(format!("base/{}/{}_init", relation.database, relation.file));
        let is_copied = summary
            .databases
            .contains(&(relation.tablespace, relation.database));
        if init.exists() || is_copied {
            continue;
        }
        let then = before.get(relation);
        let told = summary.forks.get(&(*relation, Fork::Main));
        for (number, block) in (0u32..).zip(now.chunks(PAGE_BYTES)) {
            let offset = number as usize * PAGE_BYTES;
            let was = then.and_then(|then| then.get(offset..offset + PAGE_BYTES));
            // A page of zeros is made by making the file longer, which nobody logs.
            if was == Some(block) || block.iter().all(|byte| *byte == 0) {
                continue;
            }
            different += 1;
            let known = told.is_some_and(|told| {
                told.blocks.contains(&number) || told.new_from.is_some_and(|from| from <= number)
            });
            assert!(
                known,
                "block {number} of {relation} changed and is in no record"
            );
        }
    }
    different
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_counted_for_the_transaction_that_kept_them() {
    let major = Cluster::major();
    let cluster = Cluster::new();
    let server = cluster.start(&[]);
    run(
        &server,
        "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 1000);",
    )
    .await;
    let from = run(&server, "SELECT pg_current_wal_lsn()::text;").await;
    let file: u32 = run(&server, "SELECT pg_relation_filenode('t')::text;").await[0]
        .parse()
        .unwrap();
    run(&server, "BEGIN;\nINSERT INTO t SELECT generate_series(1, 300);\nSAVEPOINT a;\nDELETE FROM t;\nROLLBACK TO a;\n\
        SAVEPOINT b;\nUPDATE t SET id = 0 WHERE id <= 10;\nRELEASE b;\nDELETE FROM t WHERE id > 990;\nCOMMIT;").await;
    run(&server, "BEGIN;\nDELETE FROM t;\nROLLBACK;").await;
    server.stop(StopMode::Fast).unwrap();

    let from: Lsn = from[0].parse().unwrap();
    let mut summary = Summary::default();
    read(&cluster.segments(), &mut |record| {
        if record.lsn >= from {
            summary.add(record, major).unwrap();
        }
    });
    let of_t: Vec<_> = summary
        .transactions
        .iter()
        .filter_map(|transaction| {
            let changed = transaction
                .changes
                .iter()
                .find(|(relation, _)| relation.file == file);
            changed.map(|(_, change)| (transaction.ended.outcome, *change))
        })
        .collect();
    // Of 1,300 rows twenty had an id of at most ten, and ten one above 990.
    let kept = Change {
        inserted: 300,
        updated: 20,
        deleted: 10,
    };
    assert_eq!(of_t, [(Outcome::Committed, kept)]);
    let aborted = summary
        .transactions
        .iter()
        .filter(|one| one.ended.outcome == Outcome::Aborted);
    assert!(aborted.count() >= 2, "the savepoint and the transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_followed_from_place_to_place_with_what_they_hold() {
    for compression in ["off", "on"] {
        let cluster = Cluster::new();
        let server = cluster.start(&[("wal_compression", compression)]);
        run(&server, include_str!("rows.sql")).await;
        let tables = [
            ("behind", Layout::new([(4, 4), (4, 4), (-1, 4), (1, 1)]), 1),
            (
                "before",
                Layout::new([(-1, 4), (1, 1), (2, 2), (4, 4), (-1, 4)]),
                3,
            ),
        ];
        let mut expected = Vec::new();
        for (table, ..) in &tables {
            let ask = format!("SELECT pg_relation_filenode('{table}')::text;");
            let file: u32 = run(&server, &ask).await[0].parse().unwrap();
            let ask = format!("SELECT ctid::text || ' ' || tenant::text FROM {table};");
            let mut rows = run(&server, &ask).await;
            rows.sort();
            expected.push((file, rows));
        }
        server.stop(StopMode::Fast).unwrap();

        let mut rows: [HashMap<RowPlace, i32>; 2] = Default::default();
        let (mut in_images, mut running) = (0, 0);
        read(&cluster.segments(), &mut |record| {
            running += usize::from(Running::of(record).unwrap().is_some());
            let has_image = record.blocks.first().is_some_and(|block| block.has_image);
            row_changes(record, &mut |relation, change| {
                let Some(at) = expected.iter().position(|(file, _)| *file == relation.file) else {
                    return;
                };
                let (_, layout, column) = &tables[at];
                let tuple = change.written().map(|it| it.tuple(PAGE_BYTES).unwrap());
                in_images += usize::from(has_image && tuple.is_some());
                let value = tuple.as_ref().map(|tuple| layout.value(tuple, *column));
                let told = match value {
                    Some(Value::Bytes(bytes)) => {
                        Some(i32::from_le_bytes(bytes.try_into().unwrap()))
                    }
                    Some(Value::Null) => panic!("no tenant at {}", record.lsn),
                    _ => None,
                };
                let rows = &mut rows[at];
                let former = match change {
                    RowChange::Inserted { at, .. } => rows.insert(at, told.unwrap()),
                    RowChange::Updated { from, to, .. } => {
                        let mut former = rows.remove(&from).unwrap().to_le_bytes();
                        if let Some(Value::Changed { at, bytes }) = value {
                            former[at..at + bytes.len()].copy_from_slice(bytes);
                        }
                        rows.insert(to, told.unwrap_or(i32::from_le_bytes(former)))
                    }
                    RowChange::Deleted { at, .. } => {
                        rows.remove(&at).unwrap();
                        None
                    }
                };
                assert_eq!(former, None, "a place in use is used at {}", record.lsn);
            })
            .unwrap();
        });
        for ((_, expected), found) in expected.iter().zip(&rows) {
            let mut found: Vec<String> = found
                .iter()
                .map(|(place, tenant)| format!("({},{}) {tenant}", place.block, place.line))
                .collect();
            found.sort();
            let is_wrong = |row: &&String| expected.binary_search(row).is_err();
            let wrong: Vec<_> = found.iter().filter(is_wrong).take(5).collect();
            assert!(wrong.is_empty(), "compression {compression}: {wrong:?}");
            assert_eq!(found.len(), expected.len());
        }
        assert!(in_images > 50, "{in_images} rows were read from images");
        assert!(running > 2, "{running} lists of running transactions");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_relation_was_cut_is_told_though_no_block_is_named() {
    let major = Cluster::major();
    let cluster = Cluster::new();
    let server = cluster.start(&[]);
    run(
        &server,
        "CREATE TABLE t (id int, note text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 2000) g;",
    )
    .await;
    let from: Lsn = run(&server, "SELECT pg_current_wal_lsn()::text;").await[0]
        .parse()
        .unwrap();
    run(
        &server,
        "DELETE FROM t WHERE id > 300;\nVACUUM (TRUNCATE) t;",
    )
    .await;
    let ask =
        "SELECT pg_relation_filenode('t')::text || ' ' || (pg_relation_size('t') / 8192)::text;";
    let answer = run(&server, ask).await;
    let (file, pages) = answer[0].split_once(' ').unwrap();
    server.stop(StopMode::Fast).unwrap();

    let mut summary = Summary::default();
    read(&cluster.segments(), &mut |record| {
        if record.lsn >= from {
            summary.add(record, major).unwrap();
        }
    });
    let of_t = summary
        .forks
        .iter()
        .find(|((relation, fork), _)| relation.file.to_string() == file && *fork == Fork::Main);
    let cut: u32 = pages.parse().unwrap();
    assert!(cut < 40, "{cut} pages are left");
    assert_eq!(of_t.unwrap().1.new_from, Some(cut));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_flipped_byte_of_a_record_is_noticed() {
    let cluster = Cluster::new();
    let server = cluster.start(&[]);
    run(
        &server,
        "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 200);",
    )
    .await;
    server.stop(StopMode::Fast).unwrap();
    let segments = cluster.segments();
    let mut records = Vec::new();
    read(&segments, &mut |record| {
        records.push((record.lsn, record.length));
    });
    let (lsn, length) = *records
        .iter()
        .rev()
        .find(|(_, length)| *length > 50)
        .unwrap();
    let place = usize::try_from(lsn.0).unwrap() % SEGMENT_BYTES;
    let segment = segments
        .iter()
        .find(|path| {
            SegmentHeader::parse(&fs::read(path).unwrap())
                .unwrap()
                .start
                .0
                == lsn.0 - place as u64
        })
        .unwrap();
    let good = fs::read(segment).unwrap();
    let in_page = (PAGE_BYTES - place % PAGE_BYTES).min(length as usize);
    for offset in place..place + in_page {
        let mut bad = good.clone();
        bad[offset] ^= 0x10;
        let mut reader = Reader::new(&SegmentHeader::parse(&bad).unwrap()).unwrap();
        let mut seen = false;
        let ended = bad.chunks(PAGE_BYTES).find_map(|page| {
            reader
                .page(page, &mut |record| seen |= record.lsn == lsn)
                .err()
        });
        assert!(
            !seen,
            "byte {} of the record is changed, and it is told",
            offset - place
        );
        assert!(ended.is_some());
    }
}

#[test]
fn what_is_no_segment_is_refused() {
    assert!(SegmentHeader::parse(&[0; 8192]).is_none());
    assert!(SegmentHeader::parse(b"short").is_none());
}

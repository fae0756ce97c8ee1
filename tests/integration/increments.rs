//! Base backups that read only what changed: what they restore to is the cluster, byte by byte; and
//! whenever the WAL does not prove what changed, everything is read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{Cluster, ERP, Options, Program, World, postgres_program, wait_until};

/// Nothing writes by itself: what the disk holds after a backup is what the backup read.
const QUIET: &str = "autovacuum = off\nbgwriter_lru_maxpages = 0\nmax_prepared_transactions = 5\n\
                     allow_in_place_tablespaces = on\ncheckpoint_timeout = 1h\nwal_keep_size = 4MB";

pub(crate) fn world(name: &'static str) -> World {
    World::protected(&Options {
        settings: QUIET,
        ..Options::new(name, &ERP)
    })
}

/// Backs up, and returns what was said.
#[track_caller]
fn back_up(world: &World) -> String {
    world.dr(&["backup", "run", "erp"]).ok().said()
}

#[track_caller]
pub(crate) fn reads_everything(world: &World, because: &str) {
    let said = back_up(world);
    let wanted = "Everything is read: ";
    assert!(said.contains(wanted) && said.contains(because), "{said}");
}

/// Backs up, and returns how many pages were read because they changed, and what was not read.
#[track_caller]
pub(crate) fn reads_changes(world: &World) -> (u64, String) {
    let said = back_up(world);
    let line = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Since rp-erp-"));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    let mut words = line.split_once(": ").unwrap().1.split(' ');
    let pages = words.next().unwrap().parse().unwrap();
    let spared = line.split_once("were read, ").unwrap().1;
    (pages, spared.split_once(" did").unwrap().0.to_owned())
}

/// Restores the newest restore point, as it was captured, without starting it: over what is there.
#[track_caller]
pub(crate) fn restored(world: &World, into: &str) -> PathBuf {
    let point = world.points("erp").pop().unwrap();
    let folder = world.path(into);
    let text = folder.display().to_string();
    let is_there = folder.exists();
    let over: &[&str] = if is_there { &["--delta"] } else { &[] };
    let words = ["restore", "erp", "--into", &text, "--to", &point];
    world.dr(&[&words, over].concat()).ok();
    folder
}

/// Folders that a server empties, or fills anew, when it starts.
pub(crate) const NOT_KEPT: [&str; 9] = [
    "pg_wal",
    "pg_replslot",
    "pg_stat",
    "pg_stat_tmp",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_dynshmem",
];
/// What a running server has and a restored folder has not, the other way round, and what a restore writes itself.
const NOT_COMPARED: [&str; 9] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "backup_manifest",
    "recovery.signal",
    "postgresql.auto.conf",
    "pg_internal.init",
];

/// Every file of a data directory that a base backup has, by path.
pub(crate) fn every_file(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![data.to_owned()];
    while let Some(folder) = open.pop() {
        let is_root = folder == data;
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            let node = name.split(['.', '_']).next().unwrap();
            // Of an unlogged relation there is what it begins with.
            let has_init = folder.join(format!("{node}_init")).exists();
            if path.is_dir() {
                if !(is_root && NOT_KEPT.contains(&name.as_str())) {
                    open.push(path);
                }
            } else if !NOT_COMPARED.contains(&name.as_str())
                && (!has_init || name.contains("_init"))
            {
                let inside = path.strip_prefix(data).unwrap().display().to_string();
                found.insert(inside, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[track_caller]
pub(crate) fn assert_same(world: &World, restored: &Path, when: &str) {
    let (live, back) = (every_file(&world.cluster.data), every_file(restored));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&live), names(&back), "{when}");
    for (path, content) in &live {
        let other = &back[path];
        let differ = content.chunks(8192).zip(other.chunks(8192)).enumerate();
        let differ: Vec<usize> = differ
            .filter(|(_, (a, b))| a != b)
            .map(|(n, _)| n)
            .collect();
        assert!(
            content.len() == other.len() && differ.is_empty(),
            "{when}: {path}: {} and {} bytes, pages that differ: {differ:?}",
            content.len(),
            other.len()
        );
    }
}

/// Restores the newest restore point with the independent reader.
fn read_by_another_program(world: &World, into: &Path) {
    let point = world.points("erp").pop().unwrap();
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/reader.py");
    let output = std::process::Command::new("/usr/bin/python3")
        .args([
            &reader,
            &world.path("repository"),
            &world.path("repository.key"),
        ])
        .args(["restore", &point])
        .arg(into)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// `amcheck`'s own program, over all tables and indexes of all databases.
#[track_caller]
pub(crate) fn pg_amcheck(cluster: &Cluster) {
    Program::new(&cluster.account, postgres_program("pg_amcheck"))
        .args([
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--parent-check",
            "-h",
            "127.0.0.1",
        ])
        .args(["-p", &cluster.port.to_string(), "-U", "postgres"])
        .run()
        .ok();
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn place(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }
}

/// Every way a relation's files change. `$N` is a number, `$M` another.
const CHANGES: [&str; 31] = [
    "update wide set note = 'n$N' where id % 997 = $N % 997",
    "update wide set note = repeat('m', 400) where id % 499 = $N % 499",
    "delete from wide where id % 701 = $N % 701",
    "insert into wide select coalesce(max(id), 0) + 1 + g, g, 'new $N' from wide, generate_series(0, $M) g group by g",
    "vacuum wide",
    "vacuum (freeze, truncate) wide",
    "delete from tail where id > $M; vacuum (truncate) tail; insert into tail select g, repeat('t', 90) from generate_series($M + 1, 4000) g",
    "delete from tail where id > $M / 2; vacuum (truncate) tail",
    "insert into tail select coalesce(max(id), 0) + 1, 'one' from tail",
    "truncate tail; insert into tail select g, 'again $N' from generate_series(1, 3000) g",
    "truncate tail",
    "begin; truncate tail; insert into tail values (1, 'gone'); rollback",
    "vacuum full wide",
    "cluster wide using wide_pkey",
    "reindex table wide",
    "drop index if exists by_note; create index by_note on wide (note)",
    "drop index if exists by_brin; create index by_brin on wide using brin (id)",
    "drop index if exists by_hash; create index by_hash on wide using hash (a)",
    "drop index if exists by_gist; create index by_gist on wide using gist (point(id, a))",
    "drop index if exists by_gin; create index by_gin on wide using gin (to_tsvector('simple', note))",
    "alter table wide add column if not exists c$M int default 7; alter table wide drop column c$M",
    "create table t$N as select * from wide limit $M; alter table t$N set tablespace aside",
    "do $$declare r record; begin for r in select relname from pg_class where relname ~ '^t[0-9]+$' limit 3 loop execute 'drop table ' || r.relname; end loop; end$$",
    "alter table wide set tablespace aside",
    "alter table wide set tablespace pg_default",
    "drop database if exists copied; create database copied template template0 strategy file_copy",
    "drop database if exists logged; create database logged template template0 strategy wal_log",
    "create unlogged table u$N (id int); insert into u$N select generate_series(1, $M); alter table u$N set logged; drop table u$N",
    "begin; update wide set a = a + 1 where id % 311 = 5; savepoint s; delete from wide where id % 13 = 3; rollback to s; commit",
    "begin; update wide set a = a - 1 where id % 211 = 5; prepare transaction 'p$N'; commit prepared 'p$N'",
    "select lo_from_bytea(0, repeat('large', $M * 50)::bytea), nextval('counter'); checkpoint",
];

#[test]
fn after_any_change_an_incremental_is_the_cluster_byte_by_byte() {
    let seed = std::env::var("DR_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(0x2545_F491_4F6C_DD1D);
    let mut random = Random(seed);
    let world = world("increment-bytes");
    let file = world.path("statements.sql");
    // Before version 15 there is one way, by files.
    let version: u32 = world
        .cluster
        .value("show server_version_num")
        .parse()
        .unwrap();
    let known = |statement: &str| match version {
        ..150_000 => statement
            .replace("strategy file_copy", "")
            .replace("strategy wal_log", ""),
        _ => statement.to_owned(),
    };
    let sql = |statement: &str| {
        // From a file: there each statement is by itself, and may begin and end transactions.
        fs::write(&file, format!("{};\n", known(statement))).unwrap();
        world
            .cluster
            .psql_program()
            .args(["-f".as_ref(), file.as_os_str()])
            .run()
            .ok();
    };
    sql("create tablespace aside location ''");
    sql("create sequence counter; create table wide (id bigint primary key, a int, note text)");
    sql("create table tail (id int, note text)");
    sql("insert into wide select g, g, repeat('x', 200) from generate_series(1, 30000) g");
    sql("insert into tail select g, repeat('t', 90) from generate_series(1, 4000) g");
    // Each change once, in any order; in the long variant more of them, at random.
    let mut waiting: Vec<&str> = CHANGES.to_vec();
    for place in (1..waiting.len()).rev() {
        waiting.swap(place, random.place(place + 1));
    }
    let more = if crate::harness::long() { 150 } else { 0 };
    let extra = (0..more).map(|_| CHANGES[random.place(CHANGES.len())]);
    waiting.extend(extra.collect::<Vec<_>>());
    let (mut pages, mut unread, mut rounds) = (0, 0, 0);
    for changes in waiting.chunks(3) {
        let mut done = Vec::new();
        for change in changes {
            let statement = change
                .replace("$N", &random.below(100_000).to_string())
                .replace("$M", &(1 + random.below(3000)).to_string());
            sql(&statement);
            done.push(statement);
        }
        rounds += 1;
        let (read, spared) = reads_changes(&world);
        pages += read;
        unread += u32::from(spared.contains("MiB"));
        // Anew, and over what the round before left.
        for into in ["restored", "over"] {
            let folder = restored(&world, into);
            let when = format!("seed {seed}, round {rounds}, {into}: {done:#?}");
            assert_same(&world, &folder, &when);
            world.pg_verifybackup(&folder);
        }
        fs::remove_dir_all(world.path("restored")).unwrap();
    }
    // Who has the document and not this program.
    let folder = world.path("by-another-program");
    fs::create_dir(&folder).unwrap();
    read_by_another_program(&world, &folder);
    assert_same(&world, &folder.join("data"), "restored by another program");
    assert!(
        pages > 100 && unread == rounds,
        "{pages} pages, {unread} of {rounds} rounds"
    );
    // Within the data directory it is for tests; a scratch server knows nothing of it.
    sql("alter table wide set tablespace pg_default");
    sql(
        "do $$declare r record; begin for r in select relname from pg_class where relname ~ '^t[0-9]+$' \
         loop execute 'drop table ' || r.relname; end loop; end$$",
    );
    sql("drop tablespace aside");
    reads_changes(&world);
    world.cluster.switch_and_wait();
    let started = world.restore_started("started", "latest");
    pg_amcheck(&started);
    started.stop("fast");
    let proofs = world.ask(&["backup", "verify"]);
    for proof in proofs.list("") {
        assert_eq!(proof.at("/passed").0, true, "{proof:?}");
    }
    world.dr(&["repo", "check", "--read"]).ok();
}

/// Pages of the earlier backup may be older than its end: what was written while it was taken counts.
#[test]
fn what_changed_while_the_earlier_backup_was_taken_is_read_again() {
    let world = world("increment-meanwhile");
    let cluster = &world.cluster;
    cluster.psql(
        "create table busy (id int primary key, a int, note text); \
         insert into busy select g, 0, md5(g::text) || md5((g + 1)::text) from generate_series(1, 300000) g",
    );
    cluster.psql("vacuum busy");
    // Slow, so that there is time to change what was read already and what was not.
    let tier = world.path("tier-configs/gold.yaml");
    let text = fs::read_to_string(&tier).unwrap();
    fs::write(&tier, format!("{text}compression: 19\n")).unwrap();
    let mut backup = world
        .program(&["backup", "run", "erp", "--full"])
        .spawn(&world.path("logs/backup.log"));
    // What it asks last before it reads, once backup mode is on.
    let begun = "select count(*) from pg_stat_activity where state = 'idle' \
                 and query like 'select timeline_id from pg_control_checkpoint%'";
    wait_until("the backup to begin", Duration::from_secs(60), || {
        (cluster.value(begun) != "0").then_some(())
    });
    // A tenth of the pages, here and there.
    for number in 0..60 {
        let first = number * 5000;
        cluster.psql(&format!(
            "update busy set a = a + 1 where id between {first} and {}",
            first + 400
        ));
    }
    let written = cluster.value("select pg_current_wal_insert_lsn()");
    assert!(backup.wait().unwrap().success());
    let listed = world.ask(&["backup", "list", "erp"]);
    let stop = listed
        .list("")
        .last()
        .unwrap()
        .text("/point/position/stop_lsn");
    let is_before = format!("select '{written}'::pg_lsn < '{stop}'::pg_lsn");
    assert_eq!(cluster.value(&is_before), "t", "the writes came too late");

    let (pages, _) = reads_changes(&world);
    assert!(pages > 100, "{pages} pages");
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after writes during the earlier backup");
}

#[test]
fn everything_is_read_when_that_is_wanted() {
    let world = world("increment-wanted");
    reads_changes(&world);
    let said = world.dr(&["backup", "run", "erp", "--full"]).ok().said();
    assert!(
        !said.contains("Everything is read"),
        "it was asked for: {said}"
    );
    assert!(!said.contains("were not read"), "{said}");
    reads_changes(&world);
    world.edit_configuration(
        "data_directory: data }",
        "data_directory: data, full_read_every: 1ms }",
    );
    reads_everything(&world, "everything was last read on ");
    world.edit_configuration("full_read_every: 1ms", "full_read_every: 0s");
    let said = back_up(&world);
    assert!(!said.contains("were not read"), "{said}");
}

#[test]
fn what_the_wal_does_not_prove_is_read() {
    let world = world("increment-doubt");
    let cluster = &world.cluster;
    // Checksums are written into every page without a word in the WAL.
    cluster.stop("fast");
    let checksums = |what: &str| {
        Program::new(&world.account, postgres_program("pg_checksums"))
            .args([what, "--no-sync", "-D"])
            .args([&cluster.data])
            .run()
            .ok();
    };
    checksums("--disable");
    cluster.start();
    reads_everything(&world, "page checksums were switched");
    reads_changes(&world);

    // A change of what the WAL tells.
    cluster.psql("alter system set max_connections = 41");
    cluster.stop("fast");
    cluster.start();
    reads_everything(&world, "wal_level was minimal, or may have been");
    reads_changes(&world);

    // WAL that nobody has any more.
    cluster.psql("create table more (id int); insert into more select generate_series(1, 100000)");
    let gone = cluster.switch_and_wait();
    cluster.psql("insert into more select generate_series(1, 1000)");
    let next = cluster.switch_and_wait();
    cluster.psql("alter system set wal_keep_size = 0");
    cluster.stop("fast");
    for name in [&gone, &next] {
        let _ = fs::remove_file(cluster.data.join("pg_wal").join(name));
        let stored = world.path("repository/wal/erp/00000001").join(name);
        fs::remove_file(stored).unwrap();
    }
    cluster.start();
    reads_everything(&world, "is neither with the server nor in the repository");
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after a gap");
}

#[test]
fn a_promoted_server_is_on_a_new_timeline_before_its_first_checkpoint_there() {
    let world = world("increment-promoted");
    let cluster = &world.cluster;
    cluster
        .psql("create table dirty (id int); insert into dirty select generate_series(1, 300000)");
    reads_changes(&world);
    // Much to write for that checkpoint, which takes its time over it.
    cluster.psql("update dirty set id = id + 1 where id % 3 = 0");
    cluster.stop("immediate");
    fs::write(cluster.data.join("standby.signal"), "").unwrap();
    world.account.own(&cluster.data.join("standby.signal"));
    cluster.start();
    assert_eq!(cluster.value("select pg_promote()"), "t");
    cluster.psql(
        "create table elsewhere (id int); insert into elsewhere select generate_series(1, 9999)",
    );
    let checkpoint = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(
        cluster.value(checkpoint),
        "1",
        "the server has had its checkpoint"
    );
    reads_everything(&world, "is of timeline 1, the server is on 2");
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after a promotion");
    reads_changes(&world);
}

#[test]
fn a_cluster_that_went_back_is_not_taken_for_what_it_was() {
    let world = world("increment-back");
    let cluster = &world.cluster;
    cluster.psql(
        "create table line (id int, note text); \
                  insert into line select g, 'both' from generate_series(1, 2000) g",
    );
    back_up(&world);
    cluster.stop("fast");
    let (data, older) = (cluster.data.display().to_string(), world.path("older"));
    Program::new(&world.account, "/bin/cp")
        .args(["-a", &data, &older.display().to_string()])
        .run()
        .ok();
    cluster.start();
    cluster.psql("update line set note = 'lost' where id % 50 = 0");
    reads_changes(&world);
    cluster.stop("immediate");
    fs::remove_dir_all(&cluster.data).unwrap();
    fs::rename(&older, &cluster.data).unwrap();
    cluster.start();
    // The same positions again, with other content; the repository keeps what it has.
    cluster.psql("update line set note = 'other' where id % 70 = 0");
    let end = world.points("erp").pop().unwrap();
    let listed = world.ask(&["backup", "list", "erp"]);
    let stop = listed
        .list("")
        .last()
        .unwrap()
        .text("/point/position/stop_lsn");
    assert_eq!(listed.list("").last().unwrap().text("/point/id"), end);
    while cluster.value(&format!("select pg_current_wal_lsn() <= '{stop}'::pg_lsn")) == "t" {
        cluster.psql("select pg_switch_wal()");
        cluster.psql("insert into line values (0, 'more')");
    }
    cluster.psql("select pg_switch_wal()");
    reads_everything(
        &world,
        "of the server is not the one that the last backup stored",
    );
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after going back");
}

#[test]
fn chunks_that_are_lost_are_read_again() {
    let world = world("increment-lost");
    reads_changes(&world);
    fs::remove_dir_all(world.path("repository/data/erp")).unwrap();
    fs::create_dir(world.path("repository/data/erp")).unwrap();
    world.account.own(&world.path("repository/data/erp"));
    // The listing of the last point is gone as well: there is nothing to build on.
    reads_everything(&world, "is missing in ");
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after the loss of all data");
}

#[test]
fn a_page_that_rots_where_nothing_changed_is_kept_as_it_was_and_found_by_the_next_full_read() {
    let world = world("increment-rot");
    let cluster = &world.cluster;
    cluster.psql("create table still (id int); insert into still select generate_series(1, 5000)");
    back_up(&world);
    let path = cluster.value("select pg_relation_filepath('still')");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(cluster.data.join(&path))
        .unwrap();
    let good = fs::read(cluster.data.join(&path)).unwrap();
    file.write_all_at(&[0x55; 100], 3 * 8192 + 4000).unwrap();
    reads_changes(&world);
    let folder = restored(&world, "restored");
    assert!(
        fs::read(folder.join(&path)).unwrap() == good,
        "the good page is kept"
    );
    let output = world.dr(&["backup", "run", "erp", "--full"]);
    output.says(&[
        "WARNING: damaged in the source: page 3 of table public.still",
        &path,
    ]);
    // What holds a damaged page is nothing to build on.
    file.write_all_at(&good[3 * 8192 + 4000..][..100], 3 * 8192 + 4000)
        .unwrap();
    reads_everything(&world, "holds damaged pages");
}

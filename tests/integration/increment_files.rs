//! What the WAL does not name page by page, and what it names in other ways: an incremental has all of it as the
//! source had it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::harness::{Cluster, ERP, Options, Program, World, postgres_program};
use crate::increments::{
    NOT_KEPT, assert_same, every_file, pg_amcheck, reads_changes, reads_everything, restored, world,
};

/// As there, and each commit's time is noted in a folder of its own.
const QUIET_AND_TIMES: &str = "autovacuum = off\nbgwriter_lru_maxpages = 0\n\
    max_prepared_transactions = 5\ncheckpoint_timeout = 1h\nwal_keep_size = 4MB\n\
    track_commit_timestamp = on";

/// Which kind of file it is, of those that are always read whole.
fn kind(path: &str) -> Option<&'static str> {
    let kinds = [
        ("_vm", "visibility map"),
        ("_fsm", "free space map"),
        ("_init", "init fork"),
        ("pg_filenode.map", "map of files"),
    ];
    let folders = [
        ("pg_xact/", "state of transactions"),
        ("pg_multixact/offsets/", "offsets of multixacts"),
        ("pg_multixact/members/", "members of multixacts"),
        ("pg_commit_ts/", "times of commits"),
        ("pg_twophase/", "prepared transactions"),
    ];
    let by_end = kinds.iter().find(|(end, _)| path.ends_with(end));
    let by_folder = || folders.iter().find(|(folder, _)| path.starts_with(folder));
    by_end.or_else(by_folder).map(|(_, kind)| *kind)
}

#[test]
fn maps_and_all_that_is_no_relation_are_what_the_source_had() {
    let world = World::protected(&Options {
        settings: QUIET_AND_TIMES,
        ..Options::new("increment-maps", &ERP)
    });
    let cluster = &world.cluster;
    let sql = |text: &str| cluster.psql(text);
    sql("create table seen (id int primary key, note text)");
    sql("insert into seen select g, repeat('s', 200) from generate_series(1, 20000) g");
    sql("create table holes (id int, note text)");
    sql("insert into holes select g, repeat('h', 200) from generate_series(1, 20000) g");
    sql("create unlogged table fleeting (id int primary key)");
    sql("vacuum (freeze) seen");
    sql("vacuum (freeze) holes");
    let all_visible = "select relallvisible = relpages from pg_class where relname = 'seen'";
    assert_eq!(cluster.value(all_visible), "t");
    let file = |name: &str| cluster.value(&format!("select pg_relation_filepath('{name}')"));
    let (seen, holes) = (file("seen") + "_vm", file("holes") + "_fsm");
    reads_changes(&world);
    let folder = restored(&world, "before");
    let before = every_file(&folder);
    assert_same(&world, &folder, "before any change");

    // Here and there a page that all could see becomes one that they cannot: no page of the map is named for it,
    // nor the first page of the table, where there is no room for any of this.
    sql("update seen set note = repeat('c', 400) where id % 500 = 0");
    sql("delete from seen where id between 5000 and 5200");
    sql("delete from holes where id % 3 = 0 or id > 15000");
    sql("vacuum holes");
    sql("create unlogged table another (id int primary key)");
    sql(
        "begin; select from seen where id = 10007 for share; savepoint s; \
         update seen set note = repeat('m', 400) where id = 10007; commit",
    );
    // Of mapped relations only the map says which files are theirs.
    sql("vacuum full pg_class");
    sql("vacuum full pg_database");
    sql("begin; insert into seen values (100001, repeat('p', 400)); prepare transaction 'kept'");
    let (pages, spared) = reads_changes(&world);
    assert!(
        pages > 40 && spared.contains("MiB"),
        "{pages} pages, {spared}"
    );
    let live = every_file(&cluster.data);
    let changed = |path: &&String| before.get(*path) != live.get(*path);
    let kinds: BTreeSet<_> = live
        .keys()
        .filter(changed)
        .filter_map(|path| kind(path))
        .collect();
    let all = [
        "free space map",
        "init fork",
        "map of files",
        "members of multixacts",
        "offsets of multixacts",
        "prepared transactions",
        "state of transactions",
        "times of commits",
        "visibility map",
    ];
    assert_eq!(kinds, BTreeSet::from(all), "of these something changed");
    for path in [seen.as_str(), &holes, "global/pg_filenode.map"] {
        assert!(before[path] != live[path], "{path}");
    }
    // Anew, and over what the earlier one was restored to.
    for into in ["after", "before"] {
        let folder = restored(&world, into);
        assert_same(&world, &folder, into);
        world.pg_verifybackup(&folder);
    }

    let point = world.points("erp").pop().unwrap();
    let started = world.restore_started("started", &point);
    started.psql("create extension pg_visibility");
    for wrong in [
        "select count(*) from pg_check_visible('seen')",
        "select count(*) from pg_check_frozen('seen')",
        "select count(*) from pg_check_visible('holes')",
        "select count(*) from pg_check_frozen('holes')",
    ] {
        assert_eq!(started.value(wrong), "0", "{wrong}");
    }
    // An index alone answers for pages that the map calls visible to all.
    let counted = "set enable_seqscan = off; set enable_bitmapscan = off; \
                   select count(*) from seen where id > 0";
    assert_eq!(started.value(counted), "19799");
    started.psql("commit prepared 'kept'");
    assert_eq!(started.value(counted), "19800");
    let note = "select note from seen where id = 10007";
    assert_eq!(started.value(note), "m".repeat(400));
    pg_amcheck(&started);
    started.stop("fast");
    cluster.psql("rollback prepared 'kept'");
}

/// The same cluster, in another database.
fn within(cluster: &Cluster, database: &str) -> Cluster {
    Cluster {
        database: database.to_owned(),
        ..cluster.clone()
    }
}

/// A database is copied file by file, and the WAL names none of them.
#[test]
fn a_database_that_is_moved_is_read_anew() {
    let world = world("increment-moved");
    let cluster = &world.cluster;
    cluster.psql("create tablespace aside location ''");
    for name in ["moved", "returned"] {
        cluster.psql(&format!("create database {name}"));
        let inside = within(cluster, name);
        inside.psql("create table kept (id int primary key, a int, note text)");
        inside.psql(
            "insert into kept select g, 0, repeat('k', 200) from generate_series(1, 20000) g",
        );
        inside.psql("vacuum kept");
    }
    reads_changes(&world);
    for name in ["moved", "returned"] {
        cluster.psql(&format!("alter database {name} set tablespace aside"));
        // In its new place, and of the one that returns under names that are then not its own.
        within(cluster, name).psql("update kept set a = a + 1 where id % 100 = 0");
    }
    cluster.psql("alter database returned set tablespace pg_default");
    let (_, spared) = reads_changes(&world);
    assert!(spared.contains("MiB"), "all was read: {spared}");
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after both moves");
    world.pg_verifybackup(&folder);
    // Moved where files of the same names were in the last backup.
    cluster.psql("alter database moved set tablespace pg_default");
    within(cluster, "moved").psql("update kept set a = a + 1 where id % 77 = 0");
    reads_changes(&world);
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after it came back");
    world.pg_verifybackup(&folder);
}

#[test]
fn a_time_without_the_wal_that_a_backup_needs_ends_what_is_known() {
    let world = world("increment-minimal");
    let cluster = &world.cluster;
    cluster.psql("create table line (id int primary key, note text)");
    cluster.psql("insert into line select g, repeat('l', 100) from generate_series(1, 20000) g");
    reads_changes(&world);
    let restart_with = |settings: &[(&str, &str)]| {
        for (name, value) in settings {
            cluster.psql(&format!("alter system set {name} = {value}"));
        }
        cluster.stop("fast");
        cluster.start();
    };
    restart_with(&[
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("archive_mode", "off"),
    ]);
    assert_eq!(cluster.value("show wal_level"), "minimal");
    // What is written into a table that is of this transaction is in no WAL.
    cluster.psql(
        "begin; truncate line; insert into line select g, repeat('m', 100) from generate_series(1, 20000) g; \
         create table bulk as select generate_series(1, 50000) as n; commit",
    );
    let output = world.dr(&["backup", "run", "erp"]);
    assert_eq!(output.code, Some(1), "a backup without WAL: {output}");
    restart_with(&[
        ("wal_level", "default"),
        ("max_wal_senders", "default"),
        ("archive_mode", "default"),
    ]);
    assert_eq!(cluster.value("show wal_level"), "replica");
    assert_eq!(cluster.value("show archive_mode"), "on");
    reads_everything(&world, "wal_level was minimal, or may have been");
    let folder = restored(&world, "restored");
    assert_same(&world, &folder, "after a time without WAL");
    world.pg_verifybackup(&folder);
    let point = world.points("erp").pop().unwrap();
    let started = world.restore_started("started", &point);
    let sum =
        "select (select count(*) from bulk), count(*), min(note) = repeat('m', 100) from line";
    assert_eq!(started.value(sum), "50000|20000|t");
    pg_amcheck(&started);
    started.stop("fast");
    reads_changes(&world);
}

/// `pg_verifybackup` compares what it is given with the sums of a manifest: here with those that came with a
/// restore, and what it is given is the source.
#[track_caller]
fn assert_sums_of(world: &World, restored: &Path) {
    let source = &world.cluster.data;
    let mut ignored: Vec<String> = ["backup_label", "postmaster.pid", "postmaster.opts"]
        .map(str::to_owned)
        .to_vec();
    let mut open = vec![source.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let inside = path.strip_prefix(source).unwrap().display().to_string();
            if NOT_KEPT.contains(&inside.as_str()) || inside.ends_with("pg_internal.init") {
                ignored.push(inside);
            } else if path.is_dir() {
                open.push(path);
            }
        }
    }
    let ignored = ignored.iter().flat_map(|path| ["-i", path.as_str()]);
    Program::new(&world.account, postgres_program("pg_verifybackup"))
        .args(["-n", "-m"])
        .args([restored.join("backup_manifest")])
        .args(ignored)
        .args([source])
        .run()
        .ok();
}

#[test]
fn the_sums_of_a_manifest_are_those_of_the_source() {
    let world = world("increment-sums");
    let cluster = &world.cluster;
    let before = world.points("erp").pop().unwrap();
    let over = world.path("over");
    let text = over.display().to_string();
    world
        .dr(&["restore", "erp", "--into", &text, "--to", &before])
        .ok();
    cluster.psql("create table wide (id int primary key, note text)");
    let path = cluster.value("select pg_relation_filepath('wide')");
    cluster.psql("insert into wide select g, repeat('w', 200) from generate_series(1, 30000) g");
    cluster.psql("vacuum wide");
    reads_changes(&world);
    restored(&world, "anew");
    for round in 0..2 {
        cluster.psql(&format!(
            "update wide set note = 'n' where id % 997 = {round}; \
             delete from wide where id > 29000 - {round} * 1000"
        ));
        cluster.psql("vacuum (truncate) wide");
        let (pages, spared) = reads_changes(&world);
        assert!(
            pages > 20 && spared.contains("MiB"),
            "{pages} pages, {spared}"
        );
    }
    // Nothing is asked of the server from here on: what its files hold is what was captured.
    let fresh = restored(&world, "fresh");
    for folder in [&fresh, &restored(&world, "anew"), &restored(&world, "over")] {
        let manifest = fs::read_to_string(folder.join("backup_manifest")).unwrap();
        for named in [&path, "global/pg_control", "pg_xact/0000"] {
            assert!(manifest.contains(&format!("\"{named}\"")), "{named}");
        }
        world.pg_verifybackup(folder);
        assert_sums_of(&world, folder);
    }
    // The judge sees one byte: of a page that was read last, and of one that was taken over.
    for at in [8192_usize + 3000, 100 * 8192 + 3000] {
        let file = fresh.join(&path);
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).unwrap();
        let judged = Program::new(&world.account, postgres_program("pg_verifybackup"))
            .args(["-n".as_ref(), fresh.as_os_str()])
            .run();
        assert_eq!(judged.code, Some(1), "{judged}");
        judged.says(&["checksum mismatch", &path]);
        fs::write(&file, good).unwrap();
    }
}

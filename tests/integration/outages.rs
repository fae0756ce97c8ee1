//! The repository is away or full, and what a cluster has outside of its rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{ERP, Options, Output, World, long, wait_until};
use crate::stream::{self, order, orders, wait_flushed};

const LIMIT: Duration = Duration::from_secs(120);

/// WAL is written all the while: several segments, archived and received.
fn work(world: &World, number: usize) {
    order(world, &format!("away-{number}"));
    world.cluster.psql("select pg_switch_wal()");
}

#[test]
fn a_repository_that_was_away_misses_nothing_when_it_is_back() {
    let world = stream::world("outage", "max_slot_wal_keep_size = 1GB");
    let receiver = stream::serve(&world);
    work(&world, 0);
    wait_flushed(&world);
    let (repository, away) = (world.path("repository"), world.path("away"));
    fs::rename(&repository, &away).unwrap();
    let failing = || {
        let tried = "select failed_count > 0 from pg_stat_archiver";
        (world.cluster.value(tried) == "t").then_some(())
    };
    // Ten minutes where there is time for it.
    let gone = Instant::now();
    let mut number = 1;
    while number < 20 || (long() && gone.elapsed() < Duration::from_secs(600)) {
        work(&world, number);
        number += 1;
        if long() {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    wait_until("archiving to fail", LIMIT, failing);
    // It says so, and makes no other repository where it was.
    let output = world.dr(&["backup", "run", "erp"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(!repository.exists(), "a new one was begun");
    fs::rename(&away, &repository).unwrap();
    let name = world
        .cluster
        .value("select pg_walfile_name(pg_switch_wal() - 1)");
    world.cluster.wait_archived(&name);
    order(&world, "away-last");
    wait_flushed(&world);
    stream::end(&world, receiver);
    world.cluster.stop("immediate");
    world.dr(&["wal", "check"]).ok();
    let restored = world.restore_started("restored", "latest");
    assert_eq!(orders(&restored, "away-%"), (number + 1).to_string());
    restored.stop("fast");
}

/// A file system of its own, of which the size is known.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where that is not allowed.
    fn at(place: &Path, megabytes: u32) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let size = format!("size={megabytes}m");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(place)
            .output();
        (mount.is_ok_and(|output| output.status.success())).then(|| Self(place.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "what was not tried is said")]
fn a_repository_that_is_full_says_so_and_goes_on_when_there_is_room() {
    let world = World::new(&Options::new("full", &ERP));
    let Some(_mounted) = Mounted::at(&world.path("small"), 64) else {
        eprintln!("not tried: this account may not mount a file system");
        return;
    };
    world.account.own(&world.path("small"));
    world.edit_configuration("path: repository,", "path: small/repository,");
    world.dr(&["init"]).ok();
    world.archive("");
    world.dr(&["backup", "run", "erp"]).ok();
    let point = world.points("erp");
    // Nearly all of the room is taken by something else.
    let filler = world.path("small/filler");
    let fill = || {
        let mut bytes = 64 << 20;
        while bytes > 4096 {
            let mut all = fs::read(&filler).unwrap_or_default();
            all.resize(all.len() + bytes, 7);
            if fs::write(&filler, &all).is_err() {
                bytes /= 2;
            }
        }
    };
    fill();
    world.cluster.psql(
        "create table large as select string_agg(md5(random()::text || n), '') as what
         from generate_series(1, 20000) id, generate_series(1, 8) n group by id",
    );
    let full = |output: Output| {
        assert_eq!(output.code, Some(1), "{output}");
        output.says(&["full"]);
    };
    full(world.dr(&["backup", "run", "erp"]));
    assert_eq!(world.points("erp"), point);
    let last = world
        .cluster
        .value("select pg_walfile_name(pg_switch_wal() - 1)");
    wait_until("archiving to fail", LIMIT, || {
        let failed = "select failed_count > 0 from pg_stat_archiver";
        (world.cluster.value(failed) == "t").then_some(())
    });
    // What is there is as it was, also while there is no room.
    world.dr(&["repo", "check", "--read"]).ok();
    fs::remove_file(&filler).unwrap();
    world.cluster.wait_archived(&last);
    world.dr(&["backup", "run", "erp"]).ok();
    world.dr(&["wal", "check"]).ok();
    let restored = world.restore_started("restored", "latest");
    assert_eq!(restored.value("select count(*) from large"), "20000");
    restored.stop("fast");
}

#[test]
fn replica_identities_and_publications_come_back_and_slots_do_not() {
    let world = World::protected(&Options {
        settings: "wal_level = logical\narchive_timeout = 10",
        ..Options::new("slots", &ERP)
    });
    let sql = |text: &str| world.cluster.psql(text);
    sql("create table told (id int primary key, what text)");
    sql("alter table told replica identity full");
    sql("create publication changes for table told");
    sql("select pg_create_logical_replication_slot('reader', 'pgoutput')");
    sql("select pg_create_physical_replication_slot('copy', true)");
    sql("insert into told values (1, 'x')");
    world.dr(&["backup", "run", "erp"]).ok();
    sql("insert into told values (2, 'y')");
    world.cluster.switch_and_wait();
    let restored = world.restore_started("restored", "latest");
    // A slot that came back would keep WAL for a reader that is the original's.
    assert_eq!(
        restored.value("select count(*) from pg_replication_slots"),
        "0"
    );
    let identity = "select relreplident from pg_class where relname = 'told'";
    assert_eq!(restored.value(identity), "f");
    let published = "select tablename from pg_publication_tables where pubname = 'changes'";
    assert_eq!(restored.value(published), "told");
    assert_eq!(restored.value("select sum(id) from told"), "3");
    // And it can be read from anew.
    restored.psql("select pg_create_logical_replication_slot('reader', 'pgoutput')");
    restored.psql("insert into told values (3, 'z')");
    let changes = "select count(*) > 0 from pg_logical_slot_get_binary_changes('reader', null, null, \
                   'proto_version', '1', 'publication_names', 'changes')";
    assert_eq!(restored.value(changes), "t");
    restored.stop("fast");
}

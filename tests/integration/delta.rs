//! A cluster restored over what is left of it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::harness::{Cluster, ERP, Options, Program, World};

const PLACE: &str = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'aside'";

/// A cluster with a tablespace, of which something was committed that is in no backup and no archive; stopped
/// by force.
fn stopped(name: &'static str) -> World {
    let world = World::protected(&Options::new(name, &ERP));
    let place = world.path("aside");
    fs::create_dir(&place).unwrap();
    world.account.own(&place);
    let place = place.display();
    world
        .cluster
        .psql(&format!("create tablespace aside location '{place}'"));
    world.cluster.psql(
        "create table mark (n int primary key); insert into mark values (1); \
         create table large as select g, repeat(md5(g::text), 20) as t from generate_series(1, 20000) g; \
         create table far tablespace aside as select * from large limit 5000; checkpoint",
    );
    world.dr(&["backup", "run", "erp"]).ok();
    world
        .cluster
        .psql("update large set t = 'changed' where g % 1000 = 7");
    world.dr(&["backup", "run", "erp"]).ok();
    world.cluster.psql("insert into mark values (2)");
    world.cluster.switch_and_wait();
    world.cluster.psql("insert into mark values (3)");
    world.cluster.stop("immediate");
    world
}

/// Where a relation's first file is.
fn file_of(world: &World, name: &str) -> PathBuf {
    let path = world
        .cluster
        .value(&format!("select pg_relation_filepath('{name}')"));
    world.cluster.data.join(path)
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn restore_over(world: &World, more: &[&str]) -> crate::harness::Output {
    let into = world.cluster.data.display().to_string();
    let words = ["restore", "erp", "--into", &into, "--delta", "--as-primary"];
    world.program(&words).args(more).run()
}

#[test]
fn a_damaged_cluster_is_made_whole_in_its_place_and_loses_nothing() {
    let world = {
        let world = stopped("delta");
        world.cluster.start();
        world
    };
    let (large, far, accounts) = (
        file_of(&world, "large"),
        file_of(&world, "far"),
        file_of(&world, "pg_class"),
    );
    let sum = "select md5(string_agg(g || t, ',' order by g)) from large";
    let expected = world.cluster.value(sum);
    world.cluster.psql("insert into mark values (4)");
    world.cluster.stop("immediate");
    // What is committed last is only in the folder that is restored over.
    flip(&large, 8192 * 3 + 100);
    flip(&far, 4000);
    fs::remove_file(&accounts).unwrap();
    fs::write(world.cluster.data.join("base/stray"), "x").unwrap();
    fs::write(world.cluster.data.join("recovery.signal"), "").unwrap();
    let kept = fs::metadata(&large).unwrap().ino();
    let preview = restore_over(&world, &["--preview"]).ok();
    preview.says(&["only what differs is written"]);
    assert!(
        world.cluster.data.join("base/stray").exists(),
        "a preview changes nothing"
    );

    let output = restore_over(&world, &[]).ok();
    output.says(&["before anything is changed", "were right"]);
    assert_eq!(fs::metadata(&large).unwrap().ino(), kept, "the file stayed");
    assert!(!world.cluster.data.join("base/stray").exists());
    assert!(!world.cluster.data.join("dr-restore-unfinished").exists());
    world.pg_verifybackup(&world.cluster.data);
    world.cluster.start();
    let restored = Cluster::running(&world.account, &world.cluster.data, &world.cluster.database);
    assert_eq!(
        restored.psql("select n from mark order by n"),
        ["1", "2", "3", "4"]
    );
    assert_eq!(restored.value(sum), expected);
    assert_eq!(restored.value("select count(*) from far"), "5000");
    assert_eq!(
        restored.value(PLACE),
        world.path("aside").display().to_string()
    );
    // The new timeline is archived and backed up like the old one.
    restored.switch_and_wait();
    world.dr(&["backup", "run", "erp"]).ok();
    restored.stop("fast");
}

/// Neither its size nor its time tells whether a file is right.
#[test]
fn a_changed_byte_is_found_though_size_and_time_are_as_they_were() {
    let world = stopped("same-time");
    let judge = world.path("judge");
    let text = judge.display().to_string();
    world
        .dr(&["restore", "erp", "--into", &text, "--to", "latest"])
        .ok();
    // In parts, whole, in a tablespace, and what is no relation's.
    let data = world.cluster.data.clone();
    let paths = {
        world.cluster.start();
        let paths = ["large", "mark", "far", "pg_class"].map(|name| file_of(&world, name));
        world.cluster.stop("fast");
        paths
    };
    let within = |path: &Path| path.strip_prefix(&data).unwrap().to_owned();
    let mut paths: Vec<PathBuf> = paths.iter().map(|path| within(path)).collect();
    paths.extend(["pg_xact/0000", "global/pg_filenode.map", "PG_VERSION"].map(PathBuf::from));
    let rescued = world.dr(&["wal", "rescue", "erp"]);
    assert_eq!(rescued.code, Some(0), "{rescued}");
    // As it is after a restore, so that nothing differs but what is changed now.
    restore_over(&world, &[]).ok();
    for path in &paths {
        let (live, good) = (data.join(path), fs::read(judge.join(path)).unwrap());
        assert!(fs::read(&live).unwrap() == good, "{}", path.display());
        let before = fs::metadata(&live).unwrap();
        for at in [0, good.len() as u64 / 2, good.len() as u64 - 1] {
            flip(&live, at);
        }
        let file = fs::File::options().write(true).open(&live).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        drop(file);
        let after = fs::metadata(&live).unwrap();
        let (was, is) = (
            (before.len(), before.mtime(), before.mtime_nsec()),
            (after.len(), after.mtime(), after.mtime_nsec()),
        );
        assert_eq!(was, is, "{}", path.display());
        assert!(fs::read(&live).unwrap() != good, "{}", path.display());
    }
    restore_over(&world, &[]).ok();
    for path in &paths {
        let (now, good) = (fs::read(data.join(path)), fs::read(judge.join(path)));
        assert!(now.unwrap() == good.unwrap(), "{}", path.display());
    }
    world.pg_verifybackup(&data);
    world.cluster.start();
    let restored = Cluster::running(&world.account, &data, &world.cluster.database);
    let expected = "20000|20";
    let sum = "select count(*), count(*) filter (where t = 'changed') from large";
    assert_eq!(restored.value(sum), expected);
    assert_eq!(restored.value("select count(*) from far"), "5000");
    restored.stop("fast");
}

#[test]
fn what_was_interrupted_does_not_start_and_is_gone_on_with() {
    let world = stopped("interrupted");
    let data = &world.cluster.data;
    // Everything differs, and a part of it cannot be read.
    for entry in fs::read_dir(data.join("base")).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    let packs = world.path("repository/data/erp");
    let away = world.path("packs.away");
    fs::rename(&packs, &away).unwrap();
    fs::create_dir(&packs).unwrap();
    world.account.own(&packs);
    // The listing is in a pack too: with it away, nothing is begun.
    let output = restore_over(&world, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(data.join("global/pg_control").exists(), "nothing was begun");
    fs::remove_dir(&packs).unwrap();
    fs::rename(&away, &packs).unwrap();
    // The largest file's content is damaged, every other is whole.
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir(&packs).unwrap() {
        let files = fs::read_dir(folder.unwrap().path()).unwrap();
        found.extend(files.map(|file| file.unwrap().path()));
    }
    found.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let largest = found.pop().unwrap();
    let whole = fs::read(&largest).unwrap();
    let mut damaged = whole.clone();
    for byte in damaged.iter_mut().skip(1000).step_by(5000).take(100) {
        *byte ^= 1;
    }
    let rights = fs::metadata(&largest).unwrap().permissions();
    fs::remove_file(&largest).unwrap();
    fs::write(&largest, damaged).unwrap();
    fs::set_permissions(&largest, rights).unwrap();
    world.account.own(&largest);
    let output = restore_over(&world, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    assert_ne!(world.cluster.try_start().code, Some(0), "it must not start");
    fs::write(&largest, whole).unwrap();
    restore_over(&world, &["--start"]).ok();
    let restored = Cluster::running(&world.account, data, &world.cluster.database);
    assert_eq!(
        restored.psql("select n from mark order by n"),
        ["1", "2", "3"]
    );
    assert_eq!(
        restored.value(PLACE),
        world.path("aside").display().to_string()
    );
    restored.stop("fast");
}

#[test]
fn a_trial_does_not_get_into_the_archive_and_is_given_up_only_when_told() {
    let world = stopped("trial");
    let data = world.cluster.data.display().to_string();
    world.cluster.start();
    let early = world.cluster.moment();
    world.cluster.psql("insert into mark values (4)");
    let late = world.cluster.moment();
    world.cluster.psql("insert into mark values (5)");
    world.cluster.stop("immediate");
    // What the server cannot write any more is written anew.
    let config = world.cluster.data.join("postgresql.conf");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o400)).unwrap();
    let over = |to: &str, more: &[&str]| {
        let words = [
            "restore", "erp", "--into", &data, "--delta", "--start", "--to", to,
        ];
        world.program(&words).args(more).run()
    };
    // A moment that only the WAL in the folder reaches: it is rescued by hand first.
    world
        .dr(&["wal", "rescue", "erp"])
        .ok()
        .says(&["WAL files rescued"]);
    over(&early, &[]).ok();
    let trial = Cluster::running(&world.account, &world.cluster.data, &world.cluster.database);
    assert_eq!(trial.psql("select n from mark order by n"), ["1", "2", "3"]);
    trial.psql("insert into mark values (99)");
    trial.stop("fast");
    let output = over(&late, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["not in the repository", "--discard-wal"]);
    let control = world.cluster.data.join("global/pg_control");
    assert!(control.exists(), "nothing was begun");
    over(&late, &["--discard-wal"]).ok();
    let restored = Cluster::running(&world.account, &world.cluster.data, &world.cluster.database);
    assert_eq!(
        restored.psql("select n from mark order by n"),
        ["1", "2", "3", "4"]
    );
    restored.stop("fast");
}

#[test]
fn a_copys_links_to_the_places_of_a_running_cluster_are_not_followed() {
    let world = stopped("copy-of");
    let (data, wal) = (&world.cluster.data, world.path("wal"));
    fs::rename(data.join("pg_wal"), &wal).unwrap();
    symlink(&wal, data.join("pg_wal")).unwrap();
    let copy = world.path("copy");
    Program::new(&world.account, "cp")
        .args(["-a".as_ref(), data.as_os_str(), copy.as_os_str()])
        .run()
        .ok();
    world.cluster.start();
    let into = copy.display().to_string();
    let words = [
        "restore",
        "erp",
        "--into",
        &into,
        "--delta",
        "--discard-wal",
    ];
    world.dr(&words).ok();
    assert!(!copy.join("pg_wal").is_symlink());
    // The original has all it had.
    world.cluster.psql("insert into mark values (4)");
    world.cluster.switch_and_wait();
    assert_eq!(world.cluster.value("select count(*) from far"), "5000");
    world.cluster.stop("fast");
    world.cluster.start();
    assert_eq!(world.cluster.value("select count(*) from mark"), "4");
    world.cluster.stop("fast");
}

#[test]
fn nothing_but_a_stopped_state_of_the_same_cluster_is_restored_over() {
    let world = World::protected(&Options::new("other", &ERP));
    let output = restore_over(&world, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["a server runs on"]);
    assert_eq!(world.cluster.value("select 1"), "1", "it was left alone");
    let other = Cluster::create(&world.account, &world.path("other"), "other", 16, "");
    let over = |folder: &Path| {
        let into = folder.display().to_string();
        world.dr(&["restore", "erp", "--into", &into, "--delta"])
    };
    let output = over(&other.data);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["a server runs on", "pg_ctl stop"]);
    other.stop("fast");
    let output = over(&other.data);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&[
        "is not a state of the cluster",
        "it is the cluster",
        "leave out --delta",
    ]);
    other.start();
    assert_eq!(other.value("select 1"), "1", "it was left alone");
    other.stop("fast");
    let documents = world.path("documents");
    fs::create_dir(&documents).unwrap();
    fs::write(documents.join("letter"), "x").unwrap();
    world.account.own(&documents);
    let output = over(&documents);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["its control file cannot be read"]);
    assert_eq!(fs::read_to_string(documents.join("letter")).unwrap(), "x");
    let output = world.dr(&["restore", "config", "--into", "/x", "--delta"]);
    assert_eq!(output.code, Some(2), "{output}");
}

//! What PostgreSQL is told when WAL cannot be had or cannot be kept: by the exit code alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{ERP, Options, Output, Program, World, wait_until};

/// `restore_command` may end with 1 only where the archive was asked and has no such file: the server then
/// ends recovery and opens.
const NOT_ABSENT: Option<i32> = Some(200);
/// Above 125 ends the archiver.
const NOT_STORED: Option<i32> = Some(1);

/// The end of timeline 1, as a server tells it that was promoted.
const HISTORY: &str = "00000002.history";
/// A new page begins with its magic number and flags; then come the timeline, and in a segment's first page
/// where it begins, the cluster, and how large segments are.
const TIMELINE_AT: usize = 4;
const SYSTEM_ID_AT: usize = 24;
const SEGMENT_BYTES_AT: usize = 32;

/// A folder that only the world's account writes into.
fn folder(world: &World, name: &str) -> PathBuf {
    let folder = world.path(name);
    fs::create_dir(&folder).unwrap();
    world.account.own(&folder);
    folder
}

fn fetch(world: &World, name: &str, into: &Path) -> Output {
    let to = into.join("RECOVERYXLOG").display().to_string();
    world.dr(&["wal", "fetch", "--workload", "erp", name, &to])
}

/// As the archiver calls it: in the data directory.
fn push(world: &World, file: &Path) -> Output {
    world
        .program(&["wal", "push", &file.display().to_string()])
        .directory(&world.cluster.data)
        .run()
}

/// Puts a file in the world's hands.
fn write(world: &World, path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    world.account.own(path);
}

#[track_caller]
fn assert_empty(folder: &Path, when: &str) {
    let left: Vec<_> = fs::read_dir(folder).unwrap().flatten().collect();
    assert!(left.is_empty(), "{when}: {left:?}");
}

/// What is stored of a workload's WAL, by name.
fn stored(world: &World) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for timeline in fs::read_dir(world.path("repository/wal/erp")).unwrap() {
        for file in fs::read_dir(timeline.unwrap().path()).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            found.insert(name, fs::read(file.path()).unwrap());
        }
    }
    found
}

/// The key of another repository, made by the program itself.
fn another_key(world: &World) -> Vec<u8> {
    let config = fs::read_to_string(world.config()).unwrap();
    let config = config.replace(
        "main: { path: repository, key: { file: repository.key } }",
        "main: { path: another, key: { file: another.key } }",
    );
    let path = world.path("another.yaml");
    write(world, &path, config.as_bytes());
    Program::new(&world.account, world.binary())
        .args(["--config".as_ref(), path.as_os_str()])
        .args(["init"])
        .run()
        .ok();
    let key = fs::read(world.path("another.key")).unwrap();
    assert_ne!(key, fs::read(world.path("repository.key")).unwrap());
    key
}

/// A world in which no segment is archived but by hand; the paths of so many that wait for it.
fn unarchived(name: &'static str, segments: usize) -> (World, Vec<PathBuf>) {
    let world = World::protected(&Options {
        settings: "",
        ..Options::new(name, &ERP)
    });
    world.cluster.switch_and_wait();
    world.cluster.set("archive_command", "false");
    world.cluster.psql("create table note (id int)");
    let segments = (0..segments).map(|_| {
        world.cluster.psql("insert into note values (1)");
        let segment = "select pg_walfile_name(pg_switch_wal() - 1)";
        let segment = world.cluster.value(segment);
        world.cluster.data.join("pg_wal").join(segment)
    });
    let segments = segments.collect();
    (world, segments)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn what_is_stored_and_damaged_is_never_said_to_be_absent() {
    let world = World::protected(&Options::new("exit-damaged", &ERP));
    let segment = world.cluster.switch_and_wait();
    let history = world.path(&format!("tmp/{HISTORY}"));
    write(
        &world,
        &history,
        b"1\t0/5000028\tno recovery target specified\n",
    );
    assert_eq!(push(&world, &history).code, Some(0));
    let into = folder(&world, "into");
    let delivered = into.join("RECOVERYXLOG");
    for (name, timeline) in [(segment.as_str(), "00000001"), (HISTORY, "00000002")] {
        let object = world.path(&format!("repository/wal/erp/{timeline}/{name}"));
        let good = fs::read(&object).unwrap();
        let damages = |good: &[u8]| {
            let last = good.len() - 1;
            // The header, what is kept beside the content, and the content.
            let places = [0, 8, 9, 20, 40, 70, 100, good.len() / 2, last];
            let flipped = places.map(|place| {
                let mut bytes = good.to_vec();
                bytes[place.min(last)] ^= 1;
                (format!("{name}: byte {place} of {last} flipped"), bytes)
            });
            let cut = [0, 1, 64, good.len() / 2, last]
                .map(|length| (format!("{name}: cut to {length}"), good[..length].to_vec()));
            let longer = [(format!("{name}: longer"), [good, b"x"].concat())];
            flipped.into_iter().chain(cut).chain(longer)
        };
        for (when, bytes) in damages(&good) {
            fs::write(&object, bytes).unwrap();
            let output = fetch(&world, name, &into);
            assert_eq!(output.code, NOT_ABSENT, "{when}: {output}");
            assert_empty(&into, &when);
        }
        // What was at the destination before is not touched, nor half replaced.
        fs::write(&object, &good[..good.len() / 2]).unwrap();
        write(&world, &delivered, b"of before");
        assert_eq!(fetch(&world, name, &into).code, NOT_ABSENT);
        assert_eq!(fs::read(&delivered).unwrap(), b"of before");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 1, "{name}");
        fs::write(&object, &good).unwrap();
        assert_eq!(fetch(&world, name, &into).code, Some(0), "{name}");
        assert_ne!(fs::read(&delivered).unwrap(), b"of before");
        fs::remove_file(&delivered).unwrap();
    }
    // The key that they are sealed under, damaged and gone.
    let key = world.path("repository/keys/workload/erp");
    let good = fs::read(&key).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (when, key_now) in [("damaged", Some(damaged)), ("gone", None)] {
        match key_now {
            Some(bytes) => fs::write(&key, bytes).unwrap(),
            None => fs::remove_file(&key).unwrap(),
        }
        for name in [segment.as_str(), HISTORY] {
            let output = fetch(&world, name, &into);
            assert_eq!(output.code, NOT_ABSENT, "{name}, its key {when}: {output}");
            assert_empty(&into, when);
        }
    }
    write(&world, &key, &good);
    assert_eq!(fetch(&world, &segment, &into).code, Some(0));
}

#[test]
fn the_key_of_another_repository_proves_nothing() {
    let world = World::protected(&Options::new("exit-key", &ERP));
    let segment = world.cluster.switch_and_wait();
    let into = folder(&world, "into");
    let (key, other) = (world.path("repository.key"), another_key(&world));
    let good = fs::read(&key).unwrap();
    let absent = "0000000100000000000000FE";
    let before = stored(&world);
    let live = world.cluster.data.join("pg_wal").join(&segment);
    let copy = world.path(&format!("tmp/{segment}"));
    fs::copy(live, &copy).unwrap();
    world.account.own(&copy);
    // Present and of another repository; no key at all; none that can be read as one.
    for wrong in [other.as_slice(), b"", b"nonsense\n"] {
        fs::write(&key, wrong).unwrap();
        for name in [segment.as_str(), absent, HISTORY] {
            let output = fetch(&world, name, &into);
            assert_eq!(output.code, NOT_ABSENT, "{name}: {output}");
            assert_empty(&into, name);
        }
        let output = push(&world, &copy);
        assert_eq!(output.code, NOT_STORED, "{output}");
    }
    assert_eq!(stored(&world), before);
    fs::write(&key, good).unwrap();
    assert_eq!(fetch(&world, &segment, &into).code, Some(0));
    assert_eq!(fetch(&world, absent, &into).code, Some(1));
    assert_eq!(fetch(&world, HISTORY, &into).code, Some(1));
    assert_eq!(push(&world, &copy).code, Some(0), "it is there already");
}

/// A program's own code for wrong words, or for what it cannot open, would be taken for an answer.
#[test]
fn a_restore_command_that_is_wrong_ends_no_recovery() {
    let world = World::protected(&Options::new("exit-words", &ERP));
    let segment = world.cluster.switch_and_wait();
    let into = folder(&world, "into");
    let to = into.join("RECOVERYXLOG").display().to_string();
    let name = segment.as_str();
    let elsewhere = into.join("not-there/RECOVERYXLOG").display().to_string();
    let wrong: [&[&str]; 11] = [
        &["wal", "fetch"],
        &["wal", "fetch", name],
        &["wal", "fetch", name, &to, "more"],
        &["wal", "fetch", "--no-such-option", name, &to],
        &["--no-such-option", "wal", "fetch", name, &to],
        &["wal", "fetch", "--workload", "epr", name, &to],
        &["wal", "fetch", "--workload", "config", name, &to],
        &["wal", "fetch", "--workload", "no/name", name, &to],
        &["wal", "fetch", "--workload", "erp", "%f", &to],
        &["wal", "fetch", "--workload", "erp", name, &elsewhere],
        // A folder that is there.
        &["wal", "fetch", name, &into.display().to_string()],
    ];
    let fails = |words: &[&str], when: &str| {
        let output = world.dr(words);
        assert_eq!(output.code, NOT_ABSENT, "{when}: {output}");
        assert_empty(&into, when);
    };
    for words in wrong {
        fails(words, "wrong words");
    }
    let right = ["wal", "fetch", "--workload", "erp", name, &to];
    let config = fs::read_to_string(world.config()).unwrap();
    for wrong in ["", "repositories: [", "no: configuration\n"] {
        write(&world, &world.config(), wrong.as_bytes());
        fails(&right, "a configuration that cannot be used");
    }
    fs::remove_file(world.config()).unwrap();
    fails(&right, "no configuration");
    write(&world, &world.config(), config.as_bytes());
    world.dr(&right).ok();
}

#[test]
fn what_is_not_the_segment_of_its_name_is_not_stored() {
    let (world, segments) = unarchived("exit-push", 1);
    let (segment, name) = (&segments[0], name_of(&segments[0]));
    let whole = fs::read(segment).unwrap();
    let tried = folder(&world, "tried").join(&name);
    let before = stored(&world);
    assert!(!before.contains_key(&name));
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let cases = [
        (
            "nothing",
            Vec::new(),
            "its first page is not that of a WAL segment",
        ),
        (
            "a page",
            whole[..8192].to_vec(),
            "its cluster's segments have",
        ),
        (
            "all but a byte",
            whole[..whole.len() - 1].to_vec(),
            "its cluster's segments have",
        ),
        (
            "more",
            [whole.as_slice(), &[0; 8192]].concat(),
            "its cluster's segments have",
        ),
        (
            "nothing but zeros",
            vec![0; whole.len()],
            "its first page is not that of a WAL segment",
        ),
        (
            "a newer timeline",
            with(TIMELINE_AT, &2_u32.to_le_bytes()),
            "its pages are of timeline 2",
        ),
        (
            "another cluster",
            with(SYSTEM_ID_AT, &7_u64.to_le_bytes()),
            "7",
        ),
        (
            "another size of segments",
            with(SEGMENT_BYTES_AT, &(1_u32 << 24).to_le_bytes()),
            "is refused",
        ),
    ];
    for (what, bytes, words) in cases {
        write(&world, &tried, &bytes);
        let output = push(&world, &tried);
        assert_eq!(output.code, NOT_STORED, "{what}: {output}");
        output.says(&[words]);
        assert_eq!(stored(&world), before, "{what} was stored");
    }
    // No file at all, and one that is no WAL.
    for path in [world.path(&format!("tmp/{name}")), world.path("dr.yaml")] {
        let output = push(&world, &path);
        assert_eq!(output.code, NOT_STORED, "{output}");
    }
    assert_eq!(stored(&world), before);
    // What it is not for is not what it is.
    write(&world, &tried, &whole);
    assert_eq!(push(&world, &tried).code, Some(0));
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    let kept = stored(&world);
    write(&world, &tried, &other);
    let output = push(&world, &tried);
    assert_eq!(output.code, NOT_STORED, "{output}");
    output.says(&["DIFFERENT CONTENT"]);
    assert_eq!(stored(&world), kept);
    // After a switch inside a segment, the child's file begins with the pages of its parent.
    let child = format!("00000002{}", &name[8..]);
    let child_file = world.path(&format!("tried/{child}"));
    write(&world, &child_file, &whole);
    assert_eq!(push(&world, &child_file).code, Some(0));
    let into = folder(&world, "into");
    for name in [&name, &child] {
        assert_eq!(fetch(&world, name, &into).code, Some(0));
        assert!(
            fs::read(into.join("RECOVERYXLOG")).unwrap() == whole,
            "{name}"
        );
    }
}

#[test]
fn what_cannot_be_stored_is_tried_again_by_an_archiver_that_lives() {
    let (world, segments) = unarchived("exit-away", 2);
    let (segment, next) = (&segments[0], &segments[1]);
    let fails = |when: &str| {
        let output = push(&world, segment);
        assert_eq!(output.code, NOT_STORED, "{when}: {output}");
    };
    let without = |name: &str, when: &str| {
        let (here, away) = (world.path(name), world.path("away"));
        fs::rename(&here, &away).unwrap();
        fails(when);
        assert!(!here.exists(), "{when}: it was made anew");
        fs::rename(&away, &here).unwrap();
    };
    without("repository", "without the repository");
    without("repository.key", "without the key");
    without("dr.yaml", "without the configuration");
    without("repository/keys", "without the keys in the repository");
    let (here, away) = (world.path("repository"), world.path("away"));
    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    world.account.own(&here);
    fails("a folder that is no repository, as where nothing is mounted");
    assert_empty(&here, "where nothing is mounted");
    fs::remove_dir(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    let whole = fs::read_to_string(world.config()).unwrap();
    write(&world, &world.config(), b"repositories: [");
    fails("a configuration that cannot be understood");
    write(&world, &world.config(), whole.as_bytes());
    // Nothing of all this is in the way, and the catalog and the tiers are not needed.
    for name in ["catalog.db", "tier-configs"] {
        fs::rename(world.path(name), world.path("tmp").join(name)).unwrap();
    }
    assert_eq!(push(&world, segment).code, Some(0));
    assert!(stored(&world).contains_key(&name_of(segment)));
    // The server's own archiver is told the same and lives: what failed is archived once it can be.
    for name in ["catalog.db", "tier-configs"] {
        fs::rename(world.path("tmp").join(name), world.path(name)).unwrap();
    }
    fs::rename(&here, &away).unwrap();
    world.archive("");
    let told = format!(
        "The failed archive command was: '{}'",
        world.binary().display()
    );
    wait_until(
        "the archiver's push to fail",
        Duration::from_secs(60),
        || {
            let log = fs::read_to_string(world.cluster.log()).unwrap();
            log.contains(&told).then_some(())
        },
    );
    let log = fs::read_to_string(world.cluster.log()).unwrap();
    assert!(
        log.contains("archive command failed with exit code 1"),
        "{log}"
    );
    let archiver = "select pid from pg_stat_activity where backend_type = 'archiver'";
    let archiver_pid = world.cluster.value(archiver);
    fs::rename(&away, &here).unwrap();
    world.cluster.psql("insert into note values (1)");
    world.cluster.switch_and_wait();
    assert!(stored(&world).contains_key(&name_of(next)));
    assert_eq!(
        world.cluster.value(archiver),
        archiver_pid,
        "it had to be started anew"
    );
}

#[test]
fn a_partial_segment_and_the_whole_one_do_not_stand_in_each_others_way() {
    let (world, segments) = unarchived("exit-partial", 2);
    let tried = folder(&world, "tried");
    let into = folder(&world, "into");
    let got = |name: &str| {
        assert_eq!(fetch(&world, name, &into).code, Some(0), "{name}");
        fs::read(into.join("RECOVERYXLOG")).unwrap()
    };
    for (segment, is_partial_first) in [(&segments[0], true), (&segments[1], false)] {
        let name = name_of(segment);
        let partial = format!("{name}.partial");
        let whole = fs::read(segment).unwrap();
        // What a partial one ends in is of the file that it was made from.
        let mut other = whole.clone();
        let half = other.len() / 2;
        other[half..].fill(0xA5);
        write(&world, &tried.join(&name), &whole);
        write(&world, &tried.join(&partial), &other);
        let mut order = [(&name, &whole), (&partial, &other)];
        if is_partial_first {
            order.reverse();
        }
        for (number, (name, content)) in order.iter().enumerate() {
            let absent = fetch(&world, name, &into);
            assert_eq!(absent.code, Some(1), "{name} is not stored yet: {absent}");
            let output = push(&world, &tried.join(name.as_str()));
            assert_eq!(output.code, Some(0), "{name}: {output}");
            assert!(got(name) == **content, "{name}");
            assert!(number == 0 || got(order[0].0) == *order[0].1, "{name}");
            assert_eq!(
                push(&world, &tried.join(name.as_str())).code,
                Some(0),
                "{name} again"
            );
        }
        let names = stored(&world);
        assert!(names.contains_key(&name) && names.contains_key(&partial));
        // Each has one content.
        write(&world, &tried.join(&partial), &whole);
        let output = push(&world, &tried.join(&partial));
        assert_eq!(output.code, NOT_STORED, "{output}");
        output.says(&["DIFFERENT CONTENT"]);
        assert!(got(&partial) == other && got(&name) == whole);
        // A partial one is checked as a whole one is.
        let moved = tried.join("0000000100000000000000FE.partial");
        write(&world, &moved, &whole);
        let output = push(&world, &moved);
        assert_eq!(output.code, NOT_STORED, "{output}");
        output.says(&["its first page is that of"]);
    }
    // Recovery takes the whole ones.
    world.archive("");
    world.cluster.switch_and_wait();
    world
        .dr(&["wal", "check", "--records"])
        .ok()
        .says(&["no gap"]);
    let restored = world.restore_started("restored", "latest");
    assert_eq!(restored.value("select count(*) from note"), "2");
    restored.stop("fast");
}

//! WAL in and out, by its exit codes.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::harness::{Cluster, ERP, Options, Program, World, free_port, wait_until};

fn archived(world: &World) -> String {
    world.cluster.switch_and_wait()
}

#[test]
fn the_same_segment_again_is_fine_and_another_content_is_refused() {
    let world = World::protected(&Options::new("twice", &ERP));
    let name = archived(&world);
    let got = world.path("got");
    let fetch = |name: &str| world.dr(&["wal", "fetch", "--workload", "erp", name, "got"]);
    assert_eq!(fetch(&name).code, Some(0));
    let folder = world.path("data/pg_wal");
    let push = |path: &std::path::Path| {
        world
            .program(&["wal", "push", &path.display().to_string()])
            .directory(&world.cluster.data)
            .run()
    };
    let again = world.path(&format!("tmp/{name}"));
    fs::copy(&got, &again).unwrap();
    world.account.own(&again);
    let output = push(&again);
    assert_eq!(output.code, Some(0), "the same content again: {output}");
    let mut bytes = fs::read(&got).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&again, bytes).unwrap();
    let output = push(&again);
    assert_eq!(output.code, Some(1), "another content: {output}");
    output.says(&["DIFFERENT CONTENT"]);
    let before = fs::read(&got).unwrap();
    assert_eq!(fetch(&name).code, Some(0));
    assert_eq!(
        fs::read(&got).unwrap(),
        before,
        "what was stored first stays"
    );
    // A segment under another one's name is none.
    let renamed = world.path("tmp/0000000100000000000000FE");
    fs::copy(&got, &renamed).unwrap();
    world.account.own(&renamed);
    let output = push(&renamed);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["its first page is that of"]);
    assert!(folder.is_dir());
}

#[test]
fn absent_is_answered_only_by_a_repository_that_was_asked() {
    let world = World::protected(&Options::new("absent", &ERP));
    let fetch = |name: &str| {
        world
            .dr(&["wal", "fetch", "--workload", "erp", name, "got"])
            .code
    };
    assert_eq!(fetch("0000000100000000000000FE"), Some(1), "not there");
    assert_eq!(fetch("00000009.history"), Some(1), "not there");
    assert_eq!(fetch("nonsense"), Some(200), "no WAL file");
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();
    assert_eq!(
        fetch("0000000100000000000000FE"),
        Some(200),
        "no repository"
    );
    assert_eq!(fetch("00000009.history"), Some(200), "no repository");
    fs::create_dir(&here).unwrap();
    world.account.own(&here);
    assert_eq!(
        fetch("0000000100000000000000FE"),
        Some(200),
        "an empty folder is no repository"
    );
    fs::remove_dir(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    fs::rename(world.path("repository.key"), world.path("key.away")).unwrap();
    assert_eq!(fetch("0000000100000000000000FE"), Some(200), "no key");
    fs::rename(world.path("key.away"), world.path("repository.key")).unwrap();
    fs::rename(world.path("catalog.db"), world.path("catalog.away")).unwrap();
    assert_eq!(
        fetch("0000000100000000000000FE"),
        Some(1),
        "the catalog is not needed"
    );
}

#[test]
fn a_copy_of_the_cluster_may_not_archive() {
    let world = World::protected(&Options::new("copy", &ERP));
    let name = archived(&world);
    assert_eq!(
        world
            .dr(&["wal", "fetch", "--workload", "erp", &name, "tmp/x"])
            .code,
        Some(0)
    );
    let into = world.path("copy");
    world
        .dr(&["restore", "erp", "--into", &into.display().to_string()])
        .ok();
    let segment = into.join("pg_wal/0000000100000000000000FE");
    fs::copy(world.path("tmp/x"), &segment).unwrap();
    let segment_of_copy = into.join(format!("pg_wal/{name}"));
    fs::copy(world.path("tmp/x"), &segment_of_copy).unwrap();
    world.account.own(&into);
    let output = world
        .program(&["wal", "push", &format!("pg_wal/{name}")])
        .directory(&into)
        .run();
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["is a copy of workload `erp`"]);
}

#[test]
fn a_check_tells_the_commits_and_names_a_gap_with_what_it_costs() {
    let world = World::protected(&Options {
        settings: "track_commit_timestamp = on",
        ..Options::new("gap", &ERP)
    });
    world.cluster.psql("create table note (id int)");
    let mut names = Vec::new();
    for number in 0..4 {
        for _ in 0..5 {
            world
                .cluster
                .psql(&format!("insert into note values ({number})"));
        }
        names.push(archived(&world));
    }
    let check = |arguments: &[&str]| {
        let words = [&["wal", "check"], arguments].concat();
        world.dr(&words)
    };
    check(&[])
        .ok()
        .says(&["erp: 1 restore point, recoverable from", "no gap"]);
    let told = world.ask(&["wal", "check", "erp", "--records"]);
    let stretch = told.at("/0/stretches/0");
    assert_eq!(told.list("/0/stretches").len(), 1);
    assert_eq!(stretch.text("/last"), names[3]);
    let commits = stretch.number("/records/commits");
    assert!(commits > 20, "{commits} commits");
    let last = stretch.text("/records/last_commit");
    let newest = "select to_char(max(pg_xact_commit_timestamp(xmin)) at time zone 'utc', \
        'YYYY-MM-DD\"T\"HH24:MI:SS.US') from note where id = 3";
    let newest = world.cluster.value(newest);
    let digits = |time: &str| time.trim_end_matches(['Z', '0']).to_owned();
    assert_eq!(digits(&last), digits(&newest));

    // One changed byte in what is stored, then the file gone.
    let stored = world.path(&format!("repository/wal/erp/00000001/{}", names[1]));
    let good = fs::read(&stored).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&stored, &bad).unwrap();
    let output = check(&["--records"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["1 PROBLEM", &names[1]]);
    fs::remove_file(&stored).unwrap();
    let output = check(&["erp"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&[
        "1 SEGMENT MISSING",
        &format!("{} is missing", names[1]),
        "can be recovered to the end: take a backup now",
    ]);
    world.dr(&["backup", "run", "erp"]).ok();
    let newest = world.points("erp").pop().unwrap();
    let output = check(&["erp"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&[&format!("until restore point {newest}")]);
    fs::write(&stored, &good).unwrap();
    check(&["erp", "--records"]).ok();

    let output = check(&["config"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["`config` is no postgres workload"]);
    let output = check(&["epr"]);
    assert_eq!(output.code, Some(2), "{output}");
    output.says(&["erp"]);
}

#[test]
fn everything_that_is_ready_goes_in_one_push_and_the_server_finds_it_stored() {
    let world = World::protected(&Options {
        settings: "",
        ..Options::new("ready", &ERP)
    });
    // An outage: archiving fails, and segments gather.
    archived(&world);
    world.cluster.set("archive_command", "false");
    world.cluster.psql("create table note (id int)");
    let mut names = Vec::new();
    for _ in 0..6 {
        world.cluster.psql("insert into note values (1)");
        names.push(
            world
                .cluster
                .value("select pg_walfile_name(pg_switch_wal() - 1)"),
        );
    }
    let ready = |name: &str| world.path(&format!("data/pg_wal/archive_status/{name}.ready"));
    assert!(names.iter().all(|name| ready(name).exists()));
    let output = world.dr(&["wal", "push", "--ready"]).ok();
    output.says(&["6 WAL files stored, 0 were there already"]);
    assert!(
        names.iter().all(|name| ready(name).exists()),
        "the server's to change"
    );
    let again = world
        .dr(&["wal", "push", "--ready", "--workload", "erp"])
        .ok();
    again.says(&["0 WAL files stored, 6 were there already"]);
    world.archive("");
    let last = archived(&world);
    names.push(last);
    assert!(names.iter().all(|name| !ready(name).exists()));
    world
        .dr(&["wal", "check", "--records"])
        .ok()
        .says(&["no gap"]);

    // Wrong words.
    for wrong in [&["wal", "push"][..], &["wal", "push", "x", "--ready"]] {
        assert_eq!(world.dr(wrong).code, Some(2), "{wrong:?}");
    }
    let output = world.dr(&["wal", "push", "--ready", "--workload", "config"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["`config` is no postgres workload"]);
}

/// What is prepared for a cluster that recovers, by name.
fn prepared(data: &Path) -> Vec<String> {
    let folders = fs::read_dir(data.join("pg_wal/.dr-ahead"));
    let files = folders.into_iter().flatten().flatten().flat_map(|folder| {
        let files = fs::read_dir(folder.path()).into_iter().flatten().flatten();
        files.filter_map(|file| file.file_name().into_string().ok())
    });
    let mut segments: Vec<String> = files.filter(|name| name.len() == 24).collect();
    segments.sort();
    segments
}

#[test]
fn recovery_has_the_next_segments_prepared_and_nothing_is_left_of_them() {
    let world = World::protected(&Options::new("ahead", &ERP));
    world.cluster.psql("create table mark (n int primary key)");
    for n in 1..=8 {
        world
            .cluster
            .psql(&format!("insert into mark values ({n})"));
        if n == 4 {
            world
                .cluster
                .psql("select pg_create_restore_point('fourth')");
        }
        world.cluster.switch_and_wait();
    }
    let data = world.path("copy");
    let into = data.display().to_string();
    world
        .dr(&["restore", "erp", "--into", &into, "--to", "name:fourth"])
        .ok();
    let copy = Cluster {
        data: data.clone(),
        port: free_port(),
        ..world.cluster.clone()
    };
    // Recovery stays where it is, for as long as it is looked at.
    let settings = format!("port = {}\nrecovery_target_action = 'pause'\n", copy.port);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.auto.conf"))
        .unwrap();
    file.write_all(settings.as_bytes()).unwrap();
    copy.start();
    let limit = Duration::from_secs(60);
    let ahead = data.join("pg_wal/.dr-ahead");
    wait_until("the helper", limit, || ahead.exists().then_some(()));
    wait_until("the end of recovery", limit, || {
        let state = copy.try_psql("select pg_get_wal_replay_pause_state()");
        (state.stdout.trim() == "paused").then_some(())
    });
    copy.psql("select pg_wal_replay_resume()");
    let copy = Cluster::running(&world.account, &data, &copy.database);
    assert_eq!(
        copy.psql("select n from mark order by n"),
        ["1", "2", "3", "4"]
    );
    wait_until("the helper to clear away", limit, || {
        (!ahead.exists()).then_some(())
    });
    copy.stop("fast");
}

/// A process that is called as the server is, and works where it would.
fn recovering(world: &World, data: &Path) -> Child {
    let program = world.path("postgres");
    fs::copy("/bin/sleep", &program).unwrap();
    world.account.own(&program);
    Program::new(&world.account, program)
        .args(["600"])
        .directory(data)
        .spawn(&world.path("sleep.log"))
}

#[test]
fn what_was_prepared_is_delivered_and_what_was_not_is_fetched() {
    let world = World::protected(&Options::new("prepared", &ERP));
    world.cluster.psql("create table mark (n int)");
    let segments: Vec<String> = (0..4)
        .map(|n| {
            world
                .cluster
                .psql(&format!("insert into mark values ({n})"));
            archived(&world)
        })
        .collect();
    let data = world.path("recovering");
    fs::create_dir_all(data.join("pg_wal")).unwrap();
    world.account.own(&data);
    world.account.own(&data.join("pg_wal"));
    let mut server = recovering(&world, &data);
    let spool = data.join("pg_wal/.dr-ahead");
    let folder = {
        // Where the program will look: as it makes it itself.
        let config = fs::canonicalize(world.config()).unwrap();
        let text = [config.as_os_str().as_encoded_bytes(), b"\0erp"].concat();
        let name = Sha256::digest(text);
        let name: String = name
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        spool.join(name)
    };
    let ahead = |server: u32| {
        world
            .program(&["wal", "ahead", "--workload", "erp", "--after", &segments[0]])
            .args([
                "--segment-bytes",
                "16777216",
                "--recovery",
                &server.to_string(),
            ])
            .args(["--data-directory".as_ref(), data.as_os_str()])
            .args([folder.as_os_str()])
    };
    let mut helper = ahead(server.id()).spawn(&world.path("helper.log"));
    let limit = Duration::from_secs(60);
    wait_until("the segments", limit, || {
        prepared(&data).starts_with(&segments[1..]).then_some(())
    });
    let fetch = |name: &str| {
        world
            .program(&[
                "wal",
                "fetch",
                "--workload",
                "erp",
                name,
                "pg_wal/RECOVERYXLOG",
            ])
            .directory(&data)
            .run()
            .code
    };
    // With the repository away it is plain where they come from.
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();
    assert_eq!(fetch(&segments[1]), Some(0), "prepared");
    let delivered = fs::read(data.join("pg_wal/RECOVERYXLOG")).unwrap();
    assert_eq!(fetch(&segments[1]), Some(200), "it is there once");
    fs::rename(&away, &here).unwrap();
    assert_eq!(fetch(&segments[1]), Some(0), "fetched");
    assert_eq!(
        fs::read(data.join("pg_wal/RECOVERYXLOG")).unwrap(),
        delivered
    );
    // What recovery has passed is removed.
    assert_eq!(fetch(&segments[3]), Some(0));
    let passed = |name: &String| name <= &segments[3];
    wait_until("room", limit, || {
        (!prepared(&data).iter().any(passed)).then_some(())
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(helper.wait().unwrap().success());
    assert!(!spool.exists(), "nothing is left");
    // Whoever has that number now is not the one that recovered.
    let mut late = ahead(std::process::id()).spawn(&world.path("helper.log"));
    assert!(late.wait().unwrap().success());
    assert!(!spool.exists(), "nothing was begun");
}

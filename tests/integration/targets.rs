//! A cluster restored to a time, an LSN, a restore point and the latest moment.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::{
    Cluster, ERP, Options, Program, World, free_port, postgres_program, wait_until,
};

/// A world with a table whose rows are numbered, each written by a commit of its own.
fn world(name: &'static str) -> World {
    let world = World::protected(&Options::new(name, &ERP));
    world
        .cluster
        .psql("create table mark (n int primary key, at timestamptz default clock_timestamp())");
    world
}

fn mark(cluster: &Cluster, n: u32) {
    cluster.psql(&format!("insert into mark (n) values ({n})"));
}

fn marks(cluster: &Cluster) -> Vec<String> {
    cluster.psql("select n from mark order by n")
}

#[test]
fn a_transaction_and_a_name_are_found_wherever_they_are() {
    let world = world("found");
    // The record of its end is longer than a segment: 300,000 subtransactions.
    world.cluster.psql(
        "begin; create table many (id int); \
         do $$ begin for i in 1..300000 loop begin insert into many values (i); \
         exception when others then null; end; end loop; end $$; commit",
    );
    let long = world
        .cluster
        .value("select xmin from pg_class where relname = 'many'");
    let part = world.cluster.value("select xmin from many where id = 777");
    let given_up = world.path("given-up.sql");
    let sql = "begin; insert into mark (n) values (50); select pg_current_xact_id(); rollback;";
    fs::write(&given_up, sql).unwrap();
    let file = ["-f".as_ref(), given_up.as_os_str()];
    let told = world.cluster.psql_program().args(file).run().ok();
    let rolled_back = told.stdout.trim().to_owned();
    world
        .cluster
        .psql("select pg_create_restore_point('twice')");
    mark(&world.cluster, 1);
    world.cluster.switch_and_wait();
    mark(&world.cluster, 2);
    // Not archived yet.
    world
        .cluster
        .psql("select pg_create_restore_point('twice')");
    mark(&world.cluster, 3);
    let into = world.path("nowhere").display().to_string();
    let preview = |to: &str| {
        world
            .dr(&["restore", "erp", "--into", &into, "--preview", "--to", to])
            .ok()
            .said()
    };
    let said = preview(&format!("xid:{long}"));
    assert!(
        said.contains(&format!("transaction {long} was committed")),
        "{said}"
    );
    let said = preview(&format!("xid:{part}"));
    assert!(
        said.contains(&format!(
            "transaction {part}, a part of {long}, was committed"
        )),
        "{said}"
    );
    let said = preview(&format!("xid:{rolled_back}"));
    assert!(
        said.contains(&format!("transaction {rolled_back} was rolled back")),
        "{said}"
    );

    let restored = world.restore_started("to-the-last", "name:twice");
    assert_eq!(marks(&restored), ["1", "2"]);
    restored.stop("fast");
}

#[test]
fn each_kind_of_target_is_reached_exactly() {
    let world = world("targets");
    mark(&world.cluster, 1);
    let after_one = world.cluster.moment();
    mark(&world.cluster, 2);
    let lsn_after_two = world.cluster.value("select pg_current_wal_insert_lsn()");
    let second = world.cluster.value("select xmin from mark where n = 2");
    mark(&world.cluster, 3);
    world
        .cluster
        .psql("select pg_create_restore_point('after the third')");
    world.dr(&["backup", "run", "erp"]).ok();
    let point = world.points("erp").pop().unwrap();
    mark(&world.cluster, 4);
    world.cluster.switch_and_wait();

    let restored = world.restore_started("to-time", &after_one);
    assert_eq!(marks(&restored), ["1"], "to a time");
    assert_eq!(
        restored.value("show archive_mode"),
        "off",
        "a copy does not archive"
    );
    restored.stop("fast");

    let restored = world.restore_started("to-lsn", &lsn_after_two);
    assert!(
        ["1,2", "1,2,3"].contains(&marks(&restored).join(",").as_str()),
        "to an LSN"
    );
    assert!(marks(&restored).contains(&"2".to_owned()), "to an LSN");
    restored.stop("fast");

    let restored = world.restore_started("to-xid", &format!("xid:{second}"));
    assert_eq!(marks(&restored), ["1", "2"], "to a transaction");
    restored.stop("fast");

    let into = world.path("before-xid").display().to_string();
    let target = format!("xid:{second}");
    world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into,
            "--to",
            &target,
            "--exclusive",
            "--start",
        ])
        .ok();
    let restored = Cluster::running(&world.account, Path::new(&into), &world.cluster.database);
    assert_eq!(marks(&restored), ["1"], "to just before a transaction");
    restored.stop("fast");

    let restored = world.restore_started("to-name", "name:after the third");
    assert_eq!(marks(&restored), ["1", "2", "3"], "to a name");
    restored.stop("fast");

    let into = world.path("nowhere").display().to_string();
    let preview =
        |to: &str| world.dr(&["restore", "erp", "--into", &into, "--preview", "--to", to]);
    let output = preview("xid:4000000000");
    output.says(&[
        "xid:4000000000",
        "no stored WAL of timeline 1 has it",
        "latest",
    ]);
    assert_ne!(output.code, Some(0));
    let output = preview(&format!("xid:{second}")).ok();
    output.says(&[&format!("transaction {second} was committed at 20")]);

    let restored = world.restore_started("to-point", &point);
    assert_eq!(marks(&restored), ["1", "2", "3"], "to a restore point");
    restored.stop("fast");

    let restored = world.restore_started("to-latest", "latest");
    assert_eq!(marks(&restored), ["1", "2", "3", "4"], "to the latest");
    restored.psql("insert into mark (n) values (5)");
    restored.stop("fast");
}

/// Runs statements of which some end transactions, in one session, and returns what was said.
fn session(world: &World, statements: &str) -> String {
    let file = world.path("session.sql");
    fs::write(&file, statements).unwrap();
    let file = ["-f".as_ref(), file.as_os_str()];
    let told = world.cluster.psql_program().args(file).run().ok();
    told.stdout.trim().to_owned()
}

/// Restores to a target or to just before it, with the given words, and starts that.
fn restored_to(world: &World, into: &str, words: &[&str]) -> Cluster {
    let folder = world.path(into);
    let text = folder.display().to_string();
    let given = ["restore", "erp", "--into", &text, "--start", "--to"];
    world.dr(&[&given, words].concat()).ok();
    Cluster::running(&world.account, &folder, &world.cluster.database)
}

const WAITING: &str = "select string_agg(gid, ',' order by gid) from pg_prepared_xacts";

#[test]
fn a_prepared_transaction_is_reached_where_it_was_committed() {
    let world = World::protected(&Options {
        settings: "max_prepared_transactions = 5",
        ..Options::new("prepared-target", &ERP)
    });
    world.cluster.psql("create table mark (n int primary key)");
    let prepare = |n: u32, name: &str| {
        let begin = format!("begin; insert into mark values ({n}); select pg_current_xact_id();");
        session(&world, &format!("{begin} prepare transaction '{name}';"))
    };
    let mark = |n: u32| {
        world
            .cluster
            .psql(&format!("insert into mark values ({n})"))
    };
    mark(1);
    let kept = prepare(2, "kept");
    let given_up = prepare(3, "given up");
    // The backup has both as they wait.
    mark(4);
    world.cluster.psql("checkpoint");
    world.dr(&["backup", "run", "erp"]).ok();
    mark(5);
    world.cluster.psql("commit prepared 'kept'");
    mark(6);
    world.cluster.psql("rollback prepared 'given up'");
    mark(7);
    world.cluster.switch_and_wait();

    let into = world.path("nowhere").display().to_string();
    let preview = ["restore", "erp", "--into", &into, "--preview", "--to"];
    let target = format!("xid:{kept}");
    let said = world.dr(&[&preview[..], &[&target]].concat()).ok();
    said.says(&[&format!("transaction {kept} was committed")]);

    let restored = restored_to(&world, "at", &[&format!("xid:{kept}")]);
    assert_eq!(marks(&restored), ["1", "2", "4", "5"], "at its commit");
    assert_eq!(restored.value(WAITING), "given up");
    restored.stop("fast");

    let restored = restored_to(&world, "before", &[&format!("before:{kept}")]);
    assert_eq!(marks(&restored), ["1", "4", "5"], "before its commit");
    assert_eq!(restored.value(WAITING), "given up,kept");
    // It is what it was: it can be ended either way.
    restored.psql("commit prepared 'kept'");
    assert_eq!(marks(&restored), ["1", "2", "4", "5"]);
    restored.stop("fast");

    let restored = restored_to(&world, "end", &[&format!("xid:{given_up}")]);
    assert_eq!(marks(&restored), ["1", "2", "4", "5", "6"], "at its end");
    assert_eq!(restored.value(WAITING), "");
    restored.stop("fast");
}

/// Where the record of a transaction's commit begins, by PostgreSQL's own reader.
fn commit_of(world: &World, xid: &str, segment: &str) -> String {
    let told = Program::new(&world.account, postgres_program("pg_waldump"))
        .args(["--rmgr=Transaction", &format!("--xid={xid}")])
        .args([world.cluster.data.join("pg_wal").join(segment)])
        .run()
        .ok();
    let commits: Vec<&str> = told
        .stdout
        .lines()
        .filter(|line| line.contains("desc: COMMIT"))
        .collect();
    assert_eq!(commits.len(), 1, "{told}");
    let lsn = commits[0].split_once("lsn: ").unwrap().1;
    lsn.split(',').next().unwrap().to_owned()
}

#[test]
fn a_record_that_begins_at_the_target_is_replayed_and_with_exclusive_it_is_not() {
    let world = World::protected(&Options {
        settings: "wal_keep_size = 64MB",
        ..Options::new("lsn-target", &ERP)
    });
    world.cluster.psql("create table mark (n int primary key)");
    world.cluster.switch_and_wait();
    for n in 1..=3 {
        mark(&world.cluster, n);
    }
    let second = world.cluster.value("select xmin from mark where n = 2");
    let segment = world.cluster.switch_and_wait();
    let at = commit_of(&world, &second, &segment);
    let (high, low) = at.split_once('/').unwrap();
    let next = format!("{high}/{:X}", u32::from_str_radix(low, 16).unwrap() + 1);
    let previous = format!("{high}/{:X}", u32::from_str_radix(low, 16).unwrap() - 1);
    let cases = [
        ("inclusive", vec![at.as_str()], "1,2"),
        ("exclusive", vec![at.as_str(), "--exclusive"], "1"),
        // Between two records: up to the one behind, which is the third one's insert; or up to it.
        ("inclusive-behind", vec![next.as_str()], "1,2"),
        (
            "exclusive-behind",
            vec![next.as_str(), "--exclusive"],
            "1,2",
        ),
        // Reached by the commit itself, which is then replayed, or by it and not replayed.
        ("inclusive-ahead", vec![previous.as_str()], "1,2"),
        (
            "exclusive-ahead",
            vec![previous.as_str(), "--exclusive"],
            "1",
        ),
    ];
    for (name, words, expected) in cases {
        let restored = restored_to(&world, name, &words);
        assert_eq!(marks(&restored).join(","), expected, "{name}: {words:?}");
        restored.stop("fast");
    }
    // The same moment by its transaction.
    let restored = restored_to(&world, "by-number", &[&format!("xid:{second}")]);
    assert_eq!(marks(&restored), ["1", "2"]);
    restored.stop("fast");
    let restored = restored_to(&world, "before", &[&format!("xid:{second}"), "--exclusive"]);
    assert_eq!(marks(&restored), ["1"]);
    restored.stop("fast");
}

#[test]
fn a_restored_folder_passes_pg_verifybackup_and_is_verified() {
    let world = world("verify");
    let into = world.path("restored");
    world
        .dr(&["restore", "erp", "--into", &into.display().to_string()])
        .ok();
    world.pg_verifybackup(&into);
    assert!(into.join("recovery.signal").exists());
    let proofs = world.ask(&["backup", "verify"]);
    for proof in proofs.list("") {
        assert_eq!(proof.at("/passed").0, true, "{proof:?}");
    }
    let listed = world.ask(&["backup", "list", "erp"]);
    assert_eq!(
        listed.list("").last().unwrap().at("/verified/passed").0,
        true
    );
}

#[test]
fn a_time_after_the_last_commit_is_reached_with_the_help_of_the_live_server() {
    let world = world("idle");
    mark(&world.cluster, 1);
    // Not archived yet, and no commit follows: the server completes its segment when asked, and recovery
    // goes to the end of the archive.
    let after_one = world.cluster.moment();
    let restored = world.restore_started("to-now", &after_one);
    assert_eq!(marks(&restored), ["1"]);
    restored.stop("fast");
}

#[test]
fn a_new_primary_archives_on_its_own_timeline() {
    let world = world("primary");
    mark(&world.cluster, 1);
    world.cluster.switch_and_wait();
    world.cluster.stop("immediate");
    std::fs::remove_dir_all(&world.cluster.data).unwrap();
    let into = world.cluster.data.display().to_string();
    world
        .dr(&["restore", "erp", "--into", &into, "--as-primary", "--start"])
        .ok();
    assert_eq!(marks(&world.cluster), ["1"]);
    mark(&world.cluster, 2);
    let segment = world.cluster.switch_and_wait();
    assert!(segment.starts_with("00000002"), "{segment}");
    world.dr(&["backup", "run", "erp"]).ok();
    mark(&world.cluster, 3);
    world.cluster.switch_and_wait();
    let restored = world.restore_started("again", "latest");
    assert_eq!(marks(&restored), ["1", "2", "3"]);
    restored.stop("fast");
}

#[test]
fn a_standby_is_backed_up_and_restored_to_any_moment_of_its_primary() {
    let world = world("standby");
    let primary = &world.cluster;
    let standby = world.path("standby");
    let port = free_port();
    Program::new(&world.account, postgres_program("pg_basebackup"))
        .args(["-R", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres"])
        .args(["-p", &primary.port.to_string(), "-D"])
        .args([&standby])
        .run()
        .ok();
    let settings = standby.join("postgresql.auto.conf");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(
        &settings,
        format!("{text}port = {port}\nhot_standby = on\n"),
    )
    .unwrap();
    let standby = Cluster {
        data: standby,
        port,
        ..primary.clone()
    };
    standby.start();
    // The same repository and workload, and the standby as its source.
    let config = fs::read_to_string(world.config()).unwrap();
    let config = config.replace("data_directory: data }", "data_directory: standby }");
    let config = config.replace(&primary.url(), &standby.url());
    fs::write(world.path("standby.yaml"), config).unwrap();
    world.account.own(&world.path("standby.yaml"));
    let on_standby = |arguments: &[&str]| {
        Program::new(&world.account, world.binary())
            .args(["--config".as_ref(), world.path("standby.yaml").as_os_str()])
            .args(arguments)
            .run()
    };
    mark(primary, 1);
    let now = primary.value("select pg_current_wal_lsn()");
    wait_until("the standby to replay", Duration::from_secs(60), || {
        let reached = format!("select pg_last_wal_replay_lsn() >= '{now}'::pg_lsn");
        (standby.value(&reached) == "t").then_some(())
    });
    // A restart point needs a checkpoint of the primary.
    primary.psql("checkpoint");
    on_standby(&["backup", "run", "erp"]).ok();
    let point = world.points("erp").pop().unwrap();
    mark(primary, 2);
    let after_two = primary.moment();
    mark(primary, 3);
    primary.switch_and_wait();
    standby.stop("fast");

    let restored = world.restore_started("at-its-end", &point);
    assert_eq!(marks(&restored), ["1"]);
    restored.stop("fast");
    let restored = world.restore_started("later", &after_two);
    assert_eq!(marks(&restored), ["1", "2"]);
    restored.stop("fast");
    let proofs = world.ask(&["backup", "verify", &point]);
    assert_eq!(proofs.list("")[0].at("/passed").0, true, "{proofs:?}");
}

#[test]
fn a_tablespace_goes_where_it_is_asked_to() {
    let world = world("tablespace");
    let aside = world.path("aside");
    fs::create_dir(&aside).unwrap();
    world.account.own(&aside);
    let was = aside.display().to_string();
    let sql = |text: &str| world.cluster.psql(text);
    sql(&format!("create tablespace aside location '{was}'"));
    sql(
        "create table far (n int) tablespace aside; insert into far select generate_series(1, 50000)",
    );
    world.dr(&["backup", "run", "erp"]).ok();
    // And once more from an incremental: few of its pages change.
    sql("update far set n = 0 where n % 10000 = 0");
    world.dr(&["backup", "run", "erp"]).ok();

    let (into, now) = (world.path("restored"), world.path("elsewhere"));
    let restore = |mapping: &str| {
        let into = into.display().to_string();
        let given = [
            "restore",
            "erp",
            "--into",
            &into,
            "--start",
            "--tablespace",
            mapping,
        ];
        world.dr(&given)
    };
    let inside = format!("{was}={}", into.join("x").display());
    restore(&inside).says(&["a tablespace cannot go into", "x"]);
    let output = restore("/not/there=/tmp/x");
    output.says(&["no tablespace was at /not/there", &was]);
    assert!(output.code == Some(1) && !into.exists(), "{output}");
    assert_eq!(restore("aside=elsewhere").code, Some(2));
    restore(&format!("{was}={}", now.display())).ok();
    let restored = Cluster::running(&world.account, &into, &world.cluster.database);
    assert_eq!(
        restored.value("select count(*), min(n) from far"),
        "50000|0"
    );
    let place = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'aside'";
    assert_eq!(restored.value(place), now.display().to_string());
    restored.stop("fast");
    // It follows the links of tablespaces.
    let into = world.path("judged");
    let text = into.display().to_string();
    world.dr(&["restore", "erp", "--into", &text]).ok();
    world.pg_verifybackup(&into);
}

/// A server that readers may enter while it recovers has to have as many connections as the source had, and waits
/// for ever where it has not.
#[test]
fn a_source_that_was_given_more_connections_since_the_backup_is_restored() {
    let world = world("connections");
    mark(&world.cluster, 1);
    world.cluster.psql("alter system set max_connections = 400");
    world
        .cluster
        .psql("alter system set max_worker_processes = 40");
    world.cluster.stop("fast");
    world.cluster.start();
    mark(&world.cluster, 2);
    let moment = world.cluster.moment();
    mark(&world.cluster, 3);
    world.cluster.switch_and_wait();

    let restored = world.restore_started("as-a-copy", &moment);
    assert_eq!(marks(&restored), ["1", "2"]);
    restored.stop("fast");

    world.cluster.stop("fast");
    let into = world.path("as-primary").display().to_string();
    world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into,
            "--to",
            &moment,
            "--as-primary",
            "--start",
        ])
        .ok();
    let restored = Cluster {
        data: into.into(),
        ..world.cluster.clone()
    };
    assert_eq!(marks(&restored), ["1", "2"]);
    restored.stop("fast");
}

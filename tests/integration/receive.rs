//! Base backups from another host: nothing of the cluster's folder is read.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::harness::{
    Cluster, ERP, Options, Output, Program, World, free_port, postgres_program, wait_until,
};

/// Sums of what the tables of a cluster hold.
const SUMS: [&str; 5] = [
    "select count(*) || ' ' || md5(string_agg(t::text, ',' order by id)) from large t",
    "select count(*) || ' ' || sum(n) from far",
    "select count(*) || ' ' || sum(n) from near",
    "select count(*) || ' ' || sum(n) from within",
    "select md5(string_agg(t::text, ',' order by t::text)) from sales_order t",
];

/// A cluster with three tablespaces that archives nothing, and whose data directory is not where the
/// configuration would have it on this host.
fn world(name: &'static str) -> World {
    let world = World::new(&Options {
        settings: "allow_in_place_tablespaces = on\nautovacuum = off",
        ..Options::new(name, &ERP)
    });
    world.dr(&["init"]).ok();
    world.edit_configuration(
        "data_directory: data }",
        "data_directory: not-here, base_backup: receive }",
    );
    for place in ["far", "near"] {
        let folder = world.path(place);
        fs::create_dir(&folder).unwrap();
        world.account.own(&folder);
        let folder = folder.display();
        (world.cluster).psql(&format!("create tablespace {place} location '{folder}'"));
    }
    world.cluster.psql("create tablespace within location ''");
    world.cluster.psql(
        "create table large as select id, string_agg(md5(random()::text || n), '') as what
             from generate_series(1, 20000) id, generate_series(1, 12) n group by id;
         create index on large (id);
         create table far tablespace far as select generate_series(1, 50000) as n;
         create table near tablespace near as select generate_series(1, 40000) as n;
         create table within tablespace within as select generate_series(1, 30000) as n;
         create unlogged table fleeting as select generate_series(1, 1000) as n;
         checkpoint",
    );
    // What reads notes in the pages that rows are committed: not between two backups.
    world.cluster.psql("vacuum (freeze)");
    world.cluster.psql("checkpoint");
    world
}

fn back_up(world: &World) -> Output {
    world.dr(&["backup", "run", "erp"])
}

fn sums(cluster: &Cluster) -> [String; 5] {
    SUMS.map(|sql| cluster.value(sql))
}

#[test]
fn a_cluster_with_tablespaces_comes_from_another_host_and_needs_no_archive() {
    let world = world("receive");
    let output = back_up(&world).ok();
    output.says(&["receiving the cluster"]);
    let point = world.points("erp").pop().unwrap();
    let expected = sums(&world.cluster);

    // The next one holds what changed, and is complete by itself.
    world.cluster.psql("update far set n = n + 7 where n < 50");
    back_up(&world).ok();
    let later = sums(&world.cluster);
    let newest = world.points("erp").pop().unwrap();
    let stored = |id: &str| {
        let all = world.ask(&["backup", "list", "erp"]);
        let mut of = all.list("").into_iter();
        let point = of.find(|point| point.text("/point/id") == id).unwrap();
        point.number("/point/bytes_added")
    };
    assert!(
        stored(&newest) * 3 < stored(&point),
        "{} of {}",
        stored(&newest),
        stored(&point)
    );

    let restore = |id: &str, into: &str| {
        let folder = world.path(into);
        let text = folder.display().to_string();
        let given = ["restore", "erp", "--into", &text, "--to", id];
        world.dr(&given).ok();
        world.pg_verifybackup(&folder);
        let tablespaces = [format!("{text}.far"), format!("{text}.near")];
        for place in &tablespaces {
            let _ = fs::create_dir(place);
        }
        let port = free_port().to_string();
        let auto = folder.join("postgresql.auto.conf");
        let settings = fs::read_to_string(&auto).unwrap();
        fs::write(&auto, format!("{settings}port = {port}\n")).unwrap();
        let cluster = Cluster {
            data: folder.clone(),
            port: port.parse().unwrap(),
            ..world.cluster.clone()
        };
        cluster.start();
        Cluster::running(&world.account, &folder, "erp")
    };
    let old = restore(&point, "old");
    assert_eq!(sums(&old), expected);
    assert_eq!(old.value("select count(*) from fleeting"), "0");
    let places = "select string_agg(pg_tablespace_location(oid), ' ' order by spcname)
        from pg_tablespace where spcname in ('far', 'near')";
    let was = world.cluster.value(places);
    for place in was.split(' ') {
        let now = old.value(places);
        assert!(
            !now.split(' ').any(|now| now == place),
            "{now} is the original's"
        );
    }
    old.stop("fast");
    let new = restore(&newest, "new");
    assert_eq!(sums(&new), later);
    new.stop("fast");
    let proofs = world.ask(&["backup", "verify", &newest]);
    assert_eq!(proofs.list("")[0].at("/passed").0, true, "{proofs:?}");
    // Nothing is left at the server.
    let left = "select (select count(*) from pg_replication_slots)
        + (select count(*) from pg_stat_replication)";
    assert_eq!(world.cluster.value(left), "0");
}

#[test]
fn a_damaged_page_is_told_with_its_relation_and_the_point_counts_for_nothing() {
    let world = world("receive-damaged");
    let path = world.cluster.value("select pg_relation_filepath('near')");
    world.cluster.stop("fast");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(world.cluster.data.join(&path));
    file.unwrap()
        .write_all_at(b"rotten", 3 * 8192 + 4000)
        .unwrap();
    world.cluster.start();
    let inside = path.replace("pg_tblspc", "tablespaces");
    back_up(&world).says(&[
        "WARNING: damaged in the source: page 3 of table public.near",
        &inside,
    ]);
}

#[test]
fn a_server_killed_in_the_middle_is_an_error_and_the_next_backup_is_whole() {
    let world = world("receive-killed");
    // Slow enough to be in the middle for a while.
    world.edit_configuration(
        "base_backup: receive",
        "base_backup: receive, read_rate: 4MiB/s",
    );
    let log = world.path("logs/backup.log");
    let mut child = world.program(&["backup", "run", "erp"]).spawn(&log);
    wait_until("the server to send", Duration::from_secs(60), || {
        let sent =
            "select coalesce(max(backup_streamed), 0) > 1000000 from pg_stat_progress_basebackup";
        (world.cluster.value(sent) == "t").then_some(())
    });
    world.cluster.stop("immediate");
    let status = child.wait().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("PostgreSQL at 127.0.0.1:"), "{said}");
    world.cluster.start();
    assert!(world.points("erp").is_empty());
    world.edit_configuration(
        "base_backup: receive, read_rate: 4MiB/s",
        "base_backup: receive",
    );
    back_up(&world).ok();
    let restored = world.restore_started("restored", "latest");
    assert_eq!(sums(&restored), sums(&world.cluster));
    restored.stop("fast");
}

#[test]
fn a_standby_sends_its_cluster_too() {
    let world = world("receive-standby");
    world.archive("");
    let primary = &world.cluster;
    let standby = world.path("standby");
    let port = free_port();
    let mapped = ["far", "near"].map(|name| {
        let from = world.path(name).display().to_string();
        format!("{from}={from}-standby")
    });
    Program::new(&world.account, postgres_program("pg_basebackup"))
        .args(["-R", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres"])
        .args(["-T", &mapped[0], "-T", &mapped[1]])
        .args(["-p", &primary.port.to_string(), "-D"])
        .args([&standby])
        .run()
        .ok();
    let auto = standby.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap();
    fs::write(&auto, format!("{text}port = {port}\nhot_standby = on\n")).unwrap();
    let standby = Cluster {
        data: standby,
        port,
        ..primary.clone()
    };
    standby.start();
    primary.psql("insert into far values (77); checkpoint");
    let now = primary.value("select pg_current_wal_lsn()");
    wait_until("the standby to replay", Duration::from_secs(60), || {
        let reached = format!("select pg_last_wal_replay_lsn() >= '{now}'::pg_lsn");
        (standby.value(&reached) == "t").then_some(())
    });
    world.edit_configuration(&primary.url(), &standby.url());
    let log = world.path("logs/backup.log");
    let mut child = world.program(&["backup", "run", "erp"]).spawn(&log);
    // The segment in which it stops is the primary's to complete.
    let ended = wait_until("the backup to end", Duration::from_secs(90), || {
        primary.psql("insert into far values (78); select pg_switch_wal()");
        child.try_wait().unwrap()
    });
    assert!(ended.success(), "{}", fs::read_to_string(&log).unwrap());
    standby.stop("fast");
    primary.switch_and_wait();
    let restored = world.restore_started("restored", "latest");
    assert_eq!(sums(&restored), sums(primary));
    restored.stop("fast");
}

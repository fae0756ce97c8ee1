//! Production wins: what becomes of WAL that waits for a repository which does not come back, and of an archiver
//! that does not get on.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use crate::harness::{ERP, Json, Options, Output, World, wait_until};
use crate::stream::{end, order, orders, serve};

const LIMIT: Duration = Duration::from_secs(90);
/// In segments of the harness's clusters, which have 1 MiB.
const SEGMENTS_THAT_MAY_WAIT: usize = 4;

fn limited(name: &'static str) -> World {
    let world = World::protected(&Options::new(name, &ERP));
    world.edit_configuration(
        "data_directory: data }",
        "data_directory: data, archive_queue_max: 4MiB }",
    );
    world
}

/// The segments that the server waits to have archived.
fn waiting(world: &World) -> usize {
    let status = fs::read_dir(world.path("data/pg_wal/archive_status")).unwrap();
    let ready = |name: &str| name.len() == 30 && name.ends_with(".ready");
    let names = status.flatten().map(|entry| entry.file_name());
    names.filter(|name| ready(&name.to_string_lossy())).count()
}

fn fill_segments(world: &World, count: usize, prefix: &str) {
    for number in 0..count {
        order(world, &format!("{prefix}-{number}"));
        world.cluster.psql("select pg_switch_wal()");
    }
}

/// What `dr status` says of the workload and of the alerts, as text.
fn told(world: &World) -> String {
    let output: Output = world.program(&["status", "--json"]).run();
    let all = Json::parse(&output.stdout);
    format!(
        "{:?} {:?}",
        all.list("/workloads")[0].0,
        all.list("/alerts")
    )
}

fn wait_told(world: &World, what: &str, is_told: bool) -> String {
    let says = if is_told {
        "to be told"
    } else {
        "not to be told any more"
    };
    wait_until(&format!("`{what}` {says}"), LIMIT, || {
        let told = told(world);
        (told.contains(what) == is_told).then_some(told)
    })
}

/// A new timeline, whose history goes before all segments, and more segments than may wait; while the repository
/// is away.
fn give_up(world: &World) {
    world.cluster.stop("fast");
    let mut settings = fs::OpenOptions::new()
        .append(true)
        .open(world.path("data/postgresql.auto.conf"))
        .unwrap();
    settings.write_all(b"restore_command = 'false'\n").unwrap();
    let signal = world.path("data/recovery.signal");
    fs::write(&signal, "").unwrap();
    world.account.own(&signal);
    world.cluster.start();
    fill_segments(world, 8, "lost");
    wait_until("the queue to be given up", LIMIT, || {
        let is_record = |name: &String| name.ends_with(".json");
        let has_record = kept(world).iter().any(is_record);
        (has_record && waiting(world) <= SEGMENTS_THAT_MAY_WAIT).then_some(())
    });
}

/// What is kept on the server's host.
fn kept(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.path("wal-given-up/erp"));
    let names = entries.into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn kept_histories(world: &World) -> usize {
    let is_history = |name: &&String| name.starts_with("00000002.history.");
    kept(world).iter().filter(is_history).count()
}

/// A record is about files that were there: the same names are written again by a server that goes back.
#[test]
fn what_a_restored_server_writes_is_not_taken_for_what_was_given_up() {
    let world = limited("given-up-then-restored");
    order(&world, "before");
    world.cluster.switch_and_wait();
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();
    give_up(&world);
    assert_eq!(kept_histories(&world), 1);
    // Lost before anything was stored again.
    world.cluster.stop("immediate");
    fs::remove_dir_all(&world.cluster.data).unwrap();
    fs::rename(&away, &here).unwrap();
    let into = world.cluster.data.display().to_string();
    let restore = ["restore", "erp", "--into", &into, "--as-primary", "--start"];
    world.dr(&restore).ok();
    assert_eq!(kept_histories(&world), 0, "it is stored");
    assert_eq!(orders(&world.cluster, "before"), "1");
    fill_segments(&world, 10, "new");
    let last = world.cluster.switch_and_wait();
    assert!(last.starts_with("00000003"), "{last}");
    // Nothing of that is lost, and what was given up is on a branch that was left.
    let told = told(&world);
    assert!(!told.contains("were given up at"), "{told}");
    world.cluster.stop("immediate");
    let restored = world.restore_started("restored", "latest");
    assert_eq!(orders(&restored, "new-%"), "10");
    assert_eq!(orders(&restored, "lost-%"), "0");
    restored.stop("fast");
}

#[test]
fn what_waits_beyond_the_limit_is_given_up_and_a_base_backup_at_once_makes_it_good() {
    let world = limited("given-up");
    let daemon = serve(&world);
    // Its first backup; from then on the schedule would have it wait.
    wait_until("the daemon's first backup", LIMIT, || {
        (world.points("erp").len() == 2).then_some(())
    });
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();

    give_up(&world);
    assert_eq!(kept_histories(&world), 1, "the history is kept");
    assert!(!here.exists(), "a repository was made where it was");
    let log = fs::read_to_string(world.cluster.log()).unwrap();
    assert!(
        log.contains("were given up at"),
        "the server's log says so:\n{log}"
    );
    // Said while the repository is away still.
    wait_told(&world, "given-up erp", true);
    wait_told(&world, "were given up at", true);
    let before = orders(&world.cluster, "lost-%");
    assert_eq!(before, "8", "production goes on");

    fs::rename(&away, &here).unwrap();
    order(&world, "kept");
    world.cluster.switch_and_wait();
    let fetch = |name: &str| {
        world
            .dr(&["wal", "fetch", "--workload", "erp", name, "got"])
            .code
    };
    assert_eq!(fetch("00000002.history"), Some(0), "the history is stored");
    assert_eq!(kept_histories(&world), 0);
    // Without being asked.
    wait_until("a base backup that nobody planned", LIMIT, || {
        (world.points("erp").len() == 3).then_some(())
    });
    wait_told(&world, "were given up at", false);
    order(&world, "after");
    world.cluster.switch_and_wait();
    end(&world, daemon);
    // What was made good is not told again when the repository cannot be asked.
    fs::rename(&here, &away).unwrap();
    let told = told(&world);
    assert!(!told.contains("were given up at"), "{told}");
    fs::rename(&away, &here).unwrap();
    world.cluster.stop("immediate");
    let restored = world.restore_started("restored", "latest");
    assert_eq!(orders(&restored, "lost-%"), "8");
    assert_eq!(orders(&restored, "kept"), "1");
    assert_eq!(orders(&restored, "after"), "1");
    restored.stop("fast");
}

#[test]
fn without_a_record_nothing_is_given_up_and_a_person_may_still_store_it() {
    let world = limited("not-given-up");
    let (here, away) = (world.path("repository"), world.path("repository.away"));
    fs::rename(&here, &away).unwrap();
    // Where the record cannot be written the server keeps its WAL.
    fs::write(world.path("wal-given-up"), "in the way").unwrap();
    fill_segments(&world, 6, "waits");
    wait_until("archiving to fail", LIMIT, || {
        let failed = world
            .cluster
            .value("select failed_count > 2 from pg_stat_archiver");
        (failed == "t").then_some(())
    });
    let waits = waiting(&world);
    assert!(waits >= 6, "{waits} segments wait");
    fs::remove_file(world.path("wal-given-up")).unwrap();
    let first = world
        .cluster
        .value("select last_failed_wal from pg_stat_archiver");
    wait_until("the queue to be given up", LIMIT, || {
        world.cluster.reload();
        (waiting(&world) <= SEGMENTS_THAT_MAY_WAIT).then_some(())
    });
    fs::rename(&away, &here).unwrap();
    let fetch = || {
        world
            .dr(&["wal", "fetch", "--workload", "erp", &first, "got"])
            .code
    };
    assert_eq!(fetch(), Some(1), "{first} was given up");
    // The server has it still, and waits for it no more: what a person hands over is stored.
    let file = world.path("data/pg_wal").join(&first);
    if file.exists() {
        world.dr(&["wal", "push", &file.display().to_string()]).ok();
        assert_eq!(fetch(), Some(0), "{first} is stored");
    }
}

#[test]
fn an_archiver_that_does_not_get_on_is_an_alarm_until_it_does() {
    let world = World::protected(&Options::new("stuck", &ERP));
    let daemon = serve(&world);
    wait_told(&world, "could not archive", false);
    world.cluster.set("archive_command", "false");
    order(&world, "one");
    world.cluster.psql("select pg_switch_wal()");
    let told = wait_told(&world, "could not archive", true);
    let stuck = "select last_failed_wal from pg_stat_archiver";
    let name = world.cluster.value(stuck);
    assert!(told.contains(&name), "{name} is not in {told}");
    wait_told(&world, "archiver erp", true);
    world.archive("");
    world.cluster.reload();
    wait_told(&world, "could not archive", false);
    end(&world, daemon);
}

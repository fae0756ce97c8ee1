//! WAL received as it is written: what is in the repository when the server is gone.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::harness::{Cluster, ERP, Json, Options, Output, World, processes_in, wait_until};

const SLOT: &str = "dr_erp";
const LIMIT: Duration = Duration::from_secs(60);

/// A first backup, archiving that hands over nothing by itself but full segments, and the stream
/// configured.
pub(crate) fn world(name: &'static str, settings: &'static str) -> World {
    let world = World::protected(&Options {
        settings,
        ..Options::new(name, &ERP)
    });
    world.edit_configuration(
        "data_directory: data }",
        "data_directory: data, stream: { every: 100ms } }",
    );
    world
}

fn receive(world: &World) -> Child {
    world
        .program(&["wal", "receive"])
        .spawn(&world.path("logs/receive.log"))
}

/// The receiver itself, below the program that dropped privileges for it.
fn receiver_pid(world: &World) -> Option<i32> {
    let binary = world.binary().display().to_string();
    processes_in(&world.path(""))
        .into_iter()
        .find(|(_, line)| line.starts_with(&binary) && line.contains(" wal receive"))
        .map(|(pid, _)| pid)
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

fn kill_receiver(world: &World, child: &mut Child) {
    if let Some(pid) = receiver_pid(world) {
        signal(pid, rustix::process::Signal::KILL);
    }
    drop(child.wait());
}

fn stop_receiver(world: &World, mut child: Child) {
    let pid = receiver_pid(world).unwrap();
    signal(pid, rustix::process::Signal::TERM);
    let log = || fs::read_to_string(world.path("logs/receive.log")).unwrap_or_default();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", log());
}

/// The daemon, which receives too.
pub(crate) fn serve(world: &World) -> Child {
    let daemon = world.program(&["serve"]);
    daemon.spawn(&world.path("logs/serve.log"))
}

/// Asks the daemon to end.
pub(crate) fn end(world: &World, mut daemon: Child) {
    let binary = world.binary().display().to_string();
    let all = processes_in(&world.path(""));
    let ours = |line: &str| line.starts_with(&binary) && line.contains(" serve");
    let (pid, _) = all.into_iter().find(|(_, line)| ours(line)).unwrap();
    signal(pid, rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}

/// Kills the server's first process; the others end when they notice. Their command lines do not name the data
/// directory, but they work in it.
fn kill_server(cluster: &Cluster) {
    let text = fs::read_to_string(cluster.data.join("postmaster.pid")).unwrap();
    let pid = text.lines().next().unwrap().trim().parse().unwrap();
    signal(pid, rustix::process::Signal::KILL);
    let data = cluster.data.canonicalize().unwrap();
    wait_until("the server's processes to end", LIMIT, || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let works_there = |process: &fs::DirEntry| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|folder| folder == data)
        };
        (all.filter(works_there).count() == 0).then_some(())
    });
}

/// Waits until the server was told that everything it has is in the repository.
pub(crate) fn wait_flushed(world: &World) {
    let now = world.cluster.value("select pg_current_wal_flush_lsn()");
    let log = world.path("logs/receive.log");
    let reached = || {
        let asked = format!(
            "select count(*) from pg_stat_replication where application_name = '{SLOT}' \
             and flush_lsn >= '{now}'"
        );
        (world.cluster.value(&asked) == "1").then_some(())
    };
    let what = format!("{now} to be in the repository; see {}", log.display());
    wait_until(&what, LIMIT, reached);
}

/// `<segment>.<from>-<to>`, sorted.
fn tails(world: &World) -> Vec<String> {
    let folder = world.path("repository/records/wal-tail/erp");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    found.sort();
    found
}

pub(crate) fn orders(cluster: &Cluster, like: &str) -> String {
    cluster.value(&format!(
        "select count(*) from sales_order where order_no like '{like}'"
    ))
}

pub(crate) fn order(world: &World, number: &str) {
    world.cluster.psql(&format!(
        "insert into sales_order (tenant_id, order_no) values (1, '{number}')"
    ));
}

#[test]
fn a_server_that_is_lost_with_its_disk_loses_nothing_that_was_received() {
    let world = world("stream-loss", "");
    let mut receiver = receive(&world);
    order(&world, "live-1");
    wait_flushed(&world);
    assert!(!tails(&world).is_empty(), "the growing segment has no tail");
    // Killed in the middle, and begun again behind what is there.
    kill_receiver(&world, &mut receiver);
    order(&world, "live-2");
    let mut receiver = receive(&world);
    order(&world, "live-3");
    wait_flushed(&world);
    kill_server(&world.cluster);
    kill_receiver(&world, &mut receiver);
    fs::remove_dir_all(&world.cluster.data).unwrap();

    let restored = world.restore_started("restored", "latest");
    assert_eq!(orders(&restored, "live-%"), "3");
    restored.stop("fast");
    world.dr(&["repo", "check", "--read"]).ok();
}

#[test]
fn a_full_segment_takes_the_place_of_its_tails() {
    let world = world("stream-segments", "wal_keep_size = 1GB");
    let receiver = receive(&world);
    order(&world, "first");
    wait_flushed(&world);
    let before = tails(&world);
    assert!(!before.is_empty());
    let full = world.cluster.switch_and_wait();
    order(&world, "second");
    wait_flushed(&world);
    let after = wait_until("the tails of the full segment to go", LIMIT, || {
        let all = tails(&world);
        (!all.iter().any(|tail| tail.starts_with(&full))).then_some(all)
    });
    let fetched = world.path("fetched");
    let to = fetched.display().to_string();
    let fetch = |name: &str| world.dr(&["wal", "fetch", "--workload", "erp", name, &to]);
    fetch(&full).ok();
    let original = fs::read(world.cluster.data.join("pg_wal").join(&full)).unwrap();
    assert!(fs::read(&fetched).unwrap() == original, "{full} differs");

    // The growing one comes with what is there, at its full size.
    stop_receiver(&world, receiver);
    let growing = world
        .cluster
        .value("select pg_walfile_name(pg_current_wal_lsn())");
    fetch(&growing).ok();
    let (got, original) = (
        fs::read(&fetched).unwrap(),
        fs::read(world.cluster.data.join("pg_wal").join(&growing)).unwrap(),
    );
    assert_eq!(got.len(), original.len());
    let end = got.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert!(end > 100 && got[..end] == original[..end]);
    // What is neither whole nor begun is absent, and only that.
    assert_eq!(fetch("0000000100000000000000FE").code, Some(1));

    // Prune removes what a killed receiver leaves behind.
    let folder = world.path("repository/records/wal-tail/erp");
    fs::copy(folder.join(&after[0]), folder.join(&before[0])).unwrap();
    world.account.own(&folder);
    world.dr(&["repo", "prune"]).ok();
    let left = tails(&world);
    assert!(!left.iter().any(|tail| tail.starts_with(&full)), "{left:?}");
    assert!(
        left.iter().any(|tail| tail.starts_with(&growing)),
        "{left:?}"
    );
}

/// Recovery that ends before what was acknowledged opens a server that has lost it.
#[test]
fn a_damaged_tail_is_not_the_end_of_the_archive() {
    let world = world("stream-damaged", "wal_keep_size = 1GB");
    let receiver = receive(&world);
    for number in 0..20 {
        order(&world, &format!("live-{number}"));
        wait_flushed(&world);
    }
    stop_receiver(&world, receiver);
    let growing = world
        .cluster
        .value("select pg_walfile_name(pg_current_wal_lsn())");
    let into = world.path("into");
    fs::create_dir(&into).unwrap();
    world.account.own(&into);
    let to = into.join("RECOVERYXLOG").display().to_string();
    let fetch = || world.dr(&["wal", "fetch", "--workload", "erp", &growing, &to]);
    let fails = |when: &str| {
        let output = fetch();
        assert_eq!(output.code, Some(200), "{when}: {output}");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 0, "{when}");
    };
    fetch().ok();
    let whole = fs::read(&to).unwrap();
    fs::remove_file(&to).unwrap();
    let folder = world.path("repository/records/wal-tail/erp");
    let of_it: Vec<_> = tails(&world)
        .into_iter()
        .filter(|tail| tail.starts_with(&growing))
        .collect();
    // `<segment>.<from>-<to>`
    let end = |name: &&String| name.rsplit('-').next().unwrap().to_owned();
    let begin = |name: &&String| {
        name[growing.len() + 1..]
            .split('-')
            .next()
            .unwrap()
            .to_owned()
    };
    let last = of_it.iter().max_by_key(end).unwrap();
    let start = of_it.iter().map(|name| begin(&name)).min().unwrap();
    for name in &of_it {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        for place in [0, 40, 70, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[place] ^= 1;
            fs::write(&path, bad).unwrap();
            // What others hold together need not be read.
            if name != last && fetch().code == Some(0) {
                assert!(fs::read(&to).unwrap() == whole, "{name}, byte {place}");
                fs::remove_file(&to).unwrap();
            } else {
                fails(&format!("{name}, byte {place} flipped"));
            }
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        if name == last {
            fails(&format!("{name}, cut"));
        }
        fs::write(&path, good).unwrap();
    }
    // One of them gone, the one that reaches furthest apart: what came behind it is there, which is not what an
    // archive looks like that was given no more.
    let later = world.path("later");
    fs::create_dir(&later).unwrap();
    for name in of_it.iter().filter(|name| *name != last) {
        fs::rename(folder.join(name), later.join(name)).unwrap();
        if fetch().code == Some(0) {
            assert!(fs::read(&to).unwrap() == whole, "without {name}");
            fs::remove_file(&to).unwrap();
        } else {
            fails(&format!("without {name}"));
        }
        fs::rename(later.join(name), folder.join(name)).unwrap();
    }
    // All but that one.
    let but_last = || of_it.iter().filter(|name| *name != last);
    assert!(begin(&last) > start, "{of_it:?}");
    for name in but_last() {
        fs::rename(folder.join(name), later.join(name)).unwrap();
    }
    fails("without its beginning");
    for name in but_last() {
        fs::rename(later.join(name), folder.join(name)).unwrap();
    }
    fetch().ok();
    assert!(fs::read(&to).unwrap() == whole);
    // Nothing of it at all: the archive ends before it.
    fs::remove_file(&to).unwrap();
    for name in &of_it {
        fs::rename(folder.join(name), later.join(name)).unwrap();
    }
    assert_eq!(fetch().code, Some(1));
    assert_eq!(fs::read_dir(&into).unwrap().count(), 0);
}

#[test]
fn a_synchronous_commit_returns_when_it_is_in_the_repository() {
    let world = world("stream-sync", "");
    world.edit_configuration("every: 100ms", "every: 0ms");
    let mut receiver = receive(&world);
    order(&world, "before");
    wait_flushed(&world);
    world.cluster.set("synchronous_standby_names", SLOT);
    wait_until("the receiver to be the synchronous one", LIMIT, || {
        let asked = "select sync_state from pg_stat_replication where application_name = 'dr_erp'";
        (world.cluster.value(asked) == "sync").then_some(())
    });
    for number in 0..20 {
        order(&world, &format!("sync-{number}"));
    }
    // Nothing is replayed in a repository: a commit that asks for it does not hang, and one that asks for less
    // gets no less.
    for level in ["remote_apply", "remote_write"] {
        world.cluster.psql(&format!(
            "set statement_timeout = '60s'; set synchronous_commit = {level}; \
             insert into sales_order (tenant_id, order_no) values (1, 'sync-{level}')"
        ));
    }
    // Whatever was acknowledged is there at once: nothing is waited for.
    kill_receiver(&world, &mut receiver);
    kill_server(&world.cluster);
    fs::remove_dir_all(&world.cluster.data).unwrap();
    let restored = world.restore_started("restored", "latest");
    assert_eq!(orders(&restored, "sync-%"), "22");
    restored.stop("fast");
}

#[test]
fn a_quiet_server_that_is_streamed_keeps_its_promise() {
    let world = world("stream-quiet", "");
    fs::write(
        world.path("tier-configs/gold.yaml"),
        "tier: gold\nrto: 5m\nrpo: 5s\nbackup: { cron: \"0 0 3 * * *\" }\nretention: { daily: 7 }\n",
    )
    .unwrap();
    // archive_timeout is 0: only the stream can keep it.
    let config = || world.dr(&["config", "check"]);
    let said = config();
    said.says(&["slot `dr_erp` keeps WAL until the server's disk is full"]);
    assert!(!said.said().contains("archive_timeout"), "{said}");
    world.cluster.set("max_slot_wal_keep_size", "1GB");
    config().ok();
    let receiver = receive(&world);
    order(&world, "last");
    wait_flushed(&world);
    let status = || {
        let all = world.ask(&["status"]);
        let workloads = all.list("/workloads");
        let found = workloads
            .into_iter()
            .find(|one| one.text("/workload") == "erp");
        found.unwrap()
    };
    let quiet_since = std::time::Instant::now();
    wait_until("time to pass beyond the RPO", LIMIT, || {
        (quiet_since.elapsed() > Duration::from_secs(6)).then_some(())
    });
    assert!(status().number("/age_seconds") <= 4, "{:?}", status());
    // Without a receiver nobody knows.
    stop_receiver(&world, receiver);
    let age = status().number("/age_seconds");
    assert!(age >= 5, "{age}");
}

#[test]
fn a_slot_that_was_given_up_is_made_anew_and_the_gap_is_said() {
    let world = world(
        "stream-lost",
        "max_slot_wal_keep_size = 3MB\nmax_wal_size = 4MB\nmin_wal_size = 2MB",
    );
    // Nothing is archived: only the stream could have it.
    world.cluster.set("archive_command", "true");
    let receiver = receive(&world);
    order(&world, "received");
    wait_flushed(&world);
    stop_receiver(&world, receiver);
    for number in 0..8 {
        world.cluster.psql("select pg_switch_wal()");
        order(&world, &format!("lost-{number}"));
        world.cluster.psql("checkpoint");
    }
    let state = world
        .cluster
        .value("select wal_status from pg_replication_slots where slot_name = 'dr_erp'");
    assert_eq!(state, "lost");
    let receiver = receive(&world);
    order(&world, "after");
    world.cluster.psql("select pg_switch_wal()");
    order(&world, "behind it");
    wait_flushed(&world);
    stop_receiver(&world, receiver);
    let log = fs::read_to_string(world.path("logs/receive.log")).unwrap();
    assert!(log.contains("has given up slot `dr_erp`"), "{log}");
    assert!(log.contains("is missing"), "{log}");
    let check = world.dr(&["wal", "check", "erp"]);
    assert_eq!(check.code, Some(1), "{check}");
    check.says(&["MISSING"]);
    // A base backup ends it.
    world.dr(&["backup", "run", "erp"]).ok();
    let restored = world.restore_started("restored", "latest");
    assert_eq!(orders(&restored, "after"), "1");
    restored.stop("fast");
}

/// What the receiver says while it fails; it goes on trying until it is stopped.
fn fails(world: &World, words: &[&str]) {
    let log = world.path("logs/receive.log");
    drop(fs::remove_file(&log));
    let child = receive(world);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_until(&format!("{words:?} in {}", log.display()), LIMIT, || {
        let said = said();
        words.iter().all(|word| said.contains(word)).then_some(())
    });
    stop_receiver(world, child);
}

#[test]
fn what_cannot_be_received_is_said_and_changes_nothing() {
    let world = world("stream-refused", "wal_keep_size = 1GB");
    // Another receiver holds the slot.
    let first = receive(&world);
    order(&world, "one");
    wait_flushed(&world);
    let second = world
        .program(&["wal", "receive"])
        .spawn(&world.path("logs/second.log"));
    wait_until("the second receiver to be refused", LIMIT, || {
        let said = fs::read_to_string(world.path("logs/second.log")).unwrap_or_default();
        (said.contains(SLOT) && said.contains("active")).then_some(())
    });
    // Both have the same command line: end them one after the other.
    for mut child in [first, second] {
        let pid = i32::try_from(child.id()).unwrap();
        for (found, line) in processes_in(&world.path("")) {
            if line.contains(" wal receive") && (found == pid || parent_of(found) == Some(pid)) {
                signal(found, rustix::process::Signal::TERM);
            }
        }
        drop(child.wait());
    }

    // The cluster goes back to an earlier state, as by a snapshot of its disk: within a segment of which
    // there are tails, then in one that is stored whole.
    world.cluster.stop("fast");
    let (snapshot, true_one) = (world.path("snapshot"), world.path("true"));
    copy(&world.cluster.data, &snapshot);
    world.cluster.start();
    for is_whole in [false, true] {
        let receiver = receive(&world);
        order(&world, &format!("two-{is_whole}"));
        if is_whole {
            world.cluster.psql("select pg_switch_wal()");
            order(&world, "behind it");
        }
        wait_flushed(&world);
        stop_receiver(&world, receiver);
        world.cluster.stop("fast");
        fs::rename(&world.cluster.data, &true_one).unwrap();
        copy(&snapshot, &world.cluster.data);
        world.cluster.start();
        world.cluster.psql("create table other_history as select 1");
        let before = tails(&world);
        fails(&world, &["IS NOT WHAT WAS STREAMED OF IT BEFORE"]);
        assert_eq!(tails(&world), before, "nothing was stored");
        world.cluster.stop("fast");
        fs::remove_dir_all(&world.cluster.data).unwrap();
        fs::rename(&true_one, &world.cluster.data).unwrap();
        world.cluster.start();
    }

    world.cluster.psql("create role plain login");
    let url = world.cluster.url();
    let other = url.replace("postgres://postgres@", "postgres://plain@");
    world.edit_configuration(&url, &other);
    fails(&world, &["WAL is not received"]);
    world.edit_configuration(&other, &url);
    world.cluster.stop("fast");
    fails(&world, &["reach the server of `erp`"]);
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn nothing_is_received_before_there_is_a_base_backup() {
    let world = World::new(&Options::new("stream-unbound", &ERP));
    world.dr(&["init"]).ok();
    world.edit_configuration(
        "data_directory: data }",
        "data_directory: data, stream: {} }",
    );
    fails(&world, &["`erp` has no base backup yet"]);
    let slots = world
        .cluster
        .value("select count(*) from pg_replication_slots");
    assert_eq!(slots, "0", "nothing was made on the server");
}

#[test]
fn the_daemon_receives_and_says_when_it_cannot() {
    let world = world("stream-daemon", "");
    let daemon = serve(&world);
    order(&world, "served");
    wait_flushed(&world);
    // Someone forbids it: an alarm, and recovery when it is mended.
    world.cluster.stop("fast");
    let alerts = || -> Vec<String> {
        let output: Output = world.program(&["status", "--json"]).run();
        let all = Json::parse(&output.stdout).list("/alerts");
        all.iter().map(|alert| format!("{:?}", alert.0)).collect()
    };
    wait_until("the alarm", LIMIT, || {
        let found = alerts();
        found
            .iter()
            .any(|alert| alert.contains("not received as it is written"))
            .then_some(())
    });
    world.cluster.start();
    wait_until("the alarm to end", LIMIT, || {
        let found = alerts();
        (!found.iter().any(|alert| alert.contains("not received"))).then_some(())
    });
    order(&world, "again");
    wait_flushed(&world);
    end(&world, daemon);
}

//! Server, receiver, or both killed at random under load; what was acknowledged is looked for in what the
//! repository alone gives back.
//!
//! `DR_TEST_LONG=1` runs a hundred rounds of each kind of stream and prints every one of them.

#![allow(clippy::print_stdout, reason = "what each round lost is the result")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{Cluster, ERP, Options, World, long, processes_in, wait_until};
use crate::scene::{kill, random};

const LIMIT: Duration = Duration::from_secs(60);
const CLIENTS: usize = 3;
/// A restore replays what came after the newest backup.
const ROUNDS_PER_BACKUP: usize = 8;

/// An acknowledged write: its key, and when the answer had been read.
type Acknowledged = Arc<Mutex<Vec<(String, Instant)>>>;

/// Clients that write until their server is gone.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(world: &World, round: usize, acknowledged: &Acknowledged) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|client| {
            let mut child = world
                .cluster
                .psql_program()
                .talk(&world.path("logs/load.log"));
            let mut input = child.stdin.take().unwrap();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            std::thread::spawn(move || {
                for number in 0.. {
                    let key = format!("k-{round}-{client}-{number}");
                    let tenant = number % 6 + 1;
                    let statement = format!(
                        "insert into sales_order (tenant_id, order_no, note) \
                         select {tenant}, '{key}', string_agg(md5(random()::text), '') \
                         from generate_series(1, 40) returning order_no;"
                    );
                    let mut line = String::new();
                    let answered = writeln!(input, "{statement}")
                        .and_then(|()| input.flush())
                        .and_then(|()| output.read_line(&mut line));
                    if !matches!(answered, Ok(bytes) if bytes > 0) {
                        break;
                    }
                    acknowledged.lock().unwrap().push((key, Instant::now()));
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                }
                drop(input);
                drop(child.wait());
            })
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Server,
    Receiver,
    Both,
}

fn receive(world: &World) -> Child {
    world
        .program(&["wal", "receive"])
        .spawn(&world.path("logs/receive.log"))
}

fn kill_receiver(world: &World) {
    let binary = world.binary().display().to_string();
    for (pid, line) in processes_in(&world.path("")) {
        if line.starts_with(&binary) && line.contains(" wal receive") {
            kill(pid);
        }
    }
}

/// The server's first process; its children end when they notice.
fn kill_server(cluster: &Cluster) {
    let text = fs::read_to_string(cluster.data.join("postmaster.pid")).unwrap();
    kill(text.lines().next().unwrap().trim().parse().unwrap());
}

fn wait_streaming(world: &World) {
    wait_until("the receiver to be connected", LIMIT, || {
        let asked = "select count(*) from pg_stat_replication \
                     where application_name = 'dr_erp' and state = 'streaming'";
        let answer = world.cluster.try_psql(asked);
        (answer.stdout.trim() == "1").then_some(())
    });
}

/// What a restore from the repository alone has.
fn recovered(world: &World) -> BTreeSet<String> {
    let restored = world.restore_started("restored", "latest");
    let found = restored.psql("select order_no from sales_order where order_no like 'k-%'");
    restored.stop("immediate");
    fs::remove_dir_all(world.path("restored")).unwrap();
    found.into_iter().collect()
}

/// What one round lost.
#[derive(Debug)]
struct Lost {
    killed: Killed,
    acknowledged: usize,
    writes: usize,
    /// From the acknowledgement of the oldest lost write to the kill.
    span: Duration,
}

fn round(world: &World, number: usize, killed: Killed, receiver: &mut Child) -> Lost {
    let acknowledged = Acknowledged::default();
    let load = Load::start(world, number, &acknowledged);
    std::thread::sleep(Duration::from_millis(300 + random(1500)));
    let moment = match killed {
        Killed::Server => {
            kill_server(&world.cluster);
            Instant::now()
        }
        Killed::Both => {
            kill_receiver(world);
            kill_server(&world.cluster);
            Instant::now()
        }
        Killed::Receiver => {
            kill_receiver(world);
            drop(receiver.wait());
            *receiver = receive(world);
            wait_streaming(world);
            std::thread::sleep(Duration::from_millis(1000 + random(1000)));
            // As if the server were lost now: what comes later is not looked for.
            Instant::now()
        }
    };
    if killed == Killed::Receiver {
        load.end();
    } else {
        for thread in load.threads {
            thread.join().unwrap();
        }
    }
    let found = recovered(world);
    let before: Vec<(String, Instant)> = acknowledged.lock().unwrap().clone();
    let before = before.into_iter().filter(|(_, at)| *at <= moment);
    let before: Vec<(String, Instant)> = before.collect();
    let missing = before.iter().filter(|(key, _)| !found.contains(key));
    let oldest = missing.clone().map(|(_, at)| *at).min();
    let lost = Lost {
        killed,
        acknowledged: before.len(),
        writes: missing.count(),
        span: oldest.map_or(Duration::ZERO, |at| moment - at),
    };
    // On with the same cluster.
    if killed != Killed::Receiver {
        wait_until("the server to start again", LIMIT, || {
            (world.cluster.try_start().code == Some(0)).then_some(())
        });
    }
    if killed == Killed::Both {
        drop(receiver.wait());
        *receiver = receive(world);
    }
    wait_streaming(world);
    lost
}

fn rounds(world: &World, count: usize) -> Vec<Lost> {
    let mut receiver = receive(world);
    wait_streaming(world);
    let kinds = [Killed::Server, Killed::Both, Killed::Receiver];
    let mut all = Vec::new();
    for number in 0..count {
        if number % ROUNDS_PER_BACKUP == ROUNDS_PER_BACKUP - 1 {
            world.dr(&["backup", "run", "erp"]).ok();
        }
        let lost = round(world, number, kinds[number % kinds.len()], &mut receiver);
        println!(
            "round {number}: {:?} killed, {} writes acknowledged, {} lost, over {:?}",
            lost.killed, lost.acknowledged, lost.writes, lost.span
        );
        all.push(lost);
    }
    kill_receiver(world);
    drop(receiver.wait());
    let mut spans: Vec<Duration> = all.iter().map(|lost| lost.span).collect();
    spans.sort();
    println!(
        "{count} rounds: lost at the median {:?}, at worst {:?}, of {} acknowledged writes {}",
        spans[spans.len() / 2],
        spans.last().unwrap(),
        all.iter().map(|lost| lost.acknowledged).sum::<usize>(),
        all.iter().map(|lost| lost.writes).sum::<usize>()
    );
    world.dr(&["repo", "check", "--read"]).ok();
    world.dr(&["wal", "check", "erp"]).ok();
    all
}

fn world(name: &'static str, every: &str) -> World {
    let world = World::protected(&Options {
        settings: "max_wal_size = 256MB",
        ..Options::new(name, &ERP)
    });
    world.edit_configuration(
        "data_directory: data }",
        &format!("data_directory: data, stream: {{ every: {every} }} }}"),
    );
    world
}

fn count(short: usize) -> usize {
    if long() { 100 } else { short }
}

#[test]
fn kills_under_load_lose_no_more_than_what_was_not_received() {
    let world = world("stream-kills", "200ms");
    let all = rounds(&world, count(6));
    assert!(all.iter().all(|lost| lost.acknowledged > 10), "{all:?}");
    // How fast this machine is decides; the promise is for one that keeps up.
    let allowed = Duration::from_secs(if long() { 1 } else { 10 });
    assert!(all.iter().all(|lost| lost.span <= allowed), "{all:?}");
}

#[test]
fn synchronous_kills_under_load_lose_nothing() {
    let world = world("stream-kills-sync", "0ms");
    let mut receiver = receive(&world);
    wait_streaming(&world);
    world.cluster.set("synchronous_standby_names", "dr_erp");
    kill_receiver(&world);
    drop(receiver.wait());
    let all = rounds(&world, count(6));
    assert!(all.iter().all(|lost| lost.acknowledged > 10), "{all:?}");
    assert!(all.iter().all(|lost| lost.writes == 0), "{all:?}");
}

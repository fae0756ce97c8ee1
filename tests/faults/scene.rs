//! A daemon with schedules of seconds over a cluster that writes WAL all the time; and the judgement of
//! what is left after violence.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};

use crate::harness::{
    ERP, Options, Program, World, Writer, postgres_program, processes_in, wait_until,
};

/// Numbers that differ from run to run; a seed would not make the moments of a kill the same.
pub(crate) fn random(below: u64) -> u64 {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_le_bytes(bytes) % below
}

pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Backups every few seconds; nothing recycles WAL, so that the original stays to compare with.
pub(crate) fn world(name: &'static str, environment: String) -> World {
    World::protected(&Options {
        settings: "archive_timeout = 2\nwal_keep_size = 2GB\nmax_wal_size = 4GB",
        gold_cron: "*/4 * * * * *",
        silver_cron: "*/3 * * * * *",
        archive_environment: environment,
        ..Options::new(name, &ERP)
    })
}

pub(crate) fn writer(world: &World) -> Writer {
    Writer::start(
        &world.cluster,
        &world.path("logs/writer.log"),
        Duration::from_millis(20),
        // Incompressible, so that a segment fills in a moment.
        |n| {
            format!(
                "insert into sales_order (tenant_id, order_no, note) select {tenant}, 'live-{n}', \
                 string_agg(md5(random()::text), '') from generate_series(1, 300) \
                 returning order_no",
                tenant = n % 6 + 1
            )
        },
    )
}

pub(crate) fn daemon(world: &World, environment: &[(&str, String)]) -> Child {
    world
        .program(&["serve"])
        .envs(environment)
        .spawn(&world.path("logs/serve.log"))
}

/// The daemon itself, below the program that dropped privileges for it.
pub(crate) fn daemon_pid(world: &World) -> Option<i32> {
    find(world, " serve")
}

pub(crate) fn push_pid(world: &World) -> Option<i32> {
    find(world, " wal push ")
}

fn find(world: &World, words: &str) -> Option<i32> {
    let binary = world.binary().display().to_string();
    processes_in(world.folder.path())
        .into_iter()
        .find(|(_, line)| line.starts_with(&binary) && format!("{line} ").contains(words))
        .map(|(pid, _)| pid)
}

/// Backups that the catalog says are running.
pub(crate) fn running_backups(world: &World) -> usize {
    let output = world.program(&["status", "--json"]).run();
    if output.code != Some(0) {
        return 0;
    }
    let status = crate::harness::Json::parse(&output.stdout);
    status
        .list("/running_jobs")
        .iter()
        .filter(|job| format!("{:?}", job.0).contains("backup"))
        .count()
}

/// Nothing acknowledged is missing, nothing stored is damaged, everything listed restores.
pub(crate) fn judge(world: &World, acknowledged: &[String]) {
    let check = world.program(&["repo", "check", "--read"]).run();
    assert_eq!(check.code, Some(0), "{check}");
    let fetched = world.path("tmp/fetched");
    let mut wrong = BTreeMap::new();
    for name in acknowledged {
        drop(fs::remove_file(&fetched));
        let output = world.dr(&["wal", "fetch", name, &fetched.display().to_string()]);
        let original = fs::read(world.cluster.data.join("pg_wal").join(name));
        let same = || {
            original
                .ok()
                .is_none_or(|o| Sha256::digest(o) == Sha256::digest(fs::read(&fetched).unwrap()))
        };
        if output.code != Some(0) {
            wrong.insert(
                name.clone(),
                format!("exit {:?}: {}", output.code, output.stderr),
            );
        } else if !same() {
            wrong.insert(name.clone(), "other content".to_owned());
        }
    }
    assert!(
        wrong.is_empty(),
        "of {} acknowledged: {wrong:#?}",
        acknowledged.len()
    );
    let points = [world.points("erp"), world.points("config")].concat();
    assert!(points.len() >= 2, "{points:?}");
    for point in points {
        let proof = world.dr(&["backup", "verify", &point]);
        assert_eq!(proof.code, Some(0), "{proof}");
    }
}

/// The newest state restores, starts, and PostgreSQL's own checker finds its heap whole.
pub(crate) fn restores_to_the_newest(world: &World) -> u64 {
    let restored = world.restore_started("restored", "latest");
    let dump = Program::new(&world.account, postgres_program("pg_dump"))
        .args(["-f".as_ref(), world.path("tmp/dump.sql").as_os_str()])
        .args([restored.url()])
        .run();
    assert_eq!(dump.code, Some(0), "{dump}");
    let orders = restored.value("select count(*) from sales_order where order_no like 'live-%'");
    restored.stop("immediate");
    fs::remove_dir_all(&restored.data).unwrap();
    orders.parse().unwrap()
}

pub(crate) fn wait_for_daemon(world: &World) -> i32 {
    wait_until("the daemon to run", Duration::from_secs(20), || {
        daemon_pid(world)
    })
}

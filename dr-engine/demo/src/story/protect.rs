//! Chapters 2 and 3: the repository, the promises, and the daemon that keeps them.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::closing::Ending;
use super::error::StoryError;
use super::world::World;

/// The first scheduled backup of each workload comes within a minute.
const FIRST_BACKUPS_TIME_MAX: Duration = Duration::from_secs(100);
const POLL: Duration = Duration::from_millis(500);

const TIERS: [(&str, &str); 3] = [
    ("gold", include_str!("files/gold.yaml")),
    ("queue", include_str!("files/queue.yaml")),
    ("silver", include_str!("files/silver.yaml")),
];

/// Chapter 2.
pub(super) async fn initialise(world: &World) -> Result<(), StoryError> {
    let shell = &world.shell;
    let engine = include_str!("files/dr.yaml")
        .replace("@URL@", &world.url)
        .replace("@NATS@", &world.nats_url);
    shell.write(&shell.config(), &engine)?;
    for (name, text) in TIERS {
        shell.write(&world.path(&format!("tier-configs/{name}.yaml")), text)?;
    }
    let sudo = shell
        .run_as
        .as_ref()
        .map_or_else(String::new, |user| format!("sudo -u {} ", user.name));
    shell.say(&format!(
        "to type along in another terminal:\n  export DR_CONFIG={} PATH={}:$PATH{}",
        shell.config().display(),
        world.path("bin").display(),
        if sudo.is_empty() {
            String::new()
        } else {
            format!("   # and put `{sudo}-E` before each command")
        }
    ));
    shell.dr(&["init"]).await?;
    shell.say("");
    shell.say("PostgreSQL is told to archive its WAL through dr:");
    let command = format!(
        "'{}' --config '{}' wal push '%p'",
        shell.binary().display(),
        shell.config().display()
    );
    // %p must not be quoted: PostgreSQL puts the path in as it is, and its own names need no quoting.
    let command = command.replace("'%p'", "%p").replace('\'', "''");
    shell.dr(&["backup", "run", "erp"]).await?;
    world
        .psql(&format!("alter system set archive_command = '{command}'"))
        .await?;
    world.psql("select pg_reload_conf()").await?;
    shell.dr(&["config", "check"]).await.map(drop)
}

/// Chapter 3.
pub(super) async fn serve(world: &mut World, ending: &mut Ending) -> Result<(), StoryError> {
    let log = world.path("logs/serve.log");
    world.shell.say("");
    world
        .shell
        .say(&format!("$ dr serve &        # its log: {}", log.display()));
    world.run_in_background("serve", &["serve"], &log)?;
    start_probe(world, "everyone", "")?;
    world.shell.say(
        "a probe writes an order for every tenant twice a second and logs each acknowledgement",
    );
    wait_for_first_backups(world).await?;
    wait_for_wal(world).await?;
    world.shell.dr(&["backup", "list"]).await?;
    world.shell.dr(&["status"]).await?;
    ending.protected = world.shell.ask(&["status"]).await?;
    Ok(())
}

/// Starts the probe `name` on the tenants for which `condition` holds.
pub(super) fn start_probe(
    world: &mut World,
    name: &'static str,
    condition: &str,
) -> Result<(), StoryError> {
    let file = world.path(&format!("drills/probe-{name}.yaml"));
    let text = include_str!("files/probe.yaml")
        .replace("@NAME@", name)
        .replace("@WHERE@", condition);
    world.shell.write(&file, &text)?;
    let results = world
        .path(&format!("logs/probe-{name}.jsonl"))
        .display()
        .to_string();
    let file = file.display().to_string();
    let log = world.path(&format!("logs/probe-{name}.log"));
    world.run_in_background(name, &["probe", "run", &file, "--log", &results], &log)
}

async fn wait_for_first_backups(world: &mut World) -> Result<(), StoryError> {
    world
        .shell
        .say("waiting until each tier's schedule has run once ...");
    let began = Instant::now();
    loop {
        let points = world.shell.ask(&["backup", "list"]).await?;
        let has = |name: &str, at_least: usize| {
            points.as_array().is_some_and(|all| {
                all.iter()
                    .filter(|p| p.pointer("/point/workload") == Some(&Value::from(name)))
                    .count()
                    >= at_least
            })
        };
        if has("erp", 1) && has("orders", 1) && has("config", 1) {
            return Ok(());
        }
        if world.has_ended("serve") || began.elapsed() > FIRST_BACKUPS_TIME_MAX {
            return Err(StoryError::Waited {
                what: "the first backup of every workload".to_owned(),
                seconds: began.elapsed().as_secs(),
                log: world.path("logs/serve.log"),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Until a segment has arrived, only the ends of backups can be reached.
async fn wait_for_wal(world: &World) -> Result<(), StoryError> {
    let began = Instant::now();
    loop {
        let status = world.shell.ask(&["status"]).await?;
        let problems: usize = status
            .pointer("/workloads")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|workload| workload.get("problems").and_then(Value::as_array))
            .map(Vec::len)
            .sum();
        if problems == 0 {
            return Ok(());
        }
        if began.elapsed() > FIRST_BACKUPS_TIME_MAX {
            return Err(StoryError::Waited {
                what: "a status without problems".to_owned(),
                seconds: began.elapsed().as_secs(),
                log: world.path("logs/postgres.log"),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

//! Chapter 5: the shipped drills, each in a sandbox of its own, and their reports.

use std::path::Path;

use super::closing::{Ending, Held};
use super::error::StoryError;
use super::world::World;

/// The shipped files as they are in the source tree: what the demo runs is what operators get.
const FILES: [(&str, &str); 8] = [
    (
        "drills/primary-loss.yaml",
        include_str!("../../../../drills/primary-loss.yaml"),
    ),
    (
        "drills/tenant-mistake.yaml",
        include_str!("../../../../drills/tenant-mistake.yaml"),
    ),
    (
        "drills/queue-lost.yaml",
        include_str!("../../../../drills/queue-lost.yaml"),
    ),
    (
        "drills/probes/orders.yaml",
        include_str!("../../../../drills/probes/orders.yaml"),
    ),
    (
        "drills/probes/events.yaml",
        include_str!("../../../../drills/probes/events.yaml"),
    ),
    (
        "runbooks/rebuild-primary.yaml",
        include_str!("../../../../runbooks/rebuild-primary.yaml"),
    ),
    (
        "runbooks/restore-tenant.yaml",
        include_str!("../../../../runbooks/restore-tenant.yaml"),
    ),
    (
        "runbooks/restore-queue.yaml",
        include_str!("../../../../runbooks/restore-queue.yaml"),
    ),
];

const DRILLS: [&str; 3] = ["primary-loss", "tenant-mistake", "queue-lost"];

/// Exit code of a drill that was held and missed its objective.
const MISSED: i32 = 3;

pub(super) async fn hold(world: &mut World, ending: &mut Ending) -> Result<(), StoryError> {
    for (path, text) in FILES {
        world
            .shell
            .write(&world.path(path), &with_fault(path, text))?;
    }
    world.stop_background("others");
    ending.objectives_met = true;
    for drill in DRILLS {
        let file = format!("drills/{drill}.yaml");
        let (code, _) = world
            .shell
            .dr_accepting(&["drill", "run", &file, "--out", "reports"], &[0, MISSED])
            .await?;
        ending.objectives_met &= code == 0;
        ending.held.push(Held {
            drill,
            met: code == 0,
        });
    }
    world.shell.dr(&["drill", "list"]).await?;
    world
        .shell
        .dr(&["drill", "report", "--out", "reports"])
        .await?;
    world.shell.dr(&["repo", "check"]).await?;
    ending.runs = world.shell.ask(&["drill", "list"]).await?;
    ending.reports = reports(&world.path("reports"));
    Ok(())
}

fn reports(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.ends_with(".html"))
        .collect();
    found.sort();
    found
}

/// Test builds can take the restore step out of the runbook: the drill must then fail and say so.
#[cfg(feature = "testing")]
fn with_fault(path: &str, text: &str) -> String {
    let wanted = std::env::var("DR_TEST_DEMO_FAULT").as_deref() == Ok("remove-restore-step");
    if !wanted || !path.ends_with("rebuild-primary.yaml") {
        return text.to_owned();
    }
    let mut inside = false;
    text.lines()
        .filter(|line| {
            if line.trim_start().starts_with("- ") {
                inside = line.trim_start().starts_with("- restore:");
            }
            !inside
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(not(feature = "testing"))]
fn with_fault(_path: &str, text: &str) -> String {
    text.to_owned()
}

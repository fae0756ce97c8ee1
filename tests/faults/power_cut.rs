//! The same when the power goes: everything written and not fsynced is gone, and so are the folder
//! entries of what was not fsynced into its folder.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use crate::harness::{ERP, Options, Output, World, processes_in, wait_until};
use crate::scene;

const CUTS: usize = 6;

/// Ends every program of the product and the server at once, as the power would.
fn cut(world: &World) {
    let binary = world.binary().display().to_string();
    let product = || {
        processes_in(world.folder.path())
            .into_iter()
            .filter(|(_, line)| line.contains(&binary))
    };
    product().for_each(|(pid, _)| scene::kill(pid));
    world.cluster.stop("immediate");
    wait_until("the last programs to end", Duration::from_secs(20), || {
        product().for_each(|(pid, _)| scene::kill(pid));
        product().next().is_none().then_some(())
    });
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_and_damages_nothing_stored() {
    let world = scene::world("power", String::new());
    let journal = world.path("tmp/journal");
    let environment = [("DR_TEST_FS_JOURNAL", journal.display().to_string())];
    world.archive(&format!("DR_TEST_FS_JOURNAL='{}'", journal.display()));
    let repository = world.path("repository");
    for _ in 0..CUTS {
        let writer = scene::writer(&world);
        let mut daemon = scene::daemon(&world, &environment);
        scene::wait_for_daemon(&world);
        // Backups follow each other by seconds; where in one the power goes is left to chance.
        wait_until("something to be written", Duration::from_secs(20), || {
            fs::metadata(&journal)
                .ok()
                .filter(|journal| journal.len() > 0)
        });
        sleep(Duration::from_millis(scene::random(4000)));
        cut(&world);
        drop(daemon.wait());
        drop(writer.stop());
        dr_testkit::drop_unsynced(&journal, &repository).unwrap();
        assert!(
            fs::metadata(&journal).unwrap().len() > 0,
            "the journal is empty"
        );
        fs::remove_file(&journal).unwrap();
        world.cluster.start();
    }
    let acknowledged = world.cluster.acknowledged_wal();
    scene::judge(&world, &acknowledged);
    // The next daemon starts and works.
    let points = world.points("erp").len();
    let mut daemon = scene::daemon(&world, &[]);
    wait_until("a backup after the cuts", Duration::from_secs(60), || {
        (world.points("erp").len() > points).then_some(())
    });
    scene::kill(scene::wait_for_daemon(&world));
    drop(daemon.wait());
    world.cluster.switch_and_wait();
    scene::restores_to_the_newest(&world);
}

/// Where the product can be made to die, in the order in which it passes there.
const STEPS_OF_A_PUSH: [&str; 5] = [
    "store.wal.before-put",
    "store.local.after-write",
    "store.local.after-fsync",
    "store.local.after-rename",
    "store.wal.after-put",
];
const STEPS_OF_A_BACKUP: [&str; 8] = [
    "store.before-pack",
    "store.local.after-write",
    "store.local.after-fsync",
    "store.local.after-rename",
    "store.after-pack",
    "store.after-index",
    "store.before-point",
    "store.after-point",
];

/// An installation whose segments are pushed by the test alone.
struct ByHand {
    world: World,
    journal: PathBuf,
}

impl ByHand {
    fn new(name: &'static str) -> Self {
        let world = World::protected(&Options::new(name, &ERP));
        world.cluster.switch_and_wait();
        world.cluster.set("archive_command", "");
        let journal = world.path("tmp/journal");
        Self { world, journal }
    }

    fn run(&self, arguments: &[&str], die_at: Option<&str>) -> Output {
        let program = self
            .world
            .program(arguments)
            .directory(&self.world.cluster.data)
            .env("DR_TEST_FS_JOURNAL", &self.journal);
        match die_at {
            Some(place) => program.env("DR_TEST_KILL_AT", place).run(),
            None => program.run(),
        }
    }

    fn cut(&self) -> usize {
        if !self.journal.exists() {
            return 0;
        }
        let dropped = dr_testkit::drop_unsynced(&self.journal, &self.world.path("repository"));
        fs::remove_file(&self.journal).unwrap();
        dropped.unwrap().len()
    }

    fn check(&self, when: &str) {
        let check = self.run(&["repo", "check", "--read"], None);
        assert_eq!(check.code, Some(0), "{when}: {check}");
    }
}

#[test]
fn a_push_that_died_at_any_step_is_repeated_and_then_survives_a_power_cut() {
    let scene = ByHand::new("push-steps");
    let cluster = &scene.world.cluster;
    let fetched = scene.world.path("tmp/fetched");
    let mut dropped = 0;
    for cut_between in [false, true] {
        for step in STEPS_OF_A_PUSH {
            cluster.psql("select pg_logical_emit_message(true, 'test', 'something')");
            let name = cluster.value("select pg_walfile_name(pg_switch_wal() - 1)");
            let segment = format!("pg_wal/{name}");
            let died = scene.run(&["wal", "push", &segment], Some(step));
            assert_ne!(died.code, Some(0), "it should have died at {step}: {died}");
            if cut_between {
                dropped += scene.cut();
                scene.check(step);
            }
            scene.run(&["wal", "push", &segment], None).ok();
            dropped += scene.cut();
            drop(fs::remove_file(&fetched));
            let path = fetched.display().to_string();
            scene.run(&["wal", "fetch", &name, &path], None).ok();
            let same =
                fs::read(&fetched).unwrap() == fs::read(cluster.data.join(&segment)).unwrap();
            assert!(same, "{name} after dying at {step}");
        }
    }
    scene.check("at the end");
    assert!(dropped > 0, "no power cut took anything away");
}

#[test]
fn a_backup_that_died_at_any_step_leaves_a_whole_repository_after_a_power_cut() {
    let scene = ByHand::new("backup-steps");
    let mut dropped = 0;
    for step in STEPS_OF_A_BACKUP {
        let file = scene.world.path("config/acme/settings.yaml");
        fs::write(&file, format!("something new: {step}\n")).unwrap();
        let points = scene.world.points("config");
        let died = scene.run(&["backup", "run", "config"], Some(step));
        assert_ne!(died.code, Some(0), "it should have died at {step}: {died}");
        dropped += scene.cut();
        scene.check(step);
        let after = scene.world.points("config");
        // Only a point that is wholly durable may have come.
        assert!(
            after.starts_with(&points) && after.len() <= points.len() + 1,
            "{step}: {after:?}"
        );
        for point in after.iter().skip(points.len()) {
            scene.run(&["backup", "verify", point], None).ok();
        }
        scene.run(&["backup", "run", "config"], None).ok();
        dropped += scene.cut();
        scene.check(step);
        let newest = scene.world.points("config").pop().unwrap();
        assert!(
            !points.contains(&newest),
            "a finished backup is gone after dying at {step}"
        );
        scene.run(&["backup", "verify", &newest], None).ok();
    }
    assert!(dropped > 0, "no power cut took anything away");
}

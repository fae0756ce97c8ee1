//! The same when the power goes: everything written and not fsynced is gone, and so are the folder
//! entries of what was not fsynced into its folder.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::harness::{World, processes_in, wait_until};
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
    for number in 0..CUTS {
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
        let before = world.cluster.acknowledged_wal().len();
        cut(&world);
        drop(daemon.wait());
        drop(writer.stop());
        let dropped = dr_testkit::drop_unsynced(&journal, &repository).unwrap();
        assert!(
            fs::metadata(&journal).unwrap().len() > 0,
            "the journal is empty"
        );
        fs::remove_file(&journal).unwrap();
        eprintln!(
            "cut {number}: {} dropped, {before} WAL files acknowledged",
            dropped.len()
        );
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

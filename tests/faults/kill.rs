//! `kill -9` of the daemon and of pushes, at random moments.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::wait_until;
use crate::scene;

const KILLS: usize = 20;
const KILLS_INSIDE_MIN: usize = 12;

#[test]
fn twenty_kills_lose_nothing_acknowledged_and_damage_nothing_stored() {
    let world = scene::world("kill", String::new());
    let writer = scene::writer(&world);
    let mut inside = 0;
    for number in 0..KILLS {
        if number % 2 == 0 {
            let mut daemon = scene::daemon(&world, &[]);
            let pid = scene::wait_for_daemon(&world);
            // Waiting for a backup brings the kill near one; where in it is left to chance.
            let began = Instant::now();
            while scene::running_backups(&world) == 0 && began.elapsed() < Duration::from_secs(10) {
                sleep(Duration::from_millis(50));
            }
            sleep(Duration::from_millis(scene::random(150)));
            scene::kill(pid);
            drop(daemon.wait());
            // The journal as the dead daemon left it.
            inside += usize::from(scene::running_backups(&world) > 0);
        } else {
            let pid = wait_until("a push", Duration::from_secs(30), || {
                scene::push_pid(&world)
            });
            sleep(Duration::from_millis(scene::random(15)));
            inside += usize::from(scene::push_pid(&world) == Some(pid));
            scene::kill(pid);
        }
    }
    assert!(
        inside >= KILLS_INSIDE_MIN,
        "only {inside} of {KILLS} kills were inside a backup or push"
    );

    // Left alone, the next daemon ends what the dead ones left and takes a backup.
    let before = world.points("erp").len();
    let mut daemon = scene::daemon(&world, &[]);
    wait_until("a backup after the kills", Duration::from_secs(60), || {
        (world.points("erp").len() > before).then_some(())
    });
    let written = writer.stop().len() as u64;
    world.cluster.switch_and_wait();
    let pid = scene::wait_for_daemon(&world);
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    );
    assert_eq!(
        daemon.wait().unwrap().code(),
        Some(0),
        "SIGTERM ends the daemon well"
    );
    assert_eq!(
        scene::running_backups(&world),
        0,
        "nothing says it is running"
    );

    let acknowledged = world.cluster.acknowledged_wal();
    assert!(acknowledged.len() > 10, "{acknowledged:?}");
    scene::judge(&world, &acknowledged);
    assert_eq!(
        scene::restores_to_the_newest(&world),
        written,
        "every acknowledged write is back"
    );
}

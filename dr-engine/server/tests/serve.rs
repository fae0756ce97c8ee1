//! The daemon with a real repository, catalog and folder.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dr_installation::{InitRequest, Installation, init};
use dr_server::{Launched, Launcher, ServerError, Task, serve, serve_with};
use tokio_util::sync::CancellationToken;

async fn installation(folder: &Path) -> Installation {
    let tiers = folder.join("tiers");
    std::fs::create_dir(&tiers).unwrap();
    for name in ["one", "two"] {
        let source = folder.join(name);
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), name).unwrap();
    }
    let tier = "tier: often\nrto: 1h\nrpo: 1h\nbackup: { cron: \"* * * * * *\" }\nretention: { daily: 1 }\n";
    std::fs::write(tiers.join("often.yaml"), tier).unwrap();
    let config = folder.join("dr.yaml");
    let text = "repositories:\n  main: { path: repository, key: { file: key } }\n\
        catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n\
        \x20 one: { tier: often, repositories: [main], files: { path: one } }\n\
        \x20 two: { tier: often, repositories: [main], files: { path: two } }\n";
    std::fs::write(&config, text).unwrap();
    init(&InitRequest {
        config: config.clone(),
        repository: None,
        workloads: None,
    })
    .await
    .unwrap();
    Installation::open(&config).unwrap()
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_become_restore_points_and_a_second_daemon_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let installation = installation(folder.path()).await;
    let catalog = installation.catalog().await.unwrap();
    let shutdown = CancellationToken::new();
    let daemon = tokio::spawn(serve(installation.clone(), shutdown.clone()));
    let name: dr_model::WorkloadName = "two".parse().unwrap();
    until("two restore points of `two`", || async {
        catalog.points(Some(&name)).await.unwrap().len() >= 2
    })
    .await;
    let second = serve(installation.clone(), shutdown.clone()).await;
    let pid = std::process::id().to_string();
    assert!(
        matches!(&second, Err(ServerError::AlreadyRunning { pid: first, .. }) if *first == pid),
        "{second:?}"
    );
    let asked = Instant::now();
    shutdown.cancel();
    daemon.await.unwrap().unwrap();
    assert!(asked.elapsed() < dr_server::STOP_TIMEOUT);
    assert!(catalog.running_jobs().await.unwrap().is_empty());
    assert!(catalog.open_alerts().await.unwrap().is_empty());
    assert!(
        catalog
            .last_run("two/backup")
            .await
            .unwrap()
            .unwrap()
            .finished
            .is_some()
    );
    let repository = installation.open_repository_of(&name).await.unwrap();
    let listed = tokio::task::spawn_blocking(move || repository.points(None))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(listed.len(), catalog.points(None).await.unwrap().len());
}

/// `one` never ends, whatever it is told; `two` fails until told otherwise.
struct Stuck {
    runs_of_two: AtomicU32,
}

impl Launcher for Stuck {
    fn launch(
        &self,
        task: Task,
        _cancel: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Launched> + Send>> {
        if task.subject.lane() == "one" {
            return Box::pin(std::future::pending());
        }
        let run = self.runs_of_two.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if run == 0 {
                Launched::Failed("broker down".to_owned())
            } else {
                Launched::Done(String::new())
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_lane_holds_up_nobody_and_an_alert_is_cleared_when_mended() {
    let folder = tempfile::tempdir().unwrap();
    let installation = installation(folder.path()).await;
    let catalog = installation.catalog().await.unwrap();
    let shutdown = CancellationToken::new();
    let launcher = Arc::new(Stuck {
        runs_of_two: AtomicU32::new(0),
    });
    let daemon = tokio::spawn(serve_with(
        installation.clone(),
        launcher.clone(),
        shutdown.clone(),
    ));
    let failing = || async {
        let alerts = catalog.open_alerts().await.unwrap();
        alerts
            .iter()
            .any(|a| a.subject == "schedule two/backup" && a.message.contains("broker down"))
    };
    until("an alert about `two`", failing).await;
    until("`two` runs again", || async {
        launcher.runs_of_two.load(Ordering::SeqCst) >= 3
    })
    .await;
    until("the alert is cleared", || async { !failing().await }).await;
    let asked = Instant::now();
    shutdown.cancel();
    daemon.await.unwrap().unwrap();
    assert!(asked.elapsed() < dr_server::STOP_TIMEOUT * 2);
}

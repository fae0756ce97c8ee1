//! Lanes under real processes: held, killed, taken over, fenced.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dr_catalog::{Catalog, JobRow, JobState};
use dr_jobs::{JobError, JobSpec, Jobs};
use dr_model::SystemClock;
use tokio_util::sync::CancellationToken;

const HOLD: &str = "DR_TEST_HOLD_LANE_IN";

fn spec() -> JobSpec {
    JobSpec {
        kind: "backup".to_owned(),
        lane: "erp".to_owned(),
        detail: String::new(),
    }
}

fn jobs(catalog: &Catalog) -> Jobs {
    Jobs::new(Some(catalog.clone()), Arc::new(SystemClock))
}

async fn catalog(folder: &Path) -> (Catalog, String) {
    let url = format!("sqlite:{}", folder.join("catalog.db").display());
    (Catalog::create(&url).await.unwrap(), url)
}

/// Not a test: what [`hold`] runs in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn hold_a_lane_when_asked() {
    let Ok(url) = std::env::var(HOLD) else { return };
    let catalog = Catalog::open(&url).await.unwrap();
    let forever = CancellationToken::new();
    let _: Result<(), JobError<Infallible>> = jobs(&catalog)
        .run(spec(), false, &forever, |job| async move {
            job.step("reading").await;
            std::future::pending().await
        })
        .await;
}

/// Starts a process that holds the lane; returns when its journal says so.
#[allow(
    clippy::zombie_processes,
    reason = "the caller kills it and waits for it"
)]
async fn hold(catalog: &Catalog, url: &str) -> (Child, JobRow) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["hold_a_lane_when_asked", "--exact"])
        .env(HOLD, url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for job in catalog.running_jobs().await.unwrap() {
            if catalog.steps(&job.id).await.unwrap() == ["reading"] {
                return (child, job);
            }
        }
        assert!(Instant::now() < deadline, "the lane was not taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run_once(catalog: &Catalog, wait: bool) -> Result<u32, JobError<Infallible>> {
    jobs(catalog)
        .run(spec(), wait, &CancellationToken::new(), |_| async { Ok(7) })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_holder_is_named_and_a_killed_one_taken_over_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, url) = catalog(folder.path()).await;
    let (mut child, held) = hold(&catalog, &url).await;
    match run_once(&catalog, false).await {
        Err(JobError::LaneBusy { pid, job, .. }) => {
            assert_eq!((pid, job), (child.id(), held.id.clone()));
        }
        other => panic!("{other:?}"),
    }
    // SIGKILL, and not waited for: what is left of the process is a zombie.
    child.kill().unwrap();
    let killed = Instant::now();
    assert_eq!(run_once(&catalog, true).await.unwrap(), 7);
    assert!(
        killed.elapsed() < Duration::from_secs(15),
        "waited for the lease of a dead process"
    );
    child.wait().unwrap();
    let all = catalog.recent_jobs(10).await.unwrap();
    let dead = all.iter().find(|job| job.id == held.id).unwrap();
    assert_eq!(dead.state, JobState::Died);
    assert!(
        dead.reason
            .as_deref()
            .unwrap()
            .contains(&child.id().to_string()),
        "{dead:?}"
    );
    assert!(all.iter().any(|job| job.state == JobState::Done));
    assert!(catalog.running_jobs().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn recover_ends_the_dead_and_leaves_the_living() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, url) = catalog(folder.path()).await;
    let (mut child, held) = hold(&catalog, &url).await;
    assert!(jobs(&catalog).recover().await.unwrap().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = jobs(&catalog).recover().await.unwrap();
    assert_eq!(
        ended.iter().map(|job| job.id.clone()).collect::<Vec<_>>(),
        [held.id]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_given_up_is_stopped_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = catalog(folder.path()).await;
    let others = catalog.clone();
    let result = jobs(&catalog)
        .run(spec(), false, &CancellationToken::new(), |job| async move {
            let now = chrono::Utc::now();
            others
                .end_dead_jobs(now, |_| Some("given up".to_owned()))
                .await
                .unwrap();
            job.step("too late").await;
            assert!(job.cancel().is_cancelled());
            Err::<(), _>(io::Error::other("stopped"))
        })
        .await;
    assert!(result.is_err(), "{result:?}");
    let all = catalog.recent_jobs(10).await.unwrap();
    assert_eq!(all[0].state, JobState::Died);
    assert!(catalog.steps(&all[0].id).await.unwrap().is_empty());
}

/// What the work began outside is for the work to end: it is asked to stop and waited for, not dropped.
#[tokio::test(flavor = "multi_thread")]
async fn work_whose_lease_was_lost_puts_things_in_order_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = catalog(folder.path()).await;
    let in_order = std::sync::atomic::AtomicBool::new(false);
    for done in [false, true] {
        let others = catalog.clone();
        let result = jobs(&catalog)
            .run(spec(), false, &CancellationToken::new(), |job| {
                let in_order = &in_order;
                async move {
                    let now = chrono::Utc::now();
                    others
                        .end_dead_jobs(now, |_| Some("given up".to_owned()))
                        .await
                        .unwrap();
                    // The next heartbeat notices.
                    job.cancel().cancelled().await;
                    tokio::task::yield_now().await;
                    in_order.store(true, std::sync::atomic::Ordering::Relaxed);
                    match done {
                        true => Ok(7),
                        false => Err(io::Error::other("stopped")),
                    }
                }
            })
            .await;
        assert!(in_order.swap(false, std::sync::atomic::Ordering::Relaxed));
        match done {
            true => assert_eq!(result.unwrap(), 7),
            false => assert!(matches!(result, Err(JobError::LeaseLost)), "{result:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_recorded_with_their_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = catalog(folder.path()).await;
    let runner = jobs(&catalog);
    let failed: Result<(), _> = runner
        .run(spec(), false, &CancellationToken::new(), |_| async {
            Err(io::Error::other("disk full"))
        })
        .await;
    assert!(matches!(failed, Err(JobError::Failed(_))));
    let stop = CancellationToken::new();
    let cancelled: Result<(), _> = runner
        .run(spec(), false, &stop.clone(), |job| async move {
            stop.cancel();
            job.cancel().cancelled().await;
            Err(io::Error::other("stopped"))
        })
        .await;
    assert!(matches!(cancelled, Err(JobError::Failed(_))));
    let ends: Vec<_> = catalog
        .recent_jobs(10)
        .await
        .unwrap()
        .into_iter()
        .map(|job| (job.state, job.reason))
        .collect();
    assert!(
        ends.contains(&(JobState::Failed, Some("disk full".to_owned()))),
        "{ends:?}"
    );
    assert!(
        ends.iter().any(|(state, _)| *state == JobState::Cancelled),
        "{ends:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_future_does_not_leave_a_running_job() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, _) = catalog(folder.path()).await;
    let runner = jobs(&catalog);
    let token = CancellationToken::new();
    let endless = runner.run(spec(), false, &token, |_| async {
        std::future::pending::<Result<(), Infallible>>().await
    });
    assert!(
        tokio::time::timeout(Duration::from_millis(300), endless)
            .await
            .is_err()
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while !catalog.running_jobs().await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "still running");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(run_once(&catalog, false).await.unwrap(), 7);
}

/// A catalog locked by another connection: a clear error after the time-out, not an endless wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_catalog_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, url) = catalog(folder.path()).await;
    let mut other = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url)
        .await
        .unwrap();
    sqlx::query("begin immediate")
        .execute(&mut other)
        .await
        .unwrap();
    let began = Instant::now();
    let error = run_once(&catalog, false).await.unwrap_err();
    let JobError::Catalog(cause) = error else {
        panic!("{error:?}")
    };
    assert!(
        cause
            .hint()
            .unwrap()
            .contains("another process holds the catalog"),
        "{cause:?}"
    );
    let waited = began.elapsed();
    assert!(waited >= dr_catalog::BUSY_TIMEOUT, "{waited:?}");
    assert!(waited < dr_catalog::BUSY_TIMEOUT * 2, "{waited:?}");
}

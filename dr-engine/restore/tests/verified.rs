//! What a verification says of a restore point whose source was damaged when it was made.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::path::Path;
use std::sync::Arc;

use dr_backup::Verification;
use dr_installation::{InitRequest, Installation, init};
use dr_model::{
    ByteCount, Condition, FilesPosition, Position, RestorePoint, RestorePointId, Silent,
    WorkloadName,
};
use dr_restore::{VerifyRequest, verify};
use tokio_util::sync::CancellationToken;

async fn installation(folder: &Path) -> Installation {
    let tiers = folder.join("tiers");
    for made in [&tiers, &folder.join("source")] {
        std::fs::create_dir(made).unwrap();
    }
    std::fs::write(folder.join("source/file"), "content").unwrap();
    let tier = "tier: often\nrto: 1h\nrpo: 1h\nbackup: { cron: \"0 0 3 * * *\" }\n\
                retention: { daily: 1 }\n";
    std::fs::write(tiers.join("often.yaml"), tier).unwrap();
    let config = folder.join("dr.yaml");
    let text = "repositories:\n  main: { path: repository, key: { file: key } }\n\
        catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n\
        \x20 config: { tier: often, repositories: [main], files: { path: source } }\n";
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

/// A restore point in this condition, and what reading all of it says.
async fn read(
    installation: &Installation,
    folder: &Path,
    minute: i64,
    condition: Condition,
) -> Verification {
    let workload: WorkloadName = "config".parse().unwrap();
    let repository = installation.open_repository_of(&workload).await.unwrap();
    let at = chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::minutes(minute);
    let point = RestorePoint {
        id: RestorePointId::new(&workload, at),
        workload: workload.clone(),
        tier: "often".parse().unwrap(),
        started: at,
        finished: at,
        moment: at,
        position: Position::Files(FilesPosition { entries: 1 }),
        files: 0,
        bytes_source: ByteCount(0),
        bytes_added: ByteCount(0),
        condition,
    };
    let (own, of, source) = (
        installation.clone(),
        workload.clone(),
        folder.join("source"),
    );
    let stored = tokio::task::spawn_blocking(move || {
        let details = serde_json::Value::Null;
        dr_backup::store_folder(&own, &repository, &of, &source, point, details)
    });
    let point = stored.await.unwrap().unwrap();
    let request = VerifyRequest {
        workload,
        point: Some(point.id),
        restore: false,
        folder: None,
    };
    let nothing = CancellationToken::new();
    verify(installation, &request, Arc::new(Silent), nothing)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_with_damaged_pages_is_not_proven_by_being_readable() {
    let folder = tempfile::tempdir().unwrap();
    let installation = installation(folder.path()).await;
    let whole = read(&installation, folder.path(), 1, Condition::Whole).await;
    assert!(whole.passed, "{whole:?}");
    let damaged = Condition::SourceDamaged {
        details: vec!["page 3 of data/base/5/16384: checksum 0001 instead of 0002".to_owned()],
    };
    let proof = read(&installation, folder.path(), 2, damaged).await;
    assert!(!proof.passed, "{proof:?}");
    let failed: Vec<&str> = (proof.checks.iter())
        .filter(|check| !check.passed)
        .map(|check| check.detail.as_str())
        .collect();
    assert_eq!(
        failed,
        ["page 3 of data/base/5/16384: checksum 0001 instead of 0002"]
    );
}

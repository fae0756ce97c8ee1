//! From policies and holds to what is removed from a repository.
//!
//! Order of the decision: the lists of restore points as they are, then holds, then points, then WAL. A
//! hold that is placed after that adds an entry to the list, and the store carries nothing out that was
//! decided over an older list ([`dr_store::StoreError::PlanOutdated`]); then it is decided again.
//!
//! Nothing is removed while it is not known what the configuration wants: a workload whose tier is
//! missing, a hold or a verification that cannot be understood, is an error for the whole repository.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{
    Condition, Progress, RepositoryName, RestorePoint, RestorePointId, TierName, WorkloadName,
};
use dr_store::{PruneOptions, PrunePlan, PruneReport, PruneRequest, Repository, StoreError};
use serde::Serialize;

use crate::error::store_error;
use crate::hold::{StoredHold, holds};
use crate::retention::{
    PointFacts, RetentionInput, RetentionPlan, RetentionPolicy, WalFacts, plan_retention,
};
use crate::window::segment_bytes_of;
use crate::{BackupError, WalIndex, verifications};

/// A list of restore points changes with every backup: so often it is decided again.
const DECISIONS_MAX: u32 = 5;

/// What is asked of a prune.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneChoice {
    /// What the configuration does not name any more goes too, but for the newest point and holds.
    pub unconfigured: bool,
}

/// What would be removed from one repository, and why. A value.
#[derive(Debug, Clone, Serialize)]
pub struct RepositoryPrune {
    /// The repository.
    pub repository: RepositoryName,
    /// Every restore point with its fate, by workload.
    pub retention: Vec<RetentionPlan>,
    /// What goes with those that go.
    pub plan: PrunePlan,
}

/// Decides what would be removed from a repository. Changes nothing. Blocks.
///
/// # Errors
/// When the configuration does not say how long something is kept, or the repository cannot be read.
pub fn plan_prune(
    installation: &Installation,
    name: &RepositoryName,
    choice: PruneChoice,
    progress: &dyn Progress,
) -> Result<RepositoryPrune, BackupError> {
    let repository = installation.repository(name)?;
    let policies = policies(installation)?;
    let decided_at = repository
        .anchors()
        .map_err(store_error("read the lists of restore points", &repository))?;
    let holds = all_holds(installation, &repository)?;
    // A host's clock that runs ahead must not shorten a window.
    let store_now = repository
        .now()
        .map_err(store_error("read the clock", &repository))?;
    let now = installation.clock.now().min(store_now);
    let points = repository
        .points(None)
        .map_err(store_error("list the restore points", &repository))?;
    let mut retention = Vec::new();
    for (workload, points) in by_workload(points) {
        let decided = decide(
            &repository,
            &workload,
            points,
            &policies,
            &holds,
            choice,
            now,
        );
        retention.push(decided?);
    }
    let classes = installation.config.workloads().filter_map(|workload| {
        let class = workload.tier.storage_class.clone()?;
        Some((workload.name.clone(), class))
    });
    let request = request(decided_at, &retention, classes.collect());
    let plan = repository
        .plan_prune(&request, progress)
        .map_err(store_error("plan a prune", &repository))?;
    Ok(RepositoryPrune {
        repository: name.clone(),
        retention,
        plan,
    })
}

/// Decides over the points of one workload.
fn decide(
    repository: &Repository,
    workload: &WorkloadName,
    points: Vec<RestorePoint>,
    policies: &Policies,
    holds: &[StoredHold],
    choice: PruneChoice,
    now: DateTime<Utc>,
) -> Result<RetentionPlan, BackupError> {
    let facts = facts(repository, workload, points)?;
    let wal = wal_facts(repository, workload, &facts)?;
    let given_up = RetentionPolicy::nothing();
    let policy = policies.workloads.get(workload);
    let on: Vec<_> = (holds.iter())
        .filter(|stored| stored.hold.workload == *workload)
        .map(StoredHold::on)
        .collect();
    Ok(plan_retention(&RetentionInput {
        workload,
        points: &facts,
        policy: policy.or(choice.unconfigured.then_some(&given_up)),
        known_tiers: (!choice.unconfigured).then_some(&policies.tiers),
        holds: &on,
        wal: wal.as_ref(),
        now,
    }))
}

/// What retention keeps of one workload's points and WAL. Blocks.
///
/// # Errors
/// As [`plan_prune`].
pub(crate) fn retention_of(
    installation: &Installation,
    repository: &Repository,
    workload: &WorkloadName,
    points: Vec<RestorePoint>,
) -> Result<RetentionPlan, BackupError> {
    let policies = policies(installation)?;
    let holds = all_holds(installation, repository)?;
    let now = installation.clock.now();
    let choice = PruneChoice::default();
    decide(repository, workload, points, &policies, &holds, choice, now)
}

/// Decides and removes; returns what was decided and what was done. Blocks. The catalog's rows of the
/// points that went are the caller's to remove, last ([`forget_points`]).
///
/// # Errors
/// As [`plan_prune`], and when the repository cannot be written. Whatever was done by then, the
/// repository is whole, and the next prune goes on from there.
pub fn prune(
    installation: &Installation,
    name: &RepositoryName,
    choice: PruneChoice,
    progress: &dyn Progress,
) -> Result<(RepositoryPrune, PruneReport), BackupError> {
    let mut decisions = 1;
    loop {
        let decided = plan_prune(installation, name, choice, progress)?;
        let repository = installation.repository(name)?;
        match repository.prune(&decided.plan, progress) {
            Ok(report) => {
                forget_tails(&repository, &decided.retention);
                return Ok((decided, report));
            }
            Err(StoreError::PlanOutdated { .. }) if decisions < DECISIONS_MAX => decisions += 1,
            Err(error) => return Err(store_error("prune", &repository)(error)),
        }
    }
}

/// Removes what was streamed of segments that are whole or gone. What is left does no harm, and the next
/// prune removes it.
fn forget_tails(repository: &Repository, retention: &[RetentionPlan]) {
    for plan in retention {
        if let Err(error) = repository.remove_tails(&plan.workload, &plan.wal.remove_tails) {
            tracing::warn!(workload = %plan.workload, %error, "streamed WAL was not removed");
        }
    }
}

/// [`prune`], then [`forget_points`], for asynchronous callers. A catalog that is away is a warning: it
/// only indexes what is in the repositories.
///
/// # Errors
/// As [`prune`].
pub async fn prune_and_forget(
    installation: &Installation,
    name: &RepositoryName,
    choice: PruneChoice,
    progress: Arc<dyn Progress>,
) -> Result<(RepositoryPrune, PruneReport), BackupError> {
    let (blocking, of) = (installation.clone(), name.clone());
    let work = move || prune(&blocking, &of, choice, progress.as_ref());
    let (decided, report) = tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| BackupError::Worker("prune a repository"))??;
    if let Err(error) = forget_points(installation, &report.points).await {
        tracing::warn!(%error, "`dr catalog rebuild` makes the catalog anew");
    }
    Ok((decided, report))
}

/// Removes points from the catalog, which only indexes them.
///
/// # Errors
/// When the catalog cannot be opened or written.
pub async fn forget_points(
    installation: &Installation,
    points: &[RestorePointId],
) -> Result<(), BackupError> {
    if points.is_empty() {
        return Ok(());
    }
    let catalog = installation.catalog().await?;
    for point in points {
        catalog
            .forget_point(point)
            .await
            .map_err(BackupError::Catalog)?;
    }
    Ok(())
}

/// The repositories that are pruned: those that some workload's backups are made into.
#[must_use]
pub fn pruned_repositories(installation: &Installation) -> Vec<RepositoryName> {
    let workloads = installation.config.engine.workloads.values();
    let first = workloads.filter_map(|workload| workload.repositories.first().cloned());
    first.collect::<BTreeSet<_>>().into_iter().collect()
}

/// What the configuration wants.
struct Policies {
    workloads: BTreeMap<WorkloadName, RetentionPolicy>,
    tiers: BTreeSet<TierName>,
}

fn policies(installation: &Installation) -> Result<Policies, BackupError> {
    let config = &installation.config;
    let mut workloads = BTreeMap::new();
    for (name, workload) in &config.engine.workloads {
        let tier = config
            .tiers
            .get(&workload.tier)
            .ok_or_else(|| BackupError::UnknownTier {
                workload: name.clone(),
                tier: workload.tier.clone(),
            })?;
        workloads.insert(name.clone(), RetentionPolicy::of(tier));
    }
    Ok(Policies {
        workloads,
        tiers: config.tiers.keys().cloned().collect(),
    })
}

fn by_workload(points: Vec<RestorePoint>) -> BTreeMap<WorkloadName, Vec<RestorePoint>> {
    let mut sorted: BTreeMap<WorkloadName, Vec<RestorePoint>> = BTreeMap::new();
    for point in points {
        sorted
            .entry(point.workload.clone())
            .or_default()
            .push(point);
    }
    sorted
}

/// The holds that the repository knows of; and those of the others that can be read, because the same
/// hold may have been removed while this repository was away.
fn all_holds(
    installation: &Installation,
    repository: &Repository,
) -> Result<Vec<StoredHold>, BackupError> {
    let mut found = holds(repository)?;
    for name in installation.config.engine.repositories.keys() {
        let others = installation
            .repository(name)
            .map_err(BackupError::from)
            .and_then(|other| holds(&other));
        match others {
            Ok(others) => {
                for other in others {
                    match found.iter_mut().find(|hold| hold.hold.id == other.hold.id) {
                        Some(known) => known.release = known.release.take().or(other.release),
                        None => found.push(other),
                    }
                }
            }
            Err(error) => {
                tracing::warn!(repository = %name, %error, "its holds could not be looked at");
            }
        }
    }
    Ok(found)
}

/// What was found out about the points of a workload since they were made.
fn facts(
    repository: &Repository,
    workload: &WorkloadName,
    points: Vec<RestorePoint>,
) -> Result<Vec<PointFacts>, BackupError> {
    let mut failed: BTreeMap<RestorePointId, DateTime<Utc>> = BTreeMap::new();
    // Oldest first: the last one counts.
    for proof in verifications(repository, Some(workload))? {
        match proof.passed {
            true => failed.remove(&proof.point),
            false => failed.insert(proof.point, proof.finished),
        };
    }
    let fault = |point: &RestorePoint| match (&point.condition, failed.get(&point.id)) {
        (Condition::SourceDamaged { .. }, _) => Some("the source was damaged".to_owned()),
        (Condition::Whole, Some(at)) => Some(format!(
            "its verification failed at {}",
            at.format("%FT%TZ")
        )),
        (Condition::Whole, None) => None,
    };
    Ok(points
        .into_iter()
        .map(|point| PointFacts {
            fault: fault(&point),
            point,
        })
        .collect())
}

fn wal_facts(
    repository: &Repository,
    workload: &WorkloadName,
    facts: &[PointFacts],
) -> Result<Option<WalFacts>, BackupError> {
    let points: Vec<RestorePoint> = facts.iter().map(|facts| facts.point.clone()).collect();
    let Some(segment_bytes) = segment_bytes_of(&points) else {
        return Ok(None);
    };
    let index = WalIndex::read(repository, workload, segment_bytes)?;
    let files = repository.wal_files(workload).map_err(store_error(
        format!("list the WAL of `{workload}`"),
        repository,
    ))?;
    let tails = repository.tails(workload).map_err(store_error(
        format!("list the streamed WAL of `{workload}`"),
        repository,
    ))?;
    let mut wal = WalFacts {
        index,
        tails,
        ..WalFacts::default()
    };
    for (name, stored_at) in files {
        if let Some(timeline) = name.timeline() {
            let last = wal.last_written.entry(timeline).or_insert(stored_at);
            *last = stored_at.max(*last);
        }
        wal.names.push(name);
    }
    Ok(Some(wal))
}

fn request(
    decided_at: Vec<dr_store::ChainAnchor>,
    retention: &[RetentionPlan],
    storage_classes: HashMap<WorkloadName, String>,
) -> PruneRequest {
    let points = retention
        .iter()
        .flat_map(|plan| plan.removed().map(|id| (plan.workload.clone(), id.clone())));
    let wal = retention.iter().flat_map(|plan| {
        let files = plan.wal.remove.iter();
        files.map(|name| (plan.workload.clone(), name.clone()))
    });
    PruneRequest {
        decided_at,
        points: points.collect(),
        wal: wal.collect(),
        storage_classes,
        options: PruneOptions::default(),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use dr_model::{ByteCount, FilesPosition, Position};
    use dr_store::{LocalBackend, RepositoryKey};

    use super::*;
    use crate::Verification;

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minute)
    }

    fn point(minute: i64, condition: Condition) -> RestorePoint {
        let workload: WorkloadName = "erp".parse().unwrap();
        RestorePoint {
            id: RestorePointId::new(&workload, at(minute)),
            workload,
            tier: "gold".parse().unwrap(),
            started: at(minute),
            finished: at(minute),
            moment: at(minute),
            position: Position::Files(FilesPosition { entries: 1 }),
            files: 1,
            bytes_source: ByteCount(1),
            bytes_added: ByteCount(1),
            condition,
        }
    }

    #[test]
    fn a_point_of_a_damaged_source_or_whose_last_proof_failed_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let place = LocalBackend::new(&folder.path().join("repository"));
        let repository = Repository::create(Arc::new(place), &RepositoryKey::generate()).unwrap();
        let damaged = Condition::SourceDamaged {
            details: vec!["page 3 of data/base/5/16384".to_owned()],
        };
        let points = [
            point(1, Condition::Whole),
            point(2, damaged.clone()),
            point(3, damaged),
            point(4, Condition::Whole),
            point(5, Condition::Whole),
        ];
        // That what was stored can be read proves nothing of what was damaged before.
        for (place, minute, passed) in
            [(2, 10, true), (3, 11, false), (4, 12, false), (4, 13, true)]
        {
            let proof = Verification {
                version: Verification::VERSION,
                point: points[place].id.clone(),
                workload: points[place].workload.clone(),
                started: at(minute),
                finished: at(minute),
                restored: false,
                passed,
                checks: Vec::new(),
            };
            proof.store(&repository).unwrap();
        }
        let workload = points[0].workload.clone();
        let facts = facts(&repository, &workload, points.to_vec()).unwrap();
        let faults: Vec<Option<&str>> = facts.iter().map(|it| it.fault.as_deref()).collect();
        let source = Some("the source was damaged");
        let proof = Some("its verification failed at 1970-01-01T00:11:00Z");
        assert_eq!(faults, [None, source, source, proof, None]);
    }
}

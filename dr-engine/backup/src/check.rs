//! Checking repositories place by place, remembering what is damaged, and noticing a list that went back.
//!
//! A repository that was put back to an older state is whole and authentic: only who remembers how far
//! its lists of restore points went can tell. The catalog does; without it nothing can be told, and that
//! is said.
//!
//! What a place can do is tried anew with each check: stores are upgraded, proxies put before them and
//! bucket policies changed, and some then accept a header and ignore it.

use dr_installation::Installation;
use dr_model::{Progress, RepositoryName, WorkloadName};
use dr_store::{
    Capabilities, CheckOptions, CheckReport, DamageEvent, DamageRecord, DamagedObject,
    RepairOptions, RepairReport, Repository,
};
use serde::{Deserialize, Serialize};

use crate::BackupError;
use crate::error::store_error;
use crate::run::blocking;

/// What a check of one place found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceCheck {
    /// The repository, or the copy of one.
    pub repository: RepositoryName,
    /// The place, for people.
    pub place: String,
    /// What is wrong there.
    pub report: CheckReport,
    /// Lists of restore points that went back since they were last seen.
    pub went_back: Vec<ListWentBack>,
    /// Why that could not be told.
    pub not_told: Option<String>,
    /// What the place was seen to do, tried anew; `None` where that failed.
    pub capabilities: Option<Capabilities>,
    /// What of it the repository relied on when it was made and can no more, in words that follow
    /// "it no longer".
    pub can_no_longer: Vec<String>,
    /// Why it could not be tried.
    pub not_tried: Option<String>,
}

impl PlaceCheck {
    /// Whether nothing is wrong there. What could not be told or tried is not known to be wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.report.problems.is_empty()
            && self.went_back.is_empty()
            && self.can_no_longer.is_empty()
    }
}

/// A list of restore points that is not the one it was, nor goes on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWentBack {
    /// The workload.
    pub workload: WorkloadName,
    /// What happened.
    pub what: String,
}

/// Checks one place, or every one that the configuration names, copies too.
///
/// # Errors
/// When a place does not answer. What is wrong with what it holds is in the report.
pub async fn check(
    installation: &Installation,
    only: Option<RepositoryName>,
    options: CheckOptions,
    progress: std::sync::Arc<dyn Progress>,
    by: String,
) -> Result<Vec<PlaceCheck>, BackupError> {
    let names: Vec<RepositoryName> = match only {
        Some(name) => vec![name],
        None => installation
            .config
            .engine
            .repositories
            .keys()
            .cloned()
            .collect(),
    };
    let mut checks = Vec::new();
    for name in names {
        let (this, wanted, by) = (installation.clone(), name.clone(), by.clone());
        let progress = std::sync::Arc::clone(&progress);
        let (repository, report, tried) = blocking("check a repository", move || {
            let place = this.place(&wanted)?;
            let report = place
                .check(options, progress.as_ref())
                .map_err(store_error(format!("check `{wanted}`"), &place))?;
            remember(&this, &wanted, &place, &report, options.read_data, by);
            let tried = place
                .probe_capabilities()
                .map_err(store_error(format!("try what `{wanted}` can do"), &place));
            Ok((place, report, tried))
        })
        .await?;
        let place = repository.describe();
        let (capabilities, not_tried) = match tried {
            Ok(seen) => (Some(seen), None),
            Err(error) => (None, Some(crate::status::chain(&error))),
        };
        let can_no_longer = capabilities.map_or_else(Vec::new, |seen| {
            let lost = seen.lost_since(&repository.capabilities());
            lost.into_iter().map(str::to_owned).collect()
        });
        let (went_back, not_told) =
            match lists_that_went_back(installation, &name, repository).await {
                Ok(found) => (found, None),
                Err(error) => (Vec::new(), Some(crate::status::chain(&error))),
            };
        checks.push(PlaceCheck {
            repository: name,
            place,
            report,
            went_back,
            not_told,
            capabilities,
            can_no_longer,
            not_tried,
        });
    }
    Ok(checks)
}

/// Writes down what is damaged and was not known, and what is whole again. A check that read no data
/// cannot tell the latter. Failing at it fails no check.
fn remember(
    installation: &Installation,
    name: &RepositoryName,
    place: &Repository,
    report: &CheckReport,
    read_data: bool,
    by: String,
) {
    let first = installation.config.engine.first_of(name);
    let written = (|| {
        let repository = installation.repository(first)?;
        let known = repository
            .known_damage(&place.describe())
            .map_err(store_error("read what is damaged", &repository))?;
        let new: Vec<DamagedObject> = report
            .problems
            .iter()
            .filter(|problem| !known.contains_key(&problem.object))
            .map(|problem| DamagedObject {
                object: problem.object.clone(),
                what: problem.what.clone(),
            })
            .collect();
        let whole = known
            .into_iter()
            .filter(|(object, _)| read_data && !report.problems.iter().any(|p| p.object == *object))
            .map(|(object, what)| DamagedObject { object, what })
            .collect();
        for (event, objects) in [(DamageEvent::Found, new), (DamageEvent::Mended, whole)] {
            if !objects.is_empty() {
                let record = DamageRecord {
                    event,
                    place: place.describe(),
                    at: installation.clock.now(),
                    by: by.clone(),
                    objects,
                };
                repository
                    .remember_damage(&record)
                    .map_err(store_error("write down what is damaged", &repository))?;
            }
        }
        Ok::<_, BackupError>(())
    })();
    if let Err(error) = written {
        tracing::warn!(
            error = crate::status::chain(&error),
            "what is damaged was not written down"
        );
    }
}

/// Compares each list of restore points with how far it was seen to go, and remembers how far it goes.
///
/// # Errors
/// When there is no catalog to ask, or the place fails: then it cannot be told.
pub async fn lists_that_went_back(
    installation: &Installation,
    name: &RepositoryName,
    repository: Repository,
) -> Result<Vec<ListWentBack>, BackupError> {
    let catalog = installation.catalog().await?;
    let seen = catalog
        .seen_lists(name)
        .await
        .map_err(BackupError::SeenLists)?;
    let known = seen.clone();
    let (anchors, found) = blocking("read the lists of restore points", move || {
        let failed = || store_error("read the lists of restore points", &repository);
        let anchors = repository.anchors().map_err(failed())?;
        let mut found = Vec::new();
        for seen in known {
            let now = anchors
                .iter()
                .find(|anchor| anchor.workload == seen.workload);
            if now.is_some_and(|now| now.sequence == seen.sequence && now.sha256 == seen.sha256) {
                continue;
            }
            let at = repository
                .anchor_at(&seen.workload, seen.sequence)
                .map_err(failed())?;
            let what = match (now, at) {
                (Some(_), Some(at)) if at.sha256 == seen.sha256 => continue,
                // Entries that old are not kept.
                (Some(now), None) if now.sequence > seen.sequence => continue,
                (_, Some(_)) => format!(
                    "entry {} is not the one that was seen at {}: another list took its place",
                    seen.sequence, seen.seen
                ),
                (now, None) => format!(
                    "it ends with entry {}, and at {} it ended with entry {}: it went back",
                    now.map_or(0, |now| now.sequence),
                    seen.seen,
                    seen.sequence
                ),
            };
            found.push(ListWentBack {
                workload: seen.workload,
                what,
            });
        }
        Ok((anchors, found))
    })
    .await?;
    let now = installation.clock.now();
    for anchor in anchors {
        let is_same = seen
            .iter()
            .any(|seen| seen.workload == anchor.workload && seen.sha256 == anchor.sha256);
        // What went back is remembered as it was until it has come forward again.
        if !is_same && !found.iter().any(|back| back.workload == anchor.workload) {
            catalog
                .saw_list(name, &anchor.workload, anchor.sequence, &anchor.sha256, now)
                .await
                .map_err(BackupError::SeenLists)?;
        }
    }
    Ok(found)
}

/// Repairs one place, or every one that the configuration names. Blocks.
///
/// # Errors
/// When the configuration does not know it, or the place to be mended fails.
pub fn repair(
    installation: &Installation,
    only: Option<&RepositoryName>,
    preview: bool,
    by: &str,
    progress: &dyn Progress,
) -> Result<Vec<(RepositoryName, RepairReport)>, BackupError> {
    let engine = &installation.config.engine;
    let names: Vec<RepositoryName> = match only {
        Some(name) => vec![name.clone()],
        // First ones first: what they hold is what copies are brought back from.
        None => engine
            .first_repositories()
            .flat_map(|first| std::iter::once(first.clone()).chain(engine.copies_of(first)))
            .collect(),
    };
    let options = RepairOptions {
        preview,
        now: installation.clock.now(),
        by: by.to_owned(),
    };
    let mut reports = Vec::new();
    for name in names {
        let place = installation.place(&name)?;
        let first = engine.first_of(&name).clone();
        let family = std::iter::once(first.clone()).chain(engine.copies_of(&first));
        let mut others = Vec::new();
        for other in family.filter(|other| *other != name) {
            match installation.place(&other) {
                Ok(opened) => others.push((other.to_string(), opened)),
                Err(error) => progress.note(&format!(
                    "`{other}` cannot help: {}",
                    crate::status::chain(&error)
                )),
            }
        }
        let report = place
            .repair(&others, &options, progress)
            .map_err(store_error(format!("repair `{name}`"), &place))?;
        reports.push((name, report));
    }
    Ok(reports)
}

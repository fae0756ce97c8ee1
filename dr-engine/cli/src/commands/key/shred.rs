//! `dr key shred`: what one tenant's own key seals becomes unreadable, for good.

use dr_installation::Installation;
use dr_model::{RepositoryName, WorkloadName};
use dr_store::{Repository, ShredOutcome};
use serde::Serialize;

use crate::context::Context;
use crate::failure::{FAILED, Failure, USAGE};
use crate::output;

/// What shredding cannot reach, in words for every report of it.
const NOT_COVERED: [&str; 6] = [
    "WAL, and pages of tables that tenants share: they hold every tenant and leave with retention",
    "the names, sizes and times of the tenant's files in listings of restore points",
    "undo points of tenant restores: they hold what was replaced",
    "files exported or restored before, and other copies of the repository made outside dr",
    "versions that the store keeps locked, until their lock ends",
    "the live files: the next backup stores what is still there, under a new key",
];

/// What became of one repository.
#[derive(Debug, Serialize)]
struct Place {
    repository: RepositoryName,
    place: Option<String>,
    keys_destroyed: usize,
    deleted_now: u64,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    tenant: String,
    workload: WorkloadName,
    places: Vec<Place>,
    covered: String,
    not_covered: Vec<&'static str>,
}

pub(super) async fn run(
    context: &Context,
    tenant: String,
    workload: &str,
    yes: bool,
) -> Result<u8, Failure> {
    let installation = context.installation()?;
    let workload = super::workload_of(&installation, workload)?;
    if !yes && !output::can_ask() {
        return Err(Failure::plain(
            USAGE,
            "this destroys data for good and there is no terminal to ask on",
            Some("run it with --yes when you are sure"),
        ));
    }
    let covered = format!(
        "every file of tenant {tenant} in every restore point of {workload}, past ones included"
    );
    output::talk(&format!("covered: {covered}"));
    for line in NOT_COVERED {
        output::talk(&format!("not covered: {line}"));
    }
    if !yes {
        let answer = output::ask(&format!("Type the tenant's name ({tenant}) to destroy it:"))?;
        if answer != tenant {
            return Err(Failure::plain(
                FAILED,
                "not confirmed; nothing was changed",
                None,
            ));
        }
    }
    let (who, given) = (crate::commands::hold::who()?, tenant.clone());
    let of = workload.clone();
    let places = super::blocking(move || Ok(everywhere(&installation, &of, &given, &who))).await?;
    let report = Report {
        tenant,
        workload,
        places,
        covered,
        not_covered: NOT_COVERED.to_vec(),
    };
    show(context, &report)
}

/// The repositories that the workload's data goes to, the primary first.
fn names_of(installation: &Installation, workload: &WorkloadName) -> Vec<RepositoryName> {
    let config = installation.config.engine.workloads.get(workload);
    config.map_or_else(Vec::new, |config| config.repositories.clone())
}

/// Shreds in every repository of the workload; one that fails stops none of the others.
fn everywhere(
    installation: &Installation,
    workload: &WorkloadName,
    tenant: &str,
    who: &str,
) -> Vec<Place> {
    let at = installation.clock.now();
    let mut first: Option<Repository> = None;
    let mut places = Vec::new();
    for name in names_of(installation, workload) {
        let mut place = Place {
            repository: name.clone(),
            place: None,
            keys_destroyed: 0,
            deleted_now: 0,
            error: None,
        };
        let result = installation
            .place(&name)
            .map_err(Failure::from)
            .and_then(|repository| {
                place.place = Some(repository.describe());
                let mut deleted = 0;
                // A copy agrees with the first on what was ordered, byte for byte.
                if let Some(first) = first.as_ref().filter(|one| one.id() == repository.id()) {
                    deleted += first.shred_in_copy(&repository, workload)?.deleted;
                }
                let mut outcome = repository.shred_tenant(workload, tenant, at, who)?;
                outcome.deleted += deleted;
                first.get_or_insert(repository);
                Ok::<ShredOutcome, Failure>(outcome)
            });
        match result {
            Ok(outcome) => {
                place.keys_destroyed = outcome.shreddings.len();
                place.deleted_now = outcome.deleted;
            }
            Err(error) => place.error = Some(error.to_string()),
        }
        places.push(place);
    }
    places
}

fn show(context: &Context, report: &Report) -> Result<u8, Failure> {
    let failed: Vec<&Place> = report.places.iter().filter(|p| p.error.is_some()).collect();
    let found = report.places.iter().any(|place| place.keys_destroyed > 0);
    if context.json {
        output::json(report)?;
    } else {
        for place in &report.places {
            output::data(&line(place, &report.tenant));
        }
    }
    if !failed.is_empty() {
        let names: Vec<String> = failed.iter().map(|p| p.repository.to_string()).collect();
        return Err(Failure::plain(
            FAILED,
            format!(
                "the key may still be in {}: it could not be reached or cleared",
                names.join(", ")
            ),
            Some("run the same command again when it answers; the other places are done"),
        ));
    }
    if !found {
        return Err(Failure::plain(
            FAILED,
            format!(
                "tenant {} has no key of its own in {}: nothing was destroyed",
                report.tenant, report.workload
            ),
            Some(
                "`dr key list` names the tenants that have one: files of workloads whose \
                 `tenancy.path` tells the tenant",
            ),
        ));
    }
    Ok(0)
}

fn line(place: &Place, tenant: &str) -> String {
    let name = &place.repository;
    match (&place.error, place.keys_destroyed, place.deleted_now) {
        (Some(error), _, _) => format!("{name}: NOT DONE: {error}"),
        (None, 0, _) => format!("{name}: tenant {tenant} has no key here"),
        (None, _, 0) => format!("{name}: shredded before; its key is gone"),
        (None, _, _) => format!("{name}: shredded; its key is gone, read back"),
    }
}

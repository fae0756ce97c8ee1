//! The conductor: prepare, show, apply.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Position, Progress, RestorePoint, Target, TenantRestoreId, WorkloadName};
use dr_restore::Scratch;
use dr_store::Repository;
use tokio_util::sync::CancellationToken;

use crate::changes::{ChangeSet, Direction};
use crate::erase::refuse_erased;
use crate::execute::{Done, Execution, blocking, root_of};
use crate::folders::{self, FolderChanges};
use crate::hold;
use crate::hooks::Hooks;
use crate::large_objects;
use crate::mapping::place_and_map;
use crate::report::{ProofLine, ProofOutcome};
use crate::rows::{self, Compared, Subject};
use crate::tenants::{self, Place};
use crate::work::{self, WorkFolder};
use crate::{
    Mode, Purpose, Tenant, TenantError, TenantPlan, TenantRequest, TenantRestoreReport, Writing,
    fault,
};

/// A tenant that is written to while its restore is applied gets that many plans.
const PLANS_MAX: usize = 3;

/// A tenant restore that is ready to be carried out. Dropping it removes the scratch instance and
/// everything else made for it.
#[derive(Debug)]
pub struct Prepared {
    execution: Execution,
    scratch: Scratch,
}

/// Brings the target back beside production and compares; production is only read.
///
/// # Errors
/// Unknown tenants, unreachable targets, tables in no class. Reasons against carrying the plan out are
/// no error here: they are in the plan.
pub async fn prepare(
    installation: &Installation,
    request: &TenantRequest,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Prepared, TenantError> {
    match request.mode {
        Mode::Export => return Err(TenantError::NotYet("mode `export` without a folder")),
        Mode::Clone => return Err(TenantError::NotYet("mode `clone` without a database")),
        Mode::Replace | Mode::Missing => {}
    }
    let (registry, live_tenant) =
        tenants::find(installation, &request.tenant, request.workload.as_ref()).await?;
    refuse_erased(
        installation,
        &registry.workload,
        live_tenant.as_ref(),
        &request.tenant,
    )
    .await?;
    // What cannot be mapped is said before anything takes long.
    let known = match &live_tenant {
        Some(tenant) => Some(place_and_map(&registry, tenant, None).await?),
        None => None,
    };
    if let Some((_, map)) = &known {
        request.filter.check(map)?;
    }
    let repository = installation.open_repository_of(&registry.workload).await?;
    let id = TenantRestoreId::new(installation.clock.now());
    let work = WorkFolder::create(&id)?;
    let target = if fault::is("late-by-one-commit") {
        Target::Latest
    } else {
        request.target.clone()
    };
    progress.note(&format!(
        "bringing back {} at {}",
        registry.workload, request.target
    ));
    let mut scratch = Box::pin(dr_restore::scratch(
        installation,
        &registry.workload,
        &target,
        &work::base(),
        Arc::clone(&progress),
        cancel.clone(),
    ))
    .await
    .map_err(TenantError::Restore)?;
    let (tenant, note) = at_target(&registry, &scratch, live_tenant, &request.tenant).await?;
    let forgotten = scratch.forget(installation, &[&tenant.id]).await;
    let erasures = forgotten.map_err(TenantError::Restore)?.clone();
    let (place, map) = match known {
        Some(known) => known,
        // Only now it is known where it was.
        None => {
            let found = place_and_map(&registry, &tenant, Some(&tenant)).await?;
            request.filter.check(&found.1)?;
            found
        }
    };
    let mut execution = Execution {
        installation: installation.clone(),
        by: request.by.clone(),
        repository,
        plan: empty_plan(&place, &tenant, request, &scratch, installation.clock.now()),
        set: empty_set(&place, &tenant, request.mode, &id),
        place,
        id,
        map,
        direction: Direction::Forward,
        erasures,
        spool: work.fresh("rows")?,
        content: work.path("then"),
        work,
        cancel: cancel.clone(),
        writing: Writing::default(),
    };
    execution.plan.warnings.extend(note);
    if !execution.erasures.entries.is_empty() {
        execution.plan.warnings.push(format!(
            "{}: erased rows that are still live are deleted",
            execution.erasures
        ));
    }
    // What limits the restore of the scratch instance limits the tenant's.
    execution
        .plan
        .warnings
        .extend(scratch.plan.notes.iter().cloned());
    compare(&mut execution, &scratch, progress.as_ref(), &cancel).await?;
    if cancel.is_cancelled() {
        return Err(TenantError::Cancelled);
    }
    Ok(Prepared { execution, scratch })
}

/// The tenant as the target knows it. One that did not exist then has nothing to return to.
async fn at_target(
    place: &Place,
    scratch: &Scratch,
    live: Option<Tenant>,
    wanted: &str,
) -> Result<(Tenant, Option<String>), TenantError> {
    let options = scratch.connect_options(place.registry());
    let then = place.tenants(&options, "the scratch instance").await?;
    let where_ = format!("in workload `{}` at the target", place.workload);
    match live {
        None => {
            let tenant = tenants::choose(&then, wanted, &where_)?;
            let server = format!("workload `{}`", place.workload);
            let now = place.tenants(&place.live, &server).await?;
            tenants::same_ids(&tenant, &now, "by now")?;
            let note = "the tenant itself is gone from the live database and returns";
            Ok((tenant, Some(note.to_owned())))
        }
        Some(live) => {
            tenants::same_ids(&live, &then, "at the target")?;
            let former = tenants::choose(&then, &format!("id:{}", live.id), &where_)?;
            let note = (former.name != live.name)
                .then(|| format!("the tenant was called {} at the target", former.name));
            Ok((live, note))
        }
    }
}

fn empty_plan(
    place: &Place,
    tenant: &Tenant,
    request: &TenantRequest,
    scratch: &Scratch,
    now: DateTime<Utc>,
) -> TenantPlan {
    TenantPlan {
        workload: place.workload.clone(),
        tenant: tenant.clone(),
        mode: request.mode,
        purpose: Purpose::Restore {
            target: request.target.clone(),
            lsn: Some(scratch.reached.lsn),
            last_commit_time: scratch.reached.last_commit_time,
            note: scratch.reached.note.clone(),
        },
        filter: request.filter.clone(),
        on_conflict: request.on_conflict,
        live_read_at: now,
        tables: Vec::new(),
        large_objects: None,
        folders: Vec::new(),
        warnings: Vec::new(),
        refused: Vec::new(),
    }
}

fn empty_set(place: &Place, tenant: &Tenant, mode: Mode, id: &TenantRestoreId) -> ChangeSet {
    ChangeSet {
        version: crate::changes::VERSION,
        restore: id.clone(),
        workload: place.workload.clone(),
        tenant: tenant.clone(),
        mode,
        tables: Vec::new(),
        large_objects: Vec::new(),
        folders: Vec::new(),
    }
}

/// Compares rows and folders and puts what it finds into the execution's set and plan.
async fn compare(
    execution: &mut Execution,
    scratch: &Scratch,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<(), TenantError> {
    let scratch_options = scratch.connect_options(&execution.place.database());
    let subject = Subject {
        live: &execution.place.live,
        scratch: &scratch_options,
        map: &execution.map,
        tenant: &execution.set.tenant,
        mode: execution.set.mode,
        filter: &execution.plan.filter,
        on_conflict: execution.plan.on_conflict,
    };
    let now = execution.installation.clock.now();
    let compared = rows::compare(
        &subject,
        &execution.id,
        &execution.spool,
        now,
        progress,
        cancel,
    )
    .await?;
    let Compared {
        set,
        plans,
        warnings,
        mut refused,
        live_read_at,
    } = compared;
    execution.set = set;
    if execution.plan.filter.is_everything() {
        execution.set.folders = compare_folders(execution, &mut refused).await?;
    }
    let plan = &mut execution.plan;
    plan.tables = plans;
    plan.large_objects = large_objects::told(&execution.set.large_objects);
    plan.folders = execution
        .set
        .folders
        .iter()
        .map(FolderChanges::plan)
        .collect();
    plan.refused = refused;
    plan.live_read_at = live_read_at;
    for warning in warnings.into_iter().chain(folder_warnings(execution)) {
        if !execution.plan.warnings.contains(&warning) {
            execution.plan.warnings.push(warning);
        }
    }
    Ok(())
}

/// Folders that are configured for tenants, and that no point is old enough for.
fn folder_warnings(execution: &Execution) -> Vec<String> {
    if !execution.plan.filter.is_everything() {
        let note = "only chosen tables are restored: the tenant's files stay as they are";
        let has_folders = !folder_workloads(&execution.installation).is_empty();
        return has_folders.then(|| note.to_owned()).into_iter().collect();
    }
    folder_workloads(&execution.installation)
        .into_iter()
        .filter(|(name, _)| !execution.set.folders.iter().any(|folder| folder.workload == *name))
        .map(|(name, _)| {
            format!("folder {name} has no restore point as old as the target: its files stay as they are")
        })
        .collect()
}

pub(crate) fn folder_workloads(installation: &Installation) -> Vec<(WorkloadName, String)> {
    installation
        .config
        .workloads()
        .filter(|workload| matches!(workload.source, WorkloadSource::Files(_)))
        .filter_map(|workload| {
            let pattern = workload.config.tenancy.as_ref()?.path.clone()?;
            Some((workload.name.clone(), pattern))
        })
        .collect()
}

/// The moment whose folders belong to the rows.
fn folder_moment(execution: &Execution) -> Result<DateTime<Utc>, TenantError> {
    let Purpose::Restore {
        target,
        last_commit_time,
        ..
    } = &execution.plan.purpose
    else {
        return Ok(execution.plan.live_read_at);
    };
    match target {
        Target::Time(time) => Ok(time.to_utc()),
        Target::Latest => Ok(execution.plan.live_read_at),
        Target::RestorePoint(id) => {
            let point = execution
                .repository
                .point(id)
                .map_err(|source| TenantError::Store {
                    action: format!("reading restore point {id}"),
                    source,
                })?;
            Ok(point.map_or(execution.plan.live_read_at, |stored| stored.point.moment))
        }
        Target::Lsn(_) | Target::Transaction(_) | Target::Before(_) | Target::Named(_) => {
            Ok(last_commit_time.unwrap_or(execution.plan.live_read_at))
        }
    }
}

async fn compare_folders(
    execution: &Execution,
    refused: &mut Vec<String>,
) -> Result<Vec<FolderChanges>, TenantError> {
    let mut found = Vec::new();
    for (name, pattern) in folder_workloads(&execution.installation) {
        let glob = match folders::glob_of(&pattern, &execution.set.tenant) {
            Ok(glob) => glob,
            Err(error) => {
                refused.push(error.to_string());
                continue;
            }
        };
        let repository = execution.installation.open_repository_of(&name).await?;
        let moment = folder_moment(execution)?;
        if let Some(point) = newest_not_later(&repository, &name, moment).await? {
            found.push(compare_folder(execution, &name, &glob, &point, moment).await?);
        }
    }
    Ok(found)
}

async fn newest_not_later(
    repository: &Repository,
    workload: &WorkloadName,
    moment: DateTime<Utc>,
) -> Result<Option<RestorePoint>, TenantError> {
    let (repository, workload) = (repository.clone(), workload.clone());
    blocking("list restore points", move || {
        let points = repository
            .points(Some(&workload))
            .map_err(|source| TenantError::Store {
                action: format!("listing the restore points of {workload}"),
                source,
            })?;
        Ok(points
            .into_iter()
            .filter(|point| matches!(point.position, Position::Files(_)) && point.moment <= moment)
            .max_by_key(|point| point.moment))
    })
    .await
}

async fn compare_folder(
    execution: &Execution,
    name: &WorkloadName,
    glob: &str,
    point: &RestorePoint,
    moment: DateTime<Utc>,
) -> Result<FolderChanges, TenantError> {
    let into = execution.content.join(name.as_str());
    rows::recreate(&into)?;
    let is_tenants = Arc::new(folders::matcher(glob)?);
    let only = Arc::clone(&is_tenants);
    dr_restore::files(
        &execution.installation,
        name,
        &point.id,
        &into,
        Arc::new(move |path: &str| only(path)),
        Arc::new(dr_model::Silent),
    )
    .await
    .map_err(TenantError::Restore)?;
    let root = root_of(&execution.installation, name)?;
    let mode = execution.set.mode;
    let entries = blocking("compare the tenant's files", move || {
        let then = folders::walk(&into, is_tenants.as_ref())?;
        let live = folders::walk(&root, is_tenants.as_ref())?;
        Ok(folders::difference(&live, &then, mode))
    })
    .await?;
    Ok(FolderChanges {
        workload: name.clone(),
        glob: glob.to_owned(),
        point: point.id.clone(),
        moment: point.moment,
        age_seconds: (moment - point.moment).num_seconds(),
        entries,
    })
}

impl Prepared {
    /// What would be done.
    #[must_use]
    pub fn plan(&self) -> &TenantPlan {
        &self.execution.plan
    }

    /// Carries it out. When the tenant was written to since the plan was made, the plan is made again
    /// and carried out at once, a few times; the report says so.
    ///
    /// # Errors
    /// Until the commit every error means that nothing was changed; [`TenantError::OutcomeUnknown`] is
    /// the one that leaves it open.
    pub async fn apply(
        self,
        writing: Writing,
        progress: Arc<dyn Progress>,
    ) -> Result<TenantRestoreReport, TenantError> {
        let Self {
            mut execution,
            scratch,
        } = self;
        execution.writing = writing;
        let hooks = Hooks::of(&execution);
        let work = restore(execution, &scratch, &hooks, progress.as_ref());
        // A future of this depth is more than a compiler lays out in one piece.
        let report = Box::pin(hooks.around(progress.as_ref(), work)).await?;
        blocking("remove the scratch instance", move || {
            drop(scratch);
            Ok(())
        })
        .await?;
        Ok(report)
    }
}

/// Carries a plan out, after what `before` runs.
async fn restore(
    mut execution: Execution,
    scratch: &Scratch,
    hooks: &Hooks,
    progress: &dyn Progress,
) -> Result<(Execution, TenantRestoreReport), TenantError> {
    let ran = hooks.before(&execution.plan).await?;
    if !ran.is_empty() {
        // The tenant's last writes came in until now.
        progress.note("comparing again, now that the tenant is quiet");
        let shown = execution.plan.totals();
        let cancel = execution.cancel.clone();
        compare(&mut execution, scratch, progress, &cancel).await?;
        if execution.plan.totals() != shown {
            let note = "the tenant was written to until `before` ran: other rows are written than were shown";
            execution.plan.warnings.push(note.to_owned());
        }
    }
    let mut done = Box::pin(apply_or_plan_again(&mut execution, scratch, progress)).await?;
    done.report.proof.extend(ran);
    if let Some(committed) = &done.committed {
        let scratch_options = scratch.connect_options(&execution.place.database());
        let subject = Subject {
            live: &execution.place.live,
            scratch: &scratch_options,
            map: &execution.map,
            tenant: &execution.set.tenant,
            mode: execution.set.mode,
            filter: &execution.plan.filter,
            on_conflict: execution.plan.on_conflict,
        };
        match rows::look_again(&subject, &execution.set, committed).await {
            Ok((line, content)) => {
                done.report.proof.push(line);
                done.report.content = content;
            }
            Err(error) => done.report.proof.push(not_read_again(&error)),
        }
    }
    let report = execution.finish(done).await;
    Ok((execution, report))
}

/// A tenant that is written to meanwhile is held still and planned again, a few times.
async fn apply_or_plan_again(
    execution: &mut Execution,
    scratch: &Scratch,
    progress: &dyn Progress,
) -> Result<Done, TenantError> {
    let mut plans = 1;
    let mut held = None;
    loop {
        match execution.run(held.take()).await {
            Err(TenantError::Changed(lines)) if plans < PLANS_MAX => {
                progress.note(&format!(
                    "the tenant was written to meanwhile; its new rows wait while it is planned \
                     again: {}",
                    lines.join("; ")
                ));
                let tenant = Some((&execution.map, &execution.set.tenant));
                held = Some(hold::begin(&execution.place.live, &execution.writing, tenant).await?);
                let cancel = execution.cancel.clone();
                compare(execution, scratch, progress, &cancel).await?;
                execution.plan.warnings.push(format!(
                    "the tenant was written to after the preview; planned again: {}",
                    lines.join("; ")
                ));
                plans += 1;
            }
            ended => return ended,
        }
    }
}

pub(crate) fn not_read_again(error: &TenantError) -> ProofLine {
    ProofLine {
        what: "the tenant's rows read again after the commit".to_owned(),
        outcome: ProofOutcome::NotMeasured,
        detail: error.to_string(),
    }
}

//! The conductor: prepare, show, apply; and the same for taking a restore back.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Position, Progress, RestorePoint, Target, TenantRestoreId, WorkloadName};
use dr_restore::Scratch;
use dr_store::Repository;
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, Direction};
use crate::execute::{Execution, blocking, root_of};
use crate::folders::{self, FolderChanges};
use crate::hold;
use crate::mapping::place_and_map;
use crate::plan::TablePlan;
use crate::record::{self, Ending, Outcome, Record};
use crate::report::{ProofLine, ProofOutcome};
use crate::rows::{self, Compared, Subject};
use crate::slice::Ownership;
use crate::tenants::{self, Place};
use crate::undo::{self, State};
use crate::work::{self, WorkFolder};
use crate::{
    Mode, Purpose, Tenant, TenantError, TenantPlan, TenantRequest, TenantRestoreReport, fault,
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
        Mode::Clone => return Err(TenantError::NotYet("mode `clone`")),
        Mode::Replace | Mode::Missing => {}
    }
    let (registry, live_tenant) =
        tenants::find(installation, &request.tenant, request.workload.as_ref()).await?;
    // What cannot be mapped is said before anything takes long.
    let known = match &live_tenant {
        Some(tenant) => Some(place_and_map(&registry, tenant, None).await?),
        None => None,
    };
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
    let scratch = dr_restore::scratch(
        installation,
        &registry.workload,
        &target,
        &work::base(),
        Arc::clone(&progress),
        cancel.clone(),
    )
    .await
    .map_err(TenantError::Restore)?;
    let (tenant, note) = at_target(&registry, &scratch, live_tenant, &request.tenant).await?;
    let (place, map) = match known {
        Some(known) => known,
        // Only now it is known where it was.
        None => place_and_map(&registry, &tenant, Some(&tenant)).await?,
    };
    let mut execution = Execution {
        installation: installation.clone(),
        repository,
        plan: empty_plan(&place, &tenant, request, &scratch, installation.clock.now()),
        set: empty_set(&place, &tenant, request.mode, &id),
        place,
        id,
        map,
        direction: Direction::Forward,
        spool: work.fresh("rows")?,
        content: work.path("then"),
        work,
    };
    execution.plan.warnings.extend(note);
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
        live_read_at: now,
        tables: Vec::new(),
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
    execution.set.folders = compare_folders(execution, &mut refused).await?;
    let plan = &mut execution.plan;
    plan.tables = plans;
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
    folder_workloads(&execution.installation)
        .into_iter()
        .filter(|(name, _)| !execution.set.folders.iter().any(|folder| folder.workload == *name))
        .map(|(name, _)| {
            format!("folder {name} has no restore point as old as the target: its files stay as they are")
        })
        .collect()
}

fn folder_workloads(installation: &Installation) -> Vec<(WorkloadName, String)> {
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
        progress: Arc<dyn Progress>,
    ) -> Result<TenantRestoreReport, TenantError> {
        let Self {
            mut execution,
            scratch,
        } = self;
        let mut plans = 1;
        let mut held = None;
        let mut done = loop {
            match execution.run(held.take()).await {
                Ok(done) => break done,
                Err(TenantError::Changed(lines)) if plans < PLANS_MAX => {
                    progress.note(&format!(
                        "the tenant was written to meanwhile; its new rows wait while it is planned \
                         again: {}",
                        lines.join("; ")
                    ));
                    let tenant = Some((&execution.map, &execution.set.tenant));
                    held = Some(hold::begin(&execution.place.live, tenant).await?);
                    let cancel = CancellationToken::new();
                    compare(&mut execution, &scratch, progress.as_ref(), &cancel).await?;
                    execution.plan.warnings.push(format!(
                        "the tenant was written to after the preview; planned again: {}",
                        lines.join("; ")
                    ));
                    plans += 1;
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(committed) = &done.committed {
            let scratch_options = scratch.connect_options(&execution.place.database());
            let subject = Subject {
                live: &execution.place.live,
                scratch: &scratch_options,
                map: &execution.map,
                tenant: &execution.set.tenant,
                mode: execution.set.mode,
            };
            let line = rows::look_again(&subject, &execution.set, committed).await;
            done.report
                .proof
                .push(line.unwrap_or_else(|error| not_read_again(&error)));
        }
        let report = execution.finish(done).await;
        blocking("remove the scratch instance", move || {
            drop(scratch);
            Ok(())
        })
        .await?;
        Ok(report)
    }
}

fn not_read_again(error: &TenantError) -> ProofLine {
    ProofLine {
        what: "the tenant's rows read again after the commit".to_owned(),
        outcome: ProofOutcome::NotMeasured,
        detail: error.to_string(),
    }
}

/// An undo that is ready to be carried out.
#[derive(Debug)]
pub struct PreparedUndo {
    execution: Execution,
}

/// Reads a tenant restore's record and the state from before, and compares with what is live now.
///
/// # Errors
/// When there is no such restore, or it was rolled back or taken back already. Rows that changed since
/// are reasons in the plan.
pub async fn prepare_undo(
    installation: &Installation,
    id: &TenantRestoreId,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<PreparedUndo, TenantError> {
    let (repository, record, ending) = read_record(installation, id).await?;
    let place = tenants::place(installation, &record.workload)?;
    let warnings = check_outcome(&place, &record, ending).await?;
    let undo_id = TenantRestoreId::new(installation.clock.now());
    let work = WorkFolder::create(&undo_id)?;
    let stored = work.path("stored");
    progress.note(&format!("reading {}", record.point));
    let everything = Arc::new(|_: &str| true);
    dr_restore::files(
        installation,
        &record.workload,
        &record.point,
        &stored,
        everything,
        progress,
    )
    .await
    .map_err(TenantError::Restore)?;
    let set = ChangeSet::read(&stored)?;
    let server = format!("workload `{}`", place.workload);
    let now = place.tenants(&place.live, &server).await?;
    tenants::same_ids(&set.tenant, &now, "by now")?;
    let is_gone = now.iter().all(|tenant| tenant.id != set.tenant.id);
    let gone = is_gone.then_some(&set.tenant);
    let (place, map) = place_and_map(&place, &set.tenant, gone).await?;
    let mut execution = Execution {
        plan: TenantPlan {
            workload: place.workload.clone(),
            tenant: set.tenant.clone(),
            mode: Mode::Replace,
            purpose: Purpose::Undo { of: id.clone() },
            live_read_at: installation.clock.now(),
            tables: Vec::new(),
            folders: Vec::new(),
            warnings,
            refused: Vec::new(),
        },
        set: set.reversed(undo_id.clone()),
        installation: installation.clone(),
        repository,
        place,
        id: undo_id,
        map,
        direction: Direction::Reverse,
        content: stored.join("files"),
        spool: stored,
        work,
    };
    plan_undo(&mut execution, &set).await?;
    if cancel.is_cancelled() {
        return Err(TenantError::Cancelled);
    }
    Ok(PreparedUndo { execution })
}

async fn read_record(
    installation: &Installation,
    id: &TenantRestoreId,
) -> Result<(Repository, Record, Option<Ending>), TenantError> {
    let (installation, id) = (installation.clone(), id.clone());
    blocking("read the record", move || {
        let (repository, record) = record::find(&installation, &id)?;
        if let Some(by) = record::undone_by(&repository, &id)? {
            return Err(TenantError::NotUndoable {
                id,
                why: format!("{by} took it back already"),
            });
        }
        let ending = Ending::read(&repository, &id)?;
        Ok((repository, record, ending))
    })
    .await
}

/// Whether the restore took place; what is not known for sure is a warning, because the rows
/// themselves decide.
async fn check_outcome(
    place: &Place,
    record: &Record,
    ending: Option<Ending>,
) -> Result<Vec<String>, TenantError> {
    let rolled_back = || TenantError::NotUndoable {
        id: record.id.clone(),
        why: "it was rolled back and changed nothing".to_owned(),
    };
    match ending.map(|ending| ending.outcome) {
        Some(Outcome::Committed) => return Ok(Vec::new()),
        Some(Outcome::RolledBack) => return Err(rolled_back()),
        Some(Outcome::Unknown) | None => {}
    }
    let status = match record
        .transaction
        .as_deref()
        .and_then(|text| text.parse().ok())
    {
        Some(xid) => rows::outcome(&place.live, xid).await,
        None => None,
    };
    match status.as_deref() {
        Some("committed") => Ok(Vec::new()),
        Some("aborted") => Err(rolled_back()),
        _ => Ok(vec![format!(
            "{} was interrupted and its outcome is not known; it is undone only if all its rows are there",
            record.id
        )]),
    }
}

/// Fills the plan of an undo: what would be written, and what changed since.
async fn plan_undo(execution: &mut Execution, forward: &ChangeSet) -> Result<(), TenantError> {
    let mut live = rows::session(&execution.place.live, "the live database").await?;
    let catalog = CatalogRows::read(&mut live).await?;
    let mut refused = undo::misfits(&catalog, &execution.map, forward);
    if refused.is_empty() {
        let owner = Ownership {
            map: &execution.map,
            tenant: &forward.tenant,
        };
        let standings =
            undo::compare(&mut live, &owner, forward, &execution.spool, State::After).await?;
        for (changes, standing) in execution.set.tables.iter_mut().zip(&standings) {
            changes.rows_before = standing.rows;
            changes.rows_after =
                (standing.rows + changes.counts.insert).saturating_sub(changes.counts.delete);
            if standing.wrong > 0 {
                refused.push(format!(
                    "{}: {} rows changed after the restore",
                    changes.slice.table, standing.wrong
                ));
            }
        }
    }
    let mut warnings = Vec::new();
    let reversed = &execution.set.tables;
    crate::conflicts::surroundings(&catalog, reversed, &mut warnings, &mut refused);
    rows::close(live).await;
    leave_out_done(execution).await?;
    refused.extend(changed_files(&execution.installation, &execution.set).await?);
    let plan = &mut execution.plan;
    plan.tables = execution.set.tables.iter().map(table_plan).collect();
    plan.folders = execution
        .set
        .folders
        .iter()
        .map(FolderChanges::plan)
        .collect();
    plan.warnings.extend(warnings);
    plan.refused = refused;
    Ok(())
}

async fn leave_out_done(execution: &mut Execution) -> Result<(), TenantError> {
    let installation = execution.installation.clone();
    for folder in &mut execution.set.folders {
        let (root, mut changes) = (root_of(&installation, &folder.workload)?, folder.clone());
        *folder = blocking("compare the tenant's files", move || {
            folders::leave_out_done(&root, &mut changes)?;
            Ok(changes)
        })
        .await?;
    }
    Ok(())
}

async fn changed_files(
    installation: &Installation,
    set: &ChangeSet,
) -> Result<Vec<String>, TenantError> {
    let mut lines = Vec::new();
    for changes in &set.folders {
        let (root, changes) = (root_of(installation, &changes.workload)?, changes.clone());
        let changed = blocking("compare the tenant's files", move || {
            folders::changed_since(&root, &changes)
        })
        .await?;
        lines.extend(
            changed
                .into_iter()
                .map(|path| format!("{path} changed after the restore")),
        );
    }
    Ok(lines)
}

fn table_plan(changes: &crate::changes::TableChanges) -> TablePlan {
    TablePlan {
        table: changes.slice.table.to_string(),
        class: changes.slice.class.describe(),
        rows_now: changes.rows_before,
        rows_then: changes.rows_after,
        insert: changes.counts.insert,
        update: changes.counts.update + changes.counts.replace,
        delete: changes.counts.delete,
        changed_columns: changes
            .changed
            .iter()
            .map(|&p| changes.slice.name_at(p).to_owned())
            .collect(),
        samples: Vec::new(),
    }
}

impl PreparedUndo {
    /// What would be done.
    #[must_use]
    pub fn plan(&self) -> &TenantPlan {
        &self.execution.plan
    }

    /// Carries it out. Rows that changed since the plan stop it.
    ///
    /// # Errors
    /// As [`Prepared::apply`].
    pub async fn apply(
        self,
        progress: Arc<dyn Progress>,
    ) -> Result<TenantRestoreReport, TenantError> {
        let execution = self.execution;
        progress.note(&format!("undoing for {}", execution.set.tenant.name));
        let mut done = execution.run(None).await?;
        if done.committed.is_some() {
            let line = look_again(&execution, &execution.spool).await;
            done.report
                .proof
                .push(line.unwrap_or_else(|error| not_read_again(&error)));
        }
        Ok(execution.finish(done).await)
    }
}

async fn look_again(execution: &Execution, spool: &Path) -> Result<ProofLine, TenantError> {
    let mut live = rows::session(&execution.place.live, "the live database").await?;
    let forward = ChangeSet::read(spool)?;
    let owner = Ownership {
        map: &execution.map,
        tenant: &forward.tenant,
    };
    let standings = undo::compare(&mut live, &owner, &forward, spool, State::Before).await?;
    rows::close(live).await;
    let wrong: u64 = standings.iter().map(|standing| standing.wrong).sum();
    let rows: u64 = standings.iter().map(|standing| standing.rows).sum();
    Ok(ProofLine {
        what: "the rows are as they were before the restore".to_owned(),
        outcome: if wrong == 0 {
            ProofOutcome::Agrees
        } else {
            ProofOutcome::Differs
        },
        detail: format!("{rows} rows read again, {wrong} differ"),
    })
}

//! The conductor of an undo: the record and the state from before are read, compared with what is live now, and
//! written.

use std::path::Path;
use std::sync::Arc;

use dr_installation::Installation;
use dr_model::{Progress, TenantRestoreId};
use dr_restore::AppliedErasures;
use dr_store::Repository;
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, Direction, TableChanges};
use crate::erase::{self, refuse_erased};
use crate::execute::{Execution, blocking, root_of};
use crate::filter::Filter;
use crate::folders::{self, FolderChanges};
use crate::hooks::Hooks;
use crate::large_objects;
use crate::mapping::place_and_map;
use crate::plan::TablePlan;
use crate::record::{self, Ending, Outcome, Record};
use crate::report::{ProofLine, ProofOutcome, TableContent};
use crate::run::not_read_again;
use crate::slice::Ownership;
use crate::take_out::take_out;
use crate::tenants::{self, Place};
use crate::undo::{self, State};
use crate::work::WorkFolder;
use crate::{
    Mode, OnConflict, Purpose, TenancyMap, TenantError, TenantPlan, TenantRestoreReport, Writing,
    checksum, outcome, rows, sql,
};

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
    by: Option<String>,
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
    let mut set = ChangeSet::read(&stored)?;
    refuse_erased(installation, &record.workload, Some(&set.tenant), "").await?;
    let server = format!("workload `{}`", place.workload);
    let now = place.tenants(&place.live, &server).await?;
    tenants::same_ids(&set.tenant, &now, "by now")?;
    let is_gone = now.iter().all(|tenant| tenant.id != set.tenant.id);
    let gone = is_gone.then_some(&set.tenant);
    let (place, map) = place_and_map(&place, &set.tenant, gone).await?;
    let erasures = without_erased(installation, &place, &map, &mut set, &stored).await?;
    let mut execution = Execution {
        by,
        plan: TenantPlan {
            workload: place.workload.clone(),
            tenant: set.tenant.clone(),
            mode: Mode::Replace,
            purpose: Purpose::Undo { of: id.clone() },
            filter: Filter::default(),
            on_conflict: OnConflict::Abort,
            live_read_at: installation.clock.now(),
            tables: Vec::new(),
            large_objects: None,
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
        erasures,
        content: stored.join("files"),
        spool: stored,
        work,
        cancel: cancel.clone(),
        writing: Writing::default(),
    };
    if execution.erasures.rows() > 0 {
        execution.plan.warnings.push(format!(
            "{} rows of it were erased since, and stay as they are",
            execution.erasures.rows()
        ));
    }
    plan_undo(&mut execution, set).await?;
    if cancel.is_cancelled() {
        return Err(TenantError::Cancelled);
    }
    Ok(PreparedUndo { execution })
}

/// Leaves out of the stored rows what was erased since.
async fn without_erased(
    installation: &Installation,
    place: &Place,
    map: &TenancyMap,
    set: &mut ChangeSet,
    stored: &Path,
) -> Result<AppliedErasures, TenantError> {
    let mut entries = erase::erasures(installation, &place.workload).await?;
    entries.retain(|entry| entry.tenant.is(&set.tenant.id));
    if entries.is_empty() {
        return Ok(AppliedErasures::default());
    }
    let mut live = rows::session(&place.live, "the live database").await?;
    let tenant = set.tenant.clone();
    let owner = Ownership {
        map,
        tenant: &tenant,
    };
    let applied = take_out(&mut live, &owner, set, stored, &place.database(), &entries).await?;
    rows::close(live).await;
    Ok(applied)
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
    let (status, why) = match outcome::known_here(&place.live, record).await {
        Ok(xid) => {
            let why = format!("the server does not know transaction {xid} any more");
            (rows::outcome(&place.live, xid).await, why)
        }
        Err(why) => (None, why.to_string()),
    };
    match status.as_deref() {
        Some("committed") => Ok(Vec::new()),
        Some("aborted") => Err(rolled_back()),
        _ => Ok(vec![format!(
            "{} was interrupted and its outcome is not known ({why}); it is undone only if all its rows are there",
            record.id
        )]),
    }
}

/// Fills the plan of an undo: what would be written, and what changed since.
async fn plan_undo(execution: &mut Execution, mut forward: ChangeSet) -> Result<(), TenantError> {
    let mut live = rows::session(&execution.place.live, "the live database").await?;
    let catalog = CatalogRows::read(&mut live).await?;
    let (mut refused, mut warnings) = (Vec::new(), Vec::new());
    let map = &execution.map;
    forward.tables.retain(|changes| {
        let misfits = undo::misfits(&catalog, map, changes);
        if changes.is_written() || misfits.is_empty() {
            refused.extend(misfits);
            return true;
        }
        // The restore wrote nothing there, so that nothing is taken back.
        warnings.extend(
            misfits
                .iter()
                .map(|why| format!("{why}; the restore did not write to it")),
        );
        false
    });
    let is_kept = |changes: &TableChanges| {
        let mut kept = forward.tables.iter();
        kept.any(|kept| kept.slice.number == changes.slice.number)
    };
    execution.set.tables.retain(is_kept);
    if refused.is_empty() {
        let owner = Ownership {
            map: &execution.map,
            tenant: &forward.tenant,
        };
        let standings =
            undo::compare(&mut live, &owner, &forward, &execution.spool, State::After).await?;
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
    let owner = Ownership {
        map: &execution.map,
        tenant: &forward.tenant,
    };
    let of = (&catalog, &owner);
    refused.extend(large_objects::not_reversible(&mut live, of, &execution.set).await?);
    let reversed = &execution.set.tables;
    crate::conflicts::surroundings(&catalog, reversed, &mut warnings, &mut refused);
    rows::close(live).await;
    leave_out_done(execution).await?;
    refused.extend(changed_files(&execution.installation, &execution.set).await?);
    let plan = &mut execution.plan;
    plan.tables = execution.set.tables.iter().map(table_plan).collect();
    plan.large_objects = large_objects::told(&execution.set.large_objects);
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

fn table_plan(changes: &TableChanges) -> TablePlan {
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
        writing: Writing,
        progress: Arc<dyn Progress>,
    ) -> Result<TenantRestoreReport, TenantError> {
        let mut execution = self.execution;
        execution.writing = writing;
        let hooks = Hooks::of(&execution);
        progress.note(&format!("undoing for {}", execution.set.tenant.name));
        Box::pin(hooks.around(progress.as_ref(), take_back(execution, &hooks))).await
    }
}

async fn take_back(
    execution: Execution,
    hooks: &Hooks,
) -> Result<(Execution, TenantRestoreReport), TenantError> {
    let ran = hooks.before(&execution.plan).await?;
    let mut done = execution.run(None).await?;
    done.report.proof.extend(ran);
    if done.committed.is_some() {
        let line = look_again(&execution, &execution.spool).await;
        done.report
            .proof
            .push(line.unwrap_or_else(|error| not_read_again(&error)));
        match content(&execution, &execution.spool).await {
            Ok(content) => done.report.content = content,
            Err(error) => done.report.proof.push(not_summed(&error)),
        }
    }
    let report = execution.finish(done).await;
    Ok((execution, report))
}

async fn look_again(execution: &Execution, spool: &Path) -> Result<ProofLine, TenantError> {
    let mut live = rows::session(&execution.place.live, "the live database").await?;
    let mut forward = ChangeSet::read(spool)?;
    forward.tables.retain(TableChanges::is_written);
    let owner = Ownership {
        map: &execution.map,
        tenant: &forward.tenant,
    };
    let standings = undo::compare(&mut live, &owner, &forward, spool, State::Before).await?;
    rows::close(live).await;
    let wrong: u64 = standings.iter().map(|standing| standing.wrong).sum();
    let tables = forward.tables.iter();
    let rows: u64 = tables.map(|table| table.counts.total()).sum();
    Ok(ProofLine {
        what: "the rows that the restore wrote are as they were before it".to_owned(),
        outcome: if wrong == 0 {
            ProofOutcome::Agrees
        } else {
            ProofOutcome::Differs
        },
        detail: format!("{rows} rows read again, {wrong} differ"),
    })
}

/// The tenant's rows by table, as they are now: all of their columns, because all were put back.
async fn content(execution: &Execution, spool: &Path) -> Result<Vec<TableContent>, TenantError> {
    let mut live = rows::session(&execution.place.live, "the live database").await?;
    let forward = ChangeSet::read(spool)?;
    let owner = Ownership {
        map: &execution.map,
        tenant: &forward.tenant,
    };
    let begin = "begin isolation level repeatable read read only";
    sql::run(&mut live, begin, "reading the live database again").await?;
    let mut content = Vec::new();
    // Tables that the restore did not write to may be gone.
    let is_kept = |table: &&TableChanges| {
        let mut kept = execution.set.tables.iter();
        !table.left_out && kept.any(|kept| kept.slice.number == table.slice.number)
    };
    for table in forward.tables.iter().filter(is_kept) {
        let slice = &table.slice;
        let record = format!("row({})", slice.select_list("t"));
        let own = owner.condition(&slice.class, "t");
        let from = format!("{} t where {own}", slice.from());
        let what = format!("the tenant's rows of {}", slice.table);
        let (rows, sha256) = checksum::of(&mut live, &record, &from, &what).await?;
        content.push(TableContent {
            table: slice.table.to_string(),
            rows,
            sha256,
        });
    }
    rows::close(live).await;
    Ok(content)
}

fn not_summed(error: &TenantError) -> ProofLine {
    ProofLine {
        what: "the tenant's rows summed by table after the commit".to_owned(),
        outcome: ProofOutcome::NotMeasured,
        detail: error.to_string(),
    }
}

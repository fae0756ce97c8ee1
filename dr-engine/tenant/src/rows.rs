//! The row side from end to end, between two servers: compare, write, commit, look again. It knows
//! databases and folders, not the repository: what must be durable before the commit is handed out.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dr_config::TenancyConfig;
use dr_model::{HumanDuration, Lsn, Progress, TenantRestoreId, WorkloadName};
use dr_sources::postgres::ConnectOptions;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::apply::{self, Written};
use crate::catalog::CatalogRows;
use crate::changes::{ChangeSet, Counts, Direction, TableChanges, VERSION};
use crate::classify::classify;
use crate::filter::Filter;
use crate::hold::{self, Held};
use crate::kept_wal::KeptWal;
use crate::map::TenancyMap;
use crate::plan::{Mode, TablePlan, Tenant, Writing};
use crate::report::{ProofLine, ProofOutcome, TableContent};
use crate::slice::{Ownership, SliceTable, Sliced, slice};
use crate::tenants::Owners;
use crate::wal_count::{self, Stretch};
use crate::{
    OnConflict, TenantError, conflicts, contents, diff, fault, large_objects, referred, sql,
};

/// How long the outcome of a commit is asked for after the connection was lost.
const OUTCOME_PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two questions.
const OUTCOME_PAUSE: Duration = Duration::from_millis(200);

/// What one sort or hash may hold in memory in the scratch instance.
const SCRATCH_WORK_MEM: &str = "64MB";

/// Opens a session of this crate: see [`sql::SESSION`].
pub(crate) async fn session(
    options: &ConnectOptions,
    place: &str,
) -> Result<PgConnection, TenantError> {
    let mut connection = dr_sources::postgres::connect(options)
        .await
        .map_err(|source| TenantError::Connect {
            place: place.to_owned(),
            source,
        })?;
    sql::run(&mut connection, sql::SESSION, "preparing the session").await?;
    Ok(connection)
}

/// Opens a session in which a scratch instance compares: nobody else works there, and sorts and hashes of a tenant's
/// rows need not go through files.
async fn scratch_session(options: &ConnectOptions) -> Result<PgConnection, TenantError> {
    let mut connection = session(&fault::moment(options), "the scratch instance").await?;
    let room = format!("set work_mem = '{SCRATCH_WORK_MEM}'");
    sql::run(&mut connection, &room, "preparing the session").await?;
    Ok(connection)
}

/// Reads the tenancy map of a database.
pub(crate) async fn map(
    live: &mut PgConnection,
    workload: &WorkloadName,
    tenancy: &TenancyConfig,
    owners: &Owners,
) -> Result<TenancyMap, TenantError> {
    let (map, unknown) = read_map(live, workload, tenancy, owners).await?;
    match unknown.is_empty() {
        true => Ok(map),
        false => Err(TenantError::Refused(unknown)),
    }
}

/// As [`map`], of another moment: what is declared of tables that are not there does not matter.
pub(crate) async fn map_then(
    then: &mut PgConnection,
    workload: &WorkloadName,
    tenancy: &TenancyConfig,
    owners: &Owners,
) -> Result<TenancyMap, TenantError> {
    let read = read_map(then, workload, tenancy, owners).await?;
    Ok(read.0)
}

async fn read_map(
    session: &mut PgConnection,
    workload: &WorkloadName,
    tenancy: &TenancyConfig,
    owners: &Owners,
) -> Result<(TenancyMap, Vec<String>), TenantError> {
    let rows = CatalogRows::read(session).await?;
    let database: String = sql::value(
        session,
        "select current_database()::text",
        "asking for the database's name",
    )
    .await?;
    let (tables, unknown) = classify(&rows, tenancy, owners);
    let map = TenancyMap {
        workload: workload.clone(),
        database,
        tables,
    };
    Ok((map, unknown))
}

/// The map, if every table has a class.
pub(crate) fn complete(map: TenancyMap) -> Result<TenancyMap, TenantError> {
    let tables: Vec<String> = map
        .unclassified()
        .map(|(mapped, reason)| format!("{} ({reason})", mapped.table))
        .collect();
    match map.yaml() {
        Some(yaml) => Err(TenantError::Unclassified {
            workload: map.workload,
            tables,
            yaml,
        }),
        None => Ok(map),
    }
}

/// What a comparison found.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) set: ChangeSet,
    pub(crate) plans: Vec<TablePlan>,
    pub(crate) warnings: Vec<String>,
    pub(crate) refused: Vec<String>,
    pub(crate) live_read_at: DateTime<Utc>,
}

/// What is compared.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    pub(crate) live: &'a ConnectOptions,
    pub(crate) scratch: &'a ConnectOptions,
    pub(crate) map: &'a TenancyMap,
    pub(crate) tenant: &'a Tenant,
    pub(crate) mode: Mode,
    pub(crate) filter: &'a Filter,
    pub(crate) on_conflict: OnConflict,
}

impl Subject<'_> {
    fn owner(&self) -> Ownership<'_> {
        Ownership {
            map: self.map,
            tenant: self.tenant,
        }
    }
}

/// Compares the tenant's rows on both servers and spools the difference below `folder`. Production is
/// read in one read-only snapshot.
pub(crate) async fn compare(
    subject: &Subject<'_>,
    restore: &TenantRestoreId,
    folder: &Path,
    now: DateTime<Utc>,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Compared, TenantError> {
    let mut scratch = scratch_session(subject.scratch).await?;
    let mut live = session(subject.live, "the live database").await?;
    diff::begin(&mut scratch).await?;
    let begin = "begin isolation level repeatable read read only";
    sql::run(&mut live, begin, "beginning to read the live database").await?;
    let rows = CatalogRows::read(&mut live).await?;
    let then = CatalogRows::read(&mut scratch).await?;
    let Sliced {
        tables,
        mut warnings,
        mut refused,
    } = slice(subject.map, subject.tenant, &rows, &then);
    let owner = subject.owner();
    refused.extend(owner.unknown_ids());
    for part in ["db", "lo"] {
        recreate(&folder.join(part))?;
    }
    let (mut changes, mut plans) = (Vec::new(), Vec::new());
    let mut wanted = large_objects::Wanted::default();
    for table in tables {
        if cancel.is_cancelled() {
            return Err(TenantError::Cancelled);
        }
        if !subject.filter.chooses(&table.table) {
            changes.extend(left_out(&mut live, &owner, table).await?);
            continue;
        }
        let condition = subject.filter.condition(&table.table);
        if let Some(condition) = condition {
            diff::try_condition(&mut scratch, &table, condition).await?;
        }
        let lost = diff::lost_by_casts(&mut scratch, &owner, &table).await?;
        if !lost.is_empty() {
            refused.extend(lost);
            continue;
        }
        progress.note(&format!("comparing {}", table.table));
        diff::cut_then(&mut scratch, &owner, &table).await?;
        diff::copy_live(&mut live, &mut scratch, &owner, &table).await?;
        // With a condition, only the check before the commit knows which of them would go.
        if subject.mode == Mode::Replace && condition.is_none() {
            let (live, scratch) = (&mut live, &mut scratch);
            let lines =
                referred::look(live, scratch, &rows, &owner, &table, subject.on_conflict).await?;
            match subject.on_conflict {
                OnConflict::Abort => refused.extend(lines),
                OnConflict::Keep => warnings.extend(lines),
            }
        }
        let (mut found, plan) = diff::compare(&mut scratch, table, subject.mode, condition).await?;
        if subject.mode == Mode::Replace {
            found.sum_before = Some(contents::sum(&mut live, &owner, &found.slice).await?);
        }
        if found.counts.total() > 0 {
            diff::spool(&mut scratch, &found, folder).await?;
        }
        let only_changes = condition.is_some() || fault::is("large-objects-of-changed-rows-only");
        wanted
            .look(&mut scratch, &found.slice, only_changes)
            .await?;
        if found.counts.insert > 0 {
            conflicts::taken(&mut live, &mut scratch, &owner, &found, &mut refused).await?;
        }
        changes.push(found);
        plans.push(plan);
    }
    let (sessions, mode) = ((&mut live, &mut scratch), subject.mode);
    let large_objects = wanted
        .compare(sessions, &rows, &owner, mode, folder, &mut refused)
        .await?;
    sql::run(&mut live, "commit", "reading the live database").await?;
    conflicts::surroundings(&rows, &changes, &mut warnings, &mut refused);
    close(live).await;
    close(scratch).await;
    let set = ChangeSet {
        version: VERSION,
        restore: restore.clone(),
        workload: subject.map.workload.clone(),
        tenant: subject.tenant.clone(),
        mode: subject.mode,
        tables: changes,
        large_objects,
        folders: Vec::new(),
    };
    Ok(Compared {
        set,
        plans,
        warnings,
        refused,
        live_read_at: now,
    })
}

/// A table that is not restored. Where its rows are the tenant's through rows of other tables, they must be so
/// afterwards as well, and are counted.
async fn left_out(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    slice: SliceTable,
) -> Result<Option<TableChanges>, TenantError> {
    if slice.depth == 0 {
        return Ok(None);
    }
    let rows = apply::count(live, owner, &slice).await?;
    Ok(Some(TableChanges {
        slice,
        counts: Counts::default(),
        changed: Vec::new(),
        rows_before: rows,
        rows_after: rows,
        left_out: true,
        sum_before: None,
    }))
}

/// An empty folder.
pub(crate) fn recreate(folder: &Path) -> Result<(), TenantError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(TenantError::file("remove", folder)(error));
        }
        _ => {}
    }
    std::fs::create_dir_all(folder).map_err(TenantError::file("create", folder))
}

/// Ends a session politely; a session that is gone already has ended too.
pub(crate) async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a session had ended already");
    }
}

/// A committed transaction.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) written: Written,
    pub(crate) from: Lsn,
    /// Where the WAL stood after the commit, or why that is not known.
    pub(crate) to: Result<Lsn, String>,
    /// The WAL between, where the server keeps it.
    pub(crate) kept: Option<KeptWal>,
}

/// Where a transaction's before-images go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folders<'a> {
    /// The spooled changes.
    pub(crate) spool: &'a Path,
    /// To be filled with what was found and written, and then stored.
    pub(crate) save: &'a Path,
}

/// The database that is written to, and what ends that until the commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live<'a> {
    pub(crate) options: &'a ConnectOptions,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) writing: &'a Writing,
}

/// Carries a change set out in one transaction, the `held` one if there is one. `store` gets the transaction's id when the former rows
/// are in `folders.save`, and must have made them durable when it returns; only then is committed. Asked to
/// stop before that, it rolls back.
pub(crate) async fn write<Store, Stored>(
    Live {
        options,
        cancel,
        writing,
    }: Live<'_>,
    owner: &Ownership<'_>,
    set: &ChangeSet,
    folders: Folders<'_>,
    direction: Direction,
    held: Option<Held>,
    store: Store,
) -> Result<Committed, TenantError>
where
    Store: FnOnce(u64) -> Stored,
    Stored: Future<Output = Result<(), TenantError>>,
{
    let Held {
        mut live,
        xid,
        from,
        kept,
        server_process,
    } = match held {
        Some(held) => held,
        None => hold::begin(options, writing, None).await?,
    };
    let prepared = async {
        let rows = CatalogRows::read(&mut live).await?;
        let written =
            apply::write(&mut live, &rows, owner, set, folders.spool, direction, xid).await?;
        large_objects::write(&mut live, (&rows, owner), set, folders, direction).await?;
        apply::save(&mut live, set, folders.save).await?;
        store(written.xid).await?;
        Ok(written)
    };
    let prepared = tokio::select! {
        biased;
        prepared = prepared => prepared,
        () = cancel.cancelled() => {
            interrupt(options, server_process).await;
            Err(TenantError::Cancelled)
        }
        () = tokio::time::sleep(writing.time_max) => {
            interrupt(options, server_process).await;
            Err(TenantError::TooLong(HumanDuration(writing.time_max)))
        }
    };
    let written = match prepared {
        Ok(written) => written,
        Err(error) => {
            // Ending the session would roll back as well; this way it has happened when we return.
            if let Err(rollback) = sql::run(&mut live, "rollback", "rolling back").await {
                tracing::debug!(error = %rollback, "the session ended before the rollback");
            }
            close(live).await;
            return Err(error);
        }
    };
    commit(live, options, &written, &set.restore).await?;
    // Committed: from here on a failure only means that the WAL is not looked at.
    let to = position_after(options).await;
    Ok(Committed {
        written,
        from,
        to,
        kept,
    })
}

/// Ends the statement that a session of ours is running, so that it hears of the rollback at once. If that
/// fails, the rollback waits for the statement.
async fn interrupt(live_options: &ConnectOptions, server_process: i32) {
    let asked = async {
        let mut other = session(live_options, "the live database").await?;
        let statement = format!("select pg_cancel_backend({server_process})");
        let _sent: bool = sql::value(&mut other, &statement, "stopping the statement").await?;
        close(other).await;
        Ok::<(), TenantError>(())
    };
    if let Err(error) = asked.await {
        tracing::debug!(%error, "the running statement was not stopped");
    }
}

async fn position_after(live_options: &ConnectOptions) -> Result<Lsn, String> {
    let asked = async {
        let mut live = session(live_options, "the live database").await?;
        let to = flush_position(&mut live).await?;
        close(live).await;
        Ok::<Lsn, TenantError>(to)
    };
    asked.await.map_err(|error| error.to_string())
}

pub(crate) async fn insert_position(live: &mut PgConnection) -> Result<Lsn, TenantError> {
    let text: String = sql::value(
        live,
        "select pg_current_wal_insert_lsn()::text",
        "asking for the WAL position",
    )
    .await?;
    text.parse()
        .map_err(|error| TenantError::format("a WAL position", error))
}

async fn flush_position(live: &mut PgConnection) -> Result<Lsn, TenantError> {
    let text: String = sql::value(
        live,
        "select pg_current_wal_flush_lsn()::text",
        "asking for the WAL position",
    )
    .await?;
    text.parse()
        .map_err(|error| TenantError::format("a WAL position", error))
}

/// Commits; when the connection is lost over it, asks the server what became of the transaction.
async fn commit(
    mut live: PgConnection,
    options: &ConnectOptions,
    written: &Written,
    restore: &TenantRestoreId,
) -> Result<(), TenantError> {
    let Err(error) = sql::run(&mut live, "commit", "committing").await else {
        close(live).await;
        return Ok(());
    };
    // Class 57 is the server ending the session (a shutdown, a crash of another process), which can come
    // after the commit: it says nothing about the transaction.
    let answered = matches!(&error, TenantError::Sql { source, .. } if source
        .as_database_error()
        .is_some_and(|said| said.code().is_some_and(|code| !code.starts_with("57"))));
    drop(live);
    match outcome(options, written.xid).await {
        Some(status) if status == "committed" => Ok(()),
        Some(_) => Err(error),
        None if answered => Err(error),
        None => Err(TenantError::OutcomeUnknown {
            xid: written.xid.to_string(),
            id: restore.clone(),
        }),
    }
}

/// `committed`, `aborted`, or `None` when nobody knows.
pub(crate) async fn outcome(options: &ConnectOptions, xid: u64) -> Option<String> {
    let deadline = Instant::now() + OUTCOME_PATIENCE;
    let query = format!("select pg_xact_status('{xid}'::xid8)");
    loop {
        if let Ok(mut live) = session(options, "the live database").await
            && let Ok(status) =
                sql::value::<Option<String>>(&mut live, &query, "asking for the outcome").await
            && status.as_deref() != Some("in progress")
        {
            return status;
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(OUTCOME_PAUSE).await;
    }
}

/// The same, asked once: also `in progress`.
pub(crate) async fn outcome_now(options: &ConnectOptions, xid: u64) -> Option<String> {
    let query = format!("select pg_xact_status('{xid}'::xid8)");
    let mut live = session(options, "the live database").await.ok()?;
    let status = sql::value::<Option<String>>(&mut live, &query, "asking for the outcome").await;
    close(live).await;
    status.ok().flatten()
}

/// What is looked at again after the commit: the tenant's rows against the slice at the target, and the
/// WAL against the counters.
pub(crate) async fn look_again(
    subject: &Subject<'_>,
    set: &ChangeSet,
    committed: &Committed,
) -> Result<(ProofLine, Vec<TableContent>), TenantError> {
    let mut live = session(subject.live, "the live database").await?;
    let mut scratch = scratch_session(subject.scratch).await?;
    let begin = "begin isolation level repeatable read read only";
    sql::run(&mut live, begin, "reading the live database again").await?;
    let mut content = Vec::new();
    let owner = subject.owner();
    let xid = u32::try_from(committed.written.xid & 0xFFFF_FFFF).unwrap_or(0);
    let (mut rows, mut since, mut wrong) = (0, 0, Vec::new());
    for changes in set.tables.iter().filter(|changes| !changes.left_out) {
        let slice = &changes.slice;
        let condition = subject.filter.condition(&slice.table);
        let (live, scratch) = (&mut live, &mut scratch);
        let remaining =
            diff::compare_again(live, scratch, &owner, slice, xid, subject.mode, condition).await?;
        rows += remaining.rows;
        since += remaining.written_since;
        content.push(TableContent {
            table: slice.table.to_string(),
            rows: remaining.rows,
            sha256: diff::checksum(scratch, slice, condition).await?,
        });
        if remaining.wrong > 0 {
            wrong.push(format!("{}: {}", slice.table, remaining.wrong));
        }
    }
    close(live).await;
    close(scratch).await;
    let tables = content.len();
    let mut detail = format!("{rows} rows in {tables} tables read again");
    if since > 0 {
        detail.push_str(&format!(", {since} written since by others left out"));
    }
    if !wrong.is_empty() {
        detail = format!("rows that differ: {}", wrong.join(", "));
    }
    let line = ProofLine {
        what: match (subject.mode, subject.filter.is_everything()) {
            _ if subject.on_conflict == OnConflict::Keep => {
                "the rows are as they were at the target, but for those that stay because others need them"
            }
            (Mode::Missing, true) => "the tenant's rows of the target are all there",
            (Mode::Missing, false) => "the chosen rows of the target are all there",
            (_, true) => "the tenant's rows are as they were at the target",
            (_, false) => "the chosen rows are as they were at the target",
        }
        .to_owned(),
        outcome: if wrong.is_empty() {
            ProofOutcome::Agrees
        } else {
            ProofOutcome::Differs
        },
        detail,
    };
    Ok((line, content))
}

/// What was shown before the commit, as lines of the report.
pub(crate) fn shown(committed: &Committed, set: &ChangeSet) -> Vec<ProofLine> {
    let agrees = |what: &str, detail: String| ProofLine {
        what: what.to_owned(),
        outcome: ProofOutcome::Agrees,
        detail,
    };
    let counted = &committed.written.counted;
    let total: u64 = counted.values().flatten().sum();
    let mut lines = vec![
        agrees(
            "PostgreSQL counted the planned rows in every table and none elsewhere",
            format!("{total} row changes in {} tables", counted.len()),
        ),
        agrees(
            "every row written was returned as this tenant's",
            format!("{total} rows, in transaction {}", committed.written.xid),
        ),
        agrees(
            "foreign keys and deferrable constraints hold for what was written",
            format!("{} checks, both directions", committed.written.checked),
        ),
    ];
    if let Some(told) = large_objects::told(&set.large_objects) {
        let what = "the large objects that were written hold what they are to hold";
        lines.push(agrees(what, told));
    }
    lines
}

/// Compares the WAL of the transaction with what was counted.
pub(crate) async fn wal_agrees(
    live_options: &ConnectOptions,
    data_directory: &Path,
    bin_directory: Option<&Path>,
    committed: &Committed,
) -> Result<ProofLine, TenantError> {
    let to = match &committed.to {
        Ok(to) => *to,
        Err(why) => return Ok(wal_count::line(ProofOutcome::NotMeasured, why.as_str())),
    };
    let mut live = session(live_options, "the live database").await?;
    let identity = dr_sources::postgres::identify(&mut live)
        .await
        .map_err(|source| TenantError::Connect {
            place: "the live database".to_owned(),
            source,
        })?;
    let bin = dr_sources::postgres::tools::bin_directory(bin_directory, identity.major_version());
    let line = match bin {
        Ok(bin_directory) => {
            let stretch = Stretch {
                data_directory: data_directory.to_owned(),
                bin_directory,
                timeline: identity.timeline,
                from: committed.from,
                to,
            };
            let rows = CatalogRows::read(&mut live).await?;
            let counted = &committed.written.counted;
            wal_count::agree(&mut live, &rows, stretch, committed.written.xid, counted).await
        }
        Err(error) => wal_count::line(ProofOutcome::NotMeasured, error.to_string()),
    };
    close(live).await;
    Ok(line)
}

#[cfg(test)]
mod tests;

//! Which transactions touched one tenant's rows in a window: so that the moment before a mistake is found.
//!
//! The state at the beginning of the window is brought back in a scratch instance, and the places of the
//! tenant's rows are read there. Then the WAL of the window is read once and the rows are followed from
//! place to place ([`walk`]). Rows that were inserted meanwhile are told by what they hold where the tenant
//! column is in them, and else asked for in the live database, if the very version that was inserted is
//! still there. What neither tells is said not to be known, with counts. Production is only asked.

mod content;
mod ground;
mod places;
mod report;
mod walk;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use dr_backup::WalIndex;
use dr_backup::wal::{Along, read_along};
use dr_installation::Installation;
use dr_model::{Lsn, Progress, Target, Timeline, WorkloadName};
use dr_restore::{PlannedSource, PostgresPlan, RestorePlan, RestoreRequest, Scratch};
use dr_store::Repository;
use tokio_util::sync::CancellationToken;

use crate::execute::blocking;
use crate::mapping::place_and_map;
use crate::plan::Tenant;
use crate::slice::Ownership;
use crate::tenants::{self, Place};
use crate::{TenancyMap, TenantError, rows, sql, work};
use ground::{Counts, Fate, Ground, Held, Transaction};
use places::{Listing, Spaces};
use walk::Walk;

pub use report::{
    HeldRows, LostFile, LostRows, TableTouched, TimelineReport, TimelineTransaction, Touched,
    Unattributed,
};

/// How much is looked at when nobody says.
const WINDOW: TimeDelta = TimeDelta::hours(1);
/// Version of [`TimelineReport`].
const VERSION: u32 = 1;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineRequest {
    /// The tenant's name, or `id:VALUE`.
    pub tenant: String,
    /// The database; may be left out when one workload holds the tenant.
    pub workload: Option<WorkloadName>,
    /// The beginning of the window: an hour before its end when left out, or as early as can be.
    pub from: Option<DateTime<Utc>>,
    /// Its end: now when left out.
    pub to: Option<DateTime<Utc>>,
}

/// Reads the WAL of a window and tells what touched the tenant's rows.
///
/// # Errors
/// Unknown tenants, windows that cannot be reached, tables in no class, WAL that is missing or damaged.
pub async fn timeline(
    installation: &Installation,
    request: &TimelineRequest,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<TimelineReport, TenantError> {
    let (registry, live_tenant) =
        tenants::find(installation, &request.tenant, request.workload.as_ref()).await?;
    // What cannot be mapped is said before anything takes long.
    if let Some(tenant) = &live_tenant {
        place_and_map(&registry, tenant, None).await?;
    }
    let window = Window::of(installation, &registry.workload, request).await?;
    progress.note(&format!(
        "bringing back {} at {}",
        registry.workload,
        text(window.from)
    ));
    // With what was erased since: rows are only counted, and must lie where they lay.
    let scratch = dr_restore::scratch(
        installation,
        &registry.workload,
        &Target::Time(window.from.fixed_offset()),
        &work::base(),
        Arc::clone(&progress),
        cancel.clone(),
    )
    .await
    .map_err(TenantError::Restore)?;
    let subject = Subject::find(&registry, &scratch, live_tenant, &request.tenant).await?;
    let mut begun = begin(&subject, &scratch, &window, progress.as_ref(), &cancel).await?;
    let start = start_of(&scratch.plan)?;
    let mut notes = scratch.plan.notes.clone();
    notes.extend(scratch.reached.note.clone());
    blocking("remove the scratch instance", move || {
        drop(scratch);
        Ok(())
    })
    .await?;
    let stretch = Stretch {
        repository: installation.open_repository_of(&registry.workload).await?,
        workload: registry.workload.clone(),
        timeline: window.timeline,
        start,
        segment_bytes: window.segment_bytes,
    };
    begun.walk = stretch.read(begun.walk, progress, cancel.clone()).await?;
    let mut live = subject.live_session().await?;
    let owner = Ownership {
        map: &subject.map,
        tenant: &subject.tenant,
    };
    let answered = (begun.now).answer(&mut live, &owner, &mut begun.walk, &cancel);
    answered.await?;
    rows::close(live).await;
    notes.extend(window.note.clone());
    Ok(told(&subject, &window, begun, notes))
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The window, and how the WAL of it is found.
struct Window {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    timeline: Timeline,
    segment_bytes: u64,
    note: Option<String>,
}

impl Window {
    /// Sees that what is stored reaches to the end of the window; the live server is asked to complete its
    /// segment if it does not.
    async fn of(
        installation: &Installation,
        workload: &WorkloadName,
        request: &TimelineRequest,
    ) -> Result<Self, TenantError> {
        let now = installation.clock.now();
        let to = request.to.unwrap_or(now);
        if to > now {
            let what = format!(
                "the window ends at {}, and it is {} now",
                text(to),
                text(now)
            );
            return Err(TenantError::Window(what));
        }
        let plan_of = |target| {
            let request = RestoreRequest::new(workload.clone(), None, target);
            async move { dr_restore::plan(installation, &request).await }
        };
        let planned = plan_of(Target::Time(to.fixed_offset())).await;
        let (plan, note) = match (planned, request.to) {
            (Ok(plan), _) => (plan, None),
            (Err(error), Some(_)) => return Err(TenantError::Restore(error)),
            // Nobody said when it ends: then as late as can be.
            (Err(error), None) => {
                let plan = plan_of(Target::Latest)
                    .await
                    .map_err(TenantError::Restore)?;
                let note = format!("what was committed last may not be in it: {error}");
                (plan, Some(note))
            }
        };
        let replay = replay_of(&plan)?;
        let from = request
            .from
            .unwrap_or_else(|| (to - WINDOW).max(replay.window.from));
        if from >= to {
            let what = format!("the window from {} to {} is empty", text(from), text(to));
            return Err(TenantError::Window(what));
        }
        Ok(Self {
            from,
            to,
            timeline: replay.timeline,
            segment_bytes: (plan.point.postgres()).map_or(0, |base| base.wal_segment_bytes),
            note,
        })
    }
}

fn replay_of(plan: &RestorePlan) -> Result<&PostgresPlan, TenantError> {
    match &plan.source {
        PlannedSource::Postgres(replay) => Ok(replay),
        _ => Err(TenantError::NotConfigured {
            workload: plan.workload.clone(),
            missing: "postgres",
        }),
    }
}

/// Where the WAL begins that the scratch instance replayed: a transaction that was under way at the
/// beginning of the window mostly began behind it.
fn start_of(plan: &RestorePlan) -> Result<Lsn, TenantError> {
    replay_of(plan).map(|replay| replay.start_lsn)
}

/// Whose rows, and where they are now.
struct Subject {
    /// The database of the tenant.
    place: Place,
    tenant: Tenant,
    /// All tenants at the beginning.
    then: Vec<Tenant>,
    /// The map as it is now.
    map: TenancyMap,
}

impl Subject {
    async fn find(
        registry: &Place,
        scratch: &Scratch,
        live: Option<Tenant>,
        wanted: &str,
    ) -> Result<Self, TenantError> {
        let options = scratch.connect_options(registry.registry());
        let then = registry.tenants(&options, "the scratch instance").await?;
        let (tenant, gone) = match live {
            Some(tenant) => {
                tenants::same_ids(&tenant, &then, "at the beginning of the window")?;
                (tenant, None)
            }
            None => {
                let place = format!(
                    "in workload `{}`, neither now nor at the beginning of the window",
                    registry.workload
                );
                let tenant = tenants::choose(&then, wanted, &place)?;
                (tenant.clone(), Some(tenant))
            }
        };
        let (place, map) = place_and_map(registry, &tenant, gone.as_ref()).await?;
        Ok(Self {
            place,
            tenant,
            then,
            map,
        })
    }

    async fn live_session(&self) -> Result<sqlx::postgres::PgConnection, TenantError> {
        let server = format!("workload `{}`", self.place.workload);
        rows::session(&self.place.live, &server).await
    }
}

/// A walk that is about to begin, or was done.
struct Begun {
    walk: Walk,
    /// The tables that it counts by.
    names: Vec<String>,
    now: Listing,
    /// The tenant's rows at the beginning, by table.
    rows: BTreeMap<String, u64>,
}

const READ_ONLY: &str = "begin isolation level repeatable read read only";

/// Reads which tables there were and are, and the places of the tenant's rows at the beginning.
async fn begin(
    subject: &Subject,
    scratch: &Scratch,
    window: &Window,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Begun, TenantError> {
    let mut live = subject.live_session().await?;
    let mut spaces = Spaces::default();
    let now = Listing::read(&mut live, &subject.map, &subject.tenant, &mut spaces).await?;
    rows::close(live).await;
    let options = scratch.connect_options(&subject.place.database());
    let mut session = rows::session(&options, "the scratch instance").await?;
    sql::run(
        &mut session,
        READ_ONLY,
        "beginning to read the scratch instance",
    )
    .await?;
    let owners = subject.place.owners_among(&subject.then);
    // A table that is declared may not have been there yet.
    let place = &subject.place;
    let map = rows::map_then(&mut session, &place.workload, &place.tenancy, &owners).await?;
    let map = rows::complete(map)?;
    let then = Listing::read(&mut session, &map, &subject.tenant, &mut spaces).await?;
    let refused: Vec<String> = then.refused.iter().chain(&now.refused).cloned().collect();
    if !refused.is_empty() {
        return Err(TenantError::Refused(refused));
    }
    let names = places::names(&then, &now);
    let mut files = then.files(&names, true);
    let known: Vec<_> = files.iter().map(|file| file.relation).collect();
    let new = now.files(&names, false).into_iter();
    files.extend(new.filter(|file| !known.contains(&file.relation)));
    let mut walk = Walk::new(Ground {
        files,
        others: then.all.union(&now.all).copied().collect(),
        spaces: spaces.readable(&[&then, &now]),
        database: then.database,
        begin: scratch.reached.lsn,
        until: window.to,
    });
    progress.note("reading where the tenant's rows are");
    let owner = Ownership {
        map: &map,
        tenant: &subject.tenant,
    };
    let rows = then
        .own_places(&mut session, &owner, &mut walk, cancel)
        .await?;
    rows::close(session).await;
    Ok(Begun {
        walk,
        names: names.iter().map(ToString::to_string).collect(),
        now,
        rows,
    })
}

/// The WAL that is read.
struct Stretch {
    repository: Repository,
    workload: WorkloadName,
    timeline: Timeline,
    start: Lsn,
    segment_bytes: u64,
}

impl Stretch {
    async fn read(
        self,
        mut walk: Walk,
        progress: Arc<dyn Progress>,
        cancel: CancellationToken,
    ) -> Result<Walk, TenantError> {
        blocking("read the WAL", move || {
            let index = WalIndex::read(&self.repository, &self.workload, self.segment_bytes)
                .map_err(TenantError::Wal)?;
            let along = Along {
                repository: &self.repository,
                workload: &self.workload,
                index: &index,
                timeline: self.timeline,
                from: self.start,
            };
            let mut is_cancelled = false;
            read_along(&along, progress.as_ref(), &mut |record, major| {
                is_cancelled = cancel.is_cancelled();
                match is_cancelled {
                    true => Ok(ControlFlow::Break(())),
                    false => walk.record(record, major),
                }
            })
            .map_err(TenantError::Wal)?;
            match is_cancelled {
                true => Err(TenantError::Cancelled),
                false => Ok(walk),
            }
        })
        .await
    }
}

/// Puts together what is told.
fn told(
    subject: &Subject,
    window: &Window,
    mut begun: Begun,
    notes: Vec<String>,
) -> TimelineReport {
    let found = std::mem::take(&mut begun.walk.transactions);
    let rows_at_begin: u64 = begun.rows.values().sum();
    let mut rows = rows_at_begin;
    let (mut transactions, mut unattributed) = (Vec::new(), Unattributed::default());
    for transaction in &found {
        unattributed.rows_elsewhere += transaction.elsewhere;
        let told = told_of(transaction, &begun, rows);
        let inserted: u64 = told.tables.iter().map(|it| it.rows.insert).sum();
        let files = told.tables.iter().flat_map(|it| &it.files);
        let gained: u64 = files.map(LostRows::gained).sum();
        rows = (rows + inserted + gained).saturating_sub(told.removed);
        let is_the_tenants = (told.tables.iter())
            .any(|it| !it.rows.is_nothing() || it.files.iter().any(LostRows::is_the_tenants));
        let open: u64 = (told.tables.iter())
            .map(|it| it.owner_not_known.total())
            .sum();
        if is_the_tenants {
            transactions.push(told);
        } else if !told.tables.is_empty() {
            unattributed.rows += open;
            unattributed.transactions.push(told);
        }
    }
    let most = transactions.iter().map(|it| it.removed).max().unwrap_or(0);
    for transaction in &mut transactions {
        transaction.removed_most = most > 0 && transaction.removed == most;
    }
    TimelineReport {
        version: VERSION,
        workload: subject.place.workload.clone(),
        database: subject.map.database.clone(),
        tenant: subject.tenant.clone(),
        from: window.from,
        to: window.to,
        begin: begun.walk.begin(),
        end: begun.walk.end,
        rows: rows_at_begin,
        tables: begun.rows.len() as u64,
        transactions,
        unattributed,
        notes,
    }
}

fn told_of(transaction: &Transaction, begun: &Begun, rows_before: u64) -> TimelineTransaction {
    let mut tables: BTreeMap<usize, (Counts, Counts, Vec<LostRows>)> = BTreeMap::new();
    for (table, counts) in &transaction.tables {
        tables.entry(*table).or_default().0 = *counts;
    }
    for (table, done, row) in &transaction.open {
        match begun.walk.is_ours(*row) {
            Some(true) => tables.entry(*table).or_default().0.add(*done, 1),
            Some(false) => {}
            None => tables.entry(*table).or_default().1.add(*done, 1),
        }
    }
    let mut removed = 0;
    for lost in &transaction.lost {
        let held = |held: &Held| {
            let of = |wanted: Option<bool>| {
                let rows = held
                    .open
                    .iter()
                    .filter(|row| begun.walk.is_ours(**row) == wanted);
                rows.count() as u64
            };
            HeldRows {
                rows: held.rows + of(Some(true)),
                owner_not_known: of(None),
            }
        };
        let found = LostRows {
            file: match lost.fate {
                Fate::Emptied => LostFile::Emptied,
                Fate::Rewritten => LostFile::Rewritten,
                Fate::Gone => LostFile::Gone,
            },
            before: held(&lost.before),
            after: lost.after.as_ref().map(held),
        };
        removed += found.removed();
        tables.entry(lost.table).or_default().2.push(found);
    }
    let tables: Vec<TableTouched> = (tables.into_iter())
        .map(|(table, (counts, open, files))| TableTouched {
            table: begun.names.get(table).cloned().unwrap_or_default(),
            rows: touched(&counts),
            owner_not_known: touched(&open),
            files,
        })
        .collect();
    removed += tables.iter().map(|it| it.rows.delete).sum::<u64>();
    TimelineTransaction {
        xid: transaction.xid,
        at: transaction.at,
        lsn: transaction.lsn,
        before: Target::Before(transaction.xid),
        tables,
        removed,
        rows_before,
        removed_most: false,
        began_before: transaction.began_before,
    }
}

fn touched(counts: &Counts) -> Touched {
    Touched {
        insert: counts.inserted,
        update: counts.updated,
        delete: counts.deleted,
    }
}

//! Recording what has to be forgotten of a tenant.
//!
//! The tenancy map says whose rows are meant, and the live database which there are. Both are asked now: the entry that
//! is recorded carries conditions and keys, so that it can be applied to a copy when neither is there any more. Nothing
//! live is changed. What applying the entry would do is found by the statements that will do it, in a transaction
//! that is rolled back.

mod entry;
mod named;

use std::fmt;

use dr_installation::Installation;
use dr_model::{ErasureId, WorkloadName};
use dr_restore::{ErasedDatabase, ErasedFolder, ErasedTenant, Erasure, ErasureScope, canonical_id};
use dr_sources::postgres::ConnectOptions;
use serde::Serialize;

use crate::execute::blocking;
use crate::filter::Filter;
use crate::map::TableClass;
use crate::mapping::place_and_map;
use crate::tenants::{self, DATABASE_OF, Place, SCHEMA_OF};
use crate::{TenancyMap, Tenant, TenantError, folders, rows, sql};

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EraseRequest {
    /// The tenant's name, or `id:VALUE`.
    pub tenant: String,
    /// The database; may be left out when one workload holds the tenant.
    pub workload: Option<WorkloadName>,
    /// Rows by their keys: `TABLE:KEY[,KEY...]`.
    pub rows: Vec<String>,
    /// Rows by a condition: `TABLE: CONDITION`.
    pub conditions: Vec<String>,
    /// Also rows that refer to them, whatever their foreign keys say.
    pub dependents: bool,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
}

/// What would be recorded, and what it comes to today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErasePlan {
    /// The workload.
    pub workload: WorkloadName,
    /// The tenant.
    pub tenant: ErasedTenant,
    /// Everything of it, or rows.
    pub scope: ErasureScope,
    /// Why.
    pub reason: String,
    /// Rows that are live, by table.
    pub tables: Vec<EraseLine>,
    /// Rows that were named and are not live.
    pub not_live: Vec<String>,
    /// The tenant's paths.
    pub folders: Vec<ErasedFolder>,
    /// What is to be known of it.
    pub notes: Vec<String>,
    /// Why it may not be recorded; empty when it may.
    pub refused: Vec<String>,
}

/// One table's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EraseLine {
    /// `schema.table`.
    pub table: String,
    /// Live rows that the entry names.
    pub named: u64,
    /// These and live rows that go with them.
    pub erased: u64,
    /// Live rows that would lose their reference to one of these.
    pub cleared: u64,
}

/// An erasure that is ready to be recorded.
#[derive(Debug)]
pub struct PreparedErasure {
    installation: Installation,
    erasure: Erasure,
    plan: ErasePlan,
}

/// A database with rows of the tenant.
struct Part {
    live: ConnectOptions,
    erased: ErasedDatabase,
}

/// Finds out what is meant, and what it comes to. Nothing is written.
///
/// # Errors
/// Unknown tenants and tables, tables without a key, values that are none of their type, a reason that is empty.
pub async fn prepare_erasure(
    installation: &Installation,
    request: &EraseRequest,
) -> Result<PreparedErasure, TenantError> {
    if request.reason.trim().is_empty() {
        return Err(TenantError::BadErasure("it has no reason".to_owned()));
    }
    let (registry, live) =
        tenants::find(installation, &request.tenant, request.workload.as_ref()).await?;
    let is_gone = live.is_none();
    let tenant = match live {
        Some(tenant) => tenant,
        None => gone(&registry, &request.tenant).await?,
    };
    let (place, map, tenant, id_type) = subject(&registry, tenant, is_gone).await?;
    let scope = match request.rows.is_empty() && request.conditions.is_empty() {
        true => ErasureScope::Tenant,
        false => ErasureScope::Rows,
    };
    let id = ErasureId::new(installation.clock.now());
    let mut plan = ErasePlan {
        workload: registry.workload.clone(),
        tenant: ErasedTenant {
            id: tenant.id.clone(),
            name: tenant.name.clone(),
            id_type,
        },
        scope,
        reason: request.reason.trim().to_owned(),
        tables: Vec::new(),
        not_live: Vec::new(),
        folders: Vec::new(),
        notes: Vec::new(),
        refused: Vec::new(),
    };
    let parts = match scope {
        ErasureScope::Rows => vec![some_rows(&place, &map, &tenant, request, &mut plan).await?],
        ErasureScope::Tenant => {
            let parts = everything(&registry, &place, &map, &tenant, &mut plan).await?;
            plan.folders = folders_of(installation, &tenant, is_gone, &mut plan);
            parts
        }
    };
    let erasure = Erasure {
        version: Erasure::VERSION,
        id,
        workload: plan.workload.clone(),
        tenant: plan.tenant.clone(),
        scope,
        dependents: request.dependents,
        reason: plan.reason.clone(),
        by: request.by.clone(),
        at: installation.clock.now(),
        databases: parts.iter().map(|part| part.erased.clone()).collect(),
        folders: plan.folders.clone(),
    };
    if is_gone {
        let note = "the tenant is in no list any more: taken as it was given";
        plan.notes.push(note.to_owned());
    }
    for part in &parts {
        look(part, &erasure, &mut plan).await?;
    }
    Ok(PreparedErasure {
        installation: installation.clone(),
        erasure,
        plan,
    })
}

/// Where the tenant's rows are and how they are told, the tenant, and the type of its id. An id that somebody gave is
/// taken as PostgreSQL writes it.
async fn subject(
    registry: &Place,
    mut tenant: Tenant,
    is_gone: bool,
) -> Result<(Place, TenancyMap, Tenant, Option<String>), TenantError> {
    let (place, map) = place_and_map(registry, &tenant, is_gone.then_some(&tenant)).await?;
    let id_type = id_type(&map);
    let canonical = canonical_id(&tenant.id, id_type.as_deref().unwrap_or_default());
    if !is_gone || canonical == tenant.id {
        return Ok((place, map, tenant, id_type));
    }
    tenant.id = canonical;
    let (place, map) = place_and_map(registry, &tenant, Some(&tenant)).await?;
    Ok((place, map, tenant, id_type))
}

/// The type of columns that hold tenants' ids, where a value of it can be written in several ways.
fn id_type(map: &TenancyMap) -> Option<String> {
    let types: Vec<&String> = map
        .tables
        .iter()
        .filter_map(|mapped| match &mapped.class {
            TableClass::Direct {
                id: None,
                as_text: false,
                column_type,
                ..
            } => Some(column_type),
            _ => None,
        })
        .collect();
    // Where tables differ, one that holds it as text is no reason to take `7` and `007` for two tenants.
    [
        "bigint",
        "integer",
        "smallint",
        "uuid",
        "bpchar",
        "character",
    ]
    .iter()
    .find(|known| types.iter().any(|it| it == known))
    .map(|known| (*known).to_owned())
}

/// A tenant that the live database does not list any more. Only its id is known then.
async fn gone(registry: &Place, wanted: &str) -> Result<Tenant, TenantError> {
    let id = wanted.strip_prefix("id:").unwrap_or(wanted);
    let server = format!("workload `{}`", registry.workload);
    let others = registry.tenants(&registry.live, &server).await?;
    let have_places = registry
        .tenancy
        .model
        .is_some_and(|model| model != dr_config::TenancyModel::Pooled)
        || others.iter().any(|tenant| {
            [SCHEMA_OF, DATABASE_OF]
                .iter()
                .any(|it| tenant.others.contains_key(*it))
        });
    if have_places {
        return Err(TenantError::ErasureRefused(vec![format!(
            "{wanted} is in no list any more, so that nobody knows which schema or database was its own: list it again, \
             record its erasure, and then remove it"
        )]));
    }
    Ok(Tenant {
        id: id.to_owned(),
        name: wanted.to_owned(),
        others: std::collections::BTreeMap::new(),
    })
}

async fn some_rows(
    place: &Place,
    map: &TenancyMap,
    tenant: &Tenant,
    request: &EraseRequest,
    plan: &mut ErasePlan,
) -> Result<Part, TenantError> {
    let filter = Filter::new(&[], &request.conditions)?;
    filter.check(map)?;
    let mut live = rows::session(&place.live, "the live database").await?;
    let begin = "begin isolation level repeatable read read only";
    sql::run(&mut live, begin, "beginning to read the live database").await?;
    let subject = entry::Subject::read(&mut live, map, tenant, plan).await?;
    let named = named::rows(&mut live, &subject, &request.rows, &filter, plan).await?;
    rows::close(live).await;
    Ok(Part {
        live: place.live.clone(),
        erased: subject.of_rows(named),
    })
}

/// All that is the tenant's: in the database of its rows, and where it is listed.
async fn everything(
    registry: &Place,
    place: &Place,
    map: &TenancyMap,
    tenant: &Tenant,
    plan: &mut ErasePlan,
) -> Result<Vec<Part>, TenantError> {
    let mut live = rows::session(&place.live, "the live database").await?;
    let subject = entry::Subject::read(&mut live, map, tenant, plan).await?;
    rows::close(live).await;
    let mut parts = vec![Part {
        live: place.live.clone(),
        erased: subject.of_everything(),
    }];
    if tenant.others.contains_key(DATABASE_OF) {
        let mut live = rows::session(&registry.live, "the live database").await?;
        let owners = registry.owners(None).await?;
        let map = rows::map(&mut live, &registry.workload, &registry.tenancy, &owners).await?;
        let unclassified = map.unclassified().count();
        if unclassified > 0 {
            plan.notes.push(format!(
                "{unclassified} tables of database `{}` are in no class: nothing of them is erased",
                map.database
            ));
        }
        let subject = entry::Subject::read(&mut live, &map, tenant, plan).await?;
        rows::close(live).await;
        parts.push(Part {
            live: registry.live.clone(),
            erased: subject.of_listing(),
        });
    }
    Ok(parts)
}

/// The tenant's paths in folder workloads.
fn folders_of(
    installation: &Installation,
    tenant: &Tenant,
    is_gone: bool,
    plan: &mut ErasePlan,
) -> Vec<ErasedFolder> {
    let mut found = Vec::new();
    for (workload, pattern) in crate::run::folder_workloads(installation) {
        if is_gone && pattern.contains("{name}") {
            plan.notes.push(format!(
                "folder {workload} knows tenants by their names, and this one's is not known: its files are not erased"
            ));
            continue;
        }
        match folders::glob_of(&pattern, tenant) {
            Ok(path) => found.push(ErasedFolder { workload, path }),
            Err(error) => plan.refused.push(error.to_string()),
        }
    }
    found
}

/// What applying the entry to the live database would do. It is not done.
async fn look(part: &Part, erasure: &Erasure, plan: &mut ErasePlan) -> Result<(), TenantError> {
    let mut live = rows::session(&part.live, "the live database").await?;
    let begin = "begin isolation level repeatable read";
    sql::run(&mut live, begin, "beginning to read the live database").await?;
    let found = dr_restore::find(&mut live, &[(erasure, &part.erased)])
        .await
        .map_err(TenantError::Erasure)?;
    sql::run(&mut live, "rollback", "reading the live database").await?;
    rows::close(live).await;
    plan.tables
        .extend(found.rows.into_iter().map(|rows| EraseLine {
            table: rows.table.to_string(),
            named: rows.named,
            erased: rows.erased,
            cleared: rows.cleared,
        }));
    plan.refused
        .extend(found.refused.into_iter().map(|(_, line)| line));
    Ok(())
}

impl PreparedErasure {
    /// What would be recorded.
    #[must_use]
    pub fn plan(&self) -> &ErasePlan {
        &self.plan
    }

    /// Records it: durable in every repository that it concerns on return.
    ///
    /// # Errors
    /// When the plan is refused, or a repository cannot be written.
    pub async fn record(self) -> Result<Erasure, TenantError> {
        if !self.plan.refused.is_empty() {
            return Err(TenantError::ErasureRefused(self.plan.refused));
        }
        blocking("record the erasure", move || {
            dr_restore::record_erasure(&self.installation, &self.erasure)
                .map_err(TenantError::Erasure)?;
            Ok(self.erasure)
        })
        .await
    }
}

/// The ledger of a workload, the oldest entry first.
///
/// # Errors
/// When its repository cannot be read.
pub async fn erasures(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<Vec<Erasure>, TenantError> {
    let repository = installation.open_repository_of(workload).await?;
    let workload = workload.clone();
    blocking("read the ledger of erasures", move || {
        dr_restore::erasures(&repository, &workload).map_err(TenantError::Erasure)
    })
    .await
}

/// Refuses to bring back anything of a tenant that was erased as a whole.
pub(crate) async fn refuse_erased(
    installation: &Installation,
    workload: &WorkloadName,
    live: Option<&Tenant>,
    wanted: &str,
) -> Result<(), TenantError> {
    let known = live.map(|tenant| tenant.id.as_str());
    let Some(tenant) = known.or_else(|| wanted.strip_prefix("id:")) else {
        return Ok(());
    };
    let entries = erasures(installation, workload).await?;
    match entries.iter().find(|entry| entry.is_whole(tenant)) {
        None => Ok(()),
        Some(entry) => Err(TenantError::Refused(vec![format!(
            "{} (id {tenant}) was erased on {} by {} ({}): nothing of it is brought back",
            entry.tenant.name,
            entry.at.format("%Y-%m-%d %H:%M:%SZ"),
            entry.id,
            entry.reason
        )])),
    }
}

impl fmt::Display for ErasePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.scope {
            ErasureScope::Tenant => "everything",
            ErasureScope::Rows => "rows",
        };
        writeln!(
            f,
            "erase {what} of tenant {} (id {}) of workload {}: {}\n",
            self.tenant.name, self.tenant.id, self.workload, self.reason
        )?;
        let width = self
            .tables
            .iter()
            .map(|t| t.table.len())
            .max()
            .unwrap_or(5)
            .max(5);
        let head = ["named", "live", "cleared"];
        writeln!(
            f,
            "{:<width$}  {:>8}  {:>8}  {:>8}",
            "table", head[0], head[1], head[2]
        )?;
        for line in &self.tables {
            writeln!(
                f,
                "{:<width$}  {:>8}  {:>8}  {:>8}",
                line.table, line.named, line.erased, line.cleared
            )?;
        }
        for folder in &self.folders {
            writeln!(f, "folder {} {}", folder.workload, folder.path)?;
        }
        for row in &self.not_live {
            writeln!(f, "not live: {row}")?;
        }
        let live: u64 = self.tables.iter().map(|line| line.erased).sum();
        if live > 0 {
            writeln!(
                f,
                "note: {live} rows are still live, and stay: deleting them is for the application to do"
            )?;
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "note: {note}"))?;
        self.refused
            .iter()
            .try_for_each(|line| writeln!(f, "refused: {line}"))
    }
}

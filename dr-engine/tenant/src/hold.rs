//! Holding one tenant still while its difference is computed and written.
//!
//! A plan is made without a lock, so that a preview and a quiet tenant cost production nothing. When the
//! tenant turns out to be written to meanwhile, the next plan is made inside the transaction that will
//! carry it out, with the tenant's row in the registry locked FOR UPDATE. Whoever inserts a row that
//! refers to the registry needs that row FOR KEY SHARE ("Row-Level Locks", 13.3.2) and waits until the
//! transaction ends; the same for tables that refer to those only through their own new rows. Other
//! tenants have other rows in the registry and notice nothing. A tenant whose tables do not refer to a
//! registry is not held; its plan can then only be tried again.

use dr_model::Lsn;
use dr_sources::postgres::ConnectOptions;
use sqlx::postgres::PgConnection;

use crate::catalog::CatalogRows;
use crate::kept_wal::{self, KeptWal};
use crate::map::{TableClass, TenancyMap};
use crate::plan::{Tenant, Writing};
use crate::slice::Ownership;
use crate::{TenantError, apply, rows, sql};

/// The server lets the tenant go when nothing was heard for so long: whoever holds it may have been
/// suspended, or cut off. The restore is rolled back then.
const IDLE_MAX: &str = "10min";

/// A transaction that has begun and holds the tenant still.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) live: PgConnection,
    pub(crate) xid: u64,
    /// Where the WAL stood before it began.
    pub(crate) from: Lsn,
    /// The WAL from there on, where the server keeps it.
    pub(crate) kept: Option<KeptWal>,
    /// The server process of the session.
    pub(crate) server_process: i32,
}

/// Begins the transaction of a restore. `tenant` is held still where its registry can be locked.
pub(crate) async fn begin(
    live_options: &ConnectOptions,
    writing: &Writing,
    map: Option<(&TenancyMap, &Tenant)>,
) -> Result<Held, TenantError> {
    let kept = kept_wal::keep(live_options).await;
    let mut live = rows::session(live_options, "the live database").await?;
    let from = rows::insert_position(&mut live).await?;
    let xid = apply::begin(&mut live, writing.lock_wait).await?;
    let ask = "select pg_backend_pid()";
    let server_process = sql::value(&mut live, ask, "asking for the session's process").await?;
    if let Some((map, tenant)) = map {
        let catalog = CatalogRows::read(&mut live).await?;
        let owner = Ownership { map, tenant };
        let bound = format!("set local idle_in_transaction_session_timeout = '{IDLE_MAX}'");
        sql::run(&mut live, &bound, "bounding how long the tenant waits").await?;
        for lock in locks(&catalog, &owner) {
            sql::run(&mut live, &lock, "holding the tenant still").await?;
        }
    }
    Ok(Held {
        live,
        xid,
        from,
        kept,
        server_process,
    })
}

/// The statements that lock the tenant's rows in the tables its tenant columns refer to.
fn locks(catalog: &CatalogRows, owner: &Ownership<'_>) -> Vec<String> {
    let class_of = |oid| {
        let root = catalog.root_of(oid);
        let relation = catalog
            .relations
            .iter()
            .find(|relation| relation.oid == root)?;
        let mapped = owner
            .map
            .tables
            .iter()
            .find(|mapped| mapped.table == relation.name)?;
        Some((&relation.name, &mapped.class))
    };
    let mut statements = Vec::new();
    for key in &catalog.foreign_keys {
        let (Some((_, child)), Some((name, parent))) = (class_of(key.child), class_of(key.parent))
        else {
            continue;
        };
        let (TableClass::Direct { column, .. }, TableClass::Direct { column: own, .. }) =
            (child, parent)
        else {
            continue;
        };
        if key.columns.as_slice() == [column.clone()]
            && key.parent_columns.as_slice() == [own.clone()]
        {
            let statement = format!(
                "select from {} t where {} for update",
                sql::table(name),
                owner.condition(parent, "t")
            );
            if !statements.contains(&statement) {
                statements.push(statement);
            }
        }
    }
    statements
}

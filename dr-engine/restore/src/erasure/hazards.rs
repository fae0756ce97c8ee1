//! What may keep erased rows from being seen, or hold their application up: prepared transactions, and indexes that
//! were made under other rules of sorting.

use dr_sources::postgres::{PgConnection, literal};
use serde::Deserialize;

use super::doomed::{Part, whose};
use super::tables::{Tables, json, run};
use crate::RestoreError;
use crate::collations::{self, Which};

/// Nobody else is there to wait for. What is locked all the same is so by a prepared transaction, for ever.
pub(super) const LOCK_WAIT: &str = "set lock_timeout = '60s'";

/// Prepared transactions survive recovery. What one wrote cannot be seen, and COMMIT PREPARED brings it out later.
pub(super) async fn nothing_prepared(
    session: &mut PgConnection,
    tables: &Tables,
    parts: &[Part<'_>],
) -> Result<(), RestoreError> {
    #[derive(Deserialize)]
    struct Prepared {
        name: String,
        root: u32,
    }
    let query = "select distinct p.gid as name, \
          coalesce(pg_partition_root(l.relation)::oid, l.relation)::int8 as root \
        from pg_prepared_xacts p join pg_locks x on x.locktype = 'transactionid' \
          and x.transactionid = p.transaction and x.pid is null \
        join pg_locks l on l.virtualtransaction = x.virtualtransaction and l.pid is null \
          and l.locktype = 'relation' and l.mode <> 'AccessShareLock' \
        where p.database = current_database() and l.database = ( \
          select d.oid from pg_database d where d.datname = current_database()) order by 1, 2";
    let all: Vec<Prepared> = json(session, query, "list prepared transactions").await?;
    let mut id = None;
    let mut why = Vec::new();
    for Prepared { name, root } in all {
        let Some(table) = tables.with_oid(root) else {
            continue;
        };
        let mut concerned = parts.iter().filter(|part| whose(**part, table).is_some());
        if let Some((entry, _)) = concerned.next() {
            id.get_or_insert_with(|| entry.id.clone());
            why.push(format!(
                "prepared transaction {} holds {}: what it wrote cannot be seen until it is committed",
                literal(&name),
                table.name
            ));
        }
    }
    match id {
        Some(id) => Err(RestoreError::ErasureNotHeld { id, why }),
        None => Ok(()),
    }
}

/// Takes back what is prepared: of a copy that only serves for reading, where it is never committed.
pub(super) async fn take_back_prepared(session: &mut PgConnection) -> Result<(), RestoreError> {
    #[derive(Deserialize)]
    struct Prepared {
        name: String,
    }
    let query = "select gid as name from pg_prepared_xacts where database = current_database()";
    let all: Vec<Prepared> = json(session, query, "list prepared transactions").await?;
    for Prepared { name } in all {
        let statement = format!("rollback prepared {}", literal(&name));
        let what = format!("take prepared transaction {name} back in the copy");
        run(session, &statement, what).await?;
    }
    Ok(())
}

/// Keeps the transaction from looking for rows by indexes where they may lie: another host may sort texts
/// differently, and an index made there does not find here what is in the table.
pub(super) async fn beware_of_indexes(session: &mut PgConnection) -> Result<(), RestoreError> {
    let what = "compare versions of collations";
    run(session, "savepoint dr_collations", what).await?;
    let differ = match collations::differing(session, Which::Any).await {
        Ok(differing) => differing.is_some(),
        // A collation that this host does not have has no version here.
        Err(_) => {
            run(session, "rollback to savepoint dr_collations", what).await?;
            true
        }
    };
    if differ {
        let off = collations::READ_EVERYTHING
            .map(|(setting, value)| format!("set local {setting} = {value}"))
            .join("; ");
        run(session, &off, "leave indexes aside").await?;
    }
    Ok(())
}

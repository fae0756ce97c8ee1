//! Whether a tenant was written to between its plan and the transaction that carries it out, also in rows that
//! the plan leaves alone.
//!
//! A statement of the restore notices when a row that it writes has changed, and the count of rows one that
//! came or went. A row that was as at the target when it was compared, and was changed since, is in no
//! statement: it would stay as it is now among others as they were then. And a new row that belongs to the
//! tenant only through one that the restore removes would be nobody's before it is counted. So a sum over the
//! text of all the tenant's rows is taken in the snapshot in which they are compared, and must be the same
//! before anything is written and any row is locked. Both sums are PostgreSQL's, of one server.

use sqlx::postgres::PgConnection;

use crate::TenantError;
use crate::changes::ChangeSet;
use crate::slice::{Ownership, SliceTable};
use crate::sql;

/// The sum over the tenant's rows of a table, as text. Their order does not matter to it.
pub(crate) async fn sum(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    slice: &SliceTable,
) -> Result<String, TenantError> {
    let all: Vec<usize> = (0..slice.columns.len()).collect();
    let query = format!(
        "select coalesce(sum(pg_catalog.hashtextextended({}::text, 0)), 0)::text from {} t where {}",
        slice.own_record("t", &all),
        slice.from(),
        owner.condition(&slice.class, "t")
    );
    let action = format!("adding up the tenant's rows of {}", slice.table);
    sql::value(live, &query, action).await
}

/// Checks that the tenant's rows are what they were when they were compared. Tables of which no sum was taken
/// are left out.
///
/// # Errors
/// [`TenantError::Changed`] with the tables that were written to meanwhile.
pub(crate) async fn unchanged(
    live: &mut PgConnection,
    owner: &Ownership<'_>,
    set: &ChangeSet,
) -> Result<(), TenantError> {
    let mut other = Vec::new();
    for changes in &set.tables {
        if let Some(before) = &changes.sum_before
            && sum(live, owner, &changes.slice).await? != *before
        {
            let table = &changes.slice.table;
            other.push(format!(
                "{table}: the tenant's rows are not those that were compared"
            ));
        }
    }
    match other.is_empty() {
        true => Ok(()),
        false => Err(TenantError::Changed(other)),
    }
}

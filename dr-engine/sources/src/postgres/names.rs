//! What people call a relation of which only the file is known.

use sqlx::PgConnection;

use super::base_backup::MainFork;

const NAME: &str = "select
    case c.relkind when 'i' then 'index' when 't' then 'TOAST table' when 'S' then 'sequence'
        when 'm' then 'materialized view' else 'table' end
      || ' ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.oid = pg_filenode_relation($1, $2)";
const DATABASE: &str =
    "select datname::text, datname = current_database() from pg_database where oid = $1";

/// Names the relation whose main fork is at this path of a point: `table public.orders`, or of another
/// database than the session's, whose catalog cannot be asked, `a relation of database other`. `None` when
/// nothing is known of it.
pub async fn name_relation(session: &mut PgConnection, path: &str) -> Option<String> {
    let file = MainFork::parse(path)?;
    let oid = |number: u32| sqlx::postgres::types::Oid(number);
    if file.database != 0 {
        let found: Option<(String, bool)> = sqlx::query_as(DATABASE)
            .bind(oid(file.database))
            .fetch_optional(&mut *session)
            .await
            .ok()?;
        let (database, is_here) = found?;
        if !is_here {
            return Some(format!("a relation of database {database}"));
        }
    }
    sqlx::query_scalar(NAME)
        .bind(oid(file.tablespace))
        .bind(oid(file.node))
        .fetch_optional(session)
        .await
        .ok()?
}

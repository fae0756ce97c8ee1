//! Texts that this host sorts differently than they were sorted when their indexes were made.
//!
//! glibc and ICU change how they sort from version to version, and an index of texts that was made under
//! another one does not find what is in its table until it is made anew. PostgreSQL keeps the versions
//! (`pg_database.datcollversion` from 15 on, `pg_collation.collversion`) and compares them when asked.

use dr_sources::postgres::{ConnectOptions, connect};
use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// As many collations are named; an operating system brings hundreds that change together.
const NAMED_MAX: usize = 3;

/// Collations of the session's database whose version here is not the one that is noted.
const COLLATIONS: &str = "select quote_ident(c.collname) as name, c.collversion::text as noted,
    pg_collation_actual_version(c.oid)::text as here
  from pg_collation c
  where c.collversion is not null and c.collversion is distinct from pg_collation_actual_version(c.oid)
  order by c.collname";

/// Of the database itself, from 15 on.
const OWN: &str = "select 'default' as name, d.datcollversion::text as noted,
    pg_database_collation_actual_version(d.oid)::text as here
  from pg_database d
  where d.datname = current_database() and d.datcollversion is not null
    and d.datcollversion is distinct from pg_database_collation_actual_version(d.oid)";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, sqlx::FromRow)]
struct Differing {
    name: String,
    noted: String,
    here: Option<String>,
}

impl Differing {
    fn describe(&self) -> String {
        let here = self.here.as_deref().unwrap_or("none");
        format!("{} {}, here {here}", self.name, self.noted)
    }
}

/// What differs in the session's database, in a line; `None` when indexes on texts can be trusted.
///
/// # Errors
/// When it cannot be asked. Inside a transaction an error of the comparison itself (a collation that this
/// host does not have) ends it: use a savepoint.
pub(crate) async fn differing(session: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let version: String = sqlx::query_scalar("select current_setting('server_version_num')")
        .persistent(false)
        .fetch_one(&mut *session)
        .await?;
    let mut found = Vec::new();
    if version.parse::<u32>().is_ok_and(|number| number >= 150_000) {
        found.extend(listed(session, OWN).await?);
    }
    found.extend(listed(session, COLLATIONS).await?);
    let mut named: Vec<String> = found
        .iter()
        .take(NAMED_MAX)
        .map(Differing::describe)
        .collect();
    if found.len() > NAMED_MAX {
        named.push(format!("and {} more", found.len() - NAMED_MAX));
    }
    Ok((!named.is_empty()).then(|| named.join("; ")))
}

async fn listed(
    session: &mut PgConnection,
    query: &'static str,
) -> Result<Vec<Differing>, sqlx::Error> {
    sqlx::query_as(query)
        .persistent(false)
        .fetch_all(session)
        .await
}

/// What is to be known of one database that a restored server has.
pub(crate) async fn of_database(options: &ConnectOptions, database: &str) -> Option<String> {
    let mut session = connect(options).await.ok()?;
    let differing = differing(&mut session).await;
    drop(session.close().await);
    let what = match differing {
        Ok(None) => return None,
        Ok(Some(what)) => what,
        // A collation that this host does not have has no version here.
        Err(error) => format!("its collations could not be compared: {error}"),
    };
    Some(format!("{database}: {what}"))
}

/// What is to be known of all databases of a server that only this process can reach. Where something
/// differs its sessions to come look for nothing by indexes.
pub(crate) async fn beware(
    server: impl Fn(&str) -> ConnectOptions,
    superuser: &str,
) -> Result<Vec<String>, sqlx::Error> {
    // One of them may have been dropped, both not.
    let mut session = None;
    for database in ["postgres", "template1"] {
        if session.is_none() {
            session = connect(&server(database)).await.ok();
        }
    }
    let Some(mut session) = session else {
        return Ok(Vec::new());
    };
    let databases: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database where datallowconn order by datname",
    )
    .persistent(false)
    .fetch_all(&mut session)
    .await?;
    let mut differing = Vec::new();
    for database in &databases {
        differing.extend(of_database(&server(database), database).await);
    }
    if !differing.is_empty() {
        let role = format!("\"{}\"", superuser.replace('"', "\"\""));
        for (setting, value) in [
            ("enable_indexscan", "off"),
            ("enable_indexonlyscan", "off"),
            ("enable_bitmapscan", "off"),
            // Whatever production says of it.
            ("enable_seqscan", "on"),
        ] {
            let set = format!("alter role {role} set {setting} = {value}");
            session.execute(sqlx::raw_sql(AssertSqlSafe(set))).await?;
        }
    }
    drop(session.close().await);
    Ok(differing)
}

/// Says what differs, and what follows.
pub(crate) fn told(differing: &[String], and_so: &str) -> String {
    format!(
        "this host sorts texts differently than they were sorted when their indexes were made ({}): {and_so}",
        differing.join("; ")
    )
}

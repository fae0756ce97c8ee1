//! Texts that this host sorts differently than they were sorted when their indexes were made.
//!
//! glibc and ICU change how they sort from version to version, and an index of texts that was made under
//! another one does not find what is in its table until it is made anew. PostgreSQL keeps the versions
//! (`pg_database.datcollversion` from 15 on, `pg_collation.collversion`) and compares them when asked.

use dr_sources::postgres::{ConnectOptions, connect};
use sqlx::{Connection as _, PgConnection};

/// As many collations are named; an operating system brings hundreds that change together.
const NAMED_MAX: usize = 3;

/// Collations of the session's database whose version here is not the one that is noted.
const COLLATIONS: &str = "select quote_ident(c.collname) as name, c.collversion::text as noted,
    pg_collation_actual_version(c.oid)::text as here
  from pg_collation c
  where c.collversion is not null and c.collversion is distinct from pg_collation_actual_version(c.oid)
  order by c.collname";

/// The same of those by which something is ordered that was written: indexes, partitions, ranges.
const COLLATIONS_USED: &str = "select quote_ident(c.collname) as name, c.collversion::text as noted,
    pg_collation_actual_version(c.oid)::text as here
  from pg_collation c
  where c.oid in (
      select unnest(indcollation::oid[]) from pg_index
      union select unnest(partcollation::oid[]) from pg_partitioned_table
      union select rngcollation from pg_range)
    and c.collversion is not null and c.collversion is distinct from pg_collation_actual_version(c.oid)
  order by c.collname";

/// Which collations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Any: also one that nothing uses tells that the library is another one.
    Any,
    /// From 15 on, where databases have versions of their own, those that something is ordered by. An operating
    /// system brings hundreds, whose noted versions nobody refreshes.
    Used,
}

/// Of the database itself, from 15 on.
const OWN: &str = "select 'default' as name, d.datcollversion::text as noted,
    pg_database_collation_actual_version(d.oid)::text as here
  from pg_database d
  where d.datname = current_database() and d.datcollversion is not null
    and d.datcollversion is distinct from pg_database_collation_actual_version(d.oid)";

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
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
pub(crate) async fn differing(
    session: &mut PgConnection,
    which: Which,
) -> Result<Option<String>, sqlx::Error> {
    let version: String = sqlx::query_scalar("select current_setting('server_version_num')")
        .persistent(false)
        .fetch_one(&mut *session)
        .await?;
    let mut found = Vec::new();
    let databases_have_versions = version.parse::<u32>().is_ok_and(|number| number >= 150_000);
    if databases_have_versions {
        found.extend(listed(session, OWN).await?);
    }
    let others = match which {
        Which::Used if databases_have_versions => COLLATIONS_USED,
        Which::Used | Which::Any => COLLATIONS,
    };
    found.extend(listed(session, others).await?);
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

/// What keeps a session from looking for rows where they may not be found: in an index, or by leaving out
/// partitions and tables by the order of texts. `enable_seqscan`: whatever production says of it.
pub(crate) const READ_EVERYTHING: [(&str, &str); 6] = [
    ("enable_indexscan", "off"),
    ("enable_indexonlyscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_partition_pruning", "off"),
    ("constraint_exclusion", "off"),
    ("enable_seqscan", "on"),
];

/// What is to be known of all databases of a restored server.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    differ: Vec<String>,
    unknown: Vec<String>,
}

impl Compared {
    /// Whether indexes on texts can be relied on.
    pub(crate) fn is_trusted(&self) -> bool {
        self.differ.is_empty() && self.unknown.is_empty()
    }

    /// Says what differs, and what follows; `None` when nothing does.
    pub(crate) fn told(&self, and_so: &str) -> Option<String> {
        let mut told = Vec::new();
        if !self.differ.is_empty() {
            told.push(format!(
                "this host sorts texts differently than they were sorted when their indexes were made ({})",
                self.differ.join("; ")
            ));
        }
        if !self.unknown.is_empty() {
            told.push(format!(
                "whether this host sorts texts as they were sorted is not known of {}",
                self.unknown.join("; ")
            ));
        }
        (!told.is_empty()).then(|| format!("{}: {and_so}", told.join("; ")))
    }
}

/// Asks all databases; `server` tells how to connect to each, `first` is one of them.
pub(crate) async fn compare(server: impl Fn(&str) -> ConnectOptions, first: &str) -> Compared {
    let mut databases: Vec<String> = Vec::new();
    // One of them may have been dropped, or may not let us in.
    for database in [first, "postgres", "template1"] {
        if let Ok(mut session) = connect(&server(database)).await {
            let listed = sqlx::query_scalar(
                "select datname::text from pg_database where datallowconn order by datname",
            )
            .persistent(false)
            .fetch_all(&mut session)
            .await;
            drop(session.close().await);
            databases = listed.unwrap_or_default();
            break;
        }
    }
    let mut compared = Compared::default();
    if databases.is_empty() {
        compared.unknown.push("all of its databases".to_owned());
    }
    for database in databases {
        let said = match connect(&server(&database)).await {
            Ok(mut session) => {
                let said = differing(&mut session, Which::Used).await;
                drop(session.close().await);
                said.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match said {
            Ok(None) => {}
            Ok(Some(what)) => compared.differ.push(format!("{database}: {what}")),
            // Also a collation that this host does not have: it has no version here.
            Err(error) => compared.unknown.push(format!("{database}: {error}")),
        }
    }
    compared
}

//! One tenant at a moment as a database of its own, on the same server: to look at, to try something with, to
//! move a customer out. Nothing that is there is written.
//!
//! The schema is that of the moment, as `pg_dump` has it: first what rows need, then the rows, and then indexes,
//! constraints and triggers, so that PostgreSQL itself checks every constraint over the rows and no trigger
//! fires for them. The database has a name of its own until it is complete, and goes if it does not come to
//! that.

use std::process::Stdio;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{Lsn, Progress, Target, TenantRestoreId, WorkloadName};
use dr_sources::instance::{RunAs, command};
use dr_sources::postgres::ConnectOptions;
use serde::Serialize;
use sqlx::postgres::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::beside::{self, Then};
use crate::catalog::CatalogRows;
use crate::execute::blocking;
use crate::map::{TableClass, TenancyMap};
use crate::plan::{Tenant, TenantRequest};
use crate::slice::{Ownership, SliceTable, slice};
use crate::sql::{self, ident, literal, table};
use crate::tenants::{self, Place};
use crate::{TenantError, checksum, large_objects, rows};

/// Where a clone goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneInto {
    /// The new database.
    pub database: String,
    /// The tenant's id in it; the same where nothing is said.
    pub id: Option<String>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cloned {
    /// The workload it is from.
    pub workload: WorkloadName,
    /// Whose rows.
    pub tenant: Tenant,
    /// The id that they have in it.
    pub id: String,
    /// The moment that was asked for.
    pub target: Target,
    /// Where recovery to it ended.
    pub lsn: Lsn,
    /// The last commit before it, by the server's clock then.
    pub last_commit_time: Option<DateTime<Utc>>,
    /// The database.
    pub database: String,
    /// Its tables with rows.
    pub tables: Vec<ClonedTable>,
    /// What is to be known of it, a sentence each.
    pub notes: Vec<String>,
}

/// One table of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClonedTable {
    /// The table.
    pub table: String,
    /// How its rows belong to the tenant.
    pub class: String,
    /// Rows.
    pub rows: u64,
    /// SHA-256 of the rows, the same here as in the state at the target.
    pub sha256: String,
}

/// Makes the tenant's rows of a moment into a new database.
///
/// # Errors
/// Unknown tenants, unreachable targets, tables in no class, a database that is there already, a constraint
/// that does not hold with one tenant's rows alone. Nothing is left behind then.
pub async fn clone(
    installation: &Installation,
    request: &TenantRequest,
    into: &CloneInto,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Cloned, TenantError> {
    let (registry, live_tenant) =
        tenants::find(installation, &request.tenant, request.workload.as_ref()).await?;
    // Only to see whether the name is understood.
    registry.in_database(&into.database)?;
    refuse_existing(&registry, &into.database).await?;
    let found = (&registry, live_tenant.as_ref());
    let Then {
        scratch,
        all,
        everybody,
        tenant,
        place,
        erasures,
    } = beside::bring_back(
        installation,
        request,
        found,
        Arc::clone(&progress),
        cancel.clone(),
    )
    .await?;
    let clone = Clone {
        source: scratch.connect_options(&place.database()),
        place: &place,
        tenant: &tenant,
        everybody: &everybody,
        id: into.id.as_deref(),
        progress: progress.as_ref(),
        cancel: &cancel,
    };
    let temporary = format!(
        "dr_clone_{}",
        TenantRestoreId::new(installation.clock.now())
    )
    .replace('-', "_")
    .to_lowercase();
    let work = registry.in_database(&temporary)?;
    let made = clone.make(&registry.live, &work, &temporary, &all).await;
    let renamed = match made {
        Ok(made) => rename(&registry.live, &temporary, &into.database)
            .await
            .map(|()| made),
        Err(error) => Err(error),
    };
    let (tables, mut notes) = match renamed {
        Ok(made) => made,
        Err(error) => {
            drop_database(&registry.live, &temporary).await;
            return Err(error);
        }
    };
    notes.extend(scratch.plan.notes.iter().cloned());
    notes.push(erasures);
    notes.extend(scratch.reached.note.clone());
    let cloned = Cloned {
        workload: registry.workload.clone(),
        id: into.id.clone().unwrap_or_else(|| tenant.id.clone()),
        tenant,
        target: request.target.clone(),
        lsn: scratch.reached.lsn,
        last_commit_time: scratch.reached.last_commit_time,
        database: into.database.clone(),
        tables,
        notes,
    };
    blocking("remove the scratch instance", move || {
        drop(scratch);
        Ok(())
    })
    .await?;
    Ok(cloned)
}

async fn refuse_existing(place: &Place, database: &str) -> Result<(), TenantError> {
    let mut live = rows::session(&place.live, "the live database").await?;
    let query = format!(
        "select count(*) from pg_catalog.pg_database where datname = {}",
        literal(database)
    );
    let count: i64 = sql::value(&mut live, &query, "looking for the database").await?;
    rows::close(live).await;
    match count {
        0 => Ok(()),
        _ => Err(TenantError::Refused(vec![format!(
            "database `{database}` is there already: name one that is not"
        )])),
    }
}

async fn rename(live: &ConnectOptions, from: &str, to: &str) -> Result<(), TenantError> {
    let mut live = rows::session(live, "the live database").await?;
    let statement = format!("alter database {} rename to {}", ident(from), ident(to));
    let what = format!("giving database {to} its name");
    let renamed = sql::run(&mut live, &statement, &what).await;
    rows::close(live).await;
    renamed
}

async fn drop_database(live: &ConnectOptions, database: &str) {
    let dropped = async {
        let mut live = rows::session(live, "the live database").await?;
        let statement = format!("drop database if exists {} with (force)", ident(database));
        sql::run(&mut live, &statement, "dropping the unfinished database").await?;
        rows::close(live).await;
        Ok::<(), TenantError>(())
    };
    if let Err(error) = dropped.await {
        tracing::warn!(%error, database, "an unfinished database could not be dropped");
    }
}

/// One clone on its way.
struct Clone<'a> {
    source: ConnectOptions,
    place: &'a Place,
    tenant: &'a Tenant,
    /// Whose rows are everybody's: they belong to no tenant, and a clone is not whole without them.
    everybody: &'a [Tenant],
    id: Option<&'a str>,
    progress: &'a dyn Progress,
    cancel: &'a CancellationToken,
}

/// What of a table is copied, and what for.
struct Copied {
    name: String,
    class: String,
    from: String,
    condition: String,
    columns: Vec<String>,
    /// The same columns, each with what goes there.
    values: Vec<String>,
}

type Made = (Vec<ClonedTable>, Vec<String>);

impl Clone<'_> {
    async fn make(
        &self,
        server: &ConnectOptions,
        into: &ConnectOptions,
        database: &str,
        all: &[Tenant],
    ) -> Result<Made, TenantError> {
        let mut then = rows::session(&self.source, "the scratch instance").await?;
        let owners = self.place.owners_among(all);
        let map = rows::map_then(
            &mut then,
            &self.place.workload,
            &self.place.tenancy,
            &owners,
        )
        .await?;
        let map = rows::complete(map)?;
        let catalog = CatalogRows::read(&mut then).await?;
        let (copied, mut notes) = self.copied(&map, &catalog)?;
        let sliced = slice(&map, self.tenant, &catalog, &catalog).tables;
        notes.extend(large_objects::left_out(&mut then, &sliced).await?);
        let mut live = rows::session(server, "the live database").await?;
        let create = create_database(&mut then, database).await?;
        sql::run(&mut live, &create, "making the database").await?;
        // Who may connect to the tenant's database was said of that one only.
        let close = format!(
            "revoke connect, temporary on database {} from public",
            ident(database)
        );
        sql::run(&mut live, &close, "closing the database").await?;
        rows::close(live).await;
        let mut new = rows::session(into, "the new database").await?;
        self.progress.note("making the tables");
        self.load_schema(&mut new, "pre-data").await?;
        let mut tables = Vec::new();
        for table in &copied {
            if self.cancel.is_cancelled() {
                return Err(TenantError::Cancelled);
            }
            tables.extend(self.copy(&mut then, &mut new, table).await?);
        }
        self.set_sequences(&mut then, &mut new).await?;
        self.progress
            .note("making indexes, constraints and triggers");
        self.load_schema(&mut new, "post-data").await?;
        sql::run(&mut new, "analyze", "analyzing the new database").await?;
        rows::close(new).await;
        rows::close(then).await;
        Ok((tables, notes))
    }

    /// The tenant's rows, and those of everybody.
    fn copied(
        &self,
        map: &TenancyMap,
        catalog: &CatalogRows,
    ) -> Result<(Vec<Copied>, Vec<String>), TenantError> {
        let owner = Ownership {
            map,
            tenant: self.tenant,
        };
        let sliced = slice(map, self.tenant, catalog, catalog);
        let mut refused = sliced.refused;
        refused.extend(owner.unknown_ids());
        if !refused.is_empty() {
            return Err(TenantError::Refused(refused));
        }
        let mut all: Vec<Copied> = sliced
            .tables
            .iter()
            .map(|table| self.of_tenant(&owner, table))
            .collect();
        for mapped in &map.tables {
            let TableClass::Shared = mapped.class else {
                continue;
            };
            let Some(relation) = catalog.by_name(&mapped.table) else {
                continue;
            };
            if relation.extension.is_some() || !matches!(relation.kind, 'r' | 'p') {
                continue;
            }
            let columns: Vec<String> = catalog
                .columns_of(relation.oid)
                .filter(|column| !column.generated)
                .map(|column| ident(&column.name))
                .collect();
            let only = if relation.kind == 'p' { "" } else { "only " };
            all.push(Copied {
                name: mapped.table.to_string(),
                class: mapped.class.describe(),
                from: format!("{only}{}", table(&mapped.table)),
                condition: "true".to_owned(),
                values: columns.iter().map(|name| format!("t.{name}")).collect(),
                columns,
            });
        }
        // Everybody's first: a check may look into them.
        all.rotate_left(sliced.tables.len());
        let mut notes = sliced.warnings;
        notes.push(
            "nobody but its owner may connect: GRANT CONNECT ON DATABASE lets others".to_owned(),
        );
        notes.push(
            "materialized views may be empty: REFRESH MATERIALIZED VIEW fills them".to_owned(),
        );
        notes.push("folders and streams of the tenant are not in it".to_owned());
        if self.id.is_some() {
            notes.push(
                "only tenant columns have the new id: text or JSON that holds the id says what it said"
                    .to_owned(),
            );
        }
        Ok((all, notes))
    }

    fn of_tenant(&self, owner: &Ownership<'_>, found: &SliceTable) -> Copied {
        let mine = owner.condition(&found.class, "t");
        let shared = self.everybody.iter().map(|tenant| {
            let map = owner.map;
            let condition = Ownership { map, tenant }.condition(&found.class, "t");
            format!(" or ({condition})")
        });
        let shared: String = shared.collect();
        let value = |column: &crate::slice::SliceColumn| {
            let name = format!("t.{}", ident(&column.name));
            match (&found.class, self.id) {
                (
                    TableClass::Direct {
                        column: tenant,
                        id: None,
                        ..
                    },
                    Some(id),
                ) if *tenant == column.name => format!(
                    "case when {mine} then {}::{} else {name} end",
                    literal(id),
                    column.base_type
                ),
                _ => name,
            }
        };
        Copied {
            name: found.table.to_string(),
            class: found.class.describe(),
            from: found.from(),
            values: found.columns.iter().map(value).collect(),
            columns: found.columns.iter().map(|c| ident(&c.name)).collect(),
            condition: format!("({mine}){shared}"),
        }
    }

    /// Copies a table's rows, and shows that they are there; nothing where there are none.
    async fn copy(
        &self,
        then: &mut PgConnection,
        new: &mut PgConnection,
        copied: &Copied,
    ) -> Result<Option<ClonedTable>, TenantError> {
        self.progress.note(&format!("copying {}", copied.name));
        let what = format!("the rows of {}", copied.name);
        let target = copied.from.trim_start_matches("only ");
        let values = copied.values.join(", ");
        let rows = format!("{} t where {}", copied.from, copied.condition);
        let query = format!("select {values} from {rows}");
        let into = format!("{target} ({})", copied.columns.join(", "));
        sql::copy_across(then, &query, new, &into, &what).await?;
        let was = checksum::of(then, &format!("row({values})"), &rows, &what).await?;
        let plain: Vec<String> = copied
            .columns
            .iter()
            .map(|name| format!("t.{name}"))
            .collect();
        let plain = format!("row({})", plain.join(", "));
        let is = checksum::of(new, &plain, &format!("{} t", copied.from), &what).await?;
        if was != is {
            return Err(TenantError::CheckFailed {
                what: "the rows in the new database are not those at the target",
                found: vec![format!(
                    "{}: {} rows, and {} then",
                    copied.name, is.0, was.0
                )],
            });
        }
        Ok((is.0 > 0).then(|| ClonedTable {
            table: copied.name.clone(),
            class: copied.class.clone(),
            rows: is.0,
            sha256: is.1,
        }))
    }

    /// Sequences stand where they stood.
    async fn set_sequences(
        &self,
        then: &mut PgConnection,
        new: &mut PgConnection,
    ) -> Result<(), TenantError> {
        let query = "select coalesce(string_agg(format('select pg_catalog.setval(%L, %s, true);', \
                     format('%I.%I', schemaname, sequencename), last_value), ' '), 'select') \
                     from pg_catalog.pg_sequences where last_value is not null";
        let statements: String = sql::value(then, query, "reading the sequences").await?;
        sql::run(new, &statements, "setting the sequences").await
    }

    /// Puts a part of the schema of then into the new database.
    async fn load_schema(&self, new: &mut PgConnection, section: &str) -> Result<(), TenantError> {
        let text = self.dump(section).await?;
        // Only psql knows these: they keep a dump from running its commands.
        let statements: String = text
            .lines()
            .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let what = match section {
            "pre-data" => "making the tables of the new database",
            _ => "making indexes, constraints and triggers of the new database",
        };
        sql::run(new, &statements, what).await?;
        sql::run(new, sql::SESSION, "preparing the session").await
    }

    async fn dump(&self, section: &str) -> Result<String, TenantError> {
        let mut then = rows::session(&self.source, "the scratch instance").await?;
        let identity = dr_sources::postgres::identify(&mut then)
            .await
            .map_err(|source| TenantError::Connect {
                place: "the scratch instance".to_owned(),
                source,
            })?;
        rows::close(then).await;
        let source = &self.place.source;
        let bin = dr_sources::postgres::tools::bin_directory(
            source.bin_directory.as_deref(),
            identity.major_version(),
        )
        .map_err(|source| TenantError::Connect {
            place: "pg_dump".to_owned(),
            source,
        })?;
        let program = bin.join("pg_dump");
        let user = RunAs::for_postgres().map_err(|source| TenantError::Connect {
            place: "pg_dump".to_owned(),
            source,
        })?;
        let (url, section) = (self.source.url.clone(), format!("--section={section}"));
        blocking("read the schema", move || {
            let output = command(user.as_ref(), &program)
                .args(["--no-password", "--no-tablespaces", "--encoding=UTF8"])
                .args(["--no-publications", "--no-subscriptions"])
                .arg(section)
                .arg(format!("--dbname={url}"))
                .current_dir("/")
                .stdin(Stdio::null())
                .output()
                .map_err(TenantError::file("run", &program))?;
            match output.status.success() {
                true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
                false => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    Err(TenantError::format(
                        "the schema that pg_dump gives",
                        said.trim(),
                    ))
                }
            }
        })
        .await
    }
}

/// The statement that makes a database of the same encoding and order.
async fn create_database(then: &mut PgConnection, database: &str) -> Result<String, TenantError> {
    // Names of columns differ between versions.
    let query = "select d.*, pg_catalog.pg_encoding_to_char(d.encoding) as encoding_name \
                 from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()";
    let rows: Vec<serde_json::Value> =
        sql::json(then, query, "reading the database's encoding").await?;
    let row = rows.first().cloned().unwrap_or_default();
    let text = |name: &str| row.get(name).and_then(serde_json::Value::as_str);
    let mut statement = format!("create database {} template template0", ident(database));
    let mut add = |word: &str, value: Option<&str>| {
        if let Some(value) = value {
            statement.push_str(&format!(" {word} {}", literal(value)));
        }
    };
    add("encoding", text("encoding_name"));
    add("lc_collate", text("datcollate"));
    add("lc_ctype", text("datctype"));
    let icu = text("daticulocale").or_else(|| text("datlocale"));
    if text("datlocprovider") == Some("i") {
        add("icu_locale", icu);
        statement.push_str(" locale_provider icu");
    } else if text("datlocprovider") == Some("b") {
        add("builtin_locale", icu);
        statement.push_str(" locale_provider builtin");
    }
    Ok(statement)
}

//! The demo's ERP: a distribution business whose tenants share all tables.
//!
//! The rows are made by the server itself from a seed and running numbers, so that a million of
//! them take seconds and the same seed gives the same rows on every machine. All of it is one
//! transaction: a database holds the whole ERP or nothing of it. Indexes, foreign keys and triggers
//! come after the rows; building them once is several times faster than keeping them up to date.
//!
//! [`install_second`] puts up another, unlike pooled schema: what works on the ERP only because of
//! how the ERP is shaped fails there.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

pub use crate::configuration::write_configuration;

use crate::DemoError;

const SCHEMA: &str = include_str!("erp/schema.sql");
const DATA: &str = include_str!("erp/data.sql");
const CONSTRAINTS: &str = include_str!("erp/constraints.sql");
const SECOND: &str = include_str!("erp/second.sql");

/// Rows at a factor of 1; lines, moves and invoices follow from the orders.
const ORDERS: f64 = 132_000.0;
const CUSTOMERS: f64 = 18_000.0;
const ITEMS: f64 = 14_000.0;
const DOCUMENTS: f64 = 2_500.0;
const SHIPMENTS: f64 = 20_000.0;

/// The query that lists the ERP's tenants, for the `tenancy` section of a workload.
pub const TENANTS_QUERY: &str = "select tenant_id::text as id, code as name from public.tenant";
/// The same for the second schema.
pub const SECOND_TENANTS_QUERY: &str =
    "select company_id::text as id, slug as name from logistics.company";

/// How much there shall be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Customers of the platform.
    pub tenants: u32,
    /// 1 gives somewhat more than a million rows.
    pub rows_factor: f64,
}

impl Scale {
    /// What `dr demo` shows: a million rows.
    #[must_use]
    pub fn demo() -> Self {
        Self {
            tenants: 64,
            rows_factor: 1.0,
        }
    }

    /// For tests: some 20 000 rows, in about a second.
    #[must_use]
    pub fn small() -> Self {
        Self {
            tenants: 12,
            rows_factor: 0.016,
        }
    }
}

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Tenants as (id, code), by id.
    pub tenants: Vec<(String, String)>,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
}

impl Summary {
    /// Rows in all tables together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rows.values().sum()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} tenants, {} rows in {} tables",
            self.tenants.len(),
            self.total(),
            self.rows.len()
        )
    }
}

/// Installs the ERP into schema `public` of an empty database.
///
/// # Errors
/// [`DemoError::Sql`] when the server refuses; nothing is left behind then.
pub async fn install(
    connection: &mut PgConnection,
    scale: Scale,
    seed: u32,
) -> Result<Summary, DemoError> {
    let failed = |source| DemoError::Sql {
        what: "installing the ERP",
        source,
    };
    let mut transaction = connection.begin().await.map_err(failed)?;
    let script = format!(
        "set local search_path = public, pg_catalog; set local timezone = 'UTC'; \
         set local work_mem = '64MB'; set local maintenance_work_mem = '128MB'; \
         set local synchronous_commit = on;\n{SCHEMA}\n{}\n{DATA}\n{CONSTRAINTS}\n{DROP_GENERATOR}",
        generator(scale, seed)
    );
    run(&mut transaction, script).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    run(connection, "analyze".to_owned())
        .await
        .map_err(failed)?;
    summarize(connection, "public", TENANTS_QUERY)
        .await
        .map_err(failed)
}

/// Installs the second, unlike schema (`logistics`, uuid keys in `company_id`).
///
/// # Errors
/// As [`install`].
pub async fn install_second(
    connection: &mut PgConnection,
    scale: Scale,
    seed: u32,
) -> Result<Summary, DemoError> {
    let failed = |source| DemoError::Sql {
        what: "installing the second schema",
        source,
    };
    let mut transaction = connection.begin().await.map_err(failed)?;
    let script = format!(
        "set local timezone = 'UTC';\n{}\n{SECOND}\n{DROP_GENERATOR}",
        generator(scale, seed)
    );
    run(&mut transaction, script).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    run(connection, "analyze".to_owned())
        .await
        .map_err(failed)?;
    summarize(connection, "logistics", SECOND_TENANTS_QUERY)
        .await
        .map_err(failed)
}

/// The names of the first `count` tenants: upper-case letters and, past the list's end, digits, so
/// that they can be folder names and parts of NATS subjects.
#[must_use]
pub fn tenant_codes(count: u32) -> Vec<String> {
    (0_usize..)
        .zip(0..count)
        .map(|(index, _)| {
            let round = index / CODES.len();
            let code = CODES.iter().cycle().nth(index).copied().unwrap_or("ACME");
            if round == 0 {
                code.to_owned()
            } else {
                format!("{code}{}", round + 1)
            }
        })
        .collect()
}

const CODES: [&str; 66] = [
    "ACME",
    "BOREALIS",
    "CASCADIA",
    "DELTAWARE",
    "EASTGATE",
    "FIRTHLINE",
    "GRANITECO",
    "HARBORSIDE",
    "IRONWOOD",
    "JUNIPER",
    "KESTREL",
    "LAKESHORE",
    "MERIDIAN",
    "NORTHWAY",
    "OAKHURST",
    "PINECREST",
    "QUARRYMEN",
    "REDROCK",
    "SILVERLAKE",
    "TALLGRASS",
    "UPLANDS",
    "VANTAGE",
    "WESTBROOK",
    "XYLOTRADE",
    "YARROW",
    "ZEPHYRA",
    "AMBERFIELD",
    "BLUEPORT",
    "COPPERTON",
    "DUNMORE",
    "ELMSTONE",
    "FAIRHAVEN",
    "GOLDCREEK",
    "HIGHMOOR",
    "INLETBAY",
    "JASPERCO",
    "KINGSFORD",
    "LONGACRE",
    "MILLRACE",
    "NETHERBY",
    "ORCHARDIA",
    "PRAIRIENET",
    "QUILLON",
    "RIVERTON",
    "STONEHAM",
    "THORNBURY",
    "UMBERLAND",
    "VALEMONT",
    "WINDROSE",
    "YELLOWSTEM",
    "ASHCOMBE",
    "BRIARWOOD",
    "CLEARFORD",
    "DOVERSPAN",
    "EMBERLY",
    "FOXGLOVE",
    "GREYSTOKE",
    "HOLLOWAY",
    "IVYBRIDGE",
    "KELPSOUND",
    "LINDENHOF",
    "MARSHGATE",
    "NIGHTJAR",
    "OVERTON",
    "PEMBERLEY",
    "ROWANTREE",
];

const DROP_GENERATOR: &str = "drop function pg_temp.pick(bigint, bigint, bigint); \
     drop function pg_temp.codes(); drop function pg_temp.parameter(text);";

/// What the scripts draw their values from, as functions that end with the session.
fn generator(scale: Scale, seed: u32) -> String {
    // A tenant's own minimum keeps small scales from having empty tenants.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of rows, far below 2^53"
    )]
    let rows = |at_one: f64| (at_one * scale.rows_factor.max(0.0)).round() as u64;
    let codes = tenant_codes(scale.tenants).join("','");
    format!(
        "create function pg_temp.pick(stream bigint, n bigint, m bigint) returns bigint
             language sql immutable as
             'select (hashint8extended(n, {seed} * 1000::bigint + stream) & 9223372036854775807) % m';
         create function pg_temp.codes() returns text[] language sql immutable as
             $$ select array['{codes}']::text[] $$;
         create function pg_temp.parameter(name text) returns bigint language sql immutable as
             $$ select case name when 'seed' then {seed} when 'orders' then {orders}
                    when 'customers' then {customers} when 'items' then {items}
                    when 'documents' then {documents} when 'shipments' then {shipments}
                end::bigint $$;",
        orders = rows(ORDERS),
        customers = rows(CUSTOMERS),
        items = rows(ITEMS),
        documents = rows(DOCUMENTS),
        shipments = rows(SHIPMENTS),
    )
}

async fn run(connection: &mut PgConnection, script: String) -> Result<(), sqlx::Error> {
    // Fixed scripts; only numbers are put into them.
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(connection)
        .await
        .map(|_| ())
}

async fn summarize(
    connection: &mut PgConnection,
    schema: &str,
    tenants: &'static str,
) -> Result<Summary, sqlx::Error> {
    let tables = sqlx::query(
        "select c.relname::text, format('select count(*) from %I.%I', n.nspname, c.relname) \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relkind in ('r', 'p') and not c.relispartition order by 1",
    )
    .bind(schema)
    .fetch_all(&mut *connection)
    .await?;
    let mut rows = BTreeMap::new();
    for table in tables {
        // Quoted by the server itself.
        let query: String = table.try_get(1)?;
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&mut *connection)
            .await?;
        rows.insert(table.try_get(0)?, count.unsigned_abs());
    }
    let mut found = Vec::new();
    for tenant in sqlx::query(tenants).fetch_all(&mut *connection).await? {
        found.push((tenant.try_get("id")?, tenant.try_get("name")?));
    }
    found.sort_by_key(|(id, _): &(String, String)| (id.len(), id.clone()));
    Ok(Summary {
        tenants: found,
        rows,
    })
}

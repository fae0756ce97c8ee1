//! What the catalogs of a copy say: tables, columns, and which foreign keys lead where.

use std::collections::BTreeSet;

use dr_model::TableName;
use dr_sources::postgres::{ident, table};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};

use crate::RestoreError;

/// A table, or a partition of one.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Table {
    pub(super) oid: u32,
    /// Of a partition the topmost table, else itself.
    pub(super) root: u32,
    #[serde(flatten)]
    pub(super) name: TableName,
    pub(super) partitioned: bool,
    /// It belongs to an extension.
    pub(super) extension: bool,
    pub(super) columns: Vec<Column>,
    /// Columns of the primary key.
    pub(super) key: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Column {
    pub(super) name: String,
    /// Domains resolved, without a length.
    pub(super) plain_type: String,
    pub(super) not_null: bool,
}

/// A foreign key.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    pub(super) child: u32,
    pub(super) parent: u32,
    pub(super) columns: Vec<String>,
    pub(super) parent_columns: Vec<String>,
    /// Equality operators, parent's column on the left.
    pub(super) operators: Vec<String>,
    /// What ON DELETE says: `a` nothing, `r` restrict, `c` cascade, `n` set null, `d` set default.
    pub(super) on_delete: char,
    /// The columns that are set, if not all.
    pub(super) set: Vec<String>,
}

/// Everything read from one database.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    /// Of partitioned ones the topmost.
    pub(super) tables: Vec<Table>,
    /// Foreign keys may lead from or to a single one.
    pub(super) partitions: Vec<Table>,
    pub(super) foreign_keys: Vec<ForeignKey>,
}

const TABLES: &str = "select c.oid::int8 as oid, n.nspname as schema, c.relname as name, \
      coalesce(pg_partition_root(c.oid)::oid, c.oid)::int8 as root, \
      c.relkind = 'p' as partitioned, \
      exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid \
        and d.deptype = 'e') as extension, \
      (select coalesce(json_agg(json_build_object('name', a.attname, 'not_null', a.attnotnull, \
           'plain_type', format_type(coalesce(nullif(b.typbasetype, 0), a.atttypid), -1)) \
           order by a.attnum), '[]') \
         from pg_attribute a join pg_type b on b.oid = a.atttypid \
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns, \
      array(select a.attname from pg_index i cross join unnest(i.indkey::int2[]) k(number) \
         join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number \
         where i.indrelid = c.oid and i.indisprimary) as key \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'p') and c.relpersistence <> 't' \
      and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') \
    order by n.nspname, c.relname";

const FOREIGN_KEYS: &str = "select con.conname as name, con.conrelid::int8 as child, \
      con.confrelid::int8 as parent, con.confdeltype::text as on_delete, \
      array(select a.attname from unnest(con.conkey) with ordinality k(number, place) \
        join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number order by k.place) as columns, \
      array(select a.attname from unnest(con.confkey) with ordinality k(number, place) \
        join pg_attribute a on a.attrelid = con.confrelid and a.attnum = k.number order by k.place) \
        as parent_columns, \
      array(select format('operator(%I.%s)', n.nspname, o.oprname) \
        from unnest(con.conpfeqop) with ordinality k(operator, place) \
        join pg_operator o on o.oid = k.operator \
        join pg_namespace n on n.oid = o.oprnamespace order by k.place) as operators, \
      array(select a.attname from jsonb_array_elements_text( \
            case jsonb_typeof(to_jsonb(con) -> 'confdelsetcols') \
              when 'array' then to_jsonb(con) -> 'confdelsetcols' else '[]' end) k(number) \
        join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number::int) as set \
    from pg_constraint con where con.contype = 'f' and con.conparentid = 0 \
    order by con.conrelid, con.conname";

impl Tables {
    pub(super) async fn read(session: &mut PgConnection) -> Result<Self, RestoreError> {
        let all: Vec<Table> = json(session, TABLES, "list the tables").await?;
        let (tables, partitions) = all.into_iter().partition(|table| table.oid == table.root);
        Ok(Self {
            tables,
            partitions,
            foreign_keys: json(session, FOREIGN_KEYS, "list the foreign keys").await?,
        })
    }

    pub(super) fn named(&self, name: &TableName) -> Option<&Table> {
        self.all().find(|table| table.name == *name)
    }

    pub(super) fn with_oid(&self, oid: u32) -> Option<&Table> {
        self.all().find(|table| table.oid == oid)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().chain(&self.partitions)
    }

    /// The topmost table of which this is a part.
    pub(super) fn root_of<'a>(&'a self, table: &'a Table) -> &'a Table {
        self.with_oid(table.root).unwrap_or(table)
    }

    /// The tables that a foreign key leads from and to.
    pub(super) fn ends(&self, key: &ForeignKey) -> Option<(&Table, &Table)> {
        Some((self.with_oid(key.child)?, self.with_oid(key.parent)?))
    }
}

impl Table {
    /// As it stands in FROM: without tables that inherit from it, with its partitions.
    pub(super) fn from(&self) -> String {
        match self.partitioned {
            true => table(&self.name),
            false => format!("only {}", table(&self.name)),
        }
    }

    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Those of these columns that it does not have.
    pub(super) fn lacks(&self, columns: &[String]) -> Vec<String> {
        let there: BTreeSet<&str> = self.columns.iter().map(|it| it.name.as_str()).collect();
        let lacking = columns.iter().filter(|name| !there.contains(name.as_str()));
        lacking.cloned().collect()
    }

    /// An SQL expression that tells people which row `alias` is.
    pub(super) fn named_row(&self, alias: &str, otherwise: &[String]) -> String {
        let columns = match self.key.is_empty() {
            true => otherwise,
            false => &self.key,
        };
        let parts: Vec<String> = columns
            .iter()
            .map(|name| {
                let text = dr_sources::postgres::literal(&format!("{name}="));
                format!("{text} || coalesce({alias}.{}::text, 'null')", ident(name))
            })
            .collect();
        parts.join(" || ', ' || ")
    }
}

impl ForeignKey {
    /// The columns that are set to null when the row goes that they refer to.
    pub(super) fn set_columns(&self) -> &[String] {
        match self.set.is_empty() {
            true => &self.columns,
            false => &self.set,
        }
    }

    /// `p.a = c.b and …`.
    pub(super) fn join(&self) -> String {
        let pairs = self.parent_columns.iter().zip(&self.columns).enumerate();
        let pairs = pairs.map(|(place, (parent, child))| {
            let operator = self.operators.get(place).map_or("=", String::as_str);
            format!("p.{} {operator} c.{}", ident(parent), ident(child))
        });
        pairs.collect::<Vec<_>>().join(" and ")
    }
}

/// Runs statements; how many rows the last of them wrote.
pub(super) async fn run(
    session: &mut PgConnection,
    sql: &str,
    action: impl Into<String>,
) -> Result<u64, RestoreError> {
    session
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await
        .map(|done| done.rows_affected())
        .map_err(failed(action))
}

/// The rows of a query as values of a type whose fields are named like its columns.
pub(super) async fn json<T: DeserializeOwned>(
    session: &mut PgConnection,
    query: &str,
    action: &str,
) -> Result<Vec<T>, RestoreError> {
    let sql = format!("select coalesce(json_agg(dr_row), '[]')::text from ({query}) dr_row");
    let text: String = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(session)
        .await
        .map_err(failed(action))?;
    serde_json::from_str(&text).map_err(|error| RestoreError::ErasureSql {
        action: action.to_owned(),
        source: sqlx::Error::Decode(Box::new(error)),
    })
}

pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(sqlx::Error) -> RestoreError {
    let action = action.into();
    |source| RestoreError::ErasureSql { action, source }
}

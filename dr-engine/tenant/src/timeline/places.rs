//! What a server knows: in which files tables are, and at which places a tenant's rows.

use std::collections::{BTreeMap, HashMap, HashSet};

use dr_wal::{Layout, Relation, RowPlace};
use futures::TryStreamExt;
use serde::Deserialize;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgRow};
use tokio_util::sync::CancellationToken;

use super::content::{Content, Key, Space, Tells, held, key_of};
use super::ground::{File, How, Question};
use super::walk::Walk;
use crate::TenantError;
use crate::catalog::{CatalogRows, Oid};
use crate::map::{AS_TEXT, Hop, TableClass, TableName, TenancyMap};
use crate::plan::Tenant;
use crate::slice::{Ownership, slice};
use crate::sql::{self, ident, literal, table};

/// So many places are asked for at once.
const QUESTIONS_AT_ONCE: usize = 5000;

const FILES: &str = "select c.oid::int8 as oid, n.nspname as schema, c.relname as name, \
      pg_relation_filenode(c.oid)::int8 as file, \
      coalesce(nullif(c.reltablespace, 0), d.dattablespace)::int8 as tablespace, \
      case when c.relisshared then 0 else d.oid::int8 end as database \
    from pg_class c join pg_namespace n on n.oid = c.relnamespace \
      join pg_database d on d.datname = current_database() \
    where c.relkind in ('r', 't', 'm') and pg_relation_filenode(c.oid) is not null";

const COLUMNS: &str = "select a.attrelid::int8 as relation, a.attname as name, \
      a.attlen::int4 as length, \
      case a.attalign when 'c' then 1 when 's' then 2 when 'i' then 4 else 8 end as alignment, \
      a.attisdropped as dropped, \
      coalesce((select not l.collisdeterministic from pg_collation l where l.oid = a.attcollation), \
        false) as loose \
    from pg_attribute a join pg_class c on c.oid = a.attrelid and c.relkind = 'r' \
      join pg_namespace n on n.oid = c.relnamespace \
    where a.attnum > 0 and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') \
    order by a.attrelid, a.attnum";

#[derive(Debug, Deserialize)]
struct FileRow {
    oid: Oid,
    #[serde(flatten)]
    name: TableName,
    file: u32,
    tablespace: u32,
    database: u32,
}

#[derive(Debug, Deserialize)]
struct ColumnRow {
    relation: Oid,
    name: String,
    length: i16,
    alignment: usize,
    dropped: bool,
    /// Texts that differ may be equal.
    loose: bool,
}

/// Sets of columns that rows of other tables refer to, of all moments that are looked at.
#[derive(Debug, Default)]
pub(super) struct Spaces(Vec<(TableName, Vec<String>)>);

impl Spaces {
    fn of(&mut self, hop: &Hop) -> Space {
        let wanted = (&hop.parent, &hop.parent_columns);
        let known = |(table, columns): &(TableName, Vec<String>)| (table, columns) == wanted;
        self.0.iter().position(known).unwrap_or_else(|| {
            self.0
                .push((hop.parent.clone(), hop.parent_columns.clone()));
            self.0.len() - 1
        })
    }

    fn in_table<'a>(&'a self, table: &'a TableName) -> impl Iterator<Item = (Space, &'a [String])> {
        let all = self.0.iter().enumerate();
        all.filter(move |(_, (of, _))| of == table)
            .map(|(space, (_, columns))| (space, columns.as_slice()))
    }

    /// Of each whether all files of its table can be read.
    pub(super) fn readable(&self, listings: &[&Listing]) -> Vec<bool> {
        let spaces = self.0.iter().enumerate();
        spaces
            .map(|(space, (table, _))| {
                let mut of = (listings.iter().flat_map(|listing| &listing.tables))
                    .filter(|found| found.name == *table)
                    .peekable();
                let is_there = of.peek().is_some();
                is_there && of.all(|found| found.files.iter().all(|file| file.reads(space)))
            })
            .collect()
    }
}

/// One table of the tenant's, at one moment.
#[derive(Debug)]
pub(super) struct TableAt {
    pub(super) name: TableName,
    class: TableClass,
    from: String,
    /// Columns that other rows refer to, each with its type.
    keys: Vec<(Space, Vec<(String, String)>)>,
    files: Vec<FileAt>,
}

#[derive(Debug)]
struct FileAt {
    oid: Oid,
    /// The table, or the partition.
    name: TableName,
    relation: Relation,
    how: How,
}

impl FileAt {
    fn reads(&self, space: Space) -> bool {
        match &self.how {
            How::Whole => false,
            How::Placed(content) => content.keys.iter().any(|(of, _)| *of == space),
        }
    }
}

/// What a server knows of the tenant's tables at one moment.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) tables: Vec<TableAt>,
    /// Every file of the database.
    pub(super) all: HashSet<Relation>,
    pub(super) database: u32,
    pub(super) refused: Vec<String>,
    is_utf8: bool,
}

impl Listing {
    /// Reads it, in whatever transaction the session is in.
    pub(super) async fn read(
        session: &mut PgConnection,
        map: &TenancyMap,
        tenant: &Tenant,
        spaces: &mut Spaces,
    ) -> Result<Self, TenantError> {
        let owner = Ownership { map, tenant };
        let catalog = CatalogRows::read(session).await?;
        let files: Vec<FileRow> = sql::json(session, FILES, "listing the files of tables").await?;
        let columns: Vec<ColumnRow> =
            sql::json(session, COLUMNS, "listing how tables hold their columns").await?;
        let question = "select oid::int8 from pg_database where datname = current_database()";
        let database: i64 = sql::value(session, question, "asking for the database").await?;
        let (page_bytes, is_utf8) = settings(session).await?;
        let sliced = slice(map, tenant, &catalog, &catalog);
        let mut refused = sliced.refused;
        refused.extend(owner.unknown_ids());
        let mut by_relation: HashMap<Oid, Vec<ColumnRow>> = HashMap::new();
        for column in columns {
            by_relation.entry(column.relation).or_default().push(column);
        }
        let by_oid: HashMap<Oid, &FileRow> = files.iter().map(|file| (file.oid, file)).collect();
        // What is referred to must be known before any table is read.
        for found in &sliced.tables {
            if let TableClass::Via { hop, .. } = &found.class {
                spaces.of(hop);
            }
        }
        let mut tables = Vec::new();
        for found in sliced.tables {
            let root = catalog.by_name(&found.table).map(|relation| relation.oid);
            let family = root.map(|root| catalog.family(root)).unwrap_or_default();
            let mut own = Vec::new();
            for file in family.iter().filter_map(|oid| by_oid.get(oid)) {
                let holder = Holder {
                    owner: &owner,
                    catalog: &catalog,
                    table: &found.table,
                    oid: file.oid,
                    columns: by_relation.get(&file.oid).map_or(&[][..], Vec::as_slice),
                    page_bytes,
                    is_utf8,
                };
                own.push(FileAt {
                    oid: file.oid,
                    name: file.name.clone(),
                    relation: relation(file),
                    how: holder.how(session, &found.class, spaces).await?,
                });
            }
            let typed = |columns: &[String]| -> Option<Vec<(String, String)>> {
                let typed = columns.iter().map(|name| {
                    let column = catalog.column(root?, name)?;
                    Some((name.clone(), column.plain_type.clone()))
                });
                typed.collect()
            };
            let keys = spaces.in_table(&found.table);
            let keys = keys.filter_map(|(space, columns)| Some((space, typed(columns)?)));
            tables.push(TableAt {
                from: found.from(),
                keys: keys.collect(),
                name: found.table,
                class: found.class,
                files: own,
            });
        }
        Ok(Self {
            tables,
            all: files.iter().map(relation).collect(),
            database: u32::try_from(database).unwrap_or(0),
            refused,
            is_utf8,
        })
    }

    /// The files, with the number of their table among `names`.
    pub(super) fn files(&self, names: &[TableName], existed: bool) -> Vec<File> {
        let mut files = Vec::new();
        for (found, number) in (self.tables.iter())
            .filter_map(|found| Some((found, names.iter().position(|it| *it == found.name)?)))
        {
            files.extend(found.files.iter().map(|file| File {
                relation: file.relation,
                oid: file.oid,
                table: number,
                depth: found.class.depth().unwrap_or(0),
                how: file.how.clone(),
                existed,
            }));
        }
        files
    }

    /// Puts the places of the tenant's rows into a walk; returns how many rows there are by table.
    pub(super) async fn own_places(
        &self,
        session: &mut PgConnection,
        owner: &Ownership<'_>,
        walk: &mut Walk,
        cancel: &CancellationToken,
    ) -> Result<BTreeMap<String, u64>, TenantError> {
        let mut rows = BTreeMap::new();
        for found in &self.tables {
            let keys = found.keys.iter().flat_map(|(_, columns)| columns);
            let keys: String = keys
                .map(|(name, _)| format!(", t.{}::text", ident(name)))
                .collect();
            let query = format!(
                "select t.tableoid::int8, t.ctid::text{keys} from {} t where {}",
                found.from,
                owner.condition(&found.class, "t")
            );
            let action = format!("reading where the tenant's rows of {} are", found.name);
            let mut count = 0;
            let query = sqlx::query(AssertSqlSafe(query.as_str())).persistent(false);
            let mut answers = query.fetch(&mut *session);
            while let Some(row) = answers
                .try_next()
                .await
                .map_err(TenantError::sql(&action))?
            {
                if cancel.is_cancelled() {
                    return Err(TenantError::Cancelled);
                }
                let oid = u32::try_from(sql::column::<i64>(&row, 0)?).unwrap_or(0);
                let place = place(&sql::column::<String>(&row, 1)?)
                    .ok_or_else(|| TenantError::format(&action, "it is no place"))?;
                if !walk.own(oid, place, found.keys_of(&row, self.is_utf8)?) {
                    let why = "they are in a file that is not listed";
                    return Err(TenantError::format(&action, why));
                }
                count += 1;
            }
            if count > 0 {
                rows.insert(found.name.to_string(), count);
            }
        }
        Ok(rows)
    }

    /// Asks whose the rows are that are there, and answers what a walk left open.
    pub(super) async fn answer(
        &self,
        session: &mut PgConnection,
        owner: &Ownership<'_>,
        walk: &mut Walk,
        cancel: &CancellationToken,
    ) -> Result<(), TenantError> {
        let mut questions = walk.questions();
        for found in &self.tables {
            for file in &found.files {
                let asked = questions.remove(&file.relation).unwrap_or_default();
                for asked in asked.chunks(QUESTIONS_AT_ONCE) {
                    if cancel.is_cancelled() {
                        return Err(TenantError::Cancelled);
                    }
                    let condition = owner.condition(&found.class, "t");
                    ask(session, &file.name, &condition, asked, walk).await?;
                }
            }
        }
        Ok(())
    }
}

/// The version that is meant is the one that the same transaction wrote at the same place.
async fn ask(
    session: &mut PgConnection,
    name: &TableName,
    condition: &str,
    asked: &[Question],
    walk: &mut Walk,
) -> Result<(), TenantError> {
    let places: Vec<String> = (asked.iter())
        .map(|it| format!("\"({},{})\"", it.place.block, it.place.line))
        .collect();
    let query = format!(
        "select t.ctid::text, t.xmin::text, coalesce({condition}, false) from only {} t \
         where t.ctid = any ({}::tid[])",
        table(name),
        literal(&format!("{{{}}}", places.join(",")))
    );
    let action = format!("asking whose the new rows of {name} are");
    let mut by_place: HashMap<RowPlace, &Question> = HashMap::new();
    by_place.extend(asked.iter().map(|it| (it.place, it)));
    for row in sql::rows(session, &query, &action).await? {
        let writer: String = sql::column(&row, 1)?;
        let is_ours: bool = sql::column(&row, 2)?;
        let found = place(&sql::column::<String>(&row, 0)?).and_then(|at| by_place.get(&at));
        if let Some(question) = found.filter(|it| Ok(it.writer) == writer.parse()) {
            walk.answer(question.row, is_ours);
        }
    }
    Ok(())
}

fn relation(file: &FileRow) -> Relation {
    Relation {
        tablespace: file.tablespace,
        database: file.database,
        file: file.file,
    }
}

/// `(block,line)`.
fn place(text: &str) -> Option<RowPlace> {
    let (block, line) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(RowPlace {
        block: block.parse().ok()?,
        line: line.parse().ok()?,
    })
}

impl TableAt {
    /// The keys in an answer, behind table and place.
    fn keys_of(&self, row: &PgRow, is_utf8: bool) -> Result<Vec<(Space, Key)>, TenantError> {
        let (mut keys, mut at) = (Vec::new(), 2);
        for (space, columns) in &self.keys {
            let mut values = Vec::new();
            for (_, column_type) in columns {
                let text: Option<String> = sql::column(row, at)?;
                let value = text.and_then(|text| held(column_type, &text, is_utf8));
                values.push(value.flatten());
                at += 1;
            }
            // Nothing refers to a key with a null in it.
            if let Some(values) = values.into_iter().collect::<Option<Vec<_>>>() {
                keys.push((*space, key_of(values.iter().map(Vec::as_slice))));
            }
        }
        Ok(keys)
    }
}

/// Bytes of a page, and whether texts are UTF-8.
async fn settings(session: &mut PgConnection) -> Result<(usize, bool), TenantError> {
    let question =
        "select current_setting('block_size') || ' ' || current_setting('server_encoding')";
    let action = "asking for the size of a page and the encoding";
    let answer: String = sql::value(session, question, action).await?;
    let (page, encoding) = answer.split_once(' ').unwrap_or_default();
    let page = page
        .parse()
        .map_err(|error| TenantError::format(action, error))?;
    Ok((page, encoding == "UTF8"))
}

/// A table or partition and its columns.
struct Holder<'a> {
    owner: &'a Ownership<'a>,
    catalog: &'a CatalogRows,
    /// The table in the map.
    table: &'a TableName,
    oid: Oid,
    columns: &'a [ColumnRow],
    page_bytes: usize,
    is_utf8: bool,
}

impl Holder<'_> {
    /// How the rows are told to be the tenant's.
    async fn how(
        &self,
        session: &mut PgConnection,
        class: &TableClass,
        spaces: &mut Spaces,
    ) -> Result<How, TenantError> {
        let tells = match class {
            TableClass::Whole { .. } => return Ok(How::Whole),
            TableClass::Direct { .. } => self.by_tenant(session, class).await?,
            TableClass::Via { hop, .. } => self.by_parent(hop, spaces),
            _ => None,
        };
        let keys = spaces.in_table(self.table);
        let keys = keys.filter_map(|(space, columns)| Some((space, self.comparable(columns)?)));
        Ok(How::Placed(Content {
            layout: Layout::new(self.columns.iter().map(|it| (it.length, it.alignment))),
            page_bytes: self.page_bytes,
            tells: tells.unwrap_or(Tells::Nothing),
            keys: keys.collect(),
        }))
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        let mut columns = self.columns.iter();
        columns.position(|it| it.name == name && !it.dropped)
    }

    /// The places of columns whose values are the same if, and only if, they are held alike.
    fn comparable(&self, names: &[String]) -> Option<Vec<usize>> {
        let place = |name: &String| {
            let place = self.place_of(name)?;
            let is_loose = self.columns.get(place).is_none_or(|it| it.loose);
            let column = self.catalog.column(self.oid, name)?;
            // Whether it is such a type, whatever the value.
            let is_such = held(&column.plain_type, "", self.is_utf8).is_some();
            let is_text = matches!(column.plain_type.as_str(), "text" | "character varying");
            (is_such && !is_loose && (self.is_utf8 || !is_text)).then_some(place)
        };
        names.iter().map(place).collect()
    }

    /// By the row that they refer to.
    fn by_parent(&self, hop: &Hop, spaces: &mut Spaces) -> Option<Tells> {
        let columns = self.comparable(&hop.columns)?;
        let parent = self.catalog.by_name(&hop.parent)?.oid;
        let is_alike = |(own, other): (&String, &String)| {
            let own = self.catalog.column(self.oid, own);
            let other = self.catalog.column(parent, other);
            let types = own
                .zip(other)
                .map(|(own, other)| (&own.plain_type, &other.plain_type));
            types.is_some_and(|(own, other)| own == other)
        };
        let by_text = hop.operators.iter().any(|operator| operator == AS_TEXT);
        let mut pairs = hop.columns.iter().zip(&hop.parent_columns);
        (pairs.all(is_alike) && !by_text).then(|| Tells::Parent {
            space: spaces.of(hop),
            columns,
        })
    }

    /// By the tenant column.
    async fn by_tenant(
        &self,
        session: &mut PgConnection,
        class: &TableClass,
    ) -> Result<Option<Tells>, TenantError> {
        let TableClass::Direct {
            column: name,
            column_type,
            id,
            as_text,
            ..
        } = class
        else {
            return Ok(None);
        };
        let known = self.catalog.column(self.oid, name);
        let place = self.place_of(name);
        let (Some(id), Some(column), Some(known)) = (self.owner.id(id.as_ref()), place, known)
        else {
            return Ok(None);
        };
        let is_loose = self.columns.get(column).is_none_or(|it| it.loose);
        let holds = if known.enumeration {
            let query = format!(
                "select (select e.oid::int8 from pg_enum e where e.enumtypid = {}::regtype \
                 and e.enumlabel = {})",
                literal(column_type),
                literal(id)
            );
            let action = format!("asking what {name} holds for the tenant");
            let oid: Option<i64> = sql::value(session, &query, action).await?;
            oid.and_then(|oid| u32::try_from(oid).ok())
                .map(|oid| oid.to_le_bytes().to_vec())
        } else if *as_text || is_loose {
            return Ok(None);
        } else {
            match held(column_type, id, self.is_utf8) {
                Some(holds) => holds,
                None => return Ok(None),
            }
        };
        Ok(Some(Tells::Tenant { column, holds }))
    }
}

/// Whose rows these tables hold, of both moments, without repetition.
pub(super) fn names(then: &Listing, now: &Listing) -> Vec<TableName> {
    let all = then.tables.iter().chain(&now.tables);
    let mut names: Vec<TableName> = all.map(|found| found.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let wanted = RowPlace { block: 12, line: 3 };
        assert_eq!(place("(12,3)"), Some(wanted));
        assert_eq!(place("12,3"), None);
    }
}

//! Large objects that a tenant's rows refer to.
//!
//! A row holds only the number of one; its content lies in a catalog that all tenants share ("Large Objects",
//! chapter 35 of the PostgreSQL documentation), where no foreign key and no tenant column says whose it is. So: what
//! the rows of the target refer to is read there by number; what is gone by now is made again under its number, what
//! has other content gets that of then, in the transaction that writes the rows. One that somebody else's row refers
//! to as well is refused and not written. Those of rows that go are left: nobody knows who else has their number, and
//! `vacuumlo` removes what nobody refers to.
//!
//! The former content is stored with the former rows before the commit. Contents are compared by digests that the
//! servers compute, and travel in pieces.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::catalog::{CatalogRows, Oid};
use crate::changes::{ChangeSet, Direction};
use crate::diff::SCHEMA;
use crate::plan::Mode;
use crate::rows::Folders;
use crate::slice::{Ownership, SliceTable};
use crate::sql::{self, ident, literal};
use crate::{TenantError, map::TableName};

/// Bytes that are read or written at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Objects asked for at a time.
const AT_A_TIME: usize = 1000;
/// Objects named in a sentence.
const NAMED: usize = 5;

/// One that a restore makes or writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LargeObject {
    pub(crate) oid: Oid,
    /// What it was before; `None` if it was not there.
    pub(crate) before: Option<Content>,
    /// What it is afterwards.
    pub(crate) after: Option<Content>,
}

/// What an object holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// A digest as the servers compute it; of no use elsewhere.
    pub(crate) digest: String,
    /// Its role.
    pub(crate) owner: String,
}

impl LargeObject {
    pub(crate) fn reversed(&self) -> Self {
        Self {
            oid: self.oid,
            before: self.after.clone(),
            after: self.before.clone(),
        }
    }
}

/// The file of a content, relative to a change set's folder.
fn file(oid: Oid, word: &str) -> PathBuf {
    PathBuf::from(format!("lo/{oid}.{word}"))
}

/// Columns that may hold the number of one.
pub(crate) fn columns(slice: &SliceTable) -> Vec<usize> {
    let may = |&place: &usize| {
        let column = slice.columns.get(place);
        column.is_some_and(|column| column.common && column.base_type == "oid")
    };
    (0..slice.columns.len()).filter(may).collect()
}

/// What is to be said where rows are copied without the objects that they refer to.
pub(crate) async fn left_out(
    session: &mut PgConnection,
    tables: &[SliceTable],
) -> Result<Option<String>, TenantError> {
    let tables = tables.iter().filter(|slice| !columns(slice).is_empty());
    let names: Vec<String> = tables.map(|slice| slice.table.to_string()).collect();
    let any = "select exists (select from pg_largeobject_metadata)";
    if names.is_empty() || !sql::value::<bool>(session, any, "looking for large objects").await? {
        return Ok(None);
    }
    Ok(Some(format!(
        "large objects are not in it; rows hold their numbers: {}",
        names.join(", ")
    )))
}

/// What the tenant's rows of the target refer to, as the tables are compared.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    numbers: BTreeSet<Oid>,
}

impl Wanted {
    /// Takes in what the rows of a table refer to that were compared: all of them, or with `only_changes` those that
    /// will be written.
    pub(crate) async fn look(
        &mut self,
        scratch: &mut PgConnection,
        slice: &SliceTable,
        only_changes: bool,
    ) -> Result<(), TenantError> {
        let (source, side) = match only_changes {
            true => (format!("change_{}", slice.number), "n"),
            false => (format!("then_{}", slice.number), "c"),
        };
        let kept = if only_changes { "s.op <> 'D' and" } else { "" };
        for place in columns(slice) {
            let query = format!(
                "select distinct m.oid::int8 from {SCHEMA}.{source} s join pg_largeobject_metadata m \
                 on m.oid = s.{side}{place} where {kept} true"
            );
            let action = format!("looking for large objects of {}", slice.table);
            for row in sql::rows(scratch, &query, &action).await? {
                self.numbers.insert(number(sql::column(&row, 0)?)?);
            }
        }
        Ok(())
    }

    /// Compares them with what is live, and spools the content of those that differ.
    pub(crate) async fn compare(
        self,
        (live, scratch): (&mut PgConnection, &mut PgConnection),
        rows: &CatalogRows,
        owner: &Ownership<'_>,
        mode: Mode,
        folder: &Path,
        refused: &mut Vec<String>,
    ) -> Result<Vec<LargeObject>, TenantError> {
        if self.numbers.is_empty() {
            return Ok(Vec::new());
        }
        let may = "select has_table_privilege('pg_catalog.pg_largeobject', 'select')";
        if !sql::value::<bool>(live, may, "asking for the right to read large objects").await? {
            refused.push(
                "the tenant's rows refer to large objects, which only a role may compare that may read them: \
                 GRANT SELECT ON pg_largeobject TO the role"
                    .to_owned(),
            );
            return Ok(Vec::new());
        }
        let then = contents(scratch, &self.numbers, "at the target").await?;
        let now = contents(live, &self.numbers, "now").await?;
        let mut found = Vec::new();
        for (oid, after) in then {
            let before = now.get(&oid).cloned();
            let is_same = before.as_ref().is_some_and(|it| it.digest == after.digest);
            if is_same || (mode == Mode::Missing && before.is_some()) {
                continue;
            }
            found.push(LargeObject {
                oid,
                before,
                after: Some(after),
            });
        }
        refused.extend(others(live, rows, owner, &found).await?);
        refused.extend(too_many(live, &found).await?);
        for object in &found {
            fetch(scratch, object.oid, &folder.join(file(object.oid, "after"))).await?;
        }
        Ok(found)
    }
}

fn number(value: i64) -> Result<Oid, TenantError> {
    Oid::try_from(value).map_err(|error| TenantError::format("a large object's number", error))
}

fn array(numbers: &[Oid]) -> String {
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("'{{{}}}'::oid[]", numbers.join(","))
}

/// What these objects hold, of those that are there. Zeros at the end of a page and pages of zeros count alike whether
/// they are stored or not: an object with holes reads as zeros there.
async fn contents(
    session: &mut PgConnection,
    numbers: &BTreeSet<Oid>,
    when: &str,
) -> Result<BTreeMap<Oid, Content>, TenantError> {
    let numbers: Vec<Oid> = numbers.iter().copied().collect();
    let mut found = BTreeMap::new();
    for some in numbers.chunks(AT_A_TIME) {
        let query = format!(
            "select m.oid::int8, pg_get_userbyid(m.lomowner)::text, \
             (select coalesce(max(p.pageno * (current_setting('block_size')::int8 / 4) + octet_length(p.data)), 0) || ' ' || \
                coalesce(encode(sha256(convert_to(string_agg(p.pageno || ':' || encode(sha256(rtrim(p.data, '\\x00'::bytea)), \
                'hex'), ',' order by p.pageno) filter (where rtrim(p.data, '\\x00'::bytea) <> ''::bytea), 'UTF8')), 'hex'), '') \
              from pg_largeobject p where p.loid = m.oid) \
             from pg_largeobject_metadata m where m.oid = any ({})",
            array(some)
        );
        let action = format!("reading large objects as they are {when}");
        for row in sql::rows(session, &query, &action).await? {
            let content = Content {
                owner: sql::column(&row, 1)?,
                digest: sql::column(&row, 2)?,
            };
            found.insert(number(sql::column(&row, 0)?)?, content);
        }
    }
    Ok(found)
}

/// Sentences about objects that are there, would be written or removed, and that rows of others refer to as well.
async fn others(
    live: &mut PgConnection,
    rows: &CatalogRows,
    owner: &Ownership<'_>,
    objects: &[LargeObject],
) -> Result<Vec<String>, TenantError> {
    let mut lines = Vec::new();
    let there = objects.iter().filter(|object| object.before.is_some());
    let numbers: Vec<Oid> = there.map(|object| object.oid).collect();
    if numbers.is_empty() {
        return Ok(lines);
    }
    for (table, column) in referring(rows) {
        let mapped = owner.map.tables.iter().find(|it| it.table == table);
        let own = mapped.map_or_else(
            || "false".to_owned(),
            |mapped| owner.condition(&mapped.class, "t"),
        );
        for some in numbers.chunks(AT_A_TIME) {
            let query = format!(
                "select count(*), (array_agg(distinct t.{column}::text))[1:{NAMED}] from {} t \
                 where t.{column} = any ({}) and ({own}) is not true",
                sql::table(&table),
                array(some)
            );
            let action = format!("looking who else refers to large objects, in {table}");
            let found = sql::rows(live, &query, action).await?;
            let Some(row) = found.first() else { continue };
            let count: i64 = sql::column(row, 0)?;
            if count > 0 {
                let some: Option<Vec<String>> = sql::column(row, 1)?;
                lines.push(format!(
                    "large objects would be written or removed, and {count} rows of {table} that are not this tenant's \
                     refer to them: {}",
                    some.unwrap_or_default().join(", ")
                ));
            }
        }
    }
    Ok(lines)
}

/// A sentence, if so many would be made or removed that the locks on them would fill the server's lock table: each is
/// locked until the commit, and other sessions would find no room.
async fn too_many(
    live: &mut PgConnection,
    objects: &[LargeObject],
) -> Result<Option<String>, TenantError> {
    let locked = objects
        .iter()
        .filter(|it| it.before.is_none() || it.after.is_none())
        .count();
    if locked == 0 {
        return Ok(None);
    }
    let room = "select current_setting('max_locks_per_transaction')::int8 * \
                (current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8)";
    let room: i64 = sql::value(live, room, "asking for the room for locks").await?;
    let most = usize::try_from(room / 2).unwrap_or(0);
    Ok((locked > most).then(|| {
        format!(
            "{locked} large objects would be made or removed, and the server has room for the locks on {most} beside \
             others': raise max_locks_per_transaction, or restore the tables by parts (--tables, --where)"
        )
    }))
}

/// All columns that may hold the number of a large object.
fn referring(rows: &CatalogRows) -> Vec<(TableName, String)> {
    let tables = rows
        .relations
        .iter()
        .filter(|relation| matches!(relation.kind, 'r' | 'p') && relation.root.is_none());
    tables
        .flat_map(|relation| {
            let columns = rows.columns_of(relation.oid);
            let numbers = columns.filter(|column| column.base_type == "oid");
            numbers.map(|column| (relation.name.clone(), ident(&column.name)))
        })
        .collect()
}

/// Writes an object's content to a file.
async fn fetch(session: &mut PgConnection, oid: Oid, path: &Path) -> Result<(), TenantError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(TenantError::file("create", folder))?;
    }
    let mut into = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await
        .map_err(TenantError::file("create", path))?;
    let mut offset = 0_u64;
    loop {
        let query = format!("select lo_get({oid}, {offset}, {PIECE_BYTES})");
        let action = format!("reading large object {oid}");
        let piece: Vec<u8> = sql::value(session, &query, action).await?;
        into.write_all(&piece)
            .await
            .map_err(TenantError::file("write", path))?;
        offset += piece.len() as u64;
        if piece.len() < PIECE_BYTES {
            break;
        }
    }
    into.flush()
        .await
        .map_err(TenantError::file("write", path))?;
    into.sync_all()
        .await
        .map_err(TenantError::file("write", path))
}

/// Writes the objects of a change set, and what they held before and hold now to `folders.save`.
///
/// # Errors
/// [`TenantError::Changed`] when one is not as it was when it was compared; nothing is kept then.
pub(crate) async fn write(
    live: &mut PgConnection,
    (rows, owner): (&CatalogRows, &Ownership<'_>),
    set: &ChangeSet,
    folders: Folders<'_>,
    direction: Direction,
) -> Result<(), TenantError> {
    let mut changed = not_as(live, &set.large_objects, |object| &object.before).await?;
    changed.extend(others(live, rows, owner, &set.large_objects).await?);
    if !changed.is_empty() {
        return Err(TenantError::Changed(changed));
    }
    for object in &set.large_objects {
        let oid = object.oid;
        let (before, after) = (
            folders.save.join(file(oid, "before")),
            folders.save.join(file(oid, "after")),
        );
        if object.before.is_some() {
            fetch(live, oid, &before).await?;
        }
        let Some(content) = &object.after else {
            let gone = format!("select lo_unlink({oid})");
            sql::run(live, &gone, format!("removing large object {oid}")).await?;
            continue;
        };
        // What is written backwards is what was found then.
        let word = match direction {
            Direction::Forward => "after",
            Direction::Reverse => "before",
        };
        let source = folders.spool.join(file(oid, word));
        make(live, object, content).await?;
        fill(live, oid, &source).await?;
        if let Some(folder) = after.parent() {
            std::fs::create_dir_all(folder).map_err(TenantError::file("create", folder))?;
        }
        std::fs::copy(&source, &after).map_err(TenantError::file("copy", &source))?;
    }
    let wrong = not_as(live, &set.large_objects, |object| &object.after).await?;
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(TenantError::CheckFailed {
            what: "large objects are not as they were written",
            found: wrong,
        }),
    }
}

/// An empty object under its number.
async fn make(
    live: &mut PgConnection,
    object: &LargeObject,
    content: &Content,
) -> Result<(), TenantError> {
    let oid = object.oid;
    if object.before.is_some() {
        // 131072 is INV_WRITE.
        let empty = format!(
            "select lo_truncate64(o.fd, 0), lo_close(o.fd) from (select lo_open({oid}, 131072) as fd offset 0) o"
        );
        return sql::run(live, &empty, format!("emptying large object {oid}")).await;
    }
    let create = format!("select lo_create({oid})");
    sql::run(live, &create, format!("making large object {oid}")).await?;
    let known = format!(
        "select count(*) from pg_roles where rolname = {} and rolname <> current_user",
        literal(&content.owner)
    );
    if sql::value::<i64>(live, &known, "looking for a large object's owner").await? > 0 {
        let give = format!(
            "alter large object {oid} owner to {}",
            ident(&content.owner)
        );
        sql::run(live, &give, format!("giving large object {oid} its owner")).await?;
    }
    Ok(())
}

async fn fill(live: &mut PgConnection, oid: Oid, source: &Path) -> Result<(), TenantError> {
    let mut from = tokio::fs::File::open(source)
        .await
        .map_err(TenantError::file("open", source))?;
    let mut piece = vec![0_u8; PIECE_BYTES];
    let mut offset = 0;
    loop {
        let mut length = 0;
        while let Some(rest) = piece.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match from
                .read(rest)
                .await
                .map_err(TenantError::file("read", source))?
            {
                0 => break,
                read => length += read,
            }
        }
        let Some(bytes) = piece.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        let put = format!(
            "select lo_put({oid}, {offset}, '\\x{}'::bytea)",
            hex::encode(bytes)
        );
        sql::run(live, &put, format!("writing large object {oid}")).await?;
        offset += length;
    }
}

/// Sentences about those that are not in a state.
async fn not_as(
    live: &mut PgConnection,
    objects: &[LargeObject],
    state: impl Fn(&LargeObject) -> &Option<Content>,
) -> Result<Vec<String>, TenantError> {
    let numbers: BTreeSet<Oid> = objects.iter().map(|object| object.oid).collect();
    let now = contents(live, &numbers, "now").await?;
    let digest = |content: Option<&Content>| content.map(|it| it.digest.clone());
    let wrong = objects
        .iter()
        .filter(|object| digest(state(object).as_ref()) != digest(now.get(&object.oid)));
    Ok(wrong
        .map(|object| format!("large object {} is another", object.oid))
        .collect())
}

/// Why what a restore did to large objects may not be taken back: they are not as it left them, or somebody else
/// refers to them by now.
pub(crate) async fn not_reversible(
    live: &mut PgConnection,
    (rows, owner): (&CatalogRows, &Ownership<'_>),
    reversed: &ChangeSet,
) -> Result<Vec<String>, TenantError> {
    let objects = &reversed.large_objects;
    let changed = not_as(live, objects, |object| &object.before).await?;
    let mut lines: Vec<String> = changed
        .into_iter()
        .map(|line| format!("{line} than the restore left"))
        .collect();
    lines.extend(others(live, rows, owner, objects).await?);
    lines.extend(too_many(live, objects).await?);
    Ok(lines)
}

/// For people, if there are any.
pub(crate) fn told(objects: &[LargeObject]) -> Option<String> {
    let made = objects
        .iter()
        .filter(|object| object.before.is_none())
        .count();
    let gone = objects
        .iter()
        .filter(|object| object.after.is_none())
        .count();
    let written = objects.len() - made - gone;
    let parts = [
        (made, "made again"),
        (written, "written with their former content"),
        (gone, "removed"),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    (!parts.is_empty()).then(|| format!("large objects: {}", parts.join(", ")))
}

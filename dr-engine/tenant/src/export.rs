//! One tenant's rows at a moment as files: for people who look something up, for other programs, and for
//! somebody who takes their data along. Production is only asked who the tenants are.
//!
//! The schema is the one of that moment: tables and columns that are gone since are there. Everything is
//! written beside the folder first and put in its place when it is complete and durable.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use dr_installation::Installation;
use dr_model::{Lsn, Progress, Target, WorkloadName};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::beside::{self, Then};
use crate::catalog::CatalogRows;
use crate::plan::{Tenant, TenantRequest};
use crate::slice::{Ownership, SliceTable, slice};
use crate::sql::{self, CopyFormat, ident, table};
use crate::tenants;
use crate::{Filter, TenantError, large_objects, rows};

/// What is in the folder, told beside the files in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Version of this structure.
    pub version: u32,
    /// The workload.
    pub workload: WorkloadName,
    /// The database.
    pub database: String,
    /// Whose rows.
    pub tenant: Tenant,
    /// The moment that was asked for.
    pub target: Target,
    /// Where recovery to it ended.
    pub lsn: Lsn,
    /// The last commit before it, by the server's clock then.
    pub last_commit_time: Option<DateTime<Utc>>,
    /// When it was written.
    pub exported: DateTime<Utc>,
    /// What it was limited to.
    #[serde(default, skip_serializing_if = "Filter::is_everything")]
    pub filter: Filter,
    /// In an order in which they can be loaded.
    pub tables: Vec<ExportedTable>,
    /// What is to be known of it, a sentence each.
    pub notes: Vec<String>,
}

/// One table of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedTable {
    /// The table.
    pub table: String,
    /// How its rows belong to the tenant.
    pub class: String,
    /// The file, CSV with a line of names first: RFC 4180, a null is empty and an empty text is `""`.
    pub file: String,
    /// Its columns in order, with their types.
    pub columns: Vec<ExportedColumn>,
    /// Those by which the rows are in order; empty where the table has no key.
    pub key: Vec<String>,
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Of the file, in hex.
    pub sha256: String,
    /// How `psql` loads it.
    pub load: String,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedColumn {
    /// Its name.
    pub name: String,
    /// Its type, domains resolved.
    pub r#type: String,
}

/// Version of [`Export`].
const VERSION: u32 = 1;

/// Brings the target back beside production, and writes the tenant's rows of then into a new folder.
///
/// # Errors
/// Unknown tenants, unreachable targets, tables in no class, a folder that is there already. Nothing is left
/// behind then.
pub async fn export(
    installation: &Installation,
    request: &TenantRequest,
    into: &Path,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Export, TenantError> {
    refuse_existing(into)?;
    let parent = into
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(TenantError::Refused(vec![format!(
            "{} is no folder to make one in",
            parent.display()
        )]));
    }
    let (registry, live_tenant) =
        tenants::find(installation, &request.tenant, request.workload.as_ref()).await?;
    let found = (&registry, live_tenant.as_ref());
    let then = beside::bring_back(
        installation,
        request,
        found,
        Arc::clone(&progress),
        cancel.clone(),
    )
    .await?;
    let staged = Staged::new(into)?;
    let mut done = write(
        &then,
        &request.filter,
        &staged.0,
        progress.as_ref(),
        &cancel,
    )
    .await?;
    done.target = request.target.clone();
    done.exported = installation.clock.now();
    done.notes.extend(then.scratch.plan.notes.iter().cloned());
    done.notes.push(then.erasures.clone());
    staged.finish(&done, into)?;
    Ok(done)
}

async fn write(
    brought: &Then,
    filter: &Filter,
    folder: &Path,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Export, TenantError> {
    let Then {
        scratch,
        all,
        tenant,
        place,
        ..
    } = brought;
    let options = scratch.connect_options(&place.database());
    let mut then = rows::session(&options, "the scratch instance").await?;
    let begin = "begin isolation level repeatable read read only";
    sql::run(
        &mut then,
        begin,
        "beginning to read the state at the target",
    )
    .await?;
    let owners = place.owners_among(all);
    // A table that is declared may not have been there yet.
    let map = rows::map_then(&mut then, &place.workload, &place.tenancy, &owners).await?;
    let map = rows::complete(map)?;
    filter.check(&map)?;
    let catalog = CatalogRows::read(&mut then).await?;
    let mut sliced = slice(&map, tenant, &catalog, &catalog);
    sliced.tables.retain(|found| filter.chooses(&found.table));
    let owner = Ownership { map: &map, tenant };
    let mut refused = sliced.refused;
    refused.extend(owner.unknown_ids());
    refused.extend(sliced.tables.iter().filter_map(with_control_characters));
    if !refused.is_empty() {
        return Err(TenantError::Refused(refused));
    }
    let mut notes = sliced.warnings;
    notes.extend(large_objects::left_out(&mut then, &sliced.tables).await?);
    let (ordered, has_cycle) = loading_order(&catalog, sliced.tables);
    if has_cycle {
        notes.push(
            "foreign keys lead in a circle: load it with them deferred, or as a superuser with \
             session_replication_role = replica"
                .to_owned(),
        );
    }
    if !filter.is_everything() {
        notes.push(
            "only what was chosen is in it: rows of other tables that it refers to are not"
                .to_owned(),
        );
    }
    let mut tables = Vec::new();
    for (number, found) in (1..).zip(&ordered) {
        if cancel.is_cancelled() {
            return Err(TenantError::Cancelled);
        }
        progress.note(&format!("writing {}", found.table));
        let rows = Rows {
            from: found.from(),
            own: owner.condition(&found.class, "t"),
            chosen: filter.condition(&found.table),
        };
        tables.push(write_table(&mut then, &rows, found, number, folder).await?);
    }
    rows::close(then).await;
    Ok(Export {
        version: VERSION,
        workload: place.workload.clone(),
        database: map.database.clone(),
        target: Target::Latest,
        lsn: scratch.reached.lsn,
        last_commit_time: scratch.reached.last_commit_time,
        exported: DateTime::UNIX_EPOCH,
        filter: filter.clone(),
        tables,
        notes: notes
            .into_iter()
            .chain(scratch.reached.note.clone())
            .collect(),
        tenant: tenant.clone(),
    })
}

/// Parents before the rows that refer to them; and whether some could not be put so.
fn loading_order(catalog: &CatalogRows, tables: Vec<SliceTable>) -> (Vec<SliceTable>, bool) {
    let name_of = |oid| {
        catalog
            .relation(catalog.root_of(oid))
            .map(|relation| &relation.name)
    };
    let parent_among = |table: &SliceTable, left: &[SliceTable]| {
        let keys = catalog.foreign_keys.iter();
        let mut parents = keys
            .filter(|key| name_of(key.child) == Some(&table.table))
            .filter_map(|key| name_of(key.parent))
            .filter(|parent| **parent != table.table);
        parents.find_map(|parent| left.iter().position(|other| other.table == *parent))
    };
    let (mut left, mut ordered, mut has_cycle) = (tables, Vec::new(), false);
    while !left.is_empty() {
        let next = left
            .iter()
            .position(|table| parent_among(table, &left).is_none());
        has_cycle |= next.is_none();
        let next = next.unwrap_or_else(|| in_circle(&left, &parent_among));
        ordered.push(left.remove(next));
    }
    (ordered, has_cycle)
}

/// One that is in a circle, and not one that only waits for what is.
fn in_circle(
    left: &[SliceTable],
    parent_among: &dyn Fn(&SliceTable, &[SliceTable]) -> Option<usize>,
) -> usize {
    let mut at = 0;
    // After as many steps as there are tables it goes round.
    for _ in 0..left.len() {
        at = left
            .get(at)
            .and_then(|table| parent_among(table, left))
            .unwrap_or(at);
    }
    at
}

/// A name with a line break in it would end a command of `psql`, and begin another.
fn with_control_characters(found: &SliceTable) -> Option<String> {
    let names = [&found.table.schema, &found.table.name].into_iter();
    let mut names = names.chain(found.columns.iter().map(|column| &column.name));
    names
        .any(|name| name.chars().any(char::is_control))
        .then(|| {
            format!(
                "{:?} has a name with a control character in it",
                found.table.to_string()
            )
        })
}

/// The rows of a table that are written.
struct Rows<'a> {
    from: String,
    /// Says which are the tenant's.
    own: String,
    /// Says which of these were chosen.
    chosen: Option<&'a str>,
}

impl Rows<'_> {
    /// As they stand in FROM, with the alias. What was chosen is chosen among the tenant's rows: whatever is said
    /// there, it brings no others.
    fn of(&self, found: &SliceTable) -> String {
        let (from, own) = (&self.from, &self.own);
        match self.chosen {
            None => format!("{from} t where {own}"),
            Some(chosen) => format!(
                "(select * from (select {} from {from} t where {own}) {} where (\n{chosen}\n)) t",
                found.select_list("t"),
                ident(&found.table.name)
            ),
        }
    }
}

async fn write_table(
    then: &mut PgConnection,
    rows: &Rows<'_>,
    found: &SliceTable,
    number: u32,
    folder: &Path,
) -> Result<ExportedTable, TenantError> {
    let key: Vec<&str> = (found.key.iter())
        .map(|key| found.name_at(key.place))
        .collect();
    let order = match key.as_slice() {
        [] => String::new(),
        names => {
            let names: Vec<String> = names
                .iter()
                .map(|name| format!("t.{}", ident(name)))
                .collect();
            format!(" order by {}", names.join(", "))
        }
    };
    let what = format!("the tenant's rows of {}", found.table);
    let from = rows.of(found);
    let query = format!("select {} from {from}{order}", found.select_list("t"));
    let file = file_name(number, found);
    let path = folder.join(&file);
    let copied = sql::copy_to_file(then, &query, CopyFormat::Csv, &path, &what).await?;
    let counted: i64 = sql::value(
        then,
        &format!("select count(*) from {from}"),
        format!("counting {what}"),
    )
    .await?;
    let column = |column: &crate::slice::SliceColumn| ExportedColumn {
        name: column.name.clone(),
        r#type: column.base_type.clone(),
    };
    let columns: Vec<String> = found.columns.iter().map(|c| ident(&c.name)).collect();
    Ok(ExportedTable {
        load: format!(
            "\\copy {} ({}) from '{file}' with (format csv, header)",
            table(&found.table),
            columns.join(", ")
        ),
        table: found.table.to_string(),
        class: found.class.describe(),
        columns: found.columns.iter().map(column).collect(),
        key: key.into_iter().map(str::to_owned).collect(),
        rows: sql::count(counted),
        bytes: copied.bytes,
        sha256: copied.sha256,
        file,
    })
}

/// `007-public.sales_order.csv`: whatever a table is called, a name that every system takes.
fn file_name(number: u32, found: &SliceTable) -> String {
    let plain = |c: char| match c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') {
        true => c,
        false => '_',
    };
    let name: String = found
        .table
        .to_string()
        .chars()
        .map(plain)
        .take(100)
        .collect();
    format!("{number:03}-{name}.csv")
}

/// The commands by which `psql` loads it into tables that are there.
fn load_sql(done: &Export) -> String {
    let mut text = String::from(
        "-- psql -v ON_ERROR_STOP=1 -f load.sql, in this folder, into a database with these tables. Sequences stay\n\
         -- where they are: set them forward where rows are added afterwards.\n\
         \\encoding UTF8\nbegin;\nset constraints all deferred;\n",
    );
    for exported in &done.tables {
        text.push_str(&exported.load);
        text.push('\n');
    }
    text.push_str("commit;\n");
    text
}

fn refuse_existing(into: &Path) -> Result<(), TenantError> {
    match std::fs::symlink_metadata(into) {
        Ok(_) => Err(TenantError::Refused(vec![format!(
            "{} is there already: name a folder that is not",
            into.display()
        )])),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TenantError::file("examine", into)(error)),
    }
}

/// The folder while it is written: beside its place, and removed if it does not come to that.
struct Staged(PathBuf);

impl Staged {
    fn new(into: &Path) -> Result<Self, TenantError> {
        let name = into.file_name().unwrap_or_default().to_string_lossy();
        let path = into.with_file_name(format!(".{name}.writing-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(TenantError::file("create", &path))?;
        Ok(Self(path))
    }

    fn finish(self, done: &Export, into: &Path) -> Result<(), TenantError> {
        let manifest = serde_json::to_vec_pretty(done)
            .map_err(|error| TenantError::format("the manifest", error))?;
        for (name, text) in [
            ("load.sql", load_sql(done).into_bytes()),
            ("manifest.json", manifest),
        ] {
            write_durably(&self.0.join(name), &text)?;
        }
        sync_folder(&self.0)?;
        refuse_existing(into)?;
        std::fs::rename(&self.0, into).map_err(TenantError::file("create", into))?;
        let parent = into
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Not there any more when it was put in its place.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write_durably(path: &Path, text: &[u8]) -> Result<(), TenantError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(TenantError::file("create", path))?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .map_err(TenantError::file("write", path))
}

fn sync_folder(path: &Path) -> Result<(), TenantError> {
    std::fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(TenantError::file("write", path))
}

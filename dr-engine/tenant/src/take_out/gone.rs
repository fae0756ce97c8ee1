//! Which stored rows are erased ones, or belonged to such: asked of PostgreSQL, which knows when two values are the
//! same.
//!
//! The stored rows go into temporary tables, and beside them, for each table, what is known of its erased rows:
//! stored ones, live ones, and the bare keys that the entry names. Round by round those are added that belong to
//! them. A row may be known by one of these only: the restore may have written to the orders of a customer and not
//! to the customer, who is gone by now. Of a row that is stored the live version does not count: the undo writes the
//! stored one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dr_restore::{ErasedDatabase, ErasedLink, ErasedRows, Erasure};
use sqlx::postgres::PgConnection;

use crate::catalog::{CatalogRows, ForeignKey};
use crate::changes::{ChangeSet, TableChanges};
use crate::map::TableName;
use crate::slice::{Ownership, SliceTable};
use crate::sql::{self, ident, literal};
use crate::{TenantError, undo};

/// Keys in one statement.
const KEYS_AT_ONCE: usize = 5000;

/// What leads from rows of a table to rows of another.
pub(super) struct Step {
    pub(super) child: TableName,
    pub(super) columns: Vec<String>,
    pub(super) parent: TableName,
    parent_columns: Vec<String>,
    /// The parent's column on the left; none: compared by their text.
    operators: Option<Vec<String>>,
    only: Option<(String, String)>,
}

/// A table of the set, as the temporary tables have it.
pub(super) struct Table {
    pub(super) slice: SliceTable,
    /// Its stored rows are in `dr_line_<number>`.
    pub(super) stored: bool,
    /// The condition under which a live row `t` is the tenant's; none where live rows cannot be read like stored ones.
    pub(super) live: Option<String>,
    /// Columns by which rows of other tables belong to its own, by place: those of `dr_gone_<number>`.
    known: BTreeSet<usize>,
}

/// The temporary tables.
pub(super) struct Gone {
    pub(super) tables: BTreeMap<TableName, Table>,
    /// Foreign keys that are cleared with the row that they refer to, and the columns that are.
    pub(super) references: Vec<(Step, Vec<String>)>,
    catalog: CatalogRows,
}

impl Gone {
    /// Makes them, and loads the stored rows that the entries may lead to.
    pub(super) async fn load(
        live: &mut PgConnection,
        owner: &Ownership<'_>,
        set: &ChangeSet,
        folder: &Path,
        database: &str,
        entries: &[Erasure],
    ) -> Result<Self, TenantError> {
        let catalog = CatalogRows::read(live).await?;
        let (mut steps, mut reached) = (Vec::new(), BTreeSet::new());
        for entry in entries {
            let parts = entry.databases.iter();
            for part in parts.filter(|part| part.database == database) {
                steps.extend(steps_of(&catalog, entry, part));
                let named = part.tables.iter();
                let named = named.filter(|it| matches!(it.rows, ErasedRows::Keys { .. }));
                reached.extend(named.map(|it| it.table.clone()));
            }
        }
        while steps
            .iter()
            .any(|it| reached.contains(&it.parent) && reached.insert(it.child.clone()))
        {}
        let references = references(&catalog);
        let referring = references.iter().map(|(step, _)| step);
        let referring: Vec<&Step> = referring
            .filter(|it| reached.contains(&it.parent))
            .collect();
        reached.extend(referring.iter().map(|it| it.child.clone()));
        let mut tables = BTreeMap::new();
        for changes in set
            .tables
            .iter()
            .filter(|it| reached.contains(&it.slice.table))
        {
            let slice = &changes.slice;
            let of = steps.iter().chain(referring.iter().copied());
            let of = of.filter(|it| it.parent == slice.table);
            let known = of.filter_map(|it| places(slice, &it.parent_columns));
            let fits = undo::misfits(&catalog, owner.map, changes).is_empty();
            let table = Table {
                slice: slice.clone(),
                stored: changes.is_written(),
                live: fits.then(|| owner.condition(&slice.class, "t")),
                known: known.flatten().collect(),
            };
            table.make(live, changes, folder).await?;
            tables.insert(slice.table.clone(), table);
        }
        Ok(Self {
            tables,
            references,
            catalog,
        })
    }

    /// Finds what an entry takes; what was found for another is forgotten.
    pub(super) async fn find(
        &mut self,
        live: &mut PgConnection,
        entry: &Erasure,
        part: &ErasedDatabase,
    ) -> Result<(), TenantError> {
        let mut last = BTreeSet::new();
        for table in self.tables.values() {
            let empty = format!("truncate {}", table.gone());
            sql::run(live, &empty, table.what()).await?;
            let named = part.tables.iter().find(|it| it.table == table.slice.table);
            if let Some(ErasedRows::Keys { columns, keys }) = named.map(|it| &it.rows)
                && table.named(live, columns, keys).await?
            {
                last.insert(table.slice.table.clone());
            }
        }
        let steps = steps_of(&self.catalog, entry, part);
        for round in 1.. {
            let mut next = BTreeSet::new();
            for step in steps.iter().filter(|step| last.contains(&step.parent)) {
                let (Some(child), Some(parent)) =
                    (self.tables.get(&step.child), self.tables.get(&step.parent))
                else {
                    continue;
                };
                if child.belonging(live, parent, step, round).await? {
                    next.insert(step.child.clone());
                }
            }
            if next.is_empty() {
                break;
            }
            last = next;
        }
        Ok(())
    }

    /// The numbers of the stored rows that were found.
    pub(super) async fn lines(
        &self,
        live: &mut PgConnection,
    ) -> Result<BTreeMap<TableName, Vec<u64>>, TenantError> {
        let mut found = BTreeMap::new();
        for (name, table) in self.tables.iter().filter(|(_, table)| table.stored) {
            let query = format!(
                "select array(select distinct line from {} where line is not null order by line)",
                table.gone()
            );
            let lines: Vec<i64> = sql::value(live, &query, table.what()).await?;
            if !lines.is_empty() {
                let lines = lines.into_iter().map(sql::count).collect();
                found.insert(name.clone(), lines);
            }
        }
        Ok(found)
    }
}

fn places(slice: &SliceTable, columns: &[String]) -> Option<Vec<usize>> {
    columns.iter().map(|name| slice.place_of(name)).collect()
}

/// Numbers and uuids are compared as such, so that an index serves; everything else by its text.
fn is_plain(base_type: &str) -> bool {
    matches!(base_type, "smallint" | "integer" | "bigint" | "uuid")
}

fn step_of(catalog: &CatalogRows, key: &ForeignKey) -> Option<Step> {
    let name_of = |oid| {
        let relation = catalog.relation(catalog.root_of(oid));
        relation.map(|relation| relation.name.clone())
    };
    Some(Step {
        child: name_of(key.child)?,
        columns: key.columns.clone(),
        parent: name_of(key.parent)?,
        parent_columns: key.parent_columns.clone(),
        operators: Some(key.operators.clone()),
        only: None,
    })
}

fn references(catalog: &CatalogRows) -> Vec<(Step, Vec<String>)> {
    let keys = catalog.foreign_keys.iter();
    keys.filter(|key| !key.set_null.is_empty())
        .filter_map(|key| Some((step_of(catalog, key)?, key.set_null.clone())))
        .collect()
}

fn steps_of(catalog: &CatalogRows, entry: &Erasure, part: &ErasedDatabase) -> Vec<Step> {
    let keys = catalog.foreign_keys.iter();
    let keys = keys.filter(|key| key.cascade || (entry.dependents && key.set_null.is_empty()));
    let mut steps: Vec<Step> = keys.filter_map(|key| step_of(catalog, key)).collect();
    steps.extend(part.links.iter().map(|link: &ErasedLink| Step {
        child: link.child.clone(),
        columns: link.columns.clone(),
        parent: link.parent.clone(),
        parent_columns: link.parent_columns.clone(),
        operators: None,
        only: link.only.clone(),
    }));
    steps
}

impl Step {
    /// `<parent's column> = <child's column> and …`, with the expressions of these columns.
    pub(super) fn join(
        &self,
        parent: impl Fn(&str) -> Option<String>,
        child: impl Fn(&str) -> Option<String>,
    ) -> Option<String> {
        let pairs = self.parent_columns.iter().zip(&self.columns).enumerate();
        let mut parts = Vec::new();
        for (number, (left, right)) in pairs {
            let left = parent(left)?;
            let right = child(right)?;
            parts.push(match &self.operators {
                Some(operators) => {
                    let operator = operators.get(number).map_or("=", String::as_str);
                    format!("{left} {operator} {right}")
                }
                None => format!("{left}::text = ({right})::text"),
            });
        }
        if let Some((column, value)) = &self.only {
            parts.push(format!("({})::text = {}", child(column)?, literal(value)));
        }
        Some(parts.join(" and "))
    }
}

impl Table {
    /// A column of an erased row `p`.
    pub(super) fn known_as(&self, name: &str) -> Option<String> {
        let place = self.slice.place_of(name);
        let place = place.filter(|place| self.known.contains(place));
        place.map(|place| format!("p.g{place}"))
    }

    pub(super) fn gone(&self) -> String {
        format!("pg_temp.dr_gone_{}", self.slice.number)
    }

    pub(super) fn stored_rows(&self) -> String {
        format!("pg_temp.dr_line_{}", self.slice.number)
    }

    pub(super) fn what(&self) -> String {
        format!("looking for erased rows of {}", self.slice.table)
    }

    fn base_type(&self, place: usize) -> &str {
        let column = self.slice.columns.get(place);
        column.map_or("text", |column| column.base_type.as_str())
    }

    /// What a stored row `l` holds: of one that the restore made there is only what it was made to.
    fn of_stored(place: usize) -> String {
        format!("case l.op when 'I' then l.n{place} else l.o{place} end")
    }

    fn of_live(&self, place: usize) -> String {
        format!("t.{}", ident(self.slice.name_at(place)))
    }

    async fn make(
        &self,
        live: &mut PgConnection,
        changes: &TableChanges,
        folder: &Path,
    ) -> Result<(), TenantError> {
        let number = self.slice.number;
        let known: String = self
            .known
            .iter()
            .map(|&place| format!(", g{place} {}", self.base_type(place)))
            .collect();
        let gone = format!(
            "create temporary table dr_gone_{number} (round int not null, line bigint, relation oid, at tid{known}) \
             on commit drop"
        );
        sql::run(live, &gone, self.what()).await?;
        if !self.stored {
            return Ok(());
        }
        let sides = ["o", "n"];
        let columns = |with_types: bool| -> String {
            let place = |side: &str, place: usize| match with_types {
                true => format!(", {side}{place} {}", self.base_type(place)),
                false => format!(", {side}{place}"),
            };
            let all = sides.iter().flat_map(|side| {
                (0..self.slice.columns.len()).map(move |number| place(side, number))
            });
            all.collect()
        };
        // Numbered as they come.
        let create = format!(
            "create temporary table dr_line_{number} \
             (line bigint generated always as identity (minvalue 0 start 0), op text{}) on commit drop",
            columns(true)
        );
        sql::run(live, &create, self.what()).await?;
        let into = format!("{} (op{})", self.stored_rows(), columns(false));
        let what = format!("the changes of {}", self.slice.table);
        sql::copy_from_file(live, &into, &folder.join(changes.file()), &what).await?;
        let analyze = format!("analyze {}", self.stored_rows());
        sql::run(live, &analyze, self.what()).await
    }

    /// Adds the rows with these keys, and the keys. Returns whether there are any.
    async fn named(
        &self,
        live: &mut PgConnection,
        columns: &[String],
        keys: &[Vec<String>],
    ) -> Result<bool, TenantError> {
        let Some(places) = places(&self.slice, columns) else {
            return Err(TenantError::Refused(vec![format!(
                "what was erased of {} cannot be told apart: the stored rows have no {}",
                self.slice.table,
                columns.join(", ")
            )]));
        };
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let keys: Vec<String> = keys.iter().map(|key| self.key(&places, key)).collect();
            let names: Vec<String> = (0..places.len()).map(|place| format!("k{place}")).collect();
            let keys = format!("(values {}) k({})", keys.join(", "), names.join(", "));
            let matches = |of: &dyn Fn(usize) -> String| {
                let pairs = places.iter().enumerate();
                let pairs = pairs.map(|(number, &place)| match is_plain(self.base_type(place)) {
                    true => format!("{} = k.k{number}", of(place)),
                    false => format!("({})::text = k.k{number}", of(place)),
                });
                pairs.collect::<Vec<_>>().join(" and ")
            };
            let bare = |place: usize| {
                let number = places.iter().position(|it| *it == place);
                number.map_or_else(
                    || "null".to_owned(),
                    |number| format!("k.k{number}::{}", self.base_type(place)),
                )
            };
            let of_live = |place| self.of_live(place);
            self.add_stored(live, &keys, &matches(&Self::of_stored), 0)
                .await?;
            self.add_live(live, &keys, &matches(&of_live), 0).await?;
            if !self.known.is_empty() {
                let add = format!(
                    "insert into {} select 0, null, null, null{} from {keys}",
                    self.gone(),
                    self.values(bare)
                );
                sql::run(live, &add, self.what()).await?;
            }
        }
        Ok(!keys.is_empty())
    }

    fn key(&self, places: &[usize], key: &[String]) -> String {
        let values = places.iter().zip(key).map(|(&place, value)| {
            let of = self.base_type(place);
            let of = if is_plain(of) { of } else { "text" };
            format!("{}::{of}", literal(value))
        });
        format!("({})", values.collect::<Vec<_>>().join(", "))
    }

    /// The known columns, each after a comma.
    fn values(&self, of: impl Fn(usize) -> String) -> String {
        let known = self.known.iter();
        known.map(|&place| format!(", {}", of(place))).collect()
    }

    /// Adds rows that belong to rows of the last round. Returns whether there were any.
    async fn belonging(
        &self,
        live: &mut PgConnection,
        parent: &Self,
        step: &Step,
        round: i32,
    ) -> Result<bool, TenantError> {
        let of_stored = |name: &str| self.slice.place_of(name).map(Self::of_stored);
        let of_live = |name: &str| self.slice.place_of(name).map(|place| self.of_live(place));
        let (Some(stored), Some(lives)) = (
            step.join(|name| parent.known_as(name), of_stored),
            step.join(|name| parent.known_as(name), of_live),
        ) else {
            return Ok(false);
        };
        let last = format!(
            "(select * from {} where round = {}) p",
            parent.gone(),
            round - 1
        );
        let stored = self.add_stored(live, &last, &stored, round).await?;
        let lives = self.add_live(live, &last, &lives, round).await?;
        Ok(stored || lives)
    }

    /// Adds stored rows `l` for which a row of `with` is there.
    async fn add_stored(
        &self,
        live: &mut PgConnection,
        with: &str,
        matches: &str,
        round: i32,
    ) -> Result<bool, TenantError> {
        if !self.stored {
            return Ok(false);
        }
        let gone = self.gone();
        let add = format!(
            "with added as (insert into {gone} select {round}, l.line, null, null{} from {} l \
               where exists (select from {with} where {matches}) \
               and not exists (select from {gone} x where x.line = l.line) returning 1) \
             select count(*) from added",
            self.values(Self::of_stored),
            self.stored_rows(),
        );
        let added: i64 = sql::value(live, &add, self.what()).await?;
        Ok(added > 0)
    }

    /// Adds live rows `t` for which a row of `with` is there and that are not stored.
    async fn add_live(
        &self,
        live: &mut PgConnection,
        with: &str,
        matches: &str,
        round: i32,
    ) -> Result<bool, TenantError> {
        let Some(whose) = self.live.as_ref().filter(|_| !self.known.is_empty()) else {
            return Ok(false);
        };
        let gone = self.gone();
        let mut not_stored = String::new();
        if self.stored && !self.slice.key.is_empty() {
            let key = |side| self.slice.key_matches("t", "l", side);
            let stored = self.stored_rows();
            not_stored = format!(
                " and not exists (select from {stored} l where l.op <> 'I' and {}) \
                 and not exists (select from {stored} l where l.op = 'I' and {})",
                key("o"),
                key("n")
            );
        }
        let add = format!(
            "with added as (insert into {gone} select {round}, null, t.tableoid, t.ctid{} from {} t \
               where {whose} and exists (select from {with} where {matches}) \
               and not exists (select from {gone} x where x.relation = t.tableoid and x.at = t.ctid){not_stored} \
               returning 1) \
             select count(*) from added",
            self.values(|place| self.of_live(place)),
            self.slice.from(),
        );
        let added: i64 = sql::value(live, &add, self.what()).await?;
        Ok(added > 0)
    }
}

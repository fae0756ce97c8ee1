//! A tenant's rows of one table, as SQL: which columns, by what key, under which condition.
//!
//! The order of tables is by what they refer to, so that a parent is written before and deleted after the
//! rows that belong to the tenant through it, or refer to it by a foreign key. The condition that says whose
//! a row is stands in every statement that reads or writes one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::casts::{Cast, cast};
use crate::catalog::{CatalogRows, Oid};
use crate::fault;
use crate::map::{AS_TEXT, Case, Hop, TableClass, TableName, TenancyMap};
use crate::plan::Tenant;
use crate::sql::{ident, literal, table};
use crate::tenants::{DATABASE_OF, SCHEMA_OF};

/// A column of a sliced table. Generated columns are not among them: PostgreSQL fills them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SliceColumn {
    pub(crate) name: String,
    pub(crate) base_type: String,
    /// It existed at the target with the same type. Others keep what they have, or get their default.
    pub(crate) common: bool,
    /// A change of it is written as delete and insert: columns of unique and exclusion indexes (two rows
    /// may swap values), the partition key, GENERATED ALWAYS identities, and the way to the tenant.
    pub(crate) pinned: bool,
    /// GENERATED ALWAYS identity: no UPDATE may set it.
    pub(crate) identity_always: bool,
    /// Its type at the target was another, and its values are cast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cast: Option<Cast>,
}

/// A column of the key that rows are matched by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyColumn {
    /// Its place among the columns, from 0.
    pub(crate) place: usize,
    /// The equality operator, qualified.
    pub(crate) operator: String,
}

/// One table of the tenant's slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SliceTable {
    /// Its number in all names made for it.
    pub(crate) number: usize,
    pub(crate) table: TableName,
    pub(crate) class: TableClass,
    /// Steps to the tenant column.
    pub(crate) depth: usize,
    pub(crate) partitioned: bool,
    pub(crate) columns: Vec<SliceColumn>,
    /// Empty: rows are told apart by their whole content only.
    pub(crate) key: Vec<KeyColumn>,
}

/// How rows are told to be the tenant's.
#[derive(Debug, Clone)]
pub(crate) struct Ownership<'a> {
    pub(crate) map: &'a TenancyMap,
    pub(crate) tenant: &'a Tenant,
}

impl Ownership<'_> {
    fn class_of(&self, name: &TableName) -> Option<&TableClass> {
        self.map
            .tables
            .iter()
            .find(|mapped| mapped.table == *name)
            .map(|mapped| &mapped.class)
    }

    /// What a tenant column of this kind holds for the tenant.
    pub(crate) fn id(&self, other: Option<&String>) -> Option<&str> {
        match other {
            None => Some(&self.tenant.id),
            Some(name) => self.tenant.others.get(name).map(String::as_str),
        }
    }

    /// Other ids that tables know the tenant by, and that are not known here.
    pub(crate) fn unknown_ids(&self) -> Vec<String> {
        let lacking = self
            .map
            .tables
            .iter()
            .filter_map(|mapped| match &mapped.class {
                TableClass::Direct { id: Some(id), .. } if self.id(Some(id)).is_none() => {
                    Some(format!(
                        "{} knows tenants by their `{id}`, and `tenancy.tenants` gives none for {}",
                        mapped.table, self.tenant.name
                    ))
                }
                _ => None,
            });
        lacking.collect()
    }

    /// An SQL condition on `alias`, a row of a table of class `class`.
    pub(crate) fn condition(&self, class: &TableClass, alias: &str) -> String {
        if fault::is("drop-tenant-condition") {
            return "true".to_owned();
        }
        self.condition_at(class, alias, 1)
    }

    fn condition_at(&self, class: &TableClass, alias: &str, level: usize) -> String {
        let exists = |hop: &Hop| {
            let (next, from, on) = step(hop, alias, level);
            let inner = self.class_of(&hop.parent).map_or_else(
                || "null".to_owned(),
                |class| self.condition_at(class, &next, level + 1),
            );
            format!("exists (select from {from} where {on} and {inner})")
        };
        match class {
            TableClass::Direct { id, .. } => match self.id(id.as_ref()) {
                Some(id) => holds(class, alias, id),
                None => "null".to_owned(),
            },
            TableClass::Via { hop, .. } => exists(hop),
            TableClass::Polymorphic { column, cases, .. } => {
                let case = |case: &Case| {
                    format!(
                        "({alias}.{}::text = {} and {})",
                        ident(column),
                        literal(&case.value),
                        exists(&case.hop)
                    )
                };
                let cases: Vec<String> = cases.iter().map(case).collect();
                format!("({})", cases.join(" or "))
            }
            TableClass::Whole { tenant } => (*tenant == self.tenant.id).to_string(),
            TableClass::Shared | TableClass::Ignored | TableClass::Unclassified { .. } => {
                "null".to_owned()
            }
        }
    }

    /// An SQL expression for the tenant's id as text of `alias`, a row of a table of class `class`. Of other
    /// tenants that a table knows by another id, it is that one.
    pub(crate) fn tenant_of(&self, class: &TableClass, alias: &str) -> String {
        self.tenant_at(class, alias, 1)
    }

    fn tenant_at(&self, class: &TableClass, alias: &str, level: usize) -> String {
        let of_parent = |hop: &Hop| {
            let (next, from, on) = step(hop, alias, level);
            let inner = self.class_of(&hop.parent).map_or_else(
                || "null".to_owned(),
                |class| self.tenant_at(class, &next, level + 1),
            );
            format!("(select {inner} from {from} where {on})")
        };
        match class {
            TableClass::Direct { column, id, .. } => {
                let column = format!("{alias}.{}::text", ident(column));
                match self.id(id.as_ref()).filter(|_| id.is_some()) {
                    Some(other) => format!(
                        "(case when {} then {} end)",
                        holds(class, alias, other),
                        literal(&self.tenant.id)
                    ),
                    None => column,
                }
            }
            TableClass::Via { hop, .. } => of_parent(hop),
            TableClass::Polymorphic { column, cases, .. } => {
                let case = |case: &Case| {
                    format!(
                        "when {} then {}",
                        literal(&case.value),
                        of_parent(&case.hop)
                    )
                };
                let cases: Vec<String> = cases.iter().map(case).collect();
                format!(
                    "(case {alias}.{}::text {} end)",
                    ident(column),
                    cases.join(" ")
                )
            }
            TableClass::Whole { tenant } => literal(tenant),
            TableClass::Shared | TableClass::Ignored | TableClass::Unclassified { .. } => {
                "null".to_owned()
            }
        }
    }
}

/// Whether the tenant column of `alias` holds an id, compared as its type compares. An id that is no value of the
/// type is in no row.
fn holds(class: &TableClass, alias: &str, id: &str) -> String {
    let TableClass::Direct {
        column,
        column_type,
        equals,
        as_text,
        ..
    } = class
    else {
        return "null".to_owned();
    };
    let column = format!("{alias}.{}", ident(column));
    if *as_text {
        return format!("{column}::text operator(pg_catalog.=) {}", literal(id));
    }
    if !is_value(id, column_type) {
        return "false".to_owned();
    }
    let equals = equals.as_deref().unwrap_or("=");
    format!("{column} {equals} {}::{column_type}", literal(id))
}

/// Whether a tenant's id can be in a column of this type.
pub(crate) fn is_value(id: &str, column_type: &str) -> bool {
    match column_type {
        "smallint" => id.parse::<i16>().is_ok(),
        "integer" => id.parse::<i32>().is_ok(),
        "bigint" => id.parse::<i64>().is_ok(),
        "uuid" => {
            let digits = id.chars().filter(char::is_ascii_hexdigit).count();
            digits == 32 && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
        }
        _ => true,
    }
}

/// The next alias, what it stands for, and how it is reached from `alias`.
fn step(hop: &Hop, alias: &str, level: usize) -> (String, String, String) {
    let next = format!("dr_p{level}");
    let only = if hop.only { "only " } else { "" };
    let from = format!("{only}{} {next}", table(&hop.parent));
    let on = join(
        &hop.parent_columns,
        &next,
        &hop.operators,
        &hop.columns,
        alias,
    );
    (next, from, on)
}

/// `left.a op right.b and …`.
pub(crate) fn join(
    left: &[String],
    left_alias: &str,
    operators: &[String],
    right: &[String],
    right_alias: &str,
) -> String {
    left.iter()
        .zip(right)
        .enumerate()
        .map(|(place, (a, b))| {
            let operator = operators.get(place).map_or("=", String::as_str);
            let (left, right) = (
                format!("{left_alias}.{}", ident(a)),
                format!("{right_alias}.{}", ident(b)),
            );
            match operator {
                AS_TEXT => format!("{left}::text operator(pg_catalog.=) {right}::text"),
                _ => format!("{left} {operator} {right}"),
            }
        })
        .collect::<Vec<_>>()
        .join(" and ")
}

impl SliceTable {
    /// The table as it stands in FROM: without children that inherit from it, with its partitions.
    pub(crate) fn from(&self) -> String {
        if self.partitioned {
            table(&self.table)
        } else {
            format!("only {}", table(&self.table))
        }
    }

    /// Places of the columns for which `which` holds.
    pub(crate) fn places(&self, which: impl Fn(&SliceColumn) -> bool) -> Vec<usize> {
        (0..self.columns.len())
            .filter(|&place| self.columns.get(place).is_some_and(&which))
            .collect()
    }

    pub(crate) fn name_at(&self, place: usize) -> &str {
        self.columns
            .get(place)
            .map_or("", |column| column.name.as_str())
    }

    /// The place of a column among the sliced ones.
    pub(crate) fn place_of(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// `t."a", t."b"` in the order of columns.
    pub(crate) fn select_list(&self, alias: &str) -> String {
        self.columns
            .iter()
            .map(|column| format!("{alias}.{}", ident(&column.name)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The row of the given places, as a record of the table's own columns with domains resolved.
    pub(crate) fn own_record(&self, alias: &str, places: &[usize]) -> String {
        // Records of a domain and of its base type cannot be compared.
        let columns: Vec<String> = places
            .iter()
            .filter_map(|&place| self.columns.get(place))
            .map(|column| format!("{alias}.{}::{}", ident(&column.name), column.base_type))
            .collect();
        format!("row({})", columns.join(", "))
    }

    /// `t."k" = c.o1 and …` on the key; `side` is `o` or `n`.
    pub(crate) fn key_matches(&self, alias: &str, change: &str, side: &str) -> String {
        self.key
            .iter()
            .map(|key| {
                format!(
                    "{alias}.{} {} {change}.{side}{}",
                    ident(self.name_at(key.place)),
                    key.operator,
                    key.place
                )
            })
            .collect::<Vec<_>>()
            .join(" and ")
    }
}

/// A record of numbered columns: `row(c.o0, c.o2)`.
pub(crate) fn numbered_record(alias: &str, side: &str, places: &[usize]) -> String {
    let columns: Vec<String> = places
        .iter()
        .map(|place| format!("{alias}.{side}{place}"))
        .collect();
    format!("row({})", columns.join(", "))
}

/// Whether two records hold the same values: by image, or (one value can have several images, an
/// array with or without a null bitmap) by the text that COPY carries.
pub(crate) fn same(left: &str, right: &str) -> String {
    format!(
        "({left}::record operator(pg_catalog.*=) {right}::record or {left}::text = {right}::text)"
    )
}

/// What slicing found besides the tables.
#[derive(Debug, Default)]
pub(crate) struct Sliced {
    pub(crate) tables: Vec<SliceTable>,
    pub(crate) warnings: Vec<String>,
    pub(crate) refused: Vec<String>,
}

/// Decides which tables and columns make up a tenant's slice, from the map and both servers' catalogs.
pub(crate) fn slice(
    map: &TenancyMap,
    tenant: &Tenant,
    live: &CatalogRows,
    then: &CatalogRows,
) -> Sliced {
    let mut sliced = Sliced::default();
    let is_anothers = |class: &TableClass| matches!(class, TableClass::Whole { tenant: whose } if *whose != tenant.id);
    for mapped in map
        .tables
        .iter()
        .filter(|mapped| !is_anothers(&mapped.class))
    {
        let Some(depth) = mapped.class.depth() else {
            continue;
        };
        if depth > 0 && fault::is("skip-hop") {
            continue;
        }
        let Some(relation) = live.by_name(&mapped.table) else {
            continue;
        };
        let Some(former) = then
            .by_name(&mapped.table)
            .filter(|r| matches!(r.kind, 'r' | 'p'))
        else {
            sliced.warnings.push(format!(
                "{} was made after the target: its rows are left as they are",
                mapped.table
            ));
            continue;
        };
        if former.persistence != 'p' {
            sliced
                .refused
                .push(format!("{} was not permanent at the target", mapped.table));
            continue;
        }
        let columns = columns(
            mapped.table.to_string(),
            live,
            relation.oid,
            then,
            former.oid,
            &mut sliced,
        );
        let mut table = SliceTable {
            number: sliced.tables.len(),
            table: mapped.table.clone(),
            class: mapped.class.clone(),
            depth,
            partitioned: relation.kind == 'p',
            columns,
            key: Vec::new(),
        };
        table.key = key(live, relation.oid, &table);
        pin(live, relation.oid, &mut table);
        ownership_existed(&table, &mut sliced);
        for hop in mapped.class.declared_hops() {
            sliced.refused.extend(held_then(hop, live, then).map(|why| {
                format!(
                    "{}, to which {} is declared to lead, {why}",
                    hop.parent, mapped.table
                )
            }));
        }
        sliced.tables.push(table);
    }
    gone(map, tenant, live, then, &mut sliced);
    sliced.tables = parents_first(std::mem::take(&mut sliced.tables), live);
    sliced
}

/// Each table after those that its rows belong to the tenant through, and after those that its foreign keys
/// refer to: no foreign key is enforced while rows are written, but a check constraint may call a function
/// that looks for the parent. In a cycle the steps from the tenant column decide.
fn parents_first(mut tables: Vec<SliceTable>, live: &CatalogRows) -> Vec<SliceTable> {
    tables.sort_by_key(|table| (table.depth, table.number));
    let name_of = |oid| live.relation(live.root_of(oid)).map(|found| &found.name);
    let mut parents: BTreeSet<(&TableName, &TableName)> = live
        .foreign_keys
        .iter()
        .filter_map(|key| Some((name_of(key.child)?, name_of(key.parent)?)))
        .collect();
    let declared: Vec<(TableName, TableName)> = tables
        .iter()
        .flat_map(|table| {
            let hops = table.class.declared_hops().into_iter();
            hops.map(move |hop| (table.table.clone(), hop.parent.clone()))
        })
        .collect();
    parents.extend(declared.iter().map(|(child, parent)| (child, parent)));
    parents.retain(|(child, parent)| child != parent);
    let mut ordered = Vec::with_capacity(tables.len());
    let mut left: BTreeSet<TableName> = tables.iter().map(|table| table.table.clone()).collect();
    while !tables.is_empty() {
        let waits = |table: &SliceTable| {
            left.iter()
                .any(|parent| parents.contains(&(&table.table, parent)))
        };
        let next = tables.iter().position(|table| !waits(table)).unwrap_or(0);
        let table = tables.remove(next);
        left.remove(&table.table);
        ordered.push(table);
    }
    ordered
}

fn columns(
    name: String,
    live: &CatalogRows,
    live_oid: Oid,
    then: &CatalogRows,
    then_oid: Oid,
    sliced: &mut Sliced,
) -> Vec<SliceColumn> {
    let mut columns = Vec::new();
    for column in live.columns_of(live_oid).filter(|column| !column.generated) {
        let former = then.column(then_oid, &column.name);
        match former {
            Some(former) if cast(former, column).is_some() => sliced.warnings.push(format!(
                "{name}.{} was {} at the target and is {} now: its values are cast",
                column.name, former.type_text, column.type_text
            )),
            Some(former) if former.type_text != column.type_text => sliced.refused.push(format!(
                "{name}.{} was {} at the target and is {} now",
                column.name, former.type_text, column.type_text
            )),
            None => sliced.warnings.push(format!(
                "{name}.{} was added after the target: rows keep what they have, returning rows get its default",
                column.name
            )),
            Some(_) => {}
        }
        columns.push(SliceColumn {
            name: column.name.clone(),
            base_type: column.base_type.clone(),
            common: former.is_some_and(|former| {
                !former.generated
                    && (former.type_text == column.type_text || cast(former, column).is_some())
            }),
            cast: former.and_then(|former| cast(former, column)),
            pinned: column.identity_always,
            identity_always: column.identity_always,
        });
    }
    for former in then.columns_of(then_oid) {
        if live.column(live_oid, &former.name).is_none() {
            sliced.warnings.push(format!(
                "{name}.{} was dropped after the target: its values do not return",
                former.name
            ));
        }
    }
    columns
}

/// The primary key, else a unique index without nulls, whose columns existed at the target.
fn key(live: &CatalogRows, oid: Oid, table: &SliceTable) -> Vec<KeyColumn> {
    let usable = |name: &String| {
        let not_null = live.column(oid, name).is_some_and(|column| column.not_null);
        let place = table.place_of(name)?;
        let common = table.columns.get(place).is_some_and(|column| column.common);
        (not_null && common).then_some(place)
    };
    live.indexes
        .iter()
        .filter(|index| {
            index.relation == oid && !index.partial && !index.expression && !index.exclusion
        })
        .filter(|index| index.operators.len() == index.columns.len() && !index.columns.is_empty())
        .filter_map(|index| {
            let places: Option<Vec<usize>> = index.columns.iter().map(usable).collect();
            Some((index, places?))
        })
        // Immediate before deferrable, the primary key before others (the order they were read in).
        .min_by_key(|(index, _)| (!index.immediate, !index.primary))
        .map(|(index, places)| {
            places
                .into_iter()
                .zip(&index.operators)
                .map(|(place, operator)| KeyColumn {
                    place,
                    operator: operator.clone(),
                })
                .collect()
        })
        .unwrap_or_default()
}

fn pin(live: &CatalogRows, oid: Oid, table: &mut SliceTable) {
    let family = live.family(oid);
    let mut pinned: BTreeSet<&str> = BTreeSet::new();
    for index in live
        .indexes
        .iter()
        .filter(|index| family.contains(&index.relation))
    {
        pinned.extend(
            index
                .columns
                .iter()
                .chain(&index.depends)
                .map(String::as_str),
        );
    }
    for relation in live
        .relations
        .iter()
        .filter(|relation| family.contains(&relation.oid))
    {
        pinned.extend(relation.partition_columns.iter().map(String::as_str));
    }
    if table.depth > 0 {
        pinned.extend(table.class.telling().into_iter().map(String::as_str));
    }
    for column in &mut table.columns {
        column.pinned |= pinned.contains(column.name.as_str());
    }
}

/// The columns that say whose a row is must have existed at the target.
fn ownership_existed(table: &SliceTable, sliced: &mut Sliced) {
    for name in table.class.telling() {
        let existed = table
            .place_of(name)
            .and_then(|place| table.columns.get(place))
            .is_some_and(|c| c.common);
        if !existed {
            sliced.refused.push(format!(
                "{}.{name}, which says whose a row is, did not exist like this at the target",
                table.table
            ));
        }
    }
}

/// Why a step that is only declared did not hold at the target: there it has to lead to one row as well.
fn held_then(hop: &Hop, live: &CatalogRows, then: &CatalogRows) -> Option<String> {
    let Some(parent) = then.by_name(&hop.parent) else {
        return Some("was not there at the target".to_owned());
    };
    let now = live.by_name(&hop.parent)?;
    for name in &hop.parent_columns {
        let type_in = |rows: &CatalogRows, oid| rows.column(oid, name).map(|c| c.base_type.clone());
        if type_in(then, parent.oid) != type_in(live, now.oid) {
            return Some(format!("had no {name} like this at the target"));
        }
    }
    let mut indexes = then.indexes.iter();
    let is_unique = indexes.any(|index| index.is_unique_on(parent.oid, &hop.parent_columns));
    (!is_unique).then(|| {
        format!(
            "had no unique index on {} at the target",
            hop.parent_columns.join(", ")
        )
    })
}

/// Tables with the tenant column, or known to the map, that existed then and are gone.
fn gone(
    map: &TenancyMap,
    tenant: &Tenant,
    live: &CatalogRows,
    then: &CatalogRows,
    sliced: &mut Sliced,
) {
    let is_whole = |name: &TableName| match tenant.others.get(SCHEMA_OF) {
        Some(schema) => *schema == name.schema,
        None => tenant.others.contains_key(DATABASE_OF),
    };
    let columns: BTreeMap<&str, ()> = map
        .tables
        .iter()
        .filter_map(|mapped| match &mapped.class {
            TableClass::Direct { column, .. } => Some((column.as_str(), ())),
            _ => None,
        })
        .collect();
    for former in then
        .relations
        .iter()
        .filter(|r| r.root.is_none() && matches!(r.kind, 'r' | 'p'))
    {
        let had_tenants = columns
            .keys()
            .any(|column| then.column(former.oid, column).is_some());
        let is_gone = live.by_name(&former.name).is_none();
        if is_gone && is_whole(&former.name) && former.extension.is_none() {
            sliced.refused.push(format!(
                "{} was there at the target and is gone (dropped or renamed): make it again as it was, empty",
                former.name
            ));
        } else if is_gone && had_tenants {
            sliced.warnings.push(format!(
                "{} held tenants' rows at the target and is gone (dropped or renamed): its rows do not return",
                former.name
            ));
        }
    }
}

//! Deciding how each table belongs to tenants. Pure: catalog rows and configuration in, classes out.
//!
//! Order: what is declared; tables in a schema or database of one tenant; tables with the tenant column, unless
//! its type has no value that is a tenant's id; the table that their tenant column refers to
//! (the registry); then, step by step outwards, tables whose foreign keys lead to those. Foreign keys
//! that cannot be null come first, because a nullable one leaves rows without an owner. Where several
//! lead there, the one inside the primary key, else the one that deletes in cascade, says whose part
//! a row is; where that does not decide either, nothing is guessed, nor where a table has several columns that
//! could be the tenant's. What no foreign key says is declared: by which columns a row refers to the one that it
//! belongs to, and where a column says to which table. A table that only tenants'
//! tables refer to (a list of currencies, a queue) could be anybody's and is never assumed to be shared.

use std::collections::BTreeMap;

use dr_config::{DirectBy, Polymorphic, TenancyConfig, TenantTable, ViaBy};

use crate::catalog::{CatalogRows, ForeignKey, Oid, Relation};
use crate::map::{AS_TEXT, Case, Hop, MappedTable, TableClass, TableName, yaml};
use crate::slice::is_value;
use crate::tenants::Owners;

/// Finds the class of every table. The second value lists declarations that name no table.
pub(crate) fn classify(
    rows: &CatalogRows,
    tenancy: &TenancyConfig,
    owners: &Owners,
) -> (Vec<MappedTable>, Vec<String>) {
    let mut classes = Classes {
        rows,
        found: BTreeMap::new(),
        declared: BTreeMap::new(),
    };
    // What is declared is declared of the tables that tenants share.
    let unknown = match owners.database {
        Some(_) => Vec::new(),
        None => classes.declare(tenancy),
    };
    classes.refuse_unrestorable();
    classes.by_place(owners);
    classes.by_column(tenancy, owners);
    classes.registry();
    classes.by_foreign_keys();
    let mut tables: Vec<MappedTable> = classes
        .owners()
        .map(|relation| MappedTable {
            table: relation.name.clone(),
            class: classes
                .found
                .get(&relation.oid)
                .cloned()
                .unwrap_or_else(|| match classes.declared.get(&relation.oid) {
                    Some(declared) => leads_nowhere(declared),
                    None => leftover(relation),
                }),
            declared: classes.declared.contains_key(&relation.oid),
        })
        .collect();
    tables.sort_by(|a, b| a.table.cmp(&b.table));
    (tables, unknown)
}

/// Types that a longer text is cut to in silence.
const CUT_SHORT: [&str; 2] = ["\"char\"", "name"];

fn leftover(relation: &Relation) -> TableClass {
    let reason = match &relation.extension {
        Some(extension) => format!("it belongs to extension {extension}"),
        None => "it has no tenant column and no foreign key to a tenant's table".to_owned(),
    };
    unclassified(reason, &["shared", "ignored"])
}

/// Why a column is none of tenants, for all its name: its type has no value that is a tenant's id.
fn other_meaning(class: &TableClass, ids: &[&String]) -> Option<TableClass> {
    let TableClass::Direct {
        column,
        column_type,
        as_text: false,
        ..
    } = class
    else {
        return None;
    };
    let fits = ids.iter().any(|id| is_value(id, column_type));
    (!fits).then(|| {
        unclassified(
            format!("its {column} is of type {column_type}, and no tenant's id is: it may mean something else"),
            &["shared", "ignored"],
        )
    })
}

fn leads_nowhere(declared: &TenantTable) -> TableClass {
    let by = match declared {
        TenantTable::Via(ViaBy::Key(key)) => format!("via {key}"),
        TenantTable::Via(ViaBy::Columns(columns)) => {
            let names: Vec<&str> = columns.keys().map(String::as_str).collect();
            format!("via {}", names.join(", "))
        }
        _ => "polymorphic".to_owned(),
    };
    unclassified(
        format!("it is declared {by}, and what that leads to belongs to no tenant"),
        &["ignored"],
    )
}

fn unclassified(reason: String, choices: &[&str]) -> TableClass {
    TableClass::Unclassified {
        reason,
        choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
    }
}

/// A foreign key as a step towards the tenant.
pub(crate) fn hop(rows: &CatalogRows, key: &ForeignKey) -> Option<Hop> {
    let parent = rows.relation(rows.root_of(key.parent))?;
    Some(Hop {
        constraint: key.name.clone(),
        columns: key.columns.clone(),
        only: parent.kind != 'p',
        parent: parent.name.clone(),
        parent_columns: key.parent_columns.clone(),
        operators: key.operators.clone(),
    })
}

struct Classes<'a> {
    rows: &'a CatalogRows,
    found: BTreeMap<Oid, TableClass>,
    declared: BTreeMap<Oid, &'a TenantTable>,
}

impl<'a> Classes<'a> {
    /// Tables that hold rows of their own: partitions are part of theirs, views hold none.
    fn owners(&self) -> impl Iterator<Item = &'a Relation> + use<'a> {
        self.rows
            .relations
            .iter()
            .filter(|r| r.root.is_none() && matches!(r.kind, 'r' | 'p' | 'f'))
    }

    fn declare(&mut self, tenancy: &'a TenancyConfig) -> Vec<String> {
        let mut unknown = Vec::new();
        for (name, class) in &tenancy.tables {
            let matches: Vec<Oid> = self
                .owners()
                .filter(|r| r.name.to_string() == *name || r.name.name == *name)
                .map(|r| r.oid)
                .collect();
            match matches.as_slice() {
                [] => unknown.push(format!(
                    "tenancy.tables names `{name}`, and there is no such table"
                )),
                [one] => {
                    self.declared.insert(*one, class);
                }
                _ => unknown.push(format!(
                    "tenancy.tables names `{name}`, which is in several schemas"
                )),
            }
        }
        for (oid, class) in self.declared.clone() {
            let class = match class {
                TenantTable::Shared => TableClass::Shared,
                TenantTable::Ignored => TableClass::Ignored,
                TenantTable::Direct(by) => {
                    let (column, id) = match by {
                        DirectBy::Column(column) => (column, None),
                        DirectBy::OtherId(other) => (&other.column, Some(other.id.clone())),
                    };
                    self.direct(oid, column, id).unwrap_or_else(|| {
                        unclassified(
                            format!("it is declared direct, but has no column {column}"),
                            &["ignored"],
                        )
                    })
                }
                // Needs its parent's class first.
                TenantTable::Via(_) | TenantTable::Polymorphic(_) => continue,
            };
            self.found.insert(oid, class);
        }
        unknown
    }

    fn direct(&self, oid: Oid, column: &str, id: Option<String>) -> Option<TableClass> {
        self.rows
            .column(oid, column)
            .map(|found| TableClass::Direct {
                column: found.name.clone(),
                column_type: found.plain_type.clone(),
                id,
                equals: found.equals.clone(),
                as_text: found.enumeration || CUT_SHORT.contains(&found.plain_type.as_str()),
            })
    }

    /// Unlogged tables are emptied by recovery and foreign ones are elsewhere: neither can be brought
    /// back, so only a declaration may pass them over.
    fn refuse_unrestorable(&mut self) {
        for relation in self.owners() {
            let family = self.rows.family(relation.oid);
            let bad = self
                .rows
                .relations
                .iter()
                .find(|r| family.contains(&r.oid) && (r.persistence == 'u' || r.kind == 'f'));
            let passed_over = matches!(
                self.found.get(&relation.oid),
                Some(TableClass::Shared | TableClass::Ignored)
            );
            if let (Some(bad), false) = (bad, passed_over) {
                let why = if bad.kind == 'f' {
                    "a foreign table"
                } else {
                    "unlogged"
                };
                let reason = format!(
                    "{} is {why}: its rows at another moment cannot be known",
                    bad.name
                );
                self.found
                    .insert(relation.oid, unclassified(reason, &["ignored", "shared"]));
            }
        }
    }

    /// Everything in a schema or database of one tenant is that tenant's.
    fn by_place(&mut self, owners: &Owners) {
        for relation in self.owners() {
            if self.found.contains_key(&relation.oid) || self.declared.contains_key(&relation.oid) {
                continue;
            }
            let in_schema = owners.schemas.get(&relation.name.schema);
            let Some(tenant) = in_schema.or(owners.database.as_ref()) else {
                continue;
            };
            let class = match relation.extension {
                // What an extension keeps for itself comes with it.
                Some(_) => TableClass::Ignored,
                None => TableClass::Whole {
                    tenant: tenant.clone(),
                },
            };
            self.found.insert(relation.oid, class);
        }
    }

    fn by_column(&mut self, tenancy: &TenancyConfig, owners: &Owners) {
        let ids = owners.ids.iter().chain(&tenancy.shared_ids);
        // Of a database without a tenant nothing can be said.
        let ids: Option<Vec<&String>> = (!owners.ids.is_empty()).then(|| ids.collect());
        for relation in self.owners() {
            if self.found.contains_key(&relation.oid) || self.declared.contains_key(&relation.oid) {
                continue;
            }
            let here = tenancy.column.0.iter();
            let here: Vec<TableClass> = here
                .filter_map(|name| self.direct(relation.oid, name, None))
                .collect();
            let class = match here.as_slice() {
                [] => continue,
                [one] => ids
                    .as_ref()
                    .and_then(|ids| other_meaning(one, ids))
                    .unwrap_or_else(|| one.clone()),
                several => {
                    let columns: Vec<&str> = several
                        .iter()
                        .flat_map(TableClass::telling)
                        .map(String::as_str)
                        .collect();
                    let choices: Vec<String> = (columns.iter())
                        .map(|column| format!("{{ direct: {} }}", yaml(column)))
                        .collect();
                    TableClass::Unclassified {
                        reason: format!(
                            "several of its columns could be the tenant's: {}",
                            columns.join(", ")
                        ),
                        choices,
                    }
                }
            };
            self.found.insert(relation.oid, class);
        }
    }

    /// The table that the tenant columns refer to holds one row for each tenant.
    fn registry(&mut self) {
        for key in &self.rows.foreign_keys {
            let (child, parent) = (self.rows.root_of(key.child), self.rows.root_of(key.parent));
            let Some(TableClass::Direct { column, id, .. }) = self.found.get(&child) else {
                continue;
            };
            let (column, id) = (column.clone(), id.clone());
            let points_there = key.columns.as_slice() == [column.clone()];
            let (true, [parent_column]) = (points_there, key.parent_columns.as_slice()) else {
                continue;
            };
            if !self.found.contains_key(&parent)
                && !self.declared.contains_key(&parent)
                && let Some(class) = self.direct(parent, parent_column, id)
            {
                self.found.insert(parent, class);
            }
        }
    }

    /// Walks outwards one step at a time, so that the shortest way is found first; nullable foreign
    /// keys only where nothing else leads on.
    fn by_foreign_keys(&mut self) {
        loop {
            let mut step = self.step(false);
            if step.is_empty() {
                step = self.step(true);
            }
            if step.is_empty() {
                return;
            }
            self.found.extend(step);
        }
    }

    fn step(&self, nullable: bool) -> BTreeMap<Oid, TableClass> {
        self.owners()
            .filter(|relation| !self.found.contains_key(&relation.oid))
            .filter_map(|relation| {
                let class = match self.declared.get(&relation.oid) {
                    Some(TenantTable::Via(ViaBy::Key(by))) => self.declared_via(relation.oid, by),
                    Some(TenantTable::Via(ViaBy::Columns(columns))) => {
                        let pairs = columns.iter().map(|(own, to)| (own.as_str(), to.as_str()));
                        self.written_via(relation.oid, &pairs.collect::<Vec<_>>())
                    }
                    Some(TenantTable::Polymorphic(by)) => self.polymorphic(relation.oid, by),
                    _ => self.found_via(relation.oid, nullable),
                };
                class.map(|class| (relation.oid, class))
            })
            .collect()
    }

    fn depth_of(&self, oid: Oid) -> Option<usize> {
        self.found.get(&oid).and_then(TableClass::depth)
    }

    /// Foreign keys of a table that lead to a tenant's table.
    fn leading(&self, oid: Oid) -> Vec<(&'a ForeignKey, usize)> {
        self.rows
            .foreign_keys
            .iter()
            .filter(|key| key.child == oid && self.rows.root_of(key.parent) != oid)
            .filter_map(|key| Some((key, self.depth_of(self.rows.root_of(key.parent))? + 1)))
            .collect()
    }

    fn via(&self, key: &ForeignKey, depth: usize) -> Option<TableClass> {
        hop(self.rows, key).map(|hop| TableClass::Via { hop, depth })
    }

    fn declared_via(&self, oid: Oid, by: &str) -> Option<TableClass> {
        let named = |key: &ForeignKey| key.name == by || key.columns.as_slice() == [by.to_owned()];
        if !self
            .rows
            .foreign_keys
            .iter()
            .any(|key| key.child == oid && named(key))
        {
            let reason =
                format!("it is declared via {by}, but no foreign key has that column or name");
            return Some(unclassified(reason, &["ignored"]));
        }
        let leading = self.leading(oid);
        let (key, depth) = leading.iter().find(|(key, _)| named(key))?;
        self.via(key, *depth)
    }

    /// By columns without a foreign key; `None` as long as what they lead to has no class.
    fn written_via(&self, oid: Oid, pairs: &[(&str, &str)]) -> Option<TableClass> {
        match self.written_hop(oid, pairs) {
            Ok((hop, parent)) => {
                let depth = self.depth_of(parent)? + 1;
                Some(TableClass::Via { hop, depth })
            }
            Err(reason) => Some(unclassified(reason, &["ignored"])),
        }
    }

    fn polymorphic(&self, oid: Oid, by: &Polymorphic) -> Option<TableClass> {
        if self.rows.column(oid, &by.kind).is_none() {
            let reason = format!(
                "it is declared polymorphic by {}, and has no such column",
                by.kind
            );
            return Some(unclassified(reason, &["ignored"]));
        }
        if by.to.is_empty() {
            return Some(unclassified(
                "it is declared polymorphic, and to no table".to_owned(),
                &["ignored"],
            ));
        }
        let (mut cases, mut depth) = (Vec::new(), 0);
        for (value, to) in &by.to {
            match self.written_hop(oid, &[(&by.id, to)]) {
                Ok((hop, parent)) => {
                    depth = depth.max(self.depth_of(parent)? + 1);
                    cases.push(Case {
                        value: value.clone(),
                        hop,
                    });
                }
                Err(reason) => return Some(unclassified(reason, &["ignored"])),
            }
        }
        Some(TableClass::Polymorphic {
            column: by.kind.clone(),
            cases,
            depth,
        })
    }

    /// A step by columns, each with the `schema.table.column` that it refers to; and the table it leads to.
    fn written_hop(&self, oid: Oid, pairs: &[(&str, &str)]) -> Result<(Hop, Oid), String> {
        let mut parent: Option<&Relation> = None;
        let (mut columns, mut parent_columns) = (Vec::new(), Vec::new());
        for (own, to) in pairs {
            let (table, column) = to
                .rsplit_once('.')
                .ok_or_else(|| format!("`{to}` is not of the form schema.table.column"))?;
            let found = self.named(table)?;
            if parent.is_some_and(|parent| parent.oid != found.oid) {
                return Err("its columns are declared to lead to several tables".to_owned());
            }
            parent = Some(found);
            for (relation, name) in [(oid, *own), (found.oid, column)] {
                if self.rows.column(relation, name).is_none() {
                    let table = self.rows.relation(relation).map(|r| r.name.to_string());
                    return Err(format!(
                        "{} has no column {name}",
                        table.unwrap_or_default()
                    ));
                }
            }
            columns.push((*own).to_owned());
            parent_columns.push(column.to_owned());
        }
        let parent = parent.ok_or("it is declared to lead nowhere")?;
        let operators = self.operators(oid, &columns, parent, &parent_columns)?;
        let hop = Hop {
            constraint: String::new(),
            columns,
            only: parent.kind != 'p',
            parent: parent.name.clone(),
            parent_columns,
            operators,
        };
        Ok((hop, parent.oid))
    }

    fn named(&self, table: &str) -> Result<&'a Relation, String> {
        let is_it = |name: &TableName| name.to_string() == table || name.name == table;
        let found: Vec<&Relation> = self.owners().filter(|r| is_it(&r.name)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(format!(
                "it is declared to lead to {table}, and there is no such table"
            )),
            _ => Err(format!(
                "it is declared to lead to {table}, which is in several schemas"
            )),
        }
    }

    /// How the columns are compared. What they lead to has to be one row at most: else it would not say whose
    /// a row is.
    fn operators(
        &self,
        child: Oid,
        columns: &[String],
        parent: &Relation,
        parent_columns: &[String],
    ) -> Result<Vec<String>, String> {
        let index = self
            .rows
            .indexes
            .iter()
            .find(|index| index.is_unique_on(parent.oid, parent_columns))
            .ok_or_else(|| {
                format!(
                    "{} has no unique index on {}: more than one row could be meant",
                    parent.name,
                    parent_columns.join(", ")
                )
            })?;
        let type_of = |oid, name: &String| self.rows.column(oid, name).map(|c| &c.base_type);
        let operators = columns.iter().zip(parent_columns).map(|(own, other)| {
            let place = index.columns.iter().position(|name| name == other);
            let operator = place.and_then(|place| index.operators.get(place));
            match operator {
                Some(operator) if type_of(child, own) == type_of(parent.oid, other) => {
                    operator.clone()
                }
                _ => AS_TEXT.to_owned(),
            }
        });
        Ok(operators.collect())
    }

    fn is_nullable(&self, key: &ForeignKey) -> bool {
        key.columns.iter().any(|name| {
            self.rows
                .column(key.child, name)
                .is_none_or(|column| !column.not_null)
        })
    }

    fn found_via(&self, oid: Oid, nullable: bool) -> Option<TableClass> {
        let mut leading = self.leading(oid);
        leading.retain(|(key, _)| self.is_nullable(key) == nullable);
        let shortest = leading.iter().map(|(_, depth)| *depth).min()?;
        leading.retain(|(_, depth)| *depth == shortest);
        leading.dedup_by(|a, b| a.0.columns == b.0.columns && a.0.parent == b.0.parent);
        let primary = self
            .rows
            .indexes
            .iter()
            .find(|index| index.relation == oid && index.primary);
        let identifying = |key: &ForeignKey| {
            primary.is_some_and(|index| key.columns.iter().all(|name| index.columns.contains(name)))
        };
        for owns in [
            &identifying as &dyn Fn(&ForeignKey) -> bool,
            &|key: &ForeignKey| key.cascade,
        ] {
            if leading.iter().filter(|(key, _)| owns(key)).count() == 1 {
                leading.retain(|(key, _)| owns(key));
            }
        }
        if let [(key, depth)] = leading.as_slice() {
            return self.via(key, *depth);
        }
        let ways: Vec<String> = leading
            .iter()
            .filter_map(|(key, _)| {
                let parent = &self.rows.relation(key.parent)?.name;
                Some(format!("{} -> {parent}", key.columns.join(", ")))
            })
            .collect();
        let choices = leading
            .iter()
            .map(|(key, _)| match key.columns.as_slice() {
                [one] => format!("{{ via: {} }}", yaml(one)),
                _ => format!("{{ via: {} }}", yaml(&key.name)),
            })
            .collect();
        let reason = format!(
            "several foreign keys could say whose its rows are: {}",
            ways.join("; ")
        );
        Some(TableClass::Unclassified { reason, choices })
    }
}

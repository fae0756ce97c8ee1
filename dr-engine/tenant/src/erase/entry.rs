//! What an entry carries of one database: tables with conditions, keys and links, from the tenancy map.

use std::collections::{BTreeMap, BTreeSet};

use dr_restore::{ErasedDatabase, ErasedLink, ErasedRows, ErasedTable, WholePlace};
use sqlx::postgres::PgConnection;

use super::ErasePlan;
use crate::catalog::CatalogRows;
use crate::map::{Hop, TableClass, TableName};
use crate::slice::{Ownership, SliceTable, slice};
use crate::tenants::{DATABASE_OF, SCHEMA_OF};
use crate::{TenancyMap, Tenant, TenantError};

/// A database as it is now, and whose rows in it are meant.
pub(super) struct Subject<'a> {
    pub(super) owner: Ownership<'a>,
    pub(super) tables: Vec<SliceTable>,
    catalog: CatalogRows,
}

impl<'a> Subject<'a> {
    /// Reasons against it go into the plan.
    pub(super) async fn read(
        live: &mut PgConnection,
        map: &'a TenancyMap,
        tenant: &'a Tenant,
        plan: &mut ErasePlan,
    ) -> Result<Self, TenantError> {
        let catalog = CatalogRows::read(live).await?;
        let sliced = slice(map, tenant, &catalog, &catalog);
        let owner = Ownership { map, tenant };
        plan.refused.extend(sliced.refused);
        plan.refused.extend(owner.unknown_ids());
        Ok(Self {
            owner,
            tables: sliced.tables,
            catalog,
        })
    }

    fn whose(&self, table: &SliceTable) -> String {
        self.owner.condition(&table.class, "t")
    }

    fn erased(&self, table: &SliceTable, rows: ErasedRows) -> ErasedTable {
        ErasedTable {
            table: table.table.clone(),
            whose: self.whose(table),
            rows,
        }
    }

    /// Everything that is the tenant's.
    pub(super) fn of_everything(&self) -> ErasedDatabase {
        let others = &self.owner.tenant.others;
        let whole = match (others.get(DATABASE_OF), others.get(SCHEMA_OF)) {
            (Some(_), _) => Some(WholePlace::Database),
            (None, Some(schema)) => Some(WholePlace::Schema(schema.clone())),
            (None, None) => None,
        };
        ErasedDatabase {
            whole,
            ..self.of_listing()
        }
    }

    /// The tenant's rows in tables that others have rows in too.
    pub(super) fn of_listing(&self) -> ErasedDatabase {
        let is_whole = |table: &&SliceTable| !matches!(table.class, TableClass::Whole { .. });
        let tables = self.tables.iter().filter(is_whole);
        ErasedDatabase {
            database: self.owner.map.database.clone(),
            whole: None,
            tables: tables
                .map(|table| self.erased(table, ErasedRows::All))
                .collect(),
            links: self.links(),
            tenant_columns: self.tenant_columns(),
            others: self.others(),
        }
    }

    /// Rows of it, and what may have to go with them.
    pub(super) fn of_rows(
        &self,
        mut named: BTreeMap<TableName, (Vec<String>, Vec<Vec<String>>)>,
    ) -> ErasedDatabase {
        let links = self.links();
        let reached = self.reached(named.keys().cloned().collect(), &links);
        let meant = self.tables.iter().filter(|it| reached.contains(&it.table));
        let tables = meant.map(|table| {
            let rows = match named.remove(&table.table) {
                Some((columns, keys)) => ErasedRows::Keys { columns, keys },
                None => ErasedRows::Dependent,
            };
            self.erased(table, rows)
        });
        ErasedDatabase {
            database: self.owner.map.database.clone(),
            whole: None,
            tables: tables.collect(),
            links: links
                .into_iter()
                .filter(|link| reached.contains(&link.parent))
                .collect(),
            tenant_columns: Vec::new(),
            others: Vec::new(),
        }
    }

    /// The tables whose rows may belong to rows of these, by steps of whatever number.
    fn reached(
        &self,
        mut reached: BTreeSet<TableName>,
        links: &[ErasedLink],
    ) -> BTreeSet<TableName> {
        let name_of = |oid| {
            let relation = self.catalog.relation(self.catalog.root_of(oid));
            relation.map(|relation| relation.name.clone())
        };
        let keys = self.catalog.foreign_keys.iter();
        let mut steps: Vec<(TableName, TableName)> = keys
            .filter_map(|key| Some((name_of(key.parent)?, name_of(key.child)?)))
            .collect();
        steps.extend(links.iter().map(|it| (it.parent.clone(), it.child.clone())));
        loop {
            let before = reached.len();
            for (parent, child) in &steps {
                if reached.contains(parent) {
                    reached.insert(child.clone());
                }
            }
            if reached.len() == before {
                return reached;
            }
        }
    }

    /// What is declared to lead from one table to another without a foreign key.
    fn links(&self) -> Vec<ErasedLink> {
        let link = |child: &TableName, hop: &Hop, only| ErasedLink {
            child: child.clone(),
            columns: hop.columns.clone(),
            parent: hop.parent.clone(),
            parent_columns: hop.parent_columns.clone(),
            only,
        };
        let mut links = Vec::new();
        for mapped in &self.owner.map.tables {
            match &mapped.class {
                TableClass::Via { hop, .. } if hop.constraint.is_empty() => {
                    links.push(link(&mapped.table, hop, None));
                }
                TableClass::Polymorphic { column, cases, .. } => {
                    links.extend(cases.iter().map(|case| {
                        let only = Some((column.clone(), case.value.clone()));
                        link(&mapped.table, &case.hop, only)
                    }));
                }
                _ => {}
            }
        }
        links
    }

    fn tenant_columns(&self) -> Vec<String> {
        let columns: BTreeSet<String> = self
            .owner
            .map
            .tables
            .iter()
            .filter_map(|mapped| match &mapped.class {
                TableClass::Direct {
                    column, id: None, ..
                } => Some(column.clone()),
                _ => None,
            })
            .collect();
        columns.into_iter().collect()
    }

    /// Tables of which nothing is the tenant's.
    fn others(&self) -> Vec<TableName> {
        let ours: BTreeSet<&TableName> = self.tables.iter().map(|table| &table.table).collect();
        let all = self.owner.map.tables.iter().map(|mapped| &mapped.table);
        all.filter(|table| !ours.contains(table)).cloned().collect()
    }
}

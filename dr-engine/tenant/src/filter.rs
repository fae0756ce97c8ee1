//! Restoring a part of a tenant: some tables, or some of their rows ("only the invoices").
//!
//! A condition is asked of a row as it was at the target and as it is now: where either is meant, the row is
//! put back. So a row that was changed until the condition no longer holds comes back too. It is asked in the
//! scratch instance only, never in production.

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::TenantError;
use crate::map::{TableClass, TableName, TenancyMap};

/// What of a tenant is restored. The default is everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Tables: `schema.table`, `table`, or with `*`.
    tables: Vec<String>,
    /// A table's name and an SQL condition on its columns.
    conditions: Vec<(String, String)>,
}

impl Filter {
    /// From names of tables and from conditions, each `TABLE: CONDITION`. A table with a condition need not be
    /// named too.
    ///
    /// # Errors
    /// When a condition has another form, or a table has two.
    pub fn new(tables: &[String], conditions: &[String]) -> Result<Self, TenantError> {
        let mut filter = Self::default();
        for name in tables.iter().flat_map(|names| names.split(',')) {
            let name = name.trim();
            if name.is_empty() {
                return Err(TenantError::BadFilter("a table without a name".to_owned()));
            }
            filter.tables.push(name.to_owned());
        }
        for text in conditions {
            let parts = text
                .split_once(':')
                .filter(|(_, rest)| !rest.starts_with(':'));
            let parts = parts.map(|(name, rest)| (name.trim(), rest.trim()));
            let Some((name, condition)) = parts.filter(|(n, c)| !n.is_empty() && !c.is_empty())
            else {
                return Err(TenantError::BadFilter(format!(
                    "`{text}` is no `TABLE: CONDITION`, as in `sales_order: status = 'open'`"
                )));
            };
            if filter.conditions.iter().any(|(known, _)| known == name) {
                return Err(TenantError::BadFilter(format!(
                    "`{name}` has two conditions: join them with `or` or `and`"
                )));
            }
            filter
                .conditions
                .push((name.to_owned(), condition.to_owned()));
        }
        Ok(filter)
    }

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.tables.is_empty() && self.conditions.is_empty()
    }

    /// What is restored, one line each; nothing where it is everything.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let tables = self.tables.iter().map(|name| format!("table {name}"));
        let rows = self
            .conditions
            .iter()
            .map(|(name, condition)| format!("rows of {name} where {condition}"));
        tables.chain(rows).collect()
    }

    /// Every name means a table whose rows are tenants'.
    pub(crate) fn check(&self, map: &TenancyMap) -> Result<(), TenantError> {
        let restored = |pattern: &str| -> Result<usize, TenantError> {
            let meant = Pattern::of(pattern)?;
            let tables = map
                .tables
                .iter()
                .filter(|mapped| is_restored(&mapped.class));
            Ok(tables.filter(|mapped| meant.is(&mapped.table)).count())
        };
        let none = |name: &str| {
            TenantError::BadFilter(format!(
                "`{name}` is no table of workload `{}` that holds rows of a tenant",
                map.workload
            ))
        };
        for name in &self.tables {
            if restored(name)? == 0 {
                return Err(none(name));
            }
        }
        for (name, _) in &self.conditions {
            match restored(name)? {
                0 => return Err(none(name)),
                1 => {}
                count => {
                    return Err(TenantError::BadFilter(format!(
                        "`{name}` means {count} tables, and a condition is on one: say `schema.table`"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether rows of the table are restored.
    pub(crate) fn chooses(&self, table: &TableName) -> bool {
        let named = |name: &str| Pattern::of(name).is_ok_and(|meant| meant.is(table));
        self.is_everything()
            || self.tables.iter().any(|name| named(name))
            || self.condition(table).is_some()
    }

    /// Which of its rows.
    pub(crate) fn condition(&self, table: &TableName) -> Option<&str> {
        let is_meant = |name: &str| Pattern::of(name).is_ok_and(|meant| meant.is(table));
        let found = self.conditions.iter().find(|(name, _)| is_meant(name));
        found.map(|(_, condition)| condition.as_str())
    }
}

fn is_restored(class: &TableClass) -> bool {
    match class {
        TableClass::Direct { .. }
        | TableClass::Via { .. }
        | TableClass::Polymorphic { .. }
        | TableClass::Whole { .. } => true,
        TableClass::Shared | TableClass::Ignored | TableClass::Unclassified { .. } => false,
    }
}

/// A name as people write it.
struct Pattern(GlobMatcher);

impl Pattern {
    fn of(text: &str) -> Result<Self, TenantError> {
        // Only `*` has a meaning: the other characters of globs are found in names.
        let escaped: String = text
            .chars()
            .flat_map(|letter| match letter {
                '*' => vec!['*'],
                '?' | '[' | ']' | '{' | '}' | '!' | '\\' => vec!['\\', letter],
                other => vec![other],
            })
            .collect();
        let glob = GlobBuilder::new(&escaped)
            .backslash_escape(true)
            .build()
            .map_err(|error| TenantError::BadFilter(format!("`{text}`: {error}")))?;
        Ok(Self(glob.compile_matcher()))
    }

    fn is(&self, table: &TableName) -> bool {
        self.0.is_match(&table.name) || self.0.is_match(table.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(tables: &[&str], conditions: &[&str]) -> Result<Filter, TenantError> {
        let owned = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        Filter::new(&owned(tables), &owned(conditions))
    }

    fn table(schema: &str, name: &str) -> TableName {
        TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn names_are_with_or_without_their_schema_or_with_a_star() {
        let some = filter(
            &["sales_order, billing.*"],
            &["public.item: price > 5::numeric"],
        )
        .unwrap();
        for (schema, name, chosen) in [
            ("public", "sales_order", true),
            ("archive", "sales_order", true),
            ("public", "sales_order_line", false),
            ("billing", "invoice", true),
            ("public", "item", true),
            ("other", "item", false),
        ] {
            assert_eq!(
                some.chooses(&table(schema, name)),
                chosen,
                "{schema}.{name}"
            );
        }
        let item = table("public", "item");
        assert_eq!(some.condition(&item), Some("price > 5::numeric"));
        assert_eq!(some.condition(&table("public", "sales_order")), None);
        assert!(!some.is_everything());
        assert!(filter(&[], &[]).unwrap().chooses(&item));
        assert!(
            filter(&["odd[1]"], &[])
                .unwrap()
                .chooses(&table("public", "odd[1]"))
        );
    }

    #[test]
    fn what_is_no_filter_is_said() {
        for (tables, conditions, said) in [
            (vec![""], vec![], "without a name"),
            (vec![], vec!["price > 5"], "is no `TABLE: CONDITION`"),
            (vec![], vec!["price::int > 5"], "is no `TABLE: CONDITION`"),
            (vec![], vec!["item: "], "is no `TABLE: CONDITION`"),
            (vec![], vec!["item: a", "item: b"], "two conditions"),
        ] {
            let error = filter(&tables, &conditions).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

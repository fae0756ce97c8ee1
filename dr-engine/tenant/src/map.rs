//! The tenancy map: how each table of a database belongs to tenants.

use std::collections::BTreeSet;
use std::fmt;

pub use dr_model::TableName;
use dr_model::WorkloadName;
use serde::{Deserialize, Serialize};

/// One step from a table to the table its rows belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The foreign key.
    pub constraint: String,
    /// Its columns.
    pub columns: Vec<String>,
    /// The table it refers to.
    pub parent: TableName,
    /// The columns it refers to.
    pub parent_columns: Vec<String>,
    /// The equality operators, qualified, one for each column.
    pub operators: Vec<String>,
    /// Rows of tables that inherit from the parent are not meant: no key covers them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
}

/// One of the tables that a row can belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What the telling column holds then.
    pub value: String,
    /// The step there.
    pub hop: Hop,
}

/// Columns of different types are compared by their text.
pub(crate) const AS_TEXT: &str = "as text";

/// How a table's rows belong to tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "class")]
pub enum TableClass {
    /// A column holds the tenant's id.
    Direct {
        /// The column.
        column: String,
        /// Its type, without a length.
        column_type: String,
        /// Which of the tenant's other ids it holds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// The equality of its type, qualified; `=` where it has none of its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        equals: Option<String>,
        /// Compared by its text: not every id is a value of its type.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        as_text: bool,
    },
    /// Rows belong to the tenant of the row that a foreign key refers to.
    Via {
        /// The next step; further ones are the parent's own class.
        hop: Hop,
        /// Steps to the table with the tenant column.
        depth: usize,
    },
    /// Rows belong to the tenant of the row that they refer to, in one table or another.
    Polymorphic {
        /// The column that says in which.
        column: String,
        /// Each with the next step.
        cases: Vec<Case>,
        /// Steps to the table with the tenant column, the most there are.
        depth: usize,
    },
    /// All of its rows are one tenant's: it is in that tenant's schema or database.
    Whole {
        /// The tenant's id.
        tenant: String,
    },
    /// Belongs to all tenants; never written.
    Shared,
    /// Belongs to nobody; never written.
    Ignored,
    /// In no class: any restore is refused.
    Unclassified {
        /// Why it could not be classified.
        reason: String,
        /// Classes that could be declared, as YAML values.
        choices: Vec<String>,
    },
}

/// One table with its class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedTable {
    /// The table.
    pub table: TableName,
    /// Its class.
    #[serde(flatten)]
    pub class: TableClass,
    /// Whether the configuration says so, and not the system catalogs.
    pub declared: bool,
}

impl MappedTable {
    fn is_whole(&self) -> bool {
        matches!(self.class, TableClass::Whole { .. })
    }
}

/// The tenancy map of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenancyMap {
    /// The workload.
    pub workload: WorkloadName,
    /// The database.
    pub database: String,
    /// All permanent tables, partitions folded into their parents, in order of name.
    pub tables: Vec<MappedTable>,
}

impl TableClass {
    /// In words: `direct tenant_id`, `via order_id -> public.sales_order`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Direct { column, id, .. } => match id {
                Some(id) => format!("direct {column} (the tenant's {id})"),
                None => format!("direct {column}"),
            },
            Self::Polymorphic { column, cases, .. } => {
                let case = |case: &Case| format!("{} -> {}", case.value, case.hop.parent);
                let cases: Vec<String> = cases.iter().map(case).collect();
                format!("by {column}: {}", cases.join(", "))
            }
            Self::Via { hop, .. } => format!("via {} -> {}", hop.columns.join(", "), hop.parent),
            Self::Whole { tenant } => format!("all of tenant {tenant}"),
            Self::Shared => "shared".to_owned(),
            Self::Ignored => "ignored".to_owned(),
            Self::Unclassified { .. } => "unclassified".to_owned(),
        }
    }
}

impl TableClass {
    /// Steps to the table with the tenant column; `None` where the rows are no tenant's.
    #[must_use]
    pub fn depth(&self) -> Option<usize> {
        match self {
            Self::Direct { .. } | Self::Whole { .. } => Some(0),
            Self::Via { depth, .. } | Self::Polymorphic { depth, .. } => Some(*depth),
            Self::Shared | Self::Ignored | Self::Unclassified { .. } => None,
        }
    }

    /// The columns of the table itself that say whose a row is.
    pub(crate) fn telling(&self) -> Vec<&String> {
        match self {
            Self::Direct { column, .. } => vec![column],
            Self::Via { hop, .. } => hop.columns.iter().collect(),
            Self::Polymorphic { column, cases, .. } => {
                let columns = cases.iter().flat_map(|case| &case.hop.columns);
                columns.chain([column]).collect()
            }
            Self::Whole { .. } | Self::Shared | Self::Ignored | Self::Unclassified { .. } => {
                Vec::new()
            }
        }
    }

    /// Steps for which there is no foreign key.
    pub(crate) fn declared_hops(&self) -> Vec<&Hop> {
        let hops: Vec<&Hop> = match self {
            Self::Via { hop, .. } => vec![hop],
            Self::Polymorphic { cases, .. } => cases.iter().map(|case| &case.hop).collect(),
            _ => Vec::new(),
        };
        hops.into_iter()
            .filter(|hop| hop.constraint.is_empty())
            .collect()
    }

    /// As it is declared in `dr.yaml`; an unclassified one by what could be chosen.
    fn declaration(&self) -> String {
        let column_of = |hop: &Hop| {
            let (own, other) = (hop.columns.first(), hop.parent_columns.first());
            let text = |name: Option<&String>| name.cloned().unwrap_or_default();
            (text(own), format!("{}.{}", hop.parent, text(other)))
        };
        match self {
            Self::Direct {
                column,
                id: Some(id),
                ..
            } => format!(
                "{{ direct: {{ column: {}, id: {} }} }}",
                yaml(column),
                yaml(id)
            ),
            Self::Direct { column, .. } => format!("{{ direct: {} }}", yaml(column)),
            Self::Via { hop, .. } if hop.constraint.is_empty() => {
                let pairs = hop.columns.iter().zip(&hop.parent_columns);
                let pairs: Vec<String> = pairs
                    .map(|(own, other)| {
                        format!(
                            "{}: {}",
                            yaml(own),
                            yaml(&format!("{}.{other}", hop.parent))
                        )
                    })
                    .collect();
                format!("{{ via: {{ {} }} }}", pairs.join(", "))
            }
            // By its name: there may be two foreign keys on a column.
            Self::Via { hop, .. } => format!("{{ via: {} }}", yaml(&hop.constraint)),
            Self::Polymorphic { column, cases, .. } => {
                let id = cases.first().map(|case| column_of(&case.hop).0);
                let to: Vec<String> = cases
                    .iter()
                    .map(|case| format!("{}: {}", yaml(&case.value), yaml(&column_of(&case.hop).1)))
                    .collect();
                format!(
                    "{{ polymorphic: {{ type: {}, id: {}, to: {{ {} }} }} }}",
                    yaml(column),
                    yaml(&id.unwrap_or_default()),
                    to.join(", ")
                )
            }
            Self::Shared => "shared".to_owned(),
            // Tables that are wholly one tenant's are not declared: where they are says it.
            Self::Whole { .. } | Self::Ignored => "ignored".to_owned(),
            Self::Unclassified { choices, .. } => choices
                .first()
                .cloned()
                .unwrap_or_else(|| "ignored".to_owned()),
        }
    }
}

/// A word as YAML: in quotes unless it is plain.
pub(crate) fn yaml(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins = word
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let is_word = !matches!(
        word.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if begins && is_word && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

impl TenancyMap {
    /// The tables in no class.
    pub fn unclassified(&self) -> impl Iterator<Item = (&MappedTable, &str)> {
        self.tables.iter().filter_map(|mapped| match &mapped.class {
            TableClass::Unclassified { reason, .. } => Some((mapped, reason.as_str())),
            _ => None,
        })
    }

    /// How many of the tables have a class, of how many.
    #[must_use]
    pub fn coverage(&self) -> (usize, usize) {
        let open = self.unclassified().count();
        (self.tables.len() - open, self.tables.len())
    }

    /// The whole map, to be declared in the workload's section of `dr.yaml`: from then on a change of the
    /// schema that the map does not know is told ([`Self::undeclared`]).
    #[must_use]
    pub fn declarations(&self) -> String {
        let mut lines = String::from("tenancy:\n  tables:\n");
        for mapped in self.tables.iter().filter(|mapped| !mapped.is_whole()) {
            let name = yaml(&mapped.table.to_string());
            let class = mapped.class.declaration();
            match &mapped.class {
                // Not as a declaration: nobody has decided.
                TableClass::Unclassified { reason, .. } => {
                    lines.push_str(&format!(
                        "    # {name}: {class}   to be decided: {reason}\n"
                    ));
                }
                _ => lines.push_str(&format!("    {name}: {class}\n")),
            }
        }
        lines
    }

    /// Tables that the configuration does not declare.
    pub fn undeclared(&self) -> impl Iterator<Item = &MappedTable> {
        self.tables
            .iter()
            .filter(|mapped| !mapped.declared && !mapped.is_whole())
    }

    /// What to add to the workload's section of `dr.yaml`; `None` when every table has a class.
    #[must_use]
    pub fn yaml(&self) -> Option<String> {
        let mut lines = String::from("tenancy:\n  tables:\n");
        let mut any = false;
        for mapped in &self.tables {
            if let TableClass::Unclassified { reason, choices } = &mapped.class {
                any = true;
                let choice = choices.first().map_or("ignored", String::as_str);
                let others = choices.get(1..).unwrap_or_default().join(" or ");
                let others = if others.is_empty() {
                    String::new()
                } else {
                    format!(" (or {others})")
                };
                lines.push_str(&format!(
                    "    {}: {choice}  # {reason}{others}\n",
                    mapped.table
                ));
            }
        }
        any.then_some(lines)
    }
}

impl fmt::Display for TenancyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, shown): (Vec<_>, Vec<_>) = self.tables.iter().partition(|t| t.is_whole());
        let width = shown
            .iter()
            .map(|t| t.table.to_string().len())
            .max()
            .unwrap_or(5)
            .max(5);
        writeln!(f, "{:<width$}  class", "table")?;
        for mapped in &shown {
            let declared = if mapped.declared { " (declared)" } else { "" };
            write!(
                f,
                "{:<width$}  {}{declared}",
                mapped.table,
                mapped.class.describe()
            )?;
            match &mapped.class {
                TableClass::Unclassified { reason, .. } => writeln!(f, ": {reason}")?,
                _ => writeln!(f)?,
            }
        }
        if !whole.is_empty() {
            let tenants: BTreeSet<String> = whole.iter().map(|t| t.class.describe()).collect();
            writeln!(
                f,
                "\n{} more tables are in the schemas or databases of {} tenants, all of whose rows are theirs",
                whole.len(),
                tenants.len()
            )?;
        }
        let (classified, all) = self.coverage();
        writeln!(f, "\n{classified} of {all} tables have a class")?;
        Ok(())
    }
}

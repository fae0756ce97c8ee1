//! Schemas made at random, with every way in which a row can be a tenant's.

use std::fmt::Write as _;

use dr_config::{DirectBy, Names, OtherId, Polymorphic, ViaBy};

use super::beside::{FOREIGN, MATERIALIZED, VIEW, Watch};
use super::*;

/// A small generator: what is made depends on the seed alone.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % u64::try_from(below).unwrap()).unwrap()
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.roll(count) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Serial,
    Identity,
    Uuid,
    Text,
    /// Partitioned: its key has the date in it.
    Dated,
    /// The two foreign keys of a join table.
    Pair,
    None,
}

impl Key {
    pub(super) fn can_be_referred_to(self) -> bool {
        !matches!(self, Self::Dated | Self::Pair | Self::None)
    }

    /// Whether its numbers come from a sequence.
    pub(super) fn is_numbered(self) -> bool {
        matches!(self, Self::Serial | Self::Identity | Self::Dated)
    }

    fn sql_type(self) -> &'static str {
        match self {
            Self::Serial | Self::Identity | Self::Dated | Self::Pair | Self::None => "int",
            Self::Uuid => "uuid",
            Self::Text => "text",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Column,
    NullableColumn,
    ForeignColumn,
    TextColumn,
    EnumColumn,
    Code,
    Uid,
    Via {
        parent: usize,
        nullable: bool,
    },
    Declared {
        parent: usize,
        as_text: bool,
    },
    Polymorphic {
        parents: [usize; 2],
    },
    /// A join table: of the first's tenant.
    Join {
        parents: [usize; 2],
    },
    Shared,
}

impl Owner {
    /// The column that says whose a row is, where there is one.
    pub(super) fn column(&self) -> Option<&'static str> {
        match self {
            Self::Column | Self::EnumColumn => Some("org_id"),
            Self::NullableColumn | Self::ForeignColumn | Self::TextColumn => Some("\"OrgId\""),
            _ => None,
        }
    }

    fn is_direct(&self) -> bool {
        match self {
            Self::Column
            | Self::NullableColumn
            | Self::ForeignColumn
            | Self::TextColumn
            | Self::EnumColumn
            | Self::Code
            | Self::Uid => true,
            Self::Via { .. }
            | Self::Declared { .. }
            | Self::Polymorphic { .. }
            | Self::Join { .. }
            | Self::Shared => false,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) key: Key,
    pub(super) owner: Owner,
    pub(super) refers_to_itself: bool,
    /// It refers to one of the rows that refer to it: a cycle.
    pub(super) back: Option<usize>,
    has_generated: bool,
    pub(super) is_inherited: bool,
    /// A trigger changes each row that is updated.
    pub(super) is_touched: bool,
    /// A trigger notes every write in a table of its own.
    is_audited: bool,
    /// It gets a column after the target, with a default that differs from row to row.
    pub(super) grows: bool,
    /// It loses a column after the target.
    pub(super) shrinks: bool,
    /// Its rows refer to large objects.
    pub(super) has_documents: bool,
}

pub(super) struct Schema {
    pub(super) tables: Vec<Table>,
    pub(super) watch: Option<Watch>,
}

impl Schema {
    pub(super) fn random(dice: &mut Dice) -> Self {
        let mut tables: Vec<Table> = Vec::new();
        for number in 0..4 + dice.roll(5) {
            let parents: Vec<usize> = (0..tables.len())
                .filter(|&place| {
                    tables[place].key.can_be_referred_to() && tables[place].owner != Owner::Shared
                })
                .collect();
            let parent = |dice: &mut Dice| parents[dice.roll(parents.len())];
            let owner = match dice.roll(if parents.is_empty() { 7 } else { 14 }) {
                0 => Owner::Column,
                1 => Owner::NullableColumn,
                2 => Owner::ForeignColumn,
                3 => Owner::Code,
                4 => Owner::Uid,
                5 => Owner::TextColumn,
                6 => Owner::EnumColumn,
                7 | 8 => Owner::Via {
                    parent: parent(dice),
                    nullable: dice.one_in(2),
                },
                9 | 10 => Owner::Declared {
                    parent: parent(dice),
                    as_text: dice.one_in(2),
                },
                11 => Owner::Polymorphic {
                    parents: [parent(dice), parent(dice)],
                },
                12 => Owner::Join {
                    parents: [parent(dice), parent(dice)],
                },
                _ => Owner::Shared,
            };
            let key = match dice.roll(8) {
                _ if matches!(owner, Owner::Join { .. }) => Key::Pair,
                0 | 1 => Key::Serial,
                2 => Key::Identity,
                3 | 4 => Key::Uuid,
                5 => Key::Text,
                6 => Key::Dated,
                _ => Key::None,
            };
            tables.push(Table {
                name: format!("t{number}"),
                key,
                has_documents: owner != Owner::Shared && dice.one_in(5),
                owner,
                refers_to_itself: key.can_be_referred_to() && dice.one_in(3),
                back: None,
                has_generated: dice.one_in(3),
                is_inherited: !matches!(key, Key::Dated | Key::Pair) && dice.one_in(6),
                is_touched: dice.one_in(4),
                is_audited: dice.one_in(4),
                grows: dice.one_in(4),
                shrinks: dice.one_in(6),
            });
        }
        for place in 0..tables.len() {
            let Owner::Via { parent, .. } = tables[place].owner else {
                continue;
            };
            if tables[place].key.can_be_referred_to()
                && tables[parent].owner.is_direct()
                && dice.one_in(2)
            {
                tables[parent].back = Some(place);
            }
        }
        let watch = dice.one_in(3).then(|| Watch::random(dice, tables.len()));
        Self { tables, watch }
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = &'static str> {
        let watched = self
            .watch
            .iter()
            .flat_map(|_| [VIEW, MATERIALIZED, FOREIGN]);
        self.tables.iter().flat_map(Table::classes).chain(watched)
    }

    /// A table as it stands in FROM, without what inherits from it.
    pub(super) fn from(&self, place: usize) -> String {
        let table = &self.tables[place];
        let only = if table.key == Key::Dated { "" } else { "only " };
        format!("{only}s.{}", table.name)
    }

    /// All tables with rows of tenants, each with its condition for tenant `$`.
    pub(super) fn owned(&self) -> BTreeMap<String, String> {
        let mut owned = BTreeMap::from([("s.org".to_owned(), "id = $".to_owned())]);
        for (place, table) in self.tables.iter().enumerate() {
            owned.insert(self.from(place), self.own(place));
            if table.is_inherited {
                owned.insert(format!("s.{}_more", table.name), self.own(place));
            }
        }
        owned
    }

    /// The condition for one tenant.
    pub(super) fn of(&self, place: usize, tenant: &str) -> String {
        format!("({})", self.own(place).replace('$', tenant))
    }

    /// The condition for tenant `$`, on rows of a table.
    fn own(&self, place: usize) -> String {
        let table = &self.tables[place];
        let parents = |parent: usize| {
            let name = &self.tables[parent].name;
            format!(
                "(select id::text from only s.{name} where {})",
                self.own(parent)
            )
        };
        match &table.owner {
            Owner::Column => "org_id = $".to_owned(),
            Owner::NullableColumn | Owner::ForeignColumn => "\"OrgId\" = $".to_owned(),
            Owner::TextColumn => "\"OrgId\" = '$'".to_owned(),
            Owner::EnumColumn => "org_id = '$'".to_owned(),
            Owner::Code => "org_code = (select code from s.org o where o.id = $)".to_owned(),
            Owner::Uid => "org_uid = (select uid from s.org o where o.id = $)".to_owned(),
            Owner::Via { parent, .. }
            | Owner::Declared { parent, .. }
            | Owner::Join {
                parents: [parent, _],
            } => {
                format!("ref::text in {}", parents(*parent))
            }
            Owner::Polymorphic {
                parents: [one, two],
            } => format!(
                "(kind = 'one' and about in {} or kind = 'two' and about in {})",
                parents(*one),
                parents(*two)
            ),
            Owner::Shared => "false".to_owned(),
        }
    }

    pub(super) fn ddl(&self) -> String {
        let mut sql = String::from(
            "create schema s; create table s.audit (at timestamptz default now(), by text, what text);
             create function s.audited() returns trigger language plpgsql as $$ begin
               insert into s.audit (by, what) values (current_setting('application_name'), tg_op || ' ' || tg_table_name);
               return null; end $$;
             create function s.touched() returns trigger language plpgsql as $$ begin
               new.touched := old.touched + 1; return new; end $$;
             create type s.org_kind as enum ('0', '1', '2', '3', '4');
             create table s.org (id int primary key, code text unique not null, \
             uid uuid unique not null, name text not null);
             insert into s.org select n, 'c' || n, gen_random_uuid(), 'org ' || n from generate_series(0, 4) n;",
        );
        for table in &self.tables {
            sql.push_str(&self.ddl_of(table));
            sql.push_str(&table.triggers());
        }
        for table in &self.tables {
            if let Some(back) = table.back {
                let child = &self.tables[back];
                let (name, key) = (&table.name, child.key.sql_type());
                write!(
                    sql,
                    "alter table s.{name} add column back {key} references s.{};",
                    child.name
                )
                .unwrap();
            }
        }
        sql.push_str(&self.ddl_beside());
        sql
    }

    /// The columns that say whose a row is.
    fn owner_columns(&self, owner: &Owner) -> String {
        let key = |place: &usize| self.tables[*place].key.sql_type();
        let refers =
            |place: &usize| format!("{} references s.{}", key(place), self.tables[*place].name);
        match owner {
            Owner::Column => "org_id int not null references s.org".to_owned(),
            Owner::NullableColumn => "\"OrgId\" int".to_owned(),
            Owner::ForeignColumn => "\"OrgId\" bigint not null".to_owned(),
            Owner::TextColumn => "\"OrgId\" text not null".to_owned(),
            Owner::EnumColumn => "org_id s.org_kind not null".to_owned(),
            Owner::Code => "org_code varchar(9) not null".to_owned(),
            Owner::Uid => "org_uid uuid not null".to_owned(),
            Owner::Via { parent, nullable } => {
                let null = if *nullable { "" } else { " not null" };
                format!("ref {}{null}", refers(parent))
            }
            Owner::Declared { as_text: true, .. } => "ref text".to_owned(),
            Owner::Declared { parent, .. } => format!("ref {}", key(parent)),
            Owner::Polymorphic { .. } => "kind text, about text".to_owned(),
            Owner::Join {
                parents: [one, two],
            } => format!("ref {}, ref2 {}", refers(one), refers(two)),
            Owner::Shared => "what text".to_owned(),
        }
    }

    fn ddl_of(&self, table: &Table) -> String {
        let name = &table.name;
        let key = match table.key {
            Key::Serial => "id serial primary key",
            Key::Identity => "id int generated always as identity primary key",
            Key::Uuid => "id uuid primary key default gen_random_uuid()",
            Key::Text => "id text primary key default md5(random()::text)",
            Key::Dated => "id serial, primary key (id, at)",
            Key::Pair => "primary key (ref, ref2)",
            Key::None => "id int",
        };
        let owner = self.owner_columns(&table.owner);
        let mut more = String::new();
        if table.refers_to_itself {
            write!(more, ", up {} references s.{name}", table.key.sql_type()).unwrap();
        }
        if table.has_generated {
            more.push_str(", twice int generated always as (v * 2) stored");
        }
        if table.is_touched {
            more.push_str(", touched int not null default 0");
        }
        if table.shrinks {
            more.push_str(", former text default 'f'");
        }
        if table.has_documents {
            more.push_str(", doc oid");
        }
        let partition = match table.key {
            Key::Dated => " partition by range (at)",
            _ => "",
        };
        let mut sql = format!(
            "create table s.{name} ({owner}, at date not null default '2026-01-15', v int, note text, \
             amount numeric, marks text[]{more}, {key}){partition};"
        );
        if table.key == Key::Dated {
            for (part, from, to) in [
                (1, "2026-01-01", "2026-02-01"),
                (2, "2026-02-01", "2027-01-01"),
            ] {
                write!(
                    sql,
                    "create table s.{name}_{part} partition of s.{name} for values from ('{from}') to ('{to}');"
                )
                .unwrap();
            }
        }
        if table.is_inherited {
            write!(
                sql,
                "create table s.{name}_more (extra int) inherits (s.{name});"
            )
            .unwrap();
        }
        sql
    }

    pub(super) fn tenancy(&self) -> TenancyConfig {
        let mut tables = vec![
            ("s.org".to_owned(), TenantTable::Direct("id".into())),
            ("s.audit".to_owned(), TenantTable::Ignored),
        ];
        // It has the tenant column, and nobody knows what it held: the map wants to be told.
        tables.extend(
            self.watch
                .map(|_| ("s.elsewhere".to_owned(), TenantTable::Ignored)),
        );
        let other = |column: &str, id: &str| {
            TenantTable::Direct(DirectBy::OtherId(OtherId {
                column: column.to_owned(),
                id: id.to_owned(),
            }))
        };
        for table in &self.tables {
            let to = |parent: usize| format!("s.{}.id", self.tables[parent].name);
            let class = match &table.owner {
                Owner::Code => other("org_code", "code"),
                Owner::Uid => other("org_uid", "uid"),
                Owner::Declared { parent, .. } => {
                    TenantTable::Via(ViaBy::Columns([("ref".to_owned(), to(*parent))].into()))
                }
                Owner::Polymorphic {
                    parents: [one, two],
                } => {
                    let to = [("one".to_owned(), to(*one)), ("two".to_owned(), to(*two))];
                    TenantTable::Polymorphic(Polymorphic {
                        kind: "kind".to_owned(),
                        id: "about".to_owned(),
                        to: to.into(),
                    })
                }
                // Both foreign keys are in its primary key.
                Owner::Join { .. } => TenantTable::Via(ViaBy::Key("ref".to_owned())),
                Owner::Shared => TenantTable::Shared,
                // What inherits has the columns, and none of the foreign keys.
                Owner::Via { parent, .. } if table.is_inherited => {
                    let class =
                        TenantTable::Via(ViaBy::Columns([("ref".to_owned(), to(*parent))].into()));
                    tables.push((format!("s.{}_more", table.name), class));
                    continue;
                }
                _ => continue,
            };
            if table.is_inherited {
                tables.push((format!("s.{}_more", table.name), class.clone()));
            }
            tables.push((format!("s.{}", table.name), class));
        }
        TenancyConfig {
            column: Names(vec!["org_id".to_owned(), "OrgId".to_owned()]),
            tenants: Some("select id, name, code, uid from s.org".to_owned()),
            shared_ids: vec!["0".to_owned()],
            tables: tables.into_iter().collect(),
            ..super::tenancy("", &[])
        }
    }
}

impl Table {
    pub(super) fn has_tenants(&self) -> bool {
        self.owner != Owner::Shared
    }

    fn triggers(&self) -> String {
        let name = &self.name;
        let mut sql = String::new();
        if self.is_touched {
            write!(
                sql,
                "create trigger touched before update on s.{name} for each row execute function s.touched();"
            )
            .unwrap();
        }
        if self.is_audited {
            write!(
                sql,
                "create trigger audited after insert or update or delete on s.{name} \
                 for each row execute function s.audited();"
            )
            .unwrap();
        }
        sql
    }

    fn classes(&self) -> Vec<&'static str> {
        let mut found = vec![
            match &self.owner {
                Owner::Via { nullable: true, .. } => "nullable foreign key",
                Owner::Via { .. } => "foreign key",
                Owner::Declared { as_text: true, .. } => "declared, of another type",
                Owner::Declared { .. } => "declared, no foreign key",
                Owner::Polymorphic { .. } => "polymorphic",
                Owner::Column => "tenant column",
                Owner::NullableColumn => "nullable tenant column",
                Owner::ForeignColumn => "tenant column of another name and type",
                Owner::TextColumn => "tenant column of type text",
                Owner::EnumColumn => "tenant column of an enumeration",
                Owner::Join { .. } => "join table",
                Owner::Code => "another id, text",
                Owner::Uid => "another id, uuid",
                Owner::Shared => "shared",
            },
            match self.key {
                Key::Serial => "serial key",
                Key::Identity => "identity key",
                Key::Uuid => "uuid key",
                Key::Text => "text key",
                Key::Dated => "partitioned",
                Key::Pair => "key of two foreign keys",
                Key::None => "no key",
            },
        ];
        let more = [
            (self.refers_to_itself, "self-reference"),
            (self.back.is_some(), "cycle"),
            (self.has_generated, "generated column"),
            (self.is_inherited, "inherited"),
            (self.is_touched, "trigger that changes the row"),
            (self.is_audited, "trigger that writes elsewhere"),
            (self.grows, "column added since"),
            (
                self.grows && self.key == Key::None,
                "column added since, no key",
            ),
            (self.shrinks, "column dropped since"),
            (self.has_documents, "large objects"),
        ];
        found.extend(more.iter().filter(|(has, _)| *has).map(|(_, class)| *class));
        found
    }
}

/// Every class that a table can have.
pub(super) const CLASSES: [&str; 34] = [
    "nullable foreign key",
    "foreign key",
    "declared, of another type",
    "declared, no foreign key",
    "polymorphic",
    "tenant column",
    "nullable tenant column",
    "tenant column of another name and type",
    "tenant column of type text",
    "tenant column of an enumeration",
    "join table",
    "another id, text",
    "another id, uuid",
    "shared",
    "serial key",
    "identity key",
    "uuid key",
    "text key",
    "partitioned",
    "key of two foreign keys",
    "no key",
    "self-reference",
    "cycle",
    "generated column",
    "inherited",
    "trigger that changes the row",
    "trigger that writes elsewhere",
    "column added since",
    "column added since, no key",
    "column dropped since",
    "large objects",
    VIEW,
    MATERIALIZED,
    FOREIGN,
];

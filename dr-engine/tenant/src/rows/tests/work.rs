//! What is done to the tables of a made schema: their data, what tenants do every day, what a mistake does, and
//! how the tables themselves change.

use std::fmt::Write as _;

use super::schemas::{Dice, Key, Owner, Schema};

/// Where the values come from that say whose new rows are.
struct Source {
    columns: &'static str,
    value: String,
    /// Rows called `p`.
    from: String,
    /// So many rows for each of them, if it is not said elsewhere.
    copies: Option<usize>,
}

/// Rows that nothing is done to but what the test does to them ([`super::strays`]).
pub(super) const PLAIN: &str = "note is distinct from 'stray'";

impl Schema {
    /// What makes new rows of a table these tenants': none for what is everybody's.
    fn sources(&self, place: usize, tenants: &[&str]) -> Vec<Source> {
        let list = tenants.join(", ");
        let org = |columns: &'static str, value: &str| {
            vec![Source {
                columns,
                value: value.to_owned(),
                from: format!("(select * from s.org where id in ({list})) p"),
                copies: None,
            }]
        };
        let below = |parent: usize, columns: &'static str, value: &str| {
            let own: Vec<String> = tenants.iter().map(|t| self.of(parent, t)).collect();
            Source {
                columns,
                value: value.to_owned(),
                from: format!(
                    "(select id from only s.{} where ({}) and {PLAIN} order by id::text limit 30) p",
                    self.tables[parent].name,
                    own.join(" or ")
                ),
                copies: Some(2),
            }
        };
        let pairs = |one: usize, two: usize| {
            let some = |place: usize, tenant: &str| {
                let (name, own) = (&self.tables[place].name, self.of(place, tenant));
                format!("(select id from only s.{name} where {own} and {PLAIN})")
            };
            let pairs = tenants.iter().map(|tenant| {
                let (one, two) = (some(one, tenant), some(two, tenant));
                format!("select a.id, b.id as other from {one} a cross join {two} b")
            });
            let pairs = pairs.collect::<Vec<_>>().join(" union all ");
            Source {
                columns: "ref, ref2",
                value: "p.id, p.other".to_owned(),
                from: format!(
                    "(select * from ({pairs}) u order by md5(id::text || other::text) limit 60) p"
                ),
                copies: Some(1),
            }
        };
        match &self.tables[place].owner {
            Owner::Column => org("org_id", "p.id"),
            Owner::NullableColumn | Owner::ForeignColumn => org("\"OrgId\"", "p.id"),
            Owner::TextColumn => org("\"OrgId\"", "p.id::text"),
            Owner::EnumColumn => org("org_id", "p.id::text::s.org_kind"),
            Owner::Code => org("org_code", "p.code"),
            Owner::Uid => org("org_uid", "p.uid"),
            Owner::Via { parent, .. } => vec![below(*parent, "ref", "p.id")],
            Owner::Declared { parent, as_text } => match as_text {
                true => vec![below(*parent, "ref", "p.id::text")],
                false => vec![below(*parent, "ref", "p.id")],
            },
            Owner::Polymorphic {
                parents: [one, two],
            } => vec![
                below(*one, "kind, about", "'one', p.id::text"),
                below(*two, "kind, about", "'two', p.id::text"),
            ],
            Owner::Join {
                parents: [one, two],
            } => vec![pairs(*one, *two)],
            Owner::Shared => Vec::new(),
        }
    }

    /// A pair may be there already.
    fn on_conflict(&self, place: usize) -> &'static str {
        match self.tables[place].key {
            Key::Pair => "on conflict do nothing",
            _ => "",
        }
    }

    /// New rows of these tenants, or of nobody; `note` is an expression.
    pub(super) fn insert(&self, tenants: &[&str], count: usize, note: &str) -> String {
        let mut sql = String::new();
        for (place, table) in self.tables.iter().enumerate() {
            let name = &table.name;
            for source in self.sources(place, tenants) {
                let Source {
                    columns,
                    value,
                    from,
                    copies,
                } = source;
                let (copies, on_conflict) = (copies.unwrap_or(count), self.on_conflict(place));
                write!(
                    sql,
                    "insert into s.{name} ({columns}, v, note, amount, marks) \
                     select {value}, n, {note}, n * 1.10, array['a', null, n::text] \
                     from {from}, generate_series(1, {copies}) n {on_conflict};"
                )
                .unwrap();
            }
            if table.refers_to_itself {
                // To a row of the same tenant: to the one it has with the smallest key.
                for tenant in tenants {
                    let own = format!("{} and {PLAIN}", self.of(place, tenant));
                    write!(
                        sql,
                        "update only s.{name} set up = (select id from only s.{name} where {own} order by id::text \
                         limit 1) where {own} and up is null and v % 3 = 0;"
                    )
                    .unwrap();
                }
            }
        }
        for (place, table) in self.tables.iter().enumerate() {
            let (name, Some(back)) = (&table.name, table.back) else {
                continue;
            };
            for tenant in tenants {
                write!(
                    sql,
                    "update only s.{name} t set back = (select c.id from only s.{} c \
                       where c.ref = t.id and c.{PLAIN} order by c.id::text limit 1) \
                     where {} and {PLAIN} and back is null and v % 2 = 1;",
                    self.tables[back].name,
                    self.of(place, tenant)
                )
                .unwrap();
            }
        }
        sql
    }

    /// One new row of a tenant, with its text: none where the tenant has nothing to hang it on.
    pub(super) fn insert_one(
        &self,
        dice: &mut Dice,
        place: usize,
        tenant: &str,
        note: &str,
    ) -> Option<String> {
        let sources = self.sources(place, &[tenant]);
        let Source {
            columns,
            value,
            from,
            ..
        } = sources.get(dice.roll(sources.len().max(1)))?;
        let salt = dice.roll(1_000_000);
        Some(format!(
            "insert into s.{} as t ({columns}, v, note, amount, marks) \
             select {value}, {salt} % 100, '{note}', 1.10, array['{note}', null] \
             from {from} order by md5(p.id::text || '{salt}') limit 1 {} returning null::text, t::text",
            self.tables[place].name,
            self.on_conflict(place)
        ))
    }

    /// A statement that writes rows of a table and gives the former and the new text of each: `set` is what is
    /// updated, none deletes.
    pub(super) fn told(&self, place: usize, which: &str, set: Option<&str>) -> String {
        let from = self.from(place);
        let old = format!(
            "with old as (select t.ctid as place, t.tableoid as part, t::text as was from {from} t \
             where {which} for update of t)"
        );
        let found = "where t.ctid = old.place and t.tableoid = old.part returning old.was";
        match set {
            Some(set) => format!("{old} update {from} t set {set} from old {found}, t::text"),
            None => format!("{old} delete from {from} t using old {found}, null::text"),
        }
    }

    /// One statement of a tenant's daily work: the table and what is written there.
    pub(super) fn daily_work(&self, dice: &mut Dice, tenant: &str) -> Option<(String, String)> {
        let place = dice.roll(self.tables.len());
        if !self.tables[place].has_tenants() {
            return None;
        }
        let salt = dice.roll(1_000_000);
        let mut which = format!("{} and {PLAIN}", self.of(place, tenant));
        let one = format!(" order by md5(t::text || '{salt}') limit 1");
        let statement = match dice.roll(10) {
            0..4 => self.insert_one(dice, place, tenant, "work")?,
            4..7 => {
                let set = [
                    "v = v + 1",
                    "note = 'work'",
                    "amount = amount + 0.10",
                    "marks = marks || array['w']",
                    "at = case when at < '2026-02-01' then date '2026-02-10' else date '2026-01-10' end",
                ][dice.roll(5)];
                which.push_str(&one);
                self.told(place, &which, Some(set))
            }
            _ => {
                which.push_str(&self.unreferred(place));
                which.push_str(&one);
                self.told(place, &which, None)
            }
        };
        Some((self.from(place), statement))
    }

    /// What a tenant does to rows that came after the target.
    pub(super) fn work_on_new_rows(&self, tenant: &str) -> Vec<(String, String)> {
        let owned = (0..self.tables.len()).filter(|&place| self.tables[place].has_tenants());
        let work = owned.map(|place| {
            let which = format!("{} and note like 'new%'", self.of(place, tenant));
            (
                self.from(place),
                self.told(place, &which, Some("v = v + 1")),
            )
        });
        work.collect()
    }

    /// What a tenant still does when its restore is planned already: to rows that came after the target, to any,
    /// or new ones.
    pub(super) fn late_work(&self, dice: &mut Dice, tenant: &str) -> Vec<(String, String)> {
        let kind = dice.roll(3);
        if kind == 0 {
            return self.work_on_new_rows(tenant);
        }
        let mut work = Vec::new();
        for (place, table) in self.tables.iter().enumerate() {
            if !table.has_tenants() {
                continue;
            }
            let statement = if kind == 1 {
                let own = self.of(place, tenant);
                let which = format!("{own} and abs(hashtext(t::text)) % 3 = 0");
                Some(self.told(place, &which, Some("v = v + 1")))
            } else {
                self.insert_one(dice, place, tenant, "late")
            };
            work.extend(statement.map(|statement| (self.from(place), statement)));
        }
        work
    }

    /// Rows that are nobody's, and everybody's.
    pub(super) fn insert_others(&self) -> String {
        let mut sql = self.insert(&["0"], 3, "'n' || n");
        for table in &self.tables {
            let name = &table.name;
            sql.push_str(&match &table.owner {
                Owner::NullableColumn => {
                    format!("insert into s.{name} (v) select 7 from generate_series(1, 3);")
                }
                Owner::Via { nullable: true, .. } => {
                    format!("insert into s.{name} (v) values (8), (9);")
                }
                Owner::Polymorphic { .. } => {
                    format!("insert into s.{name} (kind, about, v) values ('three', '1', 1);")
                }
                Owner::Shared => {
                    format!("insert into s.{name} (what, v) values ('x', 1), ('y', 2);")
                }
                _ => String::new(),
            });
            // Rows with the very keys of the parent's, of another tenant: no foreign key means them.
            let column = match &table.owner {
                Owner::Column => "org_id",
                Owner::NullableColumn | Owner::ForeignColumn => "\"OrgId\"",
                _ => continue,
            };
            if table.is_inherited {
                write!(
                    sql,
                    "insert into s.{name}_more ({column}, id, v, note) select {column} % 4 + 1, id, v, 'more' \
                     from only s.{name} where {column} between 1 and 4 and v % 2 = 0;"
                )
                .unwrap();
            }
        }
        sql
    }

    /// What changes in the tables themselves after the target.
    pub(super) fn drift(&self) -> String {
        let mut sql = String::new();
        for table in &self.tables {
            let name = &table.name;
            if table.grows {
                write!(
                    sql,
                    "alter table s.{name} add column later int not null default (random() * 9)::int;
                     update s.{name} set later = 10 + coalesce(v, 0) where v % 2 = 0;"
                )
                .unwrap();
            }
            if table.shrinks {
                write!(sql, "alter table s.{name} drop column former;").unwrap();
            }
        }
        sql
    }

    /// ` and …`: no row refers to row `t` of a table, by a foreign key or without one.
    pub(super) fn unreferred(&self, place: usize) -> String {
        let mut unreferred = String::new();
        for (number, child) in self.tables.iter().enumerate() {
            let (by_owner, by_other) = match &child.owner {
                Owner::Via { parent, .. } | Owner::Declared { parent, .. } => {
                    (*parent == place, false)
                }
                Owner::Join {
                    parents: [one, two],
                } => (*one == place, *two == place),
                _ => (false, false),
            };
            let is_about =
                matches!(&child.owner, Owner::Polymorphic { parents } if parents.contains(&place));
            for (refers, column) in [
                (by_owner, "ref::text"),
                (by_other, "ref2::text"),
                (is_about, "about"),
                (number == place && child.refers_to_itself, "up::text"),
                (child.back == Some(place), "back::text"),
            ] {
                if refers {
                    write!(
                        unreferred,
                        " and not exists (select from s.{} c where c.{column} = t.id::text)",
                        child.name
                    )
                    .unwrap();
                }
            }
        }
        unreferred
    }

    /// What a bad statement does to a tenant.
    pub(super) fn mistake(&self, dice: &mut Dice, tenant: &str) -> String {
        let mut sql = String::new();
        for (place, table) in self.tables.iter().enumerate() {
            if table.back.is_some() && dice.one_in(2) {
                let (name, own) = (&table.name, self.of(place, tenant));
                write!(
                    sql,
                    "update s.{name} t set back = null where {own} and {PLAIN} and abs(hashtext(t::text)) % 2 = 0;"
                )
                .unwrap();
            }
        }
        sql.push_str(&self.spoil_documents(dice, tenant));
        for (place, table) in self.tables.iter().enumerate().rev() {
            let name = &table.name;
            let own = format!("{} and {PLAIN}", self.of(place, tenant));
            let salt = dice.roll(1_000_000);
            let some = |of: usize| format!("abs(hashtext(t::text || '{salt}')) % {of} = 0");
            if !dice.one_in(4) {
                let all = if dice.one_in(3) {
                    "true".to_owned()
                } else {
                    some(2)
                };
                let unreferred = self.unreferred(place);
                write!(
                    sql,
                    "delete from s.{name} t where {own} and {all}{unreferred};"
                )
                .unwrap();
            }
            if !dice.one_in(4) {
                let set = [
                    "v = v + 1",
                    "note = null, v = 0",
                    "amount = amount * 1.00, note = note || '!'",
                    "marks = marks || array['z']",
                    "at = at + 20",
                ][dice.roll(5)];
                write!(
                    sql,
                    "update s.{name} t set {set} where {own} and {};",
                    some(3)
                )
                .unwrap();
            }
        }
        sql
    }
}

//! References from one tenant's row to another's, which schemas allow and nobody wants: a restore that would
//! break one has to be refused, with the key named, and goes through once somebody has mended it.

use super::judge::{Effect, people, tell};
use super::others::TENANTS;
use super::schemas::{Dice, Key, Schema};
use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Another tenant's row refers to a row that came after the target, and that the restore removes.
    Child,
    /// A row of the target referred to another tenant's row, which has another key by now.
    Parent,
}

/// One such reference.
#[derive(Debug)]
pub(super) struct Stray {
    kind: Kind,
    place: usize,
    victim: &'static str,
    other: &'static str,
    /// The key that the other tenant's row had.
    key: Option<String>,
}

impl Stray {
    pub(super) fn random(schema: &Schema, dice: &mut Dice, victim: &'static str) -> Option<Self> {
        let kind = [None, Some(Kind::Child), Some(Kind::Parent)][dice.roll(3)]?;
        let others: Vec<&'static str> = TENANTS.into_iter().filter(|t| *t != victim).collect();
        let other = others[dice.roll(others.len())];
        let places: Vec<usize> = (0..schema.tables.len())
            .filter(|&place| {
                let table = &schema.tables[place];
                let can_be_renamed = kind == Kind::Child || table.key != Key::Identity;
                table.refers_to_itself && table.has_tenants() && can_be_renamed
            })
            .collect();
        let place = *places.get(dice.roll(places.len().max(1)))?;
        Some(Self {
            kind,
            place,
            victim,
            other,
            key: None,
        })
    }

    pub(super) fn class(&self) -> &'static str {
        match self.kind {
            Kind::Child => "another tenant refers to a row that goes",
            Kind::Parent => "what a returning row refers to is gone",
        }
    }

    /// The foreign key that would be broken.
    pub(super) fn constraint(&self, schema: &Schema) -> String {
        format!("{}_up_fkey", schema.tables[self.place].name)
    }

    fn own(&self, schema: &Schema, tenant: &str) -> String {
        format!("{} and note = 'stray'", schema.of(self.place, tenant))
    }

    /// What has to be so at the target.
    pub(super) async fn before_the_target(&self, bench: &Bench, schema: &Schema, dice: &mut Dice) {
        if self.kind == Kind::Parent {
            for tenant in [self.other, self.victim] {
                let one = schema.insert_one(dice, self.place, tenant, "stray");
                written_by_people(bench, &one.unwrap()).await;
            }
            let from = schema.from(self.place);
            let (own, others) = (self.own(schema, self.victim), self.own(schema, self.other));
            let refer = format!(
                "update {from} t set up = (select id from {from} t where {others}) where {own}"
            );
            bench.sql("live", &refer).await;
        }
    }

    /// What happens after the target; false where the tenants have no rows for it.
    pub(super) async fn after_the_target(
        &mut self,
        bench: &Bench,
        schema: &Schema,
        dice: &mut Dice,
    ) -> bool {
        let from = schema.from(self.place);
        let (own, others) = (self.own(schema, self.victim), self.own(schema, self.other));
        if self.kind == Kind::Child {
            let Some(one) = schema.insert_one(dice, self.place, self.victim, "stray") else {
                return false;
            };
            written_by_people(bench, &one).await;
            let other = schema.of(self.place, self.other);
            let refer = format!(
                "update {from} t set up = n.id, note = 'stray' from (select id from {from} t where {own}) n \
                 where t.ctid = (select ctid from {from} t where {other} order by id::text limit 1)"
            );
            bench.sql("live", &refer).await;
            let found = format!("select count(*) from {from} t where {others} and up is not null");
            return bench.value("live", &found).await == 1;
        }
        let found = format!("select count(*) from {from} t where {own} and up is not null");
        if bench.value("live", &found).await == 0 {
            return false;
        }
        let mut live = bench.connect("live").await;
        let key = format!("select id::text from {from} t where {others}");
        self.key = Some(sql::value(&mut live, &key, key.clone()).await.unwrap());
        live.close().await.unwrap();
        let table = &schema.tables[self.place];
        let fresh = match table.key {
            Key::Uuid => "gen_random_uuid()".to_owned(),
            Key::Text => "md5(random()::text)".to_owned(),
            _ => format!("nextval('s.{}_id_seq')", table.name),
        };
        let part = format!(
            "update {from} t set up = null where {own}; update {from} t set id = {fresh} where {others}"
        );
        bench.sql("live", &part).await;
        true
    }

    /// Somebody mends it: lets go of the row, or gives the other row its key again.
    pub(super) async fn mend(&self, bench: &Bench, schema: &Schema) -> Vec<Effect> {
        let others = self.own(schema, self.other);
        let set = match &self.key {
            Some(key) => format!("id = '{key}'"),
            None => "up = null".to_owned(),
        };
        let statement = schema.told(self.place, &others, Some(&set));
        let mut live = people(bench).await;
        let effects = tell(&mut live, &schema.from(self.place), &statement).await;
        live.close().await.unwrap();
        assert_eq!(effects.len(), 1, "{statement}");
        effects
    }
}

async fn written_by_people(bench: &Bench, statement: &str) {
    let mut live = people(bench).await;
    tell(&mut live, "", statement).await;
    live.close().await.unwrap();
}

//! Whatever the schema, the data and the mistake: the tenant is as it was then, everybody else as they made it
//! meanwhile, and an undo takes all of it back. Schemas are made at random ([`super::schemas`], [`super::work`]),
//! other tenants write all the time ([`super::others`]), and the judge knows only SQL ([`super::judge`]).
//!
//! `DR_TEST_LONG=1` makes 500 schemas; `DR_TEST_SEED=N` the one that failed, `DR_TEST_SEED=N..M` some of them.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use super::beside::{assert_refreshed, held, objects, objects_after};
use super::judge::{
    Contents, Effect, Surroundings, after, assert_same, common_columns, contents, later_values,
    people, tell,
};
use super::others::{TENANTS, meanwhile};
use super::schemas::{CLASSES, Dice, Schema};
use super::strays::Stray;
use super::*;
use crate::fault;
use crate::undo::{self, State};

/// What can happen around a restore, counted as classes of schemas are.
const EVENTS: [&str; 5] = [
    LATE,
    LATER,
    USED,
    "another tenant refers to a row that goes",
    "what a returning row refers to is gone",
];
const LATE: &str = "the tenant writes after the plan";
const USED: &str = "the tenant writes after the restore";
const LATER: &str = "the tenant writes after the second plan too";
/// In so many of 500 schemas each class has to be.
const LEAST: u64 = 20;

/// A database, and one of its tenants to be restored.
struct Case {
    schema: Schema,
    dice: Dice,
    victim: &'static str,
    stray: Option<Stray>,
}

/// Makes `live`, with a history, and `then_`, the state at the target.
async fn make(bench: &mut Bench, seed: u64) -> Case {
    let mut dice = Dice(seed);
    let schema = Schema::random(&mut dice);
    bench.tenancy = schema.tenancy();
    bench.own = schema.owned();
    for name in ["live", "then_", "then_later"] {
        let remove = format!("drop database if exists {name} with (force)");
        bench.sql("postgres", &remove).await;
    }
    bench.sql("postgres", "create database live").await;
    bench.sql("live", &schema.ddl()).await;
    let data = schema.insert(&TENANTS, 6, "'n' || n");
    bench.sql("live", &data).await;
    bench.sql("live", &schema.insert_others()).await;
    bench.sql("live", &schema.insert_documents(&["0"])).await;
    bench.sql("live", &schema.insert_documents(&TENANTS)).await;
    let victim = TENANTS[dice.roll(4)];
    let mut stray = Stray::random(&schema, &mut dice, victim);
    if let Some(stray) = &stray {
        stray.before_the_target(bench, &schema, &mut dice).await;
    }
    bench.sql("live", schema.refresh()).await;
    bench.keep("then_").await;
    live_on(bench, &schema, &mut dice, victim).await;
    let happened = match &mut stray {
        Some(stray) => stray.after_the_target(bench, &schema, &mut dice).await,
        None => false,
    };
    Case {
        schema,
        dice,
        victim,
        stray: stray.filter(|_| happened),
    }
}

/// What happens after the target: mistakes, honest work, and new columns.
async fn live_on(bench: &Bench, schema: &Schema, dice: &mut Dice, victim: &str) {
    let mut commits = Vec::new();
    for _ in 0..1 + dice.roll(2) {
        for tenant in TENANTS {
            if tenant == victim || dice.one_in(2) {
                commits.push(schema.mistake(dice, tenant));
            }
            if dice.one_in(2) {
                commits.push(schema.insert(&[tenant], 2, "'new'"));
            }
        }
    }
    commits.push(schema.drift());
    commits.retain(|commit| !commit.is_empty());
    for (number, commit) in commits.iter().enumerate() {
        bench.sql("live", commit).await;
        if number == 0 && fault::is("late-by-one-commit") {
            bench.keep("then_later").await;
        }
    }
}

/// A restore that was committed.
struct Restored {
    map: TenancyMap,
    compared: Compared,
    committed: Committed,
    plans: usize,
}

/// One tenant while it is restored.
struct Seen<'a> {
    bench: &'a Bench,
    schema: &'a Schema,
    victim: &'a str,
    /// Its rows just before.
    before: Contents,
    /// Rows it wrote although the restore was planned already, each time that it did.
    late: Vec<usize>,
}

impl Seen<'_> {
    async fn plan(&self) -> (TenancyMap, Compared) {
        self.bench.compare(self.victim, Mode::Replace).await
    }

    /// The tenant writes in spite of the plan.
    async fn work_late(&mut self, work: &[(String, String)]) {
        let mut live = people(self.bench).await;
        let mut rows = 0;
        for (table, statement) in work {
            rows += tell(&mut live, table, statement).await.len();
        }
        live.close().await.unwrap();
        if rows > 0 {
            self.late.push(rows);
        }
    }

    /// Carries a plan out as the product does it: a tenant that was written to meanwhile is held and planned
    /// again. `later` is what it does even then, to rows that go.
    async fn carry_out(
        &mut self,
        (map, mut compared): (TenancyMap, Compared),
        mut later: Vec<(String, String)>,
    ) -> Result<Restored, TenantError> {
        let mut held = None;
        let mut plans = 1;
        loop {
            self.before = contents(self.bench, "live", self.victim, true, None).await;
            // What others need is listed by the plan; here the check before the commit is on trial.
            let refused = compared.refused.iter();
            let refused = refused.filter(|line| !line.contains("others need them"));
            assert_eq!(refused.collect::<Vec<_>>(), Vec::<&String>::new());
            let set = &compared.set;
            let folders = ("spool", "saved");
            let direction = Direction::Forward;
            let written = self
                .bench
                .write_held(&map, set, folders, direction, held.take());
            match written.await {
                Err(TenantError::Changed(_)) if plans < 3 => {
                    let whose = Some((&map, &set.tenant));
                    held = Some(
                        hold::begin(&self.bench.options("live"), &Writing::default(), whose)
                            .await?,
                    );
                    compared = self.plan().await.1;
                    plans += 1;
                    self.work_late(&std::mem::take(&mut later)).await;
                }
                Err(error) => return Err(error),
                Ok(committed) => {
                    return Ok(Restored {
                        map,
                        compared,
                        committed,
                        plans,
                    });
                }
            }
        }
    }

    /// A restore that would break a reference is refused by its name and changes nothing.
    async fn assert_refused(&self, stray: &Stray, outcome: Result<Restored, TenantError>) {
        let error = outcome.err().expect("a restore that breaks a reference");
        let (text, key) = (error.to_string(), stray.constraint(self.schema));
        assert!(text.contains(&key), "{key} is not named: {text}");
        let still = contents(self.bench, "live", self.victim, true, None).await;
        assert_same(&self.before, &still, "a refused restore changed the tenant");
    }

    /// Restores; also gives what others did so that it could go through.
    async fn restore(&mut self, dice: &mut Dice, stray: Option<&Stray>) -> (Restored, Vec<Effect>) {
        let plan = self.plan().await;
        let mut later = Vec::new();
        if dice.one_in(2) {
            let work = self.schema.late_work(dice, self.victim);
            self.work_late(&work).await;
            if dice.one_in(2) {
                later = self.schema.work_on_new_rows(self.victim);
            }
        }
        let mut outcome = self.carry_out(plan, later).await;
        let mut mended = Vec::new();
        if let Some(stray) = stray {
            self.assert_refused(stray, outcome).await;
            mended = stray.mend(self.bench, self.schema).await;
            let plan = self.plan().await;
            outcome = self.carry_out(plan, Vec::new()).await;
        }
        let restored = outcome.unwrap_or_else(|e| panic!("{e} {e:?}"));
        (restored, mended)
    }
}

/// The rows that the restore wrote and that are not in this state, as the product sees them.
async fn not_in(state: State, bench: &Bench, map: &TenancyMap) -> u64 {
    let folder = bench.folder.path().join("saved");
    let set = ChangeSet::read(&folder).unwrap();
    let owner = Ownership {
        map,
        tenant: &set.tenant,
    };
    let mut live = session(&bench.options("live"), "live").await.unwrap();
    let standings = undo::compare(&mut live, &owner, &set, &folder, state).await;
    close(live).await;
    standings.unwrap().iter().map(|found| found.wrong).sum()
}

/// Takes the restore back, with the product's own look before and after.
async fn take_back(bench: &Bench, victim: &str, map: &TenancyMap) {
    assert_eq!(not_in(State::After, bench, map).await, 0);
    bench.undo(victim).await;
    assert_eq!(not_in(State::Before, bench, map).await, 0);
}

/// The tenant goes on with a row that the restore wrote: an undo would lose that, is refused and changes nothing.
/// Afterwards the row is as the restore left it; false where there is no such row.
async fn assert_kept(seen: &Seen<'_>, map: &TenancyMap) -> bool {
    let Seen {
        bench,
        schema,
        victim,
        before,
        ..
    } = seen;
    let restored = contents(bench, "live", victim, true, None).await;
    let written = (0..schema.tables.len())
        .filter(|&place| !schema.tables[place].is_touched)
        .find_map(|place| {
            let table = schema.from(place);
            let mut rows = restored[&table].keys();
            let row = rows.find(|row| !before[&table].contains_key(*row))?;
            Some((place, table, row.clone()))
        });
    let Some((place, table, row)) = written else {
        return false;
    };
    let mut live = people(bench).await;
    let which = |row: &str| {
        let (own, row) = (schema.of(place, victim), sql::literal(row));
        format!("{own} and v is not null and t::text = {row} limit 1")
    };
    let work = schema.told(place, &which(&row), Some("v = v + 1"));
    let effects = tell(&mut live, &table, &work).await;
    if let [effect] = effects.as_slice() {
        let lost = contents(bench, "live", victim, true, None).await;
        assert_ne!(not_in(State::After, bench, map).await, 0, "{row}");
        let set = ChangeSet::read(&bench.folder.path().join("saved")).unwrap();
        let reversed = set.reversed(TenantRestoreId::new(Utc::now()));
        let direction = Direction::Reverse;
        let outcome = bench.write(map, &reversed, "saved", "saved-undo", direction);
        let outcome = outcome.await;
        assert!(
            matches!(outcome, Err(TenantError::Changed(_))),
            "{row}: {outcome:?}"
        );
        let still = contents(bench, "live", victim, true, None).await;
        assert_same(&lost, &still, "a refused undo changed the tenant");
        let back = schema.told(place, &which(effect.becomes()), Some("v = v - 1"));
        tell(&mut live, &table, &back).await;
        let still = contents(bench, "live", victim, true, None).await;
        assert_same(&restored, &still, "the test did not clean up");
    }
    live.close().await.unwrap();
    !effects.is_empty()
}

/// What a schema was like, and what happened.
struct Tally {
    classes: BTreeSet<&'static str>,
    /// Rows that others wrote meanwhile.
    others: usize,
}

/// One schema: a restore and its undo, judged.
async fn one(bench: &mut Bench, seed: u64) -> Tally {
    let Case {
        schema,
        mut dice,
        victim,
        stray,
    } = make(bench, seed).await;
    let bench = &*bench;
    let now = async |own: bool| contents(bench, "live", victim, own, None).await;
    let columns = common_columns(bench).await;
    let then = contents(bench, "then_", victim, true, Some(&columns)).await;
    let others = now(false).await;
    let surroundings = Surroundings::read(bench).await;
    let later = later_values(bench, &schema, victim).await;
    let former = objects(bench, "live").await;
    let documents = objects_after(bench, &schema, victim).await;
    let view = held(bench, &schema).await;

    let mut seen = Seen {
        bench,
        schema: &schema,
        victim,
        before: Contents::new(),
        late: Vec::new(),
    };
    let restoring = seen.restore(&mut dice, stray.as_ref());
    let ((done, mended), mut effects) = meanwhile(bench, &schema, victim, seed, restoring).await;
    let mut written = effects.len();
    effects.extend(mended);
    let restored = contents(bench, "live", victim, true, Some(&columns)).await;
    assert_same(&then, &restored, "the tenant is not as it was");
    let expected = after(&others, &effects);
    assert_same(&expected, &now(false).await, "others are not as they were");
    let wrong = surroundings.wrong(bench, &schema).await;
    assert_eq!(wrong, Vec::<String>::new());
    for (row, value) in later_values(bench, &schema, victim).await {
        let former = later.get(&row).copied().unwrap_or(value);
        assert_eq!(value, former, "{row} lost what it had in a new column");
    }
    assert_eq!(objects(bench, "live").await, documents);
    let (map, set) = (&done.map, &done.compared.set);
    bench.prove(map, set, &done.committed).await;
    assert_refreshed(bench, &schema, set, view).await;

    let is_used = dice.one_in(3) && assert_kept(&seen, map).await;
    let others = now(false).await;
    let undoing = take_back(bench, victim, map);
    let ((), effects) = meanwhile(bench, &schema, victim, !seed, undoing).await;
    written += effects.len();
    assert_same(&seen.before, &now(true).await, "the undo is not exact");
    let expected = after(&others, &effects);
    assert_same(&expected, &now(false).await, "the undo hurt others");
    assert_eq!(objects(bench, "live").await, former);
    let wrong = surroundings.wrong(bench, &schema).await;
    assert_eq!(wrong, Vec::<String>::new());
    if stray.is_none() {
        assert_eq!(done.plans, 1 + seen.late.len(), "late work went unnoticed");
    }

    let mut classes: BTreeSet<&str> = schema.classes().collect();
    classes.extend(stray.as_ref().map(Stray::class));
    classes.extend(is_used.then_some(USED));
    classes.extend([LATE, LATER].into_iter().take(seen.late.len()));
    Tally {
        classes,
        others: written,
    }
}

/// The numbers that schemas are made from.
fn seeds() -> std::ops::Range<u64> {
    let number = |text: &str| text.parse::<u64>().expect("DR_TEST_SEED");
    match std::env::var("DR_TEST_SEED") {
        Ok(text) => match text.split_once("..") {
            Some((first, end)) => number(first)..number(end),
            None => number(&text)..number(&text) + 1,
        },
        Err(_) if std::env::var_os("DR_TEST_LONG").is_some() => 0..500,
        Err(_) => 0..24,
    }
}

/// What came of some schemas.
#[derive(Default)]
struct Seeds {
    classes: BTreeMap<&'static str, u64>,
    others: usize,
    failed: Vec<u64>,
}

/// Schemas of these numbers, on a server of their own.
#[allow(
    clippy::print_stderr,
    reason = "which schema hangs or fails is to be seen"
)]
async fn some(seeds: impl Iterator<Item = u64>) -> Seeds {
    let mut bench = Bench::start(tenancy("", &[]), &[]);
    let mut found = Seeds::default();
    for seed in seeds {
        eprintln!("schema {seed}");
        match AssertUnwindSafe(one(&mut bench, seed)).catch_unwind().await {
            Ok(tally) => {
                found.others += tally.others;
                for class in tally.classes {
                    *found.classes.entry(class).or_default() += 1;
                }
            }
            Err(_) => found.failed.push(seed),
        }
    }
    found
}

/// The long run has the machine to itself and uses all of it.
fn workers() -> usize {
    match std::env::var_os("DR_TEST_LONG") {
        Some(_) => std::thread::available_parallelism().map_or(1, usize::from),
        None => 1,
    }
}

#[test]
#[allow(
    clippy::print_stderr,
    reason = "how many schemas had each class is to be seen"
)]
fn whatever_the_schema_the_tenant_is_as_it_was_and_others_as_they_are() {
    let (seeds, workers) = (seeds(), workers());
    let schemas = seeds.end - seeds.start;
    let work = |first: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(some(seeds.clone().skip(first).step_by(workers)))
    };
    let parts: Vec<Seeds> = std::thread::scope(|scope| {
        let work = &work;
        let parts: Vec<_> = (0..workers)
            .map(|first| scope.spawn(move || work(first)))
            .collect();
        parts.into_iter().map(|part| part.join().unwrap()).collect()
    });
    let of_class = |class: &str| {
        parts
            .iter()
            .filter_map(|part| part.classes.get(class))
            .sum()
    };
    let all = CLASSES.into_iter().chain(EVENTS);
    let classes: BTreeMap<&str, u64> = all.map(|class| (class, of_class(class))).collect();
    for (class, count) in &classes {
        eprintln!("{count:5} of {schemas} schemas: {class}");
    }
    let others: usize = parts.iter().map(|part| part.others).sum();
    eprintln!("{others:5} rows written by others during restores and undos");
    let failed: BTreeSet<u64> = parts.into_iter().flat_map(|part| part.failed).collect();
    assert!(failed.is_empty(), "DR_TEST_SEED=N with N of {failed:?}");
    assert!(others > 0, "nobody else wrote");
    let least = classes.values().min().copied().unwrap_or(0);
    assert!(
        schemas < 500 || least >= LEAST,
        "a class is too rare: {classes:?}"
    );
}

/// A judge that finds nothing wrong is worth what it finds when something is.
#[tokio::test]
#[allow(
    clippy::print_stderr,
    reason = "how many schemas it took is to be seen"
)]
async fn planted_bugs_are_caught_within_a_hundred_schemas() {
    let mut bench = Bench::start(tenancy("", &[]), &[]);
    for bug in [
        "drop-tenant-condition",
        "skip-hop",
        "late-by-one-commit",
        "delete-by-key-alone",
        "sequence-moved-back",
        "trigger-fired",
        "foreign-key-unchecked",
        "undo-from-a-stale-image",
        "touch-other-tenant",
        "large-objects-of-changed-rows-only",
    ] {
        fault::PLANTED.set(bug);
        let mut caught = None;
        for seed in 0..100 {
            let tried = AssertUnwindSafe(one(&mut bench, seed)).catch_unwind();
            if tried.await.is_err() {
                caught = Some(seed);
                break;
            }
        }
        fault::PLANTED.set("");
        let Some(seed) = caught else {
            panic!("{bug} is not noticed")
        };
        eprintln!("{bug} is caught after {} schemas", seed + 1);
    }
}

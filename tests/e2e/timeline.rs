//! What happened to a tenant's rows, told from the WAL, and the moment before it. Judged in plain SQL: by
//! what each transaction was told to do, and by triggers that wrote down what they saw.

#![allow(
    clippy::too_many_lines,
    clippy::write_with_newline,
    reason = "each test is one story, and SQL is written line by line"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use crate::harness::{
    CARRIER, ERP, Json, Options, Rows, World, assert_foreign_keys_hold, differences, rows_of,
};

/// By transaction and table: rows inserted, updated, deleted.
type Touched = BTreeMap<(u64, String), [u64; 3]>;

/// Runs statements as one transaction and gives its number.
#[track_caller]
fn transaction(world: &World, sql: &str) -> u64 {
    let sql = format!("begin; {sql}; select pg_current_xact_id(); commit");
    let answers = world.cluster.psql(&sql);
    answers.last().unwrap().parse().unwrap()
}

#[track_caller]
fn timeline(world: &World, tenant: &str, from: &str) -> Json {
    world.ask(&["tenant", "timeline", tenant, "--from", from])
}

fn counts(table: &Json) -> [u64; 3] {
    ["/insert", "/update", "/delete"].map(|what| table.number(what))
}

fn touched(told: &Json) -> Touched {
    let mut found = Touched::new();
    for transaction in told.list("/transactions") {
        for table in transaction.list("/tables") {
            let key = (transaction.number("/xid"), table.text("/table"));
            let counts = counts(&table);
            if counts != [0; 3] {
                found.insert(key, counts);
            }
        }
    }
    found
}

/// Rows of which the owner is not known, wherever they are told.
fn not_known(told: &Json) -> u64 {
    let all = told.list("/transactions").into_iter();
    let all = all.chain(told.list("/unattributed/transactions"));
    let tables = all.flat_map(|transaction| transaction.list("/tables"));
    tables
        .filter_map(|table| {
            let open = table.0.get("owner_not_known")?.clone();
            Some(counts(&Json(open)).iter().sum::<u64>())
        })
        .sum()
}

#[test]
fn the_mass_delete_stands_out_and_the_tenant_goes_back_to_just_before_it() {
    let world = World::protected(&Options::new("timeline", &ERP));
    let ((victim, name), (other, _)) = (world.tenants()[2].clone(), world.tenants()[3].clone());
    let (v, o) = (&victim, &other);
    let from = world.cluster.moment();
    let mut expected = Touched::new();
    let mut expect = |xid: u64, table: &str, counts: [u64; 3]| {
        expected.insert((xid, format!("public.{table}")), counts);
    };
    let one = |sql: &str| transaction(&world, sql);
    let order_of = |tenant: &str, no: &str| {
        format!(
            "insert into public.sales_order (tenant_id, order_no) values ({tenant}, '{no}'); \
             insert into public.order_line (order_id, line_no, sku, quantity, price) \
             select order_id, n, 'S', 1, 1 from public.sales_order, generate_series(1, 4) n \
             where tenant_id = {tenant} and order_no = '{no}'"
        )
    };
    // A chain of versions of one row, others' work in between.
    for credit in 1..=3 {
        let xid = one(&format!(
            "update public.customer set credit = {credit} where tenant_id = {v} and customer_no = 1"
        ));
        expect(xid, "customer", [0, 1, 0]);
        one(&format!(
            "update public.customer set credit = {credit} where tenant_id = {o}"
        ));
    }
    let xid = one(&order_of(v, "new"));
    expect(xid, "sales_order", [1, 0, 0]);
    expect(xid, "order_line", [4, 0, 0]);
    one(&order_of(o, "new"));
    // A part of it that was rolled back, and all of it.
    let xid = one(&format!(
        "update public.setting set value = '1' where tenant_id = {v} and key = 'k1'; savepoint a; \
         delete from public.setting where tenant_id = {v}; rollback to a; savepoint b; \
         insert into public.setting values ({v}, 'k9', '9'); release b"
    ));
    expect(xid, "setting", [1, 1, 0]);
    world.cluster.psql(&format!(
        "begin; delete from public.remark where tenant_id = {v}; rollback"
    ));
    // There and gone again.
    let xid = one(&format!(
        "insert into public.remark values ({v}, 'brief', 1)"
    ));
    expect(xid, "remark", [1, 0, 0]);
    let xid = one(&format!(
        "delete from public.remark where tenant_id = {v} and body = 'brief'"
    ));
    expect(xid, "remark", [0, 0, 1]);
    // An insert that meets a row, and one that does not.
    let xid = one(&format!(
        "insert into public.setting values ({v}, 'k1', '0'), ({v}, 'k8', '8') \
         on conflict (tenant_id, key) do update set value = '2'"
    ));
    expect(xid, "setting", [1, 1, 0]);
    // From one partition to another, which is a delete and an insert.
    let xid = one(&format!(
        "update public.stock_move set moved_at = '2026-06-01Z' where tenant_id = {v} \
         and moved_at = (select min(moved_at) from public.stock_move where tenant_id = {v})"
    ));
    expect(xid, "stock_move", [1, 0, 1]);
    let rows_then = rows_of(&world.cluster, &ERP, &victim);
    let all_rows: u64 = rows_then.values().map(|rows| rows.len() as u64).sum();

    // The mistake.
    let mistake = one(&format!(
        "delete from public.invoice where tenant_id = {v}; \
         delete from public.sales_order where tenant_id = {v}"
    ));
    let gone = ["invoice", "sales_order", "order_line"]
        .map(|table| (table, rows_then[&format!("public.{table}")].len() as u64));
    for (table, rows) in gone {
        expect(mistake, table, [0, 0, rows]);
    }
    let removed: u64 = gone.iter().map(|(_, rows)| rows).sum();
    one(&format!(
        "delete from public.order_line using public.sales_order o \
         where o.order_id = order_line.order_id and o.tenant_id = {o} and line_no = 2"
    ));
    let xid = one(&format!(
        "insert into public.remark values ({v}, 'after it', 1)"
    ));
    expect(xid, "remark", [1, 0, 0]);

    let told = timeline(&world, &name, &from);
    assert_eq!(touched(&told), expected);
    assert_eq!(not_known(&told), 0, "{:#}", told.0);
    let marked: Vec<Json> = told.list("/transactions");
    let marked = marked.iter().filter(|it| it.at("/removed_most").0 == true);
    let marked: Vec<&Json> = marked.collect();
    assert_eq!(marked.len(), 1);
    assert_eq!(marked[0].number("/xid"), mistake);
    assert_eq!(marked[0].number("/removed"), removed);
    assert_eq!(marked[0].number("/rows_before"), all_rows);
    let before = format!("before:{mistake}");
    assert_eq!(marked[0].text("/before"), before);
    let command = format!("dr tenant restore {name} --to {before}");
    let said = world
        .dr(&["tenant", "timeline", &name, "--from", &from])
        .ok()
        .stdout;
    assert!(said.contains(&command), "{said}");
    let line = format!("{removed} of the tenant's {all_rows} rows");
    assert!(said.contains(&line), "{said}");
    // Without a window: as far back as can be.
    let all = world.ask(&["tenant", "timeline", &name]);
    assert_eq!(touched(&all), expected);
    // A window that ends before it.
    let narrow = world.ask(&["tenant", "timeline", &name, "--to", &from]);
    assert!(touched(&narrow).is_empty());

    let others: BTreeMap<String, Rows> = world
        .tenants()
        .into_iter()
        .filter(|(id, _)| *id != victim)
        .map(|(id, _)| (id.clone(), rows_of(&world.cluster, &ERP, &id)))
        .collect();
    world
        .dr(&["tenant", "restore", &name, "--to", &before, "--yes"])
        .ok();
    let found = differences(&rows_then, &rows_of(&world.cluster, &ERP, &victim));
    assert!(found.is_empty(), "{found:#?}");
    for (id, expected) in &others {
        let found = differences(expected, &rows_of(&world.cluster, &ERP, id));
        assert!(found.is_empty(), "tenant {id}: {found:#?}");
    }
    assert_foreign_keys_hold(&world.cluster, "after the restore");

    // The whole cluster goes there too.
    let restored = world.restore_started("before-it", &before);
    let found = differences(&rows_then, &rows_of(&restored, &ERP, &victim));
    assert!(found.is_empty(), "{found:#?}");
    restored.stop("fast");

    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = world.program(&["tenant", "timeline"]).args(arguments).run();
        assert_eq!(output.code, Some(code), "{output}");
        output.says(words);
    };
    refused(&["nobody"], 2, &["there is no tenant `nobody`"]);
    let before_all = "2020-01-01T00:00:00Z";
    refused(
        &[&name, "--from", before_all],
        1,
        &["before the first restore point", ".."],
    );
    refused(
        &[&name, "--to", "2100-01-01T00:00:00Z"],
        2,
        &["it is", "now"],
    );
    refused(&[&name, "--from", "yesterday"], 2, &["is no time"]);
    let output = world.dr(&[
        "tenant",
        "restore",
        &name,
        "--to",
        "before:4000000000",
        "--yes",
    ]);
    assert_ne!(output.code, Some(0));
    output.says(&["before:4000000000", "no stored WAL of timeline 1 has it"]);
}

#[test]
fn a_table_that_was_emptied_or_rewritten_is_named_with_the_rows_that_were_in_it() {
    let world = World::protected(&Options::new("timeline-files", &ERP));
    let (victim, name) = world.tenants()[1].clone();
    let of = |table: &str| -> u64 {
        let sql = format!("select count(*) from public.{table} where tenant_id = {victim}");
        world.cluster.value(&sql).parse().unwrap()
    };
    let from = world.cluster.moment();
    let (remarks, settings, invoices) = (of("remark"), of("setting"), of("invoice"));
    let emptied = transaction(&world, "truncate public.remark");
    let sql = "alter table public.setting alter column raw type jsonb using raw::jsonb";
    let rewritten = transaction(&world, sql);
    let sql = format!("update public.setting set value = '0' where tenant_id = {victim}");
    let updated = transaction(&world, &sql);
    world.cluster.psql("vacuum full public.invoice");
    // Where they are now nobody has seen.
    let sql = format!("update public.invoice set amount = 1 where tenant_id = {victim}");
    let after = transaction(&world, &sql);
    let deleted = transaction(
        &world,
        "update public.sales_order set invoice_id = null; delete from public.invoice",
    );
    let sql = format!("insert into public.remark values ({victim}, 'again', 1)");
    let again = transaction(&world, &sql);

    let told = timeline(&world, &name, &from);
    let find = |xid: u64, table: &str| {
        let all = told.list("/transactions").into_iter();
        let mut all = all.chain(told.list("/unattributed/transactions"));
        let found = all.find(|it| it.number("/xid") == xid);
        let found = found.unwrap_or_else(|| panic!("no {xid} in {:#}", told.0));
        let mut tables = found.list("/tables").into_iter();
        tables.find(|it| it.text("/table") == table).unwrap()
    };
    let file = |table: &Json| {
        let file = table.at("/files/0");
        (file.text("/file"), file.number("/before/rows"))
    };
    let table = find(emptied, "public.remark");
    assert_eq!(file(&table), ("emptied".to_owned(), remarks));
    assert_eq!(counts(&table), [0; 3]);
    let table = find(rewritten, "public.setting");
    assert_eq!(file(&table), ("rewritten".to_owned(), settings));
    assert_eq!(table.number("/files/0/after/rows"), settings);
    assert_eq!(counts(&table), [0; 3], "a row that is copied is no new one");
    assert_eq!(counts(&find(updated, "public.setting")), [0, settings, 0]);
    assert_eq!(counts(&find(again, "public.remark")), [1, 0, 0]);
    let mut all = told.list("/transactions").into_iter();
    let vacuumed = all
        .find(|it| it.text("/tables/0/table") == "public.invoice")
        .unwrap();
    let table = vacuumed.at("/tables/0");
    assert_eq!(file(&table), ("rewritten".to_owned(), invoices));
    assert!(table.at("/files/0/after").0.is_null());
    // The update tells the whole rows, and they are followed again. What was not touched is not known.
    let table = find(after, "public.invoice");
    assert!(counts(&table)[1] <= invoices);
    let open = |table: &Json, what: &str| {
        let open = table.0.pointer(&format!("/owner_not_known/{what}"));
        open.map_or(0, |rows| rows.as_u64().unwrap())
    };
    assert!(counts(&table)[1] + open(&table, "update") >= invoices);
    let table = find(deleted, "public.invoice");
    assert!(counts(&table)[2] + open(&table, "delete") >= invoices);
    assert!(open(&table, "delete") > 0, "others' rows: {:#}", table.0);
    let said = world
        .dr(&["tenant", "timeline", &name, "--from", &from])
        .ok();
    said.says(&[&format!(
        "public.remark emptied: before {remarks} rows of the tenant"
    )]);
}

/// A random number that is the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }
}

/// Every row that is written, with its tenant then, as a trigger saw it.
const AUDIT: &str = "create table public.audit (xid bigint not null default \
      (pg_current_xact_id()::text::bigint), tenant int, tab text not null, op text not null);
create table public.order_owner (order_id bigint primary key, tenant_id int);
create function public.audit_row() returns trigger language plpgsql as $$
declare row_of jsonb := to_jsonb(case when tg_op = 'DELETE' then old else new end); whose int;
begin
  if tg_argv[0] = 'order_line' then
    select tenant_id into whose from public.order_owner o where o.order_id = (row_of->>'order_id')::bigint;
  else
    whose := row_of->>'tenant_id';
  end if;
  if tg_argv[0] = 'sales_order' and tg_op = 'INSERT' then
    insert into public.order_owner values ((row_of->>'order_id')::bigint, whose);
  end if;
  insert into public.audit (tenant, tab, op) values (whose, tg_argv[0], lower(tg_op));
  return null;
end $$;
insert into public.order_owner select order_id, tenant_id from public.sales_order;
do $$ declare t text; begin
  foreach t in array array['app_user', 'customer', 'sales_order', 'order_line', 'invoice', 'stock_move',
      'setting', 'remark'] loop
    execute format('create trigger zz_audit after insert or update or delete on public.%I for each row \
      execute function public.audit_row(%L)', t, t);
  end loop;
end $$;";

/// A statement that writes rows of a tenant.
fn statement(random: &mut Random, tenant: &str, number: u64) -> String {
    let some = random.below(12) + 1;
    let order = format!(
        "(select order_id from public.sales_order where tenant_id = {tenant} order by order_id desc \
         offset {} limit 1)",
        random.below(20)
    );
    match random.below(14) {
        0 => format!(
            "insert into public.sales_order (tenant_id, order_no, customer_no, note) \
             values ({tenant}, 'r{number}-{some}', {some}, repeat('n', {some} * 9)) on conflict do nothing"
        ),
        1 | 2 => format!(
            "insert into public.order_line (order_id, line_no, sku, quantity, price) \
             select {order}, {number} * 100 + n, repeat('s', n), n, 1 from generate_series(1, {some}) n \
             where {order} is not null on conflict do nothing"
        ),
        3 => format!("delete from public.order_line where order_id = {order} and line_no % 2 = 0"),
        4 => format!(
            "delete from public.sales_order o where order_id = {order} and not exists \
             (select from public.invoice i where i.order_id = o.order_id)"
        ),
        5 => format!("update public.order_line set quantity = {number} where order_id = {order}"),
        6 => format!(
            "update public.sales_order set note = repeat('x', {some} * 40) where order_id = {order}"
        ),
        7 => format!(
            "update public.customer set credit = {number}, name = 'N{number}' where tenant_id = {tenant} \
             and customer_no <= {some}"
        ),
        8 => format!(
            "insert into public.setting (tenant_id, key, value) select {tenant}, 'r' || n, '{number}' \
             from generate_series(1, {some}) n on conflict (tenant_id, key) do update set value = '0'"
        ),
        9 => format!(
            "delete from public.setting where tenant_id = {tenant} and key like 'r%{}'",
            some % 10
        ),
        10 => format!(
            "insert into public.stock_move (tenant_id, moved_at, sku, quantity) select {tenant}, \
             timestamptz '2025-11-01Z' + {number} * interval '1 hour' + n * interval '20 days', 'S', n \
             from generate_series(1, {some}) n"
        ),
        11 => format!(
            "update public.stock_move set moved_at = moved_at + interval '40 days' where tenant_id = \
             {tenant} and quantity = {some}"
        ),
        12 => format!("delete from public.remark where tenant_id = {tenant} and weight = {some}"),
        _ => format!(
            "insert into public.remark select {tenant}, repeat('r', n), {some} from generate_series(1, {some}) n"
        ),
    }
}

/// A few hundred transactions of all tenants, with savepoints and what comes of them.
fn script(random: &mut Random, tenants: &[String]) -> String {
    let tenants: Vec<&str> = tenants.iter().map(String::as_str).collect();
    let mut sql = String::new();
    for number in 0..400 {
        let tenant = random.of(&tenants);
        sql.push_str("begin;\n");
        for part in 0..=random.below(3) {
            let inner = statement(random, tenant, number * 10 + part);
            match random.below(5) {
                0 => write!(sql, "savepoint a; {inner}; rollback to a;\n").unwrap(),
                1 => write!(sql, "savepoint b; {inner}; release b;\n").unwrap(),
                _ => write!(sql, "{inner};\n").unwrap(),
            }
        }
        sql.push_str(if random.below(8) == 0 {
            "rollback;\n"
        } else {
            "commit;\n"
        });
        match random.below(40) {
            0 => sql.push_str("checkpoint;\n"),
            1 => write!(
                sql,
                "vacuum public.{};\n",
                random.of(&["order_line", "remark", "setting"])
            )
            .unwrap(),
            _ => {}
        }
    }
    sql
}

fn what_triggers_saw(name: &'static str, settings: &'static str, seed: u64) {
    let options = Options {
        settings,
        ..Options::new(name, &ERP)
    };
    let world = World::new(&options);
    let audit = world.path("audit.sql");
    fs::write(&audit, AUDIT).unwrap();
    world.cluster.psql_file(&audit);
    world.edit_configuration(
        "tables: { currency: shared }",
        "tables: { currency: shared, audit: ignored, order_owner: ignored }",
    );
    world.dr(&["init"]).ok();
    world.archive("");
    for workload in ["erp", "config"] {
        world.dr(&["backup", "run", workload]).ok();
    }
    let tenants: Vec<String> = world.tenants().into_iter().map(|(id, _)| id).collect();
    let mut random = Random(seed);
    let run = |sql: String| {
        let path = world.path("script.sql");
        fs::write(&path, sql).unwrap();
        let file = ["-f".as_ref(), path.as_os_str()];
        world.cluster.psql_program().args(file).run().ok();
    };
    // Not all of it lies in the window.
    run(script(&mut random, &tenants));
    let from = world.cluster.moment();
    world.cluster.psql("truncate public.audit");
    run(script(&mut random, &tenants));

    let mut told_rows = 0;
    for (tenant, tenant_name) in &world.tenants()[1..4] {
        let told = timeline(&world, tenant_name, &from);
        let mut expected = Touched::new();
        let lines = world.cluster.psql(&format!(
            "select xid % 4294967296, 'public.' || tab, op, count(*) from public.audit \
             where tenant = {tenant} group by 1, 2, 3"
        ));
        for line in lines {
            let [xid, table, op, rows] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let key = (xid.parse().unwrap(), table.to_owned());
            let place = ["insert", "update", "delete"]
                .iter()
                .position(|it| *it == op);
            expected.entry(key).or_default()[place.unwrap()] = rows.parse().unwrap();
        }
        assert_eq!(not_known(&told), 0, "seed {seed}, tenant {tenant}");
        let found = touched(&told);
        let different: Vec<_> = (expected
            .iter()
            .filter(|(key, rows)| found.get(*key) != Some(*rows)))
        .chain(found.iter().filter(|(key, _)| !expected.contains_key(*key)))
        .collect();
        assert!(
            different.is_empty(),
            "seed {seed}, tenant {tenant}: {different:#?}"
        );
        told_rows += expected.values().flatten().sum::<u64>();
    }
    assert!(told_rows > 500, "only {told_rows} rows were written");
}

#[test]
fn what_triggers_saw_is_what_the_log_tells() {
    what_triggers_saw("timeline-audit", "archive_timeout = 10", 0x5EED);
}

#[test]
fn what_triggers_saw_is_what_the_log_tells_when_pages_are_compressed() {
    let settings = "archive_timeout = 10\nwal_compression = pglz";
    what_triggers_saw("timeline-packed", settings, 0xBEEF);
}

#[test]
fn a_row_belongs_to_its_tenant_over_several_steps() {
    let world = World::protected(&Options::new("timeline-hops", &CARRIER));
    let (victim, name) = world.tenants()[2].clone();
    let from = world.cluster.moment();
    let mine = format!(
        "(select min(vehicle_id) from fleet.vehicle join fleet.depot using (depot_id) \
         where company_id = '{victim}')"
    );
    let made = transaction(
        &world,
        &format!(
            "with t as (insert into fleet.trip (vehicle_id, load) values ({mine}, 1), ({mine}, 2) returning trip_id) \
             insert into fleet.stop (trip_id, seq, place_code) select trip_id, n, 'KEL' from t, generate_series(1, 3) n"
        ),
    );
    let other = world.tenants()[3].0.clone();
    transaction(
        &world,
        &format!(
            "with t as (insert into fleet.trip (vehicle_id, load) select min(vehicle_id), 9 from fleet.vehicle \
             join fleet.depot using (depot_id) where company_id = '{other}' returning trip_id) \
             insert into fleet.stop (trip_id, seq, place_code) select trip_id, 1, 'KEL' from t"
        ),
    );
    // Made and gone within the window.
    let gone = transaction(
        &world,
        &format!(
            "delete from fleet.stop where seq = 2 and trip_id in (select trip_id from fleet.trip where vehicle_id = {mine} and load = 1)"
        ),
    );
    let told = timeline(&world, &name, &from);
    let found = touched(&told);
    assert_eq!(found[&(made, "fleet.trip".to_owned())], [2, 0, 0]);
    assert_eq!(found[&(made, "fleet.stop".to_owned())], [6, 0, 0]);
    let deleted = found[&(gone, "fleet.stop".to_owned())];
    assert!(deleted[2] >= 1 && deleted[..2] == [0, 0], "{deleted:?}");
    assert_eq!(found.len(), 3, "{found:#?}");
    assert_eq!(not_known(&told), 0);
}

#[test]
fn a_schema_of_a_tenants_own_is_counted_whole() {
    let world = World::new(&Options::new("timeline-schema", &ERP));
    world.cluster.psql(
        "create schema t_cedar; create schema t_delta; \
         create table t_cedar.note (id int primary key, body text); \
         create table t_cedar.list (id int); \
         create table t_delta.note (id int primary key, body text); \
         insert into t_cedar.note select n, 'n' from generate_series(1, 50) n; \
         insert into t_cedar.list select generate_series(1, 9)",
    );
    world.edit_configuration(
        "code as name from public.tenant",
        "code as name, case when code in ('cedar', 'delta') then 't_' || code end as schema from public.tenant",
    );
    world.dr(&["init"]).ok();
    world.archive("");
    for workload in ["erp", "config"] {
        world.dr(&["backup", "run", workload]).ok();
    }
    let from = world.cluster.moment();
    let one = |sql: &str| transaction(&world, sql);
    let written = one(
        "insert into t_cedar.note select n, 'm' from generate_series(51, 60) n; savepoint a; \
         delete from t_cedar.note; rollback to a; update t_cedar.note set body = 'x' where id > 55; \
         insert into public.remark values (3, 'shared', 1)",
    );
    one("insert into t_delta.note values (1, 'other')");
    let deleted = one("delete from t_cedar.note where id <= 20");
    let emptied = one("truncate t_cedar.note");
    let again = one("insert into t_cedar.note values (1, 'again')");
    let dropped = one("drop table t_cedar.list");
    let told = timeline(&world, "cedar", &from);
    let key = |xid: u64, table: &str| (xid, table.to_owned());
    let expected = Touched::from([
        (key(written, "t_cedar.note"), [10, 5, 0]),
        (key(written, "public.remark"), [1, 0, 0]),
        (key(deleted, "t_cedar.note"), [0, 0, 20]),
        (key(again, "t_cedar.note"), [1, 0, 0]),
    ]);
    assert_eq!(touched(&told), expected);
    let transactions = told.list("/transactions");
    let of = |xid: u64| {
        transactions
            .iter()
            .find(|it| it.number("/xid") == xid)
            .unwrap()
    };
    let file = |xid: u64| {
        let file = of(xid).at("/tables/0/files/0");
        (
            file.text("/file"),
            file.number("/before/rows"),
            of(xid).number("/removed"),
        )
    };
    assert_eq!(file(emptied), ("emptied".to_owned(), 40, 40));
    assert_eq!(file(dropped), ("gone".to_owned(), 9, 9));
    assert_eq!(of(emptied).at("/removed_most").0, true);
    assert_eq!(of(deleted).at("/removed_most").0, false);
}

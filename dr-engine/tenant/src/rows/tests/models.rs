//! Tenants with a schema each, with a database each, and both beside tables that all share.

use dr_config::TenancyModel;

use super::*;

const SCHEMAS: &str = "
create table public.tenant (tenant_id int primary key, name text not null, place text);
insert into public.tenant values (1, 'ACME', 't_1'), (2, 'BOLT', 't_2'), (3, 'CRUX', null);
create table public.country (code text primary key);
insert into public.country values ('AT'), ('CH');
create table public.login (login_id serial primary key, tenant_id int not null references public.tenant, who text);
insert into public.login (tenant_id, who) select t, 'user ' || n from generate_series(1, 3) t, generate_series(1, 8) n;
do $$ begin
  for t in 1..2 loop
    execute format('create schema t_%s', t);
    execute format('create table t_%s.customer (id int generated always as identity primary key, name text not null,
      country text references public.country, login_id int references public.login)', t);
    execute format('create table t_%s.invoice (no int primary key, customer_id int not null references t_%1$s.customer,
      amount numeric)', t);
    execute format('create table t_%s.note (said text)', t);
    execute format('insert into t_%s.customer (name, country, login_id) select ''customer '' || n, ''AT'',
      (select min(login_id) from public.login where tenant_id = %1$s) from generate_series(1, 30) n', t);
    execute format('insert into t_%s.invoice select n, n, n * 1.5 from generate_series(1, 30) n', t);
    execute format('insert into t_%s.note select ''note '' || n %% 3 from generate_series(1, 9) n', t);
  end loop;
end $$";

const TABLES: [(&str, &str); 9] = [
    ("public.tenant", "tenant_id = $"),
    ("public.country", "false"),
    ("public.login", "tenant_id = $"),
    ("t_1.customer", "$ = 1"),
    ("t_1.invoice", "$ = 1"),
    ("t_1.note", "$ = 1"),
    ("t_2.customer", "$ = 2"),
    ("t_2.invoice", "$ = 2"),
    ("t_2.note", "$ = 2"),
];

const MISTAKE: &str = "
delete from t_2.invoice where no % 2 = 0; update t_2.customer set name = 'x' where id > 20;
delete from t_2.customer where id not in (select customer_id from t_2.invoice);
delete from t_2.note where said = 'note 1'; insert into t_2.customer (name) values ('new');
update public.login set who = 'nobody' where tenant_id = 2;
update t_1.customer set name = 'later'; insert into public.login (tenant_id, who) values (1, 'later'), (3, 'later');";

fn schemas() -> TenancyConfig {
    TenancyConfig {
        model: Some(TenancyModel::Schema),
        tenants: Some(
            "select tenant_id as id, name, place as schema from public.tenant".to_owned(),
        ),
        ..tenancy("tenant_id", &[("public.country", TenantTable::Shared)])
    }
}

#[tokio::test]
async fn a_tenants_schema_goes_back_with_its_rows_in_tables_that_all_share() {
    let bench = Bench::start(schemas(), &TABLES);
    bench.sql("postgres", "create database live").await;
    bench.sql("live", SCHEMAS).await;
    let map = bench.tenancy_map().await;
    let text = map.to_string();
    assert!(
        text.contains("6 more tables are in the schemas or databases of 2 tenants"),
        "{text}"
    );
    assert!(
        !map.declarations().contains("t_1."),
        "{}",
        map.declarations()
    );
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    bench.keep("before").await;
    let then = bench.digests("then_", "2", true).await;
    let others = bench.digests("before", "2", false).await;
    let compared = bench.restore("2").await;
    let written: Vec<&str> = (compared.plans.iter())
        .filter(|plan| plan.insert + plan.update + plan.delete > 0)
        .map(|plan| plan.table.as_str())
        .collect();
    assert_eq!(
        written,
        ["public.login", "t_2.customer", "t_2.invoice", "t_2.note"]
    );
    assert!(
        compared
            .plans
            .iter()
            .all(|plan| !plan.table.starts_with("t_1."))
    );
    assert_eq!(bench.digests("live", "2", true).await, then);
    assert_eq!(bench.digests("live", "2", false).await, others);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
    // The next customer gets a number of its own.
    bench
        .sql("live", "insert into t_2.customer (name) values ('next')")
        .await;
    // A tenant without a schema has its rows in the shared tables alone.
    let (_, compared) = bench.compare("3", Mode::Replace).await;
    let tables: Vec<&str> = compared.plans.iter().map(|p| p.table.as_str()).collect();
    assert_eq!(tables, ["public.tenant", "public.login"]);
}

#[tokio::test]
async fn a_table_that_was_dropped_from_a_tenants_schema_is_refused_by_name() {
    let bench = Bench::start(schemas(), &TABLES);
    bench.sql("postgres", "create database live").await;
    bench.sql("live", SCHEMAS).await;
    bench.keep("then_").await;
    bench.sql("live", "drop table t_2.note").await;
    let (_, compared) = bench.compare("2", Mode::Replace).await;
    assert_eq!(
        compared.refused,
        [
            "t_2.note was there at the target and is gone (dropped or renamed): make it again as it was, empty"
        ]
    );
    let (_, compared) = bench.compare("1", Mode::Replace).await;
    assert_eq!(compared.refused, Vec::<String>::new());
}

#[tokio::test]
async fn a_tenants_database_goes_back_whole() {
    let conditions = [("public.customer", "true"), ("public.invoice", "true")];
    let mut bench = Bench::start(tenancy("tenant_id", &[]), &conditions);
    bench.only = Some("2");
    bench.sql("postgres", "create database live").await;
    bench
        .sql(
            "live",
            "create table customer (id serial primary key, name text);
             create table invoice (no int primary key, customer_id int not null references customer);
             insert into customer (name) select 'c' || n from generate_series(1, 50) n;
             insert into invoice select n, n from generate_series(1, 50) n",
        )
        .await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "delete from invoice where no > 10; delete from customer where id > 10;
             update customer set name = upper(name); insert into customer (name) values ('new')",
        )
        .await;
    let then = bench.digests("then_", "2", true).await;
    assert_ne!(bench.digests("live", "2", true).await, then);
    bench.restore("2").await;
    assert_eq!(bench.digests("live", "2", true).await, then);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
}

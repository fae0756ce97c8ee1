//! Entries applied to a private server, judged in plain SQL.

use dr_sources::instance::{InitdbOptions, PostgresInstance, RunAs, StartOptions, free_port, give};
use dr_sources::postgres::{ConnectOptions, connect, tools};
use sqlx::{AssertSqlSafe, Executor};

use super::super::settle::Depth;
use super::super::*;
use crate::RestoreError;

const SCHEMA: &str = "
    create table tenant (tenant_id int primary key, code text unique);
    create table person (tenant_id int not null references tenant, person_no int, name text,
        primary key (tenant_id, person_no));
    create table address (address_id uuid primary key default gen_random_uuid(), tenant_id int not null,
        person_no int, street text,
        foreign key (tenant_id, person_no) references person on delete cascade);
    create table parcel (parcel_no bigint primary key, tenant_id int not null references tenant, sender int,
        foreign key (tenant_id, sender) references person on delete set null (sender));
    create table visit (tenant_id int not null references tenant, person_no int, day date,
        primary key (tenant_id, person_no, day),
        foreign key (tenant_id, person_no) references person) partition by range (day);
    create table visit_2025 partition of visit for values from ('2025-01-01') to ('2026-01-01');
    create table visit_rest partition of visit default;
    create table comment (about text, about_id text, body text);
    create table old_diary (tenant_id int, body text);
    create table country (tenant_id int, name text);
    create materialized view names as select tenant_id, name from person;
    insert into tenant values (1, 'ACME'), (2, 'BOLT');
    insert into person select t, n, 'P' || n from generate_series(1, 2) t, generate_series(1, 3) n;
    insert into address (tenant_id, person_no, street) select t, n, 'S' from generate_series(1, 2) t, generate_series(1, 3) n;
    insert into parcel select t * 10 + n, t, n from generate_series(1, 2) t, generate_series(1, 3) n;
    insert into visit select t, 1, date '2025-06-01' + 400 * n from generate_series(1, 2) t, generate_series(0, 1) n;
    insert into comment select 'person', '1', 'C' union all select 'order', '1', 'C' union all select 'person', '2', 'C';
    insert into old_diary values (1, 'D'), (2, 'D');
    insert into country values (1, 'means something else');
    refresh materialized view names";

struct Bench {
    // Stopped before its folder is removed.
    server: PostgresInstance,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("dr-erasure-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        let bin = tools::bin_directory(None, 15).unwrap();
        let data = folder.path().join("data");
        PostgresInstance::initdb(&InitdbOptions::new(&bin, &data, run_as.clone())).unwrap();
        let mut options = StartOptions::new(&bin, &data, run_as, free_port());
        options.settings = [("fsync", "off"), ("max_prepared_transactions", "4")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let bench = Self {
            server: PostgresInstance::start(options).unwrap(),
            _folder: folder,
        };
        bench.sql("postgres", "create database erp").await;
        bench.sql("erp", SCHEMA).await;
        bench
    }

    fn options(&self, database: &str) -> ConnectOptions {
        ConnectOptions {
            url: self.server.url(database),
            password: None,
        }
    }

    async fn sql(&self, database: &str, statements: &str) {
        let mut session = connect(&self.options(database)).await.unwrap();
        let raw = sqlx::raw_sql(AssertSqlSafe(statements));
        session.execute(raw).await.unwrap();
    }

    async fn value(&self, query: &str) -> i64 {
        let mut session = connect(&self.options("erp")).await.unwrap();
        let asked = sqlx::query_scalar(AssertSqlSafe(query));
        asked.fetch_one(&mut session).await.unwrap()
    }

    async fn rows(&self, table: &str, condition: &str) -> i64 {
        let query = format!("select count(*) from {table} where {condition}");
        self.value(&query).await
    }

    async fn apply(&self, entries: &[Erasure]) -> Result<AppliedErasures, RestoreError> {
        self.apply_to(entries, Depth::Everything).await
    }

    async fn apply_to(
        &self,
        entries: &[Erasure],
        depth: Depth,
    ) -> Result<AppliedErasures, RestoreError> {
        let server = |database: &str| self.options(database);
        apply(&server, entries, depth).await
    }
}

fn table(name: &str, rows: ErasedRows) -> ErasedTable {
    ErasedTable {
        table: public(name),
        whose: "t.tenant_id = 1".to_owned(),
        rows,
    }
}

fn public(name: &str) -> TableName {
    TableName {
        schema: "public".to_owned(),
        name: name.to_owned(),
    }
}

fn keys(columns: &[&str], keys: &[&[&str]]) -> ErasedRows {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    ErasedRows::Keys {
        columns: owned(columns),
        keys: keys.iter().map(|key| owned(key)).collect(),
    }
}

/// Rows of tables that may go along are the tenant's by these.
fn along() -> Vec<ErasedTable> {
    let mut comment = table("comment", ErasedRows::Dependent);
    comment.whose = "true".to_owned();
    let address = table("address", ErasedRows::Dependent);
    vec![address, table("visit", ErasedRows::Dependent), comment]
}

fn entry(scope: ErasureScope, dependents: bool, mut tables: Vec<ErasedTable>) -> Erasure {
    for one in along() {
        if !tables.iter().any(|table| table.table == one.table) {
            tables.push(one);
        }
    }
    Erasure {
        scope,
        dependents,
        tenant: ErasedTenant {
            id: "1".to_owned(),
            name: "ACME".to_owned(),
            id_type: None,
        },
        databases: vec![ErasedDatabase {
            database: "erp".to_owned(),
            whole: None,
            tables,
            links: vec![ErasedLink {
                child: public("comment"),
                columns: vec!["about_id".to_owned()],
                parent: public("person"),
                parent_columns: vec!["person_no".to_owned()],
                only: Some(("about".to_owned(), "person".to_owned())),
            }],
            tenant_columns: vec!["tenant_id".to_owned()],
            others: vec![public("country")],
        }],
        ..super::entry()
    }
}

#[tokio::test]
async fn what_belongs_to_an_erased_row_goes_with_it() {
    let bench = Bench::start().await;
    let person = |number: &str| {
        table(
            "person",
            keys(&["tenant_id", "person_no"], &[&["1", number]]),
        )
    };
    // Nobody visited the third; nobody wrote of it.
    let one = entry(ErasureScope::Rows, false, vec![person("3")]);
    let applied = bench.apply(std::slice::from_ref(&one)).await.unwrap();
    assert_eq!(applied.rows(), 2, "{applied:?}");
    assert_eq!(bench.rows("person", "person_no = 3").await, 1);
    assert_eq!(bench.rows("address", "tenant_id = 1").await, 2);
    assert_eq!(bench.rows("address", "tenant_id = 2").await, 3);
    assert_eq!(
        bench
            .rows("parcel", "sender is null and parcel_no = 13")
            .await,
        1
    );
    assert_eq!(bench.rows("names", "tenant_id = 1").await, 2);
    assert_eq!(bench.rows("comment", "true").await, 3);
    let cleared: u64 = applied.entries[0]
        .tables
        .iter()
        .map(|table| table.cleared)
        .sum();
    assert_eq!(cleared, 1);
    // Once more finds nothing.
    assert_eq!(bench.apply(&[one]).await.unwrap().rows(), 0);

    // The first was visited, by a key that does neither cascade nor set null.
    let first = entry(ErasureScope::Rows, false, vec![person("1")]);
    let error = bench.apply(std::slice::from_ref(&first)).await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("2 rows of public.visit refer to erased rows of public.person"),
        "{said}"
    );
    assert!(
        said.contains(first.id.as_str()) && said.contains("day=2025-06-01"),
        "{said}"
    );
    assert_eq!(bench.rows("person", "tenant_id = 1").await, 2);
    // What was recorded without them is mended by recording it again with them.
    let again = entry(ErasureScope::Rows, true, vec![person("1")]);
    let applied = bench.apply(&[first, again]).await.unwrap();
    // Person, address, two visits in two partitions, and a comment.
    assert_eq!(applied.rows(), 5, "{applied:?}");
    assert_eq!(bench.rows("visit", "tenant_id = 1").await, 0);
    assert_eq!(bench.rows("visit", "tenant_id = 2").await, 2);
    assert_eq!(bench.rows("comment", "about_id = '1'").await, 1);

    // Keys that belong to somebody else are left alone.
    let foreign = keys(&["parcel_no"], &[&["21"], &["nothing"]]);
    let foreign = entry(ErasureScope::Rows, false, vec![table("parcel", foreign)]);
    assert_eq!(bench.apply(&[foreign]).await.unwrap().rows(), 0);
}

#[tokio::test]
async fn what_does_not_fit_is_not_erased_by_halves() {
    let bench = Bench::start().await;
    let all = |name: &str| table(name, ErasedRows::All);
    // A row of another tenant that would go along.
    bench
        .sql(
            "erp",
            "create table friend (tenant_id int, owner int, person int, \
               foreign key (owner, person) references person on delete cascade); \
             insert into friend values (2, 1, 3)",
        )
        .await;
    let person = table("person", keys(&["tenant_id", "person_no"], &[&["1", "3"]]));
    let friend = table("friend", ErasedRows::Dependent);
    let rows = entry(ErasureScope::Rows, false, vec![person, friend]);
    let said = bench.apply(&[rows]).await.unwrap_err().to_string();
    assert!(
        said.contains("1 rows of public.friend belong to erased ones, and are not the tenant's"),
        "{said}"
    );

    for (table, why) in [
        (
            table("parcel", keys(&["parcel_id"], &[&["1"]])),
            "has no parcel_id there",
        ),
        (
            ErasedTable {
                whose: "t.company = 1".to_owned(),
                ..all("person")
            },
            "whose the rows of public.person are cannot be told there",
        ),
    ] {
        let said = bench
            .apply(&[entry(ErasureScope::Rows, false, vec![table])])
            .await;
        let said = said.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(bench.rows("person", "true").await, 6);

    // A whole tenant, with a table that was gone when it was erased, and one that never was there.
    bench.sql("erp", "drop table friend").await;
    let tables = ["tenant", "person", "address", "parcel", "visit", "gone"].map(all);
    let whole = entry(ErasureScope::Tenant, false, tables.to_vec());
    bench.apply(&[whole]).await.unwrap();
    for name in [
        "tenant",
        "person",
        "address",
        "parcel",
        "visit",
        "old_diary",
        "names",
    ] {
        assert_eq!(bench.rows(name, "tenant_id = 1").await, 0, "{name}");
        assert_ne!(bench.rows(name, "tenant_id = 2").await, 0, "{name}");
    }
    assert_eq!(bench.rows("country", "true").await, 1);
}

#[tokio::test]
async fn large_objects_of_erased_rows_go_unless_another_row_has_them() {
    let bench = Bench::start().await;
    let papers = "create table paper (tenant_id int not null, no int primary key, body oid, thumb oid);
        insert into paper select 1, n, lo_from_bytea((1000 + n)::oid, 'secret'), null from generate_series(1, 3) n;
        update paper set thumb = 1001 where no = 3; update paper set thumb = 4711 where no = 2";
    bench.sql("erp", papers).await;
    let one = entry(
        ErasureScope::Rows,
        false,
        vec![table("paper", keys(&["no"], &[&["1"], &["2"]]))],
    );
    let applied = bench.apply(std::slice::from_ref(&one)).await.unwrap();
    assert_eq!(applied.rows(), 2);
    let left = "select coalesce(sum(oid::int8), 0)::int8 from pg_largeobject_metadata";
    assert_eq!(bench.value(left).await, 1001 + 1003);
}

#[tokio::test]
async fn rows_that_are_nobodys_by_the_entry_stop_it() {
    let bench = Bench::start().await;
    // Tables of which the entry says nothing: another tenant's schema, by a key that deletes in cascade and by one
    // that does not; and one partition with a foreign key of its own.
    bench
        .sql(
            "erp",
            "create schema t_2; \
             create table t_2.partner (id int, owner int, person int, \
               foreign key (owner, person) references person on delete cascade); \
             create table t_2.guest (id int, owner int, person int, \
               foreign key (owner, person) references person); \
             insert into t_2.partner values (1, 1, 3); insert into t_2.guest values (1, 1, 2); \
             create table photo (tenant_id int, person_no int, year int) partition by range (year); \
             create table photo_old partition of photo for values from (0) to (2000); \
             create table photo_new partition of photo default; \
             alter table photo_new add constraint shows \
               foreign key (tenant_id, person_no) references person; \
             insert into photo values (1, 3, 2020), (2, 3, 2020)",
        )
        .await;
    let person = |number: &str| {
        let one = keys(&["tenant_id", "person_no"], &[&["1", number]]);
        table("person", one)
    };
    let rows = |dependents, more: Vec<ErasedTable>, number: &str| {
        let tables = std::iter::once(person(number)).chain(more).collect();
        entry(ErasureScope::Rows, dependents, tables)
    };
    let photo = || table("photo", ErasedRows::Dependent);
    for (one, why) in [
        (
            rows(false, vec![], "3"),
            "1 rows of t_2.partner belong to erased ones, and the entry does not tell whose they are",
        ),
        (
            rows(true, vec![], "2"),
            "1 rows of t_2.guest belong to erased ones, and the entry does not tell whose they are",
        ),
    ] {
        let said = bench.apply(&[one]).await.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(bench.rows("person", "true").await, 6);

    bench.sql("erp", "delete from t_2.partner").await;
    let said = bench
        .apply(&[rows(false, vec![], "3")])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("1 rows of public.photo_new refer to erased rows of public.person (shows)"),
        "{said}"
    );
    let applied = bench
        .apply(&[rows(true, vec![photo()], "3")])
        .await
        .unwrap();
    assert_eq!(applied.rows(), 3, "{applied:?}");
    assert_eq!(bench.rows("photo", "tenant_id = 1").await, 0);
    assert_eq!(bench.rows("photo", "tenant_id = 2").await, 1);
    // A reference from one partition is cleared.
    bench
        .sql(
            "erp",
            "delete from t_2.guest; delete from visit; alter table photo_new drop constraint shows, \
               add foreign key (tenant_id, person_no) references person on delete set null (person_no); \
             insert into photo values (1, 2, 2020)",
        )
        .await;
    let applied = bench.apply(&[rows(false, vec![], "2")]).await;
    assert_eq!(applied.unwrap().rows(), 3);
    assert_eq!(bench.rows("photo", "person_no is null").await, 1);
}

#[tokio::test]
async fn nothing_made_from_erased_rows_tells_of_them() {
    let bench = Bench::start().await;
    bench
        .sql(
            "erp",
            "alter table person add mail text; update person set mail = 'secret@' || tenant_id % 2; \
             create statistics both_of on name, mail from person; create index on person (lower(mail)); \
             create materialized view mails as select mail from person; \
             create view between as select mail from mails; \
             create materialized view above as select mail from between; \
             create function mails_of() returns setof text language sql as 'select mail from public.person'; \
             create materialized view by_call as select * from mails_of() m(mail); \
             create table flag (broken bool); insert into flag values (false); \
             create materialized view fragile as select (select max(mail) from person), \
               1 / (case when (select bool_or(broken) from flag) then 0 else 1 end); \
             create table unrelated (n int); insert into unrelated values (1); \
             create materialized view elsewhere as \
               select n, 1 / (case when (select bool_or(broken) from flag) then 0 else 1 end) from unrelated; \
             update flag set broken = true; analyze",
        )
        .await;
    let samples = "select count(*) from pg_stats where most_common_vals::text like '%secret@1%' \
        or histogram_bounds::text like '%secret@1%'";
    let extended =
        "select count(*) from pg_stats_ext where most_common_vals::text like '%secret@1%'";
    assert_eq!(bench.value(samples).await, 5);
    let all = |name: &str| ErasedTable {
        whose: "true".to_owned(),
        ..table(name, ErasedRows::All)
    };
    let names = ["person", "visit", "parcel", "address", "comment"];
    let one = entry(ErasureScope::Rows, false, names.map(all).to_vec());
    let applied = bench.apply(&[one]).await.unwrap();
    assert_eq!(bench.value(samples).await, 0);
    assert_eq!(bench.value(extended).await, 0);
    for view in ["mails", "above", "by_call", "names"] {
        assert_eq!(bench.rows(view, "true").await, 0, "{view}");
    }
    assert_eq!(bench.rows("elsewhere", "true").await, 1);
    let filled = "select count(*) from pg_class where relname = 'fragile' and relispopulated";
    assert_eq!(bench.value(filled).await, 0);
    let [note] = &applied.notes[..] else {
        panic!("{applied:?}");
    };
    assert!(
        note.contains("public.fragile of database erp") && note.contains("division by zero"),
        "{note}"
    );
}

#[tokio::test]
async fn many_large_objects_go_at_once() {
    let bench = Bench::start().await;
    // More than the server's table of locks holds.
    bench
        .sql(
            "erp",
            "create table paper (tenant_id int not null, no int primary key, body oid)",
        )
        .await;
    for part in 0..5 {
        let some = format!(
            "insert into paper select 1, n, lo_from_bytea((100000 + n)::oid, 'secret') \
             from generate_series({part} * 4000 + 1, {part} * 4000 + 4000) n"
        );
        bench.sql("erp", &some).await;
    }
    bench
        .sql(
            "erp",
            "create role reader; grant select on large object 100001 to reader; \
             comment on large object 100001 is 'secret'",
        )
        .await;
    let one = entry(
        ErasureScope::Rows,
        false,
        vec![table("paper", ErasedRows::All)],
    );
    assert_eq!(bench.apply(&[one]).await.unwrap().rows(), 20_000);
    for left in [
        "pg_largeobject",
        "pg_largeobject_metadata",
        "pg_description where classoid = 'pg_largeobject'::regclass",
    ] {
        let query = format!("select count(*) from {left}");
        assert_eq!(bench.value(&query).await, 0, "{left}");
    }
    // Nothing refers to the role any more.
    bench.sql("erp", "drop role reader").await;
}

#[tokio::test]
async fn what_the_copy_does_not_have_by_that_name_is_told() {
    let bench = Bench::start().await;
    bench
        .sql("postgres", "create database erp_clone template erp")
        .await;
    bench
        .sql("postgres", "create database shut allow_connections false")
        .await;
    let gone = table("client", keys(&["client_id"], &[&["1"]]));
    let person = table("person", keys(&["tenant_id", "person_no"], &[&["1", "3"]]));
    let mut one = entry(ErasureScope::Rows, false, vec![gone, person]);
    for (database, whole) in [
        ("erp_before", None),
        ("shut", None),
        ("erp", Some(WholePlace::Schema("t_1".to_owned()))),
    ] {
        one.databases.push(ErasedDatabase {
            database: database.to_owned(),
            whole,
            tables: Vec::new(),
            links: Vec::new(),
            tenant_columns: Vec::new(),
            others: Vec::new(),
        });
    }
    let applied = bench.apply(std::slice::from_ref(&one)).await.unwrap();
    let told = [
        "database erp_before",
        "database shut, which accepts no connections",
        "public.client of database erp",
        "tables in schema t_1 of database erp",
    ];
    assert_eq!(applied.not_found, told);
    let line = applied.to_string();
    assert!(
        line.ends_with(&format!("; NOT FOUND in the copy: {}", told.join(", "))),
        "{line}"
    );
    let [note] = &applied.notes[..] else {
        panic!("{applied:?}");
    };
    assert!(
        note.starts_with("database erp_clone has public.person too"),
        "{note}"
    );
    // Of a scratch server it matters what the tenant's restore reads.
    let applied = bench.apply_to(&[one], Depth::Rows).await.unwrap();
    assert_eq!((applied.not_found.len(), applied.notes.len()), (4, 0));
}

#[tokio::test]
async fn an_index_from_another_host_is_not_asked() {
    let bench = Bench::start().await;
    // Written while the index took nothing in: it does not know the rows from 20,000 on.
    bench
        .sql(
            "erp",
            "create table account (tenant_id int, mail text primary key); \
             insert into account select 1, 'a' || n from generate_series(1, 19999) n; \
             update pg_index set indisready = false where indexrelid = 'account_pkey'::regclass",
        )
        .await;
    bench
        .sql(
            "erp",
            "insert into account values (1, 'a20000'); \
             update pg_index set indisready = true where indexrelid = 'account_pkey'::regclass; analyze account",
        )
        .await;
    let one = entry(
        ErasureScope::Rows,
        false,
        vec![table("account", keys(&["mail"], &[&["a20000"]]))],
    );
    // As long as the versions agree the index serves.
    let erased = bench.apply(std::slice::from_ref(&one)).await.unwrap();
    assert_eq!(erased.rows(), 0);
    for elsewhere in [
        "update pg_database set datcollversion = '1.0' where datname = 'erp'",
        "update pg_database set datcollversion = null where datname = 'erp'; \
         update pg_collation set collversion = '1.0' where oid in \
           (select oid from pg_collation where collversion is not null limit 1); \
         insert into account values (1, 'a20001'); delete from account where mail = 'a20001'; \
         update pg_index set indisready = false where indexrelid = 'account_pkey'::regclass",
    ] {
        bench.sql("erp", elsewhere).await;
        bench
            .sql(
                "erp",
                "insert into account select 1, 'a20000' where not exists \
                   (select from account where mail || '' = 'a20000'); \
                 update pg_index set indisready = true where indexrelid = 'account_pkey'::regclass",
            )
            .await;
        let erased = bench.apply(std::slice::from_ref(&one)).await.unwrap();
        assert_eq!(erased.rows(), 1, "{elsewhere}");
    }
}

#[tokio::test]
async fn what_is_prepared_does_not_bring_rows_back() {
    let bench = Bench::start().await;
    let prepare = "begin; insert into address (tenant_id, person_no, street) values (1, 3, 'late'); \
        prepare transaction 'late one'";
    bench.sql("erp", prepare).await;
    // Of a table that no entry speaks of.
    let harmless = "begin; insert into country values (2, 'X'); prepare transaction 'harmless'";
    bench.sql("erp", harmless).await;
    let person = table("person", keys(&["tenant_id", "person_no"], &[&["1", "3"]]));
    let one = entry(ErasureScope::Rows, false, vec![person]);
    let said = bench.apply(std::slice::from_ref(&one)).await.unwrap_err();
    let said = said.to_string();
    assert!(
        said.contains("prepared transaction 'late one' holds public.address"),
        "{said}"
    );
    assert!(!said.contains("harmless"), "{said}");
    // Nobody commits it on a scratch server.
    let applied = bench
        .apply_to(std::slice::from_ref(&one), Depth::Rows)
        .await;
    assert_eq!(applied.unwrap().rows(), 2);
    assert_eq!(
        bench.value("select count(*) from pg_prepared_xacts").await,
        0
    );

    bench.sql("erp", harmless).await;
    bench.apply(&[one]).await.unwrap();
    assert_eq!(
        bench.value("select count(*) from pg_prepared_xacts").await,
        1
    );
}

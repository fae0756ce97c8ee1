//! What was erased since is not written by an undo, however much of it the restore had written to.

use dr_restore::{
    AppliedErasures, ErasedDatabase, ErasedLink, ErasedRows, ErasedTable, ErasedTenant, Erasure,
    ErasureScope,
};

use super::*;
use crate::map::TableName;
use crate::take_out::take_out;
use crate::undo::{self, State};

const SCHEMA: &str = "
    create table customer (tenant_id int, no char(8), name text, primary key (tenant_id, no));
    create table sales_order (order_id int primary key, tenant_id int, customer_no char(8), note text,
        foreign key (tenant_id, customer_no) references customer on delete cascade);
    create table order_line (line_id int primary key, tenant_id int, note text,
        order_id int references sales_order on delete cascade);
    create table flag (tenant_id int, active boolean, note text, primary key (tenant_id, active));
    create table rate (tenant_id int, percent numeric(10, 2) primary key, note text);
    create table rebate (rebate_id int primary key, tenant_id int, note text,
        percent int references rate on delete cascade);
    create table remark (tenant_id int, about int, note text);
    create table visit (visit_id int primary key, tenant_id int, customer_no char(8), note text,
        foreign key (tenant_id, customer_no) references customer on delete set null (customer_no));
    insert into customer select 3, no, 'good' from unnest(array['A12', 'B7', 'C3', 'D4']) no;
    insert into sales_order values (1, 3, 'A12', 'good'), (2, 3, 'B7', 'good'), (4, 3, 'D4', 'good');
    insert into order_line values (11, 3, 'good', 1), (12, 3, 'good', 2), (14, 3, 'good', 4);
    insert into flag values (3, true, 'good'), (3, false, 'good');
    insert into rate values (3, 7, 'good'), (3, 8, 'good');
    insert into rebate values (21, 3, 'good', 7), (22, 3, 'good', 8);
    insert into remark values (3, 11, 'good'), (3, 12, 'good');
    insert into visit values (31, 3, 'B7', 'good'), (32, 3, 'D4', 'good'), (33, 3, 'A12', 'good'),
        (34, 3, 'B7', 'good'), (35, 3, 'D4', 'good')";

/// Of A12 only what hangs on its order is written by the restore, of D4 only its order and what hangs on that.
const SPOIL: &str = "
    update customer set name = 'spoilt' where no = 'C3';
    update sales_order set note = 'spoilt' where customer_no <> 'A12';
    update order_line set note = 'spoilt'; update flag set note = 'spoilt';
    update rate set note = 'spoilt'; update rebate set note = 'spoilt'; update remark set note = 'spoilt';
    update visit set note = 'spoilt'; update visit set customer_no = 'D4' where visit_id = 31;
    update visit set customer_no = 'B7' where visit_id = 35;
    update visit set customer_no = 'A12' where visit_id = 34; insert into visit values (36, 3, 'D4', 'spoilt')";

fn public(name: &str) -> TableName {
    TableName {
        schema: "public".to_owned(),
        name: name.to_owned(),
    }
}

fn entry() -> Erasure {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let named = |table: &str, columns: &[&str], keys: &[&[&str]]| ErasedTable {
        table: public(table),
        whose: "t.tenant_id = 3".to_owned(),
        rows: ErasedRows::Keys {
            columns: own(columns),
            keys: keys.iter().map(|key| own(key)).collect(),
        },
    };
    let customers: [&[&str]; 3] = [&["3", "A12"], &["3", "C3"], &["3", "D4"]];
    let now = Utc::now();
    Erasure {
        version: Erasure::VERSION,
        id: dr_model::ErasureId::new(now),
        workload: "erp".parse().unwrap(),
        tenant: ErasedTenant {
            id: "3".to_owned(),
            name: "T".to_owned(),
            id_type: None,
        },
        scope: ErasureScope::Rows,
        dependents: false,
        reason: "request 4711".to_owned(),
        by: "anna".to_owned(),
        at: now,
        databases: vec![ErasedDatabase {
            database: "live".to_owned(),
            whole: None,
            tables: vec![
                named("customer", &["tenant_id", "no"], &customers),
                named("flag", &["tenant_id", "active"], &[&["3", "true"]]),
                named("rate", &["percent"], &[&["7.00"]]),
            ],
            links: vec![ErasedLink {
                child: public("remark"),
                columns: own(&["about"]),
                parent: public("order_line"),
                parent_columns: own(&["line_id"]),
                only: None,
            }],
            tenant_columns: Vec::new(),
            others: Vec::new(),
        }],
        folders: Vec::new(),
    }
}

async fn taken_out(bench: &Bench, entry: Erasure) -> AppliedErasures {
    let saved = bench.folder.path().join("saved");
    let mut set = ChangeSet::read(&saved).unwrap();
    let (map, tenant) = (bench.tenancy_map().await, set.tenant.clone());
    let owner = Ownership {
        map: &map,
        tenant: &tenant,
    };
    let mut live = session(&bench.options("live"), "live").await.unwrap();
    take_out(&mut live, &owner, &mut set, &saved, "live", &[entry])
        .await
        .unwrap_or_else(|e| panic!("{e} {e:?}"))
}

/// As an undo is planned: what is left has to be as the restore left it, and rows are counted anew.
async fn undo(bench: &Bench) {
    let saved = bench.folder.path().join("saved");
    let set = ChangeSet::read(&saved).unwrap();
    let (map, tenant) = (bench.tenancy_map().await, set.tenant.clone());
    let owner = Ownership {
        map: &map,
        tenant: &tenant,
    };
    let mut live = session(&bench.options("live"), "live").await.unwrap();
    let standings = undo::compare(&mut live, &owner, &set, &saved, State::After)
        .await
        .unwrap();
    let mut reversed = set.reversed(TenantRestoreId::new(Utc::now()));
    for (changes, standing) in reversed.tables.iter_mut().zip(&standings) {
        assert_eq!(standing.wrong, 0, "{}", changes.slice.table);
        changes.rows_before = standing.rows;
        changes.rows_after = standing.rows + changes.counts.insert - changes.counts.delete;
    }
    bench
        .write(&map, &reversed, "saved", "saved-undo", Direction::Reverse)
        .await
        .unwrap_or_else(|e| panic!("{e} {e:?}"));
    let standings = undo::compare(&mut live, &owner, &set, &saved, State::Before).await;
    let wrong: u64 = standings
        .unwrap()
        .iter()
        .map(|standing| standing.wrong)
        .sum();
    assert_eq!(wrong, 0, "read again");
}

async fn spoilt(bench: &Bench) -> Vec<String> {
    let tables = [
        ("customer", "no::text"),
        ("sales_order", "order_id::text"),
        ("order_line", "line_id::text"),
        ("flag", "active::text"),
        ("rate", "percent::text"),
        ("rebate", "rebate_id::text"),
        ("remark", "about::text"),
        (
            "visit",
            "visit_id || ' of ' || coalesce(customer_no, 'nobody')",
        ),
    ];
    let queries = tables.map(|(table, key)| {
        let note = if table == "customer" { "name" } else { "note" };
        format!("select '{table} ' || {key} from {table} where {note} = 'spoilt'")
    });
    let query = format!(
        "select array({} order by 1)::text[]",
        queries.join(" union all ")
    );
    let mut live = bench.connect("live").await;
    sql::value(&mut live, &query, "what the undo wrote")
        .await
        .unwrap()
}

#[tokio::test]
async fn an_undo_leaves_out_what_was_erased_and_all_that_belonged_to_it() {
    let bench = Bench::start(tenancy("tenant_id", &[]), &[]);
    bench.sql("postgres", "create database live").await;
    bench.sql("live", SCHEMA).await;
    bench.keep("then_").await;
    bench.sql("live", SPOIL).await;
    bench.restore("3").await;
    assert_eq!(spoilt(&bench).await, Vec::<String>::new());
    // One is gone from the live database by now, the others are not yet.
    bench
        .sql(
            "live",
            "delete from customer where no = 'D4'; delete from order_line where line_id = 11",
        )
        .await;
    let applied = taken_out(&bench, entry()).await;
    let counts: Vec<(&str, u64)> = applied.entries[0]
        .tables
        .iter()
        .map(|count| (count.table.as_str(), count.erased))
        .collect();
    assert_eq!(
        counts,
        [
            ("public.customer", 1),
            ("public.flag", 1),
            ("public.order_line", 2),
            ("public.rate", 1),
            ("public.rebate", 1),
            // Without a key a row is changed by one line that removes it and one that makes it.
            ("public.remark", 2),
            ("public.sales_order", 1),
            ("public.visit", 0),
        ]
    );
    undo(&bench).await;
    assert_eq!(
        spoilt(&bench).await,
        [
            "flag false",
            "order_line 12",
            "rate 8.00",
            "rebate 22",
            "remark 12",
            "sales_order 2",
            // Of a customer that is gone, and of one that is erased and still live: only what the restore changed.
            "visit 31 of nobody",
            "visit 32 of nobody",
            "visit 33 of A12",
            "visit 34 of nobody",
            "visit 35 of B7",
            "visit 36 of nobody",
        ]
    );
}

//! Restored to a moment between two loads, pgbench's tables and the demo's ERP hold what they held then,
//! row for row, and PostgreSQL's own programs find nothing wrong: on every version that is supported.

use std::fs;
use std::path::Path;

use crate::harness::{Cluster, ERP, Options, Program, Rows, World, differences, postgres_program};
use crate::increments::pg_amcheck;

const SCHEMA: &str = include_str!("../../dr-engine/demo/src/erp/schema.sql");
const DATA: &str = include_str!("../../dr-engine/demo/src/erp/data.sql");
const CONSTRAINTS: &str = include_str!("../../dr-engine/demo/src/erp/constraints.sql");

/// What the demo's scripts draw their values from; some 20,000 rows of twelve tenants.
const GENERATOR: &str = "
    create function pg_temp.pick(stream bigint, n bigint, m bigint) returns bigint language sql immutable as
        'select (hashint8extended(n, 7000 + stream) & 9223372036854775807) % m';
    create function pg_temp.codes() returns text[] language sql immutable as
        $$ select array_agg('TENANT' || n order by n) from generate_series(1, 12) n $$;
    create function pg_temp.parameter(name text) returns bigint language sql immutable as
        $$ select case name when 'seed' then 7 when 'orders' then 2112 when 'customers' then 288
           when 'items' then 224 when 'documents' then 40 when 'shipments' then 320 end::bigint $$;";

/// A day of the business in small: orders come with lines, a document too large for its row and a move of
/// stock, others change or lose a line, invoices are paid, and a setting is written again and again.
const ERP_LOAD: &str = r"
\set tenant random(1, 12)
\set order random(1, 2112)
begin;
insert into sales_order (tenant_id, order_no, total, note)
    values (:tenant, gen_random_uuid(), :order / 7.0, 'from the load') returning order_id \gset
insert into order_line (order_id, line_no, quantity, unit_price, text)
    select :order_id, n, n, 2.25, repeat('line ', n) from generate_series(1, 3) n;
insert into edi_document (tenant_id, order_id, kind, direction, content)
    values (:tenant, :order_id, 'ORDERS', 'in', decode(repeat(md5(random()::text), 200), 'hex'));
insert into stock_move (tenant_id, warehouse_id, item_id, quantity, reason)
    select tenant_id, warehouse_id, item_id, -1, 'load' from stock_move where tenant_id = :tenant limit 1;
update sales_order set total = total + 0.01, status = 'cancelled' where order_id = :order;
delete from order_line where order_id = :order and line_no = 2;
update invoice set paid_at = now() where order_id = :order;
insert into setting (tenant_id, key, value) values (:tenant, 'last order', to_jsonb(:order_id))
    on conflict (tenant_id, key) do update set value = excluded.value;
end;
";

/// `pgbench` with how it reaches the server.
fn pgbench(cluster: &Cluster) -> Program {
    Program::new(&cluster.account, postgres_program("pgbench"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
        .args([cluster.port.to_string()])
}

fn database(cluster: &Cluster, name: &str) -> Cluster {
    Cluster {
        database: name.to_owned(),
        ..cluster.clone()
    }
}

fn install(world: &World) {
    world.cluster.psql("create database bench");
    pgbench(&world.cluster)
        .args(["-i", "-q", "-s", "1", "--foreign-keys", "bench"])
        .run()
        .ok();
    world.cluster.psql("create database shop");
    let script = world.path("shop.sql");
    // Version 14 cannot name the column; no order is deleted here.
    let constraints = CONSTRAINTS.replace("on delete set null (order_id)", "");
    fs::write(&script, [GENERATOR, SCHEMA, DATA, &constraints].join("\n")).unwrap();
    database(&world.cluster, "shop").psql_file(&script);
    fs::write(world.path("load.sql"), ERP_LOAD).unwrap();
}

/// So many transactions of each client, of pgbench's own and of the ERP's at the same time; `meanwhile` runs
/// beside them.
#[track_caller]
fn load(world: &World, transactions: u32, meanwhile: impl FnOnce()) {
    let script = world.path("load.sql");
    let log = world.path("logs/pgbench.log");
    let count = transactions.to_string();
    let start = |database: &str, own: &[&Path]| {
        pgbench(&world.cluster)
            .args(["-n", "-c", "2", "-t", &count])
            .args(own.iter().flat_map(|path| [Path::new("-f"), path]))
            .args([database])
            .spawn(&log)
    };
    let clients = [start("bench", &[]), start("shop", &[&script])];
    meanwhile();
    for mut client in clients {
        let ended = client.wait().unwrap();
        let said = || fs::read_to_string(&log).unwrap_or_default();
        // It ends well although a client was refused, and says so.
        assert!(ended.success() && !said().contains("aborted"), "{}", said());
    }
}

/// Every row of every table of both databases.
#[track_caller]
fn all_rows(cluster: &Cluster) -> Rows {
    let mut all = Rows::new();
    for name in ["bench", "shop"] {
        let database = database(cluster, name);
        let tables = database.psql(
            "select c.oid::regclass from pg_class c where c.relkind = 'r' \
             and c.relnamespace = 'public'::regnamespace order by 1",
        );
        for table in tables {
            let select =
                format!("select replace(t::text, E'\\n', '\\n') from {table} t order by 1");
            all.insert(format!("{name}.{table}"), database.psql(&select));
        }
    }
    all
}

#[track_caller]
fn assert_same(expected: &Rows, found: &Rows, when: &str) {
    let names = |rows: &Rows| rows.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{when}");
    let mut differing = differences(expected, found);
    let count = differing.len();
    differing.truncate(10);
    assert_eq!(count, 0, "{when}: {count} rows differ: {differing:#?}");
}

/// Indexes against tables, and every page against its sum.
#[track_caller]
fn assert_sound(restored: &Cluster) {
    pg_amcheck(restored);
    restored.stop("fast");
    Program::new(&restored.account, postgres_program("pg_checksums"))
        .args(["--check".as_ref(), "-D".as_ref(), restored.data.as_os_str()])
        .run()
        .ok();
}

#[test]
fn all_rows_are_what_they_were_at_the_target_and_postgresql_finds_nothing_wrong() {
    let world = World::protected(&Options {
        wal_segment_megabytes: 4,
        ..Options::new("judged", &ERP)
    });
    install(&world);
    world.dr(&["backup", "run", "erp"]).ok();
    load(&world, 100, || ());
    // Taken while everything changes.
    load(&world, 400, || {
        world.dr(&["backup", "run", "erp"]).ok();
    });
    let then = all_rows(&world.cluster);
    // Nothing of the load was left out.
    assert_eq!(then["bench.pgbench_history"].len(), 1000);
    let orders = &then["shop.sales_order"];
    let loaded = orders.iter().filter(|row| row.contains("from the load"));
    assert_eq!(loaded.count(), 1000);
    let moment = world.cluster.moment();
    load(&world, 200, || ());
    let now = all_rows(&world.cluster);
    assert!(!differences(&then, &now).is_empty());
    world.cluster.switch_and_wait();

    let folder = world.path("untouched");
    let text = folder.display().to_string();
    let words = ["restore", "erp", "--into", &text, "--to", &moment];
    world.dr(&words).ok();
    world.pg_verifybackup(&folder);

    for (name, target, expected) in [
        ("at-moment", moment.as_str(), &then),
        ("at-end", "latest", &now),
    ] {
        let restored = world.restore_started(name, target);
        assert_same(expected, &all_rows(&restored), name);
        assert_sound(&restored);
    }
    for proof in world.ask(&["backup", "verify"]).list("") {
        assert_eq!(proof.at("/passed").0, true, "{proof:?}");
    }
}

//! The ERP is what it says: complete, consistent and the same for the same seed; and its events
//! arrive once each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use dr_demo::erp::{self, Scale, Summary};
use dr_demo::{consumer, relay};
use dr_sources::instance::{
    InitdbOptions, NatsInstance, PostgresInstance, RunAs, StartOptions, free_port, give,
};
use dr_sources::nats::position;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

struct Cluster {
    // Dropped in this order: the server before its folder.
    instance: PostgresInstance,
    folder: tempfile::TempDir,
    run_as: Option<RunAs>,
}

impl Cluster {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("dr-erp").tempdir().unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        give(folder.path(), run_as.as_ref()).unwrap();
        let bin = dr_sources::postgres::tools::bin_directory(None, 15).unwrap();
        let data = folder.path().join("data");
        let mut initdb = InitdbOptions::new(&bin, &data, run_as.clone());
        initdb.arguments = vec!["--no-sync".to_owned()];
        PostgresInstance::initdb(&initdb).unwrap();
        let mut options = StartOptions::new(&bin, &data, run_as.clone(), free_port());
        options.settings = vec![("fsync".to_owned(), "off".to_owned())];
        let instance = PostgresInstance::start(options).unwrap();
        Self {
            instance,
            folder,
            run_as,
        }
    }

    async fn connect(&self, database: &str) -> PgConnection {
        PgConnection::connect(&self.instance.url(database))
            .await
            .unwrap()
    }

    async fn create(&self, database: &str) -> PgConnection {
        let mut admin = self.connect("postgres").await;
        run(&mut admin, &format!("create database {database}"))
            .await
            .unwrap();
        self.connect(database).await
    }
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .map(|_| ())
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(connection)
        .await
        .unwrap()
}

/// One fingerprint for every row of every table, taken by the server.
async fn fingerprint(
    connection: &mut PgConnection,
    schema: &str,
    summary: &Summary,
) -> Vec<String> {
    let mut found = Vec::new();
    for table in summary.rows.keys() {
        let sql = format!(
            "select md5(coalesce(string_agg(md5(t::text), '' order by t::text collate \"C\"), '')) \
             from {schema}.\"{table}\" t"
        );
        let sum: String = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        found.push(format!("{table} {sum}"));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_rows() {
    let cluster = Cluster::start();
    let mut one = cluster.create("one").await;
    let first = erp::install(&mut one, Scale::small(), 42).await.unwrap();
    let mut two = cluster.create("two").await;
    let second = erp::install(&mut two, Scale::small(), 42).await.unwrap();
    let mut three = cluster.create("three").await;
    let other = erp::install(&mut three, Scale::small(), 43).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(first.tenants.len(), 12);
    assert_eq!(first.tenants[0], ("1".to_owned(), "ACME".to_owned()));
    assert!((15_000..30_000).contains(&first.total()), "{first}");
    let rows = fingerprint(&mut one, "public", &first).await;
    assert_eq!(rows, fingerprint(&mut two, "public", &second).await);
    assert_ne!(rows, fingerprint(&mut three, "public", &other).await);
    // Every tenant has something everywhere, and nobody has much the same as everybody.
    let sizes = "select (max(n) / min(n))::bigint from \
                 (select count(*) n from sales_order group by tenant_id) s";
    assert!(number(&mut one, sizes).await >= 5);
    for table in [
        "sales_order",
        "customer",
        "item",
        "stock_move",
        "invoice",
        "edi_document",
    ] {
        let sql = format!("select count(distinct tenant_id) from {table}");
        assert_eq!(number(&mut one, &sql).await, 12, "{table}");
    }
    // A second installation is refused and changes nothing.
    assert!(erp::install(&mut one, Scale::small(), 42).await.is_err());
    assert_eq!(rows, fingerprint(&mut one, "public", &first).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_what_makes_a_tenant_hard_to_take_apart() {
    let cluster = Cluster::start();
    let mut c = cluster.create("erp").await;
    erp::install(&mut c, Scale::small(), 7).await.unwrap();
    let counts = [
        (
            "select count(*) from pg_attribute where attidentity = 'a' and attrelid > 16384",
            5,
        ),
        (
            "select count(*) from pg_attribute where attidentity = 'd' and attrelid > 16384",
            3,
        ),
        (
            "select count(*) from pg_attribute where attgenerated = 's' and attrelid > 16384",
            4,
        ),
        (
            "select count(*) from pg_constraint where contype = 'f' and condeferrable",
            3,
        ),
        (
            "select count(*) from pg_constraint where contype = 'f' and cardinality(conkey) > 1",
            8,
        ),
        (
            "select count(*) from pg_constraint where contype = 'u' and condeferrable",
            1,
        ),
        (
            "select count(*) from pg_inherits where inhparent = 'stock_move'::regclass",
            5,
        ),
        ("select count(*) from pg_trigger where not tgisinternal", 5),
    ];
    for (sql, least) in counts {
        assert!(number(&mut c, sql).await >= least, "{sql}");
    }
    let lines = "select count(*) from pg_attribute where attrelid = 'order_line'::regclass \
                 and attname = 'tenant_id'";
    assert_eq!(number(&mut c, lines).await, 0);
    // Lines of an order never name another tenant's item, though no key forbids it.
    let strays = "select count(*) from order_line l join sales_order o using (order_id) \
                  join item i using (item_id) where i.tenant_id <> o.tenant_id";
    assert_eq!(number(&mut c, strays).await, 0);
    // The totals agree with the lines.
    let wrong = "select count(*) from sales_order o where total <> \
                 (select sum(amount) from order_line l where l.order_id = o.order_id)";
    assert_eq!(number(&mut c, wrong).await, 0);

    // A probe writes with two columns, and the trigger announces it.
    let before = number(&mut c, "select count(*) from outbox").await;
    let insert = "insert into sales_order(tenant_id, order_no) values ($1::int, $2)";
    sqlx::query(insert)
        .bind(3)
        .bind("PROBE-1")
        .execute(&mut c)
        .await
        .unwrap();
    sqlx::query("insert into sales_order(tenant_id, order_no) values ($1::text::int, $2)")
        .bind("3")
        .bind("PROBE-2")
        .execute(&mut c)
        .await
        .unwrap();
    let twice = sqlx::query(insert)
        .bind(3)
        .bind("PROBE-1")
        .execute(&mut c)
        .await
        .unwrap_err();
    assert!(
        twice
            .to_string()
            .contains("sales_order_tenant_id_order_no_key"),
        "{twice}"
    );
    assert_eq!(
        number(&mut c, "select count(*) from outbox").await,
        before + 2
    );
    // The identity sequences stand behind what was generated.
    for sql in [
        "insert into stock_move(tenant_id, warehouse_id, item_id, quantity, reason) \
         select tenant_id, warehouse_id, (select min(item_id) from item i where i.tenant_id = w.tenant_id), 1, 'count' \
         from warehouse w",
        "insert into customer(tenant_id, customer_no, name, country_code) values (1, 'new', 'n', 'US')",
        "insert into item(tenant_id, sku, description, price) values (1, 'new', 'n', 1)",
        "insert into app_user(tenant_id, email, full_name) values (1, 'NEW@x', 'n')",
        "begin; set constraints all deferred; \
         update warehouse set manager_id = manager_id; \
         insert into invoice(tenant_id, invoice_no, order_id, net, tax_rate) \
         select tenant_id, order_no, order_id, 1, 0 from sales_order where order_no like 'PROBE%'; commit",
    ] {
        run(&mut c, sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_schema_is_unlike_the_first() {
    let cluster = Cluster::start();
    let mut one = cluster.create("one").await;
    let first = erp::install_second(&mut one, Scale::small(), 42)
        .await
        .unwrap();
    let mut two = cluster.create("two").await;
    let second = erp::install_second(&mut two, Scale::small(), 42)
        .await
        .unwrap();
    assert_eq!(first, second);
    assert_eq!(first.tenants.len(), 12);
    let rows = fingerprint(&mut one, "logistics", &first).await;
    assert_eq!(rows, fingerprint(&mut two, "logistics", &second).await);
    let empty: Vec<_> = first.rows.iter().filter(|(_, rows)| **rows == 0).collect();
    assert!(empty.is_empty(), "{empty:?}");
    assert_eq!(
        number(
            &mut one,
            "select count(distinct company_id) from logistics.shipment"
        )
        .await,
        12
    );
    run(
        &mut one,
        "insert into logistics.parcel(shipment_id, weight) select shipment_id, 2 from logistics.shipment limit 3; \
         insert into logistics.parcel_event(parcel_id, at, what) select max(parcel_id), now(), 'x' from logistics.parcel",
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_once_each_and_in_order() {
    let cluster = Cluster::start();
    let mut c = cluster.create("erp").await;
    erp::install(&mut c, Scale::small(), 1).await.unwrap();
    let store = cluster.folder.path().join("nats");
    let nats = NatsInstance::start(&store, free_port(), cluster.run_as.as_ref()).unwrap();
    let log = cluster.folder.path().join("consumer.log");
    let (url, nats_url) = (cluster.instance.url("erp"), nats.url());
    let insert = "insert into sales_order(tenant_id, order_no) \
                  select 1 + n % 12, 'E-' || n from generate_series($1::int, $2) n";
    let mut from = 1;
    for round in 0..3 {
        let cancel = CancellationToken::new();
        let working = tokio::spawn({
            let (url, nats_url, log) = (url.clone(), nats_url.clone(), log.clone());
            let cancel = cancel.clone();
            async move { dr_demo::relay_and_consume(&url, &nats_url, &log, cancel).await }
        });
        sqlx::query(insert)
            .bind(from)
            .bind(from + 299)
            .execute(&mut c)
            .await
            .unwrap();
        from += 300;
        // The first rounds are stopped in the middle of their work.
        let sent = "select count(*) from outbox where sent_at is not null and payload->>'order_no' like 'E-%'";
        let enough = if round < 2 {
            i64::from(from) - 250
        } else {
            i64::from(from) - 1
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while number(&mut c, sent).await < enough {
            assert!(Instant::now() < deadline, "the relay stands still");
            tokio::task::yield_now().await;
        }
        if round == 2 {
            // An event that was published but not marked, as a crash leaves it.
            run(
                &mut c,
                "update outbox set sent_at = null where payload->>'order_no' = 'E-450'",
            )
            .await
            .unwrap();
            let unsent = "select count(*) from outbox where sent_at is null";
            while number(&mut c, unsent).await > 0 {
                assert!(
                    Instant::now() < deadline,
                    "the relay does not publish again"
                );
            }
            let floor = || async { position(&nats_url, relay::STREAM).await.unwrap().consumers };
            while floor().await.get(consumer::CONSUMER) != Some(&900) {
                assert!(
                    Instant::now() < deadline,
                    "the consumer stands still: {:?}",
                    floor().await
                );
            }
        }
        cancel.cancel();
        working.await.unwrap().unwrap();
    }
    let place = position(&nats_url, relay::STREAM).await.unwrap();
    assert_eq!(
        (place.messages, place.last_sequence),
        (900, 900),
        "an event is there twice"
    );
    // The log has every order; lines may repeat where the consumer was stopped.
    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let orders: BTreeSet<(u64, String)> = lines
        .iter()
        .map(|line| {
            (
                line["sequence"].as_u64().unwrap(),
                line["order_no"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected: BTreeSet<(u64, String)> = (1..=900).map(|n| (n, format!("E-{n}"))).collect();
    assert_eq!(orders, expected);
    // Tenant 2: the subject is the tenant's. The log's first line need not be the first event, which
    // may be delivered again after a stop.
    let first = lines.iter().find(|line| line["sequence"] == 1).unwrap();
    assert_eq!(first["subject"], "orders.BOREALIS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_relay_is_refused() {
    let cluster = Cluster::start();
    let mut c = cluster.create("erp").await;
    erp::install(
        &mut c,
        Scale {
            tenants: 3,
            rows_factor: 0.001,
        },
        1,
    )
    .await
    .unwrap();
    let store = cluster.folder.path().join("nats");
    let nats = NatsInstance::start(&store, free_port(), cluster.run_as.as_ref()).unwrap();
    let options = relay::RelayOptions {
        database_url: cluster.instance.url("erp"),
        nats_url: nats.url(),
    };
    let cancel = CancellationToken::new();
    let first = tokio::spawn({
        let (options, cancel) = (options.clone(), cancel.clone());
        async move { relay::run(&options, &cancel).await }
    });
    let locks = "select count(*) from pg_locks where locktype = 'advisory'";
    let deadline = Instant::now() + Duration::from_secs(30);
    while number(&mut c, locks).await == 0 {
        assert!(Instant::now() < deadline, "no relay works");
    }
    let second = relay::run(&options, &cancel).await.unwrap_err();
    assert!(
        second.to_string().contains("another outbox relay"),
        "{second}"
    );
    cancel.cancel();
    first.await.unwrap().unwrap();
}

#[test]
fn each_tenant_gets_its_own_folder() {
    let root = tempfile::tempdir().unwrap();
    let tenants: Vec<_> = (1..)
        .map(|n: u32| n.to_string())
        .zip(erp::tenant_codes(70))
        .collect();
    let names: BTreeSet<_> = tenants.iter().map(|(_, code)| code).collect();
    assert_eq!(names.len(), 70);
    let one = root.path().join("one");
    erp::write_configuration(&one, &tenants, None).unwrap();
    erp::write_configuration(&root.path().join("two"), &tenants, None).unwrap();
    let diff = std::process::Command::new("diff")
        .args(["-r", "--no-dereference", "one", "two"])
        .current_dir(root.path())
        .status()
        .unwrap();
    assert!(diff.success());
    let acme = one.join("ACME");
    let mode = |name: &str| {
        std::fs::metadata(acme.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("hooks/after-order.sh"), mode("logo.bin")),
        (0o755, 0o600)
    );
    assert!(
        std::fs::symlink_metadata(acme.join("price-rules/current.yaml"))
            .unwrap()
            .is_symlink()
    );
    let settings =
        |code: &str| std::fs::read_to_string(one.join(code).join("settings.yaml")).unwrap();
    assert_ne!(settings("ACME"), settings("KESTREL"));
    assert!(erp::write_configuration(&one, &tenants, None).is_err());
}

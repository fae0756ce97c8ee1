//! Two schemas of an ERP's kind, told in full: what is wiped returns, others are left alone, and what stands in
//! the way is said.

use dr_demo::erp::Scale;

use super::*;
use crate::fault;

const ERP: [(&str, &str); 13] = [
    ("public.tenant", "tenant_id = $"),
    ("public.app_user", "tenant_id = $"),
    ("public.warehouse", "tenant_id = $"),
    ("public.item", "tenant_id = $"),
    ("public.customer", "tenant_id = $"),
    ("public.sales_order", "tenant_id = $"),
    (
        "public.order_line",
        "order_id in (select order_id from public.sales_order where tenant_id = $)",
    ),
    ("public.stock_move", "tenant_id = $"),
    ("public.invoice", "tenant_id = $"),
    ("public.edi_document", "tenant_id = $"),
    ("public.setting", "tenant_id = $"),
    ("public.outbox", "tenant_id = $"),
    ("public.currency", "false"),
];

const LOGISTICS: [(&str, &str); 8] = [
    ("logistics.company", "company_id = '$'"),
    ("logistics.depot", "company_id = '$'"),
    (
        "logistics.depot_gate",
        "depot_id in (select depot_id from logistics.depot where company_id = '$')",
    ),
    ("logistics.shipment", "company_id = '$'"),
    (
        "logistics.parcel",
        "shipment_id in (select shipment_id from logistics.shipment where company_id = '$')",
    ),
    (
        "logistics.parcel_event",
        "parcel_id in (select parcel_id from logistics.parcel join logistics.shipment using (shipment_id) where company_id = '$')",
    ),
    ("logistics.\"Rate Card\"", "company_id = '$'"),
    ("logistics.api_token", "company_id = '$'"),
];

impl Bench {
    pub(super) async fn erp() -> Self {
        let shared = [
            ("currency", TenantTable::Shared),
            ("country", TenantTable::Shared),
        ];
        let bench = Self::start(tenancy("tenant_id", &shared), &ERP);
        bench.sql("postgres", "create database live").await;
        let mut live = bench.connect("live").await;
        dr_demo::erp::install(&mut live, Scale::small(), 7)
            .await
            .unwrap();
        bench
    }

    pub(super) async fn logistics() -> Self {
        let shared = [("logistics.service_level", TenantTable::Shared)];
        let bench = Self::start(tenancy("company_id", &shared), &LOGISTICS);
        bench.sql("postgres", "create database live").await;
        let mut live = bench.connect("live").await;
        dr_demo::erp::install_second(&mut live, Scale::small(), 7)
            .await
            .unwrap();
        bench
    }
}

/// Bad statements over nearly every table of tenant 3, and some honest work.
pub(super) const MISTAKE: &str = "
begin;
set constraints all deferred;
delete from edi_document where tenant_id = 3 and order_id % 2 = 0;
delete from invoice where tenant_id = 3 and order_id % 2 = 0;
delete from sales_order where tenant_id = 3 and order_id % 2 = 0;
update sales_order set status = 'cancelled', total = 0, note = E'oops\\t\\\\ \\'x\\'\\n' where tenant_id = 3;
update order_line l set quantity = quantity * 2, text = null from sales_order o
  where o.order_id = l.order_id and o.tenant_id = 3 and l.line_no = 1;
update order_line l set line_no = line_no + 100 from sales_order o
  where o.order_id = l.order_id and o.tenant_id = 3 and l.line_no = 2;
update app_user set email = 'x' || user_id || '@example.com', default_warehouse_id = null where tenant_id = 3;
update warehouse set manager_id = null, city = 'Nowhere' where tenant_id = 3;
update customer set parent_customer_id = null, credit_limit = credit_limit * 1.000 where tenant_id = 3;
update customer set customer_no = 'swap-' || customer_id where tenant_id = 3;
update item set price = price + 1, barcodes = barcodes || array['zz', null] where tenant_id = 3;
update stock_move set moved_at = moved_at + interval '200 days' where tenant_id = 3 and move_id % 3 = 0;
delete from stock_move where tenant_id = 3 and move_id % 3 = 1;
update invoice i set invoice_no = o.invoice_no from
  (select invoice_id, lag(invoice_no, 1, 'last') over (order by invoice_id) as invoice_no from invoice where tenant_id = 3) o
  where o.invoice_id = i.invoice_id;
update setting set value = value || '{\"broken\": true}' where tenant_id = 3 and jsonb_typeof(value) = 'object';
delete from setting where tenant_id = 3 and key = (select min(key) from setting where tenant_id = 3);
update tenant set plan = 'none' where tenant_id = 3;
insert into customer (tenant_id, customer_no, name, country_code) select 3, 'NEW', 'new', country_code from tenant where tenant_id = 3;
insert into sales_order (tenant_id, order_no, customer_id) select 3, 'NEW', customer_id from customer where tenant_id = 3 and customer_no = 'NEW';
insert into order_line (order_id, line_no, quantity, unit_price) select order_id, 1, 1, 1 from sales_order where tenant_id = 3 and order_no = 'NEW';
insert into stock_move (tenant_id, warehouse_id, item_id, quantity, reason)
  select 3, w.warehouse_id, i.item_id, 1, 'x' from warehouse w, item i where w.tenant_id = 3 and i.tenant_id = 3 limit 3;
commit;";

/// Honest work of other tenants, before and during the restore.
const OTHERS: &str = "
insert into sales_order (tenant_id, order_no) values (4, 'OTHER-' || clock_timestamp());
update setting set value = to_jsonb(clock_timestamp()) where tenant_id = 5;";

#[tokio::test]
async fn a_wiped_tenant_returns_and_the_restore_can_be_undone_and_done_again() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", OTHERS).await;
    bench.sql("live", MISTAKE).await;
    bench.keep("before").await;
    let then = bench.digests("then_", "3", true).await;
    let before = bench.digests("before", "3", true).await;
    let others = bench.digests("before", "3", false).await;
    assert_ne!(then, before);
    let compared = bench.restore("3").await;
    let touched = compared
        .plans
        .iter()
        .filter(|t| t.insert + t.update + t.delete > 0)
        .count();
    assert!(touched >= 11, "{:#?}", compared.plans);
    assert_eq!(bench.digests("live", "3", true).await, then);
    assert_eq!(bench.digests("live", "3", false).await, others);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
    bench.undo("3").await;
    assert_eq!(bench.digests("live", "3", true).await, before);
    assert_eq!(bench.digests("live", "3", false).await, others);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
    bench.restore("3").await;
    assert_eq!(bench.digests("live", "3", true).await, then);
    let (_, nothing) = bench.compare("3", Mode::Replace).await;
    assert!(!nothing.set.has_rows());
}

#[tokio::test]
async fn an_unlike_schema_with_uuid_keys_and_tables_two_hops_away_returns() {
    let bench = Bench::logistics().await;
    bench.keep("then_").await;
    let mut live = bench.connect("live").await;
    let company: String = sql::value(
        &mut live,
        "select company_id::text from logistics.company order by slug limit 1",
        "c",
    )
    .await
    .unwrap();
    drop(live);
    let mistake = format!(
        "set search_path = logistics; begin; set constraints all deferred;
         update parcel_event e set place = point(1, 1), what = null || 'x' where false;
         delete from shipment where company_id = '{company}' and reference < 'SH000003';
         update parcel p set weight = weight * 1.0, size = row(1, null, 3), marks = '{{}}' from shipment s
           where s.shipment_id = p.shipment_id and s.company_id = '{company}';
         update parcel_event e set place = point(9, 9) from parcel p join shipment s using (shipment_id)
           where p.parcel_id = e.parcel_id and s.company_id = '{company}' and e.event_id % 2 = 0;
         update shipment set extra = '{{\"a\": 1}}', state = 'lost' where company_id = '{company}';
         update depot set main_gate = null where company_id = '{company}';
         delete from depot_gate g using depot d where d.depot_id = g.depot_id and d.company_id = '{company}';
         update \"Rate Card\" set \"price/kg\" = \"price/kg\" * 2 where company_id = '{company}' and \"Zone\" > 2;
         delete from \"Rate Card\" where company_id = '{company}' and \"Zone\" = 1;
         update company set legal_name = 'gone' where company_id = '{company}';
         delete from api_token where company_id = '{company}'; commit"
    );
    bench.sql("live", &mistake).await;
    bench.keep("before").await;
    let then = bench.digests("then_", &company, true).await;
    let before = bench.digests("before", &company, true).await;
    let others = bench.digests("before", &company, false).await;
    bench.restore(&company).await;
    assert_eq!(bench.digests("live", &company, true).await, then);
    assert_eq!(bench.digests("live", &company, false).await, others);
    assert_eq!(bench.orphans().await, Vec::<String>::new());
    bench.undo(&company).await;
    assert_eq!(bench.digests("live", &company, true).await, before);
    assert_eq!(bench.digests("live", &company, false).await, others);
}

#[tokio::test]
async fn a_write_to_another_tenant_is_caught_and_rolled_back() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    bench.keep("before").await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    fault::PLANTED.set("touch-other-tenant");
    let error = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap_err();
    assert!(matches!(error, TenantError::CheckFailed { .. }), "{error}");
    for own in [true, false] {
        assert_eq!(
            bench.digests("live", "3", own).await,
            bench.digests("before", "3", own).await
        );
    }
}

#[tokio::test]
async fn dropping_the_tenant_condition_never_commits() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", OTHERS).await;
    bench.sql("live", MISTAKE).await;
    bench.keep("before").await;
    fault::PLANTED.set("drop-tenant-condition");
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let result = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await;
    assert!(result.is_err());
    assert_eq!(
        bench.digests("live", "3", false).await,
        bench.digests("before", "3", false).await
    );
}

#[tokio::test]
async fn leaving_out_tables_behind_a_hop_never_commits() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    fault::PLANTED.set("skip-hop");
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let result = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await;
    assert!(
        matches!(result, Err(TenantError::CheckFailed { .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn another_tenants_child_of_a_removed_row_is_found_and_named() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    // order_line_item does not carry the tenant: tenant 4's line may refer to tenant 3's new item.
    bench
        .sql(
            "live",
            "insert into item (item_id, tenant_id, sku, description, price) values (900001, 3, 'N', 'n', 1);
             insert into order_line (order_id, line_no, item_id, quantity, unit_price)
             select min(order_id), 999, 900001, 1, 1 from sales_order where tenant_id = 4",
        )
        .await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let error = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("order_line_item") && text.contains("900001 of tenant 4"),
        "{text}"
    );
    assert_eq!(
        bench
            .value("live", "select count(*) from item where item_id = 900001")
            .await,
        1
    );
}

#[tokio::test]
async fn writes_of_other_tenants_during_the_restore_are_kept() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    let then = bench.digests("then_", "3", true).await;
    let options = bench.options("live");
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writer = tokio::spawn(async move {
        let mut connection = dr_sources::postgres::connect(&options).await.unwrap();
        let mut written = 0;
        while !stopped.is_cancelled() || written == 0 {
            sql::run(
                &mut connection,
                &format!(
                    "insert into sales_order (tenant_id, order_no) values ({}, 'W{written}')",
                    4 + written % 3
                ),
                "writing",
            )
            .await
            .unwrap();
            written += 1;
        }
        written
    });
    bench.restore("3").await;
    stop.cancel();
    let written = i64::from(writer.await.unwrap());
    assert_eq!(
        bench
            .value(
                "live",
                "select count(*) from sales_order where order_no like 'W%'"
            )
            .await,
        written
    );
    assert_eq!(bench.digests("live", "3", true).await, then);
}

#[tokio::test]
async fn rows_changed_since_the_plan_stop_the_restore() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    bench
        .sql(
            "live",
            "update item set description = 'later' where tenant_id = 3",
        )
        .await;
    let error = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap_err();
    assert!(matches!(error, TenantError::Changed(_)), "{error}");
    bench
        .sql("live", "insert into setting values (4, 'later', '1')")
        .await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    bench
        .sql("live", "insert into setting values (3, 'later', '1')")
        .await;
    let error = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("public.setting"), "{error}");
}

#[tokio::test]
async fn a_row_outside_the_plan_that_changes_meanwhile_stops_the_restore() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    let lost = "delete from setting where tenant_id = 3";
    bench.sql("live", lost).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let late = "update item set description = 'later' where item_id = (select min(item_id) from item where tenant_id = 3)";
    bench.sql("live", late).await;
    let error = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap_err();
    assert!(matches!(error, TenantError::Changed(_)), "{error}");
    assert!(error.to_string().contains("public.item"), "{error}");
    // Another tenant's rows may change as they like.
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    bench.sql("live", &late.replace("= 3", "= 4")).await;
    bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap();
    let then = bench.digests("then_", "3", true).await;
    assert_eq!(bench.digests("live", "3", true).await, then);
}

#[tokio::test]
async fn a_key_that_belongs_to_another_tenant_by_now_is_named() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "update setting set key = key where false;
             insert into edi_document (document_id, tenant_id, kind, direction, content) values (700001, 3, 'k', 'in', '')",
        )
        .await;
    bench.sql("postgres", "drop database then_").await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "update edi_document set tenant_id = 4 where document_id = 700001",
        )
        .await;
    let (_, compared) = bench.compare("3", Mode::Replace).await;
    assert_eq!(compared.refused.len(), 1, "{:?}", compared.refused);
    assert!(
        compared.refused[0].contains("700001"),
        "{:?}",
        compared.refused
    );
}

#[tokio::test]
async fn missing_brings_back_only_what_is_gone() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "delete from setting where tenant_id = 3 and key = (select min(key) from setting where tenant_id = 3);
             insert into setting values (3, 'new', '1'); update item set price = 1 where tenant_id = 3",
        )
        .await;
    let (map, compared) = bench.compare("3", Mode::Missing).await;
    bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap();
    let query = "select count(*) from setting where tenant_id = 3";
    assert_eq!(
        bench.value("live", query).await,
        bench.value("then_", query).await + 1
    );
    assert_eq!(
        bench
            .value(
                "live",
                "select count(*) from item where tenant_id = 3 and price <> 1"
            )
            .await,
        0
    );
}

#[tokio::test]
async fn tables_without_a_key_and_columns_added_since_are_right() {
    let bench = Bench::erp().await;
    bench
        .sql(
            "live",
            "create table remark (tenant_id int not null references tenant, body text, amount numeric);
             insert into remark values (3, 'twice', 1.0), (3, 'twice', 1.0), (3, 'once', 1.00), (4, 'twice', 1.0)",
        )
        .await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "delete from remark where ctid in (select min(ctid) from remark where tenant_id = 3 and body = 'twice');
             update remark set amount = 1.000 where body = 'once'; insert into remark values (3, 'new', null);
             alter table warehouse add column rating int default 5; update warehouse set rating = 9 where tenant_id = 3;
             delete from setting where tenant_id = 3; alter table setting add column why text default 'because';
             insert into setting (tenant_id, key, value, why) values (3, 'fresh', '1', 'mine');
             update warehouse set city = 'moved' where tenant_id = 3",
        )
        .await;
    bench.keep("before").await;
    bench.restore("3").await;
    let remarks = "select count(*) from remark where tenant_id = 3 and (body, amount::text) in (('twice', '1.0'), ('once', '1.00'))";
    assert_eq!(bench.value("live", remarks).await, 3);
    assert_eq!(bench.value("live", "select count(*) from remark").await, 4);
    assert_eq!(
        bench
            .value(
                "live",
                "select count(*) from warehouse where tenant_id = 3 and rating <> 9"
            )
            .await,
        0
    );
    assert_eq!(
        bench
            .value(
                "live",
                "select count(*) from setting where tenant_id = 3 and why <> 'because'"
            )
            .await,
        0
    );
    bench.undo("3").await;
    assert_eq!(
        bench.digests("live", "3", true).await,
        bench.digests("before", "3", true).await
    );
    assert_eq!(
        bench
            .value(
                "live",
                "select count(*) from setting where tenant_id = 3 and why = 'mine'"
            )
            .await,
        1
    );
}

#[tokio::test]
async fn rows_without_a_key_that_return_with_a_new_columns_default_can_be_taken_away_again() {
    let bench = Bench::erp().await;
    bench
        .sql(
            "live",
            "create table remark (tenant_id int not null references tenant, body text);
             insert into remark values (3, 'twice'), (3, 'twice'), (3, 'stays'), (4, 'twice')",
        )
        .await;
    bench.keep("then_").await;
    bench
        .sql(
            "live",
            "delete from remark where tenant_id = 3 and body = 'twice';
             alter table remark add column rank int default (random() * 1000)::int",
        )
        .await;
    bench.keep("before").await;
    bench.restore("3").await;
    let returned =
        "select count(*) from remark where tenant_id = 3 and body = 'twice' and rank is not null";
    assert_eq!(bench.value("live", returned).await, 2);
    bench.undo("3").await;
    let left = "select count(*) from remark";
    assert_eq!(bench.value("live", left).await, 2);
    let before = bench.digests("before", "3", true).await;
    assert_eq!(bench.digests("live", "3", true).await, before);
}

#[tokio::test]
async fn a_table_in_no_class_is_refused_by_name() {
    let bench = Bench::erp().await;
    bench
        .sql("live", "create table rate_cache (id int primary key)")
        .await;
    let mut live = session(&bench.options("live"), "live").await.unwrap();
    let map = map(
        &mut live,
        &"erp".parse().unwrap(),
        &bench.tenancy,
        &Owners::default(),
    )
    .await
    .unwrap();
    let error = complete(map).unwrap_err();
    assert!(error.to_string().contains("public.rate_cache"), "{error}");
    assert!(
        error.hint().unwrap().contains("public.rate_cache: shared"),
        "{:?}",
        error.hint()
    );
}

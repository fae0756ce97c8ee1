//! The two databases of the tests, and how each of their tables belongs to a tenant: written down here
//! by hand, so that the product's own map is not what it is judged by.

/// One table with the condition, over row `t`, that its row is of tenant `$T`.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) belongs: &'static str,
}

/// A pooled database.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) sql: &'static str,
    /// In every table of the database but the shared ones.
    pub(crate) tables: &'static [Table],
    /// The YAML of the workload's `tenancy`, indented to stand below a workload.
    pub(crate) tenancy: &'static str,
    /// Ids and names, in SQL.
    pub(crate) tenants: &'static str,
    /// Tables of all tenants.
    pub(crate) shared: &'static [&'static str],
    /// Statements, each a transaction of its own, that spoil tenant `$T`.
    pub(crate) mistake: &'static [&'static str],
}

pub(crate) static ERP: Schema = Schema {
    sql: include_str!("erp.sql"),
    tables: &[
        Table {
            name: "public.tenant",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.app_user",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.customer",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.sales_order",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.order_line",
            belongs: "t.order_id in (select order_id from public.sales_order where tenant_id = $T)",
        },
        Table {
            name: "public.invoice",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.stock_move",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.setting",
            belongs: "t.tenant_id = $T",
        },
        Table {
            name: "public.remark",
            belongs: "t.tenant_id = $T",
        },
    ],
    tenancy: "    tenancy:
      model: pooled
      column: tenant_id
      tenants: \"select tenant_id::text as id, code as name from public.tenant\"
      tables: { currency: shared }
",
    tenants: "select tenant_id, code from public.tenant order by 1",
    shared: &["public.currency"],
    mistake: &[
        "update public.customer set credit = 0, name = name || ' (closed)' where tenant_id = $T",
        "update public.sales_order set invoice_id = null where tenant_id = $T",
        "delete from public.invoice where invoice_id = (select max(invoice_id) from public.invoice where tenant_id = $T)",
        "delete from public.order_line l using public.sales_order o \
         where o.order_id = l.order_id and o.tenant_id = $T and l.line_no = 2",
        "delete from public.sales_order o where tenant_id = $T and order_no like 'SO-1%' \
         and not exists (select 1 from public.invoice i where i.order_id = o.order_id)",
        "insert into public.sales_order (tenant_id, order_no) values ($T, 'by mistake')",
        "insert into public.order_line (order_id, line_no, sku, quantity, price) \
         select order_id, 1, 'X', 1, 1 from public.sales_order where tenant_id = $T and order_no = 'by mistake'",
        "delete from public.stock_move where tenant_id = $T and moved_at < '2026-03-01Z'",
        "update public.setting set value = '{}', raw = '{}' where tenant_id = $T and key < 'k3'",
        "delete from public.setting where tenant_id = $T and key = 'k5'",
        "delete from public.remark where ctid = (select min(ctid) from public.remark where tenant_id = $T and body = 'twice')",
        "update public.tenant set plan = 'cancelled' where tenant_id = $T",
        "update public.app_user set manager_id = null where tenant_id = $T",
    ],
};

pub(crate) static CARRIER: Schema = Schema {
    sql: include_str!("carrier.sql"),
    tables: &[
        Table {
            name: "fleet.company",
            belongs: "t.company_id = $T",
        },
        Table {
            name: "fleet.depot",
            belongs: "t.company_id = $T",
        },
        Table {
            name: "fleet.vehicle",
            belongs: "t.depot_id in (select depot_id from fleet.depot where company_id = $T)",
        },
        Table {
            name: "fleet.trip",
            belongs: "t.vehicle_id in (select vehicle_id from fleet.vehicle \
                      join fleet.depot using (depot_id) where company_id = $T)",
        },
        Table {
            name: "fleet.stop",
            belongs: "t.trip_id in (select trip_id from fleet.trip join fleet.vehicle using (vehicle_id) \
                      join fleet.depot using (depot_id) where company_id = $T)",
        },
    ],
    tenancy: "    tenancy:
      model: pooled
      column: company_id
      tenants: \"select company_id::text as id, label as name from fleet.company\"
      tables: { fleet.place: shared }
",
    tenants: "select company_id, label from fleet.company order by label",
    shared: &["fleet.place"],
    mistake: &[
        "update fleet.trip set load = -1 where vehicle_id in (select vehicle_id from fleet.vehicle \
         join fleet.depot using (depot_id) where company_id = $T) and load > 3",
        "update fleet.trip set previous_trip = null where vehicle_id in (select vehicle_id from fleet.vehicle \
         join fleet.depot using (depot_id) where company_id = $T)",
        "delete from fleet.trip where load < 2 and vehicle_id in (select vehicle_id from fleet.vehicle \
         join fleet.depot using (depot_id) where company_id = $T)",
        "delete from fleet.stop where seq = 3 and trip_id in (select trip_id from fleet.trip \
         join fleet.vehicle using (vehicle_id) join fleet.depot using (depot_id) where company_id = $T)",
        "update fleet.depot set \"Opening Hours\" = null where company_id = $T",
        "update fleet.company set active = false where company_id = $T",
    ],
};

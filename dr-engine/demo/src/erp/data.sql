-- Fills the tables. Every value is a function of the seed and a running number, never of time,
-- random() or the order in which a plan happens to read: same seed, same data.
-- pg_temp.pick(stream, n, m) gives a number in 0..m-1; pg_temp.parameter(name) what was asked for.

insert into currency values
    ('USD', 'US dollar', 2), ('EUR', 'Euro', 2), ('CAD', 'Canadian dollar', 2),
    ('MXN', 'Mexican peso', 2), ('GBP', 'Pound sterling', 2), ('JPY', 'Yen', 0);
insert into country values
    ('US', 'United States', 'USD'), ('CA', 'Canada', 'CAD'), ('MX', 'Mexico', 'MXN'),
    ('DE', 'Germany', 'EUR'), ('FR', 'France', 'EUR'), ('NL', 'Netherlands', 'EUR'),
    ('GB', 'United Kingdom', 'GBP'), ('JP', 'Japan', 'JPY');

create temporary table gen_country on commit drop as
    select row_number() over (order by code) - 1 as n, code, currency_code from public.country;

-- How large each tenant is. The largest has some forty times the orders of the smallest.
create temporary table gen_tenant on commit drop as
with ranked as (
    select n.code, n.tenant_id::integer,
           row_number() over (order by pg_temp.pick(1, n.tenant_id, 1000000007), n.tenant_id) as rank
    from unnest(pg_temp.codes()) with ordinality as n(code, tenant_id)
), weighted as (
    select *, power(rank, -0.9) / sum(power(rank, -0.9)) over () as share from ranked
), sized as (
    select *,
        greatest(8, round(pg_temp.parameter('orders') * share))::bigint as orders,
        greatest(5, round(pg_temp.parameter('customers') * share))::bigint as customers,
        greatest(6, round(pg_temp.parameter('items') * share))::bigint as items,
        greatest(2, round(pg_temp.parameter('documents') * share))::bigint as documents,
        (1 + 6 / ceil(rank / 8.0))::bigint as warehouses,
        (2 + 30 / ceil(rank / 5.0))::bigint as users
    from weighted
)
select *,
    (sum(orders) over w)::bigint - orders as order_base,
    (sum(customers) over w)::bigint - customers as customer_base,
    (sum(items) over w)::bigint - items as item_base,
    (sum(warehouses) over w)::bigint - warehouses as warehouse_base,
    (sum(users) over w)::bigint - users as user_base
from sized window w as (order by tenant_id);
analyze gen_tenant;

insert into tenant
select t.tenant_id, t.code,
       initcap(t.code) || (array[' Distribution', ' Supply', ' Wholesale', ' Trading'])[1 + pg_temp.pick(2, t.tenant_id, 4)],
       c.code,
       case when t.rank <= 8 then 'enterprise' when t.rank <= 30 then 'business' else 'standard' end,
       timestamptz '2024-01-01 00:00:00+00' + pg_temp.pick(3, t.tenant_id, 365) * interval '1 day'
from gen_tenant t
join gen_country c on c.n = pg_temp.pick(4, t.tenant_id, 8)
order by t.tenant_id;

insert into warehouse (warehouse_id, tenant_id, code, city, manager_id, opened_on)
select t.warehouse_base + n, t.tenant_id, 'W' || lpad(n::text, 2, '0'),
       (array['Dallas', 'Reno', 'Toronto', 'Bremen', 'Lyon', 'Leeds', 'Osaka', 'Puebla'])
           [1 + pg_temp.pick(10, t.warehouse_base + n, 8)],
       t.user_base + 1 + pg_temp.pick(11, t.warehouse_base + n, t.users),
       date '2019-01-01' + pg_temp.pick(12, t.warehouse_base + n, 1500)::integer
from gen_tenant t, generate_series(1, t.warehouses) n
order by 1;

insert into app_user (user_id, tenant_id, email, full_name, default_warehouse_id, active, created_at)
overriding system value
select t.user_base + n, t.tenant_id, 'User' || n || '@' || lower(t.code) || '.example',
       (array['Ana', 'Ben', 'Chidi', 'Dora', 'Emil', 'Fay', 'Goro', 'Hana'])[1 + pg_temp.pick(20, t.user_base + n, 8)]
       || ' ' ||
       (array['Okafor', 'Lind', 'Moreau', 'Sato', 'Weber', 'Diaz', 'Novak', 'Hale'])[1 + pg_temp.pick(21, t.user_base + n, 8)],
       case when n > 1 then t.warehouse_base + 1 + pg_temp.pick(22, t.user_base + n, t.warehouses) end,
       pg_temp.pick(23, t.user_base + n, 20) > 0,
       timestamptz '2024-06-01 00:00:00+00' + pg_temp.pick(24, t.user_base + n, 500) * interval '1 day'
from gen_tenant t, generate_series(1, t.users) n
order by 1;

insert into item (item_id, tenant_id, sku, description, unit, price, weight_kg, barcodes, updated_at)
select id, tenant_id, 'SKU-' || lpad(n::text, 5, '0'),
       (array['Bolt', 'Bearing', 'Valve', 'Gasket', 'Filter', 'Pallet', 'Cable', 'Sensor'])[1 + pg_temp.pick(30, id, 8)]
       || ' ' || substr(md5('item' || id), 1, 6) || E' \u2013 size ' || pg_temp.pick(31, id, 90),
       (array['pcs', 'box', 'm', 'kg'])[1 + pg_temp.pick(32, id, 4)],
       (100 + pg_temp.pick(33, id, 99900)) / 100.0,
       case when pg_temp.pick(34, id, 9) > 0 then pg_temp.pick(35, id, 50000) / 1000.0 end,
       case pg_temp.pick(36, id, 3)
           when 0 then '{}'::text[]
           when 1 then array[lpad(pg_temp.pick(37, id, 10000000000000)::text, 13, '0')]
           else array[lpad(pg_temp.pick(37, id, 10000000000000)::text, 13, '0'), 'x"' || id] end,
       timestamptz '2025-01-01 00:00:00+00' + pg_temp.pick(38, id, 20000) * interval '37 minutes'
from (select t.item_base + n as id, t.tenant_id, n
      from gen_tenant t, generate_series(1, t.items) n) g
order by id;

insert into customer (customer_id, tenant_id, customer_no, parent_customer_id, name, country_code,
                      credit_limit, external_ref, updated_at)
overriding system value
select g.id, g.tenant_id, 'C' || lpad(g.n::text, 6, '0'),
       -- every fourth customer is a branch of one with a smaller number
       case when g.n > 4 and g.n % 4 = 0 then g.base + 1 + pg_temp.pick(40, g.id, g.n / 2) end,
       'Customer ' || substr(md5('customer' || g.id), 1, 8),
       c.code,
       case when pg_temp.pick(42, g.id, 3) > 0 then pg_temp.pick(43, g.id, 5000) * 100 end,
       case when pg_temp.pick(44, g.id, 2) = 0 then md5('reference' || g.id)::uuid end,
       timestamptz '2025-01-01 00:00:00+00' + pg_temp.pick(45, g.id, 30000) * interval '29 minutes'
from (select t.customer_base + n as id, t.customer_base as base, t.tenant_id, n
      from gen_tenant t, generate_series(1, t.customers) n) g
join gen_country c on c.n = pg_temp.pick(41, g.id, 8)
order by g.id;

-- Orders of all tenants mixed in the order of their time, as a pooled table holds them.
create temporary table gen_order on commit drop as
select row_number() over (order by g.ordered_at, g.id) as order_id, g.*
from (select t.order_base + n as id, t.tenant_id, n, t.items, t.item_base,
             t.customer_base + 1 + pg_temp.pick(51, t.order_base + n, t.customers) as customer_id,
             t.warehouse_base + 1 + pg_temp.pick(52, t.order_base + n, t.warehouses) as warehouse_id,
             t.user_base + 1 + pg_temp.pick(53, t.order_base + n, t.users) as taken_by,
             1 + pg_temp.pick(54, t.order_base + n, 7) as lines,
             pg_temp.pick(55, t.order_base + n, 100) as fate,
             timestamptz '2025-01-02 06:00:00+00'
                 + pg_temp.pick(50, t.order_base + n, 57000000) * interval '1 second' as ordered_at
      from gen_tenant t, generate_series(1, t.orders) n) g;
analyze gen_order;

insert into order_line (order_id, line_no, item_id, quantity, unit_price, text)
select o.order_id, l.line, i.item_id, (1 + pg_temp.pick(61, o.id * 8 + l.line, 40)) / (case when i.unit = 'kg' then 8.0 else 1 end),
       coalesce(i.price, 25),
       case when i.item_id is null then 'Freight' end
from gen_order o
cross join lateral generate_series(1, o.lines) as l(line)
-- the last line of one order in fifty is freight: it has no item
left join item i on i.item_id = o.item_base + 1 + pg_temp.pick(60, o.id * 8 + l.line, o.items)
    and not (l.line = o.lines and o.lines > 1 and o.fate % 50 = 7)
order by o.order_id, l.line;

insert into sales_order (order_id, tenant_id, order_no, customer_id, warehouse_id, taken_by, status,
                         currency_code, ordered_at, total, note, updated_at)
overriding system value
select o.order_id, o.tenant_id, 'SO-' || lpad(o.n::text, 7, '0'), o.customer_id, o.warehouse_id, o.taken_by,
       case when o.fate < 70 then 'invoiced' when o.fate < 85 then 'shipped'
            when o.fate < 95 then 'new' else 'cancelled' end,
       c.currency_code, o.ordered_at, l.total,
       case when o.fate % 20 = 3 then 'call before delivery' end,
       o.ordered_at + (o.fate % 48) * interval '1 hour'
from gen_order o
join tenant t on t.tenant_id = o.tenant_id
join country c on c.code = t.country_code
join (select order_id, sum(amount) as total from order_line group by order_id) l on l.order_id = o.order_id
order by o.order_id;

insert into stock_move (move_id, tenant_id, warehouse_id, item_id, quantity, reason, moved_at)
select row_number() over (order by g.moved_at, g.order_id, g.line_no),
       g.tenant_id, g.warehouse_id, g.item_id, -g.quantity, 'order', g.moved_at
from (select o.order_id, l.line_no, o.tenant_id, o.warehouse_id, l.item_id, l.quantity,
             o.ordered_at + (1 + pg_temp.pick(70, o.id * 8 + l.line_no, 120)) * interval '1 hour' as moved_at
      from order_line l join gen_order o on o.order_id = l.order_id
      where o.fate < 85 and l.item_id is not null and pg_temp.pick(71, o.id * 8 + l.line_no, 4) > 0) g
order by 1;

insert into invoice (invoice_id, tenant_id, invoice_no, order_id, issued_on, net, tax_rate, paid_at)
overriding system value
select row_number() over (order by o.order_id), o.tenant_id, 'INV-' || lpad(g.n::text, 7, '0'), o.order_id,
       (o.ordered_at at time zone 'UTC')::date + 3,
       o.total, (array[0, 0.0825, 0.19, 0.2])[1 + pg_temp.pick(80, o.tenant_id, 4)],
       case when g.fate < 60 then o.ordered_at + interval '20 days' end
from sales_order o join gen_order g on g.order_id = o.order_id
where o.status = 'invoiced'
order by o.order_id;

-- Documents of 200 bytes to 24 KiB that look as incompressible as what partners send.
insert into edi_document (document_id, tenant_id, order_id, kind, direction, content, received_at)
select row_number() over (order by d.tenant_id, d.n), d.tenant_id,
       case when d.n % 5 > 0 then o.order_id end,
       (array['ORDERS', 'DESADV', 'INVOIC', 'ORDRSP'])[1 + pg_temp.pick(90, d.id, 4)],
       case when pg_temp.pick(91, d.id, 2) = 0 then 'in' else 'out' end,
       (select string_agg(sha256(convert_to(pg_temp.parameter('seed') || '/' || d.id || '/' || block, 'UTF8')), ''::bytea
                          order by block)
        from generate_series(0, 5 + pg_temp.pick(92, d.id, case when d.id % 10 = 0 then 760 else 90 end)) block),
       coalesce(o.ordered_at, timestamptz '2025-03-01 00:00:00+00') + interval '5 minutes'
from (select t.tenant_id, n, t.order_base + 1 + pg_temp.pick(93, t.order_base * 3 + n, t.orders) as order_gen,
             t.order_base * 3 + n as id
      from gen_tenant t, generate_series(1, t.documents) n) d
left join gen_order o on o.id = d.order_gen
order by 1;

insert into setting (tenant_id, key, value, updated_at)
select t.tenant_id, k.key, k.value, timestamptz '2025-02-01 00:00:00+00' + pg_temp.pick(100, t.tenant_id, 400) * interval '1 day'
from tenant t
cross join lateral (values
    ('numbering', jsonb_build_object('order', 'SO-', 'invoice', 'INV-', 'next', pg_temp.pick(101, t.tenant_id, 9000))),
    ('locale', jsonb_build_object('language', 'en', 'country', t.country_code, 'week_starts', 'monday')),
    ('pricing', jsonb_build_object('rounding', 0.05, 'tiers', jsonb_build_array(10, 50, 250), 'list', 'standard')),
    ('edi', jsonb_build_object('enabled', pg_temp.pick(102, t.tenant_id, 3) > 0, 'partners', pg_temp.pick(103, t.tenant_id, 12))),
    ('credit', jsonb_build_object('block_over_limit', true, 'grace_days', pg_temp.pick(104, t.tenant_id, 30))),
    ('branding', jsonb_build_object('colour', '#' || substr(md5(t.code), 1, 6), 'logo', null))
) k(key, value)
order by 1, 2;

-- The last events of the past, all of them sent.
insert into outbox (outbox_id, tenant_id, topic, payload, created_at, sent_at)
overriding system value
select row_number() over (order by o.order_id), o.tenant_id, 'order.created',
       jsonb_build_object('order_id', o.order_id, 'order_no', o.order_no), o.ordered_at, o.ordered_at + interval '1 second'
from (select * from sales_order order by order_id desc limit 2000) o
order by 1;

-- What was given explicitly must never be given out again.
do $$
declare s record; largest bigint;
begin
    for s in select c.table_name, c.column_name,
                    pg_get_serial_sequence(format('public.%I', c.table_name), c.column_name) as name
             from information_schema.columns c
             where c.table_schema = 'public'
               and (c.is_identity = 'YES' or (c.table_name = 'stock_move' and c.column_name = 'move_id'))
    loop
        execute format('select coalesce(max(%I), 0) from public.%I', s.column_name, s.table_name) into largest;
        perform setval(s.name, largest + 1, false);
    end loop;
end $$;

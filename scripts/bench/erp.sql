-- Text-rich tables as an ERP has them, beside pgbench's. Every value is a function of a running
-- number, so two runs hold the same rows. `:rows` is the number of sales orders.
create function mix(id bigint, stream int) returns bigint language sql immutable parallel safe
    as $$ select hashint8extended(id, stream) & 9223372036854775807 $$;

create table word (n int primary key, word text not null);
insert into word
select n, substr(translate(md5('word' || n), '0123456789', 'aeioulnrst'), 1, 3 + (mix(n, 1) % 8)::int)
from generate_series(0, 4095) n;

-- A sentence: common words come up often, rare ones seldom.
create function phrase(id bigint, words int) returns text language plpgsql immutable parallel safe as $$
declare
    out text := '';
    draw bigint;
begin
    for k in 1..words loop
        draw := hashint8extended(id * 64 + k, 7) & 4294967295;
        out := out || substr(translate(
            md5('word' || ((draw & 65535) * ((draw >> 16) & 65535) >> 20)),
            '0123456789', 'aeioulnrst'), 1, 3 + (draw % 7)::int) || ' ';
    end loop;
    return out;
end $$;

create table customer (
    customer_id bigint primary key, tenant_id int not null, customer_no text not null,
    name text not null, city text not null, credit_limit numeric(14,2), reference uuid,
    updated_at timestamptz not null);
create table sales_order (
    order_id bigint primary key, tenant_id int not null, order_no text not null,
    customer_id bigint not null, status text not null, currency char(3) not null,
    total numeric(14,2) not null, note text, ordered_at timestamptz not null);
create table order_line (
    order_id bigint not null, line_no int not null, item_id bigint not null,
    quantity numeric(12,3) not null, unit_price numeric(12,2) not null, text text,
    primary key (order_id, line_no));
create table outbox (
    outbox_id bigint primary key, tenant_id int not null, topic text not null,
    payload jsonb not null, created_at timestamptz not null);
create table edi_document (
    document_id bigint primary key, tenant_id int not null, kind text not null,
    content bytea not null);
-- Interchanges arrive compressed.
alter table edi_document alter column content set storage external;

insert into customer
select id, mix(id, 2) % 60, 'C' || lpad(id::text, 7, '0'),
       initcap(phrase(id, 3)), initcap(phrase(mix(id, 3) % 900, 1)),
       (mix(id, 4) % 5000) * 100, md5('reference' || id)::uuid,
       timestamptz '2025-01-01 00:00:00+00' + (mix(id, 5) % 525600) * interval '1 minute'
from generate_series(1::bigint, :rows / 10) id;

insert into sales_order
select id, mix(id, 10) % 60, 'SO-2025-' || lpad(id::text, 8, '0'), 1 + mix(id, 11) % (:rows / 10),
       (array['new', 'confirmed', 'picked', 'shipped', 'invoiced', 'closed'])[1 + mix(id, 12) % 6],
       (array['USD', 'EUR', 'CAD', 'MXN'])[1 + mix(id, 13) % 4], (mix(id, 14) % 9000000) / 100.0,
       case when mix(id, 15) % 3 = 0 then phrase(id, 12) end,
       timestamptz '2025-01-01 00:00:00+00' + (id * 525600 / :rows) * interval '1 minute'
from generate_series(1::bigint, :rows) id;

insert into order_line
select id, line, 1 + mix(id * 8 + line, 20) % 50000, (mix(id * 8 + line, 21) % 100000) / 1000.0,
       (mix(id * 8 + line, 22) % 99900) / 100.0,
       phrase(mix(id * 8 + line, 20) % 50000, 4)
from generate_series(1::bigint, :rows) id, generate_series(1, 4) line;

insert into outbox
select id, mix(id, 30) % 60, 'erp.order.' || (array['taken', 'changed', 'shipped'])[1 + mix(id, 31) % 3],
       jsonb_build_object('order', id, 'customer', 1 + mix(id, 11) % (:rows / 10),
                          'total', (mix(id, 14) % 9000000) / 100.0, 'key', md5('event' || id),
                          'note', phrase(id + 1000000000, 5)),
       timestamptz '2025-01-01 00:00:00+00' + (id * 525600 / :rows) * interval '1 minute'
from generate_series(1::bigint, :rows) id;

insert into edi_document
select id, mix(id, 40) % 60, (array['ORDERS', 'DESADV', 'INVOIC'])[1 + mix(id, 41) % 3],
       decode((select string_agg(md5(id || ':' || part), '') from generate_series(1, 256) part), 'hex')
from generate_series(1::bigint, :rows / 30) id;

create index on sales_order (customer_id);
create index on sales_order (tenant_id, order_no);
create index on order_line (item_id);
create index on outbox (created_at);

-- A table lives: every twentieth order is changed once after it was written.
update sales_order set status = 'closed', total = total + 1 where mix(order_id, 50) % 20 = 0;

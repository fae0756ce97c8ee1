-- Keys between tables carry the tenant, so that a row can never refer to another tenant's row. The
-- exception is order_line, whose tenant is its order's.

alter table tenant
    add unique (code),
    add foreign key (country_code) references country;

alter table app_user add unique (tenant_id, user_id), add unique (tenant_id, email_key);
alter table warehouse add unique (tenant_id, warehouse_id), add unique (tenant_id, code);
alter table item add unique (tenant_id, item_id), add unique (tenant_id, sku);
alter table customer add unique (tenant_id, customer_id), add unique (tenant_id, customer_no);
alter table sales_order add unique (tenant_id, order_id), add unique (tenant_id, order_no);
-- Renumbering a day's invoices swaps numbers within one transaction.
alter table invoice add constraint invoice_no_key unique (tenant_id, invoice_no) deferrable initially deferred;

-- A cycle: users work in a warehouse, and a warehouse is managed by a user.
alter table app_user
    add foreign key (tenant_id) references tenant,
    add constraint app_user_default_warehouse foreign key (tenant_id, default_warehouse_id)
        references warehouse (tenant_id, warehouse_id) deferrable initially deferred;
alter table warehouse
    add foreign key (tenant_id) references tenant,
    add constraint warehouse_manager foreign key (tenant_id, manager_id)
        references app_user (tenant_id, user_id) deferrable initially immediate;

alter table item add foreign key (tenant_id) references tenant, add check (price >= 0);
alter table customer
    add foreign key (tenant_id) references tenant,
    add foreign key (country_code) references country,
    add constraint customer_parent foreign key (tenant_id, parent_customer_id)
        references customer (tenant_id, customer_id) deferrable initially deferred;
create index on customer (tenant_id, parent_customer_id) where parent_customer_id is not null;

alter table sales_order
    add foreign key (tenant_id) references tenant,
    add foreign key (currency_code) references currency,
    add foreign key (tenant_id, customer_id) references customer (tenant_id, customer_id),
    add foreign key (tenant_id, warehouse_id) references warehouse (tenant_id, warehouse_id),
    add foreign key (tenant_id, taken_by) references app_user (tenant_id, user_id),
    add check (status in ('new', 'shipped', 'invoiced', 'cancelled'));
create index on sales_order (tenant_id, ordered_at);

alter table order_line
    add constraint order_line_order foreign key (order_id) references sales_order on delete cascade,
    add constraint order_line_item foreign key (item_id) references item;

alter table stock_move
    add foreign key (tenant_id) references tenant,
    add foreign key (tenant_id, warehouse_id) references warehouse (tenant_id, warehouse_id),
    add foreign key (tenant_id, item_id) references item (tenant_id, item_id);
create index on stock_move (tenant_id, item_id);

alter table invoice
    add foreign key (tenant_id) references tenant,
    add foreign key (tenant_id, order_id) references sales_order (tenant_id, order_id);
create index on invoice (tenant_id, order_id);

alter table edi_document
    add foreign key (tenant_id) references tenant,
    add foreign key (tenant_id, order_id) references sales_order (tenant_id, order_id) on delete set null (order_id);
create index on edi_document (tenant_id, order_id);

alter table setting add foreign key (tenant_id) references tenant;
alter table outbox add foreign key (tenant_id) references tenant;
create index outbox_unsent on outbox (outbox_id) where sent_at is null;

create function touch() returns trigger language plpgsql set search_path = '' as $$
begin
    new.updated_at := pg_catalog.now();
    return new;
end $$;
create trigger sales_order_touch before update on sales_order for each row execute function touch();
create trigger customer_touch before update on customer for each row execute function touch();
create trigger item_touch before update on item for each row execute function touch();
create trigger setting_touch before update on setting for each row execute function touch();

create function announce_order() returns trigger language plpgsql set search_path = '' as $$
begin
    insert into public.outbox (tenant_id, topic, payload)
    values (new.tenant_id, 'order.created',
            pg_catalog.jsonb_build_object('order_id', new.order_id, 'order_no', new.order_no));
    return null;
end $$;
create trigger sales_order_announce after insert on sales_order for each row execute function announce_order();

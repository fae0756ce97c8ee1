-- Rows for schemas that nobody here wrote, made from what the system catalogs say: types, lengths, checks,
-- enumerations, foreign keys. A row that the schema refuses is left out and tried again with other values.
-- Everything is in the session's own schema: nothing of it stays in the database.
set client_min_messages = warning;

-- Whose rows a table holds. The caller fills it for one tenant at a time.
create temporary table whose (
  relation regclass primary key,
  -- The column that says it, and what it holds for this tenant; null where nothing is to be put there.
  col text,
  value text,
  -- Of this tenant's rows, over `t`.
  condition text not null,
  -- Lists the tenants: its rows stay as they are.
  registry boolean not null
);

create temporary sequence numbers;

-- Words that a check constraint on the column names.
create function pg_temp.allowed(relation regclass, col text) returns text[] language sql as $$
  select array(
    select distinct coalesce(m[1], m[2])
    from pg_constraint c
    join pg_attribute a on a.attrelid = c.conrelid and a.attname = col and a.attnum = any (c.conkey)
    cross join lateral (select pg_get_constraintdef(c.oid) as text) d
    cross join lateral regexp_matches(d.text, $m$'([^']*)'|\m(\d+)\M$m$, 'g') m
    where c.conrelid = relation and c.contype = 'c' and position('~' in d.text) = 0
      and cardinality(c.conkey) = 1)
$$;

-- A value for a column, as SQL. `number` is another one for each row.
create function pg_temp.value_of(relation regclass, col text, number int) returns text language plpgsql as $$
declare
  n int := number;
  base oid;
  modifier int;
  bytes int;
  kind record;
  words text[];
  plain text;
begin
  select atttypid, atttypmod into base, modifier from pg_attribute where attrelid = relation and attname = col;
  loop
    select typname, typtype, typcategory, typtypmod, typbasetype into kind from pg_type where oid = base;
    exit when kind.typtype <> 'd';
    bytes := coalesce(bytes, (
      select (regexp_match(pg_get_constraintdef(oid), 'octet_length\(\(?VALUE\)?(?:::\w+)?\) = (\d+)'))[1]::int
      from pg_constraint where contypid = base limit 1));
    if kind.typtypmod <> -1 then
      modifier := kind.typtypmod;
    end if;
    base := kind.typbasetype;
    -- Domains of numbers are there to keep them small.
    n := n % 200;
  end loop;
  words := pg_temp.allowed(relation, col);
  if cardinality(words) > 0 and random() < 0.9 then
    return quote_literal(words[1 + floor(random() * cardinality(words))::int]);
  end if;
  if kind.typtype = 'e' then
    return (select quote_literal(enumlabel) from pg_enum where enumtypid = base order by random() limit 1);
  end if;
  if kind.typcategory = 'A' then
    return quote_literal('{}');
  end if;
  case kind.typname::text
    when 'int2' then plain := (n % 30000)::text;
    when 'int4', 'int8', 'oid' then plain := n::text;
    when 'numeric', 'float4', 'float8' then plain := round((random() * 900)::numeric, 2)::text;
    when 'bool' then plain := (random() < 0.3)::text;
    when 'text', 'varchar', 'bpchar', 'citext' then
      plain := col || '-' || n;
      if modifier > 4 then
        plain := right(plain, modifier - 4);
      end if;
    when 'name' then plain := 'name_' || n;
    when 'timestamp', 'timestamptz' then plain := (timestamp '2026-01-01' + n * interval '1 minute')::text;
    when 'date' then plain := (date '2026-01-01' + n % 300)::text;
    when 'interval' then plain := n || ' minutes';
    when 'time', 'timetz' then plain := '12:34:56';
    when 'json', 'jsonb' then plain := json_build_object('n', n)::text;
    when 'bytea' then plain := '\x' || substr(md5(number || col) || md5(col || number), 1, 2 * coalesce(bytes, 12));
    when 'uuid' then plain := md5(n || col);
    when 'inet', 'cidr' then plain := '10.1.' || n / 250 % 250 || '.' || n % 250;
    else plain := n::text;
  end case;
  return quote_literal(plain);
end
$$;

-- Tries to insert one row; null when it was, else why not.
create function pg_temp.try_row(relation regclass) returns text language plpgsql as $$
declare
  w record;
  a record;
  key record;
  n int := nextval('pg_temp.numbers');
  -- Column: its value as SQL.
  put jsonb := '{}';
  picked text[];
  wanted text;
  standard text;
  optional boolean;
  inserted bigint;
begin
  select * into w from whose where whose.relation = try_row.relation;
  if w.col is not null then
    put := jsonb_build_object(w.col, w.value);
  end if;
  -- Those of several columns first: they leave the least to choose.
  for key in
    select c.confrelid::regclass as parent, coalesce(v.condition, 'true') as visible,
      array(select attname::text from unnest(c.conkey) with ordinality k(number, o) join pg_attribute
        on attrelid = c.conrelid and attnum = k.number order by k.o) as own,
      array(select attname::text from unnest(c.confkey) with ordinality k(number, o) join pg_attribute
        on attrelid = c.confrelid and attnum = k.number order by k.o) as other
    from pg_constraint c left join whose v on v.relation = c.confrelid
    where c.conrelid = try_row.relation and c.contype = 'f'
    order by cardinality(c.conkey) desc, c.conname
  loop
    -- A key that a sequence fills is there before what it refers to: a trigger makes that.
    select bool_or(not attnotnull) into optional from pg_attribute
      where attrelid = try_row.relation and attname::text = any (key.own) and not (put ? attname::text)
        and not exists (select from pg_attrdef where adrelid = attrelid and adnum = attnum
          and pg_get_expr(adbin, adrelid) like 'nextval%');
    continue when optional is null;
    picked := null;
    if not (optional and random() < 0.3) then
      wanted := '';
      for place in 1 .. cardinality(key.own) loop
        if put ? key.own[place] then
          wanted := wanted || format(' and t.%I::text = (%s)::text', key.other[place], put ->> key.own[place]);
        end if;
      end loop;
      execute format('select array[%s] from only %s t where (%s)%s order by random() limit 1',
        (select string_agg(format('t.%I::text', o), ', ' order by i) from unnest(key.other) with ordinality u(o, i)),
        key.parent, key.visible, wanted) into picked;
    end if;
    if picked is null and not optional then
      return 'nothing to refer to in ' || key.parent;
    end if;
    for place in 1 .. cardinality(key.own) loop
      if not (put ? key.own[place]) then
        put := put || jsonb_build_object(key.own[place], quote_nullable(picked[place]));
      end if;
    end loop;
  end loop;
  for a in select attname::text as col, attnum, attnotnull from pg_attribute
    where attrelid = try_row.relation and attnum > 0 and not attisdropped and attgenerated = '' and attidentity = ''
    order by attnum
  loop
    continue when put ? a.col;
    standard := (select pg_get_expr(adbin, adrelid) from pg_attrdef
      where adrelid = try_row.relation and adnum = a.attnum);
    continue when standard like 'nextval%' or (standard is not null and random() < 0.5);
    continue when not a.attnotnull and random() < 0.3;
    put := put || jsonb_build_object(a.col, pg_temp.value_of(try_row.relation, a.col, n));
  end loop;
  begin
    execute format('insert into %s (%s) values (%s)', try_row.relation,
      (select string_agg(quote_ident(k), ', ' order by k) from jsonb_object_keys(put) k),
      (select string_agg(v, ', ' order by k) from jsonb_each_text(put) e(k, v)));
    get diagnostics inserted = row_count;
    return case when inserted = 0 then 'a trigger or rule took it' end;
  exception when others then
    return sqlerrm;
  end;
end
$$;

-- Fills the tables of `whose` up to so many rows each, in rounds, because tables wait for one another.
create function pg_temp.fill(target int) returns void language plpgsql as $$
declare
  w record;
  have int;
  why text;
begin
  for round in 1 .. 4 loop
    for w in select * from whose order by relation::text loop
      execute format('select count(*) from only %s t where %s', w.relation, w.condition) into have;
      for attempt in 1 .. 20 loop
        exit when have >= target;
        why := pg_temp.try_row(w.relation);
        if why is null then
          have := have + 1;
        end if;
        exit when why like 'nothing to refer to%';
      end loop;
    end loop;
  end loop;
end
$$;

-- Changes one value of some rows, and removes one, where the schema allows it.
create function pg_temp.change(times int) returns void language plpgsql as $$
declare
  w record;
  chosen text;
begin
  for w in select * from whose where not registry order by relation::text loop
    for turn in 1 .. times loop
      -- No column that a constraint or an index knows.
      chosen := (select attname from pg_attribute
        where attrelid = w.relation and attnum > 0 and not attisdropped and attgenerated = '' and attidentity = ''
          and attname::text is distinct from w.col
          and not exists (select from pg_constraint where conrelid = w.relation and attnum = any (conkey))
          and not exists (select from pg_index where indrelid = w.relation and attnum = any (indkey::int2[]))
        order by random() limit 1);
      if chosen is not null then
        begin
          execute format('update only %1$s set %2$I = %3$s where ctid = (select ctid from only %1$s t where %4$s
            order by random() limit 1)', w.relation, chosen,
            pg_temp.value_of(w.relation, chosen, nextval('pg_temp.numbers')::int), w.condition);
        exception when others then null;
        end;
      end if;
    end loop;
    begin
      execute format('delete from only %1$s where ctid = (select ctid from only %1$s t where %2$s
        order by random() limit 1)', w.relation, w.condition);
    exception when others then null;
    end;
  end loop;
end
$$;

-- Removes all rows of the tenant, as somebody does who removes what can be removed until nothing is left, the
-- tenant itself last; what holds each other in a circle goes with triggers off.
create function pg_temp.wipe() returns void language plpgsql as $$
declare
  w record;
  gone bigint;
  total bigint;
begin
  for round in 1 .. 20 loop
    total := 0;
    for w in select * from whose order by registry, relation::text loop
      begin
        execute format('delete from only %s t where %s', w.relation, w.condition);
        get diagnostics gone = row_count;
        total := total + gone;
      exception when others then null;
      end;
    end loop;
    exit when total = 0;
  end loop;
  set local session_replication_role = replica;
  for w in select * from whose order by registry, relation::text loop
    execute format('delete from only %s t where %s', w.relation, w.condition);
  end loop;
  set local session_replication_role = origin;
end
$$;

-- The same choices in every run.
select setseed(0.25);

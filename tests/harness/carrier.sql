-- A carrier's system, as unlike the other as a pooled schema can be: the tenant key is a uuid of
-- another name, in another schema, and most tables reach it only over others.

create schema fleet;
create table fleet.company (company_id uuid primary key, label text not null unique, active boolean not null default true);
create table fleet.place (place_code char(3) primary key, title text not null);
create table fleet.depot (
    depot_id uuid primary key default gen_random_uuid(),
    company_id uuid not null references fleet.company,
    place_code char(3) not null references fleet.place,
    "Opening Hours" tstzrange
);
create table fleet.vehicle (
    vehicle_id bigint generated always as identity primary key,
    depot_id uuid not null references fleet.depot,
    plate text not null unique
);
create table fleet.trip (
    trip_id bigserial primary key,
    vehicle_id bigint not null references fleet.vehicle,
    departed timestamptz not null default now(),
    previous_trip bigint references fleet.trip deferrable initially deferred,
    load numeric
);
create table fleet.stop (
    trip_id bigint not null references fleet.trip on delete cascade,
    seq smallint not null,
    place_code char(3) not null references fleet.place,
    papers text[],
    primary key (trip_id, seq)
);
insert into fleet.place values ('HAM', 'Hamburg'), ('BRE', 'Bremen'), ('KEL', 'Kiel');
insert into fleet.company select md5('company' || n)::uuid, 'line-' || n from generate_series(1, 5) n;
insert into fleet.depot (depot_id, company_id, place_code, "Opening Hours")
    select md5(label || p.place_code)::uuid, company_id, p.place_code, tstzrange('2026-01-01Z', '2027-01-01Z')
    from fleet.company, fleet.place p;
insert into fleet.vehicle (depot_id, plate) select depot_id, left(depot_id::text, 8) || '-' || n
    from fleet.depot, generate_series(1, 2) n;
insert into fleet.trip (vehicle_id, load) select vehicle_id, n * 1.10 from fleet.vehicle, generate_series(1, 4) n;
update fleet.trip t set previous_trip =
    (select max(p.trip_id) from fleet.trip p where p.vehicle_id = t.vehicle_id and p.trip_id < t.trip_id);
insert into fleet.stop select trip_id, n, (array['HAM', 'BRE', 'KEL'])[n], array['a', null, 'c "d"']
    from fleet.trip, generate_series(1, 3) n;

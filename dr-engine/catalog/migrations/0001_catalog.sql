-- An index of the repositories, and the history of this host's jobs and schedules.

create table restore_point (
    id          text primary key,
    repository  text not null,
    workload    text not null,
    moment      text not null,
    body        text not null
);
create index restore_point_by_workload on restore_point (workload, moment);

-- One row for each execution. `epoch` fences: every write names it, and a takeover raises it.
create table job (
    id          text primary key,
    kind        text not null,
    lane        text not null,
    detail      text not null,
    state       text not null check (state in ('running', 'done', 'failed', 'cancelled', 'died')),
    host        text not null,
    boot        text not null,
    pid         integer not null,
    pid_started integer not null,
    epoch       integer not null,
    started     text not null,
    heartbeat   text not null,
    finished    text,
    reason      text
);
-- One running job for each lane, whatever the programs do.
create unique index job_one_for_each_lane on job (lane) where state = 'running';
create index job_by_start on job (started);

create table job_step (
    job         text not null references job,
    number      integer not null,
    name        text not null,
    started     text not null,
    primary key (job, number)
);

-- A planned run happens once, whoever finds it due.
create table schedule_run (
    schedule    text not null,
    planned_at  text not null,
    claimed     text not null,
    finished    text,
    outcome     text,
    primary key (schedule, planned_at)
);

create table alert (
    id          integer primary key,
    subject     text not null,
    message     text not null,
    raised      text not null,
    cleared     text
);
create unique index alert_open on alert (subject) where cleared is null;

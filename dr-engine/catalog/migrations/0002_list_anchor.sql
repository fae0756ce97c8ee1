-- How far each repository's list of restore points was seen to go: what tells that it went back.

create table list_anchor (
    repository  text not null,
    workload    text not null,
    sequence    integer not null,
    sha256      text not null,
    seen        text not null,
    primary key (repository, workload)
);

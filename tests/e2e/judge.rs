//! The judge itself: it must see a difference of one row, a broken reference, and a write that nobody
//! acknowledged; else nothing that it passes means anything.

use std::time::Duration;

use crate::harness::{
    CARRIER, ERP, Options, Schema, World, Writer, differences, foreign_key_violations, rows_of,
};
use crate::tenant_restore::{live_statement, with_writes};

fn sees_everything(name: &'static str, schema: &'static Schema) {
    let world = World::new(&Options::new(name, schema));
    let tenants: Vec<String> = world.tenants().into_iter().map(|(id, _)| id).collect();
    let all = || {
        tenants
            .iter()
            .map(|id| (id.clone(), rows_of(&world.cluster, schema, id)))
            .collect()
    };
    let before: std::collections::BTreeMap<_, _> = all();
    assert!(foreign_key_violations(&world.cluster).is_empty());

    let log = world.path("logs/writer.log");
    let statement = live_statement(schema, tenants[1..].to_vec());
    let writer = Writer::start(&world.cluster, &log, Duration::ZERO, statement);
    std::thread::sleep(Duration::from_millis(500));
    let acknowledged = writer.stop();
    assert!(
        acknowledged.len() > 10,
        "{}",
        std::fs::read_to_string(&log).unwrap()
    );
    let (expected, found) = (with_writes(&before, &acknowledged), all());
    for tenant in &tenants {
        assert_eq!(
            differences(&expected[tenant], &found[tenant]),
            Vec::<String>::new()
        );
    }
    let mut short = acknowledged.clone();
    short.pop_last();
    let expected = with_writes(&before, &short);
    let noticed = tenants
        .iter()
        .any(|id| !differences(&expected[id], &found[id]).is_empty());
    assert!(noticed, "one write too many is not noticed");

    for statement in schema.mistake {
        let before = rows_of(&world.cluster, schema, &tenants[0]);
        world
            .cluster
            .psql(&statement.replace("$T", &format!("'{}'", tenants[0])));
        let found = differences(&before, &rows_of(&world.cluster, schema, &tenants[0]));
        assert!(!found.is_empty(), "this makes no difference: {statement}");
    }
    assert!(foreign_key_violations(&world.cluster).is_empty());
    let parent = if schema.sql == ERP.sql {
        "public.customer"
    } else {
        "fleet.vehicle"
    };
    world.cluster.psql(&format!(
        "set session_replication_role = replica; delete from {parent} where ctid = (select min(ctid) from {parent})"
    ));
    let broken = foreign_key_violations(&world.cluster);
    assert!(
        broken.iter().any(|line| line.contains("_fkey: ")),
        "{broken:?}"
    );
}

#[test]
fn the_judge_sees_one_row_one_write_and_one_broken_reference() {
    sees_everything("judge", &ERP);
}

#[test]
fn the_judge_sees_the_same_in_the_other_schema() {
    sees_everything("judge-carrier", &CARRIER);
}

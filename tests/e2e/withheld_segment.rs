//! What is lost is what was not archived, to the write.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{ERP, Options, World};

fn find(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(find(&path, name));
        } else if entry.file_name().to_string_lossy().starts_with(name) {
            found.push(path);
        }
    }
    found
}

#[test]
fn with_the_last_segment_withheld_the_loss_is_exactly_the_writes_in_it() {
    let options = Options {
        settings: "archive_timeout = 0\nautovacuum = off",
        ..Options::new("withheld", &ERP)
    };
    let world = World::protected(&options);
    let cluster = &world.cluster;
    let write = |prefix: &str| {
        for number in 0..20 {
            cluster.psql(&format!(
                "insert into sales_order (tenant_id, order_no) values ({}, '{prefix}-{number}')",
                number % 6 + 1
            ));
        }
    };
    write("kept");
    cluster.switch_and_wait();
    write("lost");
    let first = cluster.value("select pg_walfile_name(pg_current_wal_insert_lsn())");
    let last = cluster.switch_and_wait();
    assert_eq!(
        first, last,
        "the writes to be lost should lie in one segment"
    );

    cluster.stop("immediate");
    fs::rename(&cluster.data, world.path("data.gone")).unwrap();
    let objects = find(&world.path("repository/wal"), &last);
    assert_eq!(objects.len(), 1, "{objects:?}");
    fs::remove_file(&objects[0]).unwrap();

    let restored = world.restore_started("restored", "latest");
    let orders = restored
        .psql("select order_no from sales_order where order_no !~ '^SO-' order by order_id");
    let expected: Vec<String> = (0..20).map(|number| format!("kept-{number}")).collect();
    assert_eq!(orders, expected);
    restored.stop("fast");
}

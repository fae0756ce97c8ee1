//! A copy on a host that sorts texts differently: its indexes lie until they are made anew.

use crate::harness::{ERP, Options, World};

/// An index without a row that is in its table stands for one that is sorted otherwise than it is searched.
const MAKE_IT_LIE: &str = "
    update pg_index set indisready = false where indexrelid = 'customer_pkey'::regclass;
    insert into customer (tenant_id, customer_no, name) values ($T, 777, 'in no index');
    update pg_index set indisready = true where indexrelid = 'customer_pkey'::regclass;
    update pg_database set datcollversion = '1.0' where datname = current_database();";

#[test]
fn a_copy_whose_indexes_may_lie_is_read_without_them_and_it_is_said() {
    let world = World::protected(&Options::new("collations", &ERP));
    let (victim, name) = world.tenants()[2].clone();
    let database = world.cluster.value("select current_database()");
    // Or the planner would read so small a table whole.
    world.cluster.psql(&format!(
        "alter database \"{database}\" set enable_seqscan = off"
    ));
    world.cluster.psql(&MAKE_IT_LIE.replace("$T", &victim));
    let row =
        format!("select count(*) from customer where tenant_id = {victim} and customer_no = 777");
    assert_eq!(world.cluster.value(&row), "0", "the index does not lie");
    let target = world.cluster.moment();
    world.cluster.psql("reindex table customer");
    world.cluster.psql(&format!(
        "alter database \"{database}\" reset enable_seqscan"
    ));
    world
        .cluster
        .psql("update pg_database set datcollversion = null where datname = current_database()");
    assert_eq!(world.cluster.value(&row), "1");
    world.cluster.psql(&format!(
        "delete from customer where tenant_id = {victim} and customer_no = 777"
    ));
    let output = world
        .program(&[
            "tenant",
            "restore",
            &name,
            "--workload",
            "erp",
            "--to",
            &target,
        ])
        .args(["--yes", "--json"])
        .run()
        .ok();
    assert_eq!(world.cluster.value(&row), "1", "{output}");
    output.says(&["sorts texts differently", "no index was used"]);

    // Who opens such a cluster for good is told what to do, and a verification says why indexes may fail.
    world
        .cluster
        .psql("update pg_database set datcollversion = '1.0' where datname = current_database()");
    world.dr(&["backup", "run", "erp"]).ok();
    let verified = world.dr(&["backup", "verify", "--json"]);
    verified.says(&["sorts texts differently"]);
    let into = world.path("opened").display().to_string();
    let opened = world
        .dr(&["restore", "erp", "--into", &into, "--start", "--json"])
        .ok();
    opened.says(&["sorts texts differently", "REINDEX"]);
}

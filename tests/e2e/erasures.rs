//! What was erased does not come back: not with a tenant's restore, not with an undo, not with the whole cluster.

use std::fs;
use std::time::Duration;

use crate::harness::{
    Cluster, ERP, Json, Output, Program, Rows, World, assert_foreign_keys_hold, differences,
    free_port, postgres_program, rows_of, wait_until,
};
use crate::tenant_restore::Scene;

fn erase(scene: &Scene, more: &[&str]) -> Output {
    scene
        .world
        .program(&["tenant", "erase", &scene.name, "--reason", "request 4711"])
        .args(more)
        .run()
}

fn restore(scene: &Scene) -> Output {
    scene
        .world
        .program(&["tenant", "restore", &scene.name, "--to", &scene.target])
        .args(["--yes", "--json"])
        .run()
}

/// Without the rows for which it holds, by a table's name and the row's text.
fn without(rows: &Rows, erased: impl Fn(&str, &str) -> bool) -> Rows {
    let mut left = rows.clone();
    for (table, rows) in &mut left {
        rows.retain(|row| !erased(table, row));
    }
    left
}

/// Settings by their keys.
fn is_setting(scene: &Scene, table: &str, row: &str, keys: &[&str]) -> bool {
    let begins = |key: &&str| row.starts_with(&format!("({},{key},", scene.victim));
    table == "public.setting" && keys.iter().any(begins)
}

/// The ids of a tenant's orders of one customer.
fn orders_of(scene: &Scene, customer: &str) -> Vec<String> {
    scene.world.cluster.psql(&format!(
        "select order_id from public.sales_order where tenant_id = {} and customer_no = {customer} order by 1",
        scene.victim
    ))
}

fn recorded(world: &World) -> usize {
    world.ask(&["tenant", "erasures"]).list("").len()
}

#[test]
fn what_cannot_be_erased_is_said() {
    let scene = Scene::new("erasure-input", &ERP);
    let world = &scene.world;
    let (other, _) = world.tenants()[0].clone();
    let foreign = world.cluster.value(&format!(
        "select min(order_id) from public.sales_order where tenant_id = {other}"
    ));
    let order = format!("sales_order:{foreign}");
    for (more, code, said) in [
        (vec!["--rows", "settings:k1"], 2, "`settings` is no table"),
        (vec!["--rows", "currency:EUR"], 2, "`currency` is no table"),
        (vec!["--rows", "setting"], 2, "is no `TABLE:KEY`"),
        (vec!["--rows", "setting:1/2/3"], 2, "tenant_id, key"),
        (vec!["--rows", "sales_order:many"], 2, "which is bigint"),
        (vec!["--rows", "remark:once"], 2, "has no key"),
        (vec!["--where", "remark: body = 'once'"], 2, "has no key"),
        (vec!["--where", "setting: colour = 'red'"], 1, "colour"),
        (vec!["--rows", &order], 1, "is no row of"),
        (
            vec!["--rows", "customer:12"],
            1,
            "rows of public.sales_order refer to erased rows of public.customer",
        ),
    ] {
        let output = erase(&scene, &[&more[..], &["--yes"]].concat());
        assert_eq!(output.code, Some(code), "{output}");
        output.says(&[said]);
    }
    let nobody = world.dr(&["tenant", "erase", "NOBODY", "--reason", "x", "--yes"]);
    assert_eq!(nobody.code, Some(2), "{nobody}");
    let name = scene.name.as_str();
    let why = world.dr(&["tenant", "erase", name, "--yes"]);
    assert_eq!(why.code, Some(2), "{why}");
    why.says(&["--reason"]);
    let blank = world.dr(&["tenant", "erase", name, "--reason", " ", "--yes"]);
    assert_eq!(blank.code, Some(2), "{blank}");
    let alone = erase(&scene, &[]);
    assert_eq!(alone.code, Some(2), "nobody can be asked: {alone}");

    let preview = erase(&scene, &["--rows", "setting:k1", "--preview", "--json"]).ok();
    let preview = Json::parse(&preview.stdout);
    assert_eq!(preview.number("/tables/0/erased"), 1);
    assert_eq!(recorded(world), 0);
    assert!(differences(&scene.rows_then, &scene.rows()).is_empty());
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story")]
fn erased_rows_come_back_with_nothing() {
    let scene = Scene::new("erasure-rows", &ERP);
    let world = &scene.world;
    let live = |sql: &str| world.cluster.psql(&sql.replace("$T", &scene.victim));
    let orders = orders_of(&scene, "12");
    assert!(!orders.is_empty());
    scene.mistake();
    let spoilt = scene.rows();
    let first = Json::parse(&restore(&scene).ok().stdout).text("/id");

    // Erased after a restore wrote them: the undo leaves them as they are now.
    let output = erase(&scene, &["--rows", "setting:k1,k5", "--yes"]).ok();
    output.says(&["2 rows are still live", "is recorded"]);
    live("delete from public.setting where tenant_id = $T and key in ('k1', 'k5')");
    let undone = world
        .dr(&["tenant", "undo", &first, "--yes", "--json"])
        .ok();
    assert!(
        Json::parse(&undone.stdout)
            .at("/erasures/entries")
            .0
            .is_array()
    );
    undone.says(&["2 rows of it were erased since"]);
    let expected = without(&spoilt, |table, row| {
        is_setting(&scene, table, row, &["k1", "k5"])
    });
    let found = differences(&expected, &scene.rows());
    assert!(found.is_empty(), "after the undo: {found:#?}");

    // One that is gone already, and one with all that hangs on it.
    live("delete from public.setting where tenant_id = $T and key = 'k2'");
    erase(&scene, &["--rows", "setting:k2", "--yes"])
        .ok()
        .says(&["not live: public.setting"]);
    erase(&scene, &["--rows", "customer:12", "--dependents", "--yes"]).ok();
    assert_eq!(recorded(world), 3);

    let of_orders = |table: &str, row: &str| {
        let of = |id: &String| match table {
            "public.sales_order" | "public.order_line" => row.starts_with(&format!("({id},")),
            "public.invoice" => row.split(',').nth(2) == Some(id.as_str()),
            _ => false,
        };
        orders.iter().any(of)
    };
    let is_erased = |table: &str, row: &str| {
        is_setting(&scene, table, row, &["k1", "k2", "k5"])
            || (table == "public.customer" && row.starts_with(&format!("({},12,", scene.victim)))
            || of_orders(table, row)
    };
    let expected = without(&scene.rows_then, is_erased);
    assert!(expected["public.order_line"].len() < scene.rows_then["public.order_line"].len());

    let output = restore(&scene).ok();
    let report = Json::parse(&output.stdout);
    let found = differences(&expected, &scene.rows());
    assert!(found.is_empty(), "after the restore: {found:#?}");
    assert_foreign_keys_hold(&world.cluster, "after the restore");
    assert_eq!(report.list("/erasures/entries").len(), 3);
    assert_eq!(report.number("/erasures/pending"), 0);
    assert_certified(&scene, &report.text("/id"), 3);

    // The catalog is an index: what has to be forgotten is known without it.
    fs::remove_file(world.path("catalog.db")).unwrap();
    world.dr(&["catalog", "rebuild"]).ok();
    let copy = world.restore_started("copy", &scene.target);
    let found = differences(&expected, &rows_of(&copy, &ERP, &scene.victim));
    assert!(found.is_empty(), "in the copy: {found:#?}");
    assert_foreign_keys_hold(&copy, "in the copy");
    for (id, name) in world.tenants().iter().filter(|(id, _)| *id != scene.victim) {
        let (there, here) = (rows_of(&copy, &ERP, id), rows_of(&world.cluster, &ERP, id));
        let found = differences(&here, &there);
        assert!(found.is_empty(), "{name} in the copy: {found:#?}");
    }
    copy.stop("fast");

    let into = world.path("whole").display().to_string();
    let output = world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into,
            "--to",
            &scene.target,
            "--start",
            "--without-erasures",
        ])
        .ok();
    output.says(&["3 NOT APPLIED", "WARNING"]);
    let whole = Cluster::running(&world.account, &world.path("whole"), "erp");
    let found = differences(&scene.rows_then, &rows_of(&whole, &ERP, &scene.victim));
    assert!(found.is_empty(), "nothing was to be taken out: {found:#?}");
    whole.stop("fast");
}

#[track_caller]
fn assert_certified(scene: &Scene, id: &str, entries: usize) {
    let world = &scene.world;
    let out = world.path("bin").display().to_string();
    world.dr(&["tenant", "certificate", id, "--out", &out]).ok();
    let file = |end: &str| world.path("bin").join(format!("{id}.{end}"));
    let certificate = Json::parse(&fs::read_to_string(file("json")).unwrap());
    assert_eq!(certificate.list("/certificate/erasures").len(), entries);
    let html = fs::read_to_string(file("html")).unwrap();
    assert!(
        html.contains(&format!("{entries} applied, none pending")),
        "{html}"
    );
    let json = file("json").display().to_string();
    world.dr(&["tenant", "verify-certificate", &json]).ok();
}

#[test]
fn an_erased_tenant_is_in_no_copy() {
    let scene = Scene::new("erasure-tenant", &ERP);
    let world = &scene.world;
    // In the file that a private server does not read.
    let settings = world.cluster.data.join("postgresql.conf");
    let dated = fs::read_to_string(&settings).unwrap() + "\ntrack_commit_timestamp = on\n";
    fs::write(&settings, dated).unwrap();
    world.cluster.stop("fast");
    world.cluster.start();
    world.cluster.psql(
        "create materialized view public.plans as select tenant_id, code from public.tenant; \
         create table public.watched (note text); create table public.dated (n int); \
         create function public.watch() returns trigger language plpgsql as $$ begin \
           insert into public.watched values (old.code); return old; end $$; \
         create trigger watch before delete on public.tenant for each row execute function public.watch(); \
         alter table public.tenant enable always trigger watch",
    );
    world.edit_configuration(
        "{ currency: shared }",
        "{ currency: shared, watched: ignored, dated: ignored }",
    );
    world.dr(&["backup", "run", "config"]).ok();
    world.dr(&["backup", "run", "erp"]).ok();
    world.cluster.psql("insert into public.dated values (1)");
    let target = world.cluster.moment();
    erase(&scene, &["--yes"])
        .ok()
        .says(&["everything", "folder config"]);
    let output = restore(&scene);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["was erased on", "request 4711"]);

    let into = world.path("copy").display().to_string();
    world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into,
            "--to",
            &target,
            "--preview",
        ])
        .ok()
        .says(&["taking out what 1 entry erased"]);
    let copy = world.restore_started("copy", &target);
    let rows = rows_of(&copy, &ERP, &scene.victim);
    assert!(rows.values().all(Vec::is_empty), "{rows:?}");
    let count = |sql: &str| copy.value(sql);
    let victim = &scene.victim;
    assert_eq!(
        count(&format!(
            "select count(*) from public.plans where tenant_id = {victim}"
        )),
        "0",
        "a materialized view still shows it"
    );
    assert_eq!(
        count("select count(*) from public.watched"),
        "0",
        "a trigger wrote it down"
    );
    assert_eq!(
        count("select pg_xact_commit_timestamp(xmin) is not null from public.dated"),
        "t",
        "commit timestamps were removed"
    );
    let always = "select tgenabled from pg_trigger where tgname = 'watch'";
    assert_eq!(count(always), "A");
    for (id, name) in world.tenants().iter().filter(|(id, _)| id != victim) {
        let (there, here) = (rows_of(&copy, &ERP, id), rows_of(&world.cluster, &ERP, id));
        assert!(differences(&here, &there).is_empty(), "{name} in the copy");
    }
    copy.stop("fast");

    let into = world.path("folders").display().to_string();
    let output = world.dr(&["restore", "config", "--into", &into]).ok();
    output.says(&["erasures applied: 1 entry"]);
    let names: Vec<String> = fs::read_dir(world.path("folders"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), world.tenants().len() - 1);
    assert!(!names.contains(&scene.name), "{names:?}");
}

#[test]
fn a_copy_whose_restore_was_killed_does_not_open() {
    let scene = Scene::new("erasure-killed", &ERP);
    let world = &scene.world;
    erase(&scene, &["--rows", "setting:k1", "--yes"]).ok();
    let data = world.path("copy");
    let into = data.display().to_string();
    let arguments = ["restore", "erp", "--into", &into, "--to", &scene.target];
    let mut restore = world
        .program(&arguments)
        .spawn(&world.path("logs/restore.log"));
    // From then on a server runs on it, which nobody but this process can reach.
    let lock = data.join("postmaster.pid");
    wait_until("the private server", Duration::from_secs(120), || {
        assert_eq!(restore.try_wait().unwrap(), None, "it ended too early");
        lock.exists().then_some(())
    });
    restore.kill().unwrap();
    restore.wait().unwrap();
    let stop = Program::new(&world.account, postgres_program("pg_ctl"))
        .args(["-D".as_ref(), data.as_os_str()])
        .args(["stop", "-m", "immediate", "-w", "-t", "60"]);
    stop.run();
    wait_until("the private server's end", Duration::from_secs(60), || {
        (!lock.exists()).then_some(())
    });
    let copy = Cluster {
        data: data.clone(),
        ..world.cluster.clone()
    };
    let settings = data.join("postgresql.conf");
    let port = format!("\nport = {}\n", free_port());
    fs::write(&settings, fs::read_to_string(&settings).unwrap() + &port).unwrap();
    assert_ne!(copy.try_start().code, Some(0), "it opens");
    let log = fs::read_to_string(copy.log()).unwrap();
    assert!(log.contains("no socket created for listening"), "{log}");

    world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into,
            "--to",
            &scene.target,
            "--delta",
            "--discard-wal",
            "--start",
        ])
        .ok();
    let copy = Cluster::running(&world.account, &data, "erp");
    let expected = without(&scene.rows_then, |table, row| {
        is_setting(&scene, table, row, &["k1"])
    });
    let found = differences(&expected, &rows_of(&copy, &ERP, &scene.victim));
    assert!(found.is_empty(), "{found:#?}");
    copy.stop("fast");
}

#[test]
fn a_new_primary_archives_nothing_before_it_is_opened() {
    let scene = Scene::new("erasure-primary", &ERP);
    let world = &scene.world;
    erase(&scene, &["--rows", "setting:k1", "--yes"]).ok();
    world.cluster.switch_and_wait();
    world.cluster.stop("fast");
    let data = world.cluster.data.clone();
    fs::rename(&data, world.path("lost")).unwrap();
    let into = data.display().to_string();
    world
        .dr(&[
            "restore",
            "erp",
            "--into",
            &into,
            "--to",
            &scene.target,
            "--as-primary",
        ])
        .ok()
        .says(&[
            "erasures applied: 1 entry, 1 row; none pending",
            "on timeline 2",
        ]);
    let history = "00000002.history";
    let status = data.join("pg_wal/archive_status");
    assert!(status.join(format!("{history}.ready")).exists());
    let fetch = |to: &str| {
        let arguments = ["wal", "fetch", "--workload", "erp", history, to];
        world.dr(&arguments).code
    };
    assert_eq!(
        fetch("tmp/before"),
        Some(1),
        "it was archived before it was opened"
    );

    let primary = world.cluster.clone();
    primary.start();
    primary.wait_archived(history);
    assert_eq!(fetch("tmp/after"), Some(0));
    let expected = without(&scene.rows_then, |table, row| {
        is_setting(&scene, table, row, &["k1"])
    });
    let found = differences(&expected, &rows_of(&primary, &ERP, &scene.victim));
    assert!(found.is_empty(), "{found:#?}");
    primary.stop("fast");
}

#[test]
fn the_ledger_is_in_every_copy_of_the_repository() {
    let scene = Scene::new("erasure-copies", &ERP);
    let world = &scene.world;
    erase(&scene, &["--rows", "setting:k1", "--yes"]).ok();
    let key = "key: { file: repository.key } }\n";
    let east = format!("{key}  east: {{ path: east, key: {{ file: east.key }} }}\n");
    world.edit_configuration(key, &east);
    world.edit_configuration("repositories: [main]", "repositories: [main, east]");
    world.dr(&["init"]).ok();
    world.dr(&["repo", "sync"]).ok();
    // What came before the copy, and what comes after it.
    erase(&scene, &["--rows", "setting:k3", "--yes"]).ok();
    world.dr(&["repo", "prune"]).ok();
    world.dr(&["repo", "check", "--read"]).ok();

    // Nothing of it is in what is taken along.
    let out = world.path("export").display().to_string();
    let aside = [
        "tenant",
        "restore",
        &scene.name,
        "--to",
        &scene.target,
        "--mode",
    ];
    let export = ["export", "--into", &out];
    world.dr(&[&aside[..], &export].concat()).ok();
    let files = fs::read_dir(world.path("export")).unwrap().flatten();
    let mut files =
        files.filter(|file| file.file_name().to_string_lossy().ends_with("setting.csv"));
    let settings = fs::read_to_string(files.next().unwrap().path()).unwrap();
    assert!(settings.contains(",k2,"), "{settings}");
    assert!(
        !settings.contains(",k1,") && !settings.contains(",k3,"),
        "{settings}"
    );
    let clone = ["clone", "--into-database", "taken"];
    world.dr(&[&aside[..], &clone].concat()).ok();
    let taken = Cluster {
        database: "taken".to_owned(),
        ..world.cluster.clone()
    };
    let keys = taken.psql("select key from public.setting order by 1");
    assert_eq!(keys, ["k2", "k4", "k5"]);

    // A place that went away is no reason to forget what has to be forgotten.
    fs::rename(world.path("repository"), world.path("away")).unwrap();
    assert_eq!(recorded(world), 2);
}

#[test]
fn a_schema_or_a_database_of_its_own_is_emptied() {
    let scene = Scene::new("erasure-places", &ERP);
    let world = &scene.world;
    let victim = &scene.victim;
    let (other, other_name) = world.tenants()[0].clone();
    world.cluster.psql(&format!(
        "create schema t_{victim}; create table t_{victim}.note (note_id int primary key, body text); \
         create table t_{victim}.log (body text); create table t_{victim}.gone (body text); \
         insert into t_{victim}.note values (1, 'a'); insert into t_{victim}.log values ('b'); \
         insert into t_{victim}.gone values ('c')"
    ));
    world.cluster.psql("create database apart");
    let apart = |cluster: &Cluster| Cluster {
        database: "apart".to_owned(),
        ..cluster.clone()
    };
    apart(&world.cluster).psql(
        "create table note (note_id int primary key, body text); insert into note values (1, 'd')",
    );
    let query = format!(
        "code as name, case tenant_id when {victim} then 't_' || tenant_id end as schema, \
         case tenant_id when {other} then 'apart' end as database from public.tenant"
    );
    world.edit_configuration("model: pooled\n", "hooks: {}\n");
    world.edit_configuration("code as name from public.tenant", &query);
    let target = world.cluster.moment();
    world.cluster.psql(&format!("drop table t_{victim}.gone"));
    erase(&scene, &["--yes"]).ok();
    let arguments = [
        "tenant",
        "erase",
        &other_name,
        "--reason",
        "contract ended",
        "--yes",
    ];
    world.dr(&arguments).ok();

    let copy = world.restore_started("copy", &target);
    for table in ["note", "log", "gone"] {
        let count = format!("select count(*) from t_{victim}.{table}");
        assert_eq!(copy.value(&count), "0", "{table}");
    }
    assert_eq!(apart(&copy).value("select count(*) from note"), "0");
    for tenant in [victim, &other] {
        let rows = rows_of(&copy, &ERP, tenant);
        assert!(rows.values().all(Vec::is_empty), "{tenant}: {rows:?}");
    }
    let (kept, _) = world.tenants()[1].clone();
    let here = rows_of(&world.cluster, &ERP, &kept);
    assert!(differences(&here, &rows_of(&copy, &ERP, &kept)).is_empty());
    copy.stop("fast");
}

#[test]
fn an_erased_row_that_is_still_live_goes_with_a_restore() {
    let scene = Scene::new("erasure-live", &ERP);
    erase(
        &scene,
        &["--where", "setting: key in ('k1', 'k2')", "--yes"],
    )
    .ok();
    let preview = scene
        .world
        .program(&["tenant", "restore", &scene.name, "--to", &scene.target])
        .args(["--preview", "--json"])
        .run()
        .ok();
    let preview = Json::parse(&preview.stdout);
    let tables = preview.list("/tables");
    let setting = tables
        .iter()
        .find(|table| table.text("/table") == "public.setting");
    assert_eq!(setting.unwrap().number("/delete"), 2);
    let notes = preview.list("/warnings");
    assert!(
        notes
            .iter()
            .any(|note| note.text("").contains("erased rows that are still live"))
    );
    restore(&scene).ok();
    let expected = without(&scene.rows_then, |table, row| {
        is_setting(&scene, table, row, &["k1", "k2"])
    });
    assert!(differences(&expected, &scene.rows()).is_empty());
}

#[test]
fn what_is_erased_while_a_restore_is_prepared_stops_it() {
    let scene = Scene::new("erasure-meanwhile", &ERP);
    let world = &scene.world;
    // Somebody records it when the plan was made and its confirmation given.
    let hook = format!(
        "currency: shared }}\n      hooks:\n        before: [ {{ command: ['{}', --config, '{}', tenant, erase, '{}', \
         --reason, request, --rows, 'setting:k1', --yes] }} ]\n",
        world.binary().display(),
        world.config().display(),
        scene.name
    );
    world.edit_configuration("currency: shared }\n", &hook);
    scene.mistake();
    let spoilt = scene.rows();
    let output = restore(&scene);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["was recorded since"]);
    assert_eq!(recorded(world), 1);
    assert!(differences(&spoilt, &scene.rows()).is_empty());
}

#[test]
fn a_tenant_that_is_in_no_list_any_more_is_erased_by_its_id() {
    let scene = Scene::new("erasure-gone", &ERP);
    let world = &scene.world;
    let deletes: Vec<String> = ERP
        .tables
        .iter()
        .rev()
        .filter(|table| table.name != "public.sales_order")
        .map(|table| {
            let own = table.belongs.replace("$T", &scene.victim);
            format!("delete from {} t where {own}", table.name)
        })
        .collect();
    // Orders last: by them it is told whose their lines are.
    world.cluster.psql(&format!(
        "set session_replication_role = replica; {}; delete from public.sales_order where tenant_id = {}",
        deletes.join("; "),
        scene.victim
    ));
    let by_name = erase(&scene, &["--yes"]);
    assert_eq!(by_name.code, Some(2), "{by_name}");
    let id = format!("id:00{}", scene.victim);
    let arguments = [
        "tenant",
        "erase",
        &id,
        "--reason",
        "contract ended",
        "--yes",
    ];
    world.dr(&arguments).ok().says(&[
        "in no list any more",
        "folder config knows tenants by their names",
    ]);
    // It is the same tenant, however its number was written.
    let entry = &world.ask(&["tenant", "erasures"]).list("")[0];
    assert_eq!(entry.text("/tenant/id"), scene.victim);
    let id = format!("id:{}", scene.victim);
    let arguments = ["tenant", "restore", &id, "--workload", "erp"];
    let output = world
        .program(&arguments)
        .args(["--to", &scene.target, "--yes"])
        .run();
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["was erased on", "contract ended"]);
    let copy = world.restore_started("copy", &scene.target);
    let rows = rows_of(&copy, &ERP, &scene.victim);
    assert!(rows.values().all(Vec::is_empty), "{rows:?}");
    let (kept, _) = world.tenants()[0].clone();
    let here = rows_of(&world.cluster, &ERP, &kept);
    assert!(differences(&here, &rows_of(&copy, &ERP, &kept)).is_empty());
    copy.stop("fast");
}

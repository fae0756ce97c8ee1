//! How the restore of a tenant ends when it is stopped or killed among its hooks, and what can be taken back
//! after a migration.

use std::fs;
use std::io::{BufRead, BufReader, Write};

use crate::harness::{ERP, Json, Output, assert_foreign_keys_hold, differences};
use crate::tenant_restore::Scene;

/// A world whose tenants are kept out by a row of a table while they are restored. `before` and `changed` are
/// programs for the shell.
fn kept_out(name: &'static str, before: &str, changed: &str) -> Scene {
    let scene = Scene::new(name, &ERP);
    let world = &scene.world;
    world
        .cluster
        .psql("create table public.maintenance (tenant_id int primary key)");
    let hooks = format!(
        "      tables: {{ currency: shared, maintenance: ignored }}\n      hooks:\n        \
         before:\n          - sql: \"insert into maintenance values ({{id}})\"\n          \
         - command: [sh, -c, \"{before}\"]\n        \
         changed: [ {{ command: [sh, -c, \"{changed}\"] }} ]\n        \
         after: [ {{ sql: \"delete from maintenance where tenant_id = {{id}}\" }} ]\n"
    );
    world.edit_configuration("      tables: { currency: shared }\n", &hooks);
    world.dr(&["config", "check"]).ok();
    scene.mistake();
    scene
}

fn restore(scene: &Scene, more: &[&str]) -> Output {
    scene
        .world
        .program(&["tenant", "restore", &scene.name, "--to", &scene.target])
        .args(["--yes", "--json"])
        .args(more)
        .run()
}

fn kept_out_now(scene: &Scene) -> String {
    let query = "select count(*) from public.maintenance";
    scene.world.cluster.value(query)
}

/// The hook sends what Ctrl-C and a service manager send.
#[test]
fn a_restore_that_is_stopped_while_the_users_are_out_changes_nothing_and_lets_them_in() {
    for signal in ["INT", "TERM"] {
        let name = match signal {
            "INT" => "tenant-interrupted",
            _ => "tenant-terminated",
        };
        let scene = kept_out(name, &format!("kill -{signal} $PPID"), "exit 0");
        let (rows, folder) = (scene.rows(), scene.folder());
        let output = restore(&scene, &[]);
        assert_eq!(output.code, Some(1), "{output}");
        assert!(differences(&rows, &scene.rows()).is_empty());
        assert_eq!(scene.folder(), folder);
        assert_eq!(kept_out_now(&scene), "0");
        scene
            .world
            .edit_configuration(&format!("kill -{signal} $PPID"), "exit 0");
        restore(&scene, &[]).ok();
        scene.assert_as_at_the_target("stopped, and begun again");
    }
}

/// The commit is long past: what was shown of the restore is kept, and what the hooks did is said to be unknown.
#[test]
fn a_restore_that_is_killed_among_its_hooks_has_its_certificate() {
    let scene = kept_out("tenant-killed-in-hook", "exit 0", "kill -KILL $PPID");
    let world = &scene.world;
    let output = restore(&scene, &[]);
    assert_ne!(output.code, Some(0), "{output}");
    scene.assert_as_at_the_target("killed among its hooks");
    assert_eq!(kept_out_now(&scene), "1");
    let history = world.program(&["tenant", "history", "--json"]).run();
    let history = Json::parse(&history.ok().stdout);
    let past = history.list("");
    assert_eq!(past.len(), 1, "{past:?}");
    assert_eq!(past[0].text("/became"), "committed");
    let id = past[0].text("/id");
    let out = world.path("certificates");
    fs::create_dir(&out).unwrap();
    world.account.own(&out);
    world
        .dr(&[
            "tenant",
            "certificate",
            &id,
            "--out",
            &out.display().to_string(),
        ])
        .ok();
    let text = fs::read_to_string(out.join(format!("{id}.json"))).unwrap();
    let certificate = Json::parse(&text);
    assert!(
        text.contains("ended before it recorded what they did"),
        "{text}"
    );
    assert!(
        text.contains("the WAL of the transaction holds the planned rows and no others"),
        "{text}"
    );
    let tables = certificate.list("/certificate/tables");
    assert!(
        tables.iter().all(|table| !table.text("/sha256").is_empty()),
        "{text}"
    );
    // The operator lets the users in by hand.
    world.cluster.psql("truncate public.maintenance");
    world.edit_configuration("kill -KILL $PPID", "exit 0");
    world.dr(&["tenant", "undo", &id, "--yes"]).ok();
    assert_eq!(kept_out_now(&scene), "0");
}

#[test]
fn an_undo_does_not_need_tables_that_the_restore_left_alone() {
    let scene = Scene::new("tenant-undo-migrated", &ERP);
    let cluster = &scene.world.cluster;
    cluster.psql(&format!(
        "delete from public.setting where tenant_id = {}",
        scene.victim
    ));
    let spoilt = scene.rows();
    let report = Json::parse(&restore(&scene, &[]).ok().stdout);
    assert!(!differences(&spoilt, &scene.rows()).is_empty());
    // A table that was written to is needed.
    let id = report.text("/id");
    cluster.psql("alter table public.setting rename to former_setting");
    let undo = ["tenant", "undo", &id, "--yes"];
    let output = scene.world.dr(&undo);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["public.setting is gone"]);
    cluster.psql(
        "alter table public.former_setting rename to setting; \
         alter table public.order_line rename to former_line",
    );
    let output = scene.world.dr(&undo);
    output.says(&["public.order_line is gone; the restore did not write to it"]);
    output.ok();
    cluster.psql("alter table public.former_line rename to order_line");
    let found = differences(&spoilt, &scene.rows());
    assert!(found.is_empty(), "{found:#?}");
    assert_foreign_keys_hold(cluster, "after the undo");
}

#[test]
fn views_are_refreshed_when_asked_for_and_a_lock_is_not_waited_for_longer_than_was_said() {
    let scene = Scene::new("tenant-views", &ERP);
    let cluster = &scene.world.cluster;
    scene.mistake();
    cluster.psql(
        "create materialized view public.orders as select tenant_id, count(*) as n from public.sales_order group by 1",
    );
    let spoilt = scene.rows();
    let shown = || {
        let query = format!(
            "select coalesce(max(n), 0) from public.orders where tenant_id = {}",
            scene.victim
        );
        cluster.value(&query)
    };
    let before = shown();
    let mut holder = cluster
        .psql_program()
        .talk(&scene.world.path("tmp/holder.log"));
    let mut said = BufReader::new(holder.stdout.take().unwrap());
    let mut tell = holder.stdin.take().unwrap();
    // The second one keeps readers out as well: the comparison does not wait for ever either.
    for (mode, step) in [
        ("share", "waits longer with --lock-wait"),
        ("access exclusive", ""),
    ] {
        writeln!(
            tell,
            "begin; lock table public.sales_order in {mode} mode; select 'held';"
        )
        .unwrap();
        said.read_line(&mut String::new()).unwrap();
        let output = restore(&scene, &["--lock-wait", "200ms"]);
        assert_eq!(output.code, Some(1), "{output}");
        output.says(&["lock timeout", step]);
        writeln!(tell, "rollback;").unwrap();
    }
    drop(tell);
    holder.wait().unwrap();
    assert!(differences(&spoilt, &scene.rows()).is_empty());

    let report = Json::parse(&restore(&scene, &["--refresh-views"]).ok().stdout);
    scene.assert_as_at_the_target("with views");
    assert_eq!(
        shown(),
        scene.rows_then["public.sales_order"].len().to_string()
    );
    let line = "materialized view public.orders is up to date";
    let proof = report.list("/proof");
    assert!(
        proof.iter().any(|it| it.text("/what") == line),
        "{report:?}"
    );
    // An undo, as it was asked for: without.
    let undo = scene
        .world
        .dr(&["tenant", "undo", &report.text("/id"), "--yes"]);
    undo.ok();
    assert_eq!(
        shown(),
        scene.rows_then["public.sales_order"].len().to_string()
    );
    assert_ne!(shown(), before);
}

//! What surrounds the restore of a tenant: a part of it only, hooks, and the certificate that is handed out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{
    Cluster, ERP, HttpReceiver, Json, Output, World, assert_foreign_keys_hold, differences, rows_of,
};
use crate::tenant_restore::Scene;

fn restore(scene: &Scene, more: &[&str]) -> Output {
    scene
        .world
        .program(&["tenant", "restore", &scene.name, "--to", &scene.target])
        .args(["--yes", "--json"])
        .args(more)
        .run()
}

#[test]
fn only_what_was_chosen_comes_back() {
    let scene = Scene::new("tenant-part", &ERP);
    scene.mistake();
    let spoilt = scene.rows();
    for (more, said) in [
        (["--tables", "settings"], "`settings` is no table"),
        (["--tables", "currency"], "`currency` is no table"),
        (
            ["--where", "setting key = 'k1'"],
            "is no `TABLE: CONDITION`",
        ),
        (["--where", "s*: key = 'k1'"], "means 3 tables"),
        (["--where", "setting: colour = 'red'"], "colour"),
    ] {
        let output = restore(&scene, &more);
        assert_ne!(output.code, Some(0), "{output}");
        output.says(&[said]);
    }
    // Lines of orders that stay away: the foreign key does not hold, and nothing is written.
    let output = restore(&scene, &["--where", "order_line: line_no = 2"]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["order_line"]);
    assert!(differences(&spoilt, &scene.rows()).is_empty());

    let report = restore(
        &scene,
        &[
            "--tables",
            "setting",
            "--where",
            "customer: customer_no = 2",
        ],
    )
    .ok();
    let report = Json::parse(&report.stdout);
    let mut expected = spoilt.clone();
    let setting = scene.rows_then["public.setting"].clone();
    expected.insert("public.setting".to_owned(), setting);
    // The second customer as then, the others as the mistake left them.
    let is_second = |row: &&String| row.starts_with(&format!("({},2,", scene.victim));
    let others = spoilt["public.customer"]
        .iter()
        .filter(|row| !is_second(row));
    let second = scene.rows_then["public.customer"].iter().filter(is_second);
    let mut customers: Vec<String> = others.chain(second).cloned().collect();
    customers.sort();
    expected.insert("public.customer".to_owned(), customers);
    let found = differences(&expected, &scene.rows());
    assert!(found.is_empty(), "{found:#?}");
    assert_ne!(scene.folder(), scene.folder_then, "files are not chosen");
    assert_foreign_keys_hold(&scene.world.cluster, "after a part");

    let id = report.text("/id");
    let past = scene.world.ask(&["tenant", "history"]);
    let past = past.list("").pop().unwrap();
    assert_eq!(past.text("/filter/tables/0"), "setting");
    assert_eq!(past.text("/filter/conditions/0/1"), "customer_no = 2");
    let said = "only table setting, rows of customer where customer_no = 2";
    scene.world.dr(&["tenant", "history"]).ok().says(&[said]);
    let out = scene.world.path("bin").display().to_string();
    scene
        .world
        .dr(&["tenant", "certificate", &id, "--out", &out])
        .ok();
    let file = scene.world.path("bin").join(format!("{id}.json"));
    let certificate = Json::parse(&fs::read_to_string(file).unwrap());
    let only: Vec<String> = certificate
        .list("/certificate/only")
        .iter()
        .map(|it| it.text(""))
        .collect();
    assert_eq!(
        only,
        ["table setting", "rows of customer where customer_no = 2"]
    );

    scene.world.dr(&["tenant", "undo", &id, "--yes"]).ok();
    assert!(differences(&spoilt, &scene.rows()).is_empty());
}

/// A world whose tenants have hooks; a program writes what it is told to a file.
fn with_hooks(name: &'static str, before: &str, after: &str) -> (Scene, PathBuf) {
    let scene = Scene::new(name, &ERP);
    let world = &scene.world;
    world.cluster.psql(
        "create table public.maintenance (tenant_id int primary key, note text); \
         create table public.outbox (relation text, change text, key jsonb)",
    );
    let told = world.path("tmp/told.jsonl");
    let hooks = format!(
        "      tables: {{ currency: shared, maintenance: ignored, outbox: ignored }}\n      hooks:\n        \
         before: [ {{ sql: \"insert into maintenance values ({{id}}, {{name}}); {before}\" }} ]\n        \
         changed:\n          - sql: \"insert into outbox select relation, change, key from dr_changed\"\n          \
         - command: [sh, -c, \"cat > {} && echo $DR_HOOK $DR_TENANT_NAME\"]\n        \
         after: [ {{ sql: \"delete from maintenance where tenant_id = {{id}}; {after}\" }} ]\n",
        told.display()
    );
    world.edit_configuration("      tables: { currency: shared }\n", &hooks);
    world.dr(&["config", "check"]).ok();
    scene.mistake();
    (scene, told)
}

fn count(world: &World, table: &str) -> String {
    world
        .cluster
        .value(&format!("select count(*) from public.{table}"))
}

#[test]
fn hooks_keep_the_users_out_and_are_told_every_row() {
    let (scene, told) = with_hooks("tenant-hooks", "", "");
    let world = &scene.world;
    let server = HttpReceiver::start(Some(("202 Accepted", "queued")));
    let token = world.path("hook.token");
    fs::write(&token, "Bearer s3cr3t\n").unwrap();
    world.account.own(&token);
    let http = format!(
        "          - http: {{ url: \"{}\", headers: {{ Authorization: {{ file: hook.token }} }} }}\n        after: [",
        server.url("/rows")
    );
    world.edit_configuration("        after: [", &http);
    let preview = world
        .program(&[
            "tenant",
            "restore",
            &scene.name,
            "--to",
            &scene.target,
            "--preview",
        ])
        .run();
    preview.ok();
    assert_eq!(
        (count(world, "outbox"), told.exists()),
        ("0".to_owned(), false)
    );

    let report = Json::parse(&restore(&scene, &[]).ok().stdout);
    scene.assert_as_at_the_target("with hooks");
    let mut expected = Vec::new();
    for table in report.list("/tables") {
        for (change, field) in [
            ("delete", "/deleted"),
            ("insert", "/inserted"),
            ("update", "/updated"),
        ] {
            let rows = table.number(field);
            if rows > 0 {
                expected.push(format!("{}|{change}|{rows}", table.text("/table")));
            }
        }
    }
    expected.sort();
    let by = "select relation, change, count(*) from public.outbox group by 1, 2 order by 1, 2";
    let mut seen = world.cluster.psql(by);
    seen.sort();
    assert_eq!(seen, expected);
    // Keys are those of the rows; a table without a key has none.
    let orders = "select count(*) from public.outbox o join public.sales_order s \
                  on s.order_id = (o.key ->> 'order_id')::bigint \
                  where o.relation = 'public.sales_order' and o.change <> 'delete'";
    let changed = "select count(*) from public.outbox where relation = 'public.sales_order' and change <> 'delete'";
    assert_eq!(world.cluster.value(orders), world.cluster.value(changed));
    let lines = fs::read_to_string(&told).unwrap();
    assert_eq!(lines.lines().count().to_string(), count(world, "outbox"));
    let line = lines
        .lines()
        .find(|line| line.contains("public.setting"))
        .unwrap();
    assert_eq!(Json::parse(line).text("/key/tenant_id"), scene.victim);
    assert_eq!(count(world, "maintenance"), "0");
    // The same rows in a request, behind a line that says whose they are.
    let request = server.next();
    assert!(request.head.starts_with("POST /rows "), "{}", request.head);
    assert!(request.head.contains("authorization: Bearer s3cr3t"));
    let (about, rows) = request.body.split_once('\n').unwrap();
    assert_eq!(Json::parse(about).text("/hook"), "changed");
    assert_eq!(Json::parse(about).text("/restore"), report.text("/id"));
    assert_eq!(rows, lines);
    let proof: Vec<String> = report
        .list("/proof")
        .iter()
        .map(|line| line.text("/what"))
        .collect();
    for when in ["before", "changed", "after"] {
        let said = format!("hook `{when}` ran");
        assert!(
            proof.iter().any(|what| what.starts_with(&said)),
            "{proof:#?}"
        );
    }

    // Taking it back tells the same rows the other way round.
    world.cluster.psql("truncate public.outbox");
    world
        .dr(&["tenant", "undo", &report.text("/id"), "--yes"])
        .ok();
    let reversed: Vec<String> = expected
        .iter()
        .map(|line| match line.contains("|insert|") {
            true => line.replace("|insert|", "|delete|"),
            false => line.replace("|delete|", "|insert|"),
        })
        .collect();
    let mut reversed = reversed;
    reversed.sort();
    let mut seen = world.cluster.psql(by);
    seen.sort();
    assert_eq!(seen, reversed);
}

#[test]
fn a_hook_that_fails_first_changes_nothing_and_one_that_fails_last_is_told() {
    let (scene, told) = with_hooks(
        "tenant-hook-fails",
        "select 1 / (select count(*) from outbox)",
        "",
    );
    let world = &scene.world;
    let spoilt = scene.rows();
    let server = HttpReceiver::start(Some(("503 Service Unavailable", "not at night")));
    let http = format!("before: [ {{ http: {{ url: \"{}\" }} }}, ", server.url("/"));
    world.edit_configuration("before: [ ", &http);
    let output = restore(&scene, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    let said = [
        "hook `before`",
        "nothing was changed",
        "503 Service Unavailable",
        "not at night",
    ];
    output.says(&said);
    assert!(differences(&spoilt, &scene.rows()).is_empty());
    world.edit_configuration(&http, "before: [ ");
    let output = restore(&scene, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["hook `before`", "nothing was changed", "division by zero"]);
    assert!(differences(&spoilt, &scene.rows()).is_empty());
    assert!(!told.exists());
    assert_eq!(count(world, "maintenance"), "0");

    world.edit_configuration("select 1 / (select count(*) from outbox)", "select 1");
    world.edit_configuration(
        "where tenant_id = {id}; ",
        "where tenant_id = {id}; select 1 / 0",
    );
    let output = restore(&scene, &[]);
    assert_eq!(output.code, Some(1), "{output}");
    output.says(&["was committed, but not everything"]);
    scene.assert_as_at_the_target("its last hook failed");
    // Somebody has to let the users in: the report says which hook failed and why.
    assert_eq!(count(world, "maintenance"), "1");
    output.says(&["hook `after` ran", "division by zero"]);
}

#[track_caller]
fn verify(world: &World, file: &Path, more: &[&str]) -> Output {
    let file = file.display().to_string();
    world
        .program(&["tenant", "verify-certificate", &file])
        .args(more)
        .run()
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story")]
fn a_certificate_is_handed_out_and_no_change_to_it_passes() {
    let scene = Scene::new("tenant-certificate", &ERP);
    scene.mistake();
    let world = &scene.world;
    // The checksum as the documentation has it.
    let sum = format!(
        "set timezone = 'UTC'; set extra_float_digits = 1; with rows as (select sha256(convert_to(row(\
         tenant_id, key, value, raw)::text, 'UTF8')) as sum from public.setting where tenant_id = {}), heads as \
         (select substr(sum, 1, 2) as head, sha256(string_agg(sum, '' order by sum)) as sum from rows group by 1) \
         select encode(sha256(string_agg(sum, '' order by head)), 'hex') from heads",
        scene.victim
    );
    let summed = || world.cluster.psql(&sum).pop().unwrap();
    let sum_before = summed();
    let report = Json::parse(&restore(&scene, &[]).ok().stdout);
    let id = report.text("/id");
    let out = world.path("certificates");
    fs::create_dir(&out).unwrap();
    world.account.own(&out);
    let folder = out.display().to_string();
    let make = || world.dr(&["tenant", "certificate", &id, "--out", &folder]);
    make().ok();
    let (json, html) = (
        out.join(format!("{id}.json")),
        out.join(format!("{id}.html")),
    );
    let both = |path: &Path| fs::read_to_string(path).unwrap();
    let (first_json, first_html) = (both(&json), both(&html));
    // The same again.
    make().ok();
    assert_eq!(
        (both(&json), both(&html)),
        (first_json.clone(), first_html.clone())
    );

    let document = Json::parse(&first_json);
    let certificate = document.at("/certificate");
    assert_eq!(certificate.text("/tenant/name"), scene.name);
    assert_eq!(certificate.text("/undo_point"), report.text("/undo_point"));
    for table in certificate.list("/tables") {
        let name = table.text("/table");
        assert_eq!(
            table.number("/rows"),
            scene.rows_then[&name].len() as u64,
            "{name}"
        );
    }
    let tables = certificate.list("/tables");
    let setting = tables
        .iter()
        .find(|table| table.text("/table") == "public.setting")
        .unwrap();
    assert_eq!(summed(), setting.text("/sha256"));
    assert_ne!(summed(), sum_before);

    // Genuine, says this program, and says another one that only has the documentation.
    for file in [&json, &html] {
        verify(world, file, &[])
            .ok()
            .says(&["genuine", "repository `main`"]);
    }
    let key = document.text("/signature/key");
    verify(world, &json, &["--key", &key]).ok();
    let other = verify(world, &json, &["--key", &"0".repeat(64)]);
    assert_eq!(other.code, Some(1), "{other}");
    other.says(&["not signed under the given key"]);
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/certificate.py");
    let python = Command::new("/usr/bin/python3")
        .arg(reader)
        .arg(&json)
        .output()
        .unwrap();
    assert!(
        python.status.success(),
        "{}",
        String::from_utf8_lossy(&python.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&python.stdout).trim(), key);

    // A changed count, date or tenant.
    let inserted = certificate.list("/tables")[0].number("/rows");
    let date = certificate.text("/finished")[..10].to_owned();
    let changes = [
        (inserted.to_string(), (inserted + 1).to_string()),
        (date, "2020-01-01".to_owned()),
        (scene.name.clone(), "SOMEBODY".to_owned()),
    ];
    for (text, file) in [(&first_json, "changed.json"), (&first_html, "changed.html")] {
        let file = out.join(file);
        for (from, to) in &changes {
            assert!(text.contains(from.as_str()), "{from}");
            fs::write(&file, text.replace(from.as_str(), to)).unwrap();
            world.account.own(&file);
            let output = verify(world, &file, &[]);
            assert_eq!(output.code, Some(1), "{from} -> {to}: {output}");
            output.says(&["not genuine"]);
        }
    }
    let unknown = world.dr(&["tenant", "certificate", "tr-20200101T000000Z-000000"]);
    assert_eq!(unknown.code, Some(1), "{unknown}");
    unknown.says(&["there is no tenant restore"]);

    // Of an undo as well.
    let undo = world
        .program(&["tenant", "undo", &id, "--yes", "--json"])
        .run()
        .ok();
    let undo = Json::parse(&undo.stdout).text("/id");
    world
        .dr(&["tenant", "certificate", &undo, "--out", &folder])
        .ok();
    let document = Json::parse(&both(&out.join(format!("{undo}.json"))));
    let tables = document.list("/certificate/tables");
    let of = |name: &str| tables.iter().find(|table| table.text("/table") == name);
    assert_eq!(of("public.setting").unwrap().text("/sha256"), sum_before);
    for (name, rows) in scene.rows() {
        let said = of(&name).map_or(0, |table| table.number("/rows"));
        assert_eq!(said, rows.len() as u64, "{name}");
    }
    let text = both(&out.join(format!("{undo}.html")));
    assert!(text.contains("A restore was taken back") && text.contains(&id));
}

#[test]
fn a_tenant_of_a_moment_becomes_a_database_of_its_own() {
    let scene = Scene::new("tenant-clone", &ERP);
    scene.mistake();
    let world = &scene.world;
    let spoilt = scene.rows();
    let clone = |more: &[&str]| {
        world
            .program(&[
                "tenant",
                "restore",
                &scene.name,
                "--to",
                &scene.target,
                "--mode",
                "clone",
            ])
            .args(more)
            .run()
    };
    assert_eq!(clone(&[]).code, Some(2), "without a database");
    let bad = clone(&["--into-database", "a b"]);
    assert_eq!(bad.code, Some(1), "{bad}");
    clone(&["--into-database", "acme_then"]).ok();
    let copy = Cluster {
        database: "acme_then".to_owned(),
        ..world.cluster.clone()
    };
    let found = differences(&scene.rows_then, &rows_of(&copy, &ERP, &scene.victim));
    assert!(found.is_empty(), "{found:#?}");
    // Nobody else's rows, everybody's, and all that belongs to a table.
    assert_eq!(copy.value("select count(*) from public.tenant"), "1");
    assert_eq!(copy.value("select count(*) from public.currency"), "2");
    assert_foreign_keys_hold(&copy, "the clone");
    let things = "select (select count(*) from pg_constraint where connamespace = 'public'::regnamespace) || ' ' || \
                  (select count(*) from pg_indexes where schemaname = 'public') || ' ' || \
                  (select count(*) from pg_trigger where not tgisinternal)";
    assert_eq!(copy.value(things), world.cluster.value(things));
    // It is a database to work with.
    copy.psql(&format!(
        "insert into public.sales_order (tenant_id, order_no) values ({}, 'in the clone')",
        scene.victim
    ));
    assert!(
        differences(&spoilt, &scene.rows()).is_empty(),
        "production is not touched"
    );

    let again = clone(&["--into-database", "acme_then"]);
    assert_eq!(again.code, Some(1), "{again}");
    again.says(&["acme_then", "there already"]);

    // Under another id, beside a tenant that has it in production.
    clone(&["--into-database", "acme_other", "--as", "4711"]).ok();
    let other = Cluster {
        database: "acme_other".to_owned(),
        ..world.cluster.clone()
    };
    let rows = rows_of(&other, &ERP, "4711");
    for (table, then) in &scene.rows_then {
        assert_eq!(rows[table].len(), then.len(), "{table}");
    }
    assert_foreign_keys_hold(&other, "the clone under another id");
    let left = "select count(*) from pg_database where datname like 'dr_clone%'";
    assert_eq!(world.cluster.value(left), "0");
}

/// Rows of the system's own tenant, and what belongs to them by foreign keys, are in every clone: a tenant's rows may
/// refer to them.
#[test]
fn a_clone_has_what_is_everybodys_through_foreign_keys_too() {
    let scene = Scene::new("tenant-clone-shared", &ERP);
    let world = &scene.world;
    let shared = "      shared_ids: [\"0\"]\n      tables: { currency: shared }\n";
    world.edit_configuration("      tables: { currency: shared }\n", shared);
    let (own, other) = (&scene.victim, &world.tenants()[3].0);
    // An order line of the system's, which belongs to it through its order; and one of the tenant's notes about it.
    world.cluster.psql(
        "insert into public.tenant (tenant_id, code) values (0, 'SYSTEM'); \
         insert into public.sales_order (tenant_id, order_no) values (0, 'template'); \
         insert into public.order_line (order_id, line_no, sku, quantity, price) \
           select order_id, 1, 'T', 1, 1 from public.sales_order where order_no = 'template'; \
         create table public.line_note (tenant_id int references public.tenant, order_id bigint, line_no int, \
           primary key (tenant_id, order_id, line_no), foreign key (order_id, line_no) references public.order_line)",
    );
    world.cluster.psql(&format!(
        "insert into public.line_note select {own}, order_id, 1 from public.sales_order where order_no = 'template'"
    ));
    let target = world.cluster.moment();
    let clone = world.program(&["tenant", "restore", &scene.name, "--to", &target]);
    let into = ["--mode", "clone", "--into-database", "acme_then"];
    clone.args(into).run().ok();
    let copy = Cluster {
        database: "acme_then".to_owned(),
        ..world.cluster.clone()
    };
    assert_foreign_keys_hold(&copy, "the clone");
    let lines = "select count(*) from public.order_line where sku = 'T'";
    assert_eq!(copy.value(lines), "1");
    assert_eq!(copy.value("select count(*) from public.line_note"), "1");
    let theirs = format!("select count(*) from public.sales_order where tenant_id = {other}");
    assert_eq!(copy.value(&theirs), "0");
    let found = differences(&scene.rows_then, &rows_of(&copy, &ERP, own));
    assert!(found.is_empty(), "{found:#?}");
    // As the system's order lines are nobody's slice, they are not the tenant's to be given another id.
    let other_id = [
        "--mode",
        "clone",
        "--into-database",
        "acme_other",
        "--as",
        "4711",
    ];
    let clone = world.program(&["tenant", "restore", &scene.name, "--to", &target]);
    clone.args(other_id).run().ok();
    let copy = Cluster {
        database: "acme_other".to_owned(),
        ..world.cluster.clone()
    };
    let ids = "select string_agg(distinct tenant_id::text, ' ' order by tenant_id::text) from public.sales_order";
    assert_eq!(copy.value(ids), "0 4711");
}

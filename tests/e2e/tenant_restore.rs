//! One tenant goes back to a moment while a client writes to all others all the time. Judged in plain
//! SQL by tables and conditions written down by hand.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::harness::{
    CARRIER, Cluster, ERP, Json, Options, Output, Rows, Schema, World, Writer,
    assert_foreign_keys_hold, differences, folder_state, foreign_key_violations, rows_of,
};

pub(crate) type Folder = BTreeMap<String, String>;

/// A world with one tenant in the middle of the list, its state at the target, and the mistake made.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) victim: String,
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) rows_then: Rows,
    pub(crate) folder_then: Folder,
}

impl Scene {
    pub(crate) fn new(name: &'static str, schema: &'static Schema) -> Self {
        let world = World::protected(&Options::new(name, schema));
        let (victim, name) = world.tenants()[2].clone();
        // A change after the backup and before the target: the target is not the backup.
        world
            .cluster
            .psql(&before_the_target(schema).replace("$T", &format!("'{victim}'")));
        let rows_then = rows_of(&world.cluster, schema, &victim);
        assert!(
            rows_then.values().all(|rows| !rows.is_empty()),
            "a table is not used: {rows_then:?}"
        );
        let folder_then = folder_state(&world.path("config").join(&name));
        let target = world.cluster.moment();
        Self {
            world,
            victim,
            name,
            target,
            rows_then,
            folder_then,
        }
    }

    pub(crate) fn mistake(&self) {
        for statement in self.world.schema.mistake {
            self.world
                .cluster
                .psql(&statement.replace("$T", &format!("'{}'", self.victim)));
        }
        let folder = self.world.path("config").join(&self.name);
        fs::remove_file(folder.join("secret.key")).unwrap();
        fs::remove_dir_all(folder.join("templates")).unwrap();
        fs::write(folder.join("settings.yaml"), "spoilt\n").unwrap();
        fs::write(folder.join("new.txt"), "was not there\n").unwrap();
        self.world.account.own(&folder);
    }

    pub(crate) fn rows(&self) -> Rows {
        rows_of(&self.world.cluster, self.world.schema, &self.victim)
    }

    pub(crate) fn folder(&self) -> Folder {
        folder_state(&self.world.path("config").join(&self.name))
    }

    fn restore(&self, fault: Option<&str>) -> Output {
        let mut program = self
            .world
            .program(&[
                "tenant",
                "restore",
                &self.name,
                "--workload",
                "erp",
                "--to",
                &self.target,
            ])
            .args(["--yes", "--json"]);
        if let Some(fault) = fault {
            program = program.env("DR_TEST_TENANT_FAULT", fault);
        }
        program.run()
    }

    #[track_caller]
    pub(crate) fn assert_as_at_the_target(&self, when: &str) {
        let found = differences(&self.rows_then, &self.rows());
        assert!(found.is_empty(), "{when}: {found:#?}");
        assert_eq!(self.folder(), self.folder_then, "{when}");
    }
}

fn before_the_target(schema: &Schema) -> &'static str {
    if schema.sql == ERP.sql {
        "insert into public.sales_order (tenant_id, order_no) values ($T, 'after the backup'); \
         insert into public.order_line (order_id, line_no, sku, quantity, price) \
         select order_id, 1, 'S', 1.50, 2 from public.sales_order where order_no = 'after the backup'; \
         update public.customer set credit = 7.70 where tenant_id = $T and customer_no = 2"
    } else {
        "update fleet.stop set papers = '{late}' where seq = 1 and trip_id in (select trip_id from fleet.trip \
         join fleet.vehicle using (vehicle_id) join fleet.depot using (depot_id) where company_id = $T)"
    }
}

/// Records are separated by ASCII 30, their fields by 31: tenant, table, text with which the row's former
/// version begins (empty: there was none), row.
pub(crate) fn live_statement(
    schema: &Schema,
    others: Vec<String>,
) -> Box<dyn Fn(u64) -> String + Send> {
    if schema.sql == ERP.sql {
        Box::new(move |n| {
            let tenant = &others[usize::try_from(n).unwrap() % others.len()];
            if n % 4 == 3 {
                return format!(
                    "update public.customer c set credit = credit + 0.10 where tenant_id = {tenant} and \
                     customer_no = {} returning concat_ws(E'\\x1f', tenant_id, 'public.customer', \
                     '(' || tenant_id || ',' || customer_no || ',', c::text)",
                    n % 12 + 1
                );
            }
            format!(
                "with o as (insert into public.sales_order as o (tenant_id, order_no, customer_no) \
                   values ({tenant}, 'live-{n}', {customer}) returning order_id, tenant_id, o::text as t), \
                 l as (insert into public.order_line as l (order_id, line_no, sku, quantity, price) \
                   select order_id, 1, 'live', {n}, 1.0 from o returning l::text as t) \
                 select concat_ws(E'\\x1f', tenant_id, 'public.sales_order', '', o.t) || E'\\x1e' || \
                   concat_ws(E'\\x1f', tenant_id, 'public.order_line', '', l.t) from o, l",
                customer = n % 12 + 1
            )
        })
    } else {
        Box::new(move |n| {
            let tenant = &others[usize::try_from(n).unwrap() % others.len()];
            format!(
                "with t as (insert into fleet.trip as t (vehicle_id, load) select min(vehicle_id), {n} \
                   from fleet.vehicle join fleet.depot using (depot_id) where company_id = '{tenant}' \
                   returning trip_id, t::text as t), \
                 s as (insert into fleet.stop as s (trip_id, seq, place_code) select trip_id, 1, 'KEL' from t \
                   returning s::text as t) \
                 select concat_ws(E'\\x1f', '{tenant}', 'fleet.trip', '', t.t) || E'\\x1e' || \
                   concat_ws(E'\\x1f', '{tenant}', 'fleet.stop', '', s.t) from t, s"
            )
        })
    }
}

/// What every other tenant must hold: what it held, changed by each acknowledged write in order.
pub(crate) fn with_writes(
    before: &BTreeMap<String, Rows>,
    acknowledged: &BTreeMap<String, String>,
) -> BTreeMap<String, Rows> {
    let mut expected = before.clone();
    for record in acknowledged.values().flat_map(|line| line.split('\x1e')) {
        let [tenant, table, former, row] = record.split('\x1f').collect::<Vec<_>>()[..] else {
            panic!("not understood: {record:?}")
        };
        let rows = expected.get_mut(tenant).unwrap().get_mut(table).unwrap();
        if !former.is_empty() {
            let place = rows.iter().position(|row| row.starts_with(former)).unwrap();
            rows.remove(place);
        }
        rows.push(row.to_owned());
    }
    expected
}

fn while_others_write(name: &'static str, schema: &'static Schema) {
    let scene = Scene::new(name, schema);
    let world = &scene.world;
    let others: Vec<String> = world
        .tenants()
        .into_iter()
        .map(|(id, _)| id)
        .filter(|id| *id != scene.victim)
        .collect();
    let rows_of_others = || -> BTreeMap<String, Rows> {
        others
            .iter()
            .map(|id| (id.clone(), rows_of(&world.cluster, schema, id)))
            .collect()
    };
    let folders_of_others = || -> Vec<Folder> {
        let mut names: Vec<_> = world.tenants().into_iter().map(|(_, name)| name).collect();
        names.retain(|name| *name != scene.name);
        names
            .iter()
            .map(|name| folder_state(&world.path("config").join(name)))
            .collect()
    };
    let before = rows_of_others();
    let folders = folders_of_others();
    let shared = |table: &&str| {
        world
            .cluster
            .psql(&format!("select t::text from {table} t order by 1"))
    };
    let shared_before: Vec<_> = schema.shared.iter().map(shared).collect();
    let writer = Writer::start(
        &world.cluster,
        &world.path("logs/writer.log"),
        Duration::from_millis(2),
        live_statement(schema, others.clone()),
    );
    scene.mistake();
    let (rows_spoilt, folder_spoilt) = (scene.rows(), scene.folder());
    assert!(!differences(&scene.rows_then, &rows_spoilt).is_empty());

    // A preview writes nothing.
    let arguments = [
        "tenant",
        "restore",
        &scene.name,
        "--workload",
        "erp",
        "--to",
        &scene.target,
        "--preview",
    ];
    world.dr(&arguments).ok().says(&[&scene.name]);
    assert!(
        differences(&rows_spoilt, &scene.rows()).is_empty(),
        "a preview changed rows"
    );
    assert_eq!(scene.folder(), folder_spoilt, "a preview changed files");

    let report = crate::harness::Json::parse(&scene.restore(None).ok().stdout);
    scene.assert_as_at_the_target("after the restore");
    assert_foreign_keys_hold(&world.cluster, "after the restore");

    world
        .dr(&[
            "tenant",
            "undo",
            &report.text("/id"),
            "--workload",
            "erp",
            "--yes",
        ])
        .ok();
    let found = differences(&rows_spoilt, &scene.rows());
    assert!(found.is_empty(), "after the undo: {found:#?}");
    assert_eq!(scene.folder(), folder_spoilt, "after the undo");
    assert_foreign_keys_hold(&world.cluster, "after the undo");

    scene.restore(None).ok();
    scene.assert_as_at_the_target("after the second restore");
    assert_foreign_keys_hold(&world.cluster, "after the second restore");

    let acknowledged = writer.stop();
    assert!(
        acknowledged.len() > 100,
        "only {} writes were acknowledged",
        acknowledged.len()
    );
    let expected = with_writes(&before, &acknowledged);
    for (tenant, found) in rows_of_others() {
        let wrong = differences(&expected[&tenant], &found);
        assert!(
            wrong.is_empty(),
            "tenant {tenant}, after {} writes: {wrong:#?}",
            acknowledged.len()
        );
    }
    assert_eq!(folders_of_others(), folders);
    assert_eq!(
        schema.shared.iter().map(shared).collect::<Vec<_>>(),
        shared_before
    );
}

#[test]
fn a_tenant_goes_back_to_its_moment_while_all_others_go_on_writing() {
    while_others_write("tenant", &ERP);
}

#[test]
fn a_tenant_of_a_quite_different_schema_goes_back_while_all_others_go_on_writing() {
    while_others_write("carrier", &CARRIER);
}

/// The checker must see a restore that is wrong: nothing about the others is taken for granted.
fn is_noticed(name: &'static str, schema: &'static Schema, fault: &str) {
    let scene = Scene::new(name, schema);
    let everyone = || -> Vec<Rows> {
        let tenants = scene.world.tenants();
        tenants
            .iter()
            .map(|(id, _)| rows_of(&scene.world.cluster, schema, id))
            .collect()
    };
    scene.mistake();
    // Someone else goes on working after the target, and is to stay as now.
    let neighbour = scene.world.tenants()[3].0.clone();
    let statement = live_statement(schema, vec![neighbour]);
    for number in 0..8 {
        scene.world.cluster.psql(&statement(number));
    }
    let mut expected = everyone();
    expected[2] = scene.rows_then.clone();
    let output = scene.restore(Some(fault));
    let wrong: Vec<String> = expected
        .iter()
        .zip(everyone())
        .flat_map(|(expected, found)| differences(expected, &found))
        .chain(foreign_key_violations(&scene.world.cluster))
        .collect();
    assert!(
        output.code != Some(0) || !wrong.is_empty(),
        "the planted bug `{fault}` went unnoticed: {output}"
    );
}

#[test]
fn a_dropped_tenant_condition_is_noticed() {
    is_noticed("fault-condition", &ERP, "drop-tenant-condition");
}

#[test]
fn a_skipped_hop_is_noticed() {
    is_noticed("fault-hop", &CARRIER, "skip-hop");
}

#[test]
fn a_target_late_by_one_commit_is_noticed() {
    is_noticed("fault-late", &ERP, "late-by-one-commit");
}

#[test]
fn a_tenants_rows_of_a_moment_are_files_that_can_be_loaded_elsewhere() {
    let scene = Scene::new("tenant-export", &ERP);
    scene.mistake();
    let world = &scene.world;
    let before = scene.rows();
    let folder = world.path("exported");
    let into = folder.display().to_string();
    let export = |extra: &[&str]| {
        world
            .program(&["tenant", "restore", &scene.name, "--to", &scene.target])
            .args(["--mode", "export"])
            .args(extra)
            .run()
    };
    assert_eq!(export(&[]).code, Some(2), "without a folder");
    // No consent is asked for: nothing is changed.
    export(&["--into", &into]).ok();
    assert!(differences(&before, &scene.rows()).is_empty());
    let again = export(&["--into", &into]);
    assert_eq!(again.code, Some(1), "{again}");
    again.says(&[&into, "there already"]);
    let left = fs::read_dir(world.path("")).unwrap().flatten();
    let half = left.filter(|e| e.file_name().to_string_lossy().contains("writing"));
    assert_eq!(half.count(), 0, "something half done is left");

    let manifest = Json::parse(&fs::read_to_string(folder.join("manifest.json")).unwrap());
    assert_eq!(manifest.text("/tenant/id"), scene.victim);
    for table in manifest.list("/tables") {
        let body = fs::read(folder.join(table.text("/file"))).unwrap();
        let digest: String = (Sha256::digest(&body).iter())
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(digest, table.text("/sha256"), "{}", table.text("/file"));
        assert_eq!(body.len() as u64, table.number("/bytes"));
    }

    // A part of it: of the tenant's rows, whatever the condition says.
    let part = world.path("part");
    let into = part.display().to_string();
    let chosen = [
        "--tables",
        "setting",
        "--where",
        "customer: customer_no = 2) or (customer_no = 3",
    ];
    let bad = ["--into", &into, "--where", "customer: colour = 'red'"];
    export(&bad).says(&["colour"]);
    assert!(!part.exists());
    export(&[&["--into", &into], chosen.as_slice()].concat()).ok();
    let manifest = Json::parse(&fs::read_to_string(part.join("manifest.json")).unwrap());
    assert_eq!(manifest.text("/filter/tables/0"), "setting");
    assert_eq!(manifest.text("/filter/conditions/0/0"), "customer");
    let tables = manifest.list("/tables");
    let rows = |name: &str| {
        let found = tables.iter().find(|table| table.text("/table") == name);
        found.map(|table| table.number("/rows"))
    };
    assert_eq!(tables.len(), 2);
    assert_eq!(rows("public.customer"), Some(2));
    let settings = scene.rows_then["public.setting"].len() as u64;
    assert_eq!(rows("public.setting"), Some(settings));

    // Into an empty database of the same shape.
    let copy = Cluster {
        database: "copy".to_owned(),
        ..world.cluster.clone()
    };
    world.cluster.psql("create database copy");
    copy.psql_file(&world.path("schema.sql"));
    copy.psql("truncate public.tenant cascade");
    copy.psql_program()
        .directory(&folder)
        .args(["-f", "load.sql"])
        .run()
        .ok();
    let loaded = rows_of(&copy, &ERP, &scene.victim);
    let found = differences(&scene.rows_then, &loaded);
    assert!(found.is_empty(), "{found:#?}");
    // And nobody else's.
    assert_eq!(copy.value("select count(*) from public.tenant"), "1");
    assert_foreign_keys_hold(&copy, "after loading");
}

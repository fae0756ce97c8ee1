//! Schemas that other people designed, from packages of Debian and npm (`scripts/public-schemas.sh`): one
//! tenant is wiped, goes back to a moment, and that is taken back. The tenancy is read from `docs/schemas`,
//! as it is shown there. Judged in plain SQL: every row of every table, written to files by COPY.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "how much was judged, and what was not, is the reader's to know"
)]

mod known;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use known::{Public, Whose};

use crate::harness::{Cluster, Json, Options, Schema, World, foreign_key_violations};

/// Rows of each tenant in each table that are tried for, before the target and after it.
const ROWS_THEN: u32 = 8;
const ROWS_NOW: u32 = 11;

/// The folder of a schema, if it was fetched. Under `make test-public-schemas` it has to be there.
fn fetched(name: &str) -> Option<PathBuf> {
    let asked = std::env::var_os("DR_PUBLIC_SCHEMAS").map(PathBuf::from);
    let root = asked
        .clone()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/public-schemas"));
    let folder = root.join(name);
    if folder.join("complete").exists() {
        return Some(folder);
    }
    assert!(
        asked.is_none(),
        "{} is not there: run scripts/public-schemas.sh",
        folder.display()
    );
    eprintln!("not tried: the schema of {name} was not fetched (make test-public-schemas does)");
    None
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The section `tenancy` as the documentation shows it, and the same with nothing declared of any table.
fn shown(name: &str) -> (String, String) {
    let text = document(&format!("schemas/{name}.yaml"));
    let from = text.find("tenancy:\n").unwrap();
    let all = &text[from..];
    let bare = all.split("  tables:\n").next().unwrap();
    (all.to_owned(), bare.to_owned())
}

fn below_a_workload(section: &str) -> String {
    section
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect()
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// One table of the catalogs.
struct Table {
    name: String,
    /// As SQL.
    quoted: String,
    columns: Vec<String>,
}

fn tables(cluster: &Cluster) -> Vec<Table> {
    let query = "select c.relname || '|' || format('%I.%I', n.nspname, c.relname) || '|' || \
          string_agg(a.attname, ',') \
        from pg_class c join pg_namespace n on n.oid = c.relnamespace \
          join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
        where c.relkind = 'r' and c.relpersistence <> 't' \
          and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') \
        group by n.nspname, c.relname order by c.relname";
    let rows = cluster.psql(query);
    rows.iter()
        .map(|row| {
            let fields: Vec<&str> = row.split('|').collect();
            Table {
                name: fields[0].to_owned(),
                quoted: fields[1].to_owned(),
                columns: fields[2].split(',').map(str::to_owned).collect(),
            }
        })
        .collect()
}

/// A public schema in a world, with tenants.
struct Scene {
    public: &'static Public,
    world: World,
    /// The section that `dr.yaml` has now.
    section: String,
}

impl Scene {
    fn new(public: &'static Public, sql: &Path) -> Self {
        let (_, bare) = shown(public.name);
        let section = below_a_workload(&bare);
        let schema = Schema {
            sql: "",
            tables: &[],
            tenancy: section.clone().leak(),
            tenants: "select '', '' where false",
            shared: &[],
            mistake: &[],
        };
        let world = World::new(&Options {
            wal_segment_megabytes: 16,
            ..Options::new(public.name, Box::leak(Box::new(schema)))
        });
        // The servers' user may not be able to enter the folder it was fetched into.
        let copy = world.path("sql");
        let done = Command::new("cp").arg("-r").args([sql, &copy]).status();
        assert!(done.unwrap().success(), "copying {}", sql.display());
        world.account.own(&copy);
        let scene = Self {
            public,
            world,
            section,
        };
        scene.load(&copy.join("load.sql"));
        scene
    }

    fn load(&self, load: &Path) {
        let cluster = &self.world.cluster;
        let into = |database: &str| {
            let into = Cluster {
                database: database.to_owned(),
                ..cluster.clone()
            };
            let program = into.psql_program();
            program.args(["-f".as_ref(), load.as_os_str()]).run().ok();
        };
        if !self.public.is_apart() {
            into(&cluster.database);
            for tenant in self.public.tenants {
                cluster.psql(&replaced(self.public.make, tenant));
            }
            return;
        }
        cluster.psql("create database empty_books");
        into("empty_books");
        for (id, _) in self.public.tenants {
            cluster.psql(&format!("create database {id} template empty_books"));
        }
        cluster.psql("drop database empty_books");
    }

    /// Databases, each with the tenants that have rows in it.
    fn databases(&self) -> Vec<(Cluster, Vec<(&'static str, &'static str)>)> {
        let cluster = &self.world.cluster;
        if !self.public.is_apart() {
            return vec![(cluster.clone(), self.public.tenants.to_vec())];
        }
        let own = |tenant: (&'static str, &'static str)| {
            let cluster = Cluster {
                database: tenant.0.to_owned(),
                ..cluster.clone()
            };
            (cluster, vec![tenant])
        };
        self.public.tenants.into_iter().map(own).collect()
    }

    /// Writes another section `tenancy`.
    fn declare(&mut self, section: &str) {
        let section = below_a_workload(section);
        self.world.edit_configuration(&self.section, &section);
        self.section = section;
    }

    /// Whose rows a table holds, as a row of the generator's table; `None` for the other kind of tables.
    fn row_of_whose(&self, table: &Table, tenant: Option<(&str, &str)>) -> Option<String> {
        let whose = self.public.whose(&table.name);
        let (column, value) = match (whose, tenant) {
            (Whose::Everyones, Some(_)) => return None,
            (Whose::Everyones, None) | (Whose::All | Whose::Rows(_), Some(_)) => (None, None),
            (_, None) => return None,
            (Whose::Column(column, value), Some(tenant)) => {
                (Some(column), Some(replaced(value, tenant)))
            }
            (Whose::Reached(column, values), Some(tenant)) => {
                let values = replaced(values, tenant);
                let one = format!("({values} order by random() limit 1)");
                (Some(column), Some(one))
            }
        };
        if let Some(column) = column {
            assert!(
                table.columns.iter().any(|name| name == column),
                "it is not written down whose the rows of {} are",
                table.name
            );
        }
        let condition = tenant.map_or_else(|| "true".to_owned(), |tenant| condition(whose, tenant));
        let text = |value: Option<&str>| value.map_or_else(|| "null".to_owned(), literal);
        Some(format!(
            "({}, {}, {}, {}, {})",
            literal(&table.quoted),
            text(column),
            text(value.as_deref()),
            literal(&condition),
            self.public.registry.contains(&table.name.as_str())
        ))
    }

    /// Calls the generator's functions for tenants, and for nobody in particular.
    fn generate(&self, numbers: u32, tenants: &str, nobodys: &str, victim: Option<&str>) {
        for (cluster, those) in self.databases() {
            let tables = tables(&cluster);
            let mut script = include_str!("generate.sql").to_owned();
            script.push_str(&format!("alter sequence numbers restart with {numbers};\n"));
            let everybody = those.into_iter().map(Some).chain([None]);
            for tenant in everybody {
                let rows = tables.iter().filter_map(|t| self.row_of_whose(t, tenant));
                let rows: Vec<String> = rows.collect();
                if rows.is_empty() {
                    continue;
                }
                let rows = rows.join(",\n  ");
                script.push_str(&format!(
                    "truncate whose;\ninsert into whose values\n  {rows};\n"
                ));
                script.push_str(if tenant.is_some() { tenants } else { nobodys });
                if tenant.is_some_and(|(id, _)| Some(id) == victim) {
                    script.push_str("select pg_temp.wipe();\n");
                }
            }
            let path = self.world.path("generate.sql");
            fs::write(&path, script).unwrap();
            let program = cluster.psql_program();
            program.args(["-f".as_ref(), path.as_os_str()]).run().ok();
        }
    }

    /// Every row of every table, in files: of the victim and of all others.
    fn state(&self, name: &str, victim: (&str, &str)) -> State {
        let folder = self.world.path(name);
        fs::create_dir(&folder).unwrap();
        self.world.account.own(&folder);
        let mut state = State::default();
        for (cluster, those) in self.databases() {
            let mut script = String::new();
            for table in tables(&cluster) {
                let condition = match self.public.whose(&table.name) {
                    Whose::All => those.contains(&victim).to_string(),
                    whose => condition(whose, victim),
                };
                for (is_own, word) in [(true, "is true"), (false, "is not true")] {
                    let key = format!("{}.{}", cluster.database, table.name);
                    let file = folder.join(format!("{key}.{is_own}"));
                    script.push_str(&format!(
                        "\\copy (select t.* from only {} t where ({condition}) {word} order by t::text collate \"C\") to '{}'\n",
                        table.quoted,
                        file.display()
                    ));
                    let kind = if is_own {
                        &mut state.own
                    } else {
                        &mut state.others
                    };
                    kind.insert(key, file);
                }
            }
            let path = self.world.path("state.sql");
            fs::write(&path, script).unwrap();
            let program = cluster.psql_program();
            program.args(["-f".as_ref(), path.as_os_str()]).run().ok();
        }
        state
    }
}

/// Files of COPY text, by database and table.
#[derive(Default)]
struct State {
    own: BTreeMap<String, PathBuf>,
    others: BTreeMap<String, PathBuf>,
}

fn lines(files: &BTreeMap<String, PathBuf>, table: &str) -> Vec<String> {
    let text = fs::read_to_string(&files[table]).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// What differs, in words; at most one row of each table.
fn differences(
    expected: &BTreeMap<String, PathBuf>,
    found: &BTreeMap<String, PathBuf>,
) -> Vec<String> {
    let mut all = Vec::new();
    for table in expected.keys() {
        let (expected, found) = (lines(expected, table), lines(found, table));
        if expected != found {
            let lost = expected.iter().find(|row| !found.contains(row));
            let new = found.iter().find(|row| !expected.contains(row));
            all.push(format!(
                "{table}: {} rows, {} expected; missing {lost:?}, too many {new:?}",
                found.len(),
                expected.len()
            ));
        }
    }
    all
}

/// Which rows `t` are a tenant's.
fn condition(whose: Whose, tenant: (&str, &str)) -> String {
    match whose {
        Whose::Everyones => "false".to_owned(),
        Whose::All => "true".to_owned(),
        Whose::Rows(condition) => replaced(condition, tenant),
        Whose::Column(column, value) => format!("t.{column} = {}", replaced(value, tenant)),
        Whose::Reached(column, values) => {
            format!("t.{column} in ({})", replaced(values, tenant))
        }
    }
}

fn replaced(text: &str, (id, second): (&str, &str)) -> String {
    text.replace("$T", &literal(id))
        .replace("$N", &literal(second))
}

/// Rows in all tables, and how many tables have some.
fn size(files: &BTreeMap<String, PathBuf>) -> (usize, usize) {
    let counts = files.keys().map(|table| lines(files, table).len());
    let counts: Vec<usize> = counts.collect();
    (
        counts.iter().sum(),
        counts.iter().filter(|rows| **rows > 0).count(),
    )
}

/// The map as it is found, against the line of the document; then as the document declares it.
fn is_mapped(scene: &mut Scene) {
    let public = scene.public;
    let mut map = vec!["tenant", "map", "erp"];
    if public.is_apart() {
        map.extend(["--tenant", public.tenants[0].0]);
    }
    let found = scene.world.program(&map).args(["--json"]).run();
    let found = Json::parse(&found.stdout).list("/tables");
    let known = (found.iter())
        .filter(|table| table.text("/class") != "unclassified")
        .count();
    let keys = scene.databases()[0]
        .0
        .value("select count(*) from pg_constraint where contype = 'f' and conparentid = 0");
    let (all, bare) = shown(public.name);
    let declared = all
        .lines()
        .filter(|line| line.starts_with("    public."))
        .count();
    let line = format!(
        "| {} | {keys} | {known} | {declared} | [{name}](schemas/{name}.yaml) |",
        found.len(),
        name = public.name
    );
    assert!(
        document("PUBLIC-SCHEMAS.md").contains(&line),
        "docs/PUBLIC-SCHEMAS.md does not say `{line}`"
    );

    scene.declare(&all);
    scene.world.dr(&map).ok();
    scene.world.program(&map).args(["--rows"]).run().ok();
    if declared == 0 {
        scene.world.program(&map).args(["--check"]).run().ok();
        return;
    }
    // The whole map, as it is printed for this: then a new table is noticed.
    let whole = scene.world.program(&map).args(["--yaml"]).run().ok().stdout;
    let whole = whole.split_once("tenancy:\n").unwrap().1;
    scene.declare(&format!("{bare}{whole}"));
    scene.world.program(&map).args(["--check"]).run().ok();
    let cluster = &scene.world.cluster;
    cluster.psql("create table since_then (n int)");
    let check = scene.world.program(&map).args(["--check"]).run();
    assert_eq!(check.code, Some(1), "{check}");
    check.says(&["since_then"]);
    cluster.psql("drop table since_then");
    scene.declare(&all);
}

fn goes_back(public: &'static Public) {
    let Some(sql) = fetched(public.name) else {
        return;
    };
    let mut scene = Scene::new(public, &sql);
    let fill = |rows| format!("select pg_temp.fill({rows});\n");
    scene.generate(1_000_000, &fill(ROWS_THEN), &fill(3), None);
    is_mapped(&mut scene);
    let world = &scene.world;
    world.dr(&["init"]).ok();
    world.archive("");
    world.dr(&["backup", "run", "erp"]).ok();

    // More of everything after the backup: the target is not the backup.
    let change = |rows| format!("select pg_temp.change(3);\n{}", fill(rows));
    scene.generate(2_000_000, &change(ROWS_THEN + 1), &change(4), None);
    let victim = public.tenants[2];
    let then = scene.state("then", victim);
    let target = world.cluster.moment();
    scene.generate(3_000_000, &change(ROWS_NOW), &change(5), Some(victim.0));
    let now = scene.state("now", victim);

    // What is judged is worth it: most tables are in use, nothing is left of the victim, others went on.
    let owned = (then.own.keys())
        .filter(|key| {
            !matches!(
                public.whose(key.split_once('.').unwrap().1),
                Whose::Everyones
            )
        })
        .filter(|key| !public.is_apart() || key.starts_with(victim.0))
        .count();
    let (rows, used) = size(&then.own);
    println!(
        "{}: {rows} rows of the tenant in {used} of {owned} tables, {} rows of others",
        public.name,
        size(&then.others).0
    );
    let empty: Vec<&String> = (then.own.keys())
        .filter(|table| lines(&then.own, table).is_empty())
        .collect();
    assert!(
        used * 10 >= owned * 7,
        "too many tables are empty: {empty:?}"
    );
    assert_eq!(size(&now.own), (0, 0), "something of the tenant is left");
    let changed = differences(&then.others, &now.others).len();
    assert!(
        changed * 2 > used,
        "only {changed} tables of others changed"
    );

    let id = format!("id:{}", victim.0);
    let restore = [
        "tenant",
        "restore",
        &id,
        "--workload",
        "erp",
        "--to",
        &target,
    ];
    let restore = world.program(&restore).args(["--yes", "--json"]);
    let report = Json::parse(&restore.run().ok().stdout);
    let after = scene.state("after", victim);
    let wrong = differences(&then.own, &after.own);
    assert_eq!(wrong, Vec::<String>::new(), "the tenant after the restore");
    let wrong = differences(&now.others, &after.others);
    assert_eq!(wrong, Vec::<String>::new(), "the others after the restore");
    if !public.is_apart() && scene.has_foreign_keys() {
        assert_eq!(foreign_key_violations(&world.cluster), Vec::<String>::new());
    }

    let undo = [
        "tenant",
        "undo",
        &report.text("/id"),
        "--workload",
        "erp",
        "--yes",
    ];
    world.dr(&undo).ok();
    let undone = scene.state("undone", victim);
    assert_eq!(
        size(&undone.own),
        (0, 0),
        "something is left after the undo"
    );
    let wrong = differences(&now.others, &undone.others);
    assert_eq!(wrong, Vec::<String>::new(), "the others after the undo");
}

impl Scene {
    fn has_foreign_keys(&self) -> bool {
        let query = "select exists (select from pg_constraint where contype = 'f')";
        self.world.cluster.value(query) == "t"
    }
}

#[test]
fn a_sip_domain_of_kamailio_goes_back_without_a_single_foreign_key() {
    goes_back(&known::KAMAILIO);
}

#[test]
fn a_mail_domain_of_vmm_goes_back() {
    goes_back(&known::VMM);
}

#[test]
fn a_tenant_of_logto_goes_back() {
    goes_back(&known::LOGTO);
}

#[test]
fn an_environment_of_icinga_db_goes_back() {
    goes_back(&known::ICINGADB);
}

#[test]
fn a_company_of_ledgersmb_goes_back_in_its_own_database() {
    goes_back(&known::LEDGERSMB);
}

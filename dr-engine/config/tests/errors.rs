//! What a wrong file says: what is wrong, at which line and column, and what to try.
//!
//! Each case is a valid file with one mistake put into it, so that the mistake is all there is to find.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use dr_config::{
    Config, ConfigError, DirectBy, DrillFile, HeaderSource, ProbeFile, RunbookFile, SecretSource,
    TenantHook, TenantTable, Tier, ViaBy,
};

/// A folder with one valid file of each kind; removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("dr-config-errors-{}-{number}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        for sub in ["tiers", "drills/probes", "runbooks"] {
            fs::create_dir_all(folder.path(sub)).unwrap();
        }
        for (name, text) in FILES {
            fs::write(folder.path(name), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Puts one mistake into one file; `from` must be there.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from:?}");
        fs::write(self.path(name), text.replacen(from, to, 1)).unwrap();
    }

    /// Loads a file as what it is, and the engine file with all its tiers.
    fn load(&self, name: &str) -> Result<(), ConfigError> {
        let path = self.path(name);
        match name.split('/').next().unwrap() {
            "dr.yaml" => Config::load(&path).map(drop),
            "tiers" => Tier::load(&path).map(drop),
            "runbooks" => RunbookFile::load(&path).map(drop),
            _ if name.starts_with("drills/probes/") => ProbeFile::load(&path).map(drop),
            _ => DrillFile::load(&path).map(drop),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

const ENGINE: &str = r#"# The word url: and the word rto: in a comment are not keys.
repositories:
  main: { path: repository, key: { file: repository.key } }
catalog: sqlite:catalog.db
tiers: tiers
workloads:
  config: { tier: gold, repositories: [main], files: { path: /srv/erp/config } }
  orders:
    tier: gold
    repositories: [main]
    nats: { url: "nats://127.0.0.1:4222", streams: [ORDERS] }
  erp:
    tier: gold
    repositories: [main]
    postgres:
      url: "postgres://erp@127.0.0.1:5432/erp"
      data_directory: /var/lib/postgresql/15/main
    tenancy:
      model: pooled
      column: [tenant_id, TenantId]
      tenants: "select tenant_id::text as id, code as name from tenant"
      shared_ids: ["0"]
      tables:
        public.audit: { direct: company }
        public.order_line: { via: order_id }
        public.country: shared
        public.queue: ignored
        public.ledger: { direct: { column: company_code, id: code } }
        public.entry: { via: { code: public.ledger.company_code, no: public.ledger.no } }
        public.comment: { polymorphic: { type: about, id: about_id, to: { order: public.sales_order.order_id } } }
"#;

const TIER: &str = r#"# rto: and rpo: are the promise
tier: gold
rto: 15m
rpo: 30s
backup: { cron: "0 0 3 * * *", timezone: America/Chicago }
retention:
  daily: 14
  min_redundancy: 2
verify: { cron: "0 0 4 * * *", timezone: Europe/Berlin, restore: true }
drill: { script: primary-loss, cron: "0 0 6 1 * *" }
compression: 3
"#;

const RUNBOOK: &str = r#"runbook: rebuild
symptom: the primary is gone
steps:
  - restore: { workload: erp, into: "{{ data_directory }}", as_primary: true, timeout: 10m }
  - start: { workload: erp }
  - verify_sql:
      workload: erp
      sql: "select count(*) from tenant"
      at_least: 1
"#;

const DRILL: &str = r#"drill: loss
environment: { sandbox: { workload: erp, from: latest } }
objective: { tier: gold }
probe: { file: probes/orders.yaml, before: 20s, after: 10s }
fault:
  kill_primary: { signal: KILL, remove_data_directory: true }
detect: { by: probe, after_failures: 3 }
runbook: ../runbooks/rebuild.yaml
"#;

const PROBE: &str = r#"probe: orders
workload: erp
every: 200ms
timeout: 2s
tenants: "select tenant_id from tenant"
write: "insert into sales_order (tenant_id, order_no) values ($1, $2)"
read: "select 1 from sales_order where tenant_id = $1 and order_no = $2"
"#;

const FILES: [(&str, &str); 5] = [
    ("dr.yaml", ENGINE),
    ("tiers/gold.yaml", TIER),
    ("runbooks/rebuild.yaml", RUNBOOK),
    ("drills/loss.yaml", DRILL),
    ("drills/probes/orders.yaml", PROBE),
];

/// Two lines for each mistake: the file, and what in it is replaced by what; then what is said: where (empty
/// for the whole file), words of the message, words of the hint. `\n` is a new line.
fn check(cases: &str) {
    let lines: Vec<&str> = cases
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let mut wrong = Vec::new();
    for case in lines.chunks(2) {
        let [name, from, to] = columns(case[0]);
        let [place, message, hint] = columns(case[1]);
        let folder = Folder::new();
        folder.edit(&name, &from, &to);
        let Err(error) = folder.load(&name) else {
            wrong.push(format!("{}: accepted", case[0].trim()));
            continue;
        };
        let said = error.to_string();
        let place = if place.is_empty() {
            place
        } else {
            format!(":{place}")
        };
        let there = format!("{}{place}: ", folder.path(&name).display());
        let hinted = error.hint().unwrap_or_default();
        if !said.starts_with(&there) || !said.contains(&message) || !hinted.contains(&hint) {
            wrong.push(format!("{}:\n  {said} | {hinted}", case.join("\n").trim()));
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
}

fn columns(line: &str) -> [String; 3] {
    // Blanks count inside a column; one on each side of the bar does not.
    let line = line.trim_start();
    let parts: Vec<String> = format!("{line} ")
        .split('|')
        .map(|part| part.strip_prefix(' ').unwrap_or(part))
        .map(|part| part.strip_suffix(' ').unwrap_or(part).replace("\\n", "\n"))
        .collect();
    parts.try_into().unwrap()
}

#[test]
fn the_files_are_right_before_a_mistake_is_put_in() {
    let folder = Folder::new();
    for (name, _) in FILES {
        folder.load(name).unwrap();
    }
}

#[test]
fn an_unknown_key_is_an_error_with_the_nearest_known_one() {
    check(
        r#"
        dr.yaml | data_directory: | data_directry:
            17:7 | unknown key `data_directry` | `data_directory`
        dr.yaml | catalog: | catalogue:
            4:1 | unknown key `catalogue` | `catalog`
        dr.yaml | file: repository.key | fiel: repository.key
            3:36 | unknown key `fiel` | `file`
        dr.yaml | column: | colum:
            20:7 | unknown key `colum` | `column`
        tiers/gold.yaml | retention: | retentoin:
            6:1 | unknown key `retentoin` | `retention`
        tiers/gold.yaml | timezone: America | timezon: America
            5:32 | unknown key `timezon` | `timezone`
        runbooks/rebuild.yaml | into: | inot:
            4:31 | unknown key `inot` | `into`
        runbooks/rebuild.yaml | at_least: | atleast:
            9:7 | unknown key `atleast` | `at_least`
        runbooks/rebuild.yaml | - start: | - strat:
            5:5 | unknown word `strat` | `start`
        drills/loss.yaml | signal: | signl:
            6:19 | unknown key `signl` | `signal`
        drills/loss.yaml | remove_data_directory: | remove_datadir:
            6:33 | unknown key `remove_datadir` | `remove_data_directory`
        drills/loss.yaml | kill_primary: | kill_primry:
            6:3 | unknown word `kill_primry` | `kill_primary`
        drills/loss.yaml | kill_primary: { signal: KILL, remove_data_directory: true } | delete_stream: { strem: ORDERS }
            6:20 | unknown key `strem` | `stream`
        drills/loss.yaml | from: latest | form: latest
            2:42 | unknown key `form` | `from`
        drills/loss.yaml | after_failures: | after_failure:
            7:22 | unknown key `after_failure` | `after_failures`
        drills/probes/orders.yaml | timeout: | time_out:
            4:1 | unknown key `time_out` | `timeout`
        "#,
    );
}

#[test]
fn a_key_twice_and_a_wrong_type_are_errors() {
    check(
        r#"
        dr.yaml | tiers: tiers | catalog: sqlite:other.db\ntiers: tiers
            5:1 | key `catalog` twice | keep one
        dr.yaml |   orders:\n |   config:\n
            8:3 | key `config` twice | keep one
        tiers/gold.yaml | rpo: 30s | rpo: 30s\nrpo: 15s
            5:1 | key `rpo` twice | keep one
        dr.yaml | streams: [ORDERS] | streams: ORDERS
            11:52 | sequence |
        tiers/gold.yaml | daily: 14 | daily: many
            7:10 | expected a whole number |
        tiers/gold.yaml | daily: 14 | daily: -1
            7:10 | expected a whole number |
        tiers/gold.yaml | rto: 15m | rto: soon
            3:6 | soon |
        tiers/gold.yaml | rto: 15m | rto: 15
            3:6 | 15 |
        tiers/gold.yaml | restore: true | restore: maybe
            9:66 | expected true or false |
        drills/loss.yaml | after_failures: 3 | after_failures: three
            7:38 | expected a whole number |
        dr.yaml |   erp:\n |   "e rp":\n
            12:3 | e rp |
        "#,
    );
}

#[test]
fn a_missing_key_is_named() {
    check(
        r#"
        dr.yaml | catalog: sqlite:catalog.db\n |
            5:1 | missing key `catalog` | beside
        tiers/gold.yaml | rpo: 30s\n |
            10:1 | missing key `rpo` |
        drills/loss.yaml | signal: KILL,  |
            6:19 | missing key `signal` |
        runbooks/rebuild.yaml | symptom: the primary is gone\n |
            2:1 | missing key `symptom` |
        "#,
    );
}

#[test]
fn what_a_workload_names_must_be_there() {
    check(
        r#"
        dr.yaml | erp:\n    tier: gold | erp:\n    tier: glod
            13:11 | workload `erp` names tier `glod`, which does not exist | did you mean `gold`?
        dr.yaml |     repositories: [main]\n    postgres |     repositories: [mian]\n    postgres
            14:20 | workload `erp` names repository `mian`, which does not exist | did you mean `main`?
        dr.yaml |     repositories: [main]\n    postgres |     repositories: []\n    postgres
            14:5 | workload `erp` names no repository | copies of it
        dr.yaml |     repositories: [main]\n    postgres |     repositories: [main, main]\n    postgres
            14:20 | workload `erp` names repository `main` twice | another place
        dr.yaml |     tenancy:\n |     files: { path: /srv }\n    tenancy:\n
            12:3 | exactly one of `postgres`, `nats` and `files` | two workloads
        dr.yaml |     nats: { url: "nats://127.0.0.1:4222", streams: [ORDERS] }\n |
            8:3 | workload `orders` needs exactly one |
        dr.yaml | streams: [ORDERS] | streams: []
            11:43 | workload `orders` names no stream | streams: [NAME]
        dr.yaml | path: repository,  | path: repository, s3: { bucket: b, region: r },
            3:3 | exactly one of `path` and `s3` |
        dr.yaml | file: repository.key | file: repository.key, env: KEY
            3:29 | the key of repository `main` names several sources | exactly one of `file`
        dr.yaml | key: { file: repository.key } | key: {}
            3:29 | the key of repository `main` names no source | exactly one of `file`
        dr.yaml | file: repository.key | passphrase: secret
            3:36 | unknown key `passphrase` |
        dr.yaml | file: repository.key | passphrase_file: p, age_identity: i
            3:29 | the key of repository `main` names several sources | exactly one of `file`
        dr.yaml | file: repository.key | command: { wrap: [], unwrap: [kms] }
            3:29 | the key of repository `main` has a `command` without a program | unwrap
        dr.yaml | file: repository.key | command: { wrap: [kms] }
            3:47 | missing key `unwrap` |
        dr.yaml | sqlite:catalog.db | mysql:catalog
            4:1 | `mysql:catalog` is no catalog | sqlite:PATH
        dr.yaml | tiers: tiers | tiers: tires
            5:1 | cannot read the folder of tiers |
        "#,
    );
}

#[test]
fn a_bucket_is_used_as_its_store_can_be() {
    check(
        r#"
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, path_stile: true },
            3:39 | unknown key `path_stile` | `path_style`
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, path_style: perhaps },
            3:51 | expected true or false |
        dr.yaml | path: repository,  | s3: { bucket: b/erp, region: r },
            3:17 | `b/erp` is no bucket | `prefix`
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, endpoint: store.example },
            3:39 | the endpoint is no URL | https://HOST
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, bandwidth: { write: 20MB } },
            3:59 | `20MB` is not a rate: write a whole number above 0 and KiB/s, MiB/s or GiB/s |
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, bandwidth: { writes: 20MiB/s } },
            3:52 | unknown key `writes` | `write`
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, storage_class: cheap },
            3:39 | `cheap` is no storage class | STANDARD_IA
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, storage_class: DEEP_ARCHIVE },
            3:39 | objects in DEEP_ARCHIVE cannot be read at once | GLACIER_IR
        dr.yaml | path: repository,  | s3: { bucket: b, region: r, object_lock: firm },
            3:52 | unknown word `firm` | governance
        tiers/gold.yaml | compression: 3 | storage_class: cheap
            11:1 | `cheap` is no storage class | STANDARD_IA
        tiers/gold.yaml | compression: 3 | storage_class: GLACIER
            11:1 | objects in GLACIER cannot be read at once | GLACIER_IR
        dr.yaml | repository.key } | repository.key }, retrieval: 15m
            7:13 | promises an RTO of 15m, and repository `main` of workload `config` takes 15m before | sooner
        dr.yaml | repository.key } | repository.key }, retrieval: soon
            3:71 | `soon` is not a duration |
        "#,
    );
    let folder = Folder::new();
    folder.edit(
        "tiers/gold.yaml",
        "compression: 3",
        "storage_class: STANDARD_IA",
    );
    let error = folder.load("dr.yaml").unwrap_err().to_string();
    assert!(
        error.contains("first repository of workload `config` is no bucket"),
        "{error}"
    );
    folder.edit(
        "dr.yaml",
        "repository.key }",
        "repository.key }, retrieval: 14m",
    );
    let all = "s3: { bucket: b, region: r, path_style: false, bandwidth: { write: 20MiB/s, read: 1GiB/s }, \
               storage_class: STANDARD_IA, object_lock: compliance },";
    folder.edit("dr.yaml", "path: repository,", all);
    folder.load("dr.yaml").unwrap();
}

#[test]
fn a_password_does_not_stand_in_a_file() {
    check(
        r#"
        dr.yaml | postgres://erp@ | postgres://erp:s3cret@
            16:7 | the URL of workload `erp` holds a password | password_file
        dr.yaml | 5432/erp" | 5432/erp?password=s3cret"
            16:7 | holds a password | password_env
        dr.yaml | nats:// | nats://dr:s3cret@
            11:13 | the URL of workload `orders` holds a password |
        "#,
    );
    let folder = Folder::new();
    folder.edit("dr.yaml", "postgres://erp@", "postgres://erp:s3cret@");
    let error = folder.load("dr.yaml").unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("s3cret"),
        "{error:?}"
    );
}

#[test]
fn a_schedule_that_never_could_run_is_refused() {
    check(
        r#"
        tiers/gold.yaml | 0 0 3 * * * | 0 99 3 * * *
            5:18 | `0 99 3 * * *` is no schedule | second minute hour
        tiers/gold.yaml | 0 0 4 * * * | nightly
            9:18 | `nightly` is no schedule | 0 30 3 * * *
        tiers/gold.yaml | 0 0 6 1 * * | 0 0 6 32 * *
            10:39 | `0 0 6 32 * *` is no schedule |
        tiers/gold.yaml | America/Chicago | America/Chicgo
            5:42 | `America/Chicgo` is no time zone | did you mean `America/Chicago`?
        tiers/gold.yaml | Europe/Berlin | Europe/Berln
            9:42 | `Europe/Berln` is no time zone | did you mean `Europe/Berlin`?
        "#,
    );
}

#[test]
fn a_tier_promises_something_and_is_named_like_its_file() {
    check(
        r#"
        tiers/gold.yaml | rto: 15m | rto: 0s
            3:1 | `rto` is zero | 15m
        tiers/gold.yaml | rpo: 30s | rpo: 0ms
            4:1 | `rpo` is zero | 30s
        tiers/gold.yaml | tier: gold | tier: silver
            2:1 | tier `silver` stands in a file of another name | silver.yaml
        tiers/gold.yaml | compression: 3 | compression: 20
            11:1 | compression 20 is out of range | 19
        tiers/gold.yaml | min_redundancy: 2 | min_redundancy: 0
            8:3 | min_redundancy is 0 | 1 or more
        "#,
    );
}

#[test]
fn an_exercise_that_could_not_be_held_is_refused() {
    check(
        r#"
        drills/loss.yaml | signal: KILL | signal: TERM
            6:19 | a primary is not killed by `TERM` | KILL or QUIT
        drills/loss.yaml | by: probe | by: luck
            7:11 | cannot be detected by `luck` | probe
        drills/loss.yaml | after_failures: 3 | after_failures: 0
            7:22 | would precede the fault | 1 or more
        drills/loss.yaml | orders.yaml | order.yaml
            4:10 | the drill's probe | relative to the drill's file
        drills/loss.yaml | rebuild.yaml | rebuilt.yaml
            8:1 | the drill's runbook | relative to the drill's file
        drills/probes/orders.yaml | every: 200ms | every: 0s
            3:1 | `every` is zero | 200ms
        drills/probes/orders.yaml | timeout: 2s | timeout: 0s
            4:1 | `timeout` is zero |
        drills/probes/orders.yaml | timeout: 2s | timeout: 2s\nstream: ORDERS
             | a database (`tenants`, `write`, `read`) or a queue | none of the other
        runbooks/rebuild.yaml |       at_least: 1\n |
            6:5 | compares with nothing | at_least or equals
        "#,
    );
    let folder = Folder::new();
    fs::write(
        folder.path("runbooks/rebuild.yaml"),
        "runbook: rebuild\nsymptom: none\nsteps: []\n",
    )
    .unwrap();
    let said = folder
        .load("runbooks/rebuild.yaml")
        .unwrap_err()
        .to_string();
    assert!(
        said.ends_with("rebuild.yaml:3:1: the runbook has no steps"),
        "{said}"
    );
}

#[test]
fn a_tables_class_is_written_in_words() {
    let folder = Folder::new();
    let config = Config::load(&folder.path("dr.yaml")).unwrap();
    let tenancy = config
        .workload("erp")
        .unwrap()
        .config
        .tenancy
        .clone()
        .unwrap();
    let class = |table: &str| tenancy.tables.get(table).cloned();
    assert_eq!(
        class("public.audit"),
        Some(TenantTable::Direct("company".into()))
    );
    assert_eq!(
        class("public.order_line"),
        Some(TenantTable::Via("order_id".into()))
    );
    assert_eq!(class("public.country"), Some(TenantTable::Shared));
    assert_eq!(class("public.queue"), Some(TenantTable::Ignored));
    let Some(TenantTable::Direct(DirectBy::OtherId(other))) = class("public.ledger") else {
        panic!("{:?}", class("public.ledger"))
    };
    assert_eq!(
        (other.column.as_str(), other.id.as_str()),
        ("company_code", "code")
    );
    let Some(TenantTable::Via(ViaBy::Columns(columns))) = class("public.entry") else {
        panic!("{:?}", class("public.entry"))
    };
    assert_eq!(columns["no"], "public.ledger.no");
    let Some(TenantTable::Polymorphic(by)) = class("public.comment") else {
        panic!("{:?}", class("public.comment"))
    };
    assert_eq!((by.kind.as_str(), by.id.as_str()), ("about", "about_id"));
    assert_eq!(by.to["order"], "public.sales_order.order_id");
    assert_eq!(tenancy.column.0, ["tenant_id", "TenantId"]);
    assert_eq!(tenancy.shared_ids, ["0"]);
    check(
        r#"
        dr.yaml | country: shared | country: sharde
            26:25 | unknown word `sharde` | `shared`
        dr.yaml | { direct: company } | { dirct: company }
            24:25 | unknown word `dirct` | `direct`
        dr.yaml | { direct: { column: company_code, id: code } } | { direct: { colum: company_code, id: code } }
            28:36 | unknown key `colum` | `column`
        dr.yaml | { via: order_id } | { via: [order_id] }
            25:9 | expected a map |
        dr.yaml | { via: order_id } | { via: order_id, direct: company }
            25:45 |  |
        "#,
    );
}

#[test]
fn what_the_command_line_names_is_looked_up_with_a_suggestion() {
    let folder = Folder::new();
    let config = Config::load(&folder.path("dr.yaml")).unwrap();
    let error = config.workload("order").unwrap_err();
    assert!(
        error.to_string().starts_with("no workload `order` in "),
        "{error}"
    );
    assert_eq!(error.hint(), Some("did you mean `orders`?"));
    let error = config.workload("warehouse-management").unwrap_err();
    assert_eq!(error.hint(), Some("known are config, erp, orders"));
    let error = Config::load(&folder.path("absent.yaml")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
}

#[test]
fn everything_that_ships_loads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = Folder::new();
    let mut engine = ENGINE.to_owned();
    engine = engine.replace(
        "tiers: tiers",
        &format!("tiers: {}", root.join("tier-configs").display()),
    );
    fs::write(folder.path("dr.yaml"), engine).unwrap();
    folder.load("dr.yaml").unwrap();
    let load = |sub: &str, load: &dyn Fn(&Path) -> Result<String, ConfigError>| {
        let mut count = 0;
        for entry in fs::read_dir(root.join(sub)).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let name = load(&path).unwrap();
                assert_eq!(path.file_stem().unwrap().to_str(), Some(name.as_str()));
                count += 1;
            }
        }
        assert!(count > 0, "{sub} holds nothing");
    };
    let tier = |path: &Path| Tier::load(path).map(|tier| tier.tier.to_string());
    load("tier-configs", &tier);
    load("drills/tiers", &tier);
    load("drills", &|path| {
        DrillFile::load(path).map(|drill| drill.drill)
    });
    load("drills/probes", &|path| {
        ProbeFile::load(path).map(|probe| probe.probe)
    });
    load("runbooks", &|path| {
        RunbookFile::load(path).map(|runbook| runbook.runbook)
    });
}

#[test]
fn the_drill_in_the_readme_loads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = fs::read_to_string(root.join("drills/README.md")).unwrap();
    let example = readme
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let folder = Folder::new();
    let runbook = "runbooks/restore-tenant.yaml";
    fs::copy(root.join(runbook), folder.path(runbook)).unwrap();
    fs::write(folder.path("drills/example.yaml"), example).unwrap();
    folder.load("drills/example.yaml").unwrap();
}

#[test]
fn a_hook_can_be_a_request_whose_secrets_are_elsewhere() {
    let folder = Folder::new();
    let hooks = r#"shared_ids: ["0"]
      hooks:
        before: [ { sql: "select 1" } ]
        changed:
          - http:
              url: https://search.example/rows
              method: PUT
              headers: { Authorization: { env: SEARCH_TOKEN }, X-Key: { file: keys/search }, X-Kind: tenant }
              timeout: 30s
"#;
    folder.edit("dr.yaml", "shared_ids: [\"0\"]\n", hooks);
    let config = Config::load(&folder.path("dr.yaml")).unwrap();
    let workload = config.workload("erp").unwrap();
    let tenancy = workload.config.tenancy.as_ref().unwrap();
    let [TenantHook::Http(http)] = tenancy.hooks.changed.as_slice() else {
        panic!("{:?}", tenancy.hooks)
    };
    assert_eq!(
        (http.method(), http.timeout.unwrap().0.as_secs()),
        ("PUT", 30)
    );
    let secret = |source| Some(HeaderSource::Secret(source));
    let header = |name: &str| http.headers.get(name).cloned();
    let token = SecretSource::Env("SEARCH_TOKEN".to_owned());
    assert_eq!(header("Authorization"), secret(token));
    let key = SecretSource::File(folder.path("keys/search"));
    assert_eq!(header("X-Key"), secret(key));
    let plain = HeaderSource::Plain("tenant".to_owned());
    assert_eq!(header("X-Kind"), Some(plain));
    // As it is kept with every backup, and read again.
    let written = dr_config::to_yaml(http).unwrap();
    assert!(written.contains("env: SEARCH_TOKEN"), "{written}");
    check(
        r#"
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "ftp://x" } } ] }\n
            23:27 | the `url` of a hook is no address for HTTP (workload `erp`) | https://HOST
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "https://me:secret@x/" } } ] }\n
            23:27 | holds a name or a password | Authorization
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "http://x", method: GET } } ] }\n
            23:27 | cannot send `GET` | POST
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "http://x", timeout: 0s } } ] }\n
            23:27 | is zero | 30s
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "http://x", headers: { "a b": c } } } ] }\n
            23:27 | `a b` is no name of a header |
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "http://x", headers: { Host: c } } } ] }\n
            23:27 | `Host` is not to be chosen |
        dr.yaml | ["0"]\n | ["0"]\n      hooks: { after: [ { http: { url: "http://x", headers: { Key: { evn: c } } } } ] }\n
            23:70 | unknown word `evn` | `env`
        "#,
    );
}

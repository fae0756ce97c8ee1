//! Bad input and broken surroundings: each gets a clear answer that names the thing and a way out, the
//! exit code that is promised, and nothing is changed. One table; one world for all.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::{
    Cluster, ERP, Options, Output, Program, Rows, World, differences, folder_state,
    postgres_program, rows_of, wait_until,
};

/// Exit code, and words that must be in what it says.
struct Expected(i32, Vec<String>);

fn expected(code: i32, words: &[&str]) -> Expected {
    Expected(code, words.iter().map(|word| (*word).to_owned()).collect())
}

/// Breaks something, tries, mends it.
type Case = fn(&mut World) -> Vec<(Output, Expected)>;

const CASES: &[(&str, Case)] = &[
    ("a key of another repository", wrong_key),
    ("a key with one letter changed", damaged_key),
    ("no key", missing_key),
    ("a typo in the engine file", typo_in_engine_file),
    ("a typo in a tier", typo_in_tier),
    ("no configuration", no_configuration),
    ("a workload that does not exist", unknown_workload),
    ("a tenant that does not exist", unknown_tenant),
    ("the broker is down", broker_down),
    ("targets outside the window", targets_outside_the_window),
    ("a time without an offset", time_without_offset),
    ("the repository's folder is gone", repository_missing),
    (
        "the repository's folder cannot be written",
        repository_read_only,
    ),
    ("the data directory of another cluster", another_cluster),
    (
        "a data directory that is not the server's",
        another_data_directory,
    ),
    ("PostgreSQL is down", postgres_down),
    ("a folder that is not empty", folder_not_empty),
    ("a table in no class", table_in_no_class),
    ("one flipped byte", flipped_byte),
    ("WAL pushed twice", wal_twice),
    ("WAL that cannot be fetched", wal_fetch_codes),
    (
        "the repository is away during recovery",
        unreachable_during_recovery,
    ),
    ("nobody to ask", nobody_to_ask),
    ("init on what is there", init_again),
    // Last: it backs up what was never backed up on schedule.
    ("a second daemon", second_daemon),
];

/// What must not change.
struct Fingerprint {
    repository: BTreeMap<String, u64>,
    rows: Vec<Rows>,
    config: BTreeMap<String, String>,
    engine: String,
}

fn sizes(root: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                // Archiving goes on by itself.
                if !name.starts_with("wal/") {
                    found.insert(name, entry.metadata().unwrap().len());
                }
            }
        }
    }
    found
}

fn changed(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let mut names: Vec<String> = before
        .keys()
        .chain(after.keys())
        .filter(differs)
        .cloned()
        .collect();
    names.dedup();
    names
}

fn fingerprint(world: &World) -> Fingerprint {
    Fingerprint {
        repository: sizes(&world.path("repository")),
        rows: world
            .tenants()
            .iter()
            .map(|(id, _)| rows_of(&world.cluster, &ERP, id))
            .collect(),
        config: folder_state(&world.path("config")),
        engine: fs::read_to_string(world.config()).unwrap(),
    }
}

#[test]
fn bad_input_gets_a_clear_error_and_nothing_is_changed() {
    let mut world = World::protected(&Options {
        settings: "archive_timeout = 0\nautovacuum = off",
        queue: true,
        ..Options::new("bad-input", &ERP)
    });
    let before = fingerprint(&world);
    let only = std::env::var("DR_TEST_ONLY").unwrap_or_default();
    let mut failed = Vec::new();
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            for (output, Expected(code, words)) in case(&mut world) {
                assert_eq!(output.code, Some(code), "{output}");
                output.says(&words.iter().map(String::as_str).collect::<Vec<_>>());
                if code != 0 && !output.command.contains(" wal ") {
                    assert!(output.stderr.contains("error: "), "{output}");
                }
                let panicked = output.said().contains("panicked at");
                assert!(!panicked, "{output}");
            }
            let after = fingerprint(&world);
            // A daemon does what was missed as soon as it starts: that is its work.
            if !name.contains("daemon") {
                let mut changed = changed(&before.repository, &after.repository);
                // A check writes down what it found damaged, so that no backup relies on it.
                changed.retain(|name| !name.starts_with("records/damage/"));
                assert_eq!(changed, Vec::<String>::new());
            }
            for (before, after) in before.rows.iter().zip(&after.rows) {
                assert_eq!(differences(before, after), Vec::<String>::new());
            }
            assert_eq!(after.config, before.config);
            assert_eq!(after.engine, before.engine);
        }));
        if judged.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

/// Puts a file or folder elsewhere, and back when dropped.
struct Away {
    from: PathBuf,
    to: PathBuf,
}

impl Away {
    fn new(path: PathBuf) -> Self {
        let to = path.with_extension("away");
        fs::rename(&path, &to).unwrap();
        Self { from: path, to }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if self.from.exists() {
            drop(fs::remove_file(&self.from).or_else(|_| fs::remove_dir_all(&self.from)));
        }
        drop(fs::rename(&self.to, &self.from));
    }
}

/// Changes the engine file, and back when dropped.
struct Edited {
    path: PathBuf,
    text: String,
}

impl Edited {
    fn new(path: PathBuf, from: &str, to: &str) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        Self { path, text }
    }
}

impl Drop for Edited {
    fn drop(&mut self) {
        drop(fs::write(&self.path, &self.text));
    }
}

fn wrong_key(world: &mut World) -> Vec<(Output, Expected)> {
    let other = world.path("tmp/other.yaml").display().to_string();
    let repository = world.path("tmp/other-repository").display().to_string();
    let made = Program::new(&world.account, world.binary())
        .args(["--config", &other, "init", "--repository", &repository])
        .run()
        .ok();
    let key = made
        .stdout
        .split_whitespace()
        .map(PathBuf::from)
        .find(|path| {
            path.is_absolute() && path.extension().is_some_and(|e| e == "key") && path.exists()
        })
        .unwrap_or_else(|| panic!("no key is named: {made}"));
    let _away = Away::new(world.path("repository.key"));
    fs::copy(key, world.path("repository.key")).unwrap();
    world.account.own(&world.path("repository.key"));
    let place = world.path("repository").display().to_string();
    vec![
        (
            world.dr(&["backup", "run", "config"]),
            expected(1, &["key", "does not open", &place]),
        ),
        (
            world.dr(&["backup", "list"]),
            expected(1, &["key", "does not open", &place]),
        ),
        (
            world.dr(&["init"]),
            expected(1, &["key", "does not open", &place]),
        ),
    ]
}

fn damaged_key(world: &mut World) -> Vec<(Output, Expected)> {
    let path = world.path("repository.key");
    let text = fs::read_to_string(&path).unwrap();
    let place = text.trim_end().len() - 5;
    let other = if text.as_bytes()[place] == b'a' {
        "b"
    } else {
        "a"
    };
    let mut changed = text.clone();
    changed.replace_range(place..=place, other);
    let _away = Away::new(path.clone());
    fs::write(&path, changed).unwrap();
    world.account.own(&path);
    vec![(
        world.dr(&["backup", "run", "config"]),
        expected(1, &["repository key is not valid"]),
    )]
}

fn missing_key(world: &mut World) -> Vec<(Output, Expected)> {
    let path = world.path("repository.key");
    let _away = Away::new(path.clone());
    let words = [path.display().to_string(), "hint: ".to_owned()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = vec![
        (world.dr(&["backup", "run", "config"]), expected(1, &words)),
        // A key made beside an existing repository could open nothing.
        (world.dr(&["init"]), expected(1, &words)),
    ];
    assert!(!path.exists(), "a new key was made");
    output
}

fn typo_in_engine_file(world: &mut World) -> Vec<(Output, Expected)> {
    let _edited = Edited::new(world.config(), "data_directory", "data_directry");
    let text = fs::read_to_string(world.config()).unwrap();
    let line = text
        .lines()
        .position(|line| line.contains("directry"))
        .unwrap()
        + 1;
    let words = [
        format!("{}:{line}:", world.config().display()),
        "data_directry".to_owned(),
        "did you mean `data_directory`".to_owned(),
    ];
    vec![(world.dr(&["status"]), Expected(2, words.to_vec()))]
}

fn typo_in_tier(world: &mut World) -> Vec<(Output, Expected)> {
    let path = world.path("tier-configs/gold.yaml");
    let _edited = Edited::new(path.clone(), "retention:", "retentoin:");
    let words = [
        format!("{}:", path.display()),
        "did you mean `retention`".to_owned(),
    ];
    let first = world.dr(&["config", "check"]);
    drop(_edited);
    let _edited = Edited::new(path.clone(), "0 0 3 * * *", "0 99 3 * * *");
    let schedule = [
        format!("{}:", path.display()),
        "is no schedule".to_owned(),
        "hint: ".to_owned(),
    ];
    vec![
        (first, Expected(2, words.to_vec())),
        (world.dr(&["status"]), Expected(2, schedule.to_vec())),
    ]
}

fn no_configuration(world: &mut World) -> Vec<(Output, Expected)> {
    let nowhere = Program::new(&world.account, world.binary())
        .args(["--config", "/nonexistent/dr.yaml", "status"])
        .run();
    vec![(nowhere, expected(2, &["/nonexistent/dr.yaml", "dr init"]))]
}

fn unknown_workload(world: &mut World) -> Vec<(Output, Expected)> {
    vec![
        (
            world.dr(&["backup", "run", "epr"]),
            expected(2, &["no workload `epr`", "did you mean `erp`"]),
        ),
        (
            world.dr(&["backup", "verify", "rp-nothing"]),
            expected(1, &["rp-nothing", "dr backup list"]),
        ),
    ]
}

fn unknown_tenant(world: &mut World) -> Vec<(Output, Expected)> {
    let output = world.dr(&["tenant", "restore", "acmee", "--to", "latest", "--yes"]);
    vec![(
        output,
        expected(2, &["`acmee`", "did you mean acme", "hint: "]),
    )]
}

fn broker_down(world: &mut World) -> Vec<(Output, Expected)> {
    world.stop_queue();
    let place = format!("127.0.0.1:{}", world.nats_port);
    let points = world.points("orders");
    let output = world.dr(&["backup", "run", "orders"]);
    assert_eq!(world.points("orders"), points);
    world.start_queue();
    vec![(output, expected(1, &["NATS", &place]))]
}

fn targets_outside_the_window(world: &mut World) -> Vec<(Output, Expected)> {
    let into = world.path("outside").display().to_string();
    let to = |target: &str| world.dr(&["restore", "erp", "--into", &into, "--to", target]);
    let window = ["window", "erp"];
    let answers = vec![
        (to("2020-01-01T00:00:00Z"), expected(1, &window)),
        (to("2099-01-01T00:00:00Z"), expected(1, &window)),
        (to("FFFF/3000028"), expected(1, &window)),
        (
            world.dr(&[
                "tenant",
                "restore",
                "acme",
                "--to",
                "2020-01-01T00:00:00Z",
                "--yes",
            ]),
            expected(1, &window),
        ),
    ];
    assert!(!Path::new(&into).exists(), "a refused restore left {into}");
    answers
}

fn time_without_offset(world: &mut World) -> Vec<(Output, Expected)> {
    let into = world.path("outside").display().to_string();
    let output = world.dr(&[
        "restore",
        "erp",
        "--into",
        &into,
        "--to",
        "2026-11-23T14:03:21",
    ]);
    vec![(output, expected(2, &["2026-11-23T14:03:21", "offset"]))]
}

fn repository_missing(world: &mut World) -> Vec<(Output, Expected)> {
    let path = world.path("repository");
    let _away = Away::new(path.clone());
    let place = path.display().to_string();
    let answers = vec![
        (
            world.dr(&["backup", "run", "config"]),
            expected(1, &[&place]),
        ),
        (world.dr(&["backup", "list"]), expected(1, &[&place])),
        (world.dr(&["repo", "check"]), expected(1, &[&place])),
    ];
    assert!(
        !path.exists(),
        "an unmounted disk became an empty repository"
    );
    answers
}

fn repository_read_only(world: &mut World) -> Vec<(Output, Expected)> {
    let change = |mode: &str| {
        let status = std::process::Command::new("chmod")
            .args(["-R", mode])
            .arg(world.path("repository"))
            .status();
        assert!(status.unwrap().success());
    };
    change("a-w");
    // A file that differs has to be stored.
    let file = world.path("config/acme/settings.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}more: {}\n", std::process::id())).unwrap();
    let output = world.dr(&["backup", "run", "config"]);
    fs::write(&file, text).unwrap();
    change("u+w");
    let place = world.path("repository").display().to_string();
    vec![(output, expected(1, &[&place, "ermission denied"]))]
}

fn another_cluster(world: &mut World) -> Vec<(Output, Expected)> {
    let data = world.path("other");
    let other = Cluster::create(&world.account, &data, "erp", 1, "archive_mode = off");
    let engine = fs::read_to_string(world.config()).unwrap();
    let changed = engine
        .replace(&world.cluster.url(), &other.url())
        .replace("data_directory: data ", "data_directory: other ");
    fs::write(world.config(), changed).unwrap();
    let output = world.dr(&["backup", "run", "erp"]);
    fs::write(world.config(), engine).unwrap();
    other.stop("immediate");
    fs::remove_dir_all(&data).unwrap();
    vec![(
        output,
        expected(1, &["`erp` is bound to cluster", "hint: "]),
    )]
}

fn another_data_directory(world: &mut World) -> Vec<(Output, Expected)> {
    let data = world.path("other");
    let other = Cluster::create(&world.account, &data, "erp", 1, "archive_mode = off");
    let edited = Edited::new(
        world.config(),
        "data_directory: data ",
        "data_directory: other ",
    );
    let output = world.dr(&["backup", "run", "erp"]);
    drop(edited);
    other.stop("immediate");
    fs::remove_dir_all(&data).unwrap();
    let place = data.display().to_string();
    vec![(
        output,
        expected(1, &["belongs to cluster", &place, "data_directory"]),
    )]
}

fn postgres_down(world: &mut World) -> Vec<(Output, Expected)> {
    world.cluster.stop("fast");
    let place = format!("127.0.0.1:{}", world.cluster.port);
    let into = world.path("outside").display().to_string();
    let answers = vec![
        (
            world.dr(&["backup", "run", "erp"]),
            expected(1, &["does not answer", &place]),
        ),
        (
            world.dr(&["tenant", "restore", "acme", "--to", "latest", "--yes"]),
            expected(1, &["does not answer", &place]),
        ),
        // Without the server nobody can be asked for the last segment: the window is named.
        (
            world.dr(&[
                "restore",
                "erp",
                "--into",
                &into,
                "--to",
                "2099-01-01T00:00:00Z",
            ]),
            expected(1, &["window"]),
        ),
    ];
    world.cluster.start();
    answers
}

fn folder_not_empty(world: &mut World) -> Vec<(Output, Expected)> {
    let folder = world.path("full");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("mine.txt"), "mine").unwrap();
    world.account.own(&folder);
    let into = folder.display().to_string();
    let answers = ["erp", "config"]
        .map(|workload| {
            let output = world.dr(&["restore", workload, "--into", &into]);
            (output, expected(1, &["not empty", &into, "mine.txt"]))
        })
        .into();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(folder.join("mine.txt")).unwrap(), "mine");
    answers
}

fn table_in_no_class(world: &mut World) -> Vec<(Output, Expected)> {
    world
        .cluster
        .psql("create table public.loose (id int primary key)");
    let map = world.dr(&["tenant", "map", "erp"]);
    let output = world.dr(&["tenant", "restore", "acme", "--to", "latest", "--yes"]);
    world.cluster.psql("drop table public.loose");
    assert_eq!(map.code, Some(1), "{map}");
    // With the YAML to add.
    vec![(
        output,
        expected(1, &["public.loose", "loose: ", "shared", "ignored"]),
    )]
}

fn second_daemon(world: &mut World) -> Vec<(Output, Expected)> {
    let mut first = world
        .program(&["serve"])
        .spawn(&world.path("logs/first.log"));
    let binary = world.binary().display().to_string();
    let daemon = || {
        crate::harness::processes_in(world.folder.path())
            .into_iter()
            .find(|(_, line)| line.starts_with(&binary) && line.trim_end().ends_with(" serve"))
            .map(|(pid, _)| pid)
    };
    let pid = wait_until("the first daemon", Duration::from_secs(20), daemon);
    let log = world.path("logs/first.log");
    wait_until(
        "the first daemon's first words",
        Duration::from_secs(20),
        || fs::metadata(&log).ok().filter(|meta| meta.len() > 0),
    );
    let second = Program::new(&world.account, "timeout")
        .args(["10".as_ref(), world.binary().as_os_str()])
        .args(["--config".as_ref(), world.config().as_os_str()])
        .args(["serve"])
        .run();
    assert!(daemon().is_some(), "the first daemon goes on");
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    );
    assert_eq!(first.wait().unwrap().code(), Some(0));
    vec![(second, expected(1, &[&pid.to_string()]))]
}

fn flipped_byte(world: &mut World) -> Vec<(Output, Expected)> {
    let repository = world.path("repository");
    let pack = sizes(&repository)
        .into_iter()
        .filter(|(name, _)| name.starts_with("data/"))
        .max_by_key(|(_, size)| *size)
        .map(|(name, _)| name)
        .unwrap();
    let path = repository.join(&pack);
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let mode = fs::metadata(&path).unwrap().permissions();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, damaged).unwrap();
    let point = world.points("erp").pop().unwrap();
    let check = world.dr(&["repo", "check", "--read"]);
    let into = world.path("damaged").display().to_string();
    let restore = world.dr(&["restore", "erp", "--into", &into, "--start"]);
    drop(fs::remove_dir_all(&into));
    fs::write(&path, whole).unwrap();
    fs::set_permissions(&path, mode).unwrap();
    let name = pack.rsplit('/').next().unwrap().to_owned();
    // `repo check` reports findings as data; the error line is the command's exit code.
    assert_eq!(check.code, Some(1), "{check}");
    check.says(&[&name, &point]);
    vec![(restore, expected(1, &[&name, "damaged"]))]
}

fn wal_twice(world: &mut World) -> Vec<(Output, Expected)> {
    let name = world.cluster.switch_and_wait();
    let original = world.cluster.data.join("pg_wal").join(&name);
    let push = |path: &Path| {
        world
            .program(&["wal", "push", &path.display().to_string()])
            .directory(&world.cluster.data)
            .run()
    };
    let again = push(&original);
    let folder = world.path("tmp/wal");
    fs::create_dir_all(&folder).unwrap();
    let other = folder.join(&name);
    let mut body = fs::read(&original).unwrap();
    let last = body.len() - 1;
    body[last] ^= 0xff;
    fs::write(&other, body).unwrap();
    world.account.own(&folder);
    let refused = push(&other);
    let fetched = world.path("tmp/fetched");
    world
        .dr(&["wal", "fetch", &name, &fetched.display().to_string()])
        .ok();
    assert!(
        fs::read(&fetched).unwrap() == fs::read(&original).unwrap(),
        "the stored segment changed"
    );
    vec![
        (again, expected(0, &[])),
        (refused, expected(1, &[&name, "DIFFERENT CONTENT"])),
    ]
}

fn wal_fetch_codes(world: &mut World) -> Vec<(Output, Expected)> {
    let to = world.path("tmp/absent").display().to_string();
    let fetch = |name: &str| world.dr(&["wal", "fetch", name, &to]);
    let mut answers = vec![
        (fetch("0000000100000FFF000000FF"), expected(1, &[])),
        (fetch("00000009.history"), expected(1, &[])),
    ];
    {
        let _away = Away::new(world.path("repository"));
        answers.push((
            fetch("0000000100000FFF000000FF"),
            expected(200, &["repository"]),
        ));
        answers.push((fetch("00000009.history"), expected(200, &["repository"])));
    }
    {
        let _away = Away::new(world.path("repository.key"));
        answers.push((
            fetch("00000009.history"),
            expected(200, &["repository.key"]),
        ));
    }
    {
        let _edited = Edited::new(world.config(), "repositories:", "repositoires:");
        answers.push((fetch("00000009.history"), expected(200, &["dr.yaml"])));
    }
    {
        // No catalog is needed.
        let _away = Away::new(world.path("catalog.db"));
        answers.push((fetch("00000009.history"), expected(1, &[])));
    }
    answers
}

fn unreachable_during_recovery(world: &mut World) -> Vec<(Output, Expected)> {
    let folder = world.path("cut-off");
    world
        .dr(&["restore", "erp", "--into", &folder.display().to_string()])
        .ok();
    let log = world.path("logs/cut-off.log");
    let port = crate::harness::free_port();
    let start = || {
        Program::new(&world.account, postgres_program("pg_ctl"))
            .args([
                "-D".as_ref(),
                folder.as_os_str(),
                "-l".as_ref(),
                log.as_os_str(),
            ])
            .args([
                "-w",
                "-t",
                "30",
                "-o",
                &format!("-p {port} -c archive_mode=off"),
                "start",
            ])
            .run()
    };
    {
        let _away = Away::new(world.path("repository"));
        let started = start();
        assert_ne!(
            started.code,
            Some(0),
            "the server opened without its WAL: {started}"
        );
        let said = fs::read_to_string(&log).unwrap();
        assert!(!said.contains("archive recovery complete"), "{said}");
        assert!(said.contains("repository"), "{said}");
    }
    // Nothing was spoilt by the try: with the repository back, the same folder opens.
    let started = start().ok();
    let restored = Cluster::running(&world.account, &folder, "erp");
    assert_eq!(restored.value("select count(*) from tenant"), "6");
    restored.stop("immediate");
    fs::remove_dir_all(&folder).unwrap();
    vec![(started, expected(0, &[]))]
}

fn nobody_to_ask(world: &mut World) -> Vec<(Output, Expected)> {
    let moment = world.cluster.moment();
    vec![(
        world.dr(&["tenant", "restore", "acme", "--to", &moment]),
        expected(2, &["--preview", "--yes"]),
    )]
}

fn init_again(world: &mut World) -> Vec<(Output, Expected)> {
    let foreign = world.path("foreign");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("photo.jpg"), "not a repository").unwrap();
    world.account.own(&foreign);
    let config = world.path("tmp/foreign.yaml").display().to_string();
    let place = foreign.display().to_string();
    let refused = Program::new(&world.account, world.binary())
        .args(["--config", &config, "init", "--repository", &place])
        .run();
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
    vec![
        (world.dr(&["init"]), expected(0, &["already initialised"])),
        (refused, expected(1, &["not empty", &place])),
    ]
}

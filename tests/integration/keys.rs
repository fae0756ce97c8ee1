//! Who opens a repository, and what is gone when one tenant's key is destroyed.

use std::fs;
use std::path::PathBuf;

use crate::harness::{Account, Json, Output, Program, TempFolder, folder_state};

/// One folder of tenants' files under protection; no server is needed.
struct Scene {
    account: Account,
    folder: TempFolder,
}

const TIER: &str = "tier: gold\nrto: 15m\nrpo: 30m\nbackup: { cron: \"0 0 * * * *\" }\n\
                    retention: { daily: 7, min_redundancy: 1 }\n";

impl Scene {
    fn new(name: &str, key: &str) -> Self {
        let folder = TempFolder::new(name);
        let account = Account::of_servers(folder.path());
        for name in ["tmp", "tiers", "live/acme", "live/bolt", "live/shared"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let scene = Self { account, folder };
        for tenant in ["acme", "bolt", "shared"] {
            // The same content everywhere: nothing of it may be shared across keys.
            fs::write(scene.path(&format!("live/{tenant}/prices.csv")), PRICES).unwrap();
            let own = format!("{tenant}'s own\n").repeat(2000);
            fs::write(scene.path(&format!("live/{tenant}/own.txt")), own).unwrap();
        }
        fs::write(scene.path("tiers/gold.yaml"), TIER).unwrap();
        let configuration = format!(
            "repositories:\n  main: {{ path: repository, key: {key} }}\n\
             catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n  config:\n    tier: gold\n    \
             repositories: [main]\n    files: {{ path: live }}\n    \
             tenancy: {{ path: \"{{name}}/**\" }}\n"
        );
        fs::write(scene.path("dr.yaml"), configuration).unwrap();
        scene.account.own(scene.folder.path());
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dr(&self, arguments: &[&str]) -> Output {
        let config = self.path("dr.yaml").display().to_string();
        Program::new(&self.account, env!("CARGO_BIN_EXE_dr"))
            .args(["--config", &config])
            .args(arguments)
            .env("TEST_PASSPHRASE", PASSPHRASE)
            .run()
    }

    fn ask(&self, arguments: &[&str]) -> Json {
        let mut all = vec!["--json"];
        all.extend(arguments);
        Json::parse(&self.dr(&all).ok().stdout)
    }

    fn restore(&self, into: &str) -> Output {
        let into = self.path(into).display().to_string();
        self.dr(&["restore", "config", "--into", &into])
    }
}

const PRICES: &str = "article,price\n4711,12.50\n4712,13.50\n";
const PASSPHRASE: &str = "a passphrase nobody prints";

#[test]
fn shredding_one_tenant_leaves_all_others_and_a_repository_without_damage() {
    let scene = Scene::new("shred", "{ file: repository.key }");
    scene.dr(&["init"]).ok();
    scene.dr(&["backup", "run", "config"]).ok();
    let live = folder_state(&scene.path("live"));
    scene.restore("whole").ok();
    assert_eq!(folder_state(&scene.path("whole")), live);
    let listed = scene.ask(&["key", "list"]);
    let tenants: Vec<String> = listed
        .list("/0/tenants")
        .iter()
        .map(|key| key.text("/tenant"))
        .collect();
    assert_eq!(tenants, ["acme", "bolt", "shared"]);
    // Nobody to ask: nothing is done.
    let refused = scene.dr(&["key", "shred", "acme", "--workload", "config"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    let nobody = scene.dr(&["key", "shred", "nobody", "--workload", "config", "--yes"]);
    assert_eq!(nobody.code, Some(1), "{nobody}");

    let done = scene
        .dr(&["key", "shred", "acme", "--workload", "config", "--yes"])
        .ok();
    done.says(&["its key is gone", "not covered", "WAL"]);
    let after = scene.restore("after").ok();
    after.says(&["tenant acme", "shredded on"]);
    let restored = folder_state(&scene.path("after"));
    assert!(
        restored.keys().all(|path| !path.starts_with("acme/")),
        "{restored:?}"
    );
    for (path, state) in live.iter().filter(|(path, _)| !path.starts_with("acme/")) {
        assert!(restored.contains_key(path), "{path}");
        if path.contains('/') {
            assert_eq!(restored.get(path), Some(state), "{path}");
        }
    }
    scene.dr(&["repo", "check", "--read"]).ok();
    scene.dr(&["backup", "verify"]).ok();
    scene
        .dr(&["key", "shred", "acme", "--workload", "config", "--yes"])
        .ok()
        .says(&["shredded before"]);
    assert_eq!(scene.ask(&["key", "list"]).list("/0/shredded").len(), 1);

    // The live files are still there: they come under a new key, the old ones stay lost.
    scene.dr(&["backup", "run", "config"]).ok();
    scene.restore("new").ok();
    assert_eq!(folder_state(&scene.path("new")), live);
    scene.dr(&["repo", "check", "--read"]).ok();
}

#[test]
fn a_repository_opens_by_every_slot_and_keys_are_never_shown() {
    let scene = Scene::new("slots", "{ file: repository.key }");
    scene.dr(&["init"]).ok();
    let first = fs::read_to_string(scene.path("repository.key")).unwrap();
    fs::write(scene.path("words"), format!("{PASSPHRASE}\n")).unwrap();
    scene.account.own(&scene.path("words"));
    let words = scene.path("words").display().to_string();
    let second = scene.path("second.key").display().to_string();
    let mut said = String::new();
    for arguments in [
        vec!["key", "add", "--file", &second, "--label", "a spare"],
        vec!["key", "add", "--passphrase-file", &words],
        vec![
            "key",
            "add",
            "--wrap",
            "tr 0-9 A-J",
            "--unwrap",
            "tr A-J 0-9",
        ],
        vec!["key", "list"],
        vec!["--json", "key", "list"],
        vec!["key", "rotate"],
        vec!["--json", "key", "list"],
    ] {
        said += &scene.dr(&arguments).ok().said();
    }
    let rotated = fs::read_to_string(scene.path("repository.key")).unwrap();
    assert_ne!(first, rotated);
    let spare = fs::read_to_string(scene.path("second.key")).unwrap();
    let configuration = fs::read_to_string(scene.path("dr.yaml")).unwrap();
    let open_with = |key: &str| {
        let text = configuration.replace("{ file: repository.key }", key);
        fs::write(scene.path("dr.yaml"), text).unwrap();
        scene.dr(&["key", "list"])
    };
    for key in [
        "{ file: second.key }",
        "{ passphrase_file: words }",
        "{ passphrase_env: TEST_PASSPHRASE }",
        "{ command: { wrap: [tr, 0-9, A-J], unwrap: [tr, A-J, 0-9] } }",
    ] {
        said += &open_with(key).ok().said();
    }
    let old = fs::read_dir(scene.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("repository.key.old-"))
        .unwrap();
    for (key, code) in [
        (format!("{{ file: {old} }}"), 1),
        ("{ file: second.key, passphrase_file: words }".to_owned(), 2),
        (
            "{ command: { wrap: [\"false\"], unwrap: [\"false\"] } }".to_owned(),
            1,
        ),
        (
            "{ command: { wrap: [cat], unwrap: [echo, hello] } }".to_owned(),
            1,
        ),
    ] {
        let output = open_with(&key);
        assert_eq!(output.code, Some(code), "{output}");
        said += &output.said();
    }
    for secret in [&first, &rotated, &spare] {
        let digits = secret.split(':').nth(1).unwrap();
        assert!(!said.contains(digits), "a key was shown");
    }
    assert!(!said.contains(PASSPHRASE), "the passphrase was shown");
}

//! Two places for one repository, as an operator meets them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Account, Json, Output, Program, TempFolder, folder_state};

struct Site {
    folder: TempFolder,
    account: Account,
}

impl Site {
    fn new() -> Self {
        let folder = TempFolder::new("copies");
        let account = Account::of_servers(folder.path());
        let site = Self { folder, account };
        fs::create_dir_all(site.path("tmp")).unwrap();
        fs::create_dir_all(site.path("tiers")).unwrap();
        fs::create_dir_all(site.path("documents")).unwrap();
        for number in 0..20 {
            let name = site.path("documents").join(format!("{number}.txt"));
            fs::write(name, format!("document {number}\n").repeat(5000)).unwrap();
        }
        fs::write(
            site.path("tiers/gold.yaml"),
            "tier: gold\nrto: 1h\nrpo: 1h\ncopies: 2\nbackup: { cron: \"0 0 3 * * *\" }\n\
             retention: { daily: 7 }\n",
        )
        .unwrap();
        site.configure("[main, east]");
        site
    }

    fn configure(&self, repositories: &str) {
        let text = format!(
            "repositories:\n  main: {{ path: main, key: {{ file: main.key }} }}\n  \
             east: {{ path: east, key: {{ file: east.key }} }}\n\
             catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n  documents:\n    tier: gold\n    \
             repositories: {repositories}\n    files: {{ path: documents }}\n"
        );
        fs::write(self.path("dr.yaml"), text).unwrap();
        self.account.own(self.folder.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dr(&self, arguments: &[&str]) -> Output {
        Program::new(&self.account, env!("CARGO_BIN_EXE_dr"))
            .args(["--config", "dr.yaml"])
            .args(arguments)
            .run()
    }

    fn objects(&self, place: &str) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.path(place), &self.path(place), &mut found);
        found.retain(|name| name != "repository" && !name.starts_with("keys/slot/"));
        found.sort();
        found
    }
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            let name = path.strip_prefix(root).unwrap();
            found.push(name.display().to_string());
        }
    }
}

#[test]
fn a_copy_is_made_kept_in_step_caught_up_and_mends_and_replaces_the_first_place() {
    let site = Site::new();
    site.dr(&["init"])
        .ok()
        .says(&["repository `main`", "copy `east`"]);
    site.dr(&["init"]).ok().says(&["already initialised"]);
    site.dr(&["backup", "run", "documents"]).ok();
    assert_eq!(site.objects("main"), site.objects("east"));
    site.dr(&["status"]).ok().says(&["copy `east` is in step"]);

    // Away for one backup.
    fs::rename(site.path("east"), site.path("away")).unwrap();
    fs::write(site.path("documents/new.txt"), "new\n".repeat(9000)).unwrap();
    site.account.own(&site.path("documents"));
    let backup = site.dr(&["backup", "run", "documents"]).ok();
    backup.says(&["copy `east` does not have this restore point yet"]);
    site.dr(&["status"])
        .ok()
        .says(&["copy `east` does not answer", "1 of the 2 repositories"]);
    fs::rename(site.path("away"), site.path("east")).unwrap();
    site.dr(&["status"]).ok().says(&["copy `east` lags by 1"]);
    site.dr(&["repo", "sync"]).ok().says(&["east: in step"]);
    assert_eq!(site.objects("main"), site.objects("east"));
    let again = Json::parse(&site.dr(&["repo", "sync", "--json"]).ok().stdout);
    assert_eq!(again.list("")[0].number("/report/copied"), 0);

    // Damaged and mended.
    let pack = site
        .objects("main")
        .into_iter()
        .find(|name| name.starts_with("data/"))
        .unwrap();
    let path = site.path("main").join(&pack);
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[200] ^= 1;
    fs::write(&path, damaged).unwrap();
    let check = site.dr(&["repo", "check", "--read"]);
    assert_eq!(check.code, Some(1), "{check}");
    check.says(&[&pack, "main at", "east at"]);
    let preview = site.dr(&["repo", "repair", "--preview"]).ok();
    preview.says(&["would mend", &pack, "from `east`"]);
    site.dr(&["repo", "repair"])
        .ok()
        .says(&["mended 1 objects"]);
    assert!(fs::read(&path).unwrap() == whole);
    site.dr(&["repo", "check", "--read"]).ok();

    // Gone: restored from the copy, nothing is written.
    let before = folder_state(&site.path("documents"));
    fs::rename(site.path("main"), site.path("lost")).unwrap();
    fs::remove_dir_all(site.path("documents")).unwrap();
    site.dr(&["restore", "documents", "--into", "documents"])
        .ok();
    assert_eq!(folder_state(&site.path("documents")), before);
    let refused = site.dr(&["backup", "run", "documents"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    refused.says(&["main", "can only be read"]);

    // An older state is put back.
    fs::rename(site.path("lost"), site.path("main")).unwrap();
    let old = site.path("main/chain/documents/0000000000000002");
    fs::rename(&old, site.path("kept")).unwrap();
    let check = site.dr(&["repo", "check", "main"]);
    assert_eq!(check.code, Some(1), "{check}");
    check.says(&["IS NOT WHAT IT WAS", "went back"]);
    let sync = site.dr(&["repo", "sync"]);
    assert_eq!(sync.code, Some(1), "{sync}");
    sync.says(&["went back"]);
    site.dr(&["repo", "repair", "main"]).ok();
    site.dr(&["repo", "check"]).ok();
}

#[test]
fn what_is_nowhere_whole_is_named_by_file() {
    let site = Site::new();
    site.dr(&["init"]).ok();
    site.dr(&["backup", "run", "documents"]).ok();
    let pack = site
        .objects("main")
        .into_iter()
        .find(|name| name.starts_with("data/"))
        .unwrap();
    for place in ["main", "east"] {
        let path = site.path(place).join(&pack);
        let mut damaged = fs::read(&path).unwrap();
        damaged[100] ^= 1;
        fs::write(&path, damaged).unwrap();
    }
    let repair = site.dr(&["repo", "repair"]);
    assert_eq!(repair.code, Some(1), "{repair}");
    repair.says(&["nowhere whole", &pack, "LOST 1 files", ".txt"]);
}

#[test]
fn a_place_that_holds_another_repository_becomes_no_copy() {
    let site = Site::new();
    site.configure("[east]");
    let refused = site.dr(&["init"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    refused.says(&["names 1 of the 2 repositories"]);
    let tier = fs::read_to_string(site.path("tiers/gold.yaml")).unwrap();
    let tier = tier.replace("copies: 2\n", "");
    fs::write(site.path("tiers/gold.yaml"), tier).unwrap();
    site.dr(&["init"]).ok();
    site.configure("[main, east]");
    let refused = site.dr(&["init"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    refused.says(&["east", "another repository"]);
}

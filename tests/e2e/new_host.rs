//! The old host is gone: another folder, another OS user, only the repository and its key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::drill_honesty::scenario;
use crate::harness::{
    Account, Cluster, ERP, Json, Options, Output, Program, Rows, TempFolder, World,
    assert_foreign_keys_hold, differences, folder_state, rows_of,
};

/// Nobody can look into it, until dropped.
struct Closed(PathBuf);

impl Closed {
    fn new(path: &Path) -> Self {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        drop(fs::set_permissions(
            &self.0,
            fs::Permissions::from_mode(0o755),
        ));
    }
}

struct NewHost {
    account: Account,
    folder: TempFolder,
}

impl NewHost {
    fn new(old: &World) -> Self {
        let folder = TempFolder::new("new-host");
        let account = Account::named("nobody", "nogroup", folder.path());
        fs::create_dir_all(folder.path().join("bin")).unwrap();
        fs::create_dir_all(folder.path().join("tmp")).unwrap();
        for name in ["repository", "repository.key"] {
            let copied = std::process::Command::new("cp")
                .arg("-r")
                .args([old.path(name), folder.path().to_owned()])
                .status()
                .unwrap();
            assert!(copied.success());
        }
        fs::copy(old.binary(), folder.path().join("bin/dr")).unwrap();
        account.own(folder.path());
        Self { account, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dr(&self, arguments: &[&str]) -> Output {
        Program::new(&self.account, self.path("bin/dr"))
            .args(["--config".as_ref(), self.path("dr.yaml").as_os_str()])
            .args(arguments)
            .run()
    }
}

#[test]
fn repository_and_key_are_enough_on_a_new_host_for_another_user() {
    let old = World::protected(&Options {
        settings: "archive_timeout = 3",
        ..Options::new("old-host", &ERP)
    });
    let (tenant, name) = old.tenants()[1].clone();
    let everyone = |cluster: &Cluster| -> Vec<Rows> {
        old_tenants()
            .iter()
            .map(|id| rows_of(cluster, &ERP, id))
            .collect()
    };
    let spoilt_target = old.cluster.moment();
    for statement in ERP.mistake {
        old.cluster.psql(&statement.replace("$T", &tenant));
    }
    let spoilt = rows_of(&old.cluster, &ERP, &tenant);
    let restore = old.ask(&["tenant", "restore", &name, "--to", &spoilt_target, "--yes"]);
    let drill = scenario(&old, "3s", "2s").display().to_string();
    let sandbox = old.path("sandboxes/1").display().to_string();
    let reports = old.path("reports").display().to_string();
    let run = old
        .program(&[
            "drill",
            "run",
            &drill,
            "--out",
            &reports,
            "--sandbox",
            &sandbox,
            "--json",
        ])
        .run();
    assert!(matches!(run.code, Some(0 | 3)), "{run}");
    let run = Json::parse(&run.stdout).text("/identity/id");
    // The folder's state of now has to be in the repository before the host goes.
    old.dr(&["backup", "run", "config"]).ok();
    old.cluster
        .psql("insert into sales_order (tenant_id, order_no) values (3, 'the last one')");
    let before = everyone(&old.cluster);
    let files = folder_state(&old.path("config"));
    old.cluster.switch_and_wait();
    old.cluster.stop("fast");

    let new = NewHost::new(&old);
    let closed = Closed::new(old.folder.path());
    let repository = new.path("repository").display().to_string();
    let key = new.path("repository.key").display().to_string();
    new.dr(&["init", "--adopt", &repository, "--key", &key])
        .ok();

    // To look at.
    let data = new.path("data").display().to_string();
    new.dr(&["restore", "erp", "--into", &data, "--start"]).ok();
    let cluster = Cluster::running(&new.account, &new.path("data"), "erp");
    assert_same(&before, &everyone(&cluster));
    cluster.stop("fast");
    fs::remove_dir_all(&data).unwrap();

    // In the place of the old one, at the new host's paths.
    let text = fs::read_to_string(new.path("dr.yaml")).unwrap();
    let (from, to) = (
        old.folder.path().display().to_string(),
        new.folder.path().display().to_string(),
    );
    fs::write(new.path("dr.yaml"), text.replace(&from, &to)).unwrap();
    new.dr(&["restore", "erp", "--into", &data, "--as-primary", "--start"])
        .ok();
    let cluster = Cluster::running(&new.account, &new.path("data"), "erp");
    assert_same(&before, &everyone(&cluster));
    let archive = format!("'{to}/bin/dr' --config '{to}/dr.yaml' wal push %p");
    cluster.set("archive_command", &archive);
    let folder = new.path("config").display().to_string();
    new.dr(&["restore", "config", "--into", &folder]).ok();
    assert_eq!(folder_state(&new.path("config")), files);

    fs::remove_file(new.path("catalog.db")).unwrap();
    new.dr(&["catalog", "rebuild"]).ok();
    new.dr(&["tenant", "undo", &restore.text("/id"), "--yes"])
        .ok();
    let found = differences(&spoilt, &rows_of(&cluster, &ERP, &tenant));
    assert!(found.is_empty(), "after the undo: {found:#?}");
    assert_foreign_keys_hold(&cluster, "after the undo");
    new.dr(&["drill", "list"]).ok().says(&[&run]);
    let out = new.path("reports").display().to_string();
    new.dr(&["drill", "report", "--out", &out]).ok();
    let written: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .collect();
    assert!(
        written.iter().any(|text| text.contains(&run)),
        "the earlier run is in the report"
    );
    cluster.stop("fast");
    drop(closed);
}

fn old_tenants() -> Vec<String> {
    (1..=6).map(|id| id.to_string()).collect()
}

#[track_caller]
fn assert_same(before: &[Rows], found: &[Rows]) {
    for (before, found) in before.iter().zip(found) {
        let wrong = differences(before, found);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

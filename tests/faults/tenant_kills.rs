//! `dr` and the server killed in the middle of a tenant's restore and of its undo: all or nothing, and it is
//! said which.

use std::fs;
use std::io::Write as _;
use std::process::Child;
use std::time::Duration;

use crate::harness::{
    ERP, Json, Options, Output, Rows, World, assert_foreign_keys_hold, differences, rows_of,
    wait_until,
};
use crate::scene;

const PATIENCE: Duration = Duration::from_secs(60);

struct Case {
    world: World,
    victim: String,
    name: String,
    target: String,
    then: Rows,
    spoilt: Rows,
}

impl Case {
    fn new(name: &'static str) -> Self {
        let world = World::protected(&Options::new(name, &ERP));
        let (victim, name) = world.tenants()[2].clone();
        let then = rows_of(&world.cluster, &ERP, &victim);
        let target = world.cluster.moment();
        for statement in ERP.mistake {
            world
                .cluster
                .psql(&statement.replace("$T", &format!("'{victim}'")));
        }
        let spoilt = rows_of(&world.cluster, &ERP, &victim);
        Self {
            world,
            victim,
            name,
            target,
            then,
            spoilt,
        }
    }

    fn rows(&self) -> Rows {
        rows_of(&self.world.cluster, &ERP, &self.victim)
    }

    #[track_caller]
    fn assert_rows(&self, expected: &Rows, when: &str) {
        let found = differences(expected, &self.rows());
        assert!(found.is_empty(), "{when}: {found:#?}");
        assert_foreign_keys_hold(&self.world.cluster, when);
    }

    /// Starts it in the background.
    fn start(&self, words: &[&str]) -> Child {
        let log = self.world.path("logs/killed.log");
        self.world.program(words).spawn(&log)
    }

    fn restoring(&self) -> Child {
        self.start(&[
            "tenant",
            "restore",
            &self.name,
            "--to",
            &self.target,
            "--yes",
        ])
    }

    fn restore(&self) -> Output {
        let words = [
            "tenant",
            "restore",
            &self.name,
            "--to",
            &self.target,
            "--yes",
            "--json",
        ];
        self.world.dr(&words)
    }

    /// Until a session of `dr` waits for this.
    fn wait_for(&self, event: &str) {
        let query = format!(
            "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend' \
             and (wait_event_type = '{event}' or wait_event = '{event}')"
        );
        wait_until(event, PATIENCE, || {
            (self.world.cluster.value(&query) != "0").then_some(())
        });
    }

    /// What the newest restore is said to have become.
    fn became(&self) -> (String, String) {
        let history = self.world.ask(&["tenant", "history"]);
        let last = history.list("").pop().unwrap();
        (last.text("/id"), last.text("/became"))
    }

    /// A session that holds a row of the tenant, until it is dropped.
    fn holder(&self) -> Holder {
        let log = self.world.path("logs/holder.log");
        let mut child = self.world.cluster.psql_program().talk(&log);
        let statement = format!(
            "begin; update public.customer set credit = credit where tenant_id = {} and customer_no = 2;\n",
            self.victim
        );
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(statement.as_bytes())
            .unwrap();
        let held = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        wait_until("the holder", PATIENCE, || {
            (self.world.cluster.value(held) != "0").then_some(())
        });
        Holder(child)
    }
}

/// Lets go when it is dropped: psql ends with its input.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn kill(mut child: Child) {
    scene::kill(i32::try_from(child.id()).unwrap());
    let _ = child.wait();
}

/// Nothing of a dead run may keep the next one out, or stay for ever.
fn nothing_is_left(world: &World) {
    let left: Vec<String> = fs::read_dir(world.path("tmp"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("dr-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn killed_while_it_writes_it_changed_nothing() {
    let case = Case::new("tenant-kill-writing");
    let holder = case.holder();
    let child = case.restoring();
    case.wait_for("Lock");
    kill(child);
    drop(holder);
    // The server notices that nobody is there any more.
    wait_until("the end of its session", PATIENCE, || {
        let open = "select count(*) from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()";
        (case.world.cluster.value(open) == "0").then_some(())
    });
    case.assert_rows(&case.spoilt, "killed while it wrote");
    case.restore().ok();
    case.assert_rows(&case.then, "done again");
    nothing_is_left(&case.world);
}

#[test]
fn killed_at_the_commit_it_is_found_and_can_be_taken_back() {
    let case = Case::new("tenant-kill-commit");
    // A commit that waits for a standby that is not there is on the disk already.
    let waits = |name: &str| {
        case.world.cluster.set("synchronous_standby_names", name);
        case.world.cluster.reload();
    };
    waits("nobody");
    let child = case.restoring();
    case.wait_for("SyncRep");
    kill(child);
    waits("");
    wait_until("the end of its session", PATIENCE, || {
        let open = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        (case.world.cluster.value(open) == "0").then_some(())
    });
    case.assert_rows(&case.then, "killed at the commit");
    let (id, became) = case.became();
    assert_eq!(became, "committed_and_interrupted");
    let certificate = case.world.dr(&["tenant", "certificate", &id]);
    assert_eq!(certificate.code, Some(1), "{certificate}");
    certificate.says(&["interrupted"]);

    // The undo, killed in the same way, twice.
    let holder = case.holder();
    let child = case.start(&["tenant", "undo", &id, "--yes"]);
    case.wait_for("Lock");
    kill(child);
    drop(holder);
    case.assert_rows(&case.then, "the undo was killed while it wrote");
    waits("nobody");
    let child = case.start(&["tenant", "undo", &id, "--yes"]);
    case.wait_for("SyncRep");
    kill(child);
    waits("");
    wait_until("the end of its session", PATIENCE, || {
        let open = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        (case.world.cluster.value(open) == "0").then_some(())
    });
    case.assert_rows(&case.spoilt, "the undo was killed at the commit");
    assert_eq!(case.became().1, "committed_and_interrupted");
    case.restore().ok();
    case.assert_rows(&case.then, "done once more");
    nothing_is_left(&case.world);
}

#[test]
fn a_server_that_is_killed_changed_nothing() {
    let case = Case::new("tenant-kill-server");
    let holder = case.holder();
    let mut child = case.restoring();
    case.wait_for("Lock");
    case.world.cluster.stop("immediate");
    drop(holder);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let said = fs::read_to_string(case.world.path("logs/killed.log")).unwrap();
    assert!(said.contains("failed") || said.contains("cannot"), "{said}");
    case.world.cluster.start();
    case.assert_rows(&case.spoilt, "the server was killed");
    case.restore().ok();
    case.assert_rows(&case.then, "done again");
}

#[test]
fn a_connection_that_is_cut_changed_nothing() {
    let case = Case::new("tenant-cut");
    let holder = case.holder();
    let mut child = case.restoring();
    case.wait_for("Lock");
    case.world.cluster.psql(
        "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'",
    );
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(holder);
    case.assert_rows(&case.spoilt, "the connection was cut");
    case.restore().ok();
    case.assert_rows(&case.then, "done again");
}

#[test]
fn a_second_restore_at_the_same_time_is_turned_away_by_name() {
    let case = Case::new("tenant-second");
    let holder = case.holder();
    let mut child = case.restoring();
    case.wait_for("Lock");
    let second = case.restore();
    assert_eq!(second.code, Some(1), "{second}");
    second.says(&["erp/tenants is busy", "tenant-restore", "process"]);
    drop(holder);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    case.assert_rows(&case.then, "the first went on");
    let report = Json::parse(&case.restore().ok().stdout);
    assert_eq!(report.list("/tables").len(), 0, "nothing differs any more");
}

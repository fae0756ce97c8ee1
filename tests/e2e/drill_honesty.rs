//! A drill's numbers, worked out again by other code from other sources: the probe's log, and the rows
//! that `psql` found in the recovered database at the end of the runbook.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{ERP, Json, Options, World, long};

const NS_PER_MS: i128 = 1_000_000;
/// Until the repository can be read, as the configuration states it.
const RETRIEVAL_NS: i128 = 60_000 * NS_PER_MS;

/// One operation of the log.
struct Operation {
    cycle: u64,
    write: bool,
    key: String,
    sent: i128,
    done: i128,
    outcome: String,
}

fn operations(log: &Path) -> (Value, Vec<Operation>) {
    let text = fs::read_to_string(log).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let header = lines.next().unwrap();
    let all = lines
        .map(|line| Operation {
            cycle: line["cycle"].as_u64().unwrap(),
            write: line["op"] == "write",
            key: line["key"].as_str().unwrap().to_owned(),
            sent: line["sent_ns"].as_u64().unwrap().into(),
            done: line["done_ns"].as_u64().unwrap().into(),
            outcome: line["outcome"].as_str().unwrap().to_owned(),
        })
        .collect();
    (header, all)
}

/// When three cycles in a row were answered in full, after the first failure that follows `fault`.
fn usable_again(operations: &[Operation], tenants: usize, fault: i128) -> i128 {
    let failed = operations
        .iter()
        .filter(|o| o.outcome != "acked" && o.done > fault)
        .map(|o| o.cycle)
        .min()
        .expect("the service was seen to fail");
    let mut cycles: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations.iter().filter(|o| o.cycle > failed) {
        cycles.entry(operation.cycle).or_default().push(operation);
    }
    let mut in_row = 0;
    for cycle in cycles.values() {
        let good = cycle.len() == 2 * tenants && cycle.iter().all(|o| o.outcome == "acked");
        in_row = if good { in_row + 1 } else { 0 };
        if in_row == 3 {
            return cycle.iter().map(|o| o.done).max().unwrap();
        }
    }
    panic!("the service was never usable again");
}

fn file_beginning_with(folder: &Path, word: &str) -> PathBuf {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if fs::read_to_string(&path)
                .is_ok_and(|text| text.lines().next().is_some_and(|line| line.contains(word)))
            {
                return path;
            }
        }
    }
    panic!("no evidence below {} begins with {word}", folder.display());
}

fn objective<'a>(report: &'a Json, measure: &str) -> &'a Value {
    report.0["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .find(|objective| objective["measure"] == measure)
        .unwrap_or_else(|| {
            panic!(
                "{measure} is not in the report: {:#}",
                report.0["objectives"]
            )
        })
}

fn near(what: &str, reported: &Value, own: i128, uncertainty: &Value) {
    let reported_ms = i128::from(
        reported
            .as_u64()
            .unwrap_or_else(|| panic!("{what} was not measured")),
    );
    let off = (reported_ms - own / NS_PER_MS).abs();
    let allowed = i128::from(uncertainty.as_u64().unwrap());
    assert!(
        off <= allowed,
        "{what}: reported {reported_ms} ms, worked out {} ms",
        own / NS_PER_MS
    );
}

/// Writes the scenario with its last runbook step: plain psql looks what is there.
pub(crate) fn scenario(world: &World, before: &str, after: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["drills/probes", "runbooks"] {
        fs::create_dir_all(world.path(folder)).unwrap();
    }
    let copy = |name: &str, change: &dyn Fn(String) -> String| {
        let text = fs::read_to_string(source.join(name)).unwrap();
        fs::write(world.path(name), change(text)).unwrap();
    };
    copy("drills/probes/orders.yaml", &|text| text);
    copy("drills/primary-loss.yaml", &|text| {
        let changed = text.replace("before: 20s", &format!("before: {before}"));
        changed.replace("after: 10s", &format!("after: {after}"))
    });
    let look = world.path("look.sh");
    fs::write(
        &look,
        format!(
            "set -eu\nfor lock in $(find '{sandboxes}' -name postmaster.pid); do\n\
             psql -X -A -t -h 127.0.0.1 -p \"$(sed -n 4p \"$lock\" | tr -d ' ')\" -U postgres -d erp \
             -c 'select order_no from public.sales_order' > '{found}.new'\n\
             mv '{found}.new' '{found}'\ndone\n",
            sandboxes = world.path("sandboxes").display(),
            found = world.path("found.txt").display()
        ),
    )
    .unwrap();
    copy("runbooks/rebuild-primary.yaml", &|text| {
        format!(
            "{text}  - command: {{ run: [sh, \"{}\"], timeout: 30s }}\n",
            look.display()
        )
    });
    fs::create_dir_all(world.path("sandboxes")).unwrap();
    for name in ["drills", "runbooks", "sandboxes", "look.sh"] {
        world.account.own(&world.path(name));
    }
    world.path("drills/primary-loss.yaml")
}

/// What one run left to judge.
struct Held {
    report: Json,
    header: Value,
    operations: Vec<Operation>,
    /// Keys that psql found in the recovered database.
    recovered: BTreeSet<String>,
}

fn hold(world: &World, drill: &Path, run: usize) -> Held {
    let out = world.path(&format!("reports-{run}"));
    let sandbox = world.path(&format!("sandboxes/{run}"));
    let found = world.path("found.txt");
    drop(fs::remove_file(&found));
    let paths = [drill, &out, &sandbox].map(|path| path.display().to_string());
    let output = world
        .program(&[
            "drill",
            "run",
            &paths[0],
            "--out",
            &paths[1],
            "--sandbox",
            &paths[2],
            "--json",
        ])
        .run();
    assert!(matches!(output.code, Some(0 | 3)), "{output}");
    let report = Json::parse(&output.stdout);
    assert_eq!(
        report.text("/identity/status"),
        "completed",
        "{:#}",
        report.0["identity"]
    );
    assert!(!sandbox.join("erp").exists(), "the sandbox is removed");
    let (header, operations) = operations(&file_beginning_with(&out, "boot_id"));
    let recovered: BTreeSet<String> = fs::read_to_string(&found)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(
        recovered.contains("SO-1"),
        "psql looked at another database"
    );
    Held {
        report,
        header,
        operations,
        recovered,
    }
}

impl Held {
    fn writes(&self, outcome: &'static str) -> impl Iterator<Item = &Operation> {
        self.operations
            .iter()
            .filter(move |o| o.write && o.outcome == outcome)
    }

    fn first_failed(&self) -> i128 {
        let failed = self.operations.iter().filter(|o| o.outcome != "acked");
        failed
            .map(|o| o.done)
            .min()
            .expect("the service was seen to fail")
    }

    /// Times, within the uncertainty that the report states.
    fn judge_times(&self) {
        let report = &self.report;
        let uncertainty = &report.0["probe"]["uncertainty_ms"];
        let allowed = i128::from(uncertainty.as_u64().unwrap()) * NS_PER_MS;
        let tenants = self.header["tenants"].as_array().unwrap().len();
        let fault = i128::from(report.number("/fault/at_ns"));
        // The stated moment lies between the last thing that worked and the first that did not.
        let first_failed = self.first_failed();
        let worked = self
            .operations
            .iter()
            .filter(|o| o.outcome == "acked" && o.done < first_failed);
        let last_worked = worked.map(|o| o.sent).max().unwrap();
        assert!(
            fault <= first_failed,
            "the fault is stated after its effect"
        );
        assert!(
            fault >= last_worked - allowed,
            "the fault is stated long before its effect"
        );

        // What is only stated is added, in full and in words.
        let rto = usable_again(&self.operations, tenants, fault) - fault + RETRIEVAL_NS;
        let says = objective(report, "rto_from_fault")["definition"].as_str();
        assert!(
            says.unwrap()
                .ends_with("plus 1m until `main` can be read, as stated in its configuration"),
            "{says:?}"
        );
        near(
            "RTO",
            &objective(report, "rto_from_fault")["achieved_ms"],
            rto,
            uncertainty,
        );
        let newest = self
            .writes("acked")
            .filter(|o| o.done <= fault && self.recovered.contains(&o.key))
            .map(|o| o.done)
            .max()
            .expect("a write before the fault is back");
        near(
            "RPO",
            &objective(report, "rpo")["achieved_ms"],
            fault - newest,
            uncertainty,
        );
    }

    /// Counts, to the write. Returns how many acknowledged writes were lost.
    fn judge_counts(&self) -> u64 {
        let report = &self.report;
        let gone = |o: &&Operation| !self.recovered.contains(&o.key);
        let before = self
            .writes("acked")
            .filter(|o| o.done <= self.first_failed());
        let lost = before.filter(gone).count() as u64;
        assert_eq!(
            report.number("/loss/lost_writes"),
            lost,
            "{:#}",
            report.0["loss"]
        );
        assert_eq!(
            report.number("/probe/acknowledged"),
            self.writes("acked").count() as u64
        );
        // Without an answer is neither lost nor kept: counted apart.
        let unknown = self.writes("unknown").count() as u64;
        let back = unknown - self.writes("unknown").filter(gone).count() as u64;
        let stated = |name: &str| report.0["loss"][name].as_u64().unwrap_or_default();
        assert_eq!(stated("unknown_recovered"), back, "{:#}", report.0["loss"]);
        assert_eq!(
            stated("unknown_recovered") + stated("unknown_not_recovered"),
            unknown
        );
        lost
    }
}

/// One run, judged.
fn hold_and_judge(world: &World, drill: &Path, run: usize) -> u64 {
    let held = hold(world, drill, run);
    held.judge_times();
    held.judge_counts()
}

#[test]
fn a_drill_reports_what_its_probe_and_the_database_say() {
    let world = World::protected(&Options {
        settings: "archive_timeout = 3",
        ..Options::new("drill", &ERP)
    });
    world.edit_configuration("repository.key }", "repository.key }, retrieval: 1m");
    // Five runs of full length take as long as five incidents; the short one is the same code.
    let (runs, before, after) = if long() {
        (5, "20s", "10s")
    } else {
        (1, "6s", "3s")
    };
    let drill = scenario(&world, before, after);
    let rows = world.cluster.value("select count(*) from sales_order");
    let lost: Vec<u64> = (0..runs)
        .map(|run| hold_and_judge(&world, &drill, run))
        .collect();
    assert!(
        runs == 1 || lost.iter().any(|lost| *lost > 0),
        "no run lost a write: {lost:?}"
    );
    assert_eq!(
        world.cluster.value("select count(*) from sales_order"),
        rows,
        "production is untouched"
    );
}

/// No segment is archived between the load and the fault: what is back came from the stream.
#[test]
fn a_drill_of_a_streamed_database_receives_its_wal_as_production_does() {
    let world = World::protected(&Options {
        wal_segment_megabytes: 64,
        ..Options::new("drill-stream", &ERP)
    });
    world.edit_configuration("repository.key }", "repository.key }, retrieval: 1m");
    world.edit_configuration(
        "data_directory: data }",
        "data_directory: data, stream: { every: 100ms } }",
    );
    let drill = scenario(&world, "6s", "3s");
    let held = hold(&world, &drill, 0);
    held.judge_times();
    held.judge_counts();
    let assumed = format!("{}", held.report.0["design"]["assumptions"]);
    assert!(
        assumed.contains("its WAL was received as it is written, as in production"),
        "{assumed}"
    );
}

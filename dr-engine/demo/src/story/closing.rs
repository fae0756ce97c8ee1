//! The last page: what was protected, what was lost, what was promised and what was measured.

use serde_json::Value;

use super::shell::Shell;

/// What the chapters leave for the last page.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// `dr status --json` while everything ran.
    pub(super) protected: Value,
    /// The tenant that was put back.
    pub(super) tenant: String,
    pub(super) tenant_restore_seconds: f64,
    pub(super) held: Vec<Held>,
    /// `dr drill list --json`.
    pub(super) runs: Value,
    /// The reports' files.
    pub(super) reports: Vec<String>,
    pub(super) objectives_met: bool,
}

/// One drill.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) drill: &'static str,
    pub(super) met: bool,
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "not measured".to_owned(),
        Some(other) => other.to_string(),
    }
}

pub(super) fn tell(shell: &Shell, ending: &Ending) {
    shell.chapter("What you have seen");
    shell.say("protected:");
    for workload in ending
        .protected
        .pointer("/workloads")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        shell.say(&format!(
            "  {:<8} {:<9} tier {:<7} RPO {:<5} achieved {} s at that moment",
            text(workload, "/workload"),
            text(workload, "/kind"),
            text(workload, "/tier"),
            text(workload, "/rpo"),
            text(workload, "/age_seconds"),
        ));
    }
    shell.say(&format!(
        "restored: tenant {} in {:.1} s from command to proof; undone; restored again; no other tenant touched",
        ending.tenant, ending.tenant_restore_seconds
    ));
    shell.say("game days:");
    let runs: Vec<&Value> = ending.runs.as_array().into_iter().flatten().collect();
    for held in &ending.held {
        let run = runs.iter().find(|run| text(run, "/drill") == held.drill);
        shell.say(&match run {
            Some(run) => format!(
                "  {:<15} RTO {} s of {} s   RPO {} s of {} s   lost {} acknowledged writes   {}",
                held.drill,
                text(run, "/rto_seconds"),
                text(run, "/rto_objective_seconds"),
                text(run, "/rpo_seconds"),
                text(run, "/rpo_objective_seconds"),
                text(run, "/lost_writes"),
                if held.met { "met" } else { "MISSED" },
            ),
            None => format!("  {:<15} is in no list", held.drill),
        });
    }
    shell.say("");
    shell.say(&format!(
        "where everything lies: {}",
        shell.folder.display()
    ));
    shell.say("  dr.yaml, tier-configs/   what is protected, and the promises");
    shell.say("  repository/              everything that was saved; opens only with");
    shell.say("  repository.key           KEEP A COPY OF THIS ELSEWHERE");
    shell.say("  catalog.db               an index of it; `dr catalog rebuild` makes it anew");
    shell.say("  logs/                    what the servers, the daemon and the probes said");
    for report in &ending.reports {
        shell.say(&format!("  {report}"));
    }
    shell.say("");
    shell.say("what to type next:");
    shell.say(&format!("  export DR_CONFIG={}", shell.config().display()));
    shell.say(&format!("  {} backup list", shell.binary().display()));
    shell.say(&format!(
        "  {} restore erp --into /var/tmp/erp-again --start",
        shell.binary().display()
    ));
    shell.say(&format!(
        "  {} demo --dir {} --clean      # removes it all",
        shell.binary().display(),
        shell.folder.display()
    ));
}

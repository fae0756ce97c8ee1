//! From what a run left to its report. Everything here is measured, given, or said not to be.

use std::collections::BTreeSet;

use chrono::Days;
use dr_config::FaultConfig;
use dr_model::{HumanDuration, Position, RepositoryName, RestorePoint, clock::boot_id};
use dr_report::{
    Check, CleanUp, Criterion, Design, DrillReport, Evidence, Finding, Governance, Identity,
    InjectedFault, Loss, Measure, Moment, Objective, Overall, ProbeUse, QuarterPlace,
    REPORT_VERSION, RecoveryPointUsed, RunbookUse, Scope, SignOff, Status, StepLine, TenantLoss,
    TimeLine, ToolVersion, Volume, WorkloadInScope, quarter_of,
};
use dr_runbook::StepOutcome;

use crate::evidence::{self, sha256_of};
use crate::measure::{self, Facts, Measurement, Seen};
use crate::probe::milliseconds;
use crate::stage::{Stage, now};
use crate::verdict::{is_met, judge};

/// A failed drill is tested again within this.
const RETEST_DAYS: u64 = 30;
const SAMPLE_MAX: usize = 20;

const NS_PER_MS: u64 = 1_000_000;

/// Upwards: a report never makes a loss or a downtime look smaller.
fn ms(ns: u64) -> u64 {
    ns.div_ceil(NS_PER_MS)
}

fn moment(seen: Option<Seen>) -> Option<Moment> {
    seen.map(|seen| Moment {
        at: seen.wall,
        at_ns: seen.at_ns,
    })
}

/// The programs that took part.
pub(crate) fn tools(stage: &Stage) -> Vec<ToolVersion> {
    let bin = stage.sandbox.as_ref().and_then(|sandbox| {
        let of = |point: &RestorePoint| {
            point
                .postgres()
                .map(dr_model::PostgresPosition::major_version)
        };
        let major = sandbox.built_from.iter().find_map(of)?;
        dr_sources::postgres::tools::bin_directory(None, major).ok()
    });
    evidence::tools(&stage.cast.sandbox.dr_binary, bin)
}

/// The report.
pub(crate) fn report(stage: &Stage, evidence: Evidence, earlier: &[DrillReport]) -> DrillReport {
    let measured = measured(stage);
    let objectives = objectives(stage, measured.as_ref());
    let loss = loss(stage, measured.as_ref());
    let cleanup = clean_up(stage);
    let verification = verification(stage, &loss);
    let verdict = judge(
        stage.status,
        &objectives,
        criteria(stage, &cleanup, &verification, measured.as_ref()),
    );
    let failed = verdict.overall == Overall::Fail;
    let finished = now();
    let retest_by = failed
        .then(|| finished.at.checked_add_days(Days::new(RETEST_DAYS)))
        .flatten();
    let findings = findings(stage, &verdict.criteria, retest_by);
    DrillReport {
        version: REPORT_VERSION,
        identity: identity(stage, finished),
        governance: Governance {
            lead: stage.cast.drill.lead.clone(),
            executors: vec!["dr drill run, unattended".to_owned()],
            ..Governance::default()
        },
        scope: scope(stage),
        design: design(stage),
        fault: injected(stage, measured.as_ref()),
        runbook: runbook(stage),
        timeline: timeline(stage, measured.as_ref()),
        objectives,
        probe: probe(stage, measured.as_ref()),
        loss,
        recovery_points: recovery_points(stage),
        verification,
        volume: volume(stage),
        communication: Vec::new(),
        findings,
        verdict,
        cleanup,
        evidence,
        sign_off: SignOff {
            prepared: Some(format!("dr {}", env!("CARGO_PKG_VERSION"))),
            ..SignOff::default()
        },
        quarter: place(stage, earlier, retest_by),
    }
}

fn measured(stage: &Stage) -> Option<Measurement> {
    let (log, fault) = (stage.log.as_ref()?, stage.fault.as_ref()?);
    Some(measure::measure(
        log,
        Facts {
            fault_ns: fault.at_ns,
            declared_ns: stage.declared.map(|moment| moment.at_ns),
            after_failures: stage.cast.drill.detect.after_failures,
            recovered: stage.found.as_ref().map(|found| &found.keys),
        },
    ))
}

fn identity(stage: &Stage, finished: Moment) -> Identity {
    let cast = &stage.cast;
    Identity {
        id: cast.id.to_string(),
        drill: cast.drill.drill.clone(),
        drill_sha256: sha256_of(&cast.drill_file).unwrap_or_default(),
        period: quarter_of(stage.started.at),
        kind: "functional: a real fault, recovered by the runbook, in a sandbox".to_owned(),
        announced: None,
        environment: format!("sandbox {}", cast.sandbox.folder.display()),
        started: stage.started.at,
        finished: finished.at,
        time_zone: "UTC".to_owned(),
        clock: format!("CLOCK_MONOTONIC of boot {}", boot_id()),
        clock_offset_ms: None,
        previous_due: None,
        next_due: None,
        status: stage.status,
        cause: stage.cause.clone(),
    }
}

fn scope(stage: &Stage) -> Scope {
    let config = &stage.cast.parent.config;
    let workloads = stage.cast.sandbox.workloads.iter().filter_map(|(name, _)| {
        let found = config.workload(name.as_str()).ok()?;
        Some(WorkloadInScope {
            workload: name.to_string(),
            kind: found.source.kind().to_string(),
            tier: found.config.tier.to_string(),
        })
    });
    let inside: BTreeSet<&str> = stage
        .cast
        .sandbox
        .workloads
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let exclusions = config
        .workloads()
        .filter(|one| !inside.contains(one.name.as_str()))
        .map(|one| format!("{}: the drill's file does not name it", one.name));
    let tenancy = config
        .workload(stage.cast.workload.as_str())
        .ok()
        .and_then(|found| {
            found
                .config
                .tenancy
                .as_ref()
                .and_then(|tenancy| tenancy.model)
                .map(|m| format!("{m:?}"))
        });
    Scope {
        services: None,
        workloads: workloads.collect(),
        tenants: stage
            .log
            .as_ref()
            .map(|log| log.header.tenants.clone())
            .unwrap_or_default(),
        tenancy_model: tenancy.map(|model| model.to_lowercase()),
        suppliers: None,
        exclusions: exclusions.collect(),
        coverage_quarter: None,
        coverage_year: None,
    }
}

fn design(stage: &Stage) -> Design {
    let (drill, tier) = (&stage.cast.drill, &stage.cast.tier);
    let mut assumptions = vec![
        "the sandbox runs on this host, beside production: its speed is this host's".to_owned(),
        format!(
            "between steady state and fault: {}",
            stage.beside_the_load()
        ),
    ];
    assumptions.extend(retrieval(stage).map(|(repository, time)| {
        format!(
            "until repository `{repository}` can be read, {time} pass: stated, not measured, and added \
             to the downtime"
        )
    }));
    Design {
        objective: format!("tier {}: RTO {}, RPO {}", tier.tier, tier.rto, tier.rpo),
        scenario: drill.scenario.clone(),
        assumptions,
        preconditions: vec!["the probe is served before the fault".to_owned()],
        success_criteria: vec![
            format!("usable within {} of the fault", tier.rto),
            format!(
                "nothing lost that was acknowledged more than {} before the fault",
                tier.rpo
            ),
        ],
        abort_criteria: vec![
            "a signal to the runner".to_owned(),
            "the service is not usable within 3 times the RTO, at least 2 minutes".to_owned(),
        ],
        blast_radius: vec![
            format!(
                "processes and paths below {} only",
                stage.cast.sandbox.folder.display()
            ),
            "production is only read: its repository, not its servers".to_owned(),
        ],
    }
}

fn injected(stage: &Stage, measured: Option<&Measurement>) -> InjectedFault {
    let removed = measured.map(|m| {
        let seen = m.usable.is_some();
        let what = "every probed tenant is served again";
        Check::seen(
            "fault",
            what,
            seen,
            if seen {
                "3 good cycles in a row"
            } else {
                "it is not"
            },
        )
    });
    let planned = match &stage.cast.drill.fault {
        FaultConfig::KillPrimary { .. } => "kill_primary",
        FaultConfig::TenantMistake { .. } => "tenant_mistake",
        FaultConfig::DeleteStream { .. } => "delete_stream",
    };
    match &stage.fault {
        Some(fault) => InjectedFault {
            action: fault.action.clone(),
            target: fault.target.clone(),
            at: Some(fault.at),
            at_ns: Some(fault.at_ns),
            proof_effect: fault.proof.clone(),
            proof_removed: removed.into_iter().collect(),
        },
        None => InjectedFault {
            action: format!("{planned}: not carried out"),
            target: stage.cast.workload.to_string(),
            ..InjectedFault::default()
        },
    }
}

fn runbook(stage: &Stage) -> RunbookUse {
    let ran = stage.execution.as_ref();
    let approvals = ran
        .into_iter()
        .flat_map(|run| &run.steps)
        .filter(|s| s.action == "approval");
    RunbookUse {
        runbook: stage.cast.runbook.runbook.clone(),
        sha256: ran.map_or_else(
            || sha256_of(&stage.cast.drill.runbook).unwrap_or_default(),
            |run| run.sha256.clone(),
        ),
        deviations: Vec::new(),
        manual_steps: Vec::new(),
        approvals: approvals.map(|step| step.detail.clone()).collect(),
        command: stage.runbook_command.clone(),
    }
}

fn is_restoring(action: &str) -> bool {
    matches!(action, "restore" | "start" | "tenant_restore")
}

fn timeline(stage: &Stage, measured: Option<&Measurement>) -> TimeLine {
    let steps = stage
        .execution
        .as_ref()
        .map(|run| run.steps.as_slice())
        .unwrap_or_default();
    let restoring = || steps.iter().filter(|step| is_restoring(&step.action));
    let first = restoring().find_map(|step| Some((step.started?, step.started_ns?)));
    let last = restoring()
        .filter(|step| step.outcome == StepOutcome::Done)
        .filter_map(|step| Some((step.finished?, step.finished_ns?)))
        .next_back();
    let at = |pair: (chrono::DateTime<chrono::Utc>, u64)| Moment {
        at: pair.0,
        at_ns: pair.1,
    };
    let count = stage.cast.drill.detect.after_failures;
    TimeLine {
        last_acknowledged_write: moment(measured.and_then(|m| m.last_acknowledged)),
        fault: stage.fault.as_ref().map(|fault| Moment {
            at: fault.at,
            at_ns: fault.at_ns,
        }),
        detected: moment(stage.detected),
        detected_by: stage
            .detected
            .map(|_| format!("the probe: {count} failed cycles in a row")),
        declared: stage.declared,
        decided: stage.decided,
        restore_started: first.map(at),
        data_restored: last.map(at),
        usable: moment(measured.and_then(|m| m.usable)),
        back_to_normal: stage.normal,
        phases: stage.phases.clone(),
        steps: steps
            .iter()
            .filter_map(|step| {
                Some(StepLine {
                    action: step.action.clone(),
                    why: step.why.clone(),
                    planned_ms: milliseconds(step.timeout.0),
                    started_ns: step.started_ns?,
                    finished_ns: step.finished_ns?,
                    started: step.started?,
                    actor: "dr runbook run".to_owned(),
                    outcome: step.outcome.to_string(),
                    retries: step.retries,
                    detail: step.detail.clone(),
                    log: Some("runbook-output.log".to_owned()),
                })
            })
            .collect(),
    }
}

/// What a real restore would wait for and this run did not, as the configuration states it.
fn retrieval(stage: &Stage) -> Option<(RepositoryName, HumanDuration)> {
    let config = &stage.cast.parent.config;
    let found = config.workload(stage.cast.workload.as_str()).ok()?;
    config.retrieval_of(found.config)
}

fn objectives(stage: &Stage, measured: Option<&Measurement>) -> Vec<Objective> {
    let (tier, subject) = (&stage.cast.tier, stage.cast.workload.to_string());
    let why = stage
        .cause
        .clone()
        .unwrap_or_else(|| "the service was not seen to fail".to_owned());
    let uncertainty_ms = measured.map(|m| ms(m.uncertainty_ns));
    let line =
        |measure, subject: String, definition: &str, promised: Option<u64>, ns: Option<u64>| {
            let achieved_ms = ns.map(ms);
            Objective {
                subject,
                measure,
                definition: definition.to_owned(),
                objective_ms: promised,
                achieved_ms,
                reason: achieved_ms.is_none().then(|| why.clone()),
                uncertainty_ms,
                at_floor: false,
                met: promised.map(|promised| is_met(promised, achieved_ms)),
            }
        };
    let retrieval = retrieval(stage);
    let downtime = |ns: u64| match &retrieval {
        Some((_, time)) => ns.saturating_add(milliseconds(time.0).saturating_mul(NS_PER_MS)),
        None => ns,
    };
    let plus = retrieval
        .as_ref()
        .map_or_else(String::new, |(repository, time)| {
            format!(
                ", plus {time} until `{repository}` can be read, as stated in its configuration"
            )
        });
    let rto = Some(milliseconds(tier.rto.0));
    let rpo = Some(milliseconds(tier.rpo.0));
    let floored = |mut objective: Objective, raw: Option<u64>| {
        if let (Some(raw), Some(m)) = (raw, measured)
            && raw < m.floor_ns
        {
            objective.achieved_ms = Some(ms(m.floor_ns));
            objective.at_floor = true;
            objective.met = objective
                .objective_ms
                .map(|o| is_met(o, objective.achieved_ms));
        }
        objective
    };
    let whole = measured.and_then(|m| m.rpo_ns);
    let worst = measured.and_then(|m| m.rpo_worst_tenant.clone());
    let mut all = vec![
        line(
            Measure::RtoFromFault,
            subject.clone(),
            &format!(
                "from the fault to the end of the third good cycle in a row, all probed tenants{plus}"
            ),
            rto,
            measured.and_then(|m| m.rto_ns).map(downtime),
        ),
        line(
            Measure::RtoFromDeclaration,
            subject.clone(),
            &format!("from the declaration to the same moment{plus}"),
            None,
            measured.and_then(|m| m.rto_from_declared_ns).map(downtime),
        ),
        floored(
            line(
                Measure::Rpo,
                subject.clone(),
                "from the newest recovered write acknowledged before the fault to the fault",
                rpo,
                whole,
            ),
            whole,
        ),
    ];
    if let Some((tenant, worst)) = worst.filter(|_| measured.is_some_and(|m| m.tenants.len() > 1)) {
        let definition = "the same for the tenant that is worst off";
        let subject = format!("{subject}, tenant {tenant}");
        all.push(floored(
            line(Measure::Rpo, subject, definition, rpo, Some(worst)),
            Some(worst),
        ));
    }
    all.push(line(
        Measure::Detection,
        subject,
        "from the fault to the failed cycle of the probe that raised it",
        None,
        measured.and_then(|m| m.detection_ns),
    ));
    all
}

fn probe(stage: &Stage, measured: Option<&Measurement>) -> ProbeUse {
    let file = &stage.cast.probe;
    let log = stage.log.as_ref();
    ProbeUse {
        probe: file.probe.clone(),
        sha256: log
            .map(|log| log.header.probe_sha256.clone())
            .unwrap_or_default(),
        method: match (&file.write, &file.subject) {
            (Some(_), _) => {
                "a process of its own: one insert and one select for each tenant".to_owned()
            }
            _ => "a process of its own: one publish with acknowledgement, one get".to_owned(),
        },
        interval_ms: milliseconds(file.every.0),
        timeout_ms: milliseconds(file.timeout.0),
        uncertainty_ms: milliseconds(file.every.0) + milliseconds(file.timeout.0),
        cycles: measured.map_or(0, |m| m.cycles),
        writes: measured.map_or(0, |m| m.writes),
        acknowledged: measured.map_or(0, |m| m.acknowledged),
        boot_id: log
            .map(|log| log.header.boot_id.clone())
            .unwrap_or_default(),
    }
}

fn loss(stage: &Stage, measured: Option<&Measurement>) -> Loss {
    let Some(m) = measured else {
        return Loss::default();
    };
    let looked = stage.found.is_some();
    let (before, after) = (
        m.lost_before_fault.len() as u64,
        m.lost_after_fault.len() as u64,
    );
    let some = |value: u64| looked.then_some(value);
    let tenants = m.tenants.iter().map(|(tenant, lost)| TenantLoss {
        tenant: tenant.clone(),
        acknowledged: lost.acknowledged,
        lost: lost.lost,
        unknown: lost.unknown,
        rpo_ms: lost.rpo_ns.map(|rpo| ms(rpo.max(m.floor_ns))),
    });
    let sample = m.lost_before_fault.iter().chain(&m.lost_after_fault);
    Loss {
        lost_writes: some(before + after),
        lost_before_fault: some(before),
        lost_after_fault: some(after),
        duplicated_writes: stage.found.as_ref().and_then(|found| found.duplicated),
        unknown_recovered: some(m.unknown_recovered),
        unknown_not_recovered: some(m.unknown_not_recovered),
        tenants: if looked {
            tenants.collect()
        } else {
            Vec::new()
        },
        sample: sample.take(SAMPLE_MAX).cloned().collect(),
        after_the_point: looked.then(|| {
            format!("{before} acknowledged before the fault and {after} after it are gone for good")
        }),
    }
}

fn recovery_points(stage: &Stage) -> Vec<RecoveryPointUsed> {
    let fault = stage.fault.as_ref().map(|fault| fault.at);
    let steps = stage.execution.iter().flat_map(|run| &run.steps);
    let used = steps.filter(|step| step.action == "restore" && step.outcome == StepOutcome::Done);
    let mut points: Vec<RecoveryPointUsed> = used
        .map(|step| RecoveryPointUsed {
            workload: step
                .subject
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            id: step.restore_point.clone(),
            position: step.position.clone(),
            age_at_fault_ms: None,
            skew_ms: None,
            location: Some("the sandbox's own repository".to_owned()),
            lock: None,
            key: None,
            integrity: Some(
                "every chunk read was authenticated and its SHA-256 compared".to_owned(),
            ),
        })
        .collect();
    let built = stage.sandbox.iter().flat_map(|sandbox| &sandbox.built_from);
    points.extend(built.map(|point| RecoveryPointUsed {
        workload: format!("{} (the sandbox was built from it)", point.workload),
        id: Some(point.id.to_string()),
        position: Some(position(point)),
        age_at_fault_ms:
            fault.and_then(|at| u64::try_from((at - point.moment).num_milliseconds()).ok()),
        skew_ms: None,
        location: Some("the installation's repository".to_owned()),
        lock: None,
        key: None,
        integrity: Some("every chunk read was authenticated and its SHA-256 compared".to_owned()),
    }));
    points
}

fn position(point: &RestorePoint) -> String {
    match &point.position {
        Position::Postgres(at) => format!("{} to {}", at.start_lsn, at.stop_lsn),
        Position::Nats(at) => at
            .streams
            .iter()
            .map(|(name, stream)| format!("{name} up to {}", stream.last_sequence))
            .collect::<Vec<_>>()
            .join(", "),
        Position::Files(at) => format!("{} entries", at.entries),
        Position::TenantState(at) => at.tenant_name.clone(),
    }
}

fn verification(stage: &Stage, loss: &Loss) -> Vec<Check> {
    let mut checks = stage.checks.clone();
    for step in stage.execution.iter().flat_map(|run| &run.steps) {
        let group = match step.action.as_str() {
            "verify_sql" => "business",
            "verify_stream" | "backup" | "start" | "restore" => "technical",
            "tenant_restore" => "tenants",
            _ => continue,
        };
        let passed = step.outcome == StepOutcome::Done;
        checks.push(Check::seen(
            group,
            format!("runbook: {} {}", step.action, step.subject),
            passed,
            step.detail.clone(),
        ));
    }
    if let (FaultConfig::TenantMistake { .. }, Some(_)) =
        (&stage.cast.drill.fault, loss.lost_writes)
    {
        let hurt: u64 = loss.tenants.iter().filter(|tenant| tenant.lost > 0).count() as u64;
        checks.push(Check::seen(
            "tenants",
            "no other probed tenant lost an acknowledged write",
            hurt <= 1,
            format!("{hurt} tenants lost writes"),
        ));
    }
    for (group, what) in [
        ("business", "open orders, stock, balances, EDI"),
        ("security", "grants, row-level security, secrets"),
        ("integrations", "integrations neutralised"),
        ("erasure", "erased data still erased"),
    ] {
        if !checks
            .iter()
            .any(|check| check.group == group && group != "business")
        {
            checks.push(Check::not_measured(group, what));
        }
    }
    checks
}

fn volume(stage: &Stage) -> Volume {
    let steps = || {
        let all = stage.execution.iter().flat_map(|run| &run.steps);
        all.filter(|step| step.bytes.is_some())
    };
    let bytes: u64 = steps().filter_map(|step| step.bytes).sum();
    let took: u64 = steps()
        .filter_map(|step| Some(step.finished_ns?.saturating_sub(step.started_ns?)))
        .sum();
    let restored = (bytes > 0).then_some(bytes);
    Volume {
        bytes_read: None,
        bytes_written: restored,
        throughput_bytes_per_second: restored
            .and_then(|bytes| bytes.saturating_mul(1000).checked_div(took / NS_PER_MS)),
        compute_ms: None,
        cost: None,
    }
}

fn clean_up(stage: &Stage) -> CleanUp {
    let (before, after) = &stage.production;
    let untouched = before
        .servers
        .iter()
        .zip(&after.servers)
        .map(|((name, was), (_, is))| {
            let what = format!("the server of {name} is the same process as before");
            match (was, is) {
                (None, _) => Check::not_measured("production", format!("{what} (none ran here)")),
                (Some(was), is) => {
                    let detail = format!("pid {}, started at tick {}", was.pid, was.started_ticks);
                    Check::seen("production", what, Some(*was) == *is, detail)
                }
            }
        });
    CleanUp {
        removed: stage.cleaned.removed.clone(),
        proof: stage.cleaned.proof.clone(),
        production_untouched: untouched.collect(),
        residual_risk: stage.residual.clone(),
    }
}

fn criteria(
    stage: &Stage,
    cleanup: &CleanUp,
    verification: &[Check],
    measured: Option<&Measurement>,
) -> Vec<Criterion> {
    let all = |name: &str, checks: &[&Check]| {
        let bad: Vec<&str> = checks
            .iter()
            .filter(|check| check.passed == Some(false))
            .map(|check| check.what.as_str())
            .collect();
        Criterion {
            criterion: name.to_owned(),
            passed: (!checks.is_empty()).then_some(bad.is_empty()),
            detail: if bad.is_empty() {
                format!("{} looks", checks.len())
            } else {
                bad.join("; ")
            },
        }
    };
    let made = |checks: &[Check]| -> Vec<Check> {
        checks
            .iter()
            .filter(|check| check.passed.is_some())
            .cloned()
            .collect()
    };
    let effect = stage
        .fault
        .as_ref()
        .map(|fault| fault.proof.clone())
        .unwrap_or_default();
    let verified = made(verification);
    let proof: Vec<&Check> = cleanup.proof.iter().collect();
    let production: Vec<Check> = made(&cleanup.production_untouched);
    let steady = measured.filter(|m| m.usable.is_some());
    let mut criteria = vec![
        all("the fault took effect", &effect.iter().collect::<Vec<_>>()),
        all(
            "what was verified is as it must be",
            &verified.iter().collect::<Vec<_>>(),
        ),
        Criterion {
            criterion: "no failure after recovery".to_owned(),
            passed: steady.map(|m| m.failed_cycles_after_usable == 0),
            detail: steady.map_or_else(String::new, |m| {
                format!(
                    "{} failed cycles of the probe",
                    m.failed_cycles_after_usable
                )
            }),
        },
        all("the sandbox is gone", &proof),
    ];
    if !production.is_empty() {
        criteria.push(all(
            "production is untouched",
            &production.iter().collect::<Vec<_>>(),
        ));
    }
    criteria
}

fn findings(
    stage: &Stage,
    criteria: &[Criterion],
    due: Option<chrono::DateTime<chrono::Utc>>,
) -> Vec<Finding> {
    criteria
        .iter()
        .filter(|criterion| criterion.passed != Some(true))
        .zip(1..)
        .map(|(criterion, number)| Finding {
            id: format!("F{number}"),
            category: "criterion".to_owned(),
            severity: if stage.status == Status::Completed {
                "medium"
            } else {
                "high"
            }
            .to_owned(),
            what: format!(
                "does not hold: {} ({})",
                criterion.criterion, criterion.detail
            ),
            root_cause: stage.cause.clone(),
            action: None,
            owner: stage.cast.drill.lead.clone(),
            due,
            status: "open".to_owned(),
            retest: None,
        })
        .collect()
}

fn place(
    stage: &Stage,
    earlier: &[DrillReport],
    retest_by: Option<chrono::DateTime<chrono::Utc>>,
) -> QuarterPlace {
    let period = quarter_of(stage.started.at);
    let before = earlier
        .iter()
        .filter(|report| report.identity.period == period)
        .count() as u64;
    let previous = |measure| {
        earlier
            .last()
            .and_then(|report| report.objective(measure))
            .and_then(|o| o.achieved_ms)
    };
    QuarterPlace {
        runs_before: Some(before),
        previous_rto_ms: previous(Measure::RtoFromFault),
        previous_rpo_ms: previous(Measure::Rpo),
        retest_by,
    }
}

//! The report of one drill run, point by point.

use super::page::{
    NOT_GIVEN, NOT_MEASURED, Page, code, duration, escape, given, judged, listed, measured, moment,
    none, time,
};
use super::picture;
use crate::{DrillReport, Measure, Objective, Overall};

/// The report of one drill run.
#[must_use]
pub fn drill(report: &DrillReport) -> String {
    let identity = &report.identity;
    let mut page = Page::new(&format!("Drill report {} {}", identity.drill, identity.id));
    head(&mut page, report);
    identity_and_governance(&mut page, report);
    scope_and_design(&mut page, report);
    fault_and_runbook(&mut page, report);
    time_line(&mut page, report);
    objectives(&mut page, report);
    loss(&mut page, report);
    recovery_and_checks(&mut page, report);
    volume_and_communication(&mut page, report);
    findings_and_verdict(&mut page, report);
    clean_up_and_evidence(&mut page, report);
    closing(&mut page, report);
    page.finish(&format!(
        "Report {} · form version {} · all times UTC · durations on {} · what was not measured or not \
         given is printed as such",
        identity.id, report.version, identity.clock
    ))
}

fn head(page: &mut Page, report: &DrillReport) {
    let identity = &report.identity;
    let class = match report.verdict.overall {
        Overall::Pass => "good",
        Overall::Conditional => "warn",
        Overall::Fail => "bad",
    };
    page.raw(&format!(
        "<header><div class=lead><div><p class=kicker>Disaster recovery drill report · {}</p>\
         <h1>{}</h1><p>{}</p></div><div class=\"badge {class}\">{}<small>run {}</small></div></div></header>",
        escape(&identity.period),
        escape(&identity.drill),
        escape(report.design.scenario.as_deref().unwrap_or("scenario not given")),
        report.verdict.overall,
        identity.status
    ));
    if let Some(cause) = &identity.cause {
        page.raw(&format!(
            "<div class=cause><b>Cause:</b> {}</div>",
            escape(cause)
        ));
    }
    let figure = |measure: Measure, name: &str| {
        let found = report.objective(measure);
        let class = match found.and_then(|objective| objective.met) {
            Some(true) => " good",
            Some(false) => " bad",
            None => "",
        };
        let value = found.map_or_else(|| NOT_MEASURED.to_owned(), achieved);
        let of = found
            .and_then(|objective| objective.objective_ms)
            .map_or_else(
                || "nothing promised".to_owned(),
                |ms| {
                    let word = match found.and_then(|objective| objective.met) {
                        Some(true) => "met",
                        _ => "MISSED",
                    };
                    format!("promised {}: {word}", duration(ms))
                },
            );
        format!(
            "<div class=\"figure{class}\"><span class=name>{name}</span><b>{value}</b>\
             <span class=of>{of}</span></div>"
        )
    };
    let lost = report
        .loss
        .lost_writes
        .map_or_else(|| NOT_MEASURED.to_owned(), |n| n.to_string());
    page.raw(&format!(
        "<div class=figures>{}{}<div class=figure><span class=name>Lost writes</span><b>{lost}</b>\
         <span class=of>of {} acknowledged</span></div>{}</div>",
        figure(Measure::RtoFromFault, "Downtime (RTO)"),
        figure(Measure::Rpo, "Data loss (RPO)"),
        report.probe.acknowledged,
        figure(Measure::Detection, "Detection"),
    ));
    page.raw(&picture::bars(&report.objectives));
    page.raw(&picture::time_line(report));
}

fn achieved(objective: &Objective) -> String {
    match objective.achieved_ms {
        Some(ms) if objective.at_floor => format!("≤ {}", duration(ms)),
        Some(ms) => duration(ms),
        None => NOT_MEASURED.to_owned(),
    }
}

fn yes_no(value: Option<bool>) -> String {
    match value {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => none(NOT_GIVEN),
    }
}

fn identity_and_governance(page: &mut Page, report: &DrillReport) {
    let i = &report.identity;
    page.section("1", "Identity");
    page.facts(&[
        ("Report and run", code(&i.id)),
        ("Drill", escape(&i.drill)),
        ("Version (SHA-256 of its file)", code(&i.drill_sha256)),
        ("Period", escape(&i.period)),
        ("Kind", escape(&i.kind)),
        ("Announced", yes_no(i.announced)),
        ("Environment", escape(&i.environment)),
        ("Start", time(i.started)),
        ("End", time(i.finished)),
        ("Time zone", escape(&i.time_zone)),
        ("Clock", escape(&i.clock)),
        (
            "Clock offset",
            measured(i.clock_offset_ms.map(|ms| format!("{ms} ms"))),
        ),
        (
            "Previous due",
            i.previous_due.map_or_else(|| none(NOT_GIVEN), time),
        ),
        ("Next due", i.next_due.map_or_else(|| none(NOT_GIVEN), time)),
        ("Status", escape(&i.status.to_string())),
    ]);
    let g = &report.governance;
    page.section("2", "Governance");
    page.facts(&[
        ("Lead", given(g.lead.as_deref())),
        ("Executors", listed(&g.executors, NOT_GIVEN)),
        ("Observers", listed(&g.observers, NOT_GIVEN)),
        ("Approver", given(g.approver.as_deref())),
        ("Authorisation", given(g.authorisation.as_deref())),
        ("Risk reference", given(g.risk_reference.as_deref())),
        ("Controls served", listed(&g.controls, NOT_GIVEN)),
        ("Classification", given(g.classification.as_deref())),
    ]);
}

fn percent(share: Option<f64>) -> String {
    measured(share.map(|share| format!("{:.0} %", share * 100.0)))
}

fn scope_and_design(page: &mut Page, report: &DrillReport) {
    let s = &report.scope;
    page.section("3", "Scope");
    page.facts(&[
        (
            "Services",
            s.services
                .as_deref()
                .map_or_else(|| none(NOT_GIVEN), |all| listed(all, "none")),
        ),
        ("Tenants probed", escape(&s.tenants.join(", "))),
        ("Tenancy model", given(s.tenancy_model.as_deref())),
        (
            "Suppliers",
            s.suppliers
                .as_deref()
                .map_or_else(|| none(NOT_GIVEN), |all| listed(all, "none")),
        ),
        ("Exclusions", listed(&s.exclusions, NOT_GIVEN)),
        (
            "Critical systems covered, quarter",
            percent(s.coverage_quarter),
        ),
        (
            "Critical systems covered, 12 months",
            percent(s.coverage_year),
        ),
    ]);
    let rows: Vec<Vec<String>> = s
        .workloads
        .iter()
        .map(|w| vec![escape(&w.workload), escape(&w.kind), escape(&w.tier)])
        .collect();
    page.table(&["Workload", "Kind", "Tier"], &rows, NOT_GIVEN);
    let d = &report.design;
    page.section("4", "Design");
    page.facts(&[
        ("Objective", escape(&d.objective)),
        ("Scenario", given(d.scenario.as_deref())),
        ("Assumptions", listed(&d.assumptions, NOT_GIVEN)),
        ("Preconditions", listed(&d.preconditions, NOT_GIVEN)),
        ("Success criteria", listed(&d.success_criteria, NOT_GIVEN)),
        ("Abort criteria", listed(&d.abort_criteria, NOT_GIVEN)),
        ("Blast radius", listed(&d.blast_radius, NOT_GIVEN)),
    ]);
}

fn fault_and_runbook(page: &mut Page, report: &DrillReport) {
    let f = &report.fault;
    page.section("5", "Injected failure");
    page.facts(&[
        ("Action", escape(&f.action)),
        ("Target", escape(&f.target)),
        ("At", f.at.map_or_else(|| none(NOT_MEASURED), time)),
        (
            "At, CLOCK_MONOTONIC",
            measured(f.at_ns.map(|ns| format!("{ns} ns"))),
        ),
    ]);
    page.subsection("Proof that it took effect, seen from outside");
    page.checks(&f.proof_effect);
    page.subsection("Proof that its effect is gone");
    page.checks(&f.proof_removed);
    let r = &report.runbook;
    page.section("6", "Runbook");
    page.facts(&[
        ("Runbook", escape(&r.runbook)),
        ("Version (SHA-256 of its file)", code(&r.sha256)),
        ("Run by", code(&r.command)),
        ("Deviations", listed(&r.deviations, "none")),
        (
            "Manual and improvised steps",
            listed(&r.manual_steps, "none"),
        ),
        ("Approvals", listed(&r.approvals, "none asked for")),
    ]);
}

fn time_line(page: &mut Page, report: &DrillReport) {
    let t = &report.timeline;
    page.section("7", "Time line");
    let fault = t.fault.map(|moment| moment.at_ns);
    let after = |at: Option<crate::Moment>| match (at, fault) {
        (Some(at), Some(fault)) if at.at_ns >= fault => {
            format!("+{}", duration((at.at_ns - fault) / 1_000_000))
        }
        (Some(at), Some(fault)) => format!("−{}", duration((fault - at.at_ns) / 1_000_000)),
        _ => String::new(),
    };
    let rows: Vec<Vec<String>> = [
        ("Last acknowledged write", t.last_acknowledged_write),
        ("Fault", t.fault),
        ("Detected", t.detected),
        ("Declared", t.declared),
        ("Decided", t.decided),
        ("Restore started", t.restore_started),
        ("Data restored", t.data_restored),
        ("Verified usable", t.usable),
        ("Back to normal", t.back_to_normal),
    ]
    .into_iter()
    .map(|(name, at)| vec![name.to_owned(), moment(at), after(at)])
    .collect();
    page.table(
        &["Moment", "Wall clock", "#From the fault"],
        &rows,
        NOT_MEASURED,
    );
    page.facts(&[("Detected by", given(t.detected_by.as_deref()))]);
    page.subsection("Phases");
    let rows: Vec<Vec<String>> = t
        .phases
        .iter()
        .map(|phase| {
            vec![
                escape(&phase.name),
                time(phase.started),
                duration(phase.finished_ns.saturating_sub(phase.started_ns) / 1_000_000),
                judged(Some(phase.passed), "done", "FAILED"),
                escape(&phase.detail),
            ]
        })
        .collect();
    page.table(
        &["Phase", "Begin", "#Took", "Result", "Detail"],
        &rows,
        NOT_MEASURED,
    );
    page.subsection("Runbook steps");
    let rows: Vec<Vec<String>> = t
        .steps
        .iter()
        .map(|step| {
            vec![
                escape(&step.action),
                duration(step.planned_ms),
                duration(step.finished_ns.saturating_sub(step.started_ns) / 1_000_000),
                escape(&step.actor),
                judged(Some(step.outcome == "done"), "done", &escape(&step.outcome)),
                step.retries.to_string(),
                escape(&step.detail),
            ]
        })
        .collect();
    page.table(
        &[
            "Step", "#At most", "#Took", "By", "Result", "#Retries", "Detail",
        ],
        &rows,
        "no step was run",
    );
}

fn objectives(page: &mut Page, report: &DrillReport) {
    page.section("8", "Objectives against measured");
    let rows: Vec<Vec<String>> = report
        .objectives
        .iter()
        .map(|o| {
            let value = match (&o.achieved_ms, &o.reason) {
                (None, Some(reason)) => format!("{} ({})", none(NOT_MEASURED), escape(reason)),
                _ => escape(&achieved(o)),
            };
            let verdict = match (o.objective_ms, o.met) {
                (None, _) => none("nothing promised"),
                (Some(_), met) => judged(Some(met == Some(true)), "met", "MISSED"),
            };
            vec![
                escape(o.measure.label()),
                escape(&o.subject),
                o.objective_ms
                    .map_or_else(|| none("nothing promised"), duration),
                value,
                o.uncertainty_ms
                    .map_or_else(|| none(NOT_MEASURED), |ms| format!("± {}", duration(ms))),
                verdict,
                escape(&o.definition),
            ]
        })
        .collect();
    page.table(
        &[
            "Measure",
            "Of",
            "#Promised",
            "#Measured",
            "#Uncertainty",
            "Verdict",
            "From where to where",
        ],
        &rows,
        NOT_MEASURED,
    );
    let p = &report.probe;
    page.facts(&[
        ("Probe", escape(&p.probe)),
        ("Method", escape(&p.method)),
        (
            "Interval (the floor of RPO)",
            format!("{} ms", p.interval_ms),
        ),
        ("Time-out", format!("{} ms", p.timeout_ms)),
        (
            "Uncertainty = interval + time-out",
            format!("± {}", duration(p.uncertainty_ms)),
        ),
        (
            "Cycles / writes / acknowledged",
            format!("{} / {} / {}", p.cycles, p.writes, p.acknowledged),
        ),
        ("Probe file", code(&p.sha256)),
        ("Boot", code(&p.boot_id)),
    ]);
    let q = &report.quarter;
    page.subsection("Trend");
    page.facts(&[
        (
            "Previous run's RTO",
            measured(q.previous_rto_ms.map(duration)),
        ),
        (
            "Previous run's RPO",
            measured(q.previous_rpo_ms.map(duration)),
        ),
    ]);
}

fn count(value: Option<u64>) -> String {
    measured(value.map(|value| value.to_string()))
}

fn loss(page: &mut Page, report: &DrillReport) {
    let l = &report.loss;
    page.section("9", "Loss");
    page.facts(&[
        ("Acknowledged writes lost", count(l.lost_writes)),
        (
            "… acknowledged before the fault",
            count(l.lost_before_fault),
        ),
        (
            "… taken in by the damaged service",
            count(l.lost_after_fault),
        ),
        (
            "Acknowledged writes found twice",
            count(l.duplicated_writes),
        ),
        ("Without an answer, and there", count(l.unknown_recovered)),
        (
            "Without an answer, and not there",
            count(l.unknown_not_recovered),
        ),
        (
            "Writes after the recovery point",
            given(l.after_the_point.as_deref()),
        ),
        (
            "Keys of lost writes (sample)",
            if l.sample.is_empty() {
                none("none")
            } else {
                code(&l.sample.join(" "))
            },
        ),
    ]);
    let rows: Vec<Vec<String>> = l
        .tenants
        .iter()
        .map(|tenant| {
            vec![
                escape(&tenant.tenant),
                tenant.acknowledged.to_string(),
                tenant.lost.to_string(),
                tenant.unknown.to_string(),
                measured(tenant.rpo_ms.map(duration)),
            ]
        })
        .collect();
    page.table(
        &["Tenant", "#Acknowledged", "#Lost", "#No answer", "#RPO"],
        &rows,
        NOT_MEASURED,
    );
}

fn recovery_and_checks(page: &mut Page, report: &DrillReport) {
    page.section("10", "Recovery points");
    if report.recovery_points.is_empty() {
        page.raw(&format!("<p>{}</p>", none(NOT_MEASURED)));
    }
    for point in &report.recovery_points {
        page.facts(&[
            ("Workload", escape(&point.workload)),
            ("Restore point", given(point.id.as_deref())),
            ("Position", given(point.position.as_deref())),
            (
                "Age at the fault",
                measured(point.age_at_fault_ms.map(duration)),
            ),
            ("Skew between stores", measured(point.skew_ms.map(duration))),
            ("Kept at", given(point.location.as_deref())),
            ("Lock", given(point.lock.as_deref())),
            ("Key", given(point.key.as_deref())),
            ("Integrity", given(point.integrity.as_deref())),
        ]);
    }
    page.section("11", "Verification");
    page.checks(&report.verification);
}

fn volume_and_communication(page: &mut Page, report: &DrillReport) {
    let v = &report.volume;
    let bytes = |value: Option<u64>| {
        measured(value.map(|bytes| {
            let mib = bytes / (1 << 20);
            if mib > 0 {
                format!("{mib} MiB ({bytes} bytes)")
            } else {
                format!("{bytes} bytes")
            }
        }))
    };
    page.section("12", "Volume and cost");
    page.facts(&[
        ("Read from the repository", bytes(v.bytes_read)),
        ("Restored", bytes(v.bytes_written)),
        ("Restored per second", bytes(v.throughput_bytes_per_second)),
        ("Processor time", measured(v.compute_ms.map(duration))),
        (
            "Cost",
            v.cost
                .as_deref()
                .map_or_else(|| none("no price list given"), escape),
        ),
    ]);
    page.section("13", "Communication");
    let rows: Vec<Vec<String>> = report
        .communication
        .iter()
        .map(|message| {
            vec![
                escape(&message.who),
                time(message.at),
                escape(&message.what),
            ]
        })
        .collect();
    page.table(
        &["Who", "When", "What"],
        &rows,
        "nobody was told; the drill ran unattended",
    );
}

fn findings_and_verdict(page: &mut Page, report: &DrillReport) {
    page.section("14", "Findings");
    let rows: Vec<Vec<String>> = report
        .findings
        .iter()
        .map(|f| {
            vec![
                escape(&f.id),
                escape(&f.category),
                escape(&f.severity),
                escape(&f.what),
                given(f.root_cause.as_deref()),
                given(f.action.as_deref()),
                given(f.owner.as_deref()),
                f.due
                    .map_or_else(|| none(NOT_GIVEN), |at| at.format("%Y-%m-%d").to_string()),
                escape(&f.status),
            ]
        })
        .collect();
    page.table(
        &[
            "Id",
            "Kind",
            "Severity",
            "Finding",
            "Root cause",
            "Action",
            "Owner",
            "Due",
            "Status",
        ],
        &rows,
        "no finding",
    );
    page.section("15", "Verdict");
    page.paragraph(&format!("Overall: {}", report.verdict.overall));
    let rows: Vec<Vec<String>> = report
        .verdict
        .criteria
        .iter()
        .map(|c| {
            vec![
                escape(&c.criterion),
                judged(c.passed, "holds", "does NOT hold"),
                escape(&c.detail),
            ]
        })
        .collect();
    page.table(&["Criterion", "Result", "Detail"], &rows, NOT_MEASURED);
}

fn clean_up_and_evidence(page: &mut Page, report: &DrillReport) {
    let c = &report.cleanup;
    page.section("16", "Clean-up");
    page.facts(&[
        ("Removed", listed(&c.removed, "nothing")),
        (
            "Residual risk",
            c.residual_risk
                .as_deref()
                .map_or_else(|| none("none known"), escape),
        ),
    ]);
    page.checks(&c.proof);
    page.subsection("Production untouched");
    page.checks(&c.production_untouched);
    let e = &report.evidence;
    page.section("17", "Evidence");
    let rows: Vec<Vec<String>> = e
        .files
        .iter()
        .map(|file| {
            vec![
                escape(&file.name),
                file.bytes.to_string(),
                code(&file.sha256),
                file.record
                    .as_deref()
                    .map_or_else(|| none("file only"), code),
            ]
        })
        .collect();
    page.table(
        &["File", "#Bytes", "SHA-256", "Repository record"],
        &rows,
        "none",
    );
    let rows: Vec<Vec<String>> = e
        .tools
        .iter()
        .map(|tool| {
            vec![
                escape(&tool.tool),
                escape(&tool.version),
                tool.sha256
                    .as_deref()
                    .map_or_else(|| none(NOT_MEASURED), code),
            ]
        })
        .collect();
    page.table(&["Program", "Version", "SHA-256"], &rows, NOT_MEASURED);
    page.facts(&[
        (
            "Chain hash",
            e.chain_sha256
                .as_deref()
                .map_or_else(|| none(NOT_MEASURED), code),
        ),
        (
            "Signature",
            e.signature.as_deref().map_or_else(|| none(NOT_GIVEN), code),
        ),
        (
            "Kept until",
            e.retention.map_or_else(|| none(NOT_GIVEN), time),
        ),
    ]);
}

fn closing(page: &mut Page, report: &DrillReport) {
    let s = &report.sign_off;
    page.section("18", "Sign-off");
    page.raw(&format!(
        "<div class=sign><div>Prepared: {}</div><div>Reviewed (security): {}</div>\
         <div>Acknowledged (management): {}</div></div>",
        given(s.prepared.as_deref()),
        given(s.reviewed.as_deref()),
        given(s.acknowledged.as_deref())
    ));
    page.facts(&[("Distribution", listed(&s.distribution, NOT_GIVEN))]);
    let q = &report.quarter;
    page.section("19", "Within the quarter");
    page.facts(&[
        (
            "Runs of this drill before, this quarter",
            count(q.runs_before),
        ),
        (
            "Must be repeated by",
            q.retest_by.map_or_else(
                || none("not required"),
                |at| at.format("%Y-%m-%d").to_string(),
            ),
        ),
    ]);
    page.paragraph("The quarter's own report is written by dr drill report.");
}

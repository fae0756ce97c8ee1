//! The report of a quarter.

use super::page::{
    NOT_GIVEN, NOT_MEASURED, Page, duration, escape, judged, listed, measured, none, time,
};
use crate::{Overall, QuarterReport, QuarterRun};

/// The report of a quarter.
#[must_use]
pub fn quarter(report: &QuarterReport) -> String {
    let mut page = Page::new(&format!("Recovery drills {}", report.quarter));
    page.raw(&format!(
        "<header><p class=kicker>Disaster recovery drills</p><h1>Quarter {}</h1><p>made {}</p></header>",
        escape(&report.quarter),
        time(report.made)
    ));
    let share = |share: Option<f64>| measured(share.map(|share| format!("{:.0} %", share * 100.0)));
    page.raw(&format!(
        "<div class=figures><div class=figure><span class=name>Drills held</span><b>{}</b>\
         <span class=of>planned: {}</span></div><div class=figure><span class=name>RTO met</span><b>{}</b></div>\
         <div class=figure><span class=name>RPO met</span><b>{}</b></div>\
         <div class=figure><span class=name>Workloads covered</span><b>{}</b></div></div>",
        report.held,
        measured(report.planned.map(|planned| planned.to_string())),
        share(report.rto_met_share),
        share(report.rpo_met_share),
        share(report.coverage),
    ));
    page.section("1", "Drills held");
    let rows: Vec<Vec<String>> = report.runs.iter().map(row).collect();
    page.table(
        &[
            "Run", "Drill", "Begin", "Status", "Verdict", "#RTO", "#RPO", "#Lost", "Re-test",
        ],
        &rows,
        "no drill was held in this quarter",
    );
    page.facts(&[
        (
            "Cancelled",
            report
                .cancelled
                .as_deref()
                .map_or_else(|| none("not recorded"), |all| listed(all, "none")),
        ),
        (
            "Not covered by any drill",
            listed(&report.not_covered, "none: every workload is covered"),
        ),
    ]);
    backups_and_findings(&mut page, report);
    page.finish(&format!(
        "Quarter {} · form version {} · from the drill runs kept in the repository",
        report.quarter, report.version
    ))
}

fn backups_and_findings(page: &mut Page, report: &QuarterReport) {
    page.section("2", "Backups");
    let rows: Vec<Vec<String>> = report
        .staleness
        .iter()
        .flatten()
        .map(|stale| {
            vec![
                escape(&stale.workload),
                stale
                    .age_seconds
                    .map_or_else(|| none("has no restore point"), |s| duration(s * 1000)),
            ]
        })
        .collect();
    page.table(
        &["Workload", "Age of its newest restore point"],
        &rows,
        NOT_MEASURED,
    );
    page.facts(&[
        (
            "Backups that succeeded",
            measured(
                report
                    .backup_success
                    .map(|share| format!("{:.0} %", share * 100.0)),
            ),
        ),
        (
            "Restore tests passed",
            measured(
                report
                    .restore_tests
                    .map(|tests| format!("{} of {}", tests.passed, tests.made)),
            ),
        ),
    ]);
    page.section("3", "Open findings");
    let rows: Vec<Vec<String>> = report
        .open_findings
        .iter()
        .map(|open| {
            vec![
                escape(&open.run),
                escape(&open.finding.id),
                escape(&open.finding.severity),
                escape(&open.finding.what),
                open.age_days.to_string(),
                open.finding
                    .due
                    .map_or_else(|| none(NOT_GIVEN), |at| at.format("%Y-%m-%d").to_string()),
            ]
        })
        .collect();
    page.table(
        &["Run", "Id", "Severity", "Finding", "#Age, days", "Due"],
        &rows,
        "no open finding",
    );
    page.facts(&[(
        "Exceptions accepted",
        report
            .exceptions
            .as_deref()
            .map_or_else(|| none(NOT_GIVEN), |all| listed(all, "none")),
    )]);
}

fn row(run: &QuarterRun) -> Vec<String> {
    let against = |achieved: Option<u64>, promised: Option<u64>| {
        let achieved = measured(achieved.map(duration));
        promised.map_or(achieved.clone(), |promised| {
            format!("{achieved} of {}", duration(promised))
        })
    };
    let retest = match (&run.retested_by, run.retest_by) {
        (Some(id), _) => escape(id),
        (None, Some(by)) => format!("due {}", by.format("%Y-%m-%d")),
        (None, None) => "not required".to_owned(),
    };
    vec![
        escape(&run.id),
        escape(&run.drill),
        time(run.started),
        escape(&run.status.to_string()),
        judged(
            Some(run.overall != Overall::Fail),
            &run.overall.to_string(),
            "FAIL",
        ),
        against(run.rto_ms, run.rto_objective_ms),
        against(run.rpo_ms, run.rpo_objective_ms),
        measured(run.lost_writes.map(|lost| lost.to_string())),
        retest,
    ]
}

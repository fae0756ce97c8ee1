//! Pictures as SVG: the run's time line, and achieved against promised.

use std::fmt::Write;

use super::page::{duration, escape};
use crate::{DrillReport, Objective};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 30.0;
const ROW: f64 = 25.0;

#[allow(clippy::cast_precision_loss, reason = "a place in a picture")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1_000_000.0
}

#[allow(clippy::cast_precision_loss, reason = "a place in a picture")]
fn float(value: u64) -> f64 {
    value as f64
}

struct Row {
    name: String,
    from: f64,
    to: f64,
    passed: bool,
    step: bool,
}

/// A distance between marks that gives some eight of them.
fn tick(span_ms: f64) -> f64 {
    [
        500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 30_000.0, 60_000.0, 120_000.0,
        300_000.0, 600_000.0,
    ]
    .into_iter()
    .find(|tick| span_ms / tick <= 10.0)
    .unwrap_or(1_800_000.0)
}

fn rows(report: &DrillReport, origin: u64) -> Vec<Row> {
    let at = |ns: u64| ms(ns.saturating_sub(origin));
    let mut rows = Vec::new();
    for phase in &report.timeline.phases {
        rows.push(Row {
            name: phase.name.clone(),
            from: at(phase.started_ns),
            to: at(phase.finished_ns),
            passed: phase.passed,
            step: false,
        });
        if phase.name == "runbook" {
            rows.extend(report.timeline.steps.iter().map(|step| Row {
                name: step.action.clone(),
                from: at(step.started_ns),
                to: at(step.finished_ns),
                passed: step.outcome == "done",
                step: true,
            }));
        }
    }
    rows
}

/// The phases and steps against time, with fault, detection and use returned as lines.
pub(super) fn time_line(report: &DrillReport) -> String {
    let Some(origin) = report
        .timeline
        .phases
        .iter()
        .map(|phase| phase.started_ns)
        .min()
    else {
        return String::new();
    };
    let rows = rows(report, origin);
    let span = rows.iter().map(|row| row.to).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / span;
    let x = |at: f64| LEFT + at * scale;
    let top = 62.0;
    let bottom = top + ROW * float(rows.len() as u64);
    let height = bottom + 30.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-labelledby=\"tl-t tl-d\">\
         <title id=tl-t>Time line of the run</title><desc id=tl-d>Phases and runbook steps against \
         seconds since the run began; the same values stand in the tables of section 7.</desc>"
    );
    let step = tick(span);
    let mut mark = 0.0;
    while mark <= span {
        let _ = write!(
            svg,
            "<line x1={0:.1} x2={0:.1} y1={top} y2={bottom} stroke=#e3e8ee /><text x={0:.1} y={1:.1} \
             font-size=11 fill=#5a6675 text-anchor=middle>{2:.0} s</text>",
            x(mark),
            bottom + 17.0,
            mark / 1000.0
        );
        mark += step;
    }
    for (row, index) in rows.iter().zip(0_u64..) {
        let y = top + ROW * float(index);
        let colour = match (row.passed, row.step) {
            (false, _) => "#9c1f1f",
            (true, false) => "#24588f",
            (true, true) => "#7fa6cf",
        };
        let name = if row.step {
            format!("– {}", row.name)
        } else {
            row.name.clone()
        };
        let failed = if row.passed { "" } else { " ✗" };
        let width = ((row.to - row.from) * scale).max(2.0);
        let label = format!("{}{failed}", duration_of(row.to - row.from));
        // Long bars carry their length inside, short ones beside them.
        let (label_x, anchor, fill) = if width > 70.0 {
            (
                x(row.from) + width - 6.0,
                "end",
                if row.step { "#10253c" } else { "#fff" },
            )
        } else if x(row.to) > WIDTH - 90.0 {
            (x(row.from) - 5.0, "end", "#1b2430")
        } else {
            (x(row.from) + width + 5.0, "start", "#1b2430")
        };
        let _ = write!(
            svg,
            "<text x={0} y={1:.1} font-size=13 fill=#1b2430 text-anchor=end>{2}</text>\
             <rect x={3:.1} y={4:.1} width={width:.1} height=16 fill={colour} rx=2 />\
             <text x={label_x:.1} y={1:.1} font-size=11 fill={fill} text-anchor={anchor}>{label}</text>",
            LEFT - 10.0,
            y + 16.5,
            escape(&name),
            x(row.from),
            y + 4.0,
        );
    }
    svg.push_str(&moments(report, origin, bottom, x));
    svg.push_str("</svg>");
    svg
}

fn moments(report: &DrillReport, origin: u64, bottom: f64, x: impl Fn(f64) -> f64) -> String {
    let line = &report.timeline;
    let mut svg = String::new();
    let marks = [
        ("fault", line.fault, "#9c1f1f", 14.0),
        ("detected", line.detected, "#7a5200", 30.0),
        ("usable", line.usable, "#1d6b3f", 46.0),
    ];
    for (name, moment, colour, y) in marks {
        let Some(moment) = moment else { continue };
        let at = ms(moment.at_ns.saturating_sub(origin));
        let _ = write!(
            svg,
            "<line x1={0:.1} x2={0:.1} y1={1:.1} y2={bottom} stroke={colour} stroke-width=1.5 \
             stroke-dasharray=\"4 3\" /><text x={2:.1} y={1:.1} font-size=12 font-weight=700 \
             fill={colour} text-anchor=end>{name} {3:.1} s</text>",
            x(at),
            y,
            x(at) - 5.0,
            at / 1000.0
        );
    }
    svg
}

fn duration_of(ms: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a difference of two moments of one run, not negative"
    )]
    duration(ms.max(0.0) as u64)
}

/// Achieved against promised, each row on a scale of its own; the promise is the line at 2/3.
pub(super) fn bars(objectives: &[Objective]) -> String {
    let promised: Vec<&Objective> = objectives
        .iter()
        .filter(|objective| objective.objective_ms.is_some())
        .collect();
    if promised.is_empty() {
        return String::new();
    }
    let (left, row) = (300.0, 44.0);
    let height = row * float(promised.len() as u64) + 24.0;
    let line = left + (WIDTH - left - RIGHT) * 2.0 / 3.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-labelledby=\"ba-t ba-d\">\
         <title id=ba-t>Achieved against promised</title><desc id=ba-d>One bar for each promise; the \
         upright line is the promise; the same values stand in the table of section 8.</desc>\
         <text x={line:.1} y=14 font-size=12 fill=#5a6675 text-anchor=middle>promised</text>"
    );
    for (objective, index) in promised.iter().zip(0_u64..) {
        let y = 24.0 + row * float(index);
        let limit = objective.objective_ms.map_or(1.0, |ms| float(ms).max(1.0));
        let (met, text) = (objective.met == Some(true), label(objective));
        let share = objective.achieved_ms.map_or(0.0, |ms| float(ms) / limit);
        // Anything beyond one and a half times the promise is drawn to the edge and says so.
        let width = ((line - left) * share).clamp(2.0, WIDTH - RIGHT - left);
        let colour = if met { "#2f7d4f" } else { "#9c1f1f" };
        let beyond = if share > 1.5 { " (bar cut off)" } else { "" };
        let _ = write!(
            svg,
            "<text x={0} y={1:.1} font-size=13 text-anchor=end fill=#1b2430>{2}</text>\
             <rect x={left} y={3:.1} width={4:.1} height=15 fill=#eef1f5 />\
             <rect x={left} y={3:.1} width={width:.1} height=15 fill={colour} />\
             <line x1={line:.1} x2={line:.1} y1={5:.1} y2={6:.1} stroke=#1b2430 stroke-width=2 />\
             <text x={left} y={7:.1} font-size=12 fill=#1b2430>{text}{beyond}</text>",
            left - 12.0,
            y + 13.0,
            escape(&format!(
                "{} · {}",
                objective.measure.label(),
                objective.subject
            )),
            y + 1.0,
            WIDTH - RIGHT - left,
            y - 2.0,
            y + 19.0,
            y + 31.0,
        );
    }
    svg.push_str("</svg>");
    svg
}

fn label(objective: &Objective) -> String {
    let promised = objective.objective_ms.map_or_else(String::new, duration);
    let word = if objective.met == Some(true) {
        "met"
    } else {
        "MISSED"
    };
    match objective.achieved_ms {
        Some(ms) if objective.at_floor => {
            format!(
                "≤ {} (the probe's floor) of {promised}: {word}",
                duration(ms)
            )
        }
        Some(ms) => format!("{} of {promised}: {word}", duration(ms)),
        None => format!("not measured, promised {promised}: {word}"),
    }
}

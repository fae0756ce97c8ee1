//! What is wrong (pure), and telling it: once as a log line when it begins, once when it is mended.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use dr_backup::WorkloadStatus;
use dr_backup::wal::Standings;
use dr_catalog::{Catalog, CatalogError};
use dr_model::WorkloadName;
use dr_scheduler::Activity;

use crate::timetable::Entry;

/// Alerts by subject. A subject is only about one thing, so that it can be mended.
pub(crate) type Alerts = BTreeMap<String, String>;

/// What the schedules' recent past says.
pub(crate) fn of_schedules(entries: &[Entry], now: DateTime<Utc>) -> Alerts {
    let mut alerts = Alerts::new();
    for entry in entries {
        let (subject, activity) = (&entry.planned.subject, entry.planned.activity.name());
        let message = if let Some((at, reason)) = &entry.last_failure {
            format!(
                "{activity} of {subject} failed {} times in a row, last at {}: {reason}",
                entry.failures_in_a_row,
                time(*at)
            )
        } else if let Some(since) = entry.late_since(now) {
            format!(
                "{activity} of {subject} was to run at {} and has not: its lane is not free",
                time(since)
            )
        } else {
            continue;
        };
        alerts.insert(format!("schedule {}", entry.planned.key), message);
    }
    alerts
}

/// A receiver that fails for longer than this is an alarm: a server that is started anew is not.
const STREAM_GRACE: TimeDelta = TimeDelta::seconds(15);

/// What the receivers of WAL say.
pub(crate) fn of_streams(
    streams: &BTreeMap<WorkloadName, Standings>,
    now: DateTime<Utc>,
) -> Alerts {
    let failing = streams.iter().filter_map(|(workload, standings)| {
        let failing = standings.now().failing?;
        (now - failing.since > STREAM_GRACE).then(|| {
            let message = format!(
                "`{workload}`: its WAL is not received as it is written since {}: {}",
                time(failing.since),
                failing.why
            );
            (format!("stream {workload}"), message)
        })
    });
    failing.collect()
}

/// What the repositories say. `started` is when this daemon began: a new workload has until its
/// objective after that to have anything at all.
pub(crate) fn of_status(
    statuses: &[WorkloadStatus],
    entries: &[Entry],
    started: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Alerts {
    let mut alerts = Alerts::new();
    for status in statuses {
        let workload = &status.workload;
        if status.rpo_met == Some(false) || nothing_for_too_long(status, started, now) {
            let age = status
                .recoverable_to
                .map_or_else(|| "nothing".to_owned(), |to| format!("only {}", time(to)));
            let mut message = format!(
                "`{workload}`: {age} can be recovered; the objective is {}",
                status.rpo
            );
            for problem in &status.problems {
                message.push_str("; ");
                message.push_str(problem);
            }
            alerts.insert(format!("rpo {workload}"), message);
        }
        if let Some(what) = &status.list_went_back {
            alerts.insert(format!("list {workload}"), format!("`{workload}`: {what}"));
        }
        if !status.copies_met && status.newest.is_some() {
            let copies: Vec<String> = status.copies.iter().map(ToString::to_string).collect();
            let message = format!(
                "`{workload}`: the tier promises {} repositories; {}",
                status.copies_promised,
                copies.join("; ")
            );
            alerts.insert(format!("copies {workload}"), message);
        }
        if let Some(given_up) = &status.given_up {
            let message = format!("`{workload}`: {given_up}");
            alerts.insert(format!("given-up {workload}"), message);
        }
        if let Some(archiver) = &status.archiver {
            alerts.insert(
                format!("archiver {workload}"),
                format!("`{workload}`: {archiver}"),
            );
        }
        if let Some(window) = &status.window
            && !window.gaps.is_empty()
        {
            let message = format!("`{workload}`: WAL is missing: {}", window.gaps.join(", "));
            alerts.insert(format!("wal {workload}"), message);
        }
        if let Some(proof) = status
            .last_verification
            .as_ref()
            .filter(|proof| !proof.passed)
        {
            let message = format!("`{workload}`: the verification of {} failed", proof.point);
            alerts.insert(format!("proof {workload}"), message);
        }
        if let Some(since) = verification_overdue(status, entries, started, now) {
            let message = format!(
                "`{workload}`: no restore point was proven since {}, two planned verifications ago",
                time(since)
            );
            alerts.insert(format!("verification {workload}"), message);
        }
    }
    alerts
}

fn nothing_for_too_long(
    status: &WorkloadStatus,
    started: DateTime<Utc>,
    now: DateTime<Utc>,
) -> bool {
    status.rpo_met.is_none() && (now - started).to_std().is_ok_and(|up| up > status.rpo.0)
}

/// Since when, if two planned verifications have passed since the last one that held.
fn verification_overdue(
    status: &WorkloadStatus,
    entries: &[Entry],
    started: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let entry = entries.iter().find(|entry| {
        entry.planned.subject.workload() == Some(&status.workload)
            && matches!(entry.planned.activity, Activity::Verify { .. })
    })?;
    let since = match &status.last_verification {
        Some(proof) if proof.passed => proof.finished,
        // A failed one has an alert of its own.
        Some(_) => return None,
        None => started,
    };
    let schedule = &entry.planned.schedule;
    let second = schedule.next_after(schedule.next_after(since)?)?;
    (second + chrono::TimeDelta::from_std(crate::timetable::LATE_AFTER).ok()? < now)
        .then_some(since)
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Brings the catalog and the log to `alerts`. Only subjects for which `in_scope` says so are cleared.
pub(crate) async fn tell(
    catalog: &Catalog,
    alerts: &Alerts,
    in_scope: impl Fn(&str) -> bool,
    now: DateTime<Utc>,
) -> Result<(), CatalogError> {
    for (subject, message) in alerts {
        if catalog.raise_alert(subject, message, now).await? {
            tracing::error!(alert = subject, "{message}");
        }
    }
    for open in catalog.open_alerts().await? {
        if in_scope(&open.subject)
            && !alerts.contains_key(&open.subject)
            && catalog.clear_alert(&open.subject, now).await?
        {
            tracing::info!(alert = open.subject, "mended: {}", open.message);
        }
    }
    Ok(())
}

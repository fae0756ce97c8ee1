//! Logs are made from a plan of what happened, and the numbers must be those of the plan.

use proptest::prelude::*;

use super::*;
use crate::probe::Header;

const MS: u64 = 1_000_000;

/// What happened: cycles of equal length; a fault between two of them; an outage of some cycles; a
/// number of newest writes before the fault that are gone.
#[derive(Debug, Clone)]
struct Plan {
    tenants: u64,
    interval_ms: u64,
    before: u64,
    outage: u64,
    after: u64,
    lost: u64,
    unknown: u64,
}

fn plans() -> impl Strategy<Value = Plan> {
    (
        1..5u64,
        10..500u64,
        1..30u64,
        3..40u64,
        3..20u64,
        0..40u64,
        0..4u64,
    )
        .prop_map(
            |(tenants, interval_ms, before, outage, after, lost, unknown)| Plan {
                tenants,
                interval_ms,
                before,
                outage,
                after,
                lost: lost.min(before * tenants),
                unknown: unknown.min(tenants),
            },
        )
}

struct Story {
    log: ProbeLog,
    fault_ns: u64,
    recovered: BTreeSet<String>,
    expected_usable_ns: u64,
    expected_detected_ns: u64,
}

fn tell(plan: &Plan) -> Story {
    let tenants: Vec<String> = (0..plan.tenants).map(|n| format!("t{n}")).collect();
    let start = 1_000_000 * MS;
    let interval = plan.interval_ms * MS;
    // Operations of a cycle are spread over its first half.
    let step = interval / (4 * plan.tenants);
    let mut records = Vec::new();
    let mut acked_before: Vec<(u64, String)> = Vec::new();
    let mut recovered = BTreeSet::new();
    let mut seq = 0;
    for cycle in 0..plan.before + plan.outage + plan.after {
        let down = cycle >= plan.before && cycle < plan.before + plan.outage;
        for (place, tenant) in tenants.iter().enumerate() {
            seq += 1;
            let key = format!("probe-x-{seq}-{tenant}");
            let at = start + cycle * interval + 2 * step * place as u64;
            let outcome = match down {
                false => Outcome::Acked,
                true if cycle == plan.before && (place as u64) < plan.unknown => Outcome::Unknown,
                true => Outcome::Failed,
            };
            let record = Record {
                seq,
                cycle,
                tenant: tenant.clone(),
                key: key.clone(),
                op: Op::Write,
                sent_ns: at,
                done_ns: at + step,
                outcome,
                wall: DateTime::UNIX_EPOCH,
                error: None,
                sequence: None,
            };
            if outcome == Outcome::Acked {
                if cycle < plan.before {
                    acked_before.push((record.done_ns, key));
                } else {
                    recovered.insert(key);
                }
                records.push(record.clone());
                records.push(Record {
                    op: Op::Read,
                    sent_ns: at + step,
                    done_ns: at + 2 * step,
                    ..record
                });
            } else {
                records.push(record);
            }
        }
    }
    let keep = acked_before.len() - usize::try_from(plan.lost).unwrap();
    recovered.extend(acked_before.iter().take(keep).map(|(_, key)| key.clone()));
    // In the second half of the last interval before the outage.
    let fault_ns = start + plan.before * interval - interval / 4;
    let end = |cycle: u64, down: bool| {
        let last = start + cycle * interval + 2 * step * (plan.tenants - 1);
        last + if down { step } else { 2 * step }
    };
    Story {
        log: ProbeLog {
            header: Header {
                version: 1,
                probe: "p".to_owned(),
                probe_sha256: String::new(),
                run: "x".to_owned(),
                boot_id: "b".to_owned(),
                interval_ms: plan.interval_ms,
                timeout_ms: 2000,
                started_ns: start,
                started: DateTime::UNIX_EPOCH,
                tenants,
            },
            records,
        },
        fault_ns,
        recovered,
        expected_usable_ns: end(plan.before + plan.outage + 2, false),
        expected_detected_ns: end(plan.before + 2, true),
    }
}

fn facts(story: &Story) -> Facts<'_> {
    Facts {
        fault_ns: story.fault_ns,
        declared_ns: Some(story.expected_detected_ns + 5),
        after_failures: 3,
        recovered: Some(&story.recovered),
    }
}

proptest! {
    #[test]
    fn the_numbers_are_those_of_what_happened(plan in plans()) {
        let story = tell(&plan);
        let measured = measure(&story.log, facts(&story));
        prop_assert_eq!(measured.detected.map(|seen| seen.at_ns), Some(story.expected_detected_ns));
        prop_assert_eq!(measured.usable.map(|seen| seen.at_ns), Some(story.expected_usable_ns));
        prop_assert_eq!(measured.rto_ns, Some(story.expected_usable_ns - story.fault_ns));
        prop_assert_eq!(measured.lost_before_fault.len() as u64, plan.lost);
        prop_assert!(measured.lost_after_fault.is_empty());
        prop_assert_eq!(measured.unknown_not_recovered, plan.unknown.min(plan.tenants));
        prop_assert_eq!(measured.unknown_recovered, 0);
        prop_assert_eq!(measured.acknowledged, (plan.before + plan.after) * plan.tenants);
        let by_tenant: u64 = measured.tenants.values().map(|tenant| tenant.lost).sum();
        prop_assert_eq!(by_tenant, plan.lost);
        prop_assert_eq!(measured.failed_cycles_after_usable, 0);
    }

    #[test]
    fn rpo_reaches_back_to_the_newest_write_that_is_there(plan in plans()) {
        let story = tell(&plan);
        let measured = measure(&story.log, facts(&story));
        let newest = story
            .log
            .records
            .iter()
            .filter(|r| r.op == Op::Write && r.outcome == Outcome::Acked)
            .filter(|r| r.done_ns <= story.fault_ns && story.recovered.contains(&r.key))
            .map(|r| r.done_ns)
            .max();
        prop_assert_eq!(measured.rpo_ns, newest.map(|at| story.fault_ns - at));
        if plan.lost == 0 {
            prop_assert!(measured.rpo_ns.unwrap() <= story.log.header.interval_ms * MS);
        }
    }

    #[test]
    fn losing_one_more_write_never_looks_better(plan in plans()) {
        let story = tell(&plan);
        let before = measure(&story.log, facts(&story));
        for key in story.recovered.iter().take(5) {
            let mut fewer = story.recovered.clone();
            fewer.remove(key);
            let after = measure(&story.log, Facts { recovered: Some(&fewer), ..facts(&story) });
            let lost = |m: &Measurement| m.lost_before_fault.len() + m.lost_after_fault.len();
            prop_assert_eq!(lost(&after), lost(&before) + 1);
            prop_assert!(after.rpo_ns.unwrap_or(u64::MAX) >= before.rpo_ns.unwrap_or(u64::MAX));
        }
    }

    #[test]
    fn a_log_cut_anywhere_gives_no_false_usable(plan in plans(), cut in 0.0..1.0f64) {
        let story = tell(&plan);
        let mut log = story.log.clone();
        #[allow(clippy::cast_sign_loss, clippy::cast_precision_loss, clippy::cast_possible_truncation,
            reason = "a place in a short list")]
        log.records.truncate((log.records.len() as f64 * cut) as usize);
        let measured = measure(&log, facts(&story));
        if let Some(seen) = measured.usable {
            prop_assert_eq!(seen.at_ns, story.expected_usable_ns);
        }
        if let Some(seen) = measured.detected {
            prop_assert_eq!(seen.at_ns, story.expected_detected_ns);
        }
    }
}

fn plan() -> Plan {
    Plan {
        tenants: 2,
        interval_ms: 100,
        before: 10,
        outage: 5,
        after: 5,
        lost: 3,
        unknown: 1,
    }
}

#[test]
fn a_fault_that_nobody_saw_has_no_rto() {
    let mut story = tell(&plan());
    for record in &mut story.log.records {
        record.outcome = Outcome::Acked;
    }
    let reads: Vec<Record> = story
        .log
        .records
        .iter()
        .filter(|record| record.op == Op::Write)
        .map(|record| Record {
            op: Op::Read,
            ..record.clone()
        })
        .collect();
    story.log.records.extend(reads);
    let measured = measure(&story.log, facts(&story));
    assert_eq!(
        (measured.detected, measured.usable, measured.rto_ns),
        (None, None, None)
    );
}

#[test]
fn two_good_cycles_are_not_enough() {
    let story = tell(&Plan { after: 2, ..plan() });
    assert_eq!(measure(&story.log, facts(&story)).usable, None);
}

#[test]
fn one_tenant_that_is_not_served_keeps_the_service_from_being_usable() {
    let mut story = tell(&plan());
    for record in &mut story.log.records {
        if record.tenant == "t1" && record.cycle >= 15 && record.op == Op::Read {
            record.outcome = Outcome::Failed;
        }
    }
    let measured = measure(&story.log, facts(&story));
    assert_eq!(measured.usable, None);
    assert_eq!(
        failing_tenants(&story.log, measured.detected.unwrap()),
        ["t0", "t1"]
    );
}

#[test]
fn nothing_is_said_of_loss_when_nobody_could_look() {
    let story = tell(&plan());
    let measured = measure(
        &story.log,
        Facts {
            recovered: None,
            ..facts(&story)
        },
    );
    assert_eq!(measured.rpo_ns, None);
    assert!(measured.lost_before_fault.is_empty());
    assert_eq!(
        measured.unknown_recovered + measured.unknown_not_recovered,
        0
    );
}

#[test]
fn writes_taken_in_by_a_damaged_service_and_gone_are_counted_apart() {
    let mut story = tell(&plan());
    let late = story.log.records.last().unwrap().key.clone();
    story.recovered.remove(&late);
    let measured = measure(&story.log, facts(&story));
    assert_eq!(measured.lost_before_fault.len(), 3);
    assert_eq!(measured.lost_after_fault, [late]);
}

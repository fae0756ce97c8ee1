//! From a probe's log, the moment of the fault and the keys that were found again to numbers. Pure.
//!
//! All times are CLOCK_MONOTONIC. A cycle is *good* when every probed tenant's write and read were
//! acknowledged, *failed* when it is complete and not good; a cycle the probe was in when the log was
//! read is neither.
//!
//! - **Detected**: the end of the N-th failed cycle in a row that ended after the fault.
//! - **Usable**: the end of the third good cycle in a row after the detection.
//! - **RTO** = usable - fault. It is only there when both are: a service that was never seen to fail
//!   was not measured.
//! - **RPO** = max(0, fault - newest recovered write acknowledged before the fault); also for each
//!   tenant. Never reported below the probe's interval, its floor: a smaller value cannot be seen.
//! - **Lost** = acknowledged writes that were not found again, whenever they were acknowledged.
//! - Writes without an answer are counted apart, found or not.
//! - **Uncertainty** = interval + timeout.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::probe::{Op, Outcome, ProbeLog, Record};

/// Good cycles in a row that make a service usable.
pub const GOOD_CYCLES: usize = 3;

/// A moment as the probe saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// The wall clock of the operation's sending.
    pub wall: DateTime<Utc>,
}

/// What besides the log goes into a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Just before the first harm was done.
    pub fault_ns: u64,
    /// When the runner declared the incident.
    pub declared_ns: Option<u64>,
    /// Failed cycles in a row that make a detection.
    pub after_failures: u32,
    /// Keys of writes that were found after recovery; `None` when nobody could look.
    pub recovered: Option<&'a BTreeSet<String>>,
}

/// What one tenant lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantMeasurement {
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Of these, not found again.
    pub lost: u64,
    /// Writes without an answer.
    pub unknown: u64,
    /// Fault back to its newest recovered acknowledged write.
    pub rpo_ns: Option<u64>,
}

/// The numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measurement {
    /// The newest write acknowledged before the fault.
    pub last_acknowledged: Option<Seen>,
    /// The end of the failed cycle that makes a detection.
    pub detected: Option<Seen>,
    /// The end of the good cycle that makes it usable.
    pub usable: Option<Seen>,
    /// Fault to usable.
    pub rto_ns: Option<u64>,
    /// Declared to usable.
    pub rto_from_declared_ns: Option<u64>,
    /// Fault to detected.
    pub detection_ns: Option<u64>,
    /// Fault back to the newest recovered acknowledged write, as computed, without the floor.
    pub rpo_ns: Option<u64>,
    /// The same for the tenant that is worst off.
    pub rpo_worst_tenant: Option<(String, u64)>,
    /// Below this nothing can be seen: the probe's interval.
    pub floor_ns: u64,
    /// Interval plus timeout.
    pub uncertainty_ns: u64,
    /// Keys of acknowledged writes that are gone and were acknowledged before the fault.
    pub lost_before_fault: Vec<String>,
    /// The same, acknowledged after the fault.
    pub lost_after_fault: Vec<String>,
    /// Writes without an answer that are there.
    pub unknown_recovered: u64,
    /// Writes without an answer that are not there.
    pub unknown_not_recovered: u64,
    /// By tenant.
    pub tenants: BTreeMap<String, TenantMeasurement>,
    /// Cycles made.
    pub cycles: u64,
    /// Writes sent or tried.
    pub writes: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Complete cycles after usable that failed.
    pub failed_cycles_after_usable: u64,
}

/// One cycle of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    /// Its number.
    pub number: u64,
    /// Sending of its first operation.
    pub started_ns: u64,
    /// End of its last operation.
    pub ended: Seen,
    /// Every probed tenant was served; `None`: not complete yet.
    pub good: Option<bool>,
}

/// The cycles of a log, in order.
#[must_use]
pub fn cycles(log: &ProbeLog) -> Vec<Cycle> {
    let mut by_number: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in &log.records {
        by_number.entry(record.cycle).or_default().push(record);
    }
    by_number
        .into_iter()
        .filter_map(|(number, records)| cycle(log, number, &records))
        .collect()
}

fn cycle(log: &ProbeLog, number: u64, records: &[&Record]) -> Option<Cycle> {
    let last = records.iter().max_by_key(|record| record.done_ns)?;
    let started_ns = records.iter().map(|record| record.sent_ns).min()?;
    let (mut complete, mut good) = (true, true);
    for tenant in &log.header.tenants {
        let outcome = |op: Op| {
            records
                .iter()
                .find(|record| record.op == op && record.tenant == *tenant)
                .map(|record| record.outcome)
        };
        match (outcome(Op::Write), outcome(Op::Read)) {
            (Some(Outcome::Acked), Some(Outcome::Acked)) => {}
            (None, _) | (Some(Outcome::Acked), None) => complete = false,
            _ => good = false,
        }
    }
    Some(Cycle {
        number,
        started_ns,
        ended: Seen {
            at_ns: last.done_ns,
            wall: last.wall,
        },
        good: complete.then_some(good),
    })
}

/// The end of the `count`-th cycle in a row that is `good` as asked for, among those that ended after
/// `after_ns`.
fn end_of_run(cycles: &[Cycle], after_ns: u64, good: bool, count: usize) -> Option<Seen> {
    let mut in_row = 0;
    for cycle in cycles.iter().filter(|cycle| cycle.ended.at_ns > after_ns) {
        in_row = if cycle.good == Some(good) {
            in_row + 1
        } else {
            0
        };
        if in_row >= count.max(1) {
            return Some(cycle.ended);
        }
    }
    None
}

/// When a watcher of the log notices a failure after `after_ns`.
#[must_use]
pub fn detected(log: &ProbeLog, after_ns: u64, after_failures: u32) -> Option<Seen> {
    let count = usize::try_from(after_failures).unwrap_or(usize::MAX);
    end_of_run(&cycles(log), after_ns, false, count)
}

/// When the service is usable again after `after_ns`, usually the detection.
#[must_use]
pub fn usable(log: &ProbeLog, after_ns: u64) -> Option<Seen> {
    end_of_run(&cycles(log), after_ns, true, GOOD_CYCLES)
}

/// The last moment before the first failure after `after_ns` at which `tenant` was surely served: the
/// sending of its last acknowledged read. What a person finds out by asking when it last worked.
#[must_use]
pub fn last_served(log: &ProbeLog, tenant: &str, before_ns: u64) -> Option<Seen> {
    log.records
        .iter()
        .filter(|record| record.tenant == tenant && record.op == Op::Read)
        .filter(|record| record.done_ns < before_ns && record.outcome == Outcome::Acked)
        .max_by_key(|record| record.sent_ns)
        .map(|record| Seen {
            at_ns: record.sent_ns,
            wall: record.wall,
        })
}

/// The tenants that were not served in any of the failed cycles that made the detection at `detected`.
#[must_use]
pub fn failing_tenants(log: &ProbeLog, detected: Seen) -> Vec<String> {
    let Some(number) = cycles(log)
        .into_iter()
        .find(|cycle| cycle.ended.at_ns == detected.at_ns)
        .map(|cycle| cycle.number)
    else {
        return Vec::new();
    };
    log.header
        .tenants
        .iter()
        .filter(|tenant| {
            log.records.iter().any(|record| {
                record.cycle == number
                    && record.tenant == **tenant
                    && record.outcome != Outcome::Acked
            })
        })
        .cloned()
        .collect()
}

/// Measures.
#[must_use]
pub fn measure(log: &ProbeLog, facts: Facts<'_>) -> Measurement {
    let all = cycles(log);
    let count = usize::try_from(facts.after_failures).unwrap_or(usize::MAX);
    let detected = end_of_run(&all, facts.fault_ns, false, count);
    let usable = detected.and_then(|detected| end_of_run(&all, detected.at_ns, true, GOOD_CYCLES));
    let since = |from: u64| usable.map(|usable| usable.at_ns.saturating_sub(from));
    let interval_ns = log.header.interval_ms.saturating_mul(1_000_000);
    let mut result = Measurement {
        detected,
        usable,
        rto_ns: since(facts.fault_ns),
        rto_from_declared_ns: facts.declared_ns.and_then(since),
        detection_ns: detected.map(|seen| seen.at_ns.saturating_sub(facts.fault_ns)),
        floor_ns: interval_ns,
        uncertainty_ns: interval_ns.saturating_add(log.header.timeout_ms.saturating_mul(1_000_000)),
        cycles: all.len() as u64,
        failed_cycles_after_usable: usable.map_or(0, |usable| {
            let later = all.iter().filter(|cycle| cycle.started_ns >= usable.at_ns);
            later.filter(|cycle| cycle.good == Some(false)).count() as u64
        }),
        ..Measurement::default()
    };
    count_writes(log, facts, &mut result);
    result
}

fn count_writes(log: &ProbeLog, facts: Facts<'_>, result: &mut Measurement) {
    let found = |key: &str| facts.recovered.map(|recovered| recovered.contains(key));
    let mut newest: Option<u64> = None;
    // Of what is gone, by tenant: how far back the oldest lies.
    let mut oldest_lost: BTreeMap<String, u64> = BTreeMap::new();
    for tenant in &log.header.tenants {
        result
            .tenants
            .insert(tenant.clone(), TenantMeasurement::default());
    }
    for record in log.records.iter().filter(|record| record.op == Op::Write) {
        result.writes += 1;
        let tenant = result.tenants.entry(record.tenant.clone()).or_default();
        let before = record.done_ns <= facts.fault_ns;
        match (record.outcome, found(&record.key)) {
            (Outcome::Failed, _) => {}
            (Outcome::Unknown, there) => {
                tenant.unknown += 1;
                result.unknown_recovered += u64::from(there == Some(true));
                result.unknown_not_recovered += u64::from(there == Some(false));
            }
            (Outcome::Acked, there) => {
                result.acknowledged += 1;
                tenant.acknowledged += 1;
                if before
                    && result
                        .last_acknowledged
                        .is_none_or(|seen| seen.at_ns < record.done_ns)
                {
                    result.last_acknowledged = Some(Seen {
                        at_ns: record.done_ns,
                        wall: record.wall,
                    });
                }
                if there == Some(false) {
                    tenant.lost += 1;
                    let lost = if before {
                        &mut result.lost_before_fault
                    } else {
                        &mut result.lost_after_fault
                    };
                    lost.push(record.key.clone());
                    if before {
                        let back = facts.fault_ns - record.done_ns;
                        let oldest = oldest_lost.entry(record.tenant.clone()).or_default();
                        *oldest = back.max(*oldest);
                    }
                }
                if there == Some(true) && before {
                    let back = facts.fault_ns - record.done_ns;
                    newest = Some(newest.map_or(back, |nearest| nearest.min(back)));
                    tenant.rpo_ns = Some(tenant.rpo_ns.map_or(back, |nearest| nearest.min(back)));
                }
            }
        }
    }
    result.rpo_ns = newest;
    result.rpo_worst_tenant = result
        .tenants
        .iter()
        // A tenant of which nothing is back is the worst off, not absent: its loss reaches at least to the
        // first write that the probe saw acknowledged.
        .filter_map(|(name, tenant)| {
            let rpo = tenant.rpo_ns.or_else(|| oldest_lost.get(name).copied())?;
            Some((name.clone(), rpo))
        })
        .max_by_key(|(_, rpo)| *rpo);
}

#[cfg(test)]
mod tests;

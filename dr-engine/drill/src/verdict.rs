//! The judgement: pure. A criterion that was not measured counts as missed: a drill passes by what it
//! showed, not by what it left out.

use dr_report::{Criterion, Objective, Overall, Status, Verdict};

/// Judges a run.
///
/// - `fail`: the run did not complete, or an objective was missed or not measured.
/// - `conditional`: all objectives met, and some other criterion does not hold.
/// - `pass`: everything holds.
#[must_use]
pub fn judge(status: Status, objectives: &[Objective], others: Vec<Criterion>) -> Verdict {
    let promised: Vec<Criterion> = objectives
        .iter()
        .filter(|objective| objective.objective_ms.is_some())
        .map(|objective| Criterion {
            criterion: format!("{} of {}", objective.measure.label(), objective.subject),
            passed: objective.met,
            detail: describe(objective),
        })
        .collect();
    let held = Criterion {
        criterion: "every phase was carried out".to_owned(),
        passed: Some(status == Status::Completed),
        detail: status.to_string(),
    };
    let promises_kept =
        status == Status::Completed && promised.iter().all(|one| one.passed == Some(true));
    let overall = if !promises_kept {
        Overall::Fail
    } else if others.iter().all(|one| one.passed == Some(true)) {
        Overall::Pass
    } else {
        Overall::Conditional
    };
    let criteria = std::iter::once(held)
        .chain(promised)
        .chain(others)
        .collect();
    Verdict { overall, criteria }
}

fn describe(objective: &Objective) -> String {
    let promised = objective
        .objective_ms
        .map_or_else(String::new, dr_report::html::duration);
    match objective.achieved_ms {
        Some(ms) if objective.at_floor => {
            format!(
                "at most {} (the probe's floor), promised {promised}",
                dr_report::html::duration(ms)
            )
        }
        Some(ms) => format!("{}, promised {promised}", dr_report::html::duration(ms)),
        None => format!(
            "not measured ({}), promised {promised}",
            objective.reason.as_deref().unwrap_or("no reason given")
        ),
    }
}

/// Whether a measured value keeps a promise. Nothing measured keeps none.
#[must_use]
pub fn is_met(objective_ms: u64, achieved_ms: Option<u64>) -> bool {
    achieved_ms.is_some_and(|achieved| achieved <= objective_ms)
}

#[cfg(test)]
mod tests {
    use dr_report::Measure;

    use super::*;

    fn rto(promised: u64, achieved: Option<u64>) -> Objective {
        Objective {
            subject: "erp".to_owned(),
            measure: Measure::RtoFromFault,
            definition: String::new(),
            objective_ms: Some(promised),
            achieved_ms: achieved,
            reason: None,
            uncertainty_ms: None,
            at_floor: false,
            met: Some(is_met(promised, achieved)),
        }
    }

    fn criterion(passed: Option<bool>) -> Criterion {
        Criterion {
            criterion: "clean".to_owned(),
            passed,
            detail: String::new(),
        }
    }

    #[test]
    fn a_missed_or_unmeasured_objective_fails_the_drill() {
        for achieved in [Some(1001), None] {
            let verdict = judge(
                Status::Completed,
                &[rto(1000, achieved)],
                vec![criterion(Some(true))],
            );
            assert_eq!(verdict.overall, Overall::Fail, "{achieved:?}");
        }
        let met = judge(
            Status::Completed,
            &[rto(1000, Some(1000))],
            vec![criterion(Some(true))],
        );
        assert_eq!(met.overall, Overall::Pass);
    }

    #[test]
    fn a_run_that_did_not_complete_never_passes() {
        for status in [Status::Failed, Status::Aborted] {
            assert_eq!(
                judge(status, &[rto(1000, Some(1))], Vec::new()).overall,
                Overall::Fail
            );
        }
    }

    #[test]
    fn something_else_that_is_wrong_makes_it_conditional() {
        for passed in [Some(false), None] {
            let verdict = judge(
                Status::Completed,
                &[rto(1000, Some(1))],
                vec![criterion(passed)],
            );
            assert_eq!(verdict.overall, Overall::Conditional, "{passed:?}");
        }
    }
}

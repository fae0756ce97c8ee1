//! The second phase: what was condemned goes, as far as nothing needs it.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use dr_model::Progress;

use super::execute::Work;
use super::need::{NeedError, NeedSet};
use super::sessions::{may_belong, oldest_running};
use super::survey::{CondemnedList, Survey, condemned};
use super::{PruneReport, WorkloadPrune, indexes};
use crate::StoreError;
use crate::format::pack::{self, PackId};
use crate::testing::kill_point;

/// Whether a writer may run that has not seen a list of condemned packs: one that began before it was
/// said that the list is there.
fn must_wait(work: &Work<'_>, list: &CondemnedList, oldest: Option<DateTime<Utc>>) -> bool {
    let confirmed = list.confirmed.as_ref().map(|(_, at)| *at);
    confirmed.is_none_or(|at| may_belong(at, oldest, work.options.clock_slack))
}

/// The lists of condemned packs, each of them confirmed.
fn confirmed(work: &Work<'_>) -> Result<Vec<CondemnedList>, StoreError> {
    let lists = condemned(work.repo(), work.workload)?;
    let open: Vec<&CondemnedList> = lists
        .iter()
        .filter(|list| list.confirmed.is_none())
        .collect();
    if open.is_empty() {
        return Ok(lists);
    }
    for list in open {
        work.condemn(Vec::new(), Some(list.object.clone()))?;
    }
    condemned(work.repo(), work.workload)
}

/// Deletes what was condemned before every session that still runs. `need` is what was needed before.
pub(super) fn run(
    work: &Work<'_>,
    plan: &WorkloadPrune,
    need: &NeedSet,
    progress: &dyn Progress,
    report: &mut PruneReport,
) -> Result<(), StoreError> {
    let lists = confirmed(work)?;
    let oldest = oldest_running(&work.end_sessions(report)?);
    let (waiting, ready): (Vec<CondemnedList>, Vec<CondemnedList>) = lists
        .into_iter()
        .partition(|list| must_wait(work, list, oldest));
    report.packs_waiting += waiting
        .iter()
        .map(|list| list.packs.len() as u64)
        .sum::<u64>();
    if !ready.is_empty() {
        // Whoever was about to list a point, and whose session is gone, finds this number taken.
        work.repo().chain_fence(work.workload, &[], Utc::now())?;
        kill_point("prune.after-fence");
    }
    let found = match work.look(Some(need)) {
        Err(NeedError::NoChunk(_)) => work.look(None),
        found => found,
    };
    let (survey, _, homes) = found.map_err(|error| work.need_failed(error))?;
    let doomed: Vec<PackId> = ready
        .iter()
        .flat_map(|list| &list.packs)
        .filter(|id| {
            let number = survey.index.number_of(id);
            number.is_none_or(|number| homes.live(number) == 0)
        })
        .copied()
        .collect();
    replace_indexes(work, plan, &survey, &doomed, report)?;
    progress.phase(&format!("deleting packs of `{}`", work.workload), None);
    delete_packs(work, &survey, &doomed, progress, report)?;
    for list in &ready {
        if let Some((confirmation, _)) = &list.confirmed {
            work.repo().delete(confirmation)?;
        }
        work.repo().delete(&list.object)?;
    }
    Ok(())
}

fn replace_indexes(
    work: &Work<'_>,
    plan: &WorkloadPrune,
    survey: &Survey,
    doomed: &[PackId],
    report: &mut PruneReport,
) -> Result<(), StoreError> {
    let leave_out: HashSet<PackId> = doomed.iter().copied().collect();
    let there = survey.index.objects().iter().map(|object| &object.name);
    // What was not in the plan was not asked about, and may be locked.
    let mut objects: HashSet<String> = there
        .filter(|name| plan.merge.contains(*name))
        .cloned()
        .collect();
    objects.extend(indexes::naming(&survey.index, &leave_out));
    if objects.is_empty() {
        return Ok(());
    }
    work.go_on()?;
    indexes::merge(
        work.repo(),
        work.workload,
        &survey.index,
        &objects,
        &leave_out,
    )?;
    kill_point("prune.after-index");
    for object in &objects {
        if work.delete(object, report)? {
            report.indexes_merged += 1;
        }
    }
    kill_point("prune.after-old-index");
    Ok(())
}

fn delete_packs(
    work: &Work<'_>,
    survey: &Survey,
    doomed: &[PackId],
    progress: &dyn Progress,
    report: &mut PruneReport,
) -> Result<(), StoreError> {
    for group in doomed.chunks(super::execute::DELETED_BETWEEN_LOOKS) {
        work.go_on()?;
        let names: Vec<String> = group
            .iter()
            .map(|id| pack::object_name(work.workload, id))
            .collect();
        for (id, gone) in group.iter().zip(work.delete_all(&names, report)?) {
            let bytes = survey.packs.get(id).map_or(0, |pack| pack.size);
            if gone {
                report.packs_deleted += 1;
                report.bytes_won.0 += bytes;
                progress.advance(bytes);
            }
        }
        kill_point("prune.after-packs");
    }
    Ok(())
}

//! Carrying a plan out: the steps in their order.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::Utc;
use dr_model::{Progress, WorkloadName};

use super::homes::Homes;
use super::need::{NeedError, NeedSet};
use super::sessions::{SessionInfo, SessionState, sessions};
use super::survey::{History, Survey};
use super::{PruneOptions, PruneReport, WorkloadPrune, decide, sweep};
use crate::format::header::Kind;
use crate::format::pack::{self, PackId};
use crate::format::session::{CondemnedObject, Purpose};
use crate::repo::chain::chain_prefix;
use crate::repo::index::PackFile;
use crate::repo::points::point_name;
use crate::repo::session::condemned_prefix;
use crate::repo::{Inner, fetch};
use crate::testing::kill_point;
use crate::{BackendError, Repository, StoreError, WriteOptions};

/// So many objects are deleted before this prune asks again whether its session is still there.
pub(super) const DELETED_BETWEEN_LOOKS: usize = 64;
/// A list of condemned packs names at most so many: 350 KB.
const CONDEMNED_MAX: usize = 10_000;

/// A prune of one workload under way. Ends its session when it is dropped.
pub(super) struct Work<'a> {
    pub(super) repository: &'a Repository,
    pub(super) workload: &'a WorkloadName,
    pub(super) options: &'a PruneOptions,
    pub(super) session: String,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.repo().delete(&self.session) {
            tracing::debug!(%error, "the session stays until the next prune finds it dead");
        }
    }
}

pub(super) fn workload(
    repository: &Repository,
    plan: &WorkloadPrune,
    options: &PruneOptions,
    progress: &dyn Progress,
    report: &mut PruneReport,
) -> Result<(), StoreError> {
    let repo = repository.inner();
    let work = Work {
        repository,
        workload: &plan.workload,
        options,
        session: repo.begin_session(&plan.workload, Utc::now(), Purpose::Prune)?,
    };
    work.be_the_only_one()?;
    kill_point("prune.after-session");
    work.remove_points(plan, report)?;
    work.remove_wal(plan, report)?;
    let need = work.mark(plan, progress, report)?;
    sweep::run(&work, plan, &need, progress, report)?;
    work.tidy(report)?;
    repo.forget_index(&plan.workload);
    Ok(())
}

impl Work<'_> {
    pub(super) fn repo(&self) -> &Inner {
        self.repository.inner()
    }

    /// Fails when this prune was taken for dead and its session ended.
    pub(super) fn go_on(&self) -> Result<(), StoreError> {
        self.repo().session_is_alive(&self.session)
    }

    pub(super) fn need_failed(&self, error: NeedError) -> StoreError {
        match error {
            NeedError::Store(error) => error,
            NeedError::NoChunk(name) => {
                self.repo().missing(&format!("chunk {}", hex::encode(name)))
            }
        }
    }

    /// Two prunes that begin at once see each other, and neither goes on.
    fn be_the_only_one(&self) -> Result<(), StoreError> {
        let age_max = self.options.session_age_max;
        let other = sessions(self.repo(), self.workload, age_max, Some(&self.session))?
            .into_iter()
            .find(|session| session.prunes && session.state == SessionState::Running);
        match other {
            None => Ok(()),
            Some(other) => Err(StoreError::PruneRuns {
                workload: self.workload.clone(),
                host: other.host.unwrap_or_default(),
                pid: other.pid.unwrap_or_default(),
            }),
        }
    }

    /// Ends the sessions of the dead, and those that are older than any backup takes; returns the others.
    pub(super) fn end_sessions(
        &self,
        report: &mut PruneReport,
    ) -> Result<Vec<SessionInfo>, StoreError> {
        let age_max = self.options.session_age_max;
        let found = sessions(self.repo(), self.workload, age_max, Some(&self.session))?;
        let (running, ended): (Vec<SessionInfo>, Vec<SessionInfo>) = found
            .into_iter()
            .partition(|session| session.state == SessionState::Running);
        if !ended.is_empty() {
            self.note_unfinished(&ended)?;
        }
        for session in ended {
            tracing::warn!(session = session.object, state = ?session.state, "a session is ended");
            self.repo().delete(&session.object)?;
            report.sessions_ended += 1;
        }
        Ok(running)
    }

    /// Deletes an object; whether it is gone. One that is locked stays, with a note.
    pub(super) fn delete(
        &self,
        object: &str,
        report: &mut PruneReport,
    ) -> Result<bool, StoreError> {
        noted(self.repo().delete(object), object, report)
    }

    /// [`Self::delete`] for several at once.
    pub(super) fn delete_all(
        &self,
        objects: &[String],
        report: &mut PruneReport,
    ) -> Result<Vec<bool>, StoreError> {
        let deleted = fetch::each(objects, |object| self.repo().delete(object));
        let each = objects.iter().zip(deleted);
        each.map(|(object, deleted)| noted(deleted, object, report))
            .collect()
    }

    /// First off the list, then their objects.
    fn remove_points(
        &self,
        plan: &WorkloadPrune,
        report: &mut PruneReport,
    ) -> Result<(), StoreError> {
        if plan.points.is_empty() {
            return Ok(());
        }
        let ids: HashSet<_> = plan.points.iter().cloned().collect();
        self.repo()
            .chain_removed(self.workload, &ids, plan.decided_at, Utc::now(), &|| {
                self.go_on()
            })?;
        kill_point("prune.after-chain");
        for id in &plan.points {
            self.delete(&point_name(id), report)?;
            report.points.push(id.clone());
        }
        kill_point("prune.after-points");
        Ok(())
    }

    fn remove_wal(&self, plan: &WorkloadPrune, report: &mut PruneReport) -> Result<(), StoreError> {
        // One after the other, oldest first: a crash leaves no hole in what is kept.
        for group in plan.wal.chunks(DELETED_BETWEEN_LOOKS) {
            self.go_on()?;
            for file in group {
                if self.delete(&file.object, report)? {
                    report.wal_files += 1;
                    report.bytes_won.0 += file.bytes.0;
                }
            }
            kill_point("prune.after-wal");
        }
        Ok(())
    }

    /// The first phase: copies what is needed of half-empty packs, and condemns what may go. Returns
    /// what is needed.
    fn mark(
        &self,
        plan: &WorkloadPrune,
        progress: &dyn Progress,
        report: &mut PruneReport,
    ) -> Result<NeedSet, StoreError> {
        let found = match self.look(Some(&plan.need)) {
            Err(NeedError::NoChunk(_)) => self.look(None),
            found => found,
        };
        let (survey, need, homes) = found.map_err(|error| self.need_failed(error))?;
        let (delete, rewrite) =
            decide::packs(self.repo(), self.workload, &survey, &homes, self.options)?;
        // What was not in the plan was not asked about, and may be locked.
        let planned: HashSet<&str> = (plan.delete_packs.iter().map(|one| &one.object))
            .chain(plan.rewrite_packs.iter().map(|one| &one.object))
            .map(String::as_str)
            .collect();
        let is_planned =
            |id: &PackId| planned.contains(pack::object_name(self.workload, id).as_str());
        let rewrite: Vec<PackFile> = (rewrite.iter())
            .filter(|one| is_planned(&one.id))
            .filter_map(|one| one.live.map(|(file, _)| file))
            .collect();
        let copied = self.copy(plan, &rewrite, &survey, &homes, progress, report)?;
        kill_point("prune.after-copy");
        let doomed: Vec<PackId> = (delete.iter().map(|one| one.id))
            .filter(is_planned)
            .chain(copied)
            .collect();
        for packs in doomed.chunks(CONDEMNED_MAX) {
            self.go_on()?;
            self.condemn(packs.iter().map(hex::encode).collect(), None)?;
        }
        kill_point("prune.after-condemn");
        Ok(need)
    }

    /// Stores a list of condemned packs, or that another one is there.
    pub(super) fn condemn(
        &self,
        packs: Vec<String>,
        confirms: Option<String>,
    ) -> Result<(), StoreError> {
        let object = format!(
            "{}{}",
            condemned_prefix(self.workload),
            dr_model::random::hex(16)
        );
        let body = CondemnedObject { packs, confirms };
        self.repo().put_json(Kind::Condemned, &object, &body)
    }

    /// Looks at everything again. `known` is what was needed before; without it every point is read. (An
    /// index may be stored after the indexes were read, or what was needed be gone with its points.)
    pub(super) fn look(
        &self,
        known: Option<&NeedSet>,
    ) -> Result<(Survey, NeedSet, Homes), NeedError> {
        let own = Some(self.session.as_str());
        let survey = Survey::new(self.repo(), self.workload, self.options, own)?;
        let index = Arc::clone(&survey.index);
        let mut need = match known {
            Some(known) => known.over(index)?,
            None => NeedSet::new(index),
        };
        need.add(self.repository, self.workload, &survey.history.listed)?;
        let homes = Homes::find(&need, &|pack| survey.standing(pack))?;
        Ok((survey, need, homes))
    }

    /// Puts the needed chunks of packs into new ones; returns the packs of which all was copied.
    fn copy(
        &self,
        plan: &WorkloadPrune,
        files: &[PackFile],
        survey: &Survey,
        homes: &Homes,
        progress: &dyn Progress,
        report: &mut PruneReport,
    ) -> Result<Vec<PackId>, StoreError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = files.iter().map(|file| file.size).sum();
        progress.phase(
            &format!("copying half-empty packs of `{}`", self.workload),
            Some(bytes),
        );
        let options = WriteOptions {
            storage_class: plan.storage_class.clone(),
            ..WriteOptions::default()
        };
        let writer = self.repository.begin(self.workload, options)?;
        let unreadable = writer.rewrite(
            files,
            &|file, name| {
                let number = survey.index.number_of(&file.id);
                number.is_some_and(|number| homes.is_home(&survey.index, number, name))
            },
            &|file| progress.advance(file.size),
        )?;
        for (id, error) in &unreadable {
            let object = pack::object_name(self.workload, id);
            report.notes.push(format!("`{object}` stays: {error}"));
        }
        let is_copied = |file: &&PackFile| !unreadable.iter().any(|(id, _)| *id == file.id);
        let copied: Vec<PackId> = files.iter().filter(is_copied).map(|file| file.id).collect();
        report.packs_rewritten += copied.len() as u64;
        Ok(copied)
    }

    /// Old entries of the list of restore points, oldest first, and restore points in no list.
    fn tidy(&self, report: &mut PruneReport) -> Result<(), StoreError> {
        let history = History::new(
            self.repo(),
            self.workload,
            self.options,
            Some(&self.session),
        )?;
        self.go_on()?;
        let prefix = chain_prefix(self.workload);
        for sequence in decide::old_entries(&history) {
            let object = crate::format::chain::object_name(&prefix, sequence);
            self.delete(&object, report)?;
        }
        let unlisted = match decide::unlisted(self.repo(), self.workload, &history) {
            Ok(unlisted) => unlisted,
            // One that its writer stored a moment ago, after its session was ended, and is about to take
            // back; or the lists were put back meanwhile. All is done but this, and the next prune looks again.
            Err(error @ StoreError::Damaged { .. }) => {
                report.notes.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if unlisted.is_empty() {
            return Ok(());
        }
        // Their writers' sessions are gone; one that was about to list its point either did so before this
        // entry, or finds its number taken.
        let listed = self.repo().chain_fence(self.workload, &[], Utc::now())?;
        let listed: HashSet<String> = (listed.iter())
            .map(|chained| point_name(&chained.point.id))
            .collect();
        for object in unlisted.iter().filter(|object| !listed.contains(*object)) {
            self.delete(object, report)?;
        }
        Ok(())
    }

    /// Puts into the list that the points of these sessions will not be listed: their sessions, which say
    /// so until now, are about to go.
    fn note_unfinished(&self, ended: &[SessionInfo]) -> Result<(), StoreError> {
        let repo = self.repo();
        let mut unfinished = Vec::new();
        let listed: HashSet<String> = (repo.listed(self.workload)?.iter())
            .map(|chained| point_name(&chained.point.id))
            .collect();
        let objects = decide::point_objects(repo, self.workload)?.into_iter();
        for object in objects.filter(|object| !listed.contains(object)) {
            if let Some((found, _)) = repo.read_point(&object)?
                && ended.iter().any(|session| session.object == found.session)
            {
                unfinished.push(found.point.id);
            }
        }
        if unfinished.is_empty() {
            return Ok(());
        }
        repo.chain_fence(self.workload, &unfinished, Utc::now())
            .map(|_| ())
    }
}

fn noted(
    deleted: Result<(), StoreError>,
    object: &str,
    report: &mut PruneReport,
) -> Result<bool, StoreError> {
    match deleted {
        Ok(()) => Ok(true),
        Err(StoreError::Backend {
            source: source @ BackendError::Locked { .. },
            ..
        }) => {
            report.notes.push(format!("`{object}` stays: {source}"));
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

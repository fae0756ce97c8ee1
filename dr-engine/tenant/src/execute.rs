//! Carrying a prepared change set out: folders checked, rows written, former state and record stored
//! before the commit, folders put back after it, everything looked at again, the outcome recorded; then what
//! hooks run.
//!
//! A crash before the commit leaves at most a restore point and a record without an outcome, whose
//! transaction the server knows as aborted. A crash after it leaves a record without an outcome and a
//! committed transaction: the undo works from that. Once committed, nothing is an error any more: what
//! goes wrong afterwards is a line of the proof.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{
    ByteCount, Condition, Position, RestorePoint, RestorePointId, TenantRestoreId,
    TenantStatePosition, WorkloadName,
};
use dr_restore::AppliedErasures;
use dr_store::Repository;
use tokio_util::sync::CancellationToken;

use crate::changes::{ChangeSet, Direction};
use crate::erase;
use crate::folders::{self, FolderChanges};
use crate::hold::Held;
use crate::map::TenancyMap;
use crate::outcome::wal_place;
use crate::record::{Ending, HooksRan, Outcome, Record};
use crate::report::{FolderResult, ProofLine, ProofOutcome, TableResult};
use crate::rows::{self, Committed, Folders, Live};
use crate::slice::Ownership;
use crate::tenants::Place;
use crate::work::WorkFolder;
use crate::{TenantError, TenantPlan, TenantRestoreReport, Writing, views};

/// Everything an execution needs.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) installation: Installation,
    /// Who asked for it.
    pub(crate) by: Option<String>,
    pub(crate) repository: Repository,
    pub(crate) place: Place,
    pub(crate) id: TenantRestoreId,
    pub(crate) map: TenancyMap,
    pub(crate) plan: TenantPlan,
    pub(crate) set: ChangeSet,
    pub(crate) direction: Direction,
    /// What was erased of the tenant and is not in what is put back.
    pub(crate) erasures: AppliedErasures,
    /// Where the set's rows are.
    pub(crate) spool: PathBuf,
    /// Where the folders' contents are to be taken from: `<content>/<workload>/<path>`.
    pub(crate) content: PathBuf,
    pub(crate) work: WorkFolder,
    /// Ends it until the commit.
    pub(crate) cancel: CancellationToken,
    pub(crate) writing: Writing,
}

/// What is known once it is done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) report: TenantRestoreReport,
    pub(crate) committed: Option<Committed>,
}

/// Runs blocking work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, TenantError> + Send + 'static,
) -> Result<T, TenantError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| TenantError::Worker(what))?
}

/// The folder of a files workload.
pub(crate) fn root_of(
    installation: &Installation,
    name: &WorkloadName,
) -> Result<PathBuf, TenantError> {
    let workload = installation
        .config
        .workload(name.as_str())
        .map_err(dr_installation::InstallationError::from)?;
    match workload.source {
        WorkloadSource::Files(source) => Ok(source.path.clone()),
        _ => Err(TenantError::NotConfigured {
            workload: name.clone(),
            missing: "files",
        }),
    }
}

impl Execution {
    /// The rows that it wrote.
    pub(crate) fn written(&self) -> crate::hooks::Rows<'_> {
        crate::hooks::Rows {
            set: &self.set,
            spool: &self.spool,
            direction: self.direction,
        }
    }

    /// Carries it out up to the commit and the folders. Errors mean that nothing was changed.
    pub(crate) async fn run(&self, held: Option<Held>) -> Result<Done, TenantError> {
        if !self.plan.refused.is_empty() {
            return Err(TenantError::Refused(self.plan.refused.clone()));
        }
        if self.cancel.is_cancelled() {
            return Err(TenantError::Cancelled);
        }
        self.nothing_erased_since().await?;
        let started = self.installation.clock.now();
        if self.plan.is_empty() {
            return Ok(Done {
                report: self.report(started, None),
                committed: None,
            });
        }
        let save = self.work.fresh("saved")?;
        std::fs::create_dir_all(save.join("db")).map_err(TenantError::file("create", &save))?;
        self.save_folders(&save).await?;
        let point = RestorePointId::new(&self.place.workload, started);
        let committed = if self.set.has_rows() {
            Some(self.write_rows(&save, &point, started, held).await?)
        } else {
            self.store(&save, &point, started, None).await?;
            None
        };
        let mut report = self.report(started, Some(point));
        if let Some(committed) = &committed {
            report.transaction = Some(committed.written.xid.to_string());
            report.proof = rows::shown(committed, &self.set);
        }
        self.put_folders_back(&mut report).await;
        Ok(Done { report, committed })
    }

    /// A preview may have been looked at for long, and somebody may have recorded an erasure meanwhile.
    async fn nothing_erased_since(&self) -> Result<(), TenantError> {
        let entries = erase::erasures(&self.installation, &self.place.workload).await?;
        let ours = entries
            .iter()
            .filter(|it| it.tenant.id == self.set.tenant.id);
        let applied = &self.erasures.entries;
        let new: Vec<String> = ours
            .filter(|entry| applied.iter().all(|known| known.id != entry.id))
            .map(|entry| {
                format!(
                    "{} was recorded since, and is not applied to what would be written",
                    entry.id
                )
            })
            .collect();
        match new.is_empty() {
            true => Ok(()),
            false => Err(TenantError::Refused(new)),
        }
    }

    async fn write_rows(
        &self,
        save: &Path,
        point: &RestorePointId,
        started: DateTime<Utc>,
        held: Option<Held>,
    ) -> Result<Committed, TenantError> {
        let owner = Ownership {
            map: &self.map,
            tenant: &self.set.tenant,
        };
        let folders = Folders {
            spool: &self.spool,
            save,
        };
        let mut stored = false;
        let store = async |xid: u64| {
            self.store(save, point, started, Some(xid)).await?;
            Ok(())
        };
        let live = Live {
            options: &self.place.live,
            cancel: &self.cancel,
            writing: &self.writing,
        };
        let result = rows::write(
            live,
            &owner,
            &self.set,
            folders,
            self.direction,
            held,
            async |xid| {
                let result: Result<(), TenantError> = store(xid).await;
                stored = result.is_ok();
                result
            },
        )
        .await;
        if let (Err(error), true) = (&result, stored) {
            let outcome = match error {
                TenantError::OutcomeUnknown { .. } => Outcome::Unknown,
                _ => Outcome::RolledBack,
            };
            let mut ending = Ending::new(&self.id, outcome);
            ending.error = Some(error.to_string());
            self.end(ending).await;
        }
        result
    }

    /// Makes the former state a restore point and writes the record that names it.
    async fn store(
        &self,
        save: &Path,
        point: &RestorePointId,
        started: DateTime<Utc>,
        xid: Option<u64>,
    ) -> Result<(), TenantError> {
        self.set.write(save)?;
        let mut live = rows::session(&self.place.live, "the live database").await?;
        let identity = dr_sources::postgres::identify(&mut live)
            .await
            .map_err(|source| TenantError::Connect {
                place: "the live database".to_owned(),
                source,
            })?;
        let wal = match xid {
            Some(_) => Some(wal_place(&mut live).await?),
            None => None,
        };
        rows::close(live).await;
        let record = Record {
            version: Record::VERSION,
            id: self.id.clone(),
            workload: self.place.workload.clone(),
            tenant: self.set.tenant.clone(),
            mode: self.set.mode,
            purpose: self.plan.purpose.clone(),
            filter: self.plan.filter.clone(),
            started,
            system_id: identity.system_id,
            transaction: xid.map(|xid| xid.to_string()),
            wal,
            point: point.clone(),
        };
        let point = self.restore_point(point, started)?;
        let (installation, repository, save) = (
            self.installation.clone(),
            self.repository.clone(),
            save.to_owned(),
        );
        let point = blocking("store the tenant's former state", move || {
            let details = serde_json::json!({ "version": 1, "tenant_restore": record.id });
            let workload = record.workload.clone();
            let point = dr_backup::store_folder(
                &installation,
                &repository,
                &workload,
                &save,
                point,
                details,
            )
            .map_err(TenantError::Backup)?;
            record.store(&repository)?;
            Ok(point)
        })
        .await?;
        self.index(&point).await;
        Ok(())
    }

    fn restore_point(
        &self,
        id: &RestorePointId,
        started: DateTime<Utc>,
    ) -> Result<RestorePoint, TenantError> {
        let workload = self
            .installation
            .config
            .workload(self.place.workload.as_str())
            .map_err(dr_installation::InstallationError::from)?;
        let now = self.installation.clock.now();
        Ok(RestorePoint {
            id: id.clone(),
            workload: self.place.workload.clone(),
            tier: workload.tier.tier.clone(),
            started,
            finished: now,
            moment: now,
            position: Position::TenantState(TenantStatePosition {
                tenant_id: self.set.tenant.id.clone(),
                tenant_name: self.set.tenant.name.clone(),
                restore: self.id.clone(),
            }),
            files: 0,
            bytes_source: ByteCount(0),
            bytes_added: ByteCount(0),
            condition: Condition::Whole,
        })
    }

    /// The catalog is an index and may fail.
    async fn index(&self, point: &RestorePoint) {
        let indexed = async {
            let catalog = self
                .installation
                .catalog()
                .await
                .map_err(|error| error.to_string())?;
            let repository = self
                .installation
                .repository_name_of(&point.workload)
                .map_err(|error| error.to_string())?;
            catalog
                .upsert_point(point, &repository)
                .await
                .map_err(|error| error.to_string())
        };
        if let Err(error) = indexed.await {
            tracing::warn!(error, point = %point.id, "the catalog does not have this restore point yet");
        }
    }

    /// Copies what will be replaced or removed, after making sure that it is what the plan was made from.
    async fn save_folders(&self, save: &Path) -> Result<(), TenantError> {
        let work = self.folder_work()?;
        let save = save.to_owned();
        blocking("save the tenant's files", move || {
            for (root, changes) in &work {
                let changed = folders::changed_since(root, changes)?;
                if !changed.is_empty() {
                    return Err(TenantError::Changed(changed));
                }
                folders::save(root, changes, &save)?;
            }
            Ok(())
        })
        .await
    }

    fn folder_work(&self) -> Result<Vec<(PathBuf, FolderChanges)>, TenantError> {
        self.set
            .folders
            .iter()
            .map(|changes| {
                Ok((
                    root_of(&self.installation, &changes.workload)?,
                    changes.clone(),
                ))
            })
            .collect()
    }

    async fn put_folders_back(&self, report: &mut TenantRestoreReport) {
        let work = match self.folder_work() {
            Ok(work) => work,
            Err(error) => {
                report
                    .proof
                    .push(folder_line(ProofOutcome::Differs, &error.to_string()));
                return;
            }
        };
        for (root, changes) in work
            .into_iter()
            .filter(|(_, changes)| !changes.entries.is_empty())
        {
            let content = self.content.join(changes.workload.as_str());
            let result = blocking("put the tenant's files back", move || {
                let result = folders::apply(&root, &changes, &|path| content.join(path))?;
                let wrong = folders::changed_since(&root, &changes.reversed())?;
                Ok((result, wrong))
            })
            .await;
            match result {
                Ok((result, wrong)) => {
                    report.proof.push(folder_result_line(&result, &wrong));
                    report.folders.push(result);
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(|c| format!(": {c}"));
                    let text = format!("{error}{}", cause.unwrap_or_default());
                    report.proof.push(folder_line(ProofOutcome::Differs, &text));
                }
            }
        }
    }

    fn report(
        &self,
        started: DateTime<Utc>,
        undo_point: Option<RestorePointId>,
    ) -> TenantRestoreReport {
        TenantRestoreReport {
            id: self.id.clone(),
            workload: self.place.workload.clone(),
            tenant: self.set.tenant.clone(),
            mode: self.set.mode,
            purpose: self.plan.purpose.clone(),
            filter: self.plan.filter.clone(),
            started,
            finished: started,
            undo_point,
            transaction: None,
            tables: self
                .set
                .tables
                .iter()
                .filter(|table| table.counts.total() > 0)
                .map(|table| TableResult {
                    table: table.slice.table.to_string(),
                    inserted: table.counts.insert,
                    updated: table.counts.update + table.counts.replace,
                    deleted: table.counts.delete,
                })
                .collect(),
            folders: Vec::new(),
            proof: Vec::new(),
            content: Vec::new(),
            by: self.by.clone(),
            host: Some(host()),
            erasures: Some(self.erasures.clone()),
            warnings: self.plan.warnings.clone(),
        }
    }

    /// Adds what the WAL says, records the outcome and returns the finished report.
    pub(crate) async fn finish(&self, done: Done) -> TenantRestoreReport {
        let Done {
            mut report,
            committed,
        } = done;
        if let Some(committed) = committed {
            let source = &self.place.source;
            let line = rows::wal_agrees(
                &self.place.live,
                &source.data_directory,
                source.bin_directory.as_deref(),
                &committed,
            )
            .await;
            report.proof.push(line.unwrap_or_else(|error| {
                crate::wal_count::line(ProofOutcome::NotMeasured, error.to_string())
            }));
            drop(committed.kept);
        }
        report.finished = self.installation.clock.now();
        if report.undo_point.is_some() {
            let mut ending = Ending::new(&self.id, Outcome::Committed);
            ending.report = Some(report.clone());
            ending.hooks_follow = self.follows();
            self.end(ending).await;
        }
        report
    }

    /// Whether something is done after the outcome was recorded.
    fn follows(&self) -> bool {
        self.writing.refresh_views || self.place.tenancy.hooks.follow()
    }

    /// Refreshes materialized views, if that was asked for.
    pub(crate) async fn refresh_views(&self) -> Vec<ProofLine> {
        match self.writing.refresh_views {
            true => views::refresh(&self.place.live, &self.set, self.writing.lock_wait).await,
            false => Vec::new(),
        }
    }

    /// Adds what the hooks did that ran after the outcome was recorded.
    pub(crate) async fn hooks_ran(&self, report: &mut TenantRestoreReport, lines: Vec<ProofLine>) {
        report.proof.extend(lines.iter().cloned());
        if report.undo_point.is_none() || !self.follows() {
            return;
        }
        let (repository, ran) = (self.repository.clone(), HooksRan::new(&self.id, lines));
        let stored = blocking("record what the hooks did", move || ran.store(&repository)).await;
        if let Err(error) = stored {
            tracing::warn!(%error, id = %self.id, "what the hooks did was not recorded");
        }
    }

    /// Records the outcome. The record before the commit suffices to decide and undo, so that failing
    /// here is told and not more.
    async fn end(&self, ending: Ending) {
        let repository = self.repository.clone();
        let stored = blocking("record the outcome", move || ending.store(&repository)).await;
        if let Err(error) = stored {
            tracing::warn!(%error, id = %self.id, "the outcome of a tenant restore was not recorded");
        }
    }
}

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn folder_line(outcome: ProofOutcome, detail: &str) -> ProofLine {
    ProofLine {
        what: "the tenant's files are as they are to be".to_owned(),
        outcome,
        detail: detail.to_owned(),
    }
}

fn folder_result_line(result: &FolderResult, wrong: &[String]) -> ProofLine {
    if wrong.is_empty() {
        let detail = format!(
            "{}: {} written, {} removed, read again",
            result.workload, result.written, result.removed
        );
        folder_line(ProofOutcome::Agrees, &detail)
    } else {
        folder_line(ProofOutcome::Differs, &wrong.join(", "))
    }
}

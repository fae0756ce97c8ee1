//! What is left of a dead primary: its last segments, before anything is restored over them.
//!
//! 26.3.4, step 2: the WAL that was written and not yet archived is the difference between losing
//! nothing and losing the last commits. The newest segment is usually incomplete; recovery ends cleanly
//! at its last valid record, so it is stored under its plain name: the server that wrote it is gone for
//! good. Should it come back and archive that segment with more in it, that push is refused loudly.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use dr_config::{BaseBackupBy, WorkloadSource};
use dr_installation::Installation;
use dr_model::{Lsn, SystemId, Timeline, WalFileName, WorkloadName};
use dr_sources::instance::occupied_after;
use dr_sources::postgres::control;
use dr_store::{Repository, WalPut};
use serde::{Deserialize, Serialize};

use super::{check_segment, push};
use crate::BackupError;
use crate::binding::check_binding;
use crate::error::{file_error, store_error};

/// Of a server that was killed, an archive command may still run for a moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a rescue found in a failed primary's `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rescued {
    /// Files newly stored.
    pub stored: Vec<String>,
    /// Files that were in the repository already.
    pub already_there: Vec<String>,
    /// Files left out, each with the reason.
    pub left_out: Vec<String>,
    /// Nothing could be looked for: the server's files are on another host.
    #[serde(default)]
    pub is_elsewhere: bool,
}

/// Moves what is left of a failed primary's `pg_wal` into the archive (26.3.4, step 2), before anything
/// is restored over it. The server must not run. A missing data directory rescues nothing and is no
/// error: it is said in `left_out`. Blocks.
///
/// # Errors
/// When the server still runs, the cluster is another, or a file cannot be stored.
pub fn rescue(
    installation: &Installation,
    workload: &WorkloadName,
) -> Result<Rescued, BackupError> {
    let found = installation.config.workload(workload.as_str())?;
    let WorkloadSource::Postgres(source) = found.source else {
        return Err(BackupError::WrongKind {
            workload: workload.clone(),
            needed: "postgres",
        });
    };
    let mut rescued = Rescued::default();
    let pg_wal = source.data_directory.join("pg_wal");
    if !pg_wal.is_dir() && source.base_backup == BaseBackupBy::Receive {
        rescued.is_elsewhere = true;
        rescued.left_out.push(format!(
            "{} is not on this host: what its server's host still has, `dr wal rescue` brings there, with the \
             same repository and workload name, before anything of it is removed",
            pg_wal.display()
        ));
        return Ok(rescued);
    }
    if !pg_wal.is_dir() {
        rescued.left_out.push(format!(
            "{} does not exist: nothing to rescue",
            pg_wal.display()
        ));
        return Ok(rescued);
    }
    refuse_running(&source.data_directory)?;
    super::store_kept_histories(installation, workload)?;
    let repository = installation.repository_of(workload)?;
    let control = match control::read(&source.data_directory) {
        Ok(control) => {
            check_binding(&repository, workload, control.system_id)?;
            Some(control)
        }
        Err(error) => {
            let unreadable = format!("pg_control cannot be read: {error}");
            rescued.left_out.push(unreadable);
            None
        }
    };
    let is_standby = control.as_ref().is_some_and(|control| control.in_recovery)
        || source.data_directory.join("standby.signal").exists();
    if is_standby {
        // Its primary writes on in the segment that it has the beginning of, and archives that.
        rescued.left_out.push(
            "it is a standby, or recovered when it was stopped: its WAL is its primary's to archive"
                .to_owned(),
        );
        return Ok(rescued);
    }
    let timelines = Timelines {
        of_cluster: control.map(|control| control.timeline),
        stored: repository
            .list_wal(workload)
            .map_err(store_error(
                format!("list the WAL of `{workload}`"),
                &repository,
            ))?
            .iter()
            .filter_map(WalFileName::timeline)
            .collect(),
        pg_wal: &pg_wal,
    };
    for name in names_in(&pg_wal)? {
        let file = pg_wal.join(name.to_string());
        match rescue_one(
            installation,
            &repository,
            workload,
            &name,
            &file,
            &timelines,
        ) {
            Ok(Verdict::Stored) => rescued.stored.push(name.to_string()),
            Ok(Verdict::AlreadyThere) => rescued.already_there.push(name.to_string()),
            Ok(Verdict::LeftOut(why)) => rescued.left_out.push(format!("{name}: {why}")),
            Err(error) => return Err(error),
        }
    }
    Ok(rescued)
}

/// Fails when anything may still write there.
fn refuse_running(data_directory: &Path) -> Result<(), BackupError> {
    match occupied_after(data_directory, PATIENCE) {
        None => Ok(()),
        Some(why) => Err(BackupError::ServerRuns {
            path: data_directory.to_owned(),
            why,
        }),
    }
}

/// Which timelines are the cluster's own.
struct Timelines<'a> {
    /// Of its last checkpoint.
    of_cluster: Option<Timeline>,
    /// Of which anything is in the repository.
    stored: BTreeSet<Timeline>,
    pg_wal: &'a Path,
}

impl Timelines<'_> {
    /// Why nothing of a timeline is to be rescued. A server that archives marks the history of a timeline as
    /// it begins it (`xlogarchive.c`). One that does not, a restored copy, began it to be looked at: in the
    /// archive every later restore would follow it.
    fn doubt(&self, timeline: Timeline) -> Option<&'static str> {
        let mark = |state: &str| {
            let name = WalFileName::History { timeline };
            let path = self.pg_wal.join(format!("archive_status/{name}.{state}"));
            path.exists()
        };
        if timeline == Timeline(1) || mark("ready") || mark("done") {
            return None;
        }
        if self
            .of_cluster
            .is_some_and(|of_cluster| timeline > of_cluster)
        {
            return Some("its timeline is not the cluster's");
        }
        (!self.stored.contains(&timeline)).then_some("the cluster did not archive this timeline")
    }
}

/// The WAL files of a folder that are WAL of this cluster and not in the repository as they are: what would be
/// lost with the folder.
///
/// # Errors
/// When a file cannot be read or the repository does not answer.
pub fn not_stored(
    repository: &Repository,
    workload: &WorkloadName,
    pg_wal: &Path,
    system_id: SystemId,
) -> Result<Vec<WalFileName>, BackupError> {
    let mut lacking = Vec::new();
    if !pg_wal.is_dir() {
        return Ok(lacking);
    }
    for name in names_in(pg_wal)? {
        let body = match name {
            WalFileName::Segment { .. } => {
                let body = push::read_whole(&pg_wal.join(name.to_string()))?;
                // What is recycled or was only made in advance holds nothing of its own name.
                match check_segment(&name, &body) {
                    Ok(found) if found == system_id => body,
                    _ => continue,
                }
            }
            WalFileName::History { .. } => push::read_whole(&pg_wal.join(name.to_string()))?,
            WalFileName::Partial { .. } | WalFileName::Backup(_) => continue,
        };
        let stored = repository.holds_wal(workload, &name, &body);
        let stored = stored.map_err(store_error(
            format!("look for {name} of `{workload}`"),
            repository,
        ))?;
        if stored != Some(true) {
            lacking.push(name);
        }
    }
    Ok(lacking)
}

enum Verdict {
    Stored,
    AlreadyThere,
    LeftOut(String),
}

/// The WAL files of a folder in order of name, so that a rescue that is cut short leaves no hole.
pub(crate) fn names_in(pg_wal: &Path) -> Result<Vec<WalFileName>, BackupError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(pg_wal).map_err(file_error("list", pg_wal))? {
        let entry = entry.map_err(file_error("list", pg_wal))?;
        if let Some(name) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            names.push(name);
        }
    }
    names.sort_by_key(ToString::to_string);
    Ok(names)
}

fn rescue_one(
    installation: &Installation,
    repository: &Repository,
    workload: &WorkloadName,
    name: &WalFileName,
    file: &Path,
    timelines: &Timelines<'_>,
) -> Result<Verdict, BackupError> {
    let is_segment = matches!(name, WalFileName::Segment { .. });
    if !is_segment && !matches!(name, WalFileName::History { .. }) {
        return Ok(Verdict::LeftOut(
            "only segments and timeline histories are rescued".to_owned(),
        ));
    }
    if let Some(why) = name.timeline().and_then(|of_file| timelines.doubt(of_file)) {
        return Ok(Verdict::LeftOut(why.to_owned()));
    }
    let body = push::read_whole(file)?;
    if is_segment {
        // A recycled segment, renamed for future use, still holds the pages of an old one; an
        // allocated one is empty. Both are refused by their first page.
        match check_segment(name, &body) {
            Ok(system_id) => check_binding(repository, workload, system_id)?,
            Err(error) => return Ok(Verdict::LeftOut(error.to_string())),
        };
    }
    // Of a disk that lost what it had flushed, or of an older copy: more was streamed than it has.
    if is_segment && !begins_with_what_was_streamed(repository, workload, name, &body)? {
        return Ok(Verdict::LeftOut(
            "it is not what was streamed of it, which is kept".to_owned(),
        ));
    }
    // By content, not by name: the server may have come back after an earlier rescue and written more into
    // the segment that was stored then. Storing it is then refused, loudly.
    let stored = repository
        .holds_wal(workload, name, &body)
        .map_err(store_error(
            format!("look for {name} of `{workload}`"),
            repository,
        ))?;
    if stored == Some(true) {
        return Ok(Verdict::AlreadyThere);
    }
    Ok(
        match push::put(repository, workload, name, &body, installation.clock.now())? {
            WalPut::Stored => Verdict::Stored,
            WalPut::AlreadyThere => Verdict::AlreadyThere,
        },
    )
}

/// Whether a segment has everything that was streamed of it.
fn begins_with_what_was_streamed(
    repository: &Repository,
    workload: &WorkloadName,
    name: &WalFileName,
    body: &[u8],
) -> Result<bool, BackupError> {
    let Some(start) = name
        .number(body.len() as u64)
        .and_then(|number| number.checked_mul(body.len() as u64))
    else {
        return Ok(true);
    };
    let (streamed, _) = repository
        .read_tails(workload, name, Lsn(start))
        .map_err(store_error(
            format!("read what was streamed of {name} of `{workload}`"),
            repository,
        ))?;
    Ok(body.starts_with(&streamed))
}

//! What is left of a dead primary: its last segments, before anything is restored over them.
//!
//! 26.3.4, step 2: the WAL that was written and not yet archived is the difference between losing
//! nothing and losing the last commits. The newest segment is usually incomplete; recovery ends cleanly
//! at its last valid record, so it is stored under its plain name: the server that wrote it is gone for
//! good. Should it come back and archive that segment with more in it, that push is refused loudly.

use std::path::Path;

use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Lsn, Timeline, WalFileName, WorkloadName};
use dr_sources::instance::PostgresInstance;
use dr_sources::postgres::control;
use dr_store::{Repository, WalPut};
use serde::{Deserialize, Serialize};

use super::{check_segment, push};
use crate::BackupError;
use crate::binding::check_binding;
use crate::error::{file_error, store_error};

/// What a rescue found in a failed primary's `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rescued {
    /// Files newly stored.
    pub stored: Vec<String>,
    /// Files that were in the repository already.
    pub already_there: Vec<String>,
    /// Files left out, each with the reason.
    pub left_out: Vec<String>,
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
    if !pg_wal.is_dir() {
        rescued.left_out.push(format!(
            "{} does not exist: nothing to rescue",
            pg_wal.display()
        ));
        return Ok(rescued);
    }
    if let Ok(server) = PostgresInstance::attach(&source.data_directory) {
        let pid = server.pid();
        // The handle would stop the server when dropped.
        server.leave_running();
        return Err(BackupError::ServerRuns {
            path: source.data_directory.clone(),
            pid,
        });
    }
    let repository = installation.repository_of(workload)?;
    let timeline = match control::read(&source.data_directory) {
        Ok(control) => {
            check_binding(&repository, workload, control.system_id)?;
            Some(control.timeline)
        }
        Err(error) => {
            rescued
                .left_out
                .push(format!("pg_control cannot be read: {error}"));
            None
        }
    };
    for name in names_in(&pg_wal)? {
        let file = pg_wal.join(name.to_string());
        match rescue_one(installation, &repository, workload, &name, &file, timeline) {
            Ok(Verdict::Stored) => rescued.stored.push(name.to_string()),
            Ok(Verdict::AlreadyThere) => rescued.already_there.push(name.to_string()),
            Ok(Verdict::LeftOut(why)) => rescued.left_out.push(format!("{name}: {why}")),
            Err(error) => return Err(error),
        }
    }
    Ok(rescued)
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
    timeline: Option<Timeline>,
) -> Result<Verdict, BackupError> {
    let is_segment = matches!(name, WalFileName::Segment { .. });
    if !is_segment && !matches!(name, WalFileName::History { .. }) {
        return Ok(Verdict::LeftOut(
            "only segments and timeline histories are rescued".to_owned(),
        ));
    }
    if name
        .timeline()
        .zip(timeline)
        .is_some_and(|(of_file, current)| of_file > current)
    {
        return Ok(Verdict::LeftOut(
            "its timeline is not the cluster's".to_owned(),
        ));
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

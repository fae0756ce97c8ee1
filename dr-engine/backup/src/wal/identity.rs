//! Which workload a WAL file is for, and whether it is what its name says.

use std::path::{Path, PathBuf};

use dr_config::PostgresSource;
use dr_installation::Installation;
use dr_model::{SystemId, WalFileName, WorkloadName};
use dr_sources::postgres::control;
use dr_wal::page::SegmentHeader;

use crate::BackupError;
use crate::binding::binding_of;
use crate::error::source_error;

/// The data directory a call comes from: PostgreSQL runs archive and restore commands in it. A person
/// may call from elsewhere: then it is the folder above the file's `pg_wal`.
pub(super) fn data_directory_of(file: Option<&Path>) -> Option<PathBuf> {
    let is_data_directory = |path: &Path| path.join("global/pg_control").is_file();
    let from_file = file
        .and_then(|file| std::path::absolute(file).ok())
        .and_then(|file| Some(file.parent()?.parent()?.to_owned()))
        .filter(|folder| is_data_directory(folder));
    from_file.or_else(|| {
        std::env::current_dir()
            .ok()
            .filter(|folder| is_data_directory(folder))
    })
}

/// Checks a segment's first page against its name and size.
///
/// # Errors
/// [`BackupError::BadWal`] when the content is not that segment.
pub(crate) fn check_segment(name: &WalFileName, body: &[u8]) -> Result<SystemId, BackupError> {
    let bad = |what: String| BackupError::BadWal {
        file: name.to_string(),
        what,
    };
    let page = SegmentHeader::parse(body)
        .ok_or_else(|| bad("its first page is not that of a WAL segment".to_owned()))?;
    if page.segment_bytes != body.len() as u64 {
        return Err(bad(format!(
            "it has {} bytes, but its cluster's segments have {}",
            body.len(),
            page.segment_bytes
        )));
    }
    let start = name
        .number(page.segment_bytes)
        .and_then(|number| number.checked_mul(page.segment_bytes));
    if start != Some(page.start.0) {
        return Err(bad(format!("its first page is that of {}", page.start)));
    }
    // After a switch inside a segment the child's file begins with the parent's pages.
    if name.timeline().is_none_or(|named| page.timeline > named) {
        return Err(bad(format!("its pages are of timeline {}", page.timeline)));
    }
    Ok(page.system_id)
}

/// The system identifier of a WAL file: a segment carries it; for the small files the `pg_control` of
/// the data directory that they come from tells.
pub(super) fn system_id_of(
    name: &WalFileName,
    body: &[u8],
    data_directory: Option<&Path>,
) -> Result<SystemId, BackupError> {
    match name {
        WalFileName::Segment { .. } | WalFileName::Partial { .. } => check_segment(name, body),
        WalFileName::History { .. } | WalFileName::Backup(_) => {
            let folder = data_directory.ok_or_else(|| BackupError::WhichWorkload {
                file: name.to_string(),
                why: "neither its folder nor the working directory belongs to a data directory"
                    .to_owned(),
            })?;
            let control = control::read(folder).map_err(source_error(format!(
                "tell which cluster {} is",
                folder.display()
            )))?;
            Ok(control.system_id)
        }
    }
}

/// From the engine file alone: pushing and fetching read no tiers, without which
/// [`dr_config::Config::workloads`] has nothing to show.
fn postgres_workloads(
    installation: &Installation,
) -> impl Iterator<Item = (&WorkloadName, &PostgresSource)> {
    let workloads = installation.config.engine.workloads.iter();
    workloads.filter_map(|(name, config)| Some((name, config.postgres.as_ref()?)))
}

/// The workload whose data directory this is, and how many bytes of its WAL may wait, if that is limited.
pub(super) fn archive_limit<'a>(
    installation: &'a Installation,
    folder: &Path,
) -> Option<(&'a WorkloadName, u64)> {
    postgres_workloads(installation)
        .filter(|(_, source)| same_folder(folder, &source.data_directory))
        .find_map(|(name, source)| Some((name, source.archive_queue_max?.bytes)))
}

/// The workload that is named, or the only one there is.
pub(super) fn one_workload<'a>(
    installation: &'a Installation,
    named: Option<&WorkloadName>,
    what: &str,
) -> Result<(&'a WorkloadName, &'a PostgresSource), BackupError> {
    let mut found = postgres_workloads(installation);
    if let Some(named) = named {
        let chosen = found.find(|(name, _)| *name == named);
        return chosen.ok_or_else(|| BackupError::WrongKind {
            workload: named.clone(),
            needed: "postgres",
        });
    }
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (first, _) => Err(BackupError::WhichWorkload {
            file: what.to_owned(),
            why: match first {
                Some(_) => "there are several; name one".to_owned(),
                None => "there is no postgres workload".to_owned(),
            },
        }),
    }
}

fn same_folder(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// The workload that a WAL file of `system_id` belongs to: the one bound to that cluster in its
/// repository; before the first backup, the one whose data directory it is.
pub(super) fn workload_for(
    installation: &Installation,
    file: &str,
    system_id: SystemId,
    data_directory: Option<&Path>,
) -> Result<WorkloadName, BackupError> {
    let mut bound = Vec::new();
    let mut refused = None;
    for (name, source) in postgres_workloads(installation) {
        let here = data_directory.is_some_and(|folder| same_folder(folder, &source.data_directory));
        let binding = binding_of(&installation.repository_of(name)?, name)?;
        match binding {
            Some(binding) if binding.system_id == system_id => {
                check_original(name, source, system_id, data_directory)?;
                bound.push((name, here));
            }
            Some(binding) if here => {
                refused = Some(BackupError::OtherCluster {
                    workload: name.clone(),
                    bound: binding.system_id,
                    found: system_id,
                });
            }
            None if here => bound.push((name, here)),
            _ => {}
        }
    }
    if bound.len() > 1 {
        bound.retain(|(_, here)| *here);
    }
    match bound.as_slice() {
        [(name, _)] => Ok((*name).clone()),
        [] => Err(refused.unwrap_or_else(|| BackupError::UnknownCluster {
            file: file.to_owned(),
            found: system_id,
        })),
        _ => Err(BackupError::WhichWorkload {
            file: file.to_owned(),
            why: format!("several workloads stand for cluster {system_id}"),
        }),
    }
}

/// Refuses the WAL of a copy while the original is still in its place: both carry the same system
/// identifier, and the first segment of the copy would stand in the way of the original's.
fn check_original(
    workload: &WorkloadName,
    source: &PostgresSource,
    system_id: SystemId,
    data_directory: Option<&Path>,
) -> Result<(), BackupError> {
    let Some(found) = data_directory else {
        return Ok(());
    };
    if same_folder(found, &source.data_directory) {
        return Ok(());
    }
    match control::read(&source.data_directory) {
        Ok(original) if original.system_id == system_id => Err(BackupError::Copy {
            workload: workload.clone(),
            found: found.to_owned(),
            configured: source.data_directory.clone(),
        }),
        // The original is gone or replaced by something else: this one has moved.
        _ => Ok(()),
    }
}

/// The workload of the data directory that a fetch is called in.
pub(super) fn workload_of_directory(
    installation: &Installation,
    name: &WalFileName,
) -> Result<WorkloadName, BackupError> {
    let candidates: Vec<&WorkloadName> = postgres_workloads(installation)
        .map(|(workload, _)| workload)
        .collect();
    if let [only] = candidates.as_slice() {
        return Ok((*only).clone());
    }
    let ambiguous = |why: &str| BackupError::WhichWorkload {
        file: name.to_string(),
        why: why.to_owned(),
    };
    let folder = data_directory_of(None)
        .ok_or_else(|| ambiguous("there are several, and this is not a data directory"))?;
    let system_id = control::read(&folder)
        .map_err(source_error(format!(
            "tell which cluster {} is",
            folder.display()
        )))?
        .system_id;
    let mut found = Vec::new();
    for candidate in candidates {
        let repository = installation.repository_of(candidate)?;
        if binding_of(&repository, candidate)?.is_some_and(|b| b.system_id == system_id) {
            found.push(candidate.clone());
        }
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(ambiguous(&format!(
            "{} workloads stand for cluster {system_id}",
            found.len()
        ))),
    }
}

//! A base backup that the server itself sends, from whatever host it is on.
//!
//! `BASE_BACKUP` has the server read its files, leave out what a backup does not need, verify page
//! checksums and put its control file last; it sends tar archives, the tablespaces' before the data
//! directory's. They are unpacked on the way into the same items that reading the files makes
//! ([`unpack`]). An ordinary session beside it tells what a restore will need to know, and a third one
//! keeps the WAL.
//!
//! What the server leaves out it only warns of, and not all damaged pages does it see: so what was received
//! is looked at for what a cluster cannot be without ([`whole`]), and for pages that it does not judge
//! ([`pages`]).

mod config;
mod pages;
mod reach;
mod transfer;
mod unpack;
mod whole;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dr_model::{Lsn, Progress};
use dr_replication::{BackupEnd, BaseBackupOptions};
use tokio_util::sync::CancellationToken;

use self::reach::Reached;
use self::transfer::or_cancelled;
use self::unpack::{Owner, Unpacked};
use super::{
    BaseBackupResult, CaptureDetails, CaptureSummary, ConfigFile, DETAILS_VERSION, PageChecks,
    WalHold, blocking, ending, session,
};
use crate::postgres::connection::{ClusterIdentity, ConnectOptions};
use crate::{ContentKind, Item, ItemKind, ItemSink, SourceError};

pub use self::reach::unreadable_configuration;

/// How long the last questions may take, when everything has been received.
const LAST_QUESTIONS: Duration = Duration::from_secs(120);

/// How a base backup is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedOptions {
    /// Its name on the server.
    pub label: String,
    /// Where the cluster lies on its host, where the role may not see that.
    pub data_directory: PathBuf,
    /// Files handed to the sink at a time; at least 1.
    pub parallelism: usize,
    /// The most that the server sends; as fast as it goes when left out.
    pub bytes_per_second: Option<u64>,
}

/// Takes a base backup of the cluster at `server` over the network, and hands it to `sink`.
///
/// Dropping the future ends the server's part too: nothing stays behind there.
///
/// # Errors
/// When the role may not, the server cannot, something received cannot be kept, something is missing that
/// a cluster cannot be without, or on cancellation.
pub async fn receive_base_backup(
    server: &ConnectOptions,
    options: &StreamedOptions,
    sink: Arc<dyn ItemSink>,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<BaseBackupResult, SourceError> {
    progress.phase("waiting for a checkpoint", None);
    let mut reached = Reached::prepare(server).await?;
    let started = session::server_time(&mut reached.session).await?;
    let mut connection = reach::walsender(server, &reached.identity).await?;
    let asked = BaseBackupOptions {
        label: options.label.clone(),
        bytes_per_second: options.bytes_per_second,
    };
    let mut backup = or_cancelled(cancel, connection.base_backup(&asked)).await?;
    let start_lsn = backup.start().lsn;
    reached.identity.timeline = backup.start().timeline;
    // A standby's backup begins where its primary's checkpoint did, however long ago that was.
    let started = match reached.identity.in_recovery {
        true => session::checkpoint_time(&mut reached.session).await?,
        false => started,
    };
    progress.phase("receiving the cluster", backup.start().bytes);
    let setting = unpack::Setting {
        sink: Arc::clone(&sink),
        page_bytes: reached.page_bytes,
        segment_pages: reached.segment_pages,
        check_pages: reached.identity.page_checksums,
        parallelism: options.parallelism.max(1),
    };
    let (end, unpacked) = transfer::run(
        &mut backup,
        setting,
        &mut reached,
        progress.as_ref(),
        cancel,
    )
    .await?;
    let finish = finish(
        &mut reached,
        options,
        (start_lsn, &end),
        unpacked,
        sink,
        progress.as_ref(),
    );
    // The sessions were idle for as long as the transfer took.
    let finished = tokio::select! {
        finished = tokio::time::timeout(LAST_QUESTIONS, finish) => finished,
        () = cancel.cancelled() => return Err(transfer::cancelled()),
    };
    let (moment, summary, details) = finished.map_err(|_| {
        SourceError::Refused(format!(
            "the server did not answer within {} s when it had sent everything",
            LAST_QUESTIONS.as_secs()
        ))
    })??;
    Ok(BaseBackupResult {
        position: ending::position(&reached.identity, start_lsn, end.lsn),
        started,
        moment,
        summary,
        details,
        in_recovery: reached.identity.in_recovery,
        wal_hold: reached.wal_hold,
    })
}

/// What is to be asked and told when everything was sent.
async fn finish(
    reached: &mut Reached,
    options: &StreamedOptions,
    (start_lsn, end): (Lsn, &BackupEnd),
    mut unpacked: Unpacked,
    sink: Arc<dyn ItemSink>,
    progress: &dyn Progress,
) -> Result<
    (
        chrono::DateTime<chrono::Utc>,
        CaptureSummary,
        CaptureDetails,
    ),
    SourceError,
> {
    check_source(&reached.identity, end, &unpacked.label)?;
    let moment = ending::moment(&mut reached.session, &reached.identity, &unpacked.label).await?;
    let databases = reach::databases(&mut reached.session).await?;
    whole::check(
        &unpacked.paths,
        &reached.databases,
        &databases,
        &end.warnings,
    )?;
    if let Some(owner) = unpacked.control_torn {
        // Of a standby it also says how far its files have come: a later one asks for more WAL than there is.
        if reached.identity.in_recovery {
            return Err(SourceError::Refused(
                "the standby sent its control file while it wrote it: run the backup again"
                    .to_owned(),
            ));
        }
        let control = reach::control_file(&mut reached.session).await?;
        keep(
            vec![("data/global/pg_control".to_owned(), control)],
            owner,
            &sink,
        )
        .await?;
        unpacked.files += 1;
    }
    let corrupt_pages = pages::corrupt(
        &mut reached.session,
        reached.page_bytes,
        &unpacked.suspicious,
        start_lsn,
        end,
    )
    .await;
    let config = config::read(
        &mut reached.session,
        &reached.identity,
        &mut reached.facts,
        &unpacked.paths,
    )
    .await?;
    let config_files: Vec<ConfigFile> = config.iter().map(|(file, _)| file.clone()).collect();
    let contents = config.into_iter().map(|(file, body)| (file.item, body));
    let config_bytes = keep(contents.collect(), unpacked.owner, &sink).await?;
    let mut notes = reached.facts.notes.clone();
    for warning in whole::warnings(&unpacked.paths, &end.warnings) {
        progress.note(&warning);
        notes.push(warning);
    }
    let summary = CaptureSummary {
        files: unpacked.files + config_files.len() as u64,
        bytes: unpacked.bytes + config_bytes,
        vanished: 0,
        pages: match reached.identity.page_checksums {
            true => PageChecks::Checked {
                pages: unpacked.pages,
            },
            false => PageChecks::NotChecked,
        },
        corrupt_pages,
        spared: 0,
        files_in_parts: 0,
        changed_pages: 0,
    };
    let facts = &reached.facts;
    let details = CaptureDetails {
        version: DETAILS_VERSION,
        data_directory: (reached.identity.data_directory.clone())
            .unwrap_or_else(|| options.data_directory.clone()),
        server_version: reached.identity.server_version.clone(),
        config_files,
        tablespaces: unpacked.tablespaces,
        wal_directory: None,
        databases: facts.databases.clone(),
        extensions: facts.extensions.clone(),
        shared_preload_libraries: facts.shared_preload_libraries.clone(),
        critical_settings: facts.critical.clone(),
        pages: summary.pages.clone(),
        corrupt_pages: summary.corrupt_pages.clone(),
        notes,
    };
    Ok((moment, summary, details))
}

/// Two connections by one address can reach two servers of one cluster: what was asked of one must not be
/// told of the other.
fn check_source(
    identity: &ClusterIdentity,
    end: &BackupEnd,
    label: &str,
) -> Result<(), SourceError> {
    if end.timeline != identity.timeline {
        return Err(SourceError::Refused(format!(
            "the backup began on timeline {} and ended on {}: run it again",
            identity.timeline, end.timeline
        )));
    }
    let is_standbys = label
        .lines()
        .any(|line| line.trim() == "BACKUP FROM: standby");
    if is_standbys == identity.in_recovery {
        return Ok(());
    }
    let name = |is_standby| match is_standby {
        true => "a standby",
        false => "a primary",
    };
    Err(SourceError::Refused(format!(
        "the files were sent by {}, and the server that was asked is {}: the address leads to more than one \
         server, or it was promoted meanwhile; name one, and run the backup again",
        name(is_standbys),
        name(identity.in_recovery)
    )))
}

/// Hands over files that did not come with the others.
async fn keep(
    files: Vec<(String, Vec<u8>)>,
    (uid, gid): Owner,
    sink: &Arc<dyn ItemSink>,
) -> Result<u64, SourceError> {
    let sink = Arc::clone(sink);
    blocking(move || {
        let mut bytes = 0;
        for (path, content) in files {
            let item = Item {
                path,
                kind: ItemKind::File,
                mode: 0o600,
                uid,
                gid,
                modified_ns: 0,
                changed_ns: 0,
                inode: 0,
            };
            bytes += content.len() as u64;
            sink.file(&item, &mut content.as_slice(), ContentKind::Other)
                .map_err(|source| SourceError::Sink {
                    item: item.path,
                    source,
                })?;
        }
        Ok(bytes)
    })
    .await
}

#[cfg(test)]
mod tests {
    use dr_model::{SystemId, Timeline};

    use super::*;

    fn told(in_recovery: bool, label: &str) -> Result<(), String> {
        let identity = ClusterIdentity {
            system_id: SystemId(1),
            timeline: Timeline(1),
            server_version_num: 150_018,
            server_version: "15.18".to_owned(),
            wal_segment_bytes: 1 << 24,
            data_directory: None,
            in_recovery,
            page_checksums: true,
            archive_mode: "off".to_owned(),
            archive_command: String::new(),
            archive_timeout_seconds: 0,
            wal_level: "replica".to_owned(),
            current_lsn: Lsn(0),
        };
        let end = BackupEnd {
            lsn: Lsn(1),
            timeline: Timeline(1),
            damaged: None,
            warnings: Vec::new(),
        };
        check_source(&identity, &end, label).map_err(|error| error.to_string())
    }

    #[test]
    fn files_of_another_server_than_was_asked_are_refused() {
        let (primary, standby) = (
            "BACKUP METHOD: streamed\nBACKUP FROM: primary\n",
            "BACKUP METHOD: streamed\nBACKUP FROM: standby\n",
        );
        assert_eq!(told(false, primary), Ok(()));
        assert_eq!(told(true, standby), Ok(()));
        assert!(
            told(false, standby)
                .unwrap_err()
                .contains("sent by a standby")
        );
        assert!(
            told(true, primary)
                .unwrap_err()
                .contains("sent by a primary")
        );
    }
}

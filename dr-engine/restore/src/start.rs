//! Starting a restored cluster and watching its recovery.

mod launch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Lsn, Progress, Timeline, WorkloadName};
use dr_sources::instance::{StartOptions, WaitFor, free_port, scratch_settings};
use dr_sources::postgres::{ConnectOptions, put_back, tools};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::RestoreError;
use crate::collations;
use crate::error::{blocking, source_error};
use crate::execute::server_user;
use crate::recovery::{self, url_parts, with_database};

pub(crate) use launch::{Launch, recover};

/// As what a restored cluster is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartAs {
    /// To look at: nothing goes out, nothing comes in but over loopback.
    Scratch,
    /// In the source's place: its own configuration decides.
    Primary,
}

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartRequest {
    /// The workload.
    pub workload: WorkloadName,
    /// The data directory; the workload's own when left out.
    pub folder: Option<PathBuf>,
    /// As what.
    pub start_as: StartAs,
    /// The port; for a primary the one in the workload's URL, else a free one, when left out.
    pub port: Option<u16>,
    /// How long recovery may take.
    pub timeout: Duration,
}

/// Where recovery ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The position up to which was replayed.
    pub lsn: Lsn,
    /// The time of the last replayed commit, if any was replayed.
    pub last_commit_time: Option<DateTime<Utc>>,
    /// The timeline the server is on now.
    pub timeline: Timeline,
    /// When the target itself could not be the end: why, and what was done.
    pub note: Option<String>,
}

impl Reached {
    /// Adds what else is to be known.
    pub(crate) fn add_note(&mut self, more: String) {
        self.note = Some(match self.note.take() {
            Some(note) => format!("{note}; {more}"),
            None => more,
        });
    }
}

/// A server that runs and accepts writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub port: u16,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// Where recovery ended.
    pub reached: Reached,
}

/// Starts a restored cluster as the owner of its folder and waits until recovery has ended and it
/// accepts writes. The server goes on running.
///
/// # Errors
/// When recovery stops because the repository cannot be reached (the server then does not open), or
/// the server ends, or the time is up.
pub async fn start(
    installation: &Installation,
    request: &StartRequest,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Started, RestoreError> {
    let workload = installation.config.workload(request.workload.as_str())?;
    let WorkloadSource::Postgres(source) = workload.source else {
        return Err(RestoreError::WrongKind {
            workload: request.workload.clone(),
            needed: "postgres",
        });
    };
    if cancel.is_cancelled() {
        return Err(RestoreError::Cancelled(request.workload.clone()));
    }
    let folder = request
        .folder
        .clone()
        .unwrap_or_else(|| source.data_directory.clone());
    let folder =
        std::path::absolute(&folder).map_err(crate::error::file_error("resolve", &folder))?;
    // As a copy to look at it would be started past what keeps it closed.
    if put_back::is_closed(&folder).map_err(source_error("start the restored server"))? {
        return Err(RestoreError::ErasuresPending { path: folder });
    }
    let password = installation.postgres_password(&workload)?;
    let (user, database) = url_parts(&source.url);
    let port = match (request.port, request.start_as) {
        (Some(port), _) => port,
        (None, StartAs::Primary) => url_port(&source.url),
        (None, StartAs::Scratch) => free_port(),
    };
    let major = recovery::major_version(&folder)?;
    let bin = tools::bin_directory(source.bin_directory.as_deref(), major)
        .map_err(source_error("start the restored server"))?;
    let mut options = StartOptions::new(&bin, &folder, server_user(&folder)?, port);
    options.timeout = request.timeout;
    options.wait_for = WaitFor::ReadWrite;
    options.superuser = user.clone();
    options.log_file = log_file(&folder);
    // Why it ends is read from its log, and must not depend on the language of the operator.
    options
        .settings
        .push(("lc_messages".to_owned(), "C".to_owned()));
    let launch = match request.start_as {
        StartAs::Primary => Launch::OwnConfiguration(options),
        StartAs::Scratch => {
            options.settings.extend(quiet_settings());
            Launch::Private(options)
        }
    };
    progress.phase("recovering", None);
    let url = match request.start_as {
        // In the source's place it is reached as the source was.
        StartAs::Primary if request.port.is_none() => source.url.clone(),
        _ => format!("postgres://{user}@127.0.0.1:{port}/{database}"),
    };
    let began = SystemTime::now();
    let (server, note) =
        blocking("start the restored server", move || recover(launch, began)).await?;
    let options = ConnectOptions { url, password };
    let mut reached = recovery::reached(&options, &folder, note).await?;
    let server_of = |other: &str| ConnectOptions {
        url: with_database(&options.url, other),
        password: options.password.clone(),
    };
    let and_so = "before an index on texts is relied on, REINDEX it, then ALTER DATABASE or ALTER COLLATION ... \
                  REFRESH VERSION";
    let compared = collations::compare(server_of, &database).await;
    if let Some(told) = compared.told(and_so) {
        reached.add_note(told);
    }
    let pid = server.pid();
    server.leave_running();
    Ok(Started {
        pid,
        port,
        data_directory: folder,
        reached,
    })
}

/// Beside the data directory: inside it would be a file that no manifest knows.
fn log_file(folder: &std::path::Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".log");
    PathBuf::from(name)
}

/// What keeps a copy to itself. It may be kept, so it stays durable.
fn quiet_settings() -> Vec<(String, String)> {
    scratch_settings()
        .into_iter()
        .filter(|(name, _)| name != "fsync" && name != "full_page_writes")
        .collect()
}

/// The port in a connection URL; PostgreSQL's own when there is none.
fn url_port(url: &str) -> u16 {
    const POSTGRESQL_PORT: u16 = 5432;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    host.rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok())
        .unwrap_or(POSTGRESQL_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_comes_from_the_url() {
        assert_eq!(url_port("postgres://dr@127.0.0.1:5433/erp"), 5433);
        assert_eq!(
            url_port("postgres://dr@localhost/erp?host=/run/postgresql"),
            5432
        );
    }
}

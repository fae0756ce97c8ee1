//! Throw-away servers at a moment of the past.
//!
//! A scratch server is private in every direction: its own folder, its own socket folder that only its
//! user may enter, no TCP, none of the source's configuration, no archiving, no replication. Dropping
//! its handle stops it and removes the folder. When the process dies instead, the next scratch restore
//! into the same parent folder finds what was left and clears it away.

mod clearing;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dr_config::WorkloadSource;
use dr_installation::Installation;
use dr_model::{Progress, Target, WorkloadName};
use dr_sources::instance::{
    PostgresInstance, RunAs, StartOptions, StopMode, WaitFor, free_port, give, scratch_settings,
};
use dr_sources::postgres::{ConnectOptions, connect, tools};
use tokio_util::sync::CancellationToken;

use crate::collations;
use crate::erasure::{self, AppliedErasures, Depth};
use crate::error::{blocking, file_error, source_error};
use crate::execute::{Opening, Purpose, prepare_folder, restore_cluster, server_user};
use crate::recovery::{self, url_parts};
use crate::start::{Launch, recover};
use crate::{Reached, RestoreError, RestorePlan, RestoreRequest, plan};
pub(crate) use clearing::{Folder, clear_left_behind};

/// Recovery of a scratch server that is not over by then has failed.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(3600);
/// What a private server's shared buffers have at least, as PostgreSQL sets them by itself, and at most.
const SHARED_BUFFERS_MB: (u64, u64) = (128, 512);
/// `sun_path` of unix(7) is short; a deeper folder gets its socket elsewhere.
const SOCKET_FOLDER_BYTES_MAX: usize = 80;

/// A private server with a workload's state at a target: promoted, read-write, on a private socket.
/// Dropping it stops the server and removes its folder.
#[derive(Debug)]
pub struct Scratch {
    /// The server. Declared before the folder: it is stopped before that is removed.
    pub instance: PostgresInstance,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// The plan it was made by.
    pub plan: RestorePlan,
    /// Where recovery ended.
    pub reached: Reached,
    /// What was taken out of it by [`Scratch::forget`].
    pub erasures: AppliedErasures,
    /// Its sessions look for nothing by indexes.
    reads_everything: bool,
    superuser: String,
    socket_directory: PathBuf,
    _folder: Folder,
}

/// The folder of a scratch server that was shut down; dropping it removes it.
#[derive(Debug)]
pub(crate) struct StoppedScratch {
    pub(crate) data_directory: PathBuf,
    _folder: Folder,
}

impl Scratch {
    /// Shuts the server down as a server should be: its files are then all there is.
    pub(crate) fn stop(self) -> Result<StoppedScratch, RestoreError> {
        let Self {
            instance,
            data_directory,
            _folder,
            ..
        } = self;
        instance
            .stop(StopMode::Fast)
            .map_err(source_error("stop the scratch server"))?;
        Ok(StoppedScratch {
            data_directory,
            _folder,
        })
    }

    /// Takes out what was erased of these tenants, by all entries of the ledger that there are now. Entries of others are
    /// left alone: what stands against one of theirs is no reason to keep these tenants waiting.
    ///
    /// # Errors
    /// When the ledger cannot be read, or an entry does not fit the state at the target.
    pub async fn forget(
        &mut self,
        installation: &Installation,
        tenants: &[&str],
    ) -> Result<&AppliedErasures, RestoreError> {
        let mut entries = erasure::ledger_of(installation, &self.plan.workload).await?;
        entries.retain(|entry| tenants.iter().any(|id| entry.tenant.is(id)));
        if !entries.is_empty() {
            let server = |database: &str| self.connect_options(database);
            self.erasures = erasure::apply(&server, &entries, Depth::Rows).await?;
        }
        Ok(&self.erasures)
    }

    /// Whether its indexes on texts may not be in order on this host.
    pub(crate) fn reads_everything(&self) -> bool {
        self.reads_everything
    }

    /// How programs of PostgreSQL's reach it: socket folder, port, user.
    pub(crate) fn reach(&self) -> (&Path, u16, &str) {
        (
            &self.socket_directory,
            self.instance.port(),
            &self.superuser,
        )
    }

    /// How to connect to one of its databases, as its superuser.
    #[must_use]
    pub fn connect_options(&self, database: &str) -> ConnectOptions {
        let mut url = socket_url(
            &self.superuser,
            database,
            self.instance.port(),
            &self.socket_directory,
        );
        if self.reads_everything {
            // With the session, which goes before what production set for roles and databases.
            for (setting, value) in collations::READ_EVERYTHING {
                url.push_str(&format!("&options[{setting}]={value}"));
            }
        }
        ConnectOptions {
            url,
            password: None,
        }
    }
}

pub(crate) fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

pub(crate) fn socket_url(user: &str, database: &str, port: u16, folder: &Path) -> String {
    format!(
        "postgres://{}@localhost:{port}/{}?host={}",
        percent_encode(user),
        percent_encode(database),
        percent_encode(&folder.display().to_string())
    )
}

/// Restores `workload` at `target` into a new folder below `folder` and starts it there. What was erased since is
/// still in it: before anything of a tenant is taken from it, [`Scratch::forget`].
///
/// # Errors
/// As [`crate::plan`], [`crate::execute`] and [`crate::start`]; nothing is left behind.
pub async fn scratch(
    installation: &Installation,
    workload: &WorkloadName,
    target: &Target,
    folder: &Path,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Scratch, RestoreError> {
    let request = RestoreRequest::new(workload.clone(), None, target.clone());
    let plan = plan(installation, &request).await?;
    scratch_of(installation, plan, folder, progress, cancel).await
}

/// Restores and starts what `plan` says, whatever folder it names, into a new folder below `folder`.
///
/// # Errors
/// As [`scratch`].
pub async fn scratch_of(
    installation: &Installation,
    plan: RestorePlan,
    folder: &Path,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Scratch, RestoreError> {
    let prepared = prepare(installation, plan, folder, &progress, &cancel).await?;
    prepared.open(installation, progress).await
}

/// A restored folder that has not been started yet.
pub(crate) struct Prepared {
    pub(crate) plan: RestorePlan,
    pub(crate) data_directory: PathBuf,
    pub(crate) bin_directory: PathBuf,
    pub(crate) user: Option<RunAs>,
    folder: Folder,
}

/// Restores into a new folder below `folder` and starts nothing.
pub(crate) async fn prepare(
    installation: &Installation,
    mut plan: RestorePlan,
    folder: &Path,
    progress: &Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<Prepared, RestoreError> {
    let workload = installation.config.workload(plan.workload.as_str())?;
    let WorkloadSource::Postgres(source) = workload.source else {
        return Err(RestoreError::WrongKind {
            workload: plan.workload,
            needed: "postgres",
        });
    };
    let Some(position) = plan.point.postgres() else {
        return Err(RestoreError::WrongKind {
            workload: plan.workload,
            needed: "postgres",
        });
    };
    let bin_directory =
        tools::bin_directory(source.bin_directory.as_deref(), position.major_version())
            .map_err(source_error("start a scratch server"))?;
    let parent = std::path::absolute(folder).map_err(file_error("resolve", folder))?;
    let (folder, user) = blocking("make a scratch folder", move || {
        let user = server_user(&parent)?;
        clear_left_behind(&parent);
        Ok((Folder::create(&parent, user.as_ref())?, user))
    })
    .await?;
    let data_directory = folder.path().join("data");
    plan.into = Some(data_directory.clone());
    plan.as_primary = false;
    restore_cluster(
        installation,
        &plan,
        (Purpose::Scratch, Opening::AtOnce),
        Arc::clone(progress),
        cancel.clone(),
    )
    .await?;
    Ok(Prepared {
        plan,
        data_directory,
        bin_directory,
        user,
        folder,
    })
}

impl Prepared {
    /// Starts the server and sees it through recovery.
    pub(crate) async fn open(
        self,
        installation: &Installation,
        progress: Arc<dyn Progress>,
    ) -> Result<Scratch, RestoreError> {
        let workload = installation.config.workload(self.plan.workload.as_str())?;
        let user_in_url = match workload.source {
            WorkloadSource::Postgres(source) => url_parts(&source.url).0,
            _ => "postgres".to_owned(),
        };
        let socket_directory = socket_directory(&self.folder, self.user.as_ref())?;
        let options = StartOptions::new(
            &self.bin_directory,
            &self.data_directory,
            self.user.clone(),
            free_port(),
        );
        let options = private_server(&self.folder, &socket_directory, options, &user_in_url)?;
        let port = options.port;
        progress.phase("recovering", None);
        let began = SystemTime::now();
        let (instance, note) = blocking("start a scratch server", move || {
            recover(Launch::Private(options), began)
        })
        .await?;
        let url = socket_url(&user_in_url, "postgres", port, &socket_directory);
        let options = ConnectOptions {
            url,
            password: None,
        };
        let mut reached = recovery::reached(&options, &self.data_directory, note).await?;
        let superuser = superuser(&options).await?;
        let server = |database: &str| ConnectOptions {
            url: socket_url(&superuser, database, port, &socket_directory),
            password: None,
        };
        let compared = collations::compare(server, "postgres").await;
        if let Some(told) = compared.told("no index was used to read from the copy") {
            reached.add_note(told);
        }
        Ok(Scratch {
            instance,
            data_directory: self.data_directory,
            plan: self.plan,
            reached,
            erasures: AppliedErasures::default(),
            reads_everything: !compared.is_trusted(),
            superuser,
            socket_directory,
            _folder: self.folder,
        })
    }
}

/// Where the socket of a private server goes: into `side`, if its path is not too long for one.
pub(crate) fn socket_directory(
    side: &Folder,
    user: Option<&RunAs>,
) -> Result<PathBuf, RestoreError> {
    let inside = side.path().join("s");
    let place = if inside.as_os_str().len() <= SOCKET_FOLDER_BYTES_MAX {
        inside
    } else {
        side.socket_elsewhere()
    };
    prepare_folder(&place, user)
}

/// How a server is started that only this process can reach: by a socket in a folder that only its user may enter,
/// with nothing of the source's configuration. What it needs for that goes into `side`.
pub(crate) fn private_server(
    side: &Folder,
    sockets: &Path,
    mut options: StartOptions,
    superuser: &str,
) -> Result<StartOptions, RestoreError> {
    let file = |name: &str, text: &str| -> Result<(String, PathBuf), RestoreError> {
        let path = side.path().join(name);
        fs::write(&path, text).map_err(file_error("write", &path))?;
        give(&path, options.run_as.as_ref()).map_err(source_error("prepare a scratch server"))?;
        Ok((path.display().to_string(), path))
    };
    // Nothing of the source's configuration applies, whatever it loads, listens to or calls.
    let config = file("scratch.conf", "")?.0;
    let hba = file("scratch_hba.conf", "local all all trust\n")?.0;
    let ident = file("scratch_ident.conf", "")?.0;
    options.socket_directory = Some(sockets.to_owned());
    options.listen_loopback = false;
    options.log_file = side.path().join("server.log");
    options.timeout = RECOVERY_TIMEOUT;
    options.wait_for = WaitFor::ReadWrite;
    options.superuser = superuser.to_owned();
    options.settings = scratch_settings();
    options.settings.extend([
        ("shared_buffers".to_owned(), shared_buffers()),
        // A tenant's rows lie on pages all over, which are on the disk and not in memory.
        ("effective_io_concurrency".to_owned(), "64".to_owned()),
        ("maintenance_io_concurrency".to_owned(), "64".to_owned()),
    ]);
    let own = [
        ("config_file", config),
        ("hba_file", hba),
        ("ident_file", ident),
    ];
    options
        .settings
        .extend(own.map(|(name, path)| (name.to_owned(), path)));
    options
        .settings
        .push(("lc_messages".to_owned(), "C".to_owned()));
    if has_tablespace_inside(&options.data_directory)? {
        let setting = "allow_in_place_tablespaces";
        (options.settings).push((setting.to_owned(), "on".to_owned()));
    }
    Ok(options)
}

/// An eighth of the memory that is free, within bounds: recovery writes each page out once instead of again and again,
/// and the machine is usually the live server's.
fn shared_buffers() -> String {
    let told = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    format!("{}MB", eighth_of_available(&told))
}

/// In MB, from what `/proc/meminfo` says (proc(5)).
fn eighth_of_available(told: &str) -> u64 {
    let available = told
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let eighth = kib.map_or(0, |kib| kib / 1024 / 8);
    eighth.clamp(SHARED_BUFFERS_MB.0, SHARED_BUFFERS_MB.1)
}

/// Whether a tablespace lies in the data directory: recovery does not end with one unless it is allowed.
fn has_tablespace_inside(data_directory: &Path) -> Result<bool, RestoreError> {
    let folder = data_directory.join("pg_tblspc");
    for entry in fs::read_dir(&folder).map_err(file_error("list", &folder))? {
        let entry = entry.map_err(file_error("list", &folder))?;
        // Of the link itself.
        let kind = entry.file_type().map_err(file_error("examine", &folder))?;
        if kind.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The role that may read everything: the cluster's first superuser.
pub(crate) async fn superuser(options: &ConnectOptions) -> Result<String, RestoreError> {
    let mut connection = connect(options)
        .await
        .map_err(source_error("reach the scratch server"))?;
    sqlx::query_scalar(
        "select rolname::text from pg_roles where rolsuper and rolcanlogin order by oid limit 1",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(|source| RestoreError::Source {
        action: "find the scratch server's superuser".to_owned(),
        source: dr_sources::SourceError::Sql {
            action: "list its roles",
            source,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_buffers_are_a_part_of_what_is_free() {
        let told = |kib: u64| format!("MemTotal: 1 kB\nMemAvailable:   {kib} kB\nBuffers: 2 kB\n");
        assert_eq!(eighth_of_available(&told(2 << 20)), 256);
        assert_eq!(eighth_of_available(&told(64 << 20)), 512);
        assert_eq!(eighth_of_available(&told(100 << 10)), 128);
        assert_eq!(eighth_of_available("MemTotal: 1 kB"), 128);
    }
}

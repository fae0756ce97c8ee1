//! Private PostgreSQL servers.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::lock_file::{LockFile, is_postgres, serves_another};
use super::process::{descendants, is_alive, signal, stat, wait_until};
use super::run_as::{RunAs, command, give};
use crate::SourceError;
use crate::postgres::control;

/// A server that is told to stop and does not within this is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// The end of a server's log that an error carries.
const LOG_LINES_SHOWN: usize = 15;
/// `sun_path` of unix(7) holds 108 bytes with the closing zero; PostgreSQL adds `/.s.PGSQL.<port>`.
const SOCKET_FOLDER_BYTES_MAX: usize = 107 - "/.s.PGSQL.65535.lock".len();

/// How to make a new cluster.
#[derive(Debug, Clone)]
pub struct InitdbOptions {
    /// Where `initdb` is.
    pub bin_directory: PathBuf,
    /// The folder to fill; made when missing.
    pub data_directory: PathBuf,
    /// Whose it will be.
    pub run_as: Option<RunAs>,
    /// The name of its superuser.
    pub superuser: String,
    /// Page checksums.
    pub data_checksums: bool,
    /// Megabytes of a WAL segment, when not 16.
    pub wal_segment_megabytes: Option<u32>,
    /// More arguments for `initdb`.
    pub arguments: Vec<String>,
}

impl InitdbOptions {
    /// A cluster with checksums, superuser `postgres`, UTF-8 and the C locale.
    #[must_use]
    pub fn new(bin_directory: &Path, data_directory: &Path, run_as: Option<RunAs>) -> Self {
        Self {
            bin_directory: bin_directory.to_owned(),
            data_directory: data_directory.to_owned(),
            run_as,
            superuser: "postgres".to_owned(),
            data_checksums: true,
            wal_segment_megabytes: None,
            arguments: Vec::new(),
        }
    }
}

/// What [`PostgresInstance::start`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// Connections are accepted, be it read-only during recovery.
    Connections,
    /// Recovery, if any, is over.
    ReadWrite,
}

/// How to start a server on an existing data directory.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Where `postgres` is.
    pub bin_directory: PathBuf,
    /// What it serves.
    pub data_directory: PathBuf,
    /// The user it runs as.
    pub run_as: Option<RunAs>,
    /// Its port, also part of the socket's name.
    pub port: u16,
    /// A folder for its socket; none: no socket.
    pub socket_directory: Option<PathBuf>,
    /// Whether it listens on 127.0.0.1.
    pub listen_loopback: bool,
    /// Settings for its command line, which beat every file.
    pub settings: Vec<(String, String)>,
    /// Where its output goes (appended).
    pub log_file: PathBuf,
    /// How long it may take.
    pub timeout: Duration,
    /// What to wait for.
    pub wait_for: WaitFor,
    /// The role in the URLs this handle gives out.
    pub superuser: String,
}

impl StartOptions {
    /// A server on 127.0.0.1:`port` without a socket, its log beside the data directory.
    #[must_use]
    pub fn new(
        bin_directory: &Path,
        data_directory: &Path,
        run_as: Option<RunAs>,
        port: u16,
    ) -> Self {
        Self {
            bin_directory: bin_directory.to_owned(),
            data_directory: data_directory.to_owned(),
            run_as,
            port,
            socket_directory: None,
            listen_loopback: true,
            settings: Vec::new(),
            log_file: data_directory.with_extension("log"),
            timeout: Duration::from_secs(60),
            wait_for: WaitFor::Connections,
            superuser: "postgres".to_owned(),
        }
    }
}

/// How a server is stopped (`pg_ctl stop -m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended, everything is flushed.
    Fast,
    /// At once; the next start recovers from the WAL.
    Immediate,
}

/// A running server.
#[derive(Debug)]
pub struct PostgresInstance {
    data_directory: PathBuf,
    pid: u32,
    started_ticks: u64,
    child: Option<Child>,
    port: u16,
    socket_directory: Option<PathBuf>,
    superuser: String,
    stop_on_drop: bool,
}

/// Settings that keep a copy from touching anything outside itself, and make it quick. A restored
/// copy has the original's system identifier, archive command, `primary_conninfo` and subscriptions:
/// without these it would push WAL into the original's archive and consume its replication slots.
#[must_use]
pub fn scratch_settings() -> Vec<(String, String)> {
    [
        ("archive_mode", "off"),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("listen_addresses", ""),
        ("autovacuum", "off"),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        // Nobody reads before recovery is over. Open to readers it would stop, and wait, where the source was given
        // more connections since the backup than this one has room for (27.4.5).
        ("hot_standby", "off"),
        ("ssl", "off"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        // In the copy's own data directory: the original's must be neither overwritten nor removed.
        ("external_pid_file", "dr-external.pid"),
        ("fsync", "off"),
        ("full_page_writes", "off"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

impl PostgresInstance {
    /// Makes a new cluster. Local connections need no password: the socket folder and loopback of
    /// this host are the boundary.
    ///
    /// # Errors
    /// When `initdb` fails; the error carries what it printed.
    pub fn initdb(options: &InitdbOptions) -> Result<(), SourceError> {
        let data = &options.data_directory;
        std::fs::create_dir_all(data).map_err(SourceError::file("create", data))?;
        give(data, options.run_as.as_ref())?;
        let program = options.bin_directory.join("initdb");
        let mut initdb = command(options.run_as.as_ref(), &program);
        initdb
            .arg("--pgdata")
            .arg(data)
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
            ])
            .arg(format!("--username={}", options.superuser));
        if options.data_checksums {
            initdb.arg("--data-checksums");
        }
        if let Some(megabytes) = options.wal_segment_megabytes {
            initdb.arg(format!("--wal-segsize={megabytes}"));
        }
        let output = initdb
            .args(&options.arguments)
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(SourceError::file("run", &program))?;
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        Err(SourceError::Program {
            program: program.display().to_string(),
            output: last_lines(&String::from_utf8_lossy(&text)),
        })
    }

    /// Starts a server and waits until it is usable.
    ///
    /// # Errors
    /// When it cannot be started, ends by itself or is not usable in time; it is stopped then, and
    /// the error carries the end of its log.
    pub fn start(options: StartOptions) -> Result<Self, SourceError> {
        let log_start = std::fs::metadata(&options.log_file).map_or(0, |metadata| metadata.len());
        let child = spawn(&options)?;
        let pid = child.id();
        let mut instance = Self {
            pid,
            started_ticks: stat(pid).map_or(0, |stat| stat.started_ticks),
            child: Some(child),
            data_directory: options.data_directory.clone(),
            port: options.port,
            socket_directory: options.socket_directory.clone(),
            superuser: options.superuser.clone(),
            stop_on_drop: true,
        };
        let mut ended = None;
        let ready = wait_until(options.timeout, || {
            ended = instance
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            ended.is_some() || is_ready(&options, pid)
        });
        let what = match (ready, ended) {
            (true, None) => return Ok(instance),
            (_, Some(status)) => format!("it ended with {status}"),
            (false, None) => format!("it was not ready within {} s", options.timeout.as_secs()),
        };
        // Dropping the handle stops what is left of it.
        drop(instance);
        let log = log_since(&options.log_file, log_start);
        Err(SourceError::NotStarted {
            path: options.data_directory,
            reason: format!("{what}; the end of {}:\n{log}", options.log_file.display()),
        })
    }

    /// Takes hold of a server that already runs on `data_directory`. The handle stops it when
    /// dropped, like any other; see [`Self::leave_running`].
    ///
    /// # Errors
    /// When none runs there.
    pub fn attach(data_directory: &Path) -> Result<Self, SourceError> {
        let not_running = || SourceError::NotRunning {
            path: data_directory.to_owned(),
        };
        let lock = LockFile::read(data_directory).ok_or_else(not_running)?;
        let stat = stat(lock.pid)
            .filter(|_| is_alive(lock.pid))
            .ok_or_else(not_running)?;
        if !is_postgres(lock.pid) || serves_another(lock.pid, data_directory) {
            return Err(not_running());
        }
        Ok(Self {
            data_directory: data_directory.to_owned(),
            pid: lock.pid,
            started_ticks: stat.started_ticks,
            child: None,
            port: lock.port,
            socket_directory: lock.socket_directory,
            superuser: "postgres".to_owned(),
            stop_on_drop: true,
        })
    }

    /// The pid of its first process (the postmaster).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it serves.
    #[must_use]
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// Whether its sockets lie in this folder or below it. A link to a data directory that a dead process left may lead
    /// to another server by now than the one which that process started with its sockets here.
    #[must_use]
    pub fn listens_below(&self, folder: &Path) -> bool {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let sockets = self.socket_directory.as_deref();
        sockets.is_some_and(|sockets| real(sockets).starts_with(real(folder)))
    }

    /// A connection URL for one of its databases: by the socket if it has one, else by loopback.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let (user, port) = (&self.superuser, self.port);
        match &self.socket_directory {
            Some(folder) => {
                let folder = percent_encode(&folder.display().to_string());
                format!("postgres://{user}@localhost:{port}/{database}?host={folder}")
            }
            None => format!("postgres://{user}@127.0.0.1:{port}/{database}"),
        }
    }

    /// Whether its first process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        is_alive(self.pid) && stat(self.pid).is_some_and(|s| s.started_ticks == self.started_ticks)
    }

    /// Stops the server and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then, with its children.
    pub fn stop(mut self, mode: StopMode) -> Result<(), SourceError> {
        self.stop_on_drop = false;
        self.stop_within(mode, STOP_TIMEOUT)
    }

    /// Kills all its processes at once (SIGKILL), as a crash of the machine would, and waits until
    /// they are gone.
    pub fn kill_all(mut self) {
        self.stop_on_drop = false;
        self.kill();
    }

    /// Lets the server run on after this handle is gone. Its end is still waited for in the background:
    /// an ended child that nobody waits for looks alive to whoever asks for its process id, and
    /// PostgreSQL would take its lock files for those of a running server.
    pub fn leave_running(mut self) {
        self.stop_on_drop = false;
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }

    fn stop_within(&mut self, mode: StopMode, timeout: Duration) -> Result<(), SourceError> {
        if self.is_running() {
            // Signals of 19.5 "Shutting Down the Server".
            signal(
                self.pid,
                match mode {
                    StopMode::Fast => Signal::INT,
                    StopMode::Immediate => Signal::QUIT,
                },
            );
        }
        if wait_until(timeout, || self.has_ended()) {
            return Ok(());
        }
        self.kill();
        Err(SourceError::NotStopped {
            path: self.data_directory.clone(),
            pid: self.pid,
            seconds: timeout.as_secs(),
        })
    }

    fn kill(&mut self) {
        let mut processes = descendants(self.pid);
        if self.is_running() {
            processes.push(self.pid);
            // The parent first, so that it starts no new children.
            signal(self.pid, Signal::KILL);
        }
        for pid in &processes {
            signal(*pid, Signal::KILL);
        }
        wait_until(STOP_TIMEOUT, || {
            self.has_ended() && !processes.iter().any(|pid| is_alive(*pid))
        });
    }

    /// Also reaps the process when it is our child, so that no zombie stays.
    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => !self.is_running(),
        }
    }
}

impl Drop for PostgresInstance {
    fn drop(&mut self) {
        if self.stop_on_drop && self.stop_within(StopMode::Immediate, STOP_TIMEOUT).is_err() {
            tracing::warn!(
                pid = self.pid,
                "a private PostgreSQL server had to be killed"
            );
        }
    }
}

fn spawn(options: &StartOptions) -> Result<Child, SourceError> {
    let program = options.bin_directory.join("postgres");
    if !program.is_file() {
        return Err(SourceError::ProgramMissing {
            program: program.display().to_string(),
        });
    }
    let log_file = &options.log_file;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_file)
        .map_err(SourceError::file("open", log_file))?;
    give(log_file, options.run_as.as_ref())?;
    let errors = log
        .try_clone()
        .map_err(SourceError::file("open", log_file))?;
    let mut postgres = command(options.run_as.as_ref(), &program);
    postgres
        .arg("-D")
        .arg(&options.data_directory)
        .arg("-p")
        .arg(options.port.to_string());
    for (name, value) in &options.settings {
        postgres.arg("-c").arg(format!("{name}={value}"));
    }
    // Last, because the last of two equal settings wins: where we listen is decided here alone.
    let listen = if options.listen_loopback {
        "127.0.0.1"
    } else {
        ""
    };
    postgres.arg("-c").arg(format!("listen_addresses={listen}"));
    postgres.arg("-c").arg(format!(
        "unix_socket_directories={}",
        socket_setting(options)?
    ));
    postgres
        .current_dir("/")
        .env_remove("PGDATA")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(SourceError::file("run", &program))
}

fn socket_setting(options: &StartOptions) -> Result<String, SourceError> {
    let Some(folder) = &options.socket_directory else {
        return Ok(String::new());
    };
    let text = folder.display().to_string();
    if text.len() > SOCKET_FOLDER_BYTES_MAX {
        return Err(SourceError::Refused(format!(
            "{text} is too long for a socket: at most {SOCKET_FOLDER_BYTES_MAX} bytes"
        )));
    }
    // SplitDirectoriesString: quoted, so that a comma or blank does not split the name.
    Ok(format!("\"{}\"", text.replace('"', "\"\"")))
}

/// The state in the lock file is what `pg_ctl -w` goes by (`miscadmin.h`, PM_STATUS_*): `ready` as
/// soon as connections are accepted, be it during recovery. The control file says when that is over;
/// what it said before the start is replaced before the first connection.
fn is_ready(options: &StartOptions, pid: u32) -> bool {
    let Some(lock) = LockFile::read(&options.data_directory) else {
        return false;
    };
    lock.pid == pid
        && lock.status == "ready"
        && match options.wait_for {
            WaitFor::Connections => true,
            WaitFor::ReadWrite => {
                control::read(&options.data_directory).is_ok_and(|control| control.in_production)
            }
        }
}

fn log_since(path: &Path, start: u64) -> String {
    let Ok(bytes) = std::fs::read(path) else {
        return "(no log)".to_owned();
    };
    let start = usize::try_from(start).unwrap_or(0);
    last_lines(&String::from_utf8_lossy(
        bytes.get(start..).unwrap_or(&bytes),
    ))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// Percent-encodes a path for a URL's query (RFC 3986, unreserved characters stay).
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

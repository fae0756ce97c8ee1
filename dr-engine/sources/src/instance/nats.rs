//! Private NATS servers with JetStream.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::process::{is_alive, signal, stat, wait_until};
use super::run_as::{RunAs, command, give};
use crate::SourceError;

/// How long a server may take to come up: it reads its streams first.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A server that is told to stop and does not within this is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one look at the port may take.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Where Debian and the usual packages put the program.
const PROGRAM_FOLDERS: [&str; 3] = ["/usr/sbin", "/usr/local/bin", "/usr/bin"];
/// Written into the store folder, so that another process can take hold of the server.
const PID_FILE: &str = "nats-server.pid";

/// A running server.
#[derive(Debug)]
pub struct NatsInstance {
    store_directory: PathBuf,
    pid: u32,
    started_ticks: u64,
    child: Option<Child>,
    port: u16,
    stop_on_drop: bool,
}

impl NatsInstance {
    /// Starts a server on 127.0.0.1:`port` that keeps its streams under `store_directory` (made when
    /// missing, together with its pid file and log) and waits until JetStream answers.
    ///
    /// # Errors
    /// When the program is missing, ends by itself or does not answer in time; it is stopped then,
    /// and the error carries the end of its log.
    pub fn start(
        store_directory: &Path,
        port: u16,
        run_as: Option<&RunAs>,
    ) -> Result<Self, SourceError> {
        std::fs::create_dir_all(store_directory)
            .map_err(SourceError::file("create", store_directory))?;
        give(store_directory, run_as)?;
        let log_file = store_directory.join("nats-server.log");
        let child = spawn(store_directory, &log_file, port, run_as)?;
        let pid = child.id();
        let mut instance = Self {
            store_directory: store_directory.to_owned(),
            pid,
            started_ticks: stat(pid).map_or(0, |stat| stat.started_ticks),
            child: Some(child),
            port,
            stop_on_drop: true,
        };
        let mut ended = None;
        let ready = wait_until(START_TIMEOUT, || {
            ended = instance
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            ended.is_some() || answers(port)
        });
        let reason = match (ready, ended) {
            (true, None) => return Ok(instance),
            (_, Some(status)) => format!("it ended with {status}"),
            (false, None) => format!("it did not answer within {} s", START_TIMEOUT.as_secs()),
        };
        drop(instance);
        let log = std::fs::read_to_string(&log_file).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        let end = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        Err(SourceError::NotStarted {
            path: store_directory.to_owned(),
            reason: format!("{reason}; the end of {}:\n{end}", log_file.display()),
        })
    }

    /// Takes hold of a server that was started on `store_directory` and left running. The handle
    /// stops it when dropped; see [`Self::leave_running`].
    ///
    /// # Errors
    /// When none runs there.
    pub fn attach(store_directory: &Path) -> Result<Self, SourceError> {
        let not_running = || SourceError::NotRunning {
            path: store_directory.to_owned(),
        };
        let text =
            std::fs::read_to_string(store_directory.join(PID_FILE)).map_err(|_| not_running())?;
        let mut fields = text.split_ascii_whitespace();
        let pid: u32 = fields
            .next()
            .and_then(|f| f.parse().ok())
            .ok_or_else(not_running)?;
        let port = fields
            .next()
            .and_then(|f| f.parse().ok())
            .ok_or_else(not_running)?;
        let ticks: u64 = fields
            .next()
            .and_then(|f| f.parse().ok())
            .ok_or_else(not_running)?;
        let same = is_alive(pid) && stat(pid).is_some_and(|stat| stat.started_ticks == ticks);
        if !same {
            return Err(not_running());
        }
        Ok(Self {
            store_directory: store_directory.to_owned(),
            pid,
            started_ticks: ticks,
            child: None,
            port,
            stop_on_drop: true,
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it keeps its streams.
    #[must_use]
    pub fn store_directory(&self) -> &Path {
        &self.store_directory
    }

    /// A connection URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Whether its process still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        is_alive(self.pid) && stat(self.pid).is_some_and(|s| s.started_ticks == self.started_ticks)
    }

    /// Stops the server cleanly and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub fn stop(mut self) -> Result<(), SourceError> {
        self.stop_on_drop = false;
        self.stop_within(STOP_TIMEOUT)
    }

    /// Kills it (SIGKILL), as a crash of the machine would, and waits until it is gone.
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

    fn stop_within(&mut self, timeout: Duration) -> Result<(), SourceError> {
        if self.is_running() {
            signal(self.pid, Signal::TERM);
        }
        if wait_until(timeout, || self.has_ended()) {
            return Ok(());
        }
        self.kill();
        Err(SourceError::NotStopped {
            path: self.store_directory.clone(),
            pid: self.pid,
            seconds: timeout.as_secs(),
        })
    }

    fn kill(&mut self) {
        if self.is_running() {
            signal(self.pid, Signal::KILL);
        }
        wait_until(STOP_TIMEOUT, || self.has_ended());
    }

    /// Also reaps the process when it is our child, so that no zombie stays.
    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => !self.is_running(),
        }
    }
}

impl Drop for NatsInstance {
    fn drop(&mut self) {
        if self.stop_on_drop && self.stop_within(STOP_TIMEOUT).is_err() {
            tracing::warn!(pid = self.pid, "a private NATS server had to be killed");
        }
    }
}

fn spawn(
    store_directory: &Path,
    log_file: &Path,
    port: u16,
    run_as: Option<&RunAs>,
) -> Result<Child, SourceError> {
    let program = find_program()?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_file)
        .map_err(SourceError::file("open", log_file))?;
    give(log_file, run_as)?;
    let errors = log
        .try_clone()
        .map_err(SourceError::file("open", log_file))?;
    let mut server = command(run_as, &program);
    server
        .args(["--jetstream", "--addr", "127.0.0.1", "--port"])
        .arg(port.to_string())
        .arg("--store_dir")
        .arg(store_directory)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // A Ctrl-C meant for us does not reach a process group of its own.
        .process_group(0);
    let child = server.spawn().map_err(SourceError::file("run", &program))?;
    let ticks = stat(child.id()).map_or(0, |stat| stat.started_ticks);
    let pid_file = store_directory.join(PID_FILE);
    std::fs::write(&pid_file, format!("{} {port} {ticks}\n", child.id()))
        .and_then(|()| {
            run_as.map_or(Ok(()), |user| {
                std::os::unix::fs::lchown(&pid_file, Some(user.uid), Some(user.gid))
            })
        })
        .map_err(SourceError::file("write", &pid_file))?;
    Ok(child)
}

fn find_program() -> Result<PathBuf, SourceError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PROGRAM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join("nats-server"))
        .find(|program| program.is_file())
        .ok_or_else(|| SourceError::ProgramMissing {
            program: "nats-server".to_owned(),
        })
}

/// Whether a NATS server with JetStream greets at this port. The server opens its port after its
/// streams are read.
fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, PROBE_TIMEOUT) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(PROBE_TIMEOUT));
    let mut line = String::new();
    let greeted = BufReader::new(&stream).read_line(&mut line).is_ok();
    // Leaves politely; whether that is heard does not matter.
    let _ = stream.write_all(b"CONNECT {\"verbose\":false}\r\n");
    greeted && line.starts_with("INFO ") && line.contains("\"jetstream\":true")
}

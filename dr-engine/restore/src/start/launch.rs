//! One server process, through recovery, once more without its target when that is allowed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use dr_sources::SourceError;
use dr_sources::instance::{PostgresInstance, RunAs, StartOptions, command, give};
use dr_sources::postgres::control;

use crate::RestoreError;
use crate::recovery::{end_with_the_archive, is_target_not_reached, not_opened};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How a server is launched.
#[derive(Debug, Clone)]
pub(crate) enum Launch {
    /// Where it listens is decided by the options alone.
    Private(StartOptions),
    /// Where it listens is decided by its own configuration.
    OwnConfiguration(StartOptions),
}

impl Launch {
    fn options(&self) -> &StartOptions {
        match self {
            Self::Private(options) | Self::OwnConfiguration(options) => options,
        }
    }

    fn start(&self) -> Result<PostgresInstance, SourceError> {
        match self {
            Self::Private(options) => PostgresInstance::start(options.clone()),
            Self::OwnConfiguration(options) => start_as_configured(options),
        }
    }
}

/// Starts a server and sees it through recovery. Returns what had to be done otherwise than asked. Blocks.
pub(crate) fn recover(
    launch: Launch,
    began: SystemTime,
) -> Result<(PostgresInstance, Option<String>), RestoreError> {
    let folder = launch.options().data_directory.clone();
    let error = match launch.start() {
        Ok(server) => return Ok((server, None)),
        Err(error) => error,
    };
    if !is_target_not_reached(&error, began) || !end_with_the_archive(&folder)? {
        return Err(not_opened(&folder, error, began));
    }
    let note = "no later commit is in the archive: recovery went to its end, which is the state at \
                the target if every commit up to it was archived";
    launch
        .start()
        .map(|server| (server, Some(note.to_owned())))
        .map_err(|error| not_opened(&folder, error, began))
}

/// Starts a server in its source's place: only its port is given, everything else is its own matter.
fn start_as_configured(options: &StartOptions) -> Result<PostgresInstance, SourceError> {
    let program = options.bin_directory.join("postgres");
    let log_start = fs::metadata(&options.log_file).map_or(0, |metadata| metadata.len());
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&options.log_file)
        .map_err(SourceError::file("open", &options.log_file))?;
    give(&options.log_file, options.run_as.as_ref())?;
    let errors = log
        .try_clone()
        .map_err(SourceError::file("open", &options.log_file))?;
    let mut postgres = command(options.run_as.as_ref(), &program);
    postgres
        .arg("-D")
        .arg(&options.data_directory)
        .arg("-p")
        .arg(options.port.to_string());
    for (name, value) in &options.settings {
        postgres.arg("-c").arg(format!("{name}={value}"));
    }
    // Until recovery is over. Open to readers it would stop, and wait, where the source was given more connections since
    // the backup than this one has room for ("Hot Standby Parameter Reference", 27.4.5).
    postgres.arg("-c").arg("hot_standby=off");
    if !can_make_its_socket(options) {
        // As an ordinary user there may be no right to the default folder; TCP is left.
        postgres.arg("-c").arg("unix_socket_directories=");
    }
    let child = postgres
        .current_dir("/")
        .env_remove("PGDATA")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(SourceError::file("run", &program))?;
    wait_until_open(options, child, log_start)
}

fn wait_until_open(
    options: &StartOptions,
    mut child: Child,
    log_start: u64,
) -> Result<PostgresInstance, SourceError> {
    let deadline = Instant::now() + options.timeout;
    let what = loop {
        if let Ok(Some(status)) = child.try_wait() {
            break format!("it ended with {status}");
        }
        if is_open(&options.data_directory, child.id()) {
            return PostgresInstance::attach(&options.data_directory);
        }
        if Instant::now() >= deadline {
            // Taking hold of it and letting go stops it.
            drop(PostgresInstance::attach(&options.data_directory));
            let _ = child.wait();
            break format!("it was not ready within {} s", options.timeout.as_secs());
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let text = fs::read(&options.log_file).unwrap_or_default();
    let from = usize::try_from(log_start).unwrap_or(0);
    let log = String::from_utf8_lossy(text.get(from..).unwrap_or(&text)).into_owned();
    let lines: Vec<&str> = log.trim_end().lines().collect();
    let tail = lines
        .get(lines.len().saturating_sub(20)..)
        .unwrap_or_default()
        .join("\n");
    Err(SourceError::NotStarted {
        path: options.data_directory.clone(),
        reason: format!("{what}; the end of {}:\n{tail}", options.log_file.display()),
    })
}

/// `postmaster.pid` says "ready" as soon as connections are accepted, be it during recovery
/// (`miscadmin.h`, PM_STATUS_READY); the control file says when recovery is over.
fn is_open(data_directory: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(data_directory.join("postmaster.pid")) else {
        return false;
    };
    let mut lines = text.lines();
    let ours = lines
        .next()
        .is_some_and(|line| line.trim() == pid.to_string());
    ours && lines.nth(6).is_some_and(|status| status.trim() == "ready")
        && control::read(data_directory).is_ok_and(|control| control.in_production)
}

/// Asks the server for its socket folders (`postgres -C`) and looks whether its user may write there.
fn can_make_its_socket(options: &StartOptions) -> bool {
    let asked = command(
        options.run_as.as_ref(),
        options.bin_directory.join("postgres"),
    )
    .arg("-D")
    .arg(&options.data_directory)
    .args(["-C", "unix_socket_directories"])
    .current_dir("/")
    .stdin(Stdio::null())
    .output();
    let Ok(output) = asked else { return true };
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    text.split(',')
        .map(|folder| folder.trim().trim_matches('"'))
        .filter(|folder| !folder.is_empty() && !folder.starts_with('@'))
        .all(|folder| may_write(Path::new(folder), options.run_as.as_ref()))
}

fn may_write(folder: &Path, user: Option<&RunAs>) -> bool {
    let Some(user) = user else {
        return rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    };
    fs::metadata(folder).is_ok_and(|metadata| {
        let mode = metadata.mode();
        (metadata.uid() == user.uid && mode & 0o200 != 0)
            || (metadata.gid() == user.gid && mode & 0o020 != 0)
            || mode & 0o002 != 0
    })
}

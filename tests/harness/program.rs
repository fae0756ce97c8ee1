//! Running programs as the world's user, and waiting for what they do.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::folder::Account;

/// What a program said.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) command: String,
    /// `None`: ended by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Panics with everything the program said unless it ended 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// Both streams, for looking for words.
    pub(crate) fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        let said = self.said();
        for word in words {
            assert!(
                said.contains(word),
                "`{word}` is not in what it said: {self}"
            );
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "$ {}\nexit {:?}", self.command, self.code)?;
        writeln!(
            f,
            "--- stdout\n{}\n--- stderr\n{}",
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// A command line that runs as the given account.
#[derive(Debug)]
pub(crate) struct Program {
    command: Command,
    shown: String,
}

impl Program {
    pub(crate) fn new(account: &Account, program: impl AsRef<OsStr>) -> Self {
        let mut command = match &account.setpriv {
            None => Command::new(&program),
            Some(name) => {
                let mut command = Command::new("setpriv");
                command.args([
                    format!("--reuid={name}"),
                    format!("--regid={}", account.group),
                    "--clear-groups".to_owned(),
                    "--".to_owned(),
                ]);
                command.arg(&program);
                command
            }
        };
        let inherited = [
            "PATH",
            "LANG",
            "DR_LOG",
            "RUST_BACKTRACE",
            "LD_LIBRARY_PATH",
        ];
        let kept: Vec<_> = inherited
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .collect();
        command.env_clear().envs(kept);
        command
            .env("HOME", &account.home)
            .env("TMPDIR", account.home.join("tmp"));
        command.current_dir(&account.home).stdin(Stdio::null());
        Self {
            command,
            shown: program.as_ref().to_string_lossy().into_owned(),
        }
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.shown.push(' ');
            self.shown.push_str(&argument.as_ref().to_string_lossy());
            self.command.arg(argument);
        }
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn envs(mut self, all: &[(&str, String)]) -> Self {
        for (name, value) in all {
            self.command.env(name, value);
        }
        self
    }

    pub(crate) fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Output {
        let output = self
            .command
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        Output {
            command: self.shown,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts it in the background, with its output in a file.
    pub(crate) fn spawn(mut self, log: &Path) -> Child {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        self.command.stdout(log.try_clone().unwrap()).stderr(log);
        self.command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown))
    }

    /// Starts it with pipes for stdin and stdout.
    pub(crate) fn talk(mut self, log: &Path) -> Child {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        self.command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown))
    }
}

/// A loopback port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Polls until `found` gives something; panics with `what` after `limit`.
#[track_caller]
pub(crate) fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut found: impl FnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(
            began.elapsed() < limit,
            "waited {} s for {what}",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

//! Commands, shown as a person would type them, with their output below.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

use dr_sources::instance::{self, RunAs};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio_util::sync::CancellationToken;

use super::Narrator;
use super::error::{StoryError, file};
use super::folder;

/// Lines of a failed command that are repeated in the error.
const LAST_WORDS: usize = 6;

/// Runs commands in the demo's folder.
#[derive(Clone)]
pub(crate) struct Shell {
    pub(crate) folder: PathBuf,
    pub(crate) run_as: Option<RunAs>,
    narrator: Arc<dyn Narrator>,
    cancel: CancellationToken,
}

impl Shell {
    pub(crate) fn new(
        folder: &Path,
        run_as: Option<RunAs>,
        narrator: Arc<dyn Narrator>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            run_as,
            narrator,
            cancel,
        }
    }

    pub(crate) fn say(&self, text: &str) {
        self.narrator.line(text);
    }

    pub(crate) fn chapter(&self, title: &str) {
        self.say("");
        self.say(&format!(
            "── {title} {}",
            "─".repeat(90_usize.saturating_sub(title.chars().count()))
        ));
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.folder.join("bin/dr")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("dr.yaml")
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = instance::command(self.run_as.as_ref(), self.binary());
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("DR_CONFIG", self.config())
            .stdin(Stdio::null());
        command
    }

    /// Shows and runs `dr ARGUMENTS`; its output is shown as it comes and returned.
    pub(crate) async fn dr(&self, arguments: &[&str]) -> Result<String, StoryError> {
        self.dr_accepting(arguments, &[0])
            .await
            .map(|(_, text)| text)
    }

    /// [`Shell::dr`] where other exit codes than 0 are answers too.
    pub(crate) async fn dr_accepting(
        &self,
        arguments: &[&str],
        accepted: &[i32],
    ) -> Result<(i32, String), StoryError> {
        if self.cancel.is_cancelled() {
            return Err(StoryError::Interrupted);
        }
        let shown = shown(arguments);
        self.say("");
        self.say(&format!("$ {shown}"));
        let mut command = tokio::process::Command::from(self.command(arguments));
        let failed = |source| StoryError::File {
            action: "run",
            path: self.binary(),
            source,
        };
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (out, talk) = (child.stdout.take(), child.stderr.take());
        let pid = child.id();
        let ask_to_end = async {
            self.cancel.cancelled().await;
            folder::ask_to_end(pid);
            std::future::pending::<()>().await;
        };
        let (out, talk) = tokio::select! {
            both = async { tokio::join!(self.echo(out), self.echo(talk)) } => both,
            () = ask_to_end => return Err(StoryError::Interrupted),
        };
        let status = child.wait().await.map_err(failed)?;
        match status.code() {
            Some(code) if accepted.contains(&code) => Ok((code, out)),
            _ => {
                let all: Vec<&str> = talk.lines().chain(out.lines()).collect();
                // The error begins where it says so; progress before it is no cause.
                let from = all.iter().rposition(|line| {
                    let line = line.trim_start();
                    line.starts_with("error:") || line.starts_with("cause:")
                });
                let words: Vec<&str> = all
                    .iter()
                    .skip(from.unwrap_or(0))
                    .take(LAST_WORDS)
                    .copied()
                    .collect();
                Err(StoryError::Command {
                    command: shown,
                    status: status.to_string(),
                    message: words.join("\n"),
                })
            }
        }
    }

    async fn echo(&self, stream: Option<impl AsyncRead + Unpin>) -> String {
        let mut kept = String::new();
        let Some(stream) = stream else { return kept };
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            self.say(&format!("  {line}"));
            kept.push_str(&line);
            kept.push('\n');
        }
        kept
    }

    /// Runs `dr ARGUMENTS --json` quietly, for the story's own questions.
    pub(crate) async fn ask(&self, arguments: &[&str]) -> Result<serde_json::Value, StoryError> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let shown = shown(&all);
        let output = tokio::process::Command::from(self.command(&all))
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| StoryError::File {
                action: "run",
                path: self.binary(),
                source,
            })?;
        serde_json::from_slice(&output.stdout).map_err(|error| StoryError::Answer {
            command: shown,
            detail: format!("{error}; {}", String::from_utf8_lossy(&output.stderr)),
        })
    }

    /// Starts `dr ARGUMENTS` in the background, its output in `log`.
    pub(crate) fn start(&self, arguments: &[&str], log: &Path) -> Result<Child, StoryError> {
        let output = std::fs::File::create(log).map_err(file("create", log))?;
        let errors = output.try_clone().map_err(file("open", log))?;
        let child = self
            .command(arguments)
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|source| StoryError::File {
                action: "run",
                path: self.binary(),
                source,
            })?;
        folder::note_process(&self.folder, child.id())?;
        Ok(child)
    }

    /// Writes a file of the story, owned by whom everything runs as.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<(), StoryError> {
        if let Some(parent) = path.parent() {
            self.make_folder(parent)?;
        }
        std::fs::write(path, text).map_err(file("write", path))?;
        self.give(path)
    }

    /// Makes a folder of the story with its parents.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<(), StoryError> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_folder(parent)?;
        }
        std::fs::create_dir(path).map_err(file("create", path))?;
        self.give(path)
    }

    pub(crate) fn give(&self, path: &Path) -> Result<(), StoryError> {
        instance::give(path, self.run_as.as_ref()).map_err(|source| StoryError::Server {
            action: "hand over a file",
            source,
        })
    }
}

/// The command as a person would type it.
fn shown(arguments: &[&str]) -> String {
    let mut text = String::from("dr");
    for argument in arguments {
        text.push(' ');
        if argument
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./:=+".contains(c))
        {
            text.push_str(argument);
        } else {
            text.push_str(&format!("'{}'", argument.replace('\'', r"'\''")));
        }
    }
    text
}
